#include "morlfast/pareto.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "front.hpp"
#include "lexicographic_order.hpp"
#include "parallel.hpp"
#include "simd.hpp"
#include "sorted_dominance.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

// So much work pays for a parallel region: points that are sorted, terms that are compared.
constexpr int64_t kParallelPoints = 4096, kParallelTerms = 1 << 22;

bool any_nan(const double* values, int64_t count) {
  bool any = false;  // without leaving early, so in vectors
  for (int64_t i = 0; i < count; ++i) any |= values[i] != values[i];
  return any;
}

/// One set as doubles, minimized: its rows without NaN.
struct ComparableRows {
  int64_t length = 0;              // rows of the set, those with NaN too
  std::vector<double> rows;        // (size, m)
  std::vector<int32_t> source;     // their rows in the set
  std::vector<double> violations;  // (size) or empty

  int64_t size() const { return static_cast<int64_t>(source.size()); }

  template <class T>
  void load(const PointSets<T>& sets, int64_t b, const double* violation) {
    const int64_t m = sets.points.m;
    length = sets.lengths ? checked_length(sets.lengths[b], sets.points.n) : sets.points.n;
    rows.resize(length * m);
    load_front(sets.points, b, length, sets.maximize, rows.data());
    violations.clear();
    if (!violation && !any_nan(rows.data(), length * m)) {
      source.resize(length);
      std::iota(source.begin(), source.end(), 0);
      return;
    }
    source.clear();
    for (int64_t i = 0; i < length; ++i) {
      const bool is_nan = first_nan_row(&rows[i * m], 1, m) >= 0;
      if (is_nan || (violation && std::isnan(violation[i]))) {
        if (sets.nan == NanPolicy::raise)
          throw_nan(sets.points.layout, b, "row " + std::to_string(i), is_nan ? sets.argument : "constraints");
        continue;
      }
      if (size() < i) std::copy_n(&rows[i * m], m, &rows[size() * m]);
      source.push_back(static_cast<int32_t>(i));
      if (violation) violations.push_back(violation[i] + 0.0);  // without -0.0
    }
  }
};

/// Points in lexicographic order, equal ones told apart from different ones.
struct LexicographicRows {
  std::vector<int32_t> order;    // the rows that were sorted
  std::vector<double> sorted;    // (different, m)
  std::vector<int32_t> weight;   // (different): how many are equal
  std::vector<int32_t> results;  // (different)
  LexicographicOrder sorting;

  void load(const double* rows, int64_t n, int64_t m) {
    sorting.sort(rows, n, m, 0, order);
    sorted.resize(n * m);
    weight.clear();
    double* next = sorted.data();
    for (const int32_t i : order) {
      const double* z = rows + i * m;
      if (weight.empty() || !std::equal(z, z + m, next - m)) {
        next = std::copy_n(z, m, next);
        weight.push_back(0);
      }
      ++weight.back();
    }
    results.resize(weight.size());
  }

  int64_t different() const { return static_cast<int64_t>(weight.size()); }
};

constexpr int64_t kKeptBytes = int64_t{8} << 20;

struct Scratch {
  ComparableRows set;
  LexicographicRows ordered;
  SortedDominance dominance;
  std::vector<int32_t> by_violation, members, fronts;
  std::vector<double> rows, columns;

  bool worth_keeping() const {
    const size_t doubles = set.rows.capacity() + ordered.sorted.capacity() + rows.capacity() + columns.capacity();
    return dominance.bytes() + static_cast<int64_t>(doubles * sizeof(double)) <= kKeptBytes;
  }

  /// Ranks rows (n, m), the first front being `first`; returns the number behind the last front.
  int32_t rank(const double* points, int64_t n, int64_t m, const int32_t* source, int32_t first, int64_t stop_after,
               int32_t* ranks) {
    ordered.load(points, n, m);
    dominance.rank(ordered.sorted.data(), ordered.different(), m, ordered.weight.data(), stop_after,
                   ordered.results.data());
    int32_t last = 0;
    const int32_t* row = ordered.order.data();
    for (int64_t u = 0; u < ordered.different(); ++u) {
      const int32_t rank = ordered.results[u];
      last = std::max(last, rank);
      for (int32_t e = 0; e < ordered.weight[u]; ++e) ranks[source[*row++]] = first + rank;
    }
    return first + last + 1;
  }

