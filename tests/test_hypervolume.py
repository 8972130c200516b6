"""hypervolume: values, gradients, every stated edge case, and what the error messages name.

The fronts, shapes and bad rows here are those of the tests of contributions, improvements and boxes too.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

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
OBJECTIVES = [1, 2, 3, 4, 5, 6]
MANY = [7, 8, 9, 10, 12, 17, 20]


def hv(points, ref_point, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.hypervolume(points, ref_point, maximize=maximize, **options)


def fronts(batch: tuple[int, ...], n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*batch, n, m, generator=torch.Generator().manual_seed(seed), dtype=F64)


SIDES = {1: 6, 2: 6, 3: 6, 4: 5, 5: 4, 6: 3}


@st.composite
def grids(
    draw, min_n: int = 0, max_n: int = 12, objectives: Sequence[int] = OBJECTIVES
) -> tuple[torch.Tensor, list[int], list[bool]]:
    """A front of small integers full of ties, some on or beyond the reference point; mixed senses."""
    m = draw(st.sampled_from(objectives))
    n = draw(st.integers(min_n, max_n))
    side = draw(st.integers(1, SIDES.get(m, 2)))
    rows = draw(st.lists(st.lists(st.integers(-1, side + 1), min_size=m, max_size=m), min_size=n, max_size=n))
    maximize = draw(st.lists(st.booleans(), min_size=m, max_size=m))
    # Seen from a maximized objective the same values lie about 0.
    ref = [0 if flip else side for flip in maximize]
    return torch.tensor(rows, dtype=F64).reshape(n, m), ref, maximize


def many(m: int, seed: int = 0) -> tuple[torch.Tensor, list[int], list[bool]]:
    """A tiny front of many objectives, with ties, a copy, a dominated point and one on the reference point."""
    random = np.random.default_rng(100 * m + seed)
    rows = random.integers(-3, 3, (4, m))
    rows = np.vstack([rows, rows[:1], rows[1:2] + (np.arange(m) % 3 == 0), rows[2:3]])
    rows[-1, m // 2] = 3
    maximize = random.random(m) < 0.5
    points, ref = np.where(maximize, -rows, rows), np.where(maximize, -3, 3)
    return torch.tensor(points, dtype=F64), ref.tolist(), maximize.tolist()


# Values.


@given(grids())
def test_integer_grids_equal_the_counted_cells_exactly(case):
    points, ref, maximize = case
    assert hv(points, ref, maximize).item() == reference.hypervolume(points.tolist(), ref, maximize)


@given(grids())
def test_the_two_references_agree(case):
    points, ref, maximize = case
    cells = reference.hypervolume_by_cells(points.tolist(), ref, maximize)
    assert reference.hypervolume(points.tolist(), ref, maximize) == cells


@pytest.mark.parametrize("m", MANY)
def test_many_objectives_equal_the_reference_exactly(m):
    for seed in range(5):
        points, ref, maximize = many(m, seed)
        expected = reference.hypervolume(points.tolist(), ref, maximize)
        assert expected > 0
        assert hv(points, ref, maximize).item() == expected


@pytest.mark.parametrize("m", [31, 32, 33, 63, 64])
def test_up_to_64_objectives_match_the_reference(m):
    points = torch.from_numpy(np.random.default_rng(m).integers(0, 3, (2, m)).astype(float))
    expected_points, expected_ref = reference.hypervolume_gradient(points.tolist(), [3] * m)
    expected = reference.hypervolume(points.tolist(), [3] * m)
    assert hv(points, 3.0).item() == pytest.approx(float(expected), rel=1e-13)
    grad_points, grad_ref = gradients(points, torch.full((m,), 3.0, dtype=F64))
    torch.testing.assert_close(grad_points, torch.tensor(expected_points, dtype=F64), rtol=1e-13, atol=0)
    torch.testing.assert_close(grad_ref, torch.tensor(expected_ref, dtype=F64), rtol=1e-13, atol=0)


@given(st.sampled_from(OBJECTIVES), st.integers(0, 8), st.randoms(use_true_random=False))
def test_real_fronts_match_exact_arithmetic(m, n, random):
    points = [[random.random() for _ in range(m)] for _ in range(n)]
    ref = [random.uniform(0.5, 1.0) for _ in range(m)]
    exact = float(reference.hypervolume(points, ref))
    got = hv(torch.tensor(points, dtype=F64).reshape(n, m), torch.tensor(ref, dtype=F64)).item()
    assert got == pytest.approx(exact, rel=1e-13, abs=1e-15)


SHAPES = {
    "spherical": lambda x: 1 - x / np.linalg.norm(x, axis=1, keepdims=True),
    "linear": lambda x: x / x.sum(1, keepdims=True),
    "convex": lambda x: x / np.sqrt(x).sum(1, keepdims=True) ** 2,
    "concave": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "cloud": lambda x: x,
    "ties": lambda x: np.round(8 * x) / 8,
    "curve": lambda x: np.hstack([x[:, :1], np.repeat(1 - x[:, :1], x.shape[1] - 1, axis=1)]),
}


def shaped(shape: str, n: int, m: int) -> np.ndarray:
    return SHAPES[shape](np.random.default_rng(n).random((n, m)) + 1e-3)


SIZES = {
    **{m: [1, 2, 3, 5, 31, 63, 64, 65, 127, 128, 129, 1000] for m in (1, 2, 3)},
    **{m: [1, 2, 3, 5, 31, 64, 65, 128, 200] for m in (4, 5)},
    6: [1, 2, 3, 5, 31, 60],
    7: [1, 2, 4, 12, 13, 30],
    8: [1, 2, 4, 12, 13, 30],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", SIZES)
def test_agrees_with_moocore(shape, m):
    moocore = pytest.importorskip("moocore")
    for n in SIZES[m]:
        x = shaped(shape, n, m)
        ref = np.full(m, 1.0)
        got = hv(torch.from_numpy(x), torch.from_numpy(ref)).item()
        assert got == pytest.approx(moocore.hypervolume(x, ref=ref), rel=1e-12, abs=1e-15), n


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", list(SIZES)[1:])
def test_agrees_with_pygmo(shape, m):
    pygmo = pytest.importorskip("pygmo")
    for n in SIZES[m]:
        x = shaped(shape, n, m)
        ref = x.max(0) + 0.125  # pygmo takes no point on or beyond the reference point
        got = hv(torch.from_numpy(x), torch.from_numpy(ref)).item()
        assert got == pytest.approx(pygmo.hypervolume(x).compute(ref), rel=1e-12), n


def test_one_objective_is_the_gap_to_the_best():
    assert hv([[3.0], [1.5], [9.0]], 4.0).item() == 2.5
    assert hv([[3.0], [1.5], [9.0]], 4.0, maximize=True).item() == 5.0
    assert hv([[5.0]], 4.0).item() == 0.0


@pytest.mark.parametrize("m", [3, 5])
def test_a_large_offset_costs_no_accuracy(m):
    unit = fronts((), 40, m, seed=3).float()
    points = unit + 1000
    exact = hv(points.double(), 1001.0)
    assert torch.equal(hv(points, 1001.0), exact.float())


# Dtypes, strides and containers.


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
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


@pytest.mark.parametrize("m", [*OBJECTIVES, 10])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_strides_give_the_same_bits(m, dtype):
    x = fronts((3, 2), 9, m).to(dtype)
    expected = hv(x.contiguous(), 0.9)
    for name, view in strided_copies(x).items():
        assert torch.equal(view, x), name
        assert torch.equal(hv(view, 0.9), expected), name


@pytest.mark.parametrize("m", OBJECTIVES)
def test_arrays_of_any_order_and_stride_are_taken(m):
    x = np.random.default_rng(m).random((9, m))
    expected = hv(torch.from_numpy(x), 1.0)
    for array in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], np.repeat(x, 3, axis=1)[:, ::3]):
        assert torch.equal(morlfast.hypervolume(array, 1.0, maximize=False), expected)


def test_arrays_with_negative_strides_are_taken():
    x = np.random.default_rng(0).random((9, 4))
    expected = hv(torch.from_numpy(x), 1.0)
    for array in (x[::-1].copy()[::-1], x[:, ::-1].copy()[:, ::-1]):
        assert torch.equal(morlfast.hypervolume(array, 1.0, maximize=False), expected)


def test_an_expanded_batch_is_taken_without_a_copy_in_the_way():
    x = fronts((), 9, 3)
    expanded = x.expand(4, 5, 9, 3)
    assert torch.equal(hv(expanded, 1.0), hv(x, 1.0).expand(4, 5))
    one_point = torch.tensor([[0.5, 0.25]], dtype=F64).expand(7, 2)
    assert hv(one_point, 1.0).item() == 0.375


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("m", [3, 5])
def test_a_read_only_memory_map_is_only_read(tmp_path, m):
    x = np.random.default_rng(0).random((50, m))
    x.tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", dtype=np.float64, mode="r", shape=x.shape)
    assert torch.equal(hv(torch.from_numpy(mapped), 1.0), hv(torch.from_numpy(x), 1.0))
    assert torch.equal(morlfast.hypervolume(mapped, 1.0, maximize=False), hv(torch.from_numpy(x), 1.0))


@pytest.mark.parametrize("m", OBJECTIVES)
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


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_a_batch_equals_a_loop_bitwise(m):
    points = fronts((4, 5), 17, m)
    ref = fronts((4, 5), 1, m, seed=1).squeeze(-2) + 0.25
    got = hv(points, ref)
    assert got.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            assert torch.equal(got[i, j], hv(points[i, j], ref[i, j]))


@pytest.mark.parametrize("m", [3, 5])
@pytest.mark.parametrize("batch", [None, (), (1,), (4, 1), (1, 5), (5,), (4, 5)])
def test_the_reference_point_broadcasts_over_the_batch(batch, m):
    points = fronts((4, 5), 6, m)
    shape = () if batch is None else (*batch, m)
    ref = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.25
    full = ref.expand(4, 5, m)
    assert torch.equal(hv(points, ref), hv(points, full.contiguous()))


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 4)])
def test_an_empty_batch_gives_an_empty_result(batch):
    assert hv(torch.empty(*batch, 5, 2, dtype=F64), 1.0).shape == batch


@pytest.mark.parametrize("m", [*OBJECTIVES, 10, 20])
def test_an_empty_front_has_no_volume(m):
    assert hv(torch.empty(0, m, dtype=F64), 1.0).item() == 0.0
    assert torch.equal(hv(torch.empty(2, 3, 0, m), 1.0), torch.zeros(2, 3))
    assert torch.equal(hv(torch.empty(0, 0, m), 1.0), torch.empty(0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
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


def flags(batch: tuple[int, ...], n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*batch, n, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_a_mask_equals_cutting_each_front(m):
    points, mask = fronts((2, 6), 9, m), flags((2, 6), 9)
    mask[0, 0] = False
    mask[0, 1] = True
    got = hv(points, 0.9, mask=mask)
    for i in range(2):
        for j in range(6):
            assert torch.equal(got[i, j], hv(points[i, j][mask[i, j]], 0.9))


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_mask_of_the_first_rows_equals_lengths(m):
    points, lengths = fronts((6,), 9, m), torch.tensor([0, 9, 1, 4, 8, 2])
    mask = torch.arange(9) < lengths[:, None]
    assert torch.equal(hv(points, 0.9, mask=mask), hv(points, 0.9, lengths=lengths))


@given(grids(), st.data())
def test_masked_rows_are_never_read(case, data):
    points, ref, maximize = case
    kept = data.draw(st.lists(st.booleans(), min_size=len(points), max_size=len(points)))
    mask = torch.tensor(kept, dtype=torch.bool)
    value = data.draw(st.sampled_from([NAN, INF, -INF, -1e300]))
    hidden = torch.where(mask[:, None], points, value)
    assert torch.equal(hv(hidden, ref, maximize, mask=mask), hv(points[mask], ref, maximize))


def test_masks_of_any_kind_and_stride_are_taken():
    points, mask = fronts((4,), 6, 4), flags((4,), 6)
    expected = hv(points, 1.0, mask=mask)
    for same in (mask.T.contiguous().T, mask.tolist(), mask.numpy(), torch.stack([mask, ~mask], -1)[..., 0]):
        assert torch.equal(hv(points, 1.0, mask=same), expected)
    column = torch.tensor([True, False, True, True, False, True])
    assert torch.equal(hv(points, 1.0, mask=column.expand(4, 6)), hv(points[:, column], 1.0))
    assert hv(torch.zeros(3, 0, 5, 4), 1.0, mask=torch.zeros(3, 0, 5, dtype=torch.bool)).shape == (3, 0)
    assert hv(torch.zeros(3, 0, 4), 1.0, mask=torch.zeros(3, 0, dtype=torch.bool)).tolist() == [0.0] * 3


def test_a_mask_is_left_unchanged():
    points, mask = fronts((4,), 6, 4), flags((4,), 6)
    copies = [points.clone(), mask.clone()]
    hv(points, 1.0, mask=mask)
    assert torch.equal(points, copies[0])
    assert torch.equal(mask, copies[1])


# Bounded memory, pieces and progress.


@given(grids(), st.sampled_from([1, 64, 1000, 10_000]))
def test_any_memory_limit_gives_the_same_integers(case, max_memory):
    points, ref, maximize = case
    assert torch.equal(hv(points, ref, maximize, max_memory=max_memory), hv(points, ref, maximize))


@pytest.mark.parametrize(("n", "m"), [(1000, 1), (1000, 2), (200, 3), (60, 4), (40, 5), (20, 6), (12, 8), (7, 10)])
def test_any_memory_limit_gives_the_same_value_and_gradient(n, m):
    points = torch.from_numpy(shaped("spherical", n, m))
    value, gradient = hv(points, 1.0), gradients(points, torch.ones(m, dtype=F64))[0]
    for max_memory in (1, 500, 4096, 50_000):
        assert hv(points, 1.0, max_memory=max_memory).item() == pytest.approx(value.item(), rel=1e-13)
        cut, _ = gradients(points, torch.ones(m, dtype=F64), max_memory=max_memory)
        torch.testing.assert_close(cut, gradient, rtol=1e-12, atol=1e-14 * gradient.abs().max().item())
        assert (cut[gradient == 0] == 0).all()


@pytest.mark.parametrize("m", MANY)
def test_many_objectives_in_little_memory_are_exact(m):
    points, ref, maximize = many(m)
    expected = hv(points, ref, maximize)
    for max_memory in (2000, 100_000):
        assert torch.equal(hv(points, ref, maximize, max_memory=max_memory), expected)


def test_a_batch_in_little_memory_equals_a_loop_bitwise():
    points, lengths = fronts((6,), 15, 5), torch.tensor([15, 0, 1, 9, 14, 15])
    got = hv(points, 0.9, lengths=lengths, max_memory=2000)
    for i in range(6):
        assert torch.equal(got[i], hv(points[i, : lengths[i]], 0.9, max_memory=2000))


@given(grids(), st.integers(1, 9))
def test_the_parts_sum_to_the_whole_exactly(case, parts):
    points, ref, _ = case
    ref = torch.tensor(ref, dtype=F64)
    value, gradient = torch.ops.morlfast.hypervolume_gradient(points, ref)
    pieces = [torch.ops.morlfast.hypervolume_gradient(points, ref, part=p, parts=parts) for p in range(parts)]
    assert torch.equal(sum(piece[0] for piece in pieces), value)
    assert torch.equal(sum(piece[1] for piece in pieces), gradient)
    values = [torch.ops.morlfast.hypervolume(points, ref, part=p, parts=parts) for p in range(parts)]
    assert values == [piece[0] for piece in pieces]
    assert all(piece >= 0 for piece in values)


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_the_parts_of_real_fronts_sum_to_the_whole(m, parts):
    points, ref = fronts((3,), 14, m), torch.full((3, m), 0.9, dtype=F64)
    lengths = torch.tensor([14, 0, 9])
    for operator in (torch.ops.morlfast.hypervolume, torch.ops.morlfast.hypervolume_gradient):
        whole = operator(points, ref, False, True, lengths)
        pieces = [operator(points, ref, False, True, lengths, part=p, parts=parts) for p in range(parts)]
        if isinstance(whole, torch.Tensor):
            whole, pieces = [whole], [[piece] for piece in pieces]
        for i, expected in enumerate(whole):
            torch.testing.assert_close(sum(piece[i] for piece in pieces), expected, rtol=1e-13, atol=1e-15)


def test_a_part_depends_on_nothing_but_the_inputs():
    points, ref = fronts((), 40, 5), torch.ones(5, dtype=F64)
    expected = [torch.ops.morlfast.hypervolume(points, ref, part=p, parts=4) for p in range(4)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert [torch.ops.morlfast.hypervolume(points, ref, part=p, parts=4) for p in range(4)] == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("parts", [(-1, 2), (2, 2), (5, 2), (0, 0), (0, -1)])
@pytest.mark.parametrize("name", ["hypervolume", "hypervolume_gradient"])
def test_a_part_outside_the_parts_is_an_error(name, parts):
    points, ref = fronts((), 4, 5), torch.ones(5, dtype=F64)
    with pytest.raises(ValueError, match="part"):
        getattr(torch.ops.morlfast, name)(points, ref, part=parts[0], parts=parts[1])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (50, 2), (50, 3), (100, 4), (100, 5), (40, 6), (20, 8)])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_progress_counts_up_to_the_total(n, m, batch):
    points, calls = fronts(batch, n, m), []
    got = hv(points, 0.9, progress=lambda done, total: calls.append((done, total)))
    torch.testing.assert_close(got, hv(points, 0.9), rtol=1e-13, atol=0)
    done, totals = zip(*calls, strict=True)
    assert len(set(totals)) == 1
    assert done[0] >= 0
    assert all(a < b for a, b in itertools.pairwise(done))
    assert done[-1] == totals[-1]


@given(grids(objectives=[1, 2, 3, 4, 5]))
def test_progress_changes_no_integer(case):
    points, ref, maximize = case
    ref = torch.tensor(ref, dtype=F64)
    calls = []
    assert torch.equal(hv(points, ref, maximize, progress=lambda *call: calls.append(call)), hv(points, ref, maximize))
    assert calls
    for got, expected in zip(
        gradients(points, ref, maximize, progress=lambda *call: None), gradients(points, ref, maximize), strict=True
    ):
        assert torch.equal(got, expected)


class Stop(BaseException):
    """As KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("differentiated", [False, True])
