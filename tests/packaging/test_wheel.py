"""What is in the wheel, and what it needs and shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from building import ROOT, run, shown_by

# 2.0 MB: the sweeps of local bounds are compiled for each width of row, scans for each option.
SIZE_BUDGET = 2304 * 1024


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def metadata(wheel: Path, name: str) -> Parser:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return Parser().parsestr(archive.read(path).decode())


def test_one_wheel_serves_every_python_from_3_10_on(wheel: Path) -> None:
    assert "-cp310-abi3-linux_" in wheel.name


def test_the_wheel_holds_what_users_need_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    sources = {f"morlfast/{path.relative_to(ROOT / 'python/morlfast')}" for path in python_sources()}
    headers = {path.relative_to(ROOT / "csrc/include/morlfast") for path in (ROOT / "csrc/include/morlfast").glob("*")}
    compiled = {"morlfast/_C.abi3.so", "morlfast/_C.pyi", "morlfast/lib/libmorlfast.a"}
    headers_in_wheel = {f"morlfast/include/morlfast/{name}" for name in headers if name.suffix == ".hpp"}
    cmake = {f"morlfast/lib/cmake/morlfast/morlfast-{part}.cmake" for part in ("config", "config-version", "targets")}
    cmake.add("morlfast/lib/cmake/morlfast/morlfast-targets-release.cmake")
    info = {name for name in names if name.startswith("morlfast-") and ".dist-info/" in name}
    assert names - info == sources | compiled | headers_in_wheel | cmake
    assert {name.split(".dist-info/")[1] for name in info} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",  # verl's plugin
        "licenses/LICENSE",
        "licenses/csrc/third_party/dlpack/LICENSE",
    }
    assert "morlfast/py.typed" in names


def python_sources() -> list[Path]:
    files = (ROOT / "python/morlfast").rglob("*")
    return [path for path in files if path.suffix == ".py" or path.name == "py.typed"]


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < SIZE_BUDGET


def test_the_metadata_asks_for_three_packages(wheel: Path) -> None:
    required = [text for text in metadata(wheel, "METADATA").get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(required) == ["nanobind-backend>=1.0", "numpy", "torch>=2.10"]
    assert metadata(wheel, "METADATA")["Requires-Python"] == ">=3.10"


def test_the_module_keeps_to_the_stable_abi(wheel: Path) -> None:
    run(Path(sys.executable).with_name("abi3audit"), "--strict", wheel)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_module_shows_its_entry_point_alone(installed: Path) -> None:
    assert shown_by(installed / "morlfast/_C.abi3.so") == ["PyInit__C"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_module_needs_the_c_plus_plus_and_openmp_libraries_alone(installed: Path) -> None:
    lines = run("readelf", "-d", installed / "morlfast/_C.abi3.so").splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    # libgomp by its plain name: torch's own copy, loaded first, satisfies it.
    assert needed - {"libgomp.so.1", "libstdc++.so.6"} <= {
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "ld-linux-x86-64.so.2",
    }
    assert not [line for line in lines if "RPATH" in line or "RUNPATH" in line]


def test_the_sdist_has_the_sources_and_no_results(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "cmake", "python"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.split()) <= names
    assert {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith(("bench/", "docs/", "build/", ".ci/", ".venv/"))]
