"""Pareto dominance: non-dominated sorting, non-dominated points, counts of dominators, dominance between two sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import (
    NanPolicy,
    as_bool,
    as_float32_or_64,
    as_integer,
    as_lengths_or_mask,
    as_minimization,
    as_points,
    as_tensor,
    looks_for_nan,
    nan_raises,
    raise_for_nan,
    same_device,
)

# More points than there can be.
_ALL = 1 << 62


class Filtered(NamedTuple):
    """The points of each set that a filter keeps, in their order; a set with fewer than the most is padded."""

    points: Tensor
    """Shape (..., K, m); NaN where padded."""
    rows: Tensor
    """int64 (..., K): their rows in the set; -1 where padded."""
    counts: Tensor
    """int64 of the batch shape: how many are kept."""


def non_dominated_sort(
    points: Any,
    *,
    maximize: bool | Sequence[bool],
    constraints: Any = None,
    stop_after: int | None = None,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Rank of every point of every set: 0 for non-dominated points, then one more than its worst dominator's.

    .. math:: rank(q) = \begin{cases} 0 & \text{if nothing dominates } q \\
              1 + \max_{p \prec q} rank(p) & \text{otherwise} \end{cases}

    p dominates q when it is at least as good in every objective and better in one. With ``constraints`` a smaller
    total violation comes first, so feasible points before infeasible ones, and this dominance decides among points of
    equal violation (constrained domination, Deb et al. 2002).

    Args:
        points: shape (..., n, m), any n >= 0 and m >= 1; float32 or float64 with any strides. Array-likes
            are taken too; integers and Python's numbers become float64.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        constraints: shape (..., n, c), values g that are satisfied when g <= 0, whose total violation is the sum of
            max(g, 0) in float64; or (..., n), total violations (of which the positive part is taken).
        stop_after: number k of points, for a selection of k. Fronts are told apart only until k points are ranked: with
            r the first rank for which k points or more have rank r or less, every later point gets r + 1.
        lengths: integers of the batch shape; only the first ``lengths`` points of each set count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look) puts such rows on the last rank together: they dominate nothing. With ``mask``,
            tracing by ``torch.compile`` takes the default as ``"worst"``: looking would break the graph.

    Returns:
        int32 tensor of shape (..., n) on the device of ``points``; -1 for points outside ``lengths`` or ``mask``.
        Duplicates share a rank; infinities are ordinary values and -0.0 equals 0.0. Not differentiable.

    CPU: O(n log n) for m <= 2; O(n log n log F) for m = 3, with F fronts; for more objectives divide and conquer that
    ends in bitsets of dominators, at most O(m n^2 / 64) word operations and far less for large n and few objectives.
    GPU: blocks in lexicographic order, at most O(m n^2) comparisons and far fewer for m <= 3. On both O(n m) memory a
    set, and a time that hardly depends on the number of fronts.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer, and for arguments of other types.
        ValueError: for shapes that do not fit, ``stop_after`` < 1, and NaN under ``"raise"``.

    Sources: Jensen (2003), doi:10.1109/TEVC.2003.817234, and Fortin, Grenier, Parizeau (2013),
    doi:10.1145/2463372.2463454, for divide and conquer; Zhang et al. (2015), doi:10.1109/TEVC.2014.2308305, for the
    search over fronts; Deb et al. (2002), doi:10.1109/4235.996017, for constrained domination.

    >>> import torch
    >>> points = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]])
    >>> non_dominated_sort(points, maximize=False)
    tensor([0, 0, 1], dtype=torch.int32)
    >>> non_dominated_sort(points, maximize=False, constraints=[0.0, 0.5, 0.0])
    tensor([0, 2, 1], dtype=torch.int32)
    """
    points = as_points(points, least_objectives=1)
    if stop_after is not None:
        stop_after = as_integer(stop_after, "stop_after")
        if stop_after < 1:
            raise ValueError(f"stop_after: expected at least 1, got {stop_after}")
        stop_after = min(stop_after, _ALL)
    violations = None if constraints is None else _total_violations(constraints, points)
    points, maximize, raises, lengths, mask = _as_sets(points, maximize, lengths, mask, nan)
    if violations is not None and not raises and looks_for_nan(nan, points):  # where the operator will not look
        unknown = violations.isnan() if mask is None else violations.isnan() & mask
        if lengths is not None:
            unknown &= torch.arange(points.shape[-2], device=points.device) < lengths[..., None]
        raise_for_nan(unknown, "constraints")
    if lengths is None and violations is None and stop_after is None:  # defaults are not converted: faster
        ranks = _ops.non_dominated_sort(points, maximize, raises)
    else:
        ranks = _ops.non_dominated_sort(points, maximize, raises, lengths, violations, stop_after or 0)
    return ranks if mask is None else ranks.masked_fill_(~mask, -1)


