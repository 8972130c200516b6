#include "morlfast/pareto.hpp"

#include "operators.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

Result ranks(const Tensor& points, bool maximize, bool nan_raises) {
  require_points(points);
  Result result(points, points.leading(1), DLDataType{kDLInt, 32, 1});
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const PointsView<T> view = points_view<T>(points);
    int32_t* out = result.data<int32_t>();
    const GilRelease release(points.numel());
    non_dominated_sort(view, maximize, nan_raises ? NanPolicy::raise : NanPolicy::worst, out);
  });
  return result;
}

}  // namespace

void define_pareto(nb::module_& module, nb::dict& schemas) {
  schemas["non_dominated_sort"] = "(Tensor points, bool maximize=False, bool nan_raises=True) -> Tensor";
  module.def("non_dominated_sort", &ranks, "points"_a, "maximize"_a = false, "nan_raises"_a = true);
}

}  // namespace morlfast::bindings
