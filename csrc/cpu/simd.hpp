// Inner loops that profit from wider vectors than the baseline, one table a SIMD level, chosen once at run time.
#pragma once
#include <cstdint>

namespace morlfast {

struct SimdTable {
  const char* name;
  /// target[i] &= source[i]
  void (*and_words)(uint64_t* target, const uint64_t* source, int64_t words);
  /// Whether a[i] & b[i] is non-zero anywhere.
  bool (*any_common_bit)(const uint64_t* a, const uint64_t* b, int64_t words);
};

/// The best level that this processor runs; MORLFAST_SIMD=<name> picks a lower one.
const SimdTable& simd();

/// Names of the levels that were built, lowest first, separated by spaces.
const char* simd_levels();

}  // namespace morlfast
