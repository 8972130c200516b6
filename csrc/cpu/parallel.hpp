// One way to run a loop on the threads that the caller's OpenMP run-time (torch's, inside Python) offers.
#pragma once
#include <cstdint>
#include <exception>

namespace morlfast {

/// Threads a loop may use: OpenMP's setting, and 1 in a forked child, where libgomp's pool no longer exists.
int thread_count();

/// Calls body(i) for i in [0, count). Each i must write its own outputs, so that results do not depend on the number
/// of threads. `parallel` = false (too little work) runs here and now. The first exception is rethrown.
template <class Body>
void parallel_for(int64_t count, bool parallel, const Body& body) {
  const int threads = parallel && count > 1 ? thread_count() : 1;
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(morlfast_parallel_for)
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace morlfast
