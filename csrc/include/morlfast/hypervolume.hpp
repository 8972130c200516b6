// Exact hypervolume of batches of fronts: value and gradient, contributions, improvements, boxes, greedy subsets.
//
// In all functions points (batch, n, m) with 1 <= m <= kMaxHypervolumeObjectives are widened to double before anything
// is subtracted, and a point counts when it is strictly better than its reference point (batch, m) in every objective.
// `lengths` (batch): points of each front that count, or nullptr for all n. They throw std::invalid_argument for NaN
// under NanPolicy::raise, for m out of range and for lengths outside 0..n.
#pragma once
#include <cstdint>
#include <new>
#include <string>
#include <vector>

#include "morlfast/points.hpp"

namespace morlfast {

/// Largest number of objectives.
inline constexpr int kMaxHypervolumeObjectives = 64;

/// Most bytes that one front's list of boxes may take, for each thread, unless told otherwise.
inline constexpr int64_t kDefaultMaxMemory = int64_t{1} << 30;

/// Fronts and what they are measured against.
template <class T, class R>
struct Fronts {
  PointsView<T> points;
  VectorsView<R> ref_point;
  const int64_t* lengths = nullptr;
  bool maximize = false;
  NanPolicy nan = NanPolicy::raise;
  /// From four objectives on: a front that would need more is cut into regions, one after the other.
  int64_t max_memory = kDefaultMaxMemory;
  /// What error messages call the points.
  const char* argument = "points";
};

/// Part `part` of `parts` into which a front's space is cut; the parts' results sum to the whole.
struct Part {
  int64_t part = 0;
  int64_t parts = 1;
};

/// Volume dominated by each front and bounded by its reference point. O(n log n) for m <= 3; beyond, in proportion to
/// the number of local upper bounds, at worst O(n^(floor((m-1)/2)+1)).
///
/// For objective c (minimization) and the order "before" = lexicographic in (objective c, the other objectives, row),
///   HV = sum_i (ref_c - z_ic) * A_ic,   dHV / dz_ic = -A_ic,
/// with A_ic the measure of what point i covers in the projection onto the other objectives and no point before it
/// does. So dominated points and points that do not count add nothing, and of duplicates the lowest row carries the
/// gradient.
///
/// value      (batch), written
/// gradient   (batch, n, m) contiguous, written, or nullptr
template <class T, class R>
void hypervolume(const Fronts<T, R>& fronts, const Part& part, T* value, T* gradient);

/// contributions (batch, n), written: HV(P) - HV(P without row i), as the measure of what i alone dominates.
/// `ignore_dominated`: dominated points are left out of P first.
template <class T, class R>
void hypervolume_contributions(const Fronts<T, R>& fronts, bool ignore_dominated, T* contributions);

/// `sets` sets of `size` candidates for each front: candidates[b][s][i][k].
template <class T>
struct CandidatesView {
  const T* data = nullptr;
  BatchLayout layout;
  int64_t sets = 0;
  int64_t size = 1;
  int64_t set_stride = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
};

/// improvement (batch, sets), written: HV(P and the set) - HV(P), as the measure of what the set alone dominates.
template <class T, class R>
void hypervolume_improvement(const CandidatesView<T>& candidates, const Fronts<T, R>& fronts, T* improvement);

/// picks (batch, k), written: rows, each of the largest improvement over those before it; ties and points without
/// improvement by the lowest row; -1 behind the end of a shorter front.
template <class T, class R>
void hypervolume_subset(const Fronts<T, R>& fronts, int64_t k, int64_t* picks);

/// Disjoint boxes of one front in the caller's sense; both (boxes, m).
struct Boxes {
  std::vector<double> lower, upper;
};

/// More boxes than max_memory holds.
class MemoryLimitExceeded : public std::bad_alloc {
 public:
  explicit MemoryLimitExceeded(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

/// Boxes that fill what each front dominates within its reference point, or what it does not (unbounded on the good
/// side). Boxes without volume are left out. Throws MemoryLimitExceeded.
template <class T, class R>
std::vector<Boxes> box_decomposition(const Fronts<T, R>& fronts, bool dominated);

/// One front of `n` contiguous points with `m` objectives.
inline double hypervolume(const double* points, int64_t n, int64_t m, const double* ref_point, bool maximize) {
  double value = 0;
  const Fronts<double, double> fronts{PointsView<double>{points, {}, 1, n, m, m, 1},
                                      VectorsView<double>{ref_point, {}, 1}, nullptr, maximize};
  hypervolume(fronts, {}, &value, static_cast<double*>(nullptr));
  return value;
}

}  // namespace morlfast
