// Volumes and boxes by local upper bounds: Lacour, Klamroth and Fonseca (2017), arXiv 1510.01963, on ranks.
//
// Points come in the order of the sweep axis. What the points so far leave undominated of the other D = m - 1
// axes is the union of the quadrants below the local upper bounds. A bound holds, for each axis d, its rank u_d
// and the point that defines it. A point z kills the bounds with u_d > z_d for all d. With r_d(k) the rank
// along d of the point that defines axis k of the bound:
//   z dominates anew   Π_d [max(z_d, max_{k<d} r_d(k)), u_d)    times from z to ref along the sweep axis,
//   undominated was    Π_d [max_{k<d} r_d(k), u_d)              from the bound's last definer to z,
//   the bound's child along d has z instead of the point that defined d, and exists if z_d > max_{k!=d} r_d(k).
// Boxes of one front are disjoint, so volumes are sums of positive terms. Ranks are strict: ties (by the other
// axes, then by row) cost boxes without volume and no cases.
//
// A warp follows the bounds of one front, or of a region of it: a box in rank space, in which ranks are clipped.
// Its list is a stack of segments, each with the point that comes next for it; the warp works on the last one,
// 32 bounds at a time. A segment that outgrows its share is halved and the lower half waits, so that any list
// that holds a depth-first search is long enough and nothing is done twice. No warp waits for another.
//
// Counted on spheres by running it, a front of 128 points, and not measured on a GPU:
//            kills   bounds tested   rounds of 32 tests   rounds of 32 kills
//   m = 4      655          8 000                  330                  130
//   m = 5    2 200         30 000                1 000                  150
//   m = 6    6 300        103 000                3 300                  270
// At some 20 + 6 D instructions a round of tests and 60 + 12 D^2 of kills, 4096 fronts are 1.3e8, 3.4e8 and
// 1.3e9 instructions of a warp: on an H200 (132 SMs, 4 of them a clock at 1.98 GHz) 0.13, 0.3 and 1.3 ms if
// nothing waits, and some twice the instructions for m > 6, where the kernel does not know D. Lists of 1536 / D
// bounds stay in shared memory; points, orders and tables are 28 n m bytes a front, 60 MB for 4096 of 128
// points and 4 objectives: 12 us.

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "blocks.cuh"
#include "morlfast/cuda/local_bounds.hpp"

namespace morlfast::cuda {
namespace {

using Word = std::uint32_t;  // a rank in the high half; in the low half the position of the point that defines it
constexpr int kLanes = 32;
constexpr int kNearWords = 1536;  // of a list in shared memory: 6 KB for each of 16 warps
constexpr int kExactDepth = 5;    // up to here a kernel for each D, from there on one for all: registers run out
constexpr int kMostDepth = kMaxBoundsObjectives - 1;
constexpr int kSegment = 64;   // bounds that are not halved for want of a share, only for want of memory
constexpr int kThreads = 128;  // of the kernels around

struct Sweep {
  std::int64_t fronts;
  int n, m, axis;
  const double* ref;           // (fronts, m)
  const double* values;        // (fronts, m, n + 2)      by rank along each axis; rank 0 is -inf, n + 1 is ref
  const std::int32_t* ranks;   // (fronts, m - 1, n + 1)  along the other axes, by position along `axis`; 0 at 0
  const std::int32_t* order;   // (fronts, n)             along `axis`
  const std::uint8_t* counts;  // (fronts, n)

  const double* low;             // (fronts, tasks_a_front, m)
  const std::int32_t* low_rank;  // (m, fronts, tasks_a_front)
  std::int64_t tasks_a_front;
  int first_own;

  int cuts, part, parts;        // 2^cuts regions; those of a part are parts apart
  std::int64_t regions;         // of this part
  unsigned long long* next;     // the first task that no warp has taken
  Word* spill;                  // (warps, m - 1, spilled)
  int capacity, near, spilled;  // bounds of a list: all, those in shared memory, those beyond

