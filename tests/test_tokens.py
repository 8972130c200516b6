"""select_tokens: exactly k per scope, ties to the lowest index, every stated edge case and error message."""

from __future__ import annotations

import math

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import tokens as reference

F64 = torch.float64
INF = math.inf
NAN = math.nan
SCOPES = ["batch", "group", "sequence"]


def select(advantages, entropies, mask, ratio, scope="batch", **options) -> torch.Tensor:
    return morlfast.select_tokens(advantages, entropies, mask, ratio, scope=scope, **options)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flags(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.7


def expected(advantages, entropies, mask, ratio, scope="batch", groups=None, **options) -> list[list[bool]]:
    arrays = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in (advantages, entropies))
    advantages, entropies = (x.numpy() for x in arrays)
    mask = mask.float().numpy()
    return reference.select_tokens(advantages, entropies, mask, ratio, scope, groups, **options).tolist()


def grouping(scope: str, n: int, group_size: int) -> tuple[dict[str, int], list[int]]:
    labels = [i // group_size for i in range(n)]
    return ({"group_size": group_size} if scope == "group" else {}), labels


@st.composite
def batches(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Small integers, so that most scores tie; some are NaN or infinite; advantages per row or per token."""
    group_size = draw(st.integers(1, 4))
    n = group_size * draw(st.integers(0, 3))
    t = draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    odd = draw(st.booleans())
    values = [-2.0, -1.0, -0.0, 0.0, 1.0, 2.0] + [NAN, INF, -INF] * odd
    dtype = draw(st.sampled_from([torch.float32, F64]))
    shape = draw(st.sampled_from([(n,), (n, t)]))
    advantages = torch.from_numpy(rng.choice(values, size=shape)).to(dtype)
    entropies = torch.from_numpy(rng.choice(values, size=(n, t))).to(dtype)
    mask = torch.from_numpy(rng.random((n, t)) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])))
    return advantages, entropies, mask, group_size


RATIOS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))


# Values.


@pytest.mark.parametrize("scope", SCOPES)
@given(batches(), RATIOS)
def test_ties_nan_and_infinities_match_a_sort(scope, case, ratio):
    advantages, entropies, mask, group_size = case
    options, labels = grouping(scope, len(entropies), group_size)
    got = select(advantages, entropies, mask, ratio, scope, **options)
    assert got.dtype == torch.bool
    assert got.tolist() == expected(advantages, entropies, mask, ratio, scope, labels)


def test_the_d3s_example():
    entropies = torch.tensor([[0.1, 2.0, 0.3, 1.0], [3.0, 0.2, 0.1, 2.5]])
    got = select(torch.tensor([1.0, -0.5]), entropies, torch.ones(2, 4), 0.25)
    assert got.flatten().nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.5, 0.93])
def test_agrees_with_torch_topk_where_nothing_ties(ratio):
    advantages, entropies, mask = (
        normal(64, dtype=F64),
        normal(64, 50, seed=1, dtype=F64).abs(),
        flags(64, 50),
    )
    score = (advantages.abs()[:, None] * entropies).masked_fill(~mask, -1.0)
    got = select(advantages, entropies, mask, ratio)
    top = score.flatten().topk(reference.count(ratio, int(mask.sum()))).indices
    assert torch.equal(got.flatten().nonzero().flatten(), top.sort().values)
    rows = select(advantages, entropies, mask, ratio, "sequence")
    for i in range(64):
        top = score[i].topk(reference.count(ratio, int(mask[i].sum()))).indices
        assert torch.equal(rows[i].nonzero().flatten(), top.sort().values)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.8])
def test_keeps_as_many_as_a_quantile_threshold_within_one(ratio):
    entropies, mask = normal(16, 200, dtype=F64).abs(), flags(16, 200)
    kept = select(torch.ones(16), entropies, mask, ratio)
    threshold = torch.quantile(entropies[mask], 1 - ratio)
    trl = (entropies >= threshold) & mask
    assert abs(int(kept.sum()) - int(trl.sum())) <= 1
    assert int((kept & ~trl).sum() + (trl & ~kept).sum()) <= 1


@pytest.mark.parametrize("scope", SCOPES)
def test_sizes_around_blocks(scope):
    for t in (1, 2, 31, 33, 63, 64, 65, 127, 129, 255, 256, 257, 1025):
        advantages, entropies, mask = normal(4, seed=t), normal(4, t, seed=t + 1).mul(3).round(), flags(4, t)
        options, labels = grouping(scope, 4, 2)
        got = select(advantages, entropies, mask, 0.3, scope, **options)
        assert got.tolist() == expected(advantages, entropies, mask, 0.3, scope, labels), t


def test_more_than_two_to_the_24_tokens_in_one_scope():
    n, t = 4097, 4096
    index = torch.arange(n * t, dtype=torch.int64)
    entropies = ((index * 2654435761) % 1000003).to(torch.float32).view(n, t)  # each value about 17 times
    kept = select(torch.ones(n), entropies, torch.ones(1, 1, dtype=torch.bool).expand(n, t), 0.2).flatten()
    k = reference.count(0.2, n * t)
    assert int(kept.sum()) == k
    entropies = entropies.flatten()
    threshold = entropies[kept].min()
    assert entropies[~kept].max() <= threshold
    on_threshold = kept[entropies == threshold]
    assert torch.equal(on_threshold, on_threshold.sort(descending=True).values)


# How many.


@pytest.mark.parametrize("scope", SCOPES)
def test_ratio_zero_keeps_nothing_and_ratio_one_every_valid_token(scope):
    advantages, entropies, mask = normal(6), normal(6, 20), flags(6, 20)
    advantages[2] = NAN
    entropies[3, 4] = NAN
    valid = mask & ~(advantages.abs()[:, None] * entropies).isnan()
    options, _ = grouping(scope, 6, 3)
    assert not select(advantages, entropies, mask, 0.0, scope, **options).any()
    assert not select(advantages, entropies, mask, 0, scope, **options).any()
    assert torch.equal(select(advantages, entropies, mask, 1.0, scope, **options), valid)
    assert torch.equal(select(advantages, entropies, mask, 1, scope, **options), valid)


def test_a_rounded_ratio_counts_as_the_fraction_it_stands_for():
    for n in (3, 7, 10, 30, 49, 100):
        advantages, entropies, mask = torch.ones(1), torch.rand(1, n), torch.ones(1, n)
        for k in range(n + 1):
            assert int(select(advantages, entropies, mask, k / n).sum()) == k, (k, n)
    for ratio, n, k in [(0.1, 30, 3), (0.07, 100, 7), (0.29, 100, 29), (0.3, 10, 3), (0.1 + 0.2, 10, 3)]:
        assert int(select(torch.ones(1), torch.rand(1, n), torch.ones(1, n), ratio).sum()) == k, (ratio, n)


@given(st.floats(0, 1), st.integers(0, 200))
def test_the_count_is_the_ceiling(ratio, n):
    kept = int(select(torch.ones(1), torch.rand(1, n), torch.ones(1, n), ratio).sum())
    assert kept == reference.count(ratio, n)


@pytest.mark.parametrize("ratio", [5e-324, 1e-300, 1e-12])
def test_any_positive_ratio_keeps_one_token(ratio):
    assert int(select(torch.ones(3), torch.rand(3, 5), torch.ones(3, 5), ratio).sum()) == 1
    assert int(select(torch.ones(3), torch.rand(3, 5), torch.ones(3, 5), ratio, "sequence").sum()) == 3


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_count_only_their_own_valid_tokens(scope):
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]])
    options, _ = grouping(scope, 4, 2)
    kept = select(torch.ones(4), torch.rand(4, 4), mask, 0.5, scope, **options)
    per_scope = {"batch": [4], "group": [2, 2], "sequence": [2, 0, 1, 1]}[scope]
    counts = kept.sum(1)
    if scope == "group":
        counts = counts.view(2, 2).sum(1)
    assert (counts.sum(0, keepdim=True) if scope == "batch" else counts).tolist() == per_scope
    assert not (kept & (mask == 0)).any()


@pytest.mark.parametrize("scope", SCOPES)
@given(batches(), RATIOS, st.integers(0, 12))
def test_at_least_so_many_of_every_scope(scope, case, ratio, at_least):
    advantages, entropies, mask, group_size = case
    options, labels = grouping(scope, len(entropies), group_size)
    got = select(advantages, entropies, mask, ratio, scope, at_least=at_least, **options)
    assert got.tolist() == expected(advantages, entropies, mask, ratio, scope, labels, at_least=at_least)


def test_at_least_counts_in_each_scope_and_only_what_is_valid():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]])

    def counts(scope, ratio, at_least, **options):
        return select(torch.ones(4), torch.rand(4, 4), mask, ratio, scope, at_least=at_least, **options).sum(1).tolist()

    assert counts("sequence", 0.0, 2) == [2, 0, 1, 2]
    assert counts("sequence", 0.75, 2) == [3, 0, 1, 2]
    assert counts("sequence", 0.0, 2**40) == [4, 0, 1, 2]
    assert sum(counts("batch", 0.0, 3)) == 3
    assert sum(counts("batch", 0.9, 3)) == 7
    by_group = counts("group", 0.1, 2, group_size=2)
    assert [sum(by_group[:2]), sum(by_group[2:])] == [2, 2]


# TRL's quantile.


def trl(entropies: torch.Tensor, mask: torch.Tensor, ratio: float) -> torch.Tensor:
    return reference.trl_mask(entropies, mask, 1 - ratio)


@pytest.mark.parametrize("scope", SCOPES)
@given(batches(), RATIOS)
def test_quantiles_of_ties_and_infinities_are_those_of_torch(scope, case, ratio):
    advantages, entropies, mask, group_size = case
    options, labels = grouping(scope, len(entropies), group_size)
    got = select(advantages, entropies, mask, ratio, scope, threshold="quantile", **options)
    assert got.tolist() == expected(advantages, entropies, mask, ratio, scope, labels, threshold="quantile")


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounded", [False, True])
def test_quantile_masks_are_those_of_trl_bit_for_bit(dtype, rounded):
    """Close scores, so that one rounding of the rank or of the interpolation moves a token over the threshold."""
    rng = np.random.default_rng(0)
    for trial in range(400):
        n, t = int(rng.integers(1, 9)), int(rng.integers(1, 90))
        entropies = normal(n, t, seed=trial).abs() if rounded else 1 + normal(n, t, seed=trial) * 2.0**-20
        entropies = (entropies * 4).round() / 4 if rounded else entropies
        entropies, mask = entropies.to(dtype), flags(n, t, seed=trial)
        ratio = float(rng.random()) if trial % 2 else int(rng.integers(0, 101)) / 100
        wide = entropies if dtype == F64 else entropies.float()
        want = trl(wide, mask, ratio)
        ones = torch.ones(n, dtype=dtype)
        assert torch.equal(select(ones, entropies, mask, ratio, threshold="quantile"), want), (trial, ratio)
        assert torch.equal(select(None, None, mask, ratio, score=entropies, threshold="quantile"), want), (trial, ratio)


@pytest.mark.parametrize("ratio", [0.2, 0.1, 0.05, 0.37, 1 / 3, 0.9999, 1e-7, 0.0, 1.0])
@pytest.mark.parametrize("size", [(64, 4096), (3, 9973)])
def test_quantile_masks_of_many_tokens(size, ratio):
    entropies, mask = normal(*size).abs().mul(50).round().div(50), flags(*size)
    assert torch.equal(
        select(torch.ones(size[0]), entropies, mask, ratio, threshold="quantile"), trl(entropies, mask, ratio)
    )
    entropies = normal(*size, seed=1).abs()
    assert torch.equal(
        select(torch.ones(size[0]), entropies, mask, ratio, threshold="quantile"), trl(entropies, mask, ratio)
    )


def test_quantile_ranks_are_rounded_as_torch_rounds_them():
    """(1 - ratio) (v - 1) is a whole number, or one rounding beside it, which loses or wins the token there."""
    in_float64 = 0
    for t in (101, 301, 1001, 3701, 20_001):
        entropies = torch.randperm(t, generator=torch.Generator().manual_seed(t)).float()[None]
        for percent in range(101):
            ratio = percent / 100
            got = select(torch.ones(1), entropies, torch.ones(1, t), ratio, threshold="quantile")
            assert torch.equal(got, trl(entropies, torch.ones(1, t), ratio)), (t, ratio)
            double = select(torch.ones(1), entropies.double(), torch.ones(1, t), ratio, threshold="quantile")
            assert torch.equal(double, trl(entropies.double(), torch.ones(1, t), ratio)), (t, ratio)
            in_float64 += not torch.equal(got, double)
    assert in_float64 > 0  # so that this test can tell them apart


def test_a_quantile_keeps_all_that_reach_it():
    ones = torch.ones(1)
    tied = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]])
    kept = select(ones, tied, tied > 0, 0.4, threshold="quantile")
    assert kept.tolist() == [[False, True, True, True, True]]
    assert select(ones, tied, tied > 0, 0.0, threshold="quantile").tolist() == [[False] * 4 + [True]]
    assert select(ones, tied, tied > 0, 1.0, threshold="quantile").all()
    assert not select(ones, tied, tied < 0, 1.0, threshold="quantile").any()
    assert select(ones, tied, tied == 1, 0.3, threshold="quantile").tolist() == [[True] + [False] * 4]


def test_one_nan_does_not_empty_a_quantile_mask():
    entropies = torch.tensor([[NAN, 1.0, 2.0, 3.0, 4.0]])
    kept = select(torch.ones(1), entropies, torch.ones(1, 5), 0.5, threshold="quantile")
    assert kept.tolist() == [[False, False, False, True, True]]
    assert not trl(entropies, torch.ones(1, 5), 0.5).any()


def test_a_quantile_of_more_than_two_to_the_24_tokens():
    n, t = 4097, 4096
    index = torch.arange(n * t, dtype=torch.int64)
    # Each value once; the two largest are not valid. In float32 the rank 12585981.75 would be 12585981.
    ranks = ((index * 2654435761) % (n * t)).view(n, t)
    entropies, mask = (ranks - 2**23).float(), ranks < n * t - 2
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(entropies.flatten(), 0.75)
    kept = select(torch.ones(n), entropies, mask, 0.25, threshold="quantile")
    assert torch.equal(kept, mask & (ranks >= 12585982))


# Scores of one's own.


@pytest.mark.parametrize("threshold", ["exact", "quantile"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_score_takes_the_place_of_advantages_and_entropies(scope, dtype, threshold):
    options, labels = grouping(scope, 6, 2)
    score, mask = normal(6, 40).mul(3).round().to(dtype), flags(6, 40)
    got = select(None, None, mask, 0.3, scope, score=score, threshold=threshold, **options)
    ones = torch.ones(6, dtype=dtype)
    assert got.tolist() == expected(ones, score, mask, 0.3, scope, labels, threshold=threshold)
    ignored = normal(6), normal(6, 40, seed=5)
    assert torch.equal(select(*ignored, mask, 0.3, scope, score=score, threshold=threshold, **options), got)


def test_a_score_of_any_sign_is_ordered():
    score = torch.tensor([[-3.0, -INF, INF, NAN, -0.0, 0.0, -1.0]])
    for k, kept in [
        (1, {2}),
        (2, {2, 4}),
        (3, {2, 4, 5}),
        (4, {2, 4, 5, 6}),
        (5, {0, 2, 4, 5, 6}),
        (6, {0, 1, 2, 4, 5, 6}),
    ]:
        got = select(None, None, torch.ones(1, 7), k / 6, score=score)
        assert set(got[0].nonzero().flatten().tolist()) == kept


def test_a_score_that_requires_grad_or_is_a_view():
    table = normal(5, 80).requires_grad_()
    got = select(None, None, torch.ones(5, 40), 0.3, score=table[:, ::2])
    assert not got.requires_grad
    assert torch.equal(got, select(None, None, torch.ones(5, 40), 0.3, score=table.detach()[:, ::2].contiguous()))


# Ties.


def test_ties_go_to_the_lowest_flat_index():
    ones = torch.ones(3, 4)
    assert select(torch.ones(3), ones, ones, 0.5).flatten().tolist() == [True] * 6 + [False] * 6
    assert select(torch.ones(3), ones, ones, 0.25, "sequence").tolist() == [[True] + [False] * 3] * 3
    group_ids = torch.tensor([5, 9, 5])
    kept = select(torch.ones(3), ones, ones, 0.625, "group", group_ids=group_ids)
    assert kept.tolist() == [[True] * 4, [True] * 3 + [False], [True, False, False, False]]


def test_negative_zero_ties_with_zero():
    entropies = torch.tensor([[-0.0, 0.0, -0.0, 0.0]])
    for advantage in (1.0, -1.0, 0.0, -0.0):
        kept = select(torch.tensor([advantage]), entropies, torch.ones(1, 4), 0.5)
        assert kept.tolist() == [[True, True, False, False]]


def test_the_sign_of_an_advantage_does_not_matter():
    advantages, entropies, mask = normal(8), normal(8, 30).abs(), flags(8, 30)
    assert torch.equal(select(advantages, entropies, mask, 0.3), select(-advantages.abs(), entropies, mask, 0.3))


# Odd values.


def test_nan_scores_are_not_valid():
    entropies = torch.tensor([[NAN, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    kept = select(torch.tensor([1.0, NAN]), entropies, torch.ones(2, 4), 2 / 3)
    assert kept.tolist() == [[False, False, True, True], [False] * 4]
    zero_times_inf = select(torch.tensor([0.0]), torch.tensor([[INF, 1.0, 1.0]]), torch.ones(1, 3), 0.5)
    assert zero_times_inf.tolist() == [[False, True, False]]


def test_nan_behind_the_mask_is_ignored():
    entropies = torch.tensor([[NAN, 1.0, 2.0, INF]])
    mask = torch.tensor([[False, True, True, False]])
    assert select(torch.ones(1), entropies, mask, 0.5).tolist() == [[False, False, True, False]]


def test_infinite_scores_are_ordered():
    entropies = torch.tensor([[-INF, 0.0, INF, 1.0, INF]])
    for k, kept in [(1, {2}), (2, {2, 4}), (3, {2, 3, 4}), (4, {1, 2, 3, 4}), (5, {0, 1, 2, 3, 4})]:
        got = select(torch.tensor([-2.0]), entropies, torch.ones(1, 5), k / 5)
        assert set(got[0].nonzero().flatten().tolist()) == kept


def test_negative_scores_are_ordered():
    entropies = torch.tensor([[-3.0, -1.0, -2.0, 0.5]])
    assert select(torch.ones(1), entropies, torch.ones(1, 4), 0.5).tolist() == [[False, True, False, True]]


def test_denormal_scores_are_ordered():
    entropies = torch.tensor([[1e-45, 3e-45, 0.0, 2.8e-45]])
    assert select(torch.ones(1), entropies, torch.ones(1, 4), 0.25).tolist() == [[False, True, False, False]]
    tiny = torch.tensor([[0.0, 5e-324, 1e-323]], dtype=F64)
    assert select(torch.ones(1), tiny, torch.ones(1, 3), 2 / 3).tolist() == [[False, True, True]]


# Dtypes.


def test_scores_of_float32_are_products_in_float32():
    # 3e38 * 2 overflows to +inf in float32 and ties with 3e38 * 3; in float64 it does not.
    advantages, entropies = torch.tensor([3e38]), torch.tensor([[2.0, 3.0, 1.0]])
    mask = torch.ones(1, 3)
    assert select(advantages, entropies, mask, 1 / 3).tolist() == [[True, False, False]]
    for a, h in ((advantages.double(), entropies), (advantages, entropies.double())):
        assert select(a, h, mask, 1 / 3).tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_it_is_multiplied(dtype):
    advantages, entropies = normal(8).to(dtype), normal(8, 100, seed=1).abs().to(dtype)
    mask = flags(8, 100)
    got = select(advantages, entropies, mask, 0.37)
    assert got.tolist() == expected(advantages, entropies, mask, 0.37)
    assert torch.equal(got, select(advantages.float(), entropies.float(), mask, 0.37))


FLOATS = [torch.float32, F64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("advantages_dtype", FLOATS)
@pytest.mark.parametrize("entropies_dtype", FLOATS)
def test_dtypes_mix(advantages_dtype, entropies_dtype):
    advantages, entropies, mask = normal(5), normal(5, 40, seed=1), flags(5, 40)
    advantages, entropies = advantages.to(advantages_dtype), entropies.to(entropies_dtype)
    wide = F64 if F64 in (advantages_dtype, entropies_dtype) else torch.float32
    got = select(advantages, entropies, mask, 0.4)
    assert got.tolist() == expected(advantages.to(wide), entropies.to(wide), mask, 0.4)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS],
)
def test_any_nonzero_mask_value_is_valid(dtype):
    advantages, entropies, mask = normal(5), normal(5, 40, seed=1), flags(5, 40)
    typed = mask.to(dtype)
    if dtype.is_floating_point:
        typed = torch.where(mask, torch.full_like(typed, -1e-5), torch.full_like(typed, -0.0))
    elif dtype not in (torch.bool, torch.uint8):
        typed = typed * -3
    assert torch.equal(select(advantages, entropies, typed, 0.4), select(advantages, entropies, mask, 0.4))


def test_a_wide_integer_mask_is_not_truncated():
    mask = torch.tensor([[2**32, 0, 2**40, 256]])
    assert select(torch.ones(1), torch.ones(1, 4), mask, 1.0).tolist() == [[True, False, True, True]]
    tiny = torch.tensor([[1e-45, 0.0, -1e-45, 1e-300]], dtype=F64)
    assert select(torch.ones(1), torch.ones(1, 4), tiny, 1.0).tolist() == [[True, False, True, True]]


# Shapes, strides and batches.


@pytest.mark.parametrize("scope", SCOPES)
def test_advantages_of_rows_equal_the_same_per_token(scope):
    advantages, entropies, mask = normal(6), normal(6, 33, seed=1), flags(6, 33)
    options, _ = grouping(scope, 6, 3)
    rows = select(advantages, entropies, mask, 0.3, scope, **options)
    expanded = advantages[:, None].expand(6, 33)
    assert torch.equal(select(expanded, entropies, mask, 0.3, scope, **options), rows)
    assert torch.equal(select(expanded.contiguous(), entropies, mask, 0.3, scope, **options), rows)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_any_strides_give_the_same_tokens(scope, dtype):
    n, t = 6, 31
    options, _ = grouping(scope, n, 2)
    advantages, entropies, mask = normal(n, t).to(dtype), normal(n, t, seed=1).to(dtype), flags(n, t)

    def views(x: torch.Tensor, hole: float) -> list[torch.Tensor]:
        padded = torch.full((2 * n, 3 * t + 2), hole, dtype=x.dtype)
        padded[::2, 2::3] = x
        return [
            x.T.contiguous().T,
            padded[::2, 2::3],
            torch.cat([x.flatten()[:1], x.flatten()])[1:].view(n, t),
        ]

    contiguous = select(advantages, entropies, mask, 0.3, scope, **options)
    for a, h, v in zip(views(advantages, NAN), views(entropies, NAN), views(mask, 1), strict=True):
        assert torch.equal(select(a, h, v, 0.3, scope, **options), contiguous)
    rows = advantages[:, 0].contiguous()
    per_row = select(rows, entropies, mask, 0.3, scope, **options)
    assert torch.equal(select(advantages[:, 0], entropies, mask, 0.3, scope, **options), per_row)


def test_expanded_inputs():
    one = torch.ones(1, 1)
    kept = select(torch.ones(1).expand(3), one.expand(3, 5), one.bool().expand(3, 5), 0.4)
    assert kept.flatten().tolist() == [True] * 6 + [False] * 9
    assert kept.is_contiguous()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_memory_map_is_only_read(tmp_path):
    x = np.random.default_rng(0).random((8, 20), dtype=np.float32)
    x.tofile(tmp_path / "entropies")
    mapped = torch.from_numpy(np.memmap(tmp_path / "entropies", dtype=np.float32, mode="r", shape=x.shape))
    for scope in ("batch", "sequence"):
        got = select(mapped, mapped, mapped, 0.3, scope)
        assert torch.equal(got, select(*[torch.from_numpy(x)] * 3, 0.3, scope))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_zero_size_inputs_give_zero_size_results(scope, shape):
    options, _ = grouping(scope, shape[0], 2)
    empty = torch.empty(shape)
    for advantages in (empty, torch.empty(shape[0])):
        got = select(advantages, empty, empty.bool(), 0.5, scope, **options)
        assert got.shape == shape
        assert got.dtype == torch.bool


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_sequences_and_groups_equal_a_loop_over_batches(ratio):
    advantages, entropies, mask = normal(12), normal(12, 40, seed=1).mul(2).round(), flags(12, 40)
    rows = [select(advantages[i : i + 1], entropies[i : i + 1], mask[i : i + 1], ratio) for i in range(12)]
    assert torch.equal(select(advantages, entropies, mask, ratio, "sequence"), torch.cat(rows))
    blocks = [slice(i, i + 4) for i in range(0, 12, 4)]
    groups = [select(advantages[b], entropies[b], mask[b], ratio) for b in blocks]
    assert torch.equal(select(advantages, entropies, mask, ratio, "group", group_size=4), torch.cat(groups))
    assert torch.equal(
        select(advantages, entropies, mask, ratio, "group", group_size=12),
        select(advantages, entropies, mask, ratio, "batch"),
    )
    assert torch.equal(
        select(advantages, entropies, mask, ratio, "group", group_size=1),
        select(advantages, entropies, mask, ratio, "sequence"),
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@given(st.lists(st.sampled_from([-(2**31), -7, -1, 0, 3, 2**31 - 1]), min_size=1, max_size=9), RATIOS)
def test_group_ids_are_labels_in_any_order(dtype, labels, ratio):
    n = len(labels)
    advantages, entropies, mask = normal(n), normal(n, 7, seed=1).mul(2).round(), flags(n, 7)
    got = select(advantages, entropies, mask, ratio, "group", group_ids=torch.tensor(labels, dtype=dtype))
    assert got.tolist() == expected(advantages, entropies, mask, ratio, "group", labels)


def test_group_ids_may_be_huge_and_strided():
    labels = torch.tensor([2**62, -(2**63), 2**62, 2**63 - 1, -(2**63), 0])
    advantages, entropies, mask = normal(6), normal(6, 9, seed=1), flags(6, 9)
    want = expected(advantages, entropies, mask, 0.4, "group", labels.tolist())
    assert select(advantages, entropies, mask, 0.4, "group", group_ids=labels).tolist() == want
    strided = torch.stack([labels, labels * 0], 1)[:, 0]
    assert select(advantages, entropies, mask, 0.4, "group", group_ids=strided).tolist() == want


@pytest.mark.parametrize("threshold", ["exact", "quantile"])
def test_every_way_to_name_groups_gives_the_same(threshold):
    advantages, entropies, mask = normal(12), normal(12, 30, seed=1).mul(2).round(), flags(12, 30)
    contiguous = select(advantages, entropies, mask, 0.3, "group", group_size=3, threshold=threshold)
    ids = torch.arange(4).repeat_interleave(3)
    names = [f"prompt {int(g)}" for g in ids]
    for options in (
        {"offsets": torch.tensor([0, 3, 6, 9, 12])},
        {"offsets": torch.tensor([0, 3, 6, 9, 12], dtype=torch.int32)},
        {"offsets": [0, 0, 3, 6, 6, 9, 12, 12]},
        {"group_ids": ids.to(torch.uint8)},
        {"group_ids": ids.tolist()},
        {"group_ids": 9 - ids},
        {"group_ids": names},
        {"group_ids": np.array(names)},
        {"group_ids": torch.stack([ids % 2, ids // 2], 1)},
    ):
        got = select(advantages, entropies, mask, 0.3, "group", threshold=threshold, **options)
        assert torch.equal(got, contiguous), options


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    RATIOS,
    st.integers(0, 3),
    st.sampled_from(["exact", "quantile"]),
)
def test_offsets_of_ragged_groups(lengths, ratio, at_least, threshold):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offsets[-1])
    labels = [g for g, length in enumerate(lengths) for _ in range(length)]
    advantages, entropies, mask = normal(n), normal(n, 7, seed=1).mul(2).round(), flags(n, 7)
    options = {"threshold": threshold, "at_least": at_least * (threshold == "exact")}
    got = select(advantages, entropies, mask, ratio, "group", offsets=torch.from_numpy(offsets), **options)
    assert got.tolist() == expected(advantages, entropies, mask, ratio, "group", labels, **options)


@pytest.mark.parametrize("options", [{"at_least": 5}, {"threshold": "quantile"}])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_number_of_threads_does_not_change_a_token(scope, options):
    advantages, entropies, mask = normal(400), normal(400, 700, seed=1).mul(100).round(), flags(400, 700)
    groups, _ = grouping(scope, 400, 8)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(select(advantages, entropies, mask, 0.2, scope, **groups, **options))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("scope", SCOPES)
def test_inputs_are_left_unchanged(scope):
    inputs = [normal(6, 40), normal(6, 40, seed=1), flags(6, 40), torch.tensor([3, 1, 3, 2, 1, 3])]
    copies = [x.clone() for x in inputs]
    options = {"group_ids": inputs[3]} if scope == "group" else {}
    select(*inputs[:3], 0.3, scope, **options)
    for x, copy in zip(inputs, copies, strict=True):
        assert torch.equal(x, copy)
        assert x._version == 0


def test_inputs_that_require_grad_are_taken():
    kept = select(normal(3).requires_grad_(), normal(3, 5).requires_grad_(), torch.ones(3, 5), 0.5)
    assert kept.dtype == torch.bool
    assert not kept.requires_grad


@given(batches(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_ratio_only_adds_tokens(case, first, second):
    advantages, entropies, mask, _ = case
    low, high = sorted([first, second])
    fewer, more = (select(advantages, entropies, mask, ratio) for ratio in (low, high))
    assert not (fewer & ~more).any()


@given(batches(), RATIOS)
def test_padding_columns_change_nothing(case, ratio):
    advantages, entropies, mask, _ = case
    n, t = entropies.shape
    junk = torch.full((n, 3), NAN, dtype=entropies.dtype)
    longer = advantages if advantages.ndim == 1 else torch.cat([advantages, junk], 1)
    padded = select(longer, torch.cat([entropies, junk], 1), torch.cat([mask, torch.zeros(n, 3) > 0], 1), ratio)
    assert torch.equal(padded[:, :t], select(advantages, entropies, mask, ratio))
    assert not padded[:, t:].any()


@given(batches(), RATIOS, st.integers(-60, 60))
def test_scaling_by_powers_of_two_changes_nothing(case, ratio, exponent):
    advantages, entropies, mask, _ = case
    scaled = select(advantages * 2.0**exponent, entropies, mask, ratio)
    assert torch.equal(scaled, select(advantages, entropies, mask, ratio))


# Errors.

A, H, V = torch.ones(4), torch.ones(4, 3), torch.ones(4, 3)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, -1e-300, 1 + 2**-52, NAN, INF, -INF])
def test_ratio_must_be_a_fraction(ratio):
    with pytest.raises(ValueError, match="ratio"):
        select(A, H, V, ratio)


@pytest.mark.parametrize("ratio", ["half", None, [0.5]])
def test_ratio_must_be_a_number(ratio):
    with pytest.raises(TypeError, match="ratio"):
        select(A, H, V, ratio)


@pytest.mark.parametrize("scope", ["row", "", "Batch"])
def test_scope_must_be_known(scope):
    with pytest.raises(ValueError, match="scope"):
        select(A, H, V, 0.5, scope)


@pytest.mark.parametrize("scope", [None, 0, True])
def test_scope_must_be_a_string(scope):
    with pytest.raises((TypeError, ValueError), match="scope"):
        select(A, H, V, 0.5, scope)


@pytest.mark.parametrize("name", ["advantages", "entropies", "mask"])
@pytest.mark.parametrize("bad", [None, "x", 3.0, torch.ones(4, 3, dtype=torch.complex64)])
def test_inputs_must_be_tensors_of_numbers(name, bad):
    arguments = {"advantages": A, "entropies": H, "mask": V, name: bad}
    with pytest.raises(TypeError, match=name):
        morlfast.select_tokens(**arguments, ratio=0.5)


@pytest.mark.parametrize("name", ["advantages", "entropies"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_advantages_and_entropies_must_be_floating(name, dtype):
    arguments = {"advantages": A, "entropies": H, "mask": V, name: torch.ones(4, 3, dtype=dtype)}
    with pytest.raises(TypeError, match=name):
        morlfast.select_tokens(**arguments, ratio=0.5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("advantages", s) for s in [(), (3,), (5,), (4, 1), (1, 3), (3, 4), (4, 3, 1)]]
    + [("mask", s) for s in [(), (4,), (3,), (4, 1), (1, 3), (3, 4), (4, 3, 1)]]
    + [("entropies", s) for s in [(), (4,), (4, 3, 1)]],
)
def test_shapes_must_fit(name, shape):
    arguments = {"advantages": A, "entropies": H, "mask": V, name: torch.ones(shape)}
    with pytest.raises(ValueError, match=name):
        morlfast.select_tokens(**arguments, ratio=0.5)


def test_group_scope_needs_groups():
    with pytest.raises(ValueError, match="group"):
        select(A, H, V, 0.5, "group")
    with pytest.raises(ValueError, match=r"group_size.*group_ids|group_ids.*group_size"):
        select(A, H, V, 0.5, "group", group_size=2, group_ids=torch.arange(4))


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_groups_are_for_the_group_scope_only(scope):
    for name, value in (("group_size", 2), ("group_ids", torch.arange(4)), ("offsets", [0, 4])):
        with pytest.raises(ValueError, match=name):
            select(A, H, V, 0.5, scope, **{name: value})


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 5], [0, 3, 2, 4], [], [[0, 4]], [-1, 4]])
def test_offsets_must_cover_the_rows_in_order(offsets):
    with pytest.raises(ValueError, match="offsets"):
        select(A, H, V, 0.5, "group", offsets=torch.tensor(offsets, dtype=torch.int64))


def test_offsets_must_be_integers():
    with pytest.raises(TypeError, match="offsets"):
        select(A, H, V, 0.5, "group", offsets=torch.tensor([0.0, 4.0]))


@pytest.mark.parametrize("at_least", [1.0, "1", None, [1], True])
def test_at_least_must_be_an_integer(at_least):
    with pytest.raises(TypeError, match="at_least"):
        select(A, H, V, 0.5, at_least=at_least)


def test_at_least_must_not_be_negative_nor_beside_a_quantile():
    with pytest.raises(ValueError, match=r"^at_least: .*-1"):
        select(A, H, V, 0.5, at_least=-1)
    with pytest.raises(ValueError, match=r"^at_least: .*quantile.*3"):
        select(A, H, V, 0.5, at_least=3, threshold="quantile")


@pytest.mark.parametrize("threshold", ["median", "", None, 0, True, ["exact"]])
def test_threshold_must_be_known(threshold):
    with pytest.raises((TypeError, ValueError), match="threshold"):
        select(A, H, V, 0.5, threshold=threshold)


@pytest.mark.parametrize("score", ["x", 3.0, torch.ones(4, 3).long(), torch.ones(4, 3, dtype=torch.complex64)])
def test_score_must_be_a_floating_tensor(score):
    with pytest.raises(TypeError, match="score"):
        select(None, None, V, 0.5, score=score)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 1)])
def test_score_must_have_a_row_each(shape):
    with pytest.raises(ValueError, match="score"):
        select(A, H, V, 0.5, score=torch.ones(shape))


def test_mask_and_score_must_fit():
    for score in (torch.ones(4, 2), torch.ones(3, 3)):
        with pytest.raises(ValueError, match=r"^mask: .*score"):
            select(A, H, V, 0.5, score=score)
    with pytest.raises(ValueError, match="device"):
        select(A, H, V.to("meta"), 0.5, score=H)


def test_without_a_score_there_are_advantages_and_entropies():
    with pytest.raises(TypeError, match="advantages"):
        select(None, H, V, 0.5)
    with pytest.raises(TypeError, match="entropies"):
        select(A, None, V, 0.5)


@pytest.mark.parametrize("group_size", [3, 5, 0, -1, -4, 2**62])
def test_group_size_must_divide_the_rows(group_size):
    with pytest.raises(ValueError, match="group_size"):
        select(A, H, V, 0.5, "group", group_size=group_size)


@pytest.mark.parametrize("group_size", [2.0, "2", [2]])
def test_group_size_must_be_an_integer(group_size):
    with pytest.raises(TypeError, match="group_size"):
        select(A, H, V, 0.5, "group", group_size=group_size)


@pytest.mark.parametrize("group_ids", [torch.ones(4), torch.ones(4, dtype=torch.complex64), "abcd"])
def test_group_ids_must_be_integers(group_ids):
    with pytest.raises(TypeError, match="group_ids"):
        select(A, H, V, 0.5, "group", group_ids=group_ids)


@pytest.mark.parametrize("shape", [(), (3,), (5,), (1, 4), (3, 1), (4, 1, 1)])
def test_group_ids_must_have_one_entry_per_row(shape):
    with pytest.raises(ValueError, match="group_ids"):
        select(A, H, V, 0.5, "group", group_ids=torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize("name", ["advantages", "entropies", "mask", "group_ids"])
def test_other_devices_must_match(name):
    arguments = {"advantages": A, "entropies": H, "mask": V, "group_ids": torch.arange(4)}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match="device"):
        morlfast.select_tokens(**arguments, ratio=0.5, scope="group")
