// group_advantages against its formulas, and the groups themselves.
#include <algorithm>
#include <map>

#include "driver.hpp"
#include "morlfast/advantages.hpp"

namespace driver {
namespace {

using morlfast::AdvantageMethod;
using morlfast::AdvantageScale;
using morlfast::Dtype;
using morlfast::Groups;

struct Statistics {
  double mean = 0, deviation = 0;
  int64_t count = 0;

  Statistics(const std::vector<double>& values, int64_t ddof) : count(static_cast<int64_t>(values.size())) {
    if (values.empty()) return;
    if (std::any_of(values.begin(), values.end(), [](double x) { return !std::isfinite(x); })) {
      mean = deviation = kNan;
      return;
    }
    // Equal values have exactly no deviation, whatever their sum rounds to.
    if (std::all_of(values.begin(), values.end(), [&](double x) { return x == values[0]; })) {
      mean = values[0];
      return;
    }
    long double sum = 0, squares = 0;
    for (double x : values) sum += x;
    const long double exact = sum / static_cast<long double>(count);
    for (double x : values) squares += (x - exact) * (x - exact);
    mean = static_cast<double>(exact);
    if (count > ddof) deviation = static_cast<double>(std::sqrt(squares / static_cast<long double>(count - ddof)));
  }
};

struct Problem {
  int64_t n, m;
  std::vector<std::vector<double>> rewards, weights;  // (n, m)
  std::vector<std::vector<int64_t>> groups;           // rows of each
  AdvantageMethod method;
  AdvantageScale scale;
  double eps;
  int64_t ddof;
};

double divided(double centred, double divisor) { return divisor == 0 ? 0 : centred / divisor; }

/// Sum over the scored objectives; NaN where there is none.
double weighted_sum(const Problem& p, int64_t i, const std::vector<double>& values) {
  double sum = 0;
  bool scored = false;
  for (int64_t k = 0; k < p.m; ++k)
    if (!std::isnan(p.rewards[i][k])) sum += p.weights[i][k] * values[k], scored = true;
  return scored ? sum : kNan;
}

/// The advantages; `firm` is false where rounding alone decides what a near-zero deviation gives.
std::vector<double> brute_force(const Problem& p, bool& firm) {
  std::vector<double> result(p.n, 0);
  std::vector<char> scored(p.n);
  for (int64_t i = 0; i < p.n; ++i)
    for (double r : p.rewards[i]) scored[i] |= !std::isnan(r);
  const auto batch = [&](const auto& is_scored, const auto& value) {
    std::vector<double> values;
    for (int64_t i = 0; i < p.n; ++i)
      if (is_scored(i)) values.push_back(value(i));
    return Statistics(values, p.ddof);
  };
  if (p.method != AdvantageMethod::gdpo) {
    std::vector<double> s(p.n);
    for (int64_t i = 0; i < p.n; ++i) s[i] = weighted_sum(p, i, p.rewards[i]);
    const Statistics all = batch([&](int64_t i) { return scored[i] != 0; }, [&](int64_t i) { return s[i]; });
    for (const auto& rows : p.groups) {
      std::vector<double> own;
      for (int64_t i : rows)
        if (scored[i]) own.push_back(s[i]);
      const Statistics group(own, p.ddof);
      for (int64_t i : rows) {
        if (!scored[i]) continue;
        double centred = s[i] - group.mean;
        if (p.method == AdvantageMethod::rloo && group.count > 1)
          centred *= static_cast<double>(group.count) / static_cast<double>(group.count - 1);
        if (p.scale == AdvantageScale::none)
          result[i] = centred;
        else
          result[i] = divided(centred, (p.scale == AdvantageScale::group ? group : all).deviation + p.eps);
        if (std::isnan(group.mean) || (p.scale == AdvantageScale::batch && std::isnan(all.deviation))) result[i] = kNan;
      }
    }
    return result;
  }
  std::vector<std::vector<double>> z(p.n, std::vector<double>(p.m, kNan));
  for (int64_t k = 0; k < p.m; ++k) {
    const Statistics all =
        batch([&](int64_t i) { return !std::isnan(p.rewards[i][k]); }, [&](int64_t i) { return p.rewards[i][k]; });
    for (const auto& rows : p.groups) {
      std::vector<double> own;
      for (int64_t i : rows)
        if (!std::isnan(p.rewards[i][k])) own.push_back(p.rewards[i][k]);
      const Statistics group(own, p.ddof);
      for (int64_t i : rows) {
        const double centred = p.rewards[i][k] - group.mean;
        z[i][k] = p.scale == AdvantageScale::none
                      ? centred
                      : divided(centred, (p.scale == AdvantageScale::group ? group : all).deviation + p.eps);
      }
    }
  }
  std::vector<double> s(p.n);
  bool infinite = false;
  for (int64_t i = 0; i < p.n; ++i) {
    s[i] = weighted_sum(p, i, z[i]);
    for (double r : p.rewards[i]) infinite |= std::isinf(r);
  }
  const Statistics all = batch([&](int64_t i) { return scored[i] != 0; }, [&](int64_t i) { return s[i]; });
  firm = p.eps > 0 || all.deviation == 0 || all.deviation > 1e-6;
  for (int64_t i = 0; i < p.n; ++i)
    if (scored[i]) result[i] = infinite ? kNan : divided(s[i] - all.mean, all.deviation + p.eps);
  return result;
}

double tolerance_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return 1e-9;
    case Dtype::float32:
      return 1e-6;
    case Dtype::float16:
      return 2e-3;
    default:
      return 1e-2;
  }
}

}  // namespace

