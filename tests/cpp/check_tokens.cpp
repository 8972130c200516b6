// select_tokens against a stable sort, and against its own parts for tokens that are spread over ranks.
#include <algorithm>
#include <map>
#include <numeric>

#include "driver.hpp"
#include "morlfast/tokens.hpp"

namespace driver {
namespace {

using morlfast::Dtype;
using morlfast::Groups;
using morlfast::MatrixView;
using morlfast::TokenBudget;

struct Token {
  double score;
  int64_t flat;
};

/// Rows of tokens with ties, infinities, NaN and masks of any type.
struct Rows {
  int64_t size, rows, columns;  // rows are a multiple of size
  bool one_a_row;
  Array advantages, entropies, mask;

  explicit Rows(Random& random) : Rows(random, random.chance(0.03)) {}

  bool wide() const { return advantages.dtype() == Dtype::float64 || entropies.dtype() == Dtype::float64; }

  /// NaN where the token is not valid.
  double score(int64_t i, int64_t j) const {
    const double a = std::fabs(one_a_row ? advantages.at(i, {}) : advantages.at(i, {j})), h = entropies.at(i, {j});
    if (mask.at(i, {j}) == 0) return kNan;
    return wide() ? a * h : static_cast<double>(static_cast<float>(a) * static_cast<float>(h));
  }

 private:
  Rows(Random& random, bool large)  // large: beyond what is collected whole, in several pieces a row
      : size(random.integer(1, 4)),
        rows((large ? random.integer(1, 3) : random.integer(0, 5)) * size),
        columns(large ? random.integer(4000, 9000) : random.integer(0, random.pick<int64_t>({1, 40, 300}))),
        one_a_row(random.chance(0.5)),
        advantages(random, floating(random), one_a_row ? std::vector<int64_t>{rows} : std::vector{rows, columns}),
        entropies(random, floating(random), {rows, columns}),
        mask(random, static_cast<Dtype>(random.integer(0, 9)), {rows, columns}) {
    advantages.fill(random, Numbers::any(random, true, true));
    entropies.fill(random, Numbers::any(random, true, true));
    mask.fill(random, Numbers{random.pick<int64_t>({1, 3}), random.pick({0.0, 0.3}), false, false});
  }

