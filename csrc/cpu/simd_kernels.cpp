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

int64_t first_common_word(const uint64_t* a, const uint64_t* b, int64_t words) {
  constexpr int64_t kPiece = 8;
  int64_t w = 0;
  for (; w + kPiece <= words; w += kPiece) {
    uint64_t common = 0;
    for (int64_t i = 0; i < kPiece; ++i) common |= a[w + i] & b[w + i];
    if (common != 0) break;
  }
  while (w < words && (a[w] & b[w]) == 0) ++w;
  return w;
}

int64_t largest_dominator(const double* columns, int64_t m, int64_t stride, int64_t count,
                          const double* __restrict point, int64_t point_stride, const int64_t* above) {
  constexpr int64_t kPiece = 64;
  int64_t largest = 0;
  const int64_t whole = (count + 7) / 8 * 8;  // in vectors
  for (int64_t start = 0; start < whole; start += kPiece) {
    const int64_t size = whole - start < kPiece ? whole - start : kPiece;
    int64_t found[kPiece];
    for (int64_t i = 0; i < size; ++i) found[i] = above[start + i];
    for (int64_t k = 0; k < m; ++k) {
      const double* __restrict column = columns + k * stride + start;
      const double own = point[k * point_stride];
      for (int64_t i = 0; i < size; ++i) found[i] = column[i] <= own ? found[i] : 0;
    }
    for (int64_t i = 0; i < size; ++i) largest = found[i] > largest ? found[i] : largest;
  }
  return largest;
}

int64_t count_dominators(const double* columns, int64_t m, int64_t stride, int64_t count,
                         const double* __restrict point, int64_t point_stride) {
  constexpr int64_t kPiece = 64;
  int64_t dominators = 0;
  for (int64_t start = 0; start < count; start += kPiece) {
    const int64_t size = count - start < kPiece ? count - start : kPiece;
    int64_t found[kPiece];
    for (int64_t i = 0; i < size; ++i) found[i] = 1;
    for (int64_t k = 0; k < m; ++k) {
      const double* __restrict column = columns + k * stride + start;
      const double own = point[k * point_stride];
      for (int64_t i = 0; i < size; ++i) found[i] = column[i] <= own ? found[i] : 0;
    }
    for (int64_t i = 0; i < size; ++i) dominators += found[i];
  }
  return dominators;
}

int64_t count_up_to(const double* values, int64_t n, double limit) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += values[i] <= limit ? 1 : 0;
  return count;
}

void count_below(const double* values, int64_t n, int64_t* counts) {
  constexpr int64_t kPiece = 16;
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    double own[kPiece];
    int64_t below[kPiece];
    for (int64_t i = 0; i < kPiece; ++i) {
      own[i] = values[start + (i < size ? i : 0)];
      below[i] = 0;
    }
    for (int64_t j = 0; j < n; ++j) {
      const double other = values[j];
      for (int64_t i = 0; i < kPiece; ++i) below[i] -= other < own[i] ? -1 : 0;
    }
    for (int64_t i = 0; i < size; ++i) counts[start + i] = below[i];
  }
}

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
constexpr int kVectorWords = kVectorBytes / 8;

/// One bit for each word of `a` whose lanes are all at least those of `least`.
template <class Lane>
uint64_t words_at_least(Words a, Words least) {
#if defined(__AVX512BW__)
  const __m512i x = (__m512i)a, y = (__m512i)least;
  const __m512i larger = sizeof(Lane) == 1   ? _mm512_max_epu8(x, y)
                         : sizeof(Lane) == 2 ? _mm512_max_epu16(x, y)
                                             : _mm512_maskz_max_epu32(0xffff, x, y);  // unmasked: GCC 12 warns falsely
  return _mm512_cmpeq_epi64_mask(larger, x);
#elif defined(__AVX2__)
  const __m256i x = (__m256i)a, y = (__m256i)least;
  const __m256i larger = sizeof(Lane) == 1   ? _mm256_max_epu8(x, y)
                         : sizeof(Lane) == 2 ? _mm256_max_epu16(x, y)
                                             : _mm256_max_epu32(x, y);
  return static_cast<uint64_t>(_mm256_movemask_pd((__m256d)_mm256_cmpeq_epi64(larger, x)));
#elif defined(__SSE4_1__)
  const __m128i x = (__m128i)a, y = (__m128i)least;
  const __m128i larger = sizeof(Lane) == 1   ? _mm_max_epu8(x, y)
                         : sizeof(Lane) == 2 ? _mm_max_epu16(x, y)
                                             : _mm_max_epu32(x, y);
  return static_cast<uint64_t>(_mm_movemask_pd((__m128d)_mm_cmpeq_epi64(larger, x)));
#else
  typedef Lane Lanes __attribute__((vector_size(kVectorBytes)));
  const Words at_least = (Words)((Lanes)a >= (Lanes)least);
  return (at_least[0] == ~uint64_t{0} ? 1 : 0) | (at_least[1] == ~uint64_t{0} ? 2 : 0);
#endif
}

