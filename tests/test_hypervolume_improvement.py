"""Hypervolume improvement, of candidates alone and of sets, and the greedy subset that is built from it."""

from __future__ import annotations

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
    SIDES,
    eighths,
    flags,
    fronts,
    grids,
    infinite_grids,
    many,
    shaped,
    strided_copies,
)


def improvement(candidates, front, ref_point, maximize=False, **options) -> torch.Tensor:
    candidates, front = (x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=F64) for x in (candidates, front))
    return morlfast.hypervolume_improvement(candidates, front, ref_point, maximize=maximize, **options)


def subset(points, k, ref_point, maximize=False, **options) -> torch.Tensor:
    if not isinstance(points, torch.Tensor):
        points = torch.tensor(points, dtype=F64)
    return morlfast.hypervolume_subset(points, k, ref_point, maximize=maximize, **options)


def volume(points: torch.Tensor, ref_point, maximize=False) -> float:
    return morlfast.hypervolume(points, ref_point, maximize=maximize).item()


@st.composite
def grids_and_candidates(draw):
    """A grid and as many candidates on it, some of them rows of the front."""
    points, ref, maximize = draw(grids(max_n=8))
    m = points.shape[1]
    coordinate = st.integers(-1, SIDES.get(m, 2) + 1)
    rows = draw(st.lists(st.lists(coordinate, min_size=m, max_size=m), max_size=5))
    rows += draw(st.lists(st.sampled_from(points.tolist()), max_size=2)) if len(points) else []
    return torch.tensor(rows, dtype=F64).reshape(-1, m), points, ref, maximize


# Improvement: values.


@given(grids_and_candidates())
def test_integer_grids_equal_the_difference_of_totals_exactly(case):
    candidates, front, ref, maximize = case
    alone = [[c] for c in candidates.tolist()]
    expected = reference.hypervolume_improvement(alone, front.tolist(), ref, maximize)
    assert improvement(candidates, front, ref, maximize).tolist() == expected


@given(grids_and_candidates(), st.integers(0, 4), st.randoms(use_true_random=False))
def test_sets_on_integer_grids_equal_the_difference_of_totals_exactly(case, size, random):
    candidates, front, ref, maximize = case
    if not len(candidates):
        candidates = torch.zeros(1, front.shape[1], dtype=F64)
    rows = [[random.randrange(len(candidates)) for _ in range(size)] for _ in range(3)]
    sets = candidates[torch.tensor(rows, dtype=torch.int64).reshape(3, size)]
    expected = reference.hypervolume_improvement(sets.tolist(), front.tolist(), ref, maximize)
    assert improvement(sets, front, ref, maximize, joint=True).tolist() == expected


@pytest.mark.parametrize("m", MANY)
def test_many_objectives_equal_the_reference_exactly(m):
    points, ref, maximize = many(m)
    front, candidates = points[:3], points[3:]
    expected = reference.hypervolume_improvement([[c] for c in candidates.tolist()], front.tolist(), ref, maximize)
    assert improvement(candidates, front, ref, maximize).tolist() == expected
    sets = candidates.reshape(2, 2, m)
    expected = reference.hypervolume_improvement(sets.tolist(), front.tolist(), ref, maximize)
    assert improvement(sets, front, ref, maximize, joint=True).tolist() == expected


@given(st.sampled_from(OBJECTIVES), st.integers(0, 6), st.randoms(use_true_random=False))
def test_real_fronts_match_exact_arithmetic(m, n, random):
    front, candidates = ([[random.random() for _ in range(m)] for _ in range(rows)] for rows in (n, 3))
    exact = reference.hypervolume_improvement([[c] for c in candidates], front, [1.0] * m)
    got = improvement(candidates, torch.tensor(front, dtype=F64).reshape(n, m), 1.0)
    # Relative to each improvement, not to the volume.
    assert got.tolist() == pytest.approx([float(x) for x in exact], rel=1e-12, abs=0)


