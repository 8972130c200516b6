"""Named advantage estimators: each with its paper's formula, over `morlfast.group_advantages`."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morlfast._arguments import (
    as_floating,
    as_integer,
    as_integers,
    as_number,
    check_lengths,
    same_device,
)
from morlfast._groups import (
    Groups,
    as_column,
    as_labels,
    as_mask,
    as_nonnegative,
    as_rollouts,
    as_tokens,
    can_look,
    dense,
    on_tokens,
    over_ranks,
)
from morlfast._rollout_arguments import as_mask_or_lengths
from morlfast.advantage_presets import PRESETS, AdvantageRules, rules_of
from morlfast.advantages import group_advantages
from morlfast.returns import linear_scan
from morlfast.trackers import RiskQuantiles, SinglestreamTracker, paper_scores, riskpo, spo

__all__ = [
    "ConsistencyAdvantages",
    "RiskQuantiles",
    "SinglestreamTracker",
    "TokenAdvantages",
    "aspo",
    "bnpo",
    "copo",
    "dr_grpo",
    "gdpo",
    "gpg",
    "grpo",
    "hrpo",
    "igpo",
    "information_gain",
    "leave_one_out_std",
    "multi_objective_grpo",
    "opo",
    "optimal_token_baseline",
    "paper_scores",
    "pass_at_k",
    "reinforce_pp_baseline",
    "riskpo",
    "rloo",
    "spo",
]

Blend = Literal["soft", "soft_forced", "soft_zero", "zero", "global", "local"]

# What each formula changes of the rules of preset "trl", method "grpo".
_FORMULAS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"scale": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none"},
    "gdpo": {"aggregate": "normalize_then_sum", "whiten": "rollouts"},
    "reinforce_pp_baseline": {"scale": "none", "whiten_eps": 1e-8, "whiten_eps_to": "variance"},
    "opo": {"baseline": "length_weighted", "scale": "none"},
    "gpg": {"scale": "none"},
    "pass_at_k": {"baseline": "runner_up", "scale": "none"},
    "leave_one_out_std": {
        "baseline": "leave_one_out",
        "scale": "leave_one_out",
        "eps": 1e-6,
        "zero_variance": "unscaled",
    },
}


def _estimate(method: str, rewards: Any, group_size: Any, preset: str | None, /, **options: Any) -> Tensor:
    if "method" in options:
        raise TypeError(f"method: {method} is one; group_advantages takes any")
    if preset is not None:
        having = [name for name in PRESETS if method in PRESETS[name].methods]
        if preset not in having:
            raise ValueError(f"preset: expected one of {', '.join(having)}, which have {method}, got {preset!r}")
        return group_advantages(rewards, group_size, preset=preset, method=method, **options)
    given = {name: value for name, value in options.items() if value is not None}
    return group_advantages(rewards, group_size, **{**_FORMULAS[method], **given})


def grpo(rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any) -> Tensor:
    r"""Group relative policy optimization: scores normalized by their group's mean and deviation.

    .. math:: A_i = (s_i - \bar s_g) / (\sigma_g + \epsilon), \quad s_i = \sum_k w_k r_{ik}

    Every other keyword (``group_ids``, ``offsets``, ``weights``, ``mask``, ``lengths``, ``num_tokens``,
    ``token_rewards``, ``process_group``, ``out`` and every rule) is that of `morlfast.group_advantages`, which says
    what NaN, groups of one and constant groups give. Without ``preset`` the rules are those of the formula with eps
    1e-4, ddof 1; with one, those of that trainer, and ValueError where the preset has no method of this name. O(N M).

    Source: Shao et al. (2024), arXiv 2402.03300, eq. 3.

    >>> import torch
    >>> grpo(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2, eps=0.0)
    tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    return _estimate("grpo", rewards, group_size, preset, **options)


