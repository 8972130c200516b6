#include "sorted_dominance.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "simd.hpp"

namespace morlfast {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Up to here all of an ascending list is compared, in whole vectors with infinity behind the last: no branch to
// mispredict.
constexpr size_t kScanned = 256, kPadding = 8;

/// Ranks above the first that completes `stop_after` settled points need not be told apart; 0 tells all apart.
class RankLimit {
 public:
  RankLimit(const int32_t* weight, int64_t n, int64_t stop_after, std::vector<int32_t>& settled)
      : weight_(weight), stop_after_(stop_after), settled_(settled), limit_(static_cast<int32_t>(n - 1)) {
    if (stop_after > 0) settled_.assign(n, 0);
  }

  int32_t value() const { return limit_; }

  /// Point i has its rank.
  void settle(int64_t i, int32_t rank) {
    if (stop_after_ == 0 || rank > limit_) return;
    settled_[rank] += weight_[i];
    count_ += weight_[i];
    while (limit_ > 0 && count_ - settled_[limit_] >= stop_after_) {
      count_ -= settled_[limit_];
      --limit_;
    }
  }

 private:
  const int32_t* weight_;
  int64_t stop_after_, count_ = 0;
  std::vector<int32_t>& settled_;
  int32_t limit_;
};

// m = 2: front k's latest point has its smallest second objective, and these grow with k.
void rank_2(const double* z, int64_t n, RankLimit limit, int32_t* ranks) {
  std::vector<double> latest(kPadding, kInfinity);
  size_t fronts = 0;
  const SimdTable& table = simd();
  for (int64_t i = 0; i < n; ++i) {
    const double y = z[2 * i + 1];
    size_t front;
    if (fronts > 0 && latest[fronts - 1] <= y) {
      front = fronts;  // nearly chains
    } else if (fronts <= kScanned) {
      const int64_t count = table.count_up_to(latest.data(), static_cast<int64_t>(latest.size()), y);
      front = std::min(static_cast<size_t>(count), fronts);
    } else {
      front = std::upper_bound(latest.begin(), latest.begin() + fronts, y) - latest.begin();
    }
    ranks[i] = static_cast<int32_t>(front);
    if (ranks[i] > limit.value()) continue;
    if (front == latest.size()) latest.resize(front + kPadding, kInfinity);
    fronts = std::max(fronts, front + 1);
    latest[front] = y;
    limit.settle(i, ranks[i]);
  }
}

/// Steps of a staircase, at most kCapacity: a ascending, b descending.
class Steps {
 public:
  static constexpr size_t kCapacity = kScanned;

  size_t size() const { return size_; }
  double a(size_t i) const { return a_[i]; }
  double b(size_t i) const { return b_[i]; }

  /// How many steps have a step.a <= a.
  size_t up_to(const SimdTable& simd, double a) const {
    const int64_t count = simd.count_up_to(a_.data(), static_cast<int64_t>(a_.size()), a);
    return std::min(static_cast<size_t>(count), size_);
  }

  void insert(size_t at, double a, double b) {
    if (size_ == a_.size()) {
      a_.resize(std::max<size_t>(2 * size_, kPadding), kInfinity);
      b_.resize(a_.size());
    }
    std::copy_backward(a_.begin() + at, a_.begin() + size_, a_.begin() + size_ + 1);
    std::copy_backward(b_.begin() + at, b_.begin() + size_, b_.begin() + size_ + 1);
    ++size_;
    set(at, a, b);
  }

  void set(size_t at, double a, double b) {
    a_[at] = a;
    b_[at] = b;
  }

  void erase(size_t first, size_t last) {
    if (first == last) return;
    std::fill(std::copy(a_.begin() + last, a_.begin() + size_, a_.begin() + first), a_.begin() + size_, kInfinity);
    std::copy(b_.begin() + last, b_.begin() + size_, b_.begin() + first);
    size_ -= last - first;
  }

  /// The upper half, which leaves.
  Steps split() {
    Steps upper;
    const size_t half = size_ / 2;
    upper.a_.assign(a_.begin() + half, a_.end());
    upper.b_.assign(b_.begin() + half, b_.end());
    upper.size_ = size_ - half;
    erase(half, size_);
    return upper;
  }

 private:
  std::vector<double> a_, b_;
  size_t size_ = 0;
};

/// Non-dominated (a, b) of one front's members in the last two of three objectives, in blocks: adding a step moves no
/// more than one of them.
class Staircase {
 public:
  /// Behind the last step with step.a <= a, which has the smallest b of those.
  struct Place {
    size_t block, step;
  };

