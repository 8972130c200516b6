#include "local_bounds.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "morlfast/hypervolume.hpp"
#include "simd.hpp"

namespace morlfast {

// ---- ranks ----

void RankedFront::load(const double* rows, int64_t n, int m, const double* ref, bool prefilter, int axis) {
  m_ = m;
  axis_ = axis < 0 ? m - 1 : axis;
  counting_.load(rows, n, m, ref, prefilter);
  const std::vector<double>& points = counting_.points;
  const int size = static_cast<int>(counting_.size());
  row_.resize(size);
  position_.resize(size);
  rank_.resize(static_cast<size_t>(size) * (m - 1));
  coordinate_.resize(static_cast<size_t>(size + 2) * m);
  column_.resize(static_cast<size_t>(size) * m);
  for (int k = m - 1; k >= 0; --k) {
    const int objective = k == m - 1 ? axis_ : k < axis_ ? k : k + 1;
    sorting_.sort(points.data(), size, m, objective, order_);
    double* coordinate = &coordinate_[static_cast<size_t>(k) * (size + 2)];
    coordinate[0] = -std::numeric_limits<double>::infinity();
    coordinate[size + 1] = ref[objective];
    for (int r = 0; r < size; ++r) {
      const int32_t i = order_[r];
      const double z = points[static_cast<size_t>(i) * m + objective];
      coordinate[r + 1] = z;
      if (k == m - 1) {
        row_[r] = counting_.source[i];
        position_[i] = r;
      } else {
        rank_[static_cast<size_t>(position_[i]) * (m - 1) + k] = r + 1;
      }
      column_[static_cast<size_t>(k) * size + position_[i]] = z;
    }
  }
}

int RankedFront::rank_of(int k, double value) const {
  const double* first = coordinates(k) + 1;
  return static_cast<int>(std::upper_bound(first, first + size(), value) - first);
}

// ---- regions ----

Region Region::whole(const RankedFront& front) {
  const size_t axes = front.objectives() - 1;
  return {std::vector<int32_t>(axes, 0), std::vector<int32_t>(axes, front.size() + 1), 0};
}

Region Region::part(const RankedFront& front, int64_t part, int64_t parts) {
  Region region = whole(front);
  int64_t first = 0, last = parts;
  while (last - first > 1) {
    const int64_t middle = first + (last - first) / 2;
    Region upper = region.cut();
    if (part >= middle) {
      region = std::move(upper);
      first = middle;
    } else {
      last = middle;
    }
  }
  return region;
}

Region Region::cut() {
  size_t widest = 0;
  for (size_t d = 1; d < low.size(); ++d)
    if (high[d] - low[d] > high[widest] - low[widest]) widest = d;
  Region upper = *this;
  // Bounds crowd near the reference point: this cut halves the work where the middle of the ranks would not.
  const int32_t middle = low[widest] + std::max((high[widest] - low[widest]) * 3 / 4, 1);
  high[widest] = middle;
  upper.low[widest] = middle;
  return upper;
}

bool Region::empty() const {
  for (size_t d = 0; d < low.size(); ++d)
    if (low[d] >= high[d]) return true;
  return false;
}

// ---- the sweep ----

namespace {

/// Rows of ranks, or of defining points, one lane for each objective but the last; unused lanes are 0.
template <class Lane, int kLanes>
struct Rows {
  static constexpr int kBytes = static_cast<int>(sizeof(Lane)) * kLanes;
  static constexpr int kWords = kBytes / 8;
  typedef Lane Vector __attribute__((vector_size(kBytes < 16 ? 16 : kBytes)));

