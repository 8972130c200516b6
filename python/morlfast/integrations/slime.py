"""Functions for slime's hooks: groups are prompts, whatever their sizes, and rewards may be several.

    --custom-reward-post-process-path morlfast.integrations.slime.custom_reward_post_process
    --custom-advantage-function-path morlfast.integrations.slime.custom_advantage_function

Read against commit 624b824a (v0.3.1). What slime has no option for is said in the file of ``--custom-config-path``:

    morlfast_rewards: {accuracy: 1.0, format: 0.5}    # entries of Sample.reward and their weights
    morlfast_advantages: {preset: trl, method: gdpo}  # keywords of morlfast.group_advantages
    morlfast_gae: {returns_lam: 1.0}                  # keywords of morlfast.gae
    morlfast_any_version: true                        # also with another version of slime than that
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from morlfast.advantages import group_advantages
from morlfast.integrations import check_version
from morlfast.returns import discounted_returns, gae

CHECKED_VERSIONS = ("0.3.1",)

_DIVIDED = ("grpo", "gspo", "cispo")


def custom_reward_post_process(args: Any, samples: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """Raw rewards and group-relative ones of all samples of a step, in their order.

    Groups are the samples with one `group_index`, of any sizes, where slime takes the whole batch for one group as soon
    as sizes differ; without any index, `args.n_samples_per_prompt` rollouts in a row. Samples with one `rollout_id`
    are one rollout that counts once, and get its advantage; their rewards must be the same.

    Estimators ``grpo``, ``gspo`` and ``cispo`` take preset ``"slime"`` of `morlfast.group_advantages`, method
    ``"grpo"``, without the division if `args.grpo_std_normalization` is off; ``reinforce_plus_plus_baseline`` never
    divides; others, and all if `args.rewards_normalization` is off, get the raw rewards. `args.morlfast_advantages`
    names other rules.

    With `args.morlfast_rewards`, `Sample.reward` is a dict, its entries of those names are the objectives, and the raw
    reward is their weighted sum. Without, it is `Sample.reward`, or its entry `args.reward_key`. A reward of None is
    NaN. Token counts, for the rules that need them, are those of the loss masks.

    Raises ValueError if only some samples have a `group_index`, or samples of one rollout have different rewards, and
    ValueError or TypeError for a `Sample.reward` without the entries that are asked for; RuntimeError for a version of
    slime that this was not checked against, where it says its version, unless `args.morlfast_any_version`.

    >>> from types import SimpleNamespace
    >>> args = SimpleNamespace(advantage_estimator="grpo", grpo_std_normalization=False)
    >>> rows = [(0, 7, 1.0), (0, 8, 0.0), (1, 9, 5.0), (0, 7, 1.0)]  # rollout 7 made two samples
    >>> samples = [SimpleNamespace(group_index=g, rollout_id=i, reward=r) for g, i, r in rows]
    >>> custom_reward_post_process(args, samples)
    ([1.0, 0.0, 5.0, 1.0], [0.5, -0.5, 0.0, 0.5])
    """
    _check_slime(args)
    weights = getattr(args, "morlfast_rewards", None)
    if weights:
        rewards = [
            [_number(_entry(sample, row, name, "morlfast_rewards"), row) for name in weights]
            for row, sample in enumerate(samples)
        ]
        raw = [sum(w * r for w, r in zip(weights.values(), row, strict=True)) for row in rewards]
    else:
        key = getattr(args, "reward_key", None)
        raw = [_entry(sample, row, key, "reward_key") if key else sample.reward for row, sample in enumerate(samples)]
        rewards = [[_number(reward, row)] for row, reward in enumerate(raw)]

    estimator = getattr(args, "advantage_estimator", "grpo")
    grouped = estimator in (*_DIVIDED, "reinforce_plus_plus_baseline")
    if not grouped or not getattr(args, "rewards_normalization", True):
        return raw, raw
    if not samples:
        return [], []

    first, rollouts = _rollouts(samples)
    _check_siblings(rewards, first, rollouts)
    divided = estimator in _DIVIDED and getattr(args, "grpo_std_normalization", True)
    rules = getattr(args, "morlfast_advantages", None)
    rules = {"preset": "slime", "method": "grpo" if divided else "dr_grpo"} if rules is None else dict(rules)
    tokens = [0] * len(first)
    for sample, rollout in zip(samples, rollouts, strict=True):
        tokens[rollout] += _tokens(sample)
    advantages = group_advantages(
        torch.tensor([rewards[row] for row in first], dtype=torch.float64).reshape(len(first), -1),
        weights=list(weights.values()) if weights else None,
        lengths=torch.tensor(tokens, dtype=torch.int64),
        **_groups(args, [samples[row].group_index for row in first]),
        **rules,
    ).tolist()
    return raw, [advantages[rollout] for rollout in rollouts]


def custom_advantage_function(args: Any, rollout_data: dict[str, Any]) -> None:
    """Sets `rollout_data["advantages"]` and `["returns"]`, lists of (T_i,), from rewards, KL, values and loss masks.

    Estimators are those that `args.advantage_estimator` names, in float64 inside: ``grpo``, ``gspo``, ``cispo`` give
    each token its sample's reward; ``reinforce_plus_plus_baseline`` less ``kl_coef`` times the KL;
    ``reinforce_plus_plus`` the discounted sum of what is to come; ``ppo`` is `morlfast.gae` with `args.gamma` and
    `args.lambd`, and what `args.morlfast_gae` adds. slime adds its distillation term and whitens afterwards.

    Raises ValueError for other estimators, for a response without any token in its loss mask under
    ``reinforce_plus_plus``, for an empty response under ``ppo``, and for ``ppo`` and ``reinforce_plus_plus`` where
    context parallelism has cut responses into parts; RuntimeError for versions as `custom_reward_post_process`.

    >>> from types import SimpleNamespace
    >>> rollout_data = {"kl": [torch.zeros(2), torch.zeros(1)], "rewards": [0.5, -0.5]}
    >>> custom_advantage_function(SimpleNamespace(advantage_estimator="grpo"), rollout_data)
    >>> rollout_data["advantages"]
    [tensor([0.5000, 0.5000]), tensor([-0.5000])]
    """
    _check_slime(args)
    estimator = args.advantage_estimator
    kl: list[Tensor] = rollout_data["kl"]
    if not kl:
        advantages, returns = [], []
    elif estimator in (*_DIVIDED, "reinforce_plus_plus_baseline"):
        penalty = args.kl_coef if estimator == "reinforce_plus_plus_baseline" else 0.0
        pairs = zip(kl, _rewards(rollout_data, kl), strict=True)
        returns = [(reward - penalty * k.double()).to(k.dtype) for k, reward in pairs]
        advantages = list(returns)
    elif estimator == "reinforce_plus_plus":
        returns = _discounted(args, rollout_data, kl)
        advantages = list(returns)
    elif estimator == "ppo":
        advantages, returns = _gae(args, rollout_data, kl)
    else:
        raise ValueError(
            "advantage_estimator: expected grpo, gspo, cispo, ppo, reinforce_plus_plus or "
            f"reinforce_plus_plus_baseline, got {estimator!r}"
        )
    rollout_data["advantages"] = advantages
    rollout_data["returns"] = returns


def _check_slime(args: Any) -> None:
    check_version("slime", CHECKED_VERSIONS, bool(getattr(args, "morlfast_any_version", False)), required=False)


def _entry(sample: Any, row: int, name: str, option: str) -> Any:
    if not isinstance(sample.reward, Mapping) or name not in sample.reward:
        raise ValueError(
            f"{option}: expected an entry {name!r} in the reward of each sample, got {sample.reward!r:.80} for sample "
            f"{row}"
        )
    return sample.reward[name]


def _number(reward: Any, row: int) -> float:
    if isinstance(reward, Mapping):
        raise TypeError(
            "samples: expected a number as reward, or a dict with --reward-key or morlfast_rewards, got "
            f"{reward!r:.80} for sample {row}"
        )
    return math.nan if reward is None else float(reward)


def _tokens(sample: Any) -> int:
    if getattr(sample, "remove_sample", False):
        return 0
    mask = getattr(sample, "loss_mask", None)
    return sum(mask) if mask is not None else int(getattr(sample, "response_length", 0))


def _rollouts(samples: Sequence[Any]) -> tuple[list[int], list[int]]:
    """The first sample of each rollout, and the rollout of each sample."""
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    rollouts: list[int] = []
    for row, sample in enumerate(samples):
        name = getattr(sample, "rollout_id", None)
        key = ("sample", row) if name is None else (sample.group_index, name)
        if key not in numbers:
            numbers[key] = len(first)
            first.append(row)
        rollouts.append(numbers[key])
    return first, rollouts


def _check_siblings(rewards: list[list[float]], first: list[int], rollouts: list[int]) -> None:
    for row, rollout in enumerate(rollouts):
        pairs = zip(rewards[row], rewards[first[rollout]], strict=True)
        if any(own != other and not (math.isnan(own) and math.isnan(other)) for own, other in pairs):
            raise ValueError(
                "samples: expected one reward for all samples of a rollout, got "
                f"{rewards[first[rollout]]} for sample {first[rollout]} and {rewards[row]} for sample {row}"
            )


def _groups(args: Any, indices: list[Any]) -> dict[str, Any]:
    missing = sum(index is None for index in indices)
    if missing == 0:
        return {"group_ids": indices}
    if missing < len(indices):
        raise ValueError(f"samples: expected a group_index for each, got {missing} rollouts of {len(indices)} without")
    return {"group_size": args.n_samples_per_prompt}


def _rewards(rollout_data: dict[str, Any], kl: list[Tensor]) -> Tensor:
    return torch.as_tensor(rollout_data["rewards"], dtype=torch.float64).to(kl[0].device)


def _check_whole(rollout_data: dict[str, Any], kl: list[Tensor], estimator: str) -> list[int]:
    lengths = [len(k) for k in kl]
    if lengths != [int(n) for n in rollout_data["response_lengths"]]:
        raise ValueError(
            f"rollout_data: expected whole responses for {estimator}, got parts of {rollout_data['response_lengths']}: "
            "context parallelism is not supported"
        )
    return lengths


def _discounted(args: Any, rollout_data: dict[str, Any], kl: list[Tensor]) -> list[Tensor]:
    lengths = _check_whole(rollout_data, kl, "reinforce_plus_plus")
    rewards = []
    for row, (k, mask, reward) in enumerate(
        zip(kl, rollout_data["loss_masks"], _rewards(rollout_data, kl), strict=True)
    ):
        tokens = mask.nonzero()
        if len(tokens) == 0:
            raise ValueError(f"loss_masks: expected a token to train on in each response, got none in response {row}")
        rewards.append(-args.kl_coef * k.double() * mask)
        rewards[-1][tokens[-1, 0]] += reward
    returns = discounted_returns(pad_sequence(rewards, batch_first=True), gamma=args.gamma)
    return [row[:length].to(k.dtype) for row, length, k in zip(returns, lengths, kl, strict=True)]


def _gae(args: Any, rollout_data: dict[str, Any], kl: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    lengths = _check_whole(rollout_data, kl, "ppo")
    if 0 in lengths:
        raise ValueError(f"kl: expected a token at least in each response, got none in response {lengths.index(0)}")
    rewards = [-args.kl_coef * k.double() for k in kl]
    for row, reward in zip(rewards, _rewards(rollout_data, kl), strict=True):
        row[-1] += reward
    values: list[Tensor] = rollout_data["values"]
    padded = [pad_sequence(rows, batch_first=True) for rows in (rewards, [row.double() for row in values])]
    ends = torch.tensor(lengths, device=kl[0].device)
    options = {
        "gamma": args.gamma,
        "lam": args.lambd,
        "mask": torch.arange(max(lengths), device=kl[0].device) < ends[:, None],
        **(getattr(args, "morlfast_gae", None) or {}),
    }
    both = [
        [row[:length].to(value.dtype) for row, length, value in zip(rows, lengths, values, strict=True)]
        for rows in gae(*padded, **options)
    ]
    return both[0], both[1]
