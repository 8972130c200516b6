"""Hypervolume of many small fronts and of one large front, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morlfast
import torch
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Peer, Shape, close

SAME_VOLUME = close(rtol=1e-11)  # other libraries sum in another order
REF_POINT = {"spherical": 1.1, "linear": 1.1, "cloud": 1.0}


def fronts(shape: Shape, kind: str, generator: torch.Generator) -> Tensor:
    """(B, n, m) of the unit sphere's positive part, of the unit simplex, or of a cube that is mostly dominated."""
    if kind == "spherical":
        points = torch.randn(shape, generator=generator, dtype=torch.float64).abs()
        return points / points.square().sum(-1, keepdim=True).sqrt()
    points = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "linear":
        points = -torch.log1p(-points)
        return points / points.sum(-1, keepdim=True)
    return points


def as_arrays(points: Tensor, _: Tensor) -> Inputs:
    """(B, n, m) → list of B arrays (n, m), as the loops take them."""
    return (list(points.cpu().numpy()),)


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


def _common(shape: Shape, kind: str) -> dict[str, Any]:
    batch, n, m = shape
    ref_point = torch.full((m,), REF_POINT[kind], dtype=torch.float64)
    return {
        "setup": lambda generator: (fronts(shape, kind, generator), ref_point),
        "dtype": "float64",
        "operations": batch * n * max(1, (n - 1).bit_length()),
        "operations_are": "B n log2(n): the comparisons of one sort",
        "work": batch * n * n ** (m > 3),
        "series": f"m={m}",
    }


def hypervolume(shape: Shape, kind: str) -> Case:
    batch, n, m = shape
    ref = [REF_POINT[kind]] * m

    def ours(points: Tensor, ref_point: Tensor) -> Tensor:
        return morlfast.hypervolume(points, ref_point, maximize=False)

    peers = tuple(
        Peer(
            f"{name} loop" if batch > 1 else name,
            SAME_VOLUME,
            lambda loop=loop: loop(ref),  # type: ignore[misc]
            distribution=name,
            prepare=as_arrays,
            host=True,
        )
        for name, loop in (("moocore", moocore_loop), ("pygmo", pygmo_loop), ("pymoo", pymoo_loop))
    )
    return Case(ours=ours, peers=peers, moved_bytes=8 * batch * (n * m + 1), **_common(shape, kind))


def hypervolume_gradient(shape: Shape, kind: str) -> Case:
    batch, n, m = shape

    def ours(points: Tensor, ref_point: Tensor) -> Tensor:
        leaf = points.detach().requires_grad_()
        value = morlfast.hypervolume(leaf, ref_point, maximize=False)
        return torch.autograd.grad(value.sum(), leaf)[0]

    note = "value and gradient of the points; none of the peers computes it"
    return Case(ours=ours, moved_bytes=8 * batch * (2 * n * m + 1), note=note, **_common(shape, kind))


KINDS = ("spherical", "linear", "cloud")
SHAPES = tuple((batch, n, m) for m in (2, 3) for batch, n in ((1, 100), (1, 1000), (1, 10000), (1000, 64)))
OPERATIONS = (
    Operation("hypervolume", ("B", "n", "m"), KINDS, SHAPES, hypervolume),
    Operation("hypervolume_gradient", ("B", "n", "m"), KINDS, SHAPES, hypervolume_gradient),
)
