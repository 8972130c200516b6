"""Commands that build, install and inspect, and the Pythons of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 900

RunPython = Callable[..., subprocess.CompletedProcess[str]]
BuildWheel = Callable[..., Path]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_TIMEOUT_S, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
    return done.stdout


def pip(*arguments: str | Path, **options: object) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **options)


def unpack(wheel: Path, folder: Path) -> Path:
    """Install a wheel alone, without what it depends on."""
    pip("install", "--quiet", "--no-deps", "--target", folder, wheel)
    return folder


def shown_by(library: Path) -> list[str]:
    """Symbols that a shared library defines for others, but for those of templates and nanobind's exception types."""
    symbols = [line.split() for line in run("nm", "-D", "--defined-only", library).splitlines()]
    return [name for _, kind, name in symbols if kind not in "VWu" or "morlfast" in name]


def interpreters() -> dict[str, Path]:
    """Other supported Pythons on this machine: from the PATH and from pyenv."""
    found: dict[str, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(10, 15):
        if minor == sys.version_info.minor:
            continue
        name = f"python3.{minor}"
        candidates = [*sorted(pyenv.glob(f"3.{minor}.*/bin/python")), shutil.which(name)]
        for candidate in filter(None, candidates):
            # A shim answers for versions that are not there.
            if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
                found[f"3.{minor}"] = Path(candidate)
                break
    return found