@pytest.mark.parametrize(("n", "m"), [(50, 1), (300, 2), (300, 3), (100, 4), (60, 5), (25, 6), (12, 8), (6, 10)])
def test_each_is_the_volume_gained(n, m):
    front, candidates = torch.from_numpy(shaped("spherical", n, m)), fronts((), 6, m, seed=2) * 0.7
    got = improvement(candidates, front, 1.0)
    whole = volume(front, 1.0)
    for c, gain in zip(candidates, got, strict=True):
        expected = volume(torch.cat([front, c[None]]), 1.0) - whole
        assert gain.item() == pytest.approx(expected, rel=1e-9, abs=1e-13)
    together = improvement(candidates[None], front, 1.0, joint=True)
    expected = volume(torch.cat([front, candidates]), 1.0) - whole
    assert together.item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_agrees_with_moocore_and_pygmo(m):
    moocore, pygmo = pytest.importorskip("moocore"), pytest.importorskip("pygmo")
    front, candidates = shaped("spherical", 25, m), np.random.default_rng(m).random((5, m)) * 0.8
    got = improvement(torch.from_numpy(candidates), torch.from_numpy(front), 1.25)
    ref = np.full(m, 1.25)
    for c, gain in zip(candidates, got.tolist(), strict=True):
        both = np.vstack([front, c])
        difference = moocore.hypervolume(both, ref=ref) - moocore.hypervolume(front, ref=ref)
        assert gain == pytest.approx(difference, rel=1e-9, abs=1e-12)
        assert gain == pytest.approx(pygmo.hypervolume(both).exclusive(25, ref), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_candidate_that_the_front_dominates_or_has_adds_nothing(m):
    front = eighths(m)
    worse = torch.cat([front, front + 0.125, front + 1.0])
    assert (improvement(worse, front, 1.0) == 0).all()
    assert improvement([[0.5] * m, [0.25] * m, [0.5] * m], [[0.5] * m], 1.0).tolist() == [0.0, 0.75**m - 0.5**m, 0.0]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_a_tiny_improvement_beside_a_huge_volume_is_exact(m):
    front = [[-(2.0**30)] * (m - 1) + [0.5]]
    assert improvement([[0.5] * (m - 1) + [0.5 - 2.0**-40]], front, 1.0).tolist() == [2.0**-40 * 0.5 ** (m - 1)]


@pytest.mark.parametrize("m", OBJECTIVES)
def test_an_empty_front_is_improved_by_all_of_a_candidate(m):
    empty, candidates = torch.empty(0, m, dtype=F64), eighths(m, 6)
    expected = [volume(c[None], 1.0) for c in candidates]
    assert improvement(candidates, empty, 1.0).tolist() == expected
    assert improvement(candidates[None], empty, 1.0, joint=True).item() == volume(candidates, 1.0)
    assert improvement(candidates, candidates[:3], 1.0, lengths=torch.tensor(0)).tolist() == expected
    assert improvement(candidates, candidates[:3], 1.0, mask=torch.zeros(3, dtype=torch.bool)).tolist() == expected


@pytest.mark.parametrize("m", [1, 3, 5])
def test_no_candidates_give_an_empty_result_and_empty_sets_nothing(m):
    front = fronts((2,), 4, m)
    assert improvement(torch.empty(0, m), front, 1.0).shape == (2, 0)
    assert improvement(torch.empty(2, 0, m), front, 1.0).shape == (2, 0)
    assert improvement(torch.empty(0, 3, m), front, 1.0, joint=True).shape == (2, 0)
    assert improvement(torch.empty(5, 0, m), front, 1.0, joint=True).tolist() == [[0.0] * 5] * 2
    assert improvement(torch.empty(0, 3, m), torch.empty(0, 4, m), 1.0).shape == (0, 3)


@given(grids_and_candidates(), st.randoms(use_true_random=False))
def test_a_set_has_no_order_and_copies_in_it_add_nothing(case, random):
    candidates, front, ref, maximize = case
    expected = improvement(candidates[None], front, ref, maximize, joint=True)
    rows = random.sample(range(len(candidates)), len(candidates))
    rows += rows[:2]
    assert torch.equal(improvement(candidates[rows][None], front, ref, maximize, joint=True), expected)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_sets_of_one_are_candidates_alone(m):
    front, candidates = fronts((3,), 9, m), fronts((3,), 5, m, seed=1)
    alone = improvement(candidates, front, 0.9)
    assert torch.equal(improvement(candidates[..., None, :], front, 0.9, joint=True), alone)


@given(grids_and_candidates(), st.randoms(use_true_random=False))
def test_the_order_of_the_front_and_of_objectives_does_not_matter(case, random):
    candidates, front, ref, maximize = case
    rows = random.sample(range(len(front)), len(front))
    columns = random.sample(range(front.shape[1]), front.shape[1])
    shuffled = improvement(
        candidates[:, columns], front[rows][:, columns], [ref[k] for k in columns], [maximize[k] for k in columns]
    )
    assert torch.equal(shuffled, improvement(candidates, front, ref, maximize))


@given(grids_and_candidates(), st.integers(-150, 150), st.lists(st.integers(-(2**40), 2**40), min_size=6, max_size=6))
def test_scaling_and_shifting_are_exact(case, exponent, offsets):
    candidates, front, ref, maximize = case
    m, ref = front.shape[1], torch.tensor(ref, dtype=F64)
    expected = improvement(candidates, front, ref, maximize)
    scale = 2.0**exponent
    scaled = improvement(candidates * scale, front * scale, ref * scale, maximize)
    assert torch.equal(scaled, expected * 2.0 ** (exponent * m))
    shift = torch.tensor(offsets[:m], dtype=F64)
    assert torch.equal(improvement(candidates + shift, front + shift, ref + shift, maximize), expected)


# Improvement: dtypes, batches, ragged fronts.


def test_the_result_is_float32_only_if_both_are():
    front, candidates = fronts((), 6, 4), fronts((), 3, 4, seed=1)
    assert improvement(candidates.float(), front.float(), 1.0).dtype == torch.float32
    assert improvement(candidates.float(), front, 1.0).dtype == F64
    assert improvement(candidates, front.float(), 1.0).dtype == F64
    assert improvement(candidates.float(), front.float(), torch.ones(4, dtype=F64)).dtype == torch.float32
    mixed = improvement(candidates.float(), front, 1.0)
    assert torch.equal(mixed, improvement(candidates.float().double(), front, 1.0))
    assert improvement(torch.zeros(2, 4, dtype=torch.int32), front.float(), 1.0).dtype == F64
    assert morlfast.hypervolume_improvement([[0, 0]], [[1, 1]], 2, maximize=False).tolist() == [3.0]


@pytest.mark.parametrize("m", [1, 3, 5])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    ("candidates", "front", "batch"),
    [((), (4,), (4,)), ((4,), (), (4,)), ((3, 1), (4,), (3, 4)), ((2, 1), (1, 5), (2, 5)), ((0,), (1,), (0,))],
)
def test_batches_broadcast(candidates, front, batch, joint, m):
    sets = (2, 3) if joint else (3,)
    c = torch.rand(*candidates, *sets, m, generator=torch.Generator().manual_seed(1), dtype=F64)
    f = fronts(front, 6, m)
    full_c, full_f = c.expand(*batch, *sets, m).contiguous(), f.expand(*batch, 6, m).contiguous()
    got = improvement(c, f, 0.9, joint=joint)
    assert got.shape == (*batch, sets[0])
    assert torch.equal(got, improvement(full_c, full_f, 0.9, joint=joint))
    for index in np.ndindex(*batch):
        assert torch.equal(got[index], improvement(full_c[index], full_f[index], 0.9, joint=joint))