  static void load(const unsigned char* rows, int64_t i, Vector& row) {
    if constexpr (kBytes == 8) {
      // Through a general register: copying half a vector goes through memory, and waits for it.
      typedef uint64_t Words __attribute__((vector_size(16)));
      uint64_t word;
      std::memcpy(&word, rows + i * 8, 8);
      row = (Vector)(Words{word, 0});
    } else {
      std::memcpy(&row, rows + i * kBytes, kBytes);
    }
  }
  static void store(unsigned char* rows, int64_t i, const Vector& row) { std::memcpy(rows + i * kBytes, &row, kBytes); }
  static void unpack(const Vector& row, Lane (&lanes)[kLanes]) {
    if constexpr (kBytes == 8) {
      uint64_t word;
      std::memcpy(&word, &row, 8);
      for (int k = 0; k < kLanes; ++k) lanes[k] = static_cast<Lane>(word >> (8 * sizeof(Lane) * k));
    } else {
      std::memcpy(lanes, &row, kBytes);
    }
  }
};

/// At least `size` elements.
template <class T>
void reserve(std::vector<T>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
}

/// Sum with a running compensation (Neumaier), so that millions of boxes keep all digits.
class Sum {
 public:
  void add(double term) {
    const double next = sum_ + term;
    compensation_ += std::abs(sum_) >= std::abs(term) ? (sum_ - next) + term : (term - next) + sum_;
    sum_ = next;
  }
  double value() const { return std::isfinite(sum_) ? sum_ + compensation_ : sum_; }

 private:
  double sum_ = 0, compensation_ = 0;
};

}  // namespace

void BoundsBuffers::reserve_bounds(int64_t count, int64_t row_bytes, bool with_depths) {
  constexpr int64_t kVector = 64;  // scans read whole vectors
  reserve(bounds, count * row_bytes + kVector);
  reserve(definitions, count * row_bytes);
  reserve(killed, count);
  if (with_depths) reserve(born, count);
}

void BoundsBuffers::reserve_points(int64_t points, int64_t children, int64_t row_bytes) {
  reserve(table, points * row_bytes);
  reserve(child_bounds, children * row_bytes);
  reserve(child_definitions, children * row_bytes);
}

namespace {

/// Everything a sweep reads.
struct Task {
  const RankedFront& front;
  Region region;
  const std::vector<int32_t>* positions = nullptr;            // ascending, or all
  double nearest = -std::numeric_limits<double>::infinity();  // coordinates along the last objective are raised to it
  MemoryLimit limit;
  BoundsBuffers& buffers;