def test_an_exception_in_progress_ends_the_work(error, differentiated):
    points, calls = fronts((), 40, 5).requires_grad_(differentiated), []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        raise error("enough")

    with pytest.raises(error, match="enough"):
        hv(points, 1.0, progress=stop)
    assert len(calls) == 1
    assert hv(points, 1.0).item() > 0


def test_progress_of_nothing_ends():
    for points in (torch.empty(0, 5, dtype=F64), torch.empty(0, 4, 5, dtype=F64), torch.full((4, 5), 2.0, dtype=F64)):
        calls = []
        got = hv(points, 1.0, progress=lambda *call, calls=calls: calls.append(call))
        assert got.sum().item() == 0.0
        assert not calls or calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_the_number_of_threads_changes_no_bit(m):
    one, several = fronts((), 40 if m < 8 else 20, m), fronts((7,), 15, m)
    ref = torch.full((m,), 0.9, dtype=F64)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            values = [hv(one, ref), hv(several, ref), hv(one, ref, max_memory=20_000)]
            results.append([*values, *gradients(one, ref), *gradients(several, ref)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Invariances.


@given(grids(), st.randoms(use_true_random=False))
def test_the_order_of_points_and_objectives_does_not_matter(case, random):
    points, ref, maximize = case
    rows = random.sample(range(len(points)), len(points))
    columns = random.sample(range(points.shape[1]), points.shape[1])
    shuffled = hv(points[rows][:, columns], [ref[k] for k in columns], [maximize[k] for k in columns])
    assert torch.equal(shuffled, hv(points, ref, maximize))


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_the_order_of_real_points_and_objectives_matters_to_rounding_only(m):
    points, ref = fronts((), 20, m), torch.linspace(0.7, 0.9, m, dtype=F64)
    expected = hv(points, ref).item()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows, columns = torch.randperm(20, generator=generator), torch.randperm(m, generator=generator)
        assert hv(points[rows][:, columns], ref[columns]).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_one_point_is_a_box(m):
    assert hv([[0.5] * m], 1.0).item() == 0.5**m
    sides = [2.0, 3.0, 0.25, 7.0, 1.5, 11.0][:m]
    assert hv([[-side for side in sides]], 0.0).item() == math.prod(sides)


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_points_that_are_all_equal_are_one_point(m):
    points = fronts((), 1, m).expand(50, m)
    assert torch.equal(hv(points, 1.0), hv(points[:1], 1.0))


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_chain_is_its_best_point(m):
    steps = torch.arange(40, dtype=F64)[:, None].expand(40, m)
    for chain in (steps, steps.flip(0)):
        assert hv(chain, 64.0).item() == 64.0**m


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_collinear_points_and_a_shared_face_are_exact(m):
    t = torch.arange(12, dtype=F64)
    line = torch.stack([t, *[11 - t] * (m - 1)], dim=-1)
    assert hv(line, 12).item() == reference.hypervolume(line.tolist(), [12] * m)
    grid = torch.from_numpy(np.random.default_rng(m).integers(0, 6, (10, m)).astype(float))
    for k in range(m):
        shared = grid.clone()
        shared[:, k] = 2
        assert hv(shared, 6).item() == reference.hypervolume(shared.tolist(), [6] * m)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 8])
