"""The stub that the build generates tells what the compiled module has. For the morlfast that is installed."""

from __future__ import annotations

import ast
from pathlib import Path

from morlfast import _C

STUB = ast.parse(Path(_C.__file__).with_name("_C.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}


def test_every_function_is_in_the_stub() -> None:
    assert set(FUNCTIONS) == {name for name in dir(_C) if callable(getattr(_C, name)) and not name.startswith("__")}
    assert set(_C.schemas) <= set(FUNCTIONS)


def test_tensors_are_torch_tensors() -> None:
    for name, function in FUNCTIONS.items():
        assert function.returns is not None
        returns = "None" if _C.schemas.get(name, "").endswith("-> ()") else "torch.Tensor"
        assert returns in ast.unparse(function.returns), name
        for argument in function.args.args:
            assert argument.annotation is not None, (name, argument.arg)
            assert ast.unparse(argument.annotation) in {
                "torch.Tensor", "torch.Tensor | None", "bool", "int", "float", "float | None"
            }, (name, argument.arg)  # fmt: skip


def test_the_stub_has_the_arguments_of_the_schema() -> None:
    for name, schema in _C.schemas.items():
        declared = [text.split("=")[0].split()[-1] for text in schema[1 : schema.index(") ->")].split(", ")]
        assert [argument.arg for argument in FUNCTIONS[name].args.args] == declared
