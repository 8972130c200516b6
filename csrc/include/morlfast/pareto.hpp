// Non-dominated sorting of batches of fronts.
#pragma once
#include <cstdint>

#include "morlfast/points.hpp"

namespace morlfast {

/// Rank of every point: 0 for the non-dominated, else 1 + the largest rank among the points that dominate it.
///
/// p dominates q when it is at least as good in every objective and better in one; duplicates share a rank.
/// Rows with NaN dominate nothing and share the last rank (NanPolicy::worst).
/// O(n log n) for m <= 2, O(n log n log F) for m = 3 (F fronts), O(m n^2 / 64) words for more; O(n) memory a front.
///
/// points  (batch, n, m), m >= 1
/// ranks   (batch, n) contiguous, written
/// Throws std::invalid_argument for NaN under NanPolicy::raise.
template <class T>
void non_dominated_sort(const PointsView<T>& points, bool maximize, NanPolicy nan, int32_t* ranks);

}  // namespace morlfast
