"""Advantage estimators in place of NeMo-RL's, and its baseline and deviation of each prompt.

Groups are the equal rows of the prompt tokens, found by one sort instead of one comparison of all prompts for each of
them. `patch()` puts everything here in NeMo-RL's place; NeMo-RL is imported by nothing else of this module.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from morlfast import _ops
from morlfast.advantages import group_advantages
from morlfast.integrations import Patch, check_version
from morlfast.integrations._group_deviations import group_deviations
from morlfast.returns import whiten

CHECKED_VERSIONS = ("0.6.0",)  # as commit 7ea279ab calls itself


def calculate_baseline_and_std_per_prompt(
    prompts: Tensor,
    rewards: Tensor,
    valid_mask: Tensor,
    leave_one_out_baseline: bool = True,
    std_rewards: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of each rollout's group, with NeMo-RL's arguments.

    .. math:: b_i = \frac{1}{n-1} \sum_{j \in g, j \ne i} r_j, \quad
              \sigma_i^2 = \frac{1}{n-2} \sum_{j \in g, j \ne i} (r_j - b_i)^2

    or, with ``leave_one_out_baseline=False``, mean and deviation (n - 1) of the whole group.

    Args:
        prompts: (N, S) tokens; equal rows are one group. On any device.
        rewards: (N,) floating point.
        valid_mask: (N,), 0 for rollouts that count in no statistic.
        std_rewards: (N,) rewards whose deviation is wanted, ``rewards`` by default.

    Returns:
        Baselines and deviations, (N,), on the device and in the dtype of ``rewards``.

    As in NeMo-RL, a group with at most one valid rollout has its rewards as baselines and no deviation; deviations that
    have no degree of freedom, or are NaN, are 0; a NaN or infinite reward makes its group's baselines NaN.

    Two things differ from commit 7ea279ab. Computed in float64 about the mean, a deviation of equal rewards is exactly
    0, where :math:`E[r^2] - E[r]^2` in float32 leaves noise that normalization blows up. And a rollout that is not
    valid has its own reward as baseline, so that it is ignored, where NeMo-RL divides the sum of the n valid ones by
    n - 1. O(N S).

    >>> prompts = torch.tensor([[5, 1], [5, 1], [5, 1], [5, 2]])
    >>> calculate_baseline_and_std_per_prompt(prompts, torch.tensor([1.0, 2.0, 4.0, 7.0]), torch.ones(4))
    (tensor([3.0000, 2.5000, 1.5000, 7.0000]), tensor([1.4142, 2.1213, 0.7071, 0.0000]))
    """
    ids = _groups(prompts, rewards)
    whose: Literal["leave_one_out", "group"] = "leave_one_out" if leave_one_out_baseline else "group"
    valid = valid_mask.to(rewards.device) != 0
    scores = _scores(rewards, valid)
    baseline = rewards - group_advantages(scores, group_ids=ids, preset="trl", baseline=whose, scale="none")
    spread_of = rewards if std_rewards is None else std_rewards.to(rewards.device)
    deviations = group_deviations(spread_of, valid, ids, leave_one_out_baseline).nan_to_num(0.0)
    return baseline.to(rewards.dtype), torch.where(valid, deviations, 0.0).to(rewards.dtype)


class _Estimator:
    """Refuses versions of NeMo-RL that it was not checked against, unless `any_version` of the class is true.

    So it does where NeMo-RL says its version, with and without `patch()`, whose `any_version` sets it for all classes.
    """

    any_version: ClassVar[bool] = False

    def __init__(self) -> None:
        check_version("nemo-rl", CHECKED_VERSIONS, self.any_version, required=False)


