#include "morlfast/logprobs.hpp"

#include <nanobind/stl/tuple.h>

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

/// What both operators read.
TokenLogits rows_of(const Tensor& logits, const Tensor& tokens, double temperature, int64_t first_token,
                    int64_t ignore_index) {
  require_cpu(logits, "logits");
  require_cpu(tokens, "tokens");
  if (logits.dims() != 3) throw nb::value_error(("logits: expected shape (B, T, V), got " + logits.shape()).c_str());
  TokenLogits rows;
  rows.dtype = logits.dtype("logits");
  if (rows.dtype > Dtype::float16) throw nb::type_error("logits: expected a floating-point tensor");
  if (!tokens.is(kDLInt, 64)) throw nb::type_error("tokens: expected int64");
  if (tokens.dims() != 2 || tokens.size(0) != logits.size(0) || tokens.size(1) != logits.size(1))
    throw nb::value_error(
        ("tokens: expected (B, T) of logits (B, T, V) = " + logits.shape() + ", got " + tokens.shape()).c_str());
  if (!(temperature >= 1e-30 && temperature <= 1e30))
    throw nb::value_error(
        ("temperature: expected a number between 1e-30 and 1e30, got " + std::to_string(temperature)).c_str());
  if (first_token < 0)
    throw nb::value_error(("first_token: expected an int >= 0, got " + std::to_string(first_token)).c_str());
  rows.logits = logits.data();
  rows.batch = logits.size(0), rows.length = logits.size(1), rows.vocabulary = logits.size(2);
  std::copy(logits.view.strides, logits.view.strides + 3, rows.strides);
  rows.tokens = reinterpret_cast<const int64_t*>(tokens.data());
  std::copy(tokens.view.strides, tokens.view.strides + 2, rows.token_strides);
  rows.temperature = temperature;
  rows.first_token = first_token;
  rows.ignore_index = ignore_index;
  return rows;
}

std::tuple<Result, Result, Result> forward(const Tensor& logits, const Tensor& tokens, double temperature,
                                           int64_t first_token, bool partial, bool entropy, int64_t ignore_index) {
  const TokenLogits rows = rows_of(logits, tokens, temperature, first_token, ignore_index);
  const DLDataType dtype{kDLFloat, static_cast<uint8_t>(rows.dtype == Dtype::float64 ? 64 : 32), 1};
  const DLDataType wide{kDLFloat, 64, 1};
  Shape none;
  none.dims = 1;
  none.sizes[0] = 0;
  std::tuple<Result, Result, Result> results(Result(logits, tokens.leading(0), dtype),
                                             Result(logits, entropy ? tokens.leading(0) : none, dtype),
                                             Result(logits, tokens.leading(0), wide));
  const GilRelease release(logits.numel());
  token_logprobs(rows, partial, std::get<0>(results).data<void>(),
                 entropy ? std::get<1>(results).data<void>() : nullptr, std::get<2>(results).data<double>());
  return results;
}

/// One number for each row of the logits.
MatrixView one_a_row(const Tensor& tensor, const char* argument, const Tensor& tokens) {
  if (tensor.dims() != 2 || tensor.size(0) != tokens.size(0) || tensor.size(1) != tokens.size(1))
    throw nb::value_error(
        (std::string(argument) + ": expected (B, T) of tokens " + tokens.shape() + ", got " + tensor.shape()).c_str());
  return matrix_view(tensor, argument, true);
}

std::optional<MatrixView> one_a_row(const std::optional<Tensor>& tensor, const char* argument, const Tensor& tokens) {
  if (!tensor) return std::nullopt;
  return one_a_row(*tensor, argument, tokens);
}

Result backward(const Tensor& logits, const Tensor& tokens, const Tensor& log_sums, const Tensor& entropies,
                const std::optional<Tensor>& grad_log_probs, const std::optional<Tensor>& grad_entropies,
                double temperature, int64_t first_token, int64_t ignore_index) {
  const TokenLogits rows = rows_of(logits, tokens, temperature, first_token, ignore_index);
  const MatrixView sums = one_a_row(log_sums, "log_sums", tokens);
  const MatrixView entropy = grad_entropies ? one_a_row(entropies, "entropies", tokens) : MatrixView{};
  const auto of_log_probs = one_a_row(grad_log_probs, "grad_log_probs", tokens);
  const auto of_entropies = one_a_row(grad_entropies, "grad_entropies", tokens);
  Result grad(logits, logits.leading(0), logits.view.dtype);
  const GilRelease release(logits.numel());
  token_logprobs_gradient(rows, sums, entropy, of_log_probs, of_entropies, grad.data<void>());
  return grad;
}

}  // namespace

void define_logprobs(nb::module_& module, nb::dict& schemas) {
  schemas["token_logprobs"] =
      "(Tensor logits, Tensor tokens, float temperature=1., int first_token=0, bool partial=False, bool entropy=True, "
      "int ignore_index=-100) -> (Tensor, Tensor, Tensor)";
  module.def("token_logprobs", &forward, "logits"_a, "tokens"_a, "temperature"_a = 1.0, "first_token"_a = 0,
             "partial"_a = false, "entropy"_a = true, "ignore_index"_a = -100);
  schemas["token_logprobs_gradient"] =
      "(Tensor logits, Tensor tokens, Tensor log_sums, Tensor entropies, Tensor? grad_log_probs, Tensor? "
      "grad_entropies, float temperature=1., int first_token=0, int ignore_index=-100) -> Tensor";
  module.def("token_logprobs_gradient", &backward, "logits"_a, "tokens"_a, "log_sums"_a, "entropies"_a,
             "grad_log_probs"_a.none(), "grad_entropies"_a.none(), "temperature"_a = 1.0, "first_token"_a = 0,
             "ignore_index"_a = -100);
}

}  // namespace morlfast::bindings
