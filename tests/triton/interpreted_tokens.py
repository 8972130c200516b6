"""Triton select_tokens against sorting; run by test_interpreter.py."""

import math
from itertools import product
from typing import Any

import morlfast  # noqa: F401  registers the operators
import pytest
import torch
from morlfast._triton import tokens as kernels
from references import tokens as reference
from torch import Tensor

F64 = torch.float64
NAN, INF = math.nan, math.inf
SCOPES = {"batch": 0, "group": 1, "sequence": 2}


def check(
    advantages: Tensor,
    entropies: Tensor,
    mask: Tensor,
    ratio: float,
    scope: str,
    groups: int | list[int] = 1,
    at_least: int = 0,
    quantile: bool = False,
    offsets: list[int] | None = None,
) -> None:
    inputs = (advantages, entropies, mask)
    before = [x.clone() for x in inputs]
    size, ids = (groups, None) if isinstance(groups, int) else (0, torch.tensor(groups))
    if scope != "group" or offsets is not None:
        size, ids = 0, None
    bounds = None if offsets is None else torch.tensor(offsets)
    arguments = (ratio, SCOPES[scope], size, ids, bounds, at_least, quantile)
    result = kernels.select_tokens(advantages, entropies, mask, *arguments)
    arrays = [x.float().numpy() if x.dtype in (torch.bfloat16, torch.float16) else x.numpy() for x in inputs]
    labels = [i // groups for i in range(len(entropies))] if isinstance(groups, int) else groups
    threshold = "quantile" if quantile else "exact"
    expected = torch.from_numpy(reference.select_tokens(*arrays, ratio, scope, labels, at_least, threshold))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    for tensor, copy in zip(inputs, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


def draws(values: list[float], *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    picks = torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(values, dtype=dtype)[picks]


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


TIED = [-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, NAN, INF, -INF]
RAGGED = [5, -1, 5, 2, -1, 5]


@pytest.fixture(params=["one tile", "several tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens in a row: so few that tiles hold several rows, or several tiles."""
    if request.param == "one tile":
        return 21
    monkeypatch.setattr(kernels, "TILE", 128)
    return 200


@pytest.fixture(params=["row kernel", "histograms in memory"])
def row_limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "row kernel":
        monkeypatch.setattr(kernels, "ROW_LIMIT", 0)


@pytest.mark.parametrize(("scope", "groups"), [("batch", 1), ("group", 2), ("group", 3), ("group", RAGGED)], ids=str)
@pytest.mark.parametrize("per_token", [False, True])
def test_ties_go_to_the_lowest_index(scope: str, groups: Any, per_token: bool, tiles: int) -> None:
    advantages = draws(TIED, 6, tiles) if per_token else draws(TIED[:6], 6)
    check(advantages, draws(TIED, 6, tiles, seed=1), uniform(6, tiles) < 0.7, 0.4, scope, groups)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.usefixtures("row_limit")
def test_ties_go_to_the_lowest_index_of_a_row(per_token: bool, tiles: int) -> None:
    advantages = draws(TIED, 6, tiles) if per_token else draws(TIED[:6], 6)
    check(advantages, draws(TIED, 6, tiles, seed=1), uniform(6, tiles) < 0.7, 0.4, "sequence")


@pytest.mark.parametrize(("scope", "groups"), [("batch", 1), ("group", RAGGED), ("sequence", 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_dtypes(scope: str, groups: Any, dtype: torch.dtype) -> None:
    advantages, entropies = uniform(6, dtype=F64).sub(0.5).to(dtype), uniform(6, 40, dtype=F64).to(dtype)
    check(advantages, entropies, uniform(6, 40, seed=1) < 0.8, 0.2, scope, groups)


def test_float64_scores_that_are_equal_in_float32_are_told_apart() -> None:
    entropies = 1 + torch.arange(40, dtype=F64).reshape(2, 20) * 2.0**-50
    for scope in SCOPES:
        check(torch.ones(2, dtype=torch.bfloat16), entropies, torch.ones(2, 20), 0.3, scope, 2)


def test_every_digit_decides() -> None:
    bits = [1 << i for i in range(31)] + [(1 << i) + 1 for i in range(1, 31)] + [0x7F7FFFFF]
    entropies = torch.tensor(bits, dtype=torch.int32).view(torch.float32).unsqueeze(0)
    entropies = torch.cat([entropies, -entropies])
    for ratio, scope in product([0.07, 0.5, 0.77], SCOPES):
        check(torch.ones(2), entropies, torch.ones(2, len(bits)), ratio, scope, 2)


@pytest.mark.parametrize(
    "mask",
    [
        draws([0, 1, 2, -1], 4, 15, dtype=torch.int64),
        draws([0, 1, 255], 4, 15, dtype=torch.uint8),
        draws([0.0, -0.0, 0.5, 1e-30, NAN], 4, 15),
        draws([0.0, 1e-300, 1.0], 4, 15, dtype=F64),
        draws([0.0, -0.0, 1e-30, 1.0], 4, 15, dtype=torch.bfloat16),
    ],
    ids=lambda mask: str(mask.dtype),
)
def test_masks_of_any_dtype(mask: Tensor) -> None:
    for scope in SCOPES:
        check(uniform(4), uniform(4, 15), mask, 0.5, scope, 2)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.1, 1e-12])
@pytest.mark.usefixtures("row_limit")
def test_counts_are_exact(ratio: float) -> None:
    """0.1 of 30 tokens is 3, although the float 0.1 is more than a tenth."""
    for scope in SCOPES:
        check(uniform(4).sub(0.5), uniform(4, 30), torch.ones(4, 30, dtype=torch.bool), ratio, scope, 2)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.usefixtures("row_limit")
def test_nothing_valid_keeps_nothing(scope: str) -> None:
    mask = torch.zeros(4, 10, dtype=torch.bool)
    check(uniform(4), uniform(4, 10), mask, 1.0, scope, 2)
    mask[2, 3] = True
    check(uniform(4), uniform(4, 10), mask, 0.01, scope, 2)
    check(uniform(4), torch.full((4, 10), NAN), ~mask, 1.0, scope, 2)


@pytest.mark.parametrize("scope", SCOPES)
def test_strided_inputs(scope: str) -> None:
    advantages = uniform(26, 12).t()[::2, ::2]
    entropies = uniform(12, 26, seed=1)[::2, ::2]
    mask = (uniform(13, 6, seed=2) < 0.6).t()
    check(advantages, entropies, mask, 0.3, scope, 3)
    check(advantages[:, 2], entropies, mask, 0.3, scope, 3)
    check(uniform(1).expand(6), entropies, mask, 0.3, scope, 3)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    for scope in SCOPES:
        result = kernels.select_tokens(
            torch.empty(shape[0]), torch.empty(shape), torch.empty(shape), 0.5, SCOPES[scope], 1, None
        )
        assert result.shape == shape
        assert result.dtype == torch.bool


SCOPES_AND_ROW_LIMITS = [*[(scope, kernels.ROW_LIMIT) for scope in SCOPES], ("sequence", 0)]


@pytest.mark.parametrize(("scope", "limit"), SCOPES_AND_ROW_LIMITS)
def test_at_least(scope: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROW_LIMIT", limit)
    mask = uniform(4, 15) < 0.7
    for ratio, least in [(0.0, 3), (0.1, 2), (0.5, 2), (0.0, 100)]:
        check(uniform(4), uniform(4, 15, seed=1), mask, ratio, scope, 2, at_least=least)


def test_offsets() -> None:
    entropies, mask, labels = draws(TIED, 6, 21), uniform(6, 21) < 0.7, [1, 1, 3, 3, 3, 4]
    check(uniform(6), entropies, mask, 0.4, "group", labels, offsets=[0, 0, 2, 2, 5, 6])
    check(uniform(6), entropies, mask, 0.0, "group", labels, at_least=2, offsets=[0, 0, 2, 2, 5, 6])
    check(uniform(6), entropies, mask, 0.4, "group", [0] * 6, offsets=[0] * 9 + [6])


# The interpreter rounds twice where the quantile is interpolated: no score may be that close to it.
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("scope", "limit"), SCOPES_AND_ROW_LIMITS)
def test_quantile(scope: str, limit: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROW_LIMIT", limit)
    mask = uniform(4, 21) < 0.7
    for entropies in (uniform(4, 21, seed=1, dtype=dtype), draws([0.0, 1.0, 2.0, NAN, INF], 4, 21, dtype=dtype)):
        for ratio in (0.0, 0.3):
            check(torch.ones(4, dtype=dtype), entropies, mask, ratio, scope, 2, quantile=True)
    check(torch.ones(4, dtype=dtype), entropies, mask & False, 0.3, scope, 2, quantile=True)


def keys(advantages: Tensor, entropies: Tensor) -> Tensor:
    """int64 whose order, unsigned, is that of float32 scores."""
    bits = (advantages.abs()[:, None] * entropies + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 1 << 31)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_histograms_of_digits(dtype: torch.dtype, tiles: int) -> None:
    advantages, entropies, mask = uniform(6), draws(TIED, 6, tiles).to(dtype), uniform(6, tiles) < 0.7
    segments, prefixes = torch.tensor([2, 0, 2, 0, 3, 2]), torch.zeros(5, dtype=torch.int64)
    for level in range(4):
        counts = kernels.token_histogram(advantages, entropies, mask, segments, prefixes, level)
        assert torch.equal(
            counts, torch.ops.morlfast.token_histogram(advantages, entropies, mask, segments, prefixes, level)
        )
        if level == 0:
            valid = mask & ~(advantages[:, None] * entropies).isnan()
            assert counts.sum() == valid.sum()
        prefixes = prefixes << 8 | counts.argmax(1)
    assert counts.max() > 1


def test_tokens_above_thresholds(tiles: int) -> None:
    advantages, entropies, mask = torch.ones(6), draws(TIED, 6, tiles), uniform(6, tiles) < 0.7
    segments, own = torch.tensor([2, 0, 2, 0, 3, 2]), keys(torch.ones(6), entropies)
    thresholds, ties = own[0, :5].clone(), torch.tensor([2, 0, 3, 1000, 1])
    thresholds[3] = 0
    for left in (ties, torch.zeros_like(ties)):
        expected = torch.zeros_like(mask)
        remaining = left.tolist()
        for row, segment in enumerate(segments.tolist()):
            for col in range(tiles):
                key, threshold = own[row, col], thresholds[segment]
                if not mask[row, col] or entropies[row, col].isnan():
                    continue
                expected[row, col] = key > threshold or (key == threshold and remaining[segment] > 0)
                remaining[segment] -= int(key == threshold)
        arguments = (advantages, entropies, mask, segments, thresholds, left)
        assert torch.equal(kernels.select_tokens_above(*arguments), expected)
        assert torch.equal(torch.ops.morlfast.select_tokens_above(*arguments), expected)


def test_thresholds_of_float64_scores() -> None:
    entropies = torch.tensor([[-1.0, 2.0, 0.0, -1.0]], dtype=F64)
    for threshold, ties, expected in [
        (-1.0, 1, [True, True, True, False]),
        (0.0, 0, [False, True, False, False]),
        (0.0, 1, [False, True, True, False]),
    ]:
        bits = torch.tensor([threshold], dtype=F64).view(torch.int64)
        key = torch.where(bits < 0, ~bits, bits ^ -(2**63))
        arguments = (torch.ones(1), entropies, torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), key)
        assert kernels.select_tokens_above(*arguments, torch.tensor([ties])).tolist() == [expected]


def test_segments_without_rows_or_tokens() -> None:
    segments, two = torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    counts = kernels.token_histogram(torch.ones(0), torch.ones(0, 3), torch.ones(0, 3), segments, two, 0)
    assert counts.tolist() == [[0] * 256] * 2
    assert kernels.select_tokens_above(torch.ones(2), torch.ones(2, 0), torch.ones(2, 0), two, two, two).shape == (2, 0)
