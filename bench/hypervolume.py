"""The hypervolume family: values and gradients, contributions, improvements, boxes, subsets, estimates; and threads."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from typing import Any

import morlfast
import torch
from morlfast.hypervolume_approximation import approximate_hypervolume
from torch import Tensor

from bench.driver import Agreement, Case, Inputs, Operation, Peer, Shape, Unit, close
from bench.threads import case_on_threads

SAME_VOLUME = close(rtol=1e-11)  # other libraries sum in another order
KINDS = ("spherical", "linear", "convex", "cloud")
REF_POINT = {"spherical": 1.1, "linear": 1.1, "convex": 1.1, "cloud": 1.0}

# What moocore's hv_contributions sets to 0 from four objectives on, where it subtracts totals.
MOOCORE_THRESHOLD = 1.5e-8
SAMPLES = 1 << 16

COMPUTES_WITH_MOOCORE = "computes with moocore; timed at the smaller shapes"
MOOCORE_IS_SLOW = "5 to 20 times pygmo's time: 0.9 s at m = 8, n = 100; 20 s at n = 200; 2 s at m = 10, n = 50"
SLOWER_LOOP = "a loop of seconds; moocore's is the faster one"
TIMED_ON_SPHERICAL = "seconds a call; timed on spherical fronts"
SECONDS_A_CALL = {
    ("pygmo", (1, 10000, 4)),
    ("pygmo", (1, 200, 9)),
    ("pygmo", (1000, 64, 5)),
    ("pygmo", (1000, 64, 6)),
    ("pymoo", (1000, 64, 6)),
}


def fronts(shape: Shape, kind: str, generator: torch.Generator) -> Tensor:
    """(B, n, m) of the unit sphere's positive part, its mirror image, the unit simplex, or a mostly dominated cube."""
    if kind in ("spherical", "convex"):
        points = torch.randn(shape, generator=generator, dtype=torch.float64).abs()
        points = points / points.square().sum(-1, keepdim=True).sqrt()
        return points if kind == "spherical" else 1 - points
    points = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "linear":
        points = -torch.log1p(-points)
        return points / points.sum(-1, keepdim=True)
    return points


def reference(kind: str, m: int) -> Tensor:
    return torch.full((m,), REF_POINT[kind], dtype=torch.float64)


def as_arrays(points: Tensor, _: Tensor) -> Inputs:
    """(B, n, m) → list of B arrays (n, m), as the loops take them."""
    return (list(points.cpu().numpy()),)


def _setup(shape: Shape, kind: str) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: (fronts(shape, kind, generator), reference(kind, shape[-1]))


def _sorts(batch: int, n: int) -> dict[str, Any]:
    return {
        "dtype": "float64",
        "operations": batch * n * max(1, (n - 1).bit_length()),
        "operations_are": "B n log2(n): the comparisons of one sort",
    }


def _unforeseen(shape: Shape) -> str:
    """A series of its own: no exponent foresees a larger front's time, and what exceeds the cap is called once."""
    return "x".join(map(str, shape))


def _foreseen(shape: Shape) -> dict[str, Any]:
    batch, n, m = shape
    return {"work": float(batch * n), "series": f"m={m}" if m <= 3 else _unforeseen(shape)}


# --- hypervolume and its gradient ---


def moocore_loop(ref: list[float]) -> Callable[..., Any]:
    import moocore
    import numpy

    ref_point = numpy.array(ref)
    return lambda arrays: [moocore.hypervolume(array, ref=ref_point) for array in arrays]


def pygmo_loop(ref: list[float]) -> Callable[..., Any]:
    import pygmo

    return lambda arrays: [pygmo.hypervolume(array).compute(ref) for array in arrays]


def pymoo_loop(ref: list[float]) -> Callable[..., Any]:
    import numpy
    from pymoo.indicators.hv import HV

    indicator = HV(ref_point=numpy.array(ref))
    return lambda arrays: [indicator(array) for array in arrays]


# For fronts whose points all count; of a cloud's 1000 points in four objectives 5 to 10 % do.
VALUE_TARGETS: dict[Shape, dict[str, float]] = {
    (1000, 64, 2): {"moocore": 2.5},
    (1000, 64, 3): {"moocore": 2.5},
    (1000, 64, 4): {"moocore": 2.5},
    (1000, 64, 5): {"moocore": 2.3},
    (1000, 64, 6): {"moocore": 3},
    (1, 100000, 2): {"moocore": 1.2},
    (1, 100000, 3): {"moocore": 1.2},
    (1, 1000, 4): {"moocore": 2.5},
    (1, 10000, 4): {"moocore": 6},
    (1, 1000, 5): {"moocore": 3.5},
    (1, 1000, 6): {"moocore": 40, "pygmo": 8},
    (1, 100, 8): {"pygmo": 4},
    (1, 200, 9): {"pygmo": 1},
    (1, 50, 10): {"pygmo": 1},
}


