// What single points and small sets are worth: contributions, improvements, greedy subsets, boxes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <queue>

#include "local_bounds.hpp"
#include "measured_front.hpp"
#include "morlfast/hypervolume.hpp"
#include "morlfast/pareto.hpp"
#include "parallel.hpp"
#include "rank_set.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double box(double width, double height, double depth) { return guarded(guarded(width, height), depth); }

/// `front` with columns of 0 and reference points of 1 up to `m` objectives: the same volumes.
void pad_objectives(MeasuredFront& front, int64_t from, int64_t m) {
  for (int64_t k = from; k < m; ++k) front.ref[k] = 1;
  std::vector<double> padded(front.length * m);
  for (int64_t i = 0; i < front.length; ++i) std::copy_n(&front.rows[i * from], from, &padded[i * m]);
  front.rows = std::move(padded);
}

/// Contributions of three objectives, O(n log n) but for the search among the boxes of a dominated point's dominator.
///
/// Sweeps by the third objective. Each point of the staircase of the first two keeps the part of the plane that it
/// alone dominates as boxes from left to right, whose tops fall; a new point cuts those of its neighbours and takes
/// over from the points that it covers (Emmerich and Fonseca 2011, HyCon3D). A dominated point cuts a hole into the
/// region of the one point that dominates it. Ranks are all different, so ties and duplicates need no care.
class ContributionSweep {
 public:
  /// `contributions` by input row, zero before.
  void run(const RankedFront& front, bool ignore_dominated, double* contributions) {
    front_ = &front;
    contributions_ = contributions;
    end_ = front.size() + 1;
    stairs_.reset(end_ + 1);
    at_.assign(end_ + 1, kNone);
    first_.assign(front.size(), kNone);
    last_.assign(front.size(), kNone);
    boxes_.clear();
    free_ = kNone;
    for (int t = 0; t < front.size(); ++t) add(t, ignore_dominated);
    for (int64_t x = stairs_.above(0); x >= 0; x = stairs_.above(x)) close(at_[x], front.ref(2));
  }

 private:
  static constexpr int32_t kNone = -1;

  /// Part of the plane: ranks from `left` to the left of the next box (or the next step of the staircase) along x, from
  /// the owner's y to `top`; since depth `born`.
  struct Box {
    int32_t left, top;
    double born;
    int32_t before, behind;
  };

  int x(int t) const { return front_->ranks(t)[0]; }
  int y(int t) const { return front_->ranks(t)[1]; }
  bool equal(int s, int t) const {
    return front_->coordinates(0)[x(s)] == front_->coordinates(0)[x(t)] &&
           front_->coordinates(1)[y(s)] == front_->coordinates(1)[y(t)] && front_->depth(s) == front_->depth(t);
  }

  /// Where the region of `owner` ends.
  int right_of(int owner) const {
    const int64_t next = stairs_.above(x(owner));
    return next < 0 ? end_ : static_cast<int>(next);
  }
  int end_of(int owner, int32_t slot) const {
    return boxes_[slot].behind == kNone ? right_of(owner) : boxes_[boxes_[slot].behind].left;
  }

  /// Puts a box behind `before`, or first.
  int32_t insert(int owner, int32_t before, int left, int top, double born) {
    int32_t slot = free_;
    if (slot == kNone) {
      slot = static_cast<int32_t>(boxes_.size());
      boxes_.emplace_back();
    } else {
      free_ = boxes_[slot].behind;
    }
    const int32_t behind = before == kNone ? first_[owner] : boxes_[before].behind;
    boxes_[slot] = {left, top, born, before, behind};
    (before == kNone ? first_[owner] : boxes_[before].behind) = slot;
    (behind == kNone ? last_[owner] : boxes_[behind].before) = slot;
    return slot;
  }

