#include <optional>

#include "morlfast/cuda/hypervolume.hpp"
#include "morlfast/cuda/local_bounds.hpp"
#include "operators.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

constexpr DLDataType kFloat64{kDLFloat, 64, 1}, kInt32{kDLInt, 32, 1}, kInt64{kDLInt, 64, 1}, kBool{kDLBool, 8, 1};

/// A contiguous CUDA tensor on the points' device.
void require_cuda(const Tensor& tensor, const char* argument, int device_id, const Shape& shape, DLDataType dtype) {
  bool fits = tensor.view.device.device_type == kDLCUDA && tensor.view.device.device_id == device_id &&
              tensor.is(static_cast<DLDataTypeCode>(dtype.code), dtype.bits) && tensor.dims() == shape.dims;
  int64_t stride = 1;
  for (int d = shape.dims - 1; fits && d >= 0; --d) {
    fits = tensor.size(d) == shape.sizes[d] && (tensor.size(d) == 1 || tensor.stride(d) == stride);
    stride *= std::max<int64_t>(tensor.size(d), 1);
  }
  if (!fits)
    throw nb::value_error(
        (std::string(argument) + ": expected a contiguous CUDA tensor that fits points, got " + tensor.shape())
            .c_str());
}

void require_cuda_build() {
#ifndef MORLFAST_HAS_CUDA
  throw std::runtime_error(
      "hypervolume: the points are on a CUDA device, but this morlfast was built without nvcc; build it where nvcc is "
      "on the PATH (MORLFAST_CUDA=ON makes its absence an error), or move the points to the CPU");
#endif
}

Shape checked_fronts(const Tensor& points) {
  const Shape shape = points.leading(0);
  if (shape.dims != 3 || shape.sizes[2] < 1)
    throw nb::value_error(("points: expected shape (fronts, n, m), got " + points.shape()).c_str());
  require_cuda(points, "points", points.view.device.device_id, shape, kFloat64);
  return shape;
}

Shape orders_shape(const Shape& points, int64_t axes) { return {3, {axes, points.sizes[0], points.sizes[1]}}; }

/// Fronts that have passed the checks. `order` and `rank` must be permutations of the rows along `axes` axes:
/// `morlfast._cuda.hypervolume` makes them.
struct Sorted {
  const Tensor &points, &ref_point, &order, &rank;
  Shape shape;

  Sorted(const Tensor& points_, const Tensor& ref_point_, const Tensor& order_, const Tensor& rank_,
         std::optional<int> axes = {})
      : points(points_), ref_point(ref_point_), order(order_), rank(rank_), shape(checked_fronts(points_)) {
    const Shape orders = orders_shape(shape, axes ? *axes : m());
    require_cuda(ref_point, "ref_point", device_id(), Shape{2, {fronts(), m()}}, kFloat64);
    require_cuda(order, "order", device_id(), orders, kInt32);
    require_cuda(rank, "rank", device_id(), orders, kInt32);
    require_cuda_build();
  }

  int64_t fronts() const { return shape.sizes[0]; }
  int64_t n() const { return shape.sizes[1]; }
  int m() const { return static_cast<int>(shape.sizes[2]); }
  int device_id() const { return points.view.device.device_id; }
};

template <class T>
const T* read(const Tensor& tensor) {
  return reinterpret_cast<const T*>(tensor.data());
}

#ifdef MORLFAST_HAS_CUDA
cudaStream_t stream_of(const Tensor& points) { return static_cast<cudaStream_t>(points.current_stream()); }

cuda::Fronts counted(const Sorted& sorted, const Tensor& counts) {
  require_cuda(counts, "counts", sorted.device_id(), Shape{2, {sorted.fronts(), sorted.n()}}, kBool);
  return {sorted.fronts(),
          sorted.n(),
          sorted.m(),
          read<double>(sorted.points),
          read<double>(sorted.ref_point),
          read<int32_t>(sorted.order),
          read<int32_t>(sorted.rank),
          read<uint8_t>(counts)};
}

/// Bytes of the caller's allocator, as whole doubles.
Result scratch_of(const Tensor& points, int64_t bytes) { return {points, Shape{1, {(bytes + 7) / 8}}, kFloat64}; }
#endif