@pytest.mark.parametrize("m", [1, 3, 5])
def test_the_reference_point_broadcasts_with_the_fronts(m):
    c, f = fronts((4,), 3, m, seed=1), fronts((4,), 6, m)
    ref = fronts((4,), 1, m, seed=2).squeeze(-2) + 0.25
    got = improvement(c, f, ref)
    for i in range(4):
        assert torch.equal(got[i], improvement(c[i], f[i], ref[i]))
    shared = improvement(c, f[0], ref)
    for i in range(4):
        assert torch.equal(shared[i], improvement(c[i], f[0], ref[i]))


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("joint", [False, True])
def test_lengths_and_masks_cut_the_front(m, joint):
    c, f = fronts((4,), 6, m, seed=1), fronts((4,), 9, m)
    c = c.reshape(4, 2, 3, m) if joint else c
    lengths, mask = torch.tensor([0, 9, 3, 8]), flags((4,), 9)
    by_length = improvement(c, f, 0.9, lengths=lengths, joint=joint)
    by_mask = improvement(c, f, 0.9, mask=mask, joint=joint)
    for i in range(4):
        assert torch.equal(by_length[i], improvement(c[i], f[i, : lengths[i]], 0.9, joint=joint))
        assert torch.equal(by_mask[i], improvement(c[i], f[i][mask[i]], 0.9, joint=joint))


