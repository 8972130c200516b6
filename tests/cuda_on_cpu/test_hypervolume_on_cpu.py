"""The CUDA kernels, compiled with g++ and run on the CPU: results, memory, barriers. Needs no CUDA."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

TIMEOUT_S = 120

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass
class Case:
    points: np.ndarray  # (fronts, n, m)
    ref: np.ndarray  # (fronts, m)
    threads: int = 32  # a block; 0: what the library would take
    gradient: bool = True


@dataclass
class Result:
    value: np.ndarray  # (fronts,)
    gradient: np.ndarray | None  # (fronts, n, m)
    order: np.ndarray  # (K, fronts, n)


@pytest.fixture
def plain(build: Callable[[str, str], Path]) -> Path:
    return build("hypervolume", "plain")


@pytest.fixture
def address_sanitized(build: Callable[[str, str], Path]) -> Path:
    return build("hypervolume", "address")


@pytest.fixture
def thread_sanitized(build: Callable[[str, str], Path]) -> Path:
    return build("hypervolume", "thread")


def words(case: Case) -> str:
    fronts, n, m = case.points.shape
    numbers = [case.threads, m, fronts, n, int(case.gradient)]
    return " ".join([*map(str, numbers), *(float(x).hex() for x in [*case.points.flat, *case.ref.flat])])


def start(driver: Path, cases: list[Case], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [driver, *arguments],
        input="\n".join(map(words, cases)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
    )


def run(driver: Path, cases: list[Case]) -> list[Result]:
    finished = start(driver, cases)
    assert finished.returncode == 0, finished.stderr
    results = []
    for case, line in zip(cases, finished.stdout.splitlines(), strict=True):
        fronts, n, m = case.points.shape
        numbers = line.split()
        gradient_size = fronts * n * m if case.gradient else 0
        floats = np.array([float.fromhex(word) for word in numbers[: fronts + gradient_size]])
        order = np.array(numbers[fronts + gradient_size :], dtype=int)
        gradient = floats[fronts:].reshape(fronts, n, m) if case.gradient else None
        results.append(Result(floats[:fronts], gradient, order.reshape(3 if m == 3 else m - 1, fronts, n)))
    return results


def sorted_rows(points: np.ndarray, axis: int) -> list[int]:
    others = [k for k in range(points.shape[1]) if k != axis]
    return sorted(range(len(points)), key=lambda row: (points[row, axis], *points[row, others], row))


def reference(points: np.ndarray, ref: np.ndarray) -> tuple[float, np.ndarray]:
    """One front, by the grid through all coordinates: covered cells, and who covers a face first."""
    n, m = points.shape
    edges = [np.unique(np.append(points[:, k], ref[k])) for k in range(m)]
    first_cell = np.stack([np.searchsorted(edges[k], points[:, k]) for k in range(m)], axis=1)

    def measures(axes: list[int]) -> np.ndarray:
        return functools.reduce(np.multiply.outer, [np.diff(edges[k]) for k in axes], np.array(1.0))

    def quadrant(row: int, axes: list[int]) -> tuple[slice, ...]:
        return tuple(slice(first_cell[row, k], None) for k in axes)

    cells = measures(list(range(m)))
    covered = np.zeros(cells.shape, dtype=bool)
    for row in range(n):
        covered[quadrant(row, list(range(m)))] = True
    gradient = np.zeros((n, m))
    counts = (points < ref).all(axis=1)
    for axis in range(m):
        others = [k for k in range(m) if k != axis]
        faces = measures(others)
        seen = np.zeros(faces.shape, dtype=bool)
        for row in sorted_rows(points, axis):
            if counts[row]:
                mine = quadrant(row, others)
                gradient[row, axis] = -faces[mine][~seen[mine]].sum()
                seen[mine] = True
    return cells[covered].sum(), gradient


def replace_uncounted(points: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """What the launchers ask for: a point that does not count lies at the reference point."""
    ref = ref[:, None, :]
    return np.where((points < ref).all(axis=-1, keepdims=True), points, ref)


def random_case(
    rng: np.random.Generator, fronts: int, n: int, m: int, *, threads: int = 32, gradient: bool = True
) -> Case:
    """Small integers: ties, duplicates, points on and beyond ref; odd fronts have longer staircases."""
    points = rng.integers(0, 14, (fronts, n, m)).astype(float)
    points[1::2, :, -1] = np.clip(20 - points[1::2, :, :-1].sum(axis=-1), 0, 13)
    ref = rng.integers(9, 13, (fronts, m)).astype(float)
    return Case(replace_uncounted(points, ref), ref, threads, gradient)


def random_front(rng: np.random.Generator, n: int, m: int, *, threads: int = 64, gradient: bool = True) -> Case:
    """Doubles on the positive part of a sphere: no point dominates another."""
    points = np.abs(rng.normal(size=(1, n, m)))
    points = 1 - points / np.linalg.norm(points, axis=-1, keepdims=True)
    return Case(points, np.ones((1, m)), threads, gradient)


def assert_matches_reference(cases: list[Case], results: list[Result], rtol: float = 0) -> None:
    for case, result in zip(cases, results, strict=True):
        for front, (points, ref) in enumerate(zip(case.points, case.ref, strict=True)):
            value, gradient = reference(points, ref)
            np.testing.assert_allclose(result.value[front], value, rtol=rtol)
            if result.gradient is not None:
                np.testing.assert_allclose(result.gradient[front], gradient, rtol=rtol)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_integer_fronts_are_exact(plain: Path, m: int) -> None:
    rng = np.random.default_rng(m)
    cases = [
        random_case(rng, fronts, n, m, threads=threads)
        for threads, fronts, n in [
            *[(32, 3, n) for n in (0, 1, 2, 5, 31, 32, 33, 64, 97)],
            *[(64, 2, n) for n in (3, 63, 64, 65, 200)],
            (32, 40, 4),
        ]
    ]
    assert_matches_reference(cases, run(plain, cases))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_doubles_agree(plain: Path, m: int) -> None:
    rng = np.random.default_rng(10 + m)
    cases = [random_front(rng, n, m, threads=threads) for threads, n in [(32, 70), (64, 90)]]
    assert_matches_reference(cases, run(plain, cases), rtol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_block_that_the_library_takes(plain: Path, m: int) -> None:
    rng = np.random.default_rng(20 + m)
    cases = [random_case(rng, 2, n, m, threads=0) for n in (0, 32, 33, 140)]
    assert_matches_reference(cases, run(plain, cases))


@pytest.mark.parametrize("m", [2, 3])
def test_orders_are_lexicographic(plain: Path, m: int) -> None:
    rng = np.random.default_rng(m)
    case = random_case(rng, 3, 75, m)
    case.points[case.points == 0] *= rng.choice([-1, 1], (case.points == 0).sum())  # -0.0 ties with 0.0
    (result,) = run(plain, [case])
    for axis, fronts in enumerate(result.order):
        for points, order in zip(case.points, fronts, strict=True):
            assert list(order) == sorted_rows(points, axis)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_value_alone_has_the_same_bits(plain: Path, m: int) -> None:
    with_gradient = random_front(np.random.default_rng(m), 150, m)
    alone = Case(with_gradient.points, with_gradient.ref, with_gradient.threads, gradient=False)
    first, second = run(plain, [with_gradient, alone])
    assert first.value == second.value


@pytest.mark.parametrize("m", [1, 2, 3])
def test_infinite_coordinates(plain: Path, m: int) -> None:
    rng = np.random.default_rng(m)
    case = random_case(rng, 60, 6, m)
    case.points[rng.random(case.points.shape) < 0.1] = -np.inf
    case.points[rng.random(case.points.shape) < 0.1] = np.inf
    case.ref[rng.random(case.ref.shape) < 0.2] = np.inf
    case.ref[0] = -np.inf
    case.points = replace_uncounted(case.points, case.ref)
    (result,) = run(plain, [case])
    assert np.isinf(result.value).any()
    assert (result.value == 0).any()
    assert_matches_reference([case], [result])


@pytest.mark.parametrize("m", [1, 2, 3])
def test_nan_in_ref_is_nan_for_its_front_alone(plain: Path, m: int) -> None:
    case = random_case(np.random.default_rng(m), 2, 40, m)
    case.ref[0, -1] = np.nan
    case.points = replace_uncounted(case.points, case.ref)
    (result,) = run(plain, [case])
    assert np.isnan(result.value[0])
    assert not result.gradient[0].any()
    other = Case(case.points[1:], case.ref[1:])
    assert_matches_reference([other], [Result(result.value[1:], result.gradient[1:], result.order)])


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 0, 4), "expected 1 to 3 objectives"), ((0, 16_776_961, 3), "up to 16776960 points")]
)
def test_what_the_grid_cannot_hold_is_refused(plain: Path, shape: tuple[int, int, int], message: str) -> None:
    finished = start(plain, [Case(np.zeros(shape), np.zeros((shape[0], shape[2])), threads=0)])
    assert finished.returncode != 0
    assert message in finished.stderr


def small_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    return [
        random_case(rng, 2, n, m, threads=threads, gradient=gradient)
        for m in (1, 2, 3)
        for threads, n, gradient in [
            (32, 0, True),
            (32, 70, True),
            (64, 130, True),
            (64, 129, False),
            (0, 20, True),
        ]
    ]


def test_no_address_or_undefined_behaviour_error(address_sanitized: Path) -> None:
    assert_matches_reference(small_cases(), run(address_sanitized, small_cases()))


def test_no_data_race(thread_sanitized: Path) -> None:
    assert_matches_reference(small_cases(), run(thread_sanitized, small_cases()))


@pytest.mark.parametrize(
    ("m", "launch", "barrier"),
    [
        pytest.param(1, 0, 0, id="minimum"),
        pytest.param(2, 1, 0, id="staircase-warps"),
        pytest.param(2, 1, 1, id="staircase-second-round"),
        pytest.param(2, 1, 3, id="staircase-sum"),
        pytest.param(3, 0, 0, id="orders-tile-filled"),
        pytest.param(3, 0, 1, id="orders-tile-read"),
        pytest.param(3, 1, 0, id="sweep-tile-filled"),
        pytest.param(3, 1, 1, id="sweep-tile-read"),
        pytest.param(3, 1, 6, id="sweep-sum"),
        pytest.param(3, 2, 0, id="tiles-sum"),
    ],
)
def test_a_missing_barrier_is_a_data_race(thread_sanitized: Path, m: int, launch: int, barrier: int) -> None:
    case = random_front(np.random.default_rng(0), 130, m, gradient=False)  # three tiles of 64
    finished = start(thread_sanitized, [case], "--skip-barrier", str(launch), str(barrier))
    assert finished.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in finished.stderr
