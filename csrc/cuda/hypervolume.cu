// Exact hypervolume in 1, 2 and 3 objectives, minimization, float64.
//
// Along a depth axis c with the other axes a and b, point i owns the part of its quadrant
// {a >= a_i, b >= b_i, < ref} that no point before it (by c, a, b, row) covers:
//   hypervolume = sum_i (ref_c - c_i) * area_i,   d hypervolume / d c_i = -area_i.
// The value takes one depth axis, the gradient all of them.
//
// Floor on an H200 (132 SMs at 1.98 GHz, 64 compares a clock each; 4.8 TB/s), counted and not measured:
//   m = 3  2 n^2 integer compares a front and depth axis: 1.2 ms for 1 x 10^5, 8 us for 4096 x 128;
//          lexicographic_orders 12 n^2 double compares a front: 48 us for 4096 x 128
//   m = 2  20 n bytes read a front, and 16 n written for the gradient: 4 us for 4096 x 128

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "blocks.cuh"
#include "morlfast/cuda/hypervolume.hpp"

namespace morlfast::cuda {
namespace {

constexpr int kLast = std::numeric_limits<int>::max();  // behind every position

template <int kObjectives>
__device__ bool has_nan(const double* ref) {
  for (int k = 0; k < kObjectives; ++k)
    if (ref[k] != ref[k]) return true;
  return false;
}

// ---- order

// Grid (fronts, tiles of rows). A thread counts the points that precede its own, along every axis at once.
template <int kThreads, int kObjectives, int kAxes = hypervolume_orders(kObjectives)>
__global__ __launch_bounds__(kThreads) void count_predecessors(const double* points, std::int64_t fronts, int n,
                                                               std::int32_t* order, std::int32_t* rank) {
  __shared__ double tile[kThreads * kObjectives];
  const std::int64_t front = blockIdx.x;
  const int thread = threadIdx.x;
  const int row = blockIdx.y * kThreads + thread;
  points += front * n * kObjectives;

  double mine[kObjectives] = {};
  if (row < n)
    for (int k = 0; k < kObjectives; ++k) mine[k] = points[std::int64_t{row} * kObjectives + k];
  int position[kAxes] = {};
  for (int first = 0; first < n; first += kThreads) {
    const int filled = n - first < kThreads ? n - first : kThreads;
    for (int i = thread; i < filled * kObjectives; i += kThreads)
      tile[i] = points[std::int64_t{first} * kObjectives + i];
    __syncthreads();
    for (int i = 0; i < filled; ++i) {
      bool less[kObjectives], tied[kObjectives];
      bool precedes = first + i < row;  // by (0, 1, .., row), built from the row up
      for (int k = kObjectives - 1; k >= 0; --k) {
        const double other = tile[i * kObjectives + k];
        less[k] = other < mine[k];
        tied[k] = !(less[k] | (other > mine[k]));
        precedes = less[k] | (tied[k] & precedes);
      }
      for (int axis = 0; axis < kAxes; ++axis) position[axis] += less[axis] | (tied[axis] & precedes);
    }
    __syncthreads();
  }
  if (row >= n) return;
  for (int axis = 0; axis < kAxes; ++axis) {
    const std::int64_t start = (axis * fronts + front) * n;
    order[start + position[axis]] = row;
    if (rank != nullptr) rank[start + row] = position[axis];
  }
}

// Grid (fronts, tiles of rows, axes). As above along any axes of any number of objectives: looks at the others
// only where two points tie.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void count_along_axis(const double* points, std::int64_t fronts, int n, int m,
                                                             std::int32_t* order, std::int32_t* rank) {
  __shared__ double tile[kThreads];
  const std::int64_t front = blockIdx.x;
  const int axis = blockIdx.z, thread = threadIdx.x;
  const int row = blockIdx.y * kThreads + thread;
  points += front * n * m;
  const double* mine = points + std::int64_t{row < n ? row : 0} * m;
  const double my_key = n > 0 ? mine[axis] : 0;
  int position = 0;
  for (int first = 0; first < n; first += kThreads) {
    const int filled = n - first < kThreads ? n - first : kThreads;
    if (thread < filled) tile[thread] = points[std::int64_t{first + thread} * m + axis];
    __syncthreads();
    for (int i = 0; i < filled; ++i) {
      bool precedes = tile[i] < my_key;
      if (!precedes && !(tile[i] > my_key)) {
        const double* other = points + std::int64_t{first + i} * m;
        int k = 0;
        while (k < m && !(other[k] < mine[k]) && !(other[k] > mine[k])) ++k;
        precedes = k < m ? other[k] < mine[k] : first + i < row;
      }
      position += precedes;
    }
    __syncthreads();
  }
  if (row >= n) return;
  const std::int64_t start = (axis * fronts + front) * n;
  order[start + position] = row;
  if (rank != nullptr) rank[start + row] = position;
}

// ---- m = 1

// The lowest point of some set of points; of equal ones, the one that the caller's order puts first.
struct Lowest {
  double y;
  int row;
};

// Grid (fronts).
template <int kThreads>
__global__ __launch_bounds__(kThreads) void minimum(const double* points, const double* ref, int n, double* value,
                                                    double* gradient) {
  __shared__ Lowest of_warp[kThreads / 32];
  const std::int64_t front = blockIdx.x;
  const int thread = threadIdx.x;
  points += front * n;
  ref += front;
  const auto lower = [](Lowest p, Lowest q) { return q.y < p.y || (q.y == p.y && q.row < p.row) ? q : p; };

  Lowest lowest{ref[0], kNone};
  for (int row = thread; row < n; row += kThreads) lowest = lower(lowest, {points[row], row});
  for (int step = 16; step > 0; step /= 2)
    lowest = lower(lowest, {__shfl_xor_sync(kAllLanes, lowest.y, step), __shfl_xor_sync(kAllLanes, lowest.row, step)});
  if (thread % 32 == 0) of_warp[thread / 32] = lowest;
  __syncthreads();
  for (const Lowest other : of_warp) lowest = lower(lowest, other);

  if (thread == 0) value[front] = has_nan<1>(ref) ? NAN : lowest.row == kNone ? 0 : ref[0] - lowest.y;
  if (gradient == nullptr) return;
  for (int row = thread; row < n; row += kThreads) gradient[front * n + row] = row == lowest.row ? -1 : 0;
}

// ---- m = 2

// Grid (fronts). Walks the points by (x, y, row), kThreads at a time. A point is a step of the staircase iff
// it is lower than all points before it; the step is as high as the fall from the step before, and as wide as
// the way to the next.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void staircase(const double* points, const double* ref,
                                                      const std::int32_t* order, int n, double* value,
                                                      double* gradient) {
  constexpr int kWarps = kThreads / 32;
  __shared__ Lowest of_warp[2][kWarps];  // two in turn: one barrier a round
  const std::int64_t front = blockIdx.x;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  points += front * n * 2;
  ref += front * 2;
  order += front * n;
  if (gradient != nullptr) gradient += front * n * 2;
  const auto lower = [](Lowest earlier, Lowest later) { return later.y < earlier.y ? later : earlier; };

  double area = 0;
  Lowest lowest{ref[1], kNone};  // of all rounds so far
  int turn = 0;
  for (int first = 0; first < n; first += kThreads, turn ^= 1) {
    const int row = first + thread < n ? order[first + thread] : kNone;
    const double x = row == kNone ? INFINITY : points[2 * std::int64_t{row}];
    const double y = row == kNone ? INFINITY : points[2 * std::int64_t{row} + 1];

    Lowest inclusive{y, row};
    for (int step = 1; step < 32; step *= 2) {
      const Lowest earlier{__shfl_up_sync(kAllLanes, inclusive.y, step),
                           __shfl_up_sync(kAllLanes, inclusive.row, step)};
      if (lane >= step) inclusive = lower(earlier, inclusive);
    }
    if (lane == 31) of_warp[turn][warp] = inclusive;
    const Lowest in_warp{__shfl_up_sync(kAllLanes, inclusive.y, 1), __shfl_up_sync(kAllLanes, inclusive.row, 1)};
    __syncthreads();
    Lowest before{};
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) before = lane == 0 ? lowest : lower(lowest, in_warp);
      lowest = lower(lowest, of_warp[turn][w]);
    }

    const bool is_step = y < before.y;
    if (is_step) area += rectangle(ref[0] - x, before.y - y);
    if (gradient == nullptr || row == kNone) continue;
    gradient[2 * std::int64_t{row}] = is_step ? y - before.y : 0;
    if (!is_step)
      gradient[2 * std::int64_t{row} + 1] = 0;
    else if (before.row != kNone)
      gradient[2 * std::int64_t{before.row} + 1] = points[2 * std::int64_t{before.row}] - x;
  }
  if (gradient != nullptr && thread == 0 && lowest.row != kNone)
    gradient[2 * std::int64_t{lowest.row} + 1] = points[2 * std::int64_t{lowest.row}] - ref[0];
  const double sum = block_sum<kThreads>(area);
  if (thread == 0) value[front] = has_nan<2>(ref) ? NAN : sum;
}

