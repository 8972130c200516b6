// Hypervolume boxes of one front in any number of objectives: local upper bounds swept along the last objective
// (Lacour, Klamroth and Fonseca 2017, arXiv 1510.01963), on ranks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "counting_points.hpp"
#include "lexicographic_order.hpp"

namespace morlfast {

/// The counting points of a front (minimized), ranked along every objective.
///
/// Along objective k the points are ordered by (objective k, the other objectives in index order, row): ranks
/// 1..size() are all different, 0 is below every point and size() + 1 is the reference point. Working on such ranks
/// breaks every tie one way, and what a point dominates comes after it in every order. The sweep goes along one of the
/// objectives; as far as this class is read, that is the last one and the others come before it in their order.
class RankedFront {
 public:
  /// Takes those of `n` rows (n, m) that are strictly better than `ref` in every objective, to be swept along objective
  /// `axis` (-1: the last). `prefilter`: also leaves out what the point of the largest own volume dominates; no volume
  /// changes.
  void load(const double* rows, int64_t n, int m, const double* ref, bool prefilter, int axis = -1);

  int size() const { return static_cast<int>(row_.size()); }
  int objectives() const { return m_; }
  /// Row of the input at sweep position t; positions follow the ranks along the last objective.
  int32_t row(int t) const { return row_[t]; }
  /// Ranks of the point at sweep position t along the first m - 1 objectives.
  const int32_t* ranks(int t) const { return &rank_[static_cast<std::size_t>(t) * (m_ - 1)]; }
  /// Coordinates along objective k by sweep position; the columns of all objectives follow each other.
  const double* column(int k) const { return column_.data() + k * row_.size(); }
  /// Coordinates of the point at sweep position t.
  void copy_point(int t, double* point) const {
    for (int k = 0; k < m_; ++k) point[k] = column(k)[t];
  }
  /// Coordinate along objective k of rank 0 (minus infinity) .. size() + 1 (the reference point).
  const double* coordinates(int k) const { return &coordinate_[static_cast<std::size_t>(k) * (row_.size() + 2)]; }
  double ref(int k) const { return coordinates(k)[size() + 1]; }
  /// Along the last objective.
  double depth(int t) const { return coordinates(m_ - 1)[t + 1]; }
  /// Whether every coordinate of points and reference point is finite.
  bool finite() const { return counting_.finite; }
  /// Number of points whose coordinate along objective k is at most `value`.
  int rank_of(int k, double value) const;

 private:
  int m_ = 0;
  int axis_ = 0;
  CountingPoints counting_;
  std::vector<int32_t> row_;
  std::vector<int32_t> rank_;
  std::vector<double> coordinate_, column_;
  std::vector<int32_t> order_, position_;
  LexicographicOrder sorting_;
};

/// Part of the space: ranks [low, high) along the first m - 1 objectives. Points below `low` are moved onto it.
struct Region {
  std::vector<int32_t> low, high;
  /// What lies before this sweep position has been counted already.
  int start = 0;

  static Region whole(const RankedFront& front);
  /// Part `part` of `parts`; together they are the whole.
  static Region part(const RankedFront& front, int64_t part, int64_t parts);
  /// Cuts the widest objective at three quarters of its ranks: keeps the lower part and returns the upper one.
  Region cut();
  bool empty() const;
};

/// Working memory of one sweep; kept between sweeps.
struct BoundsBuffers {
  std::vector<unsigned char> bounds, definitions;              // rows: ranks and defining points of each bound
  std::vector<double> born;                                    // depth at which a bound was made
  std::vector<int32_t> killed;                                 // bounds above the point at hand
  std::vector<unsigned char> table;                            // rows of the points' ranks
  std::vector<unsigned char> child_bounds, child_definitions;  // made and not yet stored
  std::vector<int32_t> positions;                              // points that a sweep is limited to
  std::vector<double> clipped;                                 // points moved into a region, and their volumes

  void reserve_bounds(int64_t count, int64_t row_bytes, bool with_depths);
  void reserve_points(int64_t points, int64_t children, int64_t row_bytes);

  bool worth_keeping() const { return bounds.size() < (1 << 20) && table.size() < (1 << 20); }
};

/// Most bytes that a sweep may hold in its list of bounds. What would need more is cut into regions.
struct MemoryLimit {
  int64_t bytes = std::numeric_limits<int64_t>::max();
};

/// Volume that the front dominates inside the region. `gradient`, where not null, is (input rows, m), and is added to:
/// the derivatives of the volume, exact for ranks broken as above. Slopes of both signs meet in it, so where a volume
/// is infinite or overflows it can be NaN.
double dominated_volume(const RankedFront& front, const Region& region, MemoryLimit limit, BoundsBuffers& buffers,
                        double* gradient);

/// The same volume by guarded products, so never NaN. `areas` (input rows) is added to: minus the derivatives along the
/// swept objective, as sums of positive terms.
double dominated_areas(const RankedFront& front, const Region& region, MemoryLimit limit, BoundsBuffers& buffers,
                       double* areas);

/// Measure of what `corner` dominates within the reference point and the points of `front` do not, as a sum of boxes:
/// nothing is subtracted. Of the front only the sweep positions `others` (ascending; nullptr: all) but `skip` (-1:
/// none) are looked at.
double exclusive_volume(const RankedFront& front, const std::vector<int32_t>* others, int skip, const double* corner,
                        MemoryLimit limit, BoundsBuffers& buffers);

/// Receives boxes, `count` at a time: low[k * stride + i] and high[k * stride + i] along objective k.
class BoxSink {
 public:
  virtual void take(const double* low, const double* high, int64_t stride, int64_t count) = 0;

 protected:
  ~BoxSink() = default;
};

/// Disjoint boxes that fill what the front dominates within the reference point, or what it does not (from minus
/// infinity on). Boxes without volume are left out.
void stream_boxes(const RankedFront& front, bool dominated, MemoryLimit limit, BoundsBuffers& buffers, BoxSink& sink);

}  // namespace morlfast
