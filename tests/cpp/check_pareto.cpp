// non_dominated_sort against its definition.
#include <algorithm>
#include <numeric>

#include "driver.hpp"
#include "morlfast/pareto.hpp"

namespace driver {
namespace {

using morlfast::NanPolicy;
using Point = std::vector<double>;

bool dominates(const Point& p, const Point& q) {
  bool better = false;
  for (std::size_t k = 0; k < p.size(); ++k) {
    if (p[k] > q[k]) return false;
    better |= p[k] < q[k];
  }
  return better;
}

/// 1 + the largest rank among the dominators; rows with NaN share the last rank.
std::vector<int32_t> brute_force(const std::vector<Point>& points) {
  std::vector<int> order;
  for (std::size_t i = 0; i < points.size(); ++i)
    if (std::none_of(points[i].begin(), points[i].end(), [](double x) { return x != x; }))
      order.push_back(static_cast<int>(i));
  std::sort(order.begin(), order.end(), [&](int i, int j) { return points[i] < points[j]; });
  std::vector<int32_t> ranks(points.size(), -1);
  int32_t last = 0;
  for (std::size_t e = 0; e < order.size(); ++e) {
    int32_t rank = 0;
    for (std::size_t f = 0; f < e; ++f)  // lexicographic order: dominators come first
      if (dominates(points[order[f]], points[order[e]])) rank = std::max(rank, ranks[order[f]] + 1);
    ranks[order[e]] = rank;
    last = std::max(last, rank + 1);
  }
  for (int32_t& rank : ranks)
    if (rank < 0) rank = last;
  return ranks;
}

template <class T>
void check(Random& random) {
  const int64_t m = random.integer(1, 8);
  const bool large = random.chance(0.02);  // several blocks of bitsets
  const int64_t n = large ? random.integer(600, 1500) : random.integer(0, random.pick<int64_t>({1, 10, 150}));
  std::vector<int64_t> shape = large ? std::vector<int64_t>{} : batch_shape(random);
  const int64_t batch = product(shape);
  shape.push_back(n);
  shape.push_back(m);
  Array points(random, sizeof(T) == 4 ? morlfast::Dtype::float32 : morlfast::Dtype::float64, shape);
  points.fill(random, Numbers::any(random, random.chance(0.3), random.chance(0.3)));
  const bool maximize = random.chance(0.5);
  const NanPolicy nan = random.chance(0.3) ? NanPolicy::raise : NanPolicy::worst;

  bool any_nan = false;
  std::vector<std::vector<Point>> fronts(batch);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < n; ++i) {
      Point point;
      for (int64_t k = 0; k < m; ++k) {
        point.push_back((maximize ? -1 : 1) * points.at(b, {i, k}) + 0.0);
        any_nan |= std::isnan(point.back());
      }
      fronts[b].push_back(point);
    }
  const std::unique_ptr<int32_t[]> ranks(new int32_t[batch * n]);
  const auto call = [&] {
    morlfast::non_dominated_sort(
        morlfast::PointsView<T>{points.as<T>(), points.layout(2), batch, n, m, points.stride(-2), points.stride(-1)},
        maximize, nan, ranks.get());
  };
  if (nan == NanPolicy::raise && any_nan) {
    expect_refused(call, "NaN in row");
    return;
  }
  call();
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<int32_t> expected = brute_force(fronts[b]);
    for (int64_t i = 0; i < n; ++i)
      expect(ranks[b * n + i] == expected[i], "rank of row " + std::to_string(i) + ": " +
                                                  std::to_string(ranks[b * n + i]) + ", expected " +
                                                  std::to_string(expected[i]));
  }
}

}  // namespace

void check_non_dominated_sort(Random& random) {
  using Check = void (*)(Random&);
  random.pick<Check>({check<float>, check<double>})(random);
}

void check_non_dominated_sort_arguments() {
  int32_t rank = 0;
  const double point = 0;
  expect_refused(
      [&] {
        morlfast::non_dominated_sort(morlfast::PointsView<double>{&point, {}, 1, 1, 0, 1, 1}, false, NanPolicy::raise,
                                     &rank);
      },
      "at least 1 objective, got 0");
}

}  // namespace driver
