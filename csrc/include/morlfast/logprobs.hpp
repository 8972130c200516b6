// Log-probabilities of tokens and entropies of their distributions.
#pragma once
#include <cstdint>
#include <optional>

#include "morlfast/elements.hpp"

namespace morlfast {

/// Logits (batch, length, vocabulary) with any strides, a floating-point type, and the token of each row of them.
struct TokenLogits {
  const void* logits = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t batch = 0, length = 0, vocabulary = 0;
  int64_t strides[3] = {};
  const int64_t* tokens = nullptr;  ///< (batch, length)
  int64_t token_strides[2] = {};
  double temperature = 1;       ///< 1e-30..1e30
  int64_t first_token = 0;      ///< the token of logit 0, where the logits are a slice of the vocabulary
  int64_t ignore_index = -100;  ///< a row with this token is not read

  int64_t rows() const { return batch * length; }
};

/// x = logits / temperature, L = log sum_v exp(x_v): the token's x - L, H = L - sum_v p_v x_v with p = exp(x - L), and
/// L.
///
/// One pass over the logits in pieces that stay in the first-level cache. Sums are of exp(x - max x) without the
/// maximum itself, so that small entropies are as exact as large ones; they are float32 inside a piece (float64 for
/// float64 logits) and float64 between pieces. Any number of threads gives the same result.
///
/// NaN or +inf in a row gives NaN, -inf counts nothing, a row of -inf only gives NaN. With `partial`, for slices of a
/// vocabulary, that row gives L = -inf and H = 0, and a token outside the slice the log-probability -inf; otherwise a
/// token outside is an invalid_argument. Ignored rows give 0.
///
/// log_probs, entropies  (batch, length) contiguous, float64 for float64 logits, else float32; entropies may be nullptr
/// log_sums              (batch, length) contiguous: in float32, L = 1000 would be off by 3e-5, and so would every log
/// p
void token_logprobs(const TokenLogits& rows, bool partial, void* log_probs, void* entropies, double* log_sums);

/// (g (1[v is the token] - p_v) - h p_v (log p_v + H)) / temperature with log p = x - L, and 0 in ignored rows.
///
/// log_sums        (batch, length) L; with H, those of the whole vocabulary where the logits are a slice of it
/// entropies       (batch, length) H, read where there are gradients of it
/// grad_log_probs  (batch, length) g; 0 without
/// grad_entropies  (batch, length) h; 0 without
/// grad            (batch, length, vocabulary) contiguous, the type of the logits
void token_logprobs_gradient(const TokenLogits& rows, const MatrixView& log_sums, const MatrixView& entropies,
                             const std::optional<MatrixView>& grad_log_probs,
                             const std::optional<MatrixView>& grad_entropies, void* grad);

}  // namespace morlfast