def dr_grpo(rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any) -> Tensor:
    r"""GRPO done right: centred scores that no deviation divides.

    .. math:: A_i = s_i - \bar s_g

    Keywords, NaN, groups of one and constant groups as in `grpo`.

    Source: Liu et al. (2025), arXiv 2503.20783.

    >>> import torch
    >>> dr_grpo(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2)
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    return _estimate("dr_grpo", rewards, group_size, preset, **options)


def rloo(rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any) -> Tensor:
    r"""REINFORCE leave-one-out: the baseline is the mean of the group's other rollouts.

    .. math:: A_i = s_i - \frac{1}{n-1} \sum_{j \in g, j \ne i} s_j

    Keywords, NaN and constant groups as in `grpo`. A group of one has no others and gives 0.

    Source: Ahmadian et al. (2024), arXiv 2402.14740.

    >>> import torch
    >>> rloo(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2)
    tensor([ 1., -1.,  0.,  0.])
    """
    return _estimate("rloo", rewards, group_size, preset, **options)


def gdpo(rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any) -> Tensor:
    r"""Group reward-decoupled normalization: each objective by its group, then their sum by the batch.

    .. math::
        z_{ik} = \frac{r_{ik} - \bar r_{gk}}{\sigma_{gk} + \epsilon}, \quad s_i = \sum_k w_k z_{ik}, \quad
        A_i = \frac{s_i - \bar s}{\mathrm{std}(s) + \epsilon}

    The mean and deviation of s are of the batch: over rollouts, or with ``preset="verl"`` over tokens (weighted by
    length). Keywords, NaN, groups of one and constant groups as in `grpo`; zeros of s are whitened with the rest.

    Source: arXiv 2601.05242.

    >>> import torch
    >>> gdpo(torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), group_size=4, eps=0.0)
    tensor([ 1.2247,  0.0000,  0.0000, -1.2247])
    """
    return _estimate("gdpo", rewards, group_size, preset, **options)


def reinforce_pp_baseline(
    rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any
) -> Tensor:
    r"""REINFORCE++ with a group baseline: centred by the group, whitened by the batch.

    .. math:: A_i = (c_i - \mu) / \sqrt{v + \epsilon}, \quad c_i = s_i - \bar s_g

    with mean :math:`\mu` and variance v (n - 1) of c over the tokens of the batch when ``mask`` or ``lengths`` is
    given, otherwise over rollouts. Keywords, NaN, groups of one and constant groups as in `grpo`.

    Source: Hu et al. (2025), arXiv 2501.03262.

    >>> import torch
    >>> reinforce_pp_baseline(torch.tensor([1.0, 0.0]), group_size=2, lengths=torch.tensor([3, 1]))
    tensor([ 0.5000, -1.5000])
    """
    counted = any(options.get(name) is not None for name in ("mask", "lengths"))
    if preset is None and options.get("whiten") is None:
        options = {**options, "whiten": "tokens" if counted else "rollouts"}
    return _estimate("reinforce_pp_baseline", rewards, group_size, preset, **options)


def opo(rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any) -> Tensor:
    r"""On-policy optimization with the length-weighted optimal baseline.

    .. math:: A_i = s_i - \frac{\sum_{j \in g} L_j s_j}{\sum_{j \in g} L_j}

    The token counts L come from ``mask`` (N, T) or ``lengths`` (N,), one of which is needed. Keywords, NaN, groups of
    one and constant groups as in `grpo`.

    Source: Hao et al. (2025), arXiv 2505.23585.

    >>> import torch
    >>> opo(torch.tensor([1.0, 0.0]), group_size=2, lengths=torch.tensor([3, 1]))
    tensor([ 0.2500, -0.7500])
    """
    return _estimate("opo", rewards, group_size, preset, **options)


def gpg(
    rewards: Any = None,
    group_size: int | None = None,
    *,
    f_norm: float = 1.0,
    preset: str | None = None,
    token_rewards: Any = None,
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    out: Tensor | None = None,
    **options: Any,
) -> Tensor:
    r"""Group policy gradient: centred scores, scaled up for the rollouts that score nothing.

    .. math:: A_i = \alpha (s_i - \bar s_g) / f_\mathrm{norm}, \quad \alpha = N / \max(|\{j : s_j \ne 0\}|, 1)

    Keywords as in `grpo`; ``f_norm`` is a number other than 0. :math:`\alpha` is one for the whole batch (with
    ``process_group`` of all ranks), and the rule ``nan`` says what a rollout without a score is in it: no part of
    either number (``"skip"``), a score of 0 (``"zero"``, ``"skip_reward"``), or one other than 0, as in verl
    (``"propagate"``). A rule that scales or whitens comes before :math:`\alpha`. O(N M).

    Source: Chu et al. (2025), arXiv 2504.02546, with the factor as in verl 0.9.1.

    >>> import torch
    >>> gpg(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4)
    tensor([ 3., -1., -1., -1.])
    """
    f_norm = as_number(f_norm, "f_norm")
    if f_norm == 0 or math.isnan(f_norm):
        raise ValueError(f"f_norm: expected a number other than 0, got {f_norm!r}")
    if (rewards is None) == (token_rewards is None):
        raise ValueError("rewards, token_rewards: expected exactly one of them")
    given = as_floating(rewards, "rewards") if token_rewards is None else as_floating(token_rewards, "token_rewards")
    r = given.detach().to(torch.float64)
    rewards, token_rewards = (r, None) if token_rewards is None else (None, r)
    mask, lengths = as_mask_or_lengths(mask, lengths, num_tokens, given)
    if mask is not None and (options.get("baseline") == "length_weighted" or options.get("whiten") == "tokens"):
        lengths = (mask != 0).sum(1)
    centred = _estimate("gpg", rewards, group_size, preset, token_rewards=token_rewards, lengths=lengths, **options)

    nan = options.get("nan") or (AdvantageRules() if preset is None else rules_of(preset, "gpg")).nan
    weights, process_group = options.get("weights"), options.get("process_group")
    scores = group_advantages(
        rewards, 1, token_rewards=token_rewards, weights=weights, baseline="none", scale="none", nan=nan
    )
    unscored = r.isnan() if r.dim() == 1 else r.isnan().all(1)
    counted = ~unscored if nan == "skip" else torch.ones_like(unscored)
    numbers = torch.stack([counted.sum(), (counted & (scores != 0)).sum()])[None]
    if process_group is not None:
        from morlfast._distributed import gather_rows

        (numbers,), _ = gather_rows(process_group, r.device, numbers)
    count, nonzero = numbers.sum(0).to(torch.float64)
    return on_tokens(centred * (count / nonzero.clamp(min=1) / f_norm), given, mask, out=out)


def pass_at_k(
    rewards: Any = None, group_size: int | None = None, *, preset: str | None = None, **options: Any
) -> Tensor:
    r"""Pass@k advantages: what the group's best rollout adds to the group's maximum.

    .. math:: A_i = r_{(1)} - r_{(2)} \text{ for } i = \arg\max_j r_j \text{, 0 for all others}

    On ties of the maximum both terms are equal and all are 0. ``scale="group"`` (or ``preset="verl"``) divides by the
    group's deviation. Keywords and NaN as in `grpo`; a group of one is 0 (``preset="verl"`` raises).

    Source: Tang et al. (2025), arXiv 2503.19595.

    >>> import torch
    >>> pass_at_k(torch.tensor([0.2, 0.9, 0.5, 1.0, 1.0, 0.0]), group_size=3)
    tensor([0.0000, 0.4000, 0.0000, 0.0000, 0.0000, 0.0000])
    """
    return _estimate("pass_at_k", rewards, group_size, preset, **options)


def leave_one_out_std(
    rewards: Any = None, group_size: int | None = None, *, preset: Literal["nemo"] | None = None, **options: Any
) -> Tensor:
    r"""NeMo-RL's normalization: mean and deviation of the group's other rollouts.

    .. math::
        A_i = \frac{s_i - \bar s_{g \setminus i}}{\sigma_{g \setminus i} + \epsilon} \text{ where }
        \sigma_{g \setminus i} > 0 \text{, otherwise } s_i - \bar s_{g \setminus i}

    with eps 1e-6. Where all others are equal the deviation is exactly 0, so that the one rollout that differs is not
    scaled. Keywords, NaN and constant groups as in `grpo`; groups of one are 0, and groups of two are never scaled.
    ``preset="nemo"``, its only one, is the trainer's, in which NaN poisons its group.

    Source: NeMo-RL's GRPO advantage with leave-one-out baseline (git 7ea279ab).

    >>> import torch
    >>> leave_one_out_std(torch.tensor([1.0, 0.0, 0.0, 2.0, 4.0, 4.0]), group_size=3, eps=0.0)
    tensor([ 1.0000, -0.7071, -0.7071, -2.0000,  0.7071,  0.7071])
    """
    if preset is None:
        return _estimate("leave_one_out_std", rewards, group_size, None, **options)
    if preset != "nemo":
        raise ValueError(f'preset: expected "nemo", whose formula this is, got {preset!r}')
    return _estimate("grpo", rewards, group_size, preset, **options)


def multi_objective_grpo(
    scores: Any, group_size: int | None = None, *, weights: Any = None, preset: str | None = None, **options: Any
) -> Tensor:
    r"""GRPO on the weighted sum of a multi-label reward model's heads.

    .. math:: R_i = \sum_k w_k \hat y_{ik}, \quad A_i = (R_i - \bar R_g) / (\sigma_g + \epsilon)

    Args:
        scores: (N, K), one column a head.
        weights: (K,) or (N, K); the mean of the heads (1/K each) by default.

    Other keywords, NaN, groups of one and constant groups as in `grpo`.

    Source: Li et al. (2025), arXiv 2503.21819. Reconstructed: the weights of the heads are unverified.

    >>> import torch
    >>> multi_objective_grpo(torch.tensor([[0.8, 0.4], [0.2, 0.2]]), group_size=2, eps=0.0)
    tensor([ 0.7071, -0.7071])
    """
    given = as_floating(scores, "scores")
    if given.dim() != 2:
        raise ValueError(f"scores: expected shape (N, K), got {tuple(given.shape)}")
    if weights is None:
        heads = given.shape[1]
        weights = torch.full((heads,), 1.0 / max(heads, 1), dtype=torch.float64, device=given.device)
    return _estimate("grpo", given, group_size, preset, weights=weights, **options)


class TokenAdvantages(NamedTuple):
    """Per-token advantages and the returns that they compare, (N, T) each."""

    advantages: Tensor
    returns: Tensor


def optimal_token_baseline(
    token_rewards: Any,
    mask: Any,
    log_probs: Any,
    sum_squared_probs: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    ratios: Any = None,
    align: Literal["position", "token"] = "position",
    zero_tail: bool = True,
    eps: float = 1e-8,
) -> TokenAdvantages:
    r"""A baseline of its own for every step: returns weighted by the energy that the path has spent so far.

    .. math::
        A_{i,t} = G_{i,t} - B_t, \quad B_t = \frac{\sum_j G_{j,t} W_{j,t}}{\sum_j W_{j,t} + \epsilon}, \quad
        W_{i,t} = \sum_{u \le t} \rho_{i,u}^2 \Bigl(1 - 2 \pi_{i,u} + \sum_v \pi_{i,u}(v)^2\Bigr)

    with the reward-to-go G, and sums over the rollouts of the group that reach step t.

    Args:
        token_rewards: (N, T); float32, float64, bfloat16 or float16.
        mask: (N, T), nonzero where a token counts.
        log_probs: (N, T), log-probabilities of the tokens.
        sum_squared_probs: (N, T), squared probabilities summed over the vocabulary.
        group_size, group_ids, offsets: the groups, as in `morlfast.group_advantages`.
        ratios: (N, T) importance weights of rollout correction, or None for 1.
        align: what a step is: the ``"position"`` in the row, or the number of counted ``"token"``, which is the form
            for tool-integrated rollouts with several turns.
        zero_tail: no baseline where the group's longest rollout is alone.
        eps: added to the weights; it also draws baselines towards 0 where a policy is nearly deterministic.

    Returns:
        (N, T) advantages and returns in the dtype of ``token_rewards``, 0 outside the mask.

    A group with one rollout has no baseline (A = G). Equal returns at a step are G eps / (sum W + eps) apart from 0,
    exactly 0 for ``eps=0``. A row with a NaN reward inside its mask is not scored: it takes part in no baseline and
    is 0. Advantages that an infinite return reaches are NaN. Float64, O(N T).

    Source: the optimal token baseline of verl 0.9.1 (`optimal_token_baseline`, `tir_optimal_token_baseline`).

    >>> import torch
    >>> rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    >>> half = torch.full((2, 2), 0.5)
    >>> optimal_token_baseline(rewards, torch.ones(2, 2), half.log(), half, group_size=2).advantages
    tensor([[ 0.5000,  0.5000],
            [-0.5000, -0.5000]])
    """
    given = as_tokens(token_rewards, "token_rewards")
    num_tokens = given.shape[1]
    on = as_mask(mask, given, "token_rewards")
    log_probs = as_tokens(log_probs, "log_probs", given)
    squares = as_tokens(sum_squared_probs, "sum_squared_probs", given)
    if align not in ("position", "token"):
        raise ValueError(f'align: expected "position" or "token", got {align!r}')
    eps = as_nonnegative(eps, "eps")
    groups = Groups.of(given, group_size, group_ids, offsets)

    r = torch.where(on, given.to(torch.float64), 0.0)
    scored = ~r.isnan().any(-1)
    r.masked_fill_(~scored[:, None], 0.0)
    reached = on & scored[:, None]
    counts = reached.sum(-1)
    returns = linear_scan(r, 1.0)
    w = log_probs.to(torch.float64, copy=True).exp_().mul_(-2).add_(1).add_(squares)
    if ratios is not None:
        w *= as_tokens(ratios, "ratios", given).to(torch.float64).square()
    w = torch.where(on, w, 0.0).cumsum(-1)
    g = returns
    step = torch.arange(num_tokens, device=given.device)
    if align == "token":  # a row's tokens move to its first steps; a last column takes what does not count
        place = torch.where(reached, on.cumsum(-1) - 1, num_tokens)
        g, w = (torch.zeros_like(x[:, :1]).repeat(1, num_tokens + 1).scatter(1, place, x)[:, :-1] for x in (g, w))
        reached = step < counts[:, None]
    w = torch.where(reached, w, 0.0)

    # With c = G - pivot, A = c + (eps pivot - sum c W) / (sum W + eps): equal returns have c = 0 exactly.
    pivot = groups.by_group(torch.where(reached, g, -math.inf), "max")
    pivot = torch.where(pivot == -math.inf, 0.0, pivot)
    c = g - groups.spread(pivot)
    divisor = groups.by_group(w, "sum") + eps
    shift = (eps * pivot - groups.by_group(c * w, "sum")) / divisor
    a = c.add_(groups.spread(torch.where(divisor == 0, pivot, shift)))

    # verl compares the lengths of all rows, and in the form by tokens of those with a token.
    present = scored if align == "position" else scored & (counts > 0)
    a = torch.where(step >= _alone_from(groups, counts, present, zero_tail)[:, None], g, a)
    if align == "token":
        a = a.gather(1, place.clamp(max=num_tokens - 1)) if num_tokens else a
    a = torch.where(a.isinf(), math.nan, a)
    reached = on & scored[:, None]
    a, returns = torch.where(reached, a, 0.0), torch.where(reached, returns, 0.0)
    return TokenAdvantages(a.to(given.dtype), returns.to(given.dtype))


def _alone_from(groups: Groups, lengths: Tensor, present: Tensor, zero_tail: bool) -> Tensor:
    """(N,): the step from which a row has no others of its group to compare with; without `zero_tail` never or 0."""
    length = torch.where(present, lengths, -1).to(torch.float64)
    is_longest = present & (length == groups.max(length))
    second = groups.max(torch.where(is_longest, -1.0, length))
    alone = is_longest & (groups.sum(is_longest) == 1)
    start = second.clamp(min=0) if zero_tail else torch.where(second < 0, 0.0, math.inf)
    return torch.where(alone, start, math.inf)


def bnpo(
    rewards: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    low: float = 0.0,
    high: float = 1.0,
    least_variance: float | None = None,
    max_weight: float = 1e6,
    singleton: Literal["zero", "reward"] = "zero",
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Beta normalization: the weight of a prompt follows from how success rates are spread over the prompts.

    .. math::
        A_i = \frac{r_i - p_g}{f(p_g; \alpha, \beta)}, \quad \alpha = \max(1, 1 + \kappa \mu / 3), \quad
        \beta = \max(1, 1 + \kappa (1 - \mu) / 3), \quad \kappa = \mu (1 - \mu) / v - 1

    with rewards mapped from [low, high] to [0, 1], the mean p of a group, mean :math:`\mu` and variance v (n - 1) of
    p over the prompts, and the Beta density f. With several objectives, the mean of their advantages (the paper's
    advantage decomposition).

    Args:
        rewards: (N,), or (N, K) components; between ``low`` and ``high`` (checked on the CPU).
        group_size, group_ids, offsets: the groups, as in `morlfast.group_advantages`.
        least_variance: v up to here counts as 0, which gives :math:`\alpha = \beta = 1`, so A = r - p. The paper's
            code divides by 0 there. By default 1e-12, or :math:`2 u^2` where that is more: what rounding to the
            dtype of the rewards, by up to u in [0, 1], can make of equal rates (3e-5 in bfloat16, 2.4e-7 in float16,
            if rewards are from 0 to 1).
        max_weight: 1/f is at most this.
        singleton: a group of one is ``"zero"`` and no prompt of the statistics, or, as in the paper's code, has p = 0
            (``"reward"``).
        mask, lengths, num_tokens, process_group: as in `morlfast.group_advantages`.

    Returns:
        (N,) or (N, T) in the dtype of ``rewards``. Saturated groups are exactly 0. NaN means not scored: it takes part
        in nothing, and its component adds 0. Float64, O(N K) after sorting the ids.

    Source: Xiao et al. (2025), arXiv 2506.02864. TRL's ``loss_type="bnpo"`` is something else.

    >>> import torch
    >>> bnpo(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]), group_size=4)[:4]
    tensor([ 0.6802, -0.2267, -0.2267, -0.2267])
    """
    given = as_rollouts(rewards)
    low, high = as_number(low, "low"), as_number(high, "high")
    if not low < high:
        raise ValueError(f"low, high: expected low < high, got {low!r} and {high!r}")
    if singleton not in ("zero", "reward"):
        raise ValueError(f'singleton: expected "zero" or "reward", got {singleton!r}')
    if least_variance is None:
        rounding = torch.finfo(given.dtype).eps / 2 * max(abs(low), abs(high)) / (high - low)
        least_variance = max(1e-12, 2 * rounding**2)
    least_variance = as_nonnegative(least_variance, "least_variance")
    max_weight = as_nonnegative(max_weight, "max_weight")
    if process_group is not None:
        everyone = over_ranks(process_group, given, (group_size, group_ids, offsets))
        rules: dict[str, Any] = {"least_variance": least_variance, "max_weight": max_weight, "singleton": singleton}
        of_all = bnpo(everyone.rewards, **everyone.groups, low=low, high=high, **rules)
        return on_tokens(of_all[everyone.own], given, mask, lengths, num_tokens)
    groups = Groups.of(given, group_size, group_ids, offsets)
    r = (given.detach().to(torch.float64) - low) / (high - low)
    r = r[:, None] if r.dim() == 1 else r  # (N, K)
    if can_look(r) and bool(((r < 0) | (r > 1)).any()):
        raise ValueError(f"rewards: expected values from low={low:g} to high={high:g}")
    scored = ~r.isnan()
    count = groups.sum(scored)
    c = groups.centred(r, scored)
    p = torch.where(scored, (r - c).clamp(0.0, 1.0), 0.0)
    if singleton == "reward":
        p, c = torch.where(count == 1, 0.0, p), torch.where(count == 1, r, c)
    prompt = (groups.rank(scored) == 0) & scored & (count > (singleton == "zero"))  # one row speaks for each prompt
    prompts = prompt.sum(0)
    mu = torch.where(prompt, p, 0.0).sum(0) / prompts.clamp(min=1)
    v = torch.where(prompt, p - mu, 0.0).square().sum(0) / (prompts - 1).clamp(min=1)
    spread = (prompts > 1) & (v > least_variance)
    kappa = torch.where(spread, mu * (1 - mu) / torch.where(spread, v, 1.0) - 1, 0.0)
    weight = _inverse_beta_density(p, mu, kappa).clamp(max=max_weight)  # before the product: inf times 0 at p = 0 or 1
    advantages = torch.where(scored, weight * c, 0.0)
    return on_tokens(advantages.mean(1) if r.shape[1] else advantages.sum(1), given, mask, lengths, num_tokens)


