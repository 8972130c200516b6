#include "morlfast/rollouts.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

Result selected_mask(const Tensor&, int64_t, int64_t, const std::optional<Tensor>&,
                     const std::optional<Tensor>&, int, const std::optional<Tensor>&) {
  throw nb::value_error("select_rollouts: not there yet");
}

}  // namespace

void define_rollouts(nb::module_& module, nb::dict& schemas) {
  schemas["select_rollouts"] =
      "(Tensor rewards, int k, int group_size=0, Tensor? group_ids=None, Tensor? offsets=None, int method=0, Tensor? "
      "uniform=None) -> Tensor";
  module.def("select_rollouts", &selected_mask, "rewards"_a, "k"_a, "group_size"_a = 0, "group_ids"_a = nb::none(),
             "offsets"_a = nb::none(), "method"_a = 0, "uniform"_a = nb::none());
}

}  // namespace morlfast::bindings
