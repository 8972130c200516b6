#include "morlfast/hypervolume.hpp"

#include <optional>

#include "operators.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

/// ref_point (m,) for every front, or broadcastable to the batch shape + (m,).
class RefPoints {
 public:
  RefPoints(const Tensor& ref_point, const Tensor& points) : ref_point_(ref_point) {
    const int batch_dims = points.dims() - 2, own = ref_point.dims() - 1;
    bool fits = own >= 0 && own <= batch_dims && ref_point.size(-1) == points.size(-1);
    std::fill(strides_, strides_ + batch_dims, 0);
    for (int d = 0; fits && d < own; ++d) {
      const int target = batch_dims - own + d;
      fits = ref_point.size(d) == 1 || ref_point.size(d) == points.size(target);
      if (fits && ref_point.size(d) != 1) strides_[target] = ref_point.stride(d);
    }
    if (!fits)
      throw nb::value_error(("ref_point: expected one value for each objective, broadcastable to the batch of points " +
                             points.shape() + ", got " + ref_point.shape()).c_str());
    require_cpu(ref_point, "ref_point");
    if (!ref_point.is(kDLFloat, 32) && !ref_point.is(kDLFloat, 64))
      throw nb::type_error("ref_point: expected float32 or float64");
    layout_ = {batch_dims, points.view.shape, strides_};
  }

  template <class R>
  VectorsView<R> view() const {
    return {reinterpret_cast<const R*>(ref_point_.data()), layout_, ref_point_.stride(-1)};
  }

 private:
  const Tensor& ref_point_;
  int64_t strides_[Shape::kMaxDims];
  BatchLayout layout_;
};

const int64_t* checked_lengths(const std::optional<Tensor>& lengths, const Tensor& points) {
  if (!lengths) return nullptr;
  require_cpu(*lengths, "lengths");
  if (!lengths->is(kDLInt, 64)) throw nb::type_error("lengths: expected int64");
  bool fits = lengths->dims() == points.dims() - 2;
  int64_t expected_stride = 1;
  for (int d = lengths->dims() - 1; fits && d >= 0; --d) {
    fits = lengths->size(d) == points.size(d) && (lengths->size(d) == 1 || lengths->stride(d) == expected_stride);
    expected_stride *= lengths->size(d);
  }
  if (!fits)
    throw nb::value_error(("lengths: expected a contiguous tensor of the batch shape of points " + points.shape() +
                           ", got " + lengths->shape()).c_str());
  return reinterpret_cast<const int64_t*>(lengths->data());
}

void compute(const Tensor& points, const Tensor& ref_point, const std::optional<Tensor>& lengths, bool maximize,
             bool nan_raises, Result& value, Result* gradient) {
  const RefPoints refs(ref_point, points);
  const int64_t* counted = checked_lengths(lengths, points);
  const NanPolicy nan = nan_raises ? NanPolicy::raise : NanPolicy::worst;
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const PointsView<T> view = points_view<T>(points);
    T* out = value.data<T>();
    T* grad = gradient ? gradient->data<T>() : nullptr;
    const GilRelease release(points.numel());
    if (ref_point.is(kDLFloat, 32))
      hypervolume(view, refs.view<float>(), counted, maximize, nan, out, grad);
    else
      hypervolume(view, refs.view<double>(), counted, maximize, nan, out, grad);
  });
}

Result hypervolume_value(const Tensor& points, const Tensor& ref_point, bool maximize, bool nan_raises,
                         const std::optional<Tensor>& lengths) {
  require_points(points);
  Result value(points, points.leading(2), points.view.dtype);
  compute(points, ref_point, lengths, maximize, nan_raises, value, nullptr);
  return value;
}

std::pair<Result, Result> hypervolume_gradient(const Tensor& points, const Tensor& ref_point, bool maximize,
                                               bool nan_raises, const std::optional<Tensor>& lengths) {
  require_points(points);
  Result value(points, points.leading(2), points.view.dtype);
  Result gradient(points, points.leading(0), points.view.dtype);
  compute(points, ref_point, lengths, maximize, nan_raises, value, &gradient);
  return {std::move(value), std::move(gradient)};
}

}  // namespace

void define_hypervolume(nb::module_& module, nb::dict& schemas) {
  schemas["hypervolume"] =
      "(Tensor points, Tensor ref_point, bool maximize=False, bool nan_raises=True, Tensor? lengths=None) -> Tensor";
  module.def("hypervolume", &hypervolume_value, "points"_a, "ref_point"_a, "maximize"_a = false, "nan_raises"_a = true,
             "lengths"_a = nb::none());
  schemas["hypervolume_gradient"] =
      "(Tensor points, Tensor ref_point, bool maximize=False, bool nan_raises=True, Tensor? lengths=None) -> "
      "(Tensor value, Tensor gradient)";
  module.def("hypervolume_gradient", &hypervolume_gradient, "points"_a, "ref_point"_a, "maximize"_a = false,
             "nan_raises"_a = true, "lengths"_a = nb::none());
}

}  // namespace morlfast::bindings
