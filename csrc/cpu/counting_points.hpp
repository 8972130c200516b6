// The points of a front that count: strictly better than the reference point in every objective.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "morlfast/hypervolume.hpp"

namespace morlfast {

/// 0 unless both factors are positive: 0 * inf and inf - inf reach no sum.
inline double guarded(double product, double side) { return product > 0 && side > 0 ? product * side : 0; }

/// Kept between fronts.
struct CountingPoints {
  std::vector<double> points;   // (size, m)
  std::vector<int32_t> source;  // rows of the front
  bool finite = true;           // all of them, and the reference point

  int64_t size() const { return static_cast<int64_t>(source.size()); }

  /// Takes the counting ones of `n` rows (n, m), minimized. `prefilter`: not what the one of the largest own volume
  /// dominates, which is most of a random cloud and in no volume.
  void load(const double* rows, int64_t n, int m, const double* ref, bool prefilter) {
    points.resize(n * m);
    source.resize(n);
    finite = true;
    double largest = 0;
    std::size_t strongest = 0, counting = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double* z = rows + i * m;
      bool counts = true, bounded = true;
      double volume = 1;
      for (int k = 0; k < m; ++k) {
        counts &= z[k] < ref[k];
        bounded &= z[k] > -std::numeric_limits<double>::infinity();
        volume *= ref[k] - z[k];
      }
      if (!counts) continue;
      finite &= bounded;
      if (volume > largest) {
        largest = volume;
        strongest = counting;
      }
      std::copy_n(z, m, &points[counting * m]);
      source[counting++] = static_cast<int32_t>(i);
    }
    points.resize(counting * m);
    source.resize(counting);
    for (int k = 0; k < m; ++k) finite &= ref[k] < std::numeric_limits<double>::infinity();
    if (prefilter && largest > 0) drop_dominated_by(strongest, m);
  }

  /// Keeps the points for which keep(i) holds, in their order.
  template <class Keep>
  void filter(int64_t m, const Keep& keep) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < source.size(); ++i) {
      if (!keep(i)) continue;
      std::copy_n(&points[i * m], m, &points[kept * m]);
      source[kept++] = source[i];
    }
    points.resize(kept * m);
    source.resize(kept);
  }

 private:
  void drop_dominated_by(std::size_t strongest, int m) {
    double strong[kMaxHypervolumeObjectives];
    std::copy_n(&points[strongest * m], m, strong);
    filter(m, [&](std::size_t i) {
      bool dominated = i != strongest;  // of copies the strongest is the first
      for (int k = 0; k < m; ++k) dominated &= points[i * m + k] >= strong[k];
      return !dominated;
    });
  }
};

}  // namespace morlfast
