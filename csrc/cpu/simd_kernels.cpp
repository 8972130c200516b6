// Compiled once for each SIMD level. Nothing here may be shared with other objects: no library templates, no inline
// functions, or the linker could hand a wide version to a narrow processor.
#include "simd.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

int64_t count_below(const double* __restrict values, int64_t n, double value) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += values[i] < value;
  return count;
}

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

/// One bit for each 8-byte word whose lanes are all at least those of `pattern`.
template <class Lane>
uint64_t words_at_least(const unsigned char* words, const unsigned char* pattern) {
  typedef Lane Vector __attribute__((vector_size(kVectorBytes)));
  Vector lanes, least;
  __builtin_memcpy(&lanes, words, kVectorBytes);
  __builtin_memcpy(&least, pattern, kVectorBytes);
#if defined(__AVX512BW__)
  const __m512i a = (__m512i)lanes, b = (__m512i)least;
  const __m512i larger = sizeof(Lane) == 1   ? _mm512_max_epu8(a, b)
                         : sizeof(Lane) == 2 ? _mm512_max_epu16(a, b)
                                             : _mm512_maskz_max_epu32(0xffff, a, b);  // unmasked: a false warning of GCC 12
  return _mm512_cmpeq_epi64_mask(larger, a);
#elif defined(__AVX2__)
  const __m256i a = (__m256i)lanes, b = (__m256i)least;
  const __m256i larger = sizeof(Lane) == 1   ? _mm256_max_epu8(a, b)
                         : sizeof(Lane) == 2 ? _mm256_max_epu16(a, b)
                                             : _mm256_max_epu32(a, b);
  return static_cast<uint64_t>(_mm256_movemask_pd((__m256d)_mm256_cmpeq_epi64(larger, a)));
#elif defined(__SSE4_1__)
  const __m128i a = (__m128i)lanes, b = (__m128i)least;
  const __m128i larger = sizeof(Lane) == 1   ? _mm_max_epu8(a, b)
                         : sizeof(Lane) == 2 ? _mm_max_epu16(a, b)
                                             : _mm_max_epu32(a, b);
  return static_cast<uint64_t>(_mm_movemask_pd((__m128d)_mm_cmpeq_epi64(larger, a)));
#else
  const Vector at_least = (Vector)(lanes >= least);
  uint64_t all[2];
  __builtin_memcpy(all, &at_least, sizeof all);
  return (all[0] == ~uint64_t{0} ? 1 : 0) | (all[1] == ~uint64_t{0} ? 2 : 0);
#endif
}

template <class Lane>
int64_t rows_at_least(const unsigned char* rows, int64_t count, int row_words, const unsigned char* pattern,
                      int32_t* indices) {
  constexpr int kWords = kVectorBytes / 8;
  const int64_t words = count * row_words, pattern_bytes = row_words > 8 ? row_words * 8 : 64;
  const int shift = __builtin_ctz(static_cast<unsigned>(row_words));
  uint64_t first_words = 1;  // the bit of each row's first word
  for (int i = row_words; i < 64; i += row_words) first_words |= uint64_t{1} << i;
  int64_t found = 0;
  for (int64_t start = 0; start < words; start += 64) {
    uint64_t block = 0;
    for (int i = 0; i < 64; i += kWords)
      block |= words_at_least<Lane>(rows + (start + i) * 8, pattern + i * 8 % pattern_bytes) << i;
    for (int i = 1; i < row_words; i *= 2) block &= block >> i;
    block &= first_words;
    if (words - start < 64) block &= (uint64_t{1} << (words - start)) - 1;
    for (; block != 0; block &= block - 1)
      indices[found++] = static_cast<int32_t>((start + __builtin_ctzll(block)) >> shift);
  }
  return found;
}

void add_box_volumes(const double* low, const double* high, int64_t stride, int64_t count, int m,
                     const double* __restrict corner, double* volume) {
  constexpr int64_t kPiece = 64;
  double sum = 0;
  for (int64_t start = 0; start < count; start += kPiece) {
    const int64_t size = count - start < kPiece ? count - start : kPiece;
    double measure[kPiece];
    for (int64_t i = 0; i < size; ++i) measure[i] = 1;
    for (int k = 0; k < m; ++k) {
      const double* __restrict from = low + k * stride + start;
      const double* __restrict to = high + k * stride + start;
      const double at = corner[k];
      for (int64_t i = 0; i < size; ++i) {
        const double side = to[i] - (from[i] > at ? from[i] : at);
        measure[i] *= side > 0 ? side : 0;
      }
    }
    double eight[8] = {};
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
      for (int64_t j = 0; j < 8; ++j) eight[j] += measure[i + j];
    for (; i < size; ++i) eight[0] += measure[i];
    sum += ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
  }
  *volume += sum;
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
                                                             count_below,
                                                             rows_at_least<uint8_t>,
                                                             rows_at_least<uint16_t>,
                                                             rows_at_least<uint32_t>,
                                                             add_box_volumes,
                                                             score_keys_32,
                                                             score_keys_64,
                                                             sum_scored,
                                                             sum_squares,
                                                             standardize};

}  // namespace morlfast