template <class Lane, int kRowWords>
int64_t rows_of_words_at_least(const unsigned char* rows, int64_t count, const unsigned char* row, int32_t* indices) {
  // The row as often as it fits a vector, put together in registers: a load behind narrower stores would wait for them.
  constexpr int kVectors = kRowWords > kVectorWords ? kRowWords / kVectorWords : 1;
  uint64_t word[kRowWords];
  __builtin_memcpy(word, row, sizeof word);
  Words least[kVectors];
  for (int v = 0; v < kVectors; ++v)
    for (int i = 0; i < kVectorWords; ++i) least[v][i] = word[(v * kVectorWords + i) % kRowWords];
  constexpr uint64_t kFirstWords = kRowWords == 64 ? 1 : ~uint64_t{0} / ((uint64_t{1} << (kRowWords % 64)) - 1);
  const int64_t words = count * kRowWords;
  int64_t found = 0;
  for (int64_t start = 0; start < words; start += 64) {
    const int size = words - start < 64 ? static_cast<int>(words - start) : 64;
    uint64_t block = 0;
    for (int i = 0; i < size; i += kVectorWords) {
      Words a;
      __builtin_memcpy(&a, rows + (start + i) * 8, kVectorBytes);
      block |= words_at_least<Lane>(a, least[i / kVectorWords % kVectors]) << i;
    }
    for (int i = 1; i < kRowWords; i *= 2) block &= block >> i;
    block &= kFirstWords;  // the bit of each row's first word says it for the row
    if (size < 64) block &= (uint64_t{1} << size) - 1;
    for (; block != 0; block &= block - 1)
      indices[found++] = static_cast<int32_t>((start + __builtin_ctzll(block)) / kRowWords);
  }
  return found;
}

template <class Lane>
int64_t rows_at_least(const unsigned char* rows, int64_t count, int row_words, const unsigned char* row,
                      int32_t* indices) {
  switch (row_words) {
    case 1:
      return rows_of_words_at_least<Lane, 1>(rows, count, row, indices);
    case 2:
      return rows_of_words_at_least<Lane, 2>(rows, count, row, indices);
    case 4:
      return rows_of_words_at_least<Lane, 4>(rows, count, row, indices);
    case 16:
      return rows_of_words_at_least<Lane, 16>(rows, count, row, indices);
    default:
      return rows_of_words_at_least<Lane, 32>(rows, count, row, indices);
  }
}

void clip_columns(const double* columns, int64_t n, int m, const double* corner, const double* ref,
                  double* __restrict clipped, double* __restrict volume) {
  for (int64_t i = 0; i < n; ++i) volume[i] = 1;
  for (int k = 0; k < m; ++k) {
    const double* __restrict column = columns + k * n;
    double* __restrict out = clipped + k * n;
    const double at = corner[k], end = ref[k];
    for (int64_t i = 0; i < n; ++i) {
      const double z = column[i] > at ? column[i] : at;
      out[i] = z;
      volume[i] *= end - z;
    }
  }
}

void strike_dominated(const double* columns, int64_t n, int m, const double* point, double* __restrict volume) {
  constexpr int64_t kPiece = 128;
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    int64_t dominated[kPiece];
    for (int64_t i = 0; i < size; ++i) dominated[i] = -1;
    for (int k = 0; k < m; ++k) {
      const double* __restrict column = columns + k * n + start;
      const double at = point[k];
      for (int64_t i = 0; i < size; ++i) dominated[i] = column[i] >= at ? dominated[i] : 0;
    }
    for (int64_t i = 0; i < size; ++i) volume[start + i] = dominated[i] ? -1 : volume[start + i];
  }
}

