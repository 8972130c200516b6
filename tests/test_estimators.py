"""Named advantage estimators against the papers' numbers and brute force."""

from __future__ import annotations

import inspect
import math
import random
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast import estimators
from morlfast._groups import label_columns
from morlfast.advantage_presets import PRESETS
from morlfast.advantages import group_advantages
from morlfast.estimators import (
    RiskQuantiles,
    SinglestreamTracker,
    aspo,
    bnpo,
    copo,
    dr_grpo,
    gdpo,
    gpg,
    grpo,
    hrpo,
    igpo,
    information_gain,
    leave_one_out_std,
    multi_objective_grpo,
    opo,
    optimal_token_baseline,
    paper_scores,
    pass_at_k,
    reinforce_pp_baseline,
    riskpo,
    rloo,
    spo,
)
from references import estimators as reference
from test_distributed import Ranks
from torch.utils._python_dispatch import TorchDispatchMode

Estimator = Callable[..., Any]
F32, F64 = torch.float32, torch.float64
NAN = math.nan


def close(got: torch.Tensor, expected: Any, rtol: float = 1e-4, atol: float = 2e-5) -> bool:
    """To the digits that the papers' numbers were printed with."""
    return torch.allclose(got.double(), torch.as_tensor(expected, dtype=F64), rtol=rtol, atol=atol)


def exact(got: torch.Tensor, expected: Any) -> bool:
    return close(got, expected, rtol=1e-10, atol=1e-10)


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def none_for_nan(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]


class Batch:
    """Rollouts in ragged groups of 1 to 5, their labels in any order, some without a score, some groups constant."""

    def __init__(self, seed: int, groups: int = 7, num_tokens: int = 6, nan: float = 0.15) -> None:
        rng = random.Random(seed)
        sizes = [1, 2, *(rng.randint(1, 5) for _ in range(groups - 2))]
        self.labels = [f"prompt {g}" for g, size in enumerate(sizes) for _ in range(size)]
        rng.shuffle(self.labels)
        self.n, self.num_tokens = len(self.labels), num_tokens
        values = [0.0, 0.25, 1.0] if seed % 2 else [rng.random() for _ in range(5)]
        self.rewards = torch.tensor([rng.choice(values) for _ in self.labels], dtype=F64)
        for i, label in enumerate(self.labels):
            if label == "prompt 1":
                self.rewards[i] = 0.1
            if rng.random() < nan:
                self.rewards[i] = NAN
        generator = torch.Generator().manual_seed(seed)
        self.mask = torch.rand(self.n, num_tokens, generator=generator) < 0.7
        self.token_rewards = torch.where(
            torch.rand(self.n, num_tokens, generator=generator) < 0.5,
            torch.randn(self.n, num_tokens, generator=generator, dtype=F64),
            0.0,
        )
        self.log_probs = torch.randn(self.n, num_tokens, generator=generator, dtype=F64).abs().neg()
        self.squares = self.log_probs.exp().square() + 0.1


SEEDS = range(6)


# --- numbers of the papers, of their code, or of formulas written down apart from this library ---


def test_row_2_multi_objective_grpo_sums_then_normalizes():
    heads = torch.tensor([[0.8, 0.6, 0.7, 0.9], [0.2, 0.9, 0.4, 1.0], [0.5, 0.5, 0.5, 0.5], [1.0, 0.1, 0.9, 0.2]])
    assert close(multi_objective_grpo(heads, group_size=4), [1.320828, 0.172282, -0.976264, -0.516846])
    equal_weights = torch.full((4,), 0.25)
    assert torch.equal(multi_objective_grpo(heads, 4), multi_objective_grpo(heads, 4, weights=equal_weights))


def test_row_4_hrpo_adds_what_later_actions_bring():
    actions = torch.tensor([[0, -0.2, 0, 0.1, 0], [0, 0, -0.2, 0, 0], [0.1, 0.1, 0, 0, 0], [0, -0.2, -0.2, 0, 0]])
    lengths = torch.tensor([4, 3, 2, 5])
    got = hrpo(torch.tensor([1.0, 0, 1, 0]), actions, group_size=4, lengths=lengths)
    assert close(
        got,
        [
            [0.95, 0.95, 1.05, 1.05, 0],
            [-1.1, -1.1, -1.1, 0, 0],
            [1.1, 1.05, 0, 0, 0],
            [-1.2, -1.2, -1.1, -1, -1],
        ],
    )


ROW_20 = torch.tensor([1.0, 0, 1, 0, 1, 0, 0, 1, 1, 1])


def test_row_20_riskpo_mixes_the_tail_with_the_middle():
    uniform = riskpo(ROW_20, group_size=5, bundle_size=2, credit="uniform")
    assert close(uniform, [0.159363, -2.868531, 0.95618, 0.159363, 0.95618] * 2)
    shared = riskpo(ROW_20, group_size=5, bundle_size=2)
    assert close(shared[:5], [-0.318727, -1.434265, 0.47809, 0.47809, 0.47809])
    assert close(shared[5:], [0.47809, -1.434265, 0.47809, -0.318727, 0.47809])
    middle = riskpo(ROW_20, group_size=5, bundle_size=2, credit="uniform", tail=None, natural_baseline=True)
    assert close(middle[:5], [-1.992042, -2.39045, 0, -1.992042, 0])


def test_row_20_riskpo_uses_tracked_quantiles():
    tracker = RiskQuantiles()
    tracker.values[3], tracker.values[15], tracker.updates = 0.5, 1.5, 1
    got = riskpo(ROW_20, group_size=5, bundle_size=2, credit="uniform", tracker=tracker)
    assert close(got[:5], [0.398408, -1.792832, 0.796817, 0.398408, 0.796817])
    assert close(paper_scores(ROW_20, group_size=5, bundle_size=2)[:5], [1.0, 0, 2, 1, 2])


def test_row_20_quantile_tracker():
    tracker = RiskQuantiles(levels=[0.2, 0.8])
    tracker.update(torch.tensor([1.0, 0, 2, 1, 2, NAN]))
    assert close(tracker.values, [0.8, 2.0])
    tracker.values[0] = 1.0
    tracker.update(torch.tensor([1.0, 0, 2, 1, 2]))  # P(s < 1) = 0.2 and P(s < 2) = 0.6
    assert exact(tracker.values, [1.0, 2.02])


def test_row_54_copo():
    rewards = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0])
    answers = [7, 7, 7, 7, 3, 3, 4, 5, 2, 9, 2, 8]
    got = copo(rewards, answers, group_size=4, consistency_reward=True)
    assert close(got.global_advantages[::4], [1.129431, -0.772768, -0.356662])
    assert close(got.local_advantages, [0.0] * 8 + [0.866024, -0.866024] * 2)
    assert close(got.weights[::4], [0.006693, 0.924142, 0.924142])


def test_row_57_bnpo():
    a = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
    expected = [0.680175] + [-0.226725] * 3 + [0.392699] * 2 + [-0.392699] * 2 + [0.226725] * 3 + [-0.680175]
    assert close(bnpo(a, group_size=4), expected)
    assert close(bnpo(torch.tensor([0.0, 0, 1, 1]), group_size=4), [-0.5, -0.5, 0.5, 0.5])
    b = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0])
    assert close(bnpo(b, group_size=4), [0.0] * 8 + [0.5, -0.5] * 2)
    c = torch.tensor([1.0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0])
    assert close(bnpo(c, group_size=4), [0.0] * 4 + [0.469166, -0.469166] * 2 + [0.741541] + [-0.24718] * 3)


def test_row_57_bnpo_without_spread_is_reinforce_with_a_baseline():
    """Where all prompts have one success rate the paper's code gives NaN, or raises if that rate is 0 or 1."""
    half = torch.tensor([1.0, 0, 0, 1, 1, 0])
    assert bnpo(half, group_size=2).tolist() == [0.5, -0.5, -0.5, 0.5, 0.5, -0.5]
    third = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1, 0.2])  # rates that are equal but for rounding
    assert close(bnpo(third, group_size=3), [-0.1, 0, 0.1, 0.1, -0.1, 0])
    assert bnpo(torch.zeros(6), group_size=2).tolist() == [0.0] * 6
    assert bnpo(torch.ones(6), group_size=2).tolist() == [0.0] * 6


