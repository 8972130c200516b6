"""The hypervolume family on a CUDA device; nothing here waits for it, but box_decomposition for its number of boxes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from morlfast import _C

# One O(n^2) launch orders a short front; from here on torch's O(n log n) sorts do. Not yet tuned on a GPU.
_COUNTED_POINTS = 2048
_MAX_MEMORY: int = _C.default_max_memory
# For the lists of box_decomposition, whose max_memory is about the boxes. Enough for one list of any front.
_LIST_MEMORY = 2**28
_NO_ROWS = -1


def hypervolume(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    max_memory: int = _MAX_MEMORY,
    part: int = 0,
    parts: int = 1,
) -> Tensor:
    return _value_and_gradient(points, ref_point, maximize, nan_raises, lengths, max_memory, part, parts, False)[0]


def hypervolume_gradient(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    max_memory: int = _MAX_MEMORY,
    part: int = 0,
    parts: int = 1,
) -> tuple[Tensor, Tensor]:
    """Beyond three objectives m times the work of the value: a sweep along each."""
    value, gradient = _value_and_gradient(
        points, ref_point, maximize, nan_raises, lengths, max_memory, part, parts, True
    )
    assert gradient is not None
    return value, gradient


def hypervolume_contributions(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    ignore_dominated: bool = False,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    """(..., n): what each row alone dominates."""
    _refuse_to_look_for_nan(nan_raises)
    with torch.cuda.device_of(points):
        fronts = _two_axes(_minimized(points, ref_point, maximize, lengths))
        if ignore_dominated:
            fronts = fronts._replace(counts=fronts.counts & ~_C.dominated_rows_cuda(fronts.points))
        volume = _row_volumes(fronts, *_all_orders(fronts), max_memory)
        if lengths is not None:  # 0 behind it even if the reference point is NaN
            volume = torch.where(
                torch.arange(points.shape[-2], device=points.device) < lengths.reshape(-1, 1), volume, 0
            )
        return volume.reshape(points.shape[:-1]).to(points.dtype)


def hypervolume_improvement(
    candidates: Tensor,
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    """(..., Q) for sets (..., Q, q, m): the volume that each set dominates and the front does not."""
    _refuse_to_look_for_nan(nan_raises)
    *batch, sets, size, _ = candidates.shape
    with torch.cuda.device_of(points):
        fronts = _two_axes(_minimized(points, ref_point, maximize, lengths))
        z = candidates.to(torch.float64).reshape(len(fronts.points), sets, size, candidates.shape[-1])
        if maximize:
            z = -z
        if candidates.shape[-1] == 1:
            z = torch.nn.functional.pad(z, (0, 1))
        volume = _single_improvements(fronts, z[:, :, 0], max_memory) if size == 1 else _joint(fronts, z, max_memory)
        return volume.reshape(*batch, sets).to(candidates.dtype)


def box_decomposition(
    points: Tensor,
    ref_point: Tensor,
    dominated: bool,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    max_memory: int = _MAX_MEMORY,
) -> tuple[Tensor, Tensor, Tensor]:
    """(..., K, m) twice and (...): the boxes of each front and how many it has."""
    _refuse_to_look_for_nan(nan_raises)
    *batch, _, m = points.shape
    with torch.cuda.device_of(points):
        fronts = _minimized(points, ref_point, maximize, lengths)
        if m == 1:
            lower, upper, counts = _interval(fronts, dominated)
        else:
            order, rank = _all_orders(fronts)
            memory = max(max_memory, _LIST_MEMORY)
            arguments = (fronts.points, fronts.ref_point, order, rank, fronts.counts, dominated, memory)
            counts = _C.count_boxes_cuda(*arguments)
            most = int(counts.max()) if len(counts) > 0 else 0
            needed = 2 * len(counts) * most * m * fronts.points.element_size()
            if needed > max_memory:
                raise MemoryError(
                    f"box_decomposition: {most} boxes a front take {needed} bytes, more than max_memory = "
                    f"{max_memory}; raise max_memory, or use hypervolume or hypervolume_improvement, which hold no "
                    "list of boxes"
                )
            lower, upper = _C.fill_boxes_cuda(*arguments, most)
        if maximize:
            lower, upper = 0 - upper, 0 - lower
        shape = (*batch, lower.shape[1], m)
        return lower.reshape(shape).to(points.dtype), upper.reshape(shape).to(points.dtype), counts.reshape(batch)


def hypervolume_subset(
    points: Tensor,
    k: int,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    """(..., k): in each of k rounds, the improvements of all rows over those picked, and the first largest."""
    _refuse_to_look_for_nan(nan_raises)
    *batch, n, _ = points.shape
    with torch.cuda.device_of(points):
        fronts = _two_axes(_minimized(points, ref_point, maximize, lengths))
        order, rank = _all_orders(fronts)
        rows = torch.arange(n, device=points.device)
        left = torch.ones_like(fronts.counts) if lengths is None else rows < lengths.reshape(-1, 1)
        counts = fronts.counts
        picks = torch.full((len(counts), k), _NO_ROWS, dtype=torch.int64, device=points.device)
        picked = torch.zeros_like(counts)
        for place in range(k):
            gains = _row_volumes(fronts._replace(counts=counts & picked), order, rank, max_memory)
            first = torch.where(left, gains.nan_to_num(0, math.inf), -1).argmax(-1, keepdim=True)
            picks[:, place] = torch.where(left.any(-1), first.squeeze(-1), _NO_ROWS)
            picked |= left & (rows == first)
            left = left & ~picked
        return picks.reshape(*batch, k)


# --- what they share ---


class _Fronts(NamedTuple):
    """Minimized in float64, contiguous; a point that does not count is its reference point."""

    points: Tensor  # (fronts, n, m)
    ref_point: Tensor  # (fronts, m)
    counts: Tensor  # bool (fronts, n)


def _refuse_to_look_for_nan(nan_raises: bool) -> None:
    if nan_raises:
        raise ValueError("nan_raises: a CUDA operator must not wait for the device to look for NaN; pass False")


def _minimized(points: Tensor, ref_point: Tensor, maximize: bool, lengths: Tensor | None) -> _Fronts:
    *batch, n, m = points.shape
    fronts = math.prod(batch)
    z = points.to(torch.float64).reshape(fronts, n, m)
    ref = ref_point.to(torch.float64).expand(*batch, m).reshape(fronts, m)
    if maximize:
        z, ref = -z, -ref
    counts = (z < ref[:, None]).all(-1)  # NaN is never better
    if lengths is not None:
        counts &= torch.arange(n, device=z.device) < lengths.reshape(fronts, 1)
    return _Fronts(torch.where(counts[..., None], z, ref[:, None]).contiguous(), ref.contiguous(), counts)


def _two_axes(fronts: _Fronts) -> _Fronts:
    """The same volumes in two objectives if there is one: all points at 0 along the second, its reference at 1."""
    if fronts.points.shape[-1] > 1:
        return fronts
    second = torch.where(fronts.counts, 0.0, 1.0).to(torch.float64)[..., None]
    ref_point = torch.nn.functional.pad(fronts.ref_point, (0, 1), value=1.0)
    return _Fronts(torch.cat([fronts.points, second], -1), ref_point, fronts.counts)


def _orders(points: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Rows of each front by (objective k, the others, row) for k < axes, and the inverse; int32 (axes, fronts, n)."""
    n, m = points.shape[1:]
    if axes == 0 or n <= _COUNTED_POINTS:
        order, rank = _C.lexicographic_orders_cuda(points, axes)
        return order, rank
    columns = (points + 0.0).unbind(-1)  # -0.0 ties with 0.0

    def then_by(order: Tensor, k: int) -> Tensor:  # stable sorts, the least significant key first
        return order.gather(-1, columns[k].gather(-1, order).argsort(stable=True, dim=-1))

    by_all = columns[m - 1].argsort(stable=True, dim=-1)
    for k in reversed(range(m - 1)):
        by_all = then_by(by_all, k)
    orders = torch.stack([by_all, *(then_by(by_all, k) for k in range(1, axes))])
    if axes == 1:
        return orders.int(), orders.int()  # the kernel for two objectives reads no ranks
    # A sort inverts a permutation: under deterministic algorithms some torch's scatter waits for the device.
    return orders.int(), orders.argsort(-1).int()