def test_points_on_the_axes_add_up(m):
    # Point k is at 0 in objective k and one short of the reference point in the others.
    points = torch.full((m, m), 7.0, dtype=F64).fill_diagonal_(0)
    assert hv(points, 8).item() == 1 + 7 * m


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


@given(grids(), st.lists(st.integers(-150, 150), min_size=6, max_size=6))
def test_scaling_by_powers_of_two_scales_the_volume_exactly(case, exponents):
    points, ref, maximize = case
    m = points.shape[1]
    scales = torch.tensor([2.0**e for e in exponents[:m]], dtype=F64)
    expected = math.ldexp(hv(points, ref, maximize).item(), sum(exponents[:m]))
    assert hv(points * scales, torch.tensor(ref, dtype=F64) * scales, maximize).item() == expected


@given(grids(), st.lists(st.integers(-(2**40), 2**40), min_size=6, max_size=6))
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
@pytest.mark.parametrize("more", [[], [False], [True, False], [True, True, False]])
def test_maximize_per_objective_flips_bitwise_on_real_fronts(maximize, more):
    maximize = maximize + more
    points, ref = fronts((5,), 20, len(maximize)), torch.full((len(maximize),), 0.5, dtype=F64)
    sign = torch.tensor([-1.0 if flip else 1.0 for flip in maximize], dtype=F64)
    assert torch.equal(hv(points, ref, maximize), hv(points * sign, ref * sign))


# The bad inputs of other libraries, each with its stated result.

FRONT = [[0.2, 0.9], [0.5, 0.5], [0.9, 0.1]]
FRONT_VOLUME = float(reference.hypervolume(FRONT, [1.0, 1.0]))

