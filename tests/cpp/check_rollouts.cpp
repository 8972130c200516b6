// select_rollouts against every subset of small groups, and every split of larger ones.
#include <algorithm>
#include <bit>
#include <map>
#include <numeric>

#include "driver.hpp"
#include "morlfast/rollouts.hpp"

namespace driver {
namespace {

using morlfast::Dtype;
using morlfast::Groups;
using morlfast::Selection;

struct Rollout {
  double reward;
  int64_t row;
};

/// Times the number of rewards squared; infinities as the largest double, and the rewards divided by 2^shift.
double spread(const std::vector<double>& rewards, int shift) {
  const auto scaled = [&](double x) {
    constexpr double kLargest = std::numeric_limits<double>::max();
    return std::ldexp(std::clamp(x, -kLargest, kLargest), -shift);
  };
  double mean = 0, squares = 0;
  for (const double x : rewards) mean += scaled(x) / static_cast<double>(rewards.size());
  for (const double x : rewards) squares += (scaled(x) - mean) * (scaled(x) - mean);
  return squares * static_cast<double>(rewards.size());
}

/// The largest spread that `size` of the ascending rewards have, and how many come from the top, tried in the order
/// size, 0, 1, ...
std::pair<double, int64_t> best_split(const std::vector<double>& rewards, int64_t size, int shift) {
  std::pair<double, int64_t> best{-1, 0};
  for (int64_t turn = 0; turn <= size; ++turn) {
    const int64_t top = turn == 0 ? size : turn - 1;
    std::vector<double> split(rewards.begin(), rewards.begin() + (size - top));
    split.insert(split.end(), rewards.end() - top, rewards.end());
    const double own = spread(split, shift);
    if (own > best.first) best = {own, top};
  }
  return best;
}

double best_subset(const std::vector<double>& rewards, int64_t size, int shift) {
  double best = 0;
  for (uint32_t subset = 0; subset < uint32_t{1} << rewards.size(); ++subset) {
    if (std::popcount(subset) != size) continue;
    std::vector<double> chosen;
    for (std::size_t i = 0; i < rewards.size(); ++i)
      if (subset >> i & 1) chosen.push_back(rewards[i]);
    best = std::max(best, spread(chosen, shift));
  }
  return best;
}

/// Of equal rewards the lowest rows, for rollouts in ascending rows.
void expect_lowest_rows(const std::vector<Rollout>& scored, const bool* selected) {
  std::map<double, bool> passed;  // -0.0 == 0.0
  for (const Rollout& one : scored) {
    bool& over = passed[one.reward];
    expect(!(over && selected[one.row]), "a lower row of the same reward is not selected");
    over |= !selected[one.row];
  }
}

void check_group(const std::vector<Rollout>& scored, int64_t k, Selection selection, const double* uniform, bool whole,
                 const bool* selected) {
  const auto n = static_cast<int64_t>(scored.size());
  const int64_t size = std::min(k, n);
  std::vector<Rollout> ascending = scored;
  std::stable_sort(ascending.begin(), ascending.end(),
                   [](const Rollout& a, const Rollout& b) { return a.reward < b.reward; });
  std::vector<double> rewards, chosen;
  bool infinite = false;
  for (const Rollout& one : ascending) {
    rewards.push_back(one.reward);
    infinite |= std::isinf(one.reward);
    if (selected[one.row]) chosen.push_back(one.reward);
  }
  expect(static_cast<int64_t>(chosen.size()) == size, "not k are selected");
  if (size == 0) return;
  if (selection == Selection::stratified) {
    int64_t next = 0;
    for (int64_t j = 0; j < size; ++j) {
      const double u = uniform ? uniform[j] : 0.5;
      const auto place =
          static_cast<int64_t>((static_cast<double>(j) + u) * static_cast<double>(n) / static_cast<double>(size));
      next = std::max(next, std::min(place, n - size + j));  // j + u may round to j + 1
      expect(selected[ascending[next].row], "stratum " + std::to_string(j) + " is not where it was drawn");
      ++next;
    }
    return;
  }
  expect_lowest_rows(scored, selected);
  int64_t top = selection == Selection::top ? size : 0;
  if (selection == Selection::max_variance) {
    const int shift = infinite ? 1000 : 0;
    const double reached = spread(chosen, shift);
    const double most = n <= 10 ? best_subset(rewards, size, shift) : best_split(rewards, size, shift).first;
    expect(reached >= most * (1 - 1e-9), "variance " + std::to_string(reached) + " of " + std::to_string(most));
    if (!whole) return;
    top = best_split(rewards, size, 0).second;  // nothing is rounded: the first of equal splits
  }
  std::vector<double> expected(rewards.begin(), rewards.begin() + (size - top));
  expected.insert(expected.end(), rewards.end() - top, rewards.end());
  expect(chosen == expected, "not the ends of the sorted rewards");
}

}  // namespace

void check_select_rollouts(Random& random) {
  const bool large = random.chance(0.05);  // sorted by digits
  const int64_t size = large ? random.integer(600, 1500) : random.integer(1, 10);
  const int64_t rows = size * random.integer(0, large ? 2 : 6);
  Array rewards(random, static_cast<Dtype>(random.integer(0, 9)), {rows});
  Numbers numbers = Numbers::any(random, true, true);
  // Means of powers of two are exact, so that equal spreads are equal.
  const bool whole = numbers.grid > 0 && numbers.special == 0;
  rewards.fill(random, numbers);
  const int64_t k = random.pick<int64_t>({0, 1, 2, 4, 8, random.integer(0, large ? 40 : 12)});
  const auto selection = static_cast<Selection>(random.integer(0, 3));
  std::vector<double> uniform(rows);
  for (double& u : uniform) u = random.chance(0.2) ? random.pick({0.0, 1 - 0x1p-53}) : random.uniform();
  const double* draws = random.chance(0.7) ? uniform.data() : nullptr;

  Array ids(random, Dtype::int64, {rows});
  for (int64_t i = 0; i < rows; ++i) ids.set(i, {}, static_cast<double>(random.integer(-1, 2)));
  std::vector<int64_t> offsets{0};
  while (offsets.back() < rows) offsets.push_back(std::min(rows, offsets.back() + random.integer(0, size + 2)));
  const int kind = static_cast<int>(random.integer(0, 2));
  const Groups groups = kind == 0 && rows > 0 ? Groups::contiguous(rows, size)
                        : kind == 1 ? Groups::by_id(ids.as<int64_t>(), ids.stride(0), rows)
                                    : Groups::by_offsets(offsets.data(), static_cast<int64_t>(offsets.size()) - 1);
  const std::unique_ptr<bool[]> selected(new bool[rows]);
  morlfast::select_rollouts(rewards.matrix(), k, selection, draws, groups, selected.get());
  int64_t marked = 0;
  for (int64_t group = 0; group < groups.count(); ++group) {
    std::vector<Rollout> scored;
    for (int64_t place = groups.begin(group); place < groups.end(group); ++place) {
      const int64_t row = groups.row(place);
      if (!std::isnan(rewards.at(row, {}))) scored.push_back({rewards.at(row, {}), row});
    }
    marked += std::min(k, static_cast<int64_t>(scored.size()));
    check_group(scored, k, selection, draws ? draws + groups.begin(group) : nullptr,
                whole && std::has_single_bit(static_cast<uint64_t>(std::min(k, static_cast<int64_t>(scored.size())))),
                selected.get());
  }
  expect(std::count(selected.get(), selected.get() + rows, true) == marked, "a rollout that is not scored is selected");
}

}  // namespace driver
