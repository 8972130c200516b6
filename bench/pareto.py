"""Non-dominated sorting of one population."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morlfast
import torch
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Peer, Shape, close

SAME_RANKS = close(rtol=0)


def points_of(shape: Shape, kind: str, generator: torch.Generator) -> Tensor:
    """(n, m): uniform in the cube; one front (the unit simplex); or nearly a chain, with about n / 2 fronts."""
    n, m = shape
    points = torch.rand(n, m, generator=generator, dtype=torch.float64)
    if kind == "one-front":
        points = -torch.log1p(-points)
        return points / points.sum(-1, keepdim=True)
    if kind == "many-fronts":
        return torch.rand(n, 1, generator=generator, dtype=torch.float64) + 1e-4 * points
    return points


def as_array(points: Tensor) -> Inputs:
    return (points.cpu().numpy(),)


def moocore_rank() -> Callable[..., Any]:
    import moocore

    return lambda array: moocore.pareto_rank(array, maximise=False)


def pygmo_rank() -> Callable[..., Any]:
    import numpy
    import pygmo

    return lambda array: numpy.asarray(pygmo.fast_non_dominated_sorting(array)[3], dtype=numpy.int64)


def pymoo_rank() -> Callable[..., Any]:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    sorting = NonDominatedSorting()
    return lambda array: sorting.do(array, return_rank=True)[1]


def evox_rank() -> Callable[..., Any]:
    from evox.operators.selection.non_dominate import non_dominate_rank

    return lambda points: non_dominate_rank(points)


def non_dominated_sort(shape: Shape, kind: str) -> Case:
    n, m = shape
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=lambda points: morlfast.non_dominated_sort(points, maximize=False),
        dtype="float64",
        peers=(
            Peer("moocore", SAME_RANKS, moocore_rank, "moocore", prepare=as_array, host=True),
            Peer("pygmo", SAME_RANKS, pygmo_rank, "pygmo", prepare=as_array, host=True),
            Peer("pymoo", SAME_RANKS, pymoo_rank, "pymoo", prepare=as_array, host=True),
            Peer("evox", SAME_RANKS, evox_rank, "evox"),
        ),
        moved_bytes=n * (8 * m + 4),
        operations=m * n * max(1, (n - 1).bit_length()),
        operations_are="m n log2(n): the comparisons of one sort an objective",
        work=float(n * n),
        series=f"m={m}",
    )


OPERATIONS = (
    Operation(
        "non_dominated_sort",
        ("n", "m"),
        ("uniform", "one-front", "many-fronts"),
        tuple((n, m) for m in (2, 3, 5, 10) for n in (200, 1000, 5000, 20000)),
        non_dominated_sort,
    ),
)