  static Dtype floating(Random& random) {
    return random.pick({Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16});
  }
};

double any_ratio(Random& random) {
  return random.pick({0.0, 1.0, 0.1, 0.2, 1.0 / 3, 1e-9, 1 - 1e-16, random.uniform()});
}

/// The interpolated (1 - ratio)-quantile of descending scores as torch.quantile computes it.
template <class Score>
double quantile_of(const std::vector<Token>& tokens, double ratio) {
  const auto n = static_cast<int64_t>(tokens.size());
  const Score rank = static_cast<Score>(1 - ratio) * static_cast<Score>(n - 1);
  const auto at = [&](Score place) { return static_cast<Score>(tokens[n - 1 - static_cast<int64_t>(place)].score); };
  const Score low = at(std::floor(rank)), high = at(std::ceil(rank)), weight = rank - std::floor(rank);
  return weight < Score{0.5} ? std::fma(weight, high - low, low) : std::fma(weight - 1, high - low, high);
}

}  // namespace

void check_select_tokens(Random& random) {
  const Rows r(random);
  const TokenBudget budget{any_ratio(random), random.pick<int64_t>({0, 0, 1, 7, 1000}), false};
  const TokenBudget quantile{budget.ratio, 0, true};
  const int scope = static_cast<int>(random.integer(0, 4));  // batch, sizes, ids, offsets, sequences
  Array ids(random, Dtype::int64, {r.rows});
  for (int64_t i = 0; i < r.rows; ++i) ids.set(i, {}, static_cast<double>(random.integer(-2, 2)));
  std::vector<int64_t> offsets{0};
  while (offsets.back() < r.rows) offsets.push_back(std::min(r.rows, offsets.back() + random.integer(0, 3)));
  const auto bounds = static_cast<int64_t>(offsets.size()) - 1;
  const Groups groups = r.rows == 0 || scope == 0 ? Groups::contiguous(r.rows, std::max<int64_t>(r.rows, 1))
                        : scope == 1              ? Groups::contiguous(r.rows, r.size)
                        : scope == 2              ? Groups::by_id(ids.as<int64_t>(), ids.stride(0), r.rows)
                        : scope == 3              ? Groups::by_offsets(offsets.data(), bounds)
                                                  : Groups::contiguous(r.rows, 1);
  const int64_t count = r.rows * r.columns;
  std::vector<char> largest(count), above(count);
  for (int64_t group = 0; group < groups.count(); ++group) {
    std::vector<Token> tokens;
    for (int64_t place = groups.begin(group); place < groups.end(group); ++place)
      for (int64_t i = groups.row(place), j = 0; j < r.columns; ++j)
        if (const double score = r.score(i, j); !std::isnan(score)) tokens.push_back({score, i * r.columns + j});
    if (tokens.empty()) continue;
    std::stable_sort(tokens.begin(), tokens.end(), [](const Token& x, const Token& y) { return x.score > y.score; });
    const auto valid = static_cast<double>(tokens.size());
    const double share = std::ceil(budget.ratio * valid * (1 - std::ldexp(1.0, -50)));
    const double kept = std::min(valid, std::max(share, static_cast<double>(budget.at_least)));
    for (int64_t t = 0; t < static_cast<int64_t>(kept); ++t) largest[tokens[t].flat] = 1;
    const double threshold =
        r.wide() ? quantile_of<double>(tokens, budget.ratio) : quantile_of<float>(tokens, budget.ratio);
    for (const Token& token : tokens) above[token.flat] = token.score >= threshold;
  }
  const std::unique_ptr<bool[]> keep(new bool[count]);
  const auto check = [&](const TokenBudget& by, const std::vector<char>& expected) {
    morlfast::select_tokens(r.advantages.matrix(), r.entropies.matrix(), r.mask.matrix(), r.columns, by, groups,
                            keep.get());
    for (int64_t t = 0; t < count; ++t)
      expect(keep[t] == (expected[t] != 0), "token " + std::to_string(t) + (expected[t] ? " is not kept" : " is kept"));
  };
  check(budget, largest);
  check(quantile, above);
}

void check_token_histogram(Random& random) {
  const Rows r(random);
  const double ratio = any_ratio(random);
  const int64_t count = random.integer(1, 4), levels = r.wide() ? 8 : 4;
  std::vector<int64_t> segments(r.rows);
  for (int64_t& segment : segments) segment = random.integer(0, count - 1);
  std::vector<int64_t> ranks{0};  // rows of each
  while (ranks.back() < r.rows) ranks.push_back(std::min(r.rows, ranks.back() + random.integer(0, r.rows)));
  const std::size_t last = ranks.size() - 1;
  const auto from = [](const Array& array, int64_t row) {
    MatrixView view = array.matrix();
    if (view.data)  // not without elements
      view.data = static_cast<const std::byte*>(view.data) +
                  row * view.row_stride * static_cast<int64_t>(size_of(array.dtype()));
    return view;
  };
  // Each segment's threshold, digit by digit, from histograms of all ranks.
  std::vector<int64_t> keys(count), wanted(count), own(count * morlfast::kTokenBins);
  for (int level = 0; level < levels; ++level) {
    std::vector<int64_t> all(own.size());
    for (std::size_t rank = 0; rank < last; ++rank) {
      const int64_t row = ranks[rank];
      morlfast::token_histogram(from(r.advantages, row), from(r.entropies, row), from(r.mask, row),
                                ranks[rank + 1] - row, r.columns, segments.data() + row, keys.data(), count, level,
                                own.data());
      std::transform(all.begin(), all.end(), own.begin(), all.begin(), std::plus<>());
    }
    for (int64_t s = 0; s < count; ++s) {
      const int64_t* bins = &all[s * morlfast::kTokenBins];
      if (level == 0) {
        const auto valid = static_cast<double>(std::accumulate(bins, bins + morlfast::kTokenBins, int64_t{0}));
        wanted[s] = static_cast<int64_t>(std::ceil(ratio * valid * (1 - std::ldexp(1.0, -50))));
      }
      int64_t digit = wanted[s] > 0 ? morlfast::kTokenBins - 1 : 0;
      while (wanted[s] > 0 && wanted[s] > bins[digit]) wanted[s] -= bins[digit--];
      keys[s] = static_cast<int64_t>(static_cast<uint64_t>(keys[s]) << 8 | static_cast<uint64_t>(digit));
    }
  }
  for (int64_t s = 0; s < count; ++s)
    if (wanted[s] == 0) keys[s] = -1;  // no token is above, or there is none

  const std::unique_ptr<bool[]> keep(new bool[r.rows * r.columns]), expected(new bool[r.rows * r.columns]);
  for (std::size_t rank = 0; rank < last; ++rank) {
    const int64_t row = ranks[rank];
    bool* mine = keep.get() + row * r.columns;
    const auto above = [&](const std::vector<int64_t>& ties) {
      morlfast::select_tokens_above(from(r.advantages, row), from(r.entropies, row), from(r.mask, row),
                                    ranks[rank + 1] - row, r.columns, segments.data() + row, keys.data(), ties.data(),
                                    count, mine);
      std::vector<int64_t> kept(count);
      for (int64_t t = 0; t < (ranks[rank + 1] - row) * r.columns; ++t) kept[segments[row + t / r.columns]] += mine[t];
      return kept;
    };
    const std::vector<int64_t> without = above(std::vector<int64_t>(count)), with = above(wanted);
    for (int64_t s = 0; s < count; ++s) wanted[s] -= with[s] - without[s];
  }
  morlfast::select_tokens(r.advantages.matrix(), r.entropies.matrix(), r.mask.matrix(), r.columns, {ratio, 0, false},
                          Groups::by_id(segments.data(), 1, r.rows), expected.get());
  expect(std::equal(keep.get(), keep.get() + r.rows * r.columns, expected.get()), "ranks keep other tokens");

  if (r.rows == 0) return;
  segments[random.integer(0, r.rows - 1)] = random.pick<int64_t>({-1, count});
  const auto histogram = [&](int level) {
    morlfast::token_histogram(r.advantages.matrix(), r.entropies.matrix(), r.mask.matrix(), r.rows, r.columns,
                              segments.data(), keys.data(), count, level, own.data());
  };
  expect_refused([&] { histogram(0); }, "segments: expected values from 0 to");
  std::fill(segments.begin(), segments.end(), 0);
  expect_refused([&] { histogram(static_cast<int>(levels)); }, "level: expected");
}

}  // namespace driver
