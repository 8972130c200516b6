"""Presets against what each trainer computes, restated in float64: NaN, groups of one, ragged groups, constants."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import morlfast
import numpy as np
import pytest
import torch
from morlfast.advantage_presets import PRESETS, AdvantageRules
from references import trainers

NAN = math.nan
ALL = [(preset, method) for preset in PRESETS for method in PRESETS[preset].methods]
RAGGED = [2, 3, 5, 8, 13, 17]
WEIGHTS = [0.5, 2.0, 1.25]


def rules(preset: str, method: str) -> AdvantageRules:
    return PRESETS[preset].methods[method]


def relative_to_group(preset: str, method: str) -> bool:
    return rules(preset, method).baseline not in ("none", "batch")


def refuses_one(preset: str, method: str) -> bool:
    return rules(preset, method).singleton == "raise" and relative_to_group(preset, method)


def groups_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Labels of groups of these sizes, in any order."""
    labels = np.repeat(np.arange(len(sizes)) * 7 - 11, sizes)
    return np.random.default_rng(seed).permutation(labels)


def rewards_of(n: int, objectives: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, objectives)) * [1, 3, 0.25][:objectives])


def lengths_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 40, n))


def check(
    preset: str, method: str, rewards: torch.Tensor, groups: np.ndarray, weights: list[float] | None, atol: float = 1e-6
) -> None:
    lengths = lengths_of(len(rewards))
    got = morlfast.group_advantages(
        rewards, group_ids=torch.from_numpy(groups), weights=weights, lengths=lengths, preset=preset, method=method
    )
    want = trainers.advantages(preset, method, rewards.double().numpy(), groups, weights, lengths.numpy())
    assert got.dtype == rewards.dtype
    torch.testing.assert_close(got.double(), torch.from_numpy(want), rtol=1e-6, atol=atol, equal_nan=True)


def test_every_preset_and_method_has_a_reference():
    assert set(trainers.METHODS) == set(ALL)


