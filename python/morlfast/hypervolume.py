"""Exact hypervolume of fronts: batched, ragged, differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from morlfast import _ops
from morlfast._arguments import (
    NanPolicy,
    as_float32_or_64,
    as_integers,
    as_minimization,
    as_points,
    nan_raises,
    same_device,
)


def hypervolume(
    points: Any,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Volume that each front dominates, bounded by the reference point.

    .. math:: HV(P, r) = \lambda\Big(\bigcup_{p \in P} \{z : p \preceq z \preceq r\}\Big)

    Exact for one to three objectives, in O(n log n) a front on the CPU; on a GPU O(n log n) for one and two objectives
    and O(n^2) work for three. Everything is widened to float64 before anything is subtracted.

    Args:
        points: fronts, shape (..., n, m) with m in 1..3; float32 or float64 with any strides. Array-likes are taken
            too; integers and Python's numbers become float64.
        ref_point: scalar, (m,), or broadcastable to the batch shape + (m,).
        maximize: whether objectives are maximized; a bool, or one for each objective.
        lengths: integers of the batch shape; only the first ``lengths`` points of each front count.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look) lets such rows contribute nothing and a NaN in ``ref_point`` give NaN.

    Returns:
        Tensor of the batch shape (0-d for one front), with the dtype and device of ``points``.

    A point counts when it is strictly better than the reference point in every objective; points on or beyond it,
    dominated points and further copies of a point add nothing. An empty front has hypervolume 0. A counting point that
    is infinitely good, or an infinitely bad reference value, gives ``inf``.

    Differentiable once in ``points`` and ``ref_point``. Dominated points have gradient exactly 0. Where the volume has
    a kink (equal values of objective k), the derivative along k goes to the point that comes first in the order
    (objective k, the other objectives, row), so the lowest row of duplicates carries it all.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit, NaN under ``"raise"``, lengths outside 0..n, and mixed devices.

    Sources: Fonseca, Paquete and López-Ibáñez (2006) for the sweep in three objectives; Emmerich and Deutz (2014) for
    the gradient.

    >>> front = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> hypervolume(front, [4.0, 4.0], maximize=False)
    tensor(6.)
    >>> hypervolume(front.expand(5, 3, 2), 0.0, maximize=True).shape
    torch.Size([5])
    """
    points = as_points(points)
    if not 1 <= points.shape[-1] <= 3:
        raise ValueError(f"points: expected 1 to 3 objectives, got shape {tuple(points.shape)}")
    ref_point = _as_ref_point(ref_point, points)
    if lengths is not None:
        lengths = _as_lengths(lengths, points)
    maximize, points, (ref_point,) = as_minimization(points, maximize, ref_point)
    raises = nan_raises(nan, points, lengths)
    differentiated = torch.is_grad_enabled() and (points.requires_grad or ref_point.requires_grad)
    if differentiated or forward_ad._current_level >= 0:  # forward mode: the Function says that it has none
        value: Tensor = _Hypervolume.apply(points, ref_point, maximize, raises, lengths)  # type: ignore[no-untyped-call]
        return value
    return _ops.hypervolume(points, ref_point, maximize, raises, lengths)


def _as_ref_point(value: Any, points: Tensor) -> Tensor:
    """(m,) or broadcastable to the batch shape + (m,), on the device of the points."""
    objectives = points.shape[-1]
    if isinstance(value, (float, int)):
        return torch.full((objectives,), value, dtype=torch.float64, device=points.device)
    ref_point = as_float32_or_64(value, "ref_point", device=points.device)
    if points.device != ref_point.device:
        same_device("points", points, "ref_point", ref_point)
    shape = ref_point.shape
    if len(shape) == 1 and shape[0] == objectives:
        return ref_point
    target = (*points.shape[:-2], objectives)
    aligned = zip(reversed(shape), reversed(target), strict=False)
    if len(shape) > len(target) or any(own not in (1, wanted) for own, wanted in aligned):
        raise ValueError(
            f"ref_point: expected one value for each of {objectives} objectives, broadcastable to {tuple(target)}, "
            f"got shape {tuple(shape)}"
        )
    return ref_point.expand(*shape[:-1], objectives)


def _as_lengths(lengths: Any, points: Tensor) -> Tensor:
    tensor = as_integers(lengths, "lengths", "points", points)
    batch = points.shape[:-2]
    if tensor.shape != batch:
        raise ValueError(f"lengths: expected the batch shape {tuple(batch)}, got {tuple(tensor.shape)}")
    return tensor.to(torch.int64).contiguous()


class _Hypervolume(torch.autograd.Function):
    # ctx in forward rather than a setup_context: that would bind arguments by inspection, 60 µs a call.

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, ref_point: Tensor, maximize: bool, raises: bool, lengths: Tensor | None
    ) -> Tensor:
        value, gradient = _ops.hypervolume_gradient(points, ref_point, maximize, raises, lengths)
        ctx.save_for_backward(gradient, points, ref_point)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        gradient, points, ref_point = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _OnceDifferentiable.apply(gradient, points, ref_point)  # type: ignore[no-untyped-call]
        grad_points: Tensor = gradient * grad_value[..., None, None]
        grad_ref = None
        if ctx.needs_input_grad[1]:
            # Moving all points and the reference point together changes nothing.
            grad_ref = -grad_points.sum(-2).sum_to_size(ref_point.shape).to(ref_point.dtype)
        return grad_points if ctx.needs_input_grad[0] else None, grad_ref, None, None, None


class _OnceDifferentiable(torch.autograd.Function):
    """The gradient, tied to what it depends on, so that a second derivative fails instead of vanishing."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, points: Tensor, ref_point: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("hypervolume is differentiable once; its second derivative is not implemented")
