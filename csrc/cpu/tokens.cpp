#include "morlfast/tokens.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "read_row.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

constexpr int64_t kPiece = kCutKeys;      // tokens whose keys are in the cache at a time
constexpr int64_t kParts = 64;            // runs of pieces that threads share out
constexpr int64_t kSampledTokens = 4096;  // a scope of fewer is collected whole
constexpr int64_t kKeptTokens = 1 << 16;  // keys that fit the second-level cache

// Keys are unsigned with the order of the scores; 0 is left for tokens that are not valid (SimdTable::score_keys).
template <class Score>
using KeyOf = std::conditional_t<std::is_same_v<Score, float>, uint32_t, uint64_t>;

void score_keys(const float* advantage, const float* entropy, const uint8_t* valid, int64_t count, uint32_t* keys) {
  simd().score_keys_32(advantage, entropy, valid, count, keys);
}
void score_keys(const double* advantage, const double* entropy, const uint8_t* valid, int64_t count, uint64_t* keys) {
  simd().score_keys_64(advantage, entropy, valid, count, keys);
}

int64_t cut_keys(const uint32_t* keys, int64_t count, uint32_t low, uint32_t high, bool* keep, int32_t* inside,
                 int64_t* counts) {
  return simd().cut_keys_32(keys, count, low, high, reinterpret_cast<uint8_t*>(keep), inside, counts);
}
int64_t cut_keys(const uint64_t* keys, int64_t count, uint64_t low, uint64_t high, bool* keep, int32_t* inside,
                 int64_t* counts) {
  return simd().cut_keys_64(keys, count, low, high, reinterpret_cast<uint8_t*>(keep), inside, counts);
}

template <class Key>
constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);

template <class Score>
KeyOf<Score> key_of(Score score) {
  const auto bits = std::bit_cast<KeyOf<Score>>(score + Score{0});
  return bits & kSign<KeyOf<Score>> ? ~bits : bits | kSign<KeyOf<Score>>;
}

template <class Score>
Score score_of(KeyOf<Score> key) {
  return std::bit_cast<Score>(key & kSign<KeyOf<Score>> ? key ^ kSign<KeyOf<Score>> : ~key);
}

/// Advantages, entropies and mask of all rows.
struct Tokens {
  const MatrixView &advantages, &entropies, &mask;
  int64_t columns;
};

/// The tokens of one group of rows, cut into pieces that each lie in one row, and these dealt to `parts` fixed runs, so
/// that threads share nothing and the result does not depend on them.
template <class Score>
class Scope {
 public:
  using Key = KeyOf<Score>;

  Scope(const Tokens& tokens, const Groups& groups, int64_t group, bool parallel)
      : tokens_(tokens),
        groups_(groups),
        group_(group),
        pieces_a_row_((tokens.columns + kPiece - 1) / kPiece),
        parallel_(parallel) {}

  int64_t tokens() const { return (groups_.end(group_) - groups_.begin(group_)) * tokens_.columns; }
  int64_t parts() const { return parallel_ ? std::min(pieces(), kParts) : 1; }
  bool parallel() const { return parallel_; }
  bool kept() const { return kept_; }

  /// visit(part, keys, their number, flat) for every piece, flat(j) = row * columns + column of key j.
  template <class Visit>
  void operator()(const Visit& visit) const {
    parallel_for(parts(), parallel_, [&](int64_t part) {
      Key read[kPiece];
      for (int64_t p = pieces() * part / parts(); p < pieces() * (part + 1) / parts(); ++p) {
        const int64_t row = groups_.row(groups_.begin(group_) + p / pieces_a_row_);
        const int64_t column = p % pieces_a_row_ * kPiece;
        const int64_t count = std::min(kPiece, tokens_.columns - column);
        const Key* keys = kept_ ? kept_ + p / pieces_a_row_ * tokens_.columns + column : read;
        if (!kept_) read_keys(row, column, count, read);
        visit(part, keys, count, [flat = row * tokens_.columns + column](int64_t j) { return flat + j; });
      }
    });
  }