int64_t index_of_largest(const double* values, int64_t n) {
  constexpr int64_t kPiece = 64;
  int64_t piece = 0;
  double largest = values[0];
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    double lane[16];
    for (double& of_lane : lane) of_lane = largest;
    int64_t i = 0;
    for (; i + 16 <= size; i += 16)
      for (int64_t j = 0; j < 16; ++j) lane[j] = values[start + i + j] > lane[j] ? values[start + i + j] : lane[j];
    for (; i < size; ++i) lane[0] = values[start + i] > lane[0] ? values[start + i] : lane[0];
    double of_piece = lane[0];
    for (int64_t j = 1; j < 16; ++j) of_piece = lane[j] > of_piece ? lane[j] : of_piece;
    if (of_piece > largest) {
      largest = of_piece;
      piece = start;
    }
  }
  for (int64_t i = piece; i < n; ++i)
    if (values[i] == largest) return i;
  return 0;
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
    for (int64_t i = 0; i < size; ++i) measure[i] = measure[i] > 0 ? measure[i] : 0;  // 0 * (1e200 * 1e200) is NaN
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

template <class Key>
int64_t cut_keys(const Key* __restrict keys, int64_t count, Key low, Key high, uint8_t* __restrict above,
                 int32_t* __restrict inside, int64_t* counts) {
  uint8_t flags[kCutKeys];
  int32_t larger = 0, valid = 0;
  for (int64_t j = 0; j < count; ++j) {
    const bool is_above = keys[j] > high;
    above[j] = is_above;
    flags[j] = (keys[j] >= low) & !is_above;
    larger += is_above;
    valid += keys[j] != 0;
  }
  counts[0] += larger;
  counts[1] += valid;
  int64_t found = 0, j = 0;
  for (; j + 8 <= count; j += 8) {  // mostly none of them
    uint64_t eight;
    __builtin_memcpy(&eight, flags + j, sizeof eight);
    for (; eight != 0; eight &= eight - 1) inside[found++] = static_cast<int32_t>(j + __builtin_ctzll(eight) / 8);
  }
  for (; j < count; ++j)
    if (flags[j] != 0) inside[found++] = static_cast<int32_t>(j);
  return found;
}

template <class Bits>
void flags_of(const Bits* __restrict bits, int64_t count, Bits keep, uint8_t* __restrict flags) {
  for (int64_t i = 0; i < count; ++i) flags[i] = (bits[i] & keep) != 0;
}

template <class Bits>
void select_of(Bits value, const uint8_t* __restrict flags, int64_t count, Bits* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = flags[i] != 0 ? value : Bits{0};
}

int64_t count_flags(const uint8_t* flags, int64_t count) {
  constexpr int64_t kPiece = 4096;
  int64_t set = 0;
  for (int64_t start = 0; start < count; start += kPiece) {
    const int64_t size = count - start < kPiece ? count - start : kPiece;
    int32_t found = 0;
    for (int64_t i = 0; i < size; ++i) found += flags[start + i] != 0;
    set += found;
  }
  return set;
}

void add_to_lanes(const float* __restrict values, int64_t count, double* __restrict lanes) {
  constexpr int64_t kCount = 8;
  double sums[kCount];
  for (int64_t lane = 0; lane < kCount; ++lane) sums[lane] = lanes[lane];
  int64_t i = 0;
  for (; i + kCount <= count; i += kCount)
    for (int64_t lane = 0; lane < kCount; ++lane) sums[lane] += static_cast<double>(values[i + lane]);
  for (int64_t lane = 0; i + lane < count; ++lane) sums[lane] += static_cast<double>(values[i + lane]);
  for (int64_t lane = 0; lane < kCount; ++lane) lanes[lane] = sums[lane];
}

typedef double Lanes __attribute__((vector_size(kVectorBytes)));
typedef int64_t Pieces __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kLanes = kVectorBytes / 8;

Lanes load(const double* values) {
  Lanes lanes;
  __builtin_memcpy(&lanes, values, sizeof lanes);
  return lanes;
}

void store(Lanes lanes, double* values) { __builtin_memcpy(values, &lanes, sizeof lanes); }

/// Calls body(k, a value of Lanes or double) for the columns 0..m-1, as many at once as there are lanes.
template <class Body>
void each_column(int64_t m, const Body& body) {
  int64_t k = 0;
  for (; k + kLanes <= m; k += kLanes) body(k, Lanes{});
  for (; k < m; ++k) body(k, 0.0);
}

void get(const double* from, double& value) { value = *from; }
void get(const double* from, Lanes& value) { value = load(from); }
void put(double value, double* to) { *to = value; }
void put(Lanes value, double* to) { store(value, to); }

// Sums of a column stay in registers while the rows pass.

void sum_scored(const double* values, int64_t rows, int64_t m, const double* pivot, double* sum, double* count) {
  each_column(m, [&](int64_t k, auto value) {
    auto from = value, total = value, scored = value;
    const auto none = value, one = value + 1;
    get(pivot + k, from), get(sum + k, total), get(count + k, scored);
    for (int64_t i = 0; i < rows; ++i) {
      get(values + i * m + k, value);
      total += value == value ? value - from : none;
      scored += value == value ? one : none;
    }
    put(total, sum + k), put(scored, count + k);
  });
}

