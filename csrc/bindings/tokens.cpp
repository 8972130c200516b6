#include "morlfast/tokens.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

enum Scope { kBatch = 0, kGroup = 1, kSequence = 2 };

struct Arguments {
  MatrixView advantages, entropies, mask;
  int64_t rows, columns;
};

Arguments arguments(const Tensor& advantages, const Tensor& entropies, const Tensor& mask) {
  if (entropies.dims() != 2)
    throw nb::value_error(("entropies: expected shape (N, T), got " + entropies.shape()).c_str());
  const int64_t rows = entropies.size(0), columns = entropies.size(1);
  const auto is_whole = [&](const Tensor& t) { return t.dims() == 2 && t.size(0) == rows && t.size(1) == columns; };
  if (!is_whole(advantages) && (advantages.dims() != 1 || advantages.size(0) != rows))
    throw nb::value_error(
        ("advantages: expected (N,) or (N, T) with (N, T) = " + entropies.shape() + ", got " + advantages.shape())
            .c_str());
  if (!is_whole(mask))
    throw nb::value_error(("mask: expected (N, T) = " + entropies.shape() + ", got " + mask.shape()).c_str());
  return {matrix_view(advantages, "advantages", true), matrix_view(entropies, "entropies", true),
          matrix_view(mask, "mask", false), rows, columns};
}

Result mask_like(const Tensor& entropies) { return {entropies, entropies.leading(0), DLDataType{kDLBool, 8, 1}}; }

Result keep_mask(const Tensor& advantages, const Tensor& entropies, const Tensor& mask, double ratio, int scope,
                 int64_t group_size, const std::optional<Tensor>& group_ids, const std::optional<Tensor>& offsets,
                 int64_t at_least, bool quantile) {
  const Arguments a = arguments(advantages, entropies, mask);
  if (!(ratio >= 0 && ratio <= 1))
    throw nb::value_error(("ratio: expected 0 <= ratio <= 1, got " + std::to_string(ratio)).c_str());
  if (at_least < 0 || (quantile && at_least > 0))
    throw nb::value_error(
        ("at_least: expected a value >= 0, and 0 with quantile, got " + std::to_string(at_least)).c_str());
  if (scope != kBatch && scope != kGroup && scope != kSequence) throw nb::value_error("scope: expected 0, 1 or 2");
  Result keep = mask_like(entropies);
  if (a.rows == 0) return keep;
  const Groups groups = scope == kBatch      ? Groups::contiguous(a.rows, a.rows)
                        : scope == kSequence ? Groups::contiguous(a.rows, 1)
                        : offsets            ? groups_by_offsets(*offsets, a.rows)
                                             : groups_of(group_ids, group_size, a.rows);
  const GilRelease release(entropies.numel());
  select_tokens(a.advantages, a.entropies, a.mask, a.columns, {ratio, at_least, quantile}, groups, keep.data<bool>());
  return keep;
}

/// A vector with one int64 for each segment, or for each row.
const int64_t* vector_of(const Tensor& tensor, const char* argument, int64_t size) {
  const int64_t* values = int64_vector(tensor, argument);
  if (tensor.size(0) != size)
    throw nb::value_error(
        (std::string(argument) + ": expected shape (" + std::to_string(size) + ",), got " + tensor.shape()).c_str());
  return values;
}

Result digit_counts(const Tensor& advantages, const Tensor& entropies, const Tensor& mask, const Tensor& segments,
                    const Tensor& prefixes, int level) {
  const Arguments a = arguments(advantages, entropies, mask);
  const int64_t* segment = vector_of(segments, "segments", a.rows);
  const int64_t* prefix = int64_vector(prefixes, "prefixes");
  Shape shape;
  shape.dims = 2;
  shape.sizes[0] = prefixes.size(0);
  shape.sizes[1] = kTokenBins;
  Result histogram(segments, shape, DLDataType{kDLInt, 64, 1});
  const GilRelease release(entropies.numel());
  token_histogram(a.advantages, a.entropies, a.mask, a.rows, a.columns, segment, prefix, prefixes.size(0), level,
                  histogram.data<int64_t>());
  return histogram;
}

Result keep_above(const Tensor& advantages, const Tensor& entropies, const Tensor& mask, const Tensor& segments,
                  const Tensor& thresholds, const Tensor& ties) {
  const Arguments a = arguments(advantages, entropies, mask);
  const int64_t* segment = vector_of(segments, "segments", a.rows);
  const int64_t* threshold = int64_vector(thresholds, "thresholds");
  const int64_t* tied = vector_of(ties, "ties", thresholds.size(0));
  Result keep = mask_like(entropies);
  const GilRelease release(entropies.numel());
  select_tokens_above(a.advantages, a.entropies, a.mask, a.rows, a.columns, segment, threshold, tied,
                      thresholds.size(0), keep.data<bool>());
  return keep;
}

}  // namespace

void define_tokens(nb::module_& module, nb::dict& schemas) {
  schemas["select_tokens"] =
      "(Tensor advantages, Tensor entropies, Tensor mask, float ratio, int scope=0, int group_size=0, Tensor? "
      "group_ids=None, Tensor? offsets=None, int at_least=0, bool quantile=False) -> Tensor";
  module.def("select_tokens", &keep_mask, "advantages"_a, "entropies"_a, "mask"_a, "ratio"_a, "scope"_a = 0,
             "group_size"_a = 0, "group_ids"_a = nb::none(), "offsets"_a = nb::none(), "at_least"_a = 0,
             "quantile"_a = false);
  schemas["token_histogram"] =
      "(Tensor advantages, Tensor entropies, Tensor mask, Tensor segments, Tensor prefixes, int level) -> Tensor";
  module.def("token_histogram", &digit_counts, "advantages"_a, "entropies"_a, "mask"_a, "segments"_a, "prefixes"_a,
             "level"_a);
  schemas["select_tokens_above"] =
      "(Tensor advantages, Tensor entropies, Tensor mask, Tensor segments, Tensor thresholds, Tensor ties) -> Tensor";
  module.def("select_tokens_above", &keep_above, "advantages"_a, "entropies"_a, "mask"_a, "segments"_a, "thresholds"_a,
             "ties"_a);
}

}  // namespace morlfast::bindings
