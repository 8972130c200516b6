"""Crowding: how much room each point of a front has, and selection by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from morlfast._arguments import (
    NanPolicy,
    as_float32_or_64,
    as_integer,
    as_integers,
    as_points,
    counting_rows,
    same_device,
)
from morlfast.pareto import non_dominated_sort

CrowdingVariant = Literal["nsga2", "pymoo", "pcn", "evomo", "c-morl"]


def crowding_distance(
    points: Any,
    *,
    ranks: Any = None,
    variant: CrowdingVariant = "nsga2",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Side lengths of the box that each point has between its neighbors in its front.

    .. math:: d_i = \sum_k \frac{f_k(\text{next in } k) - f_k(\text{previous in } k)}{\max f_k - \min f_k}

    The neighbors of a point in objective k are those beside it among the points of its front sorted by that objective,
    ties by row. The first and the last point have none. What that and a constant objective are worth is not the same
    everywhere:

    ========== ==================== ================== ====================== =========
    variant    first and last       constant objective range                  over k
    ========== ==================== ================== ====================== =========
    "nsga2"    inf                  0                  max - min              sum
    "evomo"    as "nsga2"
    "pymoo"    inf                  0                  max - min              mean
    "c-morl"   inf, also where the  0 between          max - min              sum
               objective is         first and last
               constant
    "pcn"      a gap of 1           0 between          max - min + 1e-8       sum
                                    first and last
    ========== ==================== ================== ====================== =========

    Args:
        points: shape (..., n, m), float32 or float64 with any strides. Array-likes are taken too; integers and Python's
            numbers become float64. Negating an objective changes nothing but which of equal extreme points has no
            neighbor.
        ranks: integers (..., n), as :func:`morlfast.non_dominated_sort` returns: points of one rank are a front; rows
            of a negative rank are in none. By default all points are one front.
        variant: whose distances, see above.
        lengths: integers of the batch shape; only the first ``lengths`` points count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look) takes such rows out of their fronts.

    Returns:
        Tensor (..., n) with the dtype and device of ``points``, never NaN. -inf for rows that do not count: padding,
        negative ranks and NaN, so that the largest distances are those of points. Not differentiable.

    In a front of one or two points all distances are inf (with "pcn", m). Of duplicates the first and the last in the
    order of rows have room on one side, those between have none. Where the range is infinite, so is the share of every
    infinite gap in it 1 and of every finite one 0. Differences are taken in float64.

    O(m n log n) for all fronts and batches together: one sort an objective, no loop over fronts.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer, and ranks that are not integers.
        ValueError: for shapes that do not fit, another variant, lengths and mask together, mixed devices, and NaN under
            ``"raise"``.

    Sources: Deb, Pratap, Agarwal and Meyarivan (2002), NSGA-II, section III-B; pymoo 0.6.2; Reymond, Bargiacchi and
    Nowé (2022), PCN, as in MORL-Baselines 1.3.0; EvoMO 0.3.1; Liu et al. (2025), C-MORL.

    >>> front = torch.tensor([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    >>> crowding_distance(front)
    tensor([   inf, 1.5000, 1.5000,    inf])
    >>> crowding_distance(front, variant="pcn")
    tensor([2.0000, 1.5000, 1.5000, 2.0000])
    >>> crowding_distance(front, ranks=[0, 1, 1, 1])
    tensor([inf, inf, 2., inf])
    """
    points = as_points(points, least_objectives=1).detach()
    if variant not in get_args(CrowdingVariant):
        raise ValueError(f"variant: expected one of {', '.join(get_args(CrowdingVariant))}, got {variant!r}")
    counts, raises = counting_rows(points, lengths, mask, nan)
    if ranks is None:
        if raises and lengths is None and mask is None:
            return _crowding(points, variant).to(points.dtype)
        fronts = torch.zeros(points.shape[:-1], dtype=torch.int64, device=points.device)
    else:
        fronts = as_integers(ranks, "ranks", "points", points).to(torch.int64)
        if fronts.shape != points.shape[:-1]:
            raise ValueError(f"ranks: expected shape {tuple(points.shape[:-1])}, got {tuple(fronts.shape)}")
        counts = counts & (fronts >= 0)
    return _crowding_in_fronts(points, fronts, counts, variant).to(points.dtype)


