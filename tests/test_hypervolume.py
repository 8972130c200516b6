"""hypervolume: values, gradients, every stated edge case, and what the error messages name."""

from __future__ import annotations

import math
import re

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import hypervolume as reference

F64 = torch.float64
INF = math.inf
NAN = math.nan


def hv(points, ref_point, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.hypervolume(points, ref_point, maximize=maximize, **options)


def fronts(batch: tuple[int, ...], n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*batch, n, m, generator=torch.Generator().manual_seed(seed), dtype=F64)


@st.composite
def grids(draw, min_n: int = 0, max_n: int = 12) -> tuple[torch.Tensor, list[int], list[bool]]:
    """A front of small integers full of ties, some on or beyond the reference point; mixed senses."""
    m = draw(st.integers(1, 3))
    n = draw(st.integers(min_n, max_n))
    side = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(st.integers(-1, side + 1), min_size=m, max_size=m), min_size=n, max_size=n))
    maximize = draw(st.lists(st.booleans(), min_size=m, max_size=m))
    ref = [0 if flip else side for flip in maximize]
    return torch.tensor(rows, dtype=F64).reshape(n, m), ref, maximize


# Values.


@given(grids())
def test_integer_grids_equal_the_counted_cells_exactly(case):
    points, ref, maximize = case
    assert hv(points, ref, maximize).item() == reference.hypervolume(points.tolist(), ref, maximize)


@given(st.integers(1, 3), st.integers(0, 8), st.randoms(use_true_random=False))
def test_real_fronts_match_exact_arithmetic(m, n, random):
    points = [[random.random() for _ in range(m)] for _ in range(n)]
    ref = [random.uniform(0.5, 1.0) for _ in range(m)]
    exact = float(reference.hypervolume(points, ref))
    got = hv(torch.tensor(points, dtype=F64).reshape(n, m), torch.tensor(ref, dtype=F64)).item()
    assert got == pytest.approx(exact, rel=1e-13, abs=1e-15)


SHAPES = {
    "spherical": lambda x: 1 - x / np.linalg.norm(x, axis=1, keepdims=True),
    "linear": lambda x: x / x.sum(1, keepdims=True),
    "convex": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "cloud": lambda x: x,
    "ties": lambda x: np.round(8 * x) / 8,
    "curve": lambda x: np.hstack([x[:, :1], np.repeat(1 - x[:, :1], x.shape[1] - 1, axis=1)]),
}
SIZES = [1, 2, 3, 5, 31, 63, 64, 65, 127, 128, 129, 1000]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [2, 3])
def test_agrees_with_moocore(shape, m):
    moocore = pytest.importorskip("moocore")
    for n in SIZES:
        x = SHAPES[shape](np.random.default_rng(n).random((n, m)) + 1e-3)
        ref = np.full(m, 1.0)
        got = hv(torch.from_numpy(x), torch.from_numpy(ref)).item()
        assert got == pytest.approx(moocore.hypervolume(x, ref=ref), rel=1e-12, abs=1e-15), n


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [2, 3])
def test_agrees_with_pygmo(shape, m):
    pygmo = pytest.importorskip("pygmo")
    for n in SIZES:
        x = SHAPES[shape](np.random.default_rng(n).random((n, m)) + 1e-3)
        ref = x.max(0) + 0.125  # pygmo takes no point on or beyond the reference point
        got = hv(torch.from_numpy(x), torch.from_numpy(ref)).item()
        assert got == pytest.approx(pygmo.hypervolume(x).compute(ref), rel=1e-12), n


def test_one_objective_is_the_gap_to_the_best():
    assert hv([[3.0], [1.5], [9.0]], 4.0).item() == 2.5
    assert hv([[3.0], [1.5], [9.0]], 4.0, maximize=True).item() == 5.0
    assert hv([[5.0]], 4.0).item() == 0.0


def test_a_large_offset_costs_no_accuracy():
    unit = fronts((), 40, 3, seed=3).float()
    points = unit + 1000
    exact = hv(points.double(), 1001.0)
    assert torch.equal(hv(points, 1001.0), exact.float())


# Dtypes, strides and containers.


