// group_advantages against its formulas, and the groups themselves.
#include <algorithm>
#include <map>

#include "driver.hpp"
#include "morlfast/advantages.hpp"

namespace driver {
namespace {

using morlfast::AdvantageRules;
using morlfast::Aggregate;
using morlfast::Baseline;
using morlfast::Dtype;
using morlfast::EpsTo;
using morlfast::Groups;
using morlfast::NanRewards;
using morlfast::Scale;
using morlfast::Singleton;
using morlfast::Whiten;
using morlfast::ZeroVariance;

using Values = std::vector<double>;  // NaN: not scored; infinite: the advantage is NaN

struct Statistics {
  double mean = 0, deviation = 0;
  bool constant = false;

  Statistics(const Values& values, int64_t ddof) {
    // Equal values have exactly no deviation, whatever their sum rounds to.
    if (values.empty()) return;
    mean = values[0];
    constant = std::all_of(values.begin(), values.end(), [&](double x) { return x == values[0]; });
    if (constant) return;
    long double sum = 0, squares = 0;
    for (double x : values) sum += x;
    const long double exact = sum / static_cast<long double>(values.size());
    for (double x : values) squares += (x - exact) * (x - exact);
    mean = static_cast<double>(exact);
    const auto freedom = static_cast<int64_t>(values.size()) - ddof;
    if (freedom > 0) deviation = static_cast<double>(std::sqrt(squares / static_cast<long double>(freedom)));
  }
};

struct Problem {
  int64_t n, m;
  std::vector<Values> rewards, weights;      // (n, m)
  std::vector<std::vector<int64_t>> groups;  // rows of each
  std::vector<int64_t> lengths;
  AdvantageRules rules;
};

double divisor(double deviation, double eps, EpsTo eps_to) {
  if (eps_to == EpsTo::std) return deviation + eps;
  return eps_to == EpsTo::floor ? std::max(deviation, eps) : std::sqrt(deviation * deviation + eps);
}

bool any_infinite(const Values& values) {
  return std::any_of(values.begin(), values.end(), [](double x) { return std::isinf(x); });
}

double weighted_sum(const Problem& p, int64_t i, const Values& values) {
  double sum = 0;
  bool scored = p.rules.nan == NanRewards::skip_reward;
  for (int64_t k = 0; k < p.m; ++k) {
    if (std::isnan(values[k])) continue;
    sum += p.weights[i][k] * values[k];
    scored = true;
  }
  if (!scored) return kNan;
  return std::isnan(sum) ? kInf : sum;
}

Values normalized(const Problem& p, const Values& column) {
  const AdvantageRules& r = p.rules;
  const auto scored = [&](const std::vector<int64_t>& rows) {
    std::vector<int64_t> result;
    for (int64_t i : rows)
      if (!std::isnan(column[i])) result.push_back(i);
    return result;
  };
  const auto at = [&](const std::vector<int64_t>& rows) {
    Values values;
    for (int64_t i : rows) values.push_back(column[i]);
    return values;
  };
  std::vector<int64_t> everyone(p.n);
  for (int64_t i = 0; i < p.n; ++i) everyone[i] = i;
  const Values batch = at(scored(everyone));
  const Statistics all(batch, r.ddof);
  const bool of_group = (r.baseline != Baseline::none && r.baseline != Baseline::batch) || r.scale == Scale::group ||
                        r.scale == Scale::leave_one_out;
  const bool of_batch = r.baseline == Baseline::batch || r.scale == Scale::batch;
  Values result = column;
  for (const auto& group : p.groups) {
    const std::vector<int64_t> rows = scored(group);
    const Values values = at(rows);
    const Statistics own(values, r.ddof);
    const bool poisoned = (of_group && any_infinite(values)) || (of_batch && any_infinite(batch));
    for (int64_t i : rows) {
      const bool alone = rows.size() == 1 && of_group;
      if (poisoned) {
        result[i] = kInf;
        continue;
      }
      if (alone && r.singleton != Singleton::reward) {
        result[i] = r.singleton == Singleton::zero ? 0 : kInf;
        continue;
      }
      std::vector<int64_t> other_rows;
      if (r.baseline == Baseline::leave_one_out || r.scale == Scale::leave_one_out)
        for (int64_t j : rows)
          if (j != i) other_rows.push_back(j);
      const Statistics others(at(other_rows), r.ddof);
      double centred = column[i];
      if (r.baseline == Baseline::batch) {
        centred -= all.mean;
      } else if (!alone && r.baseline == Baseline::group) {
        centred -= own.mean;
      } else if (!alone && r.baseline == Baseline::leave_one_out) {
        centred -= others.mean;
      } else if (!alone && r.baseline == Baseline::length_weighted) {
        long double sum = 0, tokens = 0;
        for (int64_t j : rows) sum += static_cast<long double>(p.lengths[j]) * column[j], tokens += p.lengths[j];
        centred -= own.constant || tokens == 0 ? own.mean : static_cast<double>(sum / tokens);
      } else if (!alone && r.baseline == Baseline::runner_up) {
        const auto best = std::max_element(values.begin(), values.end()) - values.begin();
        Values rest = values;
        rest.erase(rest.begin() + best);
        centred = rows[best] == i ? values[best] - *std::max_element(rest.begin(), rest.end()) : 0;
      }
      double deviation = 1;
      if (r.scale == Scale::batch) deviation = all.deviation;
      if (r.scale == Scale::group && !alone) deviation = own.deviation;
      if (r.scale == Scale::leave_one_out && !alone) deviation = others.deviation;
      if (r.scale == Scale::none)
        result[i] = centred;
      else if (deviation > r.least_std)
        result[i] = centred / divisor(deviation, r.eps, r.eps_to);
      else
        result[i] = r.zero_variance == ZeroVariance::unscaled ? centred
                    : r.zero_variance == ZeroVariance::zero   ? 0
                                                              : kInf;
    }
  }
  return result;
}

/// The advantages; `firm` is false where rounding alone decides what a near-zero deviation gives.
Values brute_force(const Problem& p, bool& firm) {
  std::vector<Values> rewards = p.rewards;
  for (Values& row : rewards)
    for (double& x : row)
      if (std::isnan(x)) x = p.rules.nan == NanRewards::propagate ? kInf : p.rules.nan == NanRewards::zero ? 0 : x;
  Values scores(p.n);
  if (p.rules.aggregate == Aggregate::sum_then_normalize) {
    for (int64_t i = 0; i < p.n; ++i) scores[i] = weighted_sum(p, i, rewards[i]);
    scores = normalized(p, scores);
  } else {
    for (int64_t k = 0; k < p.m; ++k) {
      Values column(p.n);
      for (int64_t i = 0; i < p.n; ++i) column[i] = rewards[i][k];
      column = normalized(p, column);
      for (int64_t i = 0; i < p.n; ++i) rewards[i][k] = column[i];
    }
    for (int64_t i = 0; i < p.n; ++i) scores[i] = weighted_sum(p, i, rewards[i]);
  }
  if (p.rules.whiten != Whiten::none) {
    Values spread;
    for (int64_t i = 0; i < p.n; ++i)
      if (!std::isnan(scores[i]))
        spread.insert(spread.end(), p.rules.whiten == Whiten::tokens ? p.lengths[i] : 1, scores[i]);
    const bool poisoned = any_infinite(spread);
    const Statistics all(poisoned ? Values{} : spread, p.rules.whiten_ddof);
    firm = p.rules.whiten_eps > 0 || all.deviation == 0 || all.deviation > 1e-6;
    for (double& x : scores) {
      if (std::isnan(x)) continue;
      if (poisoned)
        x = kInf;
      else
        x = all.deviation == 0 ? 0 : (x - all.mean) / divisor(all.deviation, p.rules.whiten_eps, p.rules.whiten_eps_to);
    }
  }
  for (double& x : scores) x = std::isnan(x) ? 0 : std::isinf(x) ? kNan : x;
  return scores;
}

template <class E>
E any(Random& random, E last) {
  return static_cast<E>(random.integer(0, static_cast<int64_t>(last)));
}

AdvantageRules any_rules(Random& random) {
  AdvantageRules rules;
  rules.aggregate = any(random, Aggregate::normalize_then_sum);
  rules.baseline = any(random, Baseline::runner_up);
  rules.scale = any(random, Scale::leave_one_out);
  rules.eps = random.pick({0.0, 1e-4, 1.0});
  rules.eps_to = any(random, EpsTo::floor);
  rules.ddof = random.pick<int64_t>({0, 1, 1, 2, 1000});
  rules.singleton = any(random, Singleton::nan);
  rules.zero_variance = any(random, ZeroVariance::nan);
  rules.least_std = random.pick({0.0, 0.0, 0.3});
  rules.nan = any(random, NanRewards::skip_reward);
  rules.whiten = any(random, Whiten::tokens);
  rules.whiten_eps = random.pick({0.0, 1e-4, 1.0});
  rules.whiten_eps_to = any(random, EpsTo::floor);
  rules.whiten_ddof = random.pick<int64_t>({0, 1, 2});
  return rules;
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
  p.rules = any_rules(random);
  p.m = random.integer(1, 4);
  const int kind_of_groups = static_cast<int>(random.integer(0, 2));  // of one size, by id, by offsets
  const bool by_id = kind_of_groups == 1;
  const int64_t size = random.integer(1, 9);
  p.n = random.chance(0.02) ? 12000 * size : random.integer(0, 12) * size;  // rarely enough for several threads
  if (p.n > 1000) {  // the brute force of other rules is quadratic in a group
    p.rules.baseline = random.pick({Baseline::none, Baseline::group, Baseline::batch});
    p.rules.scale = random.pick({Scale::none, Scale::group, Scale::batch});
  }
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
  std::vector<int64_t> offsets{0};
  for (int64_t g = 0; g * size < p.n; ++g) offsets.insert(offsets.end(), random.chance(0.1) ? 2 : 1, (g + 1) * size);
  const Groups groups = kind_of_groups == 0 ? Groups::contiguous(p.n, size)
                        : kind_of_groups == 2
                            ? Groups::by_offsets(offsets.data(), static_cast<int64_t>(offsets.size()) - 1)
                        : ids.dtype() == Dtype::int32 ? Groups::by_id(ids.as<int32_t>(), ids.stride(0), p.n)
                                                      : Groups::by_id(ids.as<int64_t>(), ids.stride(0), p.n);

  const int64_t tokens = random.pick<int64_t>({0, 1, 5, 33});
  Array mask(random, random.pick({Dtype::bool8, Dtype::int16, Dtype::int64, Dtype::float32, Dtype::bfloat16}),
             {p.n, tokens});
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t t = 0; t < tokens; ++t) mask.set(i, {t}, random.chance(0.6) ? 1 : 0);
  const bool with_mask = random.chance(0.5);
  for (int64_t i = 0; i < p.n; ++i) {
    p.lengths.push_back(with_mask ? 0 : random.integer(0, 6));
    for (int64_t t = 0; with_mask && t < tokens; ++t) p.lengths[i] += mask.at(i, {t}) != 0;
  }

