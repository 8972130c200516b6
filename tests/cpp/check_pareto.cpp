// Ranks, non-dominated points, counts and dominance by another set, against their definitions.
#include <algorithm>
#include <numeric>

#include "driver.hpp"
#include "morlfast/pareto.hpp"

namespace driver {
namespace {

using morlfast::NanPolicy;
using Point = std::vector<double>;
using Points = std::vector<Point>;

bool has_nan(const Point& p) {
  return std::any_of(p.begin(), p.end(), [](double x) { return x != x; });
}

bool no_worse(const Point& p, const Point& q) {
  for (std::size_t k = 0; k < p.size(); ++k)
    if (!(p[k] <= q[k])) return false;
  return true;
}

bool dominates(const Point& p, const Point& q) { return no_worse(p, q) && !no_worse(q, p); }

/// Sets with all that is drawn about them, and their points as they are minimized.
template <class T>
struct Sets {
  Array points;
  int64_t batch, n, m;
  std::vector<int64_t> lengths;  // empty: all rows
  bool maximize;
  NanPolicy nan;
  bool any_nan = false;
  std::vector<Points> fronts;

  Sets(Random& random, std::vector<int64_t> shape, int64_t n, int64_t m, bool maximize, NanPolicy nan, bool ragged)
      : points(random, sizeof(T) == 4 ? morlfast::Dtype::float32 : morlfast::Dtype::float64, append(shape, n, m)),
        batch(product(shape)),
        n(n),
        m(m),
        maximize(maximize),
        nan(nan),
        fronts(batch) {
    points.fill(random, Numbers::any(random, random.chance(0.3), random.chance(0.3)));
    for (int64_t b = 0; b < batch; ++b) {
      if (ragged) lengths.push_back(random.integer(0, n));
      for (int64_t i = 0; i < length(b); ++i) {
        Point point;
        for (int64_t k = 0; k < m; ++k) point.push_back((maximize ? -1 : 1) * points.at(b, {i, k}));
        any_nan |= has_nan(point);
        fronts[b].push_back(point);
      }
    }
  }

  static std::vector<int64_t> append(std::vector<int64_t> shape, int64_t n, int64_t m) {
    shape.push_back(n);
    shape.push_back(m);
    return shape;
  }

  int64_t length(int64_t b) const { return lengths.empty() ? n : lengths[b]; }

