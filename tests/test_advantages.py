"""group_advantages: every method x scale, exact zeros, NaN and infinity policies, and error messages."""

from __future__ import annotations

import itertools
import math
import uuid
from dataclasses import asdict
from typing import get_args

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast import advantage_presets as presets
from references import advantages as reference

F64 = torch.float64
INF = math.inf
NAN = math.nan
COMBINATIONS = [
    *itertools.product(["grpo", "rloo", "gdpo"], ["group", "batch", "none"]),
    ("dr_grpo", "none"),
]
METHODS = ["grpo", "dr_grpo", "rloo", "gdpo"]


def advantages(rewards, group_size=None, **options) -> torch.Tensor:
    if rewards is not None and not isinstance(rewards, torch.Tensor):
        rewards = torch.tensor(rewards, dtype=F64)
    return morlfast.group_advantages(rewards, group_size, **options)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def expected(
    rewards: torch.Tensor, groups, weights: torch.Tensor | None = None, lengths=None, *, method="grpo", **options
) -> torch.Tensor:
    n = len(rewards)
    table = rewards.double().reshape(n, rewards.shape[1] if rewards.ndim == 2 else 1)
    if weights is not None:
        weights = weights.double().expand(table.shape).tolist()
    rules = asdict(presets.rules_of("trl", method)) | options
    return torch.tensor(reference.group_advantages(table.tolist(), list(groups), weights, lengths, **rules), dtype=F64)


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def blocks(n: int, group_size: int) -> list[int]:
    return [i // group_size for i in range(n)]


@st.composite
def batches(draw, scored: bool = False):
    """Eighths in [-2, 2], some NaN; weights (M,), (N, M) or none; every method, scale, eps and ddof."""
    n = draw(st.integers(0, 12))
    m = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rewards = rng.integers(-16, 17, (n, m)) / 8
    if not scored:
        rewards[rng.random((n, m)) < draw(st.sampled_from([0.0, 0.2, 0.8]))] = NAN
    weights = {
        "none": None,
        "objective": rng.integers(-8, 9, m) / 4,
        "sample": rng.integers(-8, 9, (n, m)) / 4,
    }[draw(st.sampled_from(["none", "objective", "sample"]))]
    labels = rng.integers(-2, 2, n).tolist()
    method, scale = draw(st.sampled_from(COMBINATIONS))
    options = {
        "method": method,
        "scale": scale,
        "eps": draw(st.sampled_from([1e-4, 1e-6, 0.5, 1.0])),
        "ddof": draw(st.integers(0, 3)),
    }
    return torch.from_numpy(rewards), labels, None if weights is None else torch.from_numpy(weights), options


# Values.


@given(batches())
def test_every_method_and_scale_matches_exact_arithmetic(case):
    rewards, labels, weights, options = case
    got = advantages(rewards, group_ids=torch.tensor(labels, dtype=torch.int64), weights=weights, **options)
    close(got, expected(rewards, labels, weights, **options), 1e-8)


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
@pytest.mark.parametrize("objectives", [1, 2, 8])
def test_real_rewards_match_exact_arithmetic(method, scale, objectives):
    rewards, weights = normal(48, objectives), normal(objectives, seed=1)
    for group_size in (1, 2, 3, 16, 48):
        got = advantages(rewards, group_size, weights=weights, method=method, scale=scale)
        want = expected(rewards, blocks(48, group_size), weights, method=method, scale=scale)
        close(got, want)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_scale_of_each_method(method):
    rewards = normal(12, 2)
    scale = {"grpo": "group", "gdpo": "group", "dr_grpo": "none", "rloo": "none"}[method]
    assert torch.equal(advantages(rewards, 4, method=method), advantages(rewards, 4, method=method, scale=scale))
    assert torch.equal(advantages(rewards, 4, method=method), advantages(rewards, 4, method=method, scale=None))


def test_the_defaults_are_grpo_with_bessel_and_1e_4():
    rewards = normal(12)
    explicit = advantages(rewards, 4, method="grpo", scale="group", eps=1e-4, ddof=1)
    assert torch.equal(advantages(rewards, 4), explicit)


def test_dr_grpo_is_grpo_without_scale():
    rewards = normal(12, 3)
    assert torch.equal(advantages(rewards, 4, method="dr_grpo"), advantages(rewards, 4, method="grpo", scale="none"))


def test_one_objective_is_the_same_as_none():
    rewards = normal(12)
    for method, scale in COMBINATIONS:
        flat = advantages(rewards, 4, method=method, scale=scale)
        assert torch.equal(flat, advantages(rewards[:, None], 4, method=method, scale=scale))
        weighted = advantages(rewards, 4, method=method, scale=scale, weights=torch.tensor([2.0], dtype=F64))
        column = advantages(rewards[:, None], 4, method=method, scale=scale, weights=torch.tensor([2.0], dtype=F64))
        assert torch.equal(weighted, column)


GDPO_REWARDS = [[1, 1], [0, 1], [1, 0], [0, 0], [1, 1], [1, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("method", "eps", "published"),
    [
        ("gdpo", 1e-4, [1.449032, 0, 0, -1.449032, 0.836577, 0.836577, -0.836577, -0.836577]),
        ("gdpo", 1e-8, [1.449138, 0, 0, -1.449138, 0.83666, 0.83666, -0.83666, -0.83666]),
        ("grpo", 1e-4, [1.224595, 0, 0, -1.224595, 0.865875, 0.865875, -0.865875, -0.865875]),
    ],
)
def test_published_gdpo_and_grpo_numbers(method, eps, published):
    got = advantages(GDPO_REWARDS, 4, method=method, eps=eps, whiten_eps=eps)
    close(got, torch.tensor(published, dtype=F64), 1e-6)
    assert (got[[1, 2]].abs() < 1e-15).all()


def test_published_gdpo_numbers_of_one_group_of_two():
    # correctness [1, 1], integer [1, -1], format [1, 0]
    got = advantages([[1, 1, 1], [1, -1, 0]], 2, method="gdpo", eps=0.0, whiten_eps=0.0)
    close(got, torch.tensor([0.5**0.5, -(0.5**0.5)], dtype=F64))


def nan_std(x: torch.Tensor, dim: int) -> torch.Tensor:
    n = (~x.isnan()).sum(dim, keepdim=True)
    variance = (x - x.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True) / (n - 1)
    return variance.sqrt()


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_agrees_with_trl_sum_then_normalize(scale, missing):
    rewards, weights = normal(64, 3), torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    rewards[torch.rand(64, 3, generator=torch.Generator().manual_seed(3)) < missing] = NAN
    total = (rewards * weights).nansum(1)
    total[rewards.isnan().all(1)] = NAN
    groups = total.view(-1, 16)
    centred = groups - groups.nanmean(1, keepdim=True)
    sigma = {"group": nan_std(groups, 1), "batch": nan_std(total, 0), "none": None}[scale]
    trl = (centred if sigma is None else centred / (sigma + 1e-4)).flatten().nan_to_num(0.0)
    close(advantages(rewards, 16, weights=weights, scale=scale), trl)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_agrees_with_trl_normalize_then_sum(missing):
    rewards, weights = normal(64, 3), torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    rewards[torch.rand(64, 3, generator=torch.Generator().manual_seed(3)) < missing] = NAN
    rewards[5] = NAN
    groups = rewards.view(-1, 16, 3)
    z = (groups - groups.nanmean(1, keepdim=True)) / (nan_std(groups, 1) + 1e-4)
    total = (z * weights).nansum(2).flatten()
    total[rewards.isnan().all(1)] = NAN
    trl = ((total - total.nanmean()) / (nan_std(total, 0) + 1e-4)).nan_to_num(0.0)
    close(advantages(rewards, 16, weights=weights, method="gdpo"), trl)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_agrees_with_trl_rloo(missing):
    rewards = normal(64)
    rewards[torch.rand(64, generator=torch.Generator().manual_seed(3)) < missing] = NAN
    groups = rewards.view(-1, 16)
    others = (~groups.isnan()).sum(1, keepdim=True) - 1
    trl = (groups - (groups.nansum(1, keepdim=True) - groups) / others).flatten().nan_to_num(0.0)
    close(advantages(rewards, 16, method="rloo"), trl)


def test_agrees_with_population_standard_deviation():
    rewards = normal(64)
    groups = rewards.view(-1, 8)
    population = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, correction=0, keepdim=True) + 1e-8)
    close(advantages(rewards, 8, eps=1e-8, ddof=0), population.flatten())


