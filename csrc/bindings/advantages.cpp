#include "morlfast/advantages.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

/// The arguments that both forms of the operator share, in the schema's order.
struct Arguments {
  MatrixView rewards, weights;
  std::optional<MatrixView> mask;
  int64_t n, m, tokens;
  Groups groups;
  const int64_t* lengths;
  AdvantageRules rules;
};

template <class E>
E code(int value, E last, const char* argument) {
  if (value < 0 || value > static_cast<int>(last))
    throw nb::value_error((std::string(argument) + ": expected a code from 0 to " +
                           std::to_string(static_cast<int>(last)) + ", got " + std::to_string(value))
                              .c_str());
  return static_cast<E>(value);
}

Arguments arguments(const Tensor& rewards, int64_t group_size, const std::optional<Tensor>& group_ids,
                    const std::optional<Tensor>& offsets, const std::optional<Tensor>& weights,
                    const std::optional<Tensor>& lengths, const std::optional<Tensor>& mask, int aggregate,
                    int baseline, int scale, double eps, int eps_to, int64_t ddof, int singleton, int zero_variance,
                    double least_std, int nan, int whiten, double whiten_eps, int whiten_eps_to, int64_t whiten_ddof) {
  if (rewards.dims() != 1 && rewards.dims() != 2)
    throw nb::value_error(("rewards: expected shape (N,) or (N, M), got " + rewards.shape()).c_str());
  Arguments a;
  a.rules = {code(aggregate, Aggregate::normalize_then_sum, "aggregate"),
             code(baseline, Baseline::runner_up, "baseline"),
             code(scale, Scale::leave_one_out, "scale"),
             eps,
             code(eps_to, EpsTo::floor, "eps_to"),
             ddof,
             code(singleton, Singleton::raise, "singleton"),
             code(zero_variance, ZeroVariance::nan, "zero_variance"),
             least_std,
             code(nan, NanRewards::raise, "nan"),
             code(whiten, Whiten::tokens, "whiten"),
             whiten_eps,
             code(whiten_eps_to, EpsTo::floor, "whiten_eps_to"),
             whiten_ddof};
  a.n = rewards.size(0);
  a.m = rewards.dims() == 2 ? rewards.size(1) : 1;
  a.rewards = matrix_view(rewards, "rewards", true);
  if (weights) {
    const bool a_row_each = weights->dims() == 2 && weights->size(0) == a.n;
    if ((weights->dims() != 1 && !a_row_each) || weights->size(-1) != a.m)
      throw nb::value_error(("weights: expected shape (" + std::to_string(a.m) + ",) or (" + std::to_string(a.n) +
                             ", " + std::to_string(a.m) + "), got " + weights->shape())
                                .c_str());
    a.weights = matrix_view(*weights, "weights", true);
    a.weights.row_stride = a_row_each ? weights->stride(0) : 0;
    a.weights.column_stride = weights->stride(-1);
  }
  a.groups = offsets ? groups_by_offsets(*offsets, a.n) : groups_of(group_ids, group_size, a.n);
  a.lengths = nullptr;
  if (lengths) {
    a.lengths = int64_vector(*lengths, "lengths");
    if (lengths->size(0) != a.n)
      throw nb::value_error(
          ("lengths: expected shape (" + std::to_string(a.n) + ",), got " + lengths->shape()).c_str());
    for (int64_t i = 0; i < a.n; ++i)
      if (a.lengths[i] < 0)
        throw nb::value_error(("lengths: expected values >= 0, got " + std::to_string(a.lengths[i])).c_str());
  }
  a.tokens = 0;
  if (mask) {
    if (mask->dims() != 2 || mask->size(0) != a.n)
      throw nb::value_error(("mask: expected shape (" + std::to_string(a.n) + ", T), got " + mask->shape()).c_str());
    a.mask = matrix_view(*mask, "mask", false);
    a.tokens = mask->size(1);
  }
  return a;
}

void run(const Arguments& a, void* advantages) {
  const GilRelease release(a.n * std::max<int64_t>(a.m, a.tokens));
  group_advantages(a.rewards, a.weights, a.m, a.groups, a.rules, a.lengths, a.mask, a.tokens, advantages);
}

Shape shape_of(const Arguments& a) {
  Shape shape;
  shape.dims = a.mask ? 2 : 1;
  shape.sizes[0] = a.n;
  shape.sizes[1] = a.tokens;
  return shape;
}