def _inverse_beta_density(p: Tensor, mu: Tensor, kappa: Tensor) -> Tensor:
    r"""1 / f(p) of bnpo's Beta density, which is 1 where kappa is not positive.

    With a = alpha - 1, b = beta - 1, n = a + b, hence a = n mu, and functions g and h that are nowhere negative:

    .. math::
        -\log f(p) = g(a) + g(b) - g(n) - \log(n + 1) + a \, h((p - \mu) / \mu) + b \, h((\mu - p) / (1 - \mu)),
        \quad g(x) = \log(x! \, (e / x)^x), \quad h(x) = x - \log(1 + x).

    Log gammas, of the order of n log n, would cancel: n is 1e11 where v is 1e-12.
    """
    is_bent = kappa > 0  # hence 0 < mu < 1
    n = torch.where(is_bent, kappa / 3, 1.0)
    mu = torch.where(is_bent, mu, 0.5)
    a, b = n * mu, n * (1 - mu)
    at_mu = _log_factorial_excess(a) + _log_factorial_excess(b) - _log_factorial_excess(n) - torch.log1p(n)
    away = a * _log1p_deficit((p - mu) / mu) + b * _log1p_deficit((mu - p) / (1 - mu))
    return torch.where(is_bent, (at_mu + away).exp(), 1.0)


