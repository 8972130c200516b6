"""Local bounds on CUDA, compiled with g++ and run on the CPU: results, memory, order of lanes. Needs no CUDA."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

TIMEOUT_S = 240
DEFAULT_MEMORY = 2**30

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass
class Case:
    what: str
    points: np.ndarray  # (fronts, n, m)
    ref: np.ndarray  # (fronts, m)
    counts: np.ndarray | None = None  # (fronts, n); all that are strictly better than ref
    low: np.ndarray | None = None  # (fronts, tasks, m)
    first_own: int = -1
    tasks: int = 0
    near: int = 64  # words of a list in shared memory; 0: the library's choice of everything
    cuts: int = 0
    part: int = 0
    parts: int = 1
    max_memory: int = DEFAULT_MEMORY
    counted: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        better = (self.points < self.ref[:, None]).all(axis=-1)
        self.counted = better if self.counts is None else better & self.counts

    def words(self) -> str:
        fronts, n, m = self.points.shape
        tasks = self.tasks if self.low is None else self.low.shape[1]
        numbers = [self.near, m, fronts, n, tasks, self.first_own, self.cuts, self.part, self.parts, self.max_memory]
        lows = [] if self.low is None else self.low.flat
        # What the launchers ask for: a point that is not better than the reference point lies there.
        better = (self.points < self.ref[:, None]).all(axis=-1, keepdims=True)
        points = np.where(better, self.points, self.ref[:, None])
        floats = [float(x).hex() for x in [*points.flat, *self.ref.flat, *self.counted.flat, *lows]]
        return " ".join([self.what, *map(str, numbers), *floats])


def least_memory(points: np.ndarray, slots: int = 0) -> int:
    """Bytes of the shortest list that one warp can work with, and of so many slots more."""
    _, n, m = points.shape
    return (1 + 2 * (m - 2) * n + slots) * (m - 1) * 4


def start(driver: Path, cases: list[Case], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [driver, *arguments],
        input="\n".join(case.words() for case in cases),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
    )


def run(driver: Path, cases: list[Case]) -> list[np.ndarray]:
    finished = start(driver, cases)
    assert finished.returncode == 0, finished.stderr[-4000:]
    lines = finished.stdout.splitlines()
    assert len(lines) == len(cases)
    return [np.array([float.fromhex(word) for word in line.split()]) for line in lines]


@pytest.fixture
def plain(build: Callable[[str, str], Path]) -> Path:
    return build("local_bounds", "plain")


# --- the reference: cells of the grid through all coordinates ---


class Grid:
    """Which cells of (-inf, ref) each corner covers."""

    def __init__(self, corners: np.ndarray, ref: np.ndarray, floor: float | None = None) -> None:
        self.edges = []
        for k in range(len(ref)):
            inside = corners[:, k][corners[:, k] < ref[k]]
            extra = [ref[k]] if floor is None else [floor, ref[k]]
            self.edges.append(np.unique(np.append(inside, extra)))
        self.cells = functools.reduce(np.multiply.outer, [np.diff(edges) for edges in self.edges])

    def covered(self, corners: np.ndarray) -> np.ndarray:
        found = np.zeros(self.cells.shape, dtype=bool)
        for corner in corners:
            found[tuple(slice(np.searchsorted(e, x), None) for e, x in zip(self.edges, corner, strict=True))] = True
        return found

    def measure(self, cells: np.ndarray) -> float:
        return float(self.cells[cells].sum())


def hypervolume(points: np.ndarray, ref: np.ndarray) -> float:
    grid = Grid(points, ref)
    return grid.measure(grid.covered(points))


def gradient(points: np.ndarray, ref: np.ndarray, counted: np.ndarray) -> np.ndarray:
    n, m = points.shape
    result = np.zeros((n, m))
    for axis in range(m):
        others = [k for k in range(m) if k != axis]
        rows = [row for row in sorted(range(n), key=lambda i: (points[i, axis], *points[i, others], i)) if counted[row]]
        grid = Grid(points[rows][:, others], ref[others])
        seen = np.zeros(grid.cells.shape, dtype=bool)
        for row in rows:
            mine = grid.covered(points[row : row + 1, others])
            result[row, axis] = -grid.measure(mine & ~seen)
            seen |= mine
    return result


def exclusive(points: np.ndarray, ref: np.ndarray, low: np.ndarray) -> float:
    if not (low < ref).all():
        return 0.0
    grid = Grid(np.vstack([points, low]), ref)
    return grid.measure(grid.covered(low[None]) & ~grid.covered(points))


# --- fronts ---


def grid_front(rng: np.random.Generator, fronts: int, n: int, m: int, levels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Small integers: ties, duplicates, dominated points, points on and beyond ref."""
    points = rng.integers(0, levels, (fronts, n, m)).astype(float)
    return points, rng.integers(levels - 1, levels + 1, (fronts, m)).astype(float)


