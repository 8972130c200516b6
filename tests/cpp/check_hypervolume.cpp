// hypervolume against the cells of the grid through all coordinates.
#include <algorithm>
#include <numeric>

#include "driver.hpp"
#include "morlfast/hypervolume.hpp"

namespace driver {
namespace {

using morlfast::Dtype;
using morlfast::NanPolicy;
using Point = std::vector<double>;

/// Measure of the union of the boxes [z, ref) over `axes`; contribution(i) is what point i adds to those before it.
template <class Contribution>
double covered(const std::vector<Point>& points, const Point& ref, const std::vector<int>& axes,
               const Contribution& contribution) {
  std::vector<std::vector<double>> edges;
  std::size_t cells = 1;
  for (int axis : axes) {
    std::vector<double> edge{ref[axis]};
    for (const Point& z : points) edge.push_back(z[axis]);
    std::sort(edge.begin(), edge.end());
    edge.erase(std::unique(edge.begin(), edge.end()), edge.end());
    cells *= edge.size();
    edges.push_back(edge);
  }
  std::vector<char> taken(cells);
  double total = 0;
  for (std::size_t i = 0; i < points.size(); ++i) {
    double own = 0;
    for (std::size_t cell = 0; cell < cells; ++cell) {
      double measure = 1;
      bool inside = !taken[cell];
      std::size_t rest = cell;
      for (std::size_t k = 0; inside && k < axes.size(); ++k) {
        const std::size_t e = rest % edges[k].size();
        rest /= edges[k].size();
        inside = edges[k][e] >= points[i][axes[k]] && edges[k][e] < ref[axes[k]];
        if (inside) measure *= edges[k][e + 1] - edges[k][e];
      }
      if (!inside) continue;
      taken[cell] = 1;
      own += measure;
    }
    contribution(i, own);
    total += own;
  }
  return total;
}

struct Expected {
  double value;
  std::vector<Point> gradient;  // (n, m)
};

/// One front, minimized, without NaN.
Expected brute_force(const std::vector<Point>& points, const Point& ref) {
  const int m = static_cast<int>(ref.size());
  Expected expected{0, std::vector<Point>(points.size(), Point(m))};
  std::vector<int> counting;
  for (std::size_t i = 0; i < points.size(); ++i) {
    bool better = true;
    for (int k = 0; k < m; ++k) better &= points[i][k] < ref[k];
    if (better) counting.push_back(static_cast<int>(i));
  }
  std::vector<Point> kept;
  for (int i : counting) kept.push_back(points[i]);
  std::vector<int> all(m);
  std::iota(all.begin(), all.end(), 0);
  expected.value = covered(kept, ref, all, [](std::size_t, double) {});
  for (int c = 0; c < m; ++c) {
    std::vector<int> others;
    for (int k = 0; k < m; ++k)
      if (k != c) others.push_back(k);
    std::vector<int> order = counting;
    std::stable_sort(order.begin(), order.end(), [&](int i, int j) {
      if (points[i][c] != points[j][c]) return points[i][c] < points[j][c];
      return points[i] < points[j];
    });
    std::vector<Point> sorted;
    for (int i : order) sorted.push_back(points[i]);
    covered(sorted, ref, others, [&](std::size_t place, double own) { expected.gradient[order[place]][c] = -own; });
  }
  return expected;
}

template <class T, class R>
void check(Random& random) {
  const auto dtype = [](auto zero) { return sizeof(zero) == 4 ? Dtype::float32 : Dtype::float64; };
  const int64_t m = random.integer(1, 3);
  Numbers numbers = Numbers::any(random, random.chance(0.3), random.chance(0.3));
  const int64_t most = m < 3 ? 40 : numbers.grid ? 30 : 9;
  const int64_t n = random.chance(0.1) ? random.integer(0, 1) : random.integer(0, most);
  std::vector<int64_t> shape = batch_shape(random);
  const int64_t batch = product(shape);
  std::vector<int64_t> ref_shape = shape;
  shape.push_back(n);
  shape.push_back(m);
  ref_shape.push_back(m);
  Array points(random, dtype(T{}), shape), ref(random, dtype(R{}), ref_shape);
  points.fill(random, numbers);
  numbers.special /= 4;
  ref.fill(random, numbers);
  const bool maximize = random.chance(0.5), with_lengths = random.chance(0.5), with_gradient = random.chance(0.7);
  const NanPolicy nan = random.chance(0.3) ? NanPolicy::raise : NanPolicy::worst;
  std::vector<int64_t> lengths(batch);
  lengths.shrink_to_fit();
  for (int64_t& length : lengths) length = random.integer(0, n);
  const std::unique_ptr<T[]> value(new T[batch]), gradient(new T[batch * n * m]);

  bool any_nan = false;
  std::vector<std::vector<Point>> fronts(batch);
  std::vector<Point> refs(batch);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < m; ++k) refs[b].push_back((maximize ? -1 : 1) * ref.at(b, {k}));
    for (int64_t i = 0; i < (with_lengths ? lengths[b] : n); ++i) {
      Point point;
      for (int64_t k = 0; k < m; ++k) point.push_back((maximize ? -1 : 1) * points.at(b, {i, k}) + 0.0);
      fronts[b].push_back(point);
    }
    for (const Point& point : fronts[b])
      any_nan |= std::any_of(point.begin(), point.end(), [](double x) { return x != x; });
    any_nan |= std::any_of(refs[b].begin(), refs[b].end(), [](double x) { return x != x; });
  }

