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
constexpr int64_t kManyQueries = int64_t{8} * kBestQueries, kFewQueries = kBestQueries;
/// Doubles of points that are copied at a time: half a first-level cache.
constexpr int64_t kBlock = 2048;
/// Terms q_j p_j below which a parallel region costs more than the work.
constexpr int64_t kParallelTerms = 1 << 21;
/// Queries whose farthest is looked for in one go.
constexpr int64_t kSearchedQueries = 1024;

struct Buffers {
  std::vector<double> points, queries, query;  // (rows, m), (tiles, m, kBestQueries), (m)
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

/// One query's value for one point, with the roundings of the vector loops; NaN if a term is.
template <Best kBest>
double value_of_pair(const double* q, const double* p, int64_t m) {
  double value = kBest == Best::dot_product ? -0.0 : 0.0;
  bool nan = false;
  for (int64_t k = 0; k < m; ++k) {
    if constexpr (kBest == Best::dot_product) {
      value += q[k] * p[k];
    } else if constexpr (kBest == Best::squared_distance) {
      value += (q[k] - p[k]) * (q[k] - p[k]);
    } else if constexpr (kBest == Best::squared_excess) {
      const double excess = p[k] - q[k] <= 0 ? 0 : p[k] - q[k];
      value += excess * excess;
    } else {
      const double term = kBest == Best::chebyshev            ? q[k] * p[k]
                          : kBest == Best::largest_difference ? p[k] - q[k]
                                                              : p[k] / q[k];
      nan |= std::isnan(term);
      value = k == 0 ? term : std::max(value, term);
    }
  }
  return nan ? kNan : value;
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
        const T query = rows[i * queries_.row_stride + k * queries_.column_stride];
        const double q = sign * (static_cast<double>(query) + 0.0);  // a quotient by -0.0 is one by 0.0
        buffers.queries[(i / kBestQueries * m + k) * kBestQueries + i % kBestQueries] = q;
        zero |= q == 0;
      }
    return all_finite(buffers.queries.data(), tiles * m * kBestQueries) && !(zero && best_ == Best::largest_quotient);
  }

  void write(Buffers& buffers, int64_t b, int64_t n, int64_t first, int64_t count) const {
    const int64_t m = points_.m;
    std::vector<double>& q = buffers.query;
    q.resize(m);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = b * queries_.n + first + i;
      const double* column = buffers.queries.data() + i / kBestQueries * m * kBestQueries + i % kBestQueries;
      for (int64_t k = 0; k < m; ++k) q[k] = column[k * kBestQueries];
      const bool nan = first_nan_row(q.data(), 1, m) == 0;
      const double least = nan ? kNan : buffers.least[i] + 0.0;
      values_[at] = static_cast<T>(best_ == Best::dot_product ? 0 - least : least);
      if (rows_) rows_[at] = nan ? -1 : row_of(buffers, b, n, buffers.least[i], buffers.pieces[i]);
    }
  }

  /// The first row of the piece whose value for buffers.query is `least`; without a piece all values are infinite.
  int64_t row_of(Buffers& buffers, int64_t b, int64_t n, double least, int64_t piece) const {
    const int64_t start = piece < 0 ? 0 : piece * kBestPiece;
    const int64_t end = piece < 0 ? n : std::min(n, start + kBestPiece);
    switch (best_) {
      case Best::dot_product:
        return first_row<Best::dot_product>(buffers, b, start, end, least);
      case Best::chebyshev:
        return first_row<Best::chebyshev>(buffers, b, start, end, least);
      case Best::squared_distance:
        return first_row<Best::squared_distance>(buffers, b, start, end, least);
      case Best::squared_excess:
        return first_row<Best::squared_excess>(buffers, b, start, end, least);
      case Best::largest_difference:
        return first_row<Best::largest_difference>(buffers, b, start, end, least);
      case Best::largest_quotient:
        break;
    }
    return first_row<Best::largest_quotient>(buffers, b, start, end, least);
  }

  template <Best kBest>
  int64_t first_row(Buffers& buffers, int64_t b, int64_t start, int64_t end, double value) const {
    const int64_t m = points_.m;
    buffers.points.resize(m);
    double* p = buffers.points.data();
    for (int64_t i = start; i < end; ++i) {
      load_rows(points_.front(b) + i * points_.row_stride, 1, m, points_.row_stride, points_.column_stride, false, p);
      if (value_of_pair<kBest>(buffers.query.data(), p, m) == value) return i;
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

struct Columns {
  std::vector<double> rows, columns, queries;  // (n, m), (m, n up to a multiple of kLeastPoints), (count, m)

  bool worth_keeping() const { return columns.size() <= 1 << 16; }
};

/// The farthest of queries first .. first + count of set b.
template <class T>
double farthest_of(const PointsView<T>& queries, const PointsView<T>& points, Best best, Columns& buffers, int64_t b,
                   int64_t first, int64_t count, int64_t n) {
  const int64_t m = points.m, stride = (n + kLeastPoints - 1) / kLeastPoints * kLeastPoints;
  auto& [rows, columns, q] = buffers;
  rows.resize(n * m);
  load_front(points, b, n, false, rows.data());
  const bool finite = all_finite(rows.data(), n * m);
  if (!finite) spread_nan(rows.data(), n, m);
  columns.assign(m * stride, kNan);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < m; ++k) columns[k * stride + i] = rows[i * m + k];
  q.resize(count * m);
  load_rows(queries.front(b) + first * queries.row_stride, count, m, queries.row_stride, queries.column_stride, false,
            q.data());
  const bool queries_finite = all_finite(q.data(), count * m);
  if (!queries_finite && first_nan_row(q.data(), count, m) >= 0) return kNan;
  const bool zero = best == Best::largest_quotient && std::find(q.begin(), q.end(), 0.0) != q.end();
  const bool ordinary = finite && queries_finite && !zero;
  double farthest = -kInf;
  int64_t from = 0;
  for (int64_t i = 0; i < count; ++i)
    farthest = std::max(farthest, simd().least_value(static_cast<int>(best), ordinary, columns.data(), stride, m,
                                                     q.data() + i * m, farthest, &from));
  return farthest;
}

}  // namespace

