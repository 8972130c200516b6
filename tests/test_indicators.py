"""Indicators against double loops and other libraries, their edge cases, and the operator that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import indicators as reference

F32, F64 = torch.float32, torch.float64
INF = math.inf
NAN = math.nan
best_points = torch.ops.morlfast.best_points.default

# --- the operator: the best point for every query ---

KINDS = range(6)
NO_POINTS = [-INF, INF, INF, INF, INF, INF]


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    """In (0.5, 1.5), so that every kind's division is defined."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.5


def check_best_points(queries: torch.Tensor, points: torch.Tensor, kind: int, rel: float = 1e-14) -> None:
    expected, _ = reference.best_points(queries.tolist(), points.tolist(), kind)
    values, rows = best_points(queries, points, kind, None, True)
    assert values.dtype == queries.dtype
    assert rows.dtype == torch.int64
    assert values.tolist() == pytest.approx(expected, rel=rel, abs=1e-300)
    for q, p, value in zip(queries.tolist(), rows.tolist(), values.tolist(), strict=True):
        assert reference.KINDS[kind](q, points[p].tolist()) == pytest.approx(value, rel=rel, abs=1e-300)


@pytest.mark.parametrize("m", range(1, 13))
@pytest.mark.parametrize("kind", KINDS)
def test_best_points_of_every_number_of_objectives(kind, m):
    check_best_points(uniform(19, m, seed=m), uniform(23, m, seed=m + 50), kind)


# Around 4, 8, 16, 32, 64 and 128, which tiles are made of.
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130]


