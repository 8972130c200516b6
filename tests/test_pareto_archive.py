"""The archive against filtering everything that was inserted, and its pruning against doing it by hand."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.crowding import crowding_distance
from morlfast.dominance import is_epsilon_non_dominated
from morlfast.hypervolume import least_contributor
from morlfast.hypervolume_approximation import infer_reference_point
from morlfast.pareto import filter_non_dominated
from morlfast.pareto_archive import ParetoArchive

INF = math.inf
NAN = math.nan
F64 = torch.float64


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@st.composite
def batches(draw, values=(-1.0, -0.0, 0.0, 1.0, 2.0, INF)):
    """Few values, so that there are ties and duplicates within and between batches; senses; sizes of batches."""
    m = draw(st.integers(1, 4))
    n = draw(st.integers(0, 14))
    points = draw(st.lists(st.sampled_from(values), min_size=n * m, max_size=n * m))
    points = torch.tensor(points, dtype=F64).reshape(n, m)
    ends = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    maximize = draw(st.one_of(st.booleans(), st.lists(st.booleans(), min_size=m, max_size=m)))
    return [points[a:b] for a, b in zip([0, *ends], [*ends, n], strict=True)], maximize


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit for bit, the sign of zero as well."""
    return torch.equal(found, expected) and torch.equal(found.signbit(), expected.signbit())


@given(batches())
def test_contents_are_those_of_filtering_everything(drawn):
    parts, maximize = drawn
    archive = ParetoArchive(parts[0].shape[1], maximize=maximize)
    everything = torch.cat(parts)
    begin = 0
    for part in parts:
        is_in = archive.insert(part)
        end = begin + len(part)
        expected = filter_non_dominated(everything[:end], maximize=maximize, deduplicate=True)
        assert same(archive.points, expected.points)
        assert archive.payload.tolist() == expected.rows.tolist()
        assert is_in.tolist() == [row in expected.rows.tolist() for row in range(begin, end)]
        assert len(archive) == expected.counts
        begin = end


@given(batches(), st.data())
def test_payload_stays_with_its_point(drawn, data):
    parts, maximize = drawn
    archive = ParetoArchive(parts[0].shape[1], maximize=maximize)
    payload = torch.tensor(
        data.draw(st.lists(st.integers(-(2**62), 2**62), min_size=sum(map(len, parts)), max_size=sum(map(len, parts)))),
        dtype=torch.int64,
    )
    for part, own in zip(parts, payload.split([len(part) for part in parts]), strict=True):
        archive.insert(part, own)
    expected = filter_non_dominated(torch.cat(parts), maximize=maximize, deduplicate=True)
    assert archive.payload.tolist() == payload[expected.rows].tolist()


def test_rows_are_numbered_through_all_insertions():
    archive = ParetoArchive(1, maximize=False)
    archive.insert([[3.0], [2.0]])
    archive.insert([[9.0]], payload=[-5])
    archive.insert([[9.0], [1.0]])
    assert archive.payload.tolist() == [4]
    archive.clear()
    assert len(archive) == 0
    assert archive.points.shape == (0, 1)
    archive.insert([[7.0]])
    assert archive.payload.tolist() == [0]


def test_growing_copies_seldom_and_returns_copies(rng):
    archive = ParetoArchive(2, maximize=True)
    buffers = set()
    for first in torch.linspace(0, 1, 1000, dtype=F64).split(5):
        archive.insert(torch.stack([first, 1 - first], dim=1))
        buffers.add(archive._points.data_ptr())
    assert len(archive) == 1000
    assert len(buffers) <= 6
    archive.points.zero_()
    archive.payload.zero_()
    assert archive.points[-1].tolist() == [1.0, 0.0]
    assert archive.payload[-1] == 999


def test_inserted_tensors_are_left_alone():
    points = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=F64, requires_grad=True)
    archive = ParetoArchive(2, maximize=[True, False])
    archive.insert(points)
    with torch.no_grad():
        points.mul_(3)
    assert archive.points.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert not archive.points.requires_grad


