// Linear recurrences along rows of tokens: returns, advantages, and whitening.
#pragma once
#include <cstdint>
#include <optional>

#include "morlfast/advantages.hpp"
#include "morlfast/elements.hpp"

namespace morlfast {

/// y_t = x_t + a_t y_{t+1} from the last token to the first, or with `reverse` false y_t = x_t + a_t y_{t-1}.
///
/// State and arithmetic are float64. A factor of exactly 0 cuts: y_t = x_t whatever comes before it, NaN or not.
/// A token outside the mask hands the state on as it is; there the result is 0, or with `carry` that state.
/// Few long rows are cut into pieces (the pieces depend on the sizes only), each scanned twice; one that the state
/// enters as an infinity, or whose factors' product overflows, is scanned once more.
///
/// x        (rows, columns), the dtype of y
/// a        (rows, columns)
/// initial  (rows,) the state before the first step; 0 without
/// mask     (rows, columns); all tokens without
/// y        (rows, columns) contiguous, written
void linear_scan(const MatrixView& x, const MatrixView& a, const std::optional<MatrixView>& initial,
                 const std::optional<MatrixView>& mask, int64_t rows, int64_t columns, bool reverse, bool carry,
                 void* y);

/// What generalized advantage estimation reads: (rows, columns) where nothing else is said.
struct GaeInputs {
  MatrixView rewards, values, gamma, lam;
  std::optional<MatrixView> returns_lam;  ///< lambda of the returns, if not that of the advantages
  std::optional<MatrixView> mask;
  std::optional<MatrixView> terminated;   ///< the next value counts 0 here
  std::optional<MatrixView> done;         ///< the trace is cut here
  std::optional<MatrixView> next_values;  ///< V(s_{t+1}); without: the value of the next token of the mask
  std::optional<MatrixView> bootstrap;    ///< (rows,) the value behind a row's last token; 0 without
  std::optional<MatrixView> finished;     ///< (rows,) rows whose bootstrap is 0 whatever else is said
  bool repeat_last = false;               ///< the value behind the last token is that token's own
  bool carry = false;                     ///< outside the mask: the carried advantage, and it plus the value
};

/// delta_t = r_t + gamma_t (1 - terminated_t) V_{t+1} - V_t
/// A_t     = delta_t + gamma_t lambda_t (1 - done_t) A_{t+1},  return_t = A_t + V_t
///
/// State and arithmetic are float64; conditions select, so that nothing behind an end leaks, not even a NaN.
///
/// advantages, returns  (rows, columns) contiguous of dtype `result`, written
void gae(const GaeInputs& inputs, int64_t rows, int64_t columns, Dtype result, void* advantages, void* returns);

/// (value - mean) / deviation over the tokens of the mask, statistics in float64 about the first such token.
///
/// A deviation of 0 gives 0. Outside the mask the result is 0, or with `outside` the same formula.
///
/// values  (rows, columns), the dtype of the result
/// mask    (rows, columns); all tokens without
/// result  (rows, columns) contiguous, written
void whiten(const MatrixView& values, const std::optional<MatrixView>& mask, int64_t rows, int64_t columns, double eps,
            EpsTo eps_to, int64_t ddof, bool shift_mean, bool outside, void* result);

}  // namespace morlfast