  morlfast::PointsView<T> view() const {
    return {points.as<T>(), points.layout(2), batch, n, m, points.stride(-2), points.stride(-1)};
  }
  morlfast::PointSets<T> sets(const char* argument) const {
    return {view(), lengths.empty() ? nullptr : lengths.data(), maximize, nan, argument};
  }
};

template <class T>
Sets<T> any_sets(Random& random) {
  const bool large = random.chance(0.02);  // several blocks
  const int64_t n = large ? random.integer(600, random.pick<int64_t>({1500, 2600}))
                          : random.integer(0, random.pick<int64_t>({1, 10, 150}));
  return {random,
          large ? std::vector<int64_t>{} : batch_shape(random),
          n,
          random.integer(1, 8),
          random.chance(0.5),
          random.chance(0.3) ? NanPolicy::raise : NanPolicy::worst,
          random.chance(0.5)};
}

/// Calls `f(out)` on memory that holds no possible result, unless it must refuse a NaN of `argument`.
template <class R, class F>
bool called(bool refused, const char* argument, R* out, int64_t size, const F& f) {
  if (refused) {
    expect_refused([&] { f(out); }, "NaN in row");
    expect_refused([&] { f(out); }, argument);
    return false;
  }
  std::memset(static_cast<void*>(out), 0x55, size * sizeof(R));
  f(out);
  return true;
}

template <class R>
void expect_equal(const R* got, const std::vector<R>& expected, int64_t b, const char* what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expect(got[i] == expected[i], std::string(what) + " of row " + std::to_string(i) + " of front " +
                                      std::to_string(b) + ": " + std::to_string(got[i]) + ", expected " +
                                      std::to_string(expected[i]));
  }
}

/// 1 + the largest rank among the dominators; rows with NaN share the last rank. Points that complete `stop_after` are
/// the last ones told apart.
std::vector<int32_t> brute_force_ranks(const Points& points, const double* violations, int64_t stop_after, int64_t n) {
  const auto violation = [&](int i) { return violations ? violations[i] : 0; };
  std::vector<int> order;
  for (std::size_t i = 0; i < points.size(); ++i)
    if (!has_nan(points[i])) order.push_back(static_cast<int>(i));
  std::sort(order.begin(), order.end(), [&](int i, int j) {
    return violation(i) != violation(j) ? violation(i) < violation(j) : points[i] < points[j];
  });
  std::vector<int32_t> ranks(points.size(), -1);
  int32_t last = 0;
  for (std::size_t e = 0; e < order.size(); ++e) {
    const int q = order[e];
    int32_t rank = 0;
    for (std::size_t f = 0; f < e; ++f) {  // dominators come first
      const int p = order[f];
      if (violation(p) < violation(q) || dominates(points[p], points[q])) rank = std::max(rank, ranks[p] + 1);
    }
    ranks[q] = rank;
    last = std::max(last, rank + 1);
  }
  for (int32_t& rank : ranks)
    if (rank < 0) rank = last;

  if (stop_after > 0 && static_cast<std::size_t>(stop_after) <= ranks.size()) {
    std::vector<int32_t> sorted = ranks;
    std::sort(sorted.begin(), sorted.end());
    for (int32_t& rank : ranks) rank = std::min(rank, sorted[stop_after - 1] + 1);
  }
  ranks.resize(n, -1);
  return ranks;
}

template <class T>
void check_ranks(Random& random) {
  const Sets<T> sets = any_sets<T>(random);
  const int64_t rows = sets.batch * sets.n;
  std::unique_ptr<double[]> violations;
  if (random.chance(0.5)) {
    violations.reset(new double[rows]);
    const int64_t amounts = random.pick<int64_t>({1, 3, 1000});
    for (int64_t i = 0; i < rows; ++i)
      violations[i] = random.chance(0.05) ? kInf : static_cast<double>(random.integer(0, amounts) / 2);
  }
  const int64_t stop_after = random.chance(0.5) ? 0 : random.integer(1, sets.n + 2);
  const std::unique_ptr<int32_t[]> ranks(new int32_t[rows]);
  const bool done = called(sets.nan == NanPolicy::raise && sets.any_nan, "points", ranks.get(), rows, [&](auto* out) {
    morlfast::non_dominated_sort(sets.sets("points"), violations.get(), stop_after, out);
  });
  for (int64_t b = 0; done && b < sets.batch; ++b) {
    const double* own = violations ? violations.get() + b * sets.n : nullptr;
    expect_equal(ranks.get() + b * sets.n, brute_force_ranks(sets.fronts[b], own, stop_after, sets.n), b, "rank");
  }
}

template <class T>
void check_first(Random& random) {
  const Sets<T> sets = any_sets<T>(random);
  const bool deduplicate = random.chance(0.5);
  const std::unique_ptr<bool[]> got(new bool[sets.batch * sets.n]);
  const bool done = called(sets.nan == NanPolicy::raise && sets.any_nan, "set", got.get(), sets.batch * sets.n,
                           [&](auto* out) { morlfast::is_non_dominated(sets.sets("set"), deduplicate, out); });
  for (int64_t b = 0; done && b < sets.batch; ++b) {
    const Points& points = sets.fronts[b];
    std::vector<char> expected(sets.n, 0);
    for (std::size_t q = 0; q < points.size(); ++q) {
      expected[q] = !has_nan(points[q]);
      for (std::size_t p = 0; p < points.size(); ++p)
        if (dominates(points[p], points[q]) || (deduplicate && p < q && points[p] == points[q])) expected[q] = 0;
    }
    expect_equal(reinterpret_cast<const char*>(got.get()) + b * sets.n, expected, b, "non-dominated");
  }
}

template <class T>
void check_counts(Random& random) {
  const Sets<T> sets = any_sets<T>(random);
  const std::unique_ptr<int32_t[]> got(new int32_t[sets.batch * sets.n]);
  const bool done = called(sets.nan == NanPolicy::raise && sets.any_nan, "points", got.get(), sets.batch * sets.n,
                           [&](auto* out) { morlfast::dominance_counts(sets.sets("points"), out); });
  for (int64_t b = 0; done && b < sets.batch; ++b) {
    const Points& points = sets.fronts[b];
    std::vector<int32_t> expected(sets.n, -1);
    for (std::size_t q = 0; q < points.size(); ++q) {
      expected[q] = 0;
      for (const Point& p : points) expected[q] += has_nan(points[q]) ? !has_nan(p) : dominates(p, points[q]);
    }
    expect_equal(got.get() + b * sets.n, expected, b, "count");
  }
}

template <class T>
void check_dominated(Random& random) {
  const Sets<T> others = any_sets<T>(random);
  std::vector<int64_t> shape = others.points.sizes();
  shape.resize(shape.size() - 2);
  const bool raises = others.nan == NanPolicy::raise;
  // Without points there is nothing to compare with, and no NaN is looked for.
  const Sets<T> queries(random, shape, random.integer(raises, random.pick<int64_t>({1, 10, 150})), others.m,
                        others.maximize, others.nan, false);
  const bool weakly = random.chance(0.5);
  const char* argument = queries.any_nan && others.any_nan ? "" : queries.any_nan ? "points" : "others";
  const std::unique_ptr<bool[]> got(new bool[queries.batch * queries.n]);
  const bool done =
      called(raises && (queries.any_nan || others.any_nan), argument, got.get(), queries.batch * queries.n,
             [&](auto* out) { morlfast::is_dominated_by(queries.view(), others.sets("others"), weakly, out); });
  for (int64_t b = 0; done && b < queries.batch; ++b) {
    std::vector<char> expected(queries.n, 0);
    for (int64_t q = 0; q < queries.n; ++q) {
      const Point& point = queries.fronts[b][q];
      for (const Point& p : others.fronts[b])
        expected[q] |= has_nan(point) ? !has_nan(p) : weakly ? no_worse(p, point) : dominates(p, point);
    }
    expect_equal(reinterpret_cast<const char*>(got.get()) + b * queries.n, expected, b, "dominated");
  }
}

}  // namespace

