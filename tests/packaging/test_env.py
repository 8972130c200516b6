"""`python -m morlfast env` answers when nothing else does: what is missing, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from building import RunPython


@pytest.fixture
def package(installed: Path, tmp_path: Path) -> Path:
    """A copy of the installed package, to break."""
    shutil.copytree(installed, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "package"


def report(run_python: RunPython, *paths: Path) -> str:
    done = run_python(["-m", "morlfast", "env"], paths)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert lines["morlfast"].startswith("0.")
    assert {"python", "platform", "torch", "numpy", "nanobind-backend"} <= set(lines)
    assert "morlfast._C" in done.stdout
    return done.stdout


def fake_torch(folder: Path, source: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/__init__.py").write_text(source)
    return folder


def test_all_is_well(package: Path, run_python: RunPython, everything: Path) -> None:
    text = report(run_python, package, everything)
    assert "cannot be imported" not in text
    assert "remedy" not in text
    for operator in ("hypervolume", "non_dominated_sort", "group_advantages", "select_tokens"):
        assert f"\n{operator}" in text


def test_without_torch_and_nanobind_backend(package: Path, run_python: RunPython) -> None:
    text = report(run_python, package)
    assert "No module named 'torch'" in text
    assert 'pip install "torch>=2.10"' in text
    assert "pip install nanobind-backend" in text
    assert "not available" in text


def test_without_the_compiled_module(package: Path, run_python: RunPython, everything: Path) -> None:
    (package / "morlfast/_C.abi3.so").unlink()
    text = report(run_python, package, everything)
    assert "_C" in text
    assert "no compiled module here" in text
    assert "not available" in text


@pytest.mark.parametrize("kept", [0, 100])
def test_with_a_damaged_compiled_module(package: Path, run_python: RunPython, everything: Path, kept: int) -> None:
    module = package / "morlfast/_C.abi3.so"
    whole = module.read_bytes()
    module.unlink()
    module.write_bytes(whole[:kept])
    text = report(run_python, package, everything)
    assert "cannot be imported" in text
    assert "build it here" in text


def test_with_a_torch_that_is_too_old(package: Path, run_python: RunPython, tmp_path: Path) -> None:
    old = fake_torch(tmp_path / "old", "__version__ = '2.9.0'\nclass Tensor: pass\n")
    assert "morlfast needs torch >= 2.10" in report(run_python, package, old)


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_with_a_torch_that_does_not_load(package: Path, run_python: RunPython, tmp_path: Path, error: str) -> None:
    broken = fake_torch(tmp_path / "broken", f"raise {error}('libcudart.so.13: cannot open shared object file')\n")
    text = report(run_python, package, broken)
    assert "libcudart.so.13: cannot open shared object file" in text
    assert "reinstall torch" in text


def test_a_function_of_a_broken_morlfast_points_to_env(package: Path, run_python: RunPython, everything: Path) -> None:
    (package / "morlfast/_C.abi3.so").unlink()
    done = run_python(["-c", "import morlfast; morlfast.hypervolume"], [package, everything])
    assert done.returncode != 0
    assert "python -m morlfast env" in done.stderr
