// hypervolume, its gradient and its parts against the cells of the grid through all coordinates.
#include <algorithm>
#include <bit>
#include <numeric>

#include "driver.hpp"
#include "fronts.hpp"
#include "grid.hpp"
#include "morlfast/hypervolume.hpp"

namespace driver {
namespace {

using morlfast::NanPolicy;
using morlfast::Part;

double value_of(const Front& front) {
  double value = 0;
  Grid(front, all_axes(front.ref.size())).each([&](uint64_t covering, double measure, int64_t) {
    if (covering) value += measure;
  });
  return value;
}

/// Derivatives along objective c: minus what each point covers of the other objectives and none before it does.
std::vector<double> slopes_along(const Front& front, int c) {
  std::vector<int> axes = all_axes(front.ref.size()), order(front.points.size());
  axes.erase(axes.begin() + c);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int i, int j) {
    const Point &p = front.points[i], &q = front.points[j];
    return p[c] != q[c] ? p[c] < q[c] : p < q;
  });
  Front sorted{{}, front.ref, false};
  for (const int i : order) sorted.points.push_back(front.points[i]);
  std::vector<double> slopes(order.size());
  Grid(sorted, axes).each([&](uint64_t covering, double measure, int64_t) {
    if (covering) slopes[order[std::countr_zero(covering)]] -= measure;
  });
  return slopes;
}

template <class T, class R>
void check(Random& random) {
  RandomFronts<T, R> fronts(random, 0);
  const auto [m, n, batch] = std::tuple(fronts.m, fronts.n, fronts.batch);
  const bool with_gradient = random.chance(0.7);
  // Slopes at a cut cancel between the parts, but not where they are infinite.
  const bool finite = !fronts.numbers.infinite && fronts.numbers.scale == 1;
  const int64_t parts = with_gradient && !finite ? 1 : random.pick<int64_t>({1, 1, 1, 2, 3, 7, 100});
  std::vector<double> values(batch), gradients(batch * n * m);
  const std::unique_ptr<T[]> value(new T[batch]), gradient(new T[batch * n * m]);
  const auto call = [&] {
    for (int64_t part = 0; part < parts; ++part) {
      morlfast::hypervolume(fronts.view(), Part{part, parts}, value.get(), with_gradient ? gradient.get() : nullptr);
      for (int64_t b = 0; b < batch; ++b) values[b] += value[b];
      for (int64_t i = 0; with_gradient && i < batch * n * m; ++i) gradients[i] += gradient[i];
    }
  };
  if (!fronts.succeeds(call)) return;
  // Parts are rounded each on its own.
  if (sizeof(T) == 4 && parts > 1) fronts.exact = false;
  for (int64_t b = 0; b < batch; ++b) {
    const Front& front = fronts.fronts[b];
    if (front.ref_is_nan) {
      expect(std::isnan(values[b]), "NaN in ref_point gives NaN");
      continue;
    }
    fronts.expect_close(values[b], value_of(front), "value");
    if (!with_gradient) continue;
    for (int64_t c = 0; c < m; ++c) {
      const std::vector<double> slopes = slopes_along(front, static_cast<int>(c));
      const double size = std::accumulate(slopes.begin(), slopes.end(), 0.0,
                                          [](double sum, double x) { return std::isinf(x) ? sum : sum - x; });
      for (int64_t i = 0; i < n; ++i) {
        const double want = i < fronts.length(b) ? slopes[i] : 0;
        fronts.expect_close(gradients[(b * n + i) * m + c], fronts.maximize ? -want : want,
                            "gradient of row " + std::to_string(i) + " along " + std::to_string(c),
                            std::max(1.0, size));
      }
    }
  }
}

/// By inclusion and exclusion, for any number of objectives.
long double included_and_excluded(const std::vector<Point>& points, const Point& ref) {
  long double volume = 0;
  for (uint64_t subset = 1; subset < uint64_t{1} << points.size(); ++subset) {
    long double product = std::popcount(subset) % 2 ? 1 : -1;
    for (std::size_t k = 0; k < ref.size(); ++k) {
      double worst = -kInf;
      for (uint64_t left = subset; left; left &= left - 1) worst = std::max(worst, points[std::countr_zero(left)][k]);
      product *= std::max(0.0, ref[k] - worst);
    }
    volume += product;
  }
  return volume;
}

}  // namespace

void check_hypervolume(Random& random) {
  using Check = void (*)(Random&);
  random.pick<Check>({check<float, float>, check<float, double>, check<double, float>, check<double, double>})(random);
}