  void remove(int owner, int32_t slot) {
    const Box gone = boxes_[slot];
    (gone.before == kNone ? first_[owner] : boxes_[gone.before].behind) = gone.behind;
    (gone.behind == kNone ? last_[owner] : boxes_[gone.behind].before) = gone.before;
    boxes_[slot].behind = free_;
    free_ = slot;
  }

  /// Adds what the box has become since it was made, from `left` to `right`.
  void settle(int owner, int32_t slot, int left, int right, double depth) {
    const double* along_x = front_->coordinates(0);
    const double* along_y = front_->coordinates(1);
    contributions_[front_->row(owner)] +=
        box(along_x[right] - along_x[left], along_y[boxes_[slot].top] - along_y[y(owner)], depth - boxes_[slot].born);
  }

  void close(int owner, double depth) {
    while (first_[owner] != kNone) {
      settle(owner, first_[owner], boxes_[first_[owner]].left, end_of(owner, first_[owner]), depth);
      remove(owner, first_[owner]);
    }
  }

  /// `owner` loses what lies right of rank `x`.
  void cut_right(int owner, int x, double depth) {
    int right = right_of(owner);
    while (last_[owner] != kNone) {
      const int32_t slot = last_[owner];
      settle(owner, slot, std::max(x, boxes_[slot].left), right, depth);
      if (boxes_[slot].left < x) return;  // ends at x from now on
      right = boxes_[slot].left;
      remove(owner, slot);
    }
  }

  /// `owner` loses what lies above rank `y`, behind box `before` (none: everywhere) and from rank `left` on.
  void cut_top(int owner, int32_t before, int left, int y, double depth) {
    for (int32_t slot; (slot = before == kNone ? first_[owner] : boxes_[before].behind) != kNone;) {
      if (boxes_[slot].top <= y) break;
      settle(owner, slot, boxes_[slot].left, end_of(owner, slot), depth);
      remove(owner, slot);
    }
    insert(owner, before, left, y, depth);
  }

  void add(int t, bool ignore_dominated) {
    const double depth = front_->depth(t);
    const int64_t step_before = stairs_.below(x(t));
    const int left = step_before < 0 ? kNone : at_[step_before];
    if (left != kNone && y(left) < y(t)) {
      if (!ignore_dominated || equal(left, t)) cut_hole(left, t, depth);
      return;
    }
    if (left != kNone) cut_right(left, x(t), depth);
    int top = left == kNone ? end_ : y(left), from = x(t);
    int32_t last = kNone;
    int64_t next = stairs_.above(x(t));
    while (next >= 0 && y(at_[next]) > y(t)) {
      last = insert(t, last, from, top, depth);
      from = static_cast<int>(next);
      top = y(at_[next]);
      close(at_[next], depth);
      stairs_.erase(next);
      next = stairs_.above(next);
    }
    insert(t, last, from, top, depth);
    if (next >= 0) cut_top(at_[next], kNone, static_cast<int>(next), y(t), depth);
    stairs_.insert(x(t));
    at_[x(t)] = t;
  }

  /// `t` is dominated by `owner`: what t dominates is no longer owner's alone, if it was.
  void cut_hole(int owner, int t, double depth) {
    const int64_t further = stairs_.below(x(owner));
    if (further >= 0 && y(at_[further]) < y(t)) return;
    int32_t slot = first_[owner];
    while (end_of(owner, slot) < x(t)) slot = boxes_[slot].behind;
    if (boxes_[slot].top <= y(t)) return;
    settle(owner, slot, x(t), end_of(owner, slot), depth);
    cut_top(owner, slot, x(t), y(t), depth);
  }

  const RankedFront* front_ = nullptr;
  double* contributions_ = nullptr;
  int end_ = 0;
  RankSet stairs_;
  std::vector<int32_t> at_;            // point at a rank along x
  std::vector<int32_t> first_, last_;  // boxes of a point
  std::vector<Box> boxes_;
  int32_t free_ = kNone;
};