class GRPOAdvantageEstimator(_Estimator):
    """Rewards about the mean of their prompt's others, over the deviation of those others.

    `estimator_config` has ``use_leave_one_out_baseline`` (False: mean and deviation of the whole group) and
    ``normalize_rewards`` (False: no division). Rules: preset ``"nemo"`` of `morlfast.group_advantages`.
    """

    def __init__(self, estimator_config: Any, loss_config: Any = None) -> None:
        super().__init__()
        self.rules = _rules(estimator_config)

    def compute_advantage(self, prompt_ids: Tensor, rewards: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        """(N, T) as `mask`: (N,) advantages expanded, also where the mask is 0, as NeMo-RL does."""
        advantages = group_advantages(rewards, group_ids=_groups(prompt_ids, rewards), **self.rules)
        return advantages[:, None].expand(mask.shape)


class GDPOAdvantageEstimator(_Estimator):
    """GRPO's advantages of each reward by itself, weighted, summed, and normalized over the batch.

    The rewards are those of the batch named ``reward/...``, at least two, in alphabetical order; the weights
    `estimator_config.reward_weights` are in that order and ones by default.
    """

    def __init__(self, estimator_config: Any, loss_config: Any = None) -> None:
        super().__init__()
        self.rules = {**_rules(estimator_config), "method": "gdpo"}
        self.reward_weights = estimator_config.reward_weights

    def compute_advantage(
        self, prompt_ids: Tensor, rewards: Tensor, mask: Tensor, repeated_batch: Mapping[str, Any], **kwargs: Any
    ) -> Tensor:
        """(N, T) as `mask`, expanded; `rewards` is not read."""
        names = sorted(key for key in repeated_batch if isinstance(key, str) and key.startswith("reward/"))
        if len(names) < 2:
            raise ValueError(f"repeated_batch: expected two rewards named reward/... or more for GDPO, got {names}")
        weights = self.reward_weights
        if weights is not None and len(weights) != len(names):
            raise ValueError(f"reward_weights: expected one each for {', '.join(names)}, got {weights}")
        scores = torch.stack([repeated_batch[name] for name in names], 1)
        advantages = group_advantages(scores, group_ids=_groups(prompt_ids, scores), weights=weights, **self.rules)
        return advantages[:, None].expand(mask.shape)


class ReinforcePlusPlusAdvantageEstimator(_Estimator):
    r"""Rewards, less their group's mean with ``minus_baseline``, whitened over the tokens of the batch.

    .. math:: A_{it} = \frac{a_{it} - \mu}{\sqrt{\max(\sigma^2, 10^{-8})}}, \quad a_{it} = r_i - \bar r_g - \beta k_{it}

    The KL term is there with `loss_config.use_kl_in_reward`, where both log-probabilities are given.
    """

    def __init__(self, estimator_config: Any, loss_config: Any) -> None:
        super().__init__()
        self.minus_baseline = estimator_config.minus_baseline
        self.use_kl_in_reward = loss_config.use_kl_in_reward
        self.kl_coef = loss_config.reference_policy_kl_penalty
        self.kl_type = loss_config.reference_policy_kl_type

    def compute_advantage(
        self,
        prompt_ids: Tensor,
        rewards: Tensor,
        mask: Tensor,
        logprobs_policy: Tensor | None = None,
        logprobs_reference: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(N, T) as `mask`; tokens outside the mask have values too, as in NeMo-RL."""
        method = "reinforce_pp_baseline" if self.minus_baseline else "reinforce_pp"
        ids = _groups(prompt_ids, rewards)
        if not self.use_kl_in_reward or logprobs_policy is None or logprobs_reference is None:
            lengths = mask.sum(1).to(torch.int64)
            advantages = group_advantages(rewards, group_ids=ids, lengths=lengths, preset="nemo", method=method)
            return advantages[:, None].expand(mask.shape)
        centred = group_advantages(rewards, group_ids=ids, preset="nemo", method=method, whiten="none")
        kl = _kl(logprobs_policy, logprobs_reference, self.kl_type)
        shaped = centred.double()[:, None] - self.kl_coef * kl
        return whiten(shaped, mask, convention="population", outside="whiten").to(rewards.dtype)


def patch(*, any_version: bool = False) -> Patch:
    """Let NeMo-RL compute its advantages, baselines and deviations here, in the process that drives the training.

    Replaced in every module of `nemo_rl`: `calculate_baseline_and_std_per_prompt`, `GRPOAdvantageEstimator`,
    `GDPOAdvantageEstimator`, `ReinforcePlusPlusAdvantageEstimator`. Call it before the training starts: an estimator
    that exists stays. `with patch():` gives the originals back at its end. Raises RuntimeError for a version of NeMo-RL
    that the drop-ins were not checked against, unless `any_version`, which holds for the classes from then on.
    """
    check_version("nemo-rl", CHECKED_VERSIONS, any_version)
    _Estimator.any_version |= any_version
    estimators = importlib.import_module("nemo_rl.algorithms.advantage_estimator")
    algorithms = importlib.import_module("nemo_rl.algorithms.utils")
    return Patch(
        "nemo_rl",
        {
            algorithms.calculate_baseline_and_std_per_prompt: calculate_baseline_and_std_per_prompt,
            estimators.GRPOAdvantageEstimator: GRPOAdvantageEstimator,
            estimators.GDPOAdvantageEstimator: GDPOAdvantageEstimator,
            estimators.ReinforcePlusPlusAdvantageEstimator: ReinforcePlusPlusAdvantageEstimator,
        },
    )


def _rules(config: Any) -> dict[str, Any]:
    whose = "leave_one_out" if config.use_leave_one_out_baseline else "group"
    scale = whose if config.normalize_rewards else "none"
    return {"preset": "nemo", "method": "grpo", "baseline": whose, "scale": scale}


def _groups(prompts: Tensor, rewards: Tensor) -> Tensor:
    """The first equal prompt of each: (N,)."""
    prompts = prompts.to(rewards.device)
    rows = prompts if prompts.dim() == 2 else prompts[:, None]
    return _ops.group_rows(rows.contiguous())


def _scores(rewards: Tensor, valid: Tensor) -> Tensor:
    """In float64: NaN is not scored, and infinity, as NaN shall, makes the group NaN."""
    return rewards.double().masked_fill(rewards.isnan(), math.inf).masked_fill(~valid, math.nan)


def _kl(policy: Tensor, reference: Tensor, kind: str) -> Tensor:
    """Estimates of the KL divergence (Schulman 2020), in float64, of a log-ratio within 20, at most 10."""
    ratio = (reference.double() - policy.double()).clamp(-20.0, 20.0)
    if kind == "k1":
        kl: Tensor = -ratio
    elif kind == "k2":
        kl = ratio.square() / 2
    elif kind == "k3":
        kl = ratio.expm1() - ratio
    else:
        raise ValueError(f"reference_policy_kl_type: expected k1, k2 or k3, got {kind!r}")
    return kl.clamp(-10.0, 10.0)