  int axes() const { return front.objectives() - 1; }
  double depth(int t) const { return std::max(front.depth(t), nearest); }
};

// Killed bounds whose children are made before any is stored: they stay in the first cache.
constexpr int64_t kBlock = 128;

/// Sweeps the points of a region by their last objective. Returns -1, or the position at which the list of bounds
/// would outgrow the limit; up to there everything has been handed to `mode`.
///
/// A bound u (row of ranks) has a defining point for each objective. A point z removes every bound that is above it in
/// all objectives; with lo_d = max(z_d, the d-th ranks of the defining points of u for objectives before d), the
/// dominated box is [lo, u), and z replaces the d-th defining point in a child of u wherever z_d exceeds the d-th ranks
/// of the other defining points. Without z_d in lo, the box is the part of the non-dominated region below u, from the
/// depth at which u was made to that at which it is removed.
template <class Lane, int kLanes, int kAxes, class Mode>
int sweep(const Task& task, Mode& mode) {
  using R = Rows<Lane, kLanes>;
  using Vector = typename R::Vector;
  const int axes = kAxes > 0 ? kAxes : task.axes();
  const RankedFront& front = task.front;
  const Region& region = task.region;
  BoundsBuffers& buffers = task.buffers;
  const int n = front.size();
  const double reference = front.ref(axes);
  const double resumed = region.start > 0 ? task.depth(region.start) : task.nearest;

  Vector only[kAxes > 0 ? kAxes : kLanes], after[kAxes > 0 ? kAxes : kLanes], floor{}, ones{};
  for (int k = 0; k < axes; ++k) {
    ones[k] = 1;
    only[k] = after[k] = Vector{};
    only[k][k] = static_cast<Lane>(-1);
    for (int j = k + 1; j < axes; ++j) after[k][j] = static_cast<Lane>(-1);
    floor[k] = static_cast<Lane>(region.low[k]);
  }

  constexpr int64_t kBoundBytes = 2 * R::kBytes + (Mode::kComplement ? 8 : 0) + 4;
  // Vectors double when they grow; slots are 32-bit integers.
  const int64_t most = std::clamp<int64_t>(task.limit.bytes / (2 * kBoundBytes), 64 + 2 * axes, int64_t{1} << 30);
  buffers.reserve_points(int64_t{n} + axes, kBlock * axes + 1, R::kBytes);
  int64_t capacity = std::min<int64_t>(most, 256);
  buffers.reserve_bounds(capacity, R::kBytes, Mode::kComplement);
  unsigned char* const table = buffers.table.data();
  unsigned char* const child_bounds = buffers.child_bounds.data();
  unsigned char* const child_definitions = buffers.child_definitions.data();

  // The first bound: the upper corner of the region, defined by one stand-in an objective behind the points.
  int64_t active = 1;
  {
    Vector bound{}, definition{};
    for (int k = 0; k < axes; ++k) {
      Vector corner{};
      corner[k] = bound[k] = static_cast<Lane>(region.high[k]);
      definition[k] = static_cast<Lane>(n + k);
      R::store(table, n + k, corner);
    }
    R::store(buffers.bounds.data(), 0, bound);
    R::store(buffers.definitions.data(), 0, definition);
    if constexpr (Mode::kComplement) buffers.born[0] = resumed;
  }

  // Hands the box of bound `slot` to the mode, and returns what that makes of it; `corner` is what children are made
  // of.
  struct Corner {
    Vector bound, others;
  };
  const auto visit = [&](int64_t slot, const Vector& start, bool counted, double near, double far, Corner& corner) {
    alignas(64) Lane definition[kLanes];
    std::memcpy(definition, buffers.definitions.data() + slot * R::kBytes, R::kBytes);
    Vector low = start, others{}, bound{};
    for (int k = 0; k < axes; ++k) {
      Vector row;
      R::load(table, definition[k], row);
      const Vector later = row & after[k], other = row & ~only[k];
      low = low > later ? low : later;
      others = others > other ? others : other;
      bound |= row & only[k];
    }
    corner = {bound, others};
    if (!counted) return 0.0;
    low = low < bound ? low : bound;
    Lane lows[kLanes], highs[kLanes];
    R::unpack(low, lows);
    R::unpack(bound, highs);
    return mode.template box<kAxes>(lows, highs, near, far);
  };
  const auto finish = [&](double depth) {
    if constexpr (Mode::kComplement) {
      Corner corner;
      for (int64_t slot = 0; slot < active; ++slot) visit(slot, floor, true, buffers.born[slot], depth, corner);
    }
  };

  const auto above = sizeof(Lane) == 1   ? simd().rows_at_least_8
                     : sizeof(Lane) == 2 ? simd().rows_at_least_16
                                         : simd().rows_at_least_32;
  const int steps = task.positions ? static_cast<int>(task.positions->size()) : n;
  for (int step = 0; step < steps; ++step) {
    const int t = task.positions ? (*task.positions)[step] : step;
    const int32_t* ranks = front.ranks(t);
    Vector z{};
    bool inside = true;
    for (int k = 0; k < axes; ++k) {
      const int32_t rank = std::max(ranks[k], region.low[k]);
      inside &= rank < region.high[k];
      z[k] = static_cast<Lane>(rank);
    }
    if (!inside) continue;
    R::store(table, t, z);

    const Vector next = z + ones;
    alignas(64) unsigned char above_z[R::kBytes];
    R::store(above_z, 0, next);
    int32_t* const killed = buffers.killed.data();
    const int64_t count = above(buffers.bounds.data(), active, R::kWords, above_z, killed);
    if (count == 0) continue;
    if (active + count * (axes - 1) > most) {
      finish(task.depth(t));
      return t;
    }
    if (active + count * (axes - 1) > capacity) {
      capacity = std::min(most, std::max(active + count * (axes - 1), 2 * capacity));
      buffers.reserve_bounds(capacity, R::kBytes, Mode::kComplement);
    }
    unsigned char* const bounds = buffers.bounds.data();
    unsigned char* const definitions = buffers.definitions.data();
    int32_t* const slots = buffers.killed.data();

    const double depth = task.depth(t);
    const bool counted = t >= region.start;
    const Vector self = ones * static_cast<Lane>(t);
    int64_t holes = 0;
    double measure = 0;
    for (int64_t first = 0; first < count; first += kBlock) {
      const int64_t last = std::min(first + kBlock, count);
      int64_t made = 0;
      double of_block = 0;
      for (int64_t q = first; q < last; ++q) {
        const int64_t slot = slots[q];
        Corner corner;
        if constexpr (Mode::kComplement)
          of_block += visit(slot, floor, counted, buffers.born[slot], depth, corner);
        else
          of_block += visit(slot, z, counted, depth, reference, corner);
        Lane replaces[kLanes];
        R::unpack((Vector)(z > corner.others), replaces);
        Vector own;
        R::load(definitions, slot, own);
        for (int k = 0; k < axes; ++k) {
          const Vector child_bound = (corner.bound & ~only[k]) | (z & only[k]);
          const Vector child_definition = (own & ~only[k]) | (self & only[k]);
          R::store(child_bounds, made, child_bound);
          R::store(child_definitions, made, child_definition);
          made += replaces[k] & 1;
        }
      }
      measure += of_block;
      // Children take the places of the removed bounds, then new ones.
      const auto put = [&](int64_t slot, int64_t child) {
        std::memcpy(bounds + slot * R::kBytes, child_bounds + child * R::kBytes, R::kBytes);
        std::memcpy(definitions + slot * R::kBytes, child_definitions + child * R::kBytes, R::kBytes);
        if constexpr (Mode::kComplement) buffers.born[slot] = std::max(depth, resumed);
      };
      const int64_t removed = last - first, reused = std::min(made, removed);
      for (int64_t c = 0; c < reused; ++c) put(slots[first + c], c);
      for (int64_t c = reused; c < made; ++c) put(active++, c);
      for (int64_t c = reused; c < removed; ++c) slots[holes++] = slots[first + c];
    }
    while (holes > 0) {
      const int64_t hole = slots[--holes];
      if (hole == --active) continue;
      std::memcpy(bounds + hole * R::kBytes, bounds + active * R::kBytes, R::kBytes);
      std::memcpy(definitions + hole * R::kBytes, definitions + active * R::kBytes, R::kBytes);
      if constexpr (Mode::kComplement) buffers.born[hole] = buffers.born[active];
    }
    if (counted) mode.step(t, measure);
    if (active == 0) break;  // all is dominated from here on
  }
  finish(front.ref(axes));
  return -1;
}

// ---- what is done with the boxes ----

/// Coordinates of ranks, looked up where the boxes are.
struct Coordinates {
  explicit Coordinates(const RankedFront& front) : axes(front.objectives() - 1) {
    for (int k = 0; k < axes; ++k) along[k] = front.coordinates(k);
  }

