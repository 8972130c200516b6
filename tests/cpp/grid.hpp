// Brute force for the hypervolume family: the cells of the grid through all coordinates, and the points that cover
// each.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "driver.hpp"

namespace driver {

using Point = std::vector<double>;

/// One front, minimized; rows with NaN lie at infinity, where they never count.
struct Front {
  std::vector<Point> points;
  Point ref;
  bool ref_is_nan = false;

  bool counts(std::size_t i) const {
    for (std::size_t k = 0; k < ref.size(); ++k)
      if (!(points[i][k] < ref[k])) return false;
    return true;
  }
};

inline std::vector<int> all_axes(std::size_t m) {
  std::vector<int> axes(m);
  std::iota(axes.begin(), axes.end(), 0);
  return axes;
}

/// Cells of a front of up to 64 points in the projection onto `axes`, bounded by the reference point; `unbounded` also
/// has those beyond every point, from minus infinity on.
class Grid {
 public:
  Grid(const Front& front, const std::vector<int>& axes, bool unbounded = false) {
    expect(front.points.size() <= 64, "a grid takes up to 64 points");
    for (std::size_t i = 0; i < front.points.size(); ++i)
      if (front.counts(i)) counting_ |= uint64_t{1} << i;
    for (const int axis : axes) {
      std::vector<double> edges{front.ref[axis]};
      if (unbounded) edges.push_back(-kInf);
      for (std::size_t i = 0; i < front.points.size(); ++i)
        if (counting_ >> i & 1) edges.push_back(front.points[i][axis]);
      std::sort(edges.begin(), edges.end());
      edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
      std::vector<uint64_t> covering(edges.size());
      for (std::size_t e = 0; e < edges.size(); ++e)
        for (std::size_t i = 0; i < front.points.size(); ++i)
          if (counting_ >> i & 1 && front.points[i][axis] <= edges[e]) covering[e] |= uint64_t{1} << i;
      edges_.push_back(edges);
      covering_.push_back(covering);
    }
  }

  /// f(points that cover the cell, one bit each; measure; cell) in the order of the cells.
  template <class F>
  void each(const F& f) const {
    int64_t cell = 0;
    visit(0, counting_, 1, cell, f);
  }

  /// f(cell) for every cell of the box [low, high). Expects its sides to be edges, apart from one another.
  template <class F>
  void each_in(const double* low, const double* high, const F& f) const {
    visit_box(0, 0, low, high, f);
  }

  int64_t cells() const {
    int64_t cells = 1;
    for (const auto& edges : edges_) cells *= static_cast<int64_t>(edges.size()) - 1;
    return cells;
  }

 private:
  template <class F>
  void visit(std::size_t k, uint64_t covering, double measure, int64_t& cell, const F& f) const {
    if (k == edges_.size()) return f(covering, measure, cell++);
    for (std::size_t e = 0; e + 1 < edges_[k].size(); ++e)
      visit(k + 1, covering & covering_[k][e], measure * (edges_[k][e + 1] - edges_[k][e]), cell, f);
  }

  template <class F>
  void visit_box(std::size_t k, int64_t cell, const double* low, const double* high, const F& f) const {
    if (k == edges_.size()) return f(cell);
    const int64_t first = edge(k, low[k]), last = edge(k, high[k]);
    expect(first < last, "a box without volume");
    for (int64_t e = first; e < last; ++e)
      visit_box(k + 1, cell * (static_cast<int64_t>(edges_[k].size()) - 1) + e, low, high, f);
  }

  int64_t edge(std::size_t k, double value) const {
    const auto found = std::find(edges_[k].begin(), edges_[k].end(), value);
    expect(found != edges_[k].end(), "a box ends at no point's coordinate: " + std::to_string(value));
    return found - edges_[k].begin();
  }

  uint64_t counting_ = 0;
  std::vector<std::vector<double>> edges_;
  std::vector<std::vector<uint64_t>> covering_;
};

}  // namespace driver
