"""The Triton kernels against the references, in Triton's interpreter.

The interpreter must be chosen before a kernel is defined and stays chosen, hence a process for each family.
It sees neither races nor registers; test_compile.py and the GPU tests do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.language")


@pytest.mark.parametrize(
    "family", ["advantages", "returns", "rollouts", "tokens", "logprobs", "pareto", "dominance", "indicators"]
)
def test_family_in_the_interpreter(family: str) -> None:
    tests = Path(__file__).with_name(f"interpreted_{family}.py")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