  int axes;
  const double* along[kMaxHypervolumeObjectives];
};

/// Sum of the boxes of a front with finite coordinates.
class VolumeMode {
 public:
  static constexpr bool kComplement = false, kUnrolled = true;

  explicit VolumeMode(const RankedFront& front) : front_(front), coordinates_(front) {}

  template <int kAxes, class Lane>
  double box(const Lane* low, const Lane* high, double, double) const {
    const int axes = kAxes > 0 ? kAxes : coordinates_.axes;
    double measure = coordinates_.along[0][high[0]] - coordinates_.along[0][low[0]];
    for (int k = 1; k < axes; ++k) measure *= coordinates_.along[k][high[k]] - coordinates_.along[k][low[k]];
    return measure;
  }
  void step(int t, double measure) { volume_.add(measure * (front_.ref(coordinates_.axes) - front_.depth(t))); }
  double value() const { return volume_.value(); }

 private:
  const RankedFront& front_;
  Coordinates coordinates_;
  Sum volume_;
};

/// Volume and its derivatives. A side is the difference of two coordinates, so a box adds to two slopes along each
/// objective.
class GradientMode {
 public:
  static constexpr bool kComplement = false, kUnrolled = false;

  GradientMode(const RankedFront& front, double* slopes) : front_(front), coordinates_(front), slopes_(slopes) {}