  /// From now on keys are read from `keys`, if that fits the second-level cache.
  void keep_keys(std::vector<Key>& keys) {
    if (parallel_ || tokens() > kKeptTokens) return;
    keys.resize(tokens());
    int64_t done = 0;
    (*this)([&](int64_t, const Key* own, int64_t count, const auto&) {
      std::copy_n(own, count, &keys[done]);
      done += count;
    });
    kept_ = keys.data();
  }

  /// The valid keys among `draws` tokens, one somewhere in each of as many equal stretches.
  void sample(int64_t draws, std::vector<Key>& sampled) const {
    sampled.clear();
    Key keys[kPiece];
    Score advantage[kPiece], entropy[kPiece];
    uint8_t valid[kPiece];
    const double stretch = static_cast<double>(tokens()) / static_cast<double>(draws);
    uint64_t random = 0;
    for (int64_t first = 0; first < draws; first += kPiece) {
      const int64_t count = std::min(kPiece, draws - first);
      for (int64_t i = 0; i < count; ++i) {
        random += 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio: spread evenly, and the same in every call
        const double at = static_cast<double>(first + i) + static_cast<double>(random >> 11) * 0x1p-53;
        const int64_t token = std::min(static_cast<int64_t>(at * stretch), tokens() - 1);
        if (kept_) {
          keys[i] = kept_[token];
          continue;
        }
        const int64_t row = groups_.row(groups_.begin(group_) + token / tokens_.columns);
        const int64_t column = token % tokens_.columns;
        advantage[i] = *read_row(tokens_.advantages, row, column, 1, &advantage[i]);
        entropy[i] = *read_row(tokens_.entropies, row, column, 1, &entropy[i]);
        valid[i] = *read_mask(tokens_.mask, row, column, 1, &valid[i]);
      }
      if (!kept_) score_keys(advantage, entropy, valid, count, keys);
      std::copy_if(keys, keys + count, std::back_inserter(sampled), [](Key key) { return key != 0; });
    }
  }

 private:
  int64_t pieces() const { return (groups_.end(group_) - groups_.begin(group_)) * pieces_a_row_; }

  void read_keys(int64_t row, int64_t column, int64_t count, Key* keys) const {
    Score advantage[kPiece], entropy[kPiece];
    uint8_t valid[kPiece];
    const uint8_t* own = read_mask(tokens_.mask, row, column, count, valid);
    if (simd().count_flags(own, count) == 0)
      std::fill_n(keys, count, Key{0});
    else
      score_keys(read_row(tokens_.advantages, row, column, count, advantage),
                 read_row(tokens_.entropies, row, column, count, entropy), own, count, keys);
  }

  const Tokens& tokens_;
  const Groups& groups_;
  int64_t group_, pieces_a_row_;
  bool parallel_;
  const Key* kept_ = nullptr;
};

template <class Key>
struct Found {
  Key key;
  int64_t rank;                // of the one looked for among the keys equal to it, from 1
  std::vector<int64_t> equal;  // keys equal to it in each part
};