  Place find(const SimdTable& simd, double a) const {
    size_t block = 0;
    if (blocks_.size() > 1)
      block = std::upper_bound(blocks_.begin() + 1, blocks_.end(), a,
                               [](double value, const Steps& other) { return value < other.a(0); }) -
              blocks_.begin() - 1;
    return {block, blocks_[block].up_to(simd, a)};
  }

  bool dominates(const Place& place, double b) const {
    return place.step > 0 && blocks_[place.block].b(place.step - 1) <= b;
  }

  /// Adds a step that the staircase does not dominate, with place = find(a); those that it dominates leave.
  void add(const Place& place, double a, double b) {
    Steps& steps = blocks_[place.block];
    const size_t at = place.step - (place.step > 0 && steps.a(place.step - 1) == a ? 1 : 0);
    // Dominated steps follow the new one without a gap, at times into later blocks.
    size_t last = at;
    while (last < steps.size() && steps.b(last) >= b) ++last;
    if (last == steps.size()) drop_dominated_behind(place.block, b);
    if (last == at) {
      blocks_[place.block].insert(at, a, b);
      if (blocks_[place.block].size() == Steps::kCapacity)
        blocks_.insert(blocks_.begin() + place.block + 1, blocks_[place.block].split());
    } else {
      blocks_[place.block].set(at, a, b);
      blocks_[place.block].erase(at + 1, last);
    }
  }

  void start(double a, double b) { blocks_.emplace_back().insert(0, a, b); }

 private:
  void drop_dominated_behind(size_t block, double b) {
    const auto next = blocks_.begin() + block + 1;
    auto kept = next;
    while (kept != blocks_.end() && kept->b(kept->size() - 1) >= b) ++kept;
    if (kept != blocks_.end()) {
      size_t step = 0;
      while (kept->b(step) >= b) ++step;
      kept->erase(0, step);
    }
    blocks_.erase(next, kept);
  }

  std::vector<Steps> blocks_;  // none empty
};

// m = 3: binary search over the fronts, binary search in a front's staircase.
void rank_3(const double* z, int64_t n, RankLimit limit, int32_t* ranks) {
  std::vector<Staircase> fronts;
  const SimdTable& table = simd();
  for (int64_t i = 0; i < n; ++i) {
    const double a = z[3 * i + 1], b = z[3 * i + 2];
    size_t front = 0, end = std::min<size_t>(fronts.size(), limit.value() + size_t{1});
    Staircase::Place place{};
    while (front < end) {
      const size_t middle = (front + end) / 2;
      const Staircase::Place found = fronts[middle].find(table, a);
      if (fronts[middle].dominates(found, b)) {
        front = middle + 1;
      } else {
        end = middle;
        place = found;
      }
    }
    ranks[i] = static_cast<int32_t>(front);
    if (ranks[i] > limit.value()) continue;
    if (front == fronts.size())
      fronts.emplace_back().start(a, b);
    else
      fronts[front].add(place, a, b);
    limit.settle(i, ranks[i]);
  }
}

// What kernels read behind the last point.
constexpr int64_t kBehind = 8;
// So few points are compared pair by pair, in vectors.
constexpr int64_t kFewPoints = 256;
// Three objectives: beyond, staircases are faster.
constexpr int64_t kFewOfThree = 96;
// Words of the bitsets of one step of the conquest: half a second-level cache of a megabyte.
constexpr int64_t kRowWords = 1 << 16;

struct Ranking {
  static constexpr bool kCounts = false;
};
struct Counting {
  static constexpr bool kCounts = true;
};

}  // namespace

/// Divide and conquer after Jensen (2003) and Fortin, Grenier, Parizeau (2013): points are settled by halves of the
/// lexicographic order; between settled points and later ones, halves of one objective leave three quarters of the
/// pairs, one of them without that objective. Small problems end in bitsets of dominators, two objectives in a sweep.
/// The time does not depend on the number of fronts.
template <class Goal>
class Conquest {
 public:
  /// values: 0 at first; ranks or counts in the end.
  Conquest(SortedDominance& buffers, int64_t n, int64_t objectives, const RankLimit& limit, int32_t* values)
      : buffers_(buffers), n_(n), objectives_(objectives), limit_(limit), values_(values) {
    buffers_.above_.assign(n + kBehind, 0);
  }

