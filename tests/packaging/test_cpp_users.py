"""C++ users: a pybind11 module that finds morlfast in the installed wheel, links it and calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import pybind11
from building import RunPython, run

CONSUMER = Path(__file__).parent / "consumer"


def test_a_pybind11_module_links_the_installed_library(
    installed: Path, everything: Path, tmp_path: Path, run_python: RunPython
) -> None:
    cmake = Path(sys.executable).with_name("cmake")
    found = run_python(["-m", "morlfast", "cmake-dir"], [installed, everything])
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "build"
    run(
        cmake, "-S", CONSUMER, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dmorlfast_DIR={found.stdout.strip()}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )  # fmt: skip
    run(cmake, "--build", folder)
    script = """
import consumer
print(consumer.hypervolume([[0.25, 0.5], [0.5, 0.25], [0.75, 0.75]], [1.0, 1.0]))
print(consumer.batch(20000))
points = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
print(consumer.non_dominated_sort(points, [], 0), consumer.non_dominated_sort(points, [0.0, 2.0, 1.0, 0.0], 1))
print(consumer.dominance_counts(points), consumer.masks(points))
print(consumer.best_points([[1.0, 0.0], [0.0, 1.0]], points))
advantages = consumer.group_advantages([1.0, 3.0, 5.0, 5.0], 2, [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
print([round(a, 3) for a in advantages])
print(consumer.reward_to_go([1.0, 2.0, 3.0]))
print(consumer.select_rollouts([0.0, 1.0, 0.5, 0.25, 2.0, 2.0, 2.0, 5.0], 4, 2))
"""
    done = run_python(["-c", script], [folder])
    # Enough fronts that the library goes parallel: the consumer's OpenMP came with the target.
    printed = ["0.5", "10000.0", "[0, 0, 1, 0] [0, 1, 1, 0]", "[0, 0, 3, 0] (2, 4)", "[1, 0]"]
    printed += ["[-0.707, 0.0, 0.707, 0.707, 0.0, 0.0, 0.0, 0.0]", "[6.0, 5.0, 3.0]"]
    printed += ["[1, 1, 0, 0, 1, 0, 0, 1]"]
    assert done.stdout.splitlines() == printed, done.stderr
