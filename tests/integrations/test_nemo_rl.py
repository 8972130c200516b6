"""NeMo-RL's estimators: its signatures, and its formulas rebuilt here in float64 (commit 7ea279ab)."""

from __future__ import annotations

import doctest
import inspect
import math
import sys
import types
from importlib import metadata
from types import SimpleNamespace

import morlfast
import pytest
import torch
from morlfast.integrations import nemo_rl

NAN = math.nan
SIZES = (8, 1, 3, 2, 5, 4)  # of the groups


def close(got, want, tolerance=2e-6):
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def batch():
    """Prompts whose first tokens are equal, in random order, and rewards with ties."""
    generator = torch.Generator().manual_seed(4)
    group = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    group = group[torch.randperm(len(group), generator=generator)]
    prompts = torch.stack([torch.full_like(group, 7), group * 1000, group % 2], 1)
    rewards = torch.randint(-8, 9, (len(group),), generator=generator) / 4 + 0.1
    mask = torch.rand(len(group), 9, generator=generator) < 0.6
    return SimpleNamespace(group=group.tolist(), prompts=prompts, rewards=rewards, mask=mask.float())


def moments(group, rewards, leave_one_out, std_rewards=None):
    """Baselines and deviations of NeMo-RL's formula, all rollouts valid."""
    rewards = rewards.double().tolist()
    spread = rewards if std_rewards is None else std_rewards.double().tolist()
    baselines, deviations = [], []
    for i, own in enumerate(group):
        members = [j for j, other in enumerate(group) if other == own]
        others = [j for j in members if j != i or not leave_one_out]
        if len(members) == 1:
            baselines.append(rewards[i])
            deviations.append(0.0)
            continue
        n = len(others)
        baselines.append(sum(rewards[j] for j in others) / n)
        mean = sum(spread[j] for j in others) / n
        squares = sum((spread[j] - mean) ** 2 for j in others)
        deviations.append(math.sqrt(squares / (n - 1)) if n > 1 else 0.0)
    return torch.tensor(baselines, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64)


def normalized(group, rewards, leave_one_out, divide):
    baselines, deviations = moments(group, rewards, leave_one_out)
    advantages = rewards.double() - baselines
    return torch.where(deviations > 0, advantages / (deviations + 1e-6), advantages) if divide else advantages


def config(**options):
    defaults = {"use_leave_one_out_baseline": True, "normalize_rewards": True, "reward_weights": None}
    return SimpleNamespace(**{**defaults, "minus_baseline": True, **options})


def loss(**options):
    defaults = {"use_kl_in_reward": False, "reference_policy_kl_penalty": 0.1, "reference_policy_kl_type": "k3"}
    return SimpleNamespace(**{**defaults, **options})


def test_signatures():
    parameters = inspect.signature(nemo_rl.calculate_baseline_and_std_per_prompt).parameters
    assert list(parameters) == ["prompts", "rewards", "valid_mask", "leave_one_out_baseline", "std_rewards"]
    assert parameters["leave_one_out_baseline"].default is True
    assert parameters["std_rewards"].default is None
    for estimator in (nemo_rl.GRPOAdvantageEstimator, nemo_rl.GDPOAdvantageEstimator):
        assert list(inspect.signature(estimator).parameters) == ["estimator_config", "loss_config"]
    call = inspect.signature(nemo_rl.ReinforcePlusPlusAdvantageEstimator.compute_advantage)
    assert list(call.parameters)[1:4] == ["prompt_ids", "rewards", "mask"]


def test_the_examples_of_docstrings_hold():
    results = doctest.testmod(nemo_rl)
    assert results.attempted > 0
    assert results.failed == 0


# ---- baselines and deviations ----


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_baselines_and_deviations(batch, leave_one_out, dtype):
    rewards = batch.rewards.to(dtype)
    got = nemo_rl.calculate_baseline_and_std_per_prompt(
        batch.prompts, rewards, torch.ones_like(rewards), leave_one_out_baseline=leave_one_out
    )
    assert got[0].dtype == got[1].dtype == dtype
    for mine, formula in zip(got, moments(batch.group, rewards, leave_one_out), strict=True):
        close(mine, formula, 2e-6 if dtype is torch.float32 else 1e-12)


