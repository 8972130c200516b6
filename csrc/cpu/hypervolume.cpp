#include "morlfast/hypervolume.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <vector>

#include "front.hpp"
#include "parallel.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

/// A point as a sweep along one objective meets it; `a`, `b` are its other objectives (0 where there are fewer).
struct Event {
  double depth, a, b;
  int32_t row;

  bool operator<(const Event& other) const {
    if (depth != other.depth) return depth < other.depth;
    if (a != other.a) return a < other.a;
    if (b != other.b) return b < other.b;
    return row < other.row;
  }
};

/// Set of integers below n with neighbour queries: a tree of 64-ary bit words, O(log64 n) a query.
class RankSet {
 public:
  void reset(int64_t n) {
    levels_.clear();
    do {
      n = (n + 63) / 64;
      levels_.emplace_back(n, 0);
    } while (n > 1);
  }

  void insert(int64_t i) {
    for (auto& level : levels_) {
      level[i / 64] |= uint64_t{1} << (i % 64);
      i /= 64;
    }
  }

  void erase(int64_t i) {
    for (auto& level : levels_) {
      level[i / 64] &= ~(uint64_t{1} << (i % 64));
      if (level[i / 64]) return;
      i /= 64;
    }
  }

  /// Largest member below i, or -1.
  int64_t below(int64_t i) const {
    for (size_t l = 0; l < levels_.size(); ++l) {
      const uint64_t word = i % 64 ? levels_[l][i / 64] & ((uint64_t{1} << (i % 64)) - 1) : 0;
      i /= 64;
      if (word) {
        i = i * 64 + 63 - std::countl_zero(word);
        while (l-- > 0) i = i * 64 + 63 - std::countl_zero(levels_[l][i]);
        return i;
      }
    }
    return -1;
  }

  /// Smallest member above i, or -1.
  int64_t above(int64_t i) const {
    for (size_t l = 0; l < levels_.size(); ++l) {
      const uint64_t word = i % 64 != 63 ? levels_[l][i / 64] & (~uint64_t{0} << (i % 64 + 1)) : 0;
      i /= 64;
      if (word) {
        i = i * 64 + std::countr_zero(word);
        while (l-- > 0) i = i * 64 + std::countr_zero(levels_[l][i]);
        return i;
      }
    }
    return -1;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

// Widths and heights may be infinite; an empty side must not turn them into NaN.
double area(double width, double height) { return width > 0 && height > 0 ? width * height : 0; }

/// Sweeps one front. Buffers are kept between fronts.
class Sweep {
 public:
  /// Loads the counting points of a front (minimized), those strictly better than `ref` in every objective.
  void load(const double* rows, int64_t n, int m, const double* ref) {
    m_ = m;
    std::copy(ref, ref + m, ref_);
    points_.clear();
    rows_.clear();
    double largest = 0;  // volume of one point alone
    size_t best = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double* z = rows + i * m;
      bool counts = true;
      double volume = 1;
      for (int k = 0; k < m; ++k) {
        counts &= z[k] < ref[k];
        volume *= ref[k] - z[k];
      }
      if (!counts) continue;
      if (volume > largest) {
        largest = volume;
        best = rows_.size();
      }
      points_.insert(points_.end(), z, z + m);
      rows_.push_back(static_cast<int32_t>(i));
    }
    if (largest > 0) drop_dominated_by(best);
  }

  bool empty() const { return rows_.empty(); }

  /// Returns the volume from a sweep along objective c; visit(row, A) receives each point's exclusive measure.
  template <class Visit>
  double along(int c, const Visit& visit) {
    const int a = c == 0 ? 1 : 0, b = c == 2 ? 1 : 2;
    const size_t n = rows_.size();
    events_.resize(n);
    for (size_t i = 0; i < n; ++i) {
      const double* z = &points_[i * m_];
      events_[i] = {z[c], m_ > 1 ? z[a] : 0, m_ > 2 ? z[b] : 0, rows_[i]};
    }
    std::sort(events_.begin(), events_.end());
    if (m_ == 3) reset_staircase(ref_[a], ref_[b]);
    double volume = 0, best_a = m_ == 2 ? ref_[a] : 0;
    for (size_t e = 0; e < n; ++e) {
      const Event& event = events_[e];
      double measure;
      if (m_ == 1) {
        measure = e == 0 ? 1 : 0;
      } else if (m_ == 2) {
        measure = event.a < best_a ? best_a - event.a : 0;
        best_a = std::min(best_a, event.a);
      } else {
        measure = add_to_staircase(static_cast<int32_t>(e));
      }
      if (measure > 0) volume += (ref_[c] - event.depth) * measure;
      visit(event.row, measure);
    }
    return volume;
  }

 private:
  /// What one strong point dominates never comes to be sorted: most of a random cloud.
  void drop_dominated_by(size_t best) {
    double strong[kMaxHypervolumeObjectives];
    std::copy_n(&points_[best * m_], m_, strong);
    size_t kept = 0;
    for (size_t i = 0; i < rows_.size(); ++i) {
      const double* z = &points_[i * m_];
      bool dominated = i != best;
      for (int k = 0; k < m_; ++k) dominated &= z[k] >= strong[k];
      if (dominated) continue;
      std::copy_n(z, m_, &points_[kept * m_]);
      rows_[kept++] = rows_[i];
    }
    points_.resize(kept * m_);
    rows_.resize(kept);
  }

  /// The staircase: the non-dominated (a, b) seen so far, a ascending and b descending, as ranks in a.
  void reset_staircase(double ref_a, double ref_b) {
    stair_ref_a_ = ref_a;
    stair_ref_b_ = ref_b;
    const size_t n = events_.size();
    by_a_.resize(n);
    for (size_t e = 0; e < n; ++e) by_a_[e] = {events_[e].a, static_cast<int32_t>(e)};
    std::sort(by_a_.begin(), by_a_.end());
    rank_.resize(n);
    for (size_t r = 0; r < n; ++r) rank_[by_a_[r].second] = static_cast<int32_t>(r);
    stair_b_.resize(n);
    stairs_.reset(static_cast<int64_t>(n));
  }

  /// Area that event e covers beyond the staircase; e joins it and those that e dominates leave.
  double add_to_staircase(int32_t e) {
    const double a = events_[e].a, b = events_[e].b;
    const int64_t rank = rank_[e];
    const int64_t before = stairs_.below(rank);
    double height_top = before < 0 ? stair_ref_b_ : stair_b_[before];
    if (!(b < height_top)) return 0;
    double covered = 0, left = a;
    int64_t next = stairs_.above(rank);
    while (next >= 0 && stair_b_[next] >= b) {
      covered += area(by_a_[next].first - left, height_top - b);
      left = by_a_[next].first;
      height_top = stair_b_[next];
      stairs_.erase(next);
      next = stairs_.above(next);
    }
    covered += area((next < 0 ? stair_ref_a_ : by_a_[next].first) - left, height_top - b);
    stairs_.insert(rank);
    stair_b_[rank] = b;
    return covered;
  }

  int m_ = 0;
  double ref_[kMaxHypervolumeObjectives] = {};
  std::vector<double> points_;
  std::vector<int32_t> rows_;
  std::vector<Event> events_;
  std::vector<std::pair<double, int32_t>> by_a_;
  std::vector<int32_t> rank_;
  RankSet stairs_;
  std::vector<double> stair_b_;
  double stair_ref_a_ = 0, stair_ref_b_ = 0;
};

struct Buffers {
  std::vector<double> rows;
  Sweep sweep;
};

// Below this many points a parallel region costs more than the work.
constexpr int64_t kParallelPoints = 8192;

}  // namespace

