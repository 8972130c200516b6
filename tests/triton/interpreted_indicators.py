"""Triton best_points against all pairs at once; run by test_interpreter.py."""

import math

import pytest
import torch
from morlfast._triton import indicators as kernels
from torch import Tensor

F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf
KINDS = range(kernels.KINDS)
NO_POINTS = [-INF, INF, INF, INF, INF, INF]


def pairs(queries: Tensor, points: Tensor, kind: int) -> Tensor:
    """[..., W, n], of which the least is sought."""
    q, p = queries.double()[..., :, None, :], points.double()[..., None, :, :]
    if kind == 0:
        return sum(((0 - q * p)[..., k] for k in range(q.shape[-1])), start=torch.tensor(0.0, dtype=F64))
    if kind == 1:
        return (q * p).amax(-1)
    if kind == 2:
        return sum((((q - p) * (q - p))[..., k] for k in range(q.shape[-1])), start=torch.tensor(0.0, dtype=F64))
    if kind == 3:
        excess = torch.where(p - q <= 0, 0.0, p - q) ** 2
        return sum((excess[..., k] for k in range(q.shape[-1])), start=torch.tensor(0.0, dtype=F64))
    return (p - q if kind == 4 else p / (q + 0.0)).amax(-1)


def expected(queries: Tensor, points: Tensor, kind: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pairs that are NaN are not there; a query with NaN has the value NaN and no row."""
    n = points.shape[-2]
    value = pairs(queries, points, kind)
    there = ~value.isnan()
    if lengths is not None:
        there &= torch.arange(n) < lengths[..., None, None]
    least = torch.where(there, value, INF).amin(-1) if n > 0 else torch.full(queries.shape[:-1], INF, dtype=F64)
    attains = there & (value == least[..., None])
    rows = torch.where(attains, torch.arange(n), n).amin(-1) if n > 0 else torch.full(queries.shape[:-1], n)
    is_nan = queries.isnan().any(-1)
    rows = torch.where(is_nan | (rows == n), -1, rows)
    least = torch.where(is_nan, NAN, least)
    return (0 - least if kind == 0 else least).to(points.dtype), rows


def check(queries: Tensor, points: Tensor, kind: int, lengths: Tensor | None = None) -> None:
    before = queries.clone(), points.clone()
    values, rows = kernels.best_points(queries, points, kind, lengths, True)
    assert values.dtype == points.dtype
    assert rows.dtype == torch.int64
    torch.testing.assert_close((values, rows), expected(queries, points, kind, lengths), rtol=0, atol=0, equal_nan=True)
    assert not (values == 0).logical_and(values.signbit()).any()
    alone, none = kernels.best_points(queries, points, kind, lengths)
    torch.testing.assert_close(alone, values, rtol=0, atol=0, equal_nan=True)
    assert none.shape == (*queries.shape[:-2], 0)
    torch.testing.assert_close((queries, points), before, rtol=0, atol=0, equal_nan=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draws(values: list[float], *shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values, dtype=dtype)[torch.randint(len(values), shape, generator=generator)]


@pytest.fixture(params=["one share", "shares"], autouse=True)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QUERIES": 8, "POINTS": 8, "PROGRAMS": 4, "JOINED": 8}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "SHARE", 8 if request.param == "shares" else 1024)


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_objectives(kind: int) -> None:
    for m in (1, 3, 4):
        check(normal(5, m), normal(19, m, seed=1), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lowest_of_equal_rows_is_chosen(kind: int) -> None:
    check(draws([1.0, 2.0, -1.0], 9, 2), draws([1.0, 2.0, 3.0], 20, 2, seed=1), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_there_and_infinities_are_values(kind: int) -> None:
    odd = [-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN]
    for dtype in (F32, F64):
        check(draws(odd, 13, 2, dtype=dtype), draws(odd, 20, 2, seed=1, dtype=dtype), kind)
        check(normal(3, 2, dtype=dtype), torch.full((9, 2), INF, dtype=dtype), kind)
        check(normal(3, 2, dtype=dtype), torch.full((9, 2), NAN, dtype=dtype), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_strides_and_lengths(kind: int) -> None:
    queries, points = normal(2, 6, 2, 2).transpose(1, 2)[..., ::2, :], normal(2, 2, 17, 2, seed=1).mT.contiguous().mT
    lengths = torch.tensor([[0, 1], [16, 40]])
    check(queries, points, kind, lengths)
    values, rows = kernels.best_points(queries, points, kind, lengths, True)
    assert (values[0, 0] == NO_POINTS[kind]).all()
    assert (rows[0, 0] == -1).all()


def test_float32_is_widened_before_anything_is_computed() -> None:
    points = 1 + draws([0.0, 1.0, 2.0], 20, 2, dtype=F32) * 2.0**-23
    for kind in KINDS:
        check(normal(4, 2, dtype=F32), points, kind)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_farthest_query_is_the_largest_value(kind: int) -> None:
    odd = [-INF, -1.0, -0.0, 0.0, 1.0, INF]
    queries, points = draws(odd, 3, 5, 2), draws(odd, 3, 4, 2, seed=1)
    queries[2, 1, 0] = NAN
    lengths, query_lengths = torch.tensor([4, 2, 4]), torch.tensor([5, 3, 1])
    values, _ = expected(queries, points, kind, lengths)
    result = kernels.farthest_query(queries, points, kind, lengths, query_lengths)
    largest = [own[:count].amax() for own, count in zip(values, query_lengths, strict=True)]
    torch.testing.assert_close(result, torch.stack(largest), rtol=0, atol=0)
    torch.testing.assert_close(
        kernels.farthest_query(queries, points, kind, lengths), values.amax(-1), rtol=0, atol=0, equal_nan=True
    )
    assert (kernels.farthest_query(queries[:, :0], points, kind) == -INF).all()


def test_empty_sets_and_queries() -> None:
    for kind in KINDS:
        check(normal(2, 3, 2), normal(2, 0, 2), kind)
        values, rows = kernels.best_points(normal(0, 2), normal(4, 2), kind, None, True)
        assert values.shape == rows.shape == (0,)
        assert kernels.best_points(normal(0, 3, 2), normal(0, 4, 2), kind)[0].shape == (0, 3)
