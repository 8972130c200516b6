// Group-relative advantages of scalar or multi-objective rewards.
#pragma once
#include <cstdint>

#include "morlfast/elements.hpp"
#include "morlfast/groups.hpp"

namespace morlfast {

/// grpo: weighted sum, minus the group's mean (Dr. GRPO: with Scale::none).
/// rloo: weighted sum, minus the mean of the group's other rollouts.
/// gdpo: each objective minus its group mean over its scale, weighted sum, whitened over the batch.
enum class AdvantageMethod { grpo = 0, rloo = 1, gdpo = 2 };

/// Standard deviation that centred rewards are divided by.
enum class AdvantageScale { none = 0, group = 1, batch = 2 };

/// Advantages of n rollouts with m rewards each; statistics in double, two-pass, independent of the thread count.
///
/// rewards     (n, m)
/// weights     (n, m) (row_stride 0 for one vector of m), or data == nullptr for ones
/// advantages  (n) of the rewards' element type, written
/// A NaN reward is not scored: it takes no part in a statistic, and a rollout without a score gets 0. A group with an
/// infinite score becomes NaN. Equal scores of a group give exactly 0 (GDPO: before whitening).
/// Throws std::invalid_argument for rewards or weights that are not floating point.
void group_advantages(const MatrixView& rewards, const MatrixView& weights, int64_t m, const Groups& groups,
                      AdvantageMethod method, AdvantageScale scale, double eps, int64_t ddof, void* advantages);

}  // namespace morlfast