def test_deviation_of_other_rewards(batch):
    raw = batch.rewards.flip(0)
    got = nemo_rl.calculate_baseline_and_std_per_prompt(
        batch.prompts, batch.rewards, torch.ones_like(raw), std_rewards=raw
    )
    for mine, formula in zip(got, moments(batch.group, batch.rewards, True, raw), strict=True):
        close(mine, formula)


@pytest.mark.parametrize("value", [0.1, 1.0 / 3.0, 1e6 + 0.3, -7e-8])
def test_equal_rewards_of_the_others_have_no_deviation_at_all(value):
    prompts = torch.zeros(8, 2, dtype=torch.int64)
    rewards = torch.full((8,), value)
    rewards[5] = value + 1
    baseline, std = nemo_rl.calculate_baseline_and_std_per_prompt(prompts, rewards, torch.ones(8))
    assert std[5] == 0
    assert baseline[5] == rewards[0]
    assert (std[:5] > 0.3).all()
    _, std = nemo_rl.calculate_baseline_and_std_per_prompt(prompts, rewards[:1].expand(8), torch.ones(8), False)
    assert torch.equal(std, torch.zeros(8))


def test_an_outlier_does_not_hide_the_others():
    rewards = torch.tensor([1e8, 1.0, 2.0, 3.0], dtype=torch.float64)
    prompts = torch.zeros(4, 1, dtype=torch.int64)
    baseline, std = nemo_rl.calculate_baseline_and_std_per_prompt(prompts, rewards, torch.ones(4))
    assert baseline[0].item() == pytest.approx(2.0, rel=1e-7)
    assert std[0].item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("outlier", [1.0, -1e6])
def test_deviations_keep_their_digits(outlier, offset, leave_one_out):
    group = [0] * 5 + [1] * 3 + [2] * 2 + [3] * 4
    rewards = torch.randint(-8, 9, (14,), generator=torch.Generator().manual_seed(9)).double() / 4
    rewards[[2, 6]] += outlier
    rewards[10:] = rewards[10:].abs().max() * torch.tensor([1.0, -1.0, 1.0, -1.0])
    _, want = moments(group, rewards, leave_one_out)
    prompts = torch.tensor(group)[:, None]
    _, got = nemo_rl.calculate_baseline_and_std_per_prompt(prompts, rewards + offset, torch.ones(14), leave_one_out)
    close(got, want, 1e-12 if offset == 0 else 1e-7)


def test_rollouts_that_are_not_valid_count_in_no_statistic():
    prompts = torch.tensor([[1], [1], [1], [1], [2], [2]])
    rewards = torch.tensor([1.0, 50.0, 2.0, 6.0, 3.0, 4.0])
    valid = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    baseline, std = nemo_rl.calculate_baseline_and_std_per_prompt(prompts, rewards, valid)
    close(baseline, torch.tensor([4.0, 50.0, 3.5, 1.5, 3.0, 4.0]))
    close(std, torch.tensor([math.sqrt(8), 0.0, math.sqrt(12.5), math.sqrt(0.5), 0.0, 0.0]))


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_nan_and_infinity_poison_their_group(bad):
    prompts = torch.tensor([[1], [1], [1], [2], [2], [2]])
    rewards = torch.tensor([1.0, bad, 2.0, 3.0, 4.0, 6.0])
    baseline, std = nemo_rl.calculate_baseline_and_std_per_prompt(prompts, rewards, torch.ones(6))
    assert baseline.isnan().tolist() == [True] * 3 + [False] * 3
    assert std[:3].tolist() == [0.0] * 3
    assert (std[3:] > 0).all()


def test_no_rollouts():
    empty = torch.zeros(0)
    got = nemo_rl.calculate_baseline_and_std_per_prompt(torch.zeros(0, 3, dtype=torch.int64), empty, empty)
    assert [values.shape for values in got] == [(0,), (0,)]


