"""The ways to build: without nanobind-backend, with CUDA, and settings that cannot be met."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building import ROOT, BuildWheel, RunPython, run, shown_by, unpack

SMOKE = """
import torch, morlfast
from morlfast import _C
points = torch.tensor([[0.25, 0.5], [0.5, 0.25]], dtype=torch.float64)
assert morlfast.hypervolume(points, 1.0, maximize=False).item() == 0.5
assert morlfast.non_dominated_sort(points, maximize=False).tolist() == [0, 0]
print(_C.build_info["binding"], _C.build_info["cuda"], _C.build_info["cuda_archs"], sep=",")
"""


def configure(folder: Path, *definitions: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("cmake"), "-S", ROOT, "-B", folder, "-DMORLFAST_PYTHON=OFF"]
        + [f"-D{text}" for text in definitions],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_static_build_imports_without_nanobind_backend(
    build_wheel: BuildWheel, tmp_path: Path, run_python: RunPython
) -> None:
    wheel = build_wheel("MORLFAST_CUDA=OFF", MORLFAST_STATIC="1")
    tag = f"cp3{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    done = run_python(
        ["-c", "import morlfast._C as c; print(c.build_info['binding'])"], [unpack(wheel, tmp_path / "static")]
    )
    assert done.stdout == "static\n", done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_cuda_build_needs_no_driver_and_no_cuda_libraries(
    build_wheel: BuildWheel, tmp_path: Path, run_python: RunPython, everything: Path
) -> None:
    wheel = build_wheel("MORLFAST_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=90-real")
    installed = unpack(wheel, tmp_path / "cuda")
    needed = run("readelf", "-d", installed / "morlfast/_C.abi3.so")
    assert "libcuda" not in needed
    assert "libcudart" not in needed
    done = run_python(["-c", SMOKE], [installed, everything])
    binding, version, architectures = done.stdout.strip().split(",")
    assert (binding, architectures) == ("split", "90-real"), done.stderr
    assert int(version.split(".")[0]) >= 12
    assert shown_by(installed / "morlfast/_C.abi3.so") == ["PyInit__C"]


def test_a_cpu_build_computes(installed: Path, run_python: RunPython, everything: Path) -> None:
    done = run_python(["-c", SMOKE], [installed, everything])
    assert done.stdout == "split,None,\n", done.stderr


def test_cuda_on_without_nvcc_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = configure(tmp_path, "MORLFAST_CUDA=ON", CUDACXX="no-such-nvcc")
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert "MORLFAST_CUDA=ON, but no CUDA compiler was found" in message
    assert "configure with MORLFAST_CUDA=OFF" in message


def test_cuda_auto_without_nvcc_leaves_cuda_out(tmp_path: Path) -> None:
    done = configure(tmp_path, "MORLFAST_CUDA=AUTO", CUDACXX="no-such-nvcc")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", ["MAYBE", "on", "1", ""])
def test_any_other_cuda_setting_is_an_error(tmp_path: Path, value: str) -> None:
    done = configure(tmp_path, f"MORLFAST_CUDA={value}")
    assert done.returncode != 0
    assert f"MORLFAST_CUDA must be AUTO, ON or OFF, not '{value}'" in " ".join(done.stderr.split())