# Exactly, with 60 digits: rows 0, 2 and 4 of rewards whose prompts have rates of nearly 0.4.
CLOSE_RATES = {
    "2e-7": ([0.6, 0.2, 0.6 + 2e-7, 0.2, 0.6 - 2e-7, 0.2], F64, [8.68321505495e-8, 1.02580115563e-7, 1.02580014883e-7]),
    "2e-11": (
        [0.6, 0.2, 0.6 + 2e-11, 0.2, 0.6 - 2e-11, 0.2],
        F64,
        [8.68321577315e-12, 1.02580073713e-11, 1.02580073703e-11],
    ),
    "rounding": ([0.7, 0.1, 0.3, 0.5, 0.35, 0.45], F32, [1.02746447301e-8, -4.15110493829e-9, -1.87322822732e-9]),
}


@pytest.mark.parametrize("case", CLOSE_RATES)
def test_row_57_bnpo_keeps_its_digits_where_rates_are_close(case):
    """Log gammas of arguments of 1e22 have no digit left for their differences."""
    values, dtype, expected = CLOSE_RATES[case]
    got = bnpo(torch.tensor(values, dtype=dtype), group_size=2, least_variance=0.0)
    assert close(got[::2], expected, rtol=1e-5, atol=0.0)
    assert close(got[1::2], [-a for a in expected], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [F64, F32, torch.float16, torch.bfloat16])
def test_row_57_bnpo_takes_rates_that_rounding_parts_for_equal(dtype):
    """All rates are 0.4 or 0.7; what rounding makes of that must not decide between A = r - p and A of nearly 0."""
    for values in ([0.7, 0.1, 0.3, 0.5, 0.35, 0.45], [0.9, 0.5, 0.65, 0.75, 0.6, 0.8]):
        r = torch.tensor(values, dtype=dtype)
        half = (r.double()[::2] - r.double()[1::2]) / 2
        assert close(bnpo(r, group_size=2)[::2], half, rtol=0.01)
        raised = torch.tensor([10 * v - 5 for v in values], dtype=dtype)
        assert close(bnpo(raised, group_size=2, low=-5.0, high=5.0)[::2], half, rtol=0.01, atol=0.02)
    apart = torch.tensor([1.0, 0.0, 0.0, 0.0] * 9 + [1.0, 1.0, 0.0, 0.0], dtype=dtype)
    assert bnpo(apart, group_size=4)[0] < 0.3  # which r - p, 0.75, is not


@pytest.mark.parametrize("seed", SEEDS)
def test_bnpo_at_every_spread(seed):
    rng = random.Random(seed)
    for spread in (1e-5, 1e-3, 0.03, 0.3):
        centre = rng.uniform(0.05, 0.6)
        values = [centre + spread * rng.random() for _ in range(12)]
        expected = reference.bnpo(values, [i // 3 for i in range(12)])
        assert close(bnpo(torch.tensor(values, dtype=F64), group_size=3), expected, rtol=1e-9, atol=0.0)


def test_row_57_bnpo_decomposes_components():
    components = scores(12, 3)
    each = [bnpo(components[:, k], group_size=4) for k in range(3)]
    assert exact(bnpo(components, group_size=4), torch.stack(each).mean(0))


ROW_63 = torch.tensor([[0, 0.2, 0, 1], [0, -0.1, 0, 0.5]])


def test_row_63_igpo():
    ends, mask = ROW_63 != 0, torch.ones(2, 4)
    joint = igpo(ROW_63, ends, mask, group_size=2)
    assert close(joint, [[0.98473, 0.98473, 1.477094, 1.477094], [-0.98473, -0.98473, 0.246182, 0.246182]])
    separate = igpo(ROW_63, ends, mask, group_size=2, normalization="separate")
    row = [1.999989, 1.999989, 0.999996, 0.999996]
    assert close(separate, [row, [-a for a in row]])
    returns = igpo(torch.tensor([[0, 0.2, 0, 1], [0, -0.1, 0, 0]]), ends, mask, group_size=2, normalization="returns")
    assert close(returns, [[0.65, 0.65, 0.5, 0.5], [-0.65, -0.65, -0.5, -0.5]])


def test_row_63_information_gain():
    assert close(information_gain(torch.tensor([[-2.0], [-1.2], [-1.5]])), [0.165859, -0.078064])
    padded = torch.tensor([[-2.5, -1.5, 9.0], [-1.2, -1.2, 9.0], [-1.0, -2.0, 9.0]])
    assert close(information_gain(padded, torch.tensor([[1, 1, 0]] * 3)), [0.165859, -0.078064])
    assert close(information_gain(torch.tensor([[-2.0], [-1.2], [-1.5]]), log=True), [0.8, -0.3])


def test_row_63_a_turn_with_reward_0_is_a_turn():
    """The code of the paper takes nonzero normalized rewards as the ends of turns."""
    r = torch.tensor([[0.5, 0.5, 1.0], [0.5, 0.0, 1.0]])
    got = igpo(r, torch.tensor([[1, 1, 1], [1, 1, 1]]), torch.ones(2, 3), group_size=2, gamma=0.0)
    z = (r.double() - r.double().mean()) / ((r.double().var(correction=0) + 1e-8).sqrt() + 1e-6)
    assert close(got, z)


def test_row_70_single_stream():
    tracker = SinglestreamTracker.from_rollouts(torch.tensor([3]), 8)
    assert close(torch.stack([tracker.alpha[0], tracker.beta[0]]), [3.111111, 4.888889])
    assert close(tracker.values(), [0.388889])

    tracker = SinglestreamTracker(4)
    tracker.alpha = torch.tensor([28 / 9, 2, 6, 0.5], dtype=F64)
    tracker.beta = torch.tensor([44 / 9, 6, 2, 0.5], dtype=F64)
    prompts, rewards = torch.arange(4), torch.tensor([1.0, 0, 1, 1])
    values = tracker.values(prompts)
    assert close(rewards - values, [0.611111, -0.25, 0.25, 0.5])
    assert close(spo(rewards, values), [0.870571, -1.378405, -0.072548, 0.580381])
    weights = tracker.sampling_weights()
    assert close(weights, [0.537498, 0.483013, 0.483013, 0.55])
    assert close(weights / weights.sum(), [0.261744, 0.235212, 0.235212, 0.267832])
    tracker.update(prompts, rewards, torch.tensor([0, 0.003, 0.01, 0.06]))
    assert close(tracker.alpha, [3.986667, 1.92, 6.345392, 1.4375])
    assert close(tracker.beta, [4.693333, 6.76, 1.781797, 0.4375])


def test_row_71_aspo():
    a, p = torch.tensor([0.8, 0.8, 0.8, -1.2]), torch.tensor([100.0, 400, 700, NAN])
    lengths, eligible = torch.tensor([1000.0, 800, 1200, NAN]), torch.tensor([1, 1, 1, 0])
    assert close(aspo(a, p, lengths, eligible, group_size=4), [1.36, 0.8, 0.24, -1.2])
    assert close(aspo(a, p, lengths, eligible, group_size=4, delta=-2.5, bound=0.9), [1.52, 0.8, 0.08, -1.2])


ROW_GDPO = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0], [1, 1], [1, 1], [1, 0], [0, 1]], dtype=F32)


def test_row_gdpo_in_the_meaning_of_each_trainer():
    trl = gdpo(ROW_GDPO, group_size=4)
    assert close(trl, [1.449032, 0, 0, -1.449032, 0.836577, 0.836577, -0.836577, -0.836577])
    assert torch.equal(trl, gdpo(ROW_GDPO, group_size=4, preset="trl"))
    swift = gdpo(ROW_GDPO, group_size=4, preset="ms-swift")
    assert close(swift, [1.449138, 0, 0, -1.449138, 0.83666, 0.83666, -0.83666, -0.83666])
    lengths = torch.tensor([3, 1, 2, 3, 1, 2, 3, 2])
    verl = gdpo(ROW_GDPO, group_size=4, preset="verl", lengths=lengths)
    assert close(verl, [1.457633, 0.09271, 0.09271, -1.272212, 0.880749, 0.880749, -0.695328, -0.695328])
    sums = grpo(ROW_GDPO, group_size=4)
    assert close(sums, [1.224595, 0, 0, -1.224595, 0.865875, 0.865875, -0.865875, -0.865875])
    three = torch.tensor([[1.0, 1, 1], [1, -1, 0]])
    assert close(gdpo(three, group_size=2, preset="nemo"), [0.707107, -0.707107])