std::pair<Result, Result> lexicographic_orders(const Tensor& points, int axes) {
  const Shape shape = checked_fronts(points);
  if (axes < 0 || axes > shape.sizes[2]) throw nb::value_error("axes: expected 0 to the number of objectives");
  require_cuda_build();
  const Shape orders = orders_shape(shape, axes);
  Result order(points, orders, kInt32), rank(points, orders, kInt32);
#ifdef MORLFAST_HAS_CUDA
  cuda::lexicographic_orders(read<double>(points), shape.sizes[0], shape.sizes[1], static_cast<int>(shape.sizes[2]),
                             axes, order.data<int32_t>(), rank.data<int32_t>(), stream_of(points));
#endif
  return {std::move(order), std::move(rank)};
}

std::pair<Result, std::optional<Result>> hypervolume(const Tensor& points, const Tensor& ref_point, const Tensor& order,
                                                     const Tensor& rank, bool gradient) {
  const Sorted sorted(points, ref_point, order, rank,
                      cuda::hypervolume_orders(static_cast<int>(checked_fronts(points).sizes[2])));
  Result value(points, Shape{1, {sorted.fronts()}}, kFloat64);
  std::optional<Result> slopes;
  if (gradient) slopes.emplace(points, sorted.shape, kFloat64);
#ifdef MORLFAST_HAS_CUDA
  Result scratch(points, Shape{1, {sorted.fronts() * cuda::hypervolume_scratch(sorted.n(), sorted.m())}}, kFloat64);
  cuda::hypervolume(read<double>(points), read<double>(ref_point), read<int32_t>(order), read<int32_t>(rank),
                    sorted.fronts(), sorted.n(), sorted.m(), value.data<double>(),
                    slopes ? slopes->data<double>() : nullptr, scratch.data<double>(), stream_of(points));
#endif
  return {std::move(value), std::move(slopes)};
}

Result dominated_rows(const Tensor& points) {
  [[maybe_unused]] const Shape shape = checked_fronts(points);
  require_cuda_build();
  Result dominated(points, points.leading(1), kBool);
#ifdef MORLFAST_HAS_CUDA
  cuda::dominated_rows(read<double>(points), shape.sizes[0], shape.sizes[1], static_cast<int>(shape.sizes[2]),
                       dominated.data<bool>(), stream_of(points));
#endif
  return dominated;
}

std::pair<Result, std::optional<Result>> dominated_volume(const Tensor& points, const Tensor& ref_point,
                                                          const Tensor& order, const Tensor& rank,
                                                          [[maybe_unused]] const Tensor& counts, bool gradient,
                                                          [[maybe_unused]] int64_t max_memory,
                                                          [[maybe_unused]] int part, [[maybe_unused]] int parts) {
  const Sorted sorted(points, ref_point, order, rank);
  Result value(points, Shape{1, {sorted.fronts()}}, kFloat64);
  std::optional<Result> slopes;
  if (gradient) slopes.emplace(points, sorted.shape, kFloat64);
#ifdef MORLFAST_HAS_CUDA
  const cuda::Fronts fronts = counted(sorted, counts);
  const Result scratch =
      scratch_of(points, cuda::dominated_volume_scratch(fronts, gradient, max_memory, {part, parts}));
  cuda::dominated_volume(fronts, max_memory, {part, parts}, value.data<double>(),
                         slopes ? slopes->data<double>() : nullptr, scratch.data<void>(), stream_of(points));
#endif
  return {std::move(value), std::move(slopes)};
}

