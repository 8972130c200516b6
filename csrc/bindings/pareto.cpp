#include "morlfast/pareto.hpp"

#include <optional>

#include "operators.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

/// The arguments that all operators of the family share.
struct Arguments {
  const Tensor& points;
  const std::optional<Tensor>& lengths;
  bool maximize, nan_raises;
  int64_t work = points.numel();
  const char* argument = "points";
};

/// Calls f(sets) with the GIL released, where sets are those of the arguments in their dtype.
template <class F>
void with_sets(const Arguments& arguments, F&& f) {
  const auto& [points, lengths, maximize, nan_raises, work, argument] = arguments;
  const int64_t* counted = checked_lengths(lengths, points);
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const PointSets<T> sets{points_view<T>(points), counted, maximize, nan_raises ? NanPolicy::raise : NanPolicy::worst,
                            argument};
    const GilRelease release(work);
    f(sets);
  });
}

template <class T>
T element_of(const PointSets<T>&);

constexpr DLDataType kInt32{kDLInt, 32, 1}, kBool{kDLBool, 8, 1};

const double* checked_violations(const std::optional<Tensor>& violations, const Tensor& points) {
  if (!violations) return nullptr;
  if (!violations->is(kDLFloat, 64)) throw nb::type_error("violations: expected float64");
  require_contiguous(*violations, "violations", "one value a point", points, 1);
  return reinterpret_cast<const double*>(violations->data());
}

Result ranks(const Tensor& points, bool maximize, bool nan_raises, const std::optional<Tensor>& lengths,
             const std::optional<Tensor>& violations, int64_t stop_after) {
  require_points(points);
  const double* violation = checked_violations(violations, points);
  Result result(points, points.leading(1), kInt32);
  with_sets({points, lengths, maximize, nan_raises},
            [&](const auto& sets) { non_dominated_sort(sets, violation, stop_after, result.data<int32_t>()); });
  return result;
}

Result non_dominated(const Tensor& points, bool maximize, bool nan_raises, const std::optional<Tensor>& lengths,
                     bool deduplicate) {
  require_points(points);
  Result result(points, points.leading(1), kBool);
  with_sets({points, lengths, maximize, nan_raises},
            [&](const auto& sets) { is_non_dominated(sets, deduplicate, result.data<bool>()); });
  return result;
}

Result counts(const Tensor& points, bool maximize, bool nan_raises, const std::optional<Tensor>& lengths) {
  require_points(points);
  Result result(points, points.leading(1), kInt32);
  with_sets({points, lengths, maximize, nan_raises},
            [&](const auto& sets) { dominance_counts(sets, result.data<int32_t>()); });
  return result;
}

Result dominated_by(const Tensor& points, const Tensor& others, bool maximize, bool nan_raises,
                    const std::optional<Tensor>& lengths, bool weakly) {
  require_points(points);
  require_points_like(others, "others", points);
  Result result(points, points.leading(1), kBool);
  with_sets({others, lengths, maximize, nan_raises, points.numel() * (1 + others.size(-2)), "others"},
            [&](const auto& sets) {
              using T = decltype(element_of(sets));
              is_dominated_by(points_view<T>(points), sets, weakly, result.data<bool>());
            });
  return result;
}

}  // namespace

void define_pareto(nb::module_& module, nb::dict& schemas) {
  const auto define = [&](const char* name, const char* schema, auto function, const auto&... arguments) {
    schemas[name] = nb::str(schema);
    module.def(name, function, "points"_a, arguments...);
  };
  define("non_dominated_sort",
         "(Tensor points, bool maximize=False, bool nan_raises=True, Tensor? lengths=None, Tensor? violations=None, "
         "int stop_after=0) -> Tensor",
         &ranks, "maximize"_a = false, "nan_raises"_a = true, "lengths"_a = nb::none(), "violations"_a = nb::none(),
         "stop_after"_a = 0);
  define("is_non_dominated",
         "(Tensor points, bool maximize=False, bool nan_raises=True, Tensor? lengths=None, bool deduplicate=False) -> "
         "Tensor",
         &non_dominated, "maximize"_a = false, "nan_raises"_a = true, "lengths"_a = nb::none(),
         "deduplicate"_a = false);
  define("dominance_counts",
         "(Tensor points, bool maximize=False, bool nan_raises=True, Tensor? lengths=None) -> Tensor", &counts,
         "maximize"_a = false, "nan_raises"_a = true, "lengths"_a = nb::none());
  define("is_dominated_by",
         "(Tensor points, Tensor others, bool maximize=False, bool nan_raises=True, Tensor? lengths=None, bool "
         "weakly=False) -> Tensor",
         &dominated_by, "others"_a, "maximize"_a = false, "nan_raises"_a = true, "lengths"_a = nb::none(),
         "weakly"_a = false);
}

}  // namespace morlfast::bindings