# --- capacity ---


@given(batches(values=(0.0, 1.0, 2.0, 4.0)), st.integers(1, 5))
def test_the_least_crowding_distance_leaves_and_is_taken_anew(drawn, capacity):
    parts, maximize = drawn
    archive = ParetoArchive(parts[0].shape[1], maximize=maximize, capacity=capacity)
    points, numbers, begin = parts[0][:0], [], 0
    for part in parts:
        kept = filter_non_dominated(torch.cat([points, part]), maximize=maximize, deduplicate=True)
        points = kept.points
        numbers = [[*numbers, *range(begin, begin + len(part))][row] for row in kept.rows]
        while len(points) > capacity:
            row = int(crowding_distance(points).argmin())
            points, numbers = points[torch.arange(len(points)) != row], numbers[:row] + numbers[row + 1 :]
        is_in = archive.insert(part)
        assert archive.points.tolist() == points.tolist()
        assert archive.payload.tolist() == numbers
        assert is_in.tolist() == [row in numbers for row in range(begin, begin + len(part))]
        begin += len(part)


@pytest.mark.parametrize("ref_point", [None, 1.5, [1.1, 1.2, 1.3]])
@pytest.mark.parametrize("maximize", [False, True, [True, False, True]])
def test_the_least_contributor_leaves(rng, ref_point, maximize):
    signs = torch.tensor([-1.0 if sense else 1.0 for sense in np.broadcast_to(maximize, 3)], dtype=F64)
    reference = None if ref_point is None else signs * torch.as_tensor(ref_point, dtype=F64)
    archive = ParetoArchive(3, maximize=maximize, capacity=7, prune="hypervolume", ref_point=reference)
    points = torch.empty((0, 3), dtype=F64)
    for part in signs * torch.from_numpy(rng.dirichlet(np.ones(3), (4, 9))):
        points = filter_non_dominated(torch.cat([points, part]), maximize=maximize, deduplicate=True).points
        limit = infer_reference_point(points, maximize=maximize) if reference is None else reference
        while len(points) > 7:
            row = int(least_contributor(points, limit, maximize=maximize))
            points = points[torch.arange(len(points)) != row]
        archive.insert(part)
        assert same(archive.points, points)
    assert archive.ref_point is None if reference is None else same(archive.ref_point, reference.expand(3))


def test_infinite_points_do_not_stop_pruning_by_hypervolume():
    archive = ParetoArchive(2, maximize=True, capacity=2, prune="hypervolume")
    archive.insert([[INF, -INF], [-INF, INF], [0.0, 0.0], [1.0, -1.0]])
    assert len(archive) == 2


@given(batches(values=(-3.0, -1.0, -0.0, 1.0, 2.0, 3.0, 5.0)))
def test_epsilon_keeps_what_epsilon_dominance_keeps_of_everything(drawn):
    parts, maximize = drawn
    archive = ParetoArchive(parts[0].shape[1], maximize=maximize, prune="epsilon", epsilon=2.3)
    everything = torch.cat(parts)
    end = 0
    for part in parts:
        is_in = archive.insert(part)
        end += len(part)
        expected = is_epsilon_non_dominated(everything[:end], 2.3, maximize=maximize)
        assert same(archive.points, everything[:end][expected])
        assert archive.payload.tolist() == expected.nonzero().squeeze(-1).tolist()
        assert is_in.tolist() == expected[end - len(part) :].tolist()


def test_epsilon_bounds_the_size(rng):
    archive = ParetoArchive(3, maximize=True, prune="epsilon", epsilon=[0.1, 0.1, 0.2])
    for part in torch.from_numpy(rng.dirichlet(np.ones(3), (40, 50))):
        archive.insert(part)
    assert 20 < len(archive) <= 11 * 11


