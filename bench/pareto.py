"""Pareto sets: sorting, non-dominated points, counts of dominators, crowding, archives; and threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import morlfast
import torch
from torch import Tensor

from bench.driver import Agreement, Case, Inputs, Operation, Peer, Shape, Unit, close
from bench.threads import case_on_threads

SAME_RANKS = close(rtol=0)


def points_of(shape: Shape, kind: str, generator: torch.Generator) -> Tensor:
    """(..., n, m): uniform in the cube; one front (the unit simplex); or nearly a chain, with about n / 2 fronts."""
    points = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "one-front":
        points = -torch.log1p(-points)
        return points / points.sum(-1, keepdim=True)
    if kind == "many-fronts":
        return torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64) + 1e-4 * points
    return points


def as_array(points: Tensor) -> Inputs:
    return (points.cpu().numpy(),)


# --- sorting ---


def moocore_rank() -> Callable[..., Any]:
    import moocore

    return lambda array: moocore.pareto_rank(array, maximise=False)


def moocore_rank_loop() -> Callable[..., Any]:
    import numpy

    rank = moocore_rank()
    return lambda arrays: numpy.stack([rank(array) for array in arrays])


def pygmo_rank() -> Callable[..., Any]:
    import numpy
    import pygmo

    return lambda array: numpy.asarray(pygmo.fast_non_dominated_sorting(array)[3], dtype=numpy.int64)


def pymoo_rank(stop_after: int | None = None) -> Callable[..., Any]:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    sorting = NonDominatedSorting()
    return lambda array: sorting.do(array, return_rank=True, n_stop_if_ranked=stop_after)[1]


def evox_rank() -> Callable[..., Any]:
    from evox.operators.selection.non_dominate import non_dominate_rank

    return lambda points: non_dominate_rank(points)


def evomo_rank() -> Callable[..., Any]:
    from evomo.operators.selection.non_dominate import non_dominate_rank

    return lambda points, violations: non_dominate_rank(points, violations)


def sorts(batch: int, n: int, m: int) -> dict[str, Any]:
    return {
        "dtype": "float64",
        "moved_bytes": batch * n * (8 * m + 4),
        "operations": batch * m * n * max(1, (n - 1).bit_length()),
        "operations_are": "m n log2(n): the comparisons of one sort an objective",
        "work": float(batch * n * n),
        "series": f"m={m}",
    }


def sorting_target(n: int, m: int) -> float | None:
    """At least so many times moocore's speed, on clouds and on single fronts."""
    if n < 1000:
        return 0.9
    if m < 4:
        return 1.2 if m == 2 else 2.0
    return {1000: 1.3, 2000: 1.3, 5000: 1.3, 20000: 2.0}.get(n)


def non_dominated_sort(shape: Shape, kind: str) -> Case:
    n, m = shape
    target = None if kind == "many-fronts" else sorting_target(n, m)
    peers = [
        Peer("moocore", SAME_RANKS, moocore_rank, "moocore", prepare=as_array, host=True, target=target),
    ]
    if shape in AGAINST_ALL:
        peers += [
            Peer("pymoo", SAME_RANKS, pymoo_rank, "pymoo", prepare=as_array, host=True),
            Peer("pygmo", SAME_RANKS, pygmo_rank, "pygmo", prepare=as_array, host=True),
        ]
    if shape in AGAINST_EVOX:
        peers.append(Peer("evox", SAME_RANKS, evox_rank, "evox"))
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=partial(morlfast.non_dominated_sort, maximize=False),
        peers=tuple(peers),
        memory=n >= 1000000,
        note="memory: what a call adds to the process at its peak" if n >= 1000000 else "",
        **sorts(1, n, m) | {"work": float(n**3 if kind == "many-fronts" else n**2)},
    )


