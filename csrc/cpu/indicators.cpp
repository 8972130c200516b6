#include "morlfast/indicators.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "front.hpp"
#include "parallel.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Queries that share one copy of the points. Each copy costs as much as a few queries.
constexpr int64_t kManyQueries = 8 * kBestQueries, kFewQueries = kBestQueries;
/// Doubles of points that are copied at a time: half a first-level cache.
constexpr int64_t kBlock = 2048;
/// Terms q_j p_j below which a parallel region costs more than the work.
constexpr int64_t kParallelTerms = 1 << 18;

struct Buffers {
  std::vector<double> points, queries;  // (rows, m), (tiles, m, kBestQueries)
  double least[kManyQueries];
  int64_t pieces[kManyQueries];

  bool worth_keeping() const { return points.size() + queries.size() <= 1 << 16; }
};

bool all_finite(const double* values, int64_t count) {
  double difference = 0;
  for (int64_t i = 0; i < count; ++i) difference += values[i] - values[i];
  return difference == 0;
}

/// NaN in one objective becomes NaN in all, so that every way to join the terms gives NaN.
void spread_nan(double* rows, int64_t n, int64_t m) {
  for (int64_t i = 0; i < n; ++i)
    if (first_nan_row(rows + i * m, 1, m) == 0) std::fill_n(rows + i * m, m, kNan);
}

/// One query's value for one point, with the roundings of the vector loops.
double value_of_pair(Best best, const double* q, const double* p, int64_t m) {
  double value = best == Best::dot_product ? -0.0 : -kInf;
  if (best == Best::squared_distance || best == Best::squared_excess) value = 0;
  for (int64_t k = 0; k < m; ++k) {
    double term = 0;
    switch (best) {
      case Best::dot_product:
        value += q[k] * p[k];
        continue;
      case Best::squared_distance:
        value += (q[k] - p[k]) * (q[k] - p[k]);
        continue;
      case Best::squared_excess:
        term = p[k] - q[k] <= 0 ? 0 : p[k] - q[k];
        value += term * term;
        continue;
      case Best::chebyshev:
        term = q[k] * p[k];
        break;
      case Best::largest_difference:
        term = p[k] - q[k];
        break;
      case Best::largest_quotient:
        term = p[k] / q[k];
        break;
    }
    if (std::isnan(term)) return kNan;
    value = std::max(value, term);
  }
  return value;
}

template <class T>
class Search {
 public:
  Search(const PointsView<T>& queries, const PointsView<T>& points, Best best, const int64_t* lengths, T* values,
         int64_t* rows)
      : queries_(queries), points_(points), best_(best), lengths_(lengths), values_(values), rows_(rows) {}

  /// Queries first .. first + count of set b.
  void run(Buffers& buffers, int64_t b, int64_t first, int64_t count) const {
    const int64_t n = lengths_ ? checked_length(lengths_[b], points_.n) : points_.n;
    const int64_t m = points_.m, tiles = (count + kBestQueries - 1) / kBestQueries;
    bool ordinary = load_queries(buffers, b, first, count, tiles);
    std::fill_n(buffers.least, tiles * kBestQueries, kInf);
    std::fill_n(buffers.pieces, tiles * kBestQueries, -1);
    const int64_t block = std::max(kBlock / m / kBestPiece, int64_t{1}) * kBestPiece;
    buffers.points.resize(std::min(block, n) * m);
    for (int64_t start = 0; start < n; start += block) {
      const int64_t size = std::min(block, n - start);
      load_rows(points_.front(b) + start * points_.row_stride, size, m, points_.row_stride, points_.column_stride,
                false, buffers.points.data());
      const bool finite = all_finite(buffers.points.data(), size * m);
      if (!finite) spread_nan(buffers.points.data(), size, m);
      for (int64_t t = 0; t < tiles; ++t)
        simd().best_points(static_cast<int>(best_), ordinary && finite, buffers.points.data(), size, m,
                           buffers.queries.data() + t * m * kBestQueries,
                           std::min<int64_t>(count - t * kBestQueries, kBestQueries), start / kBestPiece,
                           buffers.least + t * kBestQueries, buffers.pieces + t * kBestQueries);
    }
    write(buffers, b, n, first, count);
  }

