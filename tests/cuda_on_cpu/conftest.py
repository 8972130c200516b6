"""The drivers, each compiled once a sanitizer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "csrc" / "include"
SANITIZERS = {
    "plain": ("-O1",),
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),  # -O1 compiles five times as long
    "thread": ("-O1", "-fsanitize=thread"),
}


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """build(driver, sanitizer): the path of its executable."""

    @cache
    def build(name: str, sanitizer: str) -> Path:
        driver = tmp_path_factory.mktemp(sanitizer) / name
        command = ["g++", "-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command += ["-fdata-sections", *SANITIZERS[sanitizer], f"-Wl,-T,{HERE / 'shared_memory.ld'}", f"-I{HERE}"]
        command += [f"-I{INCLUDE}", str(HERE / f"{name}.cpp"), "-o", str(driver)]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        return driver

    return build
