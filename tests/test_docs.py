"""What the documentation shows runs, and shows what happens."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path

import morlfast
import pytest
import torch

ROOT = Path(__file__).parents[1]


FAMILIES = [
    "hypervolume",
    "hypervolume_approximation",
    "pareto",
    "dominance",
    "crowding",
    "pareto_archive",
    "indicators",
    "weights",
    "scalarization",
    "linear_support",
    "advantage_presets",
    "advantages",
    "estimators",
    "trackers",
    "returns",
    "rewards",
    "constrained_rewards",
    "reward_weighting",
    "rollouts",
    "tokens",
    "logprobs",
    "downsampling",
    "entropy_smoothing",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_examples_of_docstrings_hold(family):
    importlib.import_module(f"morlfast.{family}")
    module = sys.modules[f"morlfast.{family}"]  # the attribute of the package may be a function of that name
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0


def test_every_public_function_has_an_example():
    for name in morlfast.__all__:
        if name == "PRESETS" or isinstance(getattr(morlfast, name), type):  # shown where they are taken or returned
            continue
        assert ">>> " in getattr(morlfast, name).__doc__, name


@pytest.mark.parametrize("page", ["README.md"])
def test_the_python_of_pages_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) <= 12
        exec(compile(block, page, "exec"), {})


def test_links_lead_somewhere():
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "examples/README.md",
        *(ROOT / "docs").glob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