def fronts(ranks: Any) -> list[Any]:
    """The fronts of :func:`non_dominated_sort` as lists of rows.

    Args:
        ranks: integers (..., n); negative ones belong to no front.

    Returns:
        One int64 tensor of ascending rows for each rank from 0 to the largest, on the device of ``ranks``; for batches
        nested lists, one for each set. Waits for the device: the number of fronts depends on the data. The padded form
        without waiting is ``ranks.sort(stable=True)``.

    O(n log n). An empty set has no fronts. Raises TypeError for ranks that are not integers, ValueError for a scalar.

    >>> import torch
    >>> fronts(torch.tensor([0, 1, 0], dtype=torch.int32))
    [tensor([0, 2]), tensor([1])]
    """
    ranks = as_tensor(ranks, "ranks")
    if ranks.is_floating_point() or ranks.is_complex() or ranks.dtype is torch.bool:
        raise TypeError(f"ranks: expected integers, got {ranks.dtype}")
    if ranks.dim() == 0:
        raise ValueError("ranks: expected shape (..., n), got ()")
    if ranks.dim() > 1:
        return [fronts(own) for own in ranks]
    ordered, rows = ranks.sort(stable=True)
    n = len(ranks)
    if n > 0 and int(ordered[-1]) >= n:
        raise ValueError(f"ranks: expected ranks below the number of points, {n}, got {int(ordered[-1])}")
    ranked = ordered >= 0
    sizes = torch.bincount(ordered[ranked])
    return list(rows[ranked].split(sizes.tolist())) if len(sizes) > 0 else []