void check_group_advantages(Random& random) {
  const Dtype dtypes[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};
  Problem p;
  p.method = static_cast<AdvantageMethod>(random.integer(0, 2));
  p.scale = static_cast<AdvantageScale>(random.integer(0, 2));
  p.eps = random.pick({0.0, 1e-4, 1.0});
  p.ddof = random.pick<int64_t>({0, 1, 1, 2, 1000});
  p.m = random.integer(1, 4);
  const bool by_id = random.chance(0.5);
  const int64_t size = random.integer(1, 9);
  p.n = random.chance(0.02) ? 12000 * size : random.integer(0, 12) * size;  // rarely enough for several threads
  // Halves and quarters: weighted sums are exact, so that equal scores are equal in any order of summation.
  Numbers numbers = Numbers::any(random, random.chance(0.4), random.chance(0.2));
  if (numbers.grid == 0) numbers.grid = 7;
  Array rewards(random, dtypes[random.integer(0, 3)], {p.n, p.m});
  rewards.fill(random, numbers);
  const int kind = static_cast<int>(random.integer(0, 2));  // weights: none, (m,), (n, m)
  Array weights(random, dtypes[random.integer(0, 3)], kind == 1 ? std::vector<int64_t>{p.m} : std::vector{p.n, p.m});
  for (int64_t i = 0; i < (kind == 1 ? 1 : p.n); ++i)
    for (int64_t k = 0; k < p.m; ++k)
      weights.set(kind == 1 ? 0 : i, {k}, static_cast<double>(random.integer(-4, 8)) / 4);
  morlfast::MatrixView weight;
  if (kind == 1) weight = {weights.data(), weights.dtype(), 0, weights.stride(0)};
  if (kind == 2) weight = weights.matrix();
  for (int64_t i = 0; i < p.n; ++i) {
    p.rewards.emplace_back();
    p.weights.emplace_back();
    for (int64_t k = 0; k < p.m; ++k) {
      p.rewards[i].push_back(rewards.at(i, {k}));
      p.weights[i].push_back(kind == 0 ? 1 : weights.at(kind == 1 ? 0 : i, {k}));
    }
  }

  Array ids(random, random.pick({Dtype::int32, Dtype::int64}), {p.n});
  std::map<int64_t, std::vector<int64_t>> rows_of;
  for (int64_t i = 0; by_id && i < p.n; ++i) {
    const int64_t spread = random.pick<int64_t>({1, 3, p.n});
    ids.set(i, {}, static_cast<double>(random.integer(-spread, spread) * (random.chance(0.5) ? 1 : 1 << 20)));
  }
  for (int64_t i = 0; i < p.n; ++i) rows_of[by_id ? static_cast<int64_t>(ids.at(i, {})) : i / size].push_back(i);
  for (const auto& [id, rows] : rows_of) p.groups.push_back(rows);
  const Groups groups = !by_id                        ? Groups::contiguous(p.n, size)
                        : ids.dtype() == Dtype::int32 ? Groups::by_id(ids.as<int32_t>(), ids.stride(0), p.n)
                                                      : Groups::by_id(ids.as<int64_t>(), ids.stride(0), p.n);

  const std::size_t bytes = size_of(rewards.dtype());
  const std::unique_ptr<std::byte[]> advantages(new std::byte[p.n * bytes]);
  morlfast::group_advantages(rewards.matrix(), weight, p.m, groups, p.method, p.scale, p.eps, p.ddof, advantages.get());
  bool firm = true;
  const std::vector<double> expected = brute_force(p, firm);
  double largest = 1;
  for (double x : expected)
    if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  for (int64_t i = 0; firm && i < p.n; ++i) {
    const double got = read(rewards.dtype(), advantages.get() + i * bytes);
    expect(close(got, expected[i], tolerance_of(rewards.dtype()), largest),
           "row " + std::to_string(i) + ": " + std::to_string(got) + ", expected " + std::to_string(expected[i]));
  }
}

void check_groups() {
  expect(Groups::contiguous(0, 3).count() == 0 && Groups::contiguous(6, 3).count() == 2, "contiguous groups");
  expect(Groups::by_id(static_cast<const int64_t*>(nullptr), 1, 0).count() == 0, "no ids");
  using Limits = std::numeric_limits<int64_t>;
  const std::vector<int64_t> extremes{Limits::min(), Limits::max(), -1, 0, Limits::min(), 1, Limits::max()};
  const Groups groups = Groups::by_id(extremes.data(), 1, static_cast<int64_t>(extremes.size()));
  expect(groups.count() == 5, "five different ids");
  expect(groups.row(groups.begin(0)) == 0 && groups.row(groups.begin(0) + 1) == 4, "rows in ascending order");
  // Every row a group of its own; ids that the hash sends to one place.
  std::vector<int64_t> ids(200000);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i) << 40;
  expect(Groups::by_id(ids.data(), 1, 200000).count() == 200000, "as many groups as rows");
}

}  // namespace driver
