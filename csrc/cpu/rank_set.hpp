// A set of small integers with neighbour queries.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace morlfast {

/// Set of integers below n with neighbour queries: a tree of 64-ary bit words, O(log64 n) a query.
class RankSet {
 public:
  void reset(int64_t n) {
    levels_.clear();
    do {
      n = (n + 63) / 64;
      levels_.emplace_back(n, 0);
    } while (n > 1);
  }

  void insert(int64_t i) {
    for (auto& level : levels_) {
      level[i / 64] |= uint64_t{1} << (i % 64);
      i /= 64;
    }
  }

  void erase(int64_t i) {
    for (auto& level : levels_) {
      level[i / 64] &= ~(uint64_t{1} << (i % 64));
      if (level[i / 64]) return;
      i /= 64;
    }
  }

  /// Largest member below i, or -1.
  int64_t below(int64_t i) const {
    for (std::size_t l = 0; l < levels_.size(); ++l) {
      const uint64_t word = i % 64 ? levels_[l][i / 64] & ((uint64_t{1} << (i % 64)) - 1) : 0;
      i /= 64;
      if (word) {
        i = i * 64 + 63 - std::countl_zero(word);
        while (l-- > 0) i = i * 64 + 63 - std::countl_zero(levels_[l][i]);
        return i;
      }
    }
    return -1;
  }

  /// Smallest member above i, or -1.
  int64_t above(int64_t i) const {
    for (std::size_t l = 0; l < levels_.size(); ++l) {
      const uint64_t word = i % 64 != 63 ? levels_[l][i / 64] & (~uint64_t{0} << (i % 64 + 1)) : 0;
      i /= 64;
      if (word) {
        i = i * 64 + std::countr_zero(word);
        while (l-- > 0) i = i * 64 + std::countr_zero(levels_[l][i]);
        return i;
      }
    }
    return -1;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

}  // namespace morlfast