@pytest.mark.parametrize("m", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_best_points_around_the_size_of_a_tile(kind, m):
    """Integers: every value is exact and the lowest of many tied rows is asked for."""
    rng = np.random.default_rng(kind)
    high = {0: 3, 1: 3}.get(kind, 4)
    for count in SIZES:
        for queries, points in ((count, 37), (37, count), (count, count)):
            q = 2.0 ** rng.integers(0, high, (queries, m)) if kind == 5 else rng.integers(0, high, (queries, m))
            p = rng.integers(1, high + 1, (points, m)).astype(float)
            values, rows = best_points(torch.tensor(q, dtype=F64), torch.tensor(p), kind, None, True)
            expected, expected_rows = by_matrix(q, p, kind)
            assert values.tolist() == expected.tolist(), (queries, points)
            assert rows.tolist() == expected_rows.tolist(), (queries, points)


def every_pair(q: np.ndarray, p: np.ndarray, kind: int) -> np.ndarray:
    q, p = q[:, None, :], p[None, :, :]
    return [
        lambda: (q * p).sum(-1),
        lambda: (q * p).max(-1),
        lambda: ((q - p) ** 2).sum(-1),
        lambda: (np.maximum(p - q, 0) ** 2).sum(-1),
        lambda: (p - q).max(-1),
        lambda: (p / q).max(-1),
    ][kind]()


def by_matrix(q: np.ndarray, p: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """As the reference, over the whole matrix; argmin and argmax take the lowest row."""
    table = every_pair(q, p, kind)
    rows = table.argmax(1) if kind == 0 else table.argmin(1)
    return table[np.arange(len(table)), rows], rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_references_agree(kind):
    q, p = uniform(9, 3).numpy(), uniform(11, 3, seed=1).numpy()
    values, rows = by_matrix(q, p, kind)
    expected, expected_rows = reference.best_points(q.tolist(), p.tolist(), kind)
    assert values == pytest.approx(expected, rel=1e-15)
    assert rows.tolist() == expected_rows


@pytest.mark.parametrize("kind", KINDS)
def test_best_points_of_large_sets(kind):
    q, p = uniform(700, 5), uniform(1100, 5, seed=1)
    values, rows = best_points(q, p, kind, None, True)
    expected, _ = by_matrix(q.numpy(), p.numpy(), kind)
    assert values.numpy() == pytest.approx(expected, rel=1e-14)
    chosen, _ = by_matrix(q.numpy(), p.numpy(), kind)
    assert np.array_equal(chosen, expected)
    assert rows.min() >= 0
    assert rows.max() < 1100


@pytest.mark.parametrize("kind", KINDS)
def test_best_points_of_a_batch_are_those_of_its_fronts(kind):
    q, p = uniform(3, 2, 40, 4), uniform(3, 2, 33, 4, seed=1)
    lengths = torch.tensor([[0, 1], [32, 33], [17, 5]])
    values, rows = best_points(q, p, kind, lengths, True)
    assert values.shape == rows.shape == (3, 2, 40)
    for i in range(3):
        for j in range(2):
            own, own_rows = best_points(q[i, j], p[i, j, : lengths[i, j]].contiguous(), kind, None, True)
            assert torch.equal(values[i, j], own)
            assert torch.equal(rows[i, j], own_rows)
    assert (values[0, 0] == NO_POINTS[kind]).all()
    assert (rows[0, 0] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beyond_the_lengths_is_not_read(kind):
    q, p = uniform(2, 9, 3), uniform(2, 20, 3, seed=1)
    lengths = torch.tensor([13, 4])
    expected = best_points(q, p, kind, lengths, True)
    p = p.clone()
    p[0, 13:], p[1, 4:] = NAN, -INF
    got = best_points(q, p, kind, lengths, True)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_shapes(kind):
    for batch in ((), (2,), (0,), (0, 3)):
        values, rows = best_points(torch.ones(*batch, 4, 3), torch.ones(*batch, 0, 3), kind, None, True)
        assert values.tolist() == torch.full((*batch, 4), NO_POINTS[kind]).tolist()
        assert rows.tolist() == torch.full((*batch, 4), -1).tolist()
        values, rows = best_points(torch.ones(*batch, 0, 3), torch.ones(*batch, 5, 3), kind, None, True)
        assert values.shape == rows.shape == (*batch, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_left_out_unless_asked_for(kind):
    q, p = uniform(2, 5, 3), uniform(2, 6, 3, seed=1)
    values, rows = best_points(q, p, kind)
    assert rows.shape == (2, 0)
    assert rows.dtype == torch.int64
    assert torch.equal(values, best_points(q, p, kind, None, True)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_widened_then_computed_in_float64(kind):
    for m in (1, 3, 8):
        q, p = uniform(33, m, dtype=F32), uniform(65, m, seed=1, dtype=F32)
        values, rows = best_points(q, p, kind, None, True)
        wide, wide_rows = best_points(q.double(), p.double(), kind, None, True)
        assert values.dtype == F32
        assert torch.equal(values, wide.float())
        assert torch.equal(rows, wide_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(kind):
    q, p = uniform(17, 2, 4), uniform(21, 2, 4, seed=1)
    strided_q, strided_p = q.transpose(0, 1), p.transpose(0, 1)
    expected = best_points(strided_q.contiguous(), strided_p.contiguous(), kind, None, True)
    assert all(map(torch.equal, best_points(strided_q, strided_p, kind, None, True), expected))
    columns = uniform(4, 30, seed=2).T
    got = best_points(q[:, 0], columns, kind, None, True)
    assert all(map(torch.equal, got, best_points(q[:, 0].contiguous(), columns.contiguous(), kind, None, True)))
    every_other = uniform(40, 4, seed=3)[::2]
    got = best_points(q[:, 1], every_other, kind, None, True)
    assert all(map(torch.equal, got, best_points(q[:, 1].clone(), every_other.clone(), kind, None, True)))
    one = uniform(1, 4, seed=4).expand(9, 4)
    assert best_points(q[:, 0], one, kind, None, True)[1].tolist() == [0] * 17


@pytest.mark.parametrize("kind", KINDS)
def test_one_thread_and_two_give_the_same_bits(kind):
    threads = torch.get_num_threads()
    q, p = uniform(2, 500, 3), uniform(2, 700, 3, seed=1)
    try:
        torch.set_num_threads(1)
        alone = best_points(q, p, kind, None, True)
        torch.set_num_threads(2)
        together = best_points(q, p, kind, None, True)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_points(kind):
    """Where the formula has a value: points infinite on one side, weights and queries finite and positive."""
    q = uniform(5, 2)
    p = torch.tensor([[1.0, INF], [INF, INF], [2.0, 3.0]], dtype=F64)
    values, rows = best_points(q, p, kind, None, True)
    expected, expected_rows = reference.best_points(q.tolist(), p.tolist(), kind)
    assert values.tolist() == pytest.approx(expected)
    assert rows.tolist() == expected_rows
    worst = torch.full((3, 2), NO_POINTS[kind], dtype=F64)
    values, rows = best_points(q, worst, kind, None, True)
    assert (values == NO_POINTS[kind]).all()
    assert (rows == 0).all()  # attained, unlike where there is no row


@pytest.mark.parametrize("kind", KINDS)
def test_negative_values_and_signed_zeros(kind):
    rng = np.random.default_rng(5)
    q = torch.tensor(rng.choice([-2.0, -1.0, 1.0, 2.0], (40, 3)))
    p = torch.tensor(rng.choice([-2.0, -1.0, -0.0, 0.0, 1.0], (50, 3)))
    values, rows = best_points(q, p, kind, None, True)
    expected, expected_rows = by_matrix(q.numpy(), p.numpy(), kind)
    assert values.tolist() == expected.tolist()
    assert rows.tolist() == expected_rows.tolist()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_without_a_value_are_as_if_not_there(kind, dtype):
    """NaN in a point, 0 * inf, inf - inf and 0 / 0, wherever they stand; a query with NaN has no value."""
    rng = np.random.default_rng(kind)
    pool = np.array([NAN, INF, -INF, 0.0, -1.0, 1.0, 2.0])
    share = np.array([1, 1, 1, 1, 4, 4, 4]) / 16
    for m in (1, 2, 3, 5, 8):
        for count in (1, 5, 16, 67):
            q, p = rng.choice(pool, (count, m), p=share), rng.choice(pool, (count, m), p=share)
            q[::3] = rng.choice(pool[3:], q[::3].shape)
            values, rows = best_points(torch.tensor(q, dtype=dtype), torch.tensor(p, dtype=dtype), kind, None, True)
            with np.errstate(all="ignore"):
                table = every_pair(q, p, kind)
            for i in range(count):
                there = np.flatnonzero(~np.isnan(table[i]))
                pick = np.argmax if kind == 0 else np.argmin
                row = there[pick(table[i, there])] if len(there) else -1
                value = NAN if np.isnan(q[i]).any() else table[i, row] if len(there) else NO_POINTS[kind]
                assert values[i].item() == pytest.approx(value, nan_ok=True), (m, count, i, q[i])
                assert rows[i].item() == row, (m, count, i, q[i])


def sample(kind: int, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (uniform(2, 5, 3), uniform(2, 7, 3, seed=1), kind), options


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 0]])
@pytest.mark.parametrize("kind", KINDS)
def test_best_points_is_a_well_behaved_operator(kind, lengths, with_rows):
    given_lengths = None if lengths is None else torch.tensor(lengths)
    arguments, options = sample(kind, lengths=given_lengths, with_rows=with_rows)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(best_points, arguments, options, test_utils=checks)


@pytest.mark.parametrize("bad", [-1, 6, 99])
def test_an_unknown_kind_is_an_error(bad):
    with pytest.raises((ValueError, RuntimeError), match="kind"):
        best_points(uniform(2, 3), uniform(4, 3), bad)


@pytest.mark.parametrize(
    ("queries", "points", "lengths"),
    [
        (uniform(2, 3), uniform(4, 2), None),
        (uniform(3), uniform(4, 3), None),
        (uniform(2, 5, 3), uniform(3, 4, 3), None),
        (uniform(5, 3), uniform(3, 4, 3), None),
        (uniform(5, 3), uniform(4, 3).float(), None),
        (uniform(2, 5, 3), uniform(2, 4, 3), torch.tensor([1, 5])),
        (uniform(2, 5, 3), uniform(2, 4, 3), torch.tensor([1, -1])),
        (uniform(2, 5, 3), uniform(2, 4, 3), torch.tensor([1])),
        (uniform(2, 5, 3), uniform(2, 4, 3), torch.tensor([1.0, 1.0])),
    ],
)
def test_the_operator_checks_what_it_reads(queries, points, lengths):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        best_points(queries, points, 0, lengths, True)
