// Exact hypervolume of batches of fronts in 1, 2 or 3 objectives on a CUDA device, with its gradient.
//
// Every pointer is device memory of the current device, row-major and contiguous. Nothing here allocates,
// copies or synchronizes, so calls can be captured in a CUDA graph. The same inputs give the same bits.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;  // as the CUDA runtime declares it; callers need no CUDA headers

namespace morlfast::cuda {

// The longest front; launchers throw std::invalid_argument beyond it, and beyond 2^31 - 1 fronts.
inline constexpr std::int64_t kMaxHypervolumePoints = 65535 * std::int64_t{256};

// Axes along which hypervolume() wants the points sorted: 0 for m = 1, 1 for m = 2, 3 for m = 3.
constexpr int hypervolume_orders(int m) { return m == 3 ? 3 : m - 1; }

// Doubles of scratch a front that hypervolume() needs; 0 where it needs none.
std::int64_t hypervolume_scratch(std::int64_t n, int m);

// Sorts every front by axis k, then by the other axes in index order, then by row, for each axis k < axes <= m,
// for any m. Counts predecessors: O(n^2) a front, in one launch, which beats a device-wide sort up to a few
// thousand points a front.
//   points  (fronts, n, m)     no NaN, unless the front's whole columns are NaN
//   order   (axes, fronts, n)  out: the row at each position
//   rank    (axes, fronts, n)  out: the position of each row; null where nobody asks
void lexicographic_orders(const double* points, std::int64_t fronts, std::int64_t n, int m, int axes,
                          std::int32_t* order, std::int32_t* rank, cudaStream_t stream);

// Hypervolume under minimization, and its gradient. A point that does not count (not strictly better than
// ref, NaN, padding) must equal its ref. Along objective k, the gradient of a point is -(measure of what it
// covers of the projection onto the other objectives and no point before it in order k covers).
//   points    (fronts, n, m)
//   ref       (fronts, m)     NaN in it makes the front's value NaN and its gradient 0
//   order     (K, fronts, n)  from lexicographic_orders() along K = hypervolume_orders(m) axes, or the same by
//                             other means; unread for m = 1
//   rank      (K, fronts, n)  likewise; unread for m < 3
//   value     (fronts,)       out
//   gradient  (fronts, n, m)  out; null for the value alone, which has the same bits
//   scratch   (fronts, hypervolume_scratch(n, m))
void hypervolume(const double* points, const double* ref, const std::int32_t* order, const std::int32_t* rank,
                 std::int64_t fronts, std::int64_t n, int m, double* value, double* gradient, double* scratch,
                 cudaStream_t stream);

}  // namespace morlfast::cuda
