"""What ``python -m morlfast env`` prints. Standard library only, each probe on its own: it must work when nothing else
does."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# Implementation on a GPU of each operator.
_GPU_KERNELS = {
    "hypervolume": "CUDA C++",
    "non_dominated_sort": "Triton",
    "group_advantages": "Triton",
    "select_tokens": "Triton",
}


def report() -> str:
    return "\n".join(f"{name:<22}{value}" for name, value in _lines())


def _lines() -> Iterator[tuple[str, str]]:
    folder = Path(__file__).parent
    yield "morlfast", f"{_version('morlfast')} in {folder}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})"
    yield "platform", f"{platform.platform()}, {os.cpu_count()} cores"
    for package in ("torch", "numpy", "nanobind-backend", "triton"):
        yield package, _version(package)

    torch, why_no_torch = _import("torch")
    module, why_no_module = _import("morlfast._C")
    if torch is None:
        yield "torch", f"cannot be imported: {why_no_torch}"
        yield "remedy", _remedy_for_torch(why_no_torch)
    else:
        yield "torch threads", _probe(lambda: str(torch.get_num_threads()))
        yield "torch CUDA", _probe(lambda: _devices(torch))
    if module is None:
        yield "morlfast._C", f"cannot be imported: {why_no_module}"
        yield "remedy", _remedy_for_module(folder, why_no_module)
    else:
        build = module.build_info
        yield "morlfast._C", f"{build['compiler']}, {build['binding']} nanobind"
        yield "SIMD levels", f"{build['simd_levels']}; {build['simd']} in use"
        yield "CUDA kernels", f"nvcc {build['cuda']}: {build['cuda_archs']}" if build["cuda"] else "not built (no nvcc)"
    error = getattr(sys.modules["morlfast"], "_import_error", None)
    if error is not None:
        yield "operators", f"not available: {error}"
        return
    for operator in _GPU_KERNELS:
        yield operator, f"cpu: C++ · cuda: {_probe(partial(_on_gpu, operator, torch, module))}"


def _on_gpu(operator: str, torch: Any, module: Any) -> str:
    kernel = _GPU_KERNELS[operator]
    if kernel == "Triton" and importlib.util.find_spec("triton") is None:
        return "not available: pip install triton"
    if kernel == "CUDA C++" and module.build_info["cuda"] is None:
        return "not available: this morlfast was built without nvcc"
    return kernel if torch.cuda.is_available() else f"{kernel}, but torch sees no device"


def _devices(torch: Any) -> str:
    if torch.version.cuda is None:
        return "none (CPU build of torch)"
    if not torch.cuda.is_available():
        return f"built for CUDA {torch.version.cuda}, no usable device or driver"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"


def _remedy_for_torch(reason: str) -> str:
    if "No module named" in reason:
        return 'pip install "torch>=2.10"'
    return "reinstall torch for this Python: pip install --force-reinstall torch"


def _remedy_for_module(folder: Path, reason: str) -> str:
    if "nanobind_backend" in reason or "nanobind-backend" in reason:
        return "pip install nanobind-backend"
    if not any((folder / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        return (
            "no compiled module here; if this is the source tree, run from elsewhere or pip install . first, "
            "else pip install --force-reinstall morlfast"
        )
    return "the compiled module does not load on this machine; build it here: pip install --no-binary morlfast morlfast"


def _import(name: str) -> tuple[Any, str]:
    try:
        return importlib.import_module(name), ""
    except (ImportError, OSError) as error:
        return None, str(error)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _probe(value: Callable[[], str]) -> str:
    try:
        return value()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"unknown ({error})"