def _log_factorial_excess(x: Tensor) -> Tensor:
    """log(x! (e / x)^x) for x >= 0, from 16 on by Stirling's series."""
    y = x.clamp(min=16.0)
    s = y.square().reciprocal()
    series = (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s / 1680))) / y
    return torch.where(x < 16, torch.lgamma(x + 1) - torch.xlogy(x, x) + x, (2 * math.pi * y).log() / 2 + series)


def _log1p_deficit(x: Tensor) -> Tensor:
    """x - log(1 + x) for x >= -1, near 0 by the series of log(1 + x) = 2 artanh(x / (x + 2))."""
    y = x / (x + 2)
    s = y.square()
    tail = torch.zeros_like(x)
    for k in range(17, 1, -2):
        tail = s * (tail + 1 / k)
    return torch.where(x.abs() < 0.1, y * (x - 2 * tail), x - torch.log1p(x))


class ConsistencyAdvantages(NamedTuple):
    """COPO's two advantages of each rollout and the weight w of the local one, (N,) each."""

    local_advantages: Tensor
    global_advantages: Tensor
    weights: Tensor


def copo(
    rewards: Any,
    answers: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    steepness: float = 5.0,
    threshold: float = 1.0,
    consistency_reward: bool = False,
    blend: Blend = "soft",
    eps: float = 1e-6,
    process_group: Any = None,
) -> ConsistencyAdvantages:
    r"""Consistency-aware optimization: prompts whose answers agree learn from other prompts, the rest from themselves.

    .. math::
        H_q = -\sum_a p_a \log_2 (p_a + 10^{-8}), \quad w_q = \sigma(k (H_q - b)), \quad
        A^\mathrm{loc}_i = \frac{r_i - \bar r_q}{\sigma_q + \epsilon}, \quad
        A^\mathrm{glob}_q = \frac{R_q - \bar R}{\mathrm{std}(R) + \epsilon}

    with the shares p of a prompt's distinct answers, k = ``steepness``, b = ``threshold``, and
    :math:`R_q = \bar r_q`, or :math:`\bar r_q (1 - \lambda_q H_q)`, :math:`\lambda_q = (1 - 1/G) / \log_2 G`, with
    ``consistency_reward``; mean and deviation (n - 1) of R are over prompts. The loss blends
    :math:`w L(A^\mathrm{loc}) + (1 - w) L(A^\mathrm{glob})`.

    Args:
        rewards: (N,).
        answers: (N,) integers or labels, equal where two rollouts give the same answer; compared within a prompt.
        group_size, group_ids, offsets, process_group: the prompts, as in `morlfast.group_advantages`.
        blend: ``"soft"`` w as above; ``"soft_forced"`` 1 where the local advantage is not 0; ``"soft_zero"`` 1 where
            the reward is not 0; ``"zero"`` 1 where the reward is not 0, otherwise 0; ``"global"`` 0; ``"local"`` 1.

    Returns:
        `ConsistencyAdvantages` of (N,) in the dtype of ``rewards``. NaN means not scored: no part of any statistic,
        both advantages 0. A prompt with one scored rollout has local advantage 0. Float64, O(N log N).

    Source: arXiv 2508.04138 and its code; k and b are those of its script.

    >>> import torch
    >>> local, global_, w = copo(torch.tensor([1.0, 1.0, 1.0, 0.0]), [7, 7, 2, 3], group_size=2)
    >>> local, global_
    (tensor([ 0.0000,  0.0000,  0.7071, -0.7071]), tensor([ 0.7071,  0.7071, -0.7071, -0.7071]))
    """
    given = as_rollouts(rewards, objectives=False)
    k, b = as_number(steepness, "steepness"), as_number(threshold, "threshold")
    eps = as_nonnegative(eps, "eps")
    if blend not in ("soft", "soft_forced", "soft_zero", "zero", "global", "local"):
        raise ValueError(f"blend: expected one of soft, soft_forced, soft_zero, zero, global, local, got {blend!r}")
    if process_group is not None:
        everyone = over_ranks(process_group, given, (group_size, group_ids, offsets), answers=answers)
        rules: dict[str, Any] = {"consistency_reward": consistency_reward, "blend": blend, "eps": eps}
        of_all = copo(everyone.rewards, everyone.labels[0], **everyone.groups, steepness=k, threshold=b, **rules)
        return ConsistencyAdvantages(*(column[everyone.own] for column in of_all))
    groups = Groups.of(given, group_size, group_ids, offsets)
    same_answer = groups.refined(dense(as_labels(answers, "answers", given)))
    r = given.detach().to(torch.float64)
    scored = ~r.isnan()

    local = group_advantages(r, group_ids=groups.index, eps=eps)
    count = groups.sum(scored)
    share = same_answer.sum(scored) / count.clamp(min=1)  # of the rollout's own answer
    log_share = torch.where(scored, torch.log2(share + 1e-8), 0.0)
    entropy = -groups.sum(log_share) / count.clamp(min=1)
    reward = torch.where(scored, r - groups.centred(r, scored), math.nan)
    if consistency_reward:
        damping = (1 - 1 / count.clamp(min=1)) / count.clamp(min=2).log2()
        reward = reward * (1 - damping * entropy)
    reward = torch.where(reward.isnan(), math.inf, reward)  # an infinite score poisons the batch, as NaN would not
    first = scored & (groups.rank(scored) == 0)  # one row speaks for each prompt
    of_prompts = group_advantages(
        torch.where(first, reward, math.nan), group_size=1, baseline="batch", scale="batch", eps=eps
    )
    glob = torch.where(scored, groups.sum(torch.where(first, of_prompts, 0.0)), 0.0)

    w = torch.sigmoid(k * (entropy - b))
    if blend == "soft_forced":
        w = torch.where(local != 0, 1.0, w)
    elif blend == "soft_zero":
        w = torch.where(scored & (r != 0), 1.0, w)
    elif blend == "zero":
        w = (scored & (r != 0)).to(torch.float64)
    elif blend != "soft":
        w = torch.full_like(w, float(blend == "local"))
    return ConsistencyAdvantages(local.to(given.dtype), glob.to(given.dtype), w.to(given.dtype))


