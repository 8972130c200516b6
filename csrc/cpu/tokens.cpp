#include "morlfast/tokens.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <type_traits>
#include <vector>

#include "parallel.hpp"
#include "read_row.hpp"
#include "simd.hpp"

namespace morlfast {
namespace {

constexpr int64_t kPiece = 4096;  // tokens whose keys are in the cache at a time

// Keys are unsigned with the order of the scores; 0 is left for tokens that are not valid (SimdTable::score_keys).
template <class Score>
using KeyOf = std::conditional_t<std::is_same_v<Score, float>, uint32_t, uint64_t>;

void score_keys(const float* advantage, const float* entropy, const uint8_t* valid, int64_t count, uint32_t* keys) {
  simd().score_keys_32(advantage, entropy, valid, count, keys);
}
void score_keys(const double* advantage, const double* entropy, const uint8_t* valid, int64_t count, uint64_t* keys) {
  simd().score_keys_64(advantage, entropy, valid, count, keys);
}

/// The tokens of one group of rows, cut into pieces that each lie in one row.
template <class Score>
class Scope {
 public:
  using Key = KeyOf<Score>;

  Scope(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t columns,
        const Groups& groups, int64_t group)
      : advantages_(advantages),
        entropies_(entropies),
        mask_(mask),
        columns_(columns),
        pieces_a_row_((columns + kPiece - 1) / kPiece),
        groups_(groups),
        group_(group) {}

  int64_t tokens() const { return (groups_.end(group_) - groups_.begin(group_)) * columns_; }
  int64_t pieces() const { return (groups_.end(group_) - groups_.begin(group_)) * pieces_a_row_; }

  /// Flat position (row * columns + column) of piece p; sets how many tokens it has.
  int64_t position(int64_t p, int64_t& count) const {
    const int64_t row = groups_.row(groups_.begin(group_) + p / pieces_a_row_);
    const int64_t column = p % pieces_a_row_ * kPiece;
    count = std::min(kPiece, columns_ - column);
    return row * columns_ + column;
  }

  /// Keys of piece p; returns its position and sets how many tokens it has.
  int64_t keys(int64_t p, Key* out, int64_t& count) const {
    const int64_t flat = position(p, count), row = flat / columns_, column = flat % columns_;
    Score advantage[kPiece], entropy[kPiece];
    uint8_t valid[kPiece];
    score_keys(read_row(advantages_, row, column, count, advantage), read_row(entropies_, row, column, count, entropy),
               read_mask(mask_, row, column, count, valid), count, out);
    return flat;
  }

 private:
  const MatrixView &advantages_, &entropies_, &mask_;
  int64_t columns_, pieces_a_row_;
  const Groups& groups_;
  int64_t group_;
};

/// How many of `valid` tokens are kept. The factor takes back the rounding of ratio itself: 0.1 of 30 is 3, not 4.
int64_t kept_count(double ratio, int64_t valid) {
  return std::min(valid, static_cast<int64_t>(std::ceil(ratio * static_cast<double>(valid) * (1 - 0x1p-50))));
}

constexpr int64_t kSmallScope = 1 << 16;  // tokens whose keys fit the second-level cache

/// A scope whose keys are kept: one pass over the inputs and a partial sort.
template <class Score>
void select_in_small_scope(const Scope<Score>& scope, double ratio, bool* keep) {
  using Key = typename Scope<Score>::Key;
  static thread_local std::vector<Key> keys, valid;
  keys.resize(scope.tokens());
  int64_t count = 0;
  for (int64_t p = 0, done = 0; p < scope.pieces(); ++p, done += count) scope.keys(p, &keys[done], count);
  valid.resize(keys.size());
  valid.erase(std::copy_if(keys.begin(), keys.end(), valid.begin(), [](Key key) { return key != 0; }), valid.end());
  int64_t wanted = kept_count(ratio, static_cast<int64_t>(valid.size()));
  Key threshold = ~Key{0};  // no score has this key: it would be a NaN's
  if (wanted > 0) {
    std::nth_element(valid.begin(), valid.begin() + (wanted - 1), valid.end(), std::greater<Key>());
    threshold = valid[wanted - 1];
    wanted -= std::count_if(valid.begin(), valid.begin() + wanted, [&](Key key) { return key > threshold; });
  }
  const Key* key = keys.data();
  for (int64_t p = 0; p < scope.pieces(); ++p) {
    const int64_t flat = scope.position(p, count);
    for (int64_t j = 0; j < count; ++j, ++key) {
      const bool tie = *key == threshold && wanted > 0;
      keep[flat + j] = *key > threshold || tie;
      wanted -= tie;
    }
  }
}

constexpr int kDigitBits = 11;  // sign, exponent and two bits of the mantissa of a float
constexpr int64_t kBins = int64_t{1} << kDigitBits;

/// A large scope, in three passes over the inputs: a histogram of the keys' leading digit finds the bin that the
/// threshold lies in, the keys in that bin are partially sorted, and the mask is written.
/// Pieces are dealt to `parts` fixed runs, so that threads share nothing.
template <class Score>
void select_in_large_scope(const Scope<Score>& scope, double ratio, bool parallel, bool* keep) {
  using Key = typename Scope<Score>::Key;
  constexpr int kShift = 8 * sizeof(Key) - kDigitBits;
  const int64_t pieces = scope.pieces();
  const int64_t parts = parallel ? std::min<int64_t>(pieces, 64) : 1;
  const auto each_piece = [&](const auto& visit) {
    parallel_for(parts, parallel, [&](int64_t part) {
      Key keys[kPiece];
      int64_t count = 0;
      for (int64_t p = pieces * part / parts; p < pieces * (part + 1) / parts; ++p) {
        const int64_t flat = scope.keys(p, keys, count);
        visit(part, keys, count, flat);
      }
    });
  };

  // Two histograms a part: neighbours often share a bin, and one counter would wait for itself.
  std::vector<int64_t> histograms(parts * 2 * kBins), invalid(parts);
  each_piece([&](int64_t part, const Key* keys, int64_t count, int64_t) {
    int64_t *even = &histograms[part * 2 * kBins], *odd = even + kBins;
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      ++even[keys[j] >> kShift];
      ++odd[keys[j + 1] >> kShift];
    }
    if (j < count) ++even[keys[j] >> kShift];
    invalid[part] += std::count(keys, keys + count, Key{0});
  });
  for (int64_t part = 1; part < 2 * parts; ++part)
    for (int64_t bin = 0; bin < kBins; ++bin) histograms[bin] += histograms[part * kBins + bin];
  histograms[0] -= std::accumulate(invalid.begin(), invalid.end(), int64_t{0});
  const int64_t valid = std::accumulate(histograms.begin(), histograms.begin() + kBins, int64_t{0});
  int64_t wanted = kept_count(ratio, valid);
  if (wanted == 0) {
    each_piece([&](int64_t, const Key*, int64_t count, int64_t flat) { std::fill_n(keep + flat, count, false); });
    return;
  }
  int64_t bin = kBins - 1;
  while (wanted > histograms[bin]) wanted -= histograms[bin--];

