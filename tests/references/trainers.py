"""What each trainer makes of rewards, restated in float64 from its meaning: a group at a time, a token at a time.

A trainer's method is a function of rewards (N, M) with NaN where a reward function gave nothing, labels of the groups
(N,), weights (M,) and token counts (N,); it returns advantages (N,). Equal values have their own mean and no deviation,
exactly; everything else is the trainer's rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Group = Callable[..., Array]
Method = Callable[[Array, Array, Array, Array], Array]


def advantages(
    preset: str,
    method: str,
    rewards: Array,
    groups: Sequence,
    weights: Array | None = None,
    lengths: Array | None = None,
) -> Array:
    rewards = np.asarray(rewards, np.float64).reshape(len(rewards), -1)
    weights = np.ones(rewards.shape[1]) if weights is None else np.asarray(weights, np.float64)
    lengths = np.ones(len(rewards), int) if lengths is None else np.asarray(lengths)
    with np.errstate(all="ignore"):
        return METHODS[preset, method](rewards, np.asarray(groups), weights, lengths)


def mean(x: Array) -> float:
    return x[0] if (x == x[0]).all() else x.mean()


def std(x: Array, ddof: int) -> float:
    """NaN where x has no more than ddof values, as NumPy and torch say."""
    return math.nan if len(x) <= ddof else math.sqrt(((x - mean(x)) ** 2).sum() / (len(x) - ddof))


def each_group(group: Group, groups: Array, *columns: Array) -> Array:
    result = np.empty(len(groups))
    for label in set(groups.tolist()):
        rows = [i for i, other in enumerate(groups.tolist()) if other == label]
        result[rows] = group(*(column[rows] for column in columns))
    return result


# ---- objectives to one score ----


def plain_sum(rewards: Array, weights: Array) -> Array:
    return (rewards * weights).sum(1)


def sum_of_given(rewards: Array, weights: Array) -> Array:
    """0 where no reward function gave anything."""
    return np.nansum(rewards * weights, 1)


def sum_or_nan(rewards: Array, weights: Array) -> Array:
    """NaN where no reward function gave anything."""
    return np.where(np.isnan(rewards).all(1), math.nan, sum_of_given(rewards, weights))


# ---- one group ----


def centred(r: Array) -> Array:
    return r - mean(r)


def scaled(eps: float, ddof: int = 1) -> Group:
    return lambda r: centred(r) / (std(r, ddof) + eps)


def others(r: Array, i: int) -> Array:
    return np.delete(r, i)


def left_out(r: Array) -> Array:
    return np.array([r[i] - mean(others(r, i)) for i in range(len(r))])


def left_out_scaled_where_the_others_differ(r: Array) -> Array:
    result = left_out(r)
    for i in range(len(r)):
        sigma = std(others(r, i), 1)
        if sigma > 0:
            result[i] /= sigma + 1e-6
    return result


def scaled_where_they_differ(r: Array) -> Array:
    sigma = std(r, 1)
    return centred(r) / (sigma + 1e-6) if sigma > 0 else centred(r)


def scaled_by_at_least(least: float) -> Group:
    return lambda r: centred(r) / np.maximum(std(r, 1), least)


def zero_unless_above(least: float) -> Group:
    return lambda r: centred(r) / (std(r, 1) + 1e-6) if len(r) > 1 and std(r, 1) > least else np.zeros_like(r)


def best_over_second(r: Array) -> Array:
    result = np.zeros_like(r)
    best, second = np.argsort(-r, kind="stable")[:2]
    result[best] = (r[best] - r[second]) / (std(r, 1) + 1e-6)
    return result


def minus_length_weighted_mean(r: Array, lengths: Array) -> Array:
    return centred(r) if (r == r[0]).all() else r - (lengths * r).sum() / lengths.sum()


# ---- a group of one ----


def alone(group: Group, value: Group) -> Group:
    return lambda r, *columns: value(r) if len(r) == 1 else group(r, *columns)


def zero(r: Array) -> Array:
    return np.zeros_like(r)


def nan(r: Array) -> Array:
    return np.full_like(r, math.nan)


def itself(r: Array) -> Array:
    return r


def as_if_standard(eps: float) -> Group:
    """As if the mean were 0 and the deviation 1."""
    return lambda r: r / (1 + eps)


def refused(r: Array) -> Array:
    raise ValueError("a group of one")


# ---- rewards that are not there ----


def among_given(group: Group) -> Group:
    """NaN in, NaN out; the others as if it were not there."""

    def among(r: Array) -> Array:
        result = np.full_like(r, math.nan)
        given = ~np.isnan(r)
        if given.any():
            result[given] = group(r[given])
        return result

    return among


# ---- the batch ----


def over_tokens(a: Array, lengths: Array, divisor: Callable[[Array], float]) -> Array:
    tokens = np.repeat(a, lengths)
    return (a - mean(tokens)) / divisor(tokens)


def bessel_and_eps_under_the_root(tokens: Array) -> float:
    return math.sqrt(std(tokens, 1) ** 2 + 1e-8)


def population_variance_of_at_least_1e_8(tokens: Array) -> float:
    return math.sqrt(np.maximum(std(tokens, 0) ** 2, 1e-8))


def bessel_plus_1e_5(tokens: Array) -> float:
    return std(tokens, 1) + 1e-5


def over_rollouts(eps: float) -> Group:
    return lambda a: (a - mean(a)) / (std(a, 1) + eps)


def nemo_over_rollouts(a: Array) -> Array:
    sigma = std(a, 1)
    return centred(a) / sigma if sigma > 0 else centred(a)


# ---- a trainer's method: total of the objectives, then each group, then the batch ----


def outcome(total: Callable[[Array, Array], Array], group: Group, batch: Callable[..., Array] | None = None) -> Method:
    def method(rewards: Array, groups: Array, weights: Array, lengths: Array) -> Array:
        a = each_group(group, groups, total(rewards, weights))
        return a if batch is None else batch(a, lengths)

    return method


def given_only(total: Callable[[Array, Array], Array], group: Group) -> Method:
    method = outcome(total, among_given(group))
    return lambda *case: np.nan_to_num(method(*case), nan=0.0)


def decoupled(group: Group, batch: Callable[[Array, Array, Array], Array]) -> Method:
    """GDPO: `batch` gets the normalized objectives (N, M), the weights and the token counts."""

    def method(rewards: Array, groups: Array, weights: Array, lengths: Array) -> Array:
        z = np.stack([each_group(group, groups, column) for column in rewards.T], 1)
        return batch(z, weights, lengths)

    return method


def opo(rewards: Array, groups: Array, weights: Array, lengths: Array) -> Array:
    group = alone(minus_length_weighted_mean, itself)
    return each_group(group, groups, plain_sum(rewards, weights), lengths)


def minus_batch_mean(rewards: Array, groups: Array, weights: Array, lengths: Array) -> Array:
    return centred(plain_sum(rewards, weights))


def trl_gdpo(rewards: Array, groups: Array, weights: Array, lengths: Array) -> Array:
    def sum_and_whiten(z: Array, weights: Array, lengths: Array) -> Array:
        s = np.where(np.isnan(rewards).all(1), math.nan, np.nansum(z * weights, 1))
        return np.nan_to_num(among_given(over_rollouts(1e-4))(s), nan=0.0)

    return decoupled(among_given(scaled(1e-4)), sum_and_whiten)(rewards, groups, weights, lengths)


def verl_whitened(a: Array, lengths: Array) -> Array:
    return over_tokens(a, lengths, bessel_and_eps_under_the_root)


def clamped(a: Array, lengths: Array) -> Array:
    return over_tokens(a, lengths, population_variance_of_at_least_1e_8)


def areal_whitened(a: Array, lengths: Array) -> Array:
    return over_tokens(a, lengths, bessel_plus_1e_5)


def ms_swift_whitened(a: Array, lengths: Array) -> Array:
    return a / (std(a, 1) + 1e-4)


METHODS: dict[tuple[str, str], Method] = {
    ("trl", "grpo"): given_only(sum_or_nan, alone(scaled(1e-4), zero)),
    ("trl", "dr_grpo"): given_only(sum_or_nan, centred),
    ("trl", "rloo"): given_only(sum_or_nan, alone(left_out, zero)),
    ("trl", "gdpo"): trl_gdpo,
    ("trl-async", "grpo"): given_only(sum_or_nan, scaled(1e-8, ddof=0)),
    ("verl", "grpo"): outcome(plain_sum, alone(scaled(1e-6), as_if_standard(1e-6))),
    ("verl", "grpo_vectorized"): outcome(plain_sum, alone(scaled(1e-6), as_if_standard(1e-6))),
    ("verl", "dr_grpo"): outcome(plain_sum, alone(centred, itself)),
    ("verl", "rloo"): outcome(plain_sum, alone(left_out, itself)),
    ("verl", "rloo_vectorized"): outcome(plain_sum, alone(left_out, zero)),
    ("verl", "gdpo"): decoupled(
        alone(scaled(1e-6), as_if_standard(1e-6)),
        lambda z, weights, lengths: verl_whitened(z @ weights, lengths),
    ),
    ("verl", "reinforce_pp"): outcome(plain_sum, itself, verl_whitened),
    ("verl", "reinforce_pp_baseline"): outcome(plain_sum, alone(centred, itself), verl_whitened),
    ("verl", "opo"): opo,
    ("verl", "gpg"): outcome(plain_sum, alone(centred, itself)),
    ("verl", "pass_at_k"): outcome(plain_sum, alone(best_over_second, refused)),
    ("openrlhf", "grpo"): outcome(plain_sum, alone(scaled(1e-9), refused)),
    ("openrlhf", "dr_grpo"): outcome(plain_sum, alone(centred, refused)),
    ("openrlhf", "rloo"): outcome(plain_sum, alone(left_out, refused)),
    ("openrlhf", "reinforce_pp"): outcome(plain_sum, itself, clamped),
    ("openrlhf", "reinforce_pp_baseline"): outcome(plain_sum, alone(centred, refused), clamped),
    ("openrlhf", "flash_reinforce"): minus_batch_mean,
    ("nemo", "grpo"): outcome(plain_sum, alone(left_out_scaled_where_the_others_differ, zero)),
    ("nemo", "grpo_group"): outcome(plain_sum, alone(scaled_where_they_differ, zero)),
    ("nemo", "rloo"): outcome(plain_sum, alone(left_out, zero)),
    ("nemo", "dr_grpo"): outcome(plain_sum, alone(centred, zero)),
    ("nemo", "gdpo"): decoupled(
        alone(left_out_scaled_where_the_others_differ, zero),
        lambda z, weights, lengths: nemo_over_rollouts(z @ weights),
    ),
    ("nemo", "reinforce_pp"): outcome(plain_sum, itself, clamped),
    ("nemo", "reinforce_pp_baseline"): outcome(plain_sum, alone(centred, zero), clamped),
    ("slime", "grpo"): outcome(plain_sum, alone(scaled(1e-6), zero)),
    ("slime", "dr_grpo"): outcome(plain_sum, centred),
    ("slime", "reinforce_pp"): outcome(plain_sum, itself, verl_whitened),
    ("slime", "reinforce_pp_baseline"): outcome(plain_sum, centred, verl_whitened),
    ("roll", "grpo"): outcome(plain_sum, scaled(1e-6)),
    ("roll", "dr_grpo"): outcome(plain_sum, centred),
    ("roll", "reinforce_pp"): outcome(plain_sum, itself, verl_whitened),
    ("roll", "reinforce_pp_baseline"): outcome(plain_sum, centred, verl_whitened),
    ("roll-agentic", "grpo"): outcome(plain_sum, zero_unless_above(1e-6)),
    ("roll-agentic", "dr_grpo"): outcome(plain_sum, centred),
    ("areal", "grpo"): outcome(plain_sum, alone(scaled(1e-5), zero)),
    ("areal", "dr_grpo"): outcome(plain_sum, centred),
    ("areal", "rloo"): outcome(plain_sum, alone(left_out, itself)),
    ("areal", "grpo_adv_norm"): outcome(plain_sum, alone(scaled(1e-5), zero), areal_whitened),
    ("torchrl", "grpo"): outcome(plain_sum, scaled_by_at_least(1e-6)),
    ("ms-swift", "grpo"): outcome(sum_of_given, alone(scaled(1e-4), zero)),
    ("ms-swift", "dr_grpo"): outcome(sum_of_given, centred),
    ("ms-swift", "rloo"): outcome(sum_of_given, alone(left_out, zero)),
    ("ms-swift", "reinforce_pp_baseline"): outcome(sum_of_given, centred, ms_swift_whitened),
    ("ms-swift", "gdpo"): decoupled(
        among_given(scaled(1e-8)),
        lambda z, weights, lengths: over_rollouts(1e-8)(np.nan_to_num(z, nan=0.0) @ weights),
    ),
    ("tunix", "grpo"): outcome(sum_of_given, scaled(1e-6)),
    ("tunix", "dr_grpo"): outcome(sum_of_given, centred),
    ("tunix", "rloo"): outcome(sum_of_given, alone(left_out, zero)),
}
