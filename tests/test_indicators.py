"""Indicators against double loops and other libraries, their edge cases, and the operator that they share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.indicators import (
    average_hausdorff,
    cardinality,
    epsilon_indicator,
    expected_utility,
    gd,
    gd_plus,
    igd,
    igd_plus,
    maximum_utility_loss,
    preference_entropy,
    r2,
    spacing,
    sparsity,
    spread,
    top_k_diversity,
)
from references import indicators as reference

F32, F64 = torch.float32, torch.float64
INF = math.inf
NAN = math.nan
Rows = list[list[float]]
best_points = torch.ops.morlfast.best_points.default
farthest_query = torch.ops.morlfast.farthest_query.default

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
    if kind > 0:
        assert torch.equal(farthest_query(q, p, kind), alone[0].amax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_best_of_infinite_points(kind):
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


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_the_farthest_query_is_the_largest_of_all(kind, dtype):
    """The same bits as all values have, although the search for a query may end early."""
    for m in (1, 2, 3, 5, 12):
        for queries, points in ((1, 1), (2, 130), (130, 2), (33, 64), (65, 129), (16, 17)):
            for seed in range(3):
                q, p = uniform(queries, m, seed=seed, dtype=dtype), uniform(points, m, seed=seed + 9, dtype=dtype)
                if seed == 2:  # ties
                    q, p = (4 * q).round() / 4, (4 * p).round() / 4
                every, _ = best_points(q, p, kind)
                got = farthest_query(q, p, kind)
                assert got.shape == ()
                assert got.dtype == dtype
                assert got.item() == every.max().item(), (m, queries, points, seed)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_the_farthest_query_of_ragged_batches(kind):
    q, p = uniform(3, 2, 40, 4), uniform(3, 2, 33, 4, seed=1)
    lengths, query_lengths = torch.tensor([[0, 1], [32, 33], [17, 5]]), torch.tensor([[3, 40], [0, 1], [39, 8]])
    got = farthest_query(q, p, kind, lengths, query_lengths)
    assert got.shape == (3, 2)
    poisoned_q, poisoned_p = q.clone(), p.clone()
    for i in range(3):
        for j in range(2):
            rows, every = query_lengths[i, j], best_points(q[i, j], p[i, j], kind, lengths[i, j])[0]
            assert got[i, j].item() == (every[:rows].max().item() if rows > 0 else -INF)
            poisoned_q[i, j, rows:], poisoned_p[i, j, lengths[i, j] :] = NAN, -INF
    assert torch.equal(farthest_query(poisoned_q, poisoned_p, kind, lengths, query_lengths), got)
    strided = q.transpose(0, 1), p.transpose(0, 1)
    assert torch.equal(farthest_query(*strided, kind), farthest_query(q, p, kind).T)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_the_farthest_query_of_nan_and_infinity(kind):
    rng = np.random.default_rng(kind)
    pool = np.array([NAN, INF, -INF, 0.0, -1.0, 1.0, 2.0])
    share = np.array([1, 1, 1, 1, 8, 8, 8]) / 28
    for m in (1, 2, 3, 7):
        for _ in range(60):
            q = rng.choice(pool, (rng.integers(0, 20), m), p=share)
            if rng.random() < 0.7:
                q = np.nan_to_num(q, nan=1.0, posinf=INF, neginf=-INF)
            q, p = torch.tensor(q), torch.tensor(rng.choice(pool, (rng.integers(0, 40), m), p=share))
            every, _ = best_points(q, p, kind)
            expected = -INF if len(q) == 0 else every.max().item()  # torch's maximum keeps NaN
            assert farthest_query(q, p, kind).item() == pytest.approx(expected, nan_ok=True), (q, p)


def test_the_farthest_query_of_a_dot_product_is_an_error():
    for kind in (0, -1, 6):
        with pytest.raises((ValueError, RuntimeError), match="kind"):
            farthest_query(uniform(2, 3), uniform(4, 3), kind)


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


# --- every indicator of a set ---

K, WEIGHTS = 9, 13


def reference_set(m: int, *batch: int) -> torch.Tensor:
    return uniform(*batch, K, m, seed=50 + m)


def weight_set(m: int, *batch: int) -> torch.Tensor:
    drawn = uniform(*batch, WEIGHTS, m, seed=70 + m)
    return drawn / drawn.sum(-1, keepdim=True)


def senses(m: int) -> list[bool]:
    return [j % 2 == 0 for j in range(m)]


# Made here, since compiled code must not draw numbers; the same in float32.
UTILITIES = {m: (64 * weight_set(m)).round() / 64 for m in range(1, 6)}


def utilities(like: torch.Tensor) -> torch.Tensor:
    weights = UTILITIES[like.shape[-1]]
    return weights.float() if like.dtype == F32 else weights


class Indicator(NamedTuple):
    call: Callable[..., torch.Tensor]
    """(points, other set, **options)"""
    expected: Callable[[Rows, Rows], float]
    other: str | None
    """The name of the other set, or None."""
    worst: float
    averages: bool = False
    """Whether it averages over the points, so that a row that is worth nothing spoils it."""


def weighted(function: Callable[..., torch.Tensor], **fixed: Any) -> Callable[..., torch.Tensor]:
    return lambda points, weights, **options: function(points, weights, **fixed, **options)


INDICATORS: dict[str, Indicator] = {
    "expected_utility": Indicator(expected_utility, reference.expected_utility, "weights", -INF),
    "expected_utility minimized": Indicator(
        weighted(expected_utility, maximize=False),
        lambda p, w: reference.expected_utility(p, w, False),
        "weights",
        INF,
    ),
    "maximum_utility_loss": Indicator(
        lambda p, r, **o: maximum_utility_loss(p, r, utilities(r), **o),
        lambda p, r: reference.maximum_utility_loss(p, r, UTILITIES[len(p[0])].tolist()),
        "reference",
        INF,
    ),
    "maximum_utility_loss minimized": Indicator(
        lambda p, r, **o: maximum_utility_loss(p, r, utilities(r), maximize=False, **o),
        lambda p, r: reference.maximum_utility_loss(p, r, UTILITIES[len(p[0])].tolist(), False),
        "reference",
        INF,
    ),
    "r2": Indicator(
        lambda p, w, **o: r2(p, w, [0.25] * p.shape[-1], **o),
        lambda p, w: reference.r2(p, w, [0.25] * len(p[0])),
        "weights",
        INF,
    ),
    "igd": Indicator(igd, reference.igd, "reference", INF),
    "igd p=2": Indicator(weighted(igd, p=2), lambda p, r: reference.igd(p, r, 2), "reference", INF),
    "gd": Indicator(gd, reference.gd, "reference", INF, True),
    "gd p=2": Indicator(weighted(gd, p=2), lambda p, r: reference.gd(p, r, 2), "reference", INF, True),
    "igd_plus": Indicator(
        lambda p, r, **o: igd_plus(p, r, maximize=senses(p.shape[-1]), **o),
        lambda p, r: reference.igd_plus(p, r, senses(len(p[0]))),
        "reference",
        INF,
    ),
    "gd_plus": Indicator(
        lambda p, r, **o: gd_plus(p, r, maximize=senses(p.shape[-1]), **o),
        lambda p, r: reference.gd_plus(p, r, senses(len(p[0]))),
        "reference",
        INF,
        True,
    ),
    "average_hausdorff": Indicator(average_hausdorff, reference.average_hausdorff, "reference", INF, True),
    "average_hausdorff p=3": Indicator(
        weighted(average_hausdorff, p=3), lambda p, r: reference.average_hausdorff(p, r, 3), "reference", INF, True
    ),
    "average_hausdorff p=inf": Indicator(
        weighted(average_hausdorff, p=INF), lambda p, r: reference.average_hausdorff(p, r, INF), "reference", INF, True
    ),
    "additive epsilon": Indicator(
        lambda p, r, **o: epsilon_indicator(p, r, maximize=senses(p.shape[-1]), **o),
        lambda p, r: reference.epsilon_indicator(p, r, senses(len(p[0]))),
        "reference",
        INF,
    ),
    "multiplicative epsilon": Indicator(
        lambda p, r, **o: epsilon_indicator(p, r, maximize=senses(p.shape[-1]), kind="multiplicative", **o),
        lambda p, r: reference.epsilon_indicator(p, r, senses(len(p[0])), "multiplicative"),
        "reference",
        INF,
    ),
    "sparsity": Indicator(lambda p, r, **o: sparsity(p, **o), lambda p, r: reference.sparsity(p), None, INF, True),
    "spacing": Indicator(lambda p, r, **o: spacing(p, **o), lambda p, r: reference.spacing(p), None, INF, True),
}
EVERY = pytest.mark.parametrize("name", INDICATORS)
DIFFERENTIABLE = pytest.mark.parametrize("name", [name for name in INDICATORS if "epsilon" not in name])
WITH_REFERENCE = [name for name, one in INDICATORS.items() if one.other == "reference"]
WITH_WEIGHTS = [name for name, one in INDICATORS.items() if one.other == "weights"]


def others(name: str, m: int, *batch: int) -> torch.Tensor:
    return weight_set(m, *batch) if INDICATORS[name].other == "weights" else reference_set(m, *batch)


@EVERY
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_indicators_are_what_the_literature_says(name, m):
    one = INDICATORS[name]
    for n in (2, 3, 8, 33):
        points = uniform(n, m, seed=n)
        got = one.call(points, others(name, m))
        assert got.shape == ()
        assert got.dtype == F64
        assert got.item() == pytest.approx(one.expected(points.tolist(), others(name, m).tolist()), rel=1e-12)


@EVERY
def test_a_batch_is_a_loop(name):
    one = INDICATORS[name]
    points = uniform(3, 2, 12, 3, seed=1)
    same, own = others(name, 3), others(name, 3, 3, 2)
    for other in (same, own):
        got = one.call(points, other)
        assert got.shape == (3, 2)
        for i in range(3):
            for j in range(2):
                alone = one.call(points[i, j], other if other is same else other[i, j])
                assert got[i, j].item() == pytest.approx(alone.item(), rel=1e-14)


@EVERY
def test_lengths_and_masks_cut(name):
    one = INDICATORS[name]
    points, other = uniform(4, 12, 3, seed=1), others(name, 3)
    lengths = torch.tensor([12, 5, 2, 0])
    got = one.call(points, other, lengths=lengths)
    for i in range(3):
        assert got[i].item() == pytest.approx(one.call(points[i, : lengths[i]], other).item(), rel=1e-14)
    assert got[3].item() == one.worst
    mask = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[2] = False
    got = one.call(points, other, mask=mask)
    for i in (0, 1, 3):
        assert got[i].item() == pytest.approx(one.call(points[i, mask[i]], other).item(), rel=1e-14)
    assert got[2].item() == one.worst
    poisoned = points.masked_fill(~mask[..., None], NAN)
    assert torch.equal(one.call(poisoned, other, mask=mask), got)
    padded = torch.cat([points[:, :5], torch.full((4, 3, 3), NAN, dtype=F64)], 1)
    assert torch.equal(one.call(padded, other, lengths=[5] * 4), one.call(padded[:, :5], other))


@pytest.mark.parametrize("name", [*WITH_REFERENCE, *WITH_WEIGHTS])
def test_batch_shapes_broadcast(name):
    one = INDICATORS[name]
    points, other = uniform(12, 3), others(name, 3, 4)
    got = one.call(points, other)
    assert got.shape == (4,)
    for i in range(4):
        assert got[i].item() == pytest.approx(one.call(points, other[i]).item(), rel=1e-14)
    points, lengths = uniform(2, 1, 12, 3), torch.tensor([[12], [5]], dtype=torch.int32)
    got = one.call(points, other, lengths=lengths)
    assert got.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            alone = one.call(points[i, 0, : lengths[i, 0]], other[j])
            assert got[i, j].item() == pytest.approx(alone.item(), rel=1e-14)
    if "epsilon" not in name:
        assert torch.autograd.gradcheck(one.call, (leaf(uniform(2, 1, 5, 3)), leaf(others(name, 3, 3))))


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_reference_lengths_cut(name):
    one = INDICATORS[name]
    points, other = uniform(3, 12, 3, seed=1), others(name, 3, 3)
    lengths = torch.tensor([9, 4, 1])
    got = one.call(points, other, reference_lengths=lengths)
    for i in range(3):
        alone = one.call(points[i], other[i, : lengths[i]])
        assert got[i].item() == pytest.approx(alone.item(), rel=1e-14)
    other = other.clone()
    other[1, 4:] = NAN
    assert torch.equal(one.call(points, other, reference_lengths=lengths), got)


@EVERY
def test_float32_is_computed_in_float64(name):
    one = INDICATORS[name]
    points, other = uniform(2, 40, 3, dtype=F32), others(name, 3).float()
    got = one.call(points, other)
    assert got.dtype == F32
    torch.testing.assert_close(got, one.call(points.double(), other.double()).float(), rtol=3e-7, atol=0)


@EVERY
def test_order_and_strides_do_not_matter(name):
    one = INDICATORS[name]
    points, other = uniform(12, 3), others(name, 3)
    expected = one.call(points, other).item()
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for same in (points[shuffled], points.T.contiguous().T, points.repeat_interleave(2, 0)[::2]):
        assert one.call(same, other).item() == pytest.approx(expected, rel=1e-14)
    assert one.call(points, other.flip(0)).item() == pytest.approx(expected, rel=1e-14)
    assert torch.equal(points, uniform(12, 3))


@EVERY
def test_masks_and_nan_together(name):
    one = INDICATORS[name]
    points, other = uniform(3, 8, 3), others(name, 3)
    points[0, 2], points[1, 5] = NAN, NAN
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[0, 2] = mask[1, 0] = False  # hides one of the two
    got = one.call(points, other, mask=mask, nan="worst")
    rows = [0, 1, 3, 4, 5, 6, 7]
    assert got[0].item() == pytest.approx(one.call(points[0, rows], other).item(), rel=1e-14)
    assert got[1].item() == pytest.approx(one.call(points[1, 1:], other, nan="worst").item(), rel=1e-14)
    assert got[2].item() == pytest.approx(one.call(points[2], other).item(), rel=1e-14)
    with pytest.raises(ValueError, match=r"^points: .*row 5 .*\(1\)"):
        one.call(points, other, mask=mask)
    with pytest.raises(ValueError, match=r"^points: .*row 2 .*\(0\)"):
        one.call(points, other, lengths=[3, 3, 3])
    assert one.call(points, other, lengths=[2, 5, 8]).isfinite().all()


@EVERY
def test_integers_become_float64(name):
    one = INDICATORS[name]
    points = torch.randint(1, 9, (6, 3), generator=torch.Generator().manual_seed(0))
    other = torch.randint(1, 9, (5, 3), generator=torch.Generator().manual_seed(1))
    got = one.call(points, other)
    assert got.dtype == F64
    assert got.item() == one.call(points.double(), other.double()).item()


@EVERY
def test_no_point_is_never_perfect(name):
    one = INDICATORS[name]
    other = others(name, 3)
    assert one.call(torch.zeros(0, 3, dtype=F64), other).item() == one.worst
    assert one.call(torch.zeros(2, 0, 3), other.float()).tolist() == [one.worst] * 2
    assert one.call(torch.zeros(0, 4, 3, dtype=F64), other).shape == (0,)


@EVERY
def test_nan_is_named(name):
    one = INDICATORS[name]
    points, other = uniform(2, 6, 3), others(name, 3, 2)
    points[1, 4, 2] = NAN
    for options in ({}, {"nan": "raise"}):
        with pytest.raises(ValueError, match=r"^points: .*row 4 .*\(1\)"):
            one.call(points, other, **options)
    if one.other:
        other[1, 2, 0] = NAN
        with pytest.raises(ValueError, match=f"^{one.other}: .*row 2"):
            one.call(uniform(2, 6, 3), other)


@EVERY
def test_a_row_with_nan_is_worth_nothing(name):
    one = INDICATORS[name]
    points, other = uniform(7, 3), others(name, 3)
    points[2, 1] = NAN
    without = one.call(points[[0, 1, 3, 4, 5, 6]], other).item()
    got = one.call(points, other, nan="worst").item()
    assert got == (one.worst if one.averages else pytest.approx(without, rel=1e-14))
    nothing = torch.full((2, 4, 3), NAN, dtype=F64)
    assert one.call(nothing, other, nan="worst").tolist() == [one.worst] * 2


@pytest.mark.parametrize("name", [*WITH_REFERENCE, *WITH_WEIGHTS])
def test_nan_in_the_other_set_is_nan(name):
    one = INDICATORS[name]
    other = others(name, 3, 2)
    other[1, 3, 2] = NAN
    got = one.call(uniform(2, 6, 3), other, nan="worst")
    assert got.isnan().tolist() == [False, True]


@DIFFERENTIABLE
def test_gradients(name):
    one = INDICATORS[name]
    points, other = (
        uniform(2, 7, 3).requires_grad_(),
        others(name, 3).requires_grad_(INDICATORS[name].other is not None),
    )
    assert torch.autograd.gradcheck(one.call, (points, other))
    ragged = functools.partial(one.call, lengths=torch.tensor([4, 7]))
    assert torch.autograd.gradcheck(ragged, (points, other))


@DIFFERENTIABLE
def test_gradients_of_padding_and_empty_sets_are_zero(name):
    one = INDICATORS[name]
    points = uniform(3, 5, 3)
    points[0, 3:] = NAN
    points.requires_grad_()
    one.call(points, others(name, 3), lengths=torch.tensor([3, 0, 5])).nan_to_num(posinf=0, neginf=0).sum().backward()
    assert points.grad.isfinite().all()
    assert (points.grad[0, 3:] == 0).all()
    assert (points.grad[1] == 0).all()


@DIFFERENTIABLE
def test_gradients_of_coinciding_points_are_finite(name):
    one = INDICATORS[name]
    other = others(name, 3)
    points = other.repeat(2, 1)[:K].clone().requires_grad_()
    one.call(points, other).backward()
    assert points.grad.isfinite().all()


COMPILED = ["maximum_utility_loss", "r2", "average_hausdorff p=3", "multiplicative epsilon", "spacing"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_a_break(name):
    one = INDICATORS[name]
    points, other = uniform(2, 6, 3), others(name, 3)
    torch._dynamo.reset()
    compiled = torch.compile(one.call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(points, other), one.call(points, other), rtol=1e-14, atol=0)
    if "epsilon" in name:
        return
    gradients = [torch.autograd.grad(f(p, other).sum(), p)[0] for f in (compiled, one.call) for p in [leaf(points)]]
    torch.testing.assert_close(*gradients)


def leaf(values: torch.Tensor) -> torch.Tensor:
    return values.detach().clone().requires_grad_()


@pytest.mark.parametrize("name", ["expected_utility", "igd_plus"])
def test_compiles_for_any_number_of_points(name):
    one = INDICATORS[name]
    torch._dynamo.reset()
    compiled = torch.compile(one.call, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (3, 8):
        points = uniform(2, n, 3, seed=n)
        torch.testing.assert_close(compiled(points, others(name, 3)), one.call(points, others(name, 3)))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_lists_and_arrays_are_taken():
    points, other = uniform(6, 3), reference_set(3)
    frozen = points.numpy().copy()
    frozen.flags.writeable = False
    for function in (igd, gd, average_hausdorff, expected_utility, functools.partial(igd_plus, maximize=True)):
        expected = function(points, other)
        assert torch.equal(function(points.tolist(), other.tolist()), expected)
        assert torch.equal(function(frozen, other.numpy()[::-1][::-1]), expected)
    for function in (sparsity, spacing, functools.partial(cardinality, maximize=True)):
        assert torch.equal(function(points.tolist()), function(frozen))


def test_the_wider_dtype_wins():
    points, other = uniform(6, 3), reference_set(3)
    for function in (igd, gd, expected_utility, functools.partial(epsilon_indicator, maximize=True)):
        assert function(points.float(), other.float()).dtype == F32
        assert function(points.float(), other).dtype == F64
        assert function(points, other.float()).dtype == F64


# --- what indicators are for ---


MONOTONE = ["expected_utility", "r2", "igd", "igd_plus", "additive epsilon", "multiplicative epsilon"]


@pytest.mark.parametrize("name", [*MONOTONE, "maximum_utility_loss"])
def test_one_point_more_is_never_worse(name):
    one = INDICATORS[name]
    points, other = uniform(10, 3), others(name, 3)
    values = torch.stack([one.call(points[:n], other) for n in range(1, 11)])
    steps = values.diff() if one.worst < 0 else -values.diff()
    assert (steps >= 0).all()
    assert (steps > 0).any()


@pytest.mark.parametrize("name", [*MONOTONE, "maximum_utility_loss"])
def test_duplicates_change_nothing(name):
    one = INDICATORS[name]
    points, other = uniform(10, 3), others(name, 3)
    assert torch.equal(one.call(torch.cat([points, points[3:7]]), other), one.call(points, other))


def test_a_set_is_perfect_against_itself():
    points = uniform(8, 3)
    shuffled = points.flip(0)
    for function in (igd, gd, average_hausdorff):
        assert function(points, shuffled).item() == 0
        assert function(points, shuffled, p=2).item() == 0
        assert function(points, shuffled, p=INF).item() == 0
    for maximize in (True, False, [True, False, True]):
        assert igd_plus(points, shuffled, maximize=maximize).item() == 0
        assert gd_plus(points, shuffled, maximize=maximize).item() == 0
        assert epsilon_indicator(points, shuffled, maximize=maximize).item() == 0
        assert epsilon_indicator(points, shuffled, maximize=maximize, kind="multiplicative").item() == 1
    assert maximum_utility_loss(points, shuffled, weight_set(3)).item() == 0


def test_igd_plus_is_right_where_igd_is_wrong():
    """Ishibuchi et al. 2015, example 4: A is better than B in the sense of dominance."""
    front = [[10, 0], [6, 1], [2, 2], [1, 6], [0, 10]]
    a, b = [[4, 2], [3, 3], [2, 4]], [[8, 2], [4, 4], [2, 8]]
    assert igd(a, front).item() == pytest.approx(3.707092031609239)
    assert igd(b, front).item() == pytest.approx(2.59148346584763)
    assert igd_plus(a, front, maximize=False).item() == pytest.approx(1.482842712474619)
    assert igd_plus(b, front, maximize=False).item() == pytest.approx(2.260112615949154)


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("maximize", [True, False])
def test_better_points_are_better_in_every_compliant_indicator(m, maximize):
    step = 0.05 if maximize else -0.05
    points, other = uniform(10, m), reference_set(m) + 20 * step
    better = points + step
    assert (expected_utility(better, weight_set(m)) > expected_utility(points, weight_set(m))) == maximize
    for function in (igd_plus, gd_plus, epsilon_indicator):
        assert function(better, other, maximize=maximize) < function(points, other, maximize=maximize)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_a_mirrored_sense_is_a_negated_objective(m):
    points, other = uniform(10, m), reference_set(m)
    signs = torch.where(torch.tensor(senses(m)), -1.0, 1.0).double()
    for function in (igd_plus, gd_plus, epsilon_indicator):
        expected = function(signs * points, signs * other, maximize=False)
        assert torch.equal(function(points, other, maximize=senses(m)), expected)
    minimized = expected_utility(-points, weight_set(m), maximize=False)
    assert torch.equal(minimized, -expected_utility(points, weight_set(m)))
    loss = maximum_utility_loss(-points, -other, weight_set(m), maximize=False)
    assert torch.equal(loss, maximum_utility_loss(points, other, weight_set(m)))


def test_utilities_by_hand():
    points, weights = [[4.0, 0.0], [3.0, 3.0], [0.0, 4.0]], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert expected_utility(points, weights).item() == pytest.approx(11 / 3)
    assert expected_utility(points, weights, maximize=False).item() == pytest.approx(2 / 3)
    assert maximum_utility_loss(points[:1], points, weights).item() == 4.0
    assert maximum_utility_loss(points, points[:1], weights).item() == 0.0
    assert maximum_utility_loss([[5.0, 5.0]], points, weights).item() == -1.0
    assert expected_utility([[2.0], [7.0]], [[1.0], [0.5]]).item() == 5.25


def test_r2_by_hand_and_as_gflownets_normalize_it():
    points, weights = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]
    assert r2(points, weights, 0.0).item() == 0.25
    assert r2(points, weights, [2.0, 2.0]).item() == pytest.approx((1.0 + 1.0) / 2)
    points, weights = uniform(8, 3), weight_set(3)
    expected = math.fsum(reference.r2_terms(points.tolist(), weights.tolist(), [1.0] * 3)) / weights.norm().item()
    assert r2(points, weights, 1.0, normalization="frobenius").item() == pytest.approx(expected, rel=1e-13)


def test_r2_takes_an_ideal_point_for_each_set():
    points, ideal = uniform(2, 3, 8, 3), uniform(2, 3, 3, seed=9)
    got = r2(points, weight_set(3), ideal)
    for i in range(2):
        for j in range(3):
            assert got[i, j].item() == pytest.approx(r2(points[i, j], weight_set(3), ideal[i, j]).item(), rel=1e-14)
    assert torch.equal(r2(points, weight_set(3), 0.5), r2(points, weight_set(3), [0.5] * 3))
    inputs = leaf(points[0, 0]), leaf(weight_set(3)), leaf(ideal[0, 0])
    assert torch.autograd.gradcheck(r2, inputs)
    at_ideal = leaf(points[0, 0])
    r2(at_ideal, weight_set(3), points[0, 0, 4]).backward()
    assert at_ideal.grad.isfinite().all()


@pytest.mark.parametrize("p", [0.5, 1, 2, 3.5, 60, INF])
@pytest.mark.parametrize("function", [gd, igd, average_hausdorff])
def test_exponents(function, p):
    points, other = uniform(11, 3), reference_set(3)
    expected = getattr(reference, function.__name__)(points.tolist(), other.tolist(), p)
    assert function(points, other, p=p).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(functools.partial(function, p=p), (leaf(points), leaf(other)))
    plus = functools.partial({gd: gd_plus, igd: igd_plus}.get(function, gd_plus), maximize=False, p=p)
    name = plus.func.__name__
    expected = getattr(reference, name)(points.tolist(), other.tolist(), False, p)
    assert plus(points, other).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", [gd, igd])
def test_a_large_exponent_tends_to_the_largest_distance(function):
    points, other = 100 * uniform(11, 3), 100 * reference_set(3)
    largest = function(points, other, p=INF).item()
    assert function(points, other, p=2000).item() == pytest.approx(largest, rel=0.01)
    assert function(points / 1e5, other / 1e5, p=2000).item() == pytest.approx(largest / 1e5, rel=0.01)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("function", [gd, igd])
def test_the_number_of_distances_may_stand_outside_the_root(function, p):
    """Van Veldhuizen 1999 with p = 2, and jMetal."""
    points, other = uniform(11, 3), reference_set(3)
    expected = getattr(reference, function.__name__)(points.tolist(), other.tolist(), p, reference.mean_after_root)
    assert function(points, other, p=p, mean="mean_after_root").item() == pytest.approx(expected, rel=1e-12)
    plus = {gd: gd_plus, igd: igd_plus}[function]
    expected = getattr(reference, plus.__name__)(points.tolist(), other.tolist(), True, p, reference.mean_after_root)
    got = plus(points, other, maximize=True, p=p, mean="mean_after_root")
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_the_hausdorff_distance_is_symmetric():
    points, other = uniform(4, 11, 3), reference_set(3, 4)
    for p in (1, 2, INF):
        torch.testing.assert_close(average_hausdorff(points, other, p=p), average_hausdorff(other, points, p=p))


@given(st.integers(0, 2**32 - 1))
def test_indicators_of_grids_full_of_ties(seed):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 5))
    points = rng.integers(1, 4, (rng.integers(1, 9), m)).astype(float)
    other = rng.integers(1, 4, (rng.integers(1, 9), m)).astype(float)
    for name, one in INDICATORS.items():
        if name == "spacing" and len(points) < 2:
            continue
        got = one.call(torch.tensor(points), torch.tensor(other))
        assert got.item() == pytest.approx(one.expected(points.tolist(), other.tolist()), rel=1e-12, abs=1e-15), name


@pytest.mark.parametrize("name", ["r2", "igd p=2", "gd_plus", "average_hausdorff p=3", "sparsity", "spacing"])
def test_second_derivatives(name):
    one = INDICATORS[name]
    points, other = leaf(uniform(6, 2)), others(name, 2).requires_grad_(one.other is not None)
    assert torch.autograd.gradgradcheck(one.call, (points, other))


def test_of_equally_good_points_the_lowest_row_has_the_gradient():
    points = leaf(torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 2.0]], dtype=F64))
    expected_utility(points, [[0.5, 0.5], [1.0, 0.0]]).backward()
    assert points.grad.tolist() == [[0.75, 0.25], [0, 0], [0, 0], [0, 0]]
    points.grad = None
    igd(points, [[1.0, 2.0]]).backward()
    assert points.grad.nonzero()[:, 0].unique().tolist() == [1]


@pytest.mark.parametrize("m", [1, 2, 7])
def test_large_sets(m):
    points, other = uniform(2, 1500, m), uniform(2, 1100, m, seed=1)
    distances = torch.cdist(points, other, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(gd(points, other), distances.amin(2).mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(igd(points, other), distances.amin(1).mean(1), rtol=1e-12, atol=0)
    best = (points @ other.mT).amax(1).mean(1)
    torch.testing.assert_close(expected_utility(points, other), best, rtol=1e-13, atol=0)


def test_an_offset_costs_no_accuracy():
    """Differences are taken before squares: integers stay exact far from zero."""
    rng = np.random.default_rng(0)
    points, other = (torch.tensor(rng.integers(0, 50, (n, 3)), dtype=F64) for n in (20, 30))
    for function in (igd, gd, average_hausdorff, functools.partial(igd_plus, maximize=False)):
        assert torch.equal(function(points + 2.0**40, other + 2.0**40), function(points, other))
    assert torch.equal(sparsity(points + 2.0**40), sparsity(points))
    assert torch.equal(spacing(points + 2.0**40), spacing(points))


@pytest.mark.parametrize("maximize", [[True, False, True], (True, False, True), np.array([True, False, True])])
def test_senses_may_come_in_any_sequence(maximize):
    points, other = uniform(8, 3), reference_set(3)
    expected = igd_plus(points, other, maximize=[True, False, True])
    assert torch.equal(igd_plus(points, other, maximize=maximize), expected)
    assert torch.equal(igd_plus(points, other, maximize=torch.tensor([True, False, True])), expected)


# --- infinity and nothing ---


def test_infinite_points():
    points = torch.tensor([[1.0, 2.0], [INF, 1.0], [3.0, -INF]], dtype=F64)
    weights = [[0.5, 0.5], [0.9, 0.1]]
    assert expected_utility(points, weights).item() == INF
    assert expected_utility(points, weights, maximize=False).item() == -INF
    assert expected_utility(points[2:], weights).item() == -INF
    other = torch.tensor([[1.0, 1.0]], dtype=F64)
    assert igd(points, other).item() == 1.0
    assert gd(points, other).item() == INF
    assert igd(points[1:], other).item() == INF
    assert igd_plus(points, other, maximize=False).item() == 1.0
    assert igd_plus(points[2:], other, maximize=False).item() == 2.0  # infinitely good in one, 2 too much in the other
    assert igd_plus(points[1:2], other, maximize=False).item() == INF
    assert epsilon_indicator(points[2:], other, maximize=False).item() == 2.0
    assert epsilon_indicator(points[1:2], other, maximize=False).item() == INF
    assert r2(points, weights, 0.0).item() == pytest.approx((1.0 + 0.9) / 2)
    assert sparsity(points).item() == INF
    assert spacing(points).item() == INF


def test_sparsity_between_infinities():
    assert sparsity([[INF, 1.0], [INF, 2.0]]).item() == 1.0  # equal infinite values have no gap
    assert sparsity([[-INF, 1.0], [INF, 2.0]]).item() == INF
    points = leaf(torch.tensor([[INF, 1.0], [INF, 2.0]], dtype=F64))
    sparsity(points).backward()
    assert points.grad.tolist() == [[0.0, -2.0], [0.0, 2.0]]


def test_infinities_that_meet_are_not_near():
    """inf - inf and inf / inf are no distance of 0 and no factor of 1."""
    infinite = torch.full((3, 2), INF, dtype=F64)
    for function in (igd, gd, average_hausdorff):
        assert function(infinite, infinite).item() == INF
        assert function(uniform(4, 2), infinite).item() == INF
    for function in (igd_plus, gd_plus, epsilon_indicator):
        assert function(infinite, infinite, maximize=False).item() == INF
    assert epsilon_indicator(infinite, infinite, maximize=False, kind="multiplicative").item() == INF
    assert maximum_utility_loss(infinite, infinite, weight_set(2)).item() == INF
    assert spacing(infinite).item() == INF
    assert spread(infinite, [[0.0, 1.0], [1.0, 0.0]]).item() == INF


def test_sets_without_a_reference():
    points, none = uniform(2, 5, 3), torch.zeros(0, 3, dtype=F64)
    assert expected_utility(points, none).tolist() == [-INF] * 2
    assert expected_utility(points, none, maximize=False).tolist() == [INF] * 2
    assert r2(points, none, 0.0).tolist() == [INF] * 2
    assert maximum_utility_loss(points, none, weight_set(3)).tolist() == [INF] * 2
    assert maximum_utility_loss(points, points, none).tolist() == [INF] * 2
    for function in (igd, gd, average_hausdorff):
        assert function(points, none).tolist() == [INF] * 2
    for function in (igd_plus, gd_plus, epsilon_indicator):
        assert function(points, none, maximize=True).tolist() == [INF] * 2
    assert igd(points, reference_set(3, 2), reference_lengths=[0, 3])[0].item() == INF
    assert preference_entropy(points, none).tolist() == [-INF] * 2


def test_one_point():
    point = [[1.0, 2.0]]
    assert sparsity(point).item() == 0.0  # as MORL-Baselines
    assert spacing(point).item() == INF
    assert spread(point, [[0.0, 3.0], [3.0, 0.0]]).item() == INF
    assert expected_utility(point, [[0.25, 0.75]]).item() == 1.75
    assert cardinality(point, maximize=True).item() == 1


# --- how a front is spread ---


@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_sparsity_and_spacing(m):
    for n in (2, 3, 10, 100):
        points = uniform(n, m, seed=n)
        rows = points.tolist()
        assert sparsity(points).item() == pytest.approx(reference.sparsity(rows), rel=1e-12)
        assert spacing(points).item() == pytest.approx(reference.spacing(rows), rel=1e-9, abs=1e-12)
        assert spacing(points, ddof=0).item() == pytest.approx(reference.spacing(rows, 0), rel=1e-9, abs=1e-12)


def test_spacing_of_duplicates_and_more_rows_than_a_block():
    twins = uniform(6, 2).repeat(2, 1)
    assert spacing(twins).item() == 0.0  # every nearest neighbour is a copy
    points = uniform(1300, 3)
    d = torch.cdist(points, points, p=1).fill_diagonal_(INF).amin(1)
    assert spacing(points).item() == pytest.approx(d.std().item(), rel=1e-10)


def test_spread_of_two_objectives():
    for seed in range(5):
        points, extremes = uniform(9, 2, seed=seed), uniform(2, 2, seed=seed + 9)
        expected = reference.spread(points.tolist(), tuple(extremes.tolist()))
        assert spread(points, extremes).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(spread, (leaf(points), leaf(extremes)))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_generalized_spread(m):
    points, extremes = uniform(9, m), uniform(m, m, seed=3)
    expected = reference.generalized_spread(points.tolist(), extremes.tolist())
    got = spread(points, extremes, variant="generalized")
    assert got.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(functools.partial(spread, variant="generalized"), (leaf(points), leaf(extremes)))


@pytest.mark.parametrize("variant", ["nsga2", "generalized"])
def test_spread_of_ragged_batches(variant):
    points, extremes = uniform(5, 9, 2), uniform(2, 2, seed=3)
    lengths = torch.tensor([9, 4, 2, 1, 0])
    got = spread(points, extremes, variant=variant, lengths=lengths)
    for i in range(3):
        alone = spread(points[i, : lengths[i]], extremes, variant=variant)
        assert got[i].item() == pytest.approx(alone.item(), rel=1e-13)
    assert got[3:].tolist() == [INF, INF]
    mask = torch.arange(9) % 2 == 0
    masked = spread(points, extremes, variant=variant, mask=mask.expand(5, 9))
    torch.testing.assert_close(masked, spread(points[:, ::2], extremes, variant=variant))
    points[1, 2, 0] = NAN
    with pytest.raises(ValueError, match=r"^points: .*row 2 .*\(1\)"):
        spread(points, extremes, variant=variant)
    assert spread(points, extremes, variant=variant, nan="worst")[1].item() == INF
    extremes[0, 0] = NAN
    assert spread(points[:1], extremes, variant=variant, nan="worst").isnan().all()


@pytest.mark.parametrize("variant", ["nsga2", "generalized"])
def test_an_even_front_has_no_spread_and_a_point_is_no_front(variant):
    x = torch.linspace(0, 1, 6, dtype=F64)
    front = torch.stack([x, 1 - x], -1)
    assert spread(front.flip(0), front[[0, -1]], variant=variant).item() == pytest.approx(0.0, abs=1e-12)
    same = torch.ones(4, 2, dtype=F64)
    assert spread(same, same[:2], variant=variant).item() == INF
    coinciding = leaf(same)
    spread(coinciding, front[[0, -1]], variant=variant).backward()
    assert coinciding.grad.isfinite().all()


@given(st.integers(0, 2**32 - 1), st.lists(st.booleans(), min_size=1, max_size=4))
def test_cardinality_counts_different_non_dominated_points(seed, maximize):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, (rng.integers(0, 14), len(maximize))).astype(float)
    got = cardinality(torch.tensor(points), maximize=maximize)
    assert got.dtype == torch.int64
    assert got.item() == reference.cardinality(points.tolist(), maximize)


def test_cardinality_of_ragged_sets_and_nan():
    points = torch.randint(0, 4, (4, 10, 2), generator=torch.Generator().manual_seed(0)).double()
    lengths = torch.tensor([10, 3, 1, 0])
    got = cardinality(points, maximize=True, lengths=lengths)
    assert got.tolist() == [reference.cardinality(points[i, : lengths[i]].tolist(), True) for i in range(4)]
    points[0] = NAN
    assert cardinality(points, maximize=True, nan="worst")[0].item() == 0
    with pytest.raises(ValueError, match="points"):
        cardinality(points, maximize=True)


# --- what GFlowNets measure ---


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_preference_entropy(m, eps):
    for n in (1, 5, 40):
        points, other = uniform(n, m, seed=n), reference_set(m)
        expected = reference.preference_entropy(points.tolist(), other.tolist(), eps)
        got = preference_entropy(points, other, eps=eps)
        assert got.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_preference_entropy_of_ties_extremes_and_ragged_sets():
    corners = torch.eye(3, dtype=F64)
    assert preference_entropy(corners, corners).item() == pytest.approx(math.log(3))
    assert preference_entropy(corners[[0, 0]], corners).item() == 0.0
    centre = torch.full((4, 3), 1 / 3, dtype=F64)
    assert preference_entropy(torch.cat([centre, corners[:1]]), corners).item() == 0.0  # ties to the lowest
    points, other = uniform(4, 8, 3), reference_set(3, 4)
    lengths, reference_lengths = torch.tensor([8, 3, 0, 5]), torch.tensor([9, 2, 4, 0])
    got = preference_entropy(points, other, lengths=lengths, reference_lengths=reference_lengths)
    for i in range(2):
        alone = preference_entropy(points[i, : lengths[i]], other[i, : reference_lengths[i]])
        assert got[i].item() == pytest.approx(alone.item(), rel=1e-12, abs=1e-15)
    assert got[2:].tolist() == [-INF, -INF]
    mask = torch.arange(8) % 3 == 0
    torch.testing.assert_close(
        preference_entropy(points, other, mask=mask.expand(4, 8)), preference_entropy(points[:, ::3], other)
    )
    points[1, 0, 0] = NAN
    other[0, 0, 0] = NAN
    got = preference_entropy(points, other, nan="worst")
    assert got[0].isnan()
    assert got[1].item() == -INF
    assert got[2].isfinite()


def test_top_k_diversity():
    points, scores = uniform(3, 12, 4), uniform(3, 12, seed=8)
    distances = torch.cdist(points, points)
    for k in (2, 3, 10, 12, 50):
        got = top_k_diversity(distances, scores, k)
        assert got.shape == (3,)
        for i in range(3):
            rows = distances[i].tolist()
            expected = reference.top_k_diversity(lambda a, b, rows=rows: rows[a][b], scores[i].tolist(), k)
            assert got[i].item() == pytest.approx(expected, rel=1e-12)


def test_top_k_diversity_of_ties_few_candidates_and_nan():
    distances = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]], dtype=F64)
    assert top_k_diversity(distances, [1.0, 1.0, 1.0], 2).item() == 1.0  # rows 0 and 1
    assert top_k_diversity(distances, [-INF, 1.0, INF], 2).item() == 2.0
    assert top_k_diversity(distances[:1, :1], [1.0], 2).item() == -INF
    assert top_k_diversity(distances[:0, :0], torch.zeros(0), 2).item() == -INF
    with pytest.raises(ValueError, match="scores"):
        top_k_diversity(distances, [1.0, NAN, 2.0], 2)
    assert top_k_diversity(distances, [1.0, NAN, 2.0], 2, nan="worst").item() == 4.0
    holed = distances.clone()
    holed[0, 1] = holed[1, 0] = NAN
    with pytest.raises(ValueError, match="distances"):
        top_k_diversity(holed, [3.0, 2.0, 1.0], 2)
    assert top_k_diversity(holed, [3.0, 2.0, 1.0], 2, nan="worst").item() == -INF
    assert top_k_diversity(holed, [3.0, 1.0, 2.0], 2, nan="worst").item() == 4.0
    assert torch.autograd.gradcheck(lambda d: top_k_diversity(d, [1.0, 3.0, 2.0], 3), (leaf(distances),))


# --- other libraries ---


def sets(m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return uniform(17, m, seed=seed).numpy(), uniform(23, m, seed=seed + 1).numpy()


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("mixed", [False, True])
def test_agrees_with_moocore(m, mixed):
    moocore = pytest.importorskip("moocore")
    a, r = sets(m, m)
    maximize: Any = senses(m) if mixed else True
    pairs = [
        (igd(a, r), moocore.igd(a, ref=r, maximise=maximize)),
        (igd_plus(a, r, maximize=maximize), moocore.igd_plus(a, ref=r, maximise=maximize)),
        (average_hausdorff(a, r), moocore.avg_hausdorff_dist(a, r, maximise=maximize)),
        (average_hausdorff(a, r, p=3), moocore.avg_hausdorff_dist(a, r, maximise=maximize, p=3)),
        (epsilon_indicator(a, r, maximize=maximize), moocore.epsilon_additive(a, ref=r, maximise=maximize)),
        (
            epsilon_indicator(a, r, maximize=maximize, kind="multiplicative"),
            moocore.epsilon_mult(a, ref=r, maximise=maximize),
        ),
    ]
    for got, expected in pairs:
        assert got.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_agrees_with_pymoo(m):
    pytest.importorskip("pymoo")
    from pymoo.indicators.gd import GD
    from pymoo.indicators.gd_plus import GDPlus
    from pymoo.indicators.igd import IGD
    from pymoo.indicators.igd_plus import IGDPlus
    from pymoo.indicators.spacing import SpacingIndicator

    a, r = sets(m, m)
    assert gd(a, r).item() == pytest.approx(GD(r)(a), rel=1e-12)
    assert igd(a, r).item() == pytest.approx(IGD(r)(a), rel=1e-12)
    assert gd_plus(a, r, maximize=False).item() == pytest.approx(GDPlus(r)(a), rel=1e-12)
    assert igd_plus(a, r, maximize=False).item() == pytest.approx(IGDPlus(r)(a), rel=1e-12)
    assert spacing(a, ddof=0).item() == pytest.approx(SpacingIndicator()(a), rel=1e-9)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_agrees_with_morl_baselines(m):
    peer = pytest.importorskip("morl_baselines.common.performance_indicators")
    a, r = sets(m, m)
    weights = weight_set(m).numpy()
    assert expected_utility(a, weights).item() == pytest.approx(peer.expected_utility(a, weights), rel=1e-12)
    expected = peer.maximum_utility_loss(a, r, weights)
    assert maximum_utility_loss(a, r, weights).item() == pytest.approx(expected, rel=1e-12)
    assert igd(a, r).item() == pytest.approx(peer.igd(r, a), rel=1e-12)
    assert sparsity(a).item() == pytest.approx(peer.sparsity(list(a)), rel=1e-12)
    assert sparsity(a[:1]).item() == peer.sparsity(list(a[:1]))


@pytest.mark.parametrize("m", [2, 3])
def test_agrees_with_evox(m):
    metrics = pytest.importorskip("evox.metrics")
    a, r = map(torch.from_numpy, sets(m, m))
    assert igd(a, r).item() == pytest.approx(metrics.igd(a, r).item(), rel=1e-10)
    assert igd(a, r, p=2).item() == pytest.approx(metrics.igd(a, r, p=2).item(), rel=1e-10)


# --- errors ---

P, R, W = uniform(4, 3), reference_set(3), weight_set(3)
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: igd(P[0], R), ValueError, "points"),
    (lambda: igd(P, R[0]), ValueError, "reference"),
    (lambda: igd(P, R[:, :2]), ValueError, "reference"),
    (lambda: igd(uniform(2, 4, 3), uniform(3, 4, 3)), ValueError, "reference"),
    (lambda: igd(P.bfloat16(), R), TypeError, "points"),
    (lambda: igd(P, R.half()), TypeError, "reference"),
    (lambda: igd(P, "front"), TypeError, "reference"),
    (lambda: igd(P, R, p=0), ValueError, "p"),
    (lambda: gd(P, R, p=-1.0), ValueError, "p"),
    (lambda: gd(P, R, p=NAN), ValueError, "p"),
    (lambda: gd(P, R, p="2"), TypeError, "p"),
    (lambda: average_hausdorff(P, R, p=0.0), ValueError, "p"),
    (lambda: gd(P, R, mean="arithmetic"), ValueError, "mean"),
    (lambda: igd(P, R, nan="ignore"), ValueError, "nan"),
    (lambda: igd(P, R, lengths=[4]), ValueError, "lengths"),
    (lambda: igd(P[None], R, lengths=[5]), ValueError, "lengths"),
    (lambda: igd(P[None], R, lengths=[-1]), ValueError, "lengths"),
    (lambda: igd(P[None], R, lengths=[1.5]), TypeError, "lengths"),
    (lambda: igd(P[None], R, lengths=[1], mask=torch.ones(1, 4, dtype=torch.bool)), ValueError, "lengths, mask"),
    (lambda: igd(P, R, mask=torch.ones(4)), TypeError, "mask"),
    (lambda: igd(P, R, mask=torch.ones(3, dtype=torch.bool)), ValueError, "mask"),
    (lambda: igd(P, R[None], reference_lengths=[K + 1]), ValueError, "reference_lengths"),
    (lambda: igd(P, R[None], reference_lengths=[-1]), ValueError, "reference_lengths"),
    (lambda: igd(P, R[None], reference_lengths=[1, 2]), ValueError, "reference_lengths"),
    (lambda: igd_plus(P, R), TypeError, "maximize"),
    (lambda: igd_plus(P, R, maximize=[True, False]), ValueError, "maximize"),
    (lambda: epsilon_indicator(P, R, maximize=1), TypeError, "maximize"),
    (lambda: epsilon_indicator(P, R, maximize=True, kind="relative"), ValueError, "kind"),
    (lambda: epsilon_indicator(-P, R, maximize=True, kind="multiplicative"), ValueError, "points"),
    (lambda: epsilon_indicator(P, 0 * R, maximize=False, kind="multiplicative"), ValueError, "reference"),
    (lambda: expected_utility(P, W[:, :2]), ValueError, "weights"),
    (lambda: expected_utility(P, W[0]), ValueError, "weights"),
    (lambda: expected_utility(P, W, maximize=[True, False, True]), TypeError, "maximize"),
    (lambda: maximum_utility_loss(P, R[:, :2], W), ValueError, "reference"),
    (lambda: maximum_utility_loss(P, R, W[:, :2]), ValueError, "weights"),
    (lambda: maximum_utility_loss(P, R, NAN * W), ValueError, "weights"),
    (lambda: maximum_utility_loss(P, R, W, maximize=None), TypeError, "maximize"),
    (lambda: r2(P, W, [0.0, 0.0]), ValueError, "ideal_point"),
    (lambda: r2(P, W, NAN), ValueError, "ideal_point"),
    (lambda: r2(P, W, 0.0, normalization="sum"), ValueError, "normalization"),
    (lambda: sparsity(P[0]), ValueError, "points"),
    (lambda: spacing(P, ddof=-1), ValueError, "ddof"),
    (lambda: spread(P, R[:2]), ValueError, "points|extremes"),
    (lambda: spread(P[:, :2], R[:, :2]), ValueError, "extremes"),
    (lambda: spread(P, R, variant="nsga3"), ValueError, "variant"),
    (lambda: cardinality(P), TypeError, "maximize"),
    (lambda: preference_entropy(P, R, eps=-1.0), ValueError, "eps"),
    (lambda: top_k_diversity(P, [1.0] * 4, 2), ValueError, "distances"),
    (lambda: top_k_diversity(P[:3], [1.0] * 4, 2), ValueError, "scores"),
    (lambda: top_k_diversity(P[:3], [1.0] * 3, 1), ValueError, "k"),
    (lambda: top_k_diversity(P[:3], [1.0] * 3, 2.0), TypeError, "k"),
]


@pytest.mark.parametrize(("call", "error", "argument"), BAD)
def test_errors_name_the_argument(call, error, argument):
    with pytest.raises(error, match=rf"\b{argument}\b"):
        call()


@pytest.mark.parametrize("name", ["gd", "igd", "average_hausdorff"])
def test_infinite_padding_has_no_slope(name):
    indicator = {"gd": gd, "igd": igd, "average_hausdorff": average_hausdorff}[name]
    points, reference_points = torch.rand(5, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    whole = [tensor.clone().requires_grad_() for tensor in (points, reference_points)]
    expected = torch.autograd.grad(indicator(*whole), whole)
    padding = torch.tensor([[math.inf, -math.inf], [math.inf, 0.0]], dtype=torch.float64)
    padded = [torch.cat([tensor, padding]).requires_grad_() for tensor in (points, reference_points)]
    value = indicator(*padded, lengths=torch.tensor(5), reference_lengths=torch.tensor(4))
    for got, wanted in zip(torch.autograd.grad(value, padded), expected, strict=True):
        torch.testing.assert_close(got[:-2], wanted)
        assert (got[-2:] == 0).all()
