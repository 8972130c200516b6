// Selection of the tokens to train on.
#pragma once
#include <cstdint>

#include "morlfast/elements.hpp"
#include "morlfast/groups.hpp"

namespace morlfast {

/// Keeps the top `ratio` of the valid tokens of each group of rows by |advantage| * entropy, without sorting.
///
/// Valid: mask != 0 and the score is not NaN. Of v valid tokens ceil(ratio v (1 - 2^-50)) are kept, ties to the lowest
/// (row, column). Small scopes keep their keys and sort partially; large ones take three passes over the inputs, and
/// memory for the keys that share the threshold's leading 11 bits.
///
/// advantages  (rows, columns) (column_stride 0 for one value a row)
/// entropies   (rows, columns)
/// mask        (rows, columns)
/// groups      the rows that share one threshold: one group for the batch, one a row for sequences
/// keep        (rows, columns) contiguous, written
void select_tokens(const MatrixView& advantages, const MatrixView& entropies, const MatrixView& mask, int64_t columns,
                   double ratio, const Groups& groups, bool* keep);

}  // namespace morlfast
