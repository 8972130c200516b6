"""torchrl's `MCAdvantage` for one or many objectives, by all rules of `morlfast.group_advantages`, and PODS for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor

from morlfast.advantage_presets import rules_of
from morlfast.advantages import group_advantages
from morlfast.integrations import check_version, needs_extra
from morlfast.rollouts import Method, select_rollouts

try:
    from torchrl.objectives.llm import MCAdvantage, MCAdvantageSelector  # first, since tensordict comes with it
except ModuleNotFoundError as error:
    raise needs_extra(error, "torchrl", "torchrl") from error
from tensordict import TensorDictBase

CHECKED_VERSIONS = ("0.14.1",)


class MultiObjectiveAdvantage(MCAdvantage):  # type: ignore[misc]  # torchrl is not followed by mypy
    """In place of `MCAdvantage` as a transform of a replay buffer; its arguments, queues, counters and numbers.

    The last dimension of a step's rewards is that of objectives, M; advantages have 1 there. Without
    `trajectory_return` the steps of all trajectories of a group are its rollouts. With it the trajectories are, each
    objective's reward being the sum, maximum or mean over a trajectory, and all steps of one have its advantage.

    Args:
        *args, **kwargs: those of `MCAdvantage`: `grpo_size`, `prompt_key`, `trajectory_return`, ...
        weights: (M,) weights of the objectives, ones by default. `keep_return_bounds` and a `candidate_selector` look
            at weighted returns; the counters add unweighted ones.
        preset, method: whose formulas, see `morlfast.PRESETS`; torchrl's (reward - mean) / max(std, 1e-6) by default.
        rules: rules that replace the preset's, such as `{"aggregate": "normalize_then_sum"}`.
        any_version: also with a version of torchrl other than those that this was compared with, and their patch
            releases.

    Groups are written as they become full, so the batch of statistics and whitening is the one group. Tokens are not
    counted here: no `baseline="length_weighted"`, no `whiten="tokens"`.

    One thing differs: what is equal in a group gets exactly 0, where float32 leaves rounding times 1e6.

    >>> from tensordict import TensorDict
    >>> def trajectory(*rewards):
    ...     rewards = torch.tensor(rewards)
    ...     done = torch.arange(len(rewards))[:, None] == len(rewards) - 1
    ...     following = TensorDict(reward=rewards, done=done, batch_size=[len(rewards)])
    ...     return TensorDict(query="a prompt", next=following, batch_size=[len(rewards)])
    >>> transform = MultiObjectiveAdvantage(grpo_size=2, weights=[1.0, 2.0], trajectory_return="sum")
    >>> transform.inv(trajectory([1.0, 0.0], [0.0, 1.0]))  # waits for the other of its group
    >>> transform.inv(trajectory([4.0, 0.0]))["advantage"]
    tensor([[-0.7071],
            [-0.7071],
            [ 0.7071]])
    """

    def __init__(
        self,
        *args: Any,
        weights: Sequence[float] | Tensor | None = None,
        preset: str = "torchrl",
        method: str | None = None,
        rules: Mapping[str, Any] = MappingProxyType({}),
        any_version: bool = False,
        **kwargs: Any,
    ) -> None:
        check_version("torchrl", CHECKED_VERSIONS, any_version, later_patches=True, extra="torchrl")
        super().__init__(*args, **kwargs)
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.rules = replace(rules_of(preset, method), **rules)
        objectives = 1 if self.weights is None else len(self.weights)
        # What is wrong with the rules shall not wait for the first full group.
        self._group_advantages(torch.zeros(2, objectives))

    def _inv_call_single(self, tensordict: TensorDictBase) -> TensorDictBase | None:
        group = super()._inv_call_single(tensordict)
        if group is None or self.trajectory_return is not None:
            return group
        reward = group.get(self.rewards_key, as_nested_tensor=True)
        if reward.is_nested:  # as many rewards a step as it has tokens
            advantage = torch.nested.nested_tensor_from_jagged(
                self._group_advantages(reward.values()), reward.offsets()
            )
        else:
            advantage = self._group_advantages(reward)
        return group.set(self.advantage_key, advantage)

    def _trajectory_advantage(self, trajs: list[TensorDictBase]) -> TensorDictBase | None:
        group = super()._trajectory_advantage(trajs)
        if group is None:
            return None
        ends = group.get(self.done_key).reshape(-1).nonzero().squeeze(-1) + 1  # each trajectory is done once
        lengths = ends.diff(prepend=ends.new_zeros(1)).tolist()
        rewards = [trajectory.get(self.rewards_key) for trajectory in group.split(lengths)]
        advantages = self._group_advantages(self._objective_returns(rewards)).unbind(0)
        steps = [
            advantage.expand(_one_objective(reward)) for reward, advantage in zip(rewards, advantages, strict=True)
        ]
        if len({values.shape[1:] for values in steps}) == 1:
            return group.set(self.advantage_key, torch.cat(steps))
        ragged = [value for values in steps for value in values]
        return group.set(self.advantage_key, torch.nested.as_nested_tensor(ragged, layout=torch.jagged))

    def _trajectory_returns(self, rewards: list[Tensor]) -> Tensor:
        returns = self._objective_returns(rewards)
        return returns.sum(1) if self.weights is None else returns @ self.weights.to(returns)

    def _objective_returns(self, rewards: list[Tensor]) -> Tensor:
        """(n, M) from one (steps, ..., M) a trajectory."""
        flat = [reward.reshape(-1, reward.shape[-1] if reward.dim() > 1 else 1) for reward in rewards]
        if self.trajectory_return == "max":
            return torch.stack([reward.amax(0) for reward in flat])
        return torch.stack([reward.sum(0) if self.trajectory_return == "sum" else reward.mean(0) for reward in flat])

    def _group_advantages(self, rewards: Tensor) -> Tensor:
        """(..., 1) of all rewards (..., M) in one group."""
        flat = rewards.reshape(-1, rewards.shape[-1] if rewards.dim() > 1 else 1)
        weights = None if self.weights is None else self.weights.to(flat.device)
        return group_advantages(flat, len(flat), weights=weights, **asdict(self.rules)).reshape(_one_objective(rewards))


class PODSSelector(MCAdvantageSelector):  # type: ignore[misc]
    """A `candidate_selector` of `MCAdvantage` or `MultiObjectiveAdvantage`: the subset whose returns vary the most.

    Of n = `candidate_group_size` trajectories of a prompt it takes `grpo_size`, as `morlfast.select_rollouts` does.
    Only these are written, and advantages are of them alone, as in PODS.

    Args:
        method: ``"max_variance"``, or another of `select_rollouts` to compare with. ``"random"`` and ``"stratified"``
            draw from torch's global generator.
        in_keys: the first is the candidates' scalar to look at, `["return"]` by default (with several objectives the
            weighted return).
        any_version: also with a version of torchrl other than those that this was compared with, and their patch
            releases.

    `MCAdvantage` asks as soon as there are `candidate_selection_min_size` candidates, by default `grpo_size`, of which
    nothing can be selected: ValueError. Set it to `candidate_group_size`, so that all n are waited for.

    A return that is NaN is not selected. None, whereupon torchrl waits for more candidates or drops the group: where
    fewer than `grpo_size` are not NaN, or where `keep_return_bounds` exclude the mean of the selected.

    Source: PODS, arXiv 2504.13818.

    >>> from tensordict import TensorDict
    >>> candidates = TensorDict({"return": torch.tensor([0.4, 1.0, 0.0, 0.6])}, batch_size=[4])
    >>> PODSSelector().select(candidates, group_size=2)
    [1, 2]
    """

    def __init__(
        self, method: Method = "max_variance", *, in_keys: list[Any] | None = None, any_version: bool = False
    ) -> None:
        check_version("torchrl", CHECKED_VERSIONS, any_version, later_patches=True, extra="torchrl")
        super().__init__(in_keys=in_keys)
        if method not in get_args(Method):
            raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
        self.method = method

    def select(
        self, candidates: TensorDictBase, *, group_size: int, keep_return_bounds: tuple[float, float] | None = None
    ) -> list[int] | None:
        """Candidates to train on, ascending; see `MCAdvantageSelector.select`."""
        returns = self._values(candidates)
        if len(returns) <= group_size:
            raise ValueError(
                f"candidate_selection_min_size: expected more candidates than grpo_size={group_size} to select from, "
                f"got {len(returns)}; set it to a candidate_group_size above grpo_size"
            )
        chosen = select_rollouts(returns, group_size, group_size=len(returns), method=self.method).indices.tolist()
        if len(chosen) < group_size or not self._accepted(returns, chosen, keep_return_bounds):
            return None
        return chosen


def _one_objective(rewards: Tensor) -> list[int]:
    """The shape of (..., M) with one objective; scalar rewards have no such dimension."""
    return [*rewards.shape[:-1], 1] if rewards.dim() > 1 else list(rewards.shape)