# ---- estimators ----


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("divide", [True, False])
def test_grpo(batch, leave_one_out, divide):
    settings = config(use_leave_one_out_baseline=leave_one_out, normalize_rewards=divide)
    estimator = nemo_rl.GRPOAdvantageEstimator(settings, loss())
    got = estimator.compute_advantage(
        prompt_ids=batch.prompts,
        rewards=batch.rewards,
        mask=batch.mask,
        repeated_batch={},
        logprobs_policy=None,
        logprobs_reference=None,
    )
    assert got.shape == batch.mask.shape
    assert got.dtype == batch.rewards.dtype
    close(got, normalized(batch.group, batch.rewards, leave_one_out, divide)[:, None].expand(batch.mask.shape))


def test_grpo_does_not_blow_noise_up():
    """NeMo-RL #4158: eight rewards of which seven are 0.1 gave advantages in the thousands."""
    rewards = torch.full((8,), 0.1)
    rewards[0] = 0.9
    got = nemo_rl.GRPOAdvantageEstimator(config()).compute_advantage(
        torch.zeros(8, 4, dtype=torch.int64), rewards, torch.ones(8, 1)
    )
    close(got[0], torch.tensor([0.8]))
    assert got[1:].abs().max() < 1


@pytest.mark.parametrize("weights", [None, [1.0, -0.5, 2.0]])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_gdpo(batch, weights, leave_one_out):
    rewards = {"reward/b": batch.rewards, "reward/c": batch.rewards.roll(3), "reward/a": batch.rewards.square()}
    settings = config(reward_weights=weights, use_leave_one_out_baseline=leave_one_out)
    got = nemo_rl.GDPOAdvantageEstimator(settings, loss()).compute_advantage(
        prompt_ids=batch.prompts,
        rewards=batch.rewards,
        mask=batch.mask,
        repeated_batch={**rewards, "total_reward": batch.rewards, 5: None},
    )
    parts = [normalized(batch.group, rewards[name], leave_one_out, True) for name in sorted(rewards)]
    total = sum(w * part for w, part in zip(weights or [1.0] * 3, parts, strict=True))
    want = (total - total.mean()) / total.std()
    assert got.shape == batch.mask.shape
    close(got, want[:, None].expand(batch.mask.shape), 5e-6)


def test_gdpo_of_constant_groups_is_zero():
    rewards = {"reward/a": torch.full((4,), 0.1), "reward/b": torch.tensor([0.3, 0.3, 0.7, 0.7])}
    prompts = torch.tensor([[1], [1], [2], [2]])
    got = nemo_rl.GDPOAdvantageEstimator(config()).compute_advantage(prompts, None, torch.ones(4, 2), rewards)
    assert torch.equal(got, torch.zeros(4, 2))


def test_gdpo_errors(batch):
    estimator = nemo_rl.GDPOAdvantageEstimator(config(reward_weights=[1.0]))
    one = {"reward/a": batch.rewards}
    with pytest.raises(ValueError, match=r"^repeated_batch: expected two rewards named reward/.* got \['reward/a'\]$"):
        estimator.compute_advantage(batch.prompts, batch.rewards, batch.mask, one)
    with pytest.raises(ValueError, match=r"^reward_weights: expected one each for reward/a, reward/b, got \[1.0\]$"):
        estimator.compute_advantage(batch.prompts, batch.rewards, batch.mask, {**one, "reward/b": batch.rewards})


def whitened(values, mask):
    mean = (values * mask).sum() / mask.sum()
    variance = ((values - mean).square() * mask).sum() / mask.sum()
    return (values - mean) / variance.clamp(min=1e-8).sqrt()


@pytest.mark.parametrize("minus_baseline", [True, False])
@pytest.mark.parametrize("kl_type", [None, "k1", "k2", "k3"])
def test_reinforce_plus_plus(batch, minus_baseline, kl_type):
    generator = torch.Generator().manual_seed(6)
    policy, reference = (-3 * torch.rand(batch.mask.shape, generator=generator) for _ in range(2))
    policy[0, 0] = -40.0  # beyond both clamps
    settings = loss(use_kl_in_reward=kl_type is not None, reference_policy_kl_type=kl_type)
    estimator = nemo_rl.ReinforcePlusPlusAdvantageEstimator(config(minus_baseline=minus_baseline), settings)
    got = estimator.compute_advantage(
        batch.prompts, batch.rewards, batch.mask, logprobs_policy=policy, logprobs_reference=reference
    )
    advantages = batch.rewards.double()
    if minus_baseline:
        advantages = advantages - moments(batch.group, batch.rewards, False)[0]
    ratio = (reference.double() - policy.double()).clamp(-20, 20)
    kl = {"k1": -ratio, "k2": ratio**2 / 2, "k3": ratio.exp() - 1 - ratio}.get(kl_type, torch.zeros_like(ratio))
    tokens = advantages[:, None].expand(batch.mask.shape) - 0.1 * kl.clamp(-10, 10)
    assert got.dtype == batch.rewards.dtype
    close(got, whitened(tokens, batch.mask.double()), 5e-6)