void sum_squares(const double* values, int64_t rows, int64_t m, const double* pivot, const double* centre,
                 double* squares) {
  each_column(m, [&](int64_t k, auto value) {
    auto from = value, mean = value, total = value;
    const auto none = value;
    get(pivot + k, from), get(centre + k, mean), get(squares + k, total);
    for (int64_t i = 0; i < rows; ++i) {
      get(values + i * m + k, value);
      const auto centred = value == value ? (value - from) - mean : none;
      total += centred * centred;
    }
    put(total, squares + k);
  });
}

void standardize(double* values, int64_t rows, int64_t m, const double* pivot, const double* centre,
                 const double* divisor) {
  each_column(m, [&](int64_t k, auto value) {
    auto from = value, mean = value, by = value;
    get(pivot + k, from), get(centre + k, mean), get(divisor + k, by);
    for (int64_t i = 0; i < rows; ++i) {
      get(values + i * m + k, value);
      put(((value - from) - mean) / by, values + i * m + k);
    }
  });
}

/// a < b ? a : b in every lane, so b beside NaN.
Lanes smaller(Lanes a, Lanes b) {
#if defined(__AVX512BW__)
  return (Lanes)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b);  // unmasked: GCC 12 warns falsely
#elif defined(__AVX2__)
  return (Lanes)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_min_pd((__m128d)a, (__m128d)b);
#else
  return a < b ? a : b;
#endif
}

/// a > b ? a : b in every lane, so b beside NaN.
Lanes larger(Lanes a, Lanes b) {
#if defined(__AVX512BW__)
  return (Lanes)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}

// The numbers of morlfast::Best.
enum { kDotProduct, kChebyshev, kSquaredDistance, kSquaredExcess, kLargestDifference, kLargestQuotient };

/// One objective's part of the value; of the first kinds the parts are added, of the others the largest counts.
template <int kBest, class Q, class P>  // of which one is Lanes and the other may be a double
Lanes part(Q q, P p) {
  if constexpr (kBest == kDotProduct || kBest == kChebyshev) return q * p;
  if constexpr (kBest == kSquaredDistance) return (q - p) * (q - p);
  if constexpr (kBest == kSquaredExcess) {
    const Lanes excess = larger(Lanes{}, p - q);
    return excess * excess;
  }
  if constexpr (kBest == kLargestDifference) return p - q;
  return p / q;
}

template <int kBest>
constexpr bool kAdded = kBest == kDotProduct || kBest == kSquaredDistance || kBest == kSquaredExcess;

/// The value with one part more; kOrdinary: no part is NaN, else NaN in a part stays.
template <int kBest, bool kOrdinary>
Lanes joined(Lanes value, Lanes next) {
  if constexpr (kAdded<kBest>) return value + next;
  if constexpr (kOrdinary) return larger(next, value);
  return (value != value) | (next <= value) ? value : next;
}

// Vectors of queries that share the loads of a point: a load that feeds one operation is free with 512-bit vectors, but
// with many objectives a sum waits for itself.
#if defined(__AVX512BW__)
template <int kM>
constexpr int64_t kSharing = kM > 0 ? 1 : 4;
#elif defined(__AVX2__)
template <int kM>
constexpr int64_t kSharing = 4;
#else
template <int kM>
constexpr int64_t kSharing = 2;
#endif

