// One front and its reference point, as every function of the hypervolume family reads them.
#pragma once
#include <limits>

#include "front.hpp"
#include "morlfast/hypervolume.hpp"

namespace morlfast {

/// A front widened, minimized and checked. Kept between fronts.
struct MeasuredFront {
  std::vector<double> rows;  // (length, m)
  int64_t length = 0;
  double ref[kMaxHypervolumeObjectives];
  bool ref_is_nan = false;  // only under NanPolicy::worst

  template <class T, class R>
  void load(const Fronts<T, R>& fronts, int64_t b) {
    const int64_t n = fronts.points.n, m = fronts.points.m;
    length = fronts.lengths ? checked_length(fronts.lengths[b], n) : n;
    rows.resize(length * m);
    load_front(fronts.points, b, length, fronts.maximize, rows.data());
    ref_is_nan = false;
    for (int64_t k = 0; k < m; ++k) {
      const double r = static_cast<double>(fronts.ref_point.row(b)[k * fronts.ref_point.stride]);
      ref_is_nan |= std::isnan(r);
      ref[k] = fronts.maximize ? -r : r;
    }
    if (fronts.nan != NanPolicy::raise) return;
    if (ref_is_nan) throw std::invalid_argument("ref_point: expected no NaN, got NaN");
    const int64_t row = first_nan_row(rows.data(), length, m);
    if (row >= 0) throw_nan(fronts.points.layout, b, "row " + std::to_string(row), fronts.argument);
  }
};

template <class T, class R>
void check_fronts(const Fronts<T, R>& fronts) {
  const int64_t n = fronts.points.n, m = fronts.points.m;
  if (m < 1 || m > kMaxHypervolumeObjectives)
    throw std::invalid_argument("points: expected 1 to " + std::to_string(kMaxHypervolumeObjectives) +
                                " objectives, got " + std::to_string(m));
  if (n >= std::numeric_limits<int32_t>::max() - kMaxHypervolumeObjectives)
    throw std::invalid_argument("points: expected fewer than 2^31 points a front, got " + std::to_string(n));
}

/// Fronts that are worth a thread each; fewer are worked on one after the other, with all threads inside each.
inline constexpr int64_t kManyFronts = 8;

}  // namespace morlfast
