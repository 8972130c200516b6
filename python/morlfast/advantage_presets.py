"""What each trainer's group-relative advantages mean, as rules for one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

Aggregate = Literal["sum_then_normalize", "normalize_then_sum"]
Baseline = Literal["none", "group", "leave_one_out", "batch", "length_weighted", "runner_up"]
Scale = Literal["none", "group", "batch", "leave_one_out"]
EpsTo = Literal["std", "variance", "floor"]
Singleton = Literal["zero", "reward", "nan", "raise"]
ZeroVariance = Literal["zero", "unscaled", "nan"]
NanRewards = Literal["skip", "propagate", "zero", "skip_reward", "raise"]
Whiten = Literal["none", "rollouts", "tokens"]


@dataclass(frozen=True, slots=True)
class AdvantageRules:
    """How rewards become advantages; `morlfast.group_advantages` says what each rule means."""

    aggregate: Aggregate = "sum_then_normalize"
    baseline: Baseline = "group"
    scale: Scale = "group"
    eps: float = 1e-4
    eps_to: EpsTo = "std"
    ddof: int = 1
    singleton: Singleton = "zero"
    zero_variance: ZeroVariance = "zero"
    least_std: float = 0.0
    nan: NanRewards = "skip"
    whiten: Whiten = "none"
    whiten_eps: float = 1e-4
    whiten_eps_to: EpsTo = "std"
    whiten_ddof: int = 1


@dataclass(frozen=True, slots=True)
class Preset:
    """The estimators of one trainer, the first of them its default, and the version they were checked against."""

    version: str
    methods: Mapping[str, AdvantageRules]


# A base for each trainer; its methods say what they change.
_TRL = AdvantageRules()
_VERL = AdvantageRules(eps=1e-6, singleton="reward", nan="propagate")
# masked_whiten weighs a rollout by its tokens.
_VERL_WHITENED = replace(_VERL, whiten="tokens", whiten_eps=1e-8, whiten_eps_to="variance")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "trl": Preset(
            version="1.16.0",
            methods={
                "grpo": _TRL,
                "dr_grpo": replace(_TRL, scale="none"),
                "rloo": replace(_TRL, baseline="leave_one_out", scale="none"),
                # scale_rewards is not looked at here: each objective is always divided by its group's deviation.
                "gdpo": replace(_TRL, aggregate="normalize_then_sum", whiten="rollouts"),
            },
        ),
        "trl-async": Preset(version="1.16.0", methods={"grpo": replace(_TRL, eps=1e-8, ddof=0)}),
        "verl": Preset(
            version="0.9.1",
            methods={
                "grpo": _VERL,
                "grpo_vectorized": _VERL,
                "dr_grpo": replace(_VERL, scale="none"),
                "rloo": replace(_VERL, baseline="leave_one_out", scale="none"),
                # Unlike verl's own loop, a group of one is 0.
                "rloo_vectorized": replace(_VERL, baseline="leave_one_out", scale="none", singleton="zero"),
                "gdpo": replace(_VERL_WHITENED, aggregate="normalize_then_sum"),
                "reinforce_pp_baseline": replace(_VERL_WHITENED, scale="none"),
                "opo": replace(_VERL, baseline="length_weighted", scale="none"),
                "gpg": replace(_VERL, scale="none"),
                "pass_at_k": replace(_VERL, baseline="runner_up", singleton="raise"),
            },
        ),
        "torchrl": Preset(
            version="0.14.1",
            methods={"grpo": AdvantageRules(eps=1e-6, eps_to="floor", singleton="nan", nan="propagate")},
        ),
    }
)