/// The rank-th largest (from 1) of the keys from low to high, digit by digit: each_keys as Scope, which visits about
/// `visited` keys; low > 0.
template <class Key, class EachKeys>
Found<Key> find_largest(const EachKeys& each_keys, int64_t parts, int64_t visited, Key low, Key high, int64_t rank) {
  // Digits that count a few keys a bin.
  const int digit_bits =
      std::clamp(static_cast<int>(std::bit_width(static_cast<uint64_t>(visited / parts))) - 1, 6, 11);
  std::vector<int64_t> counts;
  for (;;) {
    const int shift = std::max(0, static_cast<int>(std::bit_width(static_cast<Key>(high - low))) - digit_bits);
    const int64_t bins = static_cast<int64_t>((high - low) >> shift) + 1;
    counts.assign((parts + 1) * bins, 0);  // of each part, and of all
    each_keys([&](int64_t part, const Key* keys, int64_t count, const auto&) {
      int64_t* own = &counts[part * bins];
      for (int64_t j = 0; j < count; ++j) {
        const Key above = keys[j] - low;  // of a key below low beyond high
        if (above <= high - low) ++own[above >> shift];
      }
    });
    int64_t* all = &counts[parts * bins];
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t bin = 0; bin < bins; ++bin) all[bin] += counts[part * bins + bin];
    int64_t bin = bins - 1;
    while (rank > all[bin]) rank -= all[bin--];
    low += static_cast<Key>(bin) << shift;
    high = low + std::min<Key>(high - low, (Key{1} << shift) - 1);
    if (shift > 0) continue;
    std::vector<int64_t> equal(parts);
    for (int64_t part = 0; part < parts; ++part) equal[part] = counts[part * bins + bin];
    return {low, rank, std::move(equal)};
  }
}

/// Of `ties` tokens to keep how many lie in each part: the first ones.
std::vector<int64_t> deal_ties(int64_t ties, const std::vector<int64_t>& equal) {
  std::vector<int64_t> dealt(equal.size());
  for (std::size_t part = 0; part < equal.size(); ++part) {
    dealt[part] = std::min(ties, equal[part]);
    ties -= dealt[part];
  }
  return dealt;
}

/// Keeps the keys above the threshold, and in each part the first ties[part] of those equal to it.
template <class Key, class EachKeys>
void keep_above(const EachKeys& each_keys, Key threshold, std::vector<int64_t> ties, bool* keep) {
  each_keys([&](int64_t part, const Key* keys, int64_t count, const auto& flat) {
    const int64_t left = ties[part];
    if (left == 0) {
      for (int64_t j = 0; j < count; ++j) keep[flat(j)] = keys[j] > threshold;
      return;
    }
    int64_t met = 0;
    if (left >= count) {
      for (int64_t j = 0; j < count; ++j) {
        keep[flat(j)] = keys[j] >= threshold;
        met += keys[j] == threshold;
      }
    } else {
      for (int64_t j = 0; j < count; ++j) {
        const bool tie = keys[j] == threshold;
        keep[flat(j)] = keys[j] > threshold || (tie && met < left);
        met += tie;
      }
    }
    ties[part] = std::max<int64_t>(0, left - met);
  });
}

/// Places from the largest of v valid scores (from 1) that decide: the last one kept, or the two that a quantile lies
/// between, with the weight of the second one from the top. 0: none is kept.
template <class Score>
struct Places {
  int64_t first = 0, last = 0;
  Score weight = 0;  // of `first`
  bool quantile;

  Places(const TokenBudget& budget, int64_t valid) : quantile(budget.quantile) {
    if (!budget.quantile) {
      // The factor takes back the rounding of ratio itself: 0.1 of 30 is 3, not 4.
      const double share = std::ceil(budget.ratio * static_cast<double>(valid) * (1 - 0x1p-50));
      first = last = std::min(valid, std::max(static_cast<int64_t>(share), budget.at_least));
    } else if (valid > 0) {
      // As torch.quantile: in the scores' own type, beyond the integers that float32 holds in float64.
      const bool narrow = std::is_same_v<Score, float> && valid <= int64_t{1} << 24;
      const double q = 1 - budget.ratio, of = static_cast<double>(valid - 1);
      const double rank = narrow ? static_cast<double>(static_cast<float>(q) * static_cast<float>(of)) : q * of;
      last = valid - static_cast<int64_t>(std::floor(rank));
      first = valid - static_cast<int64_t>(std::ceil(rank));
      weight = static_cast<Score>(rank - std::floor(rank));
    }
  }

  /// torch.lerp, whose kernels contract.
  Score between(Score lower, Score upper) const {
    const Score step = upper - lower;
    return weight < Score{0.5} ? std::fma(weight, step, lower) : std::fma(weight - 1, step, upper);
  }
};