  // From here on `wanted` counts the keys of that bin.
  std::vector<std::vector<Key>> candidates(parts);
  each_piece([&](int64_t part, const Key* keys, int64_t count, int64_t) {
    Key found[kPiece];
    int64_t size = 0;
    for (int64_t j = 0; j < count; ++j) {  // without a branch: which keys match is a coin toss
      found[size] = keys[j];
      size += static_cast<int64_t>(keys[j] >> kShift) == bin && keys[j] != 0;
    }
    candidates[part].insert(candidates[part].end(), found, found + size);
  });
  std::vector<Key> sorted;
  for (const auto& part : candidates) sorted.insert(sorted.end(), part.begin(), part.end());
  std::nth_element(sorted.begin(), sorted.begin() + (wanted - 1), sorted.end(), std::greater<Key>());
  const Key threshold = sorted[wanted - 1];
  wanted -= std::count_if(sorted.begin(), sorted.begin() + wanted, [&](Key key) { return key > threshold; });

  // From here on `wanted` counts the tokens with the threshold's own key: the first ones are kept.
  std::vector<int64_t> ties_before(parts + 1);
  for (int64_t part = 0; part < parts; ++part)
    ties_before[part + 1] = ties_before[part] + std::count(candidates[part].begin(), candidates[part].end(), threshold);
  each_piece([&](int64_t part, const Key* keys, int64_t count, int64_t flat) {
    if (ties_before[parts] == wanted) {  // nothing to choose
      for (int64_t j = 0; j < count; ++j) keep[flat + j] = keys[j] >= threshold;
      return;
    }
    for (int64_t j = 0; j < count; ++j) {
      const bool tie = keys[j] == threshold;
      keep[flat + j] = keys[j] > threshold || (tie && ties_before[part] < wanted);
      ties_before[part] += tie;
    }
  });
}

template <class Score>
void select_all(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t columns,
                double ratio, const Groups& groups, bool* keep) {
  const bool large = groups.rows() * columns >= 32768;
  const bool by_scope = groups.count() >= 4;  // enough scopes to keep the threads busy
  parallel_for(groups.count(), large && by_scope, [&](int64_t group) {
    const Scope<Score> scope(advantages, entropies, mask, columns, groups, group);
    if (scope.tokens() <= kSmallScope)
      select_in_small_scope(scope, ratio, keep);
    else
      select_in_large_scope(scope, ratio, large && !by_scope, keep);
  });
}

}  // namespace

void select_tokens(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t columns,
                   double ratio, const Groups& groups, bool* keep) {
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
    return select_tokens(flat(advantages), flat(entropies), flat(mask), groups.rows() * columns, ratio,
                         Groups::contiguous(1, 1), keep);
  }
  if (advantages.dtype == Dtype::float64 || entropies.dtype == Dtype::float64)
    select_all<double>(advantages, entropies, mask, columns, ratio, groups, keep);
  else
    select_all<float>(advantages, entropies, mask, columns, ratio, groups, keep);
}

}  // namespace morlfast
