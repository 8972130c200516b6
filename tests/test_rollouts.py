"""select_rollouts and filter_zero_variance: the best of all subsets, ties, odd values, groups by any name, errors."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from fractions import Fraction
from itertools import combinations

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from references import rollouts as reference
from scipy import stats

F64 = torch.float64
INF = math.inf
NAN = math.nan
FLOATS = [torch.float32, F64, torch.bfloat16, torch.float16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
METHODS = ["max_variance", "top", "bottom", "random", "stratified", "percentile"]
DETERMINED = ["max_variance", "top", "bottom", "percentile"]
DRAWN = ["random", "stratified"]


def select(rewards, k, group_size=None, **options) -> morlfast.RolloutSelection:
    if not isinstance(rewards, torch.Tensor):
        rewards = torch.tensor(rewards, dtype=F64)
    return morlfast.select_rollouts(rewards, k, group_size=group_size, **options)


def rows(rewards, k, group_size=None, **options) -> list[int]:
    """Indices of the selection, after a look at what holds for every one."""
    got = select(rewards, k, group_size, **options)
    assert got.indices.dtype == torch.int64
    assert got.mask.dtype == torch.bool
    assert got.mask.shape == (len(rewards),)
    indices = got.indices.tolist()
    assert sorted(indices) == got.mask.nonzero().flatten().tolist()
    return indices


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def blocks(n: int, group_size: int) -> list[int]:
    return [i // group_size for i in range(n)]


def exact_variance(rewards, indices) -> Fraction:
    return reference.variance([reference.exact(float(rewards[i])) for i in indices])


# Small integers tie and have exact sums, so that ties between splits are exact too.
TYING = st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, NAN]), max_size=9)
ODD = st.one_of(
    st.floats(),
    st.sampled_from([INF, -INF, NAN, 1e308, -1e308, 1.7976931348623157e308, 5e-324, -5e-324, 0.0, -0.0, 1.0]),
)


@st.composite
def grouped(draw):
    """Rewards and labels of interleaved groups of different sizes."""
    rewards = draw(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, 3.0, NAN]), max_size=14))
    return rewards, draw(st.lists(st.integers(-2, 1), min_size=len(rewards), max_size=len(rewards)))


# Values.


@given(TYING, st.integers(0, 10))
def test_the_variance_is_that_of_the_best_subset(rewards, k):
    scored = [x for x in rewards if not math.isnan(x)]
    k = min(k, len(rewards))
    got = rows(rewards, k, len(rewards) or 1)
    assert len(got) == min(k, len(scored))
    assert exact_variance(rewards, got) == reference.largest_variance(scored, len(got))


@example([0.0, 0.0, -5e-324], 2)
@example([-1.7e308, 1.7e308, 0.0, 1.0], 3)
@given(st.lists(ODD, min_size=1, max_size=8), st.integers(0, 8))
def test_the_variance_of_any_doubles_is_that_of_the_best_subset_up_to_rounding(rewards, k):
    scored = [x for x in rewards if not math.isnan(x)]
    got = rows(rewards, min(k, len(rewards)), len(rewards))
    best = reference.largest_variance(scored, len(got))
    assert exact_variance(rewards, got) >= best * (1 - Fraction(1, 10**12))


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e15])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e150])
def test_neither_a_large_mean_nor_a_large_scale_costs_variance(offset, scale):
    rewards = (normal(30, 8, dtype=F64) * 8).round() / 8 + offset
    rewards = rewards * scale
    got = select(rewards.flatten(), 3, 8).mask.view(30, 8)
    for row, mask in zip(rewards.tolist(), got.tolist(), strict=True):
        best = reference.largest_variance(row, 3)
        chosen = exact_variance(row, [i for i in range(8) if mask[i]])
        assert chosen >= best * (1 - Fraction(1, 10**12))


@given(TYING, st.integers(0, 10))
def test_of_equal_variances_the_documented_split(rewards, k):
    k = min(k, len(rewards))
    assert rows(rewards, k, len(rewards) or 1) == reference.select_rollouts(rewards, k, [0] * len(rewards))


def test_the_d3s_example():
    advantages = torch.tensor([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0, 0.866, 0.866, -0.866, -0.866])
    got = select(advantages, 4, scope="batch")
    assert got.indices.tolist() == [0, 8, 10, 11]
    assert advantages[got.mask].var(correction=0).item() == pytest.approx(1.099845, abs=5e-7)


def test_binary_rewards_give_half_of_each_where_there_are():
    for right in range(9):
        rewards = [1.0] * right + [0.0] * (8 - right)
        got = rows(rewards, 4, 8)
        ones = sum(i < right for i in got)
        assert ones == min(max(2, 4 - (8 - right)), right), right


def test_of_equal_splits_the_one_with_fewest_of_the_largest():
    # 0 1 2 3: {3, 2, 0} and {3, 1, 0} are equally spread.
    assert rows([0, 1, 2, 3], 3, 4) == [0, 1, 3]
    assert rows([3, 2, 1, 0], 3, 4) == [0, 2, 3]
    assert rows([-3, -1, 1, 3, 0], 3, 5) == [0, 1, 3]


def test_one_rollout_is_the_largest():
    # All variances are 0: those that are all of the largest come first.
    assert rows([0, 1, 2, 3], 1, 4) == [3]
    assert rows([5, 7, 6], 1, 3) == [1]


def test_ties_go_to_the_lowest_rows():
    assert rows([2, 2, 2, 2, 2], 3, 5) == [0, 1, 2]
    assert rows([1, 0, 1, 0, 1, 0], 2, 6) == [0, 1]
    assert rows([0, 1, 0, 1, 0, 1], 4, 6) == [0, 1, 2, 3]
    assert rows([1, 0, 1, 0, 1], 3, 5, method="top") == [0, 2, 4]
    assert rows([1, 0, 1, 0, 1], 2, 5, method="top") == [0, 2]
    assert rows([1, 0, 1, 0, 1, 0], 2, 6, method="bottom") == [1, 3]
    assert rows([1, 0, 1, 0, 1, 0], 4, 6, method="bottom") == [0, 1, 3, 5]


@pytest.mark.parametrize("method", DETERMINED)
def test_negative_zero_ties_with_zero(method):
    signs = [-0.0, 0.0, -0.0, 0.0, 1.0]
    for k in range(6):
        assert rows(signs, k, 5, method=method) == rows([0.0] * 4 + [1.0], k, 5, method=method)


@pytest.mark.parametrize("method", DETERMINED)
@given(grouped(), st.integers(0, 15))
def test_groups_by_id_match_the_reference(method, case, k):
    rewards, labels = case
    ids = torch.tensor(labels, dtype=torch.int64)
    got = rows(rewards, k, group_ids=ids, method=method)
    assert got == reference.select_rollouts(rewards, k, labels, method)


@pytest.mark.parametrize("method", ["top", "bottom"])
@given(st.lists(ODD, min_size=1, max_size=12), st.integers(0, 12))
def test_top_and_bottom_are_the_ends_of_a_stable_sort(method, rewards, k):
    k = min(k, len(rewards))
    scored = [i for i in range(len(rewards)) if not math.isnan(rewards[i])]
    sign = 1 if method == "bottom" else -1
    ends = sorted(scored, key=lambda i: sign * rewards[i])[:k]  # which keeps equal rewards in the order of rows
    assert rows(rewards, k, len(rewards), method=method) == sorted(ends)


def test_top_and_bottom_agree_with_torch_topk():
    rewards = normal(64, 33)
    for k in (1, 5, 32):
        for method, largest in (("top", True), ("bottom", False)):
            want = rewards.topk(k, 1, largest=largest).indices.sort(1).values + 33 * torch.arange(64)[:, None]
            assert torch.equal(select(rewards.flatten(), k, 33, method=method).indices, want.flatten())


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 257, 1023, 1025, 4097])
@pytest.mark.parametrize("method", DETERMINED)
def test_sizes_around_blocks(n, method):
    """Of many tying rewards; max_variance against every split, by prefix sums of integers."""
    rewards = (normal(3, n, seed=n) * 4).round()
    k = max(1, n // 3)
    got = select(rewards.flatten(), k, n, method=method).mask.view(3, n)
    for row, mask in zip(rewards, got, strict=True):
        ascending = row.long().sort(stable=True).values
        if method == "max_variance":
            i = torch.tensor([k, *range(k)])
            sums = torch.cat([torch.zeros(1, dtype=torch.int64), ascending.cumsum(0)])
            squares = torch.cat([torch.zeros(1, dtype=torch.int64), (ascending**2).cumsum(0)])
            spread = k * (squares[k - i] + squares[n] - squares[n - i])
            spread -= (sums[k - i] + sums[n] - sums[n - i]) ** 2
            top = int(i[int(np.argmax(spread.numpy()))])
            wanted = torch.cat([ascending[: k - top], ascending[n - top :]])
        elif method == "percentile":
            wanted = ascending[[math.floor((j + 0.5) * n / k) for j in range(k)]]
        else:
            wanted = ascending[n - k :] if method == "top" else ascending[:k]
        assert Counter(row[mask].tolist()) == Counter(wanted.tolist())
        if method != "percentile":
            for value in set(row.tolist()):
                taken = mask[row == value]
                assert torch.equal(taken, taken.sort(descending=True).values)


@pytest.mark.parametrize("method", ["max_variance", "top", "bottom"])
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 4.0]), min_size=1, max_size=10), st.integers(1, 5), st.data())
def test_a_permutation_of_rows_selects_the_same_values(method, rewards, k, data):
    k = min(k, len(rewards))
    shuffled = data.draw(st.permutations(rewards))
    values = [Counter(x[i] for i in rows(x, k, len(rewards), method=method)) for x in (rewards, shuffled)]
    assert values[0] == values[1]


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=9), st.integers(1, 9), st.integers(-40, 40), st.integers(-9, 9)
)
def test_scaling_by_powers_of_two_and_moving_by_integers_change_nothing(rewards, k, exponent, offset):
    k = min(k, len(rewards))
    moved = [(x + offset) * 2.0**exponent for x in rewards]
    assert rows(moved, k, len(rewards)) == rows(rewards, k, len(rewards))


# How many.


@pytest.mark.parametrize("method", METHODS)
def test_k_zero_selects_nothing_and_k_n_every_scored_rollout(method):
    rewards = normal(12)
    rewards[[1, 6, 7]] = NAN
    assert rows(rewards, 0, 4, method=method) == []
    assert rows(rewards, 4, 4, method=method) == [0, 2, 3, 4, 5, 8, 9, 10, 11]
    assert rows(rewards, 12, method=method, scope="batch") == [0, 2, 3, 4, 5, 8, 9, 10, 11]
    assert rows(rewards, 0, method=method, scope="batch") == []


@pytest.mark.parametrize("method", METHODS)
@given(grouped(), st.integers(0, 6), st.integers(0, 100))
def test_each_group_gives_k_or_all_that_are_scored(method, case, k, seed):
    rewards, labels = case
    options = {"generator": generator(seed)} if method in DRAWN else {}
    got = rows(rewards, k, group_ids=torch.tensor(labels, dtype=torch.int64), method=method, **options)
    counts = Counter(labels[i] for i in got)
    scored = Counter(g for g, x in zip(labels, rewards, strict=True) if not math.isnan(x))
    assert {g: counts[g] for g in labels} == {g: min(k, scored[g]) for g in labels}
    assert not any(math.isnan(rewards[i]) for i in got)
    first = list(dict.fromkeys(labels))
    assert got == sorted(got, key=lambda i: (first.index(labels[i]), i))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_rows_and_groups_without_scores(method, dtype):
    empty = torch.empty(0, dtype=dtype)
    for k in (0, 1, 7):
        for options in (
            {"group_size": 4},
            {"group_ids": torch.empty(0, dtype=torch.int64)},
            {"group_ids": []},
            {"offsets": [0]},
            {"offsets": [0, 0, 0]},
            {"scope": "batch"},
        ):
            got = morlfast.select_rollouts(empty, k, method=method, **options)
            assert got.indices.shape == got.mask.shape == (0,), options
            assert (got.indices.dtype, got.mask.dtype) == (torch.int64, torch.bool)
    rewards = torch.tensor([NAN, NAN, 1.0, NAN, NAN, NAN], dtype=dtype)
    assert rows(rewards, 2, 2, method=method) == [2]
    assert rows(rewards * NAN, 1, 2, method=method) == []
    assert rows(rewards, 3, offsets=[0, 0, 2, 2, 6, 6], method=method) == [2]


def test_offsets_of_ragged_groups():
    rewards = torch.tensor([1.0, 0.0, 2.0, 5.0, 4.0, 4.5, 9.0])
    assert rows(rewards, 2, offsets=torch.tensor([0, 3, 6, 7])) == [1, 2, 3, 4, 6]
    assert rows(rewards, 1, offsets=[0, 3, 3, 7]) == [2, 6]


# Odd values.


def test_nan_is_never_selected_nor_counted():
    rewards = [NAN, 1.0, NAN, 0.0, 0.4, NAN, NAN, 3.0]
    assert rows(rewards, 2, 4) == [1, 3, 4, 7]
    assert rows(rewards, 2, scope="batch") == [3, 7]
    negative = torch.tensor([-NAN, 2.0, 1.0])
    for method in METHODS:
        assert rows(negative, 3, 3, method=method) == [1, 2]


def test_infinities_are_the_ends():
    rewards = [0.0, INF, -INF, 5.0]
    assert rows(rewards, 2, 4) == [1, 2]
    assert rows(rewards, 2, 4, method="top") == [1, 3]
    assert rows(rewards, 2, 4, method="bottom") == [0, 2]
    # INF counts as the largest double, and ties with it in the variance, not in the order.
    most = 1.7976931348623157e308
    assert rows([0.0, most, INF], 1, 3, method="top") == [2]
    assert rows([INF, INF, INF, -INF], 2, 4) == [0, 3]
    assert rows([INF, INF, INF], 2, 3) == [0, 1]
    assert rows(torch.tensor([1.0, INF, 0.5, -INF, 3e38]), 2, 5) == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_huge_and_tiny_ranges_neither_overflow_nor_vanish(dtype):
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    for unit in (info.max / 4, tiny, info.smallest_normal):
        rewards = torch.tensor([0.0, 4.0, 1.0, 3.0, 2.0, 4.0], dtype=dtype) * unit
        assert rewards.unique().numel() == 5
        assert rows(rewards, 2, 6) == [0, 1]
        assert rows(rewards, 3, 6) == [0, 1, 5]
        assert rows(-rewards, 4, 6) == [0, 1, 2, 5]
        assert rows(rewards, 1, 6) == [1]


def test_a_small_spread_beside_a_huge_mean_is_seen():
    rewards = torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=F64) + 2.0**52
    assert rows(rewards, 2, 4) == [0, 1]
    wide = torch.tensor([2**53 + 3, 2**53, 2**53 + 2, 2**53 + 2])
    assert rows(wide, 2, 4) == rows(wide.double(), 2, 4)


# Draws.


@pytest.mark.parametrize("method", DRAWN)
def test_a_generator_determines_the_draws(method):
    rewards = normal(200)
    first, again, other = (select(rewards, 3, 8 * 5, method=method, generator=generator(s)).mask for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    ambient = select(rewards, 3, 40, method=method).mask
    torch.manual_seed(3)
    assert torch.equal(ambient, select(rewards, 3, 40, method=method).mask)
    before = torch.get_rng_state()
    select(rewards, 3, 40, method=method, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", DETERMINED)
def test_what_draws_nothing_leaves_the_random_state_alone(method):
    before = torch.get_rng_state()
    select(torch.arange(12.0), 2, 4, method=method)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_subset_is_equally_probable_at_random():
    groups = 20_000
    mask = select(torch.zeros(groups * 5), 2, 5, method="random", generator=generator()).mask.view(groups, 5)
    assert (mask.sum(1) == 2).all()
    counts = Counter(tuple(row.nonzero().flatten().tolist()) for row in mask)
    assert set(counts) == set(combinations(range(5), 2))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_random_does_not_look_at_the_rewards_but_for_nan():
    rewards = normal(400)
    rewards[::7] = NAN
    one = select(rewards, 3, 8, method="random", generator=generator()).mask
    other = select(-rewards.abs() * 100, 3, 8, method="random", generator=generator()).mask
    assert torch.equal(one, other)


def test_strata_give_one_rollout_each_wherever_it_lies():
    """k divides n, so that stratum j is the ranks from j n / k to before (j + 1) n / k."""
    groups, n, k = 8_000, 12, 3
    rewards = normal(groups, n)
    ranks = rewards.argsort(1).argsort(1)
    mask = select(rewards.flatten(), k, n, method="stratified", generator=generator()).mask.view(groups, n)
    taken = ranks[mask].view(groups, k).sort(1).values
    assert torch.equal(taken // (n // k), torch.arange(k).expand(groups, k))
    for j in range(k):
        places = torch.bincount(taken[:, j] - j * n // k, minlength=n // k)
        assert stats.chisquare(places.numpy()).pvalue > 1e-3
    pairs = torch.bincount((taken[:, 0] * (n // k) + taken[:, 1] - n // k), minlength=(n // k) ** 2)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 1000))
def test_strata_that_share_a_rank_still_give_k_rollouts(n, k, seed):
    k = min(k, n)
    assert len(rows(torch.arange(float(n)), k, n, method="stratified", generator=generator(seed))) == k


def test_percentiles_are_the_middles_of_the_strata():
    assert rows(torch.arange(12.0), 3, 12, method="percentile") == [2, 6, 10]
    assert rows(torch.arange(12.0).flip(0), 3, 12, method="percentile") == [1, 5, 9]
    assert rows(torch.arange(9.0), 3, 9, method="percentile") == [1, 4, 7]
    assert rows(torch.arange(9.0), 1, 9, method="percentile") == [4]
    assert rows(torch.arange(10.0), 4, 10, method="percentile") == [1, 3, 6, 8]
    # Equal rewards are ranked by row.
    assert rows(torch.zeros(9), 3, 9, method="percentile") == [1, 4, 7]


# Groups by any name.


@pytest.mark.parametrize("method", DETERMINED)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_way_to_name_groups_gives_the_same(method, dtype):
    rewards = (normal(60) * 3).round()
    contiguous = select(rewards, 2, 5, method=method)
    blocks_of_5 = torch.arange(12).repeat_interleave(5)
    names = [str(uuid.UUID(int=int(g))) for g in blocks_of_5]
    for options in (
        {"offsets": torch.arange(0, 61, 5, dtype=dtype)},
        {"offsets": list(range(0, 61, 5))},
        {"group_ids": blocks_of_5.to(dtype)},
        {"group_ids": (100 - blocks_of_5).to(dtype)},
        {"group_ids": blocks_of_5.tolist()},
        {"group_ids": names},
        {"group_ids": np.array(names)},
        {"group_ids": torch.stack([blocks_of_5 % 3, blocks_of_5 // 3], 1)},
    ):
        got = select(rewards, 2, method=method, **options)
        assert torch.equal(got.mask, contiguous.mask), options
        assert torch.equal(got.indices, contiguous.indices), options


@pytest.mark.parametrize("method", ["max_variance", "top", "bottom"])
@given(st.integers(0, 1000))
def test_interleaved_groups_equal_contiguous_ones(method, seed):
    """A permutation that keeps the order inside each group selects the same rollouts."""
    rewards = (normal(40, seed=seed) * 2).round()
    labels = torch.arange(8).repeat_interleave(5)
    contiguous = select(rewards, 3, 5, method=method)
    shuffled = labels[torch.randperm(40, generator=generator(seed))]
    order = torch.argsort(torch.argsort(shuffled, stable=True))  # row of the shuffled batch -> contiguous row
    got = select(rewards[order], 3, group_ids=shuffled, method=method)
    assert torch.equal(got.mask, contiguous.mask[order])
    first = list(dict.fromkeys(shuffled.tolist()))
    assert got.indices.tolist() == sorted(
        got.mask.nonzero().flatten().tolist(), key=lambda i: (first.index(int(shuffled[i])), i)
    )


def test_indices_are_group_by_group_in_the_order_of_first_rows():
    ids = torch.tensor([7, -3, 7, 0, -3, 0, 7])
    rewards = torch.tensor([1.0, 5.0, 0.0, 2.0, 6.0, 2.0, 0.5])
    assert rows(rewards, 2, group_ids=ids) == [0, 2, 1, 4, 3, 5]
    assert rows(rewards, 1, group_ids=ids, method="bottom") == [2, 1, 3]
    assert rows(rewards, 2, group_ids=list("hchachh"), method="top") == [0, 5, 1, 4, 3]


@pytest.mark.parametrize("method", DETERMINED)
@given(TYING, st.integers(0, 9))
def test_the_batch_is_one_group(method, rewards, k):
    k = min(k, len(rewards))
    assert rows(rewards, k, scope="batch", method=method) == rows(rewards, k, len(rewards) or 1, method=method)
    ids = torch.zeros(len(rewards), dtype=torch.int32)
    assert rows(rewards, k, scope="batch", method=method) == rows(rewards, k, group_ids=ids, method=method)


@pytest.mark.parametrize("method", DRAWN)
def test_draws_of_the_batch_are_those_of_one_group(method):
    rewards = normal(31)
    batch, group = (
        rows(rewards, 5, method=method, generator=generator(), **options)
        for options in ({"scope": "batch"}, {"group_size": 31})
    )
    assert batch == group


def test_huge_and_strided_ids():
    ids = torch.tensor([2**62, -(2**63), 2**62, 2**63 - 1, -(2**63), 2**62])
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 2.0])
    assert rows(rewards, 2, group_ids=ids) == [0, 2, 1, 4, 3]
    assert rows(rewards, 2, group_ids=torch.stack([ids, ids * 0], 1)[:, 0]) == [0, 2, 1, 4, 3]


def test_one_group_of_many_rows():
    rewards = torch.arange(200_000, dtype=torch.int64) * 7919 % 200_003
    got = select(rewards, 1000, scope="batch")
    ascending = rewards.sort().indices
    want = torch.cat([ascending[:500], ascending[-500:]]).sort().values
    assert rewards[got.indices].double().var() == rewards[want].double().var()
    assert torch.equal(got.indices, want)


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_threads_does_not_change_a_row(method):
    rewards = (normal(57_600) * 5).round()
    rewards[::11] = NAN
    ids = torch.randint(0, 900, (57_600,), generator=generator(4))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            drawn = {"generator": generator()} if method in DRAWN else {}
            by_size = select(rewards, 16, 960, method=method, **drawn).mask
            by_id = select(rewards, 9, group_ids=ids, method=method, **drawn).mask
            results.append((by_size, by_id))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# Dtypes, strides, and what is left alone.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", DETERMINED)
def test_narrow_rewards_are_widened(dtype, method):
    rewards = normal(120).to(dtype)
    rewards[[3, 17]] = NAN
    assert rows(rewards, 3, 8, method=method) == rows(rewards.double(), 3, 8, method=method)
    assert rows(rewards, 3, 8, method=method) == reference.select_rollouts(rewards.tolist(), 3, blocks(120, 8), method)


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS])
@pytest.mark.parametrize("method", DETERMINED)
def test_integer_rewards(dtype, method):
    rewards = (normal(40).abs() * 40).to(dtype)
    want = rows(rewards.double(), 3, 8, method=method)
    assert rows(rewards, 3, 8, method=method) == want
    for values in (rewards.tolist(), rewards.numpy()):
        assert morlfast.select_rollouts(values, 3, group_size=8, method=method).indices.tolist() == want


def test_python_numbers_are_doubles():
    values = [1.0, 1.0 + 2**-40, 1.0 + 2**-39, 1.0]
    assert morlfast.select_rollouts(values, 1, group_size=4, method="top").indices.tolist() == [2]
    assert morlfast.select_rollouts([2**40, 2**40 + 1, 0], 1, group_size=3, method="top").indices.tolist() == [1]
    large = torch.tensor([2**40, 2**40 + 1, 0])
    assert rows(large, 1, 3, method="top") == [1]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32])
@pytest.mark.parametrize("method", DETERMINED)
def test_any_strides_give_the_same_rows(dtype, method):
    rewards = (normal(24) * 10).to(dtype)
    want = rows(rewards, 2, 4, method=method)
    table = torch.stack([rewards * 0 + 1, rewards, rewards * 0 + 1], 1)
    assert rows(table[:, 1], 2, 4, method=method) == want
    assert rows(torch.cat([rewards[:1], rewards])[1:], 2, 4, method=method) == want
    one = torch.ones(1, dtype=dtype).expand(8)
    assert rows(one, 1, 4, method="top") == [0, 4]


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_unchanged(method):
    rewards, ids, offsets = normal(12).requires_grad_(), torch.arange(12) % 3, torch.tensor([0, 5, 12])
    copies = [x.detach().clone() for x in (rewards, ids, offsets)]
    for options in ({"group_ids": ids}, {"offsets": offsets}):
        got = select(rewards, 2, method=method, **options)
        assert not got.indices.requires_grad
        assert not got.mask.requires_grad
    for x, copy in zip((rewards, ids, offsets), copies, strict=True):
        assert torch.equal(x, copy)
        assert x._version == 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_array_is_only_read():
    array = np.random.default_rng(0).random(12)
    array.flags.writeable = False
    got = morlfast.select_rollouts(torch.from_numpy(array), 2, group_size=4)
    assert torch.equal(got.mask, select(torch.from_numpy(array.copy()), 2, 4).mask)


def test_it_unpacks_into_indices_and_mask():
    indices, mask = select([1.0, 0.0, 0.5], 2, 3)
    assert (indices.tolist(), mask.tolist()) == ([0, 1], [True, True, False])


@pytest.mark.parametrize("method", ["max_variance", "top"])
def test_selected_rewards_have_advantages_by_a_second_call(method):
    rewards = normal(32)
    selected = select(rewards, 4, 8, method=method)
    advantages = morlfast.group_advantages(rewards[selected.indices], 4)
    assert advantages.view(4, 4).sum(1).abs().max() < 1e-5


# filter_zero_variance.


def keep(rewards, group_size=None, **options) -> list[int]:
    if not isinstance(rewards, torch.Tensor):
        rewards = torch.tensor(rewards, dtype=F64)
    got = morlfast.filter_zero_variance(rewards, group_size=group_size, **options)
    assert isinstance(got, morlfast.RolloutSelection)
    assert (got.indices.dtype, got.mask.dtype, got.mask.shape) == (torch.int64, torch.bool, (len(rewards),))
    assert sorted(got.indices.tolist()) == got.mask.nonzero().flatten().tolist()
    return got.indices.tolist()


def kept(rewards, labels, least_std=0.0, singleton="drop") -> list[int]:
    """Rows of groups of which an objective differs, in exact arithmetic."""
    table = [row if isinstance(row, list) else [row] for row in rewards]
    result = []
    for label in dict.fromkeys(labels):
        members = [i for i, g in enumerate(labels) if g == label and not all(math.isnan(x) for x in table[i])]
        stays = len(members) == 1 and singleton == "keep"
        for m in range(len(table[0]) if members else 0):
            values = [Fraction(table[i][m]) for i in members if not math.isnan(table[i][m])]
            if len(values) > 1:
                squared = reference.variance(values) * len(values) / (len(values) - 1)
                stays |= squared > Fraction(least_std) ** 2
        result += members if stays else []
    return result


@pytest.mark.parametrize("singleton", ["drop", "keep"])
@given(grouped(), st.sampled_from([0.0, 0.3, 1.0, 1.4, 3.0]))
def test_groups_without_spread_are_dropped(singleton, case, least_std):
    rewards, labels = case
    ids = torch.tensor(labels, dtype=torch.int64)
    got = keep(rewards, group_ids=ids, least_std=least_std, singleton=singleton)
    assert got == kept(rewards, labels, least_std, singleton)


@given(st.integers(0, 500), st.integers(1, 3), st.sampled_from([0.0, 0.7]))
def test_one_objective_with_spread_is_enough(seed, objectives, least_std):
    rewards = normal(12, objectives, seed=seed, dtype=F64).round()
    rewards[normal(12, objectives, seed=seed + 1) > 1] = NAN
    labels = torch.randint(0, 4, (12,), generator=generator(seed))
    got = keep(rewards, group_ids=labels, least_std=least_std)
    assert got == kept(rewards.tolist(), labels.tolist(), least_std)


def test_rounding_keeps_no_constant_group():
    for value in (0.1, 1 / 3, 1e8 + 0.1, 3e38, 1e-45):
        rewards = torch.full((7,), value)
        assert keep(rewards, 7) == []
        assert keep(rewards.double(), 7) == []
    rewards = torch.full((7,), 0.1)
    rewards[3] = torch.nextafter(rewards[3], torch.tensor(1.0))
    assert keep(rewards, 7) == list(range(7))
    assert keep(rewards, 7, least_std=1e-6) == []


def test_a_deviation_of_least_std_is_none():
    # 0 and 2: the deviation (n - 1) is exactly sqrt(2); of 0 2 4 it is 2.
    assert keep([0.0, 2.0, 4.0], 3, least_std=2.0) == []
    assert keep([0.0, 2.0, 4.0], 3, least_std=math.nextafter(2.0, 0.0)) == [0, 1, 2]


def test_odd_rewards():
    assert keep([1.0, NAN, 1.0, NAN], 4) == []
    assert keep([1.0, NAN, 2.0, NAN], 4) == [0, 2]
    assert keep([NAN, NAN], 2) == keep([NAN, NAN], 2, singleton="keep") == []
    assert keep([INF, 1.0, INF, INF, -INF, INF], 2) == [0, 1, 4, 5]
    assert keep([INF, 1.0, INF, INF, -INF, INF], 2, least_std=1e-6) == [0, 1, 4, 5]
    assert keep([-0.0, 0.0], 2) == []
    assert keep([1e308, -1e308], 2) == [0, 1]
    assert keep([5e-324, 0.0], 2) == [0, 1]


def test_groups_with_one_scored_rollout():
    rewards = [1.0, NAN, 2.0, 3.0, NAN, NAN]
    assert keep(rewards, 2) == [2, 3]
    assert keep(rewards, 2, singleton="drop") == [2, 3]
    assert keep(rewards, 2, singleton="keep") == [0, 2, 3]
    assert keep(rewards, 1) == []
    assert keep(rewards, 1, singleton="keep") == [0, 2, 3]


def test_a_rollout_scored_by_some_objectives_stays():
    rewards = torch.tensor([[NAN, 1.0], [2.0, NAN], [NAN, NAN], [3.0, 1.0]])
    assert keep(rewards, 4) == [0, 1, 3]


def test_groups_to_filter_may_be_named_in_any_way():
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 5.0, 5.0, 5.0, 4.0])
    want = [2, 3, 6, 7]
    names = ["a", "a", "b", "b", "c", "c", "d", "d"]
    for options in (
        {"group_size": 2},
        {"offsets": [0, 2, 4, 6, 8]},
        {"offsets": torch.tensor([0, 2, 2, 4, 6, 8, 8])},
        {"group_ids": torch.tensor([3, 3, -1, -1, 0, 0, 9, 9])},
        {"group_ids": names},
        {"group_ids": np.array(names)},
    ):
        assert keep(rewards, **options) == want, options
    assert keep(rewards[[0, 2, 1, 3]], group_ids=["a", "b", "a", "b"]) == [1, 3]
    ids = torch.tensor([1, 0, 1, 0])
    assert keep([0.0, 0.0, 1.0, 1.0], group_ids=ids) == [0, 2, 1, 3]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool])
def test_rewards_to_filter_of_any_dtype(dtype):
    rewards = torch.tensor([1, 1, 0, 1]).to(dtype)
    assert keep(rewards, 2) == [2, 3]
    assert morlfast.filter_zero_variance(rewards.tolist(), group_size=2).indices.tolist() == [2, 3]
    big = torch.tensor([2**53, 2**53 + 1])
    assert keep(big - 2**53, 2) == [0, 1]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_nothing_to_filter(shape):
    rewards = torch.empty(shape)
    assert keep(rewards, 2) == []
    assert keep(rewards, group_ids=torch.zeros(shape[0], dtype=torch.int64)) == []


def test_filtered_rewards_are_left_unchanged():
    rewards = normal(8).requires_grad_()
    got = morlfast.filter_zero_variance(rewards, group_size=2)
    assert not got.indices.requires_grad
    assert torch.equal(rewards, normal(8))


# Compiled.


@pytest.mark.parametrize("method", DETERMINED)
def test_the_mask_compiles_without_a_break(method):
    def masks(rewards):
        return (
            morlfast.select_rollouts(rewards, 2, group_size=4, method=method).mask,
            morlfast.select_rollouts(rewards, 5, scope="batch", method=method).mask,
        )

    torch._dynamo.reset()
    rewards = normal(24)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(masks, fullgraph=True, backend="aot_eager")
        for got, want in zip(compiled(rewards), masks(rewards), strict=True):
            assert torch.equal(got, want)


# Errors.

REWARDS = torch.arange(6.0)
BOTH = [morlfast.filter_zero_variance, lambda rewards, **options: morlfast.select_rollouts(rewards, 1, **options)]


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("bad", [None, "x", ["a"], object(), torch.ones(6, dtype=torch.complex64), [1j] * 6])
def test_rewards_must_be_numbers(function, bad):
    with pytest.raises(TypeError, match="rewards"):
        function(bad, group_size=1)


@pytest.mark.parametrize("shape", [(), (2, 3), (6, 1), (1, 2, 3)])
def test_rewards_to_select_are_a_vector(shape):
    with pytest.raises(ValueError, match="rewards"):
        morlfast.select_rollouts(torch.ones(shape), 1, scope="batch")


@pytest.mark.parametrize("shape", [(), (1, 2, 3)])
def test_rewards_to_filter_are_a_vector_or_a_table(shape):
    with pytest.raises(ValueError, match="rewards"):
        morlfast.filter_zero_variance(torch.ones(shape), group_size=1)


@pytest.mark.parametrize("k", [2.0, "2", None, True, [1]])
def test_k_must_be_an_integer(k):
    with pytest.raises(TypeError, match="k"):
        select(REWARDS, k, 3)


@pytest.mark.parametrize("k", [-1, 4, 2**62])
def test_k_must_fit_the_group(k):
    with pytest.raises(ValueError, match=r"^k: expected .*, got -?\d+$"):
        select(REWARDS, k, 3)


@pytest.mark.parametrize("k", [4, 2**40])
def test_k_may_be_more_than_a_group_by_name_has(k):
    for options in ({"group_ids": torch.tensor([0, 0, 1, 1, 1, 1])}, {"offsets": [0, 2, 6]}):
        assert rows(REWARDS, k, **options) == list(range(6))


@pytest.mark.parametrize("k", [6, 7, 2**40])
def test_k_may_be_more_than_the_batch_has(k):
    assert rows(REWARDS, k, scope="batch") == list(range(6))
    with pytest.raises(ValueError, match="k: expected an int >= 0, got -1"):
        select(REWARDS, -1, scope="batch")


@pytest.mark.parametrize("method", ["best", "", None, 0, "Top", ["top"]])
def test_method_must_be_known(method):
    with pytest.raises((TypeError, ValueError), match="method"):
        select(REWARDS, 1, 3, method=method)


@pytest.mark.parametrize("scope", ["sequence", "", None, 0, True, ["batch"]])
def test_scope_must_be_known(scope):
    with pytest.raises((TypeError, ValueError), match="scope"):
        select(REWARDS, 1, 3, scope=scope)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_size": 2, "group_ids": torch.arange(6)},
        {"group_size": 2, "offsets": [0, 6]},
        {"group_ids": torch.arange(6), "offsets": [0, 6]},
    ],
)
def test_groups_are_named_exactly_once(function, options):
    with pytest.raises(ValueError, match=r"group_size, group_ids, offsets: expected exactly one"):
        function(REWARDS, **options)


@pytest.mark.parametrize("options", [{"group_size": 2}, {"group_ids": torch.arange(6)}, {"offsets": [0, 6]}])
def test_the_batch_has_no_groups(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.*batch"):
        morlfast.select_rollouts(REWARDS, 1, scope="batch", **options)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("group_size", [4, 7, 0, -1, 2**62])
def test_group_size_must_divide_the_rows(function, group_size):
    with pytest.raises(ValueError, match="group_size"):
        function(REWARDS, group_size=group_size)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("group_size", [2.0, "2", [2], True])
def test_group_size_must_be_an_integer(function, group_size):
    with pytest.raises(TypeError, match="group_size"):
        function(REWARDS, group_size=group_size)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("group_ids", [torch.ones(6), [1.5] * 6, [None] * 6, [["a"]] * 6, "abcdef"])
def test_group_ids_must_be_integers_or_labels(function, group_ids):
    with pytest.raises(TypeError, match="group_ids"):
        function(REWARDS, group_ids=group_ids)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("group_ids", [torch.arange(5), torch.ones(1, 6).long(), torch.tensor(1), ["a"] * 7])
def test_group_ids_must_have_one_entry_a_rollout(function, group_ids):
    with pytest.raises(ValueError, match="group_ids"):
        function(REWARDS, group_ids=group_ids)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("offsets", [[0, 5], [1, 6], [0, 7], [0, 4, 3, 6], [], [[0, 6]], [-1, 6]])
def test_offsets_must_cover_the_rows_in_order(function, offsets):
    with pytest.raises(ValueError, match="offsets"):
        function(REWARDS, offsets=torch.tensor(offsets, dtype=torch.int64))


@pytest.mark.parametrize("function", BOTH)
def test_offsets_must_be_integers(function):
    with pytest.raises(TypeError, match="offsets"):
        function(REWARDS, offsets=torch.tensor([0.0, 6.0]))


@pytest.mark.parametrize("method", DETERMINED)
def test_a_generator_is_for_draws_only(method):
    with pytest.raises(ValueError, match="generator"):
        select(REWARDS, 1, 3, method=method, generator=generator())


@pytest.mark.parametrize("least_std", [-1e-9, NAN, -INF])
def test_least_std_is_not_negative(least_std):
    with pytest.raises(ValueError, match="least_std"):
        morlfast.filter_zero_variance(REWARDS, group_size=2, least_std=least_std)


def test_least_std_is_a_number():
    with pytest.raises(TypeError, match="least_std"):
        morlfast.filter_zero_variance(REWARDS, group_size=2, least_std="small")


@pytest.mark.parametrize("singleton", ["zero", None, True])
def test_singleton_is_known(singleton):
    with pytest.raises(ValueError, match="singleton"):
        morlfast.filter_zero_variance(REWARDS, group_size=2, singleton=singleton)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("name", ["group_ids", "offsets"])
def test_other_devices_must_match(function, name):
    with pytest.raises(ValueError, match="device"):
        function(REWARDS, **{name: torch.arange(6).to("meta")})


@pytest.mark.parametrize("k", [2**63, -(2**64)])
def test_k_has_64_bits(k):
    with pytest.raises(ValueError, match="k: expected an int of 64 bits"):
        select(REWARDS, k, scope="batch")


@pytest.mark.parametrize("generator", [3, "cpu", torch])
def test_generators_are_those_of_torch(generator):
    with pytest.raises(TypeError, match=r"generator: expected a torch\.Generator"):
        morlfast.select_rollouts(REWARDS, 1, group_size=3, method="random", generator=generator)
