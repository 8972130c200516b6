"""Indicators of a set: utilities over weights, distances to a reference set, sparsity; and threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import morlfast
import torch
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Peer, Shape, close
from bench.pareto import points_of
from bench.threads import case_on_threads

SAME = close(rtol=1e-11)  # other libraries sum in another order
SAME_BY_PRODUCTS = close(rtol=1e-6)  # evox's distances come from |a|^2 + |b|^2 - 2 a b
SAME_IN_FLOAT32 = close(rtol=1e-5)  # their products are rounded to it, ours are not


def as_arrays(*tensors: Tensor) -> Inputs:
    return tuple(x.cpu().numpy() for x in tensors)


def as_lists(*tensors: Tensor) -> Inputs:
    """Lists of vectors, as MORL-Baselines takes them."""
    return tuple(list(x.cpu().numpy()) for x in tensors)


# --- utilities ---


def front_and_weights(n: int, weights: int, m: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    points = points_of((n, m), "one-front", generator).sqrt()  # on the unit sphere: many are best for some weight
    return points.to(dtype), points_of((weights, m), "one-front", generator).to(dtype)


def numpy_expected_utility() -> Callable[..., Any]:
    return lambda points, weights: (weights @ points.T).max(1).mean()


def morl_baselines(name: str) -> Callable[..., Any]:
    from morl_baselines.common import performance_indicators

    indicator: Callable[..., Any] = getattr(performance_indicators, name)
    return indicator


def expected_utility(shape: Shape, dtype: str) -> Case:
    n, weights, m = shape
    same = SAME if dtype == "float64" else SAME_IN_FLOAT32
    peers = [Peer("NumPy", same, numpy_expected_utility, "numpy", prepare=as_arrays, host=True)]
    if dtype == "float64":
        load = partial(morl_baselines, "expected_utility")
        peers.append(Peer("MORL-Baselines", same, load, "morl-baselines", prepare=as_lists, host=True))
    return Case(
        setup=partial(front_and_weights, n, weights, m, getattr(torch, dtype)),
        ours=morlfast.expected_utility,
        dtype=dtype,
        peers=tuple(peers),
        moved_bytes=(8 if dtype == "float64" else 4) * (n + weights) * m,
        work=float(weights * n),
        note="NumPy: (weights @ points.T).max(1).mean()",
    )


def numpy_maximum_utility_loss() -> Callable[..., Any]:
    return lambda points, reference, weights: ((weights @ reference.T).max(1) - (weights @ points.T).max(1)).max()


def maximum_utility_loss(shape: Shape, _: str) -> Case:
    n, k, weights, m = shape

    def setup(generator: torch.Generator) -> Inputs:
        points, directions = front_and_weights(n, weights, m, torch.float64, generator)
        reference, _ = front_and_weights(k, 1, m, torch.float64, generator)
        return points, reference, directions

    same = close(rtol=0, atol=1e-12)  # a difference of utilities about 1
    load = partial(morl_baselines, "maximum_utility_loss")
    return Case(
        setup=setup,
        ours=morlfast.maximum_utility_loss,
        dtype="float64",
        peers=(
            Peer("NumPy", same, numpy_maximum_utility_loss, "numpy", prepare=as_arrays, host=True),
            Peer("MORL-Baselines", same, load, "morl-baselines", prepare=as_lists, host=True),
        ),
        moved_bytes=8 * (n + k + weights) * m,
        work=float(weights * (n + k)),
    )


# --- distances to a reference set ---


def moocore_indicator(name: str, **options: Any) -> Callable[..., Any]:
    import moocore

    indicator = getattr(moocore, name)
    return lambda points, reference: indicator(points, reference, **options)


def pymoo_indicator(name: str) -> Callable[..., Any]:
    import importlib

    modules = {"IGD": "igd", "IGDPlus": "igd_plus", "GD": "gd", "GDPlus": "gd_plus"}
    indicator = getattr(importlib.import_module(f"pymoo.indicators.{modules[name]}"), name)
    return lambda points, reference: indicator(reference)(points)


def evox_igd() -> Callable[..., Any]:
    from evox.metrics import igd as theirs

    return lambda points, reference: theirs(points, reference)


OURS: dict[str, Callable[..., Any]] = {
    "igd": morlfast.igd,
    "igd_plus": partial(morlfast.igd_plus, maximize=False),
    "gd": morlfast.gd,
    "gd_plus": partial(morlfast.gd_plus, maximize=False),
    "average_hausdorff": morlfast.average_hausdorff,
    "epsilon additive": partial(morlfast.epsilon_indicator, maximize=False),
    "epsilon multiplicative": partial(morlfast.epsilon_indicator, maximize=False, kind="multiplicative"),
}
LOADS: dict[str, dict[str, Callable[[], Callable[..., Any]]]] = {
    "moocore": {
        "igd": partial(moocore_indicator, "igd"),
        "igd_plus": partial(moocore_indicator, "igd_plus"),
        "average_hausdorff": partial(moocore_indicator, "avg_hausdorff_dist", p=1),
        "epsilon additive": partial(moocore_indicator, "epsilon_additive"),
        "epsilon multiplicative": partial(moocore_indicator, "epsilon_mult"),
    },
    "pymoo": {
        "igd": partial(pymoo_indicator, "IGD"),
        "igd_plus": partial(pymoo_indicator, "IGDPlus"),
        "gd": partial(pymoo_indicator, "GD"),
        "gd_plus": partial(pymoo_indicator, "GDPlus"),
    },
    "evox": {"igd": evox_igd},
}


def distance_to_reference(shape: Shape, indicator: str) -> Case:
    n, k, m = shape

    def setup(generator: torch.Generator) -> Inputs:
        # Near the reference set, which is one front, on either side of it.
        points, reference = (points_of((count, m), "one-front", generator) for count in (n, k))
        return points * (0.95 + 0.2 * torch.rand(n, 1, generator=generator, dtype=torch.float64)), reference

    return Case(
        setup=setup,
        ours=OURS[indicator],
        dtype="float64",
        peers=tuple(
            Peer(name, SAME_BY_PRODUCTS, loads[indicator], name)
            if name == "evox"
            else Peer(name, SAME, loads[indicator], name, prepare=as_arrays, host=True)
            for name, loads in LOADS.items()
            if indicator in loads
        ),
        moved_bytes=8 * (n + k) * m,
        work=float(n * k),
        series=f"m={m}",
    )


# --- sparsity ---


def sparsity(shape: Shape, kind: str) -> Case:
    n, m = shape
    return Case(
        setup=lambda generator: (points_of(shape, kind, generator),),
        ours=morlfast.sparsity,
        dtype="float64",
        peers=(
            Peer(
                "MORL-Baselines",
                SAME,
                partial(morl_baselines, "sparsity"),
                "morl-baselines",
                prepare=as_lists,
                host=True,
            ),
        ),
        moved_bytes=8 * n * m,
        work=float(n),
        series=f"m={m}",
    )


# --- threads ---


def indicator_threads(shape: Shape, indicator: str) -> Case:
    threads, n, k, m = shape
    call = morlfast.expected_utility if indicator == "expected_utility" else OURS[indicator]
    return case_on_threads(
        threads,
        partial(front_and_weights, n, k, m, torch.float64),
        call,
        moved_bytes=8 * (n + k) * m,
        series=str(shape),
    )


OPERATIONS = (
    Operation(
        "expected_utility",
        ("n", "W", "m"),
        ("float64", "float32"),
        ((50, 1000, 3), (1000, 10000, 3), (1000, 10000, 6)),
        expected_utility,
        cuda_shapes=((1000, 10000, 3),),
    ),
    Operation(
        "maximum_utility_loss",
        ("n", "k", "W", "m"),
        ("spherical",),
        ((50, 100, 100, 3), (1000, 1000, 10000, 3)),
        maximum_utility_loss,
        cuda_shapes=((1000, 1000, 10000, 3),),
    ),
    Operation(
        "distance_to_reference",
        ("n", "k", "m"),
        tuple(OURS),
        ((100, 1000, 3), (1000, 10000, 3)),
        distance_to_reference,
        cuda_shapes=((1000, 10000, 3),),
    ),
    Operation(
        "sparsity",
        ("n", "m"),
        ("one-front",),
        ((100, 3), (1000, 3), (10000, 3)),
        sparsity,
        cuda_shapes=((10000, 3),),
    ),
    Operation(
        "indicator_threads",
        ("threads", "n", "k", "m"),
        ("expected_utility", "igd"),
        ((2, 1000, 10000, 3),),
        indicator_threads,
        devices=("cpu",),
    ),
)