  const std::size_t bytes = size_of(rewards.dtype());
  const std::unique_ptr<std::byte[]> advantages(new std::byte[p.n * (with_mask ? tokens : 1) * bytes]);
  std::optional<morlfast::MatrixView> mask_view;
  if (with_mask) mask_view = mask.matrix();
  morlfast::group_advantages(rewards.matrix(), weight, p.m, groups, p.rules, with_mask ? nullptr : p.lengths.data(),
                             mask_view, tokens, advantages.get());
  bool firm = true;
  const Values expected = brute_force(p, firm);
  double largest = 1;
  for (double x : expected)
    if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  for (int64_t i = 0; firm && i < p.n; ++i) {
    for (int64_t t = 0; t < (with_mask ? tokens : 1); ++t) {
      const double got = read(rewards.dtype(), advantages.get() + (with_mask ? i * tokens + t : i) * bytes);
      const double want = with_mask && mask.at(i, {t}) == 0 ? 0 : expected[i];
      expect(close(got, want, tolerance_of(rewards.dtype()), largest),
             "row " + std::to_string(i) + ": " + std::to_string(got) + ", expected " + std::to_string(want));
    }
  }
}

void check_group_rows(Random& random) {
  const int64_t rows = random.integer(0, 60), width = random.integer(0, 40), gap = random.integer(0, 3);
  std::vector<char> data(rows * (width + gap));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; ++j) data[i * (width + gap) + j] = static_cast<char>(i % 5 == j ? 1 : 0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < gap; ++j) data[i * (width + gap) + width + j] = static_cast<char>(random.integer(0, 99));
  std::vector<int64_t> first(rows);
  morlfast::group_rows(data.data(), width + gap, width, rows, first.data());
  for (int64_t i = 0; i < rows; ++i) {
    int64_t lowest = 0;
    const auto row = [&](int64_t j) { return data.begin() + j * (width + gap); };
    while (!std::equal(row(lowest), row(lowest) + width, row(i))) ++lowest;
    expect(first[i] == lowest, "the first equal row");
  }
}

void check_advantage_arguments() {
  const float rewards[] = {1, std::numeric_limits<float>::quiet_NaN(), 2};
  float advantages[3];
  const morlfast::MatrixView view{rewards, Dtype::float32, 1, 0};
  const auto call = [&](const AdvantageRules& rules, int64_t size) {
    morlfast::group_advantages(view, {}, 1, Groups::contiguous(3, size), rules, nullptr, {}, 0, advantages);
  };
  AdvantageRules rules;
  rules.nan = NanRewards::raise;
  expect_refused([&] { call(rules, 3); }, "row 1");
  rules.nan = NanRewards::skip;
  rules.singleton = Singleton::raise;
  expect_refused([&] { call(rules, 1); }, "singleton");
  rules.singleton = Singleton::zero;
  rules.whiten = Whiten::tokens;
  expect_refused([&] { call(rules, 3); }, "lengths");
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
