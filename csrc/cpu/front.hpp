// Reads one front of a PointsView as doubles, minimized.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "morlfast/points.hpp"

namespace morlfast {

/// Copies `rows` points (rows, m) to `out`, negated when maximizing; -0.0 becomes 0.0.
template <class T>
void load_rows(const T* points, int64_t rows, int64_t m, int64_t row_stride, int64_t column_stride, bool maximize,
               double* out) {
  const double sign = maximize ? -1.0 : 1.0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < m; ++k)
      *out++ = sign * static_cast<double>(points[i * row_stride + k * column_stride]) + 0.0;
}

/// Copies `rows` points of front `b` to `out` (rows, m).
template <class T>
void load_front(const PointsView<T>& points, int64_t b, int64_t rows, bool maximize, double* out) {
  if (rows == 0) return;  // an empty tensor's data may be null
  load_rows(points.front(b), rows, points.m, points.row_stride, points.column_stride, maximize, out);
}

/// One set's number of points, as a caller gave it.
inline int64_t checked_length(int64_t length, int64_t n, const char* argument = "lengths") {
  if (length < 0 || length > n)
    throw std::invalid_argument(std::string(argument) + ": expected values from 0 to " + std::to_string(n) + ", got " +
                                std::to_string(length));
  return length;
}

/// First row with a NaN, or -1.
inline int64_t first_nan_row(const double* rows, int64_t n, int64_t m) {
  for (int64_t i = 0; i < n * m; ++i)
    if (std::isnan(rows[i])) return i / m;
  return -1;
}

/// `where` ("row 3") and `argument` as the caller knows them.
[[noreturn]] inline void throw_nan(const BatchLayout& layout, int64_t b, std::string where,
                                   const char* argument = "points") {
  if (layout.dims > 0) {
    std::string index;
    for (int d = layout.dims - 1; d >= 0; --d) {
      index.insert(0, std::to_string(b % layout.sizes[d]) + (index.empty() ? "" : ", "));
      b /= layout.sizes[d];
    }
    where += " of batch index (" + index + ")";
  }
  throw std::invalid_argument(std::string(argument) + ": expected no NaN, got NaN in " + where +
                              "; pass nan=\"worst\" to treat such rows as worst");
}

}  // namespace morlfast
