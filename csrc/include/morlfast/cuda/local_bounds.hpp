// Hypervolume of fronts in any number of objectives, exclusive volumes and box decompositions on a CUDA
// device, by local upper bounds.
//
// Every pointer is device memory of the current device, row-major and contiguous. Nothing here allocates,
// copies or synchronizes, so calls can be captured in a CUDA graph. The same inputs give the same bits.
//
// `max_memory` limits the bytes that the lists of bounds take, for all fronts at work together. Less memory
// costs time, not precision; std::invalid_argument names what is needed at least. The other scratch is a few
// copies of the points.
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;  // as the CUDA runtime declares it; callers need no CUDA headers

namespace morlfast::cuda {

// A point's rank and its row share 32 bits.
inline constexpr std::int64_t kMaxBoundsPoints = 65534;
inline constexpr int kMaxBoundsObjectives = 16;
inline constexpr int kMaxRegions = 1 << 20;

// Fronts under minimization, with 2 <= m <= kMaxBoundsObjectives and n <= kMaxBoundsPoints; launchers throw
// std::invalid_argument beyond.
struct Fronts {
  std::int64_t fronts, n;
  int m;
  const double* points;        // (fronts, n, m)  no NaN, unless the front's whole columns are NaN
  const double* ref;           // (fronts, m)     NaN in it makes the front's volumes NaN and its gradient 0
  const std::int32_t* order;   // (m, fronts, n)  rows by axis k, the other axes in index order, row
  const std::int32_t* rank;    // (m, fronts, n)  position of each row in `order`
  const std::uint8_t* counts;  // (fronts, n)     0 leaves the row out; the others are strictly better than ref
};

// True where a point of the front is at least as good along every axis, and better along one.
//   dominated  (fronts, n)  out
void dominated_rows(const double* points, std::int64_t fronts, std::int64_t n, int m, bool* dominated,
                    cudaStream_t stream);

// Hypervolume and its gradient, in the `part`-th of `parts` sets of regions that all parts agree on: values
// and gradients of all parts add up to the whole. Along objective k, the gradient of a point is -(measure of
// what it covers of the projection onto the other objectives and no point before it in order k covers).
//   value     (fronts,)       out
//   gradient  (fronts, n, m)  out; null for the value alone
//   scratch   bytes of dominated_volume_scratch() with the same arguments
struct Part {
  int part = 0, parts = 1;
};
std::int64_t dominated_volume_scratch(const Fronts& fronts, bool gradient, std::int64_t max_memory, Part part);
void dominated_volume(const Fronts& fronts, std::int64_t max_memory, Part part, double* value, double* gradient,
                      void* scratch, cudaStream_t stream);

// Volume of [low, ref] that no counting point of the front dominates, for `tasks` corners `low` a front. With
// first_own >= 0, corner j is row first_own + j of the front and left out of it.
//   low       (fronts, tasks, m)
//   low_rank  (m, fronts, tasks)  the number of positions in order k that do not lie beyond `low` along k
//   volume    (fronts, tasks)     out; 0 where low is not strictly better than ref
//   scratch   bytes of exclusive_volume_scratch() with the same arguments
std::int64_t exclusive_volume_scratch(const Fronts& fronts, std::int64_t tasks, std::int64_t max_memory);
void exclusive_volume(const Fronts& fronts, const double* low, const std::int32_t* low_rank, std::int64_t tasks,
                      int first_own, std::int64_t max_memory, double* volume, void* scratch, cudaStream_t stream);

// Disjoint boxes: of the region that the front dominates within ref (`dominated`), or of the rest of
// (-inf, ref). A front has counts boxes; those from there to `boxes` are (ref, ref). With NaN in ref it has one
// box of NaN.
//   counts        (fronts,)           out
//   lower, upper  (fronts, boxes, m)  out; both null to count
//   scratch       bytes of boxes_scratch() with the same arguments
std::int64_t boxes_scratch(const Fronts& fronts, std::int64_t max_memory);
void boxes(const Fronts& fronts, bool dominated, std::int64_t max_memory, std::int64_t boxes, std::int64_t* counts,
           double* lower, double* upper, void* scratch, cudaStream_t stream);

}  // namespace morlfast::cuda
