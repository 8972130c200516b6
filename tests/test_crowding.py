"""Crowding distances against the formulas and the originals, and selection by them."""

from __future__ import annotations

import math
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.crowding import crowding_distance, rows_left_by_crowding, select_by_crowding
from morlfast.pareto import non_dominated_sort

VARIANTS = ["nsga2", "pymoo", "pcn", "evomo", "c-morl"]
INF = math.inf
NAN = math.nan
F64 = torch.float64
FRONT = [[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def distances(points: np.ndarray, variant: str) -> np.ndarray:
    """One finite front, value by value."""
    n, m = points.shape
    total = np.zeros(n)
    for column in points.T:
        order = sorted(range(n), key=lambda row: column[row])
        span = np.ptp(column) if n else 0
        for place, row in enumerate(order):
            at_end = place in (0, n - 1)
            if variant == "pcn":
                gap = 1 if at_end else (column[order[place + 1]] - column[order[place - 1]]) / (span + 1e-8)
            elif at_end and (span > 0 or n <= 2 or variant == "c-morl"):
                gap = INF
            elif span == 0:
                gap = 0
            else:
                gap = (column[order[place + 1]] - column[order[place - 1]]) / span
            total[row] += gap
    return total / m if variant == "pymoo" else total


def sets(least: int = 0):
    """Integer coordinates, so that there are ties, duplicates and constant objectives."""

    @st.composite
    def draw(draw):
        n, m = draw(st.integers(least, 9)), draw(st.integers(1, 4))
        values = draw(st.lists(st.integers(0, 4), min_size=n * m, max_size=n * m))
        return np.array(values, dtype=float).reshape(n, m)

    return draw()


@pytest.mark.parametrize("variant", VARIANTS)
@given(points=sets(), data=st.data())
def test_every_front_has_the_distances_of_the_formula(variant, points, data):
    n = len(points)
    ranks = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)), dtype=np.int32)
    expected = np.full(n, -INF)
    for rank in range(3):
        expected[ranks == rank] = distances(points[ranks == rank], variant)
    found = crowding_distance(points, ranks=ranks, variant=variant)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_and_padding_change_nothing(rng, variant):
    points = rng.integers(0, 6, (2, 3, 7, 3)).astype(float)
    ranks = rng.integers(-1, 3, (2, 3, 7))
    lengths = rng.integers(0, 8, (2, 3))
    mask = rng.random((2, 3, 7)) < 0.6
    by_length = crowding_distance(points, ranks=ranks, variant=variant, lengths=lengths)
    by_mask = crowding_distance(points, ranks=ranks, variant=variant, mask=mask)
    for b in np.ndindex(2, 3):
        short = crowding_distance(points[b][: lengths[b]], ranks=ranks[b][: lengths[b]], variant=variant)
        assert torch.equal(by_length[b][: lengths[b]], short)
        assert (by_length[b][lengths[b] :] == -INF).all()
        assert torch.equal(
            by_mask[b][mask[b]], crowding_distance(points[b][mask[b]], ranks=ranks[b][mask[b]], variant=variant)
        )
        assert (by_mask[b][~mask[b]] == -INF).all()


def test_the_default_is_one_front():
    assert crowding_distance(FRONT).tolist() == [INF, 1.5, 1.5, INF]
    assert crowding_distance(FRONT, ranks=[0, 0, 0, 0]).tolist() == [INF, 1.5, 1.5, INF]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("equal", [False, True])
def test_one_or_two_points_have_all_the_room(variant, n, equal):
    points = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0] if equal else [3.0, 2.0, 1.0]][:n]
    assert crowding_distance(points, variant=variant).tolist() == [3.0 if variant == "pcn" else INF] * n


def test_a_constant_objective_counts_nothing():
    points = [[*point, 7.0] for point in FRONT]
    assert crowding_distance(points).tolist() == [INF, 1.5, 1.5, INF]
    assert crowding_distance(points, variant="pymoo").tolist() == [INF, 0.5, 0.5, INF]
    assert crowding_distance(points, variant="c-morl").tolist() == [INF, 1.5, 1.5, INF]
    assert crowding_distance([[1.0, 1.0]] * 4).tolist() == [0.0] * 4
    assert crowding_distance([[1.0, 1.0]] * 4, variant="c-morl").tolist() == [INF, 0.0, 0.0, INF]
    assert crowding_distance([[1.0, 1.0]] * 4, variant="pcn").tolist() == [2.0, 0.0, 0.0, 2.0]


