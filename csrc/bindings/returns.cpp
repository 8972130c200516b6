#include "morlfast/returns.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;
using Optional = std::optional<Tensor>;

/// The (rows, columns) that every argument is read as.
struct Sizes {
  int64_t rows, columns;

  Sizes(const Tensor& tensor, const char* argument) {
    if (tensor.dims() != 2)
      throw nb::value_error((std::string(argument) + ": expected shape (N, T), got " + tensor.shape()).c_str());
    rows = tensor.size(0);
    columns = tensor.size(1);
  }

  /// (rows, columns), or with `a_row_each` (rows,) too.
  MatrixView view(const Tensor& tensor, const char* argument, bool floating, bool a_row_each) const {
    const bool whole = tensor.dims() == 2 && tensor.size(0) == rows && tensor.size(1) == columns;
    if (!whole && !(a_row_each && tensor.dims() == 1 && tensor.size(0) == rows)) {
      const std::string n = std::to_string(rows), each = a_row_each ? "(" + n + ",) or " : "";
      throw nb::value_error((std::string(argument) + ": expected shape " + each + "(" + n + ", " +
                             std::to_string(columns) + "), got " + tensor.shape())
                                .c_str());
    }
    return matrix_view(tensor, argument, floating);
  }

  std::optional<MatrixView> numbers(const Optional& tensor, const char* argument) const {
    if (!tensor) return std::nullopt;
    return view(*tensor, argument, true, false);
  }

  std::optional<MatrixView> flags(const Optional& tensor, const char* argument) const {
    if (!tensor) return std::nullopt;
    return view(*tensor, argument, false, false);
  }

  /// (rows,)
  std::optional<MatrixView> one_a_row(const Optional& tensor, const char* argument, bool floating) const {
    if (!tensor) return std::nullopt;
    if (tensor->dims() != 1 || tensor->size(0) != rows)
      throw nb::value_error(
          (std::string(argument) + ": expected shape (" + std::to_string(rows) + ",), got " + tensor->shape()).c_str());
    return matrix_view(*tensor, argument, floating);
  }

  /// A number, or a tensor instead of it; the number has to outlive the view.
  MatrixView factor(const double& number, const Optional& tensor, const char* argument) const {
    if (!tensor) return {&number, Dtype::float64, 0, 0};
    return view(*tensor, argument, true, true);
  }
};

Result scanned(const Tensor& x, const Tensor& a, const Optional& initial, const Optional& mask, bool reverse,
               bool carry) {
  const Sizes sizes(x, "x");
  const MatrixView terms = sizes.view(x, "x", true, false), factors = sizes.view(a, "a", true, true);
  const auto start = sizes.one_a_row(initial, "initial", true), valid = sizes.flags(mask, "mask");
  Result y(x, x.leading(0), x.view.dtype);
  const GilRelease release(x.numel());
  linear_scan(terms, factors, start, valid, sizes.rows, sizes.columns, reverse, carry, y.data<void>());
  return y;
}

/// torch.promote_types of two floating-point dtypes.
DLDataType promoted(const Tensor& first, const Tensor& second) {
  const DLDataType a = first.view.dtype, b = second.view.dtype;
  if (a.code == b.code) return a.bits >= b.bits ? a : b;
  return {kDLFloat, static_cast<uint8_t>(std::max<int>({a.bits, b.bits, 32})), 1};
}

