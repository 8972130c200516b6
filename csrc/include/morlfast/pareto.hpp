// Dominance within batches of sets of points: ranks, non-dominated points, counts; and between two sets.
#pragma once
#include <cstdint>

#include "morlfast/points.hpp"

namespace morlfast {

/// A batch of sets of points. p dominates q when it is at least as good in every objective and better in one.
/// Rows with NaN (NanPolicy::worst) dominate nothing, not even each other.
template <class T>
struct PointSets {
  PointsView<T> points;              // (batch, n, m), m >= 1
  const int64_t* lengths = nullptr;  // (batch): only the first so many rows belong to a set; all without it
  bool maximize = false;
  NanPolicy nan = NanPolicy::raise;
  const char* argument = "points";  // as errors name it

  int64_t length(int64_t b) const { return lengths ? lengths[b] : points.n; }
};

/// Rank of every point: 0 for the non-dominated, else 1 + the largest rank among the points that dominate it.
///
/// Duplicates share a rank; rows with NaN share the rank behind the last; rows beyond a set's length get -1.
/// O(n log n) for m <= 2, O(n log n log F) for m = 3 (F fronts), divide and conquer down to bitsets for more
/// objectives, at most O(m n^2 / 64) words; O(n m) memory a set.
///
/// violations  (batch, n) contiguous or null: how far constraints are violated, at least 0. A smaller violation ranks
///             before a larger one; dominance decides among equal ones.
/// stop_after  0, or k: ranks up to the first that completes k points; every later point gets the next one.
/// ranks       (batch, n) contiguous, written
/// Throws std::invalid_argument for NaN under NanPolicy::raise.
template <class T>
void non_dominated_sort(const PointSets<T>& sets, const double* violations, int64_t stop_after, int32_t* ranks);

/// Whether nothing in its set dominates a point; with `deduplicate` only for the first of equal points. False for rows
/// with NaN and beyond a set's length.
///
/// non_dominated  (batch, n) contiguous, written
template <class T>
void is_non_dominated(const PointSets<T>& sets, bool deduplicate, bool* non_dominated);

/// How many points of its set dominate each point. A row with NaN counts as dominated by every row without; -1 beyond a
/// set's length. O(n log^2 n) for m <= 3.
///
/// counts  (batch, n) contiguous, written
template <class T>
void dominance_counts(const PointSets<T>& sets, int32_t* counts);

/// Whether a point of the other set dominates a point; `weakly`: or equals it. A point with NaN is dominated when the
/// other set has a row without. O(m n k).
///
/// points     (batch, n, m)
/// others     (batch, k, m)
/// dominated  (batch, n) contiguous, written
template <class T>
void is_dominated_by(const PointsView<T>& points, const PointSets<T>& others, bool weakly, bool* dominated);

}  // namespace morlfast
