#include "morlfast/rollouts.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "read_row.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

/// A scored rollout. Keys are unsigned with the order of the rewards, -0.0 as 0.0.
struct Scored {
  uint64_t key;
  int64_t row;

  bool operator<(const Scored& other) const { return key != other.key ? key < other.key : row < other.row; }
};

uint64_t key_of(double reward) {
  const uint64_t bits = std::bit_cast<uint64_t>(reward + 0.0);
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

double reward_of(uint64_t key) { return std::bit_cast<double>(key >> 63 ? key ^ uint64_t{1} << 63 : ~key); }

/// Buffers of one group after the other.
struct GroupBuffers {
  std::vector<Scored> scored, other;
  std::vector<std::array<double, 2>> lowest, highest;

  bool worth_keeping() const { return static_cast<int64_t>(scored.size()) <= kKeptRows; }

  /// Sorts the scored by (reward, row); they come in ascending rows.
  void sort();
};

constexpr int64_t kSortedByComparing = 512;
constexpr int kDigitBits = 8, kDigits = 64 / kDigitBits, kBuckets = 1 << kDigitBits;

void GroupBuffers::sort() {
  if (static_cast<int64_t>(scored.size()) <= kSortedByComparing) {
    std::sort(scored.begin(), scored.end());
    return;
  }
  // Radix sort from the lowest digit on. Digits in which all agree are passed over: most are, of rewards that are
  // integers or were narrow.
  std::vector<std::array<int64_t, kBuckets>> counts(kDigits);
  for (const Scored& one : scored)
    for (int d = 0; d < kDigits; ++d) ++counts[d][one.key >> (d * kDigitBits) & (kBuckets - 1)];
  other.resize(scored.size());
  for (int d = 0; d < kDigits; ++d) {
    const auto digit = [d](const Scored& one) { return one.key >> (d * kDigitBits) & (kBuckets - 1); };
    if (counts[d][digit(scored[0])] == static_cast<int64_t>(scored.size())) continue;
    int64_t start = 0;
    for (int64_t& count : counts[d]) start += std::exchange(count, start);
    for (const Scored& one : scored) other[counts[d][digit(one)]++] = one;
    scored.swap(other);
  }
}

/// How many of the kk to take from the top, the others from the bottom, for the largest variance: PODS, arXiv
/// 2504.13818. Of equal ones kk, then 0, 1, ...
int64_t top_of_largest_variance(GroupBuffers& buffers, int64_t kk) {
  const std::vector<Scored>& scored = buffers.scored;
  const auto n = static_cast<int64_t>(scored.size());
  constexpr double kLargest = std::numeric_limits<double>::max();
  const auto finite = [&](const Scored& one) { return std::clamp(reward_of(one.key), -kLargest, kLargest); };
  // Halves where the range of two doubles may be no double; elsewhere they might lose a subnormal.
  const double part = std::max(std::abs(finite(scored[0])), std::abs(finite(scored[n - 1]))) > kLargest / 4 ? 0.5 : 1;
  const double least = part * finite(scored[0]), largest = part * finite(scored[n - 1]), range = largest - least;
  const double middle = least + range / 2;
  const double scale = range > 0 ? std::ldexp(1.0, -std::clamp(std::ilogb(range), -1000, 1000)) : 1;
  // [i] = sum and sum of squares of the i lowest, and of the i highest
  const auto add_up = [&](std::vector<std::array<double, 2>>& sums, const auto& at) {
    sums.resize(kk + 1);
    sums[0] = {0, 0};
    for (int64_t i = 0; i < kk; ++i) {
      const double x = (part * finite(scored[at(i)]) - middle) * scale;
      sums[i + 1] = {sums[i][0] + x, sums[i][1] + x * x};
    }
  };
  add_up(buffers.lowest, [](int64_t i) { return i; });
  add_up(buffers.highest, [n](int64_t i) { return n - 1 - i; });
  const auto variance = [&](int64_t top) {  // times kk^2
    const std::array<double, 2>&high = buffers.highest[top], &low = buffers.lowest[kk - top];
    const double sum = high[0] + low[0];
    return static_cast<double>(kk) * (high[1] + low[1]) - sum * sum;
  };
  int64_t best = kk;
  double most = variance(kk);
  for (int64_t top = 0; top < kk; ++top) {
    const double own = variance(top);
    if (own > most) {
      most = own;
      best = top;
    }
  }
  return best;
}

/// Marks the `low` first and as many as the `high` last of the sorted; of equal rewards the lowest rows.
void mark_ends(const std::vector<Scored>& scored, int64_t low, int64_t high, bool* selected) {
  const auto n = static_cast<int64_t>(scored.size());
  for (int64_t i = 0; i < low; ++i) selected[scored[i].row] = true;
  if (high == 0) return;
  // The rewards equal to the last one from the top: their run may begin among the low ones.
  int64_t first = n - high, end = n - high;
  const uint64_t key = scored[first].key;
  while (first > low && scored[first - 1].key == key) --first;
  while (end < n && scored[end].key == key) ++end;
  for (int64_t i = first; i < first + (end - (n - high)); ++i) selected[scored[i].row] = true;
  for (int64_t i = end; i < n; ++i) selected[scored[i].row] = true;
}

/// Marks one of each of kk strata of equal size; `uniform` (kk) says where in its stratum.
void mark_strata(const std::vector<Scored>& scored, int64_t kk, const double* uniform, bool* selected) {
  const auto n = static_cast<int64_t>(scored.size());
  int64_t next = 0;  // strata that are no whole numbers of rollouts share some: each is taken once
  for (int64_t j = 0; j < kk; ++j) {
    const double at = (static_cast<double>(j) + (uniform ? uniform[j] : 0.5)) * static_cast<double>(n);
    const int64_t place = std::clamp(static_cast<int64_t>(at / static_cast<double>(kk)), next, n - kk + j);
    selected[scored[place].row] = true;
    next = place + 1;
  }
}

template <class Score>
void select_in_groups(const Score* rewards, int64_t k, Selection selection, const double* uniform, const Groups& groups,
                      bool* selected) {
  parallel_for(groups.count(), groups.rows() >= 2048, [&](int64_t group) {
    const Workspace<GroupBuffers> buffers(true);
    std::vector<Scored>& scored = buffers->scored;
    scored.clear();
    for (int64_t place = groups.begin(group); place < groups.end(group); ++place) {
      const int64_t row = groups.row(place);
      const auto reward = static_cast<double>(rewards[row]);
      if (reward == reward) scored.push_back({key_of(reward), row});
    }
    const int64_t kk = std::min(k, static_cast<int64_t>(scored.size()));
    if (kk == 0) return;
    buffers->sort();
    switch (selection) {
      case Selection::max_variance: {
        const int64_t top = top_of_largest_variance(*buffers, kk);
        return mark_ends(scored, kk - top, top, selected);
      }
      case Selection::top:
        return mark_ends(scored, 0, kk, selected);
      case Selection::bottom:
        return mark_ends(scored, kk, 0, selected);
      case Selection::stratified:
        return mark_strata(scored, kk, uniform ? uniform + groups.begin(group) : nullptr, selected);
    }
  });
}

template <class Score>
constexpr Dtype kDtype = std::is_same_v<Score, float> ? Dtype::float32 : Dtype::float64;

}  // namespace

void select_rollouts(const MatrixView& rewards, int64_t k, Selection selection, const double* uniform,
                     const Groups& groups, bool* selected) {
  const int64_t rows = groups.rows();
  std::fill_n(selected, rows, false);
  if (rows == 0) return;
  const MatrixView row{rewards.data, rewards.dtype, 0, rewards.row_stride};
  const auto select = [&](auto zero) {
    using Score = decltype(zero);
    const bool read_in_place = row.column_stride == 1 && rewards.dtype == kDtype<Score>;
    std::vector<Score> buffer(read_in_place ? 0 : rows);
    select_in_groups(read_row(row, 0, 0, rows, buffer.data()), k, selection, uniform, groups, selected);
  };
  rewards.dtype == Dtype::float32 ? select(float{}) : select(double{});
}

}  // namespace morlfast
