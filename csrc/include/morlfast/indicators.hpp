// The best point of a set for each query: what most quality indicators average.
#pragma once
#include <cstdint>

#include "morlfast/points.hpp"

namespace morlfast {

/// What is best over the points p of a set for a query q.
enum class Best {
  dot_product,         ///< max_p sum_j q_j p_j
  chebyshev,           ///< min_p max_j q_j p_j
  squared_distance,    ///< min_p sum_j (q_j - p_j)^2
  squared_excess,      ///< min_p sum_j max(p_j - q_j, 0)^2
  largest_difference,  ///< min_p max_j (p_j - q_j)
  largest_quotient,    ///< min_p max_j p_j / q_j
};

/// O(W n m) operations a set and no W x n array, computed in double.
///
/// A row of points with NaN is as if it were not there, and so is a pair that gives NaN (0 * inf, inf - inf, 0 / 0). A
/// query with NaN has the value NaN and row -1. Without points the value is -inf for dot_product, else +inf.
///
/// queries  (batch, W, m), m >= 1
/// points   (batch, n, m)
/// lengths  (batch): points of each set that count, or nullptr for all n
/// values   (batch, W) contiguous, written
/// rows     (batch, W) contiguous, written: the lowest row that attains the value, -1 without; or nullptr
/// Throws std::invalid_argument for lengths outside 0..n.
template <class T>
void best_points(const PointsView<T>& queries, const PointsView<T>& points, Best best, const int64_t* lengths,
                 T* values, int64_t* rows);

/// The largest value over the queries of what best_points gives each: how far the set is from the query that it serves
/// worst. Not for dot_product. A query's points are only searched until one shows that it is not the worst.
///
/// query_lengths  (batch): queries of each set that count, or nullptr for all W
/// values         (batch), written: -inf without queries, NaN for a query with NaN
template <class T>
void farthest_query(const PointsView<T>& queries, const PointsView<T>& points, Best best, const int64_t* lengths,
                    const int64_t* query_lengths, T* values);

}  // namespace morlfast
