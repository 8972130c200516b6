// Storage-only 16-bit floats and strided arrays of any element type.
#pragma once
#include <bit>
#include <cstdint>

namespace morlfast {

struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  explicit bfloat16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    // Round to nearest even; NaN stays NaN.
    bits = value != value ? uint16_t{0x7fc0} : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
  explicit operator double() const { return static_cast<float>(*this); }
};

struct float16 {
  uint16_t bits;

  float16() = default;
  explicit float16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
    const uint32_t magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) {
      bits = sign | 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // rounds to 65520 or more
      bits = sign | 0x7c00;
    } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      bits = sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
    } else {
      bits = sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
    }
  }
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest < 0x400) {
      const float magnitude = static_cast<float>(rest) * 0x1p-24f;
      return sign ? -magnitude : magnitude;
    }
    return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000));
  }
  explicit operator double() const { return static_cast<float>(*this); }
};

/// Element types of an array whose type is known at run time.
enum class Dtype { float32, float64, bfloat16, float16, bool8, int8, uint8, int16, int32, int64 };

/// Calls f with a value of the type that `dtype` names.
template <class F>
decltype(auto) with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(float{});
    case Dtype::float64:
      return f(double{});
    case Dtype::bfloat16:
      return f(morlfast::bfloat16{});
    case Dtype::float16:
      return f(morlfast::float16{});
    case Dtype::bool8:
    case Dtype::uint8:
      return f(uint8_t{});
    case Dtype::int8:
      return f(int8_t{});
    case Dtype::int16:
      return f(int16_t{});
    case Dtype::int32:
      return f(int32_t{});
    case Dtype::int64:
      break;
  }
  return f(int64_t{});
}

/// array[i][j]; a vector has column_stride 0, so that array[i][j] is the same for every j.
struct MatrixView {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

}  // namespace morlfast