template <class T, class R>
void hypervolume(const PointsView<T>& points, const VectorsView<R>& ref_point, const int64_t* lengths, bool maximize,
                 NanPolicy nan, T* value, T* gradient) {
  const int64_t n = points.n, m = points.m;
  if (m < 1 || m > kMaxHypervolumeObjectives)
    throw std::invalid_argument("points: expected 1 to 3 objectives, got " + std::to_string(m));
  if (n > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("points: expected fewer than 2^31 points a front, got " + std::to_string(n));
  parallel_for(points.batch, points.batch * n >= kParallelPoints, [&](int64_t b) {
    const Workspace<Buffers> buffers(n <= kKeptRows);
    Sweep& sweep = buffers->sweep;
    std::vector<double>& rows = buffers->rows;
    const int64_t length = lengths ? lengths[b] : n;
    if (length < 0 || length > n)
      throw std::invalid_argument("lengths: expected values from 0 to " + std::to_string(n) + ", got " +
                                  std::to_string(length));
    rows.resize(length * m);
    load_front(points, b, length, maximize, rows.data());
    double ref[kMaxHypervolumeObjectives];
    bool ref_is_nan = false;
    for (int64_t k = 0; k < m; ++k) {
      const double r = static_cast<double>(ref_point.row(b)[k * ref_point.stride]);
      ref_is_nan |= std::isnan(r);
      ref[k] = maximize ? -r : r;
    }
    if (nan == NanPolicy::raise) {
      if (ref_is_nan) throw std::invalid_argument("ref_point: expected no NaN, got NaN");
      const int64_t row = first_nan_row(rows.data(), length, m);
      if (row >= 0) throw_nan(points.layout, b, row);
    }
    T* front_gradient = gradient ? gradient + b * n * m : nullptr;
    if (front_gradient) std::fill(front_gradient, front_gradient + n * m, T{0});
    if (ref_is_nan) {
      value[b] = std::numeric_limits<T>::quiet_NaN();
      return;
    }
    sweep.load(rows.data(), length, static_cast<int>(m), ref);
    if (sweep.empty()) {
      value[b] = 0;
      return;
    }
    const int last = static_cast<int>(m) - 1;
    if (!front_gradient) {
      value[b] = static_cast<T>(sweep.along(last, [](int32_t, double) {}));
      return;
    }
    const double sign = maximize ? 1.0 : -1.0;
    for (int c = 0; c <= last; ++c) {
      const double volume = sweep.along(c, [&](int32_t row, double measure) {
        if (measure > 0) front_gradient[row * m + c] = static_cast<T>(sign * measure);
      });
      if (c == last) value[b] = static_cast<T>(volume);
    }
  });
}

#define MORLFAST_INSTANTIATE(T, R) \
  template void hypervolume<T, R>(const PointsView<T>&, const VectorsView<R>&, const int64_t*, bool, NanPolicy, T*, T*);
MORLFAST_INSTANTIATE(float, float)
MORLFAST_INSTANTIATE(float, double)
MORLFAST_INSTANTIATE(double, float)
MORLFAST_INSTANTIATE(double, double)
#undef MORLFAST_INSTANTIATE

}  // namespace morlfast
