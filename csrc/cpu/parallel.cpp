#include "parallel.hpp"

#include <omp.h>
#include <pthread.h>

#include <atomic>

namespace morlfast {
namespace {

std::atomic<bool> forked{false};

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

int thread_count() { return forked.load(std::memory_order_relaxed) || omp_in_parallel() ? 1 : omp_get_max_threads(); }

}  // namespace morlfast