def test_lengths_and_masks_have_the_batch_shape_of_the_front():
    c, f = fronts((3, 1), 5, 4, seed=1), fronts((2,), 9, 4)
    lengths, mask = torch.tensor([4, 7]), flags((2,), 9)
    by_length, by_mask = improvement(c, f, 1.0, lengths=lengths), improvement(c, f, 1.0, mask=mask)
    shared_length = improvement(c, f[0], 1.0, lengths=torch.tensor(4))
    assert shared_length.shape == (3, 1, 5)
    for i in range(3):
        assert torch.equal(shared_length[i, 0], improvement(c[i, 0], f[0, :4], 1.0))
        for j in range(2):
            assert torch.equal(by_length[i, j], improvement(c[i, 0], f[j, : lengths[j]], 1.0))
            assert torch.equal(by_mask[i, j], improvement(c[i, 0], f[j][mask[j]], 1.0))


@given(grids_and_candidates(), st.sampled_from([NAN, INF, -INF]))
def test_padding_of_the_front_is_never_read(case, value):
    candidates, front, ref, maximize = case
    expected = improvement(candidates, front, ref, maximize)
    padded = torch.cat([front, torch.full((2, front.shape[1]), value, dtype=F64)])
    assert torch.equal(improvement(candidates, padded, ref, maximize, lengths=torch.tensor(len(front))), expected)


