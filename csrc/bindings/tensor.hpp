// torch tensors in and out of nanobind functions, through the DLPack exchange table that torch >= 2.10 hangs on its
// tensor types: no torch headers, no link, a quarter of a microsecond a call.
#pragma once
#include <Python.h>
#include <dlpack/dlpack.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "morlfast/elements.hpp"
#include "morlfast/points.hpp"

namespace morlfast::bindings {

namespace nb = nanobind;

/// The exchange table of a Python type, or nullptr (no Python error set).
const DLPackExchangeAPI* exchange_api(PyTypeObject* type) noexcept;

/// Sizes of a tensor, on the stack: a call of a tiny operator costs about as much as its allocations.
struct Shape {
  static constexpr int kMaxDims = 64;  // torch's own limit
  int dims = 0;
  int64_t sizes[kMaxDims];
};

/// A tensor argument: a view that lives as long as the call.
struct Tensor {
  DLTensor view;
  const DLPackExchangeAPI* api;

  int dims() const { return view.ndim; }
  int64_t size(int d) const { return view.shape[d < 0 ? d + view.ndim : d]; }
  int64_t stride(int d) const { return view.strides[d < 0 ? d + view.ndim : d]; }
  int64_t numel() const;
  bool is(DLDataTypeCode code, int bits) const {
    return view.dtype.code == code && view.dtype.bits == bits && view.dtype.lanes == 1;
  }
  /// The caller's stream on the tensor's device, as torch has it now.
  void* current_stream() const;
  const char* data() const { return static_cast<const char*>(view.data) + view.byte_offset; }

  /// The element type, or TypeError naming the argument.
  Dtype dtype(const char* argument) const;
  /// The sizes as Python prints them.
  std::string shape() const;
  /// The sizes but the last `drop`.
  Shape leading(int drop) const;
};

/// A fresh tensor from the allocator of the framework that an argument came from.
class Result {
 public:
  Result(const Tensor& like, const Shape& shape, DLDataType dtype);
  Result(Result&& other) noexcept : managed_(std::exchange(other.managed_, nullptr)), api_(other.api_) {}
  Result& operator=(Result&&) = delete;
  ~Result();

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(managed_->dl_tensor.data) + managed_->dl_tensor.byte_offset);
  }
  /// A new reference, or nullptr with a Python error set.
  PyObject* release() noexcept;

 private:
  DLManagedTensorVersioned* managed_ = nullptr;
  const DLPackExchangeAPI* api_;
};

/// ValueError unless the tensor is on the CPU: other devices are dispatched to their own functions.
void require_cpu(const Tensor& tensor, const char* argument);

/// Releases the GIL for calls with at least this much work; below, the two switches cost more than they give.
class GilRelease {
 public:
  explicit GilRelease(int64_t elements) {
    if (elements >= 1024) release_.emplace();
  }

 private:
  std::optional<nb::gil_scoped_release> release_;
};

template <class T>
PointsView<T> points_view(const Tensor& points) {
  PointsView<T> view;
  view.data = reinterpret_cast<const T*>(points.data());
  view.layout = {points.dims() - 2, points.view.shape, points.view.strides};
  for (int d = 0; d < points.dims() - 2; ++d) view.batch *= points.size(d);
  view.n = points.size(-2);
  view.m = points.size(-1);
  view.row_stride = points.stride(-2);
  view.column_stride = points.stride(-1);
  return view;
}

/// Checks what every operator on points needs: CPU, float32 or float64, at least two dimensions.
void require_points(const Tensor& points);

/// Checks a second set of points for each of the first: same device, dtype, batch shape and objectives.
void require_points_like(const Tensor& others, const char* argument, const Tensor& points);

/// Checks a contiguous tensor on the CPU whose shape is that of points without the last `drop` dimensions; `expected`
/// as errors say it.
void require_contiguous(const Tensor& tensor, const char* argument, const char* expected, const Tensor& points,
                        int drop);

/// The lengths of points (..., n, m), int64 of the batch shape, contiguous; nullptr without.
const int64_t* checked_lengths(const std::optional<Tensor>& lengths, const Tensor& points);

/// Calls f(float{}) or f(double{}).
template <class F>
decltype(auto) with_points_dtype(const Tensor& points, F&& f) {
  if (points.is(kDLFloat, 32)) return f(float{});
  return f(double{});
}

}  // namespace morlfast::bindings

namespace nanobind::detail {

template <>
struct type_caster<morlfast::bindings::Tensor> {
  NB_TYPE_CASTER(morlfast::bindings::Tensor, const_name("torch.Tensor"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    value.api = morlfast::bindings::exchange_api(Py_TYPE(source.ptr()));
    if (!value.api || !value.api->dltensor_from_py_object_no_sync) return false;
    if (value.api->dltensor_from_py_object_no_sync(source.ptr(), &value.view) != 0) {
      PyErr_Clear();
      return false;
    }
    // Fake and functional tensors claim elements but own no memory.
    return value.view.data != nullptr || value.numel() == 0;
  }
};

template <>
struct type_caster<morlfast::bindings::Result> {
  static constexpr auto Name = const_name("torch.Tensor");
  template <typename T>
  using Cast = morlfast::bindings::Result;

  static handle from_cpp(morlfast::bindings::Result&& result, rv_policy, cleanup_list*) noexcept {
    return result.release();
  }
};

}  // namespace nanobind::detail