  double* volume;       // (fronts, tasks_a_front, regions)
  double* areas;        // (fronts, regions, n)  by position: what each point covers and none before it
  std::int64_t* boxes;  // (fronts,)
  std::int64_t most_boxes;
  double* lower;  // (fronts, most_boxes, m)
  double* upper;
};

// Rows of the sweep's D axes: the others in index order.
__device__ int axis_of(int d, int axis) { return d + (d >= axis); }

__device__ double larger(double x, double y) { return x < y ? y : x; }
__device__ int larger(int x, int y) { return x < y ? y : x; }

// The D words of a bound or a point: in registers where the compiler knows D, and read when asked for elsewhere.
template <int kMost, class Read>
class Words {
 public:
  __device__ Words(bool active, const Read& read) : read_(read) {
    if constexpr (kMost <= kExactDepth) {
#pragma unroll
      for (int d = 0; d < kMost; ++d) held_[d] = active ? read(d) : 0;
    }
  }
  __device__ Word operator()(int d) const {
    if constexpr (kMost <= kExactDepth) return held_[d];
    return read_(d);
  }

 private:
  Read read_;
  Word held_[kMost <= kExactDepth ? kMost : 1] = {};
};

template <int kMost, class Read>
__device__ Words<kMost, Read> words(bool active, const Read& read) {
  return {active, read};
}

// One warp a block. kMost: D, or the largest D from kExactDepth on. kComplement: what is undominated, in the
// box from `low` if there is one; otherwise what is dominated. kEmit: boxes instead of their volume.
template <int kMost, bool kComplement, bool kEmit>
__global__ __launch_bounds__(kLanes, 16) void follow_bounds(const Sweep s) {
  __shared__ Word near_words[kNearWords];
  __shared__ Word edges[kMost * kLanes];  // of 32 points: a bound is beyond a point iff its words are larger
  __shared__ int killed[2 * kLanes];      // slots
  __shared__ int from[kMost], to[kMost];  // the region, in ranks
  __shared__ double low_value[kMost];     // where it begins, and where the sweep begins and ends
  __shared__ double sweep_low, sweep_ref;
  const int depth = kMost <= kExactDepth ? kMost : s.m - 1;
  const int n = s.n, lane = threadIdx.x;
  const unsigned below = (1u << lane) - 1;
  Word* const spill = s.spill + std::int64_t{blockIdx.x} * depth * s.spilled;
  const auto word = [&](int d, int slot) -> Word& {
    return slot < s.near ? near_words[d * (kNearWords / depth) + slot]
                         : spill[std::int64_t{d} * s.spilled + (slot - s.near)];
  };
  const auto rank_of = [](Word w) { return static_cast<int>(w >> 16); };
  const auto point_of = [](Word w) { return static_cast<int>(w & 0xffffu); };

  for (;;) {
    unsigned long long task = 0;
    if (lane == 0) task = atomicAdd(s.next, 1ull);
    task = __shfl_sync(kAllLanes, task, 0);
    if (task >= static_cast<unsigned long long>(s.fronts * s.tasks_a_front * s.regions)) return;
    const std::int64_t corner = task / s.regions;
    const std::int64_t front = corner / s.tasks_a_front;
    const std::int64_t region = s.part + s.parts * static_cast<std::int64_t>(task % s.regions);
    const int own = !kComplement || s.first_own < 0 ? kNone : s.first_own + static_cast<int>(corner % s.tasks_a_front);
    const double* const ref = s.ref + front * s.m;
    const double* const values = s.values + front * s.m * (n + 2);
    const std::int32_t* const ranks = s.ranks + front * depth * (n + 1);
    const std::int32_t* const order = s.order + front * n;
    const std::uint8_t* const counts = s.counts + front * n;
    const double* const sweep_values = values + std::int64_t{s.axis} * (n + 2);
    const double* const low = !kComplement || s.low == nullptr ? nullptr : s.low + corner * s.m;
    double* const areas =
        kComplement || kEmit || s.areas == nullptr ? nullptr : s.areas + static_cast<std::int64_t>(task) * n;

    __syncwarp();  // everybody has left the last task's region
    if (lane < depth) {
      const int axis = axis_of(lane, s.axis);
      from[lane] = low == nullptr ? 0 : s.low_rank[axis * s.fronts * s.tasks_a_front + corner];
      to[lane] = n + 1;
    }
    __syncwarp();
    bool empty = false;
    if (low != nullptr)
      for (int k = 0; k < s.m; ++k) empty |= !(low[k] < ref[k]);
    if (lane == 0) {
      sweep_low = low == nullptr ? sweep_values[0] : low[s.axis];
      sweep_ref = ref[s.axis];
      for (int cut = 0; cut < s.cuts; ++cut) {
        int widest = 0;
        for (int d = 1; d < depth; ++d)
          if (to[d] - from[d] > to[widest] - from[widest]) widest = d;
        const int middle = (from[widest] + to[widest]) / 2;
        (region >> cut & 1 ? from : to)[widest] = middle;
      }
    }
    __syncwarp();
    for (int d = 0; d < depth; ++d) empty |= from[d] >= to[d];
    if (lane < depth) {
      const int axis = axis_of(lane, s.axis);
      const bool at_low = low != nullptr && from[lane] == s.low_rank[axis * s.fronts * s.tasks_a_front + corner];
      low_value[lane] = at_low ? low[axis] : values[std::int64_t{axis} * (n + 2) + from[lane]];
      word(lane, 0) = static_cast<Word>(to[lane]) << 16;
    }
    if (areas != nullptr)
      for (int p = lane; p < n; p += kLanes) areas[p] = 0;
    __syncwarp();

    const auto value_at = [&](int d, int rank) {
      return rank <= from[d] ? low_value[d] : values[std::int64_t{axis_of(d, s.axis)} * (n + 2) + rank];
    };
    const auto rank_along = [&](int d, Word w) { return ranks[d * (n + 1) + point_of(w)]; };

    double volume = 0;
    std::int64_t boxes = 0;
    // The segment at work, slots base .. top, of which `dead` hold no bound (word 0 is 0); those that wait.
    int base = 0, top = 1, dead = 0, waiting = 0, position = 1;
    bool nan = false;
    if (kEmit)
      for (int k = 0; k < s.m; ++k) nan |= ref[k] != ref[k];
    if (empty || nan) top = 0;

    const auto recount = [&] {
      dead = 0;
      for (int i = base; i < top; i += kLanes)
        dead += __popc(__ballot_sync(kAllLanes, i + lane < top && word(0, i + lane) == 0));
    };
    // Adds or writes the boxes that end with `held`, one a lane, at sweep value `end`. z: the edges of the point
    // that kills. Returns the axes along which there are children, and the D-measure.
    double area = 0;
    const auto close = [&](bool active, const auto& held, const auto& z, double end) {
      int children = 0, latest = 0;
      bool solid = active;
      double measure = 1;
      if (active) {
#pragma unroll
        for (int d = 0; d < depth; ++d) {
          latest = larger(latest, point_of(held(d)));
          int lowest = kComplement ? from[d] : rank_of(z(d)), other = from[d];
#pragma unroll
          for (int k = 0; k < depth; ++k) {
            if (k == d) continue;
            const int rank = rank_along(d, held(k));
            if (k < d) lowest = larger(lowest, rank);
            other = larger(other, rank);
          }
          if (rank_of(z(d)) > other) children |= 1 << d;
          const double side = value_at(d, rank_of(held(d))) - value_at(d, lowest);
          measure = rectangle(side, measure);
          solid &= side > 0;
        }
        if (!kEmit && !kComplement) area += measure;
      }
      const double begin = kComplement ? larger(sweep_values[latest], sweep_low) : end;
      const double until = kComplement ? end : sweep_ref;
      if (!kEmit) {
        if (active) volume += rectangle(until - begin, measure);
        return children;
      }
      solid &= until > begin;
      const unsigned votes = __ballot_sync(kAllLanes, solid);
      if (solid && s.lower != nullptr) {
        const std::int64_t box = (front * s.most_boxes + boxes + __popc(votes & below)) * s.m;
        s.lower[box + s.axis] = begin;
        s.upper[box + s.axis] = until;
#pragma unroll
        for (int d = 0; d < depth; ++d) {
          int lowest = kComplement ? from[d] : rank_of(z(d));
#pragma unroll
          for (int k = 0; k < d; ++k) lowest = larger(lowest, rank_along(d, held(k)));
          s.lower[box + axis_of(d, s.axis)] = value_at(d, lowest);
          s.upper[box + axis_of(d, s.axis)] = value_at(d, rank_of(held(d)));
        }
      }
      boxes += __popc(votes);
      return children;
    };

    for (;;) {
      while (position <= n && top - base > dead) {  // 32 points at a time
        const int first = (position - 1) / kLanes * kLanes + 1;
        const int mine = first + lane;
        bool relevant = mine >= position && mine <= n;
        if (relevant) {
          const int row = order[mine - 1];
          relevant = row != own && counts[row] != 0;
        }
        __syncwarp();  // the last points' edges have been read
        for (int d = 0; d < depth; ++d) {
          const int rank = relevant ? ranks[d * (n + 1) + mine] : 0;
          edges[d * kLanes + lane] = static_cast<Word>(larger(rank, from[d])) << 16 | 0xffffu;
          relevant &= rank < to[d];
        }
        __syncwarp();
        unsigned left = __ballot_sync(kAllLanes, relevant);
        for (; left != 0 && top - base > dead; left &= left - 1) {
          const int offset = __ffs(static_cast<int>(left)) - 1;
          const int point = first + offset;
          const auto z = words<kMost>(true, [&](int d) { return edges[d * kLanes + offset]; });
          const double end = kComplement ? larger(sweep_values[point], sweep_low) : sweep_values[point];
          area = 0;

          int i = base, scanned = top, pending = 0;
          bool any = false;
          while (i < scanned || pending > 0) {
            if (i < scanned) {
              const int slot = i + lane < scanned ? i + lane : base;
              bool hit = i + lane < scanned;
#pragma unroll
              for (int d = 0; d < depth; ++d) {
                hit &= word(d, slot) > z(d);
              }
              const unsigned votes = __ballot_sync(kAllLanes, hit);
              if (hit) killed[pending + __popc(votes & below)] = slot;
              pending += __popc(votes);
              i += kLanes;
            }
            if (pending < kLanes && i < scanned) continue;
            if (pending == 0) break;
            const int count = pending < kLanes ? pending : kLanes;

            // What must stay free, so that a search one bound after the other could still come to its end: a
            // kill adds D - 1 bounds at most, a bound at most one that waits. All but one bound of the segment
            // may come to wait too.
            const int size = top - base, growth = count * (depth - 1);
            const int room = s.capacity - waiting - 2 * (depth - 1) * (n - point);
            const bool too_many = top + size - 1 + 2 * growth > room;
            const bool too_large = size > kSegment && 2 * (size + growth) > room - base;
            if (size > 1 && (too_many || too_large)) {
              // This point finds nothing to kill among the children that it has already left.
              if (lane == 0) {
                word(0, s.capacity - 1 - waiting) = base;
                word(1, s.capacity - 1 - waiting) = point;
              }
              ++waiting;
              base += size / 2;
              recount();
              i = base, scanned = top, pending = 0;
              __syncwarp();
              continue;
            }

            __syncwarp();  // `killed` is written, and no lane reads the list any more
            pending -= count;
            any = true;
            const bool active = lane < count;
            const int slot = active ? killed[pending + lane] : kNone;
            const auto held = words<kMost>(active, [&](int d) { return word(d, slot); });
            const int children = close(active, held, z, end);
            const int in_place = children & -children;
#pragma unroll
            for (int d = 0; d < depth; ++d) {
              const bool appends = (children ^ in_place) >> d & 1;
              const unsigned votes = __ballot_sync(kAllLanes, appends);
              const Word defined = (z(d) & 0xffff0000u) | static_cast<Word>(point);
              if (appends) {
                const int target = top + __popc(votes & below);
#pragma unroll
                for (int k = 0; k < depth; ++k) {
                  word(k, target) = k == d ? defined : held(k);
                }
              }
              top += __popc(votes);
            }
#pragma unroll
            for (int d = 0; d < depth; ++d)
              if (in_place >> d & 1) word(d, slot) = (z(d) & 0xffff0000u) | static_cast<Word>(point);
            if (active && children == 0) word(0, slot) = 0;
            dead += __popc(__ballot_sync(kAllLanes, active && children == 0));
            __syncwarp();
          }

          if (areas != nullptr && any) {
            const double sum = warp_sum(area);
            if (lane == 0) areas[point - 1] += sum;
          }
          if (dead >= kLanes && 4 * dead >= top - base) {  // close the gaps
            int kept = base;
            for (int first_slot = base; first_slot < top; first_slot += kLanes) {
              const int slot = first_slot + lane;
              const bool live = slot < top && word(0, slot) != 0;
              const unsigned votes = __ballot_sync(kAllLanes, live);
              for (int d = 0; d < depth; ++d) {
                const Word moved = live ? word(d, slot) : 0;
                __syncwarp();
                if (live) word(d, kept + __popc(votes & below)) = moved;
              }
              kept += __popc(votes);
              __syncwarp();
            }
            top = kept;
            dead = 0;
          }
        }
        position = first + kLanes;
      }

      if (kComplement && top - base > dead) {  // what no point has killed ends at the reference point
        for (int i = base; i < top; i += kLanes) {
          const bool active = i + lane < top && word(0, i + lane) != 0;
          const auto held = words<kMost>(active, [&](int d) { return word(d, i + lane); });
          close(active, held, [](int) { return Word{0}; }, sweep_ref);
        }
      }
      if (waiting == 0) break;
      --waiting;
      top = base;
      base = static_cast<int>(word(0, s.capacity - 1 - waiting));
      position = static_cast<int>(word(1, s.capacity - 1 - waiting));
      recount();
    }

    if (!kEmit) {
      volume = warp_sum(volume);
      if (lane == 0) s.volume[task] = volume;
    } else {
      boxes += nan;  // one box of NaN
      if (lane == 0) s.boxes[front] = boxes;
      if (s.lower != nullptr) {
        for (std::int64_t i = (nan ? 0 : boxes * s.m) + lane; i < s.most_boxes * s.m; i += kLanes) {
          const double value = i < boxes * s.m ? NAN : ref[i % s.m];
          s.lower[front * s.most_boxes * s.m + i] = s.upper[front * s.most_boxes * s.m + i] = value;
        }
      }
    }
  }
}

// ---- around the sweep

// Grid (fronts, tiles of ranks, axes).
__global__ __launch_bounds__(kThreads) void tabulate_values(const double* points, const double* ref,
                                                            const std::int32_t* order, std::int64_t fronts, int n,
                                                            int m, double* values) {
  const std::int64_t front = blockIdx.x;
  const int axis = blockIdx.z, rank = blockIdx.y * kThreads + threadIdx.x;
  if (rank > n + 1) return;
  double value = rank == 0 ? -INFINITY : ref[front * m + axis];
  if (rank > 0 && rank <= n) {
    const int row = order[(axis * fronts + front) * n + rank - 1];
    value = points[(front * n + row) * m + axis];
  }
  values[(front * m + axis) * (n + 2) + rank] = value;
}

// Grid (fronts, tiles of positions, other axes).
__global__ __launch_bounds__(kThreads) void tabulate_ranks(const std::int32_t* order, const std::int32_t* rank,
                                                           std::int64_t fronts, int n, int m, int axis,
                                                           std::int32_t* ranks) {
  const std::int64_t front = blockIdx.x;
  const int d = blockIdx.z, position = blockIdx.y * kThreads + threadIdx.x;
  if (position > n) return;
  int found = 0;
  if (position > 0) {
    const int row = order[(axis * fronts + front) * n + position - 1];
    found = rank[(axis_of(d, axis) * fronts + front) * n + row] + 1;
  }
  ranks[(front * (m - 1) + d) * (n + 1) + position] = found;
}

// Grid (tiles of tasks). A warp a task.
__global__ __launch_bounds__(kThreads) void sum_regions(const double* volume, const double* ref, int m,
                                                        std::int64_t tasks, std::int64_t tasks_a_front,
                                                        std::int64_t regions, double* total) {
  const std::int64_t task = std::int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (task >= tasks) return;
  double sum = 0;
  for (std::int64_t region = lane; region < regions; region += kLanes) sum += volume[task * regions + region];
  sum = warp_sum(sum);
  bool nan = false;
  for (int k = 0; k < m; ++k) nan |= ref[task / tasks_a_front * m + k] != ref[task / tasks_a_front * m + k];
  if (lane == 0) total[task] = nan ? NAN : sum;
}

// Grid (fronts, tiles of points).
__global__ __launch_bounds__(kThreads) void sum_areas(const double* areas, const std::int32_t* order, int n, int m,
                                                      int axis, std::int64_t regions, double* gradient) {
  const std::int64_t front = blockIdx.x;
  const int position = blockIdx.y * kThreads + threadIdx.x;
  if (position >= n) return;
  double sum = 0;
  for (std::int64_t region = 0; region < regions; ++region) sum += areas[(front * regions + region) * n + position];
  gradient[(front * n + order[front * n + position]) * m + axis] = 0 - sum;
}

// Grid (fronts, tiles of rows). All threads of a block look at the same other row at a time.
__global__ __launch_bounds__(kThreads) void find_dominated(const double* points, int n, int m, bool* dominated) {
  const std::int64_t front = blockIdx.x;
  const int row = blockIdx.y * kThreads + threadIdx.x;
  if (row >= n) return;
  points += front * n * m;
  const double* mine = points + std::int64_t{row} * m;
  bool found = false;
  for (int i = 0; i < n && !found; ++i) {
    const double* other = points + std::int64_t{i} * m;
    bool better = false;
    int k = 0;
    for (; k < m && other[k] <= mine[k]; ++k) better |= other[k] < mine[k];
    found = k == m && better;
  }
  dominated[front * n + row] = found;
}

// ---- host

constexpr int kChosen = -1;
constexpr std::int64_t kWarps = 4096;  // with lists of their own; an H200 runs 2112 and more at a time

std::int64_t tiles_for(std::int64_t count) { return (count + kThreads - 1) / kThreads; }

// Slots that a list needs at least: see follow_bounds.
std::int64_t least_capacity(std::int64_t n, int m) { return 1 + 2 * (m - 2) * n; }

// What one call works with, and where in its scratch.
struct Plan {
  int cuts = 0;
  std::int64_t regions = 1;  // of this part
  std::int64_t warps = 0, capacity = 0, near = 0, spilled = 0;
  std::int64_t next = 0, values = 0, ranks = 0, volume = 0, areas = 0, spill = 0, bytes = 0;  // offsets
};

void check(std::int64_t fronts, std::int64_t n, int m, std::int64_t tasks = 1) {
  if (m < 2 || m > kMaxBoundsObjectives)
    throw std::invalid_argument("points: on a CUDA device up to 16 objectives, got " + std::to_string(m) +
                                "; move the points to the CPU for more");
  if (n < 0 || n > kMaxBoundsPoints)
    throw std::invalid_argument(
        "points: on a CUDA device up to 65534 points a front (but for the hypervolume of up to "
        "3 objectives), got " +
        std::to_string(n) + "; drop dominated points, or move the points to the CPU");
  constexpr std::int64_t kMany = std::numeric_limits<std::int32_t>::max();
  if (fronts < 0 || tasks < 0 || fronts > kMany || tasks > kMany || (tasks > 0 && fronts > 4 * kMany / tasks))
    throw std::invalid_argument(
        "points: on a CUDA device up to 2147483647 fronts and 8589934588 exclusive volumes at "
        "once; split the batch");
}

// cuts: 2^cuts regions a front, or kChosen. areas: whether each region needs a place for each point. words: of a
// list in shared memory.
Plan plan_for(const Fronts& f, std::int64_t tasks, int cuts, bool areas, std::int64_t max_memory, Part part,
              int words = kNearWords) {
  check(f.fronts, f.n, f.m, tasks);
  if (part.parts < 1 || part.parts > kMaxRegions || part.part < 0 || part.part >= part.parts)
    throw std::invalid_argument("part: expected 0 <= part < parts <= 1048576");
  const int depth = f.m - 1;
  Plan plan;
  const std::int64_t least = least_capacity(f.n, f.m);
  const std::int64_t bytes_a_slot = depth * static_cast<std::int64_t>(sizeof(Word));
  if (max_memory / bytes_a_slot < least)
    throw std::invalid_argument("max_memory: " + std::to_string(max_memory) + " bytes hold no list of bounds for " +
                                std::to_string(f.n) + " points and " + std::to_string(f.m) + " objectives; " +
                                std::to_string(least * bytes_a_slot) + " are needed at least");
  plan.cuts = cuts;
  if (cuts == kChosen) {
    plan.cuts = 0;
    while (1 << plan.cuts < part.parts) ++plan.cuts;
    // As many warps as the device holds, but no region with fewer than 8 ranks along each axis.
    int finest = 0;
    while (f.n >> (finest + 4) != 0) ++finest;
    const auto fits = [&](int more) {
      const std::int64_t regions = std::int64_t{1} << more;
      return more <= std::min(depth * finest, 32) && f.fronts * tasks * regions <= kWarps * part.parts &&
             (!areas || f.fronts * f.n * regions / part.parts * 8 <= max_memory);
    };
    while (fits(plan.cuts + 1)) ++plan.cuts;
  }
  const std::int64_t all_regions = std::int64_t{1} << plan.cuts;
  plan.regions = (all_regions - part.part + part.parts - 1) / part.parts;

  const std::int64_t slots = max_memory / bytes_a_slot;
  plan.warps = std::min({kWarps, f.fronts * tasks * plan.regions, slots / least});
  plan.capacity = plan.warps == 0 ? least : std::min(slots / plan.warps, least + 1024);
  plan.near = words / depth;
  plan.spilled = std::max<std::int64_t>(plan.capacity - plan.near, 0);

  const auto take = [&plan](std::int64_t bytes) {
    const std::int64_t at = plan.bytes;
    plan.bytes += (bytes + 255) / 256 * 256;
    return at;
  };
  plan.next = take(sizeof(unsigned long long));
  plan.values = take(f.fronts * f.m * (f.n + 2) * 8);
  plan.ranks = take(f.fronts * depth * (f.n + 1) * 4);
  plan.volume = take(f.fronts * tasks * plan.regions * 8);
  plan.areas = take(areas ? f.fronts * plan.regions * f.n * 8 : 0);
  plan.spill = take(plan.warps * depth * plan.spilled * static_cast<std::int64_t>(sizeof(Word)));
  return plan;
}

template <class T>
T* at(void* scratch, std::int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(scratch) + offset);
}

template <bool kComplement, bool kEmit>
void follow(const Sweep& sweep, std::int64_t warps, cudaStream_t stream) {
  auto kernel = follow_bounds<kMostDepth, kComplement, kEmit>;
  const int depth = sweep.m - 1;
  if constexpr (!kEmit) {
    if (depth == 1) kernel = follow_bounds<1, kComplement, kEmit>;
    if (depth == 2) kernel = follow_bounds<2, kComplement, kEmit>;
    if (depth == 3) kernel = follow_bounds<3, kComplement, kEmit>;
    if (depth == 4) kernel = follow_bounds<4, kComplement, kEmit>;
    if (depth == 5) kernel = follow_bounds<5, kComplement, kEmit>;
  }
  const cudaError_t status = cudaMemsetAsync(sweep.next, 0, sizeof(*sweep.next), stream);
  if (status != cudaSuccess) throw std::runtime_error(std::string("morlfast: ") + cudaGetErrorString(status));
  launch(kernel, grid_of(warps), kLanes, stream, sweep);
}

// The sweep along `axis` of all fronts, without what the caller asks of it; fills the tables that it reads.
Sweep prepare(const Fronts& f, int axis, const Plan& plan, Part part, void* scratch, cudaStream_t stream) {
  const int n = static_cast<int>(f.n);
  const std::int32_t* order = f.order + axis * f.fronts * f.n;
  double* values = at<double>(scratch, plan.values);
  std::int32_t* ranks = at<std::int32_t>(scratch, plan.ranks);
  launch(tabulate_values, grid_of(f.fronts, tiles_for(n + 2), f.m), kThreads, stream, f.points, f.ref, f.order,
         f.fronts, n, f.m, values);
  launch(tabulate_ranks, grid_of(f.fronts, tiles_for(n + 1), f.m - 1), kThreads, stream, f.order, f.rank, f.fronts, n,
         f.m, axis, ranks);
  Sweep sweep{};
  sweep.fronts = f.fronts, sweep.n = n, sweep.m = f.m, sweep.axis = axis;
  sweep.ref = f.ref, sweep.values = values, sweep.ranks = ranks, sweep.order = order, sweep.counts = f.counts;
  sweep.tasks_a_front = 1, sweep.first_own = kNone;
  sweep.cuts = plan.cuts, sweep.part = part.part, sweep.parts = part.parts, sweep.regions = plan.regions;
  sweep.next = at<unsigned long long>(scratch, plan.next);
  sweep.spill = at<Word>(scratch, plan.spill);
  sweep.capacity = static_cast<int>(plan.capacity), sweep.near = static_cast<int>(plan.near);
  sweep.spilled = static_cast<int>(plan.spilled);
  return sweep;
}

void dominated_volume_in(const Fronts& f, const Plan& plan, Part part, double* value, double* gradient, void* scratch,
                         cudaStream_t stream) {
  for (int axis = gradient == nullptr ? f.m - 1 : 0; axis < f.m; ++axis) {  // the last one's volume stays
    Sweep sweep = prepare(f, axis, plan, part, scratch, stream);
    sweep.volume = at<double>(scratch, plan.volume);
    sweep.areas = gradient == nullptr ? nullptr : at<double>(scratch, plan.areas);
    follow<false, false>(sweep, plan.warps, stream);
    if (gradient != nullptr && f.n > 0)
      launch(sum_areas, grid_of(f.fronts, tiles_for(f.n)), kThreads, stream, sweep.areas, sweep.order, sweep.n, f.m,
             axis, plan.regions, gradient);
  }
  launch(sum_regions, grid_of(tiles_for(f.fronts * kLanes)), kThreads, stream, at<double>(scratch, plan.volume), f.ref,
         f.m, f.fronts, std::int64_t{1}, plan.regions, value);
}

void exclusive_volume_in(const Fronts& f, const Plan& plan, const double* low, const std::int32_t* low_rank,
                         std::int64_t tasks, int first_own, double* volume, void* scratch, cudaStream_t stream) {
  Sweep sweep = prepare(f, f.m - 1, plan, Part{}, scratch, stream);
  sweep.low = low, sweep.low_rank = low_rank, sweep.tasks_a_front = tasks, sweep.first_own = first_own;
  sweep.volume = at<double>(scratch, plan.volume);
  follow<true, false>(sweep, plan.warps, stream);
  launch(sum_regions, grid_of(tiles_for(f.fronts * tasks * kLanes)), kThreads, stream, sweep.volume, f.ref, f.m,
         f.fronts * tasks, tasks, plan.regions, volume);
}

void boxes_in(const Fronts& f, const Plan& plan, bool dominated, std::int64_t boxes, std::int64_t* counts,
              double* lower, double* upper, void* scratch, cudaStream_t stream) {
  Sweep sweep = prepare(f, f.m - 1, plan, Part{}, scratch, stream);
  sweep.boxes = counts, sweep.most_boxes = boxes, sweep.lower = lower, sweep.upper = upper;
  (dominated ? follow<false, true> : follow<true, true>)(sweep, plan.warps, stream);
}

}  // namespace

