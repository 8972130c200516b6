// Batches of fronts as they lie in memory: (..., n, m), any strides, no copy.
#pragma once
#include <cstdint>

namespace morlfast {

/// Leading (batch) dimensions of a strided array: flat batch index -> offset in elements.
struct BatchLayout {
  int dims = 0;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;

  int64_t offset(int64_t flat) const {
    int64_t result = 0;
    for (int d = dims - 1; d >= 0; --d) {
      result += (flat % sizes[d]) * strides[d];
      flat /= sizes[d];
    }
    return result;
  }
};

/// `batch` fronts of `n` points with `m` objectives: points[b][i][k].
template <class T>
struct PointsView {
  const T* data = nullptr;
  BatchLayout layout;
  int64_t batch = 1;
  int64_t n = 0;
  int64_t m = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;

  const T* front(int64_t b) const { return data + layout.offset(b); }
};

/// One vector of `m` values for each front: ref_point[b][k].
template <class T>
struct VectorsView {
  const T* data = nullptr;
  BatchLayout layout;
  int64_t stride = 1;

  const T* row(int64_t b) const { return data + layout.offset(b); }
};

/// What a NaN among the points means: an error that names the row, or a row worse than every other.
enum class NanPolicy { raise, worst };

}  // namespace morlfast
