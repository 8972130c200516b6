// The 16-bit floats against their definitions, all 65536 of each.
#include <bit>

#include "driver.hpp"

namespace driver {
namespace {

/// sign * 2^(exponent - bias) * 1.fraction, subnormals and specials included.
double decoded(uint16_t bits, int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  double magnitude;
  if (exponent == (1 << exponent_bits) - 1)
    magnitude = fraction ? kNan : kInf;
  else if (exponent == 0)
    magnitude = std::ldexp(fraction, 1 - bias - fraction_bits);
  else
    magnitude = std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
  return bits & 0x8000 ? -magnitude : magnitude;
}

template <class T>
void check_type(int exponent_bits, const char* name) {
  const int infinity = ((1 << exponent_bits) - 1) << (15 - exponent_bits);
  for (int pattern = 0; pattern < 0x10000; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    T element;
    element.bits = bits;
    const double want = decoded(bits, exponent_bits);
    const std::string what = std::string(name) + " " + std::to_string(pattern);
    expect(close(static_cast<double>(element), want, 0) && close(static_cast<float>(element), want, 0), what);
    const T again(static_cast<float>(want));
    if (std::isnan(want)) {
      expect(std::isnan(static_cast<float>(again)), what);
      continue;
    }
    expect(again.bits == bits, what);
    if ((bits & 0x7fff) >= infinity) continue;
    // Beyond the halfway point to the next larger magnitude rounds away, before it down, at it to the even one.
    const auto next = static_cast<uint16_t>(bits + 1);
    const double beyond = (next & 0x7fff) == infinity ? std::copysign(std::ldexp(1.0, 1 << (exponent_bits - 1)), want)
                                                      : decoded(next, exponent_bits);
    const auto middle = static_cast<float>((want + beyond) / 2);
    const float inner = std::nextafterf(middle, static_cast<float>(want)),
                outer = std::nextafterf(middle, std::copysign(std::numeric_limits<float>::max(), middle));
    expect(T(inner).bits == bits, what + " rounds down");
    expect(T(middle).bits == (bits % 2 ? next : bits), what + " ties to even");
    expect(T(outer).bits == next, what + " rounds up");
  }
}

}  // namespace

void check_elements() {
  check_type<morlfast::bfloat16>(8, "bfloat16");
  check_type<morlfast::float16>(5, "float16");
}

}  // namespace driver