# --- saving ---


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("maximize", [True, [True, False, True]])
def test_a_saved_archive_goes_on_bit_for_bit(rng, dtype, maximize):
    parts = torch.from_numpy(rng.standard_normal((6, 20, 3)))
    parts[0, 0] = torch.tensor([9.0, -9.0, -0.0])
    archive = ParetoArchive(3, maximize=maximize, capacity=12, dtype=dtype)
    for part in parts[:3]:
        archive.insert(part)
    file = io.BytesIO()
    torch.save(archive.state_dict(), file)
    file.seek(0)
    loaded = ParetoArchive(3, maximize=maximize, capacity=12, dtype=dtype)
    loaded.insert(parts[5])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    others = [loaded, copy.deepcopy(archive), pickle.loads(pickle.dumps(archive))]
    for part in parts[3:]:
        is_in = archive.insert(part)
        for other in others:
            assert torch.equal(other.insert(part), is_in)
    for other in others:
        assert same(other.points, archive.points)
        assert torch.equal(other.payload, archive.payload)
    assert archive.points.dtype == dtype


def test_loading_shares_nothing():
    archive = ParetoArchive(2, maximize=True)
    archive.insert([[1.0, 2.0]])
    state = archive.state_dict()
    loaded = ParetoArchive(2, maximize=True)
    loaded.load_state_dict(state)
    loaded.insert([[5.0, 5.0]])
    assert state["points"].tolist() == archive.points.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(1, 3, dtype=F64)}, r"points \(n, 2\)"),
        ({"points": torch.zeros(1, 2)}, "torch.float64"),
        ({"payload": torch.zeros(2, dtype=torch.int64)}, "payload"),
        ({"maximize": [True, False]}, r"maximize \[True, True\]"),
        ({"points": torch.zeros(4, 2, dtype=F64), "payload": torch.arange(4)}, "at most 3 points"),
        ({"size": 1}, "keys"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    archive = ParetoArchive(2, maximize=True, capacity=3)
    archive.insert([[1.0, 2.0]])
    with pytest.raises(ValueError, match=message):
        archive.load_state_dict({**archive.state_dict(), **change})
    assert archive.points.tolist() == [[1.0, 2.0]]


# --- what comes in ---


def test_the_dtype_of_the_archive_decides_what_is_equal():
    close = [[1.0, 0.0], [1.0 + 1e-12, 0.0]]
    archive = ParetoArchive(2, maximize=True, dtype=torch.float32)
    assert archive.insert(close).tolist() == [True, False]
    archive = ParetoArchive(2, maximize=True)
    assert archive.insert(close).tolist() == [False, True]
    assert archive.insert(np.array([[2, -1], [3, -1]])[:, ::-1]).tolist() == [False, True]
    assert archive.insert(torch.tensor([[0, 2], [0, 3]])).tolist() == [False, True]


def test_empty_batches_and_one_objective():
    archive = ParetoArchive(1, maximize=True)
    assert archive.insert(torch.empty(0, 1)).tolist() == []
    assert archive.insert([[1.0], [3.0], [3.0]]).tolist() == [False, True, False]
    assert archive.insert(torch.empty(0, 1)).tolist() == []
    assert archive.points.tolist() == [[3.0]]
    assert repr(archive) == "ParetoArchive(1 points, maximize=[True], capacity=None)"


def test_nan_names_the_row_and_nothing_is_inserted():
    archive = ParetoArchive(2, maximize=True)
    with pytest.raises(ValueError, match="points: expected no NaN, got NaN in row 1"):
        archive.insert([[1.0, 2.0], [NAN, 1.0]])
    assert len(archive) == 0
    archive.insert([[1.0, 2.0]])
    assert archive.payload.tolist() == [0]


def test_nan_is_never_kept_when_worst():
    archive = ParetoArchive(2, maximize=True, nan="worst")
    assert archive.insert([[NAN, 9.0]]).tolist() == [False]
    assert len(archive) == 0
    assert archive.insert([[1.0, 2.0], [NAN, 9.0]]).tolist() == [True, False]
    assert archive.insert([[9.0, NAN], [2.0, 1.0]]).tolist() == [False, True]
    assert archive.payload.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": 0}, "objectives: expected at least 1"),
        ({"maximize": [True]}, "maximize: expected 2"),
        ({"capacity": 0}, "capacity: expected at least 1"),
        ({"prune": "random"}, "prune: expected"),
        ({"nan": "best"}, "nan: expected"),
        ({"prune": "epsilon"}, "epsilon: expected with"),
        ({"epsilon": 0.1}, "epsilon: expected with"),
        ({"prune": "epsilon", "epsilon": -0.1}, "epsilon: expected finite values > 0"),
        ({"prune": "epsilon", "epsilon": 0.1, "capacity": 5}, "capacity: expected None"),
        ({"ref_point": 0.0}, "ref_point: expected with"),
        ({"prune": "hypervolume", "ref_point": [0.0] * 3}, "ref_point: expected one value"),
        ({"prune": "hypervolume", "ref_point": NAN}, "ref_point: expected no NaN"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParetoArchive(**{"objectives": 2, "maximize": True, **arguments})


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="maximize"):
        ParetoArchive(2)
    with pytest.raises(TypeError, match="dtype"):
        ParetoArchive(2, maximize=True, dtype=torch.int64)
    archive = ParetoArchive(2, maximize=True)
    for points in ([1.0, 2.0], [[1.0, 2.0, 3.0]], torch.empty(2, 2, 2)):
        with pytest.raises(ValueError, match=r"points: expected shape \(q, 2\)"):
            archive.insert(points)
    with pytest.raises(ValueError, match=r"payload: expected shape \(1,\)"):
        archive.insert([[1.0, 2.0]], payload=[1, 2])
    with pytest.raises(TypeError, match="payload: expected integers"):
        archive.insert([[1.0, 2.0]], payload=[0.5])
    assert len(archive) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("prune", ["crowding", "hypervolume", "epsilon"])
def test_on_a_gpu_contents_are_those_of_the_cpu(rng, prune):
    options = {"epsilon": 0.1} if prune == "epsilon" else {"capacity": 15}
    on_cpu = ParetoArchive(3, maximize=[True, False, True], prune=prune, **options)
    on_gpu = ParetoArchive(3, maximize=[True, False, True], prune=prune, device="cuda", **options)
    for part in torch.from_numpy(rng.standard_normal((5, 30, 3))):
        assert torch.equal(on_cpu.insert(part), on_gpu.insert(part.cuda()).cpu())
    assert same(on_gpu.points.cpu(), on_cpu.points)
    with pytest.raises(ValueError, match="points: expected the device of the archive"):
        on_gpu.insert(torch.zeros(1, 3))
    moved = on_gpu.to("cpu")
    assert moved is on_gpu
    part = torch.from_numpy(rng.standard_normal((30, 3)))
    assert torch.equal(on_cpu.insert(part), moved.insert(part))


def test_morl_baselines_has_the_same_contents(rng):
    pareto = pytest.importorskip("morl_baselines.common.pareto")
    for points in (rng.random((60, 3)), rng.integers(0, 4, (60, 3)).astype(float)):
        theirs, ours = pareto.ParetoArchive(), ParetoArchive(3, maximize=True)
        for number, point in enumerate(points):
            theirs.add(number, point)
        for part in torch.from_numpy(points).split(7):
            ours.insert(part)
        assert np.array_equal(theirs.evaluations, ours.points.numpy())
        assert theirs.individuals == ours.payload.tolist()


def test_more_objectives_than_the_hypervolume_takes_are_refused():
    with pytest.raises(ValueError, match="objectives"):
        ParetoArchive(70, maximize=True, capacity=3, prune="hypervolume")
