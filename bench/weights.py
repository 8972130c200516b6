"""Weights: spread over the simplex, neighbours, and the corners of linear support."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import morlfast
import torch
from morlfast import weights as morlfast_weights
from torch import Tensor

from bench.driver import Agreement, Case, Inputs, Operation, Peer, Shape, close


def as_arrays(*tensors: Tensor) -> Inputs:
    return tuple(x.cpu().numpy() for x in tensors)


# --- Riesz energy ---


def energy_not_worse(margin: float) -> Agreement:
    """Ours has at most their energy. The other way round is no error of theirs."""

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        own, other = (float(morlfast.riesz_energy(weights)) for weights in (ours, theirs))
        return None if own <= other + margin else f"an energy of {own:.6g} against {other:.6g}"

    return Agreement(f"log energy at most theirs + {margin:g}", problem)


def pymoo_energy(m: int, count: int) -> Callable[..., Any]:
    from pymoo.util.ref_dirs import get_reference_directions

    return lambda seed: get_reference_directions("energy", m, count, seed=seed)


def riesz_weights(shape: Shape, _: str) -> Case:
    count, m = shape

    def ours(seed: Tensor) -> Tensor:
        morlfast_weights._riesz_weights.cache_clear()  # or a second call would not work
        return morlfast.riesz_weights(m, count, seed=int(seed))

    return Case(
        setup=lambda generator: (torch.randint(1 << 30, (), generator=generator),),
        ours=ours,
        dtype="float64",
        peers=(
            Peer(
                "pymoo",
                energy_not_worse(1e-3),
                partial(pymoo_energy, m, count),
                "pymoo",
                prepare=lambda seed: (int(seed),),
                host=True,
            ),
        ),
        series=str(shape),
        note='another seed each time; pymoo: get_reference_directions("energy")',
    )


# --- neighbours ---


def same_distances() -> Agreement:
    """The k rows listed are equally far; which of equal ones is listed may differ."""
    equal = close(rtol=1e-6, atol=1e-9)

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        weights = inputs[0].cpu()
        own, other = (torch.as_tensor(rows, device="cpu") for rows in (ours, theirs))
        if own.shape != other.shape:
            return f"shape {tuple(own.shape)} against {tuple(other.shape)}"
        return equal.problem(
            *((weights[rows] - weights[:, None]).square().sum(-1).sqrt() for rows in (own, other)), inputs
        )

    return Agreement(f"{equal.tolerance} of the distances", problem)


def scipy_tree(k: int) -> Callable[..., Any]:
    from scipy.spatial import KDTree

    return lambda weights: KDTree(weights).query(weights, k)[1]


def scipy_distances(k: int) -> Callable[..., Any]:
    import numpy
    from scipy.spatial.distance import cdist

    return lambda weights: numpy.argsort(cdist(weights, weights), axis=1)[:, :k]


def torch_distances(k: int) -> Callable[..., Any]:
    return lambda weights: torch.cdist(weights, weights).topk(k, largest=False).indices


def weight_neighbors(shape: Shape, _: str) -> Case:
    n, k, m = shape
    same = same_distances()
    return Case(
        setup=lambda generator: (morlfast.sample_weights(m, n, generator=generator),),
        ours=lambda weights: morlfast.weight_neighbors(weights, k, include_self=True),
        dtype="float64",
        peers=(
            Peer("SciPy sorted distances", same, partial(scipy_distances, k), "scipy", prepare=as_arrays, host=True),
            Peer("SciPy k-d tree", same, partial(scipy_tree, k), "scipy", prepare=as_arrays, host=True),
            Peer("torch cdist and topk", same, partial(torch_distances, k)),
        ),
        moved_bytes=8 * n * (m + k),
        work=float(n * n),
        series=f"m={m}",
        note="include_self, as MOEA/D has it; sorted distances: argsort(cdist(w, w))[:, :k], as pymoo's MOEA/D does",
    )


# --- linear support ---


def coverage_set(n: int, m: int, generator: torch.Generator) -> Tensor:
    """(n, m) on the unit sphere: each is best for some weight. Four decimals: MORL-Baselines rounds to them."""
    points = torch.randn((n, m), generator=generator, dtype=torch.float64).abs()
    return (points / points.square().sum(-1, keepdim=True).sqrt()).round(decimals=4)


def visited(points: Tensor) -> Tensor:
    """The extreme weights and those at which each point was found."""
    return torch.cat([torch.eye(points.shape[1], dtype=torch.float64), points / points.sum(-1, keepdim=True)])


def same_corners() -> Agreement:
    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        own, other = (torch.as_tensor(corners, dtype=torch.float64) for corners in (ours, theirs))
        if own.shape != other.shape:
            return f"{len(own)} corners against {len(other)}"
        apart = (own[:, None] - other).abs().amax(-1)
        farthest = max(apart.amin(0).max().item(), apart.amin(1).max().item())
        return None if farthest < 1e-6 else f"a corner is {farthest:.3g} from the nearest of the other set"

    return Agreement("the same corners within 1e-6", problem)


def morl_baselines_support(points: Any, weights: Any) -> Any:
    from morl_baselines.multi_policy.linear_support.linear_support import LinearSupport

    support = LinearSupport(points.shape[1], verbose=False)
    support.ccs, support.weight_support = list(points), list(weights[points.shape[1] :])
    support.visited_weights = list(weights)
    return support


def morl_baselines_corners() -> Callable[..., Any]:
    import numpy
    from morl_baselines.multi_policy.linear_support import linear_support  # noqa: F401

    return lambda support: numpy.array(support.compute_corner_weights())


def prepare_support(points: Tensor, *_: Tensor) -> Inputs:
    return (morl_baselines_support(points.numpy(), visited(points).numpy()),)


def corner_weights(shape: Shape, _: str) -> Case:
    n, m = shape
    return Case(
        setup=lambda generator: (coverage_set(n, m, generator),),
        ours=partial(morlfast.corner_weights, maximize=True),
        dtype="float64",
        peers=(
            Peer(
                "MORL-Baselines",
                same_corners(),
                morl_baselines_corners,
                "morl-baselines",
                prepare=prepare_support,
                host=True,
            ),
        ),
        moved_bytes=8 * n * m,
        series=str(shape),
        note="MORL-Baselines: compute_corner_weights, by cdd",
    )


def morl_baselines_priorities() -> Callable[..., Any]:
    from morl_baselines.multi_policy.linear_support import linear_support  # noqa: F401

    return lambda support, corners: [support.ols_priority(corner) for corner in corners]


def corner_priorities(shape: Shape, _: str) -> Case:
    count, n, m = shape

    def setup(generator: torch.Generator) -> Inputs:
        points = coverage_set(n, m, generator)
        corners = morlfast.corner_weights(points, maximize=True)
        corners = corners[torch.randperm(len(corners), generator=generator)[:count]]
        return corners, points, visited(points)

    return Case(
        setup=setup,
        ours=partial(morlfast.corner_priorities, maximize=True),
        dtype="float64",
        peers=(
            Peer(
                "MORL-Baselines",
                close(rtol=0, atol=1e-5),  # ECOS stops at about 1e-8
                morl_baselines_priorities,
                "morl-baselines",
                prepare=lambda corners, points, _: (*prepare_support(points), corners.numpy()),
                host=True,
            ),
        ),
        moved_bytes=8 * (count + n) * m,
        series=str(shape),
        note="MORL-Baselines: ols_priority of one corner after another, a linear program of CVXPY each",
    )


def same_next_weight() -> Agreement:
    """Priorities that agree to rounding may order corners differently: theirs must promise as much as ours."""

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        points = inputs[0]
        chosen = torch.stack([torch.as_tensor(weight, dtype=torch.float64) for weight in (ours, theirs)])
        own, other = morlfast.corner_priorities(chosen, points, visited(points), maximize=True).tolist()
        return None if abs(own - other) < 1e-5 else f"a priority of {own:.6g} against {other:.6g}"

    return Agreement("its priority within 1e-5 of the other's", problem)


def linear_support(shape: Shape, _: str) -> Case:
    n, m = shape

    def prepare(points: Tensor) -> Inputs:
        return (points, visited(points))

    def ours(points: Tensor) -> Tensor | None:
        support = morlfast.LinearSupport(m)
        support.ccs, support.visited_weights = list(points), list(visited(points))
        support.weight_support = support.visited_weights[m:]
        return support.next_weight()

    def load() -> Callable[..., Any]:
        morl_baselines_corners()
        return lambda points, weights: morl_baselines_support(points.numpy(), weights.numpy()).next_weight()

    return Case(
        setup=lambda generator: (coverage_set(n, m, generator),),
        ours=ours,
        dtype="float64",
        peers=(Peer("MORL-Baselines", same_next_weight(), load, "morl-baselines", prepare=prepare, host=True),),
        moved_bytes=8 * n * m,
        # A linear program for each of about so many corners.
        work=float(n * {2: 1, 3: 2, 4: 5, 5: 15, 6: 45}[m]),
        note="next_weight with n points: all corners and their priorities",
    )


OPERATIONS = (
    Operation("riesz_weights", ("n", "m"), ("seeds",), ((20, 2), (10, 3), (50, 3), (25, 4)), riesz_weights, ("cpu",)),
    Operation(
        "weight_neighbors",
        ("n", "k", "m"),
        ("uniform",),
        ((1000, 10, 3), (2000, 20, 6), (10000, 20, 3)),
        weight_neighbors,
        cuda_shapes=((10000, 20, 3),),
    ),
    Operation("corner_weights", ("n", "m"), ("spherical",), ((50, 2), (50, 3), (50, 6)), corner_weights, ("cpu",)),
    Operation(
        "corner_priorities",
        ("K", "n", "m"),
        ("spherical",),
        ((20, 50, 3), (100, 50, 3), (20, 50, 6), (100, 50, 6)),
        corner_priorities,
        ("cpu",),
    ),
    Operation("linear_support", ("n", "m"), ("spherical",), ((10, 3), (50, 3), (50, 6)), linear_support, ("cpu",)),
)