  /// A smaller violation before a larger one: the fronts of one class of equal violations after another.
  int32_t rank_by_violation(int64_t m, int64_t stop_after, int32_t* ranks) {
    const int64_t n = set.size();
    ordered.sorting.sort(set.violations.data(), n, 1, 0, by_violation);
    int32_t fronts = 0;
    for (int64_t start = 0, end = 0; start < n; start = end) {
      if (stop_after > 0 && start >= stop_after) {
        for (int64_t e = start; e < n; ++e) ranks[set.source[by_violation[e]]] = fronts;
        return fronts + 1;
      }
      members.clear();
      rows.clear();
      while (end < n && set.violations[by_violation[end]] == set.violations[by_violation[start]]) {
        const int32_t i = by_violation[end++];
        members.push_back(set.source[i]);
        rows.insert(rows.end(), set.rows.begin() + i * m, set.rows.begin() + (i + 1) * m);
      }
      if (end - start == 1)
        ranks[members[0]] = fronts++;
      else
        fronts =
            rank(rows.data(), end - start, m, members.data(), fronts, std::max<int64_t>(stop_after - start, 0), ranks);
    }
    return fronts;
  }

  /// Ranks behind the first that completes `stop_after` points become one.
  void join_later_fronts(int64_t length, int32_t count, int64_t stop_after, int32_t* ranks) {
    fronts.assign(count + 1, 0);
    for (int64_t i = 0; i < length; ++i) ++fronts[ranks[i]];
    int32_t last = 0;
    for (int64_t settled = fronts[0]; settled < stop_after && last < count; settled += fronts[last]) ++last;
    for (int64_t i = 0; i < length; ++i) ranks[i] = std::min(ranks[i], last + 1);
  }
};

template <class T>
void check_sets(const PointSets<T>& sets) {
  const int64_t n = sets.points.n, m = sets.points.m;
  if (m < 1)
    throw std::invalid_argument(std::string(sets.argument) + ": expected at least 1 objective, got " +
                                std::to_string(m));
  if (n >= std::numeric_limits<int32_t>::max())
    throw std::invalid_argument(std::string(sets.argument) + ": expected fewer than 2^31 - 1 points a set, got " +
                                std::to_string(n));
  if (n == 0 && sets.lengths)  // no set will be loaded
    for (int64_t b = 0; b < sets.points.batch; ++b) checked_length(sets.lengths[b], 0);
}

/// Calls body(b, scratch) for each set.
template <class T, class Body>
void for_each_set(const PointSets<T>& sets, const Body& body) {
  check_sets(sets);
  const int64_t batch = sets.points.batch, n = sets.points.n;
  if (n == 0) return;  // however many sets there are
  parallel_for(batch, batch * n >= kParallelPoints, [&](int64_t b) {
    const Workspace<Scratch> scratch(true);
    body(b, *scratch);
  });
}

}  // namespace

template <class T>
void non_dominated_sort(const PointSets<T>& sets, const double* violations, int64_t stop_after, int32_t* ranks) {
  const int64_t n = sets.points.n, m = sets.points.m;
  if (stop_after < 0)
    throw std::invalid_argument("stop_after: expected at least 1, or 0 for all fronts, got " +
                                std::to_string(stop_after));
  for_each_set(sets, [&](int64_t b, Scratch& scratch) {
    ComparableRows& set = scratch.set;
    int32_t* out = ranks + b * n;
    set.load(sets, b, violations ? violations + b * n : nullptr);
    std::fill(out + set.length, out + n, -1);
    int32_t fronts = 0;
    std::fill(out, out + set.length, -1);
    if (violations)
      fronts = scratch.rank_by_violation(m, stop_after, out);
    else if (set.size() > 0)
      fronts = scratch.rank(set.rows.data(), set.size(), m, set.source.data(), 0, stop_after, out);
    if (set.size() < set.length) std::replace(out, out + set.length, -1, fronts);  // rows with NaN
    if (stop_after > 0 && set.length > 0) scratch.join_later_fronts(set.length, fronts, stop_after, out);
  });
}

