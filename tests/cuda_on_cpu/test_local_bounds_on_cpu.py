"""Local bounds on CUDA, compiled with g++ and run on the CPU: results, memory, order of lanes. Needs no CUDA."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

TIMEOUT_S = 240
DEFAULT_MEMORY = 2**30
CHOSEN = -1

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
        {"near": 0, "cuts": CHOSEN},
        {"max_memory": least_memory(points)},
        {"max_memory": least_memory(points, 40), "cuts": 3},
        {"cuts": 1},
    ]


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7])
def test_volume_and_gradient_on_integer_grids_are_exact(plain: Path, m: int) -> None:
    rng = np.random.default_rng(m)
    levels = 4 if m < 6 else 3
    cases = []
    for n in (0, 1, 2, 5, 9, 33, 40):
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