void check_non_dominated_sort(Random& random) {
  random.chance(0.5) ? check_ranks<float>(random) : check_ranks<double>(random);
}

void check_is_non_dominated(Random& random) {
  random.chance(0.5) ? check_first<float>(random) : check_first<double>(random);
}

void check_dominance_counts(Random& random) {
  random.chance(0.5) ? check_counts<float>(random) : check_counts<double>(random);
}

void check_is_dominated_by(Random& random) {
  random.chance(0.5) ? check_dominated<float>(random) : check_dominated<double>(random);
}

void check_pareto_arguments() {
  const double point = 0;
  int32_t number = 0;
  bool flag = false;
  const morlfast::PointsView<double> view{&point, {}, 1, 1, 0, 1, 1};
  const morlfast::PointSets<double> sets{view, nullptr, false, NanPolicy::raise, "points"};
  const char* message = "at least 1 objective, got 0";
  expect_refused([&] { morlfast::non_dominated_sort(sets, nullptr, 0, &number); }, message);
  expect_refused([&] { morlfast::is_non_dominated(sets, false, &flag); }, message);
  expect_refused([&] { morlfast::dominance_counts(sets, &number); }, message);
  expect_refused([&] { morlfast::is_dominated_by(view, sets, false, &flag); }, message);
}

}  // namespace driver