@pytest.mark.parametrize("m", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_candidates_may_have_any_strides(m, dtype):
    c, f = fronts((3, 2), 5, m, seed=1).to(dtype), fronts((3, 2), 7, m).to(dtype)
    expected = improvement(c, f, 0.9)
    for view in strided_copies(c).values():
        assert torch.equal(improvement(view, f, 0.9), expected)
    together = improvement(c, f[0, 0], 0.9, joint=True)
    for view in strided_copies(c).values():
        assert torch.equal(improvement(view, f[0, 0], 0.9, joint=True), together)
    assert c._version == 0


def test_nothing_is_differentiated():
    c, f, ref = fronts((), 3, 4, seed=1), fronts((), 6, 4), torch.ones(4, dtype=F64)
    expected = improvement(c, f, ref)
    for i in range(3):
        inputs = [x.clone().requires_grad_(j == i) for j, x in enumerate((c, f, ref))]
        got = improvement(*inputs)
        assert not got.requires_grad
        assert torch.equal(got, expected)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_nan_among_candidates_raises_or_adds_nothing(m):
    c, f = fronts((5, 7), 14, m, seed=1), fronts((5, 7), 4, m)
    c[3, 6, 13, m - 1] = NAN
    for options in ({}, {"nan": "raise"}):
        with pytest.raises(ValueError, match="candidates") as error:
            improvement(c, f, 1.0, **options)
        assert all(str(i) in str(error.value) for i in (3, 6, 13))
    worst = improvement(c, f, 1.0, nan="worst")
    assert worst[3, 6, 13].item() == 0.0
    beyond = improvement(torch.where(c.isnan(), 2.0, c), f, 1.0)
    torch.testing.assert_close(worst, beyond, rtol=1e-13, atol=0)
    sets = c.reshape(5, 7, 2, 7, m)
    with pytest.raises(ValueError, match="candidates"):
        improvement(sets, f, 1.0, joint=True)
    together = improvement(sets, f, 1.0, joint=True, nan="worst")
    beyond = improvement(torch.where(sets.isnan(), 2.0, sets), f, 1.0, joint=True)
    torch.testing.assert_close(together, beyond, rtol=1e-13, atol=0)


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("row", NOTHING)
def test_a_row_that_does_not_count_neither_improves_nor_protects(row, m):
    row, front, candidates = torch.tensor([NOTHING[row](m)], dtype=F64), eighths(m), eighths(m, 5) - 0.25
    assert improvement(row, front, 1.0, nan="worst").tolist() == [0.0]
    assert improvement(row, front[:0], 1.0, nan="worst").tolist() == [0.0]
    expected = improvement(candidates, front, 1.0)
    for i in (0, 7, 14):
        mixed = torch.cat([front[:i], row, front[i:]])
        assert torch.equal(improvement(candidates, mixed, 1.0, nan="worst"), expected)
        assert torch.equal(improvement(-candidates, -mixed, -1.0, True, nan="worst"), expected)
    sets = torch.stack([candidates, torch.cat([candidates[:4], row])])
    got = improvement(sets, front, 1.0, joint=True, nan="worst")
    assert got[0].item() == volume(torch.cat([front, candidates]), 1.0) - volume(front, 1.0)
    assert got[1].item() == volume(torch.cat([front, candidates[:4]]), 1.0) - volume(front, 1.0)


@given(infinite_grids(objectives=(1, 2, 3, 4)), st.integers(0, 7))
def test_infinities_add_what_they_alone_dominate(case, cut):
    points, ref = case
    front, candidates = points[:cut], points[cut:]
    expected = [
        reference.hypervolume_contributions_by_cells([*front.tolist(), c], ref)[-1] for c in candidates.tolist()
    ]
    assert improvement(candidates, front, ref).tolist() == expected


@given(infinite_grids(objectives=(1, 2, 3)), st.integers(0, 7))
def test_infinities_add_together_what_the_front_does_not_dominate(case, cut):
    points, ref = case
    front, candidates = points[:cut], points[cut:]
    # One after another, as infinite totals have no difference.
    rows = points.tolist()
    expected = sum(reference.hypervolume_contributions_by_cells(rows[: i + 1], ref)[-1] for i in range(cut, len(rows)))
    assert improvement(candidates[None], front, ref, joint=True).tolist() == [expected]


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
@pytest.mark.parametrize("other", [0.0, -1e6, -1e300, -INF, 1.0, INF, NAN])
def test_what_a_candidate_adds_depends_on_no_other_candidate(m, other):
    front, candidates = fronts((), 8, m), fronts((), 6, m, seed=1)
    expected = torch.cat([improvement(c[None], front, 0.9) for c in candidates])
    crowd = torch.cat([torch.full((2, m), other, dtype=F64), candidates, torch.full((1, m), other, dtype=F64)])
    got = improvement(crowd, front, 0.9, nan="worst")[2:-1]
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
    assert torch.equal(got == 0, expected == 0)


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_a_side_of_no_length_beside_sides_that_overflow_is_no_volume(m):
    candidates = torch.full((64, m), -1e200, dtype=F64)
    candidates[torch.arange(64), torch.arange(64) % m] = 0.0
    assert (improvement(candidates, torch.zeros(0, m, dtype=F64), 0.0) == 0).all()


def test_the_shapes_of_candidates_are_checked():
    front = fronts((4,), 6, 3)
    for shape in ((), (3,), (5, 2), (5, 4), (3, 5, 3), (5, 0)):
        with pytest.raises(ValueError, match="candidates"):
            improvement(torch.zeros(shape, dtype=F64), front, 1.0)
    for shape in ((3,), (5, 3), (3, 5, 2, 3), (5, 2, 4)):
        with pytest.raises(ValueError, match="candidates"):
            improvement(torch.zeros(shape, dtype=F64), front, 1.0, joint=True)
    for bad in ("front", None, object(), [["a", "b"]], torch.zeros(2, 3, dtype=torch.float16)):
        with pytest.raises(TypeError, match="candidates"):
            morlfast.hypervolume_improvement(bad, front, 1.0, maximize=False)
    with pytest.raises(ValueError, match=r"candidates|front"):
        improvement(torch.zeros(5, 3, device="meta", dtype=F64), front, 1.0)


# The greedy subset.


@given(grids(max_n=7), st.data())
def test_the_subset_of_integer_grids_is_the_greedy_one(case, data):
    points, ref, maximize = case
    k = data.draw(st.integers(0, len(points)))
    expected = reference.hypervolume_subset(points.tolist(), k, ref, maximize)
    assert subset(points, k, ref, maximize).tolist() == expected


@pytest.mark.parametrize("m", MANY)
def test_the_subset_of_many_objectives_is_the_greedy_one(m):
    points, ref, maximize = many(m)
    expected = reference.hypervolume_subset(points.tolist(), 7, ref, maximize)
    assert subset(points, 7, ref, maximize).tolist() == expected


@pytest.mark.parametrize("shape", ["spherical", "convex", "concave", "cloud"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7])
def test_each_pick_improves_most_over_those_before(shape, m):
    points = torch.from_numpy(shaped(shape, 25 if m < 6 else 12, m))
    picked = subset(points, 8, 1.0)
    assert picked.dtype == torch.int64
    assert len(set(picked.tolist())) == 8
    for place, row in enumerate(picked.tolist()):
        gains = improvement(points, points[picked[:place]], 1.0)
        gains[picked[:place]] = -1.0
        assert gains[row].item() == pytest.approx(gains.max().item(), rel=1e-12, abs=0)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_ties_go_to_the_lowest_row_and_the_rest_follows_in_order(m):
    assert subset([[0.5] * m] * 4, 3, 1.0).tolist() == [0, 1, 2]
    points = [[2.0] * m, [0.5] * m, [0.25] * m, [0.5] * m, [0.25] * m, [1.0] * m]
    assert subset(points, 6, 1.0).tolist() == [2, 0, 1, 3, 4, 5]
    assert subset(-torch.tensor(points, dtype=F64), 6, -1.0, True).tolist() == [2, 0, 1, 3, 4, 5]


@pytest.mark.parametrize("m", OBJECTIVES)
@pytest.mark.parametrize("row", NOTHING)
def test_a_row_that_does_not_count_is_picked_only_when_nothing_improves(row, m):
    row, points = torch.tensor([NOTHING[row](m)], dtype=F64), eighths(m, 6)
    for i in (0, 3, 6):
        mixed = torch.cat([points[:i], row, points[i:]])
        stand_in = torch.cat([points[:i], torch.full((1, m), 2.0, dtype=F64), points[i:]])
        expected = reference.hypervolume_subset(stand_in.tolist(), 7, [1] * m)
        assert subset(mixed, 7, 1.0, nan="worst").tolist() == expected
        assert subset(-mixed, 7, -1.0, True, nan="worst").tolist() == expected


@pytest.mark.parametrize("m", OBJECTIVES)
def test_an_infinite_improvement_is_picked_first(m):
    points = fronts((), 5, m)
    points[3, m // 2] = -INF
    assert subset(points, 1, 1.0).tolist() == [3]
    picked = subset(points, 5, 1.0).tolist()
    assert picked[0] == 3
    assert sorted(picked) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_lengths_equal_cutting_and_short_fronts_are_padded(m):
    points, lengths = fronts((2, 3), 7, m), torch.tensor([[0, 7, 3], [4, 5, 1]])
    got = subset(points, 4, 0.9, lengths=lengths)
    assert got.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            n = lengths[i, j].item()
            k = min(n, 4)
            assert got[i, j, :k].tolist() == subset(points[i, j, :n], k, 0.9).tolist()
            assert (got[i, j, k:] == -1).all()


@pytest.mark.parametrize("m", [*OBJECTIVES, 8])
def test_a_mask_picks_among_the_rows_let_in(m):
    points, mask = fronts((2, 3), 7, m), flags((2, 3), 7)
    mask[0, 0] = False
    got = subset(points, 5, 0.9, mask=mask)
    for i in range(2):
        for j in range(3):
            rows = mask[i, j].nonzero().squeeze(-1)
            k = min(len(rows), 5)
            assert got[i, j, :k].tolist() == rows[subset(points[i, j][rows], k, 0.9)].tolist()
            assert (got[i, j, k:] == -1).all()


def test_a_subset_of_none():
    for m in (1, 2, 5):
        assert subset(fronts((), 4, m), 0, 1.0).shape == (0,)
        assert subset(fronts((2, 3), 4, m), 0, 1.0).shape == (2, 3, 0)
        assert subset(torch.empty(0, m), 0, 1.0).tolist() == []
        assert subset(torch.empty(0, 4, m), 2, 1.0).shape == (0, 2)
        assert subset(torch.empty(3, 0, m), 0, 1.0).dtype == torch.int64


@given(grids(min_n=1, max_n=8), st.randoms(use_true_random=False))
def test_the_order_of_objectives_changes_no_pick(case, random):
    points, ref, maximize = case
    columns = random.sample(range(points.shape[1]), points.shape[1])
    shuffled = subset(points[:, columns], len(points), [ref[k] for k in columns], [maximize[k] for k in columns])
    assert torch.equal(shuffled, subset(points, len(points), ref, maximize))


@pytest.mark.parametrize("k", [5, 2**40, -1])
@pytest.mark.parametrize("m", [2, 5])
def test_k_must_be_within_the_front(k, m):
    with pytest.raises(ValueError, match=r"\bk\b"):
        subset(fronts((), 4, m), k, 1.0)


@pytest.mark.parametrize("k", ["2", None, 1.5, [1]])
def test_k_must_be_an_integer(k):
    with pytest.raises(TypeError, match=r"\bk\b"):
        subset(fronts((), 4, 3), k, 1.0)


# The operators under torch's machinery.

DEEP = fronts((2, 3), 6, 5)
SETS = fronts((2, 3), 8, 5, seed=1).reshape(2, 3, 4, 2, 5)
LENGTHS = torch.tensor([[6, 0, 3], [1, 6, 5]])
SAMPLES = {
    "hypervolume_improvement": [
        (SETS, DEEP, torch.ones(5, dtype=F64)),
        (SETS.float(), DEEP.float(), torch.ones(2, 3, 5), True, False, LENGTHS, 2000),
        (SETS[0, 0, :, :1, :2], DEEP[0, 0, :, :2].T.contiguous().T, torch.ones(2, dtype=F64), False, True, None),
        (SETS[:, :, :0], DEEP, torch.ones(5, dtype=F64)),
        (SETS[:, :, :, :0], DEEP, torch.ones(5, dtype=F64)),
        (SETS[:, :0], DEEP[:, :0], torch.ones(5, dtype=F64)),
    ],
    "hypervolume_subset": [
        (DEEP, 3, torch.ones(5, dtype=F64)),
        (DEEP.float(), 6, torch.ones(2, 3, 5), True, False, LENGTHS, 2000),
        (DEEP[0, 0, :, :2].T.contiguous().T, 2, torch.ones(2, dtype=F64), False, True, None),
        (DEEP, 0, torch.ones(5, dtype=F64)),
        (DEEP[:, :0], 3, torch.ones(5, dtype=F64)),
    ],
}


@pytest.mark.parametrize(("name", "sample"), [(name, i) for name in SAMPLES for i in range(len(SAMPLES[name]))])
def test_opcheck(name, sample):
    torch.library.opcheck(getattr(torch.ops.morlfast, name).default, SAMPLES[name][sample])


@pytest.mark.parametrize("dynamic", [False, True])
def test_five_objectives_compile_without_a_graph_break(dynamic):
    def found(candidates: torch.Tensor, front: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        senses = [True, False, True, False, False]
        gains = improvement(candidates, front, 1.0, senses, mask=mask, nan="worst", joint=True)
        return gains, subset(front, 3, 1.0, senses, mask=mask, nan="worst")

    torch._dynamo.reset()
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    mask = flags((2, 3), 6)
    for got, expected in zip(compiled(SETS, DEEP, mask), found(SETS, DEEP, mask), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("m", OBJECTIVES)
def test_meta_points_give_meta_results(m):
    front, candidates = torch.empty(2, 1, 8, m, device="meta"), torch.empty(3, 4, m, device="meta")
    got = improvement(candidates, front, 1.0)
    assert got.is_meta
    assert (got.shape, got.dtype) == ((2, 3, 4), torch.float32)
    got = subset(front, 3, 1.0)
    assert got.is_meta
    assert (got.shape, got.dtype) == ((2, 1, 3), torch.int64)
