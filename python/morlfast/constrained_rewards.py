"""Rewards under the constraints of several judges, and what CGPO's three optimizers take from them.

The losses are one line each over sequence log-probabilities and stand in the docstrings; nothing here is a trainer.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morlfast._arguments import as_number
from morlfast.rewards import as_like, as_rewards, first_largest

KLRule = Literal["linear", "threshold"]


def calibrated_rewards(rewards: Any, baseline_rewards: Any) -> Tensor:
    r"""Probability (Bradley-Terry) that a response is better than the baseline response to the same prompt.

    .. math:: R_c(x, y) = \sigma\big(r(x, y) - r(x, \bar y)\big)

    Scores of a reward model are comparable between prompts only after this.

    Args:
        rewards: (..., K), the K samples of each prompt; float32 or float64. bfloat16, float16, integers and bools
            become float32.
        baseline_rewards: (...), of the response in the data set, or of the model before training.

    Returns:
        (..., K) in the dtype of ``rewards``. NaN (not scored) spreads; equal rewards give 1/2, infinite ones too.
        Differentiable.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit.

    Source: CGPO, arXiv 2409.20370 (second-hand: a port that cites the paper's equations).

    >>> calibrated_rewards([[1.0, 2.0, 0.5]], [0.5])
    tensor([[0.6225, 0.8176, 0.5000]])
    """
    rewards = as_rewards(rewards, "rewards", 1)
    baseline = _shaped(baseline_rewards, rewards, rewards.shape[:-1], "baseline_rewards").double()[..., None]
    probabilities, missing = _calibrated(rewards.double(), baseline)
    return torch.where(missing, math.nan, probabilities).to(rewards.dtype)


def constrained_rewards(
    rewards: Any,
    satisfied: Any,
    *,
    baseline_rewards: Any = None,
    kl: Any = None,
    max_kl: float | None = None,
    kl_rule: KLRule = "linear",
) -> Tensor:
    r"""Calibrated rewards that are 0 where a constraint is violated, and that shrink away from the reference policy.

    .. math:: \tilde R = \Big(\prod_h J_h\Big)\, R_c\, \max\Big(1 - \frac{KL}{KL_{max}},\, 0\Big), \qquad
        \tilde R = \Big(\prod_h J_h\Big)\, R_c\, \mathbf 1[KL \le KL_{max}]

    The first is ``kl_rule="linear"`` (CRPG), the second ``"threshold"`` (CRRAFT).

    Args:
        rewards: (..., K), as `calibrated_rewards`.
        satisfied: verdicts of the judges: (..., K), or (..., K, H) for H judges who all have to agree. A positive value
            or True is satisfied; NaN (not judged) is not.
        baseline_rewards: (...); None leaves rewards as they are, which should then be >= 0, lest a violation pay.
        kl: (..., K), estimates of the divergence from the reference policy, log pi - log pi_ref summed over the tokens.
            Negative ones are taken as they are: with ``"linear"`` the factor exceeds 1. -inf is not an estimate and
            counts as NaN.
        max_kl: KL_max > 0, with ``kl``.
        kl_rule: see above.

    Returns:
        (..., K) in the dtype of ``rewards``, computed in float64; 0 where violated. NaN in a reward (not scored), its
        baseline or its divergence gives NaN. Differentiable in rewards and kl.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit, one of kl and max_kl alone, and a max_kl
            that is not positive.

    Source: CGPO, arXiv 2409.20370, eq. 14 and 18 (second-hand: a port that cites them).

    >>> constrained_rewards([[1.0, 2.0]], [[True, False]], baseline_rewards=[1.0], kl=[[1.0, 1.0]], max_kl=10.0)
    tensor([[0.4500, 0.0000]])
    """
    if kl_rule not in ("linear", "threshold"):
        raise ValueError(f'kl_rule: expected "linear" or "threshold", got {kl_rule!r}')
    if (kl is None) != (max_kl is None):
        raise ValueError("kl, max_kl: expected both or none")
    rewards = as_rewards(rewards, "rewards", 1)
    met = _verdicts(satisfied, rewards, "satisfied")
    values, missing = rewards.double(), rewards.isnan()
    if baseline_rewards is not None:
        baseline = _shaped(baseline_rewards, rewards, rewards.shape[:-1], "baseline_rewards").double()[..., None]
        values, missing = _calibrated(values, baseline)
    if kl is not None:
        limit = as_number(max_kl, "max_kl")
        if not limit > 0:
            raise ValueError(f"max_kl: expected a positive number, got {limit}")
        divergence = _shaped(kl, rewards, rewards.shape, "kl").double()
        missing = missing | divergence.isnan() | divergence.isneginf()
        met = met & ((divergence < limit) if kl_rule == "linear" else (divergence <= limit))
    values = torch.where(met & ~missing, values, 0.0)
    if kl is not None and kl_rule == "linear":
        values = values * torch.where(met & ~missing, 1 - divergence / limit, 0.0)
    return torch.where(missing, math.nan, values).to(rewards.dtype)


def crpg_weights(
    rewards: Any, satisfied: Any, *, baseline_rewards: Any = None, kl: Any = None, max_kl: float | None = None
) -> Tensor:
    r"""Weights of the log-probabilities in CGPO's policy gradient (CRPG): constrained rewards, centred over the batch.

    .. math:: A = \tilde R - \overline{\tilde R}, \qquad L = -\frac{1}{P K} \sum_{p, k} A_{pk} \log \pi(y_{pk})

    The mean is that of the whole batch, not of the prompt's samples. The loss is ``-(weights * log_probs).mean()``.

    Args:
        rewards, satisfied, baseline_rewards, kl, max_kl: as `constrained_rewards` with ``kl_rule="linear"``.

    Returns:
        (..., K) in the dtype of ``rewards``, not differentiable. What is not scored takes no part in the mean and gets
        0. Equal rewards give exactly 0, and an infinite one NaN to all that are scored.

    Raises:
        TypeError, ValueError: as `constrained_rewards`.

    Source: CGPO, arXiv 2409.20370 (second-hand: a port that cites the paper's equations).

    >>> crpg_weights([[1.0, 0.0], [0.0, 0.0]], [[1, 1], [1, 0]])
    tensor([[ 0.7500, -0.2500],
            [-0.2500, -0.2500]])
    """
    gated = constrained_rewards(rewards, satisfied, baseline_rewards=baseline_rewards, kl=kl, max_kl=max_kl).detach()
    scored = ~gated.isnan()
    # About the smallest, so that the mean of equal rewards is that reward.
    values = gated.double()
    values = values - torch.where(scored, values, math.inf).reshape(-1).amin() if values.numel() > 0 else values
    mean = torch.where(scored, values, 0.0).sum() / scored.sum()
    weights = torch.where(mean.isfinite(), values - mean, math.nan)
    return torch.where(scored, weights, 0.0).to(gated.dtype)


class CRRAFTPicks(NamedTuple):
    """What `crraft_picks` returns."""

    #: int64 (...): the sample to train on, K for the baseline response, -1 for none
    chosen: Tensor
    #: (...): the weight of its log-probability, 0 for none
    weight: Tensor


def crraft_picks(
    rewards: Any,
    satisfied: Any,
    *,
    baseline_rewards: Any = None,
    kl: Any = None,
    max_kl: float | None = None,
    baseline_satisfied: Any = None,
) -> CRRAFTPicks:
    r"""The response of each prompt that CGPO's reward-ranked fine-tuning (CRRAFT) trains on, and its weight.

    .. math:: j = \arg\max_k \tilde R_k, \qquad L = -\frac{1}{|\{p : \tilde R_{pj} \ne 0\}|}
        \sum_p \tilde R_{pj} \log \pi(y_{pj})

    A prompt without a positive reward trains on its baseline response with weight 1/2 = sigmoid(0), its own calibrated
    reward, if that satisfies the constraints, and else on nothing. With the baseline's log-probability as an extra last
    column: ``-(weight * log_probs.gather(-1, chosen.clamp(min=0)[..., None])[..., 0]).sum() / (weight != 0).sum()``.

    Args:
        rewards, satisfied, baseline_rewards, kl, max_kl: as `constrained_rewards` with ``kl_rule="threshold"``.
        baseline_satisfied: (...) or (..., H), verdicts on the baseline responses; None: none is trained on.

    Returns:
        CRRAFTPicks(chosen, weight): int64 (...), the lowest index of equal rewards, K for the baseline, -1 for nothing;
        and the weights in the dtype of ``rewards``, not differentiable. What is not scored is not picked.

    Raises:
        TypeError, ValueError: as `constrained_rewards`.

    Source: CGPO, arXiv 2409.20370 (second-hand: a port that cites the paper's equations).

    >>> crraft_picks([[0.2, 0.9], [0.5, 0.3], [0.5, 0.3]], [[1, 1], [0, 0], [0, 0]], baseline_satisfied=[1, 1, 0])
    CRRAFTPicks(chosen=tensor([ 1,  2, -1]), weight=tensor([0.9000, 0.5000, 0.0000]))
    """
    gated = constrained_rewards(
        rewards, satisfied, baseline_rewards=baseline_rewards, kl=kl, max_kl=max_kl, kl_rule="threshold"
    ).detach()
    chosen = first_largest(gated, gated > 0)
    picked = gated.gather(-1, chosen.clamp(min=0)[..., None]).squeeze(-1)
    weight = torch.where(chosen >= 0, picked, 0.0)
    if baseline_satisfied is not None:
        one_each = gated[..., 0]
        falls_back = (chosen < 0) & _verdicts(baseline_satisfied, one_each, "baseline_satisfied")
        chosen = torch.where(falls_back, gated.shape[-1], chosen)
        weight = torch.where(falls_back, 0.5, weight)
    return CRRAFTPicks(chosen, weight)


class CODPOPicks(NamedTuple):
    """What `codpo_picks` returns."""

    #: int64 (...): the preferred sample, -1 where there is no pair
    chosen: Tensor
    #: int64 (...): the other one, -1 where there is no pair
    rejected: Tensor
    #: bool (...): whether there is a pair
    valid: Tensor


def codpo_picks(rewards: Any, satisfied: Any) -> CODPOPicks:
    r"""The pair of samples of each prompt that CGPO's online preference optimization (CODPO) trains on.

    .. math:: y^+ = \arg\max_{k : v_k = 1} r_k, \qquad y^- = \arg\min_{k : v_k = 0} r_k

    and the lowest reward of all if every sample satisfies the constraints. The loss of a pair is DPO's with a
    length-normalized likelihood of the chosen one, for log-probabilities lp and those of the reference:
    ``-logsigmoid(beta * ((lp_chosen - ref_chosen) - (lp_rejected - ref_rejected))) - lam * lp_chosen / len_chosen``.

    Args:
        rewards: (..., K), as `calibrated_rewards`.
        satisfied: (..., K) or (..., K, H), as `constrained_rewards`.

    Returns:
        CODPOPicks(chosen, rejected, valid): int64 (...) indices, the lowest of equal rewards, -1 for prompts without a
        pair: no sample satisfies the constraints, or all do and none is better than another. What is not scored (NaN)
        is not picked. Excluded samples are excluded, also where every reward is positive or infinite: the port
        multiplies rewards by 0 instead, and may reject what it chose.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit.

    Source: CGPO, arXiv 2409.20370 (second-hand: a port that cites the paper's equations).

    >>> codpo_picks([[1.0, 2.0, 0.5], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[1, 0, 1], [1, 1, 1], [0, 0, 0]])
    CODPOPicks(chosen=tensor([ 0,  0, -1]), rejected=tensor([ 1,  1, -1]), valid=tensor([ True,  True, False]))
    """
    rewards = as_rewards(rewards, "rewards", 1)
    meets_all = _verdicts(satisfied, rewards, "satisfied")
    scored = ~rewards.isnan()
    violating = scored & ~meets_all
    chosen = first_largest(rewards, scored & meets_all)
    rejected = first_largest(-rewards, torch.where(violating.any(-1, keepdim=True), violating, scored))
    valid = (chosen >= 0) & (chosen != rejected)
    return CODPOPicks(torch.where(valid, chosen, -1), torch.where(valid, rejected, -1), valid)


def _calibrated(rewards: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(rewards - baseline), 1/2 where one is NaN, and where that is: no NaN meets a gradient."""
    missing = (rewards.isnan() | baseline.isnan()).expand_as(rewards)
    known = ~missing & (rewards != baseline)  # infinite ones may be equal
    return torch.where(known, rewards - baseline, 0.0).sigmoid(), missing


def _verdicts(satisfied: Any, like: Tensor, name: str) -> Tensor:
    """Whether all judges are satisfied: bool of the shape of `like`."""
    verdicts = as_like(satisfied, like, name, "rewards") > 0
    if verdicts.dim() == like.dim() + 1:
        verdicts = verdicts.all(-1)
    if verdicts.shape != like.shape:
        raise ValueError(
            f"{name}: expected shape {tuple(like.shape)}, or one more dimension of judges, got {tuple(verdicts.shape)}"
        )
    return verdicts


def _shaped(values: Any, like: Tensor, shape: torch.Size, name: str) -> Tensor:
    tensor = as_like(values, like, name, "rewards")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    return tensor
