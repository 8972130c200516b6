"""What each trainer's group-relative advantages mean, as rules for one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "trl": Preset(
            version="1.16.0",
            methods={
                "grpo": AdvantageRules(),
                "dr_grpo": AdvantageRules(scale="none"),
                "rloo": AdvantageRules(baseline="leave_one_out", scale="none"),
                "gdpo": AdvantageRules(aggregate="normalize_then_sum", whiten="rollouts"),
            },
        ),
    }
)