  template <int kAxes, class Lane>
  double box(const Lane* low, const Lane* high, double near, double far) {
    const int axes = coordinates_.axes;
    double before[kMaxHypervolumeObjectives], side[kMaxHypervolumeObjectives];
    double product = 1;
    for (int k = 0; k < axes; ++k) {
      if (low[k] >= high[k]) return 0;  // empty, not only flat: a flat box has a slope
      before[k] = product;
      side[k] = coordinates_.along[k][high[k]] - coordinates_.along[k][low[k]];
      product = guarded(product, side[k]);
    }
    const double measure = product;
    double behind = far - near;
    for (int k = axes - 1; k >= 0; --k) {
      const double slope = guarded(before[k], behind);
      double* along = slopes_ + static_cast<size_t>(k) * (front_.size() + 2);
      along[high[k]] += slope;
      along[low[k]] -= slope;
      behind = guarded(behind, side[k]);
    }
    return measure;
  }
  void step(int t, double measure) {
    volume_.add(guarded(measure, front_.ref(coordinates_.axes) - front_.depth(t)));
    slopes_[static_cast<size_t>(coordinates_.axes) * (front_.size() + 2) + t + 1] -= measure;
  }
  double value() const { return volume_.value(); }

 private:
  const RankedFront& front_;
  Coordinates coordinates_;
  double* slopes_;  // (m, size + 2), by rank
  Sum volume_;
};

/// Volume and the exclusive measure of each point along the swept objective, with guarded products.
class AreaMode {
 public:
  static constexpr bool kComplement = false, kUnrolled = false;

  AreaMode(const RankedFront& front, double* areas) : front_(front), coordinates_(front), areas_(areas) {}

  template <int kAxes, class Lane>
  double box(const Lane* low, const Lane* high, double, double) const {
    double measure = 1;
    for (int k = 0; k < coordinates_.axes; ++k)
      measure = guarded(measure, coordinates_.along[k][high[k]] - coordinates_.along[k][low[k]]);
    return measure;
  }
  void step(int t, double measure) {
    volume_.add(guarded(measure, front_.ref(coordinates_.axes) - front_.depth(t)));
    if (areas_) areas_[front_.row(t)] += measure;
  }
  double value() const { return volume_.value(); }

 private:
  const RankedFront& front_;
  Coordinates coordinates_;
  double* areas_;
  Sum volume_;
};

/// Sum of the boxes of the non-dominated region beyond a corner.
class ExclusiveMode {
 public:
  static constexpr bool kComplement = true, kUnrolled = true;

  ExclusiveMode(const RankedFront& front, const double* corner) : coordinates_(front), corner_(corner) {}

  template <int kAxes, class Lane>
  double box(const Lane* low, const Lane* high, double near, double far) {
    const int axes = kAxes > 0 ? kAxes : coordinates_.axes;
    double measure = far > near ? far - near : 0;
    for (int k = 0; k < axes; ++k)
      measure = guarded(measure, coordinates_.along[k][high[k]] - std::max(coordinates_.along[k][low[k]], corner_[k]));
    volume_.add(measure);
    return measure;
  }
  void step(int, double) {}
  double value() const { return volume_.value(); }

 private:
  Coordinates coordinates_;
  const double* corner_;
  Sum volume_;
};

/// Hands boxes on in batches.
template <bool kNonDominated>
class StreamMode {
 public:
  static constexpr bool kComplement = kNonDominated, kUnrolled = false;

  StreamMode(const RankedFront& front, BoxSink& sink)
      : coordinates_(front), sink_(sink), low_(front.objectives() * kBatch), high_(low_.size()) {}

  template <int kAxes, class Lane>
  double box(const Lane* low, const Lane* high, double near, double far) {
    const int axes = coordinates_.axes;
    bool solid = near < far;
    for (int k = 0; k < axes; ++k) {
      const double from = coordinates_.along[k][low[k]], to = coordinates_.along[k][high[k]];
      solid &= from < to;
      low_[k * kBatch + count_] = from;
      high_[k * kBatch + count_] = to;
    }
    low_[axes * kBatch + count_] = near;
    high_[axes * kBatch + count_] = far;
    count_ += solid;
    if (count_ == kBatch) flush();
    return 0;
  }
  void step(int, double) {}
  void flush() {
    if (count_ > 0) sink_.take(low_.data(), high_.data(), kBatch, count_);
    count_ = 0;
  }

