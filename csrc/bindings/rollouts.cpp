#include "morlfast/rollouts.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

Result selected_mask(const Tensor& rewards, int64_t k, int64_t group_size, const std::optional<Tensor>& group_ids,
                     const std::optional<Tensor>& offsets, int method, const std::optional<Tensor>& uniform) {
  if (rewards.dims() != 1) throw nb::value_error(("rewards: expected shape (N,), got " + rewards.shape()).c_str());
  const int64_t rows = rewards.size(0);
  const MatrixView view = matrix_view(rewards, "rewards", false);
  if (k < 0) throw nb::value_error(("k: expected k >= 0, got " + std::to_string(k)).c_str());
  if (method < 0 || method > static_cast<int>(Selection::stratified))
    throw nb::value_error("method: expected 0, 1, 2 or 3");
  const double* draws = nullptr;
  if (uniform) {
    require_cpu(*uniform, "uniform");
    if (!uniform->is(kDLFloat, 64)) throw nb::type_error("uniform: expected float64");
    if (uniform->dims() != 1 || uniform->size(0) != rows || (rows > 1 && uniform->stride(0) != 1))
      throw nb::value_error(
          ("uniform: expected a contiguous vector like rewards " + rewards.shape() + ", got " + uniform->shape())
              .c_str());
    draws = reinterpret_cast<const double*>(uniform->data());
  }
  Result selected(rewards, rewards.leading(0), DLDataType{kDLBool, 8, 1});
  if (rows == 0) return selected;
  const Groups groups = offsets ? groups_by_offsets(*offsets, rows) : groups_of(group_ids, group_size, rows);
  const GilRelease release(rows);
  select_rollouts(view, k, static_cast<Selection>(method), draws, groups, selected.data<bool>());
  return selected;
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