void check_many_objectives(Random& random) {
  const int64_t m =
      random.chance(0.8) ? random.integer(8, 20) : random.integer(21, morlfast::kMaxHypervolumeObjectives);
  const int64_t n = random.integer(0, m <= 10 ? 9 : m <= 20 ? 6 : 4);
  Numbers numbers;
  numbers.grid = random.pick<int64_t>({0, 1, 1, 2, 4});
  Array points(random, morlfast::Dtype::float64, {n, m}, true);
  points.fill(random, numbers);
  const Point ref(m, numbers.grid ? static_cast<double>(numbers.grid) + random.integer(0, 1) : 1.0);
  morlfast::Fronts<double, double> fronts{{points.as<double>(), {}, 1, n, m, m, 1}, {ref.data(), {}, 1}};
  if (m <= 9) fronts.max_memory = random.pick<int64_t>({morlfast::kDefaultMaxMemory, 20000, 2000, 1});

  std::vector<Point> rows(n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < m; ++k) rows[i].push_back(points.at(0, {i, k}));
  const long double want = included_and_excluded(rows, ref);
  const std::string shape = std::to_string(n) + " points of " + std::to_string(m) + " objectives";
  const auto expect_value = [&](double got, long double wanted, const std::string& what) {
    expect(close(got, static_cast<double>(wanted), 1e-12, static_cast<double>(want)), what + " of " + shape);
  };

  double value = 0;
  const std::unique_ptr<double[]> gradient(new double[n * m]), contributions(new double[n]);
  morlfast::hypervolume(fronts, {}, &value, gradient.get());
  expect_value(value, want, "value");
  for (int64_t k = 0; k < m; ++k) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum -= gradient[i * m + k] * (ref[k] - rows[i][k]);
    expect_value(sum, want, "slopes along objective " + std::to_string(k));
  }
  morlfast::hypervolume_contributions(fronts, false, contributions.get());
  for (int64_t i = 0; i < n; ++i) {
    std::vector<Point> others = rows;
    others.erase(others.begin() + i);
    expect_value(contributions[i], want - included_and_excluded(others, ref), "contribution " + std::to_string(i));
  }
  double improvement = 0;  // of all points beyond the first half of them
  fronts.points.n = n / 2;
  const int64_t rest = n - n / 2;
  morlfast::hypervolume_improvement({points.as<double>() + (n ? n / 2 * m : 0), {}, 1, rest, 0, m, 1}, fronts,
                                    &improvement);
  rows.resize(n / 2);
  expect_value(improvement, want - included_and_excluded(rows, ref), "improvement");
}

void check_hypervolume_arguments() {
  const std::vector<double> point(65, 0.5), ref(65, 1.0);
  expect(morlfast::hypervolume(point.data(), 1, 3, ref.data(), false) == 0.125, "one point");
  expect(morlfast::hypervolume(nullptr, 0, 2, ref.data(), false) == 0, "no point");
  expect(morlfast::hypervolume(nullptr, 0, 9, ref.data(), false) == 0, "no point");
  expect(morlfast::hypervolume(point.data(), 1, 64, ref.data(), false) == std::ldexp(1.0, -64), "most objectives");

  using Fronts = morlfast::Fronts<double, double>;
  double value = 0, gradient[2];
  int64_t picks[2];
  /// What each function of the family says about its fronts, and where in the message the fronts are named.
  const auto expect_all_refused = [&](const Fronts& fronts, const std::string& part) {
    expect_refused([&] { morlfast::hypervolume(fronts, {}, &value, gradient); }, part);
    expect_refused([&] { morlfast::hypervolume_contributions(fronts, false, gradient); }, part);
    expect_refused([&] { morlfast::hypervolume_improvement({point.data(), {}, 1, 1, 0, 0, 1}, fronts, &value); }, part);
    expect_refused([&] { morlfast::hypervolume_subset(fronts, 0, picks); }, part);
    expect_refused([&] { morlfast::box_decomposition(fronts, true); }, part);
  };
  const auto fronts_of = [&](int64_t n, int64_t m) {
    return Fronts{{point.data(), {}, 1, n, m, m, 1}, {ref.data(), {}, 1}};
  };
  expect_all_refused(fronts_of(1, 0), "1 to 64 objectives, got 0");
  expect_all_refused(fronts_of(1, 65), "1 to 64 objectives, got 65");
  expect_all_refused(fronts_of(std::numeric_limits<int32_t>::max(), 2), "fewer than 2^31 points");
  for (const int64_t length : {int64_t{-1}, int64_t{3}, std::numeric_limits<int64_t>::max()})
    for (const int64_t m : {2, 4}) {
      Fronts fronts = fronts_of(2, m);
      fronts.lengths = &length;
      fronts.nan = NanPolicy::worst;
      expect_all_refused(fronts, "lengths");
    }
  for (const int64_t m : {2, 3, 4, 9}) {
    std::vector<double> points(2 * m, 0.5);
    points.back() = kNan;
    Fronts fronts{{points.data(), {}, 1, 2, m, m, 1}, {ref.data(), {}, 1}};
    fronts.argument = "front";
    expect_all_refused(fronts, "front: expected no NaN, got NaN in row 1");
    fronts.points.n = 1;
    std::vector<double> bad(m, kNan);
    fronts.ref_point.data = bad.data();
    expect_all_refused(fronts, "ref_point: expected no NaN");
  }
  const std::vector<Part> parts{{-1, 1}, {1, 1}, {0, 0}, {0, -1}, {2, 2}};
  for (const Part& part : parts)
    expect_refused([&] { morlfast::hypervolume(fronts_of(1, 4), part, &value, gradient); }, "part < parts");
  for (const int64_t k : {-1, 3})
    expect_refused([&] { morlfast::hypervolume_subset(fronts_of(2, 4), k, picks); }, "k: expected 0 to 2");
}

}  // namespace driver