 private:
  /// Queries as columns of tiles, negated for the largest dot product. Returns whether no term can be NaN for them.
  bool load_queries(Buffers& buffers, int64_t b, int64_t first, int64_t count, int64_t tiles) const {
    const int64_t m = queries_.m;
    const double sign = best_ == Best::dot_product ? -1 : 1;
    buffers.queries.assign(tiles * m * kBestQueries, 1);
    const T* rows = queries_.front(b) + first * queries_.row_stride;
    bool zero = false;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < m; ++k) {
        const double q = sign * static_cast<double>(rows[i * queries_.row_stride + k * queries_.column_stride]);
        buffers.queries[(i / kBestQueries * m + k) * kBestQueries + i % kBestQueries] = q;
        zero |= q == 0;
      }
    return all_finite(buffers.queries.data(), tiles * m * kBestQueries) && !(zero && best_ == Best::largest_quotient);
  }

  void write(const Buffers& buffers, int64_t b, int64_t n, int64_t first, int64_t count) const {
    const int64_t m = points_.m;
    std::vector<double> q(m);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = b * queries_.n + first + i;
      const double* column = buffers.queries.data() + i / kBestQueries * m * kBestQueries + i % kBestQueries;
      for (int64_t k = 0; k < m; ++k) q[k] = column[k * kBestQueries];
      const bool nan = first_nan_row(q.data(), 1, m) == 0;
      const double least = nan ? kNan : buffers.least[i] + 0.0;
      values_[at] = static_cast<T>(best_ == Best::dot_product ? 0 - least : least);
      if (rows_) rows_[at] = nan ? -1 : row_of(q.data(), b, n, buffers.least[i], buffers.pieces[i]);
    }
  }

  /// The first row of the piece whose value is `least`; without a piece all values are infinite.
  int64_t row_of(const double* q, int64_t b, int64_t n, double least, int64_t piece) const {
    const int64_t m = points_.m;
    const int64_t start = piece < 0 ? 0 : piece * kBestPiece;
    const int64_t end = piece < 0 ? n : std::min(n, start + kBestPiece);
    std::vector<double> p(m);
    for (int64_t i = start; i < end; ++i) {
      load_rows(points_.front(b) + i * points_.row_stride, 1, m, points_.row_stride, points_.column_stride, false,
                p.data());
      if (value_of_pair(best_, q, p.data(), m) == least) return i;
    }
    return -1;
  }

  const PointsView<T>& queries_;
  const PointsView<T>& points_;
  const Best best_;
  const int64_t* const lengths_;
  T* const values_;
  int64_t* const rows_;
};

}  // namespace

template <class T>
void best_points(const PointsView<T>& queries, const PointsView<T>& points, Best best, const int64_t* lengths,
                 T* values, int64_t* rows) {
  const int64_t batch = queries.batch, count = queries.n;
  if (points.m < 1) throw std::invalid_argument("points: expected at least 1 objective, got 0");
  const Search<T> search(queries, points, best, lengths, values, rows);
  const int64_t share = batch * count >= 16 * kManyQueries ? kManyQueries : kFewQueries;
  const int64_t shares = (count + share - 1) / share;
  const bool parallel = batch * count * points.n >= kParallelTerms / points.m;
  parallel_for(batch * shares, parallel, [&](int64_t i) {
    const Workspace<Buffers> buffers(true);
    const int64_t first = i % shares * share;
    search.run(*buffers, i / shares, first, std::min(share, count - first));
  });
}

template void best_points<float>(const PointsView<float>&, const PointsView<float>&, Best, const int64_t*, float*,
                                 int64_t*);
template void best_points<double>(const PointsView<double>&, const PointsView<double>&, Best, const int64_t*, double*,
                                  int64_t*);

}  // namespace morlfast
