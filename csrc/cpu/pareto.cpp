#include "morlfast/pareto.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "front.hpp"
#include "parallel.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

/// Ranks points (n, m) that lie in lexicographic order without duplicates: a dominator always stands before whom it
/// dominates, so one pass suffices and rank = number of leading fronts with a dominator.
using SortedRanks = std::vector<int32_t>;

// m = 2: front k's latest point has its smallest second objective, and these grow with k.
void rank_sorted_2(const double* z, int64_t n, SortedRanks& ranks) {
  std::vector<double> latest;
  for (int64_t i = 0; i < n; ++i) {
    const double y = z[2 * i + 1];
    const auto front = std::upper_bound(latest.begin(), latest.end(), y) - latest.begin();
    if (front == static_cast<int64_t>(latest.size()))
      latest.push_back(y);
    else
      latest[front] = y;
    ranks[i] = static_cast<int32_t>(front);
  }
}

/// Non-dominated (a, b) of one front's members in the last two of three objectives: a ascending, b descending.
/// Blocks of bounded size: adding a step moves no more than one of them.
class Staircase {
 public:
  bool dominates(double a, double b) const {
    // The last step with step.a <= a has the smallest b of those.
    const auto block = std::upper_bound(blocks_.begin(), blocks_.end(), a,
                                        [](double value, const Block& other) { return value < other.front().a; });
    if (block == blocks_.begin()) return false;
    const Block& steps = *std::prev(block);
    const auto step = std::upper_bound(steps.begin(), steps.end(), a,
                                       [](double value, const Step& other) { return value < other.a; });
    return std::prev(step)->b <= b;
  }

  /// Adds a step that the staircase does not dominate; those that it dominates leave.
  void add(double a, double b) {
    if (blocks_.empty()) blocks_.emplace_back();
    auto block = std::upper_bound(blocks_.begin() + 1, blocks_.end(), a,
                                  [](double value, const Block& other) { return value <= other.front().a; });
    --block;
    const auto place = std::lower_bound(block->begin(), block->end(), a,
                                        [](const Step& step, double value) { return step.a < value; });
    // Dominated steps follow the new one without a gap, at times into later blocks.
    auto last = place;
    while (last != block->end() && last->b >= b) ++last;
    if (last == block->end()) {
      auto next = block + 1;
      while (next != blocks_.end() && next->back().b >= b) ++next;
      if (next != blocks_.end()) {
        auto kept = next->begin();
        while (kept->b >= b) ++kept;
        next->erase(next->begin(), kept);
      }
      const auto index = block - blocks_.begin();
      const auto offset = place - block->begin();
      blocks_.erase(block + 1, next);
      block = blocks_.begin() + index;
      last = block->end();
      block->insert(block->erase(block->begin() + offset, last), {a, b});
    } else if (place != last) {
      *place = {a, b};
      block->erase(place + 1, last);
    } else {
      block->insert(place, {a, b});
    }
    if (block->size() > kBlock) {
      Block upper(block->begin() + kBlock / 2, block->end());
      block->resize(kBlock / 2);
      blocks_.insert(block + 1, std::move(upper));
    }
  }

 private:
  struct Step {
    double a, b;
  };
  using Block = std::vector<Step>;
  static constexpr size_t kBlock = 512;
  std::vector<Block> blocks_;  // none empty
};

// m = 3: binary search over the fronts, binary search in a front's staircase.
void rank_sorted_3(const double* z, int64_t n, SortedRanks& ranks) {
  std::vector<Staircase> fronts;
  for (int64_t i = 0; i < n; ++i) {
    const double a = z[3 * i + 1], b = z[3 * i + 2];
    const auto front =
        std::partition_point(fronts.begin(), fronts.end(), [&](const Staircase& s) { return s.dominates(a, b); }) -
        fronts.begin();
    if (front == static_cast<int64_t>(fronts.size())) fronts.emplace_back();
    fronts[front].add(a, b);
    ranks[i] = static_cast<int32_t>(front);
  }
}