template <class Key>
struct Bracket {
  Key low = 1, high = ~Key{0};
  bool collect = true;  // its keys are few
};

/// Where the threshold lies, all but surely.
template <class Score>
Bracket<KeyOf<Score>> bracket_of(const Scope<Score>& scope, const TokenBudget& budget,
                                 std::vector<KeyOf<Score>>& sample) {
  using Key = KeyOf<Score>;
  if (scope.tokens() < kSampledTokens) return {};
  // What is drawn, from the cache or from memory, and what is collected then, tokens / sqrt(draws), cost about the
  // same.
  const double side = std::cbrt(static_cast<double>(scope.tokens()));
  const auto draws = static_cast<int64_t>(side * side * (scope.kept() ? 1.0 : 0.25));
  scope.sample(draws, sample);
  const auto drawn = static_cast<double>(sample.size());
  const auto valid = static_cast<int64_t>(drawn / static_cast<double>(draws) * static_cast<double>(scope.tokens()));
  if (valid == 0) return {1, ~Key{0}, false};
  const double share = static_cast<double>(Places<Score>(budget, valid).last) / static_cast<double>(valid);
  const double margin = 3.5 * std::sqrt(drawn * share * (1 - share)) + 3;  // of a binomial distribution
  const auto each_keys = [&](const auto& visit) {
    visit(0, sample.data(), static_cast<int64_t>(sample.size()), [](int64_t j) { return j; });
  };
  const auto key_at = [&](double rank) {
    return find_largest<Key>(each_keys, 1, draws, 1, ~Key{0}, static_cast<int64_t>(rank)).key;
  };
  Bracket<Key> bracket;
  const double first = std::floor(drawn * share - margin), last = std::ceil(drawn * share + margin);
  if (first >= 1) bracket.high = key_at(first);
  if (last <= drawn) bracket.low = key_at(last);
  const auto inside =
      std::count_if(sample.begin(), sample.end(), [&](Key key) { return key >= bracket.low && key <= bracket.high; });
  bracket.collect = 3 * inside <= draws;
  return bracket;
}

/// Keys above it are kept, and in each part the first ties[part] of those equal to it.
template <class Key>
struct Threshold {
  Key key;
  std::vector<int64_t> ties;
};

/// The threshold for places that lie in the bracket, above which there are `above` keys.
template <class Score, class EachKeys>
Threshold<KeyOf<Score>> threshold_of(const EachKeys& each_keys, int64_t parts, int64_t visited,
                                     const Bracket<KeyOf<Score>>& bracket, int64_t above, const Places<Score>& places) {
  using Key = KeyOf<Score>;
  const int64_t rank = places.first - above;
  Found<Key> found = find_largest(each_keys, parts, visited, bracket.low, bracket.high, rank);
  if (!places.quantile) return {found.key, deal_ties(found.rank, found.equal)};
  Key lower = found.key;
  if (places.last > places.first && found.rank == std::accumulate(found.equal.begin(), found.equal.end(), int64_t{0})) {
    std::vector<Key> next(parts);
    each_keys([&](int64_t part, const Key* keys, int64_t count, const auto&) {
      for (int64_t j = 0; j < count; ++j) next[part] = std::max(next[part], keys[j] < found.key ? keys[j] : Key{0});
    });
    lower = *std::max_element(next.begin(), next.end());
  }
  const Score quantile = places.between(score_of<Score>(lower), score_of<Score>(found.key));
  if (quantile != quantile) return {~Key{0}, std::vector<int64_t>(parts)};
  return {key_of(quantile), std::vector<int64_t>(parts, std::numeric_limits<int64_t>::max())};
}

/// What one pass over a part of a scope collects.
template <class Key>
struct Cut {
  int64_t above = 0, inside = 0, valid = 0;
  std::vector<Key> keys;  // in the bracket
  std::vector<int64_t> flat;

  void clear() {
    above = inside = valid = 0;
    keys.clear();
    flat.clear();
  }
};

