#include "morlfast/logprobs.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.hpp"
#include "read_row.hpp"
#include "simd.hpp"

namespace morlfast {
namespace {

constexpr int64_t kPiece = 2048;        // 8 KB of float32
constexpr int64_t kSegment = 1 << 15;   // what threads share of a row
constexpr int64_t kParallel = 1 << 16;  // logits that are worth waking threads

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

float largest_of(const float* x, int64_t count) { return simd().largest_32(x, count); }
double largest_of(const double* x, int64_t count) { return simd().largest_64(x, count); }

void add_exponentials(const float* x, int64_t count, float from, float factor, bool moment, double* sums) {
  simd().add_exponentials_32(x, count, from, factor, moment, sums);
}
void add_exponentials(const double* x, int64_t count, double from, double factor, bool moment, double* sums) {
  simd().add_exponentials_64(x, count, from, factor, moment, sums);
}

void entropy_slopes(const float* x, int64_t count, float from, float factor, float rest, float constant, float slope,
                    float* out) {
  simd().entropy_slopes_32(x, count, from, factor, rest, constant, slope, out);
}
void entropy_slopes(const double* x, int64_t count, double from, double factor, double rest, double constant,
                    double slope, double* out) {
  simd().entropy_slopes_64(x, count, from, factor, rest, constant, slope, out);
}

/// Row r of the logits as the only row of a matrix.
MatrixView row_of(const TokenLogits& rows, int64_t r) {
  const auto size = with_dtype(rows.dtype, [](auto zero) { return static_cast<int64_t>(sizeof(zero)); });
  const int64_t place = r / rows.length * rows.strides[0] + r % rows.length * rows.strides[1];
  return {static_cast<const char*>(rows.logits) + place * size, rows.dtype, 0, rows.strides[2]};
}

template <class T>
const T* read_logits(const MatrixView& row, int64_t first, int64_t count, T* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    if (row.column_stride == 1 && row.dtype == Dtype::bfloat16) {
      simd().widen_bfloat16(static_cast<const uint16_t*>(row.data) + first, count, buffer);
      return buffer;
    }
    if (row.column_stride == 1 && row.dtype == Dtype::float16) {
      simd().widen_float16(static_cast<const uint16_t*>(row.data) + first, count, buffer);
      return buffer;
    }
  }
  return read_row(row, 0, first, count, buffer);
}

double logit_of(const MatrixView& row, int64_t v) {
  double buffer;
  return *read_row(row, 0, v, 1, &buffer);
}

int64_t token_of(const TokenLogits& rows, int64_t r) {
  return rows.tokens[r / rows.length * rows.token_strides[0] + r % rows.length * rows.token_strides[1]];
}

/// Where the token's logit is, or -1 outside the slice.
int64_t place_of(const TokenLogits& rows, int64_t token) {
  const bool inside = token >= rows.first_token && token - rows.first_token < rows.vocabulary;
  return inside ? token - rows.first_token : -1;
}

/// Some logits of a row, with e = exp((logit - largest) / temperature).
struct Distribution {
  double largest = -kInf;  ///< -inf: none counts
  double excess = 0;       ///< sum of e, less 1
  double moment = 0;       ///< sum of e log e
  bool nan = false;

  void add(const Distribution& other, double temperature) {
    nan |= other.nan;
    if (other.largest == -kInf) return;
    if (largest == -kInf) {
      const bool own = nan;
      *this = other;
      nan = own;
    } else if (other.largest > largest) {
      Distribution sum = other;
      sum.nan = nan;
      sum.absorb(*this, temperature);
      *this = sum;
    } else {
      absorb(other, temperature);
    }
  }

