#include "morlfast/advantages.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

Result advantages(const Tensor& rewards, int64_t group_size, const std::optional<Tensor>& group_ids,
                  const std::optional<Tensor>& weights, int method, int scale, double eps, int64_t ddof) {
  if (rewards.dims() != 1 && rewards.dims() != 2)
    throw nb::value_error(("rewards: expected shape (N,) or (N, M), got " + rewards.shape()).c_str());
  const int64_t n = rewards.size(0), m = rewards.dims() == 2 ? rewards.size(1) : 1;
  const MatrixView reward = matrix_view(rewards, "rewards", true);
  MatrixView weight;
  if (weights) {
    const bool a_row_each = weights->dims() == 2 && weights->size(0) == n;
    if ((weights->dims() != 1 && !a_row_each) || weights->size(-1) != m)
      throw nb::value_error(("weights: expected shape (" + std::to_string(m) + ",) or (" + std::to_string(n) + ", " +
                             std::to_string(m) + "), got " + weights->shape())
                                .c_str());
    weight = matrix_view(*weights, "weights", true);
    weight.row_stride = a_row_each ? weights->stride(0) : 0;
    weight.column_stride = weights->stride(-1);
  }
  if (method < 0 || method > 2) throw nb::value_error("method: expected 0, 1 or 2");
  if (scale < 0 || scale > 2) throw nb::value_error("scale: expected 0, 1 or 2");
  Result result(rewards, rewards.leading(rewards.dims() - 1), rewards.view.dtype);
  const GilRelease release(rewards.numel());
  group_advantages(reward, weight, m, groups_of(group_ids, group_size, n), static_cast<AdvantageMethod>(method),
                   static_cast<AdvantageScale>(scale), eps, ddof, result.data<void>());
  return result;
}

}  // namespace

void define_advantages(nb::module_& module, nb::dict& schemas) {
  schemas["group_advantages"] =
      "(Tensor rewards, int group_size, Tensor? group_ids=None, Tensor? weights=None, int method=0, int scale=1, "
      "float eps=1e-4, int ddof=1) -> Tensor";
  module.def("group_advantages", &advantages, "rewards"_a, "group_size"_a, "group_ids"_a = nb::none(),
             "weights"_a = nb::none(), "method"_a = 0, "scale"_a = 1, "eps"_a = 1e-4, "ddof"_a = 1);
}

}  // namespace morlfast::bindings