def test_rloo_is_the_gap_to_the_mean_of_the_others():
    close(advantages([1.0, 2.0, 6.0], 3, method="rloo"), torch.tensor([-3.0, -1.5, 4.5], dtype=F64))


# Exact zeros.

CONSTANTS = [round(0.05 * i, 2) for i in range(1, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_constant_groups_have_exactly_zero_advantages(method, scale, dtype):
    for group_size in range(2, 33):
        # One group for each constant.
        rewards = torch.tensor(CONSTANTS).to(dtype).repeat_interleave(group_size)
        for eps in (0.0, 1e-9, 1e-4):
            got = advantages(rewards, group_size, method=method, scale=scale, eps=eps)
            assert (got == 0).all(), (group_size, eps)


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_constant_batches_of_several_objectives_have_exactly_zero_advantages(method, scale):
    weights = torch.tensor([0.3, 0.6, 0.1])
    for group_size in (2, 3, 7, 30, 32):
        for a, b in itertools.pairwise(CONSTANTS):
            rewards = torch.tensor([a, b, 1 - a]).expand(2 * group_size, 3)
            got = advantages(rewards, group_size, method=method, scale=scale, eps=1e-9, weights=weights)
            assert (got == 0).all(), (group_size, a, b)


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_groups_of_one_have_zero_advantages(method, scale):
    for ddof in (0, 1, 2):
        for eps in (0.0, 1e-4):
            got = advantages(normal(9, 2), 1, method=method, scale=scale, ddof=ddof, eps=eps)
            assert (got == 0).all()


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_equal_rewards_have_equal_advantages(method, scale):
    rewards = torch.tensor([0.1, 0.7, 0.1, 0.3, 0.7, 0.1])
    got = advantages(rewards, 6, method=method, scale=scale)
    assert got[0] == got[2] == got[5]
    assert got[1] == got[4]
    assert got[0] < got[3] < got[1]


def test_a_large_common_offset_is_centred_away():
    small = normal(32).mul(64).round() / 64
    for method, scale in COMBINATIONS:
        got = advantages(small + 2.0**30, 8, method=method, scale=scale)
        close(got, advantages(small, 8, method=method, scale=scale))


@pytest.mark.parametrize("method", ["grpo", "gdpo"])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_no_deviation_gives_zero(scale, method):
    # Two rewards leave no degree of freedom at ddof=2: the standard deviation is 0 although they differ.
    for eps in (0.0, 0.5):
        assert advantages([[0.0], [1.0]], 2, eps=eps, ddof=2, scale=scale, method=method).tolist() == [0.0, 0.0]


# NaN: not scored.


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_unscored_rows_get_zero_and_change_nothing(method, scale):
    rewards = normal(8, 2)
    with_gaps = torch.full((12, 2), NAN, dtype=F64)
    rows = [0, 2, 3, 5, 6, 7, 9, 10]
    with_gaps[rows] = rewards
    ids = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    got = advantages(with_gaps, group_ids=ids, method=method, scale=scale)
    close(got[rows], advantages(rewards, group_ids=ids[rows], method=method, scale=scale))
    assert (got[[1, 4, 8, 11]] == 0).all()


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_a_row_with_some_nan_is_scored_by_the_rest(method, scale):
    rewards = normal(12, 3)
    rewards[1, 0] = rewards[4, 2] = rewards[5, 0] = rewards[5, 1] = rewards[9] = NAN
    got = advantages(rewards, 6, method=method, scale=scale)
    close(got, expected(rewards, blocks(12, 6), method=method, scale=scale))


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_a_group_with_one_scored_row_gets_zero(method, scale):
    rewards = torch.tensor([NAN, 0.7, NAN, NAN, 0.1, 0.2, 0.3, 0.4], dtype=F64)
    got = advantages(rewards, 4, method=method, scale=scale)
    if method != "gdpo":
        assert (got[:4] == 0).all()
    close(got, expected(rewards, blocks(8, 4), method=method, scale=scale))


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_nothing_scored_gives_zeros(method, scale):
    assert (advantages(torch.full((6, 2), NAN), 3, method=method, scale=scale) == 0).all()
    assert (advantages(torch.full((6,), NAN), 3, method=method, scale=scale, eps=0.0) == 0).all()


def test_a_nan_reward_is_not_scored_even_with_weight_zero():
    rewards = torch.tensor([[1.0, NAN], [2.0, NAN], [NAN, 7.0], [NAN, NAN]], dtype=F64)
    weights = torch.tensor([1.0, 0.0], dtype=F64)
    got = advantages(rewards, 4, weights=weights, method="dr_grpo")
    # Row 2 is scored, with 0 times 7; row 3 is not.
    assert got.tolist() == [0.0, 1.0, -1.0, 0.0]


# Infinity.


@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_infinity_makes_its_group_nan_and_the_batch_where_batch_statistics_are_used(method, scale, value):
    rewards = normal(12)
    rewards[5] = value
    got = advantages(rewards, 4, method=method, scale=scale)
    assert got[4:8].isnan().all()
    if scale == "batch" or method == "gdpo":
        assert got.isnan().all()
    else:
        clean = advantages(normal(12), 4, method=method, scale=scale)
        assert torch.equal(got[[0, 1, 2, 3, 8, 9, 10, 11]], clean[[0, 1, 2, 3, 8, 9, 10, 11]])


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_an_unscored_row_beside_an_infinite_one_is_still_zero(method, scale):
    got = advantages([INF, 1.0, NAN, 2.0], 4, method=method, scale=scale)
    assert got[2] == 0
    assert got[[0, 1, 3]].isnan().all()


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_a_group_of_only_infinities_is_nan(method, scale):
    for values in ([INF, INF, INF], [INF, -INF, INF], [-INF]):
        got = advantages(torch.tensor(values), len(values), method=method, scale=scale)
        assert got.isnan().all(), values


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_opposite_infinities_in_one_row_are_scored_and_poison_the_group(method, scale):
    rewards = normal(6, 2)
    rewards[1] = torch.tensor([INF, -INF])
    assert advantages(rewards, 3, method=method, scale=scale)[:3].isnan().all()


# Groups.


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_contiguous_groups_equal_their_ids(method, scale):
    rewards, weights = normal(24, 2), normal(24, 2, seed=1)
    by_size = advantages(rewards, 6, weights=weights, method=method, scale=scale)
    ids = torch.arange(24) // 6
    close(advantages(rewards, group_ids=ids, weights=weights, method=method, scale=scale), by_size)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16, torch.int8])
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_group_ids_are_labels_in_any_order(method, scale, dtype):
    info = torch.iinfo(dtype)
    labels = torch.tensor([info.max, info.min, -1, 0, 7, 100], dtype=dtype)
    picks = torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(0))
    rewards = normal(40)
    got = advantages(rewards, group_ids=labels[picks], method=method, scale=scale)
    close(got, expected(rewards, picks.tolist(), method=method, scale=scale))


