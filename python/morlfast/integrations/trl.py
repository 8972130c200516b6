"""Advantages of TRL's `GRPOTrainer` by other rules, and which of its rollouts and tokens it trains on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from morlfast.advantage_presets import AdvantageRules, rules_of
from morlfast.advantages import group_advantages
from morlfast.downsampling import D3S, PODS
from morlfast.integrations import check_version, needs_extra

try:
    from trl import GRPOTrainer
except ModuleNotFoundError as error:
    raise needs_extra(error, "trl", "trl") from error
from morlfast.integrations._trl_downsampling import DownSampling, counted_tokens

CHECKED_VERSIONS = ("1.16.0",)


class MultiObjectiveMixin(DownSampling):
    """Advantages of a `GRPOTrainer` from `morlfast.group_advantages`, with all of its rules.

    ::

        class Trainer(MultiObjectiveMixin, GRPOTrainer): ...

        trainer = Trainer(model, reward_funcs=[correct, brief], args=args, multi_objective="gdpo", ...)

    Everything else is the trainer's own: generation, rewards and their gathering over processes, `reward_weights`,
    the loss. With no option given the advantages are those of the original too, but for rounding: equal rewards of a
    group have exactly no deviation.

    Args:
        multi_objective: a method of the preset ("grpo", "dr_grpo", "rloo", "gdpo" of TRL's). None: what the trainer's
            `multi_objective_aggregation` and `scale_rewards` say, or the first method of another preset.
        advantage_preset: a trainer whose formulas are meant, one of `morlfast.PRESETS`; TRL's by default.
        advantage_rules: rules that replace the preset's, such as `{"eps": 1e-6, "ddof": 0}`.
        down_sampling: a `morlfast.PODS` or `morlfast.D3S`: which of the generated rollouts, and which of their tokens,
            are trained on.
        any_version: also with a version of TRL other than those that this was compared with, and their patch releases.

    The four options are attributes as well: a subclass may set them, and they are read anew for each generation.
    `scale_rewards` and `multi_objective_aggregation` of the trainer's arguments are followed where the method leaves
    them open (`scale_rewards="batch"` with "grpo"); where they contradict it, ValueError. Their default values
    contradict nothing.

    Rules that count tokens (`baseline="length_weighted"`, `whiten="tokens"`) count those that the loss counts, in the
    rollouts of all processes. Statistics of the batch are of all that was generated at once.

    Metrics: the trainer's own are of rewards, and stay; so `frac_reward_zero_std` follows
    `multi_objective_aggregation` alone. The advantages of logged completions are these, and `frac_advantage_zero` is
    the part of the rollouts whose advantage is 0 or that down-sampling drops.

    As in TRL a reward of None or NaN is not scored, whatever the preset, unless `advantage_rules` have a `nan`; and an
    advantage that is NaN by some other rule becomes 0. A reward that is infinite raises ValueError (TRL goes on
    with advantages of 0 and 3e38).

    Down-sampling, in training alone: rollouts are selected among those of all processes, as one process would, and move
    to another process where one has more than its share. All micro-batches have equally many rows: PODS's `k` has to
    allow that, D3S's budget is rounded to what does, and where fewer are scored others fill up, with advantage 0; last
    those without a token that the loss counts (`mask_truncated_completions`), which are not selected otherwise. PODS
    goes by the weighted sum of rewards; with `renormalize` advantages are those among the selected, by the rules above,
    and those without a token are not scored. D3S selects tokens in place of `top_entropy_quantile`: with
    `entropy="current"` among those of a micro-batch on all processes, as that does; with `"old"` among those of all
    that was generated, at the cost of one more forward pass. `loss_denominator="kept"` is refused for losses that
    divide by no number of tokens ("dr_grpo", "luspo"). Progress is `global_step / max_steps` when the rollouts were
    generated, so checkpoints need nothing of it, and `D3S.step` is not to be called. Metrics are
    `frac_rollouts_trained` and `frac_tokens_trained`, of those generated. Logged completions are all that were
    generated, with a column `trained_on`.

    Rewards changed by an override of `_calculate_rewards` count if that class comes after this one:
    `class Trainer(MultiObjectiveMixin, TrainerWithChangedRewards)`.
    """

    multi_objective: str | None = None
    advantage_preset: str = "trl"
    advantage_rules: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        *args: Any,
        multi_objective: str | None = None,
        advantage_preset: str | None = None,
        advantage_rules: Mapping[str, Any] | None = None,
        down_sampling: D3S | PODS | None = None,
        any_version: bool = False,
        **kwargs: Any,
    ) -> None:
        check_version("trl", CHECKED_VERSIONS, any_version, later_patches=True, extra="trl")
        if not isinstance(self, GRPOTrainer):
            raise TypeError(f"{type(self).__name__}: expected a GRPOTrainer behind MultiObjectiveMixin")
        if multi_objective is not None:
            self.multi_objective = multi_objective
        if advantage_preset is not None:
            self.advantage_preset = advantage_preset
        if advantage_rules is not None:
            self.advantage_rules = advantage_rules
        if down_sampling is not None:
            self.down_sampling = down_sampling
        super().__init__(*args, **kwargs)
        # What is wrong with the options or the weights shall not wait for the first generation.
        self._check_down_sampling()
        rewards = torch.zeros(2, len(self.reward_funcs))
        self._group_advantages(rewards, group_size=2, lengths=torch.ones(2, dtype=torch.int64))

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)  # (N, M), of all processes
        self._gathered_rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        rewards = self._gathered_rewards
        self._refuse_infinite(rewards)
        lengths = None
        samples = mode == "train" and self.down_sampling is not None
        if samples or _counts_tokens(self._advantage_rules()):
            lengths = self.accelerator.gather(counted_tokens(output).sum(1))
        size = self.num_generations if mode == "train" else self.num_generations_eval
        advantages = self._group_advantages(rewards, group_size=size, lengths=lengths)
        rows = self._select_rollouts(rewards, advantages, lengths) if mode == "train" else None
        dropped = torch.full_like(advantages, rows is not None, dtype=torch.bool)
        if rows is not None:
            dropped[rows] = False
            if lengths is not None and isinstance(self.down_sampling, PODS) and self.down_sampling.renormalize:
                k = self.down_sampling.k
                advantages[rows] = self._group_advantages(rewards[rows], k, lengths[rows], skip_empty=True)

        rollouts = len(output["advantages"])
        first = self.accelerator.process_index * rollouts
        output["advantages"] = advantages[first : first + rollouts]

        is_zero = advantages.isclose(advantages.new_zeros(()))  # whitening subtracts a mean that may be 1e-17
        self._metrics[mode]["frac_advantage_zero"].append((is_zero | dropped).float().mean().item())
        logged = self._logs["advantages"]  # a deque of bounded length, to which the trainer has added its own
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages.tolist())
        extra = self._logs["extra"]
        if self.down_sampling is not None and "trained_on" not in extra:
            extra["trained_on"].extend([None] * (len(self._logs["prompt"]) - len(advantages)))  # those logged before
        if "trained_on" in extra:
            extra["trained_on"].extend((~dropped & (mode == "train")).tolist())
        return output if rows is None else self._down_sampled(output, rows)

    def _group_advantages(
        self, rewards: Tensor, group_size: int, lengths: Tensor | None, skip_empty: bool = False
    ) -> Tensor:
        """(N,) of rewards (N, M); with `skip_empty` rollouts of length 0 are not scored."""
        rules = self._advantage_rules()
        if skip_empty and lengths is not None and bool((lengths == 0).any()):
            rewards = rewards.masked_fill((lengths == 0)[:, None], math.nan)
            # Truncation may leave one of a group, which is no mistake in the arguments.
            rules = replace(rules, nan="skip", singleton="zero" if rules.singleton == "raise" else rules.singleton)
        weights = self.reward_weights.to(rewards.device)
        lengths = lengths if _counts_tokens(rules) else None
        advantages = group_advantages(rewards, group_size, weights=weights, lengths=lengths, **asdict(rules))
        return advantages.nan_to_num_(nan=0.0)

    def _advantage_rules(self) -> AdvantageRules:
        """What the options and the trainer's arguments say together."""
        method, preset, own = self.multi_objective, self.advantage_preset, dict(self.advantage_rules)
        aggregation, scale = self.multi_objective_aggregation, self.scale_rewards
        names = [field.name for field in fields(AdvantageRules)]
        for name in own:
            if name not in names:
                raise ValueError(f"advantage_rules: expected rules among {', '.join(names)}, got {name!r}")
        if method is None and preset == "trl":
            method = "gdpo" if aggregation == "normalize_then_sum" else "grpo"
            if method == "gdpo":
                scale = "group"  # GRPOTrainer does not look at scale_rewards here
        rules = replace(rules_of(preset, method), nan="skip")
        if rules.aggregate == "sum_then_normalize" and rules.scale == "group":
            rules = replace(rules, scale=scale)
        rules = replace(rules, **own)
        if aggregation == "normalize_then_sum" != rules.aggregate:
            raise ValueError(
                f'multi_objective_aggregation="normalize_then_sum" contradicts {self._meaning(method)}, which sums '
                'first; leave it at its default, or take a method such as "gdpo"'
            )
        if scale not in ("group", rules.scale):
            raise ValueError(
                f"scale_rewards={scale!r} contradicts {self._meaning(method)}, whose scale is {rules.scale!r}; leave "
                f'it at its default "group", or pass advantage_rules={{"scale": {scale!r}}} without another scale'
            )
        return rules

    def _meaning(self, method: str | None) -> str:
        rules = f" with {dict(self.advantage_rules)}" if self.advantage_rules else ""
        return f"{method or 'the default'} of preset {self.advantage_preset!r}{rules}"

    def _refuse_infinite(self, rewards: Tensor) -> None:
        infinite = rewards.isinf().any(0).tolist()
        if any(infinite):
            names = [name for name, is_infinite in zip(self.reward_func_names, infinite, strict=True) if is_infinite]
            raise ValueError(f"reward_funcs: expected finite rewards or None, got infinite ones from {names[0]}")


def _counts_tokens(rules: AdvantageRules) -> bool:
    return rules.baseline == "length_weighted" or rules.whiten == "tokens"
