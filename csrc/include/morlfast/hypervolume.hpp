// Exact hypervolume of batches of fronts with one to three objectives, and its gradient.
#pragma once
#include <cstdint>

#include "morlfast/points.hpp"

namespace morlfast {

/// Largest number of objectives that `hypervolume` takes.
inline constexpr int kMaxHypervolumeObjectives = 3;

/// Volume dominated by each front and bounded by its reference point, O(n log n) a front.
///
/// For objective c (minimization) and the order "before" = lexicographic in (objective c, the other objectives, row),
///   HV = sum_i (ref_c - z_ic) * A_ic,   dHV / dz_ic = -A_ic,
/// with A_ic the measure of what point i covers in the projection onto the other objectives and no point before it
/// does. So dominated points and points not strictly better than the reference point add nothing, and of duplicates
/// the lowest row carries the gradient.
///
/// points     (batch, n, m), m in 1..3; widened to double before anything is subtracted
/// ref_point  (batch, m)
/// lengths    (batch) points of each front that count, or nullptr for all n
/// value      (batch), written
/// gradient   (batch, n, m) contiguous, written, or nullptr
/// Throws std::invalid_argument for NaN under NanPolicy::raise, for m outside 1..3 and for lengths outside 0..n.
template <class T, class R>
void hypervolume(const PointsView<T>& points, const VectorsView<R>& ref_point, const int64_t* lengths, bool maximize,
                 NanPolicy nan, T* value, T* gradient);

/// One front of `n` contiguous points with `m` objectives.
inline double hypervolume(const double* points, int64_t n, int64_t m, const double* ref_point, bool maximize) {
  double value = 0;
  hypervolume(PointsView<double>{points, {}, 1, n, m, m, 1}, VectorsView<double>{ref_point, {}, 1}, nullptr, maximize,
              NanPolicy::raise, &value, static_cast<double*>(nullptr));
  return value;
}

}  // namespace morlfast
