"""Ranks, fronts, masks and counts by definition, every stated edge case, and what the error messages name."""

from __future__ import annotations

import math
import re
import sys

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import pareto as reference

F64 = torch.float64
INF = math.inf
NAN = math.nan


def ranks(points, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.non_dominated_sort(points, maximize=maximize, **options)


def fronts(batch: tuple[int, ...], n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*batch, n, m, generator=torch.Generator().manual_seed(seed), dtype=F64)


@st.composite
def grids(draw, max_n: int = 40, min_n: int = 0) -> tuple[torch.Tensor, list[bool]]:
    """Points on a small integer grid, full of ties and duplicates; a sense per objective."""
    m = draw(st.integers(1, 7))
    n = draw(st.integers(min_n, max_n))
    side = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    points = torch.from_numpy(rng.integers(0, side + 1, (n, m)).astype(np.float64))
    return points, draw(st.lists(st.booleans(), min_size=m, max_size=m))


@st.composite
def violated_grids(draw) -> tuple[torch.Tensor, list[bool], torch.Tensor]:
    """A grid with constraints, many of them satisfied: a number for each row, or 0 to 3 for each."""
    points, maximize = draw(grids())
    columns = draw(st.integers(-1, 3))
    shape = (len(points),) if columns < 0 else (len(points), columns)
    values = draw(st.lists(st.sampled_from([-INF, -2.0, -0.0, 0.0, 0.25, 1.0, 2.0, INF]), min_size=1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return points, maximize, torch.from_numpy(rng.choice(values, shape))


@st.composite
def ragged_grids(draw) -> tuple[torch.Tensor, list[bool], dict]:
    """A grid whose rows count in part, as lengths or a mask say; some rows have a NaN, whether they count or not."""
    points, maximize = draw(grids())
    n, m = points.shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    points[torch.from_numpy(rng.random((n, m)) < draw(st.sampled_from([0.0, 0.02, 0.2])))] = NAN
    options = draw(st.sampled_from(["lengths", "mask", "neither"]))
    if options == "lengths":
        return points, maximize, {"lengths": torch.tensor(draw(st.integers(0, n)))}
    if options == "mask":
        return points, maximize, {"mask": torch.from_numpy(rng.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0])))}
    return points, maximize, {}


def each(function, points, maximize=False, *, lengths=None, mask=None, **options) -> torch.Tensor:
    """What the reference says of each front of a batch, one after another; options with a batch shape are indexed."""
    results = []
    for i in np.ndindex(points.shape[:-2]):
        own = {k: x[i].numpy() if isinstance(x, torch.Tensor) else x for k, x in options.items()}
        own |= {} if lengths is None else {"length": int(lengths[i])}
        own |= {} if mask is None else {"mask": mask[i].numpy()}
        results.append(function(points[i].numpy(), maximize, **own))
    return torch.from_numpy(np.stack(results)).reshape(points.shape[:-1])


# Values.


@given(grids())
def test_integer_grids_have_the_ranks_of_the_definition(case):
    points, maximize = case
    got = ranks(points, maximize)
    assert got.dtype == torch.int32
    assert got.tolist() == reference.non_dominated_sort(points.numpy(), maximize).tolist()