# Rows that add nothing before a reference point of ones.
NOTHING = {
    "equal to the reference point": lambda m: [1.0] * m,
    "on a face": lambda m: [0.0] * (m - 1) + [1.0],
    "on a face, infinitely good": lambda m: [1.0] + [-INF] * (m - 1),
    "beyond in one objective": lambda m: [0.0] * (m - 1) + [1.5],
    "beyond in one objective, infinitely good": lambda m: [1.5] + [-INF] * (m - 1),
    "beyond in all": lambda m: [2.0] * m,
    "infinitely bad in one objective": lambda m: [0.0] * (m - 1) + [INF],
    "infinitely bad in the first objective": lambda m: [INF] + [0.0] * (m - 1),
    "infinitely bad in all": lambda m: [INF] * m,
    "NaN in the first objective": lambda m: [NAN] + [0.0] * (m - 1),
    "NaN in the last objective": lambda m: [0.0] * (m - 1) + [NAN],
    "NaN and infinitely good": lambda m: [-INF] * (m - 1) + [NAN],
}


def eighths(m: int, n: int = 14) -> torch.Tensor:
    """Points whose coordinates are eighths: every sum of volumes before ones is exact."""
    return torch.from_numpy(np.random.default_rng(m).integers(0, 8, (n, m)) / 8)


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("row", NOTHING)
def test_a_row_that_does_not_count_adds_nothing(row, m):
    row, points = torch.tensor([NOTHING[row](m)], dtype=F64), eighths(m)
    expected = hv(points, 1.0)
    assert expected.item() == reference.hypervolume(points.tolist(), [1] * m)
    assert hv(row, 1.0, nan="worst").item() == 0.0
    for i in (0, 7, 14):
        mixed = torch.cat([points[:i], row, points[i:]])
        assert torch.equal(hv(mixed, 1.0, nan="worst"), expected)
        assert torch.equal(hv(-mixed, -1.0, maximize=True, nan="worst"), expected)
        every = gradients(mixed, torch.ones(m, dtype=F64), nan="worst")[0]
        assert (every[i] == 0).all()
        assert torch.equal(torch.cat([every[:i], every[i + 1 :]]), gradients(points, torch.ones(m, dtype=F64))[0])


def test_a_point_equal_to_the_reference_point_has_no_volume():
    assert hv([*FRONT, [1.0, 1.0]], 1.0).item() == hv(FRONT, 1.0).item() == pytest.approx(FRONT_VOLUME)


def test_a_point_beyond_the_reference_point_in_one_objective_is_ignored():
    assert hv([*FRONT, [0.0, 1.5]], 1.0).item() == hv(FRONT, 1.0).item()


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_front_beyond_the_reference_point_has_no_volume(m):
    assert hv((fronts((), 9, m) + 1.0).flip(0), 1.0).item() == 0.0


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("objective", range(6))
def test_infinity_on_the_good_side_of_a_counting_point_is_infinite(m, objective):
    good = [0.5] * m
    good[objective % m] = -INF
    assert hv([good], 1.0).item() == INF
    assert hv([good, [0.5] * m, good, [0.25] * m, [-INF] * m], 1.0).item() == INF
    assert hv([[-x for x in good], [-0.5] * m], -1.0, maximize=True).item() == INF


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("objective", range(6))
def test_an_infinite_reference_point_is_infinite_if_any_point_counts(m, objective):
    ref = [1.0] * m
    ref[objective % m] = INF
    assert hv([[0.5] * m, [0.25] * m], ref).item() == INF
    assert hv([[INF if r == INF else 0.5 for r in ref]], ref).item() == 0.0
    assert hv([[0.5] * m], [INF] * m).item() == INF
    assert hv([[-INF] * m], [INF] * m).item() == INF
    assert hv(torch.empty(0, m, dtype=F64), ref).item() == 0.0
    assert hv([[0.5] * m], [-INF] * m, maximize=True).item() == INF
    assert hv([[0.5] * m], -INF).item() == 0.0


def infinite_grids(objectives: Sequence[int] = (1, 2, 3, 4, 5)) -> st.SearchStrategy[tuple[torch.Tensor, list[float]]]:
    """Fronts and reference points of small integers and infinities."""

    def of(m: int) -> st.SearchStrategy[tuple[torch.Tensor, list[float]]]:
        point = st.lists(st.sampled_from([-INF, -1.0, 0.0, 1.0, 2.0, INF]), min_size=m, max_size=m)
        ref = st.lists(st.sampled_from([1.0, 2.0, 3.0, INF]), min_size=m, max_size=m)
        front = st.lists(point, max_size=7).map(lambda rows: torch.tensor(rows, dtype=F64).reshape(-1, m))
        return st.tuples(front, ref)

    return st.sampled_from(objectives).flatmap(of)


@given(infinite_grids())
def test_infinities_anywhere_give_a_volume_or_infinity(case):
    points, ref = case
    assert hv(points, ref).item() == reference.hypervolume(points.tolist(), ref)


@given(infinite_grids())
def test_the_gradient_of_infinite_fronts_is_never_nan(case):
    points, ref = case
    value, gradient = torch.ops.morlfast.hypervolume_gradient(points, torch.tensor(ref, dtype=F64))
    assert value.item() == reference.hypervolume(points.tolist(), ref)
    assert (gradient <= 0).all()
    assert (gradient[(points >= torch.tensor(ref, dtype=F64)).any(-1)] == 0).all()


@pytest.mark.parametrize("m", OBJECTIVES[1:])
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


@given(grids(), st.integers(0, 5), st.sampled_from([-1074, -1060, 960]))
def test_one_objective_may_be_denormal_or_huge(case, objective, exponent):
    points, ref, maximize = case
    scale = torch.ones(points.shape[1], dtype=F64)
    scale[objective % points.shape[1]] = math.ldexp(1.0, exponent)
    expected = math.ldexp(hv(points, ref, maximize).item(), exponent)
    assert hv(points * scale, torch.tensor(ref, dtype=F64) * scale, maximize).item() == expected


@pytest.mark.parametrize("m", OBJECTIVES)
def test_magnitudes_beyond_any_volume_are_infinite_or_nothing_but_never_nan(m):
    huge, tiny = torch.full((1, m), -1e300, dtype=F64), torch.full((1, m), -1e-300, dtype=F64)
    assert hv(huge, 0.0).item() == (1e300 if m == 1 else INF)
    assert hv(tiny, 0.0).item() == (1e-300 if m == 1 else 0.0)
    assert hv(torch.full((1, m), -1.7e308, dtype=F64), 1.7e308).item() == INF
    random = np.random.default_rng(m)
    for _ in range(20):
        points = torch.from_numpy(random.choice([-1e308, -1e300, -1.0, -5e-324, 0.0, 5e-324, 1.0], (8, m)))
        value, gradient = torch.ops.morlfast.hypervolume_gradient(points, torch.full((m,), 1e308, dtype=F64))
        assert value.item() >= 0
        assert (gradient <= 0).all()


