// Part of a row of any element type and stride, as the type that a kernel computes in.
#pragma once
#include <algorithm>
#include <type_traits>

#include "morlfast/elements.hpp"
#include "simd.hpp"

namespace morlfast {

/// `count` elements of row `row` from `column` on: where they lie if that will do, else converted to `buffer`.
template <class T>
inline const T* read_row(const MatrixView& view, int64_t row, int64_t column, int64_t count, T* buffer) {
  return with_dtype(view.dtype, [&](auto zero) -> const T* {
    using S = decltype(zero);
    const S* source = static_cast<const S*>(view.data) + row * view.row_stride + column * view.column_stride;
    if (view.column_stride == 0) {
      std::fill(buffer, buffer + count, static_cast<T>(*source));
      return buffer;
    }
    if (view.column_stride == 1) {
      if constexpr (std::is_same_v<S, T>) return source;
      for (int64_t j = 0; j < count; ++j) buffer[j] = static_cast<T>(source[j]);
      return buffer;
    }
    for (int64_t j = 0; j < count; ++j) buffer[j] = static_cast<T>(source[j * view.column_stride]);
    return buffer;
  });
}

/// Bytes that are non-zero where the mask is.
inline const uint8_t* read_mask(const MatrixView& view, int64_t row, int64_t column, int64_t count, uint8_t* buffer) {
  return with_dtype(view.dtype, [&](auto zero) -> const uint8_t* {
    using S = decltype(zero);
    const S* source = static_cast<const S*>(view.data) + row * view.row_stride + column * view.column_stride;
    if constexpr (std::is_same_v<S, uint8_t>)
      if (view.column_stride == 1) return source;
    // Of a floating-point number all bits but the sign tell whether it is 0.
    constexpr bool kFloating = !std::is_integral_v<S>;
    if (view.column_stride == 1) {
      if constexpr (sizeof(S) == 2) {
        simd().flags_16(reinterpret_cast<const uint16_t*>(source), count, kFloating ? 0x7fff : 0xffff, buffer);
        return buffer;
      } else if constexpr (sizeof(S) == 4) {
        simd().flags_32(reinterpret_cast<const uint32_t*>(source), count, kFloating ? 0x7fffffff : 0xffffffff, buffer);
        return buffer;
      } else if constexpr (sizeof(S) == 8) {
        simd().flags_64(reinterpret_cast<const uint64_t*>(source), count, ~uint64_t{0} >> kFloating, buffer);
        return buffer;
      }
    }
    for (int64_t j = 0; j < count; ++j) buffer[j] = static_cast<double>(source[j * view.column_stride]) != 0;
    return buffer;
  });
}

/// Asks for `count` elements before they are read, where they lie side by side.
inline void prefetch_row(const MatrixView& view, int64_t row, int64_t column, int64_t count) {
  if (view.column_stride != 1) return;
  const auto size = with_dtype(view.dtype, [](auto zero) { return static_cast<int64_t>(sizeof(zero)); });
  const char* first = static_cast<const char*>(view.data) + (row * view.row_stride + column) * size;
  for (int64_t byte = 0; byte < count * size; byte += 64) __builtin_prefetch(first + byte);
}

}  // namespace morlfast
