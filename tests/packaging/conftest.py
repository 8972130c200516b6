"""Wheels, built from the sdist in isolation as pip builds them for a user; Pythons that see only what a test allows."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from building import ROOT, BuildWheel, RunPython, pip, run, unpack


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="session")
def build_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildWheel:
    """build_wheel("CMAKE_NAME=value", ..., variable="value"): a wheel from the sdist, warnings as errors."""

    def build(*definitions: str, **environment: str) -> Path:
        folder = tmp_path_factory.mktemp("wheel")
        settings = [f"--config-settings=cmake.define.{text}" for text in ("MORLFAST_WERROR=ON", *definitions)]
        pip("wheel", "--no-deps", "--wheel-dir", folder, *settings, sdist, env={**os.environ, **environment})
        (found,) = folder.iterdir()
        return found

    return build


@pytest.fixture(scope="session")
def wheel(build_wheel: BuildWheel) -> Path:
    return build_wheel("MORLFAST_CUDA=OFF")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with morlfast from the wheel and nothing else."""
    return unpack(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def everything() -> Path:
    """The folder with torch and all else that the tests run with."""
    return Path(sysconfig.get_path("purelib"))


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """run_python(arguments, paths): an interpreter that can import the standard library and `paths`."""

    def run(
        arguments: Sequence[str], paths: Sequence[Path], executable: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        # The interpreter behind the virtual environment; -S keeps its site-packages out.
        python = executable or getattr(sys, "_base_executable", sys.executable)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        return subprocess.run(
            [python, "-S", *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    return run