@pytest.mark.parametrize("m", OBJECTIVES[1:])
def test_huge_and_unit_objectives_match_exact_arithmetic(m):
    points = torch.from_numpy(np.random.default_rng(m).random((7, m)))
    points[:, m // 2] *= 1e300
    ref = [1.0] * m
    ref[m // 2] = 1e300
    assert hv(points, ref).item() == pytest.approx(float(reference.hypervolume(points.tolist(), ref)), rel=1e-13)


def test_float32_overflow_is_infinite():
    assert hv(torch.tensor([[-3e38, -3e38]]), 0.0).item() == INF
    assert hv([[-3e38, -3e38]], 0.0).item() == pytest.approx(9e76)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_in_any_coordinate_raises_by_default(m):
    for k in range(m):
        points = fronts((), 15, m)
        points[3, k] = NAN
        for options in ({}, {"nan": "raise"}, {"nan": None}):
            with pytest.raises(ValueError, match=r"(?i)nan"):
                hv(points, 1.0, **options)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_names_the_row(m):
    points = fronts((5, 7), 9, m)
    points[3, 6, 8, m // 2] = NAN
    for maximize in (False, True, [k % 2 == 0 for k in range(m)]):
        with pytest.raises(ValueError, match="points") as error:
            hv(points, 1.0, maximize)
        assert {"3", "6", "8"} <= set(re.findall(r"\d+", str(error.value)))
        with pytest.raises(ValueError, match="8"):
            hv(points[3, 6], 1.0, maximize)
        with pytest.raises(ValueError, match="8"):
            hv(points[3, 6].requires_grad_(), 1.0, maximize)
        with pytest.raises(ValueError, match="8"):
            hv(points[3, 6], 1.0, maximize, progress=lambda *call: None)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_under_a_mask_names_the_row_of_the_caller(m):
    points, mask = fronts((5, 7), 9, m), torch.ones(5, 7, 9, dtype=torch.bool)
    points[3, 6, 8, m // 2] = NAN
    mask[3, 6, :4] = False
    with pytest.raises(ValueError, match="points") as error:
        hv(points, 1.0, mask=mask)
    assert {"3", "6", "8"} <= set(re.findall(r"\d+", str(error.value)))
    mask[3, 6, 8] = False
    assert hv(points, 1.0, mask=mask).isfinite().all()


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_nan_row_is_ignored_when_nan_is_worst(m):
    for k in range(m):
        points = fronts((3,), 16, m)
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


@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_in_any_objective_of_the_reference_point_raises_or_is_nan(m):
    for k in range(m):
        ref = torch.ones(3, m, dtype=F64)
        ref[1, k] = NAN
        with pytest.raises(ValueError, match="ref_point"):
            hv(fronts((3,), 4, m), ref)
        assert hv(fronts((3,), 4, m), ref, nan="worst").isnan().tolist() == [False, True, False]
        assert hv(fronts((3,), 0, m), ref, nan="worst").isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_worst_equals_raise_without_nan(m):
    points = fronts((4,), 30, m)
    assert torch.equal(hv(points, 0.9, nan="worst"), hv(points, 0.9, nan="raise"))


# Gradients.


def gradients(points: torch.Tensor, ref: torch.Tensor, maximize=False, **options):
    points, ref = points.clone().requires_grad_(), ref.clone().requires_grad_()
    return torch.autograd.grad(hv(points, ref, maximize, **options).sum(), (points, ref))


@given(grids(max_n=9))
def test_the_gradient_of_integer_grids_is_exact_with_ties_and_duplicates(case):
    points, ref, maximize = case
    expected_points, expected_ref = reference.hypervolume_gradient(points.tolist(), ref, maximize)
    grad_points, grad_ref = gradients(points, torch.tensor(ref, dtype=F64), maximize)
    assert grad_points.tolist() == expected_points
    assert grad_ref.tolist() == expected_ref


@pytest.mark.parametrize("m", MANY[:5])
def test_the_gradient_of_many_objectives_is_exact(m):
    points, ref, maximize = many(m)
    expected_points, expected_ref = reference.hypervolume_gradient(points.tolist(), ref, maximize)
    grad_points, grad_ref = gradients(points, torch.tensor(ref, dtype=F64), maximize)
    assert grad_points.tolist() == expected_points
    assert grad_ref.tolist() == expected_ref


@pytest.mark.parametrize("m", OBJECTIVES)
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
    mask = flags((5,), 6)
    assert torch.autograd.gradcheck(lambda z, r: hv(z, r, maximize, mask=mask, max_memory=2000), (points, ref))


LARGER = [(20, 3), (63, 3), (64, 3), (65, 3), (129, 3), (64, 4), (129, 4), (65, 5), (40, 6), (20, 8)]


@pytest.mark.parametrize(("n", "m"), LARGER)
def test_the_gradient_of_larger_fronts_matches_central_differences(n, m):
    points = torch.from_numpy(shaped("spherical", n, m))
    grad_points, grad_ref = gradients(points, torch.ones(m, dtype=F64))
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal((n, m)))
    step = 1e-7
    slope = (hv(points + step * direction, 1.0) - hv(points - step * direction, 1.0)) / (2 * step)
    assert (grad_points * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(grad_ref, -grad_points.sum(0))
    assert (grad_points <= 0).all()


@pytest.mark.parametrize(("n", "m"), LARGER)
def test_the_gradient_gives_the_value_along_each_objective(n, m):
    # The volume is the sum over the points of their distance to the reference point times what they cover of a face.
    points = torch.from_numpy(shaped("cloud", n, m))
    value, gradient = hv(points, 1.0).item(), gradients(points, torch.ones(m, dtype=F64))[0]
    for k in range(m):
        assert -((1 - points[:, k]) * gradient[:, k]).sum().item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_the_gradient_does_not_depend_on_the_order_of_objectives(m):
    points, ref = fronts((), 15, m), torch.ones(m, dtype=F64)
    columns = torch.randperm(m, generator=torch.Generator().manual_seed(1))
    shuffled, _ = gradients(points[:, columns], ref)
    torch.testing.assert_close(shuffled, gradients(points, ref)[0][:, columns], rtol=1e-12, atol=1e-15)


@given(grids(min_n=1, objectives=[4, 5, 6]))
def test_dominated_rows_get_exactly_no_gradient_and_copies_leave_it_to_the_first(case):
    points, ref, maximize = case
    grad, _ = gradients(points, torch.tensor(ref, dtype=F64), maximize)
    minimized = torch.where(torch.tensor(maximize), -points, points)
    covered = (minimized[:, None] <= minimized).all(-1)
    copies = (minimized[:, None] == minimized).all(-1)
    second = copies.triu(1).any(0)
    assert (grad[(covered & ~copies).any(0) | second] == 0).all()


def test_dominated_points_get_exactly_no_gradient():
    points = torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.75, 0.75], [0.25, 0.5, 0.75]], dtype=F64)
    grad_points, _ = gradients(points, torch.ones(3, dtype=F64))
    assert (grad_points[1:] == 0).all()
    assert grad_points[0].tolist() == [-0.25, -0.375, -0.375]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_of_duplicates_the_lowest_row_gets_everything(m):
    point = torch.full((1, m), 0.5, dtype=F64)
    alone, _ = gradients(point, torch.ones(m, dtype=F64))
    copies, _ = gradients(point.expand(4, m), torch.ones(m, dtype=F64))
    assert torch.equal(copies[:1], alone)
    assert (copies[1:] == 0).all()


@pytest.mark.parametrize("m", OBJECTIVES)
def test_points_on_or_beyond_the_reference_point_and_padding_get_no_gradient(m):
    points = torch.tensor([[0.5] * m, [1.0] * m, [0.25] * (m - 1) + [1.0], [2.0] * m, [0.0] * m], dtype=F64)
    alone, _ = gradients(points[:1], torch.ones(m, dtype=F64))
    grad_points, grad_ref = gradients(points, torch.ones(m, dtype=F64), lengths=torch.tensor(4))
    assert torch.equal(grad_points[:1], alone)
    assert (grad_points[1:] == 0).all()
    assert torch.equal(grad_ref, -alone[0])


@pytest.mark.parametrize("m", [3, 5])
@pytest.mark.parametrize("batch", [None, (), (1,), (5,), (4, 1), (4, 5)])
def test_the_gradient_of_a_broadcast_reference_point_is_summed(batch, m):
    points = fronts((4, 5), 6, m)
    shape = () if batch is None else (*batch, m)
    ref = torch.full(shape, 0.875, dtype=F64)
    full_points, full_ref = gradients(points, ref.expand(4, 5, m))
    grad_points, grad_ref = gradients(points, ref)
    assert grad_ref.shape == shape
    assert torch.equal(grad_points, full_points)
    torch.testing.assert_close(grad_ref, full_ref.sum_to_size(shape))


@pytest.mark.parametrize("m", OBJECTIVES)
def test_gradients_of_a_batch_equal_a_loop_bitwise_and_weigh_each_front(m):
    points = fronts((6,), 11, m).requires_grad_()
    weights = torch.tensor([0.0, 1.0, -2.0, 0.5, 4.0, 3.0], dtype=F64)
    (batch,) = torch.autograd.grad((hv(points, 0.9) * weights).sum(), points)
    for i in range(6):
        (one,) = torch.autograd.grad(hv(points[i], 0.9) * weights[i], points)
        assert torch.equal(batch[i], one[i])


@pytest.mark.parametrize("m", OBJECTIVES)
def test_masked_rows_get_no_gradient(m):
    points, mask = fronts((4,), 10, m), flags((4,), 10)
    grad_points, grad_ref = gradients(points, torch.ones(m, dtype=F64), mask=mask)
    assert (grad_points[~mask] == 0).all()
    for i in range(4):
        expected_points, _ = gradients(points[i][mask[i]], torch.ones(m, dtype=F64))
        assert torch.equal(grad_points[i][mask[i]], expected_points)
    torch.testing.assert_close(grad_ref, -grad_points.sum((0, 1)))


@pytest.mark.parametrize("m", OBJECTIVES)
def test_float32_gradients_are_computed_in_float64(m):
    points, ref = fronts((3,), 12, m).float(), torch.full((3, m), 0.75)
    for got, wide in zip(gradients(points, ref), gradients(points.double(), ref.double()), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wide.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("m", [3, 5])
def test_any_strides_give_the_same_gradient(m):
    x = fronts((3, 2), 9, m)
    expected, _ = gradients(x, torch.ones(m, dtype=F64))
    for name, view in strided_copies(x).items():
        view = view.detach().requires_grad_()
        (got,) = torch.autograd.grad(hv(view, 1.0).sum(), view)
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("m", [3, 5])
def test_either_input_alone_is_differentiable(m):
    points, ref = fronts((), 7, m), torch.ones(m, dtype=F64)
    both = gradients(points, ref)
    z = points.clone().requires_grad_()
    r = ref.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(hv(z, ref), z)[0], both[0])
    assert torch.equal(torch.autograd.grad(hv(points, r), r)[0], both[1])
    assert not hv(points, ref).requires_grad
    with torch.no_grad():
        assert not hv(z, r).requires_grad


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("batch", [(), (0,), (2,)])
def test_empty_fronts_have_empty_or_zero_gradients(batch, m):
    grad_points, grad_ref = gradients(torch.zeros(*batch, 0, m, dtype=F64), torch.ones(m, dtype=F64))
    assert grad_points.shape == (*batch, 0, m)
    assert grad_ref.tolist() == [0.0] * m


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("leaf", ["points", "ref_point"])
def test_double_backward_raises(leaf, m):
    points, ref = fronts((), 4, m).requires_grad_(), torch.ones(m, dtype=F64, requires_grad=True)
    x = points if leaf == "points" else ref
    (grad,) = torch.autograd.grad(hv(points, ref) + x.square().sum(), x, create_graph=True)
    # Dropping the second derivative without a word would leave that of the square alone.
    with pytest.raises(RuntimeError, match=r"(?i)twice|double|once"):
        torch.autograd.grad(grad.square().sum(), x)


@pytest.mark.parametrize("m", [3, 5])
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "jvp"])
def test_torch_func_is_right_or_says_no(transform, m):
    points = fronts((), 5, m)
    expected, _ = gradients(points, torch.ones(m, dtype=F64))
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


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_nan_row_gets_no_gradient_when_nan_is_worst(m):
    points = fronts((), 6, m)
    points[2, m // 2] = NAN
    keep = [0, 1, 3, 4, 5]
    grad_points, grad_ref = gradients(points, torch.ones(m, dtype=F64), nan="worst")
    expected_points, expected_ref = gradients(points[keep], torch.ones(m, dtype=F64))
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


def test_a_batch_of_points_is_no_error_and_one_row_is():
    assert hv(fronts((2, 3), 4, 5), 1.0).shape == (2, 3)
    with pytest.raises(ValueError, match=r"points.*\(5,\)"):
        hv([0.5] * 5, 1.0)


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


@pytest.mark.parametrize("mask", [torch.ones(4, 3), torch.ones(4, 3, dtype=torch.int64), "all", [[1, 0, 1]] * 4])
def test_a_mask_must_be_bool(mask):
    with pytest.raises(TypeError, match="mask"):
        hv(fronts((4,), 3, 2), 1.0, mask=mask)


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (4, 1), (4,), (4, 3, 1), (4, 2), (3, 4)])
def test_a_mask_must_have_the_shape_of_the_rows(shape):
    with pytest.raises(ValueError, match=r"mask.*\(4, 3\)"):
        hv(fronts((4,), 3, 2), 1.0, mask=torch.ones(shape, dtype=torch.bool))