def test_reinforce_plus_plus_without_reference_log_probabilities(batch):
    estimator = nemo_rl.ReinforcePlusPlusAdvantageEstimator(config(), loss(use_kl_in_reward=True))
    got = estimator.compute_advantage(batch.prompts, batch.rewards, batch.mask, logprobs_policy=batch.mask)
    centred = batch.rewards.double() - moments(batch.group, batch.rewards, False)[0]
    close(got, whitened(centred[:, None].expand(batch.mask.shape), batch.mask.double()), 5e-6)


def test_kl_type_is_checked(batch):
    settings = loss(use_kl_in_reward=True, reference_policy_kl_type="k4")
    estimator = nemo_rl.ReinforcePlusPlusAdvantageEstimator(config(), settings)
    with pytest.raises(ValueError, match=r"^reference_policy_kl_type: expected k1, k2 or k3, got 'k4'$"):
        estimator.compute_advantage(batch.prompts, batch.rewards, batch.mask, batch.mask, batch.mask)


def test_the_preset_is_what_the_estimators_use(batch):
    got = nemo_rl.GRPOAdvantageEstimator(config()).compute_advantage(batch.prompts, batch.rewards, batch.mask)
    want = morlfast.group_advantages(batch.rewards, group_ids=batch.prompts, preset="nemo", method="grpo")
    assert torch.equal(got[:, 0], want)


# ---- in its place ----


@pytest.fixture
def library(monkeypatch):
    """The modules of NeMo-RL that define the originals, and one that has imported them by name."""
    names = ("GRPOAdvantageEstimator", "GDPOAdvantageEstimator", "ReinforcePlusPlusAdvantageEstimator")
    modules = {
        name: types.ModuleType(name)
        for name in (
            "nemo_rl",
            "nemo_rl.algorithms",
            "nemo_rl.algorithms.utils",
            "nemo_rl.algorithms.advantage_estimator",
            "nemo_rl.algorithms.grpo",
        )
    }
    *_, utils, estimators, grpo = modules.values()
    utils.calculate_baseline_and_std_per_prompt = grpo.calculate_baseline_and_std_per_prompt = lambda: None
    for name in names:
        setattr(estimators, name, type(name, (), {}))
        setattr(grpo, name, getattr(estimators, name))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(metadata, "version", lambda name: {"nemo-rl": "0.6.0+7ea279abf"}[name])
    return SimpleNamespace(utils=utils, estimators=estimators, grpo=grpo, names=names)


def test_patch_reaches_every_module(library):
    originals = dict(vars(library.grpo))
    with nemo_rl.patch():
        for module in (library.estimators, library.grpo):
            for name in library.names:
                assert getattr(module, name) is getattr(nemo_rl, name)
        for module in (library.utils, library.grpo):
            assert module.calculate_baseline_and_std_per_prompt is nemo_rl.calculate_baseline_and_std_per_prompt
    assert vars(library.grpo) == originals


def test_other_versions_are_refused(library, monkeypatch):
    monkeypatch.setattr(nemo_rl._Estimator, "any_version", False)
    monkeypatch.setattr(metadata, "version", lambda name: "0.7.0")
    refused = r"nemo-rl 0.7.0 is installed, and morlfast was checked against 0.6.0 only"
    with pytest.raises(RuntimeError, match=refused):
        nemo_rl.patch()
    estimators = [getattr(nemo_rl, name) for name in library.names]
    for estimator in estimators:  # also without patch()
        with pytest.raises(RuntimeError, match=refused):
            estimator(config(), loss())
    with nemo_rl.patch(any_version=True):
        for estimator in estimators:
            estimator(config(), loss())