void dominated_rows(const double* points, std::int64_t fronts, std::int64_t n, int m, bool* dominated,
                    cudaStream_t stream) {
  check(fronts, n, m);
  if (fronts == 0 || n == 0) return;
  launch(find_dominated, grid_of(fronts, tiles_for(n)), kThreads, stream, points, static_cast<int>(n), m, dominated);
}

std::int64_t dominated_volume_scratch(const Fronts& fronts, bool gradient, std::int64_t max_memory, Part part) {
  return plan_for(fronts, 1, kChosen, gradient, max_memory, part).bytes;
}

void dominated_volume(const Fronts& fronts, std::int64_t max_memory, Part part, double* value, double* gradient,
                      void* scratch, cudaStream_t stream) {
  const Plan plan = plan_for(fronts, 1, kChosen, gradient != nullptr, max_memory, part);
  if (fronts.fronts == 0) return;
  dominated_volume_in(fronts, plan, part, value, gradient, scratch, stream);
}

std::int64_t exclusive_volume_scratch(const Fronts& fronts, std::int64_t tasks, std::int64_t max_memory) {
  return plan_for(fronts, tasks, kChosen, false, max_memory, Part{}).bytes;
}

void exclusive_volume(const Fronts& fronts, const double* low, const std::int32_t* low_rank, std::int64_t tasks,
                      int first_own, std::int64_t max_memory, double* volume, void* scratch, cudaStream_t stream) {
  const Plan plan = plan_for(fronts, tasks, kChosen, false, max_memory, Part{});
  if (fronts.fronts == 0 || tasks == 0) return;
  exclusive_volume_in(fronts, plan, low, low_rank, tasks, first_own, volume, scratch, stream);
}

std::int64_t boxes_scratch(const Fronts& fronts, std::int64_t max_memory) {
  return plan_for(fronts, 1, 0, false, max_memory, Part{}).bytes;
}

void boxes(const Fronts& fronts, bool dominated, std::int64_t max_memory, std::int64_t boxes, std::int64_t* counts,
           double* lower, double* upper, void* scratch, cudaStream_t stream) {
  const Plan plan = plan_for(fronts, 1, 0, false, max_memory, Part{});
  if (fronts.fronts == 0) return;
  boxes_in(fronts, plan, dominated, boxes, counts, lower, upper, scratch, stream);
}

}  // namespace morlfast::cuda
