"""Where a row was measured: hardware, versions, build. No host names and no paths."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy
import torch
from morlfast import _C

ROOT = Path(__file__).parents[1]


def environment(device: str, threads: int) -> dict[str, Any]:
    return {
        **_constant(device),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def busy_seconds() -> float | None:
    """CPU seconds that all processes have taken so far, or a hypervisor has taken away; None where nobody counts."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _wait, *interrupts_and_stolen = map(int, line.split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def added_memory(call: Callable[[], object], device: str) -> int | None:
    """Bytes that the process, or the GPU, holds at the peak of a call beyond those before it; None where unknown."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device)) - before
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls gave back would be taken again, unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status: no {name}")
    return int(found[1]) << 10


def machine(device: str) -> str:
    """File name of the results: a slug of the model of what ran them."""
    constant = _constant(device)
    return re.sub(r"[^a-z0-9]+", "-", str(constant["gpu"] or constant["cpu"]).lower()).strip("-")


@lru_cache
def _constant(device: str) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device != "cpu" else None
    build = {key: value for key, value in _C.build_info.items() if key != "simd_levels"}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": _commit(),
        "build": build,
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    """Of the sources; "+" when csrc or python differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "csrc", "python", "CMakeLists.txt")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
