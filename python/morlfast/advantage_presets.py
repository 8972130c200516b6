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
# Asserts more than one rollout a prompt.
_OPENRLHF = AdvantageRules(eps=1e-9, singleton="raise", nan="propagate")
# Both clamp a population variance at 1e-8, which is a deviation of at least 1e-4.
_OPENRLHF_WHITENED = replace(_OPENRLHF, whiten="tokens", whiten_eps=1e-4, whiten_eps_to="floor", whiten_ddof=0)
_NEMO = AdvantageRules(eps=1e-6, zero_variance="unscaled", nan="propagate")
_NEMO_WHITENED = replace(_NEMO, whiten="tokens", whiten_eps=1e-4, whiten_eps_to="floor", whiten_ddof=0)
_NEMO_LEFT_OUT = replace(_NEMO, baseline="leave_one_out", scale="leave_one_out")
_SLIME = AdvantageRules(eps=1e-6, nan="propagate")
_SLIME_WHITENED = replace(_SLIME, whiten="tokens", whiten_eps=1e-8, whiten_eps_to="variance")
_ROLL = AdvantageRules(eps=1e-6, nan="propagate")
_ROLL_WHITENED = replace(_ROLL, whiten="tokens", whiten_eps=1e-8, whiten_eps_to="variance")
_AREAL = AdvantageRules(eps=1e-5, nan="propagate")
# A weighted nansum comes before everything, so that a rollout without any score is one of 0.
_MS_SWIFT = AdvantageRules(nan="zero")
_TUNIX = AdvantageRules(eps=1e-6, nan="zero")

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
                "reinforce_pp": replace(_VERL_WHITENED, baseline="none", scale="none"),
                "reinforce_pp_baseline": replace(_VERL_WHITENED, scale="none"),
                "opo": replace(_VERL, baseline="length_weighted", scale="none"),
                "gpg": replace(_VERL, scale="none"),
                "pass_at_k": replace(_VERL, baseline="runner_up", singleton="raise"),
            },
        ),
        "openrlhf": Preset(
            version="0.11.2",
            methods={
                "grpo": _OPENRLHF,
                "dr_grpo": replace(_OPENRLHF, scale="none"),
                "rloo": replace(_OPENRLHF, baseline="leave_one_out", scale="none"),
                "reinforce_pp": replace(_OPENRLHF_WHITENED, baseline="none", scale="none"),
                "reinforce_pp_baseline": replace(_OPENRLHF_WHITENED, scale="none"),
                "flash_reinforce": replace(_OPENRLHF, baseline="batch", scale="none"),
            },
        ),
        "nemo": Preset(
            version="git 7ea279ab",
            methods={
                "grpo": _NEMO_LEFT_OUT,
                # use_leave_one_out_baseline=false; rloo and dr_grpo: normalize_rewards=false.
                "grpo_group": _NEMO,
                "rloo": replace(_NEMO_LEFT_OUT, scale="none"),
                "dr_grpo": replace(_NEMO, scale="none"),
                "gdpo": replace(_NEMO_LEFT_OUT, aggregate="normalize_then_sum", whiten="rollouts", whiten_eps=0.0),
                "reinforce_pp": replace(_NEMO_WHITENED, baseline="none", scale="none"),
                "reinforce_pp_baseline": replace(_NEMO_WHITENED, scale="none"),
            },
        ),
        "slime": Preset(
            version="git 624b824a",
            methods={
                "grpo": _SLIME,
                "dr_grpo": replace(_SLIME, scale="none"),
                "reinforce_pp": replace(_SLIME_WHITENED, baseline="none", scale="none"),
                "reinforce_pp_baseline": replace(_SLIME_WHITENED, scale="none"),
            },
        ),
        "roll": Preset(
            version="git 8eb27cc2",
            methods={
                "grpo": replace(_ROLL, singleton="nan"),
                "dr_grpo": replace(_ROLL, scale="none"),
                "reinforce_pp": replace(_ROLL_WHITENED, baseline="none", scale="none"),
                "reinforce_pp_baseline": replace(_ROLL_WHITENED, scale="none"),
            },
        ),
        "roll-agentic": Preset(
            version="git 8eb27cc2",
            methods={
                "grpo": replace(_ROLL, least_std=1e-6),
                "dr_grpo": replace(_ROLL, scale="none"),
            },
        ),
        "areal": Preset(
            version="1.0.4",
            methods={
                "grpo": _AREAL,
                "dr_grpo": replace(_AREAL, scale="none"),
                # With mean_leave1out the deviation, where there is one, is about the left-out means: n / (n - 1) times
                # that of the group. No rule says so.
                "rloo": replace(_AREAL, baseline="leave_one_out", scale="none", singleton="reward"),
                # reward_norm of the group, then adv_norm of the batch.
                "grpo_adv_norm": replace(_AREAL, whiten="tokens", whiten_eps=1e-5),
            },
        ),
        "torchrl": Preset(
            version="0.14.1",
            methods={"grpo": AdvantageRules(eps=1e-6, eps_to="floor", singleton="nan", nan="propagate")},
        ),
        "ms-swift": Preset(
            version="4.6.0",
            methods={
                "grpo": _MS_SWIFT,
                "dr_grpo": replace(_MS_SWIFT, scale="none"),
                "rloo": replace(_MS_SWIFT, baseline="leave_one_out", scale="none"),
                # The deviation is that of the centred rewards of the batch, whose mean is 0.
                "reinforce_pp_baseline": replace(_MS_SWIFT, scale="none", whiten="rollouts"),
                "gdpo": replace(
                    _MS_SWIFT,
                    aggregate="normalize_then_sum",
                    eps=1e-8,
                    nan="skip_reward",
                    whiten="rollouts",
                    whiten_eps=1e-8,
                ),
            },
        ),
        "tunix": Preset(
            version="0.1.7",
            methods={
                "grpo": replace(_TUNIX, singleton="nan"),
                "dr_grpo": replace(_TUNIX, scale="none"),
                "rloo": replace(_TUNIX, baseline="leave_one_out", scale="none"),
            },
        ),
    }
)


def rules_of(preset: str, method: str | None = None) -> AdvantageRules:
    """The rules of a preset's method, of its first one by default; ValueError for names that are not there.

    >>> rules_of("verl", "grpo").eps
    1e-06
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    methods = PRESETS[preset].methods
    if method is None:
        return next(iter(methods.values()))
    if method not in methods:
        raise ValueError(f"method: expected one of {', '.join(methods)} with preset {preset!r}, got {method!r}")
    return methods[method]
