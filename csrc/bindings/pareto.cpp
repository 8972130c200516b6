#include "morlfast/pareto.hpp"

#include "operators.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

Result ranks(const Tensor& points, bool maximize, bool nan_raises) {
  require_points(points);
  Result result(points, leading_shape(points, 1), DLDataType{kDLInt, 32, 1});
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const PointsView<T> view = points_view<T>(points);
    int32_t* out = result.data<int32_t>();
    nb::gil_scoped_release release;
    non_dominated_sort(view, maximize, nan_raises ? NanPolicy::raise : NanPolicy::worst, out);
  });
  return result;
}

}  // namespace

void define_pareto(nb::module_& module, nb::dict& schemas) {
  schemas["non_dominated_sort"] = "(Tensor points, bool maximize, bool nan_raises) -> Tensor";
  module.def("non_dominated_sort", &ranks, "points"_a, "maximize"_a, "nan_raises"_a);
}

}  // namespace morlfast::bindings
