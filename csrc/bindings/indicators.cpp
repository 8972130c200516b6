#include "morlfast/indicators.hpp"

#include <optional>

#include "operators.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

/// Refuses what the operators cannot read.
void require_queries(const Tensor& queries, const Tensor& points, int64_t kind) {
  require_points(points);
  require_points_like(queries, "queries", points);
  if (kind < 0 || kind > static_cast<int64_t>(Best::largest_quotient))
    throw nb::value_error(("kind: expected 0 to 5, got " + std::to_string(kind)).c_str());
}

std::pair<Result, Result> best(const Tensor& queries, const Tensor& points, int64_t kind,
                               const std::optional<Tensor>& lengths, bool with_rows) {
  require_queries(queries, points, kind);
  const int64_t* counted = checked_lengths(lengths, points);
  const Shape shape = queries.leading(1);
  Shape rows_shape = shape;
  if (!with_rows) rows_shape.sizes[rows_shape.dims - 1] = 0;
  Result values(points, shape, points.view.dtype);
  Result rows(points, rows_shape, DLDataType{kDLInt, 64, 1});
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const PointsView<T> query_view = points_view<T>(queries), view = points_view<T>(points);
    T* value = values.data<T>();
    int64_t* row = with_rows ? rows.data<int64_t>() : nullptr;
    const GilRelease release(queries.numel() * (1 + view.n));
    best_points(query_view, view, static_cast<Best>(kind), counted, value, row);
  });
  return {std::move(values), std::move(rows)};
}

Result farthest(const Tensor& queries, const Tensor& points, int64_t kind, const std::optional<Tensor>& lengths,
                const std::optional<Tensor>& query_lengths) {
  require_queries(queries, points, kind);
  const int64_t* counted = checked_lengths(lengths, points);
  const int64_t* queries_counted = checked_lengths(query_lengths, queries);
  Result values(points, points.leading(2), points.view.dtype);
  with_points_dtype(points, [&](auto zero) {
    using T = decltype(zero);
    const PointsView<T> query_view = points_view<T>(queries), view = points_view<T>(points);
    T* value = values.data<T>();
    const GilRelease release(queries.numel() * (1 + view.n));
    farthest_query(query_view, view, static_cast<Best>(kind), counted, queries_counted, value);
  });
  return values;
}

}  // namespace

void define_indicators(nb::module_& module, nb::dict& schemas) {
  schemas["best_points"] =
      "(Tensor queries, Tensor points, int kind, Tensor? lengths=None, bool with_rows=False) -> (Tensor, Tensor)";
  module.def("best_points", &best, "queries"_a, "points"_a, "kind"_a, "lengths"_a = nb::none(), "with_rows"_a = false);
  schemas["farthest_query"] =
      "(Tensor queries, Tensor points, int kind, Tensor? lengths=None, Tensor? query_lengths=None) -> Tensor";
  module.def("farthest_query", &farthest, "queries"_a, "points"_a, "kind"_a, "lengths"_a = nb::none(),
             "query_lengths"_a = nb::none());
}

}  // namespace morlfast::bindings
