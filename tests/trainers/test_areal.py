"""The preset "areal" against AReaL's own Normalization, which it applies to rewards and then to advantages.

Importing its module takes torchdata, einops and AReaL's launchers, so the class is compiled out of the installed file.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

import morlfast
import numpy as np
import pytest
import torch
import torch.distributed
from installed import definitions
from morlfast.advantage_presets import PRESETS

NormConfig = definitions(
    "areal.api.cli_args", "NormConfig", dataclass=dataclasses.dataclass, field=dataclasses.field
).NormConfig
Normalization = definitions(
    "areal.utils.data", "Normalization", torch=torch, np=np, dist=torch.distributed, NormConfig=NormConfig
).Normalization

# How its configuration spells each method.
REWARD_NORM = {
    "grpo": {"mean_level": "group", "std_level": "group"},
    "dr_grpo": {"mean_level": "group", "std_level": None},
    "rloo": {"mean_level": "group", "mean_leave1out": True, "std_level": None},
    "grpo_adv_norm": {"mean_level": "group", "std_level": "group"},
}
T = 12


def masks(n: int) -> torch.Tensor:
    lengths = torch.randint(1, T + 1, (n,), generator=torch.Generator().manual_seed(3))
    return (torch.arange(T) < lengths[:, None]).float()


def areal(rewards: torch.Tensor, mask: torch.Tensor, method: str, group_size: int) -> torch.Tensor:
    normalized = Normalization(NormConfig(group_size=group_size, **REWARD_NORM[method]))(rewards)
    advantages = normalized[:, None] * mask
    if method == "grpo_adv_norm":
        advantages = Normalization(NormConfig(mean_level="batch", std_level="batch"))(advantages, mask)
    return advantages * mask


def both(rewards: torch.Tensor, method: str, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = masks(len(rewards))
    ours = morlfast.group_advantages(rewards, group_size=group_size, mask=mask, preset="areal", method=method)
    return ours, areal(rewards, mask, method, group_size)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_version_that_the_preset_names():
    assert version("areal") == PRESETS["areal"].version
    assert set(REWARD_NORM) == set(PRESETS["areal"].methods)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("group_size", [1, 2, 5, 16])
@pytest.mark.parametrize("method", REWARD_NORM)
def test_same_advantages(method, group_size, dtype, tolerance):
    """In float32 it stores means and deviations so."""
    ours, theirs = both(normal(80).to(dtype), method, group_size)
    torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo"])
def test_nan_poisons_its_group(method):
    rewards = normal(40)
    rewards[11] = torch.nan
    ours = morlfast.group_advantages(rewards, group_size=8, preset="areal", method=method)
    theirs = Normalization(NormConfig(group_size=8, **REWARD_NORM[method]))(rewards)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_whitening_with_a_nan_poisons_the_batch():
    rewards = normal(40)
    rewards[11] = torch.nan
    ours, theirs = both(rewards, "grpo_adv_norm", 8)
    assert theirs.isnan().all()
    assert torch.equal(ours.isnan(), masks(40).bool())  # no advantage where no token counts


@pytest.mark.parametrize("method", REWARD_NORM)
def test_constant_groups_are_zero_in_both(method):
    """Statistics in float64, stored in float32: the rounding of the mean is lost."""
    values = torch.arange(1, 20) / 20
    for group_size in (2, 3, 7, 16, 31):
        ours, theirs = both(values.repeat_interleave(group_size), method, group_size)
        assert torch.equal(ours, torch.zeros_like(ours))
        assert torch.equal(theirs, torch.zeros_like(theirs))


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo"])
def test_rollouts_beyond_the_last_whole_group(method):
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    theirs = Normalization(NormConfig(group_size=4, **REWARD_NORM[method]))(rewards)
    assert theirs[4] == (rewards[4] / torch.tensor(1e-5) if method == "grpo" else rewards[4])
    with pytest.raises(ValueError, match="group_size"):
        morlfast.group_advantages(rewards, group_size=4, preset="areal", method=method)
    ours = morlfast.group_advantages(rewards, offsets=[0, 4, 5], preset="areal", method=method)
    assert ours[4] == (1.0 if method == "rloo" else 0.0)


def test_the_deviation_about_left_out_means_is_wider():
    """Why rloo divides by nothing: with a deviation, AReaL's is n / (n - 1) times that of the group."""
    rewards = normal(8)
    config = NormConfig(group_size=8, mean_level="group", mean_leave1out=True, std_level="group")
    centred, deviation = rewards - rewards.mean(), rewards.std()
    torch.testing.assert_close(
        Normalization(config)(rewards), centred / (deviation + 7 / 8 * 1e-5), rtol=1e-5, atol=1e-6
    )
