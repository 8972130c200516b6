"""Box decompositions: disjoint, inside their region, and all of it."""

from __future__ import annotations

from math import prod

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import hypervolume as reference
from test_hypervolume import (
    F64,
    INF,
    MANY,
    NAN,
    NOTHING,
    OBJECTIVES,
    eighths,
    flags,
    fronts,
    grids,
    infinite_grids,
    many,
    shaped,
)

REGIONS = ["dominated", "non_dominated"]


def decompose(points, ref_point, region, maximize=False, **options):
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.box_decomposition(points, ref_point, region=region, maximize=maximize, **options)


def boxes_of(points, ref_point, region, maximize=False, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper corners of the boxes of one front."""
    lower, upper, counts = decompose(points, ref_point, region, maximize, **options)
    assert lower.shape == upper.shape == (counts.item(), points.shape[-1])
    assert counts.dtype == torch.int64
    return lower, upper


def assert_partition(points: torch.Tensor, ref: list[float], region: str, maximize, **options) -> None:
    """All on integers, exactly: inside the region, disjoint, and of its volume, so nothing is left out."""
    lower, upper = boxes_of(points, ref, region, maximize, **options)
    assert (lower < upper).all()
    m = len(ref)
    maximize = [maximize] * m if isinstance(maximize, bool) else maximize
    rows, low, high = points.tolist(), lower.tolist(), upper.tolist()
    counting = [z for z in rows if reference.hypervolume([z], ref, maximize) > 0]
    for box in zip(low, high, strict=True):
        assert reference.box_is_in_region(*box, counting, ref, region, maximize)
    assert reference.boxes_are_disjoint(low, high)

    volume = reference.hypervolume(rows, ref, maximize)
    if region == "non_dominated":
        # What is unbounded is cut one beyond the best coordinate of any counting point.
        bounds = []
        for k, flip in enumerate(maximize):
            values = [ref[k], *(z[k] for z in counting)]
            bounds.append(max(values) + 1 if flip else min(values) - 1)
        volume = prod(abs(bound - r) for bound, r in zip(bounds, ref, strict=True)) - volume
        low = [[max(a, b) if not flip else a for a, b, flip in zip(z, bounds, maximize, strict=True)] for z in low]
        high = [[min(a, b) if flip else a for a, b, flip in zip(z, bounds, maximize, strict=True)] for z in high]
    assert reference.box_volumes(low, high) == volume


# One front.


@given(grids(), st.sampled_from(REGIONS))
def test_the_boxes_of_integer_grids_partition_their_region(case, region):
    points, ref, maximize = case
    assert_partition(points, ref, region, maximize)


@pytest.mark.parametrize("m", MANY[:5])
@pytest.mark.parametrize("region", REGIONS)
def test_the_boxes_of_many_objectives_partition_their_region(m, region):
    points, ref, maximize = many(m)
    assert_partition(points[:3] if m > 8 else points, ref, region, maximize)


@given(grids(), st.sampled_from(REGIONS), st.randoms(use_true_random=False))
def test_every_point_of_a_region_lies_in_one_box_and_no_other_in_any(case, region, random):
    points, ref, maximize = case
    lower, upper = boxes_of(points, ref, region, maximize)
    boxes = list(zip(lower.tolist(), upper.tolist(), strict=True))
    for _ in range(20):
        # Halves lie inside the cells, integers on their borders.
        x = [random.randint(-5, 16) / 2 for _ in ref]
        holding = sum(reference.in_box(x, *box, maximize) for box in boxes)
        assert holding == reference.in_region(x, points.tolist(), ref, region, maximize)


@pytest.mark.parametrize(("n", "m"), [(100, 1), (100, 2), (60, 3), (40, 4), (25, 5), (15, 6), (8, 8)])
@pytest.mark.parametrize("shape", ["spherical", "cloud", "ties"])
def test_dominated_boxes_add_up_to_the_hypervolume(n, m, shape):
    points = torch.from_numpy(shaped(shape, n, m))
    lower, upper = boxes_of(points, 1.0, "dominated")
    expected = morlfast.hypervolume(points, 1.0, maximize=False).item()
    assert (upper - lower).prod(-1).sum().item() == pytest.approx(expected, rel=1e-12)
    assert (upper <= 1.0).all()


@pytest.mark.parametrize(("n", "m"), [(100, 1), (100, 2), (60, 3), (40, 4), (25, 5), (15, 6), (8, 8)])
@pytest.mark.parametrize("shape", ["spherical", "cloud", "ties"])
def test_other_boxes_give_the_improvement_of_a_candidate(n, m, shape):
    points, candidates = torch.from_numpy(shaped(shape, n, m)), fronts((), 4, m, seed=1) - 0.25
    lower, upper = boxes_of(points, 1.0, "non_dominated")
    overlap = (upper - torch.maximum(lower, candidates[:, None])).clamp(min=0).prod(-1).sum(-1)
    expected = morlfast.hypervolume_improvement(candidates, points, 1.0, maximize=False)
    torch.testing.assert_close(overlap, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("region", REGIONS)
def test_corners_are_coordinates_of_points_and_reference_point(m, region):
    points, ref = fronts((), 10, m), torch.full((m,), 0.9, dtype=F64)
    for flip in (False, True):
        sign = -1 if flip else 1
        lower, upper = boxes_of(points * sign, ref * sign, region, flip)
        for k in range(m):
            known = {*(points[:, k] * sign).tolist(), ref[k].item() * sign, -INF * sign}
            assert {*lower[:, k].tolist(), *upper[:, k].tolist()} <= known


@pytest.mark.parametrize("m", [*OBJECTIVES, 10])
def test_an_empty_front_has_no_dominated_box_and_one_other(m):
    nothing = torch.empty(0, m, dtype=F64)
    for points in (nothing, torch.full((3, m), 2.0, dtype=F64), torch.ones(1, m, dtype=F64)):
        lower, upper = boxes_of(points, 1.0, "dominated")
        assert lower.shape == upper.shape == (0, m)
        lower, upper = boxes_of(points, 1.0, "non_dominated")
        assert lower.tolist() == [[-INF] * m]
        assert upper.tolist() == [[1.0] * m]
    lower, upper = boxes_of(nothing, 1.0, "non_dominated", True)
    assert lower.tolist() == [[1.0] * m]
    assert upper.tolist() == [[INF] * m]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_one_point_dominates_one_box(m):
    lower, upper = boxes_of(torch.full((1, m), 0.5, dtype=F64), 1.0, "dominated")
    assert lower.tolist() == [[0.5] * m]
    assert upper.tolist() == [[1.0] * m]
    lower, upper = boxes_of(torch.full((4, m), 0.5, dtype=F64), 0.25, "dominated", True)
    assert lower.tolist() == [[0.25] * m]
    assert upper.tolist() == [[0.5] * m]


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("row", NOTHING)
@pytest.mark.parametrize("region", REGIONS)
def test_a_row_that_does_not_count_changes_no_box(row, m, region):
    row, points = torch.tensor([NOTHING[row](m)], dtype=F64), eighths(m, 8)
    expected = boxes_of(points, 1.0, region)
    for i in (0, 4, 8):
        mixed = torch.cat([points[:i], row, points[i:]])
        for got, same in zip(boxes_of(mixed, 1.0, region, nan="worst"), expected, strict=True):
            assert torch.equal(got, same)


@given(infinite_grids(objectives=(1, 2, 3, 4)), st.sampled_from(REGIONS), st.randoms(use_true_random=False))
def test_infinities_are_corners(case, region, random):
    points, ref = case
    lower, upper = boxes_of(points, ref, region)
    assert (lower < upper).all()
    boxes = list(zip(lower.tolist(), upper.tolist(), strict=True))
    assert reference.boxes_are_disjoint(lower.tolist(), upper.tolist())
    for _ in range(20):
        x = [random.randint(-5, 8) / 2 for _ in ref]
        holding = sum(reference.in_box(x, *box) for box in boxes)
        assert holding == reference.in_region(x, points.tolist(), ref, region)


@given(grids(), st.sampled_from(REGIONS))
def test_maximize_mirrors_the_boxes(case, region):
    points, ref, maximize = case
    ref, flip = torch.tensor(ref, dtype=F64), torch.tensor(maximize)
    sign = torch.where(flip, -1.0, 1.0).to(F64)
    lower, upper = boxes_of(points, ref, region, maximize)
    mirrored_lower, mirrored_upper = boxes_of(points * sign, ref * sign, region)
    assert torch.equal(lower, torch.where(flip, -mirrored_upper, mirrored_lower))
    assert torch.equal(upper, torch.where(flip, -mirrored_lower, mirrored_upper))


# Batches, ragged and masked.


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("maximize", [False, True])
def test_a_batch_equals_a_loop_and_padding_has_no_volume(m, region, maximize):
    points = fronts((2, 3), 6, m)
    ref = fronts((2, 3), 1, m, seed=1).squeeze(-2) / 4 + 0.5
    lower, upper, counts = decompose(points, ref, region, maximize)
    assert counts.shape == (2, 3)
    assert lower.shape == upper.shape == (2, 3, counts.max(), m)
    for i in range(2):
        for j in range(3):
            n = counts[i, j].item()
            alone = boxes_of(points[i, j], ref[i, j], region, maximize)
            assert torch.equal(lower[i, j, :n], alone[0])
            assert torch.equal(upper[i, j, :n], alone[1])
            padding = ref[i, j].expand(len(lower[i, j]) - n, m)
            assert torch.equal(lower[i, j, n:], padding)
            assert torch.equal(upper[i, j, n:], padding)


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("region", REGIONS)
def test_lengths_and_masks_equal_cutting(m, region):
    points, lengths, mask = fronts((4,), 7, m), torch.tensor([0, 7, 3, 6]), flags((4,), 7)
    by_length, by_mask = (
        decompose(points, 0.9, region, lengths=lengths),
        decompose(points, 0.9, region, mask=mask),
    )
    for i in range(4):
        for got, kept in ((by_length, points[i, : lengths[i]]), (by_mask, points[i][mask[i]])):
            lower, upper = boxes_of(kept, 0.9, region)
            assert got.counts[i].item() == len(lower)
            assert torch.equal(got.lower[i, : len(lower)], lower)
            assert torch.equal(got.upper[i, : len(lower)], upper)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_padding_and_masked_rows_are_never_read(region, value):
    points = fronts((), 6, 4)
    padded = torch.cat([points, torch.full((3, 4), value, dtype=F64)])
    expected = decompose(points, 1.0, region)
    mask = torch.arange(9) < 6
    for got in (
        decompose(padded, 1.0, region, lengths=torch.tensor(6)),
        decompose(padded, 1.0, region, mask=mask),
        decompose(padded.flip(0), 1.0, region, mask=mask.flip(0)),
    ):
        assert got.counts == expected.counts
    for a, b in zip(decompose(padded, 1.0, region, lengths=torch.tensor(6)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
@pytest.mark.parametrize("region", REGIONS)
def test_an_empty_batch_has_no_boxes(batch, region):
    lower, upper, counts = decompose(torch.empty(*batch, 4, 3), 1.0, region)
    assert lower.shape == upper.shape == (*batch, 0, 3)
    assert counts.shape == batch


@pytest.mark.parametrize("region", REGIONS)
def test_the_result_has_names(region):
    boxes = decompose(fronts((), 5, 3), 1.0, region)
    assert isinstance(boxes, tuple)
    assert boxes._fields == ("lower", "upper", "counts")
    assert boxes.lower is boxes[0]


# Memory and errors.


@pytest.mark.parametrize("m", [4, 5, 6])
@pytest.mark.parametrize("region", REGIONS)
def test_too_many_boxes_are_a_memory_error_that_names_the_limit(m, region):
    points = torch.from_numpy(shaped("spherical", 30, m))
    lower, upper = boxes_of(points, 1.0, region)
    needed = lower.nbytes + upper.nbytes
    for max_memory in (1000, needed // 4):
        with pytest.raises(MemoryError, match="max_memory"):
            decompose(points, 1.0, region, max_memory=max_memory)
    for got, expected in zip(boxes_of(points, 1.0, region, max_memory=100 * needed), (lower, upper), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("region", ["", "undominated", None, True, 1])
def test_the_region_must_be_one_of_two(region):
    with pytest.raises((TypeError, ValueError), match="region"):
        decompose(fronts((), 5, 3), 1.0, region)


def test_the_region_is_required():
    with pytest.raises(TypeError, match="region"):
        morlfast.box_decomposition(fronts((), 5, 3), 1.0, maximize=False)


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("region", REGIONS)
def test_huge_values_keep_their_corners(m, region):
    points = torch.from_numpy(np.random.default_rng(m).choice([-1e308, -1e300, -1.0, -5e-324, 5e-324, 1.0], (6, m)))
    lower, upper = boxes_of(points, 1e308, region)
    assert (lower < upper).all()
    assert reference.boxes_are_disjoint(lower.tolist(), upper.tolist())


# The operator under torch's machinery.

DEEP = fronts((2, 3), 6, 5)
SAMPLES = [
    (DEEP, torch.ones(5, dtype=F64), True),
    (DEEP, torch.ones(5, dtype=F64), False),
    (DEEP.float(), torch.ones(2, 3, 5), True, True, False, torch.tensor([[6, 0, 3], [1, 6, 5]]), 10**6),
    (DEEP[0, 0, :, :2].T.contiguous().T, torch.ones(2, dtype=F64), False),
]


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_opcheck(sample):
    torch.library.opcheck(torch.ops.morlfast.box_decomposition.default, SAMPLES[sample])


@pytest.mark.parametrize("region", REGIONS)
def test_a_compiled_function_may_use_the_boxes(region):
    def volume(points: torch.Tensor) -> torch.Tensor:
        lower, upper, _ = decompose(points, 1.0, region)
        return (upper - lower.clamp(min=-1.0)).prod(-1).sum(-1)

    torch._dynamo.reset()
    compiled = torch.compile(volume, backend="aot_eager")
    torch.testing.assert_close(compiled(DEEP), volume(DEEP))


def test_padding_counts_as_memory():
    points = torch.rand(200, 30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.zeros(200, dtype=torch.int64)
    lengths[0] = 30
    with pytest.raises(MemoryError, match="max_memory"):
        morlfast.box_decomposition(points, 1.1, region="dominated", maximize=False, lengths=lengths, max_memory=100_000)