def _target(targets: dict[Shape, dict[str, float]], name: str, shape: Shape, kind: str) -> float | None:
    return None if kind == "cloud" else targets.get(shape, {}).get(name)


def _left_out(name: str, shape: Shape, kind: str) -> str:
    batch, n, m = shape
    if kind != "spherical" and (name, shape) in SECONDS_A_CALL:
        return TIMED_ON_SPHERICAL
    if batch == 1 and name == "pymoo" and (m > 3 or n > 10000):
        return COMPUTES_WITH_MOOCORE
    if batch == 1 and name == "moocore" and m > 7:
        return MOOCORE_IS_SLOW
    return SLOWER_LOOP if batch > 1000 and name != "moocore" else ""


def hypervolume(shape: Shape, kind: str) -> Case:
    batch, n, m = shape
    ref = [REF_POINT[kind]] * m
    peers = tuple(
        Peer(
            f"{name} loop" if batch > 1 else name,
            SAME_VOLUME,
            partial(loop, ref),
            distribution=name,
            prepare=as_arrays,
            host=True,
            target=_target(VALUE_TARGETS, name, shape, kind),
            left_out=_left_out(name, shape, kind),
        )
        for name, loop in (("moocore", moocore_loop), ("pygmo", pygmo_loop), ("pymoo", pymoo_loop))
    )
    return Case(
        setup=_setup(shape, kind),
        ours=partial(morlfast.hypervolume, maximize=False),
        peers=peers,
        moved_bytes=8 * batch * (n * m + 1),
        **_sorts(batch, n),
        **_foreseen(shape),
    )


def hypervolume_gradient(shape: Shape, kind: str) -> Case:
    batch, n, m = shape

    def ours(points: Tensor, ref_point: Tensor) -> Tensor:
        leaf = points.detach().requires_grad_()
        value = morlfast.hypervolume(leaf, ref_point, maximize=False)
        return torch.autograd.grad(value.sum(), leaf)[0]

    return Case(
        setup=_setup(shape, kind),
        ours=ours,
        unit=Unit("the value alone", partial(morlfast.hypervolume, maximize=False)),
        moved_bytes=8 * batch * (2 * n * m + 1),
        note="value and gradient of the points; none of the peers computes it",
        **_sorts(batch, n),
    )


# --- contributions, improvements, subsets ---


def same_contributions(threshold: float) -> Agreement:
    """Equal, or set to 0 below the threshold. Absolute, since peers subtract totals: contributions are differences."""
    equal = close(rtol=1e-11, atol=2e-14)

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        x, y = (torch.as_tensor(z, dtype=torch.float64, device="cpu").reshape(-1) for z in (ours, theirs))
        if x.shape == y.shape:
            x = torch.where((y == 0) & (x < threshold), y, x)
        return equal.problem(x, y, inputs)

    return Agreement(equal.tolerance + (f", its 0 for less than {threshold:g}" if threshold else ""), problem)


def moocore_contributions(ref: list[float]) -> Callable[..., Any]:
    import moocore
    import numpy

    ref_point = numpy.array(ref)
    return lambda arrays: numpy.array([moocore.hv_contributions(array, ref=ref_point) for array in arrays])


def pygmo_contributions(ref: list[float]) -> Callable[..., Any]:
    import numpy
    import pygmo

    return lambda arrays: numpy.array([pygmo.hypervolume(array).contributions(ref) for array in arrays])


CONTRIBUTION_TARGETS: dict[Shape, dict[str, float]] = {
    (1, 1000, 3): {"moocore": 1},
    (1, 1000, 4): {"moocore": 20, "pygmo": 2},
}