// ---- m = 3

// Grid (fronts, tiles of points, depth axes from the last). A thread takes the point at one position of the
// depth order and walks all points by a: those before it lower the ceiling of its area, and each new ceiling
// closes a rectangle. Neighbours in depth see nearly the same ceilings, so a warp diverges little.
template <int kThreads>
__global__ __launch_bounds__(kThreads) void sweep(const double* points, const double* ref, const std::int32_t* order,
                                                  const std::int32_t* rank, std::int64_t fronts, int n,
                                                  double* tile_volume, double* gradient) {
  constexpr int kGroup = 4;             // one branch for so many points: a lower ceiling is rare
  __shared__ int2 key[kThreads];        // positions along the depth axis and along b
  __shared__ double2 corner[kThreads];  // a and b
  const std::int64_t front = blockIdx.x;
  const int thread = threadIdx.x;
  const int depth = 2 - blockIdx.z;
  const int a = depth == 0 ? 1 : 0;
  const int b = depth == 2 ? 1 : 2;
  points += front * n * 3;
  ref += front * 3;
  const auto along = [&](const std::int32_t* permutations, int axis) {
    return permutations + (axis * fronts + front) * n;
  };
  const std::int32_t* by_a = along(order, a);
  const std::int32_t* depth_rank = along(rank, depth);
  const std::int32_t* b_rank = along(rank, b);

  const int mine = blockIdx.y * kThreads + thread;
  const int row = mine < n ? along(order, depth)[mine] : kNone;
  const double* corner_of_mine = row == kNone ? ref : points + 3 * std::int64_t{row};
  const double my_a = corner_of_mine[a], my_b = corner_of_mine[b];

  double area = 0, reached = my_a, ceiling = ref[b];
  int ceiling_rank = kLast;
  bool open = my_b < ceiling;
  for (int first = 0; first < n; first += kThreads) {
    if (first + thread < n) {
      const std::int64_t other = by_a[first + thread];
      key[thread] = {depth_rank[other], b_rank[other]};
      corner[thread] = {points[3 * other + a], points[3 * other + b]};
    } else {
      key[thread] = {kLast, kLast};
    }
    __syncthreads();
    if (open) {
      for (int group = 0; group < kThreads; group += kGroup) {
        bool lowered = false;
        for (int i = group; i < group + kGroup; ++i) lowered |= (key[i].x < mine) & (key[i].y < ceiling_rank);
        if (!lowered) continue;
        for (int i = group; i < group + kGroup; ++i) {
          if (key[i].x >= mine || key[i].y >= ceiling_rank) continue;
          const double edge = corner[i].x > my_a ? corner[i].x : my_a;
          area += rectangle(edge - reached, ceiling - my_b);
          reached = edge;
          ceiling = corner[i].y;
          ceiling_rank = key[i].y;
        }
        open = my_b < ceiling;
        if (!open) break;
      }
    }
    if (!__syncthreads_or(open)) break;
  }
  area += rectangle(ref[a] - reached, ceiling - my_b);

  if (gradient != nullptr && row != kNone) gradient[(front * n + row) * 3 + depth] = 0 - area;
  if (depth != 2) return;
  const double volume = block_sum<kThreads>(rectangle(ref[2] - corner_of_mine[2], area));
  if (thread == 0) tile_volume[front * gridDim.y + blockIdx.y] = has_nan<3>(ref) ? NAN : volume;
}

