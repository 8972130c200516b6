#include "lexicographic_order.hpp"

#include <algorithm>
#include <bit>

#include "simd.hpp"

namespace morlfast {
namespace {

// Up to here counting how many values are smaller ranks faster than sorting.
constexpr int64_t kCountedPoints = 256;

constexpr int kDigits = 4, kBuckets = 256;

/// Digits that the radix sort looks at, the most significant last: sign, exponent and 20 bits of the fraction.
int digit(uint64_t bits, int d) { return static_cast<int>(bits >> (32 + 8 * d) & (kBuckets - 1)); }

}  // namespace

void LexicographicOrder::sort(const double* points, int64_t n, int64_t m, int64_t k, std::vector<int32_t>& order) {
  order.resize(n);
  if (n <= kCountedPoints) {
    column_.resize(n);
    counts_.resize(n);
    for (int64_t i = 0; i < n; ++i) column_[i] = points[i * m + k];
    simd().count_below(column_.data(), n, counts_.data());
    std::fill(order.begin(), order.end(), -1);
    bool tied = false;
    for (int64_t i = 0; i < n && !tied; ++i) {
      int32_t& place = order[counts_[i]];
      tied = place >= 0;
      place = static_cast<int32_t>(i);
    }
    if (!tied) return;
  }
  keys_.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t bits = std::bit_cast<uint64_t>(points[i * m + k]);
    keys_[i] = {bits >> 63 ? ~bits : bits | uint64_t{1} << 63, static_cast<int32_t>(i)};
  }
  radix_sort();
  // What agrees in the digits above is sorted by all that is left.
  for (int64_t first = 0, last = 0; first < n; first = last) {
    while (last < n && keys_[last].bits >> 32 == keys_[first].bits >> 32) ++last;
    if (last - first == 1) continue;
    std::sort(keys_.begin() + first, keys_.begin() + last, [&](const Key& a, const Key& b) {
      if (a.bits != b.bits) return a.bits < b.bits;
      const double* p = points + a.row * m;
      const double* q = points + b.row * m;
      for (int64_t j = 0; j < m; ++j)
        if (p[j] != q[j]) return p[j] < q[j];
      return a.row < b.row;
    });
  }
  for (int64_t r = 0; r < n; ++r) order[r] = keys_[r].row;
}

void LexicographicOrder::radix_sort() {
  int32_t counts[kDigits][kBuckets] = {};
  for (const Key& key : keys_)
    for (int d = 0; d < kDigits; ++d) ++counts[d][digit(key.bits, d)];
  other_.resize(keys_.size());
  for (int d = 0; d < kDigits; ++d) {
    if (counts[d][digit(keys_[0].bits, d)] == static_cast<int64_t>(keys_.size())) continue;  // all alike
    int32_t start = 0;
    for (int32_t& count : counts[d]) {
      const int32_t next = start + count;
      count = start;
      start = next;
    }
    for (const Key& key : keys_) other_[counts[d][digit(key.bits, d)]++] = key;
    keys_.swap(other_);
  }
}

}  // namespace morlfast