# --- those that are rules of group_advantages ---


def test_formulas_by_hand():
    r, lengths = torch.tensor([3.0, 0, 1.5, 7.0, 7.0]), torch.tensor([1, 2, 5, 4, 1])
    ids = ["a", "a", "a", "b", "b"]
    assert exact(dr_grpo(r, group_ids=ids), [1.5, -1.5, 0, 0, 0])
    assert exact(rloo(r, group_ids=ids), [2.25, -2.25, 0, 0, 0])
    mean = (3 * 1 + 0 * 2 + 1.5 * 5) / 8
    assert close(opo(r, group_ids=ids, lengths=lengths), [3 - mean, -mean, 1.5 - mean, 0, 0], atol=1e-6)
    assert exact(pass_at_k(r, group_ids=ids), [1.5, 0, 0, 0, 0])
    std = math.sqrt(((3 - 1.5) ** 2 + 1.5**2) / 2)
    assert close(pass_at_k(r, group_ids=ids, preset="verl"), [1.5 / (std + 1e-6), 0, 0, 0, 0], atol=1e-6)
    assert close(grpo(r, group_ids=ids, eps=0.0), [1.5 / std, -1.5 / std, 0, 0, 0], atol=1e-6)
    c = torch.tensor([1.5, -1.5, 0, 0, 0])
    assert close(reinforce_pp_baseline(r, group_ids=ids), c / (c.var() + 1e-8).sqrt(), atol=1e-6)
    by_token = c.repeat_interleave(lengths)
    whitened = (c - by_token.mean()) / (by_token.var() + 1e-8).sqrt()
    assert close(reinforce_pp_baseline(r, group_ids=ids, lengths=lengths), whitened, atol=1e-6)
    same = reinforce_pp_baseline(r, group_ids=ids, lengths=lengths, preset="verl")
    assert close(same, whitened, atol=1e-6)


def test_leave_one_out_std_does_not_scale_by_nothing():
    """NeMo-RL: the others of a one-hot rollout have no deviation; its own is left as it is."""
    one_hot = torch.tensor([0.0] * 7 + [1.0])
    got = leave_one_out_std(one_hot, group_size=8)
    assert close(got, [-1 / 7 / (math.sqrt(1 / 7) + 1e-6)] * 7 + [1.0], rtol=1e-6)
    noisy = torch.tensor([0.35] * 7 + [0.95])  # 3692 in NeMo-RL's float32
    assert leave_one_out_std(noisy, group_size=8)[-1].item() == pytest.approx(0.6, rel=1e-6)
    assert torch.equal(got, leave_one_out_std(one_hot, group_ids=["q"] * 8))
    assert torch.equal(got, grpo(one_hot, 8, preset="nemo"))


@pytest.mark.parametrize("seed", SEEDS)
def test_gpg_scales_by_what_scores(seed):
    batch = Batch(seed)
    got = gpg(batch.rewards, group_ids=batch.labels, f_norm=2.0)
    assert exact(got, reference.gpg(none_for_nan(batch.rewards), batch.labels, 2.0))
    masked = gpg(batch.rewards, group_ids=batch.labels, f_norm=2.0, mask=batch.mask)
    assert torch.equal(masked, torch.where(batch.mask, got[:, None], 0.0))


def test_gpg_has_one_factor_for_everyone():
    """What a rollout without a score is in alpha follows the rule for NaN."""
    r = torch.tensor([1.0, NAN, 0, 0, 1, 0, 0, 0])
    as_zero = gpg(r.nan_to_num(0.0), group_size=4)
    assert as_zero.tolist() == [3.0, -1, -1, -1, 3, -1, -1, -1]
    assert torch.equal(gpg(r, 4, nan="zero"), as_zero)
    assert torch.equal(gpg(r, 4, nan="skip_reward"), as_zero)
    assert close(gpg(r, 4)[4:], [3.5 * 0.75, -3.5 / 4, -3.5 / 4, -3.5 / 4])  # 2 of 7
    poisoned = gpg(torch.tensor([1, NAN, 0, 1, 0, 0]), 3, preset="verl")  # NaN is not 0: 3 of 6
    assert poisoned[:3].isnan().all()
    assert close(poisoned[3:], [4 / 3, -2 / 3, -2 / 3])
    with pytest.raises(ValueError, match=r"^rewards:"):
        gpg(r, 4, nan="raise")


def test_gpg_takes_weights_as_group_advantages_does():
    two = torch.tensor([[1.0, NAN], [0.0, 1.0], [0.0, 0.0], [NAN, NAN]])
    assert close(gpg(two, 4, weights=[2.0, 3.0]), [1.5 / 3, 1.5 * 4 / 3, -1.5 * 5 / 3, 0])
    ones = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    unknown = gpg(ones, 2, weights=torch.tensor([[NAN], [1.0], [1.0], [1.0]]))  # a score, and not 0: 2 of 4
    assert unknown[:2].isnan().all()
    assert unknown[2:].tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match=r"^weights:"):
        gpg(two, 4, weights=torch.ones(2, device="meta"))


def test_gpg_of_nothing_is_nothing():
    assert gpg(torch.zeros(4), group_size=2).tolist() == [0.0] * 4
    assert gpg(torch.ones(4), group_size=2).tolist() == [0.0] * 4
    assert gpg(torch.tensor([1.0, 0.0]), group_size=2, preset="verl").tolist() == [1.0, -1.0]
    two = torch.tensor([[1.0, -1.0], [1.0, 1.0]])  # sums 0 and 2
    assert gpg(two, group_size=2).tolist() == [-2.0, 2.0]


def test_rules_and_presets_are_those_of_group_advantages():
    r = scores(12, seed=3).float()
    assert torch.equal(grpo(r, 4, ddof=0, eps=0.1), group_advantages(r, 4, ddof=0, eps=0.1))
    assert torch.equal(grpo(r, 4, preset="verl"), group_advantages(r, 4, preset="verl", method="grpo"))
    assert torch.equal(rloo(r, 4, scale=None), group_advantages(r, 4, method="rloo"))
    mask = torch.ones(12, 3)
    out = torch.empty(12, 3)
    assert dr_grpo(r, 4, mask=mask, out=out) is out
    assert torch.equal(out, group_advantages(r, 4, method="dr_grpo", mask=mask))
    with pytest.raises(ValueError, match="scale"):
        grpo(r, 4, scale="everything")
    with pytest.raises(ValueError, match="preset"):
        grpo(r, 4, preset="none such")


RULES: dict[str, Estimator] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "gdpo": gdpo,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "opo": opo,
    "pass_at_k": pass_at_k,
    "leave_one_out_std": leave_one_out_std,
    "gpg": gpg,
}


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_rules_take_all_keywords_of_group_advantages(name, dtype):
    r, mask = scores(6, seed=7).to(dtype), scores(6, 4, seed=8) < 0.7
    expected = RULES[name](r, 3, mask=mask)
    assert expected.shape == (6, 4)
    out = torch.full((6, 4), 9.0, dtype=dtype)
    assert RULES[name](r, 3, mask=mask, out=out) is out
    assert torch.equal(out, expected)
    lengths = mask.sum(1)
    rows, row_out = RULES[name](r, 3, lengths=lengths), torch.full((6,), 9.0, dtype=dtype)
    assert RULES[name](r, 3, lengths=lengths, out=row_out) is row_out
    assert torch.equal(row_out, rows)
    assert torch.equal(expected, torch.where(mask, rows[:, None], 0))
    at_the_end = torch.zeros(6, 4, dtype=dtype).index_copy(1, torch.tensor([3]), r[:, None])
    assert torch.equal(RULES[name](token_rewards=at_the_end, group_size=3, mask=mask), expected)
    assert RULES[name](r, 3, mask=mask, whiten="tokens").shape == (6, 4)
    with pytest.raises(ValueError, match=r"^out:"):
        RULES[name](r, 3, lengths=lengths, out=torch.empty(5, dtype=dtype))
    with pytest.raises(ValueError, match=r"^rewards, token_rewards:"):
        RULES[name](r, 3, token_rewards=at_the_end, lengths=lengths)
    with pytest.raises(TypeError, match=r"^method:"):
        RULES[name](r, 3, method="rloo", lengths=lengths)