// Grid (fronts).
template <int kThreads>
__global__ __launch_bounds__(kThreads) void sum_tiles(const double* tile_volume, std::int64_t tiles, double* value) {
  const std::int64_t front = blockIdx.x;
  double sum = 0;
  for (std::int64_t tile = threadIdx.x; tile < tiles; tile += kThreads) sum += tile_volume[front * tiles + tile];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) value[front] = sum;
}

// ---- host

int threads_for(std::int64_t n) { return n <= 32 ? 32 : n <= 4096 ? 128 : 256; }

// At least one tile, so that an empty front gets its 0 too.
std::int64_t tiles_of(std::int64_t n, int threads) { return n == 0 ? 1 : (n + threads - 1) / threads; }

void check(std::int64_t fronts, std::int64_t n) {
  if (n < 0 || n > kMaxHypervolumePoints || fronts < 0 || fronts > kLast)
    throw std::invalid_argument("morlfast: the CUDA hypervolume takes up to 16776960 points and 2147483647 fronts");
}

template <int kThreads>
void lexicographic_orders_in(const double* points, std::int64_t fronts, std::int64_t n, int m, int axes,
                             std::int32_t* order, std::int32_t* rank, cudaStream_t stream) {
  const std::int64_t tiles = tiles_of(n, kThreads);
  const int count = static_cast<int>(n);
  if (m <= 3 && axes == hypervolume_orders(m)) {
    const auto kernel = m == 2 ? count_predecessors<kThreads, 2> : count_predecessors<kThreads, 3>;
    launch(kernel, grid_of(fronts, tiles), kThreads, stream, points, fronts, count, order, rank);
  } else {
    launch(count_along_axis<kThreads>, grid_of(fronts, tiles, axes), kThreads, stream, points, fronts, count, m, order,
           rank);
  }
}