def sphere(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    points = np.abs(rng.normal(size=(1, n, m)))
    return 1 - points / np.linalg.norm(points, axis=-1, keepdims=True), np.ones((1, m))


# Number of points whose grid of cells stays small.
RANDOM_POINTS = {2: 60, 3: 40, 4: 20, 5: 12, 6: 8, 7: 6}


def shapes(points: np.ndarray) -> list[dict[str, int]]:
    """Ways to work: the library's; the least memory, so that segments wait; regions; lists beyond shared memory."""
    return [
        {"near": 0, "max_memory": 50 * least_memory(points)},
        {"max_memory": least_memory(points)},
        {"max_memory": least_memory(points, 40), "cuts": 3},
        {"cuts": 1},
    ]


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_volume_and_gradient_on_integer_grids_are_exact(plain: Path, m: int) -> None:
    rng = np.random.default_rng(m)
    levels = 4 if m < 6 else 3
    cases = []
    for n in (0, 1, 2, 5, 9, 33, 40) if m < 6 else (0, 4, 12, 20):
        points, ref = grid_front(rng, 3, n, m, levels)
        cases += [Case(what, points, ref, **shape) for what in ("volume", "gradient") for shape in shapes(points)]
    for case, found in zip(cases, run(plain, cases), strict=True):
        for front, (points, ref, counted) in enumerate(zip(case.points, case.ref, case.counted, strict=True)):
            assert found[front] == hypervolume(points[counted], ref)
            if case.what == "gradient":
                slopes = found[3:].reshape(case.points.shape)[front]
                np.testing.assert_array_equal(slopes, gradient(points, ref, counted))


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_volume_and_gradient_of_random_fronts(plain: Path, m: int) -> None:
    points, ref = sphere(np.random.default_rng(10 + m), RANDOM_POINTS[m], m)
    cases = [Case("gradient", points, ref, **shape) for shape in shapes(points)]
    expected = gradient(points[0], ref[0], cases[0].counted[0])
    for found in run(plain, cases):
        np.testing.assert_allclose(found[0], hypervolume(points[0], ref[0]), rtol=1e-12)
        np.testing.assert_allclose(found[1:].reshape(points.shape[1:]), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_exclusive_volumes_of_rows_and_of_other_corners(plain: Path, m: int) -> None:
    """Contributions and improvements, with ties, duplicates, dominated points and corners beyond ref."""
    rng = np.random.default_rng(20 + m)
    cases = []
    for n in (1, 6, 14):
        points, ref = grid_front(rng, 2, n, m, 4 if m < 6 else 3)
        ref[1, 0] = np.nan if n == 6 else ref[1, 0]
        counts = rng.random((2, n)) < 0.8
        low = np.concatenate([points[:, :2], rng.integers(-1, 4, (2, 5, m)).astype(float)], axis=1)
        low[0, -1, 0] = np.nan
        for shape in shapes(points):
            cases.append(Case("exclusive", points, ref, counts, tasks=n, first_own=0, **shape))
            cases.append(Case("exclusive", points, ref, counts, tasks=1, first_own=n - 1, **shape))
            cases.append(Case("exclusive", points, ref, counts, low=low, **shape))
    cases.append(Case("exclusive", points[:, :0], ref, low=low))
    for case, found in zip(cases, run(plain, cases), strict=True):
        fronts, n, _ = case.points.shape
        for front, (points, ref, counted) in enumerate(zip(case.points, case.ref, case.counted, strict=True)):
            volumes = found.reshape(fronts, -1)[front]
            for j, volume in enumerate(volumes):
                own = case.first_own + j
                corner = case.low[front, j] if case.low is not None else points[own]
                others = counted if case.low is not None else counted & (np.arange(n) != own)
                expected = np.nan if np.isnan(ref).any() else exclusive(points[others], ref, corner)
                np.testing.assert_equal(volume, expected)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_exclusive_volumes_of_random_fronts(plain: Path, m: int) -> None:
    points, ref = sphere(np.random.default_rng(30 + m), min(RANDOM_POINTS[m], 14), m)
    n = points.shape[1]
    cases = [Case("exclusive", points, ref, tasks=n, first_own=0, **shape) for shape in shapes(points)]
    expected = [exclusive(np.delete(points[0], row, axis=0), ref[0], points[0, row]) for row in range(n)]
    for found in run(plain, cases):
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def assert_partition(
    lower: np.ndarray, upper: np.ndarray, points: np.ndarray, ref: np.ndarray, dominated: bool
) -> None:
    """Disjoint boxes of positive volume that cover the region's cells exactly; -inf is the cell below all points."""
    floor = -100.0
    lower, upper = np.maximum(lower, floor), np.maximum(upper, floor)
    assert (lower < upper).all()
    grid = Grid(np.vstack([points, lower, upper]), ref, floor)
    times = np.zeros(grid.cells.shape, dtype=int)
    for low, high in zip(lower, upper, strict=True):
        times[
            tuple(
                slice(np.searchsorted(e, a), np.searchsorted(e, b))
                for e, a, b in zip(grid.edges, low, high, strict=True)
            )
        ] += 1
    np.testing.assert_array_equal(times, grid.covered(points) == dominated)


@pytest.mark.parametrize("what", ["boxes-dominated", "boxes-rest"])
@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_boxes_partition_their_region(plain: Path, m: int, what: str) -> None:
    rng = np.random.default_rng(40 + m)
    cases = []
    for n in (0, 1, 7, 24 if m < 6 else 12):
        points, ref = grid_front(rng, 3, n, m, 4 if m < 6 else 3)
        cases += [Case(what, points, ref, near=0), Case(what, points, ref, max_memory=least_memory(points))]
    cases.append(Case(what, *sphere(rng, {2: 20, 3: 12, 4: 8, 5: 6, 6: 4, 7: 3}[m], m)))
    for case, found in zip(cases, run(plain, cases), strict=True):
        fronts, _, _ = case.points.shape
        counts, again, boxes = found[:fronts].astype(int), found[fronts : 2 * fronts], found[2 * fronts :]
        np.testing.assert_array_equal(counts, again)
        lower, upper = boxes.reshape(2, fronts, counts.max(), m)
        for front, (points, ref, counted) in enumerate(zip(case.points, case.ref, case.counted, strict=True)):
            count = counts[front]
            assert_partition(
                lower[front, :count], upper[front, :count], points[counted], ref, what == "boxes-dominated"
            )
            assert (lower[front, count:] == ref).all()
            assert (upper[front, count:] == ref).all()


def test_a_reference_point_of_nan_has_one_box_of_nan(plain: Path) -> None:
    points, ref = grid_front(np.random.default_rng(0), 2, 9, 4)
    ref[1, 2] = np.nan
    for found in run(plain, [Case("boxes-dominated", points, ref), Case("boxes-rest", points, ref)]):
        counts, boxes = found[:2].astype(int), found[4:]
        assert counts[1] == 1
        lower, upper = boxes.reshape(2, 2, counts.max(), 4)
        assert np.isnan(lower[1, 0]).all()
        assert np.isnan(upper[1, 0]).all()
        assert not np.isnan(lower[0]).any()


@pytest.mark.parametrize("m", [4, 6])
def test_lists_that_must_wait_give_the_same(plain: Path, m: int) -> None:
    """Hundreds of bounds at a time: segments are halved, gaps are closed, lists leave shared memory."""
    points, ref = sphere(np.random.default_rng(m), 90 if m == 4 else 40, m)
    shapes = [{"max_memory": least_memory(points, slots)} for slots in (0, 10, 100, 1000)]
    shapes += [{"near": 0}, {"cuts": 6}, {"max_memory": least_memory(points), "cuts": 2}]
    results = run(plain, [Case("gradient", points, ref, **shape) for shape in shapes])
    for found in results[1:]:
        np.testing.assert_allclose(found, results[0], rtol=1e-11, atol=1e-16)
    dominators = points[0][None].repeat(1, axis=0)
    boxes = run(plain, [Case("boxes-dominated", dominators, ref, **shape) for shape in shapes[:4]])
    for found in boxes:
        lower, upper = found[2:].reshape(2, -1, m)
        np.testing.assert_allclose((upper - lower).prod(-1).sum(), results[0][0], rtol=1e-12)


@pytest.mark.parametrize("m", [5, 6, 7])
def test_the_least_memory_is_enough(plain: Path, m: int) -> None:
    rng = np.random.default_rng(5)
    fronts = [sphere(rng, n, m) for n in (3, 5, 9, 17) for _ in range(4)]
    enough = [Case("gradient", *front, near=1500, max_memory=2 * least_memory(front[0])) for front in fronts]
    least = [Case("gradient", *front, max_memory=least_memory(front[0])) for front in fronts]
    for expected, found in zip(run(plain, enough), run(plain, least), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("m", [4, 5])
def test_parts_add_up_to_the_whole(plain: Path, m: int) -> None:
    points, ref = grid_front(np.random.default_rng(m), 2, 30, m)
    ref[1, 1] = np.nan
    (whole,) = run(plain, [Case("gradient", points, ref, near=0)])
    for parts in (2, 3, 40):
        cases = [Case("gradient", points, ref, near=0, part=part, parts=parts) for part in range(parts)]
        found = np.array(run(plain, cases))
        assert (found[:, 2:] != 0).any(axis=1).sum() > 1
        np.testing.assert_array_equal(found.sum(axis=0), whole)


@pytest.mark.parametrize("m", [2, 4, 5])
def test_infinite_coordinates(plain: Path, m: int) -> None:
    rng = np.random.default_rng(m)
    points, ref = grid_front(rng, 40, 6, m)
    points[rng.random(points.shape) < 0.1] = -np.inf
    points[rng.random(points.shape) < 0.1] = np.inf
    ref[rng.random(ref.shape) < 0.1] = np.inf
    volume, alone = run(plain, [Case("volume", points, ref), Case("exclusive", points, ref, tasks=6, first_own=0)])
    assert not np.isnan(volume).any()
    assert not np.isnan(alone).any()
    better = (points < ref[:, None]).all(-1)
    infinite = better & (np.isinf(points).any(-1) | np.isinf(ref).any(-1)[:, None])
    np.testing.assert_array_equal(np.isinf(volume), infinite.any(-1))
    assert (np.isinf(alone).reshape(40, 6) <= infinite).all()
    for front in np.flatnonzero(~infinite.any(-1)):
        assert volume[front] == hypervolume(points[front][better[front]], ref[front])


@pytest.mark.parametrize("m", [2, 5])
def test_dominated_rows(plain: Path, m: int) -> None:
    points, ref = grid_front(np.random.default_rng(m), 3, 40, m, 3 if m < 5 else 4)
    (found,) = run(plain, [Case("dominated-rows", points, np.full_like(ref, 99))])
    below = (points[:, None] <= points[:, :, None]).all(-1) & (points[:, None] < points[:, :, None]).any(-1)
    np.testing.assert_array_equal(found.reshape(3, 40), below.any(-1))


@pytest.mark.parametrize("m", [2, 4, 5])
@pytest.mark.parametrize("n", [0, 1, 20, 150])
def test_orders_along_every_axis_are_lexicographic(plain: Path, m: int, n: int) -> None:
    rng = np.random.default_rng(m)
    points = rng.integers(0, 3, (2, n, m)).astype(float)
    points[points == 0] *= rng.choice([-1, 1], (points == 0).sum())  # -0.0 ties with 0.0
    (found,) = run(plain, [Case("orders", points, np.full((2, m), 9.0))])
    for axis, fronts in enumerate(found.reshape(m, 2, n).astype(int)):
        others = [k for k in range(m) if k != axis]
        for z, order in zip(points, fronts, strict=True):
            assert list(order) == sorted(range(n), key=lambda i: (z[i, axis], *z[i, others], i))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 2, 17), {}, "up to 16 objectives, got 17; move the points to the CPU"),
        ((0, 65_535, 4), {}, "up to 65534 points a front"),
        ((1, 10, 4), {"max_memory": 491}, "max_memory: 491 bytes hold no list of bounds .* 492 are needed"),
        ((1, 10, 4), {"parts": 2**21}, "part: expected"),
    ],
)
def test_what_is_too_large_is_refused_with_a_remedy(plain, shape, options, message) -> None:
    finished = start(plain, [Case("volume", np.zeros(shape), np.ones((shape[0], shape[2])), near=0, **options)])
    assert finished.returncode != 0
    assert re.search(message, finished.stderr)