  const auto call = [&] {
    morlfast::hypervolume(
        morlfast::PointsView<T>{points.as<T>(), points.layout(2), batch, n, m, points.stride(-2), points.stride(-1)},
        morlfast::VectorsView<R>{ref.as<R>(), ref.layout(1), ref.stride(-1)}, with_lengths ? lengths.data() : nullptr,
        maximize, nan, value.get(), with_gradient ? gradient.get() : nullptr);
  };
  if (nan == NanPolicy::raise && any_nan) {
    expect_refused(call, "NaN");
    return;
  }
  call();
  const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-12;
  for (int64_t b = 0; b < batch; ++b) {
    const bool ref_is_nan = std::any_of(refs[b].begin(), refs[b].end(), [](double x) { return x != x; });
    if (ref_is_nan) {
      expect(std::isnan(value[b]), "NaN in ref_point gives NaN");
      continue;
    }
    for (Point& point : fronts[b])  // the worst point: never strictly better
      if (std::any_of(point.begin(), point.end(), [](double x) { return x != x; })) point.assign(m, kInf);
    const Expected expected = brute_force(fronts[b], refs[b]);
    expect(close(value[b], static_cast<T>(expected.value), tolerance),
           "value " + std::to_string(value[b]) + ", expected " + std::to_string(expected.value));
    for (int64_t i = 0; with_gradient && i < n; ++i)
      for (int64_t k = 0; k < m; ++k) {
        const double want = i < static_cast<int64_t>(fronts[b].size()) ? expected.gradient[i][k] : 0;
        expect(close(gradient[(b * n + i) * m + k], static_cast<T>(maximize ? -want : want), tolerance),
               "gradient of row " + std::to_string(i) + " along " + std::to_string(k));
      }
  }
}

}  // namespace

void check_hypervolume(Random& random) {
  using Check = void (*)(Random&);
  random.pick<Check>({check<float, float>, check<float, double>, check<double, float>, check<double, double>})(random);
}

void check_hypervolume_arguments() {
  const std::vector<double> point(4, 0.5), ref(4, 1.0);
  expect(morlfast::hypervolume(point.data(), 1, 3, ref.data(), false) == 0.125, "one point");
  expect(morlfast::hypervolume(nullptr, 0, 2, ref.data(), false) == 0, "no point");
  expect_refused([&] { morlfast::hypervolume(point.data(), 1, 4, ref.data(), false); }, "1 to 3 objectives, got 4");
  expect_refused([&] { morlfast::hypervolume(point.data(), 1, 0, ref.data(), false); }, "1 to 3 objectives, got 0");
  for (const int64_t length : {int64_t{-1}, int64_t{3}, std::numeric_limits<int64_t>::max()}) {
    double value = 0;
    expect_refused(
        [&] {
          morlfast::hypervolume(morlfast::PointsView<double>{point.data(), {}, 1, 2, 2, 2, 1},
                                morlfast::VectorsView<double>{ref.data(), {}, 1}, &length, false, NanPolicy::worst,
                                &value, static_cast<double*>(nullptr));
        },
        "lengths");
  }
}

}  // namespace driver