template <class Key>
struct ScopeBuffers {
  std::vector<Key> keys, sample;
  std::vector<Cut<Key>> cuts;

  bool worth_keeping() const {
    std::size_t capacity = keys.capacity() + sample.capacity();
    for (const Cut<Key>& cut : cuts) capacity += cut.keys.capacity() + cut.flat.capacity();
    return capacity <= std::size_t{1} << 20;
  }
};

template <class Score>
void select_in_scope(Scope<Score> scope, const TokenBudget& budget, bool* keep) {
  using Key = KeyOf<Score>;
  const Workspace<ScopeBuffers<Key>> buffers(true);
  if (scope.tokens() >= kSampledTokens) scope.keep_keys(buffers->keys);
  Bracket<Key> bracket = bracket_of(scope, budget, buffers->sample);
  std::vector<Cut<Key>>& cuts = buffers->cuts;
  cuts.resize(std::max<std::size_t>(cuts.size(), scope.parts()));
  for (Cut<Key>& cut : cuts) cut.clear();
  scope([&](int64_t part, const Key* keys, int64_t count, const auto& flat) {
    int32_t inside[kPiece];
    int64_t counts[2] = {};
    Cut<Key>& cut = cuts[part];
    const int64_t found = cut_keys(keys, count, bracket.low, bracket.high, keep + flat(0), inside, counts);
    cut.above += counts[0];
    cut.valid += counts[1];
    cut.inside += found;
    if (!bracket.collect) return;
    const std::size_t before = cut.keys.size();
    cut.keys.resize(before + found);
    cut.flat.resize(before + found);
    for (int64_t i = 0; i < found; ++i) cut.keys[before + i] = keys[inside[i]];
    for (int64_t i = 0; i < found; ++i) cut.flat[before + i] = flat(inside[i]);
  });
  int64_t above = 0, inside = 0, valid = 0;
  for (const Cut<Key>& cut : cuts) above += cut.above, inside += cut.inside, valid += cut.valid;
  const Places<Score> places(budget, valid);
  if (above >= places.first || above + inside < places.last) {
    bracket = {1, ~Key{0}, false};
    above = 0;
  }
  const auto collected = [&](const auto& visit) {
    parallel_for(scope.parts(), scope.parallel() && inside >= 32768, [&](int64_t part) {
      const Cut<Key>& cut = cuts[part];
      visit(part, cut.keys.data(), static_cast<int64_t>(cut.keys.size()), [&](int64_t j) { return cut.flat[j]; });
    });
  };
  Threshold<Key> threshold{~Key{0}, std::vector<int64_t>(scope.parts())};
  if (places.first > 0)
    threshold = bracket.collect ? threshold_of(collected, scope.parts(), inside, bracket, above, places)
                                : threshold_of(scope, scope.parts(), scope.tokens(), bracket, above, places);
  if (bracket.collect && threshold.key >= bracket.low && threshold.key <= bracket.high)
    keep_above(collected, threshold.key, std::move(threshold.ties), keep);
  else
    keep_above(scope, threshold.key, std::move(threshold.ties), keep);
}

/// body(Scope of each group); threads share out the groups, or the pieces of one where groups are few.
template <class Score, class Body>
void each_scope(const Tokens& tokens, const Groups& groups, const Body& body) {
  const bool large = groups.rows() * tokens.columns >= 32768;
  const bool by_scope = groups.count() >= 4;
  parallel_for(groups.count(), large && by_scope,
               [&](int64_t group) { body(group, Scope<Score>(tokens, groups, group, large && !by_scope)); });
}

template <class F>
decltype(auto) with_score(const Tokens& tokens, F&& f) {
  if (tokens.advantages.dtype == Dtype::float64 || tokens.entropies.dtype == Dtype::float64) return f(double{});
  return f(float{});
}