/// kM objectives in registers, or with kM = 0 any number. kOrdinary: no part is NaN; else NaN in a part is the pair's.
template <int kBest, int kM, bool kOrdinary>
void best_points_of(const double* points, int64_t n, int64_t m, const double* queries, int64_t count,
                    int64_t first_piece, double* least_of, int64_t* piece_of) {
  constexpr int64_t kShare = kSharing<kM>;
  if (kM > 0) m = kM;
  for (int64_t i = 0; i < count; i += kShare * kLanes) {
    Lanes q[kM > 0 ? kM : 1][kShare], least[kShare];
    Pieces piece[kShare];
    for (int64_t k = 0; k < kM; ++k) __builtin_memcpy(q[k], queries + k * kBestQueries + i, sizeof q[k]);
    __builtin_memcpy(least, least_of + i, sizeof least);
    __builtin_memcpy(piece, piece_of + i, sizeof piece);
    for (int64_t start = 0; start < n; start += kBestPiece) {
      Lanes before[kShare];
      for (int64_t r = 0; r < kShare; ++r) before[r] = least[r];
      const double* end = points + (n - start < kBestPiece ? n : start + kBestPiece) * m;
      for (const double* p = points + start * m; p < end; p += m) {
        if constexpr (kM > 0) {
          for (int64_t r = 0; r < kShare; ++r) {
            Lanes value = part<kBest>(q[0][r], p[0]);
            for (int k = 1; k < kM; ++k) {
              const Lanes next = part<kBest>(q[k][r], p[k]);
              value = joined<kBest, true>(value, next);
            }
            least[r] = smaller(value, least[r]);
          }
        } else {
          Lanes value[kShare];
          for (int64_t r = 0; r < kShare; ++r) value[r] = part<kBest>(load(queries + i + r * kLanes), p[0]);
          for (int64_t k = 1; k < m; ++k) {
            for (int64_t r = 0; r < kShare; ++r) {
              const Lanes next = part<kBest>(load(queries + k * kBestQueries + i + r * kLanes), p[k]);
              value[r] = joined<kBest, kOrdinary>(value[r], next);
            }
          }
          for (int64_t r = 0; r < kShare; ++r) least[r] = smaller(value[r], least[r]);
        }
      }
      for (int64_t r = 0; r < kShare; ++r)
        piece[r] = least[r] < before[r] ? Pieces{} + (first_piece + start / kBestPiece) : piece[r];
    }
    __builtin_memcpy(least_of + i, least, sizeof least);
    __builtin_memcpy(piece_of + i, piece, sizeof piece);
  }
}

using BestPoints = void(const double*, int64_t, int64_t, const double*, int64_t, int64_t, double*, int64_t*);

template <int kBest>
constexpr BestPoints* kBestPoints[] = {best_points_of<kBest, 0, false>, best_points_of<kBest, 0, true>};
template <int kBest>
constexpr BestPoints* kBestPointsOfFew[] = {best_points_of<kBest, 1, true>, best_points_of<kBest, 2, true>,
                                            best_points_of<kBest, 3, true>, best_points_of<kBest, 4, true>,
                                            best_points_of<kBest, 5, true>, best_points_of<kBest, 6, true>,
                                            best_points_of<kBest, 7, true>, best_points_of<kBest, 8, true>};

template <int kBest>
void best_points_for(bool ordinary, const double* points, int64_t n, int64_t m, const double* queries, int64_t count,
                     int64_t first_piece, double* least, int64_t* pieces) {
  BestPoints* function = ordinary && m <= 8 ? kBestPointsOfFew<kBest>[m - 1] : kBestPoints<kBest>[ordinary];
  function(points, n, m, queries, count, first_piece, least, pieces);
}

void best_points(int best, bool ordinary, const double* points, int64_t n, int64_t m, const double* queries,
                 int64_t count, int64_t first_piece, double* least, int64_t* pieces) {
  constexpr decltype(&best_points_for<kDotProduct>) kOf[] = {
      best_points_for<kDotProduct>,    best_points_for<kChebyshev>,         best_points_for<kSquaredDistance>,
      best_points_for<kSquaredExcess>, best_points_for<kLargestDifference>, best_points_for<kLargestQuotient>};
  kOf[best](ordinary, points, n, m, queries, count, first_piece, least, pieces);
}

template <int kBest, bool kOrdinary>
double least_value_of(const double* columns, int64_t n, int64_t m, const double* query, double enough, int64_t* first) {
  constexpr int64_t kShare = kLeastPoints / kLanes;
  Lanes least = Lanes{} + __builtin_inf();
  int64_t i = *first;
  for (int64_t done = 0; done < n; done += kLeastPoints) {
    Lanes value[kShare];
    for (int64_t r = 0; r < kShare; ++r) value[r] = part<kBest>(query[0], load(columns + i + r * kLanes));
    for (int64_t k = 1; k < m; ++k) {
      for (int64_t r = 0; r < kShare; ++r) {
        const Lanes next = part<kBest>(query[k], load(columns + k * n + i + r * kLanes));
        value[r] = joined<kBest, kOrdinary>(value[r], next);
      }
    }
    for (const Lanes& own : value) least = smaller(own, least);
    const Pieces found = least <= Lanes{} + enough;
    int64_t any = 0;
    for (int j = 0; j < kLanes; ++j) any |= found[j];
    if (any) {
      *first = i;
      break;
    }
    i = i + kLeastPoints < n ? i + kLeastPoints : 0;
  }
  double result = least[0];
  for (int j = 1; j < kLanes; ++j) result = least[j] < result ? least[j] : result;
  return result;
}