std::pair<Result, Result> estimated(const Tensor& rewards, const Tensor& values, double gamma, double lam,
                                    std::optional<double> returns_lam, const Optional& gammas, const Optional& lams,
                                    const Optional& returns_lams, const Optional& mask, const Optional& terminated,
                                    const Optional& done, const Optional& next_values, const Optional& bootstrap,
                                    const Optional& finished, bool repeat_last, bool carry) {
  const Sizes sizes(rewards, "rewards");
  GaeInputs inputs;
  inputs.rewards = sizes.view(rewards, "rewards", true, false);
  inputs.values = sizes.view(values, "values", true, false);
  inputs.gamma = sizes.factor(gamma, gammas, "gammas");
  inputs.lam = sizes.factor(lam, lams, "lams");
  const double own = returns_lam.value_or(lam);
  if (returns_lam || returns_lams) inputs.returns_lam = sizes.factor(own, returns_lams, "returns_lams");
  inputs.mask = sizes.flags(mask, "mask");
  inputs.terminated = sizes.flags(terminated, "terminated");
  inputs.done = sizes.flags(done, "done");
  inputs.next_values = sizes.numbers(next_values, "next_values");
  inputs.bootstrap = sizes.one_a_row(bootstrap, "bootstrap", true);
  inputs.finished = sizes.one_a_row(finished, "finished", false);
  inputs.repeat_last = repeat_last;
  inputs.carry = carry;
  const DLDataType dtype = promoted(rewards, values);
  const Dtype element = dtype.code == kDLBfloat ? Dtype::bfloat16
                        : dtype.bits == 16      ? Dtype::float16
                        : dtype.bits == 64      ? Dtype::float64
                                                : Dtype::float32;
  std::pair<Result, Result> results(Result(rewards, rewards.leading(0), dtype),
                                    Result(rewards, rewards.leading(0), dtype));
  const GilRelease release(rewards.numel());
  gae(inputs, sizes.rows, sizes.columns, element, results.first.data<void>(), results.second.data<void>());
  return results;
}

Result whitened(const Tensor& values, const Optional& mask, double eps, int eps_to, int64_t ddof, bool shift_mean,
                bool outside) {
  const Sizes sizes(values, "values");
  const MatrixView view = sizes.view(values, "values", true, false);
  const auto valid = sizes.flags(mask, "mask");
  if (eps_to < 0 || eps_to > 2) throw nb::value_error("eps_to: expected 0, 1 or 2");
  if (ddof < 0) throw nb::value_error("ddof: expected an int >= 0");
  Result result(values, values.leading(0), values.view.dtype);
  const GilRelease release(values.numel());
  whiten(view, valid, sizes.rows, sizes.columns, eps, static_cast<EpsTo>(eps_to), ddof, shift_mean, outside,
         result.data<void>());
  return result;
}

}  // namespace

void define_returns(nb::module_& module, nb::dict& schemas) {
  schemas["linear_scan"] =
      "(Tensor x, Tensor a, Tensor? initial=None, Tensor? mask=None, bool reverse=True, bool carry=False) -> Tensor";
  module.def("linear_scan", &scanned, "x"_a, "a"_a, "initial"_a = nb::none(), "mask"_a = nb::none(), "reverse"_a = true,
             "carry"_a = false);
  schemas["gae"] =
      "(Tensor rewards, Tensor values, float gamma=1., float lam=1., float? returns_lam=None, Tensor? gammas=None, "
      "Tensor? lams=None, Tensor? returns_lams=None, Tensor? mask=None, Tensor? terminated=None, Tensor? done=None, "
      "Tensor? next_values=None, Tensor? bootstrap=None, Tensor? finished=None, bool repeat_last=False, "
      "bool carry=False) -> (Tensor, Tensor)";
  module.def("gae", &estimated, "rewards"_a, "values"_a, "gamma"_a = 1.0, "lam"_a = 1.0, "returns_lam"_a = nb::none(),
             "gammas"_a = nb::none(), "lams"_a = nb::none(), "returns_lams"_a = nb::none(), "mask"_a = nb::none(),
             "terminated"_a = nb::none(), "done"_a = nb::none(), "next_values"_a = nb::none(),
             "bootstrap"_a = nb::none(), "finished"_a = nb::none(), "repeat_last"_a = false, "carry"_a = false);
  schemas["whiten"] =
      "(Tensor values, Tensor? mask=None, float eps=1e-8, int eps_to=1, int ddof=1, bool shift_mean=True, "
      "bool outside=False) -> Tensor";
  module.def("whiten", &whitened, "values"_a, "mask"_a = nb::none(), "eps"_a = 1e-8, "eps_to"_a = 1, "ddof"_a = 1,
             "shift_mean"_a = true, "outside"_a = false);
}

}  // namespace morlfast::bindings