def select_by_crowding(
    points: Any,
    k: int,
    *,
    maximize: bool | Sequence[bool],
    selected: Any = None,
    variant: CrowdingVariant = "c-morl",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    """Rows of k different points: those of lower rank first, among these those with more room.

    On a front, C-MORL's choice of the policies to go on from: by crowding distance, without what was chosen before. On
    a whole population, the survival of NSGA-II, without duplicates.

    Args:
        points: shape (..., n, m), float32 or float64 with any strides. Array-likes are taken too; integers and Python's
            numbers become float64.
        k: rows to select, 0..n.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        selected: (..., s, m), objective vectors that are not selected again: the history. Its batch shape broadcasts.
        variant: of :func:`crowding_distance`.
        lengths, mask: which points count, as in :func:`crowding_distance`.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA) never
            selects such rows. A NaN in ``selected`` equals nothing.

    Returns:
        int64 tensor (..., k) of rows in the order of selection; ties go to the lowest row. Every objective vector is
        selected once at most, by its copy with the most room; distances are those of all points, duplicates and history
        included. Padded with -1 where fewer than k are left.

    O(m n log n), the sorting into fronts, and finding equal vectors.

    Raises:
        ValueError: for k outside 0..n and a ``selected`` that does not fit.
        TypeError, ValueError: as :func:`crowding_distance`.

    Source: Liu et al. (2025), C-MORL; Deb, Pratap, Agarwal and Meyarivan (2002), NSGA-II.

    >>> front = torch.tensor([[0.0, 4.0], [1.0, 3.0], [2.5, 2.0], [4.0, 0.0]])
    >>> select_by_crowding(front, 2, maximize=True)
    tensor([0, 3])
    >>> select_by_crowding(front, 2, maximize=True, selected=front[[0, 3]])
    tensor([2, 1])
    """
    points = as_points(points, least_objectives=1).detach()
    k = as_integer(k, "k")
    n = points.shape[-2]
    if not 0 <= k <= n:
        raise ValueError(f"k: expected 0 to {n}, the number of points, got {k}")
    counts, _ = counting_rows(points, lengths, mask, nan)
    ranks = non_dominated_sort(points, maximize=maximize, mask=counts, nan="worst")
    distances = crowding_distance(points, ranks=ranks, variant=variant, mask=counts, nan="worst")

    order = torch.sort(distances, dim=-1, descending=True, stable=True).indices
    order = order.gather(-1, torch.sort(ranks.gather(-1, order), dim=-1, stable=True).indices)
    candidates = points.gather(-2, order[..., None].expand_as(points))
    candidates = candidates.masked_fill(~counts.gather(-1, order)[..., None], math.nan)  # equal to nothing
    if selected is not None:
        candidates = torch.cat([_as_history(selected, points), candidates], dim=-2)
    new = _first_of_equal_rows(candidates)[..., candidates.shape[-2] - n :] & counts.gather(-1, order)
    first = torch.sort(new, dim=-1, descending=True, stable=True)
    return torch.where(first.values, order.gather(-1, first.indices), -1)[..., :k]


def rows_left_by_crowding(points: Tensor, k: int) -> Tensor:
    """k rows of one front (n, m), ascending: the least distance leaves, and distances are taken anew, n - k times."""
    n, m = points.shape
    values, order = torch.sort(points.double().mT, dim=-1, stable=True)
    left = torch.zeros(n, dtype=torch.float64, device=points.device)  # inf for rows that have left
    for count in range(n, k, -1):
        room = torch.zeros((m, n), dtype=torch.float64, device=points.device)
        distances = room.scatter_(-1, order, _room_in_one_front(values, "nsga2")).sum(0)
        # What has left is worse than an infinite distance.
        row = (distances.clamp_(max=torch.finfo(torch.float64).max) + left).argmin()
        left[row] = math.inf
        stays = order != row
        values, order = values[stays].view(m, count - 1), order[stays].view(m, count - 1)
    return (left == 0).nonzero().squeeze(-1)


def _crowding(points: Tensor, variant: CrowdingVariant) -> Tensor:
    """float64 distances (..., n) where all points are one front."""
    values, order = torch.sort(points.double().mT, dim=-1, stable=True)
    return _distances(_room_in_one_front(values, variant), order, variant)


def _crowding_in_fronts(points: Tensor, fronts: Tensor, counts: Tensor, variant: CrowdingVariant) -> Tensor:
    """float64 distances (..., n); rows of one number in `fronts` are a front, those that do not count are in none."""
    if points.shape[-2] == 0:
        return points.new_empty(points.shape[:-1], dtype=torch.float64)
    fronts = torch.where(counts, fronts, torch.iinfo(torch.int64).max)
    values = points.double().mT.masked_fill(~counts[..., None, :], 0)  # (..., m, n)
    order = torch.sort(values, dim=-1, stable=True).indices
    front_of = fronts[..., None, :].expand_as(order).gather(-1, order)
    order = order.gather(-1, torch.sort(front_of, dim=-1, stable=True).indices)
    values = values.gather(-1, order)
    fronts = torch.sort(fronts, dim=-1).values  # the same for every objective: so is where a front begins and ends
    first = torch.searchsorted(fronts, fronts)[..., None, :]
    last = torch.searchsorted(fronts, fronts, right=True)[..., None, :] - 1
    position = torch.arange(values.shape[-1], device=values.device)
    room = _room(
        values,
        lower=values.gather(-1, first.expand_as(values)),
        upper=values.gather(-1, last.expand_as(values)),
        at_end=(position == first) | (position == last),
        are_few=last - first <= 1,
        variant=variant,
    )
    return torch.where(counts, _distances(room, order, variant), -math.inf)


def _room_in_one_front(values: Tensor, variant: CrowdingVariant) -> Tensor:
    n = values.shape[-1]
    at_end = torch.zeros(n, dtype=torch.bool, device=values.device)
    at_end[:1] = at_end[-1:] = True
    return _room(values, values[..., :1], values[..., -1:], at_end, n <= 2, variant)


def _room(
    values: Tensor, lower: Tensor, upper: Tensor, at_end: Tensor, are_few: Tensor | bool, variant: CrowdingVariant
) -> Tensor:
    """Share that each of the sorted values (..., m, n) has of the range of its front, lower..upper."""
    gap = values.roll(-1, -1) - values.roll(1, -1)
    span = upper - lower + 1e-8 if variant == "pcn" else upper - lower
    share = torch.where(gap.isinf(), 1.0, (gap / span).nan_to_num(0.0))  # NaN: inf - inf, or a constant objective
    if variant == "pcn":
        return torch.where(at_end, 1.0, share)
    if variant == "c-morl":
        return torch.where(at_end, math.inf, share)
    return torch.where(at_end, torch.where((lower != upper) | are_few, math.inf, 0.0), share)


def _distances(room: Tensor, order: Tensor, variant: CrowdingVariant) -> Tensor:
    distances = torch.empty_like(room).scatter_(-1, order, room).sum(-2)
    return distances / room.shape[-2] if variant == "pymoo" else distances


def _first_of_equal_rows(points: Tensor) -> Tensor:
    """bool (..., n): whether no row before equals it; NaN equals nothing."""
    values = points + 0.0  # radix sorts tell -0.0 from 0.0
    order = torch.arange(points.shape[-2], device=points.device).expand(points.shape[:-1])
    for column in reversed(values.unbind(-1)):
        order = order.gather(-1, torch.sort(column.gather(-1, order), dim=-1, stable=True).indices)
    values = values.gather(-2, order[..., None].expand_as(values))
    first = torch.ones(order.shape, dtype=torch.bool, device=points.device)
    first[..., 1:] = (values[..., 1:, :] != values[..., :-1, :]).any(-1)
    return torch.empty_like(first).scatter_(-1, order, first)


def _as_history(selected: Any, points: Tensor) -> Tensor:
    """(..., s, m) in the dtype and the batch shape of the points."""
    history = as_float32_or_64(selected, "selected", device=points.device)
    same_device("points", points, "selected", history)
    *batch, _, m = points.shape
    try:
        return history.detach().to(points.dtype).expand(*batch, history.shape[-2] if history.dim() >= 2 else -1, m)
    except RuntimeError as error:
        raise ValueError(
            f"selected: expected shape (..., s, {m}) that broadcasts to the batch shape {tuple(batch)}, got "
            f"{tuple(history.shape)}"
        ) from error
