// The one order of points that sweeps, ranks and gradients share.
#pragma once
#include <cstdint>
#include <vector>

namespace morlfast {

/// Sorts points by (objective k, the other objectives in index order, row). Buffers are kept between calls.
class LexicographicOrder {
 public:
  /// points (n, m), without NaN and without -0.0; `order` receives the rows.
  void sort(const double* points, int64_t n, int64_t m, int64_t k, std::vector<int32_t>& order);

 private:
  struct Key {
    uint64_t bits;  // unsigned, in the order of the doubles
    int32_t row;
  };

  void radix_sort();

  std::vector<double> column_;
  std::vector<int64_t> counts_;
  std::vector<Key> keys_, other_;
};

}  // namespace morlfast