@given(batches(), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_advantages(case, random):
    rewards, labels, weights, options = case
    rows = random.sample(range(len(rewards)), len(rewards))
    ids = torch.tensor(labels, dtype=torch.int64)
    per_sample = weights is not None and weights.ndim == 2
    shuffled = advantages(
        rewards[rows], group_ids=ids[rows], weights=weights[rows] if per_sample else weights, **options
    )
    close(shuffled, advantages(rewards, group_ids=ids, weights=weights, **options)[rows], 1e-8)


@given(batches(), st.integers(-40, 40))
def test_scaling_rewards_scales_unscaled_advantages(case, exponent):
    rewards, labels, weights, options = case
    if options["method"] == "gdpo":
        return
    options |= {"scale": "none"}
    ids = torch.tensor(labels, dtype=torch.int64)
    got = advantages(rewards * 2.0**exponent, group_ids=ids, weights=weights, **options)
    assert torch.equal(got, advantages(rewards, group_ids=ids, weights=weights, **options) * 2.0**exponent)


@given(batches(scored=True))
def test_negating_rewards_negates_advantages(case):
    rewards, labels, weights, options = case
    ids = torch.tensor(labels, dtype=torch.int64)
    got = advantages(-rewards, group_ids=ids, weights=weights, **options)
    assert torch.equal(got, -advantages(rewards, group_ids=ids, weights=weights, **options))


@given(batches())
def test_unscored_padding_rows_change_nothing(case):
    rewards, labels, weights, options = case
    n, m = rewards.shape
    ids = torch.tensor([*labels, 0, 77], dtype=torch.int64)
    padded = torch.cat([rewards, torch.full((2, m), NAN, dtype=F64)])
    if weights is not None and weights.ndim == 2:
        padded_weights = torch.cat([weights, torch.ones(2, m, dtype=F64)])
    else:
        padded_weights = weights
    got = advantages(padded, group_ids=ids, weights=padded_weights, **options)
    close(got[:n], advantages(rewards, group_ids=ids[:n], weights=weights, **options), 1e-8)
    assert (got[n:] == 0).all()


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo"])
def test_a_batch_of_groups_equals_a_loop_bitwise(method):
    rewards = normal(60, 2)
    got = advantages(rewards, 6, method=method)
    loop = [advantages(rewards[i : i + 6], 6, method=method) for i in range(0, 60, 6)]
    assert torch.equal(got, torch.cat(loop))


@pytest.mark.parametrize("group_size", [1, 2, 7, 8, 9, 31, 33, 64, 65, 127])
def test_group_sizes_around_vector_widths(group_size):
    rewards = normal(3 * group_size, 2)
    for method, scale in COMBINATIONS:
        got = advantages(rewards, group_size, method=method, scale=scale)
        want = expected(rewards, blocks(3 * group_size, group_size), method=method, scale=scale)
        close(got, want)


def test_large_groups():
    groups = normal(3, 30_011)
    centred = groups - groups.mean(1, keepdim=True)
    z = centred / (groups.std(1, keepdim=True) + 1e-4)
    close(advantages(groups.flatten(), 30_011), z.flatten())
    close(advantages(groups.flatten(), 30_011, method="rloo"), (centred * (30_011 / 30_010)).flatten())
    close(advantages(groups.flatten(), 30_011, method="gdpo"), (z / (z.std() + 1e-4)).flatten())


# Weights.


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_weights_of_objectives_equal_the_same_per_sample(method, scale):
    rewards, weights = normal(12, 3), normal(3, seed=1)
    row = advantages(rewards, 4, weights=weights, method=method, scale=scale)
    full = weights.expand(12, 3)
    assert torch.equal(advantages(rewards, 4, weights=full, method=method, scale=scale), row)
    assert torch.equal(advantages(rewards, 4, weights=full.contiguous(), method=method, scale=scale), row)


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_no_weights_are_ones(method, scale):
    rewards = normal(12, 3)
    ones = advantages(rewards, 4, weights=torch.ones(3, dtype=F64), method=method, scale=scale)
    assert torch.equal(advantages(rewards, 4, method=method, scale=scale), ones)


def test_weights_of_another_float_dtype_are_widened():
    rewards, weights = normal(12, 3), torch.tensor([0.3, 0.6, 0.1])
    for w in (weights, weights.double()):
        close(advantages(rewards, 4, weights=w), expected(rewards, blocks(12, 4), weights))
    close(
        advantages(rewards.float(), 4, weights=weights.double() / 3),
        expected(rewards.float(), blocks(12, 4), weights.double() / 3),
        2e-7,
    )


# Dtypes, strides and sizes.


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(F64, 1e-12), (torch.float32, 1.2e-7), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)],
)
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_statistics_are_float64_and_the_result_has_the_dtype_of_the_rewards(method, scale, dtype, tolerance):
    rewards = normal(48, 2, dtype=dtype)
    got = advantages(rewards, 8, method=method, scale=scale)
    assert got.dtype == dtype
    want = expected(rewards, blocks(48, 8), method=method, scale=scale)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_integers_and_bools_become_float32(method, scale, dtype):
    rewards = torch.tensor(GDPO_REWARDS).to(dtype)
    got = advantages(rewards, 4, method=method, scale=scale)
    assert got.dtype == torch.float32
    close(got, advantages(rewards.float(), 4, method=method, scale=scale))


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_any_strides_give_the_same_bits(method, scale, dtype):
    rewards, weights = normal(12, 3, dtype=dtype), normal(12, 3, seed=1, dtype=torch.float32)
    options = {"method": method, "scale": scale}
    got = advantages(rewards, 4, weights=weights, **options)

    def strided(x: torch.Tensor) -> torch.Tensor:
        padded = torch.full((24, 8), NAN, dtype=x.dtype)
        padded[::2, 1:7:2] = x
        return padded[::2, 1:7:2]

    assert torch.equal(advantages(strided(rewards), 4, weights=strided(weights), **options), got)
    columns = rewards.T.contiguous().T, weights.T.contiguous().T
    assert torch.equal(advantages(columns[0], 4, weights=columns[1], **options), got)
    column = advantages(rewards[:, 1].contiguous(), 4, **options)
    assert torch.equal(advantages(rewards[:, 1], 4, **options), column)
    ids = (torch.arange(12) // 4)[:, None].repeat(1, 2)
    by_ids = advantages(rewards, group_ids=ids[:, 0].contiguous(), **options)
    assert torch.equal(advantages(rewards, group_ids=ids[:, 0], **options), by_ids)


def test_expanded_rewards_are_constant():
    for method, scale in COMBINATIONS:
        got = advantages(torch.tensor([0.1]).expand(12), 4, method=method, scale=scale)
        assert got.shape == (12,)
        assert (got == 0).all()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_memory_map_is_only_read(tmp_path):
    x = np.random.default_rng(0).random((32, 3))
    x.tofile(tmp_path / "rewards")
    mapped = torch.from_numpy(np.memmap(tmp_path / "rewards", dtype=np.float64, mode="r", shape=x.shape))
    for method in METHODS:
        assert torch.equal(advantages(mapped, 8, method=method), advantages(torch.from_numpy(x), 8, method=method))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_no_rewards_give_no_advantages(method, scale, dtype):
    for rewards in (torch.empty(0, dtype=dtype), torch.empty(0, 2, dtype=dtype)):
        for groups in ({"group_size": 4}, {"group_ids": torch.empty(0, dtype=torch.int64)}):
            got = morlfast.group_advantages(rewards, **groups, method=method, scale=scale)
            assert got.shape == (0,)
            assert got.dtype == dtype


def test_negative_zero_and_denormals_are_numbers():
    assert (advantages([-0.0, 0.0, -0.0], 3, eps=0.0) == 0).all()
    tiny = 5e-324
    got = advantages([0.0, 2 * tiny, 4 * tiny], 3, method="dr_grpo")
    assert got.tolist() == [-2 * tiny, 0.0, 2 * tiny]


@pytest.mark.parametrize(("method", "scale"), COMBINATIONS)
def test_inputs_are_left_unchanged(method, scale):
    inputs = [normal(12, 3), normal(12, 3, seed=1), torch.arange(12) % 3]
    copies = [x.clone() for x in inputs]
    advantages(inputs[0], group_ids=inputs[2], weights=inputs[1], method=method, scale=scale)
    for x, copy in zip(inputs, copies, strict=True):
        assert torch.equal(x, copy)
        assert x._version == 0


def test_the_result_is_detached():
    got = advantages(normal(8).requires_grad_(), 4)
    assert not got.requires_grad
    weights = torch.ones(2, dtype=F64, requires_grad=True)
    assert not advantages(normal(8, 2), 4, weights=weights).requires_grad


# Errors.

R = torch.ones(12, 3)


def test_exactly_one_way_to_name_the_groups():
    with pytest.raises(ValueError, match=r"group_size.*group_ids|group_ids.*group_size"):
        advantages(R)
    with pytest.raises(ValueError, match=r"group_size.*group_ids|group_ids.*group_size"):
        advantages(R, 4, group_ids=torch.arange(12))


@pytest.mark.parametrize("group_size", [5, 24, 0, -1, -12, 2**62])
def test_group_size_must_divide_the_rows(group_size):
    with pytest.raises(ValueError, match="group_size"):
        advantages(R, group_size)


@pytest.mark.parametrize("group_size", [0, -1])
def test_group_size_must_be_positive_even_for_no_rows(group_size):
    with pytest.raises(ValueError, match="group_size"):
        advantages(torch.empty(0), group_size)


@pytest.mark.parametrize("group_size", [4.0, "4", [4]])
def test_group_size_must_be_an_integer(group_size):
    with pytest.raises(TypeError, match="group_size"):
        advantages(R, group_size)


@pytest.mark.parametrize("group_ids", [torch.ones(12), torch.ones(12, dtype=torch.complex64), "abc"])
def test_group_ids_must_be_integers(group_ids):
    with pytest.raises(TypeError, match="group_ids"):
        advantages(R, group_ids=group_ids)


@pytest.mark.parametrize("shape", [(), (11,), (13,), (1, 12), (12, 1, 1)])
def test_group_ids_must_have_one_entry_per_row(shape):
    with pytest.raises(ValueError, match="group_ids"):
        advantages(R, group_ids=torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(), (12, 3, 1)])