def information_gain(log_probs: Any, mask: Any = None, *, log: bool = False) -> Tensor:
    r"""IGPO's turn rewards: what a turn adds to the policy's belief in the right answer.

    .. math:: r_t = p_t - p_{t-1}, \quad p_t = \exp \bigl(\mathrm{mean}_j \log \pi(a^*_j | a^*_{<j}, h_t)\bigr)

    Args:
        log_probs: (..., K, L): token log-probabilities of the right answer after each of K histories.
        mask: (..., K, L), nonzero where an answer's token counts; all by default. No token gives NaN.
        log: differences of :math:`\log p` instead.

    Returns:
        (..., K - 1) in the dtype of ``log_probs``; differentiable. O(K L).

    Source: arXiv 2510.14967.

    >>> import torch
    >>> information_gain(torch.tensor([[-2.0], [-1.2], [-1.5]]))
    tensor([ 0.1659, -0.0781])
    """
    given = as_floating(log_probs, "log_probs")
    if given.dim() < 2:
        raise ValueError(f"log_probs: expected shape (..., K, L), got {tuple(given.shape)}")
    values = given.to(torch.float64)
    if mask is None:
        belief = values.mean(-1)
    else:
        on = as_mask(mask, given, "log_probs")
        belief = torch.where(on, values, 0.0).sum(-1) / on.sum(-1)
    return (belief if log else belief.exp()).diff(dim=-1).to(given.dtype)


