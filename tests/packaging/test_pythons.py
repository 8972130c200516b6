"""The one wheel on the other Pythons of this machine. The compiled module itself needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from building import RunPython, interpreters, pip

INTERPRETERS = interpreters()
SCRIPT = """
import sys
import morlfast._C as _C
assert "torch" not in sys.modules
print(sys.version_info[1], sorted(_C.schemas), _C.build_info["binding"])
"""


@pytest.mark.parametrize("version", INTERPRETERS or [pytest.param("none", marks=pytest.mark.skip("no other Python"))])
def test_the_wheel_imports(version: str, installed: Path, tmp_path: Path, run_python: RunPython) -> None:
    pip(
        "install", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={version}", f"--target={tmp_path}",
        "nanobind-backend==1.0.0",
    )  # fmt: skip
    done = run_python(["-c", SCRIPT], [installed, tmp_path], INTERPRETERS[version])
    operators = [
        "best_points",
        "box_decomposition",
        "dominance_counts",
        "farthest_query",
        "gae",
        "group_advantages",
        "group_advantages_out",
        "group_rows",
        "hypervolume",
        "hypervolume_contributions",
        "hypervolume_gradient",
        "hypervolume_improvement",
        "hypervolume_subset",
        "is_dominated_by",
        "is_non_dominated",
        "linear_scan",
        "non_dominated_sort",
        "select_rollouts",
        "select_tokens",
        "select_tokens_above",
        "token_histogram",
        "token_logprobs",
        "token_logprobs_gradient",
        "whiten",
    ]
    assert done.stdout == f"{version.split('.')[1]} {operators} split\n", done.stderr


def test_the_module_needs_no_torch(installed: Path, everything: Path, tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "nanobind_backend").symlink_to(everything / "nanobind_backend")
    done = run_python(["-c", SCRIPT], [installed, tmp_path])
    assert done.stdout.startswith(f"{sys.version_info.minor} "), done.stderr