Result exclusive_volume(const Tensor& points, const Tensor& ref_point, const Tensor& order, const Tensor& rank,
                        [[maybe_unused]] const Tensor& counts, const Tensor& low, const Tensor& low_rank, int first_own,
                        [[maybe_unused]] int64_t max_memory) {
  const Sorted sorted(points, ref_point, order, rank);
  const int64_t tasks = low.dims() == 3 ? low.size(1) : 0;
  require_cuda(low, "low", sorted.device_id(), Shape{3, {sorted.fronts(), tasks, sorted.m()}}, kFloat64);
  require_cuda(low_rank, "low_rank", sorted.device_id(), Shape{3, {sorted.m(), sorted.fronts(), tasks}}, kInt32);
  if (first_own >= 0 && first_own + tasks > sorted.n()) throw nb::value_error("first_own: expected rows of the fronts");
  Result volume(points, Shape{2, {sorted.fronts(), tasks}}, kFloat64);
#ifdef MORLFAST_HAS_CUDA
  const cuda::Fronts fronts = counted(sorted, counts);
  const Result scratch = scratch_of(points, cuda::exclusive_volume_scratch(fronts, tasks, max_memory));
  cuda::exclusive_volume(fronts, read<double>(low), read<int32_t>(low_rank), tasks, first_own, max_memory,
                         volume.data<double>(), scratch.data<void>(), stream_of(points));
#endif
  return volume;
}

Result count_boxes(const Tensor& points, const Tensor& ref_point, const Tensor& order, const Tensor& rank,
                   [[maybe_unused]] const Tensor& counts, [[maybe_unused]] bool dominated,
                   [[maybe_unused]] int64_t max_memory) {
  const Sorted sorted(points, ref_point, order, rank);
  Result found(points, Shape{1, {sorted.fronts()}}, kInt64);
#ifdef MORLFAST_HAS_CUDA
  const cuda::Fronts fronts = counted(sorted, counts);
  const Result scratch = scratch_of(points, cuda::boxes_scratch(fronts, max_memory));
  cuda::boxes(fronts, dominated, max_memory, 0, found.data<int64_t>(), nullptr, nullptr, scratch.data<void>(),
              stream_of(points));
#endif
  return found;
}

/// `boxes`: the largest of count_boxes' counts.
std::pair<Result, Result> fill_boxes(const Tensor& points, const Tensor& ref_point, const Tensor& order,
                                     const Tensor& rank, [[maybe_unused]] const Tensor& counts,
                                     [[maybe_unused]] bool dominated, [[maybe_unused]] int64_t max_memory,
                                     int64_t boxes) {
  const Sorted sorted(points, ref_point, order, rank);
  const Shape shape{3, {sorted.fronts(), boxes, sorted.m()}};
  Result lower(points, shape, kFloat64), upper(points, shape, kFloat64);
#ifdef MORLFAST_HAS_CUDA
  const cuda::Fronts fronts = counted(sorted, counts);
  const Result scratch = scratch_of(points, cuda::boxes_scratch(fronts, max_memory));
  const Result found(points, Shape{1, {sorted.fronts()}}, kInt64);
  if (boxes > 0)
    cuda::boxes(fronts, dominated, max_memory, boxes, found.data<int64_t>(), lower.data<double>(), upper.data<double>(),
                scratch.data<void>(), stream_of(points));
#endif
  return {std::move(lower), std::move(upper)};
}

}  // namespace

void define_hypervolume_cuda(nb::module_& module) {
  module.def("lexicographic_orders_cuda", &lexicographic_orders, "points"_a, "axes"_a);
  module.def("hypervolume_cuda", &hypervolume, "points"_a, "ref_point"_a, "order"_a, "rank"_a, "gradient"_a);
  module.def("dominated_rows_cuda", &dominated_rows, "points"_a);
  module.def("dominated_volume_cuda", &dominated_volume, "points"_a, "ref_point"_a, "order"_a, "rank"_a, "counts"_a,
             "gradient"_a, "max_memory"_a, "part"_a, "parts"_a);
  module.def("exclusive_volume_cuda", &exclusive_volume, "points"_a, "ref_point"_a, "order"_a, "rank"_a, "counts"_a,
             "low"_a, "low_rank"_a, "first_own"_a, "max_memory"_a);
  module.def("count_boxes_cuda", &count_boxes, "points"_a, "ref_point"_a, "order"_a, "rank"_a, "counts"_a,
             "dominated"_a, "max_memory"_a);
  module.def("fill_boxes_cuda", &fill_boxes, "points"_a, "ref_point"_a, "order"_a, "rank"_a, "counts"_a, "dominated"_a,
             "max_memory"_a, "boxes"_a);
}

}  // namespace morlfast::bindings