 private:
  void absorb(const Distribution& lower, double temperature) {
    const double shift = (lower.largest - largest) / temperature, factor = std::exp(shift);
    if (factor == 0) return;
    excess += factor * (1 + lower.excess);
    moment += factor * (lower.moment + shift * (1 + lower.excess));
  }
};

template <class T>
Distribution distribution_of(const MatrixView& row, int64_t begin, int64_t end, double temperature, bool moment) {
  const T factor = static_cast<T>(1 / temperature);
  Distribution all;
  T buffer[kPiece];
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t count = std::min(kPiece, end - first);
    const T* x = read_logits(row, first, count, buffer);
    const T largest = largest_of(x, count);
    double sums[3] = {};
    add_exponentials(x, count, largest == -static_cast<T>(kInf) ? T{0} : largest, factor, moment, sums);
    all.add({largest, sums[0] + (sums[1] - 1), sums[2], std::isnan(sums[0])}, temperature);
  }
  return all;
}

template <class T>
void token_logprobs_as(const TokenLogits& rows, bool partial, T* log_probs, T* entropies, double* log_sums) {
  const bool moment = entropies != nullptr;
  const auto finish = [&](int64_t r, const Distribution& of_row) {
    const int64_t place = place_of(rows, token_of(rows, r));
    double log_prob = kNan, entropy = kNan, log_sum = kNan;
    if (!of_row.nan && of_row.largest != -kInf) {
      const double rest = std::log1p(of_row.excess);
      if (place >= 0) log_prob = (logit_of(row_of(rows, r), place) - of_row.largest) / rows.temperature - rest;
      entropy = rest - of_row.moment / (1 + of_row.excess);
      log_sum = of_row.largest / rows.temperature + rest;
    } else if (!of_row.nan && partial) {
      log_prob = log_sum = -kInf;
      entropy = 0;
    }
    log_probs[r] = static_cast<T>(place >= 0 ? log_prob : -kInf);
    if (entropies) entropies[r] = static_cast<T>(entropy);
    log_sums[r] = log_sum;
  };
  const auto ignore = [&](int64_t r) {
    if (token_of(rows, r) != rows.ignore_index) return false;
    log_probs[r] = 0;
    log_sums[r] = 0;
    if (entropies) entropies[r] = 0;
    return true;
  };
  const int64_t segments = (rows.vocabulary + kSegment - 1) / kSegment;
  const auto segment_of = [&](int64_t r, int64_t s) {
    return distribution_of<T>(row_of(rows, r), s * kSegment, std::min((s + 1) * kSegment, rows.vocabulary),
                              rows.temperature, moment);
  };

  const bool parallel = rows.rows() * rows.vocabulary >= kParallel;
  if (parallel && segments > 1 && rows.rows() < int64_t{8} * thread_count()) {
    std::vector<Distribution> parts(rows.rows() * segments);
    parallel_for(rows.rows() * segments, true, [&](int64_t i) {
      const int64_t r = i / segments;
      if (token_of(rows, r) != rows.ignore_index) parts[i] = segment_of(r, i % segments);
    });
    for (int64_t r = 0; r < rows.rows(); ++r) {
      if (ignore(r)) continue;
      Distribution of_row;
      for (int64_t s = 0; s < segments; ++s) of_row.add(parts[r * segments + s], rows.temperature);
      finish(r, of_row);
    }
    return;
  }
  parallel_for(rows.rows(), parallel, [&](int64_t r) {
    if (ignore(r)) return;
    Distribution of_row;
    for (int64_t s = 0; s < segments; ++s) of_row.add(segment_of(r, s), rows.temperature);
    finish(r, of_row);
  });
}

void require_tokens(const TokenLogits& rows) {
  for (int64_t r = 0; r < rows.rows(); ++r) {
    const int64_t token = token_of(rows, r);
    if (token == rows.ignore_index || place_of(rows, token) >= 0) continue;
    throw std::invalid_argument("tokens: expected " + std::to_string(rows.first_token) + " <= token < " +
                                std::to_string(rows.first_token + rows.vocabulary) + " or " +
                                std::to_string(rows.ignore_index) + ", got " + std::to_string(token) + " at (" +
                                std::to_string(r / rows.length) + ", " + std::to_string(r % rows.length) + ")");
  }
}

/// What the gradient's kernels write, in the type of the logits.
void narrow(const float* values, int64_t count, bfloat16* out) {
  simd().narrow_bfloat16(values, count, reinterpret_cast<uint16_t*>(out));
}
void narrow(const float* values, int64_t count, float16* out) {
  simd().narrow_float16(values, count, reinterpret_cast<uint16_t*>(out));
}