def is_non_dominated(
    points: Any,
    *,
    maximize: bool | Sequence[bool],
    deduplicate: bool = False,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    """Whether no point of its set dominates a point: the points of rank 0.

    Args:
        points, maximize, lengths, mask, nan: as in :func:`non_dominated_sort`.
        deduplicate: of equal points only the lowest row is kept (BoTorch's default). By definition equal points do not
            dominate each other.

    Returns:
        bool tensor of shape (..., n); False for rows with NaN and outside ``lengths`` or ``mask``. Not differentiable.

    Complexity and errors as for :func:`non_dominated_sort`, which stops here after the first front.

    >>> import torch
    >>> is_non_dominated(torch.tensor([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0], [1.0, 3.0]]), maximize=True)
    tensor([ True,  True, False,  True])
    """
    points = as_points(points, least_objectives=1)
    points, maximize, raises, lengths, _ = _as_sets(points, maximize, lengths, mask, nan)
    return _ops.is_non_dominated(points, maximize, raises, lengths, as_bool(deduplicate, "deduplicate"))


def filter_non_dominated(
    points: Any,
    *,
    maximize: bool | Sequence[bool],
    deduplicate: bool = False,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Filtered:
    """The non-dominated points of each set.

    Args:
        points, maximize, deduplicate, lengths, mask, nan: as in :func:`is_non_dominated`.

    Returns:
        :class:`Filtered`: the points (..., K, m), their rows and how many each set has, in the order of the rows. K is
        the most that a set of the batch has, so this waits for the device; :func:`is_non_dominated` does not. The
        points are differentiable.

    Complexity and errors as for :func:`non_dominated_sort`.

    >>> import torch
    >>> kept = filter_non_dominated(torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]), maximize=True)
    >>> kept.points
    tensor([[3., 1.],
            [1., 3.]])
    >>> kept.rows
    tensor([0, 2])
    """
    points = as_points(points, least_objectives=1)
    keep = is_non_dominated(
        points.detach(), maximize=maximize, deduplicate=deduplicate, lengths=lengths, mask=mask, nan=nan
    )
    counts = keep.sum(-1)
    most = int(counts.max()) if counts.numel() > 0 else 0
    rows = keep.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[..., :most]
    padding = torch.arange(most, device=rows.device) >= counts[..., None]
    kept = points.gather(-2, rows[..., None].expand(*rows.shape, points.shape[-1]))
    return Filtered(kept.masked_fill(padding[..., None], math.nan), rows.masked_fill(padding, -1), counts)


def dominance_counts(
    points: Any,
    *,
    maximize: bool | Sequence[bool],
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""How many points of its set dominate each point.

    .. math:: c(q) = |\{p : p \prec q\}|

    With ``maximize`` inverted in every objective: how many points each one dominates (the strength of SPEA2). One more
    than ``dominance_counts`` is the rank of MOGA.

    Args:
        points, maximize, lengths, mask, nan: as in :func:`non_dominated_sort`.

    Returns:
        int32 tensor of shape (..., n); -1 outside ``lengths`` or ``mask``. Every copy of a point counts, and copies do
        not dominate each other. A row with NaN dominates nothing and counts as dominated by every row without NaN.
        Not differentiable.

    CPU: O(n log^2 n) for m <= 3; for more objectives divide and conquer that ends in bitsets, at most O(m n^2 / 64)
    word operations. GPU: O(m n^2) comparisons in tiles. O(n m) memory a set. Errors as for :func:`non_dominated_sort`.

    Sources: Fonseca and Fleming (1993) for MOGA; Zitzler, Laumanns, Thiele (2001) for SPEA2.

    >>> import torch
    >>> dominance_counts(torch.tensor([[1.0, 1.0], [2.0, 1.0], [2.0, 2.0]]), maximize=False)
    tensor([0, 1, 2], dtype=torch.int32)
    """
    points = as_points(points, least_objectives=1)
    points, maximize, raises, lengths, mask = _as_sets(points, maximize, lengths, mask, nan)
    counts = _ops.dominance_counts(points, maximize, raises, lengths)
    return counts if mask is None else counts.masked_fill_(~mask, -1)


def is_dominated_by(
    points: Any,
    others: Any,
    *,
    maximize: bool | Sequence[bool],
    weakly: bool = False,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    """Whether some point of another set dominates each point.

    Args:
        points: shape (..., n, m), as in :func:`non_dominated_sort`.
        others: shape (..., k, m); its batch shape broadcasts against that of ``points``.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        weakly: whether an equal point is enough (weak dominance).
        lengths, mask: which of ``others`` count, as in :func:`non_dominated_sort`.
        nan: ``"raise"`` or ``"worst"``: a row of ``others`` with NaN dominates nothing, one of ``points`` is dominated
            when ``others`` has a row without NaN.

    Returns:
        bool tensor (..., n) of the broadcast batch shape; False where ``others`` has no points. Not differentiable.

    O(m n k) comparisons, O(m (n + k)) memory.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer, and for arguments of other types.
        ValueError: for shapes that do not fit, and NaN under ``"raise"``.

    >>> import torch
    >>> front = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    >>> is_dominated_by(torch.tensor([[2.0, 1.0], [2.0, 2.0], [3.0, 1.0]]), front, maximize=True)
    tensor([ True, False, False])
    """
    points = as_points(points, least_objectives=1)
    others = as_points(others, "others", device=points.device)
    same_device("points", points, "others", others)
    if others.shape[-1] != points.shape[-1]:
        raise ValueError(
            f"others: expected {points.shape[-1]} objectives as points have, got shape {tuple(others.shape)}"
        )
    if lengths is not None or mask is not None:
        lengths, mask = as_lengths_or_mask(lengths, mask, others)
    if points.dtype != others.dtype:
        points, others = points.to(torch.float64), others.to(torch.float64)
    nan_raises(nan, points)
    raises = nan_raises(nan, others, lengths, "others")
    sense, points, _ = as_minimization(points.detach() if points.requires_grad else points, maximize)
    _, others, _ = as_minimization(others.detach() if others.requires_grad else others, maximize)
    if mask is not None:
        looks, raises = looks_for_nan(nan, others), False
        others = _masked(others, mask, looks, "others")
        if looks:  # the operator will not
            raise_for_nan(points.isnan().any(-1), "points")
    if points.shape[:-2] != others.shape[:-2]:
        try:
            batch = torch.broadcast_shapes(points.shape[:-2], others.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"others: expected a batch shape that broadcasts against points {tuple(points.shape)}, "
                f"got {tuple(others.shape)}"
            ) from None
        points, others = points.expand(*batch, *points.shape[-2:]), others.expand(*batch, *others.shape[-2:])
        if lengths is not None:
            lengths = lengths.expand(batch).contiguous()
    return _ops.is_dominated_by(points, others, sense, raises, lengths, as_bool(weakly, "weakly"))


def _as_sets(
    points: Tensor, maximize: bool | Sequence[bool], lengths: Any, mask: Any, nan: NanPolicy | None
) -> tuple[Tensor, bool, bool, Tensor | None, Tensor | None]:
    """What the operators take; points outside the mask become rows with NaN, which no point is compared with."""
    sense, points, _ = as_minimization(points.detach() if points.requires_grad else points, maximize)
    if lengths is not None or mask is not None:
        lengths, mask = as_lengths_or_mask(lengths, mask, points)
    raises = nan_raises(nan, points, lengths)
    if mask is not None:
        points, raises = _masked(points, mask, looks_for_nan(nan, points), "points"), False
    return points, sense, raises, lengths, mask


def _masked(points: Tensor, mask: Tensor, looks: bool, name: str) -> Tensor:
    if looks:
        raise_for_nan(points.isnan().any(-1) & mask, name)
    return torch.where(mask[..., None], points, math.nan)


def _total_violations(constraints: Any, points: Tensor) -> Tensor:
    values = as_float32_or_64(constraints, "constraints", device=points.device)
    same_device("points", points, "constraints", values)
    total = values.shape == points.shape[:-1]
    if not total and (values.dim() != points.dim() or values.shape[:-1] != points.shape[:-1]):
        shape = tuple(points.shape[:-1])
        raise ValueError(
            f"constraints: expected shape {shape}, one total violation a point, or {shape} and one dimension more, "
            f"one value a constraint, got {tuple(values.shape)}"
        )
    violations = values.detach().to(torch.float64).clamp(min=0)
    return (violations if total else violations.sum(-1)).contiguous()