template <class... Rest>
Result advantages(const Tensor& rewards, Rest... rest) {
  const Arguments a = arguments(rewards, rest...);
  Result result(rewards, shape_of(a), rewards.view.dtype);
  run(a, result.data<void>());
  return result;
}

template <class... Rest>
void advantages_out(const Tensor& rewards, const Tensor& out, Rest... rest) {
  const Arguments a = arguments(rewards, rest...);
  const Shape shape = shape_of(a);
  require_cpu(out, "out");
  bool fits =
      out.dims() == shape.dims && out.is(static_cast<DLDataTypeCode>(rewards.view.dtype.code), rewards.view.dtype.bits);
  int64_t expected_stride = 1;
  for (int d = out.dims() - 1; fits && d >= 0; --d) {
    fits = out.size(d) == shape.sizes[d] && (out.size(d) == 1 || out.stride(d) == expected_stride);
    expected_stride *= std::max<int64_t>(out.size(d), 1);
  }
  if (!fits)
    throw nb::value_error(("out: expected a contiguous tensor of the rewards' dtype, one advantage for each rollout or "
                           "token, got " +
                           out.shape())
                              .c_str());
  run(a, const_cast<char*>(out.data()));
}

Result rows_of_groups(const Tensor& rows) {
  require_cpu(rows, "rows");
  rows.dtype("rows");
  if (rows.dims() != 2 || (rows.size(1) > 1 && rows.stride(1) != 1))
    throw nb::value_error(("rows: expected shape (N, S) with contiguous rows, got " + rows.shape()).c_str());
  const int64_t n = rows.size(0), element = rows.view.dtype.bits / 8;
  Result first(rows, rows.leading(1), DLDataType{kDLInt, 64, 1});
  const GilRelease release(rows.numel());
  group_rows(rows.data(), rows.stride(0) * element, rows.size(1) * element, n, first.data<int64_t>());
  return first;
}

template <class F, class... Out>
void define(nb::module_& module, const char* name, F function, Out... out) {
  module.def(name, function, "rewards"_a, out..., "group_size"_a, "group_ids"_a = nb::none(), "offsets"_a = nb::none(),
             "weights"_a = nb::none(), "lengths"_a = nb::none(), "mask"_a = nb::none(), "aggregate"_a = 0,
             "baseline"_a = 1, "scale"_a = 1, "eps"_a = 1e-4, "eps_to"_a = 0, "ddof"_a = 1, "singleton"_a = 0,
             "zero_variance"_a = 0, "least_std"_a = 0.0, "nan"_a = 0, "whiten"_a = 0, "whiten_eps"_a = 0.0,
             "whiten_eps_to"_a = 0, "whiten_ddof"_a = 1);
}

}  // namespace

void define_advantages(nb::module_& module, nb::dict& schemas) {
  const std::string rest =
      "int group_size, Tensor? group_ids=None, Tensor? offsets=None, Tensor? weights=None, Tensor? lengths=None, "
      "Tensor? mask=None, int aggregate=0, int baseline=1, int scale=1, float eps=1e-4, int eps_to=0, int ddof=1, "
      "int singleton=0, int zero_variance=0, float least_std=0., int nan=0, int whiten=0, float whiten_eps=0., "
      "int whiten_eps_to=0, int whiten_ddof=1)";
  using Optional = const std::optional<Tensor>&;
  schemas["group_advantages"] = nb::str(("(Tensor rewards, " + rest + " -> Tensor").c_str());
  define(module, "group_advantages",
         &advantages<int64_t, Optional, Optional, Optional, Optional, Optional, int, int, int, double, int, int64_t,
                     int, int, double, int, int, double, int, int64_t>);
  schemas["group_advantages_out"] = nb::str(("(Tensor rewards, Tensor(a!) out, " + rest + " -> ()").c_str());
  define(module, "group_advantages_out",
         &advantages_out<int64_t, Optional, Optional, Optional, Optional, Optional, int, int, int, double, int, int64_t,
                         int, int, double, int, int, double, int, int64_t>,
         "out"_a);
  schemas["group_rows"] = "(Tensor rows) -> Tensor";
  module.def("group_rows", &rows_of_groups, "rows"_a);
}

}  // namespace morlfast::bindings