def test_rewards_must_be_rows_or_rows_by_objectives(shape):
    with pytest.raises(ValueError, match="rewards"):
        advantages(torch.ones(shape), 1)


@pytest.mark.parametrize("rewards", ["abc", torch.ones(4, dtype=torch.complex64)])
def test_rewards_must_be_tensors_of_numbers(rewards):
    with pytest.raises(TypeError, match="rewards"):
        morlfast.group_advantages(rewards, 2)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (12,), (1, 3), (12, 1), (11, 3), (3, 12), (12, 3, 1)])
def test_weights_must_fit(shape):
    with pytest.raises(ValueError, match="weights"):
        advantages(R, 4, weights=torch.ones(shape))


@pytest.mark.parametrize("shape", [(), (2,), (12,), (12, 1), (1, 1)])
def test_weights_of_one_objective_are_one_number(shape):
    with pytest.raises(ValueError, match="weights"):
        advantages(R[:, 0], 4, weights=torch.ones(shape))


@pytest.mark.parametrize("weights", ["abc", torch.ones(3, dtype=torch.complex64)])
def test_weights_must_be_numbers(weights):
    with pytest.raises(TypeError, match="weights"):
        advantages(R, 4, weights=weights)


@pytest.mark.parametrize("method", ["ppo", "", "GRPO", 0])
def test_method_must_be_known(method):
    with pytest.raises((TypeError, ValueError), match="method"):
        advantages(R, 4, method=method)


