// Group-relative advantages of scalar or multi-objective rewards.
#pragma once
#include <cstdint>
#include <optional>

#include "morlfast/elements.hpp"
#include "morlfast/groups.hpp"

namespace morlfast {

/// Which comes first: the weighted sum over the objectives, or the normalization of each.
enum class Aggregate { sum_then_normalize, normalize_then_sum };

/// What is subtracted: the mean of the group, of the group's others, of all, of the group's tokens. runner_up: only the
/// largest of a group has an advantage, over the second largest.
enum class Baseline { none, group, leave_one_out, batch, length_weighted, runner_up };

/// Whose standard deviation divides: the group's, that of all, that of the group's others.
enum class Scale { none, group, batch, leave_one_out };

/// Where eps goes: deviation + eps, sqrt(variance + eps), max(deviation, eps).
enum class EpsTo { std, variance, floor };

/// A group with one scored rollout: 0, its reward (mean 0 and deviation 1), NaN, std::invalid_argument.
enum class Singleton { zero, reward, nan, raise };

/// No deviation: 0, the centred reward, NaN.
enum class ZeroVariance { zero, unscaled, nan };

/// A NaN reward: not scored; poison to its statistics; 0; not scored, but a rollout without any score has the score 0
/// once objectives are summed; std::invalid_argument.
enum class NanRewards { skip, propagate, zero, skip_reward, raise };

/// A last standardization of the whole batch, each rollout counted once or once a token.
enum class Whiten { none, rollouts, tokens };

struct AdvantageRules {
  Aggregate aggregate = Aggregate::sum_then_normalize;
  Baseline baseline = Baseline::group;
  Scale scale = Scale::group;
  double eps = 1e-4;
  EpsTo eps_to = EpsTo::std;
  int64_t ddof = 1;  // a deviation of n <= ddof values is 0
  Singleton singleton = Singleton::zero;
  ZeroVariance zero_variance = ZeroVariance::zero;
  double least_std = 0;  // deviations up to it count as none
  NanRewards nan = NanRewards::skip;
  Whiten whiten = Whiten::none;
  double whiten_eps = 1e-4;
  EpsTo whiten_eps_to = EpsTo::std;
  int64_t whiten_ddof = 1;
};

/// Advantages of n rollouts with m rewards each; statistics in double, two-pass, independent of the thread count.
///
/// rewards     (n, m), floating point
/// weights     (n, m) (row_stride 0 for one vector of m), or data == nullptr for ones
/// lengths     (n) token counts, or nullptr; without them length_weighted and Whiten::tokens count the mask
/// mask        (n, tokens), any type, nonzero where a token counts; or none
/// advantages  of the rewards' type: (n), or with a mask (n, tokens), 0 where it is zero; written
///
/// Equal scores of a group, or of a rollout's others, have exactly no deviation. An infinite score makes its group NaN
/// and, through statistics of the batch, all.
void group_advantages(const MatrixView& rewards, const MatrixView& weights, int64_t m, const Groups& groups,
                      const AdvantageRules& rules, const int64_t* lengths, const std::optional<MatrixView>& mask,
                      int64_t tokens, void* advantages);

}  // namespace morlfast