def igpo(
    token_rewards: Any,
    turn_ends: Any,
    mask: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    normalization: Literal["joint", "separate", "returns"] = "joint",
    scale: Literal["group", "none"] = "group",
    gamma: float = 1.0,
    gain_weight: float = 1.0,
    outcome_weight: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    r"""Information-gain policy optimization: turn rewards normalized in the group, then summed over later turns.

    .. math::
        \tilde r = \frac{r - \bar r_g}{\sqrt{v_g + 10^{-8}} + \epsilon}, \quad
        A_u = \tilde r_u + \gamma A_{u+1}, \text{ the same for all tokens of turn } u

    with the population's mean and variance v over the turns of the group's rollouts.

    Args:
        token_rewards: (N, T); the reward of a turn at its last token, the outcome's at the end of the last turn.
        turn_ends: (N, T), nonzero at the last token of each turn. (The paper's code takes the nonzero rewards, which
            loses turns whose normalized reward is 0.) Rewards elsewhere do not count.
        mask: (N, T), nonzero at the policy's own tokens; others, such as tool output, are 0 in the result.
        group_size, group_ids, offsets: the groups, as in `morlfast.group_advantages`.
        normalization: statistics over all turns (``"joint"``), over the last turns of the rollouts and over the
            others apart (``"separate"``), or none of rewards: centred ``"returns"`` at each position, the first
            version's form, where ended rollouts count as 0 and nothing is divided.
        gain_weight, outcome_weight: of the rewards before the last turn and at it (the curriculum).
        scale: ``"none"`` only centres.

    Returns:
        (N, T) in the dtype of ``token_rewards``, 0 after the last turn's end. Equal rewards of a group are exactly 0,
        and so is a group with one turn. A NaN reward is not scored: no part of any statistic, its turn adds 0; with
        ``"returns"`` its whole row is not scored, and 0. Float64, O(N T).

    Source: arXiv 2510.14967; joint, separate and the two epsilons are those of its code of February 2026, returns of
    that of November 2025.

    >>> import torch
    >>> r = torch.tensor([[0.0, 0.2, 0.0, 1.0], [0.0, -0.1, 0.0, 0.5]])
    >>> igpo(r, r != 0, torch.ones(2, 4), group_size=2)
    tensor([[ 0.9847,  0.9847,  1.4771,  1.4771],
            [-0.9847, -0.9847,  0.2462,  0.2462]])
    """
    given = as_tokens(token_rewards, "token_rewards")
    on = as_mask(mask, given, "token_rewards")
    ends = as_mask(turn_ends, given, "token_rewards", "turn_ends") & on
    if normalization not in ("joint", "separate", "returns"):
        raise ValueError(f'normalization: expected "joint", "separate" or "returns", got {normalization!r}')
    if scale not in ("group", "none"):
        raise ValueError(f'scale: expected "group" or "none", got {scale!r}')
    eps, gamma = as_nonnegative(eps, "eps"), as_number(gamma, "gamma")
    groups = Groups.of(given, group_size, group_ids, offsets)
    last = ends & (ends.flip(-1).cumsum(-1).flip(-1) == 1)
    r = given.detach().to(torch.float64)
    gain_weight, outcome_weight = as_number(gain_weight, "gain_weight"), as_number(outcome_weight, "outcome_weight")
    r = torch.where(last, outcome_weight * r, gain_weight * r)
    scored = ends & ~r.isnan()
    discounts = torch.where(ends, torch.full_like(r, gamma), 1.0)
    if normalization == "returns":
        known = ~(ends & r.isnan()).any(-1, keepdim=True).expand_as(ends)
        c = groups.centred(linear_scan(torch.where(scored, r, 0.0), discounts), known)
        return torch.where(on, c, 0.0).to(given.dtype)
    normalized = torch.zeros_like(r)
    for turns in (scored,) if normalization == "joint" else (scored & last, scored & ~last):
        c = groups.centred(r, turns, joint=True)
        if scale == "group":
            count = groups.sum(turns.sum(-1))
            v = groups.sum(torch.where(turns, c.square(), 0.0).sum(-1)) / count.clamp(min=1)
            c = c / ((v + 1e-8).sqrt() + eps)[:, None]
        normalized = torch.where(turns, c, normalized)
    return torch.where(on, linear_scan(normalized, discounts), 0.0).to(given.dtype)


def hrpo(
    rewards: Any,
    action_rewards: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    mask: Any = None,
    lengths: Any = None,
    coefficient: float = 0.5,
    gamma: float = 1.0,
    exempt_actions: int = 0,
    eps: float = 0.0,
    ddof: int = 0,
    process_group: Any = None,
) -> Tensor:
    r"""MasHost's hierarchical relative optimization: a group-relative advantage plus each action's own return.

    .. math:: A_{i,t} = \frac{R_i - \bar R_g}{\sigma_g + \epsilon} + \lambda \sum_{u \ge t} \gamma^{u-t} r_{i,u}

    Args:
        rewards: (N,) rewards of whole systems.
        action_rewards: (N, T), rewards and penalties of single actions.
        group_size, group_ids, offsets, process_group, eps, ddof: as in `morlfast.group_advantages`.
        mask: (N, T), or ``lengths``: (N,) from 0 to T (checked on the CPU): the actions that were taken; all by
            default.
        coefficient: :math:`\lambda`.
        exempt_actions: action rewards before this step do not count (the exemption time).

    Returns:
        (N, T) in the dtype of ``rewards``, 0 outside the mask. A constant group and a group of one have a relative
        part of exactly 0. A row with NaN in ``rewards`` is not scored and 0; a NaN action reward counts as 0.
        Float64, O(N T).

    Source: arXiv 2506.08507. Reconstructed: the paper's exact combination is unverified.

    >>> import torch
    >>> actions = torch.tensor([[0.0, -0.2, 0.0, 0.1], [0.0, 0.0, -0.2, 0.0]])
    >>> hrpo(torch.tensor([1.0, 0.0]), actions, group_size=2, lengths=torch.tensor([4, 3]))
    tensor([[ 0.9500,  0.9500,  1.0500,  1.0500],
            [-1.1000, -1.1000, -1.1000,  0.0000]])
    """
    given = as_rollouts(rewards, objectives=False)
    actions = as_tokens(action_rewards, "action_rewards")
    same_device("rewards", given, "action_rewards", actions)
    if actions.shape[0] != given.shape[0]:
        raise ValueError(f"action_rewards: expected shape ({given.shape[0]}, T), got {tuple(actions.shape)}")
    coefficient, gamma = as_number(coefficient, "coefficient"), as_number(gamma, "gamma")
    exempt_actions = as_integer(exempt_actions, "exempt_actions")
    num_tokens = actions.shape[1]
    on = torch.ones_like(actions, dtype=torch.bool)
    if mask is not None and lengths is not None:
        raise ValueError("mask, lengths: expected at most one of them, got both")
    if mask is not None:
        on = as_mask(mask, actions, "action_rewards")
    elif lengths is not None:
        taken = as_integers(lengths, "lengths", "rewards", given)
        if taken.shape != given.shape:
            raise ValueError(f"lengths: expected shape {tuple(given.shape)}, got {tuple(taken.shape)}")
        check_lengths(taken, num_tokens)
        on = torch.arange(num_tokens, device=given.device) < taken[:, None]
    r = given.detach().to(torch.float64)
    relative = group_advantages(
        r, group_size, group_ids=group_ids, offsets=offsets, eps=eps, ddof=ddof, process_group=process_group
    )
    counts = on & (torch.arange(num_tokens, device=given.device) >= exempt_actions)
    x = torch.where(counts, actions.to(torch.float64).nan_to_num(0.0, math.inf, -math.inf), 0.0)
    a = relative[:, None] + coefficient * linear_scan(x, gamma)
    return torch.where(on & ~r.isnan()[:, None], a, 0.0).to(given.dtype)


def aspo(
    advantages: Any,
    call_positions: Any,
    response_lengths: Any,
    eligible: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    delta: float = -2.0,
    bound: float = 0.7,
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Advantage shaping for tool use: correct rollouts that call code earlier than the group's others get more.

    .. math::
        A'_i = A_i + \mathrm{clip}\Bigl(\delta \frac{p_i - \bar p_E}{\bar L_E}, -k |A_i|, k |A_i|\Bigr)
        \text{ for } i \in E \text{, otherwise } A_i

    with E the eligible rollouts of the group (correct and with code), p the token position of the first call and L the
    response's length.

    Args:
        advantages: (N,) of any estimator.
        call_positions, response_lengths: (N,) integers or floats; looked at only where eligible.
        eligible: (N,), nonzero where a rollout is correct and calls code.
        group_size, group_ids, offsets, process_group: as in `morlfast.group_advantages`.
        delta: negative rewards early calls. bound: k.
        mask, lengths, num_tokens: broadcast to tokens.

    Returns:
        (N,) or (N, T) in the dtype of ``advantages``. One eligible rollout or equal positions change nothing, nor does
        a NaN position or length, which is no part of the means. A NaN advantage stays and an infinite one becomes NaN,
        as do the eligible rollouts of a group with an infinite position or length. Float64, O(N).

    Source: arXiv 2508.19201, eq. 2, with its conservative setting; the aggressive one is delta -2.5, bound 0.9.

    >>> import torch
    >>> a, p, n = torch.tensor([0.8, 0.8, 0.8, -1.2]), torch.tensor([100, 400, 700, 0]), torch.tensor([1000] * 4)
    >>> aspo(a, p, n, torch.tensor([True, True, True, False]), group_size=4)
    tensor([ 1.3600,  0.8000,  0.2400, -1.2000])
    """
    given = as_rollouts(advantages, "advantages", objectives=False)
    on = as_mask(eligible, given, "advantages", "eligible")
    delta, bound = as_number(delta, "delta"), as_nonnegative(bound, "bound")
    columns = (
        torch.where(on, as_column(values, name, given, "advantages"), math.nan)
        for name, values in (("call_positions", call_positions), ("response_lengths", response_lengths))
    )
    groups = {"group_ids": group_ids, "offsets": offsets, "process_group": process_group}
    position, length = ((x, group_advantages(x, group_size, scale="none", **groups)) for x in columns)
    a = given.detach().to(torch.float64)
    a = torch.where(a.isinf(), math.nan, a)
    limit = bound * a.abs()
    mean_length = length[0] - length[1]  # NaN too where an infinite length has poisoned the group
    bias = (delta * position[1] / mean_length).clamp(-limit, limit)
    shaped = torch.where(on & ~length[0].isnan() & ~(mean_length <= 0), a + bias, a)
    return on_tokens(shaped, given, mask, lengths, num_tokens)
