// Rewards, masks and entropies: matrices of rollouts, and the groups that their rows form.
#pragma once
#include <optional>

#include "morlfast/groups.hpp"
#include "tensor.hpp"

namespace morlfast::bindings {

/// (rows, columns), or (rows,) read as one value for every column. TypeError unless `floating` fits.
inline MatrixView matrix_view(const Tensor& tensor, const char* argument, bool floating) {
  require_cpu(tensor, argument);
  const Dtype dtype = tensor.dtype(argument);
  if (floating && dtype > Dtype::float16)
    throw nb::type_error((std::string(argument) + ": expected a floating-point tensor").c_str());
  return {tensor.data(), dtype, tensor.stride(0), tensor.dims() == 2 ? tensor.stride(1) : 0};
}

/// A vector with one int64 for each rollout, or for each bound of the groups; contiguous.
inline const int64_t* int64_vector(const Tensor& tensor, const char* argument) {
  require_cpu(tensor, argument);
  if (!tensor.is(kDLInt, 64)) throw nb::type_error((std::string(argument) + ": expected int64").c_str());
  if (tensor.dims() != 1 || (tensor.size(0) > 1 && tensor.stride(0) != 1))
    throw nb::value_error(
        (std::string(argument) + ": expected a contiguous vector, got shape " + tensor.shape()).c_str());
  return reinterpret_cast<const int64_t*>(tensor.data());
}

inline Groups groups_by_offsets(const Tensor& offsets, int64_t rows) {
  const int64_t* bounds = int64_vector(offsets, "offsets");
  const int64_t count = offsets.size(0) - 1;
  bool fits = count >= 0 && bounds[0] == 0 && bounds[count] == rows;
  for (int64_t g = 0; fits && g < count; ++g) fits = bounds[g] <= bounds[g + 1];
  if (!fits)
    throw nb::value_error(
        ("offsets: expected bounds that ascend from 0 to the number of rollouts " + std::to_string(rows)).c_str());
  return Groups::by_offsets(bounds, count);
}

inline Groups groups_of(const std::optional<Tensor>& group_ids, int64_t group_size, int64_t rows) {
  if (!group_ids) {
    if (group_size < 1 || rows % group_size != 0)
      throw nb::value_error(("group_size: expected a positive divisor of the number of rollouts " +
                             std::to_string(rows) + ", got " + std::to_string(group_size))
                                .c_str());
    return Groups::contiguous(rows, group_size);
  }
  require_cpu(*group_ids, "group_ids");
  if (group_ids->dims() != 1 || group_ids->size(0) != rows)
    throw nb::value_error(("group_ids: expected one id for each of " + std::to_string(rows) + " rollouts, got shape " +
                           group_ids->shape())
                              .c_str());
  if (group_ids->is(kDLInt, 64))
    return Groups::by_id(reinterpret_cast<const int64_t*>(group_ids->data()), group_ids->stride(0), rows);
  if (group_ids->is(kDLInt, 32))
    return Groups::by_id(reinterpret_cast<const int32_t*>(group_ids->data()), group_ids->stride(0), rows);
  throw nb::type_error("group_ids: expected int32 or int64");
}

}  // namespace morlfast::bindings