@pytest.mark.parametrize("scale", ["std", "", "Group", 0, True])
def test_scale_must_be_known(scale):
    with pytest.raises((TypeError, ValueError), match="scale"):
        advantages(R, 4, scale=scale)


@pytest.mark.parametrize("eps", ["small", [1e-4]])
def test_eps_must_be_a_number(eps):
    with pytest.raises(TypeError, match="eps"):
        advantages(R, 4, eps=eps)


@pytest.mark.parametrize("eps", [-1e-4, NAN])
def test_eps_must_not_be_negative_or_nan(eps):
    with pytest.raises(ValueError, match="eps"):
        advantages(R, 4, eps=eps)


@pytest.mark.parametrize("ddof", ["one", 1.5])
def test_ddof_must_be_an_integer(ddof):
    with pytest.raises(TypeError, match="ddof"):
        advantages(R, 4, ddof=ddof)


def test_ddof_must_not_be_negative():
    with pytest.raises(ValueError, match="ddof"):
        advantages(R, 4, ddof=-1)


@pytest.mark.parametrize("name", ["rewards", "weights", "group_ids"])
def test_other_devices_must_match(name):
    arguments = {"rewards": R, "weights": torch.ones(3), "group_ids": torch.arange(12)}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match="device"):
        morlfast.group_advantages(**arguments)


def test_one_objective_has_one_weight():
    with pytest.raises(ValueError, match="weights"):
        advantages(torch.arange(4.0), 2, weights=torch.arange(4.0))


@pytest.mark.parametrize("method", ["grpo", "rloo", "gdpo"])
@pytest.mark.parametrize("weight", [NAN, INF])
def test_the_weight_of_an_unscored_reward_is_not_read(method, weight):
    rewards = torch.tensor([[1, NAN], [2, NAN], [3, 1], [4, 2]])
    weights = torch.tensor([[1, weight], [1, weight], [1, 1], [1, 1]])
    got = advantages(rewards, 4, weights=weights, method=method)
    assert torch.equal(got, advantages(rewards, 4, weights=torch.ones(2), method=method))