  void run() {
    if (n_ <= kFewPoints) return settle_few(0, n_);
    buffers_.bit_.resize(n_);
    buffers_.row_.resize(n_);
    buffers_.places_.resize(objectives_ * n_);
    Points all{n_, 0};
    lists().resize(objectives_ * n_);
    top_ = lists().size();
    for (int64_t j = 0; j < objectives_; ++j) {
      const double* column = buffers_.columns_.data() + j * n_;
      buffers_.sorting_.sort(column, n_, 1, 0, buffers_.order_);
      std::copy(buffers_.order_.begin(), buffers_.order_.end(), list(all, j));
      int32_t* place = buffers_.places_.data() + j * n_;
      int32_t at = 0;
      for (int64_t t = 0; t < n_; ++t) {
        const int32_t i = buffers_.order_[t];
        if (t > 0 && column[i] != column[buffers_.order_[t - 1]]) ++at;
        place[i] = at;
      }
    }
    settle(0, n_, all);
  }

 private:
  /// Point numbers in one order an objective: list(points, j) ascends in objective j.
  struct Points {
    int64_t size;
    size_t start;
  };

  std::vector<int32_t>& lists() { return buffers_.lists_; }
  int32_t* list(const Points& points, int64_t j) { return lists().data() + points.start + j * points.size; }
  const int32_t* places(int64_t j) const { return buffers_.places_.data() + j * n_; }

  Points new_points(int64_t size, int64_t objectives) {
    const Points points{size, top_};
    top_ += size * objectives;
    if (lists().size() < top_) lists().resize(std::max(top_, lists().size() * 3 / 2));
    return points;
  }

  /// The members with and without a property, each list in its order.
  template <class Has>
  std::pair<Points, Points> split(const Points& points, int64_t objectives, const Has& has) {
    int64_t with = 0;
    for (int64_t t = 0; t < points.size; ++t) with += has(list(points, 0)[t]) ? 1 : 0;
    const Points first = new_points(with, objectives), second = new_points(points.size - with, objectives);
    for (int64_t j = 0; j < objectives; ++j) {
      const int32_t* from = list(points, j);
      int32_t* to[2] = {list(second, j), list(first, j)};
      for (int64_t t = 0; t < points.size; ++t) *to[has(from[t]) ? 1 : 0]++ = from[t];
    }
    return {first, second};
  }

  /// Points first..last - 1, whose values say all about points before them.
  void settle(int64_t first, int64_t last, const Points& points) {
    if (last - first <= kFewPoints) return settle_few(first, last);
    const size_t top = top_;
    const int64_t middle = first + (last - first) / 2;
    const auto [earlier, later] = split(points, objectives_, [&](int32_t i) { return i < middle; });
    settle(first, middle, earlier);
    conquer(earlier, later, objectives_);
    settle(middle, last, later);
    top_ = top;
  }

  void settle_few(int64_t first, int64_t last) {
    const double* columns = buffers_.columns_.data() + first;
    int64_t* above = buffers_.above_.data() + first;
    for (int64_t p = 0; p < last - first; ++p) {
      int32_t& value = values_[first + p];
      if constexpr (Goal::kCounts) {
        value += static_cast<int32_t>(simd().count_dominators(columns, objectives_, n_, p, columns + p, n_));
      } else {
        if (value <= limit_.value())
          value = std::max(value, static_cast<int32_t>(
                                      simd().largest_dominator(columns, objectives_, n_, p, columns + p, n_, above)));
        above[p] = value + 1;
        limit_.settle(first + p, value);
      }
    }
  }

  /// Tells `targets` what `sources` mean to them, where only the first objectives are still to be compared.
  void conquer(Points sources, Points targets, int64_t objectives) {
    const size_t top = top_;
    if constexpr (!Goal::kCounts) leave_idle(sources, targets, objectives);
    if (sources.size > 0 && targets.size > 0) {
      if ((sources.size + 63) / 64 * targets.size <= kRowWords)
        conquer_bits(sources, targets, objectives);
      else if (objectives == 2)
        sweep(sources, targets);
      else
        conquer_halves(sources, targets, objectives);
    }
    top_ = top;
  }

