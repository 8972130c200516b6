"""Hypervolume of fronts on a CUDA device; nothing here waits for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from morlfast import _C

# One O(n^2) launch orders a short front; from here on torch's O(n log n) sorts do. Not yet tuned on a GPU.
_COUNTED_POINTS = 2048


def hypervolume(
    points: Tensor, ref_point: Tensor, maximize: bool, lengths: Tensor | None, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Value, and the gradient in ``points`` when asked for. NaN rows contribute nothing."""
    batch, m = points.shape[:-2], points.shape[-1]
    if not 1 <= m <= 3:
        raise ValueError(f"points: expected 1 to 3 objectives, got {m}")
    with torch.cuda.device_of(points):
        fronts, ref = _counting_points(points, ref_point, maximize, lengths)
        order, rank = _orders(fronts)
        value, slopes = _C.hypervolume_cuda(fronts, ref, order, rank, gradient)
        value = value.reshape(batch).to(points.dtype)
        if slopes is None:
            return value, None
        return value, (-slopes if maximize else slopes).reshape(points.shape).to(points.dtype)


def _counting_points(
    points: Tensor, ref_point: Tensor, maximize: bool, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(fronts, n, m) and (fronts, m), minimized in float64; a point that does not count is its reference point."""
    *batch, n, m = points.shape
    fronts = math.prod(batch)
    z = points.to(torch.float64).reshape(fronts, n, m)
    ref = ref_point.to(torch.float64).expand(*batch, m).reshape(fronts, m)
    if maximize:
        z, ref = -z, -ref
    counts = (z < ref[:, None]).all(-1)  # NaN is never better
    if lengths is not None:
        counts &= torch.arange(n, device=z.device) < lengths.reshape(fronts, 1)
    return torch.where(counts[..., None], z, ref[:, None]).contiguous(), ref.contiguous()


def _orders(points: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of each front by (objective k, the others, row) for every k that the kernel sweeps, and the inverse."""
    n, m = points.shape[1:]
    if m == 1 or n <= _COUNTED_POINTS:
        order, rank = _C.lexicographic_orders_cuda(points)
        return order, rank
    columns = (points + 0.0).unbind(-1)  # -0.0 ties with 0.0

    def then_by(order: Tensor, k: int) -> Tensor:  # stable sorts, the least significant key first
        return order.gather(-1, columns[k].gather(-1, order).argsort(stable=True, dim=-1))

    by_0_1 = then_by(columns[1].argsort(stable=True, dim=-1), 0)
    if m == 2:
        order = by_0_1[None].int()
        return order, order  # ranks go unread
    by_2_0_1 = then_by(by_0_1, 2)
    by_0_1_2 = then_by(then_by(by_2_0_1, 1), 0)
    orders = torch.stack([by_0_1_2, then_by(by_0_1_2, 1), by_2_0_1])
    # A sort inverts a permutation: under deterministic algorithms some torch's scatter waits for the device.
    return orders.int(), orders.argsort(-1).int()
