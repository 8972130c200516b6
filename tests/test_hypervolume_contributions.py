"""Contributions and the least contributor: literally what is lost when one row is left out."""

from __future__ import annotations

import math

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
    SHAPES,
    eighths,
    flags,
    fronts,
    grids,
    infinite_grids,
    many,
    shaped,
)

DOMINATED = ["count", "ignore"]


def contributions(points, ref_point, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.hypervolume_contributions(points, ref_point, maximize=maximize, **options)


def least(points, ref_point, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.least_contributor(points, ref_point, maximize=maximize, **options)


def volume(points: torch.Tensor, ref_point) -> float:
    return morlfast.hypervolume(points, ref_point, maximize=False).item()


# Values.


@given(grids(), st.sampled_from(DOMINATED))
def test_integer_grids_equal_the_difference_of_totals_exactly(case, dominated):
    points, ref, maximize = case
    expected = reference.hypervolume_contributions(points.tolist(), ref, maximize, dominated)
    assert contributions(points, ref, maximize, dominated=dominated).tolist() == expected


@given(grids(objectives=[1, 2, 3, 4]))
def test_the_two_references_agree(case):
    points, ref, maximize = case
    cells = reference.hypervolume_contributions_by_cells(points.tolist(), ref, maximize)
    assert reference.hypervolume_contributions(points.tolist(), ref, maximize) == cells


@pytest.mark.parametrize("m", MANY)
@pytest.mark.parametrize("dominated", DOMINATED)
def test_many_objectives_equal_the_reference_exactly(m, dominated):
    for seed in range(3):
        points, ref, maximize = many(m, seed)
        expected = reference.hypervolume_contributions(points.tolist(), ref, maximize, dominated)
        assert contributions(points, ref, maximize, dominated=dominated).tolist() == expected


@given(st.sampled_from(OBJECTIVES), st.integers(1, 7), st.randoms(use_true_random=False))
def test_real_fronts_match_exact_arithmetic(m, n, random):
    points = [[random.random() for _ in range(m)] for _ in range(n)]
    exact = reference.hypervolume_contributions(points, [1.0] * m)
    # Relative to each contribution, not to the volume.
    assert contributions(points, 1.0).tolist() == pytest.approx([float(c) for c in exact], rel=1e-12, abs=0)


SIZES = {2: 200, 3: 200, 4: 100, 5: 60, 6: 30, 7: 15, 8: 12}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", SIZES)
def test_agrees_with_pygmo(shape, m):
    pygmo = pytest.importorskip("pygmo")
    for n in (1, 2, 5, 13, SIZES[m]):
        x = shaped(shape, n, m)
        ref = x.max(0) + 0.125  # pygmo takes no point on or beyond the reference point
        got = contributions(torch.from_numpy(x), torch.from_numpy(ref))
        hypervolume = pygmo.hypervolume(x)
        expected = hypervolume.contributions(ref) if n > 1 else [hypervolume.compute(ref)]
        # pygmo subtracts totals in places: compare within the rounding of the whole.
        assert got.tolist() == pytest.approx(list(expected), rel=1e-9, abs=1e-13 * hypervolume.compute(ref)), n


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("dominated", DOMINATED)
def test_agrees_with_moocore(shape, m, dominated):
    moocore = pytest.importorskip("moocore")
    for n in (1, 2, 5, 13, SIZES[m] // 2):
        x = shaped(shape, n, m)
        got = contributions(torch.from_numpy(x), 1.0, dominated=dominated).numpy()
        expected = moocore.hv_contributions(x.copy(), ref=np.ones(m), ignore_dominated=dominated == "ignore")
        # moocore subtracts totals, and sets what is below the square root of epsilon to zero.
        counted = expected > 0
        assert got[counted] == pytest.approx(expected[counted], rel=1e-9, abs=1e-11), n
        assert (got[~counted] < 1.5e-8).all(), n


@pytest.mark.parametrize(("n", "m"), [(100, 1), (300, 2), (300, 3), (100, 4), (40, 5), (25, 6), (12, 8), (8, 10)])
def test_each_is_the_volume_lost_without_the_row(n, m):
    points = torch.from_numpy(shaped("cloud" if m < 3 else "spherical", n, m))
    whole, got = volume(points, 1.0), contributions(points, 1.0)
    assert (got >= 0).all()
    assert got.sum().item() <= whole * (1 + 1e-12)
    for i in (0, n // 2, n - 1):
        rest = torch.cat([points[:i], points[i + 1 :]])
        assert got[i].item() == pytest.approx(whole - volume(rest, 1.0), rel=1e-9, abs=1e-13 * whole)


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("dominated", DOMINATED)
def test_a_single_point_contributes_all(m, dominated):
    assert contributions([[0.5] * m], 1.0, dominated=dominated).tolist() == [0.5**m]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_dominated_point_counts_or_is_ignored(m):
    points = [[0.5] * m, [0.25] * m, [1.5] * m]
    assert contributions(points, 1.0).tolist() == [0.0, 0.75**m - 0.5**m, 0.0]
    assert contributions(points, 1.0, dominated="count").tolist() == [0.0, 0.75**m - 0.5**m, 0.0]
    assert contributions(points, 1.0, dominated="ignore").tolist() == [0.0, 0.75**m, 0.0]


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("dominated", DOMINATED)
def test_every_copy_of_a_point_contributes_nothing(m, dominated):
    points = eighths(m, 9)
    row = torch.full((1, m), 0.0, dtype=F64)
    got = contributions(torch.cat([row, points, row]), 1.0, dominated=dominated)
    assert got[[0, -1]].tolist() == [0.0, 0.0]
    assert (contributions(row.expand(5, m), 1.0, dominated=dominated) == 0).all()
    # -0.0 == 0.0
    assert (contributions(torch.cat([row, -row]), 1.0, dominated=dominated) == 0).all()


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_tiny_contribution_beside_a_huge_one_is_exact(m):
    # The second point is alone in a box of 2^-40 by one half to the m - 1.
    huge = [-(2.0**30)] * (m - 1) + [0.5]
    tiny = [0.5] * (m - 1) + [0.5 - 2.0**-40]
    got = contributions([huge, tiny], 1.0)
    assert got[1].item() == 2.0**-40 * 0.5 ** (m - 1)


@given(grids(min_n=1), st.integers(-900, 900))
def test_scaling_by_powers_of_two_scales_contributions_exactly(case, exponent):
    points, ref, maximize = case
    exponent //= points.shape[1]
    scaled = torch.tensor(ref, dtype=F64) * 2.0**exponent
    expected = contributions(points, ref, maximize) * 2.0 ** (exponent * points.shape[1])
    assert torch.equal(contributions(points * 2.0**exponent, scaled, maximize), expected)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_contributions_of_a_small_front_are_not_lost(m):
    # The scale at which an absolute threshold of 1.5e-8 makes them all zero.
    points = torch.from_numpy(shaped("spherical", 15, m))
    small = contributions(points * 2.0**-20, 2.0**-20)
    assert torch.equal(small, contributions(points, 1.0) * 2.0 ** (-20 * m))
    assert (small > 0).all()


# Batches, ragged and masked.


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("dominated", DOMINATED)
def test_lengths_equal_cutting_and_padding_contributes_nothing(m, dominated):
    points, lengths = fronts((2, 4), 9, m), torch.tensor([[0, 1, 2, 9], [5, 8, 3, 7]])
    got = contributions(points, 0.9, lengths=lengths, dominated=dominated)
    assert got.shape == (2, 4, 9)
    for i in range(2):
        for j in range(4):
            n = lengths[i, j]
            assert torch.equal(got[i, j, :n], contributions(points[i, j, :n], 0.9, dominated=dominated))
            assert (got[i, j, n:] == 0).all()


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("dominated", DOMINATED)
def test_a_mask_equals_cutting_and_masked_rows_contribute_nothing(m, dominated):
    points, mask = fronts((2, 4), 9, m), flags((2, 4), 9)
    mask[0, 0] = False
    mask[0, 1] = True
    got = contributions(points, 0.9, mask=mask, dominated=dominated)
    assert got.shape == (2, 4, 9)
    for i in range(2):
        for j in range(4):
            keep = mask[i, j]
            assert torch.equal(got[i, j][keep], contributions(points[i, j][keep], 0.9, dominated=dominated))
            assert (got[i, j][~keep] == 0).all()


@given(grids(), st.data())
def test_padding_and_masked_rows_are_never_read(case, data):
    points, ref, maximize = case
    n, m = points.shape
    value = data.draw(st.sampled_from([NAN, INF, -INF, -1e300]))
    expected = contributions(points, ref, maximize)
    padded = torch.cat([points, torch.full((2, m), value, dtype=F64)])
    assert torch.equal(contributions(padded, ref, maximize, lengths=torch.tensor(n))[:n], expected)
    at = data.draw(st.integers(0, n))
    hidden = torch.cat([points[:at], torch.full((1, m), value, dtype=F64), points[at:]])
    mask = torch.ones(n + 1, dtype=torch.bool)
    mask[at] = False
    assert torch.equal(contributions(hidden, ref, maximize, mask=mask)[mask], expected)


def test_empty_fronts_have_no_contributions():
    for batch in ((), (3,), (0,), (2, 0)):
        for m in (1, 2, 4):
            assert contributions(torch.empty(*batch, 0, m), 1.0).shape == (*batch, 0)
            assert contributions(torch.empty(*batch, 0, m), 1.0).dtype == torch.float32
    assert contributions(torch.empty(0, 5, 4), 1.0).shape == (0, 5)


# Invariances.


@given(grids(), st.randoms(use_true_random=False), st.sampled_from(DOMINATED))
def test_contributions_move_with_their_rows_whatever_the_order_of_objectives(case, random, dominated):
    points, ref, maximize = case
    rows = random.sample(range(len(points)), len(points))
    columns = random.sample(range(points.shape[1]), points.shape[1])
    shuffled = contributions(
        points[rows][:, columns], [ref[k] for k in columns], [maximize[k] for k in columns], dominated=dominated
    )
    assert torch.equal(shuffled, contributions(points, ref, maximize, dominated=dominated)[rows])


@given(grids(), st.lists(st.integers(-(2**40), 2**40), min_size=6, max_size=6))
def test_shifting_everything_changes_nothing(case, offsets):
    points, ref, maximize = case
    shift = torch.tensor(offsets[: points.shape[1]], dtype=F64)
    shifted = contributions(points + shift, torch.tensor(ref, dtype=F64) + shift, maximize)
    assert torch.equal(shifted, contributions(points, ref, maximize))


@given(grids(min_n=1), st.integers(0, 11), st.integers(0, 3))
def test_dominated_points_change_nothing_when_ignored(case, row, distance):
    points, ref, _ = case
    ref = [5] * len(ref)
    worse = points[row % len(points)] + distance
    if distance == 0:
        worse[0] += 1
    got = contributions(torch.cat([points, worse[None]]), ref, dominated="ignore")
    assert torch.equal(got[:-1], contributions(points, ref, dominated="ignore"))
    assert got[-1].item() == 0.0


# The bad inputs of other libraries.


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("row", NOTHING)
@pytest.mark.parametrize("dominated", DOMINATED)
def test_a_row_that_does_not_count_contributes_and_takes_nothing(row, m, dominated):
    row, points = torch.tensor([NOTHING[row](m)], dtype=F64), eighths(m)
    expected = contributions(points, 1.0, dominated=dominated)
    assert expected.tolist() == reference.hypervolume_contributions(points.tolist(), [1] * m, dominated=dominated)
    for i in (0, 7, 14):
        mixed = torch.cat([points[:i], row, points[i:]])
        for got in (
            contributions(mixed, 1.0, nan="worst", dominated=dominated),
            contributions(-mixed, -1.0, True, nan="worst", dominated=dominated),
        ):
            assert got[i].item() == 0.0
            assert torch.equal(torch.cat([got[:i], got[i + 1 :]]), expected)
    assert contributions(row, 1.0, nan="worst", dominated=dominated).tolist() == [0.0]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_front_beyond_the_reference_point_contributes_nothing(m):
    assert (contributions(fronts((), 5, m) + 1.0, 1.0) == 0).all()


@given(infinite_grids(objectives=(1, 2, 3, 4)))
def test_infinities_contribute_what_they_alone_dominate(case):
    points, ref = case
    expected = reference.hypervolume_contributions_by_cells(points.tolist(), ref)
    assert contributions(points, ref).tolist() == expected


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_a_finite_contribution_beside_an_infinite_one_is_exact(m):
    good = [-INF] + [0.5] * (m - 1)
    finite = [0.5] + [0.25] * (m - 1)
    got = contributions([good, finite], 1.0)
    assert got.tolist() == [INF, 0.5 * (0.75 ** (m - 1) - 0.5 ** (m - 1))]
    # With an infinite reference point the second, dominated, leaves the first and the third finite boxes.
    points = [[0.25] + [0.5] * (m - 1), [0.5] + [0.5] * (m - 1), [0.0] + [0.75] * (m - 1)]
    ref = [INF] + [1.0] * (m - 1)
    third = 0.25 * 0.25 ** (m - 1)
    assert contributions(points, ref).tolist() == [0.25 * (0.5 ** (m - 1) - 0.25 ** (m - 1)), 0.0, third]
    assert contributions(points, ref, dominated="ignore").tolist() == [INF, 0.0, third]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_huge_values_are_never_nan(m):
    random = np.random.default_rng(m)
    for _ in range(20):
        points = torch.from_numpy(random.choice([-1e308, -1e300, -1.0, -5e-324, 0.0, 5e-324, 1.0], (8, m)))
        assert (contributions(points, 1e308) >= 0).all()
        assert 0 <= least(points, 1e308).item() < 8


@pytest.mark.parametrize("dominated", ["drop", "", None, True, 0])
def test_dominated_must_be_count_or_ignore(dominated):
    for function in (contributions, least):
        with pytest.raises((TypeError, ValueError), match="dominated"):
            function(fronts((), 4, 3), 1.0, dominated=dominated)


# The least contributor.


def first_smallest(values: list[float], allowed: list[int]) -> int:
    return min(allowed, key=lambda i: (values[i], i), default=-1)


@given(grids(), st.sampled_from(DOMINATED), st.data())
def test_the_least_contributor_is_the_first_smallest_of_the_rows_let_in(case, dominated, data):
    points, ref, maximize = case
    n = len(points)
    rows = points.tolist()
    smallest = reference.hypervolume_contributions(rows, ref, maximize, dominated)
    assert least(points, ref, maximize, dominated=dominated).item() == first_smallest(smallest, range(n))

    length = data.draw(st.integers(0, n))
    smallest = reference.hypervolume_contributions(rows[:length], ref, maximize, dominated)
    got = least(points, ref, maximize, dominated=dominated, lengths=torch.tensor(length))
    assert got.item() == first_smallest(smallest, range(length))

    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    kept = [i for i in range(n) if mask[i]]
    smallest = reference.hypervolume_contributions([rows[i] for i in kept], ref, maximize, dominated)
    got = least(points, ref, maximize, dominated=dominated, mask=torch.tensor(mask, dtype=torch.bool))
    place = first_smallest(smallest, range(len(kept)))
    assert got.item() == (kept[place] if kept else -1)


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("dominated", DOMINATED)
def test_the_least_contributor_of_real_fronts(m, dominated):
    points = fronts((5,), 12, m)
    got = least(points, 0.9, dominated=dominated)
    assert got.dtype == torch.int64
    assert torch.equal(got, contributions(points, 0.9, dominated=dominated).argmin(-1))


@pytest.mark.parametrize("shape", ["spherical", "convex", "concave", "linear"])
@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_the_least_contributor_agrees_with_pygmo(shape, m):
    pygmo = pytest.importorskip("pygmo")
    x = shaped(shape, 20, m)
    assert least(torch.from_numpy(x), 1.5).item() == pygmo.hypervolume(x).least_contributor([1.5] * m)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_an_empty_front_has_no_least_contributor(m):
    assert least(torch.empty(0, m), 1.0).item() == -1
    assert least(torch.empty(3, 0, m), 1.0).tolist() == [-1, -1, -1]
    assert least(torch.empty(0, 4, m), 1.0).shape == (0,)
    points = fronts((3,), 4, m)
    assert least(points, 1.0, lengths=torch.tensor([0, 1, 0])).tolist() == [-1, 0, -1]
    mask = torch.tensor([[False] * 4, [False, False, True, False], [True] * 4])
    assert least(points, 1.0, mask=mask)[:2].tolist() == [-1, 2]


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("row", NOTHING)
def test_a_row_that_does_not_count_is_the_least_contributor(row, m):
    row = torch.tensor([NOTHING[row](m)], dtype=F64)
    # On the axes each point has a share of its own; one objective has no such front.
    points = torch.full((m, m), 0.75, dtype=F64).fill_diagonal_(0.25)
    for i in range(m + 1):
        mixed = torch.cat([points[:i], row, points[i:]])
        assert least(mixed, 1.0, nan="worst").item() == i
    assert least(torch.cat([row, row]), 1.0, nan="worst").item() == 0


@pytest.mark.parametrize("m", OBJECTIVES)
def test_ties_go_to_the_lowest_row(m):
    assert least([[0.5] * m] * 3, 1.0).item() == 0
    if m > 1:
        points = torch.full((m, m), 0.75, dtype=F64).fill_diagonal_(0.25)
        assert least(points, 1.0).item() == 0
        better = points.clone()
        better[0, 0] = 0.0
        assert least(better, 1.0).item() == 1


# The operator under torch's machinery.

DEEP = fronts((2, 3), 6, 5)
SAMPLES = [
    (DEEP, torch.ones(5, dtype=F64)),
    (DEEP.float(), torch.ones(2, 3, 5), True, False, torch.tensor([[6, 0, 3], [1, 6, 5]]), True, 2000),
    (DEEP[0, 0, :, :2].T.contiguous().T, torch.ones(2, dtype=F64), False, True, None, True),
    (DEEP[:, :0], torch.ones(5, dtype=F64)),
    (DEEP[:, :, :0], torch.ones(5, dtype=F64)),
]


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_opcheck(sample):
    torch.library.opcheck(torch.ops.morlfast.hypervolume_contributions.default, SAMPLES[sample])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [contributions, least])
def test_five_objectives_compile_without_a_graph_break(function, dynamic):
    def found(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return function(points, 1.0, [True, False, True, False, False], mask=mask, nan="worst", dominated="ignore")

    torch._dynamo.reset()
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    mask = flags((2, 3), 6)
    assert torch.equal(compiled(DEEP, mask), found(DEEP, mask))


@pytest.mark.parametrize("m", OBJECTIVES)
def test_meta_points_give_meta_results(m):
    points = fronts((2, 3), 8, m).float().to("meta")
    got = contributions(points, 1.0)
    assert got.is_meta
    assert (got.shape, got.dtype) == ((2, 3, 8), torch.float32)
    got = least(points, 1.0)
    assert got.is_meta
    assert (got.shape, got.dtype) == ((2, 3), torch.int64)


def test_a_scale_that_underflows_leaves_zero_not_nan():
    points = eighths(4, 6) * math.ldexp(1.0, -400)
    assert (contributions(points, math.ldexp(1.0, -400)) == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_least_contributor_of_float32_points_of_any_scale(scale):
    points = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).abs()
    points = points / points.norm(dim=1, keepdim=True) * scale
    wide = morlfast.least_contributor(points.double(), 1.1 * scale, maximize=False)
    assert torch.equal(morlfast.least_contributor(points, 1.1 * scale, maximize=False), wide)


def test_masked_rows_contribute_nothing_to_a_nan_reference_point():
    mask = torch.tensor([True, True, False, False, True, False])
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    got = morlfast.hypervolume_contributions(points, math.nan, maximize=False, nan="worst", mask=mask)
    assert got.isnan().tolist() == mask.tolist()
    assert (got[~mask] == 0).all()