template <int kThreads>
void hypervolume_in(const double* points, const double* ref, const std::int32_t* order, const std::int32_t* rank,
                    std::int64_t fronts, std::int64_t n, int m, double* value, double* gradient, double* scratch,
                    cudaStream_t stream) {
  const int count = static_cast<int>(n);
  if (m == 1) {
    launch(minimum<kThreads>, grid_of(fronts), kThreads, stream, points, ref, count, value, gradient);
  } else if (m == 2) {
    launch(staircase<kThreads>, grid_of(fronts), kThreads, stream, points, ref, order, count, value, gradient);
  } else {
    const std::int64_t tiles = tiles_of(n, kThreads);
    double* tile_volume = tiles == 1 ? value : scratch;
    const dim3 grid = grid_of(fronts, tiles, gradient == nullptr ? 1 : 3);
    launch(sweep<kThreads>, grid, kThreads, stream, points, ref, order, rank, fronts, count, tile_volume, gradient);
    if (tiles > 1) launch(sum_tiles<kThreads>, grid_of(fronts), kThreads, stream, tile_volume, tiles, value);
  }
}

}  // namespace

std::int64_t hypervolume_scratch(std::int64_t n, int m) {
  const std::int64_t tiles = tiles_of(n, threads_for(n));
  return m == 3 && tiles > 1 ? tiles : 0;
}

void lexicographic_orders(const double* points, std::int64_t fronts, std::int64_t n, int m, int axes,
                          std::int32_t* order, std::int32_t* rank, cudaStream_t stream) {
  check(fronts, n);
  if (fronts == 0 || n == 0 || axes == 0) return;
  const int threads = threads_for(n);
  const auto run = threads == 32    ? lexicographic_orders_in<32>
                   : threads == 128 ? lexicographic_orders_in<128>
                                    : lexicographic_orders_in<256>;
  run(points, fronts, n, m, axes, order, rank, stream);
}

void hypervolume(const double* points, const double* ref, const std::int32_t* order, const std::int32_t* rank,
                 std::int64_t fronts, std::int64_t n, int m, double* value, double* gradient, double* scratch,
                 cudaStream_t stream) {
  check(fronts, n);
  if (m < 1 || m > 3) throw std::invalid_argument("morlfast: expected 1 to 3 objectives; local_bounds.hpp takes more");
  if (fronts == 0) return;
  const int threads = threads_for(n);
  const auto run = threads == 32 ? hypervolume_in<32> : threads == 128 ? hypervolume_in<128> : hypervolume_in<256>;
  run(points, ref, order, rank, fronts, n, m, value, gradient, scratch, stream);
}

}  // namespace morlfast::cuda