/// The counting points that can matter to a contribution, and which of them have one.
///
/// What two points dominate is in neither's contribution: only points of rank 0 contribute, and only those and the ones
/// of rank 1 (which a single point may dominate) bound what they contribute.
class Contributors {
 public:
  void load(const MeasuredFront& front, int64_t m, bool ignore_dominated) {
    counting_.load(front.rows.data(), front.length, static_cast<int>(m), front.ref, false);
    ranks_.resize(counting_.size());
    non_dominated_sort(PointSets<double>{{counting_.points.data(), {}, 1, counting_.size(), m, m, 1}}, nullptr, 0,
                       ranks_.data());
    const int32_t last = ignore_dominated ? 0 : 1;
    counting_.filter(m, [&](size_t i) { return ranks_[i] <= last; });
    ranks_.erase(std::remove_if(ranks_.begin(), ranks_.end(), [&](int32_t rank) { return rank > last; }), ranks_.end());
  }

  const double* rows() const { return counting_.points.data(); }
  int64_t size() const { return counting_.size(); }
  /// Row of the front; -1 for a point that only bounds others.
  int32_t contributing_row(int32_t i) const { return ranks_[i] == 0 ? counting_.source[i] : -1; }

 private:
  CountingPoints counting_;
  std::vector<int32_t> ranks_;
};

/// Contributions of two objectives: between two steps of the first, the lowest point so far alone dominates what lies
/// between it and the second lowest.
class TwoObjectives {
 public:
  /// `contributions` by row, zero before.
  void run(const MeasuredFront& front, bool ignore_dominated, double* contributions) {
    counting_.load(front.rows.data(), front.length, 2, front.ref, false);
    const std::vector<double>& points = counting_.points;
    sorting_.sort(points.data(), counting_.size(), 2, 0, order_);
    int32_t owner = -1;  // of the lowest point so far
    double low = front.ref[1], second = low, reached = 0;
    const auto advance = [&](double x) {
      if (owner >= 0) contributions[counting_.source[owner]] += box(x - reached, second - low, 1);
      reached = x;
    };
    for (const int32_t i : order_) {
      const double x = points[i * size_t{2}], y = points[i * size_t{2} + 1];
      const bool dominated = owner >= 0 && y >= low;
      if (dominated && ignore_dominated && !(y == low && x == points[owner * size_t{2}])) continue;
      advance(x);
      if (dominated) {
        second = std::min(second, y);
        continue;
      }
      second = low;
      low = y;
      owner = i;
    }
    advance(front.ref[0]);
  }

 private:
  CountingPoints counting_;
  std::vector<int32_t> order_;
  LexicographicOrder sorting_;
};

struct Scratch {
  MeasuredFront front;
  RankedFront ranked;
  ContributionSweep sweep;
  TwoObjectives two;
  Contributors contributors;
  std::vector<double> values;
};

}  // namespace