template <class T>
void is_non_dominated(const PointSets<T>& sets, bool deduplicate, bool* non_dominated) {
  const int64_t n = sets.points.n, m = sets.points.m;
  for_each_set(sets, [&](int64_t b, Scratch& scratch) {
    ComparableRows& set = scratch.set;
    set.load(sets, b, nullptr);
    bool* out = non_dominated + b * n;
    std::fill(out, out + n, false);
    LexicographicRows& rows = scratch.ordered;
    rows.load(set.rows.data(), set.size(), m);
    scratch.dominance.rank(rows.sorted.data(), rows.different(), m, rows.weight.data(), 1, rows.results.data());
    const int32_t* row = rows.order.data();
    for (int64_t u = 0; u < rows.different(); row += rows.weight[u++])
      // Equal rows stand in the order of the set.
      for (int32_t e = 0; e < (deduplicate ? 1 : rows.weight[u]); ++e) out[set.source[row[e]]] = rows.results[u] == 0;
  });
}

template <class T>
void dominance_counts(const PointSets<T>& sets, int32_t* counts) {
  const int64_t n = sets.points.n, m = sets.points.m;
  for_each_set(sets, [&](int64_t b, Scratch& scratch) {
    ComparableRows& set = scratch.set;
    set.load(sets, b, nullptr);
    int32_t* out = counts + b * n;
    std::fill(out, out + set.length, static_cast<int32_t>(set.size()));  // rows with NaN
    std::fill(out + set.length, out + n, -1);
    LexicographicRows& rows = scratch.ordered;
    rows.load(set.rows.data(), set.size(), m);
    // Equal points too, as each of them counts: those before a point are subtracted.
    std::vector<double>& all = scratch.rows;
    all.clear();
    for (int64_t u = 0; u < rows.different(); ++u)
      for (int32_t e = 0; e < rows.weight[u]; ++e)
        all.insert(all.end(), rows.sorted.begin() + u * m, rows.sorted.begin() + (u + 1) * m);
    scratch.members.resize(set.size());
    scratch.dominance.count(all.data(), set.size(), m, scratch.members.data());
    int64_t at = 0;
    for (const int32_t equal : rows.weight)
      for (int32_t e = 0; e < equal; ++e, ++at) out[set.source[rows.order[at]]] = scratch.members[at] - e;
  });
}

template <class T>
void is_dominated_by(const PointsView<T>& points, const PointSets<T>& others, bool weakly, bool* dominated) {
  const int64_t n = points.n, m = points.m;
  const PointSets<T> own{points, nullptr, others.maximize, others.nan};
  check_sets(own);
  check_sets(others);
  if (n == 0) return;
  parallel_for(points.batch, points.batch * n * others.points.n * m >= kParallelTerms, [&](int64_t b) {
    const Workspace<Scratch> scratch(true);
    ComparableRows& set = scratch->set;
    set.load(others, b, nullptr);
    const int64_t size = set.size();
    std::vector<double>& columns = scratch->columns;
    columns.resize(m * size);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t k = 0; k < m; ++k) columns[k * size + i] = set.rows[i * m + k];
    set.load(own, b, nullptr);
    bool* out = dominated + b * n;
    std::fill(out, out + n, size > 0);  // rows with NaN
    parallel_for(set.size(), set.size() * size * m >= kParallelTerms, [&](int64_t i) {
      const double* z = &set.rows[i * m];
      int64_t no_worse = simd().count_dominators(columns.data(), m, size, size, z, 1);
      if (!weakly && no_worse > 0) {
        for (int64_t j = 0; j < size; ++j) {
          bool equal = true;
          for (int64_t k = 0; k < m && equal; ++k) equal = columns[k * size + j] == z[k];
          no_worse -= equal ? 1 : 0;
        }
      }
      out[set.source[i]] = no_worse > 0;
    });
  });
}

#define MORLFAST_INSTANTIATE(T)                                                               \
  template void non_dominated_sort<T>(const PointSets<T>&, const double*, int64_t, int32_t*); \
  template void is_non_dominated<T>(const PointSets<T>&, bool, bool*);                        \
  template void dominance_counts<T>(const PointSets<T>&, int32_t*);                           \
  template void is_dominated_by<T>(const PointsView<T>&, const PointSets<T>&, bool, bool*)

MORLFAST_INSTANTIATE(float);
MORLFAST_INSTANTIATE(double);

}  // namespace morlfast
