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
        "others": torch.rand(n, 2, generator=generator),
        "weights": torch.rand(n, 2, generator=generator),
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
    "is_non_dominated": ("points",),
    "dominance_counts": ("points",),
    "is_dominated_by": ("points", "others"),
    "best_points": ("weights", "points", 0),
    "farthest_query": ("others", "points", 4),
    "group_advantages": ("rewards", 4),
    "select_tokens": ("advantages", "entropies", "mask", 0.25),
    "filter_non_dominated": ("points",),
    "crowding_distance": ("points",),
    "expected_utility": ("points", "weights"),
    "maximum_utility_loss": ("points", "others", "weights"),
    "igd": ("points", "others"),
    "epsilon_indicator": ("points", "others"),
    "sparsity": ("points",),
    "weighted_sum": ("points", "weights"),
    "chebyshev": ("points", "weights", "ref_point"),
}
OPERATORS = (
    *("hypervolume", "hypervolume_gradient", "non_dominated_sort", "is_non_dominated", "dominance_counts"),
    *("is_dominated_by", "best_points", "farthest_query", "group_advantages", "select_tokens"),
)
# One operator and its checks.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "hypervolume": partial(morlfast.hypervolume, maximize=False),
    "non_dominated_sort": partial(morlfast.non_dominated_sort, maximize=False),
    "is_non_dominated": partial(morlfast.is_non_dominated, maximize=False),
    "dominance_counts": partial(morlfast.dominance_counts, maximize=False),
    "is_dominated_by": partial(morlfast.is_dominated_by, maximize=False),
    "group_advantages": morlfast.group_advantages,
    "select_tokens": morlfast.select_tokens,
}
# Several operations of torch: the cost is counted, without a target.
COMPOSED: dict[str, Callable[..., Any]] = {
    "filter_non_dominated": partial(morlfast.filter_non_dominated, maximize=False),
    "crowding_distance": morlfast.crowding_distance,
    "expected_utility": morlfast.expected_utility,
    "maximum_utility_loss": morlfast.maximum_utility_loss,
    "igd": morlfast.igd,
    "epsilon_indicator": partial(morlfast.epsilon_indicator, maximize=False),
    "sparsity": morlfast.sparsity,
    "weighted_sum": morlfast.weighted_sum,
    "chebyshev": morlfast.chebyshev,
}


def overhead(shape: Shape, kind: str) -> Case:
    (n,) = shape
    name, door = kind.split(" ")
    operator = door == "operator"
    call = getattr(torch.ops.morlfast, name).default if operator else (FUNCTIONS | COMPOSED)[name]
    target = None if not operator and name in COMPOSED else TARGETS[door]

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
        unit=Unit("torch.add", add, target),
        moved_bytes=CALLS << 10,  # a pool of about so much a repetition
        calls=CALLS,
    )


OPERATIONS = (
    Operation(
        "overhead",
        ("n",),
        (
            *(f"{name} operator" for name in OPERATORS),
            *(f"{name} function" for name in (*FUNCTIONS, *COMPOSED)),
        ),
        ((8,),),
        overhead,
        devices=("cpu",),
    ),
)