template <class T>
void farthest_query(const PointsView<T>& queries, const PointsView<T>& points, Best best, const int64_t* lengths,
                    const int64_t* query_lengths, T* values) {
  const int64_t batch = queries.batch;
  if (points.m < 1) throw std::invalid_argument("points: expected at least 1 objective, got 0");
  if (best == Best::dot_product) throw std::invalid_argument("kind: expected 1 to 5, got 0");
  const int64_t shares = std::max<int64_t>((queries.n + kSearchedQueries - 1) / kSearchedQueries, 1);
  std::vector<double> farthest(batch * shares);
  const bool parallel = batch * queries.n * points.n >= kParallelTerms / points.m;
  parallel_for(batch * shares, parallel, [&](int64_t i) {
    const Workspace<Columns> buffers(true);
    const int64_t b = i / shares, first = i % shares * kSearchedQueries;
    const int64_t n = lengths ? checked_length(lengths[b], points.n) : points.n;
    const int64_t count = query_lengths ? checked_length(query_lengths[b], queries.n, "query_lengths") : queries.n;
    farthest[i] = first < count ? farthest_of(queries, points, best, *buffers, b, first,
                                              std::min(kSearchedQueries, count - first), n)
                                : -kInf;
  });
  for (int64_t b = 0; b < batch; ++b) {
    double value = -kInf;
    for (int64_t i = b * shares; i < (b + 1) * shares; ++i)
      value = std::isnan(value) || std::isnan(farthest[i]) ? kNan : std::max(value, farthest[i]);
    values[b] = static_cast<T>(value + 0.0);
  }
}

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

#define MORLFAST_INSTANTIATE(T) \
  template void farthest_query<T>(const PointsView<T>&, const PointsView<T>&, Best, const int64_t*, const int64_t*, T*);
MORLFAST_INSTANTIATE(float)
MORLFAST_INSTANTIATE(double)
#undef MORLFAST_INSTANTIATE

}  // namespace morlfast