SHAPES = {
    "cloud": lambda x: x,
    "one front": lambda x: x / x.sum(1, keepdims=True),
    "chain": lambda x: np.repeat(x[:, :1], x.shape[1], axis=1),
    "ties": lambda x: np.floor(4 * x),
    "two values": lambda x: np.round(x),
    "duplicates": lambda x: x[np.arange(len(x)) // 3],
    "all equal": lambda x: np.zeros_like(x),
    "first objective constant": lambda x: np.hstack([np.zeros_like(x[:, :1]), x[:, 1:]]),
    "last objective constant": lambda x: np.hstack([x[:, :-1], np.zeros_like(x[:, :1])]),
    "layers": lambda x: x / x.sum(1, keepdims=True) + np.arange(len(x))[:, None] % 5,
    "many fronts": lambda x: x[:, :1] + 1e-4 * x,
}
SIZES = [1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_around_a_word_has_the_ranks_of_the_definition(shape, m, dtype):
    for n in SIZES:
        x = SHAPES[shape](np.random.default_rng(n).random((n, m))).astype(dtype)
        assert ranks(torch.from_numpy(x)).tolist() == reference.non_dominated_sort(x).tolist(), n


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_moocore(shape, m):
    moocore = pytest.importorskip("moocore")
    for n in (511, 513, 1000, 2000):
        x = np.ascontiguousarray(SHAPES[shape](np.random.default_rng(n).random((n, m))))
        # moocore takes two objectives or more; a constant second one changes no rank.
        expected = moocore.pareto_rank(np.hstack([x, np.zeros_like(x)]) if m == 1 else x)
        assert ranks(torch.from_numpy(x)).tolist() == expected.tolist(), n


@pytest.mark.parametrize("m", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_long_fronts_agree_with_moocore(shape, m, dtype):
    moocore = pytest.importorskip("moocore")
    for n in (1023, 1024, 1025, 2049, 5000):
        x = np.ascontiguousarray(SHAPES[shape](np.random.default_rng(n).random((n, m))), dtype=dtype)
        assert ranks(torch.from_numpy(x)).tolist() == moocore.pareto_rank(x.astype(np.float64)).tolist(), n


@pytest.mark.parametrize("m", [2, 3, 4, 6])
@pytest.mark.parametrize("shape", ["cloud", "ties", "duplicates", "layers"])
def test_very_long_fronts_agree_with_moocore(shape, m):
    moocore = pytest.importorskip("moocore")
    x = np.ascontiguousarray(SHAPES[shape](np.random.default_rng(m).random((20000, m))))
    assert ranks(torch.from_numpy(x)).tolist() == moocore.pareto_rank(x).tolist()


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_long_fronts_have_the_ranks_of_the_definition(shape, m):
    for n in (511, 1025):
        x = SHAPES[shape](np.random.default_rng(n).random((n, m)))
        maximize = [k % 2 == 1 for k in range(m)]
        assert ranks(torch.from_numpy(x), maximize).tolist() == reference.non_dominated_sort(x, maximize).tolist(), n


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_pymoo(shape, m):
    sorting = pytest.importorskip("pymoo.util.nds.non_dominated_sorting")
    for n in (1, 65, 500):
        x = np.ascontiguousarray(SHAPES[shape](np.random.default_rng(n).random((n, m))))
        _, expected = sorting.NonDominatedSorting().do(x, return_rank=True)
        assert ranks(torch.from_numpy(x)).tolist() == expected.tolist(), n


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_pygmo(shape, m):
    # pygmo 2.19.5, the last for Python 3.10, repeats a front's first row: for five points [1], [0, 0, 0], [2].
    pygmo = pytest.importorskip("pygmo", minversion="2.20")
    for n in (2, 65, 300):
        x = SHAPES[shape](np.random.default_rng(n).random((n, m)))
        *_, expected = pygmo.fast_non_dominated_sorting(x)
        assert ranks(torch.from_numpy(x)).tolist() == expected.tolist(), n


def test_one_objective_ranks_the_distinct_values():
    assert ranks([[3.0], [1.0], [2.0], [1.0]]).tolist() == [2, 0, 1, 0]
    assert ranks([[3.0], [1.0], [2.0], [1.0]], maximize=True).tolist() == [0, 2, 1, 2]


def test_a_rank_is_one_more_than_the_deepest_dominator():
    # The last point is dominated by ranks 0 and 2 only.
    points = [[0.0, 4.0], [4.0, 0.0], [5.0, 1.0], [6.0, 2.0], [7.0, 5.0]]
    assert ranks(points).tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_a_long_chain_has_a_rank_for_each_point(m):
    n = 3000
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ranks(order.to(F64)[:, None].expand(n, m)), order.int())


# Dtypes, strides and containers.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, F64])
def test_dtypes(dtype):
    points = torch.tensor([[1, 3], [2, 2], [3, 3], [1, 3]], dtype=dtype)
    got = ranks(points)
    assert got.dtype == torch.int32
    assert got.tolist() == [0, 0, 1, 0]


def test_float32_is_not_rounded_before_it_is_compared():
    one = torch.tensor(1.0)
    above = torch.nextafter(one, torch.tensor(2.0))
    points = torch.stack([torch.stack([above, one]), torch.stack([one, one]), torch.stack([one, above])])
    assert ranks(points).tolist() == [1, 0, 1]
    wide = torch.tensor([[1.0, 1.0], [1.0 + 2**-52, 1.0]], dtype=F64)
    assert ranks(wide).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_a_type_error(dtype):
    with pytest.raises(TypeError, match="points"):
        ranks(torch.ones(2, 2, dtype=dtype))


def test_lists_and_arrays_are_taken():
    rows = [[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]
    for points in (rows, np.array(rows), np.array(rows, dtype=np.float32), np.array(rows, dtype=np.int64)):
        assert morlfast.non_dominated_sort(points, maximize=False).tolist() == [0, 0, 1]


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_strides_give_the_same_ranks(m, dtype):
    x = fronts((3, 2), 37, m).to(dtype)
    expected = ranks(x)
    padded = torch.full((3, 2, 75, m + 2), NAN, dtype=dtype)
    padded[..., 1::2, 1 : m + 1] = x
    views = {
        "points transposed": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "every second row of a slice": padded[..., 1::2, 1 : m + 1],
        "offset storage": torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    }
    for name, view in views.items():
        assert torch.equal(view, x), name
        assert torch.equal(ranks(view), expected), name


def test_expanded_batches_points_and_objectives():
    x = fronts((), 20, 3)
    assert torch.equal(ranks(x.expand(4, 5, 20, 3)), ranks(x).expand(4, 5, 20))
    assert (ranks(torch.tensor([[0.5, 0.25]], dtype=F64).expand(70, 2)) == 0).all()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_memory_map_is_only_read(tmp_path):
    x = np.random.default_rng(0).random((50, 4))
    x.tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", dtype=np.float64, mode="r", shape=x.shape)
    assert torch.equal(ranks(torch.from_numpy(mapped)), ranks(torch.from_numpy(x)))


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("maximize", [False, True, "mixed"])
def test_inputs_are_left_unchanged(m, maximize):
    points = fronts((4,), 70, m)
    copy = points.clone()
    ranks(points, [k % 2 == 0 for k in range(m)] if maximize == "mixed" else maximize)
    assert torch.equal(points, copy)
    assert points._version == 0


def test_points_that_require_grad_are_taken_and_ranks_are_not_differentiable():
    assert not ranks(fronts((), 9, 2).requires_grad_()).requires_grad


# Batches.


@pytest.mark.parametrize("n", [1, 7, 64, 65, 130])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_a_batch_equals_a_loop(m, n):
    points = fronts((3, 4), n, m)
    points[1] = (4 * points[1]).round()
    got = ranks(points)
    assert got.shape == (3, 4, n)
    for i in range(3):
        for j in range(4):
            assert torch.equal(got[i, j], ranks(points[i, j]))


def test_many_small_fronts():
    points = fronts((2000,), 6, 3).mul(4).round()
    got = ranks(points)
    for i in range(0, 2000, 97):
        assert got[i].tolist() == reference.non_dominated_sort(points[i].numpy()).tolist()


@pytest.mark.parametrize("shape", [(0, 2), (0, 1), (3, 0, 4), (0, 5, 3), (2, 0, 5, 3), (0, 0, 2)])
def test_zero_size_inputs_give_zero_size_results(shape):
    got = ranks(torch.empty(shape, dtype=F64))
    assert got.shape == shape[:-1]
    assert got.dtype == torch.int32


# Invariances.


@given(grids(), st.randoms(use_true_random=False))
def test_permuting_points_permutes_ranks_and_permuting_objectives_changes_nothing(case, random):
    points, maximize = case
    rows = random.sample(range(len(points)), len(points))
    columns = random.sample(range(points.shape[1]), points.shape[1])
    shuffled = ranks(points[rows][:, columns], [maximize[k] for k in columns])
    assert torch.equal(shuffled, ranks(points, maximize)[rows])


@given(grids(min_n=1), st.data())
def test_duplicates_share_a_rank_and_change_no_other(case, data):
    points, maximize = case
    rows = data.draw(st.lists(st.integers(0, len(points) - 1), max_size=40))
    alone = ranks(points, maximize)
    assert torch.equal(ranks(torch.cat([points, points[rows]]), maximize), torch.cat([alone, alone[rows]]))


@given(grids(), st.lists(st.integers(-500, 500), min_size=7, max_size=7))
def test_scaling_an_objective_changes_nothing(case, exponents):
    points, maximize = case
    scales = torch.tensor([2.0**e for e in exponents[: points.shape[1]]], dtype=F64)
    assert torch.equal(ranks(points * scales, maximize), ranks(points, maximize))


@given(grids(), st.integers(0, 2**32))
def test_any_increasing_function_of_an_objective_changes_nothing(case, seed):
    points, maximize = case
    rng = np.random.default_rng(seed)
    stretched = points.clone()
    for column in stretched.T:
        values, places = column.unique(return_inverse=True)
        column[:] = torch.from_numpy(np.sort(rng.normal(scale=1e3, size=len(values))))[places]
    assert torch.equal(ranks(stretched, maximize), ranks(points, maximize))


@given(grids())
def test_maximize_equals_flipping_signs(case):
    points, maximize = case
    sign = torch.tensor([-1.0 if flip else 1.0 for flip in maximize], dtype=F64)
    assert torch.equal(ranks(points, maximize), ranks(points * sign))
    assert torch.equal(ranks(points, tuple(maximize)), ranks(points * sign))
    assert torch.equal(ranks(-points, True), ranks(points, False))


@given(grids())
def test_a_constant_objective_changes_nothing(case):
    points, maximize = case
    constant = torch.full((len(points), 1), 3.0, dtype=F64)
    assert torch.equal(ranks(torch.cat([constant, points], 1), [True, *maximize]), ranks(points, maximize))
    assert torch.equal(ranks(torch.cat([points, constant], 1), [*maximize, False]), ranks(points, maximize))


@given(grids(min_n=1))
def test_ranks_are_layers(case):
    points, _ = case
    got = ranks(points).numpy()
    assert set(got) == set(range(got.max() + 1))
    first = points[got == 0].numpy()
    assert not reference.dominates(first, first).any()


# Stated results for odd values.


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_infinities_are_ordinary_values(m):
    rng = np.random.default_rng(m)
    x = rng.choice([-INF, -1.0, 0.0, 1.0, INF], size=(150, m))
    assert ranks(torch.from_numpy(x)).tolist() == reference.non_dominated_sort(x).tolist()
    assert ranks(torch.from_numpy(x), True).tolist() == reference.non_dominated_sort(-x).tolist()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_negative_zero_is_zero(m):
    x = np.random.default_rng(m).choice([-0.0, 0.0, 1.0], size=(150, m))
    assert ranks(torch.from_numpy(x)).tolist() == reference.non_dominated_sort(x).tolist()
    assert ranks(torch.from_numpy(x)).tolist() == ranks(torch.from_numpy(np.abs(x))).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_denormals_are_numbers(dtype):
    tiny = 5e-324 if dtype == F64 else 1.401298464324817e-45
    points = torch.tensor([[tiny, 0.0], [0.0, 0.0], [-tiny, 0.0], [2 * tiny, -tiny]], dtype=dtype)
    assert ranks(points).tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_nan_in_any_coordinate_raises_by_default(m):
    for k in range(m):
        points = fronts((), 70, m)
        points[66, k] = NAN
        for options in ({}, {"nan": "raise"}, {"nan": None}):
            with pytest.raises(ValueError, match=r"(?i)nan"):
                ranks(points, **options)


def test_nan_names_the_row():
    points = fronts((2, 3), 9, 2)
    points[1, 2, 7, 1] = NAN
    with pytest.raises(ValueError, match="points") as error:
        ranks(points)
    assert {"1", "2", "7"} <= set(re.findall(r"\d+", str(error.value)))
    with pytest.raises(ValueError, match="7"):
        ranks(points[1, 2])


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_nan_rows_share_the_last_rank_when_nan_is_worst(m, maximize):
    for n in (2, 9, 65, 200):
        rng = np.random.default_rng(n)
        x = np.floor(3 * rng.random((n, m)))
        x[rng.random((n, m)) < 0.2 / m] = NAN
        x[0, m - 1] = NAN
        expected = reference.non_dominated_sort(x, maximize)
        assert ranks(torch.from_numpy(x), maximize, nan="worst").tolist() == expected.tolist(), n


def test_only_nan_rows_are_rank_zero():
    assert ranks([[NAN, 1.0], [NAN, NAN], [-INF, NAN]], nan="worst").tolist() == [0, 0, 0]
    assert ranks([[NAN]], nan="worst").tolist() == [0]


def test_nan_rows_of_one_front_do_not_touch_another():
    points = fronts((3,), 40, 3)
    clean = ranks(points)
    points[1, 5] = NAN
    got = ranks(points, nan="worst")
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert got[1, 5] == got[1].max()


def test_nan_worst_equals_raise_without_nan():
    points = fronts((4,), 70, 3)
    assert torch.equal(ranks(points, nan="worst"), ranks(points, nan="raise"))


# Constraints.


@given(violated_grids())
def test_less_violated_points_dominate_and_equally_violated_ones_compare_objectives(case):
    points, maximize, constraints = case
    got = ranks(points, maximize, constraints=constraints)
    assert got.dtype == torch.int32
    expected = reference.non_dominated_sort(points.numpy(), maximize, constraints=constraints.numpy())
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_amount_of_violation_is_ranked_by_itself(shape, m):
    for n in (64, 65, 1025, 3000):
        rng = np.random.default_rng(n)
        x, violation = torch.from_numpy(SHAPES[shape](rng.random((n, m)))), torch.from_numpy(rng.integers(0, 4, n))
        expected = torch.full((n,), -1, dtype=torch.int32)
        for amount in violation.unique():
            expected[violation == amount] = 1 + expected.max() + ranks(x[violation == amount])
        assert torch.equal(ranks(x, constraints=violation), expected), n


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("kind", ["one", "three", "all violated"])
def test_constrained_ranks_agree_with_evomo(kind, m):
    selection = pytest.importorskip("evomo.operators.selection")
    for n in (1, 2, 65, 150):
        rng = np.random.default_rng(n)
        x = torch.from_numpy(np.floor(8 * rng.random((n, m))))
        violations = (
            rng.random((n, 1)) if kind == "all violated" else rng.integers(-3, 3, (n, {"one": 1, "three": 3}[kind]))
        )
        violations = torch.from_numpy(violations).double()
        expected = selection.non_dominate_rank(x, violations.clamp(min=0))
        assert ranks(x, constraints=violations).tolist() == expected.tolist(), n


@given(grids(), st.sampled_from([-INF, -1.0, -0.0, 0.0]))
def test_satisfied_constraints_change_nothing(case, value):
    points, maximize = case
    expected = ranks(points, maximize)
    for shape in [(len(points),), (len(points), 0), (len(points), 1), (len(points), 3)]:
        satisfied = torch.full(shape, value, dtype=F64)
        assert torch.equal(ranks(points, maximize, constraints=satisfied), expected)


@given(grids(), st.sampled_from([1e-300, 1.0, INF]))
def test_equal_violations_change_nothing(case, value):
    points, maximize = case
    violated = torch.full((len(points), 2), value, dtype=F64)
    assert torch.equal(ranks(points, maximize, constraints=violated), ranks(points, maximize))


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 65, 1025, 5000])
def test_distinct_violations_are_the_ranks(n, m):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    assert torch.equal(ranks(fronts((), n, m), constraints=order + 1), order.int())
    assert torch.equal(ranks(fronts((), n, m), constraints=order), order.int())  # the only feasible point is first


def test_violations_are_summed_and_what_is_satisfied_makes_up_for_nothing():
    # total violations 3, 3, 2, 0
    constraints = [[1.0, 2.0, 0.0], [3.0, -9.0, -INF], [-1.0, 0.5, 1.5], [0.0, -1.0, -0.0]]
    points = [[2.0, 2.0], [1.0, 1.0], [9.0, 9.0], [9.0, 10.0]]
    assert ranks(points, constraints=constraints).tolist() == [3, 2, 1, 0]
    assert ranks(points, constraints=[3.0, 3.0, 2.0, -5.0]).tolist() == [3, 2, 1, 0]


def test_violations_are_summed_in_float64():
    constraints = torch.tensor([[2.0**24, 1.0], [2.0**24, 0.0]], dtype=torch.float32)
    for dtype in (torch.float32, F64):
        assert ranks(torch.zeros(2, 3, dtype=dtype), constraints=constraints).tolist() == [1, 0]
    tiny = torch.tensor([1.0 + 2**-52, 1.0], dtype=F64)
    assert ranks(torch.zeros(2, 3, dtype=torch.float32), constraints=tiny).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, F64])
