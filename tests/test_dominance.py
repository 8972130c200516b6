"""Lorenz dominance, epsilon boxes and convex fronts against their definitions."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from morlfast import dominance
from morlfast.dominance import (
    epsilon_boxes,
    is_epsilon_non_dominated,
    is_lorenz_non_dominated,
    is_on_convex_front,
    lorenz_vectors,
)
from morlfast.pareto import is_non_dominated
from references import pareto as reference

INF = math.inf
NAN = math.nan
F64 = torch.float64


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def sets(highest: int = 4, most: int = 8, objectives=(1, 4)):
    """Integer coordinates, so that there are ties, duplicates and faces."""

    @st.composite
    def draw(draw):
        n, m = draw(st.integers(0, most)), draw(st.integers(*objectives))
        values = draw(st.lists(st.integers(0, highest), min_size=n * m, max_size=n * m))
        return np.array(values, dtype=float).reshape(n, m)

    return draw()


# --- Lorenz ---


@given(points=sets())
def test_lorenz_vectors_are_sums_of_the_smallest(points):
    expected = np.cumsum(np.sort(points, axis=-1), axis=-1)
    assert lorenz_vectors(points).numpy().tolist() == expected.tolist()


@given(points=sets(), deduplicate=st.booleans(), data=st.data())
def test_lorenz_non_dominated_is_non_dominated_in_lorenz_vectors(points, deduplicate, data):
    n = len(points)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    vectors = np.cumsum(np.sort(points, axis=-1), axis=-1)
    rows = np.flatnonzero(mask)
    expected = np.zeros(n, dtype=bool)
    for i in rows:
        better = any((vectors[j] >= vectors[i]).all() and (vectors[j] > vectors[i]).any() for j in rows)
        copy = any((vectors[j] == vectors[i]).all() for j in rows if j < i)
        expected[i] = not better and not (deduplicate and copy)
    assert is_lorenz_non_dominated(points, deduplicate=deduplicate, mask=mask).tolist() == expected.tolist()


def test_lorenz_vectors_of_infinite_values():
    found = lorenz_vectors([[INF, 1.0], [-INF, INF], [-INF, 2.0], [INF, INF]])
    assert found.tolist() == [[1.0, INF], [-INF, -INF], [-INF, -INF], [INF, INF]]
    assert is_lorenz_non_dominated([[INF, 1.0], [-INF, INF]]).tolist() == [True, False]


def test_lorenz_vectors_are_differentiable():
    points = torch.rand(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lorenz_vectors, points)
    assert lorenz_vectors(torch.rand(3, 2)).dtype == torch.float32


def test_a_dominated_point_never_stays_though_sums_round_alike():
    points = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 2**-52]], dtype=F64)
    assert torch.equal(*lorenz_vectors(points))
    assert is_lorenz_non_dominated(points).tolist() == [False, True]


def test_lorenz_with_nan():
    points = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    with pytest.raises(ValueError, match="row 0"):
        is_lorenz_non_dominated(points)
    assert is_lorenz_non_dominated(points, nan="worst").tolist() == [False, True]


# --- epsilon boxes ---


def test_boxes_contain_their_good_face():
    values = [[-0.5], [0.0], [0.25], [0.5], [0.75], [1.0]]
    assert epsilon_boxes(values, 0.5, maximize=False)[:, 0].tolist() == [-1, 0, 0, 1, 1, 2]
    assert epsilon_boxes(values, 0.5, maximize=True)[:, 0].tolist() == [1, 0, -1, -1, -2, -2]
    powers = [[0.0], [0.5], [1.0], [3.0], [4.0], [INF]]
    assert epsilon_boxes(powers, 1.0, maximize=False, kind="multiplicative")[:, 0].tolist() == [-INF, -1, 0, 1, 2, INF]
    assert epsilon_boxes(powers, 1.0, maximize=True, kind="multiplicative")[:, 0].tolist() == [INF, 1, 0, -2, -2, -INF]


def test_every_objective_has_its_side_and_sense():
    found = epsilon_boxes([[0.9, 0.9], [0.1, -0.1]], [0.5, 0.25], maximize=[False, True])
    assert found.tolist() == [[1.0, -4.0], [0.0, 0.0]]
    assert not torch.signbit(found[1]).any()


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
@given(points=sets(highest=9, most=12, objectives=(1, 3)), data=st.data())
def test_the_nearest_point_of_each_non_dominated_cell_stays(kind, points, data):
    n, m = points.shape
    maximize = data.draw(st.lists(st.booleans(), min_size=m, max_size=m))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    points = points + (kind == "multiplicative")
    signs = np.where(maximize, -1.0, 1.0)
    # Sides that no value is a multiple of, but for 0.
    places = signs * points / 2.3 if kind == "additive" else signs * np.log(points) / math.log(2.3)
    cells = np.floor(places)
    expected = np.zeros(n, dtype=bool)
    rows = np.flatnonzero(mask)
    for i in rows:
        if not reference.dominates(cells[rows], cells[[i]]).any():
            own = [j for j in rows if (cells[j] == cells[i]).all()]
            nearest = min(((places[j] - cells[j]) ** 2).sum() for j in own)
            near = [j for j in own if ((places[j] - cells[j]) ** 2).sum() <= nearest + 1e-12]
            expected[i] = i == near[0]
    epsilon = 2.3 if kind == "additive" else 1.3
    found = is_epsilon_non_dominated(points, epsilon, maximize=maximize, kind=kind, mask=mask).numpy()
    np.testing.assert_array_equal(found, expected)


def test_epsilon_non_dominated_is_a_coarse_front(rng):
    points = torch.from_numpy(rng.random((2, 300, 3)))
    found = is_epsilon_non_dominated(points, 0.1, maximize=False)
    assert (found <= is_non_dominated(points, maximize=False)).all()
    for b in range(2):
        kept = points[b][found[b]]
        assert ((kept[None] - 0.1 <= points[b][:, None]).all(-1)).any(-1).all()
        assert 1 < len(kept) <= 11**2


def test_a_dominated_point_never_stays_though_distances_round_alike():
    points = torch.tensor([[0.5, 1.0 + 2**-50], [0.5, 1.0]], dtype=F64)  # in one cell; their squares are equal
    assert is_epsilon_non_dominated(points, 4.0, maximize=False).tolist() == [False, True]


def test_epsilon_with_infinite_negative_and_missing_values():
    points = torch.tensor([[1.0, -INF], [INF, -INF], [0.0, INF], [2.0, 1.0]])
    assert is_epsilon_non_dominated(points, 1.0, maximize=False).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="points: expected no NaN, got NaN in row 1"):
        is_epsilon_non_dominated([[1.0], [NAN]], 1.0, maximize=False)
    with pytest.raises(ValueError, match="points: expected values >= 0"):
        is_epsilon_non_dominated([[1.0], [-1.0]], 1.0, maximize=False, kind="multiplicative")
    found = is_epsilon_non_dominated([[1.0], [-1.0], [NAN]], 1.0, maximize=False, kind="multiplicative", nan="worst")
    assert found.tolist() == [True, False, False]
    assert is_epsilon_non_dominated(torch.empty(2, 0, 3), 1.0, maximize=False).shape == (2, 0)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, INF, NAN, [1.0, 0.0]])
def test_epsilon_is_positive_and_finite(epsilon):
    with pytest.raises(ValueError, match="epsilon: expected finite values > 0"):
        epsilon_boxes([[1.0, 2.0]], epsilon, maximize=False)


def test_epsilon_errors_name_the_argument():
    with pytest.raises(ValueError, match="kind: expected"):
        epsilon_boxes([[1.0]], 1.0, maximize=False, kind="relative")
    with pytest.raises(ValueError, match="epsilon: expected one value for each of 2"):
        epsilon_boxes([[1.0, 2.0]], [1.0, 2.0, 3.0], maximize=False)
    with pytest.raises(TypeError):
        epsilon_boxes([[1.0, 2.0]], 1.0)


# --- convex fronts ---


def convex_by_turns(points: np.ndarray) -> list[bool]:
    """m = 2, minimized: strictly below every line between a point to its left and one to its right, exactly."""
    exact = [tuple(Fraction(value) for value in point) for point in points]
    found = []
    for i, (x, y) in enumerate(exact):
        worse = any((a, b) == (x, y) for a, b in exact[:i]) or any(
            a <= x and b <= y and (a, b) != (x, y) for a, b in exact
        )
        left = [(a, b) for a, b in exact if a < x and b > y]
        right = [(a, b) for a, b in exact if a > x and b < y]
        above = any((c - a) * (y - b) >= (d - b) * (x - a) for a, b in left for c, d in right)
        found.append(not worse and not above)
    return found


def convex_by_programs(points: np.ndarray, tolerance: float = 1e-9) -> list[bool]:
    """Minimized: max_w min_j w.(z_j - z_i) over the simplex, one linear program a point."""
    optimize = pytest.importorskip("scipy.optimize")
    n, m = points.shape
    front = reference.is_non_dominated(points, False, deduplicate=True) if n else np.zeros(0, dtype=bool)
    found = np.zeros(n, dtype=bool)
    if not front.any():
        return found.tolist()
    span = np.ptp(points[front], axis=0)
    unit = points / np.where(span > 0, span, 1)
    for i in np.flatnonzero(front):
        others = unit[[j for j in np.flatnonzero(front) if j != i]]
        program = optimize.linprog(
            [0.0] * m + [-1.0],
            A_ub=np.hstack([unit[i] - others, np.ones((len(others), 1))]),
            b_ub=np.zeros(len(others)),
            A_eq=[[1.0] * m + [0.0]],
            b_eq=[1.0],
            bounds=[(0, None)] * m + [(-2, 2)],
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        found[i] = program.x[m] > tolerance
    return found.tolist()


@given(points=sets(highest=6, most=10, objectives=(2, 2)), scale=st.sampled_from([1.0, 0.1, 1e-160, 1e300]))
def test_two_objectives_are_exact(points, scale):
    points = points * scale
    assert is_on_convex_front(points, maximize=False).tolist() == convex_by_turns(points)


def test_two_objectives_are_exact_where_rounding_decides(rng):
    for _ in range(20):
        first = rng.random(12)
        points = np.stack([first, 1 - first], axis=1)  # on a line, but for rounding
        assert is_on_convex_front(points, maximize=False).tolist() == convex_by_turns(points)


@settings(max_examples=25)
@given(points=sets(highest=3, most=10, objectives=(1, 5)))
def test_more_objectives_agree_with_linear_programs(points):
    assert is_on_convex_front(points, maximize=False).tolist() == convex_by_programs(points)


@pytest.mark.parametrize("m", [3, 4, 6, 7])
@pytest.mark.parametrize("shape", ["cloud", "convex", "concave", "simplex"])
def test_fronts_of_many_shapes_agree_with_linear_programs(rng, m, shape):
    points = rng.random((24, m))
    if shape == "simplex":
        points = rng.dirichlet(np.ones(m), 24)
    elif shape != "cloud":
        sphere = np.abs(rng.standard_normal((24, m)))
        sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
        points = 1 - sphere if shape == "convex" else sphere
    found = is_on_convex_front(points, maximize=False).tolist()
    assert found == convex_by_programs(points)
    assert found == is_on_convex_front(-points, maximize=True).tolist()
    assert sum(found) == 24 if shape == "convex" else sum(found) >= 1


@pytest.mark.parametrize("m", [3, 4, 7])
def test_of_a_lattice_on_a_plane_the_corners_are_left(m):
    parts = 6 if m == 3 else 3
    lattice = np.stack(np.meshgrid(*[np.arange(parts + 1)] * m), axis=-1).reshape(-1, m)
    lattice = lattice[lattice.sum(1) == parts]
    for points in (lattice.astype(float), lattice / parts, lattice * 0.1 + 1 / 3):
        found = points[is_on_convex_front(points, maximize=False).numpy()]
        assert len(found) == m
        assert sorted(found.max(0)) == sorted(points.max(0))


@pytest.mark.parametrize("m", [3, 5, 8])
def test_of_points_on_a_line_the_ends_are_left(m):
    direction = np.linspace(1, 2, m) * np.where(np.arange(m) % 2, -1, 1)
    points = np.linspace(0, 1, 9)[:, None] * direction
    assert is_on_convex_front(points, maximize=False).nonzero().squeeze(-1).tolist() == [0, 8]


@pytest.mark.parametrize("m", [3, 6, 9])
def test_fewer_points_than_objectives(m):
    points = torch.eye(m, dtype=F64)[:-1]
    assert is_on_convex_front(points, maximize=True).all()
    assert is_on_convex_front(points, maximize=False).all()
    middle = torch.cat([points, points.mean(0, keepdim=True)])
    assert is_on_convex_front(middle, maximize=False).tolist() == [True] * (m - 1) + [False]


def test_constant_objectives_are_left_out():
    points = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 1.0], [4.0, 0.0]])
    wide = np.insert(points, [0, 1, 2], 0.1, axis=1)
    assert is_on_convex_front(wide, maximize=False).tolist() == [True, False, True, True]


def test_duplicates_stay_only_when_asked_for():
    points = [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [-0.0, 1.0, 1.0], [0.5, 0.5, 1.0], [0.5, 0.5, 1.0]]
    assert is_on_convex_front(points, maximize=False).tolist() == [True, True, False, False, False, False]
    all_of_them = is_on_convex_front(points, maximize=False, deduplicate=False)
    assert all_of_them.tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("m", [3, 7])
def test_of_points_that_nearly_equal_one_stays(m):
    points = torch.eye(m, dtype=F64).repeat(3, 1)
    points[m:] += 1e-13 * torch.rand(2 * m, m, dtype=F64, generator=torch.Generator().manual_seed(1))
    kept = points[is_on_convex_front(points, maximize=False)]
    assert len(kept) == m
    assert (torch.cdist(kept, torch.eye(m, dtype=F64)).amin(0) < 1e-12).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e308])
def test_the_scale_of_an_objective_changes_nothing(rng, scale):
    points = 1 - rng.dirichlet(np.ones(3), 30) ** 2
    expected = is_on_convex_front(points, maximize=[True, False, True])
    scaled = points * [scale, 1.0, -1.0]
    assert torch.equal(is_on_convex_front(scaled, maximize=[True, False, False]), expected)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_ragged_batches_one_after_the_other(rng, m):
    points = torch.from_numpy(rng.integers(0, 9, (2, 3, 9, m)).astype(float))
    lengths = torch.from_numpy(rng.integers(0, 10, (2, 3)))
    mask = torch.arange(9) < lengths[..., None]
    points[~mask] = INF
    found = is_on_convex_front(points, maximize=True, lengths=lengths)
    assert torch.equal(found, is_on_convex_front(points, maximize=True, mask=mask))
    for b in np.ndindex(2, 3):
        alone = is_on_convex_front(points[b][: lengths[b]], maximize=True)
        assert torch.equal(found[b][: lengths[b]], alone)
        assert alone.any() == (lengths[b] > 0)
        assert not found[b][lengths[b] :].any()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 4, 3), (0, 0, 1)])
def test_empty_sets_have_no_front(shape):
    assert is_on_convex_front(torch.empty(shape), maximize=True).shape == shape[:-1]
    assert is_on_convex_front(torch.empty(shape), maximize=True, deduplicate=False).shape == shape[:-1]


def test_nan_and_infinities_are_named():
    with pytest.raises(ValueError, match="points: expected no NaN, got NaN in row 1"):
        is_on_convex_front([[1.0, 2.0], [NAN, 1.0]], maximize=True)
    assert is_on_convex_front([[1.0, 2.0], [NAN, 1.0]], maximize=True, nan="worst").tolist() == [True, False]
    with pytest.raises(ValueError, match="points: expected finite values, got an infinity in row 1"):
        is_on_convex_front([[1.0, 2.0], [INF, 1.0]], maximize=True)
    with pytest.raises(ValueError, match=r"row 0 of batch index \(1\)"):
        is_on_convex_front([[[1.0, 2.0]], [[-INF, 1.0]]], maximize=True)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    points = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    with pytest.raises(ImportError, match=r"pip install 'morlfast\[convex\]'"):
        is_on_convex_front(points, maximize=True)
    assert is_on_convex_front([[0.0, 1.0], [1.0, 0.0]], maximize=True).all()


def test_where_quickhull_gives_up_linear_programs_decide(rng, monkeypatch):
    spatial = pytest.importorskip("scipy.spatial")
    points = rng.random((30, 3))
    expected = is_on_convex_front(points, maximize=False)

    def failing(points):
        raise spatial.QhullError("precision")

    monkeypatch.setattr(spatial, "ConvexHull", failing)
    assert torch.equal(is_on_convex_front(points, maximize=False), expected)


def test_a_part_of_what_morl_baselines_keeps(rng):
    pareto = pytest.importorskip("morl_baselines.common.pareto")
    for m in (2, 3, 4):
        points = rng.random((60, m))
        kept = {tuple(point) for point in pareto.filter_convex_dominated(points)}
        ours = {tuple(point) for point in points[is_on_convex_front(points, maximize=True).numpy()]}
        assert ours <= kept
        # It keeps vertices of the hull on its bad side as well: for no weights are they best.
        weights = rng.dirichlet(np.ones(m), 5000)
        best = {tuple(point) for point in points[(points @ weights.T).argmax(0)]}
        assert best <= ours


def test_the_tolerance_is_the_one_that_is_stated():
    assert dominance._TOLERANCE == 1e-9
    for depth, kept in ((1e-8, True), (1e-10, False)):
        points = torch.eye(3, dtype=F64)
        middle = torch.full((1, 3), 1 / 3 - depth, dtype=F64)
        assert is_on_convex_front(torch.cat([points, middle]), maximize=False)[3] == kept


@pytest.mark.gpu
def test_on_a_gpu_relations_are_those_of_the_cpu(rng):
    points = torch.from_numpy(rng.random((3, 40, 3)))
    on_gpu = points.cuda()
    torch.testing.assert_close(lorenz_vectors(on_gpu).cpu(), lorenz_vectors(points))
    assert torch.equal(is_lorenz_non_dominated(on_gpu).cpu(), is_lorenz_non_dominated(points))
    for kind in ("additive", "multiplicative"):
        found = is_epsilon_non_dominated(on_gpu, 0.1, maximize=[True, False, True], kind=kind)
        assert torch.equal(found.cpu(), is_epsilon_non_dominated(points, 0.1, maximize=[True, False, True], kind=kind))
    with pytest.raises(ValueError, match="points: expected a tensor on the CPU"):
        is_on_convex_front(on_gpu, maximize=True)
