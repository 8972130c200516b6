"""Definitions out of an installed trainer's own files, run without what else those files import (ray, jax, ...)."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def definitions(module: str, *names: str, **namespace: Any) -> SimpleNamespace:
    """Functions and classes `names` of `module`, executed as they are installed; what they use comes in `namespace`."""
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    file = Path(spec.submodule_search_locations[0], *rest.split(".")).with_suffix(".py")
    tree = ast.parse(file.read_text(), str(file))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    assert sorted(node.name for node in tree.body) == sorted(names), file
    exec(compile(tree, str(file), "exec", annotations.compiler_flag), namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})
