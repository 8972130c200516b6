"""The preset "openrlhf" and the hook against OpenRLHF's own RemoteExperienceMaker.compute_advantages_and_returns.

Importing its module takes ray, deepspeed, vllm and transformers, so the class is compiled out of the installed file.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import types
from importlib.metadata import version
from types import SimpleNamespace

import morlfast
import pytest
import torch
from installed import definitions
from morlfast.advantage_presets import PRESETS
from morlfast.integrations import openrlhf as ours

ESTIMATORS = {
    "grpo": "group_norm",
    "dr_grpo": "dr_grpo",
    "rloo": "rloo",
    "reinforce_pp": "reinforce",
    "reinforce_pp_baseline": "reinforce_baseline",
    "flash_reinforce": "flash_reinforce",
}
T = 12


@functools.cache
def originals():
    quiet = SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)
    functions = definitions("openrlhf.models.utils", "compute_reward", torch=torch)
    penalties = definitions("openrlhf.trainer.ppo_utils.length_penalty", "apply_length_penalties", logger=quiet)
    makers = definitions(
        "openrlhf.trainer.ppo_utils.experience_maker",
        "RemoteExperienceMaker",
        torch=torch,
        itertools=itertools,
        logger=quiet,
        compute_reward=functions.compute_reward,
        apply_length_penalties=penalties.apply_length_penalties,
    )
    return SimpleNamespace(**vars(makers), **vars(penalties))


def maker(estimator: str, group_size: int, *, clip_range=None, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0):
    reward = SimpleNamespace(
        clip_range=clip_range, overlong_buffer_len=None, overlong_penalty_factor=None, stop_properly_penalty_coef=None
    )
    advantage = SimpleNamespace(estimator=estimator, gamma=gamma, lambd=lambd, no_std_norm=no_std_norm)
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=group_size),
        reward=reward,
        algo=SimpleNamespace(advantage=advantage),
    )
    RemoteExperienceMaker = originals().RemoteExperienceMaker
    made = RemoteExperienceMaker.__new__(RemoteExperienceMaker)
    made.strategy, made.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=kl_coef)
    made.advantage_estimator = estimator
    return made


def masks(n: int) -> torch.Tensor:
    lengths = torch.randint(1, T + 1, (n,), generator=torch.Generator().manual_seed(3))
    return torch.arange(T) < lengths[:, None]


def openrlhf(rewards: torch.Tensor, mask: torch.Tensor, method: str, group_size: int) -> torch.Tensor:
    """Its advantages (N, T) where tokens count. Experiences hold 5 rollouts in any order, as its batching does."""
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(7))
    experiences = [
        SimpleNamespace(
            index=rows.tolist(),
            rewards=rewards[rows],
            action_mask=mask[rows],
            kl=torch.zeros(len(rows), T, dtype=rewards.dtype),
            info={},
        )
        for rows in order.split(5)
    ]
    done = maker(ESTIMATORS[method], group_size).compute_advantages_and_returns(experiences)
    result = torch.empty(mask.shape, dtype=rewards.dtype)
    result[order] = torch.cat([experience.advantages for experience in done]).to(rewards.dtype)
    return torch.where(mask, result, 0)


def both(rewards: torch.Tensor, method: str, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = masks(len(rewards))
    ours = morlfast.group_advantages(rewards, group_size=group_size, mask=mask, preset="openrlhf", method=method)
    return ours, openrlhf(rewards, mask, method, group_size)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_version_that_the_preset_names():
    assert version("openrlhf") == PRESETS["openrlhf"].version
    assert set(ESTIMATORS) == set(PRESETS["openrlhf"].methods)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group_size", [2, 5, 16])
@pytest.mark.parametrize("method", ESTIMATORS)
def test_same_advantages(method, group_size, dtype):
    ours, theirs = both(normal(80).to(dtype), method, group_size)
    # Whitening is in float32 always.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_nan_poisons_the_same_rollouts(method):
    rewards = normal(40)
    rewards[11] = torch.nan
    ours, theirs = both(rewards, method, 8)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_groups_of_one_are_refused(method):
    """As by its command line, which asserts more than one rollout a prompt."""
    with pytest.raises(ValueError, match="group"):
        both(normal(4), method, 1)


def test_constant_groups_are_zero_where_float32_gives_noise():
    values = torch.arange(1, 20) / 20
    worst = 0.0
    for group_size in range(2, 33):
        ours, theirs = both(values.repeat_interleave(group_size), "grpo", group_size)
        assert torch.equal(ours, torch.zeros_like(ours))
        worst = max(worst, theirs.abs().max().item())
    assert worst > 0.9


# ---- the hook ----


@pytest.fixture
def length_penalty(monkeypatch):
    """The module of OpenRLHF that the hook imports, with its own function."""
    names = ["openrlhf", "openrlhf.trainer", "openrlhf.trainer.ppo_utils", "openrlhf.trainer.ppo_utils.length_penalty"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].apply_length_penalties = originals().apply_length_penalties


def experiences(dtype: torch.dtype) -> list[SimpleNamespace]:
    """Three micro-batches of 12 rollouts in any order, with tokens in between that do not count."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for rows, width in zip(torch.randperm(12, generator=draw).split([3, 5, 4]), (6, 9, 7), strict=True):
        n = len(rows)
        mask = torch.arange(width) < torch.randint(1, width + 1, (n, 1), generator=draw)
        mask &= (torch.rand(n, width, generator=draw) < 0.7) | (torch.arange(width) == 0)
        made.append(
            SimpleNamespace(
                index=rows.tolist(),
                rewards=(2 * torch.randn(n, generator=draw)).to(dtype),
                action_mask=mask,
                kl=0.3 * torch.randn(n, width, generator=draw),
                values=torch.randn(n, width, generator=draw),
                info={"reward": torch.zeros(n), "response_length": mask.sum(1).float()},
                advantages=None,
                returns=None,
            )
        )
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"no_std_norm": True}, {"clip_range": None}, {"gamma": 1.0}, {"kl_coef": 0.0}],
    ids=lambda options: ",".join(options) or "all",
)
@pytest.mark.parametrize("estimator", ["gae", *ESTIMATORS.values()])
def test_the_hook_has_the_numbers_of_the_original(estimator, options, dtype, length_penalty):
    made = maker(estimator, 4, **{"clip_range": (-1.0, 1.0), "gamma": 0.9, "lambd": 0.95, "kl_coef": 0.1, **options})
    theirs, mine = experiences(dtype), experiences(dtype)
    copied = copy.deepcopy(made)  # the original writes gamma into its arguments
    theirs = made.compute_advantages_and_returns(theirs)
    mine = ours.compute_advantages_and_returns(copied, mine)
    for own, other in zip(mine, theirs, strict=True):
        assert own.kl is other.kl is None
        for name in ("advantages", "returns"):
            ours_then_theirs = [getattr(experience, name) * own.action_mask for experience in (own, other)]
            torch.testing.assert_close(*ours_then_theirs, rtol=2e-5, atol=2e-5)
        assert set(own.info) == set(other.info)
        for name, values in other.info.items():
            tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5  # theirs stays in bfloat16
            torch.testing.assert_close(own.info[name].float(), values.float(), rtol=tolerance, atol=tolerance)