/// T: computed in; S: the type of the logits.
template <class T, class S>
void gradient_as(const TokenLogits& rows, const MatrixView& log_sums, const MatrixView& entropies,
                 const std::optional<MatrixView>& grad_log_probs, const std::optional<MatrixView>& grad_entropies,
                 S* grad) {
  const int64_t pieces = (rows.vocabulary + kPiece - 1) / kPiece;
  const auto at = [&](const MatrixView& view, int64_t r) {
    double buffer;
    return *read_row(view, r / rows.length, r % rows.length, 1, &buffer);
  };
  const T factor = static_cast<T>(1 / rows.temperature);
  const double largest = std::numeric_limits<T>::max();
  parallel_for(rows.rows() * pieces, rows.rows() * rows.vocabulary >= kParallel, [&](int64_t i) {
    const int64_t r = i / pieces, first = i % pieces * kPiece, count = std::min(kPiece, rows.vocabulary - first);
    S* out = grad + r * rows.vocabulary + first;
    const int64_t token = token_of(rows, r);
    if (token == rows.ignore_index) {
      std::fill(out, out + count, S{});
      return;
    }
    const double g = grad_log_probs ? at(*grad_log_probs, r) / rows.temperature : 0;
    const double h = grad_entropies ? at(*grad_entropies, r) / rows.temperature : 0;
    const double entropy = grad_entropies ? at(entropies, r) : 0, log_sum = at(log_sums, r);
    const double constant = -(g + h * entropy);
    const MatrixView row = row_of(rows, r);
    T buffer[kPiece], values[kPiece];
    const T* x = read_logits(row, first, count, buffer);
    T* result = values;
    if constexpr (std::is_same_v<S, T>) result = out;
    const T from = static_cast<T>(std::clamp(log_sum * rows.temperature, -largest, largest));
    const T rest = static_cast<T>(log_sum - static_cast<double>(from) / rows.temperature);
    entropy_slopes(x, count, from, factor, rest, static_cast<T>(constant), static_cast<T>(-h), result);
    const int64_t place = place_of(rows, token) - first;
    if (place >= 0 && place < count) {
      const double log_p = logit_of(row, first + place) / rows.temperature - log_sum, p = std::exp(log_p);
      const double slope = p > 0 ? h * p * (log_p + entropy) : 0;
      result[place] = static_cast<T>(-g * std::expm1(log_p) - slope);
    }
    if constexpr (!std::is_same_v<S, T>) narrow(values, count, out);
  });
}

}  // namespace

void token_logprobs(const TokenLogits& rows, bool partial, void* log_probs, void* entropies, double* log_sums) {
  if (!partial) require_tokens(rows);
  if (rows.dtype == Dtype::float64)
    token_logprobs_as(rows, partial, static_cast<double*>(log_probs), static_cast<double*>(entropies), log_sums);
  else
    token_logprobs_as(rows, partial, static_cast<float*>(log_probs), static_cast<float*>(entropies), log_sums);
}

void token_logprobs_gradient(const TokenLogits& rows, const MatrixView& log_sums, const MatrixView& entropies,
                             const std::optional<MatrixView>& grad_log_probs,
                             const std::optional<MatrixView>& grad_entropies, void* grad) {
  if (rows.dtype == Dtype::float64)
    gradient_as<double>(rows, log_sums, entropies, grad_log_probs, grad_entropies, static_cast<double*>(grad));
  else if (rows.dtype == Dtype::bfloat16)
    gradient_as<float>(rows, log_sums, entropies, grad_log_probs, grad_entropies, static_cast<bfloat16*>(grad));
  else if (rows.dtype == Dtype::float16)
    gradient_as<float>(rows, log_sums, entropies, grad_log_probs, grad_entropies, static_cast<float16*>(grad));
  else
    gradient_as<float>(rows, log_sums, entropies, grad_log_probs, grad_entropies, static_cast<float*>(grad));
}

}  // namespace morlfast
