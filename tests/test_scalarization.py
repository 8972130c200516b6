"""Scalarizations and lexicographic orders against loops over one value and one weight at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.scalarization import (
    achievement,
    chebyshev,
    lexicographic_order,
    ordered_weighted_average,
    penalty_boundary_intersection,
    power_mean,
    thresholded_lexicographic_order,
    weighted_log,
    weighted_sum,
)
from references import weights as reference

F32, F64 = torch.float32, torch.float64
INF = math.inf
NAN = math.nan

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Reference = Callable[[list[float], list[float]], float]
IDEAL = [0.1, -0.2, 0.3, 0.05, 0.0]
NADIR = [2.1, 1.8, 3.3, 2.0, 4.0]


def mirrored(row: list[float], maximize: list[bool]) -> list[float]:
    return [-a if flip else a for a, flip in zip(row, maximize, strict=False)]


def divided_chebyshev(v: list[float], w: list[float]) -> float:
    gaps = [(a - z) / (n - z) for a, z, n in zip(v, IDEAL, NADIR, strict=False)]
    return reference.chebyshev(gaps, w, [0.0] * len(v), 0.1)


SENSES = [True, False, False, True, True]
# A name: what is called, its definition.
SCALARIZATIONS: dict[str, tuple[Function, Reference]] = {
    "weighted_sum": (weighted_sum, reference.weighted_sum),
    "weighted_log": (weighted_log, reference.weighted_log),
    "chebyshev": (
        lambda v, w: chebyshev(v, w, IDEAL[: v.shape[-1]]),
        lambda v, w: reference.chebyshev(v, w, IDEAL[: len(v)]),
    ),
    "augmented chebyshev": (
        lambda v, w: chebyshev(v, w, IDEAL[: v.shape[-1]], augmentation=0.05),
        lambda v, w: reference.chebyshev(v, w, IDEAL[: len(v)], 0.05),
    ),
    "chebyshev between ideal and nadir": (
        lambda v, w: chebyshev(v, w, IDEAL[: v.shape[-1]], nadir_point=NADIR[: v.shape[-1]], augmentation=0.1),
        divided_chebyshev,
    ),
    "penalty_boundary_intersection": (
        lambda v, w: penalty_boundary_intersection(v, w, IDEAL[: v.shape[-1]], maximize=False),
        lambda v, w: reference.penalty_boundary_intersection(v, w, IDEAL[: len(v)]),
    ),
    "penalty_boundary_intersection of both senses": (
        lambda v, w: penalty_boundary_intersection(
            v, w, IDEAL[: v.shape[-1]], maximize=SENSES[: v.shape[-1]], theta=0.7
        ),
        lambda v, w: reference.penalty_boundary_intersection(
            mirrored(v, SENSES), w, mirrored(IDEAL[: len(v)], SENSES), 0.7
        ),
    ),
    "achievement": (
        lambda v, w: achievement(v, w, IDEAL[: v.shape[-1]], maximize=False),
        lambda v, w: reference.achievement(v, w, IDEAL[: len(v)]),
    ),
    "achievement of both senses": (
        lambda v, w: achievement(v, w, IDEAL[: v.shape[-1]], maximize=SENSES[: v.shape[-1]], augmentation=0.01),
        lambda v, w: reference.achievement(mirrored(v, SENSES), w, mirrored(IDEAL[: len(v)], SENSES), 0.01),
    ),
    **{
        f"power_mean {p}": (
            lambda v, w, p=p: power_mean(v, w, p),
            lambda v, w, p=p: reference.power_mean(v, [a / math.fsum(w) for a in w], p),
        )
        for p in (-INF, -2, -1, 0, 0.5, 1, 2, 3.5, INF)
    },
    "ordered_weighted_average": (ordered_weighted_average, reference.ordered_weighted_average),
}
EVERY = pytest.mark.parametrize("name", SCALARIZATIONS)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.4


def weights(*shape: int, seed: int = 100, dtype: torch.dtype = F64) -> torch.Tensor:
    drawn = uniform(*shape, seed=seed)
    return (drawn / drawn.sum(-1, keepdim=True)).to(dtype)


@EVERY
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_every_weight_meets_every_value(name, m):
    function, expected = SCALARIZATIONS[name]
    v, w = uniform(7, m), weights(4, m)
    got = function(v, w)
    assert got.shape == (4, 7)
    for i in range(4):
        for j in range(7):
            assert got[i, j].item() == pytest.approx(expected(v[j].tolist(), w[i].tolist()), rel=1e-12)
        torch.testing.assert_close(function(v, w[i]), got[i], rtol=1e-14, atol=0)


@EVERY
def test_batches_broadcast(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(3, 1, 6, 3), weights(2, 4, 3)
    got = function(v, w)
    assert got.shape == (3, 2, 4, 6)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(got[i, j], function(v[i, 0], w[j]), rtol=1e-14, atol=0)
    assert function(v, w[0, 0]).shape == (3, 1, 6)


@EVERY
def test_float32(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(50, 4, dtype=F32), weights(9, 4, dtype=F32)
    got = function(v, w)
    assert got.dtype == F32
    torch.testing.assert_close(got, function(v.double(), w.double()).float(), rtol=1e-5, atol=1e-5)


@EVERY
def test_one_value_and_one_weight(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(5, 3), weights(4, 3)
    got = function(v, w)
    torch.testing.assert_close(function(v[2], w), got[:, 2], rtol=1e-14, atol=0)
    assert function(v[2], w[1]).shape == ()
    torch.testing.assert_close(function(v[2], w[1]), got[1, 2], rtol=1e-14, atol=0)
    paired = function(v[:4, None], w[:, None])  # a weight of its own for each row
    torch.testing.assert_close(paired[:, 0, 0], got.diagonal(), rtol=1e-14, atol=0)


@EVERY
def test_the_result_has_the_dtype_of_the_values(name):
    function, _ = SCALARIZATIONS[name]
    assert function(uniform(5, 3), weights(2, 3, dtype=F32)).dtype == F64
    assert function(uniform(5, 3, dtype=F32), weights(2, 3)).dtype == F32


@EVERY
def test_lists_arrays_and_integers_are_taken(name):
    function, _ = SCALARIZATIONS[name]
    v, w = np.array([[1, 2], [3, 1]]), np.array([[1, 3], [2, 2]])
    if name == "ordered_weighted_average" or name.startswith(("weighted", "power")):  # the others slice shapes here
        expected = function(torch.tensor(v, dtype=F64), torch.tensor(w, dtype=F64))
        assert torch.equal(function(v, w), expected)
        assert torch.equal(function(v.tolist(), w.tolist()), expected)
    got = function(torch.tensor(v), torch.tensor(w))
    assert torch.equal(got, function(torch.tensor(v, dtype=F64), torch.tensor(w, dtype=F64)))


@EVERY
def test_strided_and_read_only_values(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(4, 9), weights(8, 4)
    expected = function(v.T.contiguous(), w[::2].contiguous())
    torch.testing.assert_close(function(v.T, w[::2]), expected, rtol=1e-13, atol=0)
    before = v.clone(), w.clone()
    function(v.T, w)
    assert torch.equal(v, before[0])
    assert torch.equal(w, before[1])


@EVERY
def test_nothing_gives_nothing(name):
    function, _ = SCALARIZATIONS[name]
    assert function(uniform(0, 3), weights(4, 3)).shape == (4, 0)
    assert function(uniform(5, 3), weights(0, 3)).shape == (0, 5)
    assert function(uniform(2, 0, 3), weights(3)).shape == (2, 0)
    assert function(uniform(0, 5, 3), weights(4, 3)).shape == (0, 4, 5)


@EVERY
def test_nan_stays_nan(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(5, 3), weights(2, 3)
    v[3, 1] = NAN
    got = function(v, w)
    assert got.isnan().nonzero()[:, 1].tolist() == [3, 3]
    w[0, 2] = NAN
    assert function(v, w)[0].isnan().all()
    assert function(v, w)[1].isnan().tolist() == [False, False, False, True, False]


@EVERY
def test_gradients(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(4, 3).requires_grad_(), weights(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(function, (v, w))
    assert torch.autograd.gradcheck(function, (v.detach()[None].requires_grad_(), w[0].detach().requires_grad_()))


@EVERY
def test_compiles_without_a_break(name):
    function, _ = SCALARIZATIONS[name]
    v, w = uniform(4, 3), weights(2, 3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(v, w), function(v, w), rtol=1e-14, atol=0)


@EVERY
def test_bad_shapes_name_the_argument(name):
    function, _ = SCALARIZATIONS[name]
    with pytest.raises(ValueError, match="weights"):
        function(uniform(4, 3), weights(2, 2))
    with pytest.raises((ValueError, TypeError), match="weights"):
        function(uniform(4, 3), torch.tensor(0.5, dtype=F64))
    with pytest.raises(ValueError, match=r"values|weights"):
        function(uniform(2, 4, 3), weights(3, 2, 3))
    with pytest.raises(TypeError, match="values"):
        function(torch.ones(4, 3, dtype=torch.bfloat16), weights(2, 3))
    with pytest.raises(TypeError, match="weights"):
        function(uniform(4, 3), weights(2, 3).half())


@pytest.mark.parametrize("function", [weighted_sum, weighted_log, ordered_weighted_average])
def test_a_number_is_not_a_vector(function):
    with pytest.raises(ValueError, match="values"):
        function(torch.tensor(1.0), weights(2, 3))


# --- points of reference ---

POINTS = {
    "chebyshev": lambda v, w, z: chebyshev(v, w, z),
    "penalty_boundary_intersection": lambda v, w, z: penalty_boundary_intersection(v, w, z, maximize=True),
    "achievement": lambda v, w, z: achievement(v, w, z, maximize=True),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_point_may_be_a_number_one_for_all_or_one_for_each_batch(name):
    function = POINTS[name]
    v, w = uniform(2, 5, 3), weights(4, 3)
    z = torch.tensor([[2.0, 3.0, 4.0], [2.5, 2.0, 1.9]], dtype=F64)
    got = function(v, w, z)
    for i in range(2):
        torch.testing.assert_close(got[i], function(v[i], w, z[i]), rtol=1e-14, atol=0)
    expected = function(v, w, torch.full((3,), 2.0, dtype=F64))
    assert torch.equal(function(v, w, 2.0), expected)
    assert torch.equal(function(v, w, [2.0, 2.0, 2.0]), expected)


@pytest.mark.parametrize("name", POINTS)
def test_a_point_has_a_gradient(name):
    assert torch.autograd.gradcheck(
        POINTS[name], (uniform(4, 3), weights(2, 3), torch.tensor([2.0, 3.0, 4.0], dtype=F64, requires_grad=True))
    )


@pytest.mark.parametrize(
    ("name", "argument"),
    [("chebyshev", "ideal_point"), ("penalty_boundary_intersection", "ideal_point"), ("achievement", "ref_point")],
)
def test_a_bad_point_is_named(name, argument):
    with pytest.raises(ValueError, match=argument):
        POINTS[name](uniform(4, 3), weights(2, 3), torch.zeros(2))
    with pytest.raises(TypeError, match=argument):
        POINTS[name](uniform(4, 3), weights(2, 3), torch.zeros(3).half())


@pytest.mark.parametrize("function", [penalty_boundary_intersection, achievement])
def test_the_sense_must_be_said(function):
    with pytest.raises(TypeError, match="maximize"):
        function(uniform(4, 3), weights(2, 3), 0.0)
    with pytest.raises(ValueError, match="maximize"):
        function(uniform(4, 3), weights(2, 3), 0.0, maximize=[True, False])
    with pytest.raises(TypeError, match="maximize"):
        function(uniform(4, 3), weights(2, 3), 0.0, maximize=1)


# --- one by one ---


def test_the_best_point_for_a_weight():
    """Minimized: the points on the axes of the weights win."""
    v = torch.tensor([[0.0, 4.0], [1.0, 1.5], [3.0, 0.2]], dtype=F64)
    w = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], dtype=F64)
    assert chebyshev(v, w, 0.0).argmin(-1).tolist() == [0, 1, 2]
    assert weighted_sum(v, w).argmin(-1).tolist() == [0, 1, 2]
    # Along a direction rather than a price: large where the value may be large.
    assert achievement(v, w, 0.0, maximize=False).argmin(-1).tolist() == [2, 1, 0]
    v = torch.tensor([[0.2, 2.0], [1.0, 1.1], [2.0, 0.2]], dtype=F64)
    assert penalty_boundary_intersection(v, w, 0.0, maximize=False).argmin(-1).tolist() == [2, 1, 0]


def test_agrees_with_pymoo():
    pytest.importorskip("pymoo")
    from pymoo.decomposition.aasf import AASF
    from pymoo.decomposition.asf import ASF
    from pymoo.decomposition.pbi import PBI
    from pymoo.decomposition.tchebicheff import Tchebicheff
    from pymoo.decomposition.weighted_sum import WeightedSum

    v, w, z = uniform(11, 3), weights(5, 3), np.array([0.1, 0.2, 0.3])
    peers = [
        (weighted_sum(v, w), WeightedSum()),
        (chebyshev(v, w, z), Tchebicheff()),
        (penalty_boundary_intersection(v, w, z, maximize=False, theta=3.0), PBI(theta=3.0)),
        (achievement(v, w, z, maximize=False), ASF()),
        (achievement(v, w, z, maximize=False, augmentation=0.1), AASF(rho=0.1)),
    ]
    for got, peer in peers:
        expected = peer.do(v.numpy(), w.numpy(), _type="many_to_many", utopian_point=z)
        assert got.T.numpy() == pytest.approx(expected, rel=1e-12), type(peer).__name__


def test_agrees_with_morl_baselines():
    peer = pytest.importorskip("morl_baselines.common.scalarization")
    v, w = uniform(11, 3), weights(3)
    tchebicheff = peer.tchebicheff(tau=0.5, reward_dim=3)
    utopia = np.full(3, -INF)
    for row in v.numpy():
        utopia = np.maximum(utopia, row + 0.5)
        reward = tchebicheff(row, w.numpy())
        assert -chebyshev(row[None], w, utopia).item() == pytest.approx(reward, rel=1e-12)
        assert weighted_sum(row[None], w).item() == pytest.approx(peer.weighted_sum(row, w.numpy()), rel=1e-12)


def test_infinite_values_follow_ieee():
    v = torch.tensor([[1.0, INF], [2.0, -INF]], dtype=F64)
    assert weighted_sum(v, [0.5, 0.5]).tolist() == [INF, -INF]
    assert weighted_sum(v, [1.0, 0.0]).isnan().all()
    assert chebyshev(v, [0.5, 0.5], 0.0).tolist() == [INF, INF]


def test_logarithm_of_nothing():
    v = torch.tensor([[1.0, 0.0], [math.e, -3.0]], dtype=F64)
    w = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=F64)
    got = weighted_log(v, w)
    assert got[0].tolist() == pytest.approx([0.0, 1.0])
    assert got[1].tolist() == [-INF, -INF]
    floored = weighted_log(v, w, floor=1e-3)
    assert floored[1].tolist() == pytest.approx([0.5 * math.log(1e-3), 0.5 + 0.5 * math.log(1e-3)])


def test_a_gradient_where_the_weight_is_zero_and_the_value_not_positive():
    v = torch.tensor([[2.0, 0.0], [2.0, -1.0]], dtype=F64, requires_grad=True)
    weighted_log(v, torch.tensor([1.0, 0.0], dtype=F64)).sum().backward()
    assert v.grad.tolist() == [[0.5, 0.0], [0.5, 0.0]]


def test_chebyshev_has_a_gradient_at_the_ideal_point():
    v = torch.tensor([[1.0, 2.0], [1.0, 3.0]], dtype=F64, requires_grad=True)
    chebyshev(v, torch.tensor([0.5, 0.5], dtype=F64), [1.0, 2.0], augmentation=0.1).sum().backward()
    assert v.grad.isfinite().all()
    assert v.grad[1].tolist() == pytest.approx([0.0, 0.6])


def test_pbi_has_a_gradient_on_the_direction():
    v = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=F64, requires_grad=True)
    penalty_boundary_intersection(v, torch.tensor([1.0, 2.0], dtype=F64), 0.0, maximize=False).sum().backward()
    assert v.grad.isfinite().all()
    assert v.grad[0].tolist() == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)], abs=1e-6)


def test_achievement_raises_small_weights():
    v = torch.tensor([[1.0, 2.0]], dtype=F64)
    w = torch.tensor([1.0, 0.0], dtype=F64)
    assert achievement(v, w, 0.0, maximize=False).item() == pytest.approx(2e10)
    assert achievement(v, w, 0.0, maximize=False, min_weight=0.5).item() == 4.0
    assert achievement(v, w, 3.0, maximize=True).item() == pytest.approx(1e10)


def test_power_mean_stays_between_smallest_and_largest_and_grows_with_the_power():
    v, w = uniform(20, 4), weights(3, 4)
    means = torch.stack([power_mean(v, w, p) for p in (-INF, -3, -1, 0, 1, 2, 8, INF)])
    assert (means.diff(dim=0) >= -1e-14).all()
    assert torch.equal(means[0], v.amin(-1).expand(3, 20))
    assert torch.equal(means[-1], v.amax(-1).expand(3, 20))


def test_power_mean_needs_no_normalized_weights():
    v, w = uniform(6, 3), weights(3)
    for p in (-1, 0, 2, INF):
        torch.testing.assert_close(power_mean(v, 7 * w, p), power_mean(v, w, p), rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", [-2, 0, 0.5, 2])
def test_power_mean_of_negative_values_is_nan(p):
    v = torch.tensor([[1.0, -2.0]], dtype=F64)
    assert power_mean(v, torch.tensor([0.5, 0.5], dtype=F64), p).isnan().all()


def test_power_mean_of_negative_values_where_that_has_a_meaning():
    v = torch.tensor([[1.0, -2.0]], dtype=F64)
    w = torch.tensor([0.5, 0.5], dtype=F64)
    assert [power_mean(v, w, p).item() for p in (-INF, 1, INF)] == [-2.0, -0.5, 1.0]
    only_first = torch.tensor([1.0, 0.0], dtype=F64)
    assert [power_mean(v, only_first, p).item() for p in (-INF, INF)] == [1.0, 1.0]


def test_power_mean_of_a_zero():
    v = torch.tensor([[1.0, 0.0]], dtype=F64)
    w = torch.tensor([0.5, 0.5], dtype=F64)
    assert [power_mean(v, w, p).item() for p in (-INF, -1, 0)] == [0.0, 0.0, 0.0]
    assert power_mean(v, w, 2).item() == pytest.approx(math.sqrt(0.5))


def test_ordered_weighted_average_does_not_know_objectives():
    v, w = uniform(6, 4), weights(2, 4)
    got = ordered_weighted_average(v, w)
    torch.testing.assert_close(ordered_weighted_average(v[:, [2, 0, 3, 1]], w), got, rtol=1e-15, atol=0)
    first = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=F64)
    assert torch.equal(ordered_weighted_average(v, first), v.amin(-1))
    assert torch.equal(ordered_weighted_average(v, first.flip(0)), v.amax(-1))
    torch.testing.assert_close(ordered_weighted_average(v, torch.full((4,), 0.25, dtype=F64)), v.mean(-1))


def test_a_generalized_gini_function_prefers_a_transfer_from_rich_to_poor():
    w = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    before, after = torch.tensor([[1.0, 5.0, 9.0]], dtype=F64), torch.tensor([[2.0, 5.0, 8.0]], dtype=F64)
    assert ordered_weighted_average(after, w) > ordered_weighted_average(before, w)


# --- orders ---


def lexicographic(rows: list[list[float]], maximize: list[bool], priority: list[int]) -> list[int]:
    def key(i: int) -> tuple[bool, list[float], int]:
        row = mirrored(rows[i], maximize)
        missing = any(map(math.isnan, row))
        return missing, [0.0] if missing else [row[j] for j in priority], i

    return sorted(range(len(rows)), key=key)


@st.composite
def tied_rows(draw) -> tuple[list[list[float]], list[bool], list[int]]:
    m = draw(st.integers(1, 4))
    value = st.sampled_from([-INF, -1.0, 0.0, -0.0, 1.0, 2.0, INF])
    rows = draw(st.lists(st.lists(value, min_size=m, max_size=m), max_size=12))
    maximize = draw(st.lists(st.booleans(), min_size=m, max_size=m))
    return rows, maximize, draw(st.permutations(range(m)))


@given(tied_rows())
def test_lexicographic_order_is_that_of_tuples(case):
    rows, maximize, priority = case
    values = torch.tensor(rows, dtype=F64).reshape(len(rows), len(maximize))
    got = lexicographic_order(values, maximize=maximize, priority=priority)
    assert got.dtype == torch.int64
    assert got.tolist() == lexicographic(rows, maximize, priority)
    default = lexicographic_order(values, maximize=maximize)
    assert default.tolist() == lexicographic(rows, maximize, list(range(len(maximize))))


@given(tied_rows(), st.lists(st.sampled_from([None, -1.0, 0.0, 0.5, 1.0]), min_size=4, max_size=4))
def test_values_beyond_the_threshold_count_as_the_threshold(case, drawn):
    rows, maximize, priority = case
    open_ends = [INF if up else -INF for up in maximize]
    thresholds = [end if t is None else t for t, end in zip(drawn, open_ends, strict=False)]
    values = torch.tensor(rows, dtype=F64).reshape(len(rows), len(maximize))
    clipped = [[min(v, t) if up else max(v, t) for v, t, up in zip(r, thresholds, maximize, strict=True)] for r in rows]
    got = thresholded_lexicographic_order(values, thresholds, maximize=maximize, priority=priority)
    assert got.dtype == torch.int64
    assert got.tolist() == lexicographic(clipped, maximize, priority)


def test_the_last_objective_needs_no_threshold():
    """Gabor, Kalmar and Szepesvari 1998: enough of the first, then as much as possible of the last."""
    values = torch.tensor([[9.0, 1.0], [5.0, 3.0], [6.0, 2.0], [1.0, 9.0]], dtype=F64)
    assert thresholded_lexicographic_order(values, [4.0], maximize=True).tolist() == [1, 2, 0, 3]
    assert thresholded_lexicographic_order(values, [4.0, INF], maximize=True).tolist() == [1, 2, 0, 3]
    with pytest.raises(ValueError, match="thresholds"):
        thresholded_lexicographic_order(values, [4.0], maximize=True, priority=[1, 0])
    with pytest.raises(ValueError, match="thresholds"):
        thresholded_lexicographic_order(values, [4.0, 1.0, 2.0], maximize=True)


def test_rows_with_nan_come_last():
    values = torch.tensor([[NAN, 9.0], [1.0, 2.0], [2.0, NAN], [3.0, 1.0]], dtype=F64)
    for maximize, expected in ((True, [3, 1, 0, 2]), (False, [1, 3, 0, 2])):
        assert lexicographic_order(values, maximize=maximize).tolist() == expected
        limits = [INF if maximize else -INF] * 2
        assert thresholded_lexicographic_order(values, limits, maximize=maximize).tolist() == expected


def test_orders_of_batches():
    values = torch.randint(0, 3, (2, 3, 9, 2), generator=torch.Generator().manual_seed(0)).double()
    plain = lexicographic_order(values, maximize=True)
    limited = thresholded_lexicographic_order(values, [1.0, INF], maximize=True)
    for i in range(2):
        for j in range(3):
            assert torch.equal(plain[i, j], lexicographic_order(values[i, j], maximize=True))
            assert torch.equal(limited[i, j], thresholded_lexicographic_order(values[i, j], [1.0], maximize=True))
    assert lexicographic_order(values[:0], maximize=True).shape == (0, 3, 9)
    assert lexicographic_order(values[:, :, :0], maximize=True).shape == (2, 3, 0)


def test_orders_of_float32_do_not_round():
    one = torch.tensor(1.0)
    above = torch.nextafter(one, torch.tensor(2.0))
    values = torch.stack([one, above])[:, None]
    assert lexicographic_order(values, maximize=True).tolist() == [1, 0]


def test_objectives_that_are_left_out_do_not_count():
    values = torch.tensor([[1.0, 5.0, 0.0], [2.0, 5.0, 9.0], [0.0, 7.0, 1.0]], dtype=F64)
    assert lexicographic_order(values, maximize=True, priority=[1]).tolist() == [2, 0, 1]
    assert lexicographic_order(values, maximize=True, priority=[1, 2]).tolist() == [2, 1, 0]


@pytest.mark.parametrize("priority", [[0, 0], [0, 2], [-1, 0], [0, 1, 2]])
def test_a_bad_priority_is_named(priority):
    with pytest.raises(ValueError, match="priority"):
        lexicographic_order(uniform(4, 2), maximize=True, priority=priority)
    with pytest.raises(ValueError, match="priority"):
        thresholded_lexicographic_order(uniform(4, 2), [1.0, 1.0], maximize=True, priority=priority)


def test_orders_need_a_sense_and_rows():
    with pytest.raises(TypeError, match="maximize"):
        lexicographic_order(uniform(4, 2))
    with pytest.raises(ValueError, match="values"):
        lexicographic_order(uniform(4), maximize=True)
    with pytest.raises(TypeError, match="values"):
        lexicographic_order(uniform(4, 2).bfloat16(), maximize=True)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda v, w: weighted_log(v, w, floor=-1.0), "floor"),
        (lambda v, w: chebyshev(v, w, 0.0, augmentation=-1.0), "augmentation"),
        (lambda v, w: chebyshev(v, w, 0.0, nadir_point=[1.0, 2.0]), "nadir_point"),
        (lambda v, w: penalty_boundary_intersection(v, w, 0.0, maximize=True, theta=-1.0), "theta"),
        (lambda v, w: achievement(v, w, 0.0, maximize=True, augmentation=-1.0), "augmentation"),
        (lambda v, w: achievement(v, w, 0.0, maximize=True, min_weight=0.0), "min_weight"),
        (lambda v, w: power_mean(v, w, NAN), "p"),
    ],
)
def test_bad_options_are_named(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}:"):
        call(uniform(4, 3), weights(2, 3))


def test_an_objective_without_range_counts_as_it_is():
    v, w = uniform(4, 2), weights(3, 2)
    got = chebyshev(v, w, [0.0, 0.0], nadir_point=[2.0, 0.0])
    torch.testing.assert_close(got, chebyshev(v / torch.tensor([2.0, 1.0], dtype=F64), w, 0.0))
