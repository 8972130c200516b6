// Inner loops that profit from wider vectors than the baseline, one table a SIMD level, chosen once at run time.
#pragma once
#include <cstdint>

namespace morlfast {

/// Queries that best_points takes at once, and points after which it notes whether one of them was the best so far.
inline constexpr int kBestQueries = 32, kBestPiece = 8;
/// Points that least_value takes at once.
inline constexpr int kLeastPoints = 16;

/// Keys that cut_keys takes at once.
inline constexpr int64_t kCutKeys = 4096;

struct SimdTable {
  const char* name;
  /// target[i] &= source[i]
  void (*and_words)(uint64_t* target, const uint64_t* source, int64_t words);
  /// The first word in which a and b have a common bit; `words` if there is none.
  int64_t (*first_common_word)(const uint64_t* a, const uint64_t* b, int64_t words);
  /// The largest of 0 and above[i] over the points i < count of columns (m, stride) that are nowhere worse than
  /// `point`, whose objectives lie point_stride apart. Reads up to 7 points more, where `above` has to be 0.
  int64_t (*largest_dominator)(const double* columns, int64_t m, int64_t stride, int64_t count, const double* point,
                               int64_t point_stride, const int64_t* above);
  /// How many of the points i < count are nowhere worse than `point`.
  int64_t (*count_dominators)(const double* columns, int64_t m, int64_t stride, int64_t count, const double* point,
                              int64_t point_stride);
  /// How many of the values are at most `limit`.
  int64_t (*count_up_to)(const double* values, int64_t n, double limit);
  /// counts[i] = number of values[j] < values[i]
  void (*count_below)(const double* values, int64_t n, int64_t* counts);
  /// Indices of the rows of unsigned lanes (8, 16, 32 bits) that are at least `row` in every lane; returns their
  /// number. A row is row_words (a power of two up to 64) words of 8 bytes; reads up to 56 bytes behind the last.
  int64_t (*rows_at_least_8)(const unsigned char* rows, int64_t count, int row_words, const unsigned char* row,
                             int32_t* indices);
  int64_t (*rows_at_least_16)(const unsigned char* rows, int64_t count, int row_words, const unsigned char* row,
                              int32_t* indices);
  int64_t (*rows_at_least_32)(const unsigned char* rows, int64_t count, int row_words, const unsigned char* row,
                              int32_t* indices);
  /// clipped[k][i] = max(columns[k][i], corner[k]) and volume[i] = prod_k (ref[k] - clipped[k][i]), all (m, n).
  void (*clip_columns)(const double* columns, int64_t n, int m, const double* corner, const double* ref,
                       double* clipped, double* volume);
  /// volume[i] = -1 for every point of the columns (m, n) that is no better than `point` in any objective.
  void (*strike_dominated)(const double* columns, int64_t n, int m, const double* point, double* volume);
  /// The lowest index of the largest value.
  int64_t (*index_of_largest)(const double* values, int64_t n);
  /// volume[q] += sum over boxes i of prod_k max(0, high[k][i] - max(low[k][i], corner[k])), (m, stride) boxes.
  void (*add_box_volumes)(const double* low, const double* high, int64_t stride, int64_t count, int m,
                          const double* corner, double* volume);
  /// Key of |advantage| * entropy, unsigned in the scores' order (-0.0 as 0.0), or 0 where not valid or NaN.
  void (*score_keys_32)(const float* advantage, const float* entropy, const uint8_t* valid, int64_t count,
                        uint32_t* keys);
  void (*score_keys_64)(const double* advantage, const double* entropy, const uint8_t* valid, int64_t count,
                        uint64_t* keys);
  /// above[i] = keys[i] > high; writes the ascending i with low <= keys[i] <= high to `inside` and returns their
  /// number. counts[0] += keys above, counts[1] += keys that are not 0. Takes up to kCutKeys keys.
  int64_t (*cut_keys_32)(const uint32_t* keys, int64_t count, uint32_t low, uint32_t high, uint8_t* above,
                         int32_t* inside, int64_t* counts);
  int64_t (*cut_keys_64)(const uint64_t* keys, int64_t count, uint64_t low, uint64_t high, uint8_t* above,
                         int32_t* inside, int64_t* counts);

