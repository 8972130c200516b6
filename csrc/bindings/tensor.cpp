#include "tensor.hpp"

#include <sys/mman.h>

namespace morlfast::bindings {

const DLPackExchangeAPI* exchange_api(PyTypeObject* type) noexcept {
  // torch.Tensor nearly always; the GIL guards the cache.
  static PyTypeObject* cached_type = nullptr;
  static const DLPackExchangeAPI* cached_api = nullptr;
  if (type == cached_type) return cached_api;
  PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (!capsule) {
    PyErr_Clear();
    return nullptr;
  }
  auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  if (!api) PyErr_Clear();
  while (api && api->header.version.major != DLPACK_MAJOR_VERSION)
    api = reinterpret_cast<const DLPackExchangeAPI*>(api->header.prev_api);
  if (api) {
    Py_INCREF(type);  // a cached type must not be freed and its address reused
    Py_XDECREF(cached_type);
    cached_type = type;
    cached_api = api;
  }
  return api;
}

int64_t Tensor::numel() const {
  int64_t count = 1;
  for (int d = 0; d < view.ndim; ++d) count *= view.shape[d];
  return count;
}

std::string Tensor::shape() const {
  std::string text = "(";
  for (int d = 0; d < view.ndim; ++d) text += (d ? ", " : "") + std::to_string(view.shape[d]);
  return text + (view.ndim == 1 ? ",)" : ")");
}

Dtype Tensor::dtype(const char* argument) const {
  if (is(kDLFloat, 32)) return Dtype::float32;
  if (is(kDLFloat, 64)) return Dtype::float64;
  if (is(kDLBfloat, 16)) return Dtype::bfloat16;
  if (is(kDLFloat, 16)) return Dtype::float16;
  if (is(kDLBool, 8)) return Dtype::bool8;
  if (is(kDLInt, 8)) return Dtype::int8;
  if (is(kDLUInt, 8)) return Dtype::uint8;
  if (is(kDLInt, 16)) return Dtype::int16;
  if (is(kDLInt, 32)) return Dtype::int32;
  if (is(kDLInt, 64)) return Dtype::int64;
  throw nb::type_error((std::string(argument) +
                        ": expected a real floating-point, integer or bool tensor, got an "
                        "element type of " +
                        std::to_string(view.dtype.bits) + " bits, DLPack code " + std::to_string(view.dtype.code))
                           .c_str());
}

void* Tensor::current_stream() const {
  void* stream = nullptr;
  if (api->current_work_stream(view.device.device_type, view.device.device_id, &stream) != 0) throw nb::python_error();
  return stream;
}

Shape Tensor::leading(int drop) const {
  Shape result;
  result.dims = view.ndim - drop;
  std::copy(view.shape, view.shape + result.dims, result.sizes);
  return result;
}

Result::Result(const Tensor& like, const Shape& shape, DLDataType dtype) : api_(like.api) {
  DLTensor prototype{};
  prototype.device = like.view.device;
  prototype.ndim = shape.dims;
  prototype.dtype = dtype;
  prototype.shape = const_cast<int64_t*>(shape.sizes);
  std::string error;
  const auto set_error = [](void* context, const char*, const char* message) {
    *static_cast<std::string*>(context) = message;
  };
  if (api_->managed_tensor_allocator(&prototype, &managed_, &error, set_error) != 0)
    throw std::runtime_error("cannot allocate the result: " + error);
  // A large fresh result costs more in 4 KB page faults than in writing it.
  constexpr size_t kLarge = size_t{4} << 20, kHugePage = size_t{2} << 20;
  size_t bytes = dtype.bits / 8;
  for (int d = 0; d < shape.dims; ++d) bytes *= static_cast<size_t>(shape.sizes[d]);
  if (bytes >= kLarge && like.view.device.device_type == kDLCPU) {
    const auto address = reinterpret_cast<uintptr_t>(data<char>());
    const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(first), (address + bytes - first) / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
}

Result::~Result() {
  if (managed_ && managed_->deleter) managed_->deleter(managed_);
}

PyObject* Result::release() noexcept {
  void* object = nullptr;
  if (api_->managed_tensor_to_py_object_no_sync(std::exchange(managed_, nullptr), &object) != 0) return nullptr;
  return static_cast<PyObject*>(object);
}

void require_cpu(const Tensor& tensor, const char* argument) {
  if (tensor.view.device.device_type != kDLCPU && tensor.view.device.device_type != kDLCUDAHost)
    throw nb::value_error((std::string(argument) + ": expected a CPU tensor").c_str());
}

void require_points(const Tensor& points) {
  require_cpu(points, "points");
  if (!points.is(kDLFloat, 32) && !points.is(kDLFloat, 64)) throw nb::type_error("points: expected float32 or float64");
  if (points.dims() < 2) throw nb::value_error(("points: expected shape (..., n, m), got " + points.shape()).c_str());
}

void require_points_like(const Tensor& others, const char* argument, const Tensor& points) {
  require_cpu(others, argument);
  bool fits = others.dims() == points.dims() && others.is(kDLFloat, points.view.dtype.bits) &&
              others.size(-1) == points.size(-1);
  for (int d = 0; fits && d < points.dims() - 2; ++d) fits = others.size(d) == points.size(d);
  if (!fits)
    throw nb::value_error((std::string(argument) +
                           ": expected the dtype, the batch shape and the objectives of points " + points.shape() +
                           ", got " + others.shape())
                              .c_str());
}

void require_contiguous(const Tensor& tensor, const char* argument, const char* expected, const Tensor& points,
                        int drop) {
  require_cpu(tensor, argument);
  bool fits = tensor.dims() == points.dims() - drop;
  int64_t expected_stride = 1;
  for (int d = tensor.dims() - 1; fits && d >= 0; --d) {
    fits = tensor.size(d) == points.size(d) && (tensor.size(d) == 1 || tensor.stride(d) == expected_stride);
    expected_stride *= std::max<int64_t>(tensor.size(d), 1);
  }
  if (!fits)
    throw nb::value_error((std::string(argument) + ": expected " + expected + " and contiguous strides for points " +
                           points.shape() + ", got " + tensor.shape())
                              .c_str());
}

const int64_t* checked_lengths(const std::optional<Tensor>& lengths, const Tensor& points) {
  if (!lengths) return nullptr;
  if (!lengths->is(kDLInt, 64)) throw nb::type_error("lengths: expected int64");
  require_contiguous(*lengths, "lengths", "the batch shape", points, 2);
  return reinterpret_cast<const int64_t*>(lengths->data());
}

}  // namespace morlfast::bindings