double least_value(int best, bool ordinary, const double* columns, int64_t n, int64_t m, const double* query,
                   double enough, int64_t* first) {
  using LeastValue = double(const double*, int64_t, int64_t, const double*, double, int64_t*);
  constexpr LeastValue* kOf[][2] = {
      {least_value_of<kChebyshev, false>, least_value_of<kChebyshev, true>},
      {least_value_of<kSquaredDistance, false>, least_value_of<kSquaredDistance, true>},
      {least_value_of<kSquaredExcess, false>, least_value_of<kSquaredExcess, true>},
      {least_value_of<kLargestDifference, false>, least_value_of<kLargestDifference, true>},
      {least_value_of<kLargestQuotient, false>, least_value_of<kLargestQuotient, true>}};
  return kOf[best - kChebyshev][ordinary](columns, n, m, query, enough, first);
}

void widen_bfloat16(const uint16_t* __restrict values, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = __builtin_bit_cast(float, static_cast<uint32_t>(values[i]) << 16);
}

void widen_float16(const uint16_t* __restrict values, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = values[i], sign = (bits & 0x8000) << 16, rest = bits & 0x7fff;
    const uint32_t normal = (rest << 13) + (rest >= 0x7c00 ? 0x70000000 : 0x38000000);
    const uint32_t subnormal = __builtin_bit_cast(uint32_t, static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
    const uint32_t is_normal = 0u - (rest >= 0x400);  // a selection would keep the loop from becoming vectors
    out[i] = __builtin_bit_cast(float, sign | (normal & is_normal) | (subnormal & ~is_normal));
  }
}

void narrow_bfloat16(const float* __restrict values, int64_t count, uint16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, values[i]);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

void narrow_float16(const float* __restrict values, int64_t count, uint16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, values[i]);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // Adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    const uint32_t subnormal = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3f000000;
    const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t is_subnormal = 0u - (magnitude < 0x38800000), is_large = 0u - (magnitude >= 0x477ff000);
    const uint32_t is_normal = ~(is_subnormal | is_large);
    const uint32_t narrow = (normal & is_normal) | (subnormal & is_subnormal) | (large & is_large);
    out[i] = static_cast<uint16_t>(sign | narrow);
  }
}

typedef float Floats __attribute__((vector_size(kVectorBytes)));

/// a > b ? a : b in every lane, so b beside NaN.
Floats larger(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

/// exp(d) = 2^n (1 + f + f^2 (k[0] + k[1] f + ...)) with d = n ln 2 + f. Adding `shift` leaves n, plus the exponent's
/// bias, in the low bits of the sum; at `least` that is 0, and so is the power then. The coefficients minimize the
/// largest relative error for |f| <= ln(2) / 2: 1.0e-7 and 3.6e-18.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  typedef Floats Vector;
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23;
  static constexpr float least = -0x1.601e68p+6f, shift = 0x1.8p+23f + 127, log2_e = 0x1.715476p+0f;
  static constexpr float high = 0x1.62e4p-1f, low = 0x1.7f7d1cp-20f;
  static constexpr float k[] = {0.499992317617f, 0.166671144828f, 0.041890117542f, 0.00831252448549f};
};

template <>
struct Exponential<double> {
  typedef Lanes Vector;
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52;
  static constexpr double least = -0x1.628b76e3a7b61p+9, shift = 0x1.8p+52 + 1023, log2_e = 0x1.71547652b82fep+0;
  static constexpr double high = 0x1.62e42feep-1, low = 0x1.a39ef35793c76p-33;
  static constexpr double k[] = {0.50000000000000106178,     0.16666666666666412751,   0.041666666666530255262,
                                 0.0083333333334943458537,   0.0013888888943600931249, 0.00019841269506759570033,
                                 0.000024801493132468677096, 2.7557586277150177654e-6, 2.7630235361320596328e-7,
                                 2.500007122327542034e-8};
};

template <class T>
using VectorOf = typename Exponential<T>::Vector;

template <class T>
[[gnu::always_inline]] inline VectorOf<T> loaded(const T* values) {
  VectorOf<T> vector;
  __builtin_memcpy(&vector, values, sizeof vector);
  return vector;
}

// Vectors that take each step together: one alone waits for itself, and its steps fill the processor's window.
#if defined(__AVX512BW__)
constexpr int kAbreast = 4;
#else
constexpr int kAbreast = 2;
#endif