@pytest.mark.parametrize("method", ["grpo", "gdpo"])
def test_equal_scores_are_zero_with_an_eps_too_small_to_invert(method):
    rewards = torch.full((8, 2), 0.3)
    assert torch.equal(advantages(rewards, 4, method=method, eps=1e-310), torch.zeros(8))


def test_an_infinite_score_poisons_the_batch_statistics_of_two():
    got = advantages(torch.tensor([INF, 1.0, 2.0, 3.0]), 2, scale="batch", ddof=4)
    assert got.isnan().all()


def test_no_rollouts_have_no_ids():
    assert advantages(torch.zeros(0), group_ids=[]).shape == (0,)


# Rules, one by one and all together.


def rule(name: str) -> st.SearchStrategy[str]:
    literal = {
        "aggregate": presets.Aggregate,
        "baseline": presets.Baseline,
        "scale": presets.Scale,
        "eps_to": presets.EpsTo,
        "singleton": presets.Singleton,
        "zero_variance": presets.ZeroVariance,
        "nan": presets.NanRewards,
        "whiten": presets.Whiten,
        "whiten_eps_to": presets.EpsTo,
    }[name]
    return st.sampled_from(get_args(literal))


RULES = st.fixed_dictionaries(
    {
        **{name: rule(name) for name in ("aggregate", "baseline", "scale", "eps_to", "singleton", "zero_variance")},
        **{name: rule(name) for name in ("nan", "whiten", "whiten_eps_to")},
        **{name: st.sampled_from([1e-6, 0.25, 1.0]) for name in ("eps", "whiten_eps")},
        **{name: st.integers(0, 2) for name in ("ddof", "whiten_ddof")},
        "least_std": st.sampled_from([0.0, 0.5]),
    }
)


@given(batches(), RULES, st.integers(0, 2**32))
def test_every_combination_of_rules_matches_exact_arithmetic(case, rules, seed):
    rewards, labels, weights, _ = case
    lengths = np.random.default_rng(seed).integers(0, 5, len(labels))
    arguments = {"weights": weights, "group_ids": torch.tensor(labels, dtype=torch.int64), "lengths": lengths}
    try:
        want = expected(rewards, labels, weights, lengths.tolist(), **rules)
    except ValueError as error:
        with pytest.raises(ValueError, match={"NaN": "rewards: .*NaN", "a group of one": "singleton"}[str(error)]):
            advantages(rewards, **arguments, **rules)
        return
    got = advantages(rewards, **arguments, **rules)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize(
    "values", [[0.35] * 7 + [0.95], [0.3] * 3 + [0.9], [0.95] + [0.35] * 7, [0.1, 0.7] + [0.1] * 9]
)
@pytest.mark.parametrize("zero_variance", ["zero", "unscaled", "nan"])
def test_a_constant_left_out_set_has_exactly_no_deviation(values, zero_variance):
    rewards = torch.tensor(values)
    odd = rewards.double().sub(rewards.double().median()).abs().argmax()
    got = advantages(rewards, len(values), baseline="leave_one_out", scale="leave_one_out", zero_variance=zero_variance)
    if zero_variance == "zero":
        assert got[odd] == 0
    elif zero_variance == "nan":
        assert got[odd].isnan()
    else:
        close(got[odd], rewards[odd].double() - rewards.double().median(), 1e-7)
    assert got[torch.arange(len(values)) != odd].isfinite().all()


def test_deviations_of_others_keep_their_digits_beside_an_outlier():
    rewards = torch.tensor([1e6, *(normal(9) * 1e-6).tolist()], dtype=F64)
    got = advantages(rewards, 10, baseline="none", scale="leave_one_out", eps=0.0)
    close(got[0], rewards[0] / rewards[1:].std(), 1e-9)


def test_the_runner_up_is_the_baseline_of_the_largest_alone():
    got = advantages([1.0, 4.0, 4.5, 0.0, 2.0, 2.0], 3, baseline="runner_up", scale="none")
    assert got.tolist() == [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]


def test_tokens_weigh_the_baseline():
    got = advantages([1.0, 0.0, 3.0, 1.0], 2, lengths=[3, 1, 0, 0], baseline="length_weighted", scale="none")
    close(got, torch.tensor([0.25, -0.75, 1.0, -1.0], dtype=F64))


def test_whitening_by_tokens_repeats_each_rollout():
    rewards, lengths = normal(12), torch.tensor([3, 1, 0, 5, 2, 2, 7, 1, 1, 4, 0, 6])
    centred = advantages(rewards, 4, scale="none")
    tokens = centred.repeat_interleave(lengths)
    want = (centred - tokens.mean()) / (tokens.var() + 1e-8).sqrt()
    options = {"scale": "none", "whiten": "tokens", "whiten_eps": 1e-8, "whiten_eps_to": "variance"}
    close(advantages(rewards, 4, lengths=lengths, **options), want)


# Tokens.

