// Ranks and dominator counts of points that lie in lexicographic order, where dominators stand before whom they
// dominate.
#pragma once
#include <cstdint>
#include <vector>

#include "lexicographic_order.hpp"

namespace morlfast {

/// Buffers are kept between calls.
class SortedDominance {
 public:
  /// Ranks of different points (n, m), minimized, in lexicographic order. `weight[i]` points are equal to point i; when
  /// points of ranks up to r number `stop_after` or more, later ranks may come out as any number above r.
  void rank(const double* points, int64_t n, int64_t m, const int32_t* weight, int64_t stop_after, int32_t* ranks);

  /// counts[i] = number of points before point i that are nowhere worse; points may be equal.
  void count(const double* points, int64_t n, int64_t m, int32_t* counts);

  /// What the buffers hold.
  int64_t bytes() const;

 private:
  template <class Goal>
  friend class Conquest;

  void load_columns(const double* points, int64_t n, int64_t m, int64_t columns);

  std::vector<double> columns_;         // (objectives but the first, n)
  std::vector<int32_t> places_;         // (objectives but the first, n): equal values share a place
  std::vector<int32_t> order_, lists_;  // of point numbers
  std::vector<int32_t> bit_, row_, sorted_, histogram_, settled_;
  std::vector<int64_t> above_;
  std::vector<uint64_t> running_, rows_;
  LexicographicOrder sorting_;
};

}  // namespace morlfast
