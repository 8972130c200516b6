"""The preset "ms-swift" against ms-swift's own compute_advantages and compute_advantages_dynamic.

Importing their module takes modelscope, datasets and transformers, so they and nanstd are compiled out of the installed
files.
"""

from __future__ import annotations

import itertools
import typing
from importlib.metadata import version

import morlfast
import pytest
import torch
from installed import definitions
from morlfast.advantage_presets import PRESETS

nanstd = definitions("swift.utils.torch_utils", "nanstd", torch=torch).nanstd
swift = definitions(
    "swift.rl_core.advantage",
    "compute_advantages",
    "compute_advantages_dynamic",
    torch=torch,
    nanstd=nanstd,
    Optional=typing.Optional,
    List=list,
    Dict=dict,
)

# How its configuration spells each method.
OPTIONS = {
    "grpo": {"advantage_estimator": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"advantage_estimator": "grpo", "scale_rewards": "none"},
    "rloo": {"advantage_estimator": "rloo", "scale_rewards": "none"},
    "reinforce_pp_baseline": {"advantage_estimator": "reinforce_plus_plus", "scale_rewards": "batch"},
    "gdpo": {"advantage_estimator": "grpo", "scale_rewards": "gdpo"},
}
WEIGHTS = torch.tensor([0.5, 2.0, 1.25])
# Its float64 has a factor n / (n - 1) of float32.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}


def both(rewards: torch.Tensor, method: str, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights = WEIGHTS[: rewards.shape[1]].to(rewards.dtype)
    ours = morlfast.group_advantages(rewards, group_size=group_size, weights=weights, preset="ms-swift", method=method)
    theirs, _ = swift.compute_advantages(rewards, weights, group_size, **OPTIONS[method])
    return ours, theirs


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[ours.dtype], atol=TOLERANCE[ours.dtype])


def test_the_version_that_the_preset_names():
    assert version("ms-swift") == PRESETS["ms-swift"].version
    assert set(OPTIONS) == set(PRESETS["ms-swift"].methods)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("group_size", [1, 2, 5, 16])
@pytest.mark.parametrize("objectives", [1, 3])
@pytest.mark.parametrize("method", OPTIONS)
def test_same_advantages(method, objectives, group_size, dtype):
    close(*both(normal(80, objectives, dtype=dtype), method, group_size))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", OPTIONS)
def test_missing_rewards(method, dtype):
    """NaN is left out of a weighted sum; a rollout without any reward is one with 0, for GDPO's whitening too."""
    rewards = normal(80, 3, dtype=dtype)
    rewards[torch.rand(80, 3, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
    rewards[5] = torch.nan
    rewards[16:24] = torch.nan
    rewards[25:32, 0] = torch.nan  # one of the group is left
    close(*both(rewards, method, 8))


@pytest.mark.parametrize("method", sorted(set(OPTIONS) - {"gdpo"}))
def test_prompts_of_any_number_of_rollouts(method):
    prompts = [f"prompt {i}" for i, n in enumerate([1, 2, 3, 5, 8]) for _ in range(n)]
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(2)).tolist()
    prompts = [prompts[i] for i in order]
    rewards = normal(len(prompts), 3)
    ours = morlfast.group_advantages(rewards, group_ids=prompts, weights=WEIGHTS, preset="ms-swift", method=method)
    requests = [str(i) for i in range(len(prompts))]
    close(ours, swift.compute_advantages_dynamic(rewards, WEIGHTS, prompts, requests, **OPTIONS[method])[0])


def test_gdpo_of_any_number_of_rollouts_only_centres_there():
    prompts = ["a"] * 3 + ["b"] * 5
    rewards = normal(8, 3)
    requests = [str(i) for i in range(8)]
    theirs, _ = swift.compute_advantages_dynamic(rewards, WEIGHTS, prompts, requests, **OPTIONS["gdpo"])
    options = {"group_ids": prompts, "weights": WEIGHTS, "preset": "ms-swift"}
    close(morlfast.group_advantages(rewards, **options, method="dr_grpo"), theirs)
    ours = morlfast.group_advantages(rewards, **options, method="gdpo")
    assert ours.std() == pytest.approx(1, abs=1e-6)
    assert theirs.std() > 1.5


def test_constant_groups_are_zero_where_float32_gives_noise():
    def worst(values: torch.Tensor, group_size: int) -> float:
        ours, theirs = both(values.repeat_interleave(group_size)[:, None], "gdpo", group_size)
        assert torch.equal(ours, torch.zeros_like(ours))
        return theirs.abs().max().item()

    values = torch.arange(1, 20) / 20
    assert (
        max(worst(values[[i, j, k]], n) for n in (6, 7) for i, j, k in itertools.combinations(range(0, 19, 3), 3)) > 1
    )


@pytest.mark.parametrize("method", OPTIONS)
def test_constant_groups_are_zero(method):
    rewards = (torch.arange(1, 20) / 20).repeat_interleave(7)
    ours, _ = both(torch.stack([rewards, 1 - rewards], 1), method, 7)
    assert torch.equal(ours, torch.zeros_like(ours))