/// Sets every d to at least Exponential::least, NaN stays, and e to exp(d).
template <class T>
[[gnu::always_inline]] inline void exponentials(VectorOf<T> (&d)[kAbreast], VectorOf<T> (&e)[kAbreast]) {
  using E = Exponential<T>;
  using Vector = typename E::Vector;
  using Bits = typename E::Bits;
  constexpr int kTerms = sizeof E::k / sizeof(T);  // even
  Vector n[kAbreast], f[kAbreast], power[kAbreast], square[kAbreast];
  for (Vector& own : d) own = larger(Vector{} + E::least, own);
  for (int u = 0; u < kAbreast; ++u) n[u] = d[u] * E::log2_e + E::shift;
  for (int u = 0; u < kAbreast; ++u) power[u] = (Vector)((Bits)n[u] << E::kMantissa);
  for (Vector& own : n) own -= E::shift;
  for (int u = 0; u < kAbreast; ++u) f[u] = d[u] - n[u] * E::high;
  for (int u = 0; u < kAbreast; ++u) f[u] = f[u] - n[u] * E::low;
  for (int u = 0; u < kAbreast; ++u) square[u] = f[u] * f[u];
  // In pairs of terms: half of the steps wait for nothing.
  for (int u = 0; u < kAbreast; ++u) e[u] = f[u] * E::k[kTerms - 1] + E::k[kTerms - 2];
  for (int i = kTerms - 4; i >= 0; i -= 2)
    for (int u = 0; u < kAbreast; ++u) e[u] = e[u] * square[u] + (f[u] * E::k[i + 1] + E::k[i]);
  for (int u = 0; u < kAbreast; ++u) e[u] = (e[u] * square[u] + f[u] + T{1}) * power[u];
}

// Sums are the same at every SIMD level: kSumLanes of them side by side, and of eight neighbours of a lane as a tree.
constexpr int64_t kSumLanes = 16, kTree = 8, kSumBlock = kSumLanes * kTree;

template <class T>
constexpr T kLowest = -__builtin_inf();

/// Copies `count` values and fills up with -inf.
template <class T, int64_t kCount>
void fill_up(const T* values, int64_t count, T (&out)[kCount]) {
  for (int64_t i = 0; i < kCount; ++i) out[i] = i < count ? values[i] : kLowest<T>;
}

template <class T>
T largest_of(const T* values, int64_t count) {
  constexpr int64_t kWidth = kVectorBytes / sizeof(T), kUnroll = 4, kBlock = kUnroll * kWidth;
  const int64_t whole = count / kBlock * kBlock;
  T rest[kBlock];
  fill_up(values + whole, count - whole, rest);
  VectorOf<T> largest[kUnroll];
  for (int64_t u = 0; u < kUnroll; ++u) largest[u] = larger(loaded(rest + u * kWidth), VectorOf<T>{} + kLowest<T>);
  for (int64_t i = 0; i < whole; i += kBlock)
    for (int64_t u = 0; u < kUnroll; ++u) largest[u] = larger(loaded(values + i + u * kWidth), largest[u]);
  largest[0] = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
  T result = largest[0][0];
  for (int64_t i = 1; i < kWidth; ++i) result = largest[0][i] > result ? largest[0][i] : result;
  return result;
}

template <class V>
[[gnu::always_inline]] inline V tree_of(const V (&values)[2]) {
  return values[0] + values[1];
}

template <class V>
[[gnu::always_inline]] inline V tree_of(const V (&values)[4]) {
  return (values[0] + values[1]) + (values[2] + values[3]);
}

template <class T, bool kMoment>
struct Exponentials {
  using Vector = VectorOf<T>;
  using Bits = typename Exponential<T>::Bits;
  static constexpr int64_t kWidth = kVectorBytes / sizeof(T), kParts = kSumLanes / kWidth;

  Vector sum, moment;
  Bits ones;

  /// Of kCount vectors kSumLanes apart.
  template <int64_t kCount>
  [[gnu::always_inline]] static Exponentials of(const T* values, T from, T factor) {
    if constexpr (kCount > kAbreast) {
      Exponentials first = of<kCount / 2>(values, from, factor);
      first += of<kCount / 2>(values + kCount / 2 * kSumLanes, from, factor);
      return first;
    } else {
      Vector d[kAbreast], e[kAbreast], product[kAbreast];
      Bits one[kAbreast];
      for (int u = 0; u < kAbreast; ++u) d[u] = (loaded(values + u * kSumLanes) - from) * factor;
      exponentials<T>(d, e);
      for (int u = 0; u < kAbreast; ++u) one[u] = (Bits)(d[u] == Vector{});
      for (int u = 0; u < kAbreast; ++u) product[u] = e[u] * d[u];
      for (int u = 0; u < kAbreast; ++u) e[u] = (Vector)((Bits)e[u] & ~one[u]);
      return {tree_of(e), kMoment ? tree_of(product) : Vector{}, Bits{} - tree_of(one)};
    }
  }