Groups groups_of_segments(const int64_t* segments, int64_t rows, int64_t count) {
  for (int64_t i = 0; i < rows; ++i)
    if (segments[i] < 0 || segments[i] >= count)
      throw std::invalid_argument("segments: expected values from 0 to " + std::to_string(count - 1) + ", got " +
                                  std::to_string(segments[i]));
  return Groups::by_id(segments, 1, rows);
}

}  // namespace

void select_tokens(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t columns,
                   const TokenBudget& budget, const Groups& groups, bool* keep) {
  if (columns == 0) return;
  // One scope over rows that lie one behind the other is one long row.
  const auto is_flat = [&](const MatrixView& view) {
    return columns == 1 ? view.row_stride == 1 : view.column_stride == 1 && view.row_stride == columns;
  };
  if (groups.count() == 1 && groups.rows() > 1 && is_flat(advantages) && is_flat(entropies) && is_flat(mask)) {
    const auto flat = [](MatrixView view) {
      view.column_stride = 1;
      return view;
    };
    return select_tokens(flat(advantages), flat(entropies), flat(mask), groups.rows() * columns, budget,
                         Groups::contiguous(1, 1), keep);
  }
  const Tokens tokens{advantages, entropies, mask, columns};
  with_score(tokens, [&](auto zero) {
    using Score = decltype(zero);
    each_scope<Score>(tokens, groups,
                      [&](int64_t, const Scope<Score>& scope) { select_in_scope(scope, budget, keep); });
  });
}

void token_histogram(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t rows,
                     int64_t columns, const int64_t* segments, const int64_t* prefixes, int64_t count, int level,
                     int64_t* histogram) {
  const Groups groups = groups_of_segments(segments, rows, count);
  std::fill_n(histogram, count * kTokenBins, 0);
  const Tokens tokens{advantages, entropies, mask, columns};
  with_score(tokens, [&](auto zero) {
    using Score = decltype(zero);
    using Key = KeyOf<Score>;
    constexpr int kLevels = sizeof(Key);
    if (level < 0 || level >= kLevels)
      throw std::invalid_argument("level: expected a value from 0 to " + std::to_string(kLevels - 1) + ", got " +
                                  std::to_string(level));
    const int shift = 8 * (kLevels - 1 - level);
    each_scope<Score>(tokens, groups, [&](int64_t group, const Scope<Score>& scope) {
      const int64_t segment = segments[groups.row(groups.begin(group))];
      const auto prefix = static_cast<Key>(prefixes[segment]);
      std::vector<std::array<int64_t, kTokenBins>> counts(scope.parts());
      scope([&](int64_t part, const Key* keys, int64_t number, const auto&) {
        for (int64_t j = 0; j < number; ++j)
          if (const Key digits = keys[j] >> shift; digits >> 8 == prefix && keys[j] != 0)
            ++counts[part][digits % kTokenBins];
      });
      for (const auto& own : counts)
        for (int64_t bin = 0; bin < kTokenBins; ++bin) histogram[segment * kTokenBins + bin] += own[bin];
    });
  });
}

void select_tokens_above(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask,
                         int64_t rows, int64_t columns, const int64_t* segments, const int64_t* thresholds,
                         const int64_t* ties, int64_t count, bool* keep) {
  const Groups groups = groups_of_segments(segments, rows, count);
  const Tokens tokens{advantages, entropies, mask, columns};
  with_score(tokens, [&](auto zero) {
    using Score = decltype(zero);
    using Key = KeyOf<Score>;
    each_scope<Score>(tokens, groups, [&](int64_t group, const Scope<Score>& scope) {
      const int64_t segment = segments[groups.row(groups.begin(group))];
      const auto threshold = static_cast<Key>(thresholds[segment]);
      std::vector<int64_t> equal(scope.parts());
      if (threshold != 0 && ties[segment] > 0)  // 0 is no key
        scope([&](int64_t part, const Key* keys, int64_t number, const auto&) {
          equal[part] += std::count(keys, keys + number, threshold);
        });
      keep_above(scope, threshold, deal_ties(ties[segment], equal), keep);
    });
  });
}

}  // namespace morlfast