def test_constraints_of_any_number_type_and_container_are_taken(dtype):
    points, constraints = fronts((), 4, 2), torch.tensor([[0, 3], [2, 0], [0, 0], [1, 1]], dtype=dtype)
    expected = ranks(points, constraints=constraints.double())
    for same in (constraints, constraints.numpy(), constraints.tolist(), constraints.T.contiguous().T):
        assert torch.equal(ranks(points, constraints=same), expected)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_constraints_of_any_strides_are_read_and_left_unchanged():
    points, constraints = fronts((3,), 70, 4), fronts((3,), 70, 2, seed=1).mul(8).round() - 4
    expected, copy = ranks(points, constraints=constraints), constraints.clone()
    array = constraints.numpy()[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    array.flags.writeable = False
    for same in (constraints, constraints.movedim(0, -1).contiguous().movedim(-1, 0), array):
        assert torch.equal(ranks(points, constraints=same), expected)
    assert torch.equal(constraints, copy)
    one = constraints[..., :1]
    assert torch.equal(ranks(points, constraints=one.expand(3, 70, 2)), ranks(points, constraints=one))
    assert torch.equal(ranks(points, constraints=one[..., 0].requires_grad_()), ranks(points, constraints=one))


@pytest.mark.parametrize("columns", [None, 1, 3])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_a_batch_with_constraints_equals_a_loop(m, columns):
    for n in (1, 9, 65):
        points = fronts((2, 3), n, m).mul(4).round()
        constraints = fronts((2, 3), n, columns or 1, seed=1).mul(5).round() - 3
        constraints = constraints if columns else constraints[..., 0]
        got = ranks(points, constraints=constraints)
        assert torch.equal(got, each(reference.non_dominated_sort, points, constraints=constraints))


def test_nan_in_constraints_raises_and_names_the_row():
    points, constraints = fronts((2, 3), 9, 2), fronts((2, 3), 9, 4)
    constraints[1, 2, 7, 3] = NAN
    for given_constraints in (constraints, constraints.sum(-1)):
        with pytest.raises(ValueError, match="constraints") as error:
            ranks(points, constraints=given_constraints)
        assert {"1", "2", "7"} <= set(re.findall(r"\d+", str(error.value)))
    with pytest.raises(ValueError, match=r"constraints.*7"):
        ranks(points[1, 2], constraints=constraints[1, 2], nan="raise")


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_nan_in_constraints_is_worst_as_nan_in_points_is(m):
    rng = np.random.default_rng(m)
    for n in (2, 65, 200):
        x, g = np.floor(3 * rng.random((n, m))), rng.integers(-1, 2, (n, 2)).astype(np.float64)
        g[rng.random((n, 2)) < 0.1] = NAN
        x[rng.random((n, m)) < 0.1 / m] = NAN
        expected = reference.non_dominated_sort(x, constraints=g)
        assert ranks(torch.from_numpy(x), constraints=g, nan="worst").tolist() == expected.tolist(), n
    assert ranks([[0.0, 1.0], [1.0, 0.0]], constraints=[NAN, NAN], nan="worst").tolist() == [0, 0]
    assert ranks([[0.0, 1.0], [1.0, 0.0]], constraints=[NAN, INF], nan="worst").tolist() == [1, 0]
    assert ranks([[0.0]], constraints=[[-INF, NAN]], nan="worst").tolist() == [0]


# Stopping early.


@given(violated_grids(), st.booleans(), st.integers(1, 45))
def test_stop_after_cuts_off_the_full_ranks(case, constrained, k):
    points, maximize, constraints = case
    options = {"constraints": constraints} if constrained else {}
    full = ranks(points, maximize, **options)
    got = ranks(points, maximize, stop_after=k, **options)
    assert got.tolist() == reference.stopped(full.numpy(), k).tolist()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_stopping_early_tells_the_first_fronts_apart(shape, m):
    for n in (64, 129, 1025, 3000):
        x = torch.from_numpy(SHAPES[shape](np.random.default_rng(n).random((n, m))))
        full = ranks(x)
        for k in (1, 2, n // 10, n // 2, n - 1, n, n + 1, sys.maxsize):
            got = ranks(x, stop_after=k)
            last = full.sort().values[min(k, n) - 1]  # the rank with which k points are ranked
            assert torch.equal(got, full.clamp(max=last + 1)), (n, k)


def test_stop_after_counts_points_of_whole_fronts():
    chain = [[0.0, 0.0], [3.0, 3.0], [1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    by_k = {1: [0, 1, 1, 1, 1], 2: [0, 2, 1, 2, 1], 3: [0, 2, 1, 2, 1], 4: [0, 3, 1, 2, 1], 5: [0, 3, 1, 2, 1]}
    for k, expected in by_k.items():
        assert ranks(chain, stop_after=k).tolist() == expected
    assert ranks(chain, stop_after=99).tolist() == [0, 3, 1, 2, 1]
    assert ranks(chain, stop_after=None).tolist() == [0, 3, 1, 2, 1]


def test_nan_rows_come_after_the_fronts_told_apart():
    points = [[NAN, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, NAN]]
    by_k = {1: [1, 0, 1, 1, 1], 2: [2, 0, 1, 2, 2], 3: [3, 0, 1, 2, 3], 4: [3, 0, 1, 2, 3], 9: [3, 0, 1, 2, 3]}
    for k, expected in by_k.items():
        assert ranks(points, stop_after=k, nan="worst").tolist() == expected
    assert ranks([[NAN, 0.0], [0.0, NAN]], stop_after=1, nan="worst").tolist() == [0, 0]


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_each_front_of_a_batch_stops_for_itself(m):
    rng = np.random.default_rng(m)
    n = 70
    points = torch.stack([torch.from_numpy(SHAPES[shape](rng.random((n, m)))) for shape in SHAPES])
    points[torch.from_numpy(rng.random((len(SHAPES), n, m)) < 0.05)] = NAN
    lengths = torch.tensor([n, 0, 1, 2, 64, 65, n, 33, 50, n, 69])[: len(SHAPES)]
    constraints = torch.from_numpy(rng.integers(-3, 2, (len(SHAPES), n, 2))).double()
    for k in (1, 5, 40, n):
        for options in ({}, {"lengths": lengths}, {"constraints": constraints}):
            options = options | {"stop_after": k}
            got = ranks(points, nan="worst", **options)
            assert torch.equal(got, each(reference.non_dominated_sort, points, **options)), (k, options.keys())


# Ragged sets: what counts is the first `lengths` rows, or the rows of a mask.

ONE_SET = ["non_dominated_sort", "is_non_dominated", "dominance_counts"]


@pytest.mark.parametrize("name", ONE_SET)
@given(case=ragged_grids())
def test_ragged_grids_with_nan_rows_follow_the_definition(name, case):
    points, maximize, options = case
    got = getattr(morlfast, name)(points, maximize=maximize, nan="worst", **options)
    assert got.tolist() == each(getattr(reference, name), points, maximize, **options).tolist()


@pytest.mark.parametrize("name", ONE_SET)
@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_padding_is_never_looked_at(name, m, dtype):
    n = 70
    points = fronts((2, 4), n, m).mul(8).round().to(dtype)
    lengths = torch.tensor([[0, 1, 2, 63], [64, 65, 69, 70]])
    mask = torch.rand(2, 4, n, generator=torch.Generator().manual_seed(m)) < 0.5
    mask[0, :2] = torch.tensor([[True], [False]])
    for options, kept in [({"lengths": lengths}, torch.arange(n) < lengths[..., None]), ({"mask": mask}, mask)]:
        expected = each(getattr(reference, name), points, **options)
        for padding in (NAN, -INF, INF, 0.0):
            padded = torch.where(kept[..., None], points, padding)
            got = getattr(morlfast, name)(padded, maximize=False, **options)
            assert torch.equal(got, expected), padding


@pytest.mark.parametrize("name", ONE_SET)
@pytest.mark.parametrize("m", [2, 3, 5])
def test_long_ragged_batches_equal_a_loop(name, m):
    n = 2100
    points = fronts((9,), n, m).mul(2 ** (12 // m)).round()
    lengths = torch.tensor([0, 1, 63, 64, 65, 1023, 1024, 2049, 2100])
    function = getattr(morlfast, name)
    got = function(points, maximize=True, lengths=lengths)
    outside = False if name == "is_non_dominated" else -1
    for i, length in enumerate(lengths):
        assert torch.equal(got[i, :length], function(points[i, :length], maximize=True))
        assert (got[i, length:] == outside).all()
    assert torch.equal(function(points, maximize=True, mask=torch.arange(n) < lengths[:, None]), got)


@pytest.mark.parametrize("name", ONE_SET)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_any_integers_containers_and_strides_are_taken(name, dtype):
    points, lengths = fronts((4,), 6, 3), torch.tensor([6, 0, 1, 4], dtype=dtype)
    function = getattr(morlfast, name)
    expected = function(points, maximize=False, lengths=lengths.long())
    for same in (
        lengths,
        lengths.numpy(),
        lengths.tolist(),
        torch.stack([lengths, lengths], 1)[:, 1],
        lengths.flip(0).numpy()[::-1],
    ):
        assert torch.equal(function(points, maximize=False, lengths=same), expected)
    three = torch.tensor(3, dtype=dtype)
    assert torch.equal(
        function(points, maximize=False, lengths=three.expand(4)),
        torch.stack([function(front, maximize=False, lengths=three) for front in points]),
    )


@pytest.mark.parametrize("name", ONE_SET)
def test_masks_of_any_containers_and_strides_are_taken_and_left_unchanged(name):
    points, mask = fronts((4,), 6, 3), torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    function, copy = getattr(morlfast, name), mask.clone()
    expected = function(points, maximize=False, mask=mask)
    for same in (mask.T.contiguous().T, mask.tolist(), mask.numpy(), mask.numpy()[:, ::-1].copy()[:, ::-1]):
        assert torch.equal(function(points, maximize=False, mask=same), expected)
    assert torch.equal(mask, copy)
    assert function(torch.zeros(3, 0, 2), maximize=False, mask=torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)


def test_constraints_stay_beside_the_rows_that_count():
    points, constraints = fronts((5,), 65, 3), fronts((5,), 65, 2, seed=1).mul(5).round() - 3
    lengths = torch.tensor([65, 0, 1, 40, 64])
    mask = torch.rand(5, 65, generator=torch.Generator().manual_seed(2)) < 0.7
    for options, kept in [({"lengths": lengths}, torch.arange(65) < lengths[:, None]), ({"mask": mask}, mask)]:
        hidden = torch.where(kept[..., None], constraints, NAN)
        for k in (None, 1, 20):
            got = ranks(points, constraints=hidden, stop_after=k, **options)
            expected = each(reference.non_dominated_sort, points, constraints=constraints, stop_after=k, **options)
            assert torch.equal(got, expected)
            assert torch.equal(
                ranks(points, constraints=hidden.clamp(min=0).sum(-1), stop_after=k, **options), expected
            )
        hidden[3, 6:, 1] = NAN
        first = int(kept[3].nonzero()[kept[3].nonzero() >= 6][0])
        with pytest.raises(ValueError, match="constraints") as error:
            ranks(points, constraints=hidden, **options)
        assert {"3", str(first)} <= set(re.findall(r"\d+", str(error.value)))


@pytest.mark.parametrize("name", ONE_SET)
def test_nan_names_the_row_of_the_caller_under_lengths_and_a_mask(name):
    points = fronts((5, 7), 12, 2)
    points[3, 6, 8, 1] = NAN
    lengths, mask = torch.full((5, 7), 12), torch.ones(5, 7, 12, dtype=torch.bool)
    mask[3, 6, :4] = False
    lengths[2] = 0
    for options in ({"lengths": lengths}, {"mask": mask}, {}):
        with pytest.raises(ValueError, match="points") as error:
            getattr(morlfast, name)(points, maximize=False, **options)
        assert {"3", "6", "8"} <= set(re.findall(r"\d+", str(error.value)))
    lengths[3, 6], mask[3, 6, 8] = 8, False
    for options in ({"lengths": lengths}, {"mask": mask}):
        getattr(morlfast, name)(points, maximize=False, **options)


# Lists of fronts.


@given(ragged_grids())
def test_fronts_are_the_rows_of_each_rank(case):
    points, maximize, options = case
    got = ranks(points, maximize, nan="worst", **options)
    lists = morlfast.fronts(got)
    assert isinstance(lists, list)
    assert all(rows.dtype == torch.int64 and rows.device == points.device for rows in lists)
    assert [rows.tolist() for rows in lists] == reference.fronts(got.numpy())


def test_fronts_of_a_batch_are_nested_lists():
    points = fronts((2, 3), 20, 2)
    got = ranks(points, lengths=torch.tensor([[20, 0, 1], [7, 20, 3]]))
    nested = morlfast.fronts(got)
    assert [len(lists) for lists in nested] == [3, 3]
    for i in range(2):
        for j in range(3):
            assert [rows.tolist() for rows in nested[i][j]] == reference.fronts(got[i, j].numpy())
    assert nested[0][1] == []


def test_fronts_of_nothing():
    assert morlfast.fronts(torch.empty(0, dtype=torch.int32)) == []
    assert morlfast.fronts(torch.full((5,), -1, dtype=torch.int32)) == []
    assert morlfast.fronts(torch.empty(2, 0, dtype=torch.int32)) == [[], []]
    assert morlfast.fronts(torch.empty(0, 4, dtype=torch.int32)) == []


@pytest.mark.parametrize("n", [1, 64, 3000])
def test_fronts_of_a_chain_are_its_points(n):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    lists = morlfast.fronts(order.int())
    assert torch.equal(torch.cat(lists), order.argsort())
    assert all(rows.shape == (1,) for rows in lists)


def test_fronts_take_ranks_of_any_integers_containers_and_strides():
    values = [2, 0, -1, 1, 0, 2]
    tensor = torch.tensor(values, dtype=torch.int32)
    for same in (
        tensor,
        tensor.long(),
        tensor.to(torch.int8),
        values,
        np.array(values),
        tensor.repeat_interleave(2)[::2],
    ):
        assert [rows.tolist() for rows in morlfast.fronts(same)] == [[1, 4], [3], [0, 5]]


# Non-dominated points.


def is_first(points, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.is_non_dominated(points, maximize=maximize, **options)


@pytest.mark.parametrize("deduplicate", [False, True])
@given(case=ragged_grids())
def test_non_dominated_points_of_ragged_grids_follow_the_definition(deduplicate, case):
    points, maximize, options = case
    options = options | {"deduplicate": deduplicate}
    got = is_first(points, maximize, nan="worst", **options)
    assert got.dtype == torch.bool
    assert got.tolist() == each(reference.is_non_dominated, points, maximize, **options).tolist()


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_around_a_word_has_the_non_dominated_points_of_the_definition(shape, m, dtype, deduplicate):
    for n in SIZES:
        x = SHAPES[shape](np.random.default_rng(n).random((n, m))).astype(dtype)
        expected = reference.is_non_dominated(x, deduplicate=deduplicate)
        assert is_first(torch.from_numpy(x), deduplicate=deduplicate).tolist() == expected.tolist(), n


@pytest.mark.parametrize("m", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_non_dominated_points_agree_with_moocore(shape, m, dtype):
    moocore = pytest.importorskip("moocore")
    for n in (1023, 1025, 3000):
        x = np.ascontiguousarray(SHAPES[shape](np.random.default_rng(n).random((n, m))), dtype=dtype)
        got = is_first(torch.from_numpy(x))
        assert got.tolist() == moocore.is_nondominated(x.astype(np.float64), keep_weakly=True).tolist(), n
        single = is_first(torch.from_numpy(x), deduplicate=True)
        _, lowest = np.unique(x, axis=0, return_index=True)  # the first row of equal ones
        assert torch.equal(single, got & torch.isin(torch.arange(n), torch.from_numpy(lowest))), n
        assert len(moocore.filter_dominated(x.astype(np.float64), keep_weakly=False)) == single.sum(), n


@given(grids())
def test_non_dominated_points_have_rank_zero(case):
    points, maximize = case
    assert torch.equal(is_first(points, maximize), ranks(points, maximize) == 0)
    assert torch.equal(is_first(-points, [not sense for sense in maximize]), is_first(points, maximize))


@given(grids(min_n=1), st.data())
def test_of_equal_points_the_lowest_row_stays(case, data):
    points, maximize = case
    rows = data.draw(st.lists(st.integers(0, len(points) - 1), max_size=40))
    single = is_first(points, maximize, deduplicate=True)
    repeated = is_first(torch.cat([points, points[rows]]), maximize, deduplicate=True)
    assert torch.equal(repeated, torch.cat([single, torch.zeros(len(rows), dtype=torch.bool)]))
    kept = points[single].tolist()
    assert len({tuple(p) for p in kept}) == len(kept)
    assert {tuple(p) for p in kept} == {tuple(p) for p in points[is_first(points, maximize)].tolist()}


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_zeros_of_both_signs_are_duplicates(m):
    x = np.random.default_rng(m).choice([-0.0, 0.0], size=(70, m))
    assert is_first(torch.from_numpy(x)).all()
    for points in (torch.from_numpy(x), torch.from_numpy(x).float()):
        assert is_first(points, deduplicate=True).nonzero().tolist() == [[0]]
        assert is_first(points, [True] + [False] * (m - 1), deduplicate=True).nonzero().tolist() == [[0]]


@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_infinities_are_duplicates_too(m):
    rng = np.random.default_rng(m)
    for values in ([INF], [-INF], [-INF, 0.0, INF], [0.0, INF]):
        x = rng.choice(values, size=(130, m))
        for deduplicate in (False, True):
            got = is_first(torch.from_numpy(x), deduplicate=deduplicate)
            assert got.tolist() == reference.is_non_dominated(x, deduplicate=deduplicate).tolist()


def test_a_nan_row_is_never_non_dominated():
    assert is_first([[NAN, 1.0], [NAN, -INF]], nan="worst").tolist() == [False, False]
    assert is_first([[NAN, 1.0], [5.0, 5.0]], nan="worst").tolist() == [False, True]
    assert is_first([[NAN]], nan="worst", deduplicate=True).tolist() == [False]


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_masks_of_a_batch_equal_a_loop(m, deduplicate):
    for n in (1, 6, 65):
        points = fronts((3, 4), n, m).mul(4).round()
        got = is_first(points, True, deduplicate=deduplicate)
        assert torch.equal(got, each(reference.is_non_dominated, points, True, deduplicate=deduplicate))


# Filtered sets.


def filtered(points, maximize=False, **options):
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.filter_non_dominated(points, maximize=maximize, **options)


@pytest.mark.parametrize("deduplicate", [False, True])
@given(case=ragged_grids())
def test_filtered_points_are_the_non_dominated_rows_in_order(deduplicate, case):
    points, maximize, options = case
    options = options | {"deduplicate": deduplicate}
    got = filtered(points, maximize, nan="worst", **options)
    rows = each(reference.is_non_dominated, points, maximize, **options).nonzero()[:, 0]
    assert torch.equal(got.rows, rows)
    assert torch.equal(got.points, points[rows])
    assert got.counts.shape == ()
    assert got.counts.item() == len(rows)
    assert (got.points.dtype, got.rows.dtype, got.counts.dtype) == (F64, torch.int64, torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_filtered_batches_are_padded_to_the_longest(m, dtype):
    points = fronts((2, 3), 33, m).mul(8).round().to(dtype)
    points[1] = points[1].floor_divide(4)
    lengths = torch.tensor([[33, 0, 1], [33, 20, 9]])
    for options in ({}, {"lengths": lengths}, {"deduplicate": True, "mask": points[..., 0] > 2}):
        got = filtered(points, True, **options)
        kept = each(reference.is_non_dominated, points, True, **options)
        longest = int(kept.sum(-1).max())
        assert torch.equal(got.counts, kept.sum(-1))
        assert got.points.shape == (2, 3, longest, m)
        assert got.rows.shape == (2, 3, longest)
        assert got.points.dtype == dtype
        for i in np.ndindex(2, 3):
            count = got.counts[i]
            assert torch.equal(got.rows[i][:count], kept[i].nonzero()[:, 0])
            assert torch.equal(got.points[i][:count], points[i][kept[i]])
            assert (got.rows[i][count:] == -1).all()
            assert got.points[i][count:].isnan().all()


def test_filtered_unpacks_into_points_rows_and_counts():
    points, rows, counts = filtered([[3.0, 3.0], [1.0, 3.0], [2.0, 2.0], [1.0, 3.0]])
    assert points.tolist() == [[1.0, 3.0], [2.0, 2.0], [1.0, 3.0]]
    assert rows.tolist() == [1, 2, 3]
    assert counts.item() == 3
    points, rows, counts = filtered([[3.0, 3.0], [1.0, 3.0], [2.0, 2.0], [1.0, 3.0]], [True, False], deduplicate=True)
    assert points.tolist() == [[3.0, 3.0], [2.0, 2.0]]  # in the caller's sense
    assert rows.tolist() == [0, 2]
    assert counts.item() == 2


@given(grids())
def test_filtering_again_changes_nothing(case):
    points, maximize = case
    once = filtered(points, maximize, deduplicate=True)
    twice = filtered(once.points, maximize, deduplicate=True)
    assert torch.equal(twice.points, once.points)
    assert torch.equal(twice.rows, torch.arange(len(once.rows)))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0, 4), (0, 5, 3), (2, 0, 5, 3), (0, 0, 2)])
def test_nothing_filtered_is_nothing(shape):
    got = filtered(torch.empty(shape, dtype=torch.float32))
    assert got.points.shape == (*shape[:-2], 0, shape[-1])
    assert got.rows.shape == (*shape[:-2], 0)
    assert torch.equal(got.counts, torch.zeros(shape[:-2], dtype=torch.int64))
    assert got.points.dtype == torch.float32


def test_filtering_only_nan_rows_leaves_nothing():
    got = filtered(torch.full((2, 3, 2), NAN), nan="worst")
    assert got.points.shape == (2, 0, 2)
    assert got.counts.tolist() == [0, 0]


def test_filtered_points_do_not_share_memory_with_the_set():
    points = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    filtered(points).points.zero_()
    assert points.tolist() == [[1.0, 2.0], [2.0, 1.0]]


# Dominance counts.


def counts(points, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.dominance_counts(points, maximize=maximize, **options)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_around_a_word_has_the_counts_of_the_definition(shape, m, dtype):
    for n in [*SIZES, 1025]:
        x = SHAPES[shape](np.random.default_rng(n).random((n, m))).astype(dtype)
        got = counts(torch.from_numpy(x))
        assert got.dtype == torch.int32
        assert got.tolist() == reference.dominance_counts(x).tolist(), n


@pytest.mark.parametrize("m", [2, 3, 5, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_counts_agree_with_pygmo(shape, m):
    pygmo = pytest.importorskip("pygmo")
    for n in (2, 300, 1100):
        x = SHAPES[shape](np.random.default_rng(n).random((n, m)))
        _, dominated, dominators, _ = pygmo.fast_non_dominated_sorting(x)
        assert counts(torch.from_numpy(x)).tolist() == dominators.tolist(), n
        assert counts(torch.from_numpy(x), True).tolist() == [len(rows) for rows in dominated], n


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_a_long_chain_counts_its_points(m):
    n = 5000
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    points = order.to(F64)[:, None].expand(n, m)
    assert torch.equal(counts(points), order.int())
    assert torch.equal(counts(points, True), (n - 1 - order).int())
    assert (counts(torch.zeros(n, m)) == 0).all()


@given(grids())
def test_what_dominates_is_counted_once_from_either_side(case):
    points, maximize = case
    dominators, dominated = counts(points, maximize), counts(points, [not sense for sense in maximize])
    assert dominators.sum() == dominated.sum()
    assert torch.equal(dominators == 0, is_first(points, maximize))


@given(grids(min_n=1), st.data())
def test_a_duplicate_counts_again(case, data):
    points, maximize = case
    row = data.draw(st.integers(0, len(points) - 1))
    alone = counts(points, maximize)
    more = morlfast.is_dominated_by(points, points[row : row + 1], maximize=maximize)
    assert torch.equal(counts(torch.cat([points, points[[row]]]), maximize), torch.cat([alone + more, alone[[row]]]))


@given(grids(), st.randoms(use_true_random=False))
def test_permuting_points_permutes_masks_and_counts(case, random):
    points, maximize = case
    rows = random.sample(range(len(points)), len(points))
    columns = random.sample(range(points.shape[1]), points.shape[1])
    shuffled, senses = points[rows][:, columns], [maximize[k] for k in columns]
    assert torch.equal(counts(shuffled, senses), counts(points, maximize)[rows])
    assert torch.equal(is_first(shuffled, senses), is_first(points, maximize)[rows])


def test_nan_rows_dominate_nothing_and_every_other_row_dominates_them():
    points = [[0.0, 0.0], [NAN, -1.0], [1.0, 1.0], [NAN, NAN], [INF, INF]]
    assert counts(points, nan="worst").tolist() == [0, 3, 1, 3, 2]
    assert counts(points, True, nan="worst").tolist() == [2, 3, 1, 3, 0]
    assert counts([[NAN], [NAN]], nan="worst").tolist() == [0, 0]


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_counts_of_a_batch_equal_a_loop(m):
    for n in (1, 7, 65, 130):
        points = fronts((3, 4), n, m)
        points[1] = (4 * points[1]).round()
        assert torch.equal(counts(points, True), each(reference.dominance_counts, points, True))


# Points dominated by another set.


def dominated_by(points, others, maximize=False, **options) -> torch.Tensor:
    points, others = [x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=F64) for x in (points, others)]
    return morlfast.is_dominated_by(points, others, maximize=maximize, **options)


@pytest.mark.parametrize("weakly", [False, True])
@given(case=ragged_grids(), count=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_points_dominated_by_a_ragged_grid_follow_the_definition(weakly, case, count, seed):
    others, maximize, options = case
    rng = np.random.default_rng(seed)
    points = rng.integers(-1, 6, (count, others.shape[1])).astype(np.float64)
    points[rng.random(points.shape) < 0.02] = NAN
    got = dominated_by(torch.from_numpy(points), others, maximize, weakly=weakly, nan="worst", **options)
    assert got.dtype == torch.bool
    own = {"length" if name == "lengths" else name: value.numpy() for name, value in options.items()}
    expected = reference.is_dominated_by(points, others.numpy(), maximize, weakly=weakly, **own)
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("weakly", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_points_dominated_by_sets_of_any_size_follow_the_definition(shape, m, dtype, weakly):
    for n, k in [(1, 1), (1, 65), (65, 1), (63, 64), (64, 129), (257, 63), (130, 1025), (1025, 130)]:
        x = SHAPES[shape](np.random.default_rng(n).random((n + k, m))).astype(dtype)
        got = dominated_by(torch.from_numpy(x[:n]), torch.from_numpy(x[n:]), weakly=weakly)
        assert got.tolist() == reference.is_dominated_by(x[:n], x[n:], weakly=weakly).tolist(), (n, k)


@given(grids())
def test_a_set_dominates_all_but_its_non_dominated_points(case):
    points, maximize = case
    assert torch.equal(dominated_by(points, points, maximize), ~is_first(points, maximize))
    assert dominated_by(points, points, maximize, weakly=True).all()


@given(grids(), st.booleans(), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_dominated_rows_and_the_order_of_others_change_nothing(case, weakly, seed, random):
    others, maximize = case
    points = torch.from_numpy(np.random.default_rng(seed).integers(-1, 6, (20, others.shape[1]))).double()
    rows = random.sample(range(len(others)), len(others))
    expected = dominated_by(points, others, maximize, weakly=weakly)
    assert torch.equal(dominated_by(points, others[rows], maximize, weakly=weakly), expected)
    best = filtered(others, maximize, deduplicate=True).points
    assert torch.equal(dominated_by(points, best, maximize, weakly=weakly), expected)


@pytest.mark.parametrize("weakly", [False, True])
def test_equal_points_dominate_weakly_only(weakly):
    equal = [[1.0, -0.0], [INF, -INF]]
    assert dominated_by([[1.0, 0.0], [INF, -INF], [1.0, -1.0]], equal, weakly=weakly).tolist() == [
        weakly,
        weakly,
        False,
    ]


@pytest.mark.parametrize("weakly", [False, True])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_batches_of_points_and_others_broadcast(m, weakly):
    points, others = fronts((2, 1), 9, m).mul(4).round(), fronts((2, 3), 5, m, seed=1).mul(4).round() + 1
    lengths = torch.tensor([[5, 0, 1], [2, 4, 5]])
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    for options in ({}, {"lengths": lengths}, {"mask": mask}):
        got = dominated_by(points, others, weakly=weakly, **options)
        assert got.shape == (2, 3, 9)
        for i, j in np.ndindex(2, 3):
            own = {name: value[i, j] for name, value in options.items()}
            assert torch.equal(got[i, j], dominated_by(points[i, 0], others[i, j], weakly=weakly, **own))
            own = {"length" if name == "lengths" else name: value.numpy() for name, value in own.items()}
            expected = reference.is_dominated_by(points[i, 0].numpy(), others[i, j].numpy(), weakly=weakly, **own)
            assert got[i, j].tolist() == expected.tolist()
    one_for_all = dominated_by(points, others[0, 0], weakly=weakly)
    assert torch.equal(one_for_all, dominated_by(points, others[0, 0].expand(2, 1, 5, m), weakly=weakly))
    many_sets = dominated_by(points[0, 0], others, weakly=weakly)
    assert torch.equal(many_sets, dominated_by(points[0, 0].expand(2, 3, 9, m), others, weakly=weakly))


def test_an_empty_set_dominates_nothing():
    points = torch.tensor([[1.0, 2.0], [NAN, 0.0]])
    for options in ({}, {"weakly": True}):
        assert dominated_by(points, torch.empty(0, 2), nan="worst", **options).tolist() == [False, False]
        assert dominated_by(points, points, nan="worst", lengths=torch.tensor(0), **options).tolist() == [False, False]
        nobody = torch.zeros(2, dtype=torch.bool)
        assert dominated_by(points, points, nan="worst", mask=nobody, **options).tolist() == [False, False]
    assert dominated_by(torch.empty(0, 2), points[:1]).shape == (0,)
    assert dominated_by(torch.empty(4, 0, 2), torch.empty(3, 1, 0, 2)).shape == (3, 4, 0)
    assert dominated_by(torch.empty(0, 5, 2), torch.zeros(1, 7, 2)).shape == (0, 5)


def test_nan_rows_of_either_set():
    nan_rows, others = (
        torch.tensor([[NAN, -INF], [0.0, 0.0]], dtype=F64),
        torch.tensor([[NAN, -1.0], [INF, INF]], dtype=F64),
    )
    for weakly in (False, True):
        assert dominated_by(nan_rows, others, weakly=weakly, nan="worst").tolist() == [True, False]
        assert dominated_by(nan_rows, others[:1], weakly=weakly, nan="worst").tolist() == [False, False]
        assert dominated_by(nan_rows, nan_rows[:1], weakly=weakly, nan="worst").tolist() == [False, False]
        assert dominated_by(nan_rows, others, weakly=weakly, nan="worst", lengths=torch.tensor(1)).tolist() == [
            False,
            False,
        ]


def test_nan_names_the_set_and_the_row():
    points, others = fronts((2, 3), 9, 2), fronts((2, 3), 12, 2)
    points[1, 2, 7, 1] = NAN
    with pytest.raises(ValueError, match="points") as error:
        dominated_by(points, others)
    assert {"1", "2", "7"} <= set(re.findall(r"\d+", str(error.value)))
    others[0, 1, 11, 0] = NAN
    with pytest.raises(ValueError, match="others") as error:
        dominated_by(fronts((2, 3), 9, 2), others)
    assert {"0", "1", "11"} <= set(re.findall(r"\d+", str(error.value)))
    assert dominated_by(fronts((2, 3), 9, 2), others, lengths=torch.full((2, 3), 11)).shape == (2, 3, 9)


def test_sets_of_two_dtypes_are_compared_without_rounding():
    above = 1.0 + 2**-52
    wide, narrow = torch.tensor([[above, above]], dtype=F64), torch.ones(1, 2, dtype=torch.float32)
    assert dominated_by(wide, narrow).tolist() == [True]
    assert dominated_by(narrow, wide, weakly=True).tolist() == [False]
    assert dominated_by(torch.tensor([[1, 2]]), narrow).tolist() == [True]
    assert morlfast.is_dominated_by([[1.0, 2.0]], np.ones((3, 2), dtype=np.float32), maximize=False).tolist() == [True]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("m", [1, 3, 5])
def test_both_sets_of_any_strides(m, dtype):
    points, others = fronts((3,), 37, m).to(dtype), fronts((3,), 20, m, seed=1).to(dtype)
    expected = dominated_by(points, others)

    def views(x):
        wide = torch.full((*x.shape[:-1], 2 * m + 1), NAN, dtype=dtype)
        wide[..., 1::2] = x
        return [
            x.transpose(-1, -2).contiguous().transpose(-1, -2),
            wide[..., 1::2],
            x.movedim(0, -1).contiguous().movedim(-1, 0),
        ]

    for view in views(points):
        assert torch.equal(dominated_by(view, others), expected)
    for view in views(others):
        assert torch.equal(dominated_by(points, view), expected)
    assert torch.equal(dominated_by(points, others[:1, :1].expand(3, 70, m)), dominated_by(points, others[0, :1]))


# Every function of the family.

FAMILY = {
    "non_dominated_sort": lambda z, **options: morlfast.non_dominated_sort(z, **options),
    "is_non_dominated": lambda z, **options: morlfast.is_non_dominated(z, **options),
    "filter_non_dominated": lambda z, **options: morlfast.filter_non_dominated(z, **options).rows,
    "dominance_counts": lambda z, **options: morlfast.dominance_counts(z, **options),
    "is_dominated_by": lambda z, **options: morlfast.is_dominated_by(z, z, **options),
}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("maximize", [False, True, "mixed"])
def test_the_family_leaves_its_input_unchanged(name, m, maximize):
    points = fronts((4,), 70, m)
    copy = points.clone()
    FAMILY[name](points, maximize=[k % 2 == 0 for k in range(m)] if maximize == "mixed" else maximize)
    assert torch.equal(points, copy)
    assert points._version == 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_the_family_takes_arrays_reversed_strided_and_read_only(name, dtype):
    x = np.random.default_rng(0).integers(0, 5, (70, 3)).astype(dtype)
    expected = FAMILY[name](torch.from_numpy(x).double(), maximize=False)
    read_only = x.copy()
    read_only.flags.writeable = False
    reversed_twice = x[::-1, ::-1].copy()[::-1, ::-1]
    for same in (x, np.asfortranarray(x), read_only, reversed_twice, np.repeat(x, 2, axis=0)[::2], x.tolist()):
        assert torch.equal(FAMILY[name](same, maximize=False), expected)
    assert torch.equal(FAMILY[name](x[::-1], maximize=False), FAMILY[name](x[::-1].copy(), maximize=False))


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_takes_tensors_that_require_grad_and_gives_none(name):
    assert not FAMILY[name](fronts((), 9, 2).requires_grad_(), maximize=False).requires_grad


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_takes_senses_of_any_container(name):
    points, senses = fronts((), 30, 3), [True, False, True]
    expected = FAMILY[name](torch.stack([-points[:, 0], points[:, 1], -points[:, 2]], 1), maximize=False)
    for same in (senses, tuple(senses), np.array(senses), torch.tensor(senses)):
        assert torch.equal(FAMILY[name](points, maximize=same), expected)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_the_family_takes_infinities_and_zeros_of_both_signs(name, m):
    z = torch.from_numpy(np.random.default_rng(m).choice([-INF, -1.0, -0.0, 0.0, 1.0, INF], size=(150, m)))
    order = {-INF: -2.0, -1.0: -1.0, 0.0: 0.0, 1.0: 1.0, INF: 2.0}
    finite = torch.tensor([[order[x] for x in row] for row in z.tolist()], dtype=F64)
    for dtype in (torch.float32, F64):
        assert torch.equal(FAMILY[name](z.to(dtype), maximize=False), FAMILY[name](finite, maximize=False))


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_does_not_depend_on_the_number_of_threads(name):
    points = [fronts((), 4000, 5), fronts((300,), 20, 3), fronts((3,), 900, 2)]
    expected = [FAMILY[name](z, maximize=False) for z in points]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert all(torch.equal(FAMILY[name](z, maximize=False), e) for z, e in zip(points, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("shape", [(0, 2), (0, 1), (3, 0, 4), (0, 5, 3), (2, 0, 5, 3), (0, 0, 2)])
def test_the_family_gives_nothing_for_nothing(name, shape):
    got = FAMILY[name](torch.empty(shape, dtype=F64), maximize=False)
    assert got.shape == ((*shape[:-2], 0) if name == "filter_non_dominated" else shape[:-1])


# Errors.


@pytest.mark.parametrize("points", ["front", None, object(), [["a", "b"]]])
def test_points_must_be_numbers(points):
    with pytest.raises(TypeError, match="points"):
        morlfast.non_dominated_sort(points, maximize=False)


@pytest.mark.parametrize("shape", [(), (4,), (3, 0), (0, 0), (2, 3, 0)])
def test_points_must_have_rows_and_objectives(shape):
    with pytest.raises(ValueError, match="points"):
        ranks(torch.zeros(shape, dtype=F64))


def test_maximize_is_required():
    with pytest.raises(TypeError, match="maximize"):
        morlfast.non_dominated_sort(torch.zeros(3, 2))


@pytest.mark.parametrize("maximize", ["yes", None, 0.5, ["yes", "no"], [None, True]])
def test_maximize_must_be_bool(maximize):
    with pytest.raises(TypeError, match="maximize"):
        ranks([[0.0, 1.0]], maximize)


@pytest.mark.parametrize("maximize", [[], [True], [True, False, True]])
def test_maximize_must_have_one_entry_per_objective(maximize):
    with pytest.raises(ValueError, match=rf"maximize.*{len(maximize)}"):
        ranks([[0.0, 1.0]], maximize)


@pytest.mark.parametrize("nan", ["ignore", "", 0, True])
def test_nan_must_be_a_policy(nan):
    with pytest.raises((TypeError, ValueError), match="nan"):
        ranks([[0.0, 1.0]], nan=nan)


@pytest.mark.parametrize("columns", ["t, n - t, t", "t, t, n - t", "n - t, t, noisy t"])
def test_long_staircases_have_the_ranks_of_moocore(columns):
    # The third objective repeats another: staircases as long as the front, many blocks of steps.
    moocore = pytest.importorskip("moocore")
    n = 6000
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(n, dtype=torch.float64)
    noisy = t + 30 * torch.rand(n, dtype=torch.float64, generator=generator)
    named = {"t": t, "n - t": n - t, "noisy t": noisy}
    points = torch.stack([named[name] for name in columns.split(", ")], dim=1)
    points = torch.cat([points, points[::7] + 40, points[::3] - 20])
    points = points[torch.randperm(len(points), generator=generator)]
    ranks = morlfast.non_dominated_sort(points, maximize=False)
    assert ranks.tolist() == moocore.pareto_rank(points.numpy()).tolist()


@pytest.mark.parametrize("name", ["non_dominated_sort", "is_non_dominated", "dominance_counts", "is_dominated_by"])
def test_many_empty_fronts_cost_nothing(name):
    others = (torch.zeros(5, 3),) if name == "is_dominated_by" else ()
    assert getattr(morlfast, name)(torch.empty(10**12, 0, 3), *others, maximize=False).shape == (10**12, 0)


# Errors of the whole family; in is_dominated_by, lengths and masks are those of the other set.


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_names_what_is_wrong_with_points_and_senses(name):
    for points in ("front", None, [["a", "b"]], torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2).bool()):
        with pytest.raises(TypeError, match="points"):
            FAMILY[name](points, maximize=False)
    for shape in [(), (4,), (3, 0), (2, 3, 0)]:
        with pytest.raises(ValueError, match="points"):
            FAMILY[name](torch.zeros(shape), maximize=False)
    with pytest.raises(TypeError, match="maximize"):
        FAMILY[name](torch.zeros(3, 2))
    for maximize in ("yes", None, 0.5, [None, True]):
        with pytest.raises(TypeError, match="maximize"):
            FAMILY[name](torch.zeros(3, 2), maximize=maximize)
    for maximize in ([], [True], [True, False, True]):
        with pytest.raises(ValueError, match=rf"maximize.*{len(maximize)}"):
            FAMILY[name](torch.zeros(3, 2), maximize=maximize)
    for nan in ("ignore", "", 0):
        with pytest.raises((TypeError, ValueError), match="nan"):
            FAMILY[name](torch.zeros(3, 2), maximize=False, nan=nan)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_names_the_row_with_a_nan(name):
    points = fronts((4, 3), 9, 5)
    points[3, 2, 7, 4] = NAN
    for policy in (None, "raise"):
        with pytest.raises(ValueError, match="NaN") as error:
            FAMILY[name](points, maximize=[True, False, False, False, True], nan=policy)
        assert {"3", "2", "7"} <= set(re.findall(r"\d+", str(error.value)))


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_names_lengths_and_masks(name):
    points = fronts((4,), 3, 2)
    for wrong in (torch.ones(4), torch.ones(4, dtype=torch.complex64), torch.ones(4, dtype=torch.bool), ["a"] * 4):
        with pytest.raises(TypeError, match="lengths"):
            FAMILY[name](points, maximize=False, lengths=wrong)
    for shape in [(), (3,), (4, 1), (1,), (4, 3)]:
        with pytest.raises(ValueError, match="lengths"):
            FAMILY[name](points, maximize=False, lengths=torch.ones(shape, dtype=torch.int64))
    for length in (-1, 4, 2**31, -(2**63), 2**62):
        with pytest.raises(ValueError, match="lengths"):
            FAMILY[name](points, maximize=False, lengths=torch.tensor([0, 3, length, 1]))
    for wrong in (torch.ones(4, 3), torch.ones(4, 3, dtype=torch.uint8), [["a"]]):
        with pytest.raises(TypeError, match="mask"):
            FAMILY[name](points, maximize=False, mask=wrong)
    for shape in [(), (4,), (4, 2), (4, 3, 2), (1, 3)]:
        with pytest.raises(ValueError, match="mask"):
            FAMILY[name](points, maximize=False, mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"lengths.*mask|mask.*lengths"):
        FAMILY[name](points, maximize=False, lengths=torch.ones(4, dtype=torch.int64), mask=torch.ones(4, 3).bool())
    with pytest.raises(ValueError, match="lengths"):
        FAMILY[name](points, maximize=False, lengths=torch.ones(4, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="mask"):
        FAMILY[name](points, maximize=False, mask=torch.ones(4, 3, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("shape", [(), (3,), (4,), (4, 2), (1, 3), (4, 1, 2), (1, 3, 2), (4, 3, 2, 1)])
def test_constraints_must_have_the_rows_of_the_points(shape):
    with pytest.raises(ValueError, match="constraints"):
        ranks(fronts((4,), 3, 2), constraints=torch.zeros(shape))


@pytest.mark.parametrize("wrong", ["g", object(), torch.ones(3).bool(), torch.ones(3).half(), torch.ones(3) + 1j])
def test_constraints_must_be_numbers(wrong):
    with pytest.raises(TypeError, match="constraints"):
        ranks(fronts((), 3, 2), constraints=wrong)


def test_constraints_must_be_on_the_device_of_the_points():
    with pytest.raises(ValueError, match="constraints"):
        ranks(fronts((), 3, 2), constraints=torch.zeros(3, device="meta"))


@pytest.mark.parametrize("k", [0, -1, -(2**63)])
def test_stop_after_must_be_positive(k):
    with pytest.raises(ValueError, match=rf"stop_after.*{k}"):
        ranks(fronts((), 3, 2), stop_after=k)


@pytest.mark.parametrize("k", [True, False, 1.0, 2.5, "3", [1], NAN])
def test_stop_after_must_be_an_int(k):
    with pytest.raises(TypeError, match="stop_after"):
        ranks(fronts((), 3, 2), stop_after=k)


def test_stop_after_may_be_any_integer_type():
    chain = torch.arange(4.0)[:, None]
    for k in (np.int64(2), np.uint8(2), torch.tensor(2).item()):
        assert ranks(chain, stop_after=k).tolist() == [0, 1, 2, 2]


def test_the_other_set_is_named():
    points = torch.zeros(3, 2)
    for wrong in ("front", None, torch.ones(2, 2, dtype=torch.float16)):
        with pytest.raises(TypeError, match="others"):
            morlfast.is_dominated_by(points, wrong, maximize=False)
    for shape in [(), (2,), (3, 1), (3, 3), (3, 0), (4, 3, 1)]:
        with pytest.raises(ValueError, match="others"):
            morlfast.is_dominated_by(points, torch.zeros(shape), maximize=False)
    with pytest.raises(ValueError, match="others"):
        morlfast.is_dominated_by(points, torch.zeros(3, 2, device="meta"), maximize=False)
    with pytest.raises(ValueError, match=r"points|others"):
        morlfast.is_dominated_by(torch.zeros(2, 3, 2), torch.zeros(3, 3, 2), maximize=False)


@pytest.mark.parametrize("name", ["is_non_dominated", "filter_non_dominated", "is_dominated_by"])
@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_switches_must_be_bool(name, wrong):
    switch = "weakly" if name == "is_dominated_by" else "deduplicate"
    with pytest.raises(TypeError, match=switch):
        FAMILY[name](torch.zeros(3, 2), maximize=False, **{switch: wrong})


@pytest.mark.parametrize("wrong", ["ranks", None, torch.zeros(3), torch.zeros(3).bool(), 0.5])
def test_fronts_need_integer_ranks(wrong):
    with pytest.raises(TypeError, match="ranks"):
        morlfast.fronts(wrong)


def test_fronts_need_a_dimension_of_rows():
    with pytest.raises(ValueError, match="ranks"):
        morlfast.fronts(torch.tensor(0))


@pytest.mark.parametrize("noise", [0.5, 2.0, 50.0])
def test_many_correlated_objectives_follow_the_definition(noise):
    points = torch.arange(700.0, dtype=torch.float64)[:, None] + noise * torch.rand(700, 20, dtype=torch.float64)
    ranks = morlfast.non_dominated_sort(points, maximize=False)
    assert ranks.tolist() == reference.non_dominated_sort(points.numpy()).tolist()


@pytest.mark.parametrize("name", ["non_dominated_sort", "is_non_dominated", "dominance_counts"])
def test_masks_compile_without_a_break(name):
    points, mask = torch.rand(20, 3, dtype=torch.float64), torch.rand(20) > 0.3
    function = getattr(morlfast, name)
    compiled = torch.compile(lambda z, m: function(z, maximize=True, mask=m), fullgraph=True, backend="eager")
    assert torch.equal(compiled(points, mask), function(points, maximize=True, mask=mask))


@pytest.mark.parametrize("name", ["non_dominated_sort", "is_non_dominated", "dominance_counts"])
def test_lengths_of_empty_sets_are_checked(name):
    with pytest.raises(ValueError, match="lengths"):
        getattr(morlfast, name)(torch.ones(2, 0, 2), maximize=True, lengths=torch.tensor([0, -1]))


def test_bools_are_no_constraints():
    for bools in ([True, False], torch.tensor([True, False])):
        with pytest.raises(TypeError, match="constraints"):
            morlfast.non_dominated_sort(torch.rand(2, 2), maximize=True, constraints=bools)


def test_ranks_beyond_the_points_are_refused():
    with pytest.raises(ValueError, match="ranks"):
        morlfast.fronts(torch.tensor([0, 2**40]))