def non_dominated_sort_batch(shape: Shape, kind: str) -> Case:
    batch, n, m = shape
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=partial(morlfast.non_dominated_sort, maximize=False),
        peers=(
            Peer(
                "moocore loop",
                SAME_RANKS,
                moocore_rank_loop,
                "moocore",
                prepare=lambda points: (list(points.cpu().numpy()),),
                host=True,
            ),
        ),
        **sorts(batch, n, m),
    )


def same_ranks_until(k: int) -> Agreement:
    """Equal until k points are ranked; whatever comes later is one rank further."""

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        ranks = torch.as_tensor(theirs, dtype=torch.int64, device="cpu")
        last = ranks.sort().values[k - 1]
        return SAME_RANKS.problem(ours, ranks.clamp(max=last + 1), inputs)

    return Agreement(f"{SAME_RANKS.tolerance} until {k} points are ranked", problem)


def non_dominated_sort_half(shape: Shape, kind: str) -> Case:
    n, m = shape
    same = same_ranks_until(n // 2)
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=partial(morlfast.non_dominated_sort, maximize=False, stop_after=n // 2),
        peers=(
            Peer("moocore", same, moocore_rank, "moocore", prepare=as_array, host=True),
            Peer("pymoo", same, partial(pymoo_rank, n // 2), "pymoo", prepare=as_array, host=True),
        ),
        unit=Unit("sorting all", partial(morlfast.non_dominated_sort, maximize=False)),
        note="stop_after = n / 2; moocore ranks all; pymoo: n_stop_if_ranked",
        **sorts(1, n, m),
    )


def with_violations(shape: Shape, kind: str, generator: torch.Generator) -> Inputs:
    """Points and total violations: of half of them, of all, or few different ones of all."""
    violations = torch.rand(shape[0], generator=generator, dtype=torch.float64)
    if kind == "half infeasible":
        violations = (2 * violations - 1).clamp(min=0)
    elif kind == "infeasible, 10 violations":
        violations = violations.mul(10).ceil()
    return points_of(shape, "uniform", generator), violations


def non_dominated_sort_constrained(shape: Shape, kind: str) -> Case:
    n, m = shape
    return Case(
        setup=lambda generator: with_violations(shape, kind, generator),
        ours=lambda points, violations: morlfast.non_dominated_sort(points, maximize=False, constraints=violations),
        peers=(Peer("EvoMO", SAME_RANKS, evomo_rank, "evomo"),),
        unit=Unit(
            "the same points unconstrained", lambda points, _: morlfast.non_dominated_sort(points, maximize=False)
        ),
        # There each different violation is a front, and a step.
        **sorts(1, n, m) | {"work": float(n**3 if kind == "infeasible" else n**2), "series": ""},
    )


def non_dominated_sort_threads(shape: Shape, kind: str) -> Case:
    threads, batch, n, m = shape
    return case_on_threads(
        threads,
        lambda generator: (points_of((batch, n, m), kind, generator),),
        partial(morlfast.non_dominated_sort, maximize=False),
        moved_bytes=batch * n * (8 * m + 4),
        series=str(shape),
    )


# --- non-dominated points, counts ---


def moocore_is_nondominated() -> Callable[..., Any]:
    import moocore

    return lambda array: moocore.is_nondominated(array, maximise=False, keep_weakly=True)


def pymoo_find_non_dominated() -> Callable[..., Any]:
    import numpy
    from pymoo.util.nds.non_dominated_sorting import find_non_dominated

    def keep(array: Any) -> Any:
        found = numpy.zeros(len(array), dtype=bool)
        found[find_non_dominated(array)] = True
        return found

    return keep


def botorch_is_non_dominated() -> Callable[..., Any]:
    from botorch.utils.multi_objective.pareto import is_non_dominated as theirs

    return lambda points: theirs(points, maximize=False, deduplicate=False)


def is_non_dominated(shape: Shape, kind: str) -> Case:
    n, m = shape
    same = close(rtol=0)
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=partial(morlfast.is_non_dominated, maximize=False),
        peers=(
            Peer("moocore", same, moocore_is_nondominated, "moocore", prepare=as_array, host=True),
            Peer("pymoo", same, pymoo_find_non_dominated, "pymoo", prepare=as_array, host=True),
            Peer("BoTorch", same, botorch_is_non_dominated, "botorch"),
        ),
        **sorts(1, n, m) | {"moved_bytes": n * (8 * m + 1)},
    )


def pygmo_counts() -> Callable[..., Any]:
    import pygmo

    return lambda array: pygmo.fast_non_dominated_sorting(array)[2].astype("int64")


def all_pairs_counts() -> Callable[..., Any]:
    def counts(points: Tensor) -> Tensor:
        first, second = points[:, None], points[None]
        return ((first <= second).all(-1) & (first < second).any(-1)).sum(0)

    return counts


def dominance_counts(shape: Shape, kind: str) -> Case:
    n, m = shape
    same = close(rtol=0)
    memory = "n^2 m bytes; timed on smaller sets" if n > 5000 else ""
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=partial(morlfast.dominance_counts, maximize=False),
        peers=(
            Peer("pygmo", same, pygmo_counts, "pygmo", prepare=as_array, host=True, left_out=memory),
            Peer("torch all pairs", same, all_pairs_counts, left_out=memory),
        ),
        note="pygmo: fast_non_dominated_sorting, which gives ranks and lists besides",
        **sorts(1, n, m),
    )


# --- crowding ---


def pymoo_crowding() -> Callable[..., Any]:
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function

    crowding = get_crowding_function("cd")
    return lambda array: crowding.do(array)


def pymoo_crowding_loop() -> Callable[..., Any]:
    import numpy

    crowding = pymoo_crowding()

    def distances(array: Any, fronts: Any) -> Any:
        result = numpy.empty(len(array))
        for rows in fronts:
            result[rows] = crowding(array[rows])
        return result

    return distances


def crowding_distance(shape: Shape, kind: str) -> Case:
    n, m = shape
    fronts = kind == "all fronts"

    def setup(generator: torch.Generator) -> Inputs:
        points = points_of(shape, "uniform" if fronts else kind, generator)
        return (points, morlfast.non_dominated_sort(points, maximize=False)) if fronts else (points,)

    def ours(points: Tensor, ranks: Tensor | None = None) -> Tensor:
        return morlfast.crowding_distance(points, ranks=ranks, variant="pymoo")

    def prepare(points: Tensor, ranks: Tensor | None = None) -> Inputs:
        array = points.cpu().numpy()
        return (array,) if ranks is None else (array, [rows.numpy() for rows in morlfast.fronts(ranks.cpu())])

    return Case(
        setup=setup,
        ours=ours,
        dtype="float64",
        peers=(
            Peer(
                "pymoo loop" if fronts else "pymoo",
                close(rtol=1e-9),
                pymoo_crowding_loop if fronts else pymoo_crowding,
                "pymoo",
                prepare=prepare,
                host=True,
            ),
        ),
        moved_bytes=8 * n * (m + 1),
        work=float(n * n),
        series=f"m={m}",
        note='variant="pymoo"; all fronts: the ranks and fronts are given, pymoo takes one front after another',
    )


# --- archive ---


def morl_baselines_archive() -> Callable[..., Any]:
    from morl_baselines.common.pareto import ParetoArchive

    def contents(points: Any) -> Any:
        archive = ParetoArchive()
        for row, point in enumerate(points):
            archive.add(row, point)
        return archive.individuals

    return contents


def pareto_archive(shape: Shape, kind: str) -> Case:
    count, q, m = shape

    def ours(points: Tensor) -> Tensor:
        archive = morlfast.ParetoArchive(m, maximize=True)
        for batch in points.split(q):
            archive.insert(batch)
        return archive.payload

    return Case(
        setup=lambda generator: (points_of((count, m), kind, generator),),
        ours=ours,
        dtype="float64",
        peers=(
            Peer(
                "MORL-Baselines",
                close(rtol=0),
                morl_baselines_archive,
                "morl-baselines",
                prepare=as_array,
                host=True,
                target=100 if count >= 10000 else None,
            ),
        ),
        moved_bytes=8 * count * (m + 1),
        # An insertion there compares all pairs of the archive: everything so far, or of a cloud about log(N)^(m - 1).
        work=float(count**3 if kind == "one-front" else count * math.log(count) ** (m - 1)),
        series=f"m={m}",
        note="agreement on which insertions are left; it takes one point after another",
    )


AGAINST_ALL = tuple((n, m) for m in (2, 3, 5, 10) for n in (200, 1000))
AGAINST_EVOX = tuple((n, m) for m in (2, 3, 5, 10) for n in (200, 1000, 5000, 20000))
SORTED = tuple((n, m) for m in (2, 3, 4, 5, 7, 10) for n in (50, 100, 200, 500, 1000, 2000, 5000, 20000))
LARGE = ((100000, 2), (100000, 3), (100000, 5))

OPERATIONS = (
    Operation(
        "non_dominated_sort",
        ("n", "m"),
        ("uniform", "one-front", "many-fronts"),
        (*SORTED, *LARGE),
        non_dominated_sort,
        shapes_of={"uniform": (*SORTED, *LARGE, (1000000, 3)), "many-fronts": AGAINST_EVOX},
        cuda_shapes=(*((n, m) for m in (3, 5) for n in (1000, 5000, 20000)), (100000, 3)),
    ),
    Operation(
        "non_dominated_sort_batch",
        ("B", "n", "m"),
        ("uniform", "one-front"),
        tuple((1000, 64, m) for m in (2, 3, 4)),
        non_dominated_sort_batch,
        cuda_shapes=((1000, 64, 3), (4096, 200, 3)),
    ),
    Operation(
        "non_dominated_sort_half",
        ("n", "m"),
        ("uniform", "many-fronts"),
        ((1000, 3), (5000, 3), (5000, 5)),
        non_dominated_sort_half,
        cuda_shapes=((5000, 3),),
    ),
    Operation(
        "non_dominated_sort_constrained",
        ("n", "m"),
        ("infeasible", "infeasible, 10 violations", "half infeasible"),
        ((200, 3), (2000, 3), (2000, 5)),
        non_dominated_sort_constrained,
        cuda_shapes=((2000, 3),),
    ),
    Operation(
        "is_non_dominated",
        ("n", "m"),
        ("uniform", "one-front"),
        tuple((n, m) for m in (2, 3, 5) for n in (1000, 20000)),
        is_non_dominated,
        cuda_shapes=((1000, 3), (20000, 3)),
    ),
    Operation(
        "dominance_counts",
        ("n", "m"),
        ("uniform", "one-front"),
        tuple((n, m) for m in (2, 3, 5) for n in (1000, 20000)),
        dominance_counts,
        cuda_shapes=((1000, 3), (20000, 3)),
    ),
    Operation(
        "crowding_distance",
        ("n", "m"),
        ("one-front", "all fronts"),
        ((100, 3), (1000, 3), (10000, 3)),
        crowding_distance,
        cuda_shapes=((10000, 3),),
    ),
    Operation(
        "pareto_archive",
        ("N", "q", "m"),
        ("one-front", "uniform"),
        ((100, 10, 4), (200, 10, 4), (10000, 10, 4)),
        pareto_archive,
        devices=("cpu",),
    ),
    Operation(
        "non_dominated_sort_threads",
        ("threads", "B", "n", "m"),
        ("uniform",),
        ((2, 1, 20000, 3), (2, 1, 20000, 5), (2, 1, 20000, 10), (2, 1000, 64, 3)),
        non_dominated_sort_threads,
        devices=("cpu",),
    ),
)