  /// Leaves out sources that rank too low to raise any target, and targets that no source can raise.
  void leave_idle(Points& sources, Points& targets, int64_t objectives) {
    int32_t highest = -1, lowest = limit_.value();
    for (int64_t t = 0; t < sources.size; ++t)
      if (const int32_t value = values_[list(sources, 0)[t]]; value <= limit_.value())
        highest = std::max(highest, value);
    for (int64_t t = 0; t < targets.size; ++t) lowest = std::min(lowest, values_[list(targets, 0)[t]]);
    const auto busy_source = [&](int32_t i) { return values_[i] >= lowest && values_[i] <= limit_.value(); };
    const auto busy_target = [&](int32_t i) { return values_[i] <= highest; };
    const auto keep = [&](Points& points, const auto& busy) {
      const int32_t* members = list(points, 0);
      const int64_t count = std::count_if(members, members + points.size, busy);
      if (count == 0)
        points.size = 0;
      else if (count < points.size - points.size / 4)
        points = split(points, objectives, busy).first;
    };
    keep(sources, busy_source);
    keep(targets, busy_target);
  }

  void conquer_halves(const Points& sources, const Points& targets, int64_t objectives) {
    const int64_t last = objectives - 1;
    const int32_t* place = places(last);
    const int32_t* source = list(sources, last);
    const int32_t* target = list(targets, last);
    // The place in the middle of both.
    int64_t s = 0, t = 0;
    while (s + t < (sources.size + targets.size) / 2)
      if (t == targets.size || (s < sources.size && place[source[s]] <= place[target[t]]))
        ++s;
      else
        ++t;
    const int32_t middle = s == sources.size || (t < targets.size && place[target[t]] < place[source[s]])
                               ? place[target[t]]
                               : place[source[s]];
    const int32_t lowest = std::min(place[source[0]], place[target[0]]);
    const int32_t highest = std::max(place[source[sources.size - 1]], place[target[targets.size - 1]]);
    if (lowest == highest) return conquer(sources, targets, last);
    const int32_t lower = middle < highest ? middle : middle - 1;
    const auto low = [&](int32_t i) { return place[i] <= lower; };
    if (place[source[sources.size - 1]] <= lower && lower < place[target[0]]) return conquer(sources, targets, last);
    const auto [low_sources, high_sources] = split(sources, objectives, low);
    const auto [low_targets, high_targets] = split(targets, objectives, low);
    conquer(high_sources, high_targets, objectives);
    conquer(low_sources, low_targets, objectives);
    conquer(low_sources, high_targets, last);
  }

  /// A bit for each source, the highest value first. The row of a target is the AND over the objectives of the sources
  /// that are no worse there; only sources that could raise it are looked at.
  void conquer_bits(const Points& sources, const Points& targets, int64_t objectives) {
    const int64_t words = (sources.size + 63) / 64;
    int32_t* bit = buffers_.bit_.data();
    int32_t* row = buffers_.row_.data();
    int32_t lowest = 0;
    std::vector<int32_t>&sorted = buffers_.sorted_, &above = buffers_.histogram_;
    sorted.resize(sources.size);
    const int32_t* source = list(sources, 0);
    if constexpr (Goal::kCounts) {
      for (int64_t t = 0; t < sources.size; ++t) bit[source[t]] = static_cast<int32_t>(t);
    } else {
      int32_t highest = 0;
      lowest = std::numeric_limits<int32_t>::max();
      for (int64_t t = 0; t < sources.size; ++t) {
        lowest = std::min(lowest, values_[source[t]]);
        highest = std::max(highest, values_[source[t]]);
      }
      above.assign(highest - lowest + 1, 0);
      for (int64_t t = 0; t < sources.size; ++t) ++above[values_[source[t]] - lowest];
      for (int32_t v = highest - lowest; v > 0; --v) above[v - 1] += above[v];
      for (int64_t t = sources.size - 1; t >= 0; --t) {
        bit[source[t]] = --above[values_[source[t]] - lowest];
        sorted[bit[source[t]]] = source[t];
      }
      // above[v]: how many sources have a value beyond v + lowest.
    }
    const auto words_of = [&](int32_t value) {
      if (Goal::kCounts || value <= lowest) return words;
      const size_t v = value - lowest - 1;
      return v < above.size() ? (above[v] + int64_t{63}) / 64 : 0;
    };
    buffers_.rows_.resize(std::max<size_t>(buffers_.rows_.size(), words * targets.size));
    uint64_t* rows = buffers_.rows_.data();
    const int32_t* target = list(targets, 0);
    for (int64_t t = 0; t < targets.size; ++t) row[target[t]] = static_cast<int32_t>(t);
    for (int64_t j = 0; j < objectives; ++j) {
      std::vector<uint64_t>& running = buffers_.running_;
      running.assign(words, 0);
      const int32_t* place = places(j);
      source = list(sources, j);
      target = list(targets, j);
      for (int64_t s = 0, t = 0; t < targets.size; ++t) {
        const int32_t own = place[target[t]];
        for (; s < sources.size && place[source[s]] <= own; ++s)
          running[bit[source[s]] / 64] |= uint64_t{1} << (bit[source[s]] % 64);
        int32_t& value = values_[target[t]];
        const int64_t used = words_of(value);
        uint64_t* bits = rows + row[target[t]] * words;
        if (j == 0) {
          std::copy(running.begin(), running.begin() + used, bits);
        } else if (j < objectives - 1) {
          simd().and_words(bits, running.data(), used);
        } else if constexpr (Goal::kCounts) {
          for (int64_t w = 0; w < used; ++w) value += std::popcount(bits[w] & running[w]);
        } else {
          const int64_t w = simd().first_common_word(bits, running.data(), used);
          if (w < used) value = std::max(value, values_[sorted[w * 64 + std::countr_zero(bits[w] & running[w])]] + 1);
        }
      }
    }
  }

