"""What a call costs on tiny CPU inputs, counted in calls of torch.add."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import morlfast
import torch
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Shape, Unit

CALLS = 200  # in one repetition, each on tensors of its own
TARGETS = {"operator": 2.5, "function": 5.0}


def tiny(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "points": torch.rand(n, 2, generator=generator),
        "ref_point": torch.ones(2),
        "rewards": torch.rand(n, generator=generator),
        "advantages": torch.rand(2, generator=generator),
        "entropies": torch.rand(2, n, generator=generator),
        "mask": torch.ones(2, n, dtype=torch.bool),
    }


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "hypervolume": ("points", "ref_point"),
    "hypervolume_gradient": ("points", "ref_point"),
    "non_dominated_sort": ("points",),
    "group_advantages": ("rewards", 4),
    "select_tokens": ("advantages", "entropies", "mask", 0.25),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "hypervolume": partial(morlfast.hypervolume, maximize=False),
    "non_dominated_sort": partial(morlfast.non_dominated_sort, maximize=False),
    "group_advantages": morlfast.group_advantages,
    "select_tokens": morlfast.select_tokens,
}


def overhead(shape: Shape, kind: str) -> Case:
    (n,) = shape
    name, door = kind.split(" ")
    call = getattr(torch.ops.morlfast, name).default if door == "operator" else FUNCTIONS[name]

    def setup(generator: torch.Generator) -> Inputs:
        tensors = [tiny(n, generator) for _ in range(CALLS)]
        arguments = [tuple(x.get(key, key) for key in ARGUMENTS[name]) for x in tensors]
        return arguments, [(x["rewards"], x["rewards"]) for x in tensors]

    def ours(arguments: list[Inputs], _: list[Inputs]) -> None:
        for x in arguments:
            call(*x)

    def add(_: list[Inputs], arguments: list[Inputs]) -> None:
        plus = torch.add
        for x in arguments:
            plus(*x)

    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        unit=Unit("torch.add", add, TARGETS[door]),
        moved_bytes=CALLS << 10,  # a pool of about so much a repetition
        calls=CALLS,
    )


OPERATIONS = (
    Operation(
        "overhead",
        ("n",),
        (*(f"{name} operator" for name in ARGUMENTS), *(f"{name} function" for name in FUNCTIONS)),
        ((8,),),
        overhead,
        devices=("cpu",),
    ),
)