MASKS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, F64, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*MASKS, torch.float16])
@pytest.mark.parametrize("method", ["grpo", "gdpo", "opo", "reinforce_pp_baseline"])
def test_masks_of_every_dtype_place_each_advantage_at_its_tokens(dtype, method):
    mask = torch.rand(12, 70, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[3] = False
    rewards = normal(12)
    got = advantages(rewards, 4, mask=mask.to(dtype), preset="verl", method=method)
    rows = advantages(rewards, 4, lengths=mask.sum(1), preset="verl", method=method)
    assert torch.equal(got, torch.where(mask, rows[:, None], 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_masks_and_every_result_dtype(dtype):
    rewards = normal(8, dtype=dtype)
    mask = normal(40, 16, seed=2)[::5].T.contiguous().T[:, ::2] > 0
    got = advantages(rewards, 4, mask=mask)
    assert got.dtype == dtype
    assert torch.equal(got, torch.where(mask, advantages(rewards, 4)[:, None], torch.zeros((), dtype=dtype)))


def test_any_nonzero_element_counts():
    mask = torch.tensor([[0.5, -1.0, -0.0, NAN], [0.0, 1e-30, 1.0, 0.0]])
    assert (advantages([1.0, 2.0], 2, mask=mask, scale="none") != 0).tolist() == [
        [True, True, False, True],
        [False, True, True, False],
    ]


def test_lengths_with_num_tokens_are_a_mask():
    rewards, lengths = normal(6), torch.tensor([0, 3, 5, 4, 1, 2])
    mask = torch.arange(5) < lengths[:, None]
    got = advantages(rewards, 3, lengths=lengths, num_tokens=5)
    assert torch.equal(got, advantages(rewards, 3, mask=mask))
    assert advantages(rewards, 3, lengths=lengths * 0, num_tokens=0).shape == (6, 0)


def test_an_empty_mask_and_no_rollouts():
    assert advantages(normal(4), 2, mask=torch.ones(4, 0)).shape == (4, 0)
    assert advantages(normal(0), 2, mask=torch.ones(0, 7)).shape == (0, 7)
    options = {"preset": "verl", "method": "gdpo"}
    assert advantages(normal(4), 2, mask=torch.ones(4, 0), **options).shape == (4, 0)


def test_token_rewards_are_summed_first():
    tokens = normal(12, 33).mul(64).round() / 64  # sums are exact
    for method in METHODS:
        close(advantages(None, 4, token_rewards=tokens, method=method), advantages(tokens.sum(1), 4, method=method))
    tokens[5, 7] = NAN
    assert advantages(None, 4, token_rewards=tokens, nan="propagate")[4:8].isnan().all()
    half = tokens.nan_to_num().bfloat16()
    assert advantages(None, 4, token_rewards=half).dtype == torch.bfloat16


def test_rollouts_with_the_same_total_are_equal_wherever_their_reward_lies():
    tokens = torch.zeros(8, 50)
    tokens[torch.arange(8), torch.tensor([0, 49, 16, 17, 31, 48, 3, 7])] = 0.1
    assert (advantages(None, 8, token_rewards=tokens, eps=0.0) == 0).all()


def test_out_is_written_and_returned():
    rewards, mask = normal(12, dtype=torch.float32), torch.ones(12, 5, dtype=torch.int64)
    for options in ({}, {"mask": mask}):
        want = advantages(rewards, 4, **options)
        out = torch.full_like(want, NAN)
        assert advantages(rewards, 4, out=out, **options) is out
        assert torch.equal(out, want)


# Groups by labels, rows and offsets.


def test_labels_in_any_order_are_groups():
    picks = torch.randint(0, 7, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    names = [str(uuid.UUID(int=i)) for i in range(7)]
    rewards = normal(60)
    want = advantages(rewards, group_ids=torch.tensor(picks))
    labels = [names[i] for i in picks]
    for group_ids in (labels, tuple(labels), np.array(labels), np.array(labels, dtype=object), np.array(picks)):
        assert torch.equal(advantages(rewards, group_ids=group_ids), want)


def test_labels_of_different_kinds_are_not_merged():
    labels = np.array(["1", 1, "01", "1 ", b"1", 1, "1"], dtype=object)
    got = advantages([1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0], group_ids=labels, scale="none")
    assert got.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("group_ids", [[0.2, 0.7], np.array([0.2, 0.7]), [0.2, "a"], ["a", None], [{}, {}]])
def test_labels_that_are_none_are_refused(group_ids):
    with pytest.raises((TypeError, ValueError), match="group_ids"):
        advantages([1.0, 2.0], group_ids=group_ids)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("width", [1, 3, 8, 37])
def test_equal_rows_of_ids_are_groups(dtype, width):
    prompts = torch.randint(0, 100, (5, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    prompts[1] = prompts[0]
    prompts[1, -1] += 1  # one token apart
    picks = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
    rewards = normal(40)
    want = advantages(rewards, group_ids=picks)
    assert torch.equal(advantages(rewards, group_ids=prompts[picks]), want)
    assert torch.equal(advantages(rewards, group_ids=prompts[picks].T.contiguous().T), want)


def test_offsets_are_ragged_groups():
    rewards, sizes = normal(20), [4, 0, 1, 9, 6]
    offsets = [0, *itertools.accumulate(sizes)]
    labels = [g for g, size in enumerate(sizes) for _ in range(size)]
    for method in METHODS:
        want = advantages(rewards, group_ids=torch.tensor(labels), method=method)
        assert torch.equal(advantages(rewards, offsets=offsets, method=method), want)
    assert advantages(normal(0), offsets=[0]).shape == (0,)


@pytest.mark.parametrize("offsets", [[], [0], [0, 11], [1, 12], [0, 8, 4, 12], [0, 13, 12], [-1, 12], [[0, 12]]])
def test_offsets_must_ascend_from_0_to_the_number_of_rollouts(offsets):
    with pytest.raises(ValueError, match="offsets"):
        advantages(R, offsets=torch.tensor(offsets, dtype=torch.int64))


# Errors of tokens, presets and rules.


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"mask": torch.ones(12)}, ValueError, "mask: expected shape"),
        ({"mask": torch.ones(11, 3)}, ValueError, "mask: expected shape"),
        ({"mask": torch.ones(12, 3, dtype=torch.complex64)}, TypeError, "mask"),
        ({"mask": torch.ones(12, 3), "lengths": torch.ones(12, dtype=torch.int64)}, ValueError, "mask, lengths"),
        ({"lengths": torch.ones(12)}, TypeError, "lengths"),
        ({"lengths": [1] * 11}, ValueError, "lengths"),
        ({"lengths": [-1] * 12}, ValueError, "lengths"),
        ({"num_tokens": 3}, ValueError, "num_tokens"),
        ({"lengths": [1] * 12, "num_tokens": -1}, ValueError, "num_tokens"),
        ({"lengths": [1] * 12, "num_tokens": 1.5}, TypeError, "num_tokens"),
        ({"whiten": "tokens"}, ValueError, "mask, lengths: .*whiten"),
        ({"baseline": "length_weighted"}, ValueError, "mask, lengths: .*baseline"),
        ({"preset": "nobody"}, ValueError, "preset: expected one of trl, .*verl"),
        ({"preset": "verl", "method": "nothing"}, ValueError, "method: expected one of grpo.*verl"),
        ({"baseline": "median"}, ValueError, "baseline: expected one of"),
        ({"whiten_eps": -1.0}, ValueError, "whiten_eps"),
        ({"least_std": "x"}, TypeError, "least_std"),
        ({"whiten_ddof": -1}, ValueError, "whiten_ddof"),
        ({"token_rewards": R}, ValueError, "rewards, token_rewards"),
        ({"out": torch.empty(11)}, ValueError, "out"),
        ({"out": torch.empty(12, dtype=F64)}, ValueError, "out"),
        ({"out": torch.empty(24)[::2]}, ValueError, "out"),
        ({"out": [0.0] * 12}, TypeError, "out"),
        ({"out": torch.empty(12, device="meta")}, ValueError, "out"),
        ({"nan": "raise"}, ValueError, "rewards: expected no NaN, got NaN in row 1"),
        ({"singleton": "raise"}, ValueError, "singleton"),
    ],
)
def test_errors_name_the_argument(arguments, error, match):
    rewards = torch.ones(12)
    if arguments.get("nan") == "raise":
        rewards[1] = NAN
    with pytest.raises(error, match=match):
        advantages(rewards, 1 if "singleton" in arguments else 4, **arguments)


def test_token_rewards_have_one_objective():
    with pytest.raises(ValueError, match="weights"):
        advantages(None, 4, token_rewards=R, weights=torch.ones(3))
    with pytest.raises(ValueError, match="token_rewards"):
        advantages(None, 4, token_rewards=torch.ones(12))


# Every pair of rules that meet in one group, by itself: random combinations are too many to meet them all.


@pytest.mark.parametrize("scale", get_args(presets.Scale))
@pytest.mark.parametrize("baseline", get_args(presets.Baseline))
@pytest.mark.parametrize("aggregate", get_args(presets.Aggregate))
@pytest.mark.parametrize("zero_variance", ["zero", "unscaled"])
def test_every_baseline_and_scale_matches_exact_arithmetic(aggregate, baseline, scale, zero_variance):
    rewards, weights = normal(30, 3).mul(4).round() / 4, torch.tensor([1.0, -0.5, 2.0], dtype=F64)
    rewards[torch.rand(30, 3, generator=torch.Generator().manual_seed(4)) < 0.1] = NAN
    rewards[20:24] = rewards[20]
    rewards[21, :] += 1
    labels = [0] * 1 + [1] * 2 + [2] * 17 + [3] * 4 + [4] * 6
    lengths = list(range(30))
    rules = {"aggregate": aggregate, "baseline": baseline, "scale": scale, "zero_variance": zero_variance}
    for singleton in ("zero", "reward"):
        rules |= {"singleton": singleton}
        got = advantages(rewards, group_ids=torch.tensor(labels), weights=weights, lengths=lengths, **rules)
        close(got, expected(rewards, labels, weights, lengths, **rules), 1e-9)


@pytest.mark.parametrize("factor", [1e200, 1e-200, 1e-300])
@pytest.mark.parametrize("scale", ["group", "batch", "leave_one_out"])
@pytest.mark.parametrize("whiten", ["none", "rollouts", "tokens"])
def test_scores_whose_squares_leave_float64_are_standardized(factor, scale, whiten):
    rewards = torch.tensor([1.0, -1.0, 3.0, 0.0, 2.0, 5.0, -4.0, 1.5], dtype=F64)
    options = {"scale": scale, "eps": 0.0, "whiten": whiten, "whiten_eps": 0.0, "lengths": [1, 2, 3, 4, 5, 6, 7, 8]}
    close(advantages(rewards * factor, 4, **options), advantages(rewards, 4, **options))
    if whiten != "none":
        options |= {"scale": "none"}
        close(advantages(rewards * factor, 4, **options), advantages(rewards, 4, **options))


def test_every_layout_and_weights_of_one_give_the_same_bits():
    rewards = normal(64, 21)
    want = advantages(rewards, 8)
    assert torch.equal(advantages(rewards.T.contiguous().T, 8), want)
    assert torch.equal(advantages(rewards, 8, weights=torch.ones(21)), want)


@pytest.mark.parametrize(
    "labels", [[("a", 1), ("b", 2), ("a", 1)], [2**70, 1, 2**70], [uuid.UUID(int=1), "x", uuid.UUID(int=1)]]
)
def test_lists_of_other_labels(labels):
    assert advantages([1.0, 5.0, 3.0], group_ids=labels, scale="none").tolist() == [-1.0, 0.0, 1.0]


def test_rows_of_ids_may_be_lists():
    assert advantages([1.0, 5.0, 3.0], group_ids=[[1, 2], [2, 1], [1, 2]], scale="none").tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_masks_that_the_operator_cannot_read_are_compared_with_zero(dtype):
    mask = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    assert advantages([1.0, 3.0], 2, mask=mask, scale="none").tolist() == [[-1.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("lengths", [[-1, 1], [1, 3]])
def test_lengths_must_fit_num_tokens(lengths):
    with pytest.raises(ValueError, match="lengths: expected values from 0 to 2"):
        advantages([1.0, 3.0], 2, lengths=lengths, num_tokens=2)


@pytest.mark.parametrize("name", ["preset", "method", "scale", "nan"])
@pytest.mark.parametrize("value", [["grpo"], {}, 3])
def test_rules_are_words(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        advantages(R, 4, **{name: value})


def test_ids_in_steps_that_a_multiplicative_hash_would_merge():
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    ids = torch.tensor([(i * inverse + 2**63) % 2**64 - 2**63 for i in range(40000)])
    assert (advantages(normal(40000), group_ids=ids) == 0).all()
