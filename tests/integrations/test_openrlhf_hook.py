"""OpenRLHF's `compute_advantages_and_returns`: its formulas rebuilt here in float64, on stand-ins for its objects."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
import types
from dataclasses import dataclass, field
from importlib import metadata
from types import SimpleNamespace

import morlfast
import pytest
import torch
from morlfast.integrations import openrlhf

ESTIMATORS = ["gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce"]


@dataclass
class Experience:
    """The fields of OpenRLHF's `Experience` that are read or written."""

    action_mask: torch.Tensor
    rewards: torch.Tensor
    kl: torch.Tensor
    values: torch.Tensor
    index: list[int]
    info: dict = field(default_factory=dict)
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None


class Maker:
    def __init__(self, kl_coef=0.1, **options):
        settings = {
            "estimator": "group_norm",
            "gamma": 1.0,
            "lambd": 1.0,
            "no_std_norm": False,
            "n": 4,
            "clip_range": (-10, 10),
            **options,
        }
        advantage = SimpleNamespace(**{name: settings[name] for name in ("estimator", "gamma", "lambd", "no_std_norm")})
        self.strategy = SimpleNamespace(
            args=SimpleNamespace(
                algo=SimpleNamespace(advantage=advantage),
                rollout=SimpleNamespace(n_samples_per_prompt=settings["n"]),
                reward=SimpleNamespace(clip_range=settings["clip_range"]),
            )
        )
        self.kl_ctl = SimpleNamespace(value=kl_coef)


class MixinMaker(openrlhf.AdvantagesMixin, Maker):
    pass


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """The modules of OpenRLHF that are imported, with a length penalty that leaves its trace."""
    names = ["openrlhf", "openrlhf.trainer", "openrlhf.trainer.ppo_utils"]
    names += [f"openrlhf.trainer.ppo_utils.{name}" for name in ("length_penalty", "experience_maker")]
    modules = [types.ModuleType(name) for name in names]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)

    def apply_length_penalties(experiences, args):
        for experience in experiences:
            experience.rewards -= getattr(args, "penalty", 0.0)
            experience.info["reward"] = experience.rewards.clone()

    modules[3].apply_length_penalties = apply_length_penalties
    modules[4].RemoteExperienceMaker = type(
        "RemoteExperienceMaker", (Maker,), {"compute_advantages_and_returns": lambda self, experiences: "original"}
    )
    monkeypatch.setattr(metadata, "version", lambda name: {"openrlhf": "0.11.2"}[name])
    return modules[4]


