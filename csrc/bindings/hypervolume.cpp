#include "morlfast/hypervolume.hpp"

#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>

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
                             points.shape() + ", got " + ref_point.shape())
                                .c_str());
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

/// The arguments that all operators of the family share.
struct Arguments {
  const Tensor& points;
  const Tensor& ref_point;
  const std::optional<Tensor>& lengths;
  bool maximize, nan_raises;
  int64_t max_memory;
  const char* argument = "points";
};

/// Calls f(fronts) with the GIL released, where fronts are those of the arguments in their dtypes.
template <class F>
void with_fronts(const Arguments& arguments, F&& f) {
  const auto& [points, ref_point, lengths, maximize, nan_raises, max_memory, argument] = arguments;
  const RefPoints refs(ref_point, points);
  const int64_t* counted = checked_lengths(lengths, points);
  const NanPolicy nan = nan_raises ? NanPolicy::raise : NanPolicy::worst;
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const auto with_ref = [&](auto ref_view) {
      const Fronts<T, std::remove_const_t<std::remove_pointer_t<decltype(ref_view.data)>>> fronts{
          points_view<T>(points), ref_view, counted, maximize, nan, max_memory, argument};
      const GilRelease release(points.numel());
      f(fronts);
    };
    if (ref_point.is(kDLFloat, 32))
      with_ref(refs.view<float>());
    else
      with_ref(refs.view<double>());
  });
}

template <class T, class R>
T element_of(const Fronts<T, R>&);

Result hypervolume_value(const Tensor& points, const Tensor& ref_point, bool maximize, bool nan_raises,
                         const std::optional<Tensor>& lengths, int64_t max_memory, int64_t part, int64_t parts) {
  require_points(points);
  Result value(points, points.leading(2), points.view.dtype);
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory}, [&](const auto& fronts) {
    using T = decltype(element_of(fronts));
    hypervolume(fronts, Part{part, parts}, value.data<T>(), static_cast<T*>(nullptr));
  });
  return value;
}

std::pair<Result, Result> hypervolume_gradient(const Tensor& points, const Tensor& ref_point, bool maximize,
                                               bool nan_raises, const std::optional<Tensor>& lengths,
                                               int64_t max_memory, int64_t part, int64_t parts) {
  require_points(points);
  Result value(points, points.leading(2), points.view.dtype);
  Result gradient(points, points.leading(0), points.view.dtype);
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory}, [&](const auto& fronts) {
    using T = decltype(element_of(fronts));
    hypervolume(fronts, Part{part, parts}, value.data<T>(), gradient.data<T>());
  });
  return {std::move(value), std::move(gradient)};
}

Result contributions(const Tensor& points, const Tensor& ref_point, bool maximize, bool nan_raises,
                     const std::optional<Tensor>& lengths, bool ignore_dominated, int64_t max_memory) {
  require_points(points);
  Result values(points, points.leading(1), points.view.dtype);
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory}, [&](const auto& fronts) {
    using T = decltype(element_of(fronts));
    hypervolume_contributions(fronts, ignore_dominated, values.data<T>());
  });
  return values;
}

Result improvement(const Tensor& candidates, const Tensor& points, const Tensor& ref_point, bool maximize,
                   bool nan_raises, const std::optional<Tensor>& lengths, int64_t max_memory) {
  require_points(points);
  require_cpu(candidates, "candidates");
  const int batch_dims = points.dims() - 2;
  bool fits = candidates.dims() == batch_dims + 3 && candidates.size(-1) == points.size(-1) &&
              candidates.view.dtype.code == points.view.dtype.code &&
              candidates.view.dtype.bits == points.view.dtype.bits;
  for (int d = 0; fits && d < batch_dims; ++d) fits = candidates.size(d) == points.size(d);
  if (!fits)
    throw nb::value_error(("candidates: expected the dtype of points and shape (..., sets, size, m) for points " +
                           points.shape() + ", got " + candidates.shape())
                              .c_str());
  Result values(points, candidates.leading(2), points.view.dtype);
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory, "front"}, [&](const auto& fronts) {
    using T = decltype(element_of(fronts));
    const CandidatesView<T> sets{reinterpret_cast<const T*>(candidates.data()),
                                 {batch_dims, candidates.view.shape, candidates.view.strides},
                                 candidates.size(-3),
                                 candidates.size(-2),
                                 candidates.stride(-3),
                                 candidates.stride(-2),
                                 candidates.stride(-1)};
    hypervolume_improvement(sets, fronts, values.data<T>());
  });
  return values;
}

Result subset(const Tensor& points, int64_t k, const Tensor& ref_point, bool maximize, bool nan_raises,
              const std::optional<Tensor>& lengths, int64_t max_memory) {
  require_points(points);
  if (k < 0 || k > points.size(-2))
    throw nb::value_error(
        ("k: expected 0 to " + std::to_string(points.size(-2)) + ", got " + std::to_string(k)).c_str());
  Shape shape = points.leading(1);
  shape.sizes[shape.dims - 1] = k;
  Result picks(points, shape, DLDataType{kDLInt, 64, 1});
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory},
              [&](const auto& fronts) { hypervolume_subset(fronts, k, picks.data<int64_t>()); });
  return picks;
}