  /// Two objectives: by the first, with a Fenwick tree over the sources in the order of the second.
  void sweep(const Points& sources, const Points& targets) {
    int32_t* bit = buffers_.bit_.data();
    int32_t* row = buffers_.row_.data();
    const int32_t* place = places(1);
    const int32_t* source = list(sources, 1);
    const int32_t* target = list(targets, 1);
    int32_t s = 0;
    for (int64_t t = 0; t < targets.size; ++t) {
      for (; s < sources.size && place[source[s]] <= place[target[t]]; ++s) bit[source[s]] = s;
      row[target[t]] = s;
    }
    for (; s < sources.size; ++s) bit[source[s]] = s;
    std::vector<int32_t>& tree = buffers_.histogram_;
    tree.assign(sources.size + 1, 0);
    place = places(0);
    source = list(sources, 0);
    target = list(targets, 0);
    s = 0;
    for (int64_t t = 0; t < targets.size; ++t) {
      for (; s < sources.size && place[source[s]] <= place[target[t]]; ++s) {
        const int32_t above = Goal::kCounts ? 1 : values_[source[s]] + 1;
        for (int64_t i = bit[source[s]] + 1; i <= sources.size; i += i & -i)
          tree[i] = Goal::kCounts ? tree[i] + 1 : std::max(tree[i], above);
      }
      int32_t& value = values_[target[t]];
      for (int32_t i = row[target[t]]; i > 0; i &= i - 1)
        value = Goal::kCounts ? value + tree[i] : std::max(value, tree[i]);
    }
  }

  SortedDominance& buffers_;
  int64_t n_, objectives_;
  RankLimit limit_;
  int32_t* values_;
  size_t top_ = 0;
};

int64_t SortedDominance::bytes() const {
  const size_t doubles = columns_.capacity() + above_.capacity() + running_.capacity() + rows_.capacity();
  const size_t numbers = places_.capacity() + lists_.capacity() + bit_.capacity() + row_.capacity();
  return static_cast<int64_t>(doubles * sizeof(double) + numbers * sizeof(int32_t));
}

void SortedDominance::load_columns(const double* points, int64_t n, int64_t m, int64_t columns) {
  columns_.assign(columns * n + kBehind, 0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 1; k < m; ++k) columns_[(k - 1) * n + i] = points[i * m + k];
}

void SortedDominance::rank(const double* points, int64_t n, int64_t m, const int32_t* weight, int64_t stop_after,
                           int32_t* ranks) {
  if (m == 1) return std::iota(ranks, ranks + n, 0);
  const RankLimit limit(weight, n, stop_after, settled_);
  if (m == 2) return rank_2(points, n, limit, ranks);
  if (m == 3 && n > kFewOfThree) return rank_3(points, n, limit, ranks);
  load_columns(points, n, m, m - 1);
  std::fill_n(ranks, n, 0);
  Conquest<Ranking>(*this, n, m - 1, limit, ranks).run();
}

void SortedDominance::count(const double* points, int64_t n, int64_t m, int32_t* counts) {
  // The conquest ends in two objectives: others are added that are equal for all.
  const int64_t objectives = std::max<int64_t>(m - 1, 2);
  load_columns(points, n, m, objectives);
  std::fill_n(counts, n, 0);
  Conquest<Counting>(*this, n, objectives, RankLimit(nullptr, n, 0, settled_), counts).run();
}

}  // namespace morlfast
