// One way to run a loop on the threads that the caller's OpenMP run-time (torch's, inside Python) offers.
#pragma once
#include <cstdint>
#include <exception>

namespace morlfast {

/// Threads a loop may use: OpenMP's setting, and 1 in a forked child, where libgomp's pool no longer exists.
int thread_count();

/// Calls body(i) for i in [0, count). Each i must write its own outputs, so that results do not depend on the number
/// of threads. `parallel` = false (too little work) runs here and now. Rethrows the exception of the lowest i.
template <class Body>
void parallel_for(int64_t count, bool parallel, const Body& body) {
  const int threads = parallel && count > 1 ? thread_count() : 1;
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr error;
  int64_t error_at = count;
  // Small enough to balance uneven work, large enough that handing out the next chunk costs nothing.
  const int64_t chunk = count / (int64_t{32} * threads) + 1;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(morlfast_parallel_for)
      if (i < error_at) {
        error = std::current_exception();
        error_at = i;
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace morlfast