template <class T, class R>
void hypervolume_contributions(const Fronts<T, R>& fronts, bool ignore_dominated, T* contributions) {
  const int64_t batch = fronts.points.batch, n = fronts.points.n, m = fronts.points.m;
  check_fronts(fronts);
  parallel_for(batch, m > 3 ? batch >= kManyFronts : batch * n >= 1024, [&](int64_t b) {
    const Workspace<Scratch> scratch(n <= kKeptRows);
    MeasuredFront& front = scratch->front;
    front.load(fronts, b);
    T* out = contributions + b * n;
    std::fill_n(out, n, T{0});
    if (front.ref_is_nan) {
      std::fill_n(out, front.length, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    RankedFront& ranked = scratch->ranked;
    if (m <= 3) {
      scratch->values.assign(front.length, 0);
      if (m == 3) {
        ranked.load(front.rows.data(), front.length, 3, front.ref, false);
        scratch->sweep.run(ranked, ignore_dominated, scratch->values.data());
      } else {
        if (m == 1) pad_objectives(front, 1, 2);
        scratch->two.run(front, ignore_dominated, scratch->values.data());
      }
      for (int64_t i = 0; i < front.length; ++i) out[i] = static_cast<T>(scratch->values[i]);
      return;
    }
    Contributors& contributors = scratch->contributors;
    contributors.load(front, m, ignore_dominated);
    ranked.load(contributors.rows(), contributors.size(), static_cast<int>(m), front.ref, false);
    parallel_for(ranked.size(), ranked.size() >= 32, [&](int64_t t) {
      const int position = static_cast<int>(t);
      const int32_t row = contributors.contributing_row(ranked.row(position));
      if (row < 0) return;
      const Workspace<BoundsBuffers> buffers(true);
      double corner[kMaxHypervolumeObjectives];
      ranked.copy_point(position, corner);
      out[row] = static_cast<T>(exclusive_volume(ranked, nullptr, position, corner, {fronts.max_memory}, *buffers));
    });
  });
}

namespace {

/// Measures what each of many corners dominates of the boxes that pass by.
class Improvements final : public BoxSink {
 public:
  Improvements(const double* corners, int64_t count, int64_t m, double* volumes)
      : corners_(corners), count_(count), m_(m), volumes_(volumes) {}

  void take(const double* low, const double* high, int64_t stride, int64_t count) override {
    constexpr int64_t kPiece = 64;
    parallel_for((count_ + kPiece - 1) / kPiece, count_ * count >= 1 << 16, [&](int64_t piece) {
      for (int64_t q = piece * kPiece; q < std::min((piece + 1) * kPiece, count_); ++q)
        simd().add_box_volumes(low, high, stride, count, static_cast<int>(m_), corners_ + q * m_, volumes_ + q);
    });
  }

 private:
  const double* corners_;
  int64_t count_, m_;
  double* volumes_;
};

/// Boxes of the whole non-dominated region are worth making for this many candidates: they grow faster with m than the
/// sweeps for single candidates do.
int64_t many_candidates(int64_t m) { return int64_t{8} << std::clamp<int64_t>(m - 6, 0, 10); }

struct ImprovementScratch {
  MeasuredFront front;
  RankedFront ranked, extended;
  std::vector<double> candidates, rows, volumes;
};

}  // namespace

template <class T, class R>
void hypervolume_improvement(const CandidatesView<T>& candidates, const Fronts<T, R>& fronts, T* improvement) {
  const int64_t batch = fronts.points.batch, n = fronts.points.n;
  const int64_t sets = candidates.sets, size = candidates.size;
  check_fronts(fronts);
  parallel_for(batch, batch >= kManyFronts, [&](int64_t b) {
    const Workspace<ImprovementScratch> scratch(n + sets * size <= kKeptRows);
    MeasuredFront& front = scratch->front;
    front.load(fronts, b);
    T* out = improvement + b * sets;
    if (front.ref_is_nan) {
      std::fill_n(out, sets, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    // One objective: a second one in which all are equal.
    const int64_t given = fronts.points.m, m = std::max<int64_t>(given, 2);
    std::vector<double>& corners = scratch->candidates;
    corners.assign(sets * size * m, 0);
    // 0 * inf in the boxes beyond a candidate at minus infinity: measured on its own.
    std::vector<char> alone(sets, size != 1 || sets < many_candidates(given));
    const T* first = sets * size > 0 ? candidates.data + candidates.layout.offset(b) : nullptr;
    for (int64_t s = 0; s < sets; ++s)
      for (int64_t i = 0; i < size; ++i) {
        double* corner = &corners[(s * size + i) * m];
        load_rows(first + s * candidates.set_stride + i * candidates.row_stride, 1, given, 0, candidates.column_stride,
                  fronts.maximize, corner);
        if (fronts.nan == NanPolicy::raise && first_nan_row(corner, 1, given) >= 0)
          throw_nan(
              candidates.layout, b,
              size == 1 ? "row " + std::to_string(s) : "row " + std::to_string(i) + " of set " + std::to_string(s),
              "candidates");
        for (int64_t k = 0; k < given; ++k) alone[s] |= corner[k] == -kInfinity;
      }
    if (given < m) pad_objectives(front, given, m);
    RankedFront& ranked = scratch->ranked;
    ranked.load(front.rows.data(), front.length, static_cast<int>(m), front.ref, true);
    std::vector<double>& volumes = scratch->volumes;
    volumes.assign(sets, 0);
    const MemoryLimit limit{fronts.max_memory};
    if (!ranked.finite()) std::fill(alone.begin(), alone.end(), 1);
    if (std::find(alone.begin(), alone.end(), 0) != alone.end()) {
      const Workspace<BoundsBuffers> buffers(true);
      Improvements sink(corners.data(), sets, m, volumes.data());
      stream_boxes(ranked, false, limit, *buffers, sink);
    }
    parallel_for(sets, sets * n >= 256, [&](int64_t s) {
      if (!alone[s] || size == 0) return;
      const Workspace<BoundsBuffers> buffers(true);
      const double* members = &corners[s * size * m];
      volumes[s] = exclusive_volume(ranked, nullptr, -1, members, limit, *buffers);
      if (size == 1) return;
      // Each member beyond the front and the members before it.
      std::vector<double> rows = front.rows;
      RankedFront extended;
      for (int64_t i = 1; i < size; ++i) {
        rows.insert(rows.end(), members + (i - 1) * m, members + i * m);
        extended.load(rows.data(), front.length + i, static_cast<int>(m), front.ref, true);
        volumes[s] += exclusive_volume(extended, nullptr, -1, members + i * m, limit, *buffers);
      }
    });
    for (int64_t s = 0; s < sets; ++s) out[s] = static_cast<T>(volumes[s]);
  });
}

template <class T, class R>
void hypervolume_subset(const Fronts<T, R>& fronts, int64_t k, int64_t* picks) {
  const int64_t batch = fronts.points.batch, n = fronts.points.n, given = fronts.points.m;
  check_fronts(fronts);
  if (k < 0 || k > n)
    throw std::invalid_argument("k: expected 0 to " + std::to_string(n) + ", got " + std::to_string(k));
  parallel_for(batch, batch > 1 && n >= 16, [&](int64_t b) {
    const Workspace<Scratch> scratch(n <= kKeptRows);
    MeasuredFront& front = scratch->front;
    front.load(fronts, b);
    const int64_t m = std::max<int64_t>(given, 2);
    if (given < m) pad_objectives(front, given, m);
    RankedFront& ranked = scratch->ranked;
    ranked.load(front.rows.data(), front.ref_is_nan ? 0 : front.length, static_cast<int>(m), front.ref, false);

    /// A point's improvement when `round` had been picked; later it can only be smaller.
    struct Gain {
      double improvement;
      int32_t row, position;
      int64_t round;
      bool operator<(const Gain& other) const {
        return improvement != other.improvement ? improvement < other.improvement : row > other.row;
      }
    };
    std::priority_queue<Gain> gains;
    const Workspace<BoundsBuffers> buffers(true);
    std::vector<int32_t> chosen;  // sweep positions
    std::vector<char> taken(front.length, 0);
    double corner[kMaxHypervolumeObjectives];
    const auto gain_of = [&](int t) {
      ranked.copy_point(t, corner);
      return Gain{exclusive_volume(ranked, &chosen, -1, corner, {fronts.max_memory}, *buffers), ranked.row(t), t,
                  static_cast<int64_t>(chosen.size())};
    };
    for (int t = 0; t < ranked.size(); ++t) gains.push(gain_of(t));
    int64_t* out = picks + b * k;
    int64_t picked = 0;
    while (picked < k && !gains.empty() && gains.top().improvement > 0) {
      const Gain best = gains.top();
      gains.pop();
      if (best.round < static_cast<int64_t>(chosen.size())) {
        gains.push(gain_of(best.position));
        continue;
      }
      out[picked++] = best.row;
      taken[best.row] = 1;
      chosen.insert(std::upper_bound(chosen.begin(), chosen.end(), best.position), best.position);
    }
    for (int64_t i = 0; i < front.length && picked < k; ++i)
      if (!taken[i]) out[picked++] = i;
    std::fill(out + picked, out + k, -1);
  });
}

namespace {

/// Keeps boxes as rows, until they would take more than `most` bytes.
class KeptBoxes final : public BoxSink {
 public:
  KeptBoxes(Boxes& boxes, int64_t m, bool maximize, int64_t most, std::atomic<int64_t>& bytes)
      : boxes_(boxes), m_(m), maximize_(maximize), most_(most), bytes_(bytes) {}

  void take(const double* low, const double* high, int64_t stride, int64_t count) override {
    const int64_t added = 2 * static_cast<int64_t>(sizeof(double)) * count * m_;
    if (bytes_.fetch_add(added) + added > most_)
      throw MemoryLimitExceeded(
          "box_decomposition: the boxes take more than max_memory = " + std::to_string(most_) +
          " bytes; raise max_memory, or use hypervolume or hypervolume_improvement, which hold no "
          "list of boxes");
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < m_; ++k) {
        const double from = low[k * stride + i], to = high[k * stride + i];
        boxes_.lower.push_back(maximize_ ? 0.0 - to : from);
        boxes_.upper.push_back(maximize_ ? 0.0 - from : to);
      }
  }

 private:
  Boxes& boxes_;
  int64_t m_;
  bool maximize_;
  int64_t most_;
  std::atomic<int64_t>& bytes_;
};

}  // namespace

template <class T, class R>
std::vector<Boxes> box_decomposition(const Fronts<T, R>& fronts, bool dominated) {
  const int64_t batch = fronts.points.batch, n = fronts.points.n, m = fronts.points.m;
  check_fronts(fronts);
  std::vector<Boxes> all(batch);
  std::atomic<int64_t> bytes{0};
  parallel_for(batch, batch * n >= 256, [&](int64_t b) {
    const Workspace<Scratch> scratch(n <= kKeptRows);
    MeasuredFront& front = scratch->front;
    front.load(fronts, b);
    KeptBoxes kept(all[b], m, fronts.maximize, fronts.max_memory, bytes);
    if (front.ref_is_nan) {  // one box that says so
      const std::vector<double> nan(m, std::numeric_limits<double>::quiet_NaN());
      kept.take(nan.data(), nan.data(), 1, 1);
      return;
    }
    if (m == 1) {
      double best = front.ref[0];
      for (const double z : front.rows) best = z < best ? z : best;
      const double low = dominated ? best : -kInfinity, high = dominated ? front.ref[0] : best;
      if (low < high) kept.take(&low, &high, 1, 1);
      return;
    }
    RankedFront& ranked = scratch->ranked;
    ranked.load(front.rows.data(), front.length, static_cast<int>(m), front.ref, true);
    const Workspace<BoundsBuffers> buffers(true);
    stream_boxes(ranked, dominated, {fronts.max_memory}, *buffers, kept);
  });
  return all;
}

#define MORLFAST_INSTANTIATE(T, R)                                                                \
  template void hypervolume_contributions<T, R>(const Fronts<T, R>&, bool, T*);                   \
  template void hypervolume_improvement<T, R>(const CandidatesView<T>&, const Fronts<T, R>&, T*); \
  template void hypervolume_subset<T, R>(const Fronts<T, R>&, int64_t, int64_t*);                 \
  template std::vector<Boxes> box_decomposition<T, R>(const Fronts<T, R>&, bool);
MORLFAST_INSTANTIATE(float, float)
MORLFAST_INSTANTIATE(float, double)
MORLFAST_INSTANTIATE(double, float)
MORLFAST_INSTANTIATE(double, double)
#undef MORLFAST_INSTANTIATE

}  // namespace morlfast