def test_lengths_and_a_mask_together_are_an_error():
    with pytest.raises(ValueError, match=r"lengths.*mask|mask.*lengths"):
        hv(fronts((), 3, 2), 1.0, lengths=torch.tensor(3), mask=torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("progress", [True, 1, "bar"])
def test_progress_must_be_callable(progress, m):
    with pytest.raises(TypeError, match="progress"):
        hv(fronts((), 3, m), 1.0, progress=progress)


@pytest.mark.parametrize("nan", ["ignore", "", 0, True])
def test_nan_must_be_a_policy(nan):
    with pytest.raises((TypeError, ValueError), match="nan"):
        hv(FRONT, 1.0, nan=nan)


def test_other_devices_must_match():
    with pytest.raises(ValueError, match="ref_point"):
        hv(FRONT, torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match="lengths"):
        hv(fronts((2,), 3, 2), 1.0, lengths=torch.ones(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="mask"):
        hv(fronts((2,), 3, 2), 1.0, mask=torch.ones(2, 3, dtype=torch.bool, device="meta"))


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


@pytest.mark.parametrize("m", [3, 5])
def test_copies_of_the_strongest_point_of_a_cloud_add_nothing(m):
    # What one strong point dominates is dropped before anything is sorted; of its copies the lowest row stays.
    points = torch.rand(200, m, dtype=F64, generator=torch.Generator().manual_seed(5))
    points[17] = points[150] = 0.05
    once = points.clone()
    once[150] = 1.0
    assert hv(points, 1.0) == hv(once, 1.0)
    gradient, _ = gradients(points, torch.ones(m, dtype=F64))
    assert torch.equal(gradient, gradients(once, torch.ones(m, dtype=F64))[0])
    assert gradient[150].eq(0).all()


# What holds for the whole family.


def improvement(points, ref_point, *, maximize, joint, **options) -> torch.Tensor:
    """Of three candidates, or of two sets of three, at a quarter, a half and three quarters of each objective."""
    m = points.shape[-1] if hasattr(points, "shape") and len(points.shape) else 3
    steps = torch.tensor([[0.25], [0.5], [0.75]], dtype=F64).expand(3, m)
    mixed = isinstance(maximize, list) and len(maximize) == m and all(isinstance(flip, bool) for flip in maximize)
    flip = torch.tensor(maximize if mixed else [maximize is True] * m, dtype=torch.bool)
    dtype = getattr(points, "dtype", F64)
    candidates = torch.where(flip, -steps, steps).to(dtype if dtype in (torch.float32, F64) else F64)
    if joint:
        candidates = torch.stack([candidates, candidates / 2])
    return morlfast.hypervolume_improvement(
        candidates.to(getattr(points, "device", "cpu")), points, ref_point, maximize=maximize, joint=joint, **options
    )


ROWS = {
    "contributions": lambda *args, **options: morlfast.hypervolume_contributions(*args, **options),
    "contributions without the dominated": lambda *args, **options: morlfast.hypervolume_contributions(
        *args, dominated="ignore", **options
    ),
    "least contributor": lambda *args, **options: morlfast.least_contributor(*args, **options),
    "subset": lambda points, *args, **options: morlfast.hypervolume_subset(points, 2, *args, **options),
}
VALUES = {
    "hypervolume": lambda *args, **options: morlfast.hypervolume(*args, **options),
    "improvement": lambda *args, **options: improvement(*args, joint=False, **options),
    "joint improvement": lambda *args, **options: improvement(*args, joint=True, **options),
}
BOXES = {
    "dominated boxes": lambda *args, **options: morlfast.box_decomposition(*args, region="dominated", **options),
    "other boxes": lambda *args, **options: morlfast.box_decomposition(*args, region="non_dominated", **options),
}
FAMILY = {**ROWS, **VALUES, **BOXES}


def results(name: str, *args, maximize=False, **options) -> list[torch.Tensor]:
    found = FAMILY[name](*args, maximize=maximize, **options)
    return [found] if isinstance(found, torch.Tensor) else list(found)


def assert_same(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def named(name: str) -> str:
    """What the function calls the points."""
    return "front" if "improvement" in name else "points"


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [1, 2, 3, 5, 7])
def test_the_family_takes_any_strides(name, m):
    x = fronts((3, 2), 7, m)
    expected = results(name, x, 0.9)
    for view in strided_copies(x).values():
        assert_same(results(name, view, 0.9), expected)
    assert_same([r[1] for r in results(name, x.expand(2, 3, 2, 7, m), 0.9)], expected)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", OBJECTIVES)
def test_the_family_takes_float32_integers_lists_and_arrays(name, m):
    x = fronts((), 9, m)
    wide = results(name, x.float().double(), 0.9)
    for got, expected in zip(results(name, x.float(), torch.full((m,), 0.9, dtype=F64)), wide, strict=True):
        assert got.dtype == (torch.float32 if expected.dtype == F64 else torch.int64)
        assert torch.equal(got, expected.to(got.dtype))
    integers = torch.randint(-3, 1, (9, m), generator=torch.Generator().manual_seed(m))
    expected = results(name, integers.double(), 1.0)
    for same in (integers, integers.int(), integers.numpy(), np.asfortranarray(integers.numpy().astype(float))):
        assert_same(results(name, same, 1), expected)
    if "improvement" not in name or m == 3:
        assert_same(results(name, integers.tolist(), [1] * m), expected)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_the_family_leaves_its_inputs_unchanged(name, m):
    points, ref, lengths, mask = fronts((4,), 8, m), torch.full((4, m), 0.5, dtype=F64), [8, 0, 3, 1], flags((4,), 8)
    lengths = torch.tensor(lengths)
    inputs = (points, ref, lengths, mask)
    copies = [x.clone() for x in inputs]
    for maximize in (False, True):
        results(name, points, ref, maximize=maximize, lengths=lengths)
        results(name, points, ref, maximize=maximize, mask=mask)
    for x, copy in zip(inputs, copies, strict=True):
        assert torch.equal(x, copy)
        assert x._version == 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_the_family_only_reads_a_read_only_memory_map(tmp_path, name, m):
    x = np.random.default_rng(0).random((20, m))
    x.tofile(tmp_path / "points")
    mapped = np.memmap(tmp_path / "points", dtype=np.float64, mode="r", shape=x.shape)
    assert_same(results(name, mapped, 1.0), results(name, torch.from_numpy(x), 1.0))
    assert_same(results(name, torch.from_numpy(mapped), 1.0), results(name, torch.from_numpy(x), 1.0))


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "hypervolume"])
@pytest.mark.parametrize("m", [1, 3, 5])
def test_the_rest_of_the_family_detaches(name, m):
    points, ref = fronts((2,), 6, m), torch.ones(m, dtype=F64)
    expected = results(name, points, ref)
    got = results(name, points.clone().requires_grad_(), ref.clone().requires_grad_())
    assert not any(r.requires_grad for r in got)
    assert_same(got, expected)


