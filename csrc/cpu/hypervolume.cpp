#include "morlfast/hypervolume.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lexicographic_order.hpp"
#include "local_bounds.hpp"
#include "measured_front.hpp"
#include "parallel.hpp"
#include "rank_set.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

/// Sweeps one front of up to three objectives. Buffers are kept between fronts.
class Sweep {
 public:
  void load(const MeasuredFront& front, int m) {
    m_ = m;
    std::copy(front.ref, front.ref + m, ref_);
    counting_.load(front.rows.data(), front.length, m, front.ref, true);
  }

  bool empty() const { return counting_.size() == 0; }

  /// Returns the volume from a sweep along objective c; visit(row, A) receives each point's exclusive measure.
  template <class Visit>
  double along(int c, const Visit& visit) {
    const int a = c == 0 ? 1 : 0, b = c == 2 ? 1 : 2;
    sorting_.sort(counting_.points.data(), counting_.size(), m_, c, order_);
    if (m_ == 3) reset_staircase(a, b);
    double volume = 0, best_a = m_ == 2 ? ref_[a] : 0;
    bool first = true;
    for (const int32_t i : order_) {
      const double* z = &counting_.points[static_cast<size_t>(i) * m_];
      double measure;
      if (m_ == 1) {
        measure = first ? 1 : 0;
        first = false;
      } else if (m_ == 2) {
        measure = z[a] < best_a ? best_a - z[a] : 0;
        best_a = std::min(best_a, z[a]);
      } else {
        measure = add_to_staircase(i, z[a], z[b]);
      }
      if (measure > 0) volume += (ref_[c] - z[c]) * measure;
      visit(counting_.source[i], measure);
    }
    return volume;
  }

 private:
  /// The staircase: the non-dominated (a, b) seen so far, a ascending and b descending, as ranks in a.
  void reset_staircase(int a, int b) {
    stair_ref_a_ = ref_[a];
    stair_ref_b_ = ref_[b];
    const size_t n = counting_.source.size();
    sorting_.sort(counting_.points.data(), counting_.size(), m_, a, by_a_);
    rank_.resize(n);
    stair_a_.resize(n);
    for (size_t r = 0; r < n; ++r) {
      rank_[by_a_[r]] = static_cast<int32_t>(r);
      stair_a_[r] = counting_.points[static_cast<size_t>(by_a_[r]) * m_ + a];
    }
    stair_b_.resize(n);
    stairs_.reset(static_cast<int64_t>(n));
  }

  /// Area that point i = (a, b) covers beyond the staircase; it joins it and those that it dominates leave.
  double add_to_staircase(int32_t i, double a, double b) {
    const int64_t rank = rank_[i];
    const int64_t before = stairs_.below(rank);
    double height_top = before < 0 ? stair_ref_b_ : stair_b_[before];
    if (!(b < height_top)) return 0;
    double covered = 0, left = a;
    int64_t next = stairs_.above(rank);
    while (next >= 0 && stair_b_[next] >= b) {
      covered += guarded(stair_a_[next] - left, height_top - b);
      left = stair_a_[next];
      height_top = stair_b_[next];
      stairs_.erase(next);
      next = stairs_.above(next);
    }
    covered += guarded((next < 0 ? stair_ref_a_ : stair_a_[next]) - left, height_top - b);
    stairs_.insert(rank);
    stair_b_[rank] = b;
    return covered;
  }

  int m_ = 0;
  double ref_[3] = {};
  CountingPoints counting_;
  std::vector<int32_t> order_, by_a_, rank_;
  LexicographicOrder sorting_;
  RankSet stairs_;
  std::vector<double> stair_a_, stair_b_;
  double stair_ref_a_ = 0, stair_ref_b_ = 0;
};

/// Value and gradient of one front; the gradient, where wanted, is (rows of the front, m) and zero before.
class Measure {
 public:
  template <class T>
  T of_few_objectives(const MeasuredFront& front, int m, bool maximize, T* gradient) {
    sweep_.load(front, m);
    if (sweep_.empty()) return 0;
    if (!gradient) return static_cast<T>(sweep_.along(m - 1, [](int32_t, double) {}));
    double volume = 0;
    for (int c = 0; c < m; ++c)
      volume = sweep_.along(c, [&](int32_t row, double measure) {
        if (measure > 0) gradient[row * m + c] = static_cast<T>(maximize ? measure : -measure);
      });
    return static_cast<T>(volume);
  }

  /// The gradient again, where slopes of both signs gave NaN: sums of positive terms, one sweep for each objective.
  void replace_by_areas(const Part& part, int64_t max_memory, int m, BoundsBuffers& buffers, double* slopes) {
    std::vector<double> areas(front.length);
    for (int c = 0; c < m; ++c) {
      ranked.load(front.rows.data(), front.length, m, front.ref, true, c);
      std::fill(areas.begin(), areas.end(), 0);
      dominated_areas(ranked, Region::part(ranked, part.part, part.parts), {max_memory}, buffers, areas.data());
      for (int64_t i = 0; i < front.length; ++i) slopes[i * m + c] = -areas[i];
    }
  }

  MeasuredFront front;
  RankedFront ranked;
  std::vector<double> slopes;

 private:
  Sweep sweep_;
};

/// Derivatives of the minimized front in the caller's sense. Of the whole space none is positive: what rounding left
/// above 0 is nothing. (A part's can be, at its cuts.)
template <class T>
void write_gradient(const std::vector<double>& slopes, const Part& part, bool maximize, T* gradient) {
  for (size_t i = 0; i < slopes.size(); ++i) {
    const double slope = part.parts == 1 && slopes[i] > 0 ? 0 : slopes[i];
    gradient[i] = static_cast<T>(maximize ? 0 - slope : slope + 0.0);
  }
}