  /// flags[i] = 1 where bits[i] & keep is not 0, else 0
  void (*flags_16)(const uint16_t* bits, int64_t count, uint16_t keep, uint8_t* flags);
  void (*flags_32)(const uint32_t* bits, int64_t count, uint32_t keep, uint8_t* flags);
  void (*flags_64)(const uint64_t* bits, int64_t count, uint64_t keep, uint8_t* flags);
  /// out[i] = flags[i] ? value : 0
  void (*select_16)(uint16_t value, const uint8_t* flags, int64_t count, uint16_t* out);
  void (*select_32)(uint32_t value, const uint8_t* flags, int64_t count, uint32_t* out);
  void (*select_64)(uint64_t value, const uint8_t* flags, int64_t count, uint64_t* out);
  /// How many of the flags are not 0.
  int64_t (*count_flags)(const uint8_t* flags, int64_t count);
  /// lanes[i % 8] += values[i]
  void (*add_to_lanes)(const float* values, int64_t count, double* lanes);

  // values (rows, m), pivot, centre and divisor (m); a NaN value is not scored.
  /// sum[k] += value - pivot[k] and count[k] += 1 over the scored values
  void (*sum_scored)(const double* values, int64_t rows, int64_t m, const double* pivot, double* sum, double* count);
  /// squares[k] += ((value - pivot[k]) - centre[k])^2 over the scored values
  void (*sum_squares)(const double* values, int64_t rows, int64_t m, const double* pivot, const double* centre,
                      double* squares);
  /// value = ((value - pivot[k]) - centre[k]) / divisor[k]; NaN stays
  void (*standardize)(double* values, int64_t rows, int64_t m, const double* pivot, const double* centre,
                      const double* divisor);

  /// least[i] = the least value that a row of points (n, m) has for query i, and pieces[i] = first_piece + the number
  /// of the piece in which it fell below least[i], for the first `count` of queries (m, kBestQueries). `best` as in
  /// morlfast::Best, with queries negated for dot_product. A pair that is NaN is passed over; `ordinary` promises that
  /// none is, except for rows all NaN.
  void (*best_points)(int best, bool ordinary, const double* points, int64_t n, int64_t m, const double* queries,
                      int64_t count, int64_t first_piece, double* least, int64_t* pieces);

  /// The least value that any of n points, columns (m, n) with n a multiple of kLeastPoints, has for the query; or some
  /// value up to `enough` as soon as there is one. Looks from point *first on, and leaves there where it ended.
  double (*least_value)(int best, bool ordinary, const double* columns, int64_t n, int64_t m, const double* query,
                        double enough, int64_t* first);

  /// 16-bit floats as float32, and back, rounded to nearest even.
  void (*widen_bfloat16)(const uint16_t* values, int64_t count, float* out);
  void (*widen_float16)(const uint16_t* values, int64_t count, float* out);
  void (*narrow_bfloat16)(const float* values, int64_t count, uint16_t* out);
  void (*narrow_float16)(const float* values, int64_t count, uint16_t* out);
  /// The largest value, NaN passed over; -inf of none.
  float (*largest_32)(const float* values, int64_t count);
  double (*largest_64)(const double* values, int64_t count);
  // With d = (value - from) * factor - rest, which is at most about 0; exp(d) is exactly 0 below -87.7 (-709 in 64
  // bits).
  /// Adds to `sums`: exp(d) where d is not 0, the number of those where it is, and exp(d) d (if `moment`).
  void (*add_exponentials_32)(const float* values, int64_t count, float from, float factor, bool moment, double* sums);
  void (*add_exponentials_64)(const double* values, int64_t count, double from, double factor, bool moment,
                              double* sums);
  /// out = exp(d) (constant + slope d)
  void (*entropy_slopes_32)(const float* values, int64_t count, float from, float factor, float rest, float constant,
                            float slope, float* out);
  void (*entropy_slopes_64)(const double* values, int64_t count, double from, double factor, double rest,
                            double constant, double slope, double* out);
};

/// The best level that this processor runs; MORLFAST_SIMD=<name> picks a lower one.
const SimdTable& simd();

}  // namespace morlfast
