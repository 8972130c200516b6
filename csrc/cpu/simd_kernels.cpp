// Compiled once for each SIMD level. Nothing here may be shared with other objects: no library templates, no inline
// functions, or the linker could hand a wide version to a narrow processor.
#include "simd.hpp"

#define MORLFAST_JOIN_(a, b) a##b
#define MORLFAST_JOIN(a, b) MORLFAST_JOIN_(a, b)
#define MORLFAST_STRING_(a) #a
#define MORLFAST_STRING(a) MORLFAST_STRING_(a)

namespace morlfast {
namespace {

void and_words(uint64_t* __restrict target, const uint64_t* __restrict source, int64_t words) {
  for (int64_t i = 0; i < words; ++i) target[i] &= source[i];
}

bool any_common_bit(const uint64_t* __restrict a, const uint64_t* __restrict b, int64_t words) {
  int64_t i = 0;
  for (; i + 16 <= words; i += 16) {
    uint64_t common = 0;
    for (int64_t j = 0; j < 16; ++j) common |= a[i + j] & b[i + j];
    if (common) return true;
  }
  uint64_t common = 0;
  for (; i < words; ++i) common |= a[i] & b[i];
  return common != 0;
}

int64_t largest_dominator(const double* columns, int64_t m, int64_t n, int64_t p, const int64_t* above) {
  constexpr int64_t kPiece = 64;
  int64_t largest = 0;
  for (int64_t start = 0; start < p; start += kPiece) {
    const int64_t size = p - start < kPiece ? p - start : kPiece;
    int64_t found[kPiece];
    for (int64_t i = 0; i < size; ++i) found[i] = above[start + i];
    for (int64_t k = 0; k < m; ++k) {
      const double* __restrict column = columns + k * n + start;
      const double own = columns[k * n + p];
      for (int64_t i = 0; i < size; ++i) found[i] = column[i] <= own ? found[i] : 0;
    }
    for (int64_t i = 0; i < size; ++i) largest = found[i] > largest ? found[i] : largest;
  }
  return largest;
}

void score_keys_32(const float* __restrict advantage, const float* __restrict entropy, const uint8_t* __restrict valid,
                   int64_t count, uint32_t* __restrict keys) {
  for (int64_t j = 0; j < count; ++j) {
    const float score = __builtin_fabsf(advantage[j]) * entropy[j] + 0.0f;
    const uint32_t bits = __builtin_bit_cast(uint32_t, score);
    const uint32_t negative = 0u - (bits >> 31);  // all ones or zero
    const uint32_t key = bits ^ (negative | 0x80000000u);
    const bool counts = (valid[j] != 0) & (score == score);
    keys[j] = counts ? key : 0;
  }
}

void score_keys_64(const double* __restrict advantage, const double* __restrict entropy,
                   const uint8_t* __restrict valid, int64_t count, uint64_t* __restrict keys) {
  for (int64_t j = 0; j < count; ++j) {
    const double score = __builtin_fabs(advantage[j]) * entropy[j] + 0.0;
    const uint64_t bits = __builtin_bit_cast(uint64_t, score);
    const uint64_t negative = 0ull - (bits >> 63);
    const uint64_t key = bits ^ (negative | 0x8000000000000000ull);
    const bool counts = (valid[j] != 0) & (score == score);
    keys[j] = counts ? key : 0;
  }
}

void sum_scored(const double* values, int64_t rows, int64_t m, const double* __restrict pivot, double* __restrict sum,
                double* __restrict count) {
  for (int64_t i = 0; i < rows; ++i) {
    const double* __restrict row = values + i * m;
    for (int64_t k = 0; k < m; ++k) {
      const bool scored = row[k] == row[k];
      sum[k] += scored ? row[k] - pivot[k] : 0;
      count[k] += scored ? 1 : 0;
    }
  }
}

void sum_squares(const double* values, int64_t rows, int64_t m, const double* __restrict pivot,
                 const double* __restrict centre, double* __restrict squares) {
  for (int64_t i = 0; i < rows; ++i) {
    const double* __restrict row = values + i * m;
    for (int64_t k = 0; k < m; ++k) {
      const double centred = row[k] == row[k] ? (row[k] - pivot[k]) - centre[k] : 0;
      squares[k] += centred * centred;
    }
  }
}

void standardize(double* values, int64_t rows, int64_t m, const double* __restrict pivot,
                 const double* __restrict centre, const double* __restrict divisor) {
  for (int64_t i = 0; i < rows; ++i) {
    double* __restrict row = values + i * m;
    for (int64_t k = 0; k < m; ++k) row[k] = ((row[k] - pivot[k]) - centre[k]) / divisor[k];
  }
}

}  // namespace

extern const SimdTable MORLFAST_JOIN(simd_, MORLFAST_SIMD_LEVEL);
const SimdTable MORLFAST_JOIN(simd_, MORLFAST_SIMD_LEVEL) = {MORLFAST_STRING(MORLFAST_SIMD_LEVEL),
                                                             and_words,
                                                             any_common_bit,
                                                             largest_dominator,
                                                             score_keys_32,
                                                             score_keys_64,
                                                             sum_scored,
                                                             sum_squares,
                                                             standardize};

}  // namespace morlfast