@pytest.mark.parametrize("name", [*ROWS, *VALUES])
@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_a_batch_of_the_family_equals_a_loop_bitwise(name, m):
    points = fronts((2, 3), 9, m)
    ref = fronts((2, 3), 1, m, seed=1).squeeze(-2) + 0.25
    got = results(name, points, ref)
    assert got[0].shape[:2] == (2, 3)
    for i in range(2):
        for j in range(3):
            assert_same([r[i, j] for r in got], results(name, points[i, j], ref[i, j]))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("batch", [None, (), (1,), (4, 1), (5,), (4, 5)])
def test_the_reference_point_of_the_family_broadcasts(name, batch):
    points = fronts((4, 5), 6, 3)
    shape = () if batch is None else (*batch, 3)
    ref = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.25
    assert_same(results(name, points, ref), results(name, points, ref.expand(4, 5, 3).contiguous()))


@pytest.mark.parametrize("name", [*ROWS, *VALUES])
@pytest.mark.parametrize("m", [1, 3, 4, 6])
def test_the_family_maximizes_by_mirroring(name, m):
    points, ref = fronts((3,), 9, m), torch.full((m,), 0.9, dtype=F64)
    expected = results(name, points, ref)
    assert_same(results(name, -points, -ref, maximize=True), expected)
    for maximize in itertools.islice(itertools.product([True, False], repeat=m), 1, 6):
        sign = torch.tensor([-1.0 if flip else 1.0 for flip in maximize], dtype=F64)
        assert_same(results(name, points * sign, ref * sign, maximize=list(maximize)), expected)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_the_number_of_threads_changes_no_bit_of_the_family(name, m):
    one, several = fronts((), 20 if m < 8 else 10, m), fronts((7,), 10 if m < 8 else 6, m)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([*results(name, one, 0.9), *results(name, several, 0.9)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("name", [*ROWS, *VALUES])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("max_memory", [1, 500, 5000])
def test_any_memory_limit_gives_the_family_the_same_integers(name, m, max_memory):
    points = eighths(m, 9)
    assert_same(results(name, points, 1.0, max_memory=max_memory), results(name, points, 1.0))


@pytest.mark.parametrize("name", [*ROWS, *VALUES])
@pytest.mark.parametrize(("n", "m"), [(60, 2), (60, 3), (30, 4), (20, 5), (12, 6), (8, 8)])
def test_any_memory_limit_gives_the_family_the_same_values(name, n, m):
    points = torch.from_numpy(shaped("spherical", n, m))
    for max_memory in (500, 20_000):
        got = results(name, points, 1.0, max_memory=max_memory)
        torch.testing.assert_close(got, results(name, points, 1.0), rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("m", [2, 5])
def test_an_empty_batch_gives_empty_results(name, batch, m):
    for r in results(name, torch.empty(*batch, 5, m, dtype=F64), 1.0):
        assert r.shape[: len(batch)] == batch


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_in_any_coordinate_raises_across_the_family(name, m):
    points = fronts((5, 7), 15, m)
    for k in range(m):
        bad = points.clone()
        bad[3, 6, 13, k] = NAN
        for options in ({}, {"nan": "raise"}, {"nan": None}, {"maximize": [True] + [False] * (m - 1)}):
            with pytest.raises(ValueError, match=named(name)) as error:
                results(name, bad, 1.0, **options)
            assert {"3", "6", "13"} <= set(re.findall(r"\d+", str(error.value)))
    lengths = torch.full((5, 7), 15)
    lengths[3, 6] = 13
    mask = torch.ones(5, 7, 15, dtype=torch.bool)
    mask[3, 6, 2:5] = False
    with pytest.raises(ValueError, match=named(name)) as error:
        results(name, bad, 1.0, mask=mask)
    assert {"3", "6", "13"} <= set(re.findall(r"\d+", str(error.value)))
    mask[3, 6, 13] = False
    for options in ({"lengths": lengths}, {"mask": mask}):
        assert not any(r.isnan().any() for r in results(name, bad, 1.0, **options))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_in_the_reference_point_raises_across_the_family(name, m):
    for ref in (NAN, [1.0] * (m - 1) + [NAN], torch.tensor([NAN] + [1.0] * (m - 1))):
        with pytest.raises(ValueError, match="ref_point"):
            results(name, fronts((), 4, m), ref)


@pytest.mark.parametrize("name", ["contributions", "improvement", "joint improvement"])
@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_in_the_reference_point_gives_nan_under_worst(name, m):
    ref = torch.ones(3, m, dtype=F64)
    ref[1, m // 2] = NAN
    (got,) = results(name, fronts((3,), 4, m), ref, nan="worst")
    assert got.flatten(1).isnan().all(1).tolist() == [False, True, False]
    assert not got[::2].isnan().any()


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_names_the_points(name):
    for bad in ("front", None, object(), [["a", "b"]]):
        with pytest.raises(TypeError, match=named(name)):
            results(name, bad, 1.0)
    for dtype in (torch.float16, torch.bfloat16, torch.complex64):
        with pytest.raises(TypeError, match=named(name)):
            results(name, torch.ones(4, 2, dtype=dtype), 2.0)
    for shape in ((), (4,)):
        with pytest.raises(ValueError, match=named(name)):
            results(name, torch.zeros(shape, dtype=F64), 1.0)
    for shape in ((3, 0), (2, 3, 0), (3, 65)):
        with pytest.raises(ValueError, match=f"{named(name)}|candidates"):
            results(name, torch.zeros(shape, dtype=F64), 1.0)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [2, 5])
def test_the_family_names_the_reference_point(name, m):
    for shape in ((2, m), (m + 1,), (4, m + 1), (2, 1, m), (5, 4, m), (0,)):
        with pytest.raises(ValueError, match="ref_point"):
            results(name, torch.zeros(4, 6, m, dtype=F64), torch.ones(shape, dtype=F64))
    for bad in ("one", None, torch.ones(m, dtype=torch.complex64)):
        with pytest.raises((TypeError, ValueError), match="ref_point"):
            results(name, fronts((), 6, m), bad)
    with pytest.raises(ValueError, match="ref_point"):
        results(name, fronts((), 6, m), torch.ones(m, device="meta"))


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_names_maximize(name):
    with pytest.raises(TypeError, match="maximize"):
        FAMILY[name](torch.zeros(3, 2), 1.0)
    for bad in ("yes", None, 0.5, ["yes", "no", "no"], [None, True, True]):
        with pytest.raises(TypeError, match="maximize"):
            results(name, fronts((), 6, 3), 1.0, maximize=bad)
    for bad in ([], [True], [True, False, True, True]):
        with pytest.raises(ValueError, match="maximize"):
            results(name, fronts((), 6, 3), 1.0, maximize=bad)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [2, 5])
def test_the_family_names_lengths_and_mask(name, m):
    points = fronts((4,), 3, m)
    for bad in (torch.ones(4), torch.ones(4, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="lengths"):
            results(name, points, 1.0, lengths=bad)
    for shape in ((), (3,), (1, 4), (4, 1), (5,)):
        with pytest.raises(ValueError, match="lengths"):
            results(name, points, 1.0, lengths=torch.ones(shape, dtype=torch.int64))
    for bad in (-1, 4, 2**62, -(2**63)):
        with pytest.raises(ValueError, match="lengths"):
            results(name, points, 1.0, lengths=torch.tensor([0, 3, bad, 1]))
    for bad in (torch.ones(4, 3), torch.ones(4, 3, dtype=torch.int64)):
        with pytest.raises(TypeError, match="mask"):
            results(name, points, 1.0, mask=bad)
    for shape in ((), (3,), (4, 1), (4,), (4, 3, 1), (3, 4)):
        with pytest.raises(ValueError, match="mask"):
            results(name, points, 1.0, mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"lengths.*mask|mask.*lengths"):
        results(name, points, 1.0, lengths=torch.ones(4, dtype=torch.int64), mask=torch.ones(4, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("m", [2, 5])
def test_the_family_names_nan_and_max_memory(name, m):
    points = fronts((), 3, m)
    for bad in ("ignore", "", 0, True):
        with pytest.raises((TypeError, ValueError), match="nan"):
            results(name, points, 1.0, nan=bad)
    for bad in ("1GB", None, -1):
        with pytest.raises((TypeError, ValueError), match="max_memory"):
            results(name, points, 1.0, max_memory=bad)


# The operators' new arguments under torch's machinery.

DEEP = fronts((2, 3), 8, 5)
SAMPLES = [
    (DEEP, torch.ones(5, dtype=F64)),
    (DEEP.float(), torch.ones(2, 3, 5), True, False, torch.tensor([[8, 0, 3], [1, 8, 7]]), 2000, 1, 3),
    (DEEP[0, 0].T.contiguous().T, torch.ones(5, dtype=F64), False, True, None, 1, 0, 2),
    (DEEP[:, :0], torch.ones(5, dtype=F64)),
]


@pytest.mark.parametrize("name", ["hypervolume", "hypervolume_gradient"])
@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_opcheck(name, sample):
    torch.library.opcheck(getattr(torch.ops.morlfast, name).default, SAMPLES[sample])


@pytest.mark.parametrize("dynamic", [False, True])
def test_five_objectives_compile_without_a_graph_break(dynamic):
    def volume(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return morlfast.hypervolume(points, 1.0, maximize=[True, False] * 2 + [False], mask=mask, nan="worst")

    torch._dynamo.reset()
    compiled = torch.compile(volume, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    mask = flags((2, 3), 8)
    assert torch.equal(compiled(DEEP, mask), volume(DEEP, mask))


def test_a_compiled_gradient_of_five_objectives():
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: hv(z, 1.0).log1p().sum(), fullgraph=True, backend="aot_eager")
    points = DEEP.clone().requires_grad_()
    (expected,) = torch.autograd.grad(hv(points, 1.0).log1p().sum(), points)
    torch.testing.assert_close(torch.autograd.grad(compiled(points), points)[0], expected)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_meta_points_give_a_meta_result(m):
    points = fronts((2, 3), 8, m).float().to("meta")
    for options in ({}, {"mask": torch.ones(2, 3, 8, dtype=torch.bool, device="meta")}, {"max_memory": 1000}):
        got = hv(points, 1.0, **options)
        assert got.is_meta
        assert (got.shape, got.dtype) == ((2, 3), torch.float32)


def test_what_rounding_leaves_above_zero_is_no_gradient():
    random = np.random.default_rng(0)
    for m in (4, 5, 6):
        rows = random.random((12, m))
        rows[6:] = rows[:6] + random.choice([1e-12, 1e-14, 2e-16], (6, m))
        points = torch.from_numpy(rows).requires_grad_()
        (gradient,) = torch.autograd.grad(hv(points, 1.0), points)
        assert (gradient <= 0).all()


def test_pieces_of_a_float32_call_are_rounded_once():
    points = fronts((), 100, 6).float()
    assert torch.equal(hv(points, 0.9, progress=lambda done, total: None), hv(points.double(), 0.9).float())


@pytest.mark.parametrize("ref_point", [True, torch.tensor([True, True])])
def test_bools_are_no_numbers(ref_point):
    with pytest.raises(TypeError, match="points"):
        hv(torch.ones(3, 2, dtype=torch.bool), 2.0)
    with pytest.raises(TypeError, match="ref_point"):
        hv(torch.zeros(3, 2), ref_point)
