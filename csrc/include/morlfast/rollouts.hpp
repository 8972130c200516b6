// Selection of the rollouts to train on.
#pragma once
#include <cstdint>

#include "morlfast/elements.hpp"
#include "morlfast/groups.hpp"

namespace morlfast {

enum class Selection { max_variance, top, bottom, stratified };

/// Marks k rollouts of each group, or all that are scored where there are fewer.
///
/// rewards    (rows), column_stride 0; NaN is not scored and never selected
/// uniform    (rows) from [0, 1), or nullptr for 0.5: where in its stratum a rollout is drawn (stratified)
/// selected   (rows), written
void select_rollouts(const MatrixView& rewards, int64_t k, Selection selection, const double* uniform,
                     const Groups& groups, bool* selected);

}  // namespace morlfast