// m >= 4, few points: every pair is compared, in vectors. O(m n^2 / 2) comparisons.
void rank_sorted_few(const double* z, int64_t n, int64_t m, SortedRanks& ranks) {
  std::vector<double> columns(m * n);  // (m, n)
  std::vector<int64_t> above(n);       // 1 + rank
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < m; ++k) columns[k * n + i] = z[i * m + k];
  for (int64_t i = 0; i < n; ++i) {
    // The first objective is in order: every earlier point is no worse there.
    ranks[i] = static_cast<int32_t>(simd().largest_dominator(columns.data() + n, m - 1, n, i, above.data()));
    above[i] = ranks[i] + 1;
  }
}

/// Members of one front as point indices. Those of a large front are bits as well, so that one AND finds a dominator.
struct Members {
  std::vector<int32_t> list;
  std::vector<uint64_t> bits;

  void add(int32_t i, int64_t words) {
    list.push_back(i);
    if (!bits.empty()) {
      bits[i / 64] |= uint64_t{1} << (i % 64);
    } else if (static_cast<int64_t>(list.size()) > words / 4) {
      // At most 4 * 64 fronts of n points can be this large: O(n) memory, however many fronts there are.
      bits.assign(words, 0);
      for (int32_t member : list) bits[member / 64] |= uint64_t{1} << (member % 64);
    }
  }

  bool meets(const uint64_t* dominators, int64_t words) const {
    if (!bits.empty()) return simd().any_common_bit(dominators, bits.data(), words);
    return std::any_of(list.begin(), list.end(),
                       [&](int32_t i) { return i / 64 < words && dominators[i / 64] >> (i % 64) & 1; });
  }
};

// m >= 4: the dominators of each point of a block as a bitset, the AND over the objectives of "not worse there".
void rank_sorted_many(const double* z, int64_t n, int64_t m, SortedRanks& ranks) {
  const int64_t words = (n + 63) / 64;
  // Rows of the block's bitsets stay within half a megabyte, a second-level cache, up to 65536 points.
  const int64_t block = std::clamp<int64_t>((1 << 16) / words, 64, 1024);
  std::vector<uint64_t> dominators(std::min(block, n) * words), not_worse(words);
  // order[j]: points by objective j; position[j][i]: how many points are not worse than i there.
  std::vector<std::vector<int32_t>> order(m), position(m);
  for (int64_t j = 1; j < m; ++j) {
    std::vector<std::pair<double, int32_t>> keyed(n);
    for (int64_t i = 0; i < n; ++i) keyed[i] = {z[i * m + j], static_cast<int32_t>(i)};
    std::sort(keyed.begin(), keyed.end());
    order[j].resize(n);
    position[j].resize(n);
    for (int64_t i = 0; i < n; ++i) order[j][i] = keyed[i].second;
    for (int64_t i = n - 1; i >= 0; --i)
      position[j][order[j][i]] = i + 1 < n && keyed[i].first == keyed[i + 1].first ? position[j][order[j][i + 1]]
                                                                                   : static_cast<int32_t>(i + 1);
  }
  std::vector<Members> fronts;
  std::vector<std::pair<int32_t, int32_t>> by_position;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t end = std::min(n, start + block);
    for (int64_t j = 1; j < m; ++j) {
      by_position.clear();
      for (int64_t i = start; i < end; ++i) by_position.emplace_back(position[j][i], static_cast<int32_t>(i));
      std::sort(by_position.begin(), by_position.end());
      std::fill(not_worse.begin(), not_worse.end(), 0);
      int32_t seen = 0;
      for (const auto& [count, i] : by_position) {
        for (; seen < count; ++seen) {
          const int32_t other = order[j][seen];
          not_worse[other / 64] |= uint64_t{1} << (other % 64);
        }
        uint64_t* row = &dominators[(i - start) * words];
        const int64_t used = i / 64 + 1;
        if (j == 1)
          std::copy(not_worse.begin(), not_worse.begin() + used, row);
        else
          simd().and_words(row, not_worse.data(), used);
      }
    }
    for (int64_t i = start; i < end; ++i) {
      uint64_t* row = &dominators[(i - start) * words];
      const int64_t used = i / 64 + 1;
      row[used - 1] &= (uint64_t{1} << (i % 64)) - 1;  // only points before i
      const auto front =
          std::partition_point(fronts.begin(), fronts.end(), [&](const Members& f) { return f.meets(row, used); }) -
          fronts.begin();
      if (front == static_cast<int64_t>(fronts.size())) fronts.emplace_back();
      fronts[front].add(static_cast<int32_t>(i), words);
      ranks[i] = static_cast<int32_t>(front);
    }
  }
}

