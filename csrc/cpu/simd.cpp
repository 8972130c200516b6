#include "simd.hpp"

#include <cstdlib>
#include <string_view>

namespace morlfast {

extern const SimdTable simd_baseline;
#if defined(__x86_64__)
extern const SimdTable simd_x86_64_v3;
extern const SimdTable simd_x86_64_v4;
#endif

namespace {

const SimdTable& choose() {
  const char* setting = std::getenv("MORLFAST_SIMD");
  [[maybe_unused]] const std::string_view wanted = setting ? setting : "";
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Feature by feature: GCC 11 and clang 16 know no __builtin_cpu_supports("x86-64-v3").
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4 && (wanted.empty() || wanted == simd_x86_64_v4.name)) return simd_x86_64_v4;
  if (v3 && wanted != simd_baseline.name) return simd_x86_64_v3;
#endif
  return simd_baseline;
}

}  // namespace

const SimdTable& simd() {
  static const SimdTable& table = choose();
  return table;
}

const char* simd_level() { return simd().name; }

const char* simd_levels() {
#if defined(__x86_64__)
  return "baseline x86_64_v3 x86_64_v4";
#else
  return "baseline";
#endif
}

}  // namespace morlfast
