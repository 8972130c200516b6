#include "morlfast/tokens.hpp"

#include "matrix.hpp"
#include "operators.hpp"

namespace morlfast::bindings {
namespace {

using namespace nb::literals;

enum Scope { kBatch = 0, kGroup = 1, kSequence = 2 };

Result keep_mask(const Tensor& advantages, const Tensor& entropies, const Tensor& mask, double ratio, int scope,
                 int64_t group_size, const std::optional<Tensor>& group_ids, const std::optional<Tensor>&, int64_t,
                 bool) {
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
  if (!(ratio >= 0 && ratio <= 1))
    throw nb::value_error(("ratio: expected 0 <= ratio <= 1, got " + std::to_string(ratio)).c_str());
  const MatrixView advantage = matrix_view(advantages, "advantages", true);
  const MatrixView entropy = matrix_view(entropies, "entropies", true);
  const MatrixView valid = matrix_view(mask, "mask", false);
  Result result(entropies, entropies.leading(0), DLDataType{kDLBool, 8, 1});
  bool* keep = result.data<bool>();
  const GilRelease release(entropies.numel());
  if (rows == 0) return result;
  if (scope != kBatch && scope != kGroup && scope != kSequence) throw nb::value_error("scope: expected 0, 1 or 2");
  const Groups groups = scope == kBatch      ? Groups::contiguous(rows, rows)
                        : scope == kSequence ? Groups::contiguous(rows, 1)
                                             : groups_of(group_ids, group_size, rows);
  select_tokens(advantage, entropy, valid, columns, ratio, groups, keep);
  return result;
}

Result digit_counts(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, int) {
  throw nb::value_error("token_histogram: not there yet");
}

Result keep_above(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  throw nb::value_error("select_tokens_above: not there yet");
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
  module.def("select_tokens_above", &keep_above, "advantages"_a, "entropies"_a, "mask"_a, "segments"_a,
             "thresholds"_a, "ties"_a);
}

}  // namespace morlfast::bindings
