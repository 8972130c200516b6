"""Advantages and returns in place of OpenRLHF's `RemoteExperienceMaker.compute_advantages_and_returns`.

`patch()` puts the function in OpenRLHF's place. For several objectives, or rules of one's own, derive from
`AdvantagesMixin`:

    class Maker(AdvantagesMixin, RemoteExperienceMaker):
        objectives = {"accuracy": 1.0, "format": 0.5}  # names in Experience.info and their weights
        rules = {"preset": "trl", "method": "gdpo"}

    openrlhf.trainer.ppo_trainer.RemoteExperienceMaker = Maker
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from morlfast.advantages import group_advantages
from morlfast.integrations import Patch, check_version
from morlfast.integrations._group_deviations import group_deviations
from morlfast.returns import discounted_returns, gae, whiten

CHECKED_VERSIONS = ("0.11.2",)

# Rows of preset "openrlhf"; what is whitened is whitened below, with the KL penalty in it.
_METHODS = {
    "gae": {"method": "grpo", "baseline": "none", "scale": "none"},
    "reinforce": {"method": "grpo", "baseline": "none", "scale": "none"},
    "rloo": {"method": "rloo"},
    "reinforce_baseline": {"method": "dr_grpo"},
    "dr_grpo": {"method": "dr_grpo"},
    "group_norm": {"method": "grpo"},
    "flash_reinforce": {"method": "flash_reinforce"},
}
_WHITENED = ("gae", "reinforce", "reinforce_baseline")


@torch.no_grad()
def compute_advantages_and_returns(maker: Any, experiences: list[Any]) -> list[Any]:
    """Sets `advantages`, `returns` and the `info` of every experience, with OpenRLHF's numbers; `kl` becomes None.

    Args:
        maker: the `RemoteExperienceMaker`; of it `strategy.args`, `kl_ctl.value` and, if there, `objectives` and
            `rules` of `AdvantagesMixin` are read.
        experiences: with `index`, `rewards`, `kl`, `action_mask`, `info` and, for ``gae``, `values`.

    Groups are `args.rollout.n_samples_per_prompt` samples in a row of `index`; the last may be smaller, where OpenRLHF
    raises. Estimators are those of OpenRLHF, evaluated in float64: a constant group has advantages of exactly 0, where
    ``group_norm`` divides its float32 noise by 1e-9. Length penalties are OpenRLHF's own.
    """
    args = maker.strategy.args
    estimator = args.algo.advantage.estimator
    if estimator not in _METHODS:
        raise ValueError(f"algo.advantage.estimator: expected one of {', '.join(_METHODS)}, got {estimator!r}")
    for experience in experiences:
        experience.rewards = experience.rewards.to(torch.promote_types(experience.rewards.dtype, torch.float32))
    importlib.import_module("openrlhf.trainer.ppo_utils.length_penalty").apply_length_penalties(experiences, args)

    sizes = [len(experience.index) for experience in experiences]
    samples_per_prompt = args.rollout.n_samples_per_prompt
    index = torch.tensor([i for experience in experiences for i in experience.index])
    groups = (index // samples_per_prompt).to(experiences[0].rewards.device)
    if samples_per_prompt > 1:
        unshaped = torch.cat([experience.rewards for experience in experiences])
        ids = groups.unique(return_inverse=True)[1]
        deviations = group_deviations(unshaped, torch.ones_like(ids, dtype=torch.bool), ids).to(unshaped.dtype)
        for experience, deviation in zip(experiences, deviations.split(sizes), strict=True):
            experience.info["group_reward_std"] = deviation

    rules = getattr(maker, "rules", None)
    rules = {"preset": "openrlhf", **_METHODS[estimator]} if rules is None else dict(rules)
    rewards, weights = _objectives(experiences, getattr(maker, "objectives", None))
    lengths = torch.cat([experience.action_mask.sum(1) for experience in experiences])
    advantages = group_advantages(rewards, group_ids=groups, weights=weights, lengths=lengths, **rules)

    # gamma discounts for the estimators that have no group only
    gamma = args.algo.advantage.gamma if estimator in ("gae", "reinforce") else 1.0
    for experience, sequence_rewards in zip(experiences, advantages.split(sizes), strict=True):
        token_rewards = _token_rewards(experience, sequence_rewards, args.reward.clip_range, maker.kl_ctl.value)
        masked = token_rewards * experience.action_mask
        if estimator == "gae":
            values = experience.values * experience.action_mask
            experience.advantages, experience.returns = gae(masked, values, gamma=gamma, lam=args.algo.advantage.lambd)
        else:
            experience.returns = discounted_returns(masked, gamma=gamma)
            experience.advantages = experience.returns.clone()
        experience.info["return"] = token_rewards.sum(-1)
        experience.kl = None
    if estimator in _WHITENED:
        _whiten(experiences, divide=not args.algo.advantage.no_std_norm)
    return experiences


class AdvantagesMixin:
    """Derive from this and `RemoteExperienceMaker`, in this order, to say which rewards count and by which rules.

    Attributes:
        objectives: names in `Experience.info`, which has the ``extra_logs`` of a reward function and ``"reward"``, and
            their weights; None: `Experience.rewards`.
        rules: keywords of `morlfast.group_advantages`; None: those of OpenRLHF's estimator. What OpenRLHF whitens over
            tokens (``gae``, ``reinforce``, ``reinforce_baseline``) is whitened nevertheless.
        any_version: whether the class may be derived with a version of OpenRLHF that this was not checked against;
            else RuntimeError, where OpenRLHF says its version.
    """

    objectives: ClassVar[Mapping[str, float] | None] = None
    rules: ClassVar[Mapping[str, Any] | None] = None
    any_version: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        check_version("openrlhf", CHECKED_VERSIONS, cls.any_version, required=False)
        super().__init_subclass__(**options)

    def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
        return compute_advantages_and_returns(self, experiences)


def patch(*, any_version: bool = False) -> Patch:
    """Let OpenRLHF's `RemoteExperienceMaker` compute advantages and returns here, objects that exist too.

    In the process that has the trainer. `with patch():` gives the original back at its end. Raises RuntimeError for a
    version of OpenRLHF that the drop-in was not checked against, unless `any_version`.
    """
    check_version("openrlhf", CHECKED_VERSIONS, any_version)
    maker = importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker").RemoteExperienceMaker
    return Patch("openrlhf", {}, {(maker, "compute_advantages_and_returns"): compute_advantages_and_returns})


def _objectives(
    experiences: Sequence[Any], objectives: Mapping[str, float] | None
) -> tuple[Tensor, list[float] | None]:
    """Rewards (N,), or (N, M) and their weights, in the order of the experiences."""
    if objectives is None:
        return torch.cat([experience.rewards for experience in experiences]), None
    dtype = experiences[0].rewards.dtype
    rows = [
        torch.stack([torch.as_tensor(experience.info[name]).to(dtype) for name in objectives], 1)
        for experience in experiences
    ]
    return torch.cat(rows), list(objectives.values())


def _token_rewards(experience: Any, rewards: Tensor, clip_range: Any, kl_coef: float) -> Tensor:
    """(B, T): the reward at the last action, less the penalty at every token."""
    if clip_range:
        rewards = rewards.clamp(clip_range[0], clip_range[1])
    mask = experience.action_mask
    last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1, keepdim=True)
    penalties: Tensor = -max(kl_coef, 0.0) * experience.kl
    return penalties.scatter_add(1, last, rewards[:, None].to(penalties.dtype))


def _whiten(experiences: Sequence[Any], divide: bool) -> None:
    """About the mean of all action tokens, and over their deviation."""
    rows = torch.cat([experience.advantages.flatten() for experience in experiences])[None]
    mask = torch.cat([experience.action_mask.flatten() for experience in experiences])[None]
    if divide:
        rows = whiten(rows, mask, convention="population", outside="whiten")
    else:
        rows = (rows - (rows.double() * mask).sum() / mask.sum()).to(rows.dtype)
    parts = rows[0].split([experience.advantages.numel() for experience in experiences])
    for experience, part in zip(experiences, parts, strict=True):
        experience.advantages = part.view(experience.advantages.shape)