def test_the_most_objectives(plain: Path) -> None:
    points = 1.0 - np.eye(16)[None, :5] * 0.5
    points[0, 4] = 0.75
    case = Case("gradient", points, np.ones((1, 16)), near=0)
    (found,) = run(plain, [case])
    assert found[0] == 0.25**16  # the others lie on faces


def sanitized_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    cases = []
    for m, n in [(2, 10), (4, 34), (6, 12)]:
        points, ref = sphere(rng, n, m)
        least = least_memory(points)
        cases += [
            Case("gradient", points, ref, max_memory=least),
            Case("gradient", points, ref, cuts=2),
            Case("exclusive", points, ref, tasks=3, first_own=2, max_memory=least),
            Case("boxes-dominated", points, ref, max_memory=least),
            Case("boxes-rest", points, ref, near=0),
            Case("volume", points, ref, near=0, max_memory=5 * least),
            Case("volume", points[:, :0], ref, near=0),
            Case("dominated-rows", points, ref),
        ]
    return cases


def assert_like_plain(plain: Path, sanitized: Path) -> None:
    cases = sanitized_cases()
    for expected, found in zip(run(plain, cases), run(sanitized, cases), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_no_address_or_undefined_behaviour_error(plain: Path, build: Callable[[str, str], Path]) -> None:
    assert_like_plain(plain, build("local_bounds", "address"))


def test_no_data_race(plain: Path, build: Callable[[str, str], Path]) -> None:
    assert_like_plain(plain, build("local_bounds", "thread"))


@pytest.mark.parametrize(
    ("what", "m", "slots", "barrier"),
    [
        pytest.param("gradient", 4, 0, 1, id="region-begun"),
        pytest.param("gradient", 4, 0, 2, id="region-cut"),
        pytest.param("gradient", 4, 0, 100, id="edges-read"),
        pytest.param("gradient", 4, 0, 5, id="edges-written"),
        pytest.param("gradient", 4, 0, 114, id="segment-halved"),
        pytest.param("gradient", 4, 0, 6, id="killed-written"),
        pytest.param("gradient", 4, 0, 7, id="children-written"),
        pytest.param("volume", 6, 300, 231, id="gap-read"),
        pytest.param("volume", 6, 300, 260, id="gap-closed"),
    ],
)
def test_lanes_that_do_not_wait_for_each_other_are_a_data_race(
    build: Callable[[str, str], Path], what: str, m: int, slots: int, barrier: int
) -> None:
    points, ref = sphere(np.random.default_rng(0), 40, m)
    cuts = 2 if what == "gradient" else 0
    case = Case(what, points, ref, cuts=cuts, max_memory=least_memory(points, slots))
    finished = start(build("local_bounds", "thread"), [case], "--skip-syncwarp", "3", str(barrier))  # the fourth launch
    assert finished.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in finished.stderr