 private:
  static constexpr int64_t kBatch = 4096;

  Coordinates coordinates_;
  BoxSink& sink_;
  std::vector<double> low_, high_;
  int64_t count_ = 0;
};

// ---- lanes ----

template <class Lane, int kLanes, class Mode>
int sweep_axes(const Task& task, Mode& mode) {
  // Unrolled for the few objectives that are common; the boxes' users decide whether speed matters.
  if constexpr (Mode::kUnrolled) {
    switch (task.axes()) {
      case 2:
        return sweep<Lane, kLanes, 2>(task, mode);
      case 3:
        return sweep<Lane, kLanes, 3>(task, mode);
      case 4:
        return sweep<Lane, kLanes, 4>(task, mode);
      default:
        break;
    }
    if constexpr (kLanes >= 8) {
      switch (task.axes()) {
        case 5:
          return sweep<Lane, kLanes, 5>(task, mode);
        case 6:
          return sweep<Lane, kLanes, 6>(task, mode);
        case 7:
          return sweep<Lane, kLanes, 7>(task, mode);
        case 8:
          return sweep<Lane, kLanes, 8>(task, mode);
        default:
          break;
      }
    }
  }
  return sweep<Lane, kLanes, 0>(task, mode);
}

/// The narrowest rows that hold the ranks and the defining points.
template <class Mode>
int sweep_lanes(const Task& task, Mode& mode) {
  const int axes = task.axes();
  const int64_t largest = int64_t{task.front.size()} + axes + 1;
  if (largest <= 0xff && axes <= 8) return sweep_axes<uint8_t, 8>(task, mode);
  if (largest <= 0xff && axes <= 16) return sweep<uint8_t, 16, 0>(task, mode);
  if (largest <= 0xffff && axes <= 4) return sweep_axes<uint16_t, 4>(task, mode);
  if (largest <= 0xffff && axes <= 8) return sweep_axes<uint16_t, 8>(task, mode);
  if (largest <= 0xffff && axes <= 16) return sweep<uint16_t, 16, 0>(task, mode);
  if (largest <= 0xffff) return sweep<uint16_t, 64, 0>(task, mode);
  if (axes <= 8) return sweep<uint32_t, 8, 0>(task, mode);
  return sweep<uint32_t, 64, 0>(task, mode);
}

/// A region whose list of bounds outgrows the limit goes on as two. Ends: a region one rank wide has one bound.
template <class Mode>
void sweep_within_limit(Task& task, Mode& mode) {
  if (task.region.empty()) return;
  const int stopped = sweep_lanes(task, mode);
  if (stopped < 0) return;
  task.region.start = std::max(task.region.start, stopped);
  Region upper = task.region.cut();
  sweep_within_limit(task, mode);
  task.region = std::move(upper);
  sweep_within_limit(task, mode);
}

}  // namespace

namespace {

bool dominated(const RankedFront& front, int t) {
  const int axes = front.objectives() - 1;
  for (int s = 0; s < t; ++s) {
    int below = 0;
    while (below < axes && front.ranks(s)[below] < front.ranks(t)[below]) ++below;
    if (below == axes) return true;
  }
  return false;
}

}  // namespace

double dominated_volume(const RankedFront& front, const Region& region, MemoryLimit limit, BoundsBuffers& buffers,
                        double* gradient) {
  if (front.size() == 0 || region.empty()) return 0;
  Task task{.front = front, .region = region, .limit = limit, .buffers = buffers};
  if (!gradient) {
    if (!front.finite()) return std::numeric_limits<double>::infinity();
    VolumeMode mode(front);
    sweep_within_limit(task, mode);
    // 0 * inf where the product of sides overflows
    return std::isnan(mode.value()) ? dominated_areas(front, region, limit, buffers, nullptr) : mode.value();
  }
  const int m = front.objectives();
  const size_t ranks = front.size() + 2;
  std::vector<double> slopes(ranks * m);
  GradientMode mode(front, slopes.data());
  sweep_within_limit(task, mode);
  for (int t = 0; t < front.size(); ++t) {
    // The point whose coordinate is a cut has the slopes of both sides, which cancel but for rounding; a dominated one
    // must have none at all.
    if (slopes[(m - 1) * ranks + t + 1] == 0 && dominated(front, t)) continue;
    double* row = gradient + static_cast<size_t>(front.row(t)) * m;
    for (int k = 0; k < m - 1; ++k) row[k] += slopes[k * ranks + front.ranks(t)[k]];
    row[m - 1] += slopes[(m - 1) * ranks + t + 1];
  }
  return mode.value();
}

double dominated_areas(const RankedFront& front, const Region& region, MemoryLimit limit, BoundsBuffers& buffers,
                       double* areas) {
  if (front.size() == 0 || region.empty()) return 0;
  Task task{.front = front, .region = region, .limit = limit, .buffers = buffers};
  AreaMode mode(front, areas);
  sweep_within_limit(task, mode);
  return mode.value();
}

namespace {

// Of the points that take most of a corner's region, so many are compared with all the others.
constexpr int kStrongPoints = 12;

/// Sweep positions of the points that may bound what `corner` dominates alone: moved onto the region above the corner,
/// most points are dominated by one of a few.
void select_bounding(const RankedFront& front, const std::vector<int32_t>* others, int skip, const double* corner,
                     BoundsBuffers& buffers) {
  const int m = front.objectives();
  const int64_t n = others ? static_cast<int64_t>(others->size()) : front.size();
  std::vector<double>& clipped = buffers.clipped;
  clipped.resize(n * (others ? 2 * m + 1 : m + 1));
  double* const volume = clipped.data() + n * m;
  const double* columns = front.column(0);
  if (others) {
    double* const gathered = volume + n;
    for (int k = 0; k < m; ++k)
      for (int64_t i = 0; i < n; ++i) gathered[k * n + i] = front.column(k)[(*others)[i]];
    columns = gathered;
  }
  double ref[kMaxHypervolumeObjectives], strong[kMaxHypervolumeObjectives];
  for (int k = 0; k < m; ++k) ref[k] = front.ref(k);
  simd().clip_columns(columns, n, m, corner, ref, clipped.data(), volume);
  constexpr double kStruck = -1, kStrong = -2;  // in place of a volume
  if (skip >= 0) volume[skip] = kStruck;
  for (int round = 0; round < kStrongPoints && round < n; ++round) {
    const int64_t strongest = simd().index_of_largest(volume, n);
    if (!(volume[strongest] >= 0)) break;
    for (int k = 0; k < m; ++k) strong[k] = clipped[k * n + strongest];
    simd().strike_dominated(clipped.data(), n, m, strong, volume);
    volume[strongest] = kStrong;
  }
  buffers.positions.clear();
  for (int64_t i = 0; i < n; ++i)
    if (volume[i] != kStruck) buffers.positions.push_back(others ? (*others)[i] : static_cast<int32_t>(i));
}

}  // namespace

double exclusive_volume(const RankedFront& front, const std::vector<int32_t>* others, int skip, const double* corner,
                        MemoryLimit limit, BoundsBuffers& buffers) {
  const int axes = front.objectives() - 1;
  Region region = Region::whole(front);
  for (int k = 0; k <= axes; ++k)
    if (!(corner[k] < front.ref(k))) return 0;
  for (int k = 0; k < axes; ++k) region.low[k] = front.rank_of(k, corner[k]);
  select_bounding(front, others, skip, corner, buffers);
  Task task{.front = front,
            .region = std::move(region),
            .positions = &buffers.positions,
            .nearest = corner[axes],
            .limit = limit,
            .buffers = buffers};
  ExclusiveMode mode(front, corner);
  sweep_within_limit(task, mode);
  return mode.value();
}

void stream_boxes(const RankedFront& front, bool dominated, MemoryLimit limit, BoundsBuffers& buffers, BoxSink& sink) {
  Task task{.front = front, .region = Region::whole(front), .limit = limit, .buffers = buffers};
  if (dominated) {
    StreamMode<false> mode(front, sink);
    sweep_within_limit(task, mode);
    mode.flush();
  } else {
    StreamMode<true> mode(front, sink);
    sweep_within_limit(task, mode);
    mode.flush();
  }
}

}  // namespace morlfast
