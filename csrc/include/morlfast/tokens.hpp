// Selection of the tokens to train on.
#pragma once
#include <cstdint>

#include "morlfast/elements.hpp"
#include "morlfast/groups.hpp"

namespace morlfast {

/// How many of v valid tokens are kept: min(v, max(ceil(ratio v (1 - 2^-50)), at_least)). With `quantile` instead those
/// that are no less than the interpolated (1 - ratio)-quantile, bit for bit as torch.quantile computes it where it does
/// (float32: up to 2^24 tokens).
struct TokenBudget {
  double ratio = 1;
  int64_t at_least = 0;
  bool quantile = false;
};

/// Keeps the valid tokens of the largest |advantage| * entropy of each group of rows, without sorting.
///
/// Valid: mask != 0 and the score is not NaN. Ties go to the lowest (row, column). A sample of the tokens brackets the
/// threshold; one pass over the inputs decides all tokens outside of the bracket and collects those inside, mostly a
/// few in a hundred. Where the sample misled or too many are tied, histograms of the keys find the threshold.
///
/// advantages  (rows, columns) (column_stride 0 for one value a row)
/// entropies   (rows, columns)
/// mask        (rows, columns)
/// groups      the rows that share one threshold: one group for the batch, one a row for sequences
/// keep        (rows, columns) contiguous, written
void select_tokens(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t columns,
                   const TokenBudget& budget, const Groups& groups, bool* keep);

// One selection over the tokens of several processes: each counts its own, and keeps what the threshold of all says.
// Keys are the scores' bits in an unsigned order, 0 for tokens that are not valid (SimdTable::score_keys): 32 bits, or
// 64 where advantages or entropies are float64.

inline constexpr int64_t kTokenBins = 256;

/// Counts the digits of 8 bits at `level` (0: the highest) of the valid keys of each segment of rows whose digits above
/// are prefixes[segment].
///
/// segments    (rows) from 0 to count - 1
/// prefixes    (count)
/// histogram   (count, kTokenBins) written
void token_histogram(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t rows,
                     int64_t columns, const int64_t* segments, const int64_t* prefixes, int64_t count, int level,
                     int64_t* histogram);

/// Keeps the valid tokens whose keys are above thresholds[segment], and the first ties[segment] of those equal to it in
/// the order of (row, column).
///
/// thresholds  (count) unsigned keys
/// ties        (count)
/// keep        (rows, columns) contiguous, written
void select_tokens_above(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask,
                         int64_t rows, int64_t columns, const int64_t* segments, const int64_t* thresholds,
                         const int64_t* ties, int64_t count, bool* keep);

}  // namespace morlfast