/// Writes the boxes of each front, and boxes from reference point to reference point up to the largest count.
template <class T, class R>
void write_boxes(const std::vector<Boxes>& all, const VectorsView<R>& ref_point, int64_t most, int64_t m, T* lower,
                 T* upper, int64_t* counts) {
  for (size_t b = 0; b < all.size(); ++b) {
    const auto end = std::copy(all[b].lower.begin(), all[b].lower.end(), lower);
    std::copy(all[b].upper.begin(), all[b].upper.end(), upper);
    const int64_t count = (end - lower) / m;
    for (int64_t i = count; i < most; ++i)
      for (int64_t k = 0; k < m; ++k)
        lower[i * m + k] = upper[i * m + k] =
            static_cast<T>(ref_point.row(static_cast<int64_t>(b))[k * ref_point.stride]);
    lower += most * m;
    upper += most * m;
    counts[b] = count;
  }
}

std::tuple<Result, Result, Result> boxes(const Tensor& points, const Tensor& ref_point, bool dominated, bool maximize,
                                         bool nan_raises, const std::optional<Tensor>& lengths, int64_t max_memory) {
  require_points(points);
  const int64_t m = points.size(-1);
  Result counts(points, points.leading(2), DLDataType{kDLInt, 64, 1});
  std::optional<Result> lower, upper;
  std::vector<Boxes> all;
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory},
              [&](const auto& fronts) { all = box_decomposition(fronts, dominated); });
  int64_t most = 0;
  for (const Boxes& of_front : all) most = std::max(most, static_cast<int64_t>(of_front.lower.size()) / m);
  const int64_t bytes = 2 * static_cast<int64_t>(all.size()) * most * m * (points.view.dtype.bits / 8);
  if (bytes > max_memory)
    throw MemoryLimitExceeded("box_decomposition: the boxes, padded to the largest front's, take " +
                              std::to_string(bytes) + " bytes, more than max_memory = " + std::to_string(max_memory));
  Shape shape = points.leading(0);
  shape.sizes[shape.dims - 2] = most;
  lower.emplace(points, shape, points.view.dtype);
  upper.emplace(points, shape, points.view.dtype);
  with_fronts({points, ref_point, lengths, maximize, nan_raises, max_memory}, [&](const auto& fronts) {
    using T = decltype(element_of(fronts));
    write_boxes(all, fronts.ref_point, most, m, lower->data<T>(), upper->data<T>(), counts.data<int64_t>());
  });
  return {std::move(*lower), std::move(*upper), std::move(counts)};
}

}  // namespace

void define_hypervolume(nb::module_& module, nb::dict& schemas) {
  const std::string common = "bool maximize=False, bool nan_raises=True, Tensor? lengths=None, ";
  const std::string memory = "int max_memory=" + std::to_string(kDefaultMaxMemory);
  const auto define = [&](const char* name, const std::string& schema) { schemas[name] = nb::str(schema.c_str()); };

  module.attr("max_hypervolume_objectives") = kMaxHypervolumeObjectives;
  module.attr("default_max_memory") = kDefaultMaxMemory;

  const std::string whole = "(Tensor points, Tensor ref_point, " + common + memory + ", int part=0, int parts=1) -> ";
  define("hypervolume", whole + "Tensor");
  module.def("hypervolume", &hypervolume_value, "points"_a, "ref_point"_a, "maximize"_a = false, "nan_raises"_a = true,
             "lengths"_a = nb::none(), "max_memory"_a = kDefaultMaxMemory, "part"_a = 0, "parts"_a = 1);
  define("hypervolume_gradient", whole + "(Tensor value, Tensor gradient)");
  module.def("hypervolume_gradient", &hypervolume_gradient, "points"_a, "ref_point"_a, "maximize"_a = false,
             "nan_raises"_a = true, "lengths"_a = nb::none(), "max_memory"_a = kDefaultMaxMemory, "part"_a = 0,
             "parts"_a = 1);
  define("hypervolume_contributions",
         "(Tensor points, Tensor ref_point, " + common + "bool ignore_dominated=False, " + memory + ") -> Tensor");
  module.def("hypervolume_contributions", &contributions, "points"_a, "ref_point"_a, "maximize"_a = false,
             "nan_raises"_a = true, "lengths"_a = nb::none(), "ignore_dominated"_a = false,
             "max_memory"_a = kDefaultMaxMemory);
  define("hypervolume_improvement",
         "(Tensor candidates, Tensor points, Tensor ref_point, " + common + memory + ") -> Tensor");
  module.def("hypervolume_improvement", &improvement, "candidates"_a, "points"_a, "ref_point"_a, "maximize"_a = false,
             "nan_raises"_a = true, "lengths"_a = nb::none(), "max_memory"_a = kDefaultMaxMemory);
  define("box_decomposition", "(Tensor points, Tensor ref_point, bool dominated, " + common + memory +
                                  ") -> (Tensor lower, Tensor upper, Tensor counts)");
  module.def("box_decomposition", &boxes, "points"_a, "ref_point"_a, "dominated"_a, "maximize"_a = false,
             "nan_raises"_a = true, "lengths"_a = nb::none(), "max_memory"_a = kDefaultMaxMemory);
  define("hypervolume_subset", "(Tensor points, int k, Tensor ref_point, " + common + memory + ") -> Tensor");
  module.def("hypervolume_subset", &subset, "points"_a, "k"_a, "ref_point"_a, "maximize"_a = false,
             "nan_raises"_a = true, "lengths"_a = nb::none(), "max_memory"_a = kDefaultMaxMemory);
}

}  // namespace morlfast::bindings