// Up to here comparing all pairs beats building bitsets, with 512-bit vectors by far, with 128 bits about evenly.
constexpr int64_t kFewPoints = 1024;

struct Buffers {
  std::vector<double> rows, sorted;
  std::vector<std::pair<double, int32_t>> order;
  std::vector<int32_t> unique_of;
  SortedRanks unique_ranks;
};

/// Ranks the front in buffers.rows (n, m), minimized.
void rank_front(Buffers& buffers, int64_t n, int64_t m, int32_t* ranks) {
  auto& [all, sorted, order, unique_of, unique_ranks] = buffers;
  const double* rows = all.data();
  order.clear();
  for (int64_t i = 0; i < n; ++i)
    if (first_nan_row(rows + i * m, 1, m) < 0) order.emplace_back(rows[i * m], static_cast<int32_t>(i));
  std::sort(order.begin(), order.end(), [&](const auto& p, const auto& q) {
    if (p.first != q.first) return p.first < q.first;
    const double *x = rows + p.second * m, *y = rows + q.second * m;
    for (int64_t k = 1; k < m; ++k)
      if (x[k] != y[k]) return x[k] < y[k];
    return false;
  });
  // Duplicates share their first copy's rank and dominate nothing that it does not.
  sorted.clear();
  unique_of.resize(order.size());
  int32_t count = 0;
  for (size_t e = 0; e < order.size(); ++e) {
    const double* z = rows + order[e].second * m;
    if (count == 0 || !std::equal(z, z + m, &sorted[(count - 1) * m])) {
      sorted.insert(sorted.end(), z, z + m);
      ++count;
    }
    unique_of[e] = count - 1;
  }
  if (count == 0) {
    std::fill(ranks, ranks + n, 0);
    return;
  }
  unique_ranks.resize(count);
  if (m == 1)
    std::iota(unique_ranks.begin(), unique_ranks.end(), 0);
  else if (m == 2)
    rank_sorted_2(sorted.data(), count, unique_ranks);
  else if (m == 3)
    rank_sorted_3(sorted.data(), count, unique_ranks);
  else if (count <= kFewPoints)
    rank_sorted_few(sorted.data(), count, m, unique_ranks);
  else
    rank_sorted_many(sorted.data(), count, m, unique_ranks);
  if (static_cast<int64_t>(order.size()) < n)  // rows with NaN
    std::fill(ranks, ranks + n, 1 + *std::max_element(unique_ranks.begin(), unique_ranks.end()));
  for (size_t e = 0; e < order.size(); ++e) ranks[order[e].second] = unique_ranks[unique_of[e]];
}

constexpr int64_t kParallelPoints = 4096;

}  // namespace

template <class T>
void non_dominated_sort(const PointsView<T>& points, bool maximize, NanPolicy nan, int32_t* ranks) {
  const int64_t n = points.n, m = points.m;
  if (m < 1) throw std::invalid_argument("points: expected at least 1 objective, got " + std::to_string(m));
  if (n > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("points: expected fewer than 2^31 points a front, got " + std::to_string(n));
  if (n == 0) return;
  parallel_for(points.batch, points.batch * n >= kParallelPoints, [&](int64_t b) {
    const Workspace<Buffers> buffers(n <= kKeptRows);
    buffers->rows.resize(n * m);
    load_front(points, b, n, maximize, buffers->rows.data());
    if (nan == NanPolicy::raise) {
      const int64_t row = first_nan_row(buffers->rows.data(), n, m);
      if (row >= 0) throw_nan(points.layout, b, "row " + std::to_string(row));
    }
    rank_front(*buffers, n, m, ranks + b * n);
  });
}

template void non_dominated_sort<float>(const PointsView<float>&, bool, NanPolicy, int32_t*);
template void non_dominated_sort<double>(const PointsView<double>&, bool, NanPolicy, int32_t*);

}  // namespace morlfast
