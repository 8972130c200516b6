"""Every CUDA source compiles without a warning, and its kernels need few registers, no stack and no spills.

Needs nvcc, no GPU. MORLFAST_ALL_ARCHS=1 compiles for every architecture that a wheel carries.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
WHEEL_ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
ARCHITECTURES = WHEEL_ARCHITECTURES if os.environ.get("MORLFAST_ALL_ARCHS") == "1" else ["90"]

# With 48 registers a multiprocessor holds 1280 threads; blocks of one warp are limited by their number first. Of
# follow_bounds' 16 such blocks run, as many as sm_86 takes: bounds and points of up to five axes are held in registers.
REGISTERS, REGISTERS_OF_ONE_WARP, REGISTERS_OF_BOUNDS = 48, 80, 128

KERNELS = {
    "hypervolume": {"count_predecessors", "count_along_axis", "minimum", "staircase", "sweep", "sum_tiles"},
    "local_bounds": {
        "follow_bounds",
        "tabulate_values",
        "tabulate_ranks",
        "sum_regions",
        "sum_areas",
        "find_dominated",
    },
}
RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def cuobjdump() -> str | None:
    """The toolkit's, or the one that Triton brings."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        return shutil.which(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return found


def compile_source(source: Path, architecture: str, target: Path) -> None:
    command = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{architecture}", f"-I{CSRC / 'include'}", "-c"]
    command += ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    compiled = subprocess.run([*command, source, "-o", target], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    assert compiled.stderr == ""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_keep_to_their_budget(source: Path, architecture: str, tmp_path: Path) -> None:
    compile_source(source, architecture, tmp_path / "kernels.o")
    tool = cuobjdump()
    if tool is None:
        pytest.skip("compiles, but its registers are unread: needs cuobjdump (CUDA toolkit or Triton)")
    dump = subprocess.run(
        [tool, "--dump-resource-usage", tmp_path / "kernels.o"], capture_output=True, text=True, check=True
    )
    kernels = RESOURCES.findall(dump.stdout)
    for kernel in KERNELS[source.stem]:
        assert any(re.search(f"{len(kernel)}{kernel}[IE]", name) for name, *_ in kernels), kernel
    for name, registers, stack, local in kernels:
        assert (int(stack), int(local)) == (0, 0), name
        limit = REGISTERS_OF_BOUNDS if "follow_bounds" in name else REGISTERS
        assert int(registers) <= (REGISTERS_OF_ONE_WARP if "ILi32E" in name else limit), name
