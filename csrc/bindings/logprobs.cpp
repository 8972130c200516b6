#include "morlfast/logprobs.hpp"

#include <nanobind/stl/tuple.h>

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

std::tuple<Result, Result, Result> forward(const Tensor&, const Tensor&, double, int64_t, bool, bool, int64_t) {
  throw nb::value_error("token_logprobs: not there yet");
}

Result backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                const std::optional<Tensor>&, double, int64_t, int64_t) {
  throw nb::value_error("token_logprobs_gradient: not there yet");
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
