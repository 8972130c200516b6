"""non_dominated_sort: ranks by definition, every stated edge case, and what the error messages name."""

from __future__ import annotations

import math
import re

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
}
SIZES = [1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_around_a_word_has_the_ranks_of_the_definition(shape, m):
    for n in SIZES:
        x = SHAPES[shape](np.random.default_rng(n).random((n, m)))
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
    assert not reference.dominates(first[:, None], first[None]).any()


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


def test_many_empty_fronts_cost_nothing():
    assert morlfast.non_dominated_sort(torch.empty(10**12, 0, 3), maximize=False).shape == (10**12, 0)