@pytest.mark.parametrize("m", [1, 2, 3])
def test_float32_is_widened_then_computed_in_float64(m):
    points = fronts((6,), 33, m).float()
    ref = torch.full((m,), 0.9)
    got = hv(points, ref)
    assert got.dtype == torch.float32
    assert torch.equal(got, hv(points.double(), ref.double()).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_become_float64(dtype):
    points = torch.tensor([[1, 3], [2, 2], [3, 1]], dtype=dtype)
    got = hv(points, 4)
    assert got.dtype == F64
    assert got.item() == 6.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_a_type_error(dtype):
    with pytest.raises(TypeError, match="points"):
        hv(torch.ones(2, 2, dtype=dtype), 2.0)


def test_lists_and_arrays_are_taken():
    rows = [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]
    for points in (rows, np.array(rows), np.array(rows, dtype=np.float32), np.array(rows, dtype=np.int64)):
        assert morlfast.hypervolume(points, [4.0, 4.0], maximize=False).item() == 6.0
    for ref in (4, 4.0, [4, 4], (4.0, 4.0), np.array([4.0, 4.0]), torch.tensor(4.0), torch.tensor([4, 4])):
        assert hv(rows, ref).item() == 6.0


def strided_copies(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values under every layout that a caller may bring."""
    *batch, n, m = x.shape
    padded = torch.full((*batch, 2 * n + 1, m + 2), NAN, dtype=x.dtype)
    padded[..., 1::2, 1 : m + 1] = x
    return {
        "contiguous": x.contiguous(),
        "points transposed": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "every second row of a slice": padded[..., 1::2, 1 : m + 1],
        "offset storage": torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    }


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_strides_give_the_same_bits(m, dtype):
    x = fronts((3, 2), 9, m).to(dtype)
    expected = hv(x.contiguous(), 0.9)
    for name, view in strided_copies(x).items():
        assert torch.equal(view, x), name
        assert torch.equal(hv(view, 0.9), expected), name


def test_an_expanded_batch_is_taken_without_a_copy_in_the_way():
    x = fronts((), 9, 3)
    expanded = x.expand(4, 5, 9, 3)
    assert torch.equal(hv(expanded, 1.0), hv(x, 1.0).expand(4, 5))
    one_point = torch.tensor([[0.5, 0.25]], dtype=F64).expand(7, 2)
    assert hv(one_point, 1.0).item() == 0.375


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_memory_map_is_only_read(tmp_path):
    x = np.random.default_rng(0).random((50, 3))
    x.tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", dtype=np.float64, mode="r", shape=x.shape)
    assert torch.equal(hv(torch.from_numpy(mapped), 1.0), hv(torch.from_numpy(x), 1.0))
    assert torch.equal(morlfast.hypervolume(mapped, 1.0, maximize=False), hv(torch.from_numpy(x), 1.0))


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("maximize", [False, True])
def test_inputs_are_left_unchanged(m, maximize):
    points, ref = fronts((4,), 20, m), torch.full((4, m), 0.5, dtype=F64)
    lengths = torch.tensor([20, 0, 7, 1])
    copies = [x.clone() for x in (points, ref, lengths)]
    points.requires_grad_()
    hv(points, ref, maximize, lengths=lengths).sum().backward()
    for x, copy in zip((points, ref, lengths), copies, strict=True):
        assert torch.equal(x, copy)
        assert x._version == 0


# Batches and ragged lengths.


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_batch_equals_a_loop_bitwise(m):
    points = fronts((4, 5), 17, m)
    ref = fronts((4, 5), 1, m, seed=1).squeeze(-2) + 0.25
    got = hv(points, ref)
    assert got.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            assert torch.equal(got[i, j], hv(points[i, j], ref[i, j]))


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (4, 1, 3), (1, 5, 3), (5, 3), (4, 5, 3)])
def test_the_reference_point_broadcasts_over_the_batch(shape):
    points = fronts((4, 5), 6, 3)
    ref = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.25
    full = ref.expand(4, 5, 3)
    assert torch.equal(hv(points, ref), hv(points, full.contiguous()))


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 4)])
def test_an_empty_batch_gives_an_empty_result(batch):
    assert hv(torch.empty(*batch, 5, 2, dtype=F64), 1.0).shape == batch


@pytest.mark.parametrize("m", [1, 2, 3])
def test_an_empty_front_has_no_volume(m):
    assert hv(torch.empty(0, m, dtype=F64), 1.0).item() == 0.0
    assert torch.equal(hv(torch.empty(2, 3, 0, m), 1.0), torch.zeros(2, 3))
    assert torch.equal(hv(torch.empty(0, 0, m), 1.0), torch.empty(0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_lengths_equal_cutting_each_front(m, dtype):
    points = fronts((2, 6), 9, m)
    lengths = torch.tensor([[0, 1, 2, 9, 5, 8], [9, 9, 0, 3, 4, 7]], dtype=dtype)
    got = hv(points, 0.9, lengths=lengths)
    for i in range(2):
        for j in range(6):
            assert torch.equal(got[i, j], hv(points[i, j, : lengths[i, j]], 0.9))


def test_lengths_may_be_strided_or_expanded():
    points = fronts((4,), 3, 2)
    column = torch.tensor([[1, 9], [2, 9], [3, 9], [0, 9]])[:, 0]
    assert torch.equal(hv(points, 1.0, lengths=column), hv(points, 1.0, lengths=column.clone()))
    twos = hv(points, 1.0, lengths=torch.tensor(2).expand(4))
    assert torch.equal(twos, hv(points[:, :2], 1.0))


def test_one_front_takes_a_zero_dimensional_length():
    assert hv([[0.5, 0.5], [0.0, 0.0]], 1.0, lengths=torch.tensor(1)).item() == 0.25


@given(grids(), st.integers(0, 4), st.sampled_from([NAN, INF, -INF, -1e300]))
def test_padding_is_never_read(case, extra, value):
    points, ref, maximize = case
    padding = torch.full((extra, points.shape[1]), value, dtype=F64)
    lengths = torch.tensor(len(points))
    assert torch.equal(hv(torch.cat([points, padding]), ref, maximize, lengths=lengths), hv(points, ref, maximize))


# Invariances.


@given(grids(), st.randoms(use_true_random=False))
def test_the_order_of_points_and_objectives_does_not_matter(case, random):
    points, ref, maximize = case
    rows = random.sample(range(len(points)), len(points))
    columns = random.sample(range(points.shape[1]), points.shape[1])
    shuffled = hv(points[rows][:, columns], [ref[k] for k in columns], [maximize[k] for k in columns])
    assert torch.equal(shuffled, hv(points, ref, maximize))


@given(grids(min_n=1), st.data())
def test_duplicates_contribute_nothing(case, data):
    points, ref, maximize = case
    rows = data.draw(st.lists(st.integers(0, len(points) - 1), max_size=6))
    assert torch.equal(hv(torch.cat([points, points[rows]]), ref, maximize), hv(points, ref, maximize))


@given(grids(min_n=1), st.integers(0, 11), st.integers(0, 3))
def test_dominated_points_contribute_nothing(case, row, distance):
    points, ref, _ = case
    ref = [5] * len(ref)
    worse = points[row % len(points)] + distance
    assert torch.equal(hv(torch.cat([points, worse[None]]), ref), hv(points, ref))


@given(grids(), st.lists(st.integers(-300, 300), min_size=3, max_size=3))
def test_scaling_by_powers_of_two_scales_the_volume_exactly(case, exponents):
    points, ref, maximize = case
    m = points.shape[1]
    scales = torch.tensor([2.0**e for e in exponents[:m]], dtype=F64)
    expected = math.ldexp(hv(points, ref, maximize).item(), sum(exponents[:m]))
    assert hv(points * scales, torch.tensor(ref, dtype=F64) * scales, maximize).item() == expected


@given(grids(), st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3))
def test_shifting_everything_changes_nothing(case, offsets):
    points, ref, maximize = case
    shift = torch.tensor(offsets[: points.shape[1]], dtype=F64)
    assert torch.equal(hv(points + shift, torch.tensor(ref, dtype=F64) + shift, maximize), hv(points, ref, maximize))


@given(grids())
def test_maximize_equals_flipping_signs(case):
    points, ref, maximize = case
    sign = torch.tensor([-1.0 if flip else 1.0 for flip in maximize], dtype=F64)
    ref = torch.tensor(ref, dtype=F64)
    assert torch.equal(hv(points, ref, maximize), hv(points * sign, ref * sign))
    assert torch.equal(hv(points, ref, tuple(maximize)), hv(points * sign, ref * sign))
    assert torch.equal(hv(-points, -ref, True), hv(points, ref, False))
    assert torch.equal(hv(points, ref, [True] * len(ref)), hv(points, ref, True))


@pytest.mark.parametrize("maximize", [[True, False, True], [False, False, True], [True, True, False]])
def test_maximize_per_objective_flips_bitwise_on_real_fronts(maximize):
    points, ref = fronts((5,), 20, 3), torch.full((3,), 0.5, dtype=F64)
    sign = torch.tensor([-1.0 if flip else 1.0 for flip in maximize], dtype=F64)
    assert torch.equal(hv(points, ref, maximize), hv(points * sign, ref * sign))


# The bad inputs of other libraries, each with its stated result.

FRONT = [[0.2, 0.9], [0.5, 0.5], [0.9, 0.1]]
FRONT_VOLUME = float(reference.hypervolume(FRONT, [1.0, 1.0]))


def test_a_point_equal_to_the_reference_point_has_no_volume():
    assert hv([[1.0, 1.0]], 1.0).item() == 0.0
    assert hv([*FRONT, [1.0, 1.0]], 1.0).item() == hv(FRONT, 1.0).item() == pytest.approx(FRONT_VOLUME)


def test_a_point_on_a_face_has_no_volume():
    assert hv([[0.0, 1.0]], 1.0).item() == 0.0
    assert hv([[1.0, 0.0, 0.0]], 1.0).item() == 0.0
    assert hv([[-INF, 1.0]], 1.0).item() == 0.0


def test_a_point_beyond_the_reference_point_in_one_objective_is_ignored():
    assert hv([*FRONT, [0.0, 1.5]], 1.0).item() == hv(FRONT, 1.0).item()
    assert hv([*FRONT, [-INF, 1.5]], 1.0).item() == hv(FRONT, 1.0).item()


def test_a_front_beyond_the_reference_point_has_no_volume():
    assert hv([[2.0, 3.0], [1.5, 4.0]], 1.0).item() == 0.0


@pytest.mark.parametrize("m", [1, 2, 3])
def test_infinity_on_the_bad_side_is_ignored(m):
    bad = [0.0] * (m - 1) + [INF]
    assert hv([[0.5] * m, bad], 1.0).item() == 0.5**m
    assert hv([[0.5] * m, [INF] * m], 1.0).item() == 0.5**m
    assert hv([[0.5] * m, [-x for x in bad]], 0.0, maximize=True).item() == 0.5**m


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("objective", [0, 1, 2])
def test_infinity_on_the_good_side_of_a_counting_point_is_infinite(m, objective):
    good = [0.5] * m
    good[objective % m] = -INF
    assert hv([good], 1.0).item() == INF
    assert hv([good, [0.5] * m, good, [0.25] * m, [-INF] * m], 1.0).item() == INF
    assert hv([[-x for x in good], [-0.5] * m], -1.0, maximize=True).item() == INF


@pytest.mark.parametrize("m", [1, 2, 3])
def test_an_infinite_reference_point_is_infinite_if_any_point_counts(m):
    ref = [1.0] * (m - 1) + [INF]
    assert hv([[0.5] * m, [0.25] * m], ref).item() == INF
    assert hv([[0.5] * (m - 1) + [INF]], ref).item() == 0.0
    assert hv([[0.5] * m], [INF] * m).item() == INF
    assert hv([[-INF] * m], [INF] * m).item() == INF
    assert hv(torch.empty(0, m, dtype=F64), ref).item() == 0.0
    assert hv([[0.5] * m], [-INF] * m, maximize=True).item() == INF
    assert hv([[0.5] * m], -INF).item() == 0.0


@pytest.mark.parametrize("m", [2, 3])
def test_an_infinite_reference_point_does_not_count_points_beyond_another_face(m):
    assert hv([[0.5] * (m - 1) + [2.0]], [INF] * (m - 1) + [1.0]).item() == 0.0


def test_negative_zero_is_zero():
    assert hv([[-0.0, -1.0], [0.0, -1.0], [-0.0, -0.0]], [1.0, 0.0]).item() == 1.0
    assert hv([[-0.0, 0.0]], -0.0).item() == 0.0
    assert hv([[-0.0, 0.0]], [0.0, 1.0], maximize=True).item() == 0.0


def test_denormals_are_numbers():
    tiny = 5e-324
    assert hv([[-tiny], [0.0]], 0.0).item() == tiny
    assert hv([[-3 * tiny, -1.0], [-tiny, -2.0]], 0.0).item() == 4 * tiny
    assert hv(torch.tensor([[-1e-45]]), 0.0).item() == torch.tensor(1e-45).item()


def test_float32_overflow_is_infinite():
    assert hv(torch.tensor([[-3e38, -3e38]]), 0.0).item() == INF
    assert hv([[-3e38, -3e38]], 0.0).item() == pytest.approx(9e76)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_nan_in_any_coordinate_raises_by_default(m):
    for k in range(m):
        points = fronts((), 5, m)
        points[3, k] = NAN
        for options in ({}, {"nan": "raise"}, {"nan": None}):
            with pytest.raises(ValueError, match=r"(?i)nan"):
                hv(points, 1.0, **options)


def test_nan_names_the_row():
    points = fronts((2, 3), 9, 2)
    points[1, 2, 7, 1] = NAN
    with pytest.raises(ValueError, match="points") as error:
        hv(points, 1.0)
    assert {"1", "2", "7"} <= set(re.findall(r"\d+", str(error.value)))
    with pytest.raises(ValueError, match="7"):
        hv(points[1, 2], 1.0)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_nan_row_is_ignored_when_nan_is_worst(m):
    for k in range(m):
        points = fronts((3,), 8, m)
        expected = hv(torch.cat([points[:, :2], points[:, 3:]], dim=1), 0.9)
        points[:, 2, k] = NAN
        assert torch.equal(hv(points, 0.9, nan="worst"), expected)
        assert torch.equal(hv(-points, -0.9, maximize=True, nan="worst"), expected)
    assert hv([[NAN] * m], 1.0, nan="worst").item() == 0.0
    assert hv([[NAN] * (m - 1) + [-INF]] if m > 1 else [[NAN]], 1.0, nan="worst").item() == 0.0


def test_nan_in_the_reference_point_raises_or_is_nan():
    for ref in (NAN, [1.0, NAN], torch.tensor([NAN, 1.0])):
        with pytest.raises(ValueError, match="ref_point"):
            hv(FRONT, ref)
        assert math.isnan(hv(FRONT, ref, nan="worst").item())
    batch = hv(fronts((3,), 4, 2), torch.tensor([[1.0, 1.0], [1.0, NAN], [1.0, 1.0]]), nan="worst")
    assert batch.isnan().tolist() == [False, True, False]


def test_nan_worst_equals_raise_without_nan():
    points = fronts((4,), 30, 3)
    assert torch.equal(hv(points, 0.9, nan="worst"), hv(points, 0.9, nan="raise"))


# Gradients.


def gradients(points: torch.Tensor, ref: torch.Tensor, maximize=False, **options):
    points, ref = points.clone().requires_grad_(), ref.clone().requires_grad_()
    return torch.autograd.grad(hv(points, ref, maximize, **options).sum(), (points, ref))


@given(grids())
def test_the_gradient_of_integer_grids_is_exact_with_ties_and_duplicates(case):
    points, ref, maximize = case
    expected_points, expected_ref = reference.hypervolume_gradient(points.tolist(), ref, maximize)
    grad_points, grad_ref = gradients(points, torch.tensor(ref, dtype=F64), maximize)
    assert grad_points.tolist() == expected_points
    assert grad_ref.tolist() == expected_ref


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("maximize", [False, True, "mixed"])
def test_gradcheck_in_general_position(m, maximize):
    maximize = [k % 2 == 0 for k in range(m)] if maximize == "mixed" else maximize
    # A lattice in shuffled order keeps every coordinate 0.02 from any other.
    order = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(k)) for k in range(m)], -1)
    points = (order.reshape(5, 6, m).to(F64) / 32 + 0.01).requires_grad_()
    ref = torch.full((5, m), 0.5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, r: hv(z, r, maximize), (points, ref))
    lengths = torch.tensor([6, 0, 1, 3, 5])
    assert torch.autograd.gradcheck(lambda z, r: hv(z, r, maximize, lengths=lengths), (points, ref))


@pytest.mark.parametrize("n", [20, 63, 64, 65, 129])
def test_the_gradient_of_larger_fronts_matches_central_differences(n):
    x = np.random.default_rng(n).random((n, 3)) + 1e-3
    points = torch.from_numpy(1 - x / np.linalg.norm(x, axis=1, keepdims=True))
    grad_points, grad_ref = gradients(points, torch.ones(3, dtype=F64))
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal((n, 3)))
    step = 1e-7
    slope = (hv(points + step * direction, 1.0) - hv(points - step * direction, 1.0)) / (2 * step)
    assert (grad_points * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(grad_ref, -grad_points.sum(0))
    assert (grad_points <= 0).all()


def test_dominated_points_get_exactly_no_gradient():
    points = torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.75, 0.75], [0.25, 0.5, 0.75]], dtype=F64)
    grad_points, _ = gradients(points, torch.ones(3, dtype=F64))
    assert (grad_points[1:] == 0).all()
    assert grad_points[0].tolist() == [-0.25, -0.375, -0.375]


@pytest.mark.parametrize("m", [1, 2, 3])
def test_of_duplicates_the_lowest_row_gets_everything(m):
    point = torch.full((1, m), 0.5, dtype=F64)
    alone, _ = gradients(point, torch.ones(m, dtype=F64))
    copies, _ = gradients(point.expand(4, m), torch.ones(m, dtype=F64))
    assert torch.equal(copies[:1], alone)
    assert (copies[1:] == 0).all()


@pytest.mark.parametrize("m", [1, 2, 3])
def test_points_on_or_beyond_the_reference_point_and_padding_get_no_gradient(m):
    points = torch.tensor([[0.5] * m, [1.0] * m, [0.25] * (m - 1) + [1.0], [2.0] * m, [0.0] * m], dtype=F64)
    alone, _ = gradients(points[:1], torch.ones(m, dtype=F64))
    grad_points, grad_ref = gradients(points, torch.ones(m, dtype=F64), lengths=torch.tensor(4))
    assert torch.equal(grad_points[:1], alone)
    assert (grad_points[1:] == 0).all()
    assert torch.equal(grad_ref, -alone[0])


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (5, 3), (4, 1, 3), (4, 5, 3)])
def test_the_gradient_of_a_broadcast_reference_point_is_summed(shape):
    points = fronts((4, 5), 6, 3)
    ref = torch.full(shape, 0.875, dtype=F64)
    full_points, full_ref = gradients(points, ref.expand(4, 5, 3))
    grad_points, grad_ref = gradients(points, ref)
    assert grad_ref.shape == shape
    assert torch.equal(grad_points, full_points)
    torch.testing.assert_close(grad_ref, full_ref.sum_to_size(shape))


def test_gradients_of_a_batch_equal_a_loop_bitwise_and_weigh_each_front():
    points = fronts((6,), 11, 3).requires_grad_()
    weights = torch.tensor([0.0, 1.0, -2.0, 0.5, 4.0, 3.0], dtype=F64)
    (batch,) = torch.autograd.grad((hv(points, 0.9) * weights).sum(), points)
    for i in range(6):
        (one,) = torch.autograd.grad(hv(points[i], 0.9) * weights[i], points)
        assert torch.equal(batch[i], one[i])


@pytest.mark.parametrize("m", [1, 2, 3])
def test_float32_gradients_are_computed_in_float64(m):
    points, ref = fronts((3,), 12, m).float(), torch.full((3, m), 0.75)
    for got, wide in zip(gradients(points, ref), gradients(points.double(), ref.double()), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wide.float(), rtol=1e-6, atol=1e-7)


def test_any_strides_give_the_same_gradient():
    x = fronts((3, 2), 9, 3)
    expected, _ = gradients(x, torch.ones(3, dtype=F64))
    for name, view in strided_copies(x).items():
        view = view.detach().requires_grad_()
        (got,) = torch.autograd.grad(hv(view, 1.0).sum(), view)
        assert torch.equal(got, expected), name


def test_either_input_alone_is_differentiable():
    points, ref = fronts((), 7, 3), torch.ones(3, dtype=F64)
    both = gradients(points, ref)
    z = points.clone().requires_grad_()
    r = ref.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(hv(z, ref), z)[0], both[0])
    assert torch.equal(torch.autograd.grad(hv(points, r), r)[0], both[1])
    assert not hv(points, ref).requires_grad
    with torch.no_grad():
        assert not hv(z, r).requires_grad


@pytest.mark.parametrize("batch", [(), (0,), (2,)])
def test_empty_fronts_have_empty_or_zero_gradients(batch):
    grad_points, grad_ref = gradients(torch.zeros(*batch, 0, 2, dtype=F64), torch.ones(2, dtype=F64))
    assert grad_points.shape == (*batch, 0, 2)
    assert grad_ref.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("leaf", ["points", "ref_point"])
def test_double_backward_raises(leaf):
    points, ref = fronts((), 4, 2).requires_grad_(), torch.ones(2, dtype=F64, requires_grad=True)
    x = points if leaf == "points" else ref
    (grad,) = torch.autograd.grad(hv(points, ref) + x.square().sum(), x, create_graph=True)
    # Dropping the second derivative without a word would leave that of the square alone.
    with pytest.raises(RuntimeError, match=r"(?i)twice|double|once"):
        torch.autograd.grad(grad.square().sum(), x)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "jvp"])
def test_torch_func_is_right_or_says_no(transform):
    points = fronts((), 5, 3)
    expected, _ = gradients(points, torch.ones(3, dtype=F64))
    try:
        if transform == "jvp":
            _, got = torch.func.jvp(lambda z: hv(z, 1.0), (points,), (points,))
            expected = (expected * points).sum()
        else:
            got = getattr(torch.func, transform)(lambda z: hv(z, 1.0))(points)
    except RuntimeError as error:  # NotImplementedError is one
        refusal = str(error)
    else:
        refusal = ""
        torch.testing.assert_close(got, expected)
    assert not refusal or re.search(r"(?i)torch\.func|functorch|forward|jvp", refusal)


def test_a_nan_row_gets_no_gradient_when_nan_is_worst():
    points = fronts((), 6, 3)
    points[2, 1] = NAN
    keep = [0, 1, 3, 4, 5]
    grad_points, grad_ref = gradients(points, torch.ones(3, dtype=F64), nan="worst")
    expected_points, expected_ref = gradients(points[keep], torch.ones(3, dtype=F64))
    assert (grad_points[2] == 0).all()
    assert torch.equal(grad_points[keep], expected_points)
    torch.testing.assert_close(grad_ref, expected_ref)


# Errors.


@pytest.mark.parametrize("points", ["front", None, object(), [["a", "b"]]])
def test_points_must_be_numbers(points):
    with pytest.raises(TypeError, match="points"):
        morlfast.hypervolume(points, 1.0, maximize=False)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_points_must_have_rows_and_objectives(shape):
    with pytest.raises(ValueError, match="points"):
        hv(torch.zeros(shape, dtype=F64), 1.0)


@pytest.mark.parametrize("m", [0, 4, 5])
def test_the_number_of_objectives_must_be_supported(m):
    with pytest.raises(ValueError, match=rf"points.*{m}"):
        hv(torch.zeros(3, m, dtype=F64), 1.0)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3,), (4, 3), (2, 1, 2), (5, 4, 2), (0,)])
def test_the_reference_point_must_fit(shape):
    with pytest.raises(ValueError, match="ref_point"):
        hv(
            torch.zeros(4, 6, 2, dtype=F64) if shape != (1, 2) else fronts((), 6, 2),
            torch.ones(shape, dtype=F64),
        )


@pytest.mark.parametrize("ref", ["one", None, torch.ones(2, dtype=torch.complex64), [[1.0], [1.0, 2.0]]])
def test_the_reference_point_must_be_numbers(ref):
    with pytest.raises((TypeError, ValueError), match="ref_point"):
        hv(FRONT, ref)


def test_maximize_is_required():
    with pytest.raises(TypeError, match="maximize"):
        morlfast.hypervolume(torch.zeros(3, 2), 1.0)


@pytest.mark.parametrize("maximize", ["yes", None, 0.5, ["yes", "no"], [None, True]])
def test_maximize_must_be_bool(maximize):
    with pytest.raises(TypeError, match="maximize"):
        hv(FRONT, 1.0, maximize)


@pytest.mark.parametrize("maximize", [[], [True], [True, False, True]])
def test_maximize_must_have_one_entry_per_objective(maximize):
    with pytest.raises(ValueError, match=rf"maximize.*{len(maximize)}"):
        hv(FRONT, 1.0, maximize)


@pytest.mark.parametrize("lengths", [torch.ones(4), torch.ones(4, dtype=torch.complex64)])
def test_lengths_must_be_integers(lengths):
    with pytest.raises(TypeError, match="lengths"):
        hv(fronts((4,), 3, 2), 1.0, lengths=lengths)


@pytest.mark.parametrize("shape", [(), (3,), (1, 4), (4, 1), (5,)])
def test_lengths_must_have_the_batch_shape(shape):
    with pytest.raises(ValueError, match="lengths"):
        hv(fronts((4,), 3, 2), 1.0, lengths=torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize("bad", [-1, 4, 2**62, -(2**63)])
def test_lengths_must_be_within_the_front(bad):
    with pytest.raises(ValueError, match="lengths"):
        hv(fronts((4,), 3, 2), 1.0, lengths=torch.tensor([0, 3, bad, 1]))


@pytest.mark.parametrize("nan", ["ignore", "", 0, True])
def test_nan_must_be_a_policy(nan):
    with pytest.raises((TypeError, ValueError), match="nan"):
        hv(FRONT, 1.0, nan=nan)


def test_other_devices_must_match():
    with pytest.raises(ValueError, match="ref_point"):
        hv(FRONT, torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match="lengths"):
        hv(fronts((2,), 3, 2), 1.0, lengths=torch.ones(2, dtype=torch.int64, device="meta"))


def test_a_reference_point_broadcasts_over_batch_and_objectives():
    points = fronts((4,), 6, 2)
    expected = hv(points, torch.full((4, 2), 1.0, dtype=F64))
    for shape in [(1,), (4, 1), (1, 1), (1, 2)]:
        assert torch.equal(hv(points, torch.ones(shape, dtype=F64)), expected)
    mixed = morlfast.hypervolume(points, torch.ones(4, 1, dtype=F64), maximize=[True, False])
    assert torch.equal(mixed, morlfast.hypervolume(points, torch.ones(2, dtype=F64), maximize=[True, False]))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("maximize", [False, [True, False]])
@pytest.mark.parametrize("shape", [(3,), (5, 2), (3, 1), (1, 4, 2)])
def test_a_reference_point_of_another_shape_is_named(device, maximize, shape):
    points = torch.zeros(4, 6, 2, device=device)
    with pytest.raises(ValueError, match="ref_point"):
        morlfast.hypervolume(points, torch.ones(shape, device=device), maximize=maximize)


@pytest.mark.parametrize("maximize", [True, []])
def test_points_without_objectives_are_an_error(maximize):
    with pytest.raises(ValueError, match="points"):
        morlfast.hypervolume(torch.zeros(3, 0), 0.0, maximize=maximize)


def test_lengths_of_an_empty_batch():
    assert hv(torch.zeros(3, 0, 5, 2, dtype=F64), 1.0, lengths=torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 0)
    assert hv(torch.zeros(0, 5, 2, dtype=F64), 1.0, lengths=[]).shape == (0,)


def test_the_first_nan_is_named_whatever_thread_finds_one():
    points = torch.zeros(64, 1000, 2, dtype=F64)
    points[1:, 0] = NAN
    points[0, -1] = NAN
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(20):
            with pytest.raises(ValueError, match=r"row 999 of batch index \(0\)"):
                hv(points, 1.0)
    finally:
        torch.set_num_threads(before)


def test_copies_of_the_strongest_point_of_a_cloud_add_nothing():
    # What one strong point dominates is dropped before anything is sorted; of its copies the lowest row stays.
    points = torch.rand(200, 3, dtype=F64, generator=torch.Generator().manual_seed(5))
    points[17] = points[150] = 0.05
    once = points.clone()
    once[150] = 1.0
    assert hv(points, 1.0) == hv(once, 1.0)
    gradient, _ = gradients(points, torch.ones(3, dtype=F64))
    assert torch.equal(gradient, gradients(once, torch.ones(3, dtype=F64))[0])
    assert gradient[150].eq(0).all()
