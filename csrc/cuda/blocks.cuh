// What the kernels of several files share: arithmetic that infinities cannot spoil, sums in a fixed order, grids.
#pragma once

#include <cstdint>

#include "morlfast/cuda/launch.hpp"

namespace morlfast::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kNone = -1;  // in place of a row

// 0 unless both sides are positive, so that inf * 0 and inf - inf reach no sum.
__device__ inline double rectangle(double width, double height) { return width > 0 && height > 0 ? width * height : 0; }

// The sum over the warp, for lane 0.
__device__ inline double warp_sum(double term) {
  for (int step = 16; step > 0; step /= 2) term += __shfl_down_sync(kAllLanes, term, step);
  return term;
}

// The sum over the block, for thread 0, in an order that depends on nothing but kThreads.
template <int kThreads>
__device__ double block_sum(double term) {
  __shared__ double of_warp[kThreads / 32];
  term = warp_sum(term);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = term;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (const double part : of_warp) sum += part;
  return sum;
}

inline dim3 grid_of(std::int64_t fronts, std::int64_t tiles = 1, std::int64_t axes = 1) {
  return dim3(static_cast<unsigned>(fronts), static_cast<unsigned>(tiles), static_cast<unsigned>(axes));
}

}  // namespace
}  // namespace morlfast::cuda
