"""Triton select_tokens against sorting; run by test_interpreter.py."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from morlfast._triton import tokens as kernels
from references import tokens as reference
from torch import Tensor

F64 = torch.float64
NAN, INF = math.nan, math.inf
SCOPES = {"batch": 0, "group": 1, "sequence": 2}


def check(
    advantages: Tensor, entropies: Tensor, mask: Tensor, ratio: float, scope: str, groups: int | list[int] = 1
) -> None:
    inputs = (advantages, entropies, mask)
    before = [x.clone() for x in inputs]
    size, ids = (groups, None) if isinstance(groups, int) else (0, torch.tensor(groups))
    if scope != "group":
        size, ids = 0, None
    result = kernels.select_tokens(advantages, entropies, mask, ratio, SCOPES[scope], size, ids)
    arrays = [x.float().numpy() if x.dtype in (torch.bfloat16, torch.float16) else x.numpy() for x in inputs]
    labels = [i // groups for i in range(len(entropies))] if isinstance(groups, int) else groups
    expected = torch.from_numpy(reference.select_tokens(*arrays, ratio, scope, labels))
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