def test_of_duplicates_those_between_the_first_and_the_last_have_no_room():
    points = [[0.0, 4.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [4.0, 0.0]]
    assert crowding_distance(points).tolist() == [INF, 1 / 4 + 1 / 4, 0.0, 3 / 4 + 3 / 4, INF]


@pytest.mark.parametrize("variant", VARIANTS)
@given(data=st.data())
def test_infinite_values_never_give_nan(variant, data):
    n, m = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 3))
    value = st.sampled_from([-INF, -1e308, -1.0, 0.0, 1.0, 1e308, INF])
    points = torch.tensor(data.draw(st.lists(value, min_size=n * m, max_size=n * m)), dtype=F64).reshape(n, m)
    found = crowding_distance(points, variant=variant)
    assert not found.isnan().any()
    assert (found >= 0).all()


def test_of_an_infinite_range_infinite_gaps_take_all():
    assert crowding_distance([[0.0], [1.0], [2.0], [INF]]).tolist() == [INF, 0.0, 1.0, INF]
    assert crowding_distance([[-INF], [-INF], [0.0], [INF], [INF]]).tolist() == [INF, 1.0, 1.0, 1.0, INF]


def test_nan_names_the_row_or_leaves_the_front():
    points = torch.tensor([[0.0, 4.0], [NAN, 1.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    with pytest.raises(ValueError, match="points: expected no NaN, got NaN in row 1"):
        crowding_distance(points)
    assert crowding_distance(points, nan="worst").tolist() == [INF, -INF, 1.5, 1.5, INF]
    assert crowding_distance(points, mask=[True, False, True, True, True]).tolist() == [INF, -INF, 1.5, 1.5, INF]


@pytest.mark.parametrize("shape", [(0, 2), (0, 4, 2), (3, 0, 2)])
def test_empty_sets_have_no_distances(shape):
    assert crowding_distance(torch.empty(shape)).shape == shape[:-1]


def test_dtypes_strides_and_gradients():
    points = torch.tensor(FRONT)
    assert crowding_distance(points).dtype == torch.float32
    assert crowding_distance(np.array(FRONT, dtype=int)).dtype == F64
    assert crowding_distance(points.T.contiguous().T).tolist() == [INF, 1.5, 1.5, INF]
    assert not crowding_distance(points.clone().requires_grad_()).requires_grad
    far = torch.tensor(FRONT, dtype=torch.float32) + 2**20  # exact in float32
    assert crowding_distance(far).tolist() == [INF, 1.5, 1.5, INF]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="variant: expected one of nsga2"):
        crowding_distance(FRONT, variant="spea2")
    with pytest.raises(ValueError, match=r"ranks: expected shape \(4,\), got \(3,\)"):
        crowding_distance(FRONT, ranks=[0, 0, 0])
    with pytest.raises(TypeError, match="ranks: expected integers"):
        crowding_distance(FRONT, ranks=torch.zeros(4))
    with pytest.raises(ValueError, match="lengths"):
        crowding_distance(FRONT, lengths=5)
    with pytest.raises(ValueError, match="at least one objective"):
        crowding_distance(torch.empty(3, 0))
    with pytest.raises(ValueError, match="nan: expected"):
        crowding_distance(FRONT, nan="best")


# --- the originals ---


def peer_sets(rng):
    for trial in range(60):
        n, m = int(rng.integers(2, 40)), int(rng.integers(1, 6))
        points = rng.random((n, m)) if trial % 2 else rng.integers(0, 5, (n, m)).astype(float)
        if trial % 3 == 0:
            points[:, 0] = 1
        yield points


def test_pymoo_has_these_distances(rng):
    metrics = pytest.importorskip("pymoo.operators.survival.rank_and_crowding.metrics")
    original = metrics.get_crowding_function("cd")
    for points in peer_sets(rng):
        found = crowding_distance(points, variant="pymoo")
        np.testing.assert_allclose(found.numpy(), original.do(points), rtol=1e-12, atol=1e-13)


def test_morl_baselines_pcn_has_these_distances(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # for logging
    original = pytest.importorskip("morl_baselines.multi_policy.pcn.pcn").crowding_distance
    for trial in range(60):  # numpy's argsort leaves the order of ties open
        points = rng.random((int(rng.integers(2, 40)), int(rng.integers(1, 6))))
        if trial % 3 == 0:
            points[:, 1:] *= 1e-7  # where 1e-8 shows
        np.testing.assert_allclose(crowding_distance(points, variant="pcn").numpy(), original(points), rtol=1e-9)


def test_evomo_has_these_distances(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = pytest.importorskip("evomo.operators.selection").crowding_distance
    for points in peer_sets(rng):
        mask = rng.random(len(points)) < 0.8
        expected = original(torch.from_numpy(points), torch.from_numpy(mask))
        found = crowding_distance(points, variant="evomo", mask=mask)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12, atol=1e-13)


# --- selection ---


def selected_by_hand(points: np.ndarray, k: int, maximize: bool, selected: np.ndarray, variant: str) -> list[int]:
    ranks = non_dominated_sort(points, maximize=maximize).numpy()
    room = np.zeros(len(points))
    for rank in set(ranks):
        room[ranks == rank] = distances(points[ranks == rank], variant)
    history = {tuple(point) for point in selected}
    rows = []
    for row in sorted(range(len(points)), key=lambda row: (ranks[row], -room[row])):
        if tuple(points[row]) not in history and len(rows) < k:
            history.add(tuple(points[row]))
            rows.append(row)
    return rows + [-1] * (k - len(rows))


@pytest.mark.parametrize("variant", VARIANTS)
@given(points=sets(), maximize=st.booleans(), data=st.data())
def test_selection_goes_by_rank_room_and_row_and_takes_nothing_twice(variant, points, maximize, data):
    k = data.draw(st.integers(0, len(points)))
    history = data.draw(st.lists(st.integers(0, 4), max_size=3 * points.shape[1]))
    history = np.array(history[: len(history) // points.shape[1] * points.shape[1]], dtype=float)
    history = history.reshape(-1, points.shape[1])
    found = select_by_crowding(points, k, maximize=maximize, selected=history, variant=variant)
    expected = selected_by_hand(points, k, maximize, history, variant)
    # Sums of equal gaps may be rounded differently; integer coordinates with range 3 show that.
    room = crowding_distance(points, ranks=non_dominated_sort(points, maximize=maximize), variant=variant)
    for ours, theirs in zip(found.tolist(), expected, strict=True):
        assert ours == theirs or abs(room[ours] - room[theirs]) < 1e-12


def test_selection_in_batches(rng):
    points = rng.random((3, 8, 2))
    points[:, 5] = points[:, 2]
    history = points[:, [0, 1]]
    mask = rng.random((3, 8)) < 0.8
    found = select_by_crowding(points, 8, maximize=[True, False], selected=history, mask=mask)
    assert found.shape == (3, 8)
    for b in range(3):
        rows = np.flatnonzero(mask[b])
        alone = select_by_crowding(
            points[b][rows], len(rows), maximize=[True, False], selected=torch.from_numpy(history[b])
        ).numpy()
        expected = [rows[row] for row in alone if row >= 0]
        assert found[b].tolist() == expected + [-1] * (8 - len(expected))


def test_one_history_for_all_sets_of_a_batch():
    points = torch.tensor(FRONT).expand(2, 4, 2)
    found = select_by_crowding(points, 2, maximize=True, selected=[[0.0, 4.0], [4.0, -0.0]])
    assert found.tolist() == [[1, 2], [1, 2]]


def test_selection_skips_nan_and_says_what_is_wrong():
    points = torch.tensor([[NAN, 1.0], *FRONT])
    assert select_by_crowding(points, 5, maximize=True, nan="worst").tolist() == [1, 4, 2, 3, -1]
    assert select_by_crowding(FRONT, 4, maximize=True, selected=[[NAN, 4.0]]).tolist() == [0, 3, 1, 2]
    with pytest.raises(ValueError, match="row 0"):
        select_by_crowding(points, 5, maximize=True)
    with pytest.raises(ValueError, match="k: expected 0 to 4"):
        select_by_crowding(FRONT, 5, maximize=True)
    with pytest.raises(ValueError, match=r"selected: expected shape \(..., s, 2\)"):
        select_by_crowding(FRONT, 2, maximize=True, selected=[[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="selected"):
        select_by_crowding(FRONT, 2, maximize=True, selected=[1.0, 2.0])


@given(points=sets(least=1), data=st.data())
def test_pruning_takes_distances_anew_after_each_loss(points, data):
    k = data.draw(st.integers(1, len(points)))
    rows = list(range(len(points)))
    while len(rows) > k:
        del rows[int(crowding_distance(points[rows]).argmin())]
    assert rows_left_by_crowding(torch.from_numpy(points), k).tolist() == rows


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_distances_and_selection_are_those_of_the_cpu(rng, variant):
    points = torch.from_numpy(rng.integers(0, 6, (3, 40, 3)).astype(float))
    points[0, 0] = torch.tensor([-0.0, 5.0, 5.0])
    ranks = non_dominated_sort(points, maximize=True)
    found = crowding_distance(points.cuda(), ranks=ranks.cuda(), variant=variant)
    torch.testing.assert_close(found.cpu(), crowding_distance(points, ranks=ranks, variant=variant), rtol=1e-14, atol=0)
    ours = select_by_crowding(points.cuda(), 20, maximize=True, selected=points[:, :2].cuda(), variant=variant)
    room = select_by_crowding(points, 20, maximize=True, selected=points[:, :2], variant=variant)
    assert torch.equal(ours.cpu(), room)
    missing = torch.tensor([[0.0, NAN], [1.0, 2.0]], device="cuda")
    assert crowding_distance(missing).isneginf().tolist() == [True, False]