@pytest.mark.parametrize("name", RULES)
def test_presets_that_have_no_such_method_say_so(name):
    r, lengths = scores(6, seed=7), torch.arange(6) + 1
    method, having = name, [preset for preset in PRESETS if name in PRESETS[preset].methods]
    if name == "leave_one_out_std":
        method, having = "grpo", ["nemo"]
    for preset in PRESETS:
        if preset in having:
            expected = None if name == "gpg" else group_advantages(r, 3, lengths=lengths, preset=preset, method=method)
            got = RULES[name](r, 3, lengths=lengths, preset=preset)
            assert expected is None or torch.equal(got, expected)
        else:
            with pytest.raises(ValueError, match=f"^preset: expected .*{having[0]}.*got '{preset}'"):
                RULES[name](r, 3, lengths=lengths, preset=preset)


# --- brute force on ragged batches ---


@pytest.mark.parametrize("align", ["position", "token"])
@pytest.mark.parametrize("zero_tail", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_optimal_token_baseline_is_its_definition(seed, zero_tail, align):
    batch = Batch(seed)
    mask = batch.mask.clone()
    if align == "position":  # verl's tail is defined for masks without holes
        mask = mask.sort(dim=1, descending=True, stable=True).values
    mask[0] = False
    rewards = batch.token_rewards.clone()
    rewards[1, :] = NAN
    ratios = None if seed % 2 else 0.5 + scores(batch.n, batch.num_tokens, seed=seed)
    got = optimal_token_baseline(
        rewards,
        mask,
        batch.log_probs,
        batch.squares,
        group_ids=batch.labels,
        ratios=ratios,
        align=align,
        zero_tail=zero_tail,
    )
    advantages, returns = reference.optimal_token_baseline(
        rewards.tolist(),
        mask.tolist(),
        batch.log_probs.tolist(),
        batch.squares.tolist(),
        batch.labels,
        None if ratios is None else ratios.tolist(),
        align,
        zero_tail,
    )
    assert exact(got.returns, returns)
    assert exact(got.advantages, advantages)


def test_equal_returns_have_no_advantage_at_any_step():
    rewards = torch.zeros(3, 5)
    rewards[:, 1] = 0.1  # every rollout ends with it, or goes on for nothing
    lp, squares = -scores(3, 5).float(), scores(3, 5).float()
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    got = optimal_token_baseline(rewards, mask, lp, squares, group_size=3, eps=0.0)
    assert got.advantages.tolist() == torch.zeros(3, 5).tolist()


@pytest.mark.parametrize("singleton", ["zero", "reward"])
@pytest.mark.parametrize("seed", SEEDS)
def test_bnpo_is_its_definition(seed, singleton):
    batch = Batch(seed)
    expected = reference.bnpo(none_for_nan(batch.rewards), batch.labels, singleton)
    got = bnpo(3 * batch.rewards - 1, group_ids=batch.labels, low=-1.0, high=2.0, singleton=singleton)
    assert close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("credit", ["uniform", "sum_mean", "score", "std"])
@pytest.mark.parametrize("quantiles", ["batch", "track", "mix"])
@pytest.mark.parametrize("seed", range(4))
def test_riskpo_is_its_definition(seed, quantiles, credit):
    batch = Batch(seed, groups=9, nan=0.05)
    rng = random.Random(seed)
    bundle_of = {label: rng.choice("xyz") for label in batch.labels}
    bundles = [bundle_of[label] for label in batch.labels]
    tracker = None
    if quantiles != "batch":
        tracker = RiskQuantiles(levels=[0.2, 0.8])
        tracker.values, tracker.updates = torch.tensor([0.4, 1.1], dtype=F64), 1
    rewards = 4 * batch.rewards - 1
    for options in (
        {},
        {"tail": "upper", "natural_baseline": True, "zero_variance": "eps"},
        {"tail": None, "scale": "none"},
        {"zero_variance": "unscaled", "lower": 0.3, "upper": 0.9},
    ):
        got = riskpo(
            rewards,
            group_ids=batch.labels,
            bundle_ids=bundles,
            tracker=tracker,
            quantiles=quantiles,
            credit=credit,
            **options,
        )
        expected = reference.riskpo(
            none_for_nan(rewards),
            batch.labels,
            bundles,
            tracked=(0.4, 1.1),
            quantiles=quantiles,
            credit=credit,
            **options,
        )
        assert close(got, expected, rtol=1e-8, atol=1e-8)


def test_saturated_bundles_do_not_explode():
    """With tracked quantiles the paper's code divides by 0 + 1e-6."""
    tracker = RiskQuantiles(levels=[0.2, 0.8])
    tracker.values, tracker.updates = torch.tensor([0.5, 1.5], dtype=F64), 1
    equal = torch.ones(8)
    assert riskpo(equal, group_size=4, bundle_size=2, tracker=tracker).tolist() == [0.0] * 8
    assert riskpo(equal, group_size=4, bundle_size=2, tracker=tracker, zero_variance="eps").abs().max() > 1e5
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1
    but_for_rounding = torch.tensor([0.1, 0.3, 0.2, 0.2, 0.3, 0.1], dtype=F64)
    assert riskpo(but_for_rounding, group_size=2, bundle_size=3, tracker=tracker).tolist() == [0.0] * 6


def test_bundles_are_consecutive_questions():
    r = scores(24, seed=5)
    by_size = riskpo(r, group_size=4, bundle_size=2)
    by_ids = riskpo(r, group_size=4, bundle_ids=torch.arange(24) // 8)
    assert torch.equal(by_size, by_ids)
    names = [f"question {9 - i // 4}" for i in range(24)]  # the order of appearance, not of names
    assert torch.equal(by_size, riskpo(r, group_ids=names, bundle_size=2))
    assert torch.equal(by_size, riskpo(r, offsets=torch.arange(0, 25, 4), bundle_size=2))


@pytest.mark.parametrize("consistency_reward", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_copo_is_its_definition(seed, consistency_reward):
    batch = Batch(seed)
    rng = random.Random(seed)
    answers = [rng.choice(["4", "5", "none"]) for _ in range(batch.n)]
    got = copo(batch.rewards, answers, group_ids=batch.labels, consistency_reward=consistency_reward)
    expected = reference.copo(none_for_nan(batch.rewards), answers, batch.labels, consistency_reward=consistency_reward)
    for a, b in zip(got, expected, strict=True):
        assert close(a, b, rtol=1e-9, atol=1e-9)


def test_copo_blends():
    rewards, answers = torch.tensor([1.0, 0, 1, 1]), ["a", "b", "c", "c"]
    soft = copo(rewards, answers, group_size=2).weights
    weights = {blend: copo(rewards, answers, group_size=2, blend=blend).weights.tolist() for blend in BLENDS}
    assert weights["local"] == [1.0] * 4
    assert weights["global"] == [0.0] * 4
    assert weights["zero"] == [1.0, 0.0, 1.0, 1.0]
    assert weights["soft_zero"] == [1.0, soft[1].item(), 1.0, 1.0]
    assert weights["soft_forced"] == [1.0, 1.0, soft[2].item(), soft[3].item()]


BLENDS = ("soft", "soft_forced", "soft_zero", "zero", "global", "local")


@pytest.mark.parametrize("normalization", ["joint", "separate", "returns"])
@pytest.mark.parametrize("seed", SEEDS)
def test_igpo_is_its_definition(seed, normalization):
    batch = Batch(seed)
    ends = torch.rand(batch.n, batch.num_tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    rewards = batch.token_rewards.clone()
    rewards[0, ends[0]] = NAN
    options = {"normalization": normalization, "gamma": 0.9, "gain_weight": 0.5, "outcome_weight": 2.0}
    got = igpo(rewards, ends, batch.mask, group_ids=batch.labels, **options)
    expected = reference.igpo(rewards.tolist(), ends.tolist(), batch.mask.tolist(), batch.labels, **options)
    assert exact(got, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_hrpo_is_its_definition(seed):
    batch = Batch(seed)
    actions = batch.token_rewards
    got = hrpo(
        batch.rewards, actions, group_ids=batch.labels, mask=batch.mask, coefficient=0.3, gamma=0.8, exempt_actions=2
    )
    expected = reference.hrpo(
        none_for_nan(batch.rewards), actions.tolist(), batch.labels, batch.mask.tolist(), 0.3, 0.8, 2
    )
    assert exact(got, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_aspo_is_its_definition(seed):
    batch = Batch(seed, nan=0.0)
    positions, lengths = 100 * scores(batch.n, seed=seed), 50 + 100 * scores(batch.n, seed=seed + 50)
    eligible = batch.mask[:, 0]
    got = aspo(batch.rewards, positions, lengths, eligible, group_ids=batch.labels)
    lists = (x.tolist() for x in (batch.rewards, positions, lengths, eligible))
    assert exact(got, reference.aspo(*lists, batch.labels))


# --- what holds for all of them ---

T = 3


def _tokens(r: torch.Tensor) -> torch.Tensor:
    """(N, T) with the reward at the last token."""
    return torch.cat([torch.zeros_like(r[:, None]).expand(-1, T - 1), r[:, None]], 1)


def _ones(r: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(r), T, device=r.device)


def _counts(r: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(r), device=r.device) % 3 + 1


def _same(r: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(r, dtype=torch.int64)


def _halves(r: torch.Tensor) -> torch.Tensor:
    return torch.full((len(r), T), 0.5, device=r.device)


ALL: dict[str, Estimator] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "gdpo": gdpo,
    "reinforce_pp_baseline": lambda r, **g: reinforce_pp_baseline(r, lengths=_counts(r), **g),
    "opo": lambda r, **g: opo(r, lengths=_counts(r), **g),
    "gpg": gpg,
    "pass_at_k": pass_at_k,
    "leave_one_out_std": leave_one_out_std,
    "multi_objective_grpo": lambda r, **g: multi_objective_grpo(torch.stack([r, r], 1), **g),
    "optimal_token_baseline": lambda r, **g: (
        optimal_token_baseline(_tokens(r), _ones(r), _halves(r).log(), _halves(r), eps=0.0, **g).advantages
    ),
    "optimal_turn_baseline": lambda r, **g: (
        optimal_token_baseline(
            _tokens(r), _ones(r), _halves(r).log(), _halves(r), eps=0.0, align="token", **g
        ).advantages
    ),
    "bnpo": bnpo,
    "riskpo": lambda r, **g: riskpo(r, bundle_ids=_same(r), **g),
    "copo": lambda r, **g: copo(r, _same(r), **g).local_advantages,
    "copo_global": lambda r, **g: copo(r, _same(r), **g).global_advantages,
    "igpo": lambda r, **g: igpo(_tokens(r), _tokens(torch.ones_like(r)), _ones(r), **g),
    "igpo_separate": lambda r, **g: igpo(
        _tokens(r), _tokens(torch.ones_like(r)), _ones(r), normalization="separate", **g
    ),
    "igpo_returns": lambda r, **g: igpo(
        _tokens(r), _tokens(torch.ones_like(r)), _ones(r), normalization="returns", **g
    ),
    "hrpo": lambda r, **g: hrpo(r, 0 * _halves(r), **g),
    "spo": lambda r, **g: spo(r, torch.full_like(r, 0.25)),
    "aspo": lambda r, **g: aspo(dr_grpo(r, **g), _counts(r), 9 * _counts(r), r > 0.4, **g),
}
# Its groups are of rollouts; the batch itself compares prompts.
COMPARE_THE_BATCH = {"copo_global", "spo"}
# A rollout alone in its group keeps its return.
SINGLETON_KEEPS = {"optimal_token_baseline", "optimal_turn_baseline"}
ACROSS_GROUPS = {*COMPARE_THE_BATCH, "gdpo", "reinforce_pp_baseline", "gpg", "bnpo", "riskpo"}


def rows_of(result: torch.Tensor) -> torch.Tensor:
    return result if result.dim() == 1 else result[:, -1]


def test_all_of_them_are_here():
    named = {name for name in estimators.__all__ if inspect.isfunction(getattr(estimators, name))}
    assert named - {"information_gain", "paper_scores"} <= set(ALL)
    assert all(getattr(estimators, name).__doc__ for name in estimators.__all__)


@pytest.mark.parametrize("name", ALL)
def test_nothing_gives_nothing(name):
    for groups in ({"group_size": 4}, {"group_ids": []}, {"offsets": torch.tensor([0])}):
        got = ALL[name](torch.zeros(0), **groups)
        assert got.shape[0] == 0
        assert got.dtype == F32


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.1, 0.35, 1.0])
def test_a_constant_batch_is_exactly_zero(name, value):
    for n, groups in ((7, {"group_size": 7}), (6, {"group_ids": ["b", "a", "b", "a", "b", "a"]})):
        for dtype in (F32, torch.bfloat16):
            got = ALL[name](torch.full((n,), value, dtype=dtype), **groups)
            assert got.dtype == dtype
            assert not got.any()


@pytest.mark.parametrize("name", sorted(set(ALL) - COMPARE_THE_BATCH))
def test_groups_of_one_are_zero(name):
    got = ALL[name](torch.tensor([1.0, 0.0, 0.5]), group_ids=["a", "b", "c"])
    assert rows_of(got).tolist() == ([1.0, 0.0, 0.5] if name in SINGLETON_KEEPS else [0.0] * 3)


@pytest.mark.parametrize("name", ALL)
def test_nan_is_not_scored(name):
    r = torch.tensor([1.0, NAN, 0.25, 0.0, NAN, 0.5, 0.0, 1.0])
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    got, scored = rows_of(ALL[name](r, group_ids=ids)), ~r.isnan()
    assert not got.isnan().any()
    if name != "aspo":  # which keeps the advantages that it gets
        assert got[~scored].tolist() == [0.0, 0.0]
    if name not in ("opo", "reinforce_pp_baseline", "aspo"):  # whose token counts belong to rows
        without = rows_of(ALL[name](r[scored], group_ids=ids[scored]))
        assert close(got[scored], without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_ways_to_name_groups_agree(name):
    r = scores(12, seed=8).float()
    expected = ALL[name](r, group_size=4)
    for groups in (
        {"group_ids": torch.arange(12) // 4 * 10**12 - 5},
        {"group_ids": np.array([f"uid-{i // 4}" for i in range(12)], dtype=object)},
        {"group_ids": (torch.arange(12) // 4)[:, None] + torch.arange(3)},
        {"offsets": torch.tensor([0, 4, 4, 8, 12])},
    ):
        assert close(ALL[name](r, **groups), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_dtypes(name):
    r = (scores(12, seed=9) * 8).round() / 8  # the same in every dtype
    expected = ALL[name](r, group_size=4)
    assert expected.dtype == F64
    for dtype, rtol in ((F32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        got = ALL[name](r.to(dtype), group_size=4)
        assert got.dtype == dtype
        assert close(got, expected, rtol=rtol, atol=rtol)


@given(data=st.data())
@pytest.mark.parametrize("name", sorted(set(ALL) - {"opo", "reinforce_pp_baseline", "riskpo", "aspo", "pass_at_k"}))
def test_order_of_rollouts_does_not_matter(name, data):
    values = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN]), min_size=1, max_size=9))
    ids = data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    order = data.draw(st.permutations(range(len(values))))
    r, labels = torch.tensor(values, dtype=F64), torch.tensor(ids)
    got = ALL[name](r, group_ids=labels)
    assert not got.isnan().any()
    assert close(ALL[name](r[order], group_ids=labels[order]), got[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(ALL) - ACROSS_GROUPS))
def test_groups_do_not_see_each_other(name):
    r = scores(12, seed=4)
    both = ALL[name](r, group_size=6)
    for half in (slice(0, 6), slice(6, 12)):
        assert close(ALL[name](r[half], group_size=6), both[half], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, F32])
def test_tokens_are_filled_in_every_estimator_of_rollouts(mask_dtype):
    r, mask = scores(4, seed=1).float(), (scores(4, 5, seed=2) < 0.6).to(mask_dtype)
    tracker_values = torch.full((4,), 0.5)
    calls: dict[str, Estimator] = {
        "bnpo": lambda **t: bnpo(r, group_size=2, **t),
        "riskpo": lambda **t: riskpo(r, group_size=2, bundle_size=2, **t),
        "spo": lambda **t: spo(r, tracker_values, **t),
        "aspo": lambda **t: aspo(r, r, r, r > 0, group_size=4, **t),
        "gpg": lambda **t: gpg(r, group_size=2, **t),
    }
    for name, call in calls.items():
        rows = call()
        assert torch.equal(call(mask=mask), torch.where(mask != 0, rows[:, None], 0.0)), name
        lengths = torch.tensor([0, 1, 5, 2])
        first = torch.arange(5) < lengths[:, None]
        assert torch.equal(call(lengths=lengths, num_tokens=5), torch.where(first, rows[:, None], 0.0)), name


def test_nothing_waits_for_a_device(monkeypatch):
    """No operation whose result a host would have to read first; checks of values are for the CPU only."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            by_mask = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
            assert name not in waits, name
            assert not by_mask, "a mask as an index"
            return function(*args, **(kwargs or {}))

    r, ids = scores(12, seed=1), torch.arange(12) % 3
    tracker, values = RiskQuantiles(), SinglestreamTracker(12)
    tracker.update(r)
    with Watch():
        for name in ALL:
            for groups in ({"group_size": 4}, {"group_ids": ids}, {"offsets": torch.arange(0, 13, 4)}):
                ALL[name](r, **groups)
        riskpo(r, group_size=4, bundle_size=2, tracker=tracker, credit="std")
        tracker.update(paper_scores(r, group_size=4, bundle_size=2))
        values.update(torch.arange(12), r, SinglestreamTracker.divergence(r[:, None], r[:, None], r[:, None]))
        values.sample(4)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            float(r[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_gives_the_same_without_being_waited_for(name):
    r = scores(12, seed=6).float()
    r[3] = NAN
    for groups in ({"group_size": 4}, {"group_ids": torch.arange(12) * 5 % 3}, {"offsets": torch.arange(0, 13, 4)}):
        there = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in groups.items()}
        on_gpu = r.cuda()
        ALL[name](on_gpu, **there)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = ALL[name](on_gpu, **there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert close(got.cpu(), ALL[name](r, **groups), rtol=1e-6, atol=1e-6)


def _on_rank(r: torch.Tensor, ids: list[str], tokens: torch.Tensor) -> list[torch.Tensor]:
    groups = {"group_ids": ids, "process_group": torch.distributed.group.WORLD}
    return [
        grpo(r, **groups),
        gpg(r, **groups),
        hrpo(r, tokens, **groups),
        aspo(r, tokens[:, 0], 1 + tokens[:, 1].abs(), r > 0.4, **groups),
        spo(r, tokens[:, 0], process_group=torch.distributed.group.WORLD),
        bnpo(r, **groups),
        *copo(r, ["yes" if x > 0.5 else "no" for x in r.tolist()], **groups),
        riskpo(r, bundle_ids=["left" if i == "a" else "right" for i in ids], credit="std", **groups),
        riskpo(r, bundle_size=2, **groups),
        paper_scores(r, bundle_size=2, **groups)[-len(r) :],
    ]


def test_groups_that_span_ranks_give_the_gathered_result(tmp_path):
    r, tokens = scores(9, seed=1), scores(9, 4, seed=2) - 0.5
    r[4] = NAN
    ids = list("abcabcabc")
    ranks = Ranks(2, tmp_path)
    try:
        parts = [slice(0, 5), slice(5, 9)]
        answers = ranks.run(_on_rank, [(r[own], ids[own], tokens[own]) for own in parts])
    finally:
        ranks.stop()
    alone = [
        grpo(r, group_ids=ids),
        gpg(r, group_ids=ids),
        hrpo(r, tokens, group_ids=ids),
        aspo(r, tokens[:, 0], 1 + tokens[:, 1].abs(), r > 0.4, group_ids=ids),
        spo(r, tokens[:, 0]),
        bnpo(r, group_ids=ids),
        *copo(r, ["yes" if x > 0.5 else "no" for x in r.tolist()], group_ids=ids),
        riskpo(r, group_ids=ids, bundle_ids=["left" if i == "a" else "right" for i in ids], credit="std"),
        riskpo(r, group_ids=ids, bundle_size=2),
    ]
    papers = paper_scores(r, group_ids=ids, bundle_size=2)
    for rank, part in enumerate(parts):
        assert torch.equal(answers[rank].pop().nan_to_num(9.0), papers[-len(r[part]) :].nan_to_num(9.0))
    for expected, *of_ranks in zip(alone, *answers, strict=True):
        assert torch.equal(torch.cat(of_ranks).nan_to_num(9.0), expected.nan_to_num(9.0))


def test_inputs_stay_as_they_are():
    batch = Batch(1)
    before = batch.rewards.clone()
    bnpo(batch.rewards, group_ids=batch.labels)
    riskpo(batch.rewards, group_ids=batch.labels, bundle_size=3)
    gpg(batch.rewards, group_ids=batch.labels)
    assert torch.equal(batch.rewards.nan_to_num(9.0), before.nan_to_num(9.0))
    assert not grpo(torch.ones(2, requires_grad=True), 2).requires_grad
    assert not bnpo(torch.ones(2, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", sorted(set(ALL) - {"bnpo"}))  # whose rewards have bounds
def test_an_infinite_score_poisons_its_group_or_the_batch(name, sign):
    got = rows_of(ALL[name](torch.tensor([sign * math.inf, 0, 1, 0, 0.5, 0, 1, 0]), group_size=4))
    assert got[:4].isnan().all()
    compares_the_batch = name in ACROSS_GROUPS - {"gpg"}
    assert got[4:].isnan().all() if compares_the_batch else got[4:].isfinite().all()


def test_a_prompt_with_an_infinite_score_poisons_all_prompts_of_copo():
    answers = [1, 2, 1, 2, 1, 2]
    for rewards in ([math.inf, 0, 1, 0, 0, 0], [0, -math.inf, 1, NAN, 0, 0], [math.inf, -math.inf, 1, 0, 0, 0]):
        for consistency_reward in (True, False):
            got = copo(torch.tensor(rewards), answers, 2, consistency_reward=consistency_reward)
            unscored = torch.tensor(rewards).isnan()
            assert torch.equal(got.global_advantages.isnan(), ~unscored)
            assert got.local_advantages[:2].isnan().all()
            assert got.local_advantages[2:].isfinite().all()
            assert got.weights.isfinite().all()


def test_aspo_lets_no_infinity_through():
    a, p, n = torch.tensor([1.0, 2.0, -1.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0] * 4)
    on, infinity = torch.tensor([1, 1, 1, 0]), torch.tensor([math.inf, 0, 0, 0])
    shaped = aspo(a, p, n, on, 4)
    for sign in (1, -1):
        got = aspo(a + sign * infinity, p, n, on, 4)
        assert got[0].isnan()
        assert torch.equal(got[1:], shaped[1:])
    for got in (aspo(a, p + infinity, n, on, 4), aspo(a, p, n + infinity, on, 4)):
        assert got[:3].isnan().all()
        assert got[3] == a[3]
    unknown = aspo(a, p, n + infinity * 0, on, 4)  # NaN: no part of the means
    assert unknown[0] == a[0]
    assert unknown[1:].isfinite().all()


def test_labels_travel_as_columns():
    like = torch.zeros(3)
    assert label_columns(["a", "b", "a"], 3, like).shape == (3, 2)
    assert label_columns(torch.tensor([5, 6, 5], dtype=torch.int32), 3, like).tolist() == [[5], [6], [5]]
    rows = torch.arange(6).reshape(3, 2)
    assert torch.equal(label_columns(rows, 3, like), rows)
    for wrong in (["a"], [None] * 3, [1.0] * 3, [1, 2], torch.ones(3, 1, 1, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError), match=r"^answers: "):
            label_columns(wrong, 3, like, "answers")


# --- trackers ---


def test_quantile_tracker_saves_and_restores():
    tracker = RiskQuantiles(learning_rate=0.3)
    for seed in range(3):
        tracker.update(scores(20, seed=seed))
    again = RiskQuantiles(levels=[0.5])
    again.load_state_dict(tracker.state_dict())
    tracker.update(scores(20, seed=9))
    again.update(scores(20, seed=9))
    assert torch.equal(tracker.values, again.values)
    assert again.quantile(0.2) == tracker.values[3]
    with pytest.raises(ValueError, match="values"):
        again.load_state_dict({**tracker.state_dict(), "values": torch.zeros(2)})


def test_quantile_tracker_follows_a_distribution():
    tracker = RiskQuantiles(learning_rate=0.05)
    for seed in range(200):
        tracker.update(2 + scores(64, seed=seed))
    assert close(tracker.values, 2 + torch.arange(1, 20) / 20, atol=0.05)


def test_quantile_tracker_ignores_what_is_not_scored():
    tracker = RiskQuantiles()
    tracker.update(torch.zeros(0))
    tracker.update(torch.full((3,), NAN))
    assert tracker.updates == 0
    tracker.update(torch.tensor([1.0, NAN, 3.0]))
    before = tracker.values
    tracker.update(torch.full((3,), NAN))
    assert torch.equal(tracker.values, before)
    assert tracker.quantile(0.5) == 2.0


def test_quantile_tracker_takes_any_number_of_scores():
    """`torch.quantile` and `torch.nanquantile` end at 2^24."""
    tracker = RiskQuantiles(levels=[0.25, 0.5])
    tracker.update(torch.arange(2**24 + 1, dtype=F32))
    assert tracker.values.tolist() == [2.0**22, 2.0**23]


@pytest.mark.parametrize("first", [True, False])
def test_quantile_tracker_survives_infinite_scores(first):
    tracker, without = RiskQuantiles(), RiskQuantiles()
    if not first:
        tracker.update(torch.tensor([1.0, 2.0, 4.0]))
        without.update(torch.tensor([1.0, 2.0, 4.0]))
    tracker.update(torch.tensor([math.inf, 3.0, -math.inf, NAN, 1.0, -math.inf]))
    without.update(torch.tensor([3.0, 1.0]))
    assert torch.equal(tracker.values, without.values)
    assert tracker.values.isfinite().all()


def test_quantile_tracker_is_its_definition():
    tracker, expected = RiskQuantiles(learning_rate=0.2), None
    levels = torch.arange(1, 20, dtype=F64) / 20
    for seed in range(4):
        s = (8 * scores(30, seed=seed)).round()
        tracker.update(s)
        if expected is None:
            expected = torch.quantile(s, levels)
        else:
            expected = expected + 0.2 * (levels - (s < expected[:, None]).double().mean(1))
        assert exact(tracker.values, expected)


@pytest.mark.parametrize("levels", [[], [0.5, 0.2], [0.0, 0.5], [0.5, 1.0]])
def test_quantile_tracker_wants_ascending_levels(levels):
    with pytest.raises(ValueError, match="levels"):
        RiskQuantiles(levels=levels)


def test_single_stream_tracker_saves_and_restores():
    tracker = SinglestreamTracker.from_rollouts(torch.tensor([3, 0, 8]), torch.tensor([8, 4, 8]), half_life=0.1)
    again = SinglestreamTracker(1)
    again.load_state_dict(tracker.state_dict())
    for each in (tracker, again):
        each.update(torch.tensor([2, 0]), torch.tensor([0.0, 1.0]), torch.tensor([0.02, 0.0]))
    assert torch.equal(tracker.alpha, again.alpha)
    assert torch.equal(tracker.beta, again.beta)


def test_rollouts_are_a_number_or_one_for_each_prompt():
    s = torch.tensor([3, 0])
    expected = SinglestreamTracker.from_rollouts(s, 8)
    for rollouts in (np.int64(8), 8.0, torch.tensor(8), [8, 8], np.array([8, 8])):
        assert torch.equal(SinglestreamTracker.from_rollouts(s, rollouts).alpha, expected.alpha)


def test_single_stream_tracker_without_scores_stays():
    tracker = SinglestreamTracker(3)
    before = tracker.alpha.clone()
    tracker.update(torch.tensor([0, 1]), torch.tensor([NAN, 1.0]))
    assert tracker.alpha[0] == before[0]
    assert tracker.alpha[1] == 0.96 * 0.5 + 1
    assert tracker.alpha[2] == before[2]
    assert spo(torch.tensor([NAN, 1.0, 0.0]), tracker.values())[0] == 0


def test_a_prompt_that_comes_twice_adds_both_rewards():
    tracker = SinglestreamTracker(2)
    tracker.update(torch.tensor([1, 1]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    rho = (0.96 + 0.875) / 2
    assert exact(tracker.alpha, [0.5, rho * 0.5 + 1])
    assert exact(tracker.beta, [0.5, rho * 0.5 + 1])


def test_single_stream_tracker_takes_an_unknown_divergence_for_none():
    tracker, without = SinglestreamTracker(2), SinglestreamTracker(2)
    tracker.update(torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), torch.tensor([NAN, math.inf]))
    without.update(torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 9.0]))
    assert torch.equal(tracker.alpha, without.alpha)
    assert torch.equal(tracker.beta, without.beta)
    assert tracker.values().isfinite().all()


def test_single_stream_tracker_clips_where_nobody_looks(monkeypatch):
    """As on a GPU, which would have to be waited for."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    tracker = SinglestreamTracker(3)
    tracker.update(torch.arange(3), torch.tensor([5.0, -3.0, math.inf]), torch.tensor([-1.0, -math.inf, 0.0]))
    assert exact(tracker.alpha, [0.48 + 1, 0.48, 0.48 + 1])
    assert exact(tracker.beta, [0.48, 0.48 + 1, 0.48])


def test_sampling_prefers_what_is_not_known():
    tracker = SinglestreamTracker.from_rollouts(torch.tensor([4, 8, 4, 0]), 8)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([tracker.sample(2, generator=generator) for _ in range(2000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    weights = tracker.sampling_weights(exploration=0.05)
    first = torch.bincount(drawn[:, 0], minlength=4) / 2000
    assert close(first, weights / weights.sum(), atol=0.04)
    some = tracker.sample(2, prompts=torch.tensor([3, 1]), generator=generator)
    assert sorted(some.tolist()) == [1, 3]


def test_divergence_is_a_masked_mean():
    stored, now = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]]), torch.tensor([[-1.5, 9.0], [-1.0, -1.0]])
    got = SinglestreamTracker.divergence(stored, now, torch.tensor([[1, 0], [0, 0]]))
    assert got.tolist() == [0.5, 0.0]


# --- the page ---


def test_the_python_of_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "advantages.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    with redirect_stdout(StringIO()):
        for block in blocks:
            exec(compile(block, "advantages.md", "exec"), names)
    assert names["per_token"].shape == (4, 3)
    missing = [name for name in estimators.__all__ if name.islower() and f"`{name}" not in page and name not in names]
    assert not missing


def test_the_page_says_which_presets_have_an_estimator():
    page = (Path(__file__).parents[1] / "docs" / "advantages.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (all.*|`.*`) \| [^|]* \|$", page, flags=re.MULTILINE)
    assert {name for name, _ in rows} == {*RULES, "multi_objective_grpo"}
    for name, said in rows:
        method = {"multi_objective_grpo": "grpo"}.get(name, name)
        having = {preset for preset in PRESETS if method in PRESETS[preset].methods}
        named = set(re.findall(r"`([\w-]+)`", said))
        assert (set(PRESETS) - named if said.startswith("all") else named) == (having or {"nemo"}), name


# --- bad input ---

STATE = SinglestreamTracker(2).state_dict()
TOKENS = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: grpo(torch.ones(3), 2), "group_size"),
        (lambda: grpo(torch.ones(2), 2, method="rloo"), "method"),
        (lambda: gpg(torch.ones(2), 2, f_norm=0), "f_norm"),
        (lambda: multi_objective_grpo(torch.ones(2), 2), "scores"),
        (lambda: bnpo(torch.tensor([0.5, 2.0]), 2), "rewards"),
        (lambda: bnpo(torch.ones(2), 2, low=1.0), "low, high"),
        (lambda: bnpo(torch.ones(2), 2, singleton="nan"), "singleton"),
        (lambda: bnpo(torch.ones(2)), "group_size, group_ids, offsets"),
        (lambda: bnpo(torch.ones(2), offsets=torch.tensor([0, 3])), "offsets"),
        (lambda: bnpo(torch.ones(2), 2, mask=torch.ones(3, 2)), "mask"),
        (lambda: bnpo(torch.ones(2), 2, mask=torch.ones(2, 2), lengths=torch.ones(2)), "mask, lengths"),
        (lambda: riskpo(torch.ones(2), 2), "bundle_size, bundle_ids"),
        (lambda: riskpo(torch.ones(2), 2, bundle_size=0), "bundle_size"),
        (lambda: riskpo(torch.ones(2), 2, bundle_ids=["a"]), "bundle_ids"),
        (lambda: riskpo(torch.ones(2), 2, bundle_size=1, credit="all"), "credit"),
        (lambda: riskpo(torch.ones(2), 2, bundle_size=1, quantiles="track"), "tracker"),
        (lambda: riskpo(torch.ones(2), 2, bundle_size=1, lower=0.9), "lower, upper"),
        (lambda: riskpo(torch.ones(2, 2), 2, bundle_size=1), "rewards"),
        (lambda: copo(torch.ones(2), ["a"], 2), "answers"),
        (lambda: copo(torch.ones(2), ["a", "b"], 2, blend="hard"), "blend"),
        (lambda: igpo(torch.ones(2), torch.ones(2), torch.ones(2), 2), "token_rewards"),
        (lambda: igpo(torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 3), 2), "turn_ends"),
        (lambda: igpo(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2), 2), "mask"),
        (lambda: igpo(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3), 2, normalization="none"), "normalization"),
        (lambda: hrpo(torch.ones(2), torch.ones(3, 2), 2), "action_rewards"),
        (lambda: spo(torch.ones(2), torch.ones(3)), "values"),
        (lambda: aspo(torch.ones(2), torch.ones(3), torch.ones(2), torch.ones(2), 2), "call_positions"),
        (lambda: aspo(torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2), 2, bound=-1), "bound"),
        (lambda: optimal_token_baseline(*[torch.ones(2, 2)] * 4, 2, align="turn"), "align"),
        (lambda: optimal_token_baseline(*[torch.ones(2, 2)] * 3, torch.ones(2), 2), "sum_squared_probs"),
        (lambda: SinglestreamTracker(2).update(torch.tensor([2]), torch.ones(1)), "prompts"),
        (lambda: SinglestreamTracker(2).update(torch.tensor([1]), torch.ones(2)), "rewards"),
        (lambda: SinglestreamTracker(2, least_rho=0.97), "least_rho, most_rho"),
        (lambda: SinglestreamTracker(2).sample(3), "count"),
        (lambda: information_gain(torch.ones(3)), "log_probs"),
        (lambda: gpg(torch.ones(2), 2, f_norm=NAN), "f_norm"),
        (lambda: gpg(group_size=2), "rewards, token_rewards"),
        (lambda: bnpo(torch.ones(2), 2, least_variance=-1.0), "least_variance"),
        (lambda: bnpo(torch.ones(2), 2, least_variance=NAN), "least_variance"),
        (lambda: bnpo(torch.ones(2), 2, max_weight=-1.0), "max_weight"),
        (lambda: hrpo(torch.ones(2), torch.ones(2, 3), 2, lengths=[1, 4]), "lengths"),
        (lambda: hrpo(torch.ones(2), torch.ones(2, 3), 2, lengths=[-1, 3]), "lengths"),
        (lambda: hrpo(torch.ones(2), torch.ones(2, 3), 2, lengths=[3]), "lengths"),
        (lambda: hrpo(torch.ones(2), torch.ones(2, 3), 2, mask=torch.ones(2, 2)), "mask"),
        (lambda: hrpo(torch.ones(2), torch.ones(2, 3), 2, mask=torch.ones(2, 3), lengths=[3, 3]), "mask, lengths"),
        (lambda: spo(torch.ones(2), torch.ones(2), eps=math.inf), "eps"),
        (lambda: riskpo(torch.ones(2), 2, bundle_size=1, tracker="x"), "tracker"),
        (lambda: RiskQuantiles(learning_rate=-1.0), "learning_rate"),
        (lambda: RiskQuantiles(learning_rate=NAN), "learning_rate"),
        (lambda: RiskQuantiles().load_state_dict({**RiskQuantiles().state_dict(), "values": [NAN] * 19}), "values"),
        (lambda: SinglestreamTracker(2, half_life=math.inf), "half_life"),
        (lambda: SinglestreamTracker(2).update(torch.tensor([1]), torch.tensor([5.0])), "rewards"),
        (lambda: SinglestreamTracker(2).update(torch.tensor([1]), torch.tensor([-3.0])), "rewards"),
        (lambda: SinglestreamTracker(2).update(torch.tensor([1]), torch.ones(1), torch.tensor([-0.1])), "divergence"),
        (lambda: SinglestreamTracker(2).update([1], torch.ones(1), torch.zeros(1, device="meta")), "divergence"),
        (lambda: SinglestreamTracker(2).update([1], torch.ones(1), torch.zeros(2)), "divergence"),
        (lambda: SinglestreamTracker.from_rollouts([1], torch.ones(1, device="meta")), "rollouts"),
        (lambda: SinglestreamTracker.from_rollouts([1], [1, 1]), "rollouts"),
        (lambda: SinglestreamTracker.divergence(TOKENS, TOKENS, TOKENS.to("meta")), "mask"),
        (lambda: SinglestreamTracker.divergence(TOKENS.to("meta"), TOKENS, TOKENS), "stored_log_probs"),
        (lambda: SinglestreamTracker.divergence(TOKENS, TOKENS, TOKENS[0]), "mask"),
        (lambda: spo(torch.ones(2), torch.ones(2, device="meta")), "values"),
        (lambda: spo(torch.ones(2), torch.ones(2, dtype=torch.complex64)), "values"),
        (lambda: SinglestreamTracker(2).sample(1, exploration=-5), "exploration"),
        (lambda: SinglestreamTracker(2).sample(1, exploration=NAN), "exploration"),
        (lambda: SinglestreamTracker(2).sample(1, exploration=math.inf), "exploration"),
        (lambda: SinglestreamTracker.from_rollouts([3], 2), "successes, rollouts"),
        (lambda: SinglestreamTracker.from_rollouts([-1], 2), "successes, rollouts"),
        (lambda: SinglestreamTracker.from_rollouts([0], -1), "successes, rollouts"),
        (lambda: SinglestreamTracker.from_rollouts([0.0], NAN), "successes, rollouts"),
        (lambda: SinglestreamTracker(1).load_state_dict({**STATE, "alpha": [NAN, 1.0]}), "alpha, beta"),
        (lambda: SinglestreamTracker(1).load_state_dict({**STATE, "beta": [-0.5, 1.0]}), "alpha, beta"),
    ],
)
def test_errors_name_the_argument(call, match):
    with pytest.raises((ValueError, TypeError), match=f"^{match}:"):
        call()