def hypervolume_contributions(shape: Shape, kind: str) -> Case:
    batch, n, m = shape
    ref = [REF_POINT[kind]] * m
    counts_dominated = "counts dominated points, which ours and moocore ignore here" if kind == "cloud" else ""
    return Case(
        setup=_setup(shape, kind),
        ours=partial(morlfast.hypervolume_contributions, maximize=False, dominated="ignore"),
        peers=(
            Peer(
                "moocore loop" if batch > 1 else "moocore",
                same_contributions(MOOCORE_THRESHOLD if m > 3 else 0.0),
                partial(moocore_contributions, ref),
                "moocore",
                prepare=as_arrays,
                host=True,
                target=_target(CONTRIBUTION_TARGETS, "moocore", shape, kind),
            ),
            Peer(
                "pygmo loop" if batch > 1 else "pygmo",
                same_contributions(0.0),
                partial(pygmo_contributions, ref),
                "pygmo",
                prepare=as_arrays,
                host=True,
                target=_target(CONTRIBUTION_TARGETS, "pygmo", shape, kind),
                left_out=counts_dominated,
            ),
        ),
        moved_bytes=8 * batch * n * (m + 1),
        note='dominated="ignore", as moocore does by default',
        **_sorts(batch, n),
        **_foreseen(shape),
    )