def experiences(sizes=(3, 5, 4), dtype=torch.float32, seed=1):
    """Micro-batches of different lengths, samples in any order."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(sum(sizes), generator=generator).split(list(sizes))
    batches = []
    for rows, width in zip(index, itertools.count(5), strict=False):
        shape = (len(rows), width)
        mask = torch.rand(shape, generator=generator) < 0.7
        mask[:, 0] = True
        noise = [torch.rand(shape, generator=generator) - 0.5 for _ in range(2)]
        rewards = (torch.randint(-4, 5, (len(rows),), generator=generator) / 4 + 0.1).to(dtype)
        batches.append(Experience(mask, rewards, noise[0], noise[1], rows.tolist()))
    return batches


def formula(maker, batches, rewards=None):
    """Advantages, returns and sums of the token rewards, a list for each sample, in the order of the batches."""
    args = maker.strategy.args
    settings, n = args.algo.advantage, args.rollout.n_samples_per_prompt
    index = [i for batch in batches for i in batch.index]
    if rewards is None:
        rewards = [r for batch in batches for r in batch.rewards.double().tolist()]
    shaped = []
    for i, reward in zip(index, rewards, strict=True):
        group = torch.tensor([r for j, r in zip(index, rewards, strict=True) if j // n == i // n], dtype=torch.float64)
        shaped.append(
            {
                "rloo": lambda r, g: r - (g.sum() - r) / (n - 1),
                "reinforce_baseline": lambda r, g: r - g.mean(),
                "dr_grpo": lambda r, g: r - g.mean(),
                "group_norm": lambda r, g: (r - g.mean()) / (g.std() + 1e-9),
                "flash_reinforce": lambda r, g: r - sum(rewards) / len(rewards),
            }.get(settings.estimator, lambda r, g: r)(reward, group)
        )
    rows = iter(shaped)
    gamma = settings.gamma if settings.estimator in ("gae", "reinforce") else 1.0
    advantages, returns, sums, masks = [], [], [], []
    for batch in batches:
        for mask, kl, values in zip(
            batch.action_mask.tolist(), batch.kl.double().tolist(), batch.values.double().tolist(), strict=True
        ):
            reward = float(next(rows))
            if args.reward.clip_range:
                reward = min(max(reward, args.reward.clip_range[0]), args.reward.clip_range[1])
            tokens = [-max(maker.kl_ctl.value, 0.0) * k for k in kl]
            tokens[max(t for t, m in enumerate(mask) if m)] += reward
            sums.append(sum(tokens))
            masked = [r * m for r, m in zip(tokens, mask, strict=True)]
            v = [x * m for x, m in zip(values, mask, strict=True)] + [0.0]
            decay = gamma
            if settings.estimator == "gae":
                masked = [r + gamma * v[t + 1] - v[t] for t, r in enumerate(masked)]
                decay = gamma * settings.lambd
            row = list(itertools.accumulate(reversed(masked), lambda later, own, d=decay: own + d * later))[::-1]
            advantages.append(torch.tensor(row, dtype=torch.float64))
            masks.append(torch.tensor(mask))
            gained = v[:-1] if settings.estimator == "gae" else [0.0] * len(row)
            returns.append(advantages[-1] + torch.tensor(gained, dtype=torch.float64))
    if settings.estimator in ("gae", "reinforce", "reinforce_baseline"):
        valid = torch.cat(advantages)[torch.cat(masks)]
        scale = 1.0 if settings.no_std_norm else valid.var(correction=0).clamp(min=1e-8).rsqrt()
        advantages = [(row - valid.mean()) * scale for row in advantages]
    return advantages, returns, sums


def check(batches, expected, tolerance=5e-6):
    advantages, returns, sums = expected
    row = 0
    for batch in batches:
        assert batch.kl is None
        for own in range(len(batch.index)):
            for got, want in ((batch.advantages, advantages), (batch.returns, returns)):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got[own].double(), want[row], rtol=tolerance, atol=tolerance)
            assert batch.info["return"][own].item() == pytest.approx(sums[row], rel=1e-5, abs=1e-6)
            row += 1


def test_signature():
    (_, experiences) = inspect.signature(openrlhf.AdvantagesMixin.compute_advantages_and_returns).parameters
    assert experiences == "experiences"


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "options",
    [{}, {"n": 2, "gamma": 0.9, "lambd": 0.8, "no_std_norm": True, "clip_range": (-0.2, 0.3)}, {"kl_coef": -1.0}],
    ids=str,
)
def test_every_estimator(estimator, options):
    maker, batches = Maker(estimator=estimator, **options), experiences()
    expected = formula(maker, batches)
    assert openrlhf.compute_advantages_and_returns(maker, batches) is batches
    check(batches, expected)


def test_bfloat16_rewards_are_computed_in_float32():
    maker, batches = Maker(), experiences(dtype=torch.bfloat16)
    expected = formula(maker, batches)
    openrlhf.compute_advantages_and_returns(maker, batches)
    assert batches[0].rewards.dtype == torch.float32
    check(batches, expected)


def test_group_reward_std():
    batches = experiences()
    openrlhf.compute_advantages_and_returns(Maker(), batches)
    rewards = {i: r for batch in batches for i, r in zip(batch.index, batch.rewards.double().tolist(), strict=True)}
    for batch in batches:
        for i, got in zip(batch.index, batch.info["group_reward_std"].tolist(), strict=True):
            group = torch.tensor([r for j, r in rewards.items() if j // 4 == i // 4])
            assert got == pytest.approx(group.std().item(), rel=1e-5)
    alone = experiences()
    openrlhf.compute_advantages_and_returns(Maker(n=1, estimator="reinforce"), alone)
    assert "group_reward_std" not in alone[0].info


@pytest.mark.parametrize("value", [0.1, 1.0 / 3.0])
def test_equal_rewards_are_exactly_zero(value):
    """OpenRLHF divides the noise of a float32 mean by 1e-9: up to 0.98 for a group of equal rewards."""
    batches = experiences()
    for batch in batches:
        batch.rewards.fill_(value)
    openrlhf.compute_advantages_and_returns(Maker(kl_coef=0.0), batches)
    for batch in batches:
        assert not batch.advantages.any()
        assert not batch.info["group_reward_std"].any()


def test_length_penalties_come_first():
    maker, batches = Maker(estimator="reinforce"), experiences()
    maker.strategy.args.penalty = 0.5
    expected = formula(maker, batches, [r - 0.5 for batch in batches for r in batch.rewards.double().tolist()])
    openrlhf.compute_advantages_and_returns(maker, batches)
    check(batches, expected)


def test_a_smaller_last_group():
    batches = experiences(sizes=(6, 4))
    openrlhf.compute_advantages_and_returns(Maker(estimator="dr_grpo", kl_coef=0.0), batches)
    rewards = {i: r for batch in batches for i, r in zip(batch.index, batch.rewards.tolist(), strict=True)}
    mean = (rewards[8] + rewards[9]) / 2
    for batch in batches:
        for row, i in enumerate(batch.index):
            if i >= 8:
                assert batch.advantages[row, 0].item() == pytest.approx(rewards[i] - mean, abs=1e-6)


def test_a_group_of_one_is_refused_where_the_group_matters():
    with pytest.raises(ValueError, match=r"^singleton: expected at least two scored rollouts a group, got one"):
        openrlhf.compute_advantages_and_returns(Maker(), experiences(sizes=(6, 3)))
    openrlhf.compute_advantages_and_returns(Maker(estimator="flash_reinforce"), experiences(sizes=(6, 3)))


def test_objectives_and_rules():
    class TwoRewards(MixinMaker):
        objectives = {"accuracy": 1.0, "format": 0.5}  # noqa: RUF012
        rules = {"preset": "trl", "method": "gdpo"}  # noqa: RUF012

    batches = experiences()
    generator = torch.Generator().manual_seed(9)
    for batch in batches:
        for name in TwoRewards.objectives:
            batch.info[name] = torch.randint(0, 3, (len(batch.index),), generator=generator)
    scores = torch.stack([torch.cat([batch.info[name] for batch in batches]) for name in TwoRewards.objectives], 1)
    groups = torch.tensor([i // 4 for batch in batches for i in batch.index])
    want = morlfast.group_advantages(scores.float(), group_ids=groups, weights=[1.0, 0.5], preset="trl", method="gdpo")
    TwoRewards(kl_coef=0.0).compute_advantages_and_returns(batches)
    got = torch.cat([batch.advantages[:, 0] for batch in batches])
    torch.testing.assert_close(got, want)


def test_the_mixin_is_openrlhfs_estimator_by_default():
    maker, batches = MixinMaker(estimator="rloo"), experiences()
    expected = formula(maker, batches)
    maker.compute_advantages_and_returns(batches)
    check(batches, expected)


def test_patch_reaches_objects_that_exist(library):
    maker, batches = library.RemoteExperienceMaker(), experiences()
    expected = formula(maker, batches)
    with openrlhf.patch():
        maker.compute_advantages_and_returns(batches)
    check(batches, expected)
    assert maker.compute_advantages_and_returns(batches) == "original"


def test_other_versions_are_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.12.0")
    refused = r"openrlhf 0.12.0 is installed, and morlfast was checked against 0.11.2 only"
    with pytest.raises(RuntimeError, match=refused):
        openrlhf.patch()
    openrlhf.patch(any_version=True).undo()
    with pytest.raises(RuntimeError, match=refused):
        type("Mine", (openrlhf.AdvantagesMixin, Maker), {})
    type("Mine", (openrlhf.AdvantagesMixin, Maker), {"any_version": True})


def test_unknown_estimator():
    with pytest.raises(ValueError, match=r"^algo.advantage.estimator: expected one of gae, .*, got 'gpg'$"):
        openrlhf.compute_advantages_and_returns(Maker(estimator="gpg"), experiences())


def test_nan_poisons_its_group_only():
    batches = experiences()
    batches[0].rewards[0] = math.nan
    openrlhf.compute_advantages_and_returns(Maker(kl_coef=0.0), batches)
    poisoned = batches[0].index[0] // 4
    for batch in batches:
        for row, i in enumerate(batch.index):
            assert batch.advantages[row, 0].isnan().item() == (i // 4 == poisoned)