def _all_orders(fronts: _Fronts) -> tuple[Tensor, Tensor]:
    return _orders(fronts.points, fronts.points.shape[-1])


def _value_and_gradient(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool,
    nan_raises: bool,
    lengths: Tensor | None,
    max_memory: int,
    part: int,
    parts: int,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    _refuse_to_look_for_nan(nan_raises)
    if not 0 <= part < parts:
        raise ValueError(f"part: expected 0 to {parts - 1}, got {part}")
    batch, m = points.shape[:-2], points.shape[-1]
    with torch.cuda.device_of(points):
        fronts, ref, counts = _minimized(points, ref_point, maximize, lengths)
        slopes: Tensor | None
        if m > 3:
            order, rank = _orders(fronts, m)
            value, slopes = _C.dominated_volume_cuda(
                fronts, ref, order, rank, counts, gradient, max_memory, part, parts
            )
        elif part == 0:
            axes = (0, 1, 3)[m - 1]
            value, slopes = _C.hypervolume_cuda(fronts, ref, *_orders(fronts, axes), gradient)
        else:  # few objectives are not worth cutting: all of it is in the first part
            value, slopes = ref.new_zeros(len(ref)), torch.zeros_like(fronts) if gradient else None
        value = value.reshape(batch).to(points.dtype)
        if slopes is None:
            return value, None
        return value, (-slopes if maximize else slopes).reshape(points.shape).to(points.dtype)


def _row_volumes(fronts: _Fronts, order: Tensor, rank: Tensor, max_memory: int) -> Tensor:
    """(fronts, n): what each row dominates and no other row that counts does."""
    points, ref, counts = fronts
    volume: Tensor = _C.exclusive_volume_cuda(points, ref, order, rank, counts, points, rank + 1, 0, max_memory)
    return volume


def _single_improvements(fronts: _Fronts, candidates: Tensor, max_memory: int) -> Tensor:
    """(fronts, Q) for candidates (fronts, Q, m)."""
    points, ref, counts = fronts
    order, rank = _all_orders(fronts)
    along = points.permute(2, 0, 1).gather(-1, order.long())
    low_rank = torch.searchsorted(along, candidates.permute(2, 0, 1).contiguous(), right=True).int()
    volume: Tensor = _C.exclusive_volume_cuda(
        points, ref, order, rank, counts, candidates.contiguous(), low_rank, _NO_ROWS, max_memory
    )
    return volume


def _joint(fronts: _Fronts, sets: Tensor, max_memory: int) -> Tensor:
    """(fronts, Q) for sets (fronts, Q, q, m): each member's own volume over the front and the members before it."""
    points, ref, counts = fronts
    count, n, m = points.shape
    size = sets.shape[2]
    volumes = [sets.new_zeros(count, 0)]
    a_set = 64 * max(count * (n + size) * m, 1)  # bytes: a front of its own, its orders, and what sorting takes
    at_once = max(max_memory // a_set, 1)
    for chunk in sets.split(at_once, 1):
        many = chunk.shape[1]
        alone = count * many
        ref_of_set = ref[:, None].expand(count, many, m).reshape(alone, m)
        members = chunk.reshape(alone, size, m)
        member_counts = (members < ref_of_set[:, None]).all(-1)
        members = torch.where(member_counts[..., None], members, ref_of_set[:, None])
        front_of_set = points[:, None].expand(count, many, n, m).reshape(alone, n, m)
        together = torch.cat([front_of_set, members], 1)
        all_count = torch.cat([counts[:, None].expand(count, many, n).reshape(alone, n), member_counts], 1)
        order, rank = _orders(together, m)
        volume = ref.new_zeros(alone)
        for row in range(n, n + size):
            before = torch.arange(n + size, device=points.device) < row
            volume = volume + _C.exclusive_volume_cuda(
                together,
                ref_of_set,
                order,
                rank,
                all_count & before,
                together[:, row : row + 1].contiguous(),
                (rank[..., row : row + 1] + 1).contiguous(),
                row,
                max_memory,
            ).squeeze(-1)
        volumes.append(volume.reshape(count, many))
    return torch.cat(volumes, 1)


def _interval(fronts: _Fronts, dominated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes in one objective: at most one."""
    ref = fronts.ref_point[:, None]
    lowest = torch.cat([fronts.points, ref], 1).amin(1, keepdim=True)
    lower, upper = (lowest, ref) if dominated else (torch.where(lowest.isnan(), lowest, -math.inf), lowest)
    one = ~(lower >= upper)  # also where the reference point is NaN
    counts = one.reshape(-1).to(torch.int64)
    if len(counts) == 0 or not bool(one.any()):
        return lower[:, :0], upper[:, :0], counts
    return torch.where(one, lower, ref), torch.where(one, upper, ref), counts