def candidates_and_front(shape: Shape, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(Q, m) about the front, some better and some worse, and (n, m)."""
    count, n, m = shape
    candidates = fronts((count, m), kind, generator)
    scale = 0.85 + 0.2 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return candidates * (scale if kind != "cloud" else 1), fronts((n, m), kind, generator)


def front_and_each(candidates: Tensor, front: Tensor, ref_point: Tensor) -> Inputs:
    """The front with a last row for the candidate in turn, and the candidates."""
    return torch.cat([front, candidates[:1]]).cpu().numpy(), candidates.cpu().numpy()


def moocore_improvement(ref: list[float]) -> Callable[..., Any]:
    import moocore
    import numpy

    ref_point = numpy.array(ref)

    def improvements(points: Any, candidates: Any) -> list[float]:
        before = moocore.hypervolume(points[:-1], ref=ref_point)
        result = []
        for candidate in candidates:
            points[-1] = candidate
            result.append(moocore.hypervolume(points, ref=ref_point) - before)
        return result

    return improvements


def pygmo_improvement(ref: list[float]) -> Callable[..., Any]:
    import pygmo

    def improvements(points: Any, candidates: Any) -> list[float]:
        result = []
        for candidate in candidates:
            points[-1] = candidate
            result.append(pygmo.hypervolume(points).exclusive(len(points) - 1, ref))
        return result

    return improvements


IMPROVEMENT_TARGETS: dict[Shape, dict[str, float]] = {(1000, 50, 3): {"moocore": 3}}


def hypervolume_improvement(shape: Shape, kind: str) -> Case:
    count, n, m = shape
    ref = [REF_POINT[kind]] * m
    same = close(rtol=1e-11, atol=1e-13)  # peers subtract totals
    loops = (("moocore", moocore_improvement), ("pygmo", pygmo_improvement))
    return Case(
        setup=lambda generator: (*candidates_and_front(shape, kind, generator), reference(kind, m)),
        ours=partial(morlfast.hypervolume_improvement, maximize=False),
        dtype="float64",
        peers=tuple(
            Peer(
                f"{name} loop",
                same,
                partial(loop, ref),
                name,
                prepare=front_and_each,
                host=True,
                target=_target(IMPROVEMENT_TARGETS, name, shape, kind),
            )
            for name, loop in loops
        ),
        moved_bytes=8 * (count * (m + 1) + n * m),
        series=_unforeseen(shape),
        note="moocore: totals with each candidate less the total without; pygmo: its exclusive contribution",
    )


def moocore_greedy(k: int, ref: list[float]) -> Callable[..., Any]:
    """Lazy greedy: an improvement is measured again only when its last value is the largest left."""
    import moocore
    import numpy

    ref_point = numpy.array(ref)

    def subset(array: Any) -> list[int]:
        left = [(-gain, row) for row, gain in enumerate((ref_point - array).prod(-1))]
        heapq.heapify(left)
        picks: list[int] = []
        measured = [0] * len(array)
        total = 0.0
        while len(picks) < k:
            gain, row = left[0]
            if measured[row] == len(picks):
                heapq.heappop(left)
                picks.append(row)
                total -= gain
            else:
                gain = moocore.hypervolume(array[[*picks, row]], ref=ref_point) - total
                measured[row] = len(picks)
                heapq.heapreplace(left, (-gain, row))
        return picks

    return subset


def optuna_greedy(k: int, ref: list[float]) -> Callable[..., Any]:
    import numpy
    from optuna._hypervolume.hssp import _solve_hssp

    ref_point = numpy.array(ref)
    return lambda array: _solve_hssp(array, numpy.arange(len(array)), k, ref_point)


def hypervolume_subset(shape: Shape, kind: str) -> Case:
    n, k, m = shape
    ref = [REF_POINT[kind]] * m

    def ours(points: Tensor, ref_point: Tensor) -> Tensor:
        return morlfast.hypervolume_subset(points, k, ref_point, maximize=False)

    def as_array(points: Tensor, _: Tensor) -> Inputs:
        return (points.cpu().numpy(),)

    same = close(rtol=0)
    return Case(
        setup=_setup((n, m), kind),
        ours=ours,
        dtype="float64",
        peers=(
            Peer("moocore greedy", same, partial(moocore_greedy, k, ref), "moocore", prepare=as_array, host=True),
            Peer("optuna", same, partial(optuna_greedy, k, ref), "optuna", prepare=as_array, host=True),
        ),
        moved_bytes=8 * (n * m + k),
        series=_unforeseen(shape),
        note="the same rows in the same order; moocore greedy: lazy, written out here; optuna: its private _solve_hssp",
    )


# --- boxes ---

LOWEST = -1.0  # below every point: where boxes without end are cut off to have a volume


def same_boxes(region: str) -> Agreement:
    """Partitions of one region need not have the same boxes; their volumes are the region's."""
    equal = close(rtol=1e-10)

    def volume(lower: Tensor, upper: Tensor) -> Tensor:
        return (upper - lower.clamp(min=LOWEST)).prod(-1).sum(-1)

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        theirs_volume = volume(-theirs[1], -theirs[0])  # BoTorch maximizes
        return equal.problem(volume(ours.lower, ours.upper), theirs_volume, inputs)

    return Agreement(f"{equal.tolerance} of the {region} region's volume", problem)


def botorch_boxes(region: str) -> Callable[..., Any]:
    from botorch.utils.multi_objective import box_decompositions

    name = {"dominated": "DominatedPartitioning", "non_dominated": "FastNondominatedPartitioning"}[region]
    partitioning = getattr(box_decompositions, name)
    return lambda points, ref_point: partitioning(ref_point=ref_point, Y=points).hypercell_bounds


def negated(points: Tensor, ref_point: Tensor) -> Inputs:
    return -(points[0] if len(points) == 1 else points), -ref_point


def box_decomposition(shape: Shape, variant: str) -> Case:
    batch, n, m = shape
    region, kind = variant.split(" ")
    decompose: Callable[..., Any] = morlfast.box_decomposition
    refuses = "raises NotImplementedError for a batch of fronts with m > 2" if batch > 1 and m > 2 else ""
    return Case(
        setup=_setup(shape, kind),
        ours=partial(decompose, region=region, maximize=False),
        peers=(
            Peer(
                "BoTorch",
                same_boxes(region),
                partial(botorch_boxes, region),
                "botorch",
                prepare=negated,
                left_out=refuses,
            ),
        ),
        moved_bytes=8 * batch * n * m * 3,
        series=_unforeseen(shape),
        note="BoTorch: FastNondominatedPartitioning and DominatedPartitioning, from negated points",
        **_sorts(batch, n),
    )


# --- estimates ---


def moocore_estimate(ref: list[float]) -> Callable[..., Any]:
    import moocore
    import numpy

    ref_point = numpy.array(ref)
    return lambda arrays: [moocore.hv_approx(array, ref=ref_point, nsamples=SAMPLES) for array in arrays]


def estimates_agree() -> Agreement:
    equal = close(rtol=0.05)
    return Agreement(
        f"{equal.tolerance}: both are estimates", lambda x, y, inputs: equal.problem(getattr(x, "value", x), y, inputs)
    )


def relative_error(estimate: Any, inputs: Inputs) -> float:
    """The largest of the batch, against the exact volume."""
    exact = morlfast.hypervolume(*inputs, maximize=False).cpu()
    value = torch.as_tensor(getattr(estimate, "value", estimate), dtype=torch.float64, device="cpu")
    return float((value / exact - 1).abs().max())


def approximation(shape: Shape, variant: str) -> Case:
    batch, n, m = shape
    method, kind = variant.split(" ")
    estimate: Callable[..., Any] = approximate_hypervolume
    return Case(
        setup=_setup(shape, kind),
        ours=partial(estimate, maximize=False, samples=SAMPLES, method=method),
        dtype="float64",
        peers=(
            Peer(
                "moocore loop" if batch > 1 else "moocore",
                estimates_agree(),
                partial(moocore_estimate, [REF_POINT[kind]] * m),
                "moocore",
                prepare=as_arrays,
                host=True,
            ),
        ),
        moved_bytes=8 * batch * (n * m + 1),
        series=_unforeseen(shape),
        operations=batch * SAMPLES * n * m,
        operations_are="B samples n m: the least gain of every point in every direction",
        error=relative_error,
        note=f"{SAMPLES} samples each; moocore: hv_approx, Rphi-FWE+, which gives no standard error",
    )


# --- threads ---


def hypervolume_threads(shape: Shape, kind: str) -> Case:
    threads, batch, n, m = shape
    return case_on_threads(
        threads,
        _setup((batch, n, m), kind),
        partial(morlfast.hypervolume, maximize=False),
        moved_bytes=8 * batch * (n * m + 1),
        series=_unforeseen(shape),
    )


BATCHES = tuple((1000, 64, m) for m in (2, 3, 4, 5, 6))
SINGLE = tuple((1, n, m) for m in (2, 3) for n in (100, 1000, 10000))
LARGE = ((1, 100000, 2), (1, 100000, 3))
MANY = ((1, 1000, 4), (1, 10000, 4), (1, 1000, 5), (1, 1000, 6), (1, 100, 8), (1, 200, 9), (1, 50, 10))
ON_GPU = (*((4096, 128, m) for m in (2, 3, 4, 5)), (1, 100000, 3))
ON_GPU_KINDS = ("spherical", "cloud")

OPERATIONS = (
    Operation(
        "hypervolume",
        ("B", "n", "m"),
        KINDS,
        (*SINGLE, *LARGE, *MANY, *BATCHES),
        hypervolume,
        cuda_variants=ON_GPU_KINDS,
        cuda_shapes=((1, 1000, 4), *ON_GPU),
    ),
    Operation(
        "hypervolume_gradient",
        ("B", "n", "m"),
        ("spherical", "linear", "cloud"),
        (*SINGLE, (1, 1000, 4), (1, 1000, 5), (1, 1000, 6), *BATCHES),
        hypervolume_gradient,
        cuda_variants=ON_GPU_KINDS,
        cuda_shapes=((1, 1000, 4), *ON_GPU),
    ),
    Operation(
        "hypervolume_contributions",
        ("B", "n", "m"),
        KINDS,
        ((1, 1000, 2), (1, 1000, 3), (1, 1000, 4), (1, 200, 5), (1, 100, 6), (1000, 64, 3)),
        hypervolume_contributions,
        cuda_variants=ON_GPU_KINDS,
        cuda_shapes=((1, 1000, 3), (1, 1000, 4), (1000, 64, 3)),
    ),
    Operation(
        "hypervolume_improvement",
        ("Q", "n", "m"),
        KINDS,
        tuple((1000, 50, m) for m in (2, 3, 4)),
        hypervolume_improvement,
        cuda_variants=ON_GPU_KINDS,
    ),
    Operation(
        "hypervolume_subset",
        ("n", "k", "m"),
        ("spherical", "linear", "convex"),
        ((1000, 10, 2), (1000, 10, 3), (100, 10, 4), (100, 10, 5)),
        hypervolume_subset,
        cuda_variants=("spherical",),
    ),
    Operation(
        "box_decomposition",
        ("B", "n", "m"),
        tuple(f"{region} {kind}" for region in ("non_dominated", "dominated") for kind in ("spherical", "linear")),
        ((1, 100, 2), (1, 100, 3), (1, 50, 4), (1, 10, 5), (100, 64, 2), (1000, 64, 3)),
        box_decomposition,
        cuda_variants=("non_dominated spherical", "dominated spherical"),
        cuda_shapes=((1, 100, 3), (1000, 64, 3)),
    ),
    Operation(
        "approximate_hypervolume",
        ("B", "n", "m"),
        tuple(f"{method} {kind}" for method in ("polar", "box") for kind in ("spherical", "convex")),
        ((1, 100, 3), (1, 100, 5), (1, 100, 8), (4, 100, 5)),
        approximation,
        cuda_variants=("polar spherical", "box spherical"),
    ),
    Operation(
        "hypervolume_threads",
        ("threads", "B", "n", "m"),
        ("spherical",),
        ((2, 1000, 64, 5), (2, 1, 1000, 6), (2, 1, 200, 8), (2, 1, 200, 9)),
        hypervolume_threads,
        devices=("cpu",),
    ),
)
