"""The preset "openrlhf" against OpenRLHF's own RemoteExperienceMaker.compute_advantages_and_returns.

Importing its module takes ray, deepspeed, vllm and transformers, so the class is compiled out of the installed file.
"""

from __future__ import annotations

import itertools
from importlib.metadata import version
from types import SimpleNamespace

import morlfast
import pytest
import torch
from installed import definitions
from morlfast.advantage_presets import PRESETS

ESTIMATORS = {
    "grpo": "group_norm",
    "dr_grpo": "dr_grpo",
    "rloo": "rloo",
    "reinforce_pp": "reinforce",
    "reinforce_pp_baseline": "reinforce_baseline",
    "flash_reinforce": "flash_reinforce",
}
T = 12


def maker(method: str, group_size: int):
    quiet = SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)
    functions = definitions("openrlhf.models.utils", "compute_reward", torch=torch)
    penalties = definitions("openrlhf.trainer.ppo_utils.length_penalty", "apply_length_penalties", logger=quiet)
    RemoteExperienceMaker = definitions(
        "openrlhf.trainer.ppo_utils.experience_maker",
        "RemoteExperienceMaker",
        torch=torch,
        itertools=itertools,
        logger=quiet,
        compute_reward=functions.compute_reward,
        apply_length_penalties=penalties.apply_length_penalties,
    ).RemoteExperienceMaker
    estimator = ESTIMATORS[method]
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=group_size),
        reward=SimpleNamespace(clip_range=None),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False)),
    )
    made = RemoteExperienceMaker.__new__(RemoteExperienceMaker)
    made.strategy, made.kl_ctl, made.advantage_estimator = (
        SimpleNamespace(args=args),
        SimpleNamespace(value=0.0),
        estimator,
    )
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
    done = maker(method, group_size).compute_advantages_and_returns(experiences)
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