  [[gnu::always_inline]] void operator+=(const Exponentials& other) {
    sum += other.sum;
    if constexpr (kMoment) moment += other.moment;
    ones += other.ones;
  }
};

template <class T, bool kMoment>
void add_exponentials_of(const T* values, int64_t count, T from, T factor, double* sums) {
  using Part = Exponentials<T, kMoment>;
  const int64_t whole = count / kSumBlock * kSumBlock;
  if (whole < count) {
    T rest[kSumBlock];
    fill_up(values + whole, count - whole, rest);
    add_exponentials_of<T, kMoment>(rest, kSumBlock, from, factor, sums);
  }
  double lanes[3][kSumLanes];
  for (int64_t p = 0; p < Part::kParts; ++p) {
    Part part = {};
    for (int64_t i = p * Part::kWidth; i < whole; i += kSumBlock)
      part += Part::template of<kTree>(values + i, from, factor);
    for (int64_t j = 0; j < Part::kWidth; ++j) {
      lanes[0][p * Part::kWidth + j] = static_cast<double>(part.sum[j]);
      lanes[1][p * Part::kWidth + j] = static_cast<double>(part.ones[j]);
      lanes[2][p * Part::kWidth + j] = static_cast<double>(part.moment[j]);
    }
  }
  for (int k = 0; k < 3; ++k) {
    for (int64_t half = kSumLanes / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) lanes[k][j] += lanes[k][j + half];
    sums[k] += lanes[k][0];
  }
}

template <class T>
void add_exponentials(const T* values, int64_t count, T from, T factor, bool moment, double* sums) {
  if (moment)
    add_exponentials_of<T, true>(values, count, from, factor, sums);
  else
    add_exponentials_of<T, false>(values, count, from, factor, sums);
}

template <class T>
void entropy_slopes(const T* values, int64_t count, T from, T factor, T rest, T constant, T slope, T* out) {
  constexpr int64_t kWidth = kVectorBytes / sizeof(T), kBlock = kAbreast * kWidth;
  const int64_t whole = count / kBlock * kBlock;
  for (int64_t i = 0; i < whole; i += kBlock) {
    VectorOf<T> d[kAbreast], e[kAbreast];
    for (int u = 0; u < kAbreast; ++u) d[u] = (loaded(values + i + u * kWidth) - from) * factor - rest;
    exponentials<T>(d, e);
    for (int u = 0; u < kAbreast; ++u) e[u] *= slope * d[u] + constant;
    __builtin_memcpy(out + i, e, sizeof e);
  }
  if (whole == count) return;
  T last[kBlock], result[kBlock];
  fill_up(values + whole, count - whole, last);
  entropy_slopes(last, kBlock, from, factor, rest, constant, slope, result);
  for (int64_t i = whole; i < count; ++i) out[i] = result[i - whole];
}

}  // namespace

extern const SimdTable MORLFAST_JOIN(simd_, MORLFAST_SIMD_LEVEL);
const SimdTable MORLFAST_JOIN(simd_, MORLFAST_SIMD_LEVEL) = {MORLFAST_STRING(MORLFAST_SIMD_LEVEL),
                                                             and_words,
                                                             first_common_word,
                                                             largest_dominator,
                                                             count_dominators,
                                                             count_up_to,
                                                             count_below,
                                                             rows_at_least<uint8_t>,
                                                             rows_at_least<uint16_t>,
                                                             rows_at_least<uint32_t>,
                                                             clip_columns,
                                                             strike_dominated,
                                                             index_of_largest,
                                                             add_box_volumes,
                                                             score_keys_32,
                                                             score_keys_64,
                                                             cut_keys<uint32_t>,
                                                             cut_keys<uint64_t>,
                                                             flags_of<uint16_t>,
                                                             flags_of<uint32_t>,
                                                             flags_of<uint64_t>,
                                                             select_of<uint16_t>,
                                                             select_of<uint32_t>,
                                                             select_of<uint64_t>,
                                                             count_flags,
                                                             add_to_lanes,
                                                             sum_scored,
                                                             sum_squares,
                                                             standardize,
                                                             best_points,
                                                             least_value,
                                                             widen_bfloat16,
                                                             widen_float16,
                                                             narrow_bfloat16,
                                                             narrow_float16,
                                                             largest_of<float>,
                                                             largest_of<double>,
                                                             add_exponentials<float>,
                                                             add_exponentials<double>,
                                                             entropy_slopes<float>,
                                                             entropy_slopes<double>};

}  // namespace morlfast