bool any_nan(const std::vector<double>& values) {
  bool nan = false;
  for (const double value : values) nan |= std::isnan(value);
  return nan;
}

// Below this many points a parallel region costs more than the work.
constexpr int64_t kParallelPoints = 8192;

/// Regions that one front is cut into, so that threads share it; depends on shapes only, and so do the results.
/// Cutting costs nothing from here on, and with many bounds it spares work.
int64_t regions(int64_t batch, int64_t n, int64_t m) {
  return batch < kManyFronts && m >= 5 && n << std::min<int64_t>(m, 16) >= 1 << 15 ? 16 : 1;
}

/// Four and more objectives in few fronts: the regions are worked on side by side.
template <class T, class R>
void hypervolume_in_regions(const Fronts<T, R>& fronts, const Part& part, int64_t count, T* value, T* gradient) {
  const int64_t n = fronts.points.n, m = fronts.points.m;
  std::vector<Measure> measures(fronts.points.batch);
  parallel_for(fronts.points.batch, true, [&](int64_t b) {
    Measure& measure = measures[b];
    measure.front.load(fronts, b);
    if (!measure.front.ref_is_nan)
      measure.ranked.load(measure.front.rows.data(), measure.front.length, static_cast<int>(m), measure.front.ref,
                          true);
  });
  for (int64_t b = 0; b < fronts.points.batch; ++b) {
    Measure& measure = measures[b];
    if (gradient) std::fill_n(gradient + b * n * m, n * m, T{0});
    if (measure.front.ref_is_nan) {
      value[b] = std::numeric_limits<T>::quiet_NaN();
      continue;
    }
    std::vector<double> volumes(count);
    std::vector<std::vector<double>> slopes(gradient ? count : 0);
    parallel_for(count, true, [&](int64_t r) {
      const Workspace<BoundsBuffers> buffers(true);
      const Region region = Region::part(measure.ranked, part.part * count + r, part.parts * count);
      if (gradient) slopes[r].assign(measure.front.length * m, 0);
      volumes[r] = dominated_volume(measure.ranked, region, {fronts.max_memory}, *buffers,
                                    gradient ? slopes[r].data() : nullptr);
    });
    double volume = 0;
    for (const double of_region : volumes) volume += of_region;
    value[b] = static_cast<T>(volume);
    if (!gradient) continue;
    for (int64_t r = 1; r < count; ++r)
      for (size_t i = 0; i < slopes[0].size(); ++i) slopes[0][i] += slopes[r][i];
    if (any_nan(slopes[0])) {
      const Workspace<BoundsBuffers> buffers(true);
      measure.replace_by_areas(part, fronts.max_memory, static_cast<int>(m), *buffers, slopes[0].data());
    }
    write_gradient(slopes[0], part, fronts.maximize, gradient + b * n * m);
  }
}

}  // namespace

template <class T, class R>
void hypervolume(const Fronts<T, R>& fronts, const Part& part, T* value, T* gradient) {
  const int64_t batch = fronts.points.batch, n = fronts.points.n, m = fronts.points.m;
  check_fronts(fronts);
  if (part.parts < 1 || part.part < 0 || part.part >= part.parts)
    throw std::invalid_argument("part: expected 0 <= part < parts, got part " + std::to_string(part.part) + " of " +
                                std::to_string(part.parts));
  if (const int64_t count = regions(batch, n, m); count > 1)
    return hypervolume_in_regions(fronts, part, count, value, gradient);
  parallel_for(batch, batch * n >= kParallelPoints >> std::min<int64_t>(m, 8), [&](int64_t b) {
    const Workspace<Measure> measure(n <= kKeptRows);
    MeasuredFront& front = measure->front;
    front.load(fronts, b);
    T* front_gradient = gradient ? gradient + b * n * m : nullptr;
    if (front_gradient) std::fill_n(front_gradient, n * m, T{0});
    if (front.ref_is_nan) {
      value[b] = std::numeric_limits<T>::quiet_NaN();
      return;
    }
    if (m <= 3) {
      // Too fast to be worth cutting.
      value[b] = part.part == 0
                     ? measure->of_few_objectives(front, static_cast<int>(m), fronts.maximize, front_gradient)
                     : T{0};
      return;
    }
    const Workspace<BoundsBuffers> buffers(true);
    RankedFront& ranked = measure->ranked;
    ranked.load(front.rows.data(), front.length, static_cast<int>(m), front.ref, true);
    const Region region = Region::part(ranked, part.part, part.parts);
    if (!gradient) {
      value[b] = static_cast<T>(dominated_volume(ranked, region, {fronts.max_memory}, *buffers, nullptr));
      return;
    }
    measure->slopes.assign(front.length * m, 0);
    value[b] = static_cast<T>(dominated_volume(ranked, region, {fronts.max_memory}, *buffers, measure->slopes.data()));
    if (any_nan(measure->slopes))
      measure->replace_by_areas(part, fronts.max_memory, static_cast<int>(m), *buffers, measure->slopes.data());
    write_gradient(measure->slopes, part, fronts.maximize, front_gradient);
  });
}

#define MORLFAST_INSTANTIATE(T, R) template void hypervolume<T, R>(const Fronts<T, R>&, const Part&, T*, T*);
MORLFAST_INSTANTIATE(float, float)
MORLFAST_INSTANTIATE(float, double)
MORLFAST_INSTANTIATE(double, float)
MORLFAST_INSTANTIATE(double, double)
#undef MORLFAST_INSTANTIATE

}  // namespace morlfast