def test_every_preset_says_which_version_it_was_checked_against():
    assert all(preset.version for preset in PRESETS.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objectives", [1, 3])
@pytest.mark.parametrize(("preset", "method"), ALL)
def test_equal_groups(preset, method, objectives, dtype):
    check(preset, method, rewards_of(64, objectives).to(dtype), np.arange(64) // 8, WEIGHTS[:objectives])


@pytest.mark.parametrize(("preset", "method"), ALL)
def test_groups_of_any_size_in_any_order(preset, method):
    for objectives in (1, 3):
        check(preset, method, rewards_of(sum(RAGGED), objectives), groups_of(RAGGED), WEIGHTS[:objectives])


@pytest.mark.parametrize(("preset", "method"), ALL)
def test_a_group_of_one_among_others(preset, method):
    sizes = [1, *RAGGED, 1]
    rewards, groups = rewards_of(sum(sizes), 3), groups_of(sizes)
    if refuses_one(preset, method):
        with pytest.raises(ValueError, match="group"):
            check(preset, method, rewards, groups, WEIGHTS)
    else:
        check(preset, method, rewards, groups, WEIGHTS)


@pytest.mark.parametrize("spread", [1e-4, 1e-6, 1e-8, 1e-11])
@pytest.mark.parametrize(("preset", "method"), ALL)
def test_deviations_as_small_as_eps(preset, method, spread):
    rewards = rewards_of(sum(RAGGED), 1) * spread
    check(preset, method, rewards, groups_of(RAGGED), None, atol=1e-6 * spread)


@pytest.mark.parametrize(("preset", "method"), ALL)
def test_deviations_well_above_the_rounding_of_float32(preset, method):
    """By 1e4: about 1.2 beside 1000."""
    rewards = (1000 + 1.5 * rewards_of(64, 1)).float()
    check(preset, method, rewards, np.arange(64) // 8, None)


# What their sources do to NaN by accident: an argmax that finds it, a comparison that fails.
NAN_RULE_OF_ITS_OWN = {("verl", "pass_at_k"), ("roll-agentic", "grpo")}


@pytest.mark.parametrize(("preset", "method"), sorted(set(ALL) - NAN_RULE_OF_ITS_OWN))
def test_rewards_that_are_nan(preset, method):
    rewards, groups = rewards_of(sum(RAGGED), 3), groups_of(RAGGED)
    rewards[np.flatnonzero(groups == groups[0])[0], 1] = NAN
    check(preset, method, rewards, groups, WEIGHTS)
    check(preset, method, rewards[:, 1], groups, None)
    if rules(preset, method).nan != "propagate":
        missing = torch.from_numpy(np.random.default_rng(2).random(rewards.shape) < 0.3)
        rewards[missing] = NAN
        rewards[7] = NAN  # a rollout without any score
        rewards[torch.from_numpy(groups == groups[1])] = NAN  # a group without any
        check(preset, method, rewards, groups, WEIGHTS)


@pytest.mark.parametrize(("preset", "method"), sorted(NAN_RULE_OF_ITS_OWN))
def test_a_nan_reward_makes_its_group_nan(preset, method):
    rewards, groups = rewards_of(sum(RAGGED), 1)[:, 0], groups_of(RAGGED)
    rewards[0] = NAN
    got = morlfast.group_advantages(rewards, group_ids=torch.from_numpy(groups), preset=preset, method=method)
    assert torch.equal(got.isnan(), torch.from_numpy(groups == groups[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("preset", "method"), ALL)
def test_constant_groups_are_exactly_zero(preset, method, dtype):
    groups = groups_of(RAGGED)
    values = np.array([0.1, 0.35, 0.7, 0.95, 1 / 3, 1e4 + 0.1])[(groups + 11) // 7]
    if not relative_to_group(preset, method):
        values = np.full_like(values, 0.1)  # nothing to be relative to but the batch
        if rules(preset, method).whiten == "none" and rules(preset, method).baseline == "none":
            return
    rewards = torch.from_numpy(np.stack([values, 1.1 - values, values / 3], 1)).to(dtype)
    for table in (rewards, rewards[:, 0]):
        got = morlfast.group_advantages(
            table, group_ids=torch.from_numpy(groups), lengths=lengths_of(len(groups)), preset=preset, method=method
        )
        assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize(("ones", "other"), [(0.35, 0.95), (0.3, 0.9), (0.1, 0.7)])
@pytest.mark.parametrize("position", range(8))
def test_left_out_equal_rewards_have_no_deviation(ones, other, position):
    rewards = torch.full((8,), ones)
    rewards[position] = other
    got = morlfast.group_advantages(rewards, group_size=8, preset="nemo", method="grpo")
    assert got[position] == torch.tensor(other).double().sub(torch.tensor(ones).double()).float()  # left as it is
    check("nemo", "grpo", rewards, np.zeros(8, int), None)


# What trainers that are on no package index give, by their formulas in float32.


def nemo_in_float32(rewards: torch.Tensor) -> torch.Tensor:
    """Leave-one-out sums as a product with a matrix, variance as E[r^2] - E[r]^2."""
    n = len(rewards)
    sum_of_others = 1 - torch.eye(n)
    mean, square = sum_of_others @ rewards / (n - 1), sum_of_others @ rewards.square() / (n - 1)
    std = ((square - mean.square()) * ((n - 1) / (n - 2))).sqrt().nan_to_num(0)
    return torch.where(std > 0, (rewards - mean) / (std + 1e-6), rewards - mean)


def test_seven_equal_rewards_and_another_are_thousands_in_nemo():
    worst = 0.0
    for ones in torch.arange(1, 20) / 20:
        for position in range(8):
            rewards = torch.full((8,), ones.item())
            rewards[position] = ones + 0.6
            ours = morlfast.group_advantages(rewards, group_size=8, preset="nemo", method="grpo")
            assert ours.abs().max() < 1
            worst = max(worst, nemo_in_float32(rewards).abs().max().item())
    assert worst > 100


def slime_whitened_in_float32(values: torch.Tensor) -> torch.Tensor:
    """In one pass over the values: E[x^2] - E[x]^2."""
    n = len(values)
    mean, square = values.sum() / n, values.square().sum() / n
    return (values - mean) * ((square - mean.square()) * (n / (n - 1)) + 1e-8).rsqrt()


def test_a_common_offset_spoils_whitening_in_slime():
    rewards = torch.tensor([1000.0, 1000.1, 999.9, 1000.05])
    one_token_each = torch.ones(4, dtype=torch.int64)
    ours = morlfast.group_advantages(
        rewards, group_size=4, lengths=one_token_each, preset="slime", method="reinforce_pp"
    )
    exact = (rewards.double() - rewards.double().mean()) / rewards.double().std()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)
    theirs = slime_whitened_in_float32(rewards)
    assert not torch.allclose(theirs.double(), exact, rtol=0.5)


def test_groups_of_different_sizes_are_one_group_in_slime():
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 0, 0])
    theirs = rewards.view(-1, 7)  # what is done where 7 is not prompts times samples
    theirs = ((theirs - theirs.mean(-1)) / (theirs.std(-1) + 1e-6))[0]
    ours = morlfast.group_advantages(rewards, offsets=[0, 3, 7], preset="slime", method="grpo")
    first, second = rewards[:3], rewards[3:]
    want = torch.cat([(r - r.mean()) / (r.std() + 1e-6) for r in (first, second)])
    torch.testing.assert_close(ours, want)
    assert theirs[0] == theirs[3]  # one of two and one of four successes are the same there
    assert ours[0] < 0.6
    assert ours[3] > 1.4


def test_mean_of_the_batch_over_deviation_of_the_group():
    """ROLL divides (N,) by (G, 1) there, which is a table."""
    rewards = rewards_of(12, 1)[:, 0]
    theirs = (rewards - rewards.mean()) / (rewards.view(-1, 4).std(1, keepdim=True) + 1e-6)
    assert theirs.shape == (3, 12)
    ours = morlfast.group_advantages(rewards, group_size=4, preset="roll", baseline="batch")
    torch.testing.assert_close(ours, theirs.view(3, 3, 4)[range(3), range(3)].flatten())


def test_a_keyword_overrides_one_rule():
    rewards = rewards_of(16, 1)[:, 0]
    got = morlfast.group_advantages(rewards, group_size=8, preset="verl", method="grpo", eps=1e-4)
    torch.testing.assert_close(got, morlfast.group_advantages(rewards, group_size=8, preset="trl", method="grpo"))
    got = morlfast.group_advantages(rewards, group_size=8, preset="trl", scale="none")
    assert torch.equal(got, morlfast.group_advantages(rewards, group_size=8, preset="trl", method="dr_grpo"))


def test_the_first_method_is_the_default():
    rewards = rewards_of(16, 1)[:, 0]
    for preset, row in PRESETS.items():
        first = next(iter(row.methods))
        got = morlfast.group_advantages(rewards, group_size=8, preset=preset)
        assert torch.equal(got, morlfast.group_advantages(rewards, group_size=8, preset=preset, method=first))


def test_rules_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules("trl", "grpo").eps = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        PRESETS["trl"] = PRESETS["verl"]  # type: ignore[index]


# GDPO of arXiv 2601.05242 as five codebases have it: 2 prompts of 4 rollouts, 2 rewards.
GDPO_REWARDS = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0], [1, 1], [1, 1], [1, 0], [0, 1]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("trl", [1.449032, 0, 0, -1.449032, 0.836577, 0.836577, -0.836577, -0.836577]),
        ("ms-swift", [1.449138, 0, 0, -1.449138, 0.83666, 0.83666, -0.83666, -0.83666]),
        ("verl", [1.457633, 0.09271, 0.09271, -1.272212, 0.880749, 0.880749, -0.695328, -0.695328]),
    ],
)
def test_published_gdpo_numbers(preset, published):
    lengths = torch.tensor([3, 1, 2, 3, 1, 2, 3, 2])
    got = morlfast.group_advantages(GDPO_REWARDS, group_size=4, lengths=lengths, preset=preset, method="gdpo")
    torch.testing.assert_close(got, torch.tensor(published), rtol=1e-4, atol=2e-5)


def test_published_gdpo_numbers_of_nemo():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]])  # correctness, integer, format
    got = morlfast.group_advantages(rewards, group_size=2, preset="nemo", method="gdpo")
    torch.testing.assert_close(got, torch.tensor([0.5**0.5, -(0.5**0.5)]))


def test_published_grpo_numbers():
    got = morlfast.group_advantages(GDPO_REWARDS, group_size=4, preset="trl", method="grpo")
    published = [1.224595, 0, 0, -1.224595, 0.865875, 0.865875, -0.865875, -0.865875]
    torch.testing.assert_close(got, torch.tensor(published), rtol=1e-4, atol=2e-5)


def test_the_python_of_the_page_on_defects_runs():
    page = Path(__file__).parents[1] / "docs/defects.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
    for block in blocks:
        exec(
            compile(block, page.name, "exec"),
            {"torch": torch, "math": math, "group_advantages": morlfast.group_advantages},
        )


def test_the_page_on_defects_names_every_preset_and_method():
    page = (Path(__file__).parents[1] / "docs/defects.md").read_text()
    for name, preset in PRESETS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert preset.version in row
        assert set(preset.methods) <= set(re.findall(r"`(\w+)`", row))
