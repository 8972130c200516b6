"""Exact hypervolume of fronts: value and gradient, contributions, improvements, boxes, greedy subsets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from morlfast import _C, _ops
from morlfast._arguments import (
    NanPolicy,
    as_float32_or_64,
    as_integer,
    as_lengths_or_mask,
    as_minimization,
    as_points,
    as_ref_point,
    masked,
    nan_raises,
    objective_senses,
    same_device,
)

_MAX_OBJECTIVES: int = _C.max_hypervolume_objectives
_MAX_MEMORY: int = _C.default_max_memory


def hypervolume(
    points: Any,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
    max_memory: int = _MAX_MEMORY,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    r"""Volume that each front dominates, bounded by the reference point.

    .. math:: HV(P, r) = \lambda\Big(\bigcup_{p \in P} \{z : p \preceq z \preceq r\}\Big)

    Exact for any number of objectives. On the CPU O(n log n) a front for m <= 3; beyond, in proportion to the number
    of local upper bounds, which is at worst O(n^(floor((m - 1) / 2) + 1)) and far less on most fronts. On a GPU
    O(n log n) for m <= 2 and O(n^2) work for m = 3. Everything is widened to float64 before anything is subtracted, so
    float32 input costs what rounding it has cost: the volume of a front of unit size that was stored at an offset of
    1000 is off by about 1e-4 of itself before it comes here; subtract the offset in float64 first.

    Args:
        points: fronts, shape (..., n, m) with m in 1..64 (on CUDA 1..16, and n < 65535 for m >= 4); float32 or float64
            with any strides. Array-likes are taken too; integers and Python's numbers become float64.
        ref_point: scalar, (m,), or broadcastable to the batch shape + (m,).
        maximize: whether objectives are maximized; a bool, or one for each objective.
        lengths: integers of the batch shape; only the first ``lengths`` points of each front count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look) lets such rows contribute nothing and a NaN in ``ref_point`` give NaN.
        max_memory: bytes that the list of bounds of one front may take (on each thread), for m >= 4. A front that
            would need more is cut into regions that fit: slower, and equal up to rounding.
        progress: called as ``progress(done, total)`` between pieces of the work, whose results are summed. For calls
            that take minutes: Ctrl-C works between the pieces, and an exception in ``progress`` ends the call.

    Returns:
        Tensor of the batch shape (0-d for one front), with the dtype and device of ``points``.

    A point counts when it is strictly better than the reference point in every objective; points on or beyond it,
    dominated points and further copies of a point add nothing. An empty front has hypervolume 0. A counting point that
    is infinitely good, or an infinitely bad reference value, gives ``inf``.

    Differentiable once in ``points`` and ``ref_point``, in reverse mode (``torch.func`` and forward mode raise). Where
    the reference point is NaN the gradient is 0. Dominated points have gradient exactly 0. Where the volume has
    a kink (equal values of objective k), the derivative along k goes to the point that comes first in the order
    (objective k, the other objectives, row), so the lowest row of duplicates carries it all.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer, and for arguments of other types.
        ValueError: for shapes that do not fit, NaN under ``"raise"``, lengths outside 0..n (on the CPU; a GPU must not
            look), and mixed devices.

    Sources: Fonseca, Paquete and López-Ibáñez (2006) for the sweep in three objectives; Lacour, Klamroth and Fonseca
    (2017) for the boxes in more; Emmerich and Deutz (2014) for the gradient.

    >>> front = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> hypervolume(front, [4.0, 4.0], maximize=False)
    tensor(6.)
    >>> hypervolume(front.expand(5, 3, 2), 0.0, maximize=True).shape
    torch.Size([5])
    >>> hypervolume(torch.eye(6), 0.0, maximize=True)  # each point dominates a face only
    tensor(0.)
    """
    fronts = _as_fronts(points, ref_point, maximize, lengths, mask, nan)
    if max_memory != _MAX_MEMORY:
        max_memory = _as_max_memory(max_memory)
    if progress is not None:
        if not callable(progress):
            raise TypeError(f"progress: expected a function of (done, total), got {progress!r}")
        return _in_pieces(fronts, max_memory, progress)
    return _value(fronts, max_memory)


def hypervolume_contributions(
    points: Any,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    dominated: Literal["count", "ignore"] = "count",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    r"""What the hypervolume of each front loses with each of its points.

    .. math:: c_i = HV(P, r) - HV(P \setminus \{i\}, r)

    Computed as the measure of the region that point i alone dominates, a sum of boxes: no totals are subtracted, so
    small contributions keep their digits. 0 for dominated points, for every copy of a duplicated point, and for points
    that do not count.

    Args:
        points, ref_point, maximize, lengths, mask, nan, max_memory: as in :func:`hypervolume`.
        dominated: ``"count"``: leave-one-out to the letter, where a dominated point lowers the contribution of the one
            that dominates it; ``"ignore"``: dominated points are dropped first, as moocore and pymoo do (copies of a
            point stay and have contribution 0).

    Returns:
        Tensor (..., n) with the dtype and device of ``points``; 0 behind ``lengths`` and outside ``mask``. Not
        differentiable. A NaN reference point gives NaN under ``nan="worst"``.

    O(n log n) a front for m <= 3 on non-dominated points; beyond, n sweeps over what the other points leave.

    Raises: as :func:`hypervolume`.

    Source: Emmerich and Fonseca (2011) for three objectives; Bringmann and Friedrich (2012) for the limits of more.

    >>> front = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0]])
    >>> hypervolume_contributions(front, 4.0, maximize=False)
    tensor([1., 1., 1., 0.])
    """
    fronts = _as_fronts(points, ref_point, maximize, lengths, mask, nan)
    return _contributions(fronts, dominated, max_memory)


def least_contributor(
    points: Any,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    dominated: Literal["count", "ignore"] = "count",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    """Row whose loss costs each front the least hypervolume: what SMS-EMOA removes.

    Args: as in :func:`hypervolume_contributions`.

    Returns:
        int64 tensor of the batch shape: the row of the smallest contribution among those that ``lengths`` or ``mask``
        let in; ties go to the lowest row; -1 for an empty front. With a NaN reference point (``nan="worst"``) all
        contributions are NaN and the lowest row is returned.

    Cost and errors: as :func:`hypervolume_contributions`.

    Source: Beume, Naujoks and Emmerich (2007), SMS-EMOA.

    >>> least_contributor(torch.tensor([[0.0, 4.0], [3.0, 3.5], [4.0, 0.0]]), 5.0, maximize=False)
    tensor(1)
    """
    fronts = _as_fronts(points, ref_point, maximize, lengths, mask, nan)
    # In float64: in float32 the contributions of a small front are all 0.
    contributions = _contributions(fronts._replace(points=fronts.points.double()), dominated, max_memory)
    *batch, n = contributions.shape
    if n == 0:
        return torch.full(batch, -1, dtype=torch.int64, device=contributions.device)
    if fronts.lengths is None and fronts.mask is None:
        return contributions.argmin(-1)
    if fronts.mask is not None:
        let_in = fronts.mask
    else:
        assert fronts.lengths is not None
        let_in = torch.arange(n, device=contributions.device) < fronts.lengths[..., None]
    least = torch.where(let_in, contributions, math.inf).argmin(-1)
    # All may be infinite; then the lowest row that is let in, not the lowest of all.
    least = torch.where(let_in.gather(-1, least[..., None]).squeeze(-1), least, let_in.int().argmax(-1))
    return torch.where(let_in.any(-1), least, -1)


def hypervolume_improvement(
    candidates: Any,
    front: Any,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    joint: bool = False,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    r"""What each candidate, or each small set of candidates, would add to the hypervolume of a front.

    .. math:: HVI(C) = HV(P \cup C, r) - HV(P, r)

    Computed as the measure of what the candidates alone dominate: nothing is subtracted. Many single candidates are
    measured against the boxes of the front's non-dominated region, made once: O(boxes + Q boxes m). Few of them, and
    sets, take one sweep over the front for each candidate.

    Args:
        candidates: (..., Q, m), each on its own; with ``joint`` (..., Q, q, m), Q sets of q points each.
        front: (..., n, m), as ``points`` in :func:`hypervolume`. Batch shapes of candidates and front broadcast.
        ref_point, maximize, nan, max_memory: as in :func:`hypervolume`.
        joint: whether the last but one dimension of ``candidates`` is a set that is added together.
        lengths, mask: which points of ``front`` count.

    Returns:
        Tensor (..., Q), float64 if either input is, else float32. 0 for a candidate that is dominated by or equal to a
        point of the front, or not strictly better than the reference point, and for an empty set; beside an empty front
        a candidate improves by its own volume. Not differentiable; :func:`hypervolume` is.

    Raises: as :func:`hypervolume`.

    Source: Lacour, Klamroth and Fonseca (2017) for the boxes; Yang, Emmerich, Deutz and Bäck (2019) for measuring
    improvements on them.

    >>> front = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    >>> hypervolume_improvement(torch.tensor([[2.0, 2.0], [3.0, 3.0], [0.0, 3.0]]), front, 4.0, maximize=False)
    tensor([1., 0., 1.])
    """
    candidates = as_float32_or_64(candidates, "candidates")
    if candidates.dim() < 2 + bool(joint):
        expected = "(..., Q, q, m) with joint=True" if joint else "(..., Q, m)"
        raise ValueError(f"candidates: expected shape {expected}, got {tuple(candidates.shape)}")
    sets = candidates if joint else candidates[..., None, :]
    points = as_points(front, "front")
    same_device("candidates", candidates, "front", points)
    if candidates.shape[-1] != points.shape[-1]:
        raise ValueError(
            f"candidates: expected {points.shape[-1]} objectives, as front has, got shape {tuple(candidates.shape)}"
        )
    own_lengths, own_mask = as_lengths_or_mask(lengths, mask, points)
    batch = points.shape[:-2]
    try:
        if sets.shape[:-3] != batch:  # torch imports sympy for this, which takes a second
            batch = torch.broadcast_shapes(sets.shape[:-3], batch)
    except RuntimeError as error:
        raise ValueError(
            f"candidates: expected a batch shape that broadcasts with that of front {tuple(points.shape)}, got "
            f"{tuple(candidates.shape)}"
        ) from error
    dtype = torch.promote_types(sets.dtype, points.dtype)
    fronts = _as_fronts(
        points.to(dtype).expand(*batch, *points.shape[-2:]),
        ref_point,
        maximize,
        None if own_lengths is None else own_lengths.expand(batch),
        None if own_mask is None else own_mask.expand(*batch, points.shape[-2]),
        nan,
        name="front",
    )
    sets = sets.detach().to(dtype).expand(*batch, *sets.shape[-3:])
    _, _, (sets,) = as_minimization(points, maximize, sets)
    nan_raises(nan, candidates, name="candidates")
    return _ops.hypervolume_improvement(
        sets,
        fronts.points.detach(),
        fronts.ref_point.detach(),
        fronts.maximize,
        fronts.raises,
        fronts.lengths,
        _as_max_memory(max_memory),
    )


class BoxDecomposition(NamedTuple):
    """Disjoint half-open boxes, ``lower <= upper`` in every objective, in the caller's sense."""

    lower: Tensor
    """(..., K, m)"""
    upper: Tensor
    """(..., K, m)"""
    counts: Tensor
    """int64, batch shape: boxes of each front; those behind are ``(ref_point, ref_point)`` and have no volume."""


def box_decomposition(
    points: Any,
    ref_point: Any,
    *,
    region: Literal["non_dominated", "dominated"],
    maximize: bool | Sequence[bool],
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
    max_memory: int = _MAX_MEMORY,
) -> BoxDecomposition:
    """Boxes that fill what each front dominates, or what it does not.

    Args:
        points, ref_point, maximize, lengths, mask, nan: as in :func:`hypervolume`.
        region: ``"dominated"``: the boxes fill the region dominated by the front and bounded by the reference point,
            so their volumes sum to the hypervolume; ``"non_dominated"``: they fill what is strictly better than the
            reference point and not dominated, to infinity on the good side, as BoTorch's partitionings for expected
            hypervolume improvement have it.
        max_memory: bytes that all boxes together may take.

    Returns:
        ``BoxDecomposition(lower, upper, counts)`` with the dtype and device of ``points``; K is the largest count, and
        shorter lists are padded with boxes ``(ref_point, ref_point)``. Boxes without volume are left out. An empty
        front dominates nothing (no box), and its non-dominated region is one box. Since K depends on the data, a CUDA
        call waits for the device. Not differentiable, but every coordinate is one of the inputs or infinite. Under
        ``nan="worst"`` a NaN reference point gives one box of NaN.

    About 2 n boxes for m = 3, 8 n for m = 4, and up to O(n^floor(m / 2)) for more.

    Raises:
        MemoryError: when the boxes would take more than ``max_memory``.
        TypeError, ValueError: as :func:`hypervolume`.

    Source: Lacour, Klamroth and Fonseca (2017).

    >>> boxes = box_decomposition(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 3.0, region="dominated", maximize=False)
    >>> (boxes.upper - boxes.lower).prod(-1).sum()
    tensor(3.)
    >>> boxes.counts
    tensor(2)
    """
    if region not in ("non_dominated", "dominated"):
        raise ValueError(f'region: expected "non_dominated" or "dominated", got {region!r}')
    fronts = _as_fronts(points, ref_point, maximize, lengths, mask, nan)
    lower, upper, counts = _ops.box_decomposition(
        fronts.points.detach(),
        fronts.ref_point.detach(),
        region == "dominated",
        fronts.maximize,
        fronts.raises,
        fronts.lengths,
        _as_max_memory(max_memory),
    )
    if not fronts.maximize and maximize is not False:  # mixed senses, which the operator took as minimization
        mirrored = torch.tensor(objective_senses(maximize, lower.shape[-1]), device=lower.device)
        lower, upper = torch.where(mirrored, 0 - upper, lower), torch.where(mirrored, 0 - lower, upper)
    return BoxDecomposition(lower, upper, counts)


def hypervolume_subset(
    points: Any,
    k: int,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
    max_memory: int = _MAX_MEMORY,
) -> Tensor:
    """Greedily picks k points of each front for a large hypervolume.

    Each pick adds the most hypervolume to those before it, exactly. The hypervolume is submodular, so the k points have
    at least 1 - 1/e = 63 % of the largest hypervolume of any k points. For the same reason improvements only shrink,
    and only those are measured anew that could still be the largest: between n and n k sweeps over up to k points.

    Args:
        points, ref_point, maximize, lengths, mask, nan, max_memory: as in :func:`hypervolume`.
        k: points to pick, 0..n.

    Returns:
        int64 tensor (..., k) of rows in the order of picking. Ties go to the lowest row. When nothing improves any more
        the lowest rows that are left follow; a front of fewer than k points is padded with -1. A front whose reference
        point is NaN (``nan="worst"``) is picked from the lowest row on.

    Raises:
        ValueError: for k outside 0..n.
        TypeError, ValueError: as :func:`hypervolume`.

    Source: Nemhauser, Wolsey and Fisher (1978); Guerreiro, Fonseca and Paquete (2016).

    >>> front = torch.tensor([[1.0, 6.0], [3.0, 3.0], [6.0, 1.0], [4.0, 2.9]])
    >>> hypervolume_subset(front, 2, 7.0, maximize=False)
    tensor([1, 0])
    """
    k = as_integer(k, "k")
    fronts = _as_fronts(points, ref_point, maximize, lengths, mask, nan)
    n = fronts.points.shape[-2]
    if not 0 <= k <= n:
        raise ValueError(f"k: expected 0 to {n}, the number of points, got {k}")
    picks = _ops.hypervolume_subset(
        fronts.points.detach(),
        k,
        fronts.ref_point.detach(),
        fronts.maximize,
        fronts.raises,
        fronts.lengths,
        _as_max_memory(max_memory),
    )
    if fronts.mask is None:
        return picks
    # Of the rows that follow without improvement only those that the mask lets in are picks.
    let_in = fronts.mask.gather(-1, picks)
    order = torch.argsort(let_in.logical_not().int(), dim=-1, stable=True)
    picks = torch.where(let_in, picks, -1).gather(-1, order)
    # Without improvement the operator may have filled up with rows outside the mask before those inside.
    return _fill_up(picks, fronts.mask)


def _fill_up(picks: Tensor, mask: Tensor) -> Tensor:
    """Replaces -1 by the lowest rows of the mask that are not picked yet, as long as there are any."""
    n, k = mask.shape[-1], picks.shape[-1]
    if k == 0:
        return picks
    # Row n stands for -1: one column more, cut off again.
    taken = torch.zeros((*mask.shape[:-1], n + 1), dtype=torch.bool, device=mask.device)
    taken = taken.scatter(-1, torch.where(picks < 0, n, picks), True)[..., :n]
    left = mask & ~taken
    rows = torch.argsort(left.logical_not().int(), dim=-1, stable=True)
    rows = torch.where(left.gather(-1, rows), rows, -1)
    place = (picks < 0).cumsum(-1) - 1
    return torch.where(picks < 0, rows.gather(-1, place.clamp(min=0)), picks)


# --- what the functions share ---


class _Fronts(NamedTuple):
    """Arguments that an operator takes: one sense, one device, masked points moved out of the way."""

    points: Tensor
    ref_point: Tensor
    maximize: bool
    raises: bool
    lengths: Tensor | None
    mask: Tensor | None


def _as_fronts(
    points: Any,
    ref_point: Any,
    maximize: bool | Sequence[bool],
    lengths: Any,
    mask: Any,
    nan: NanPolicy | None,
    name: str = "points",
) -> _Fronts:
    points = as_points(points, name)
    if not 1 <= points.shape[-1] <= _MAX_OBJECTIVES:
        raise ValueError(f"{name}: expected 1 to {_MAX_OBJECTIVES} objectives, got shape {tuple(points.shape)}")
    ref_point = as_ref_point(ref_point, points)
    if lengths is not None or mask is not None:
        lengths, mask = as_lengths_or_mask(lengths, mask, points)
    maximize, points, (ref_point,) = as_minimization(points, maximize, ref_point)
    if mask is not None:
        points = masked(points, mask, maximize)
    if nan == "raise" and points.is_cuda and bool(ref_point.isnan().any()):
        raise ValueError("ref_point: expected no NaN, got NaN")
    return _Fronts(points, ref_point, maximize, nan_raises(nan, points, lengths, name), lengths, mask)


def _as_max_memory(max_memory: Any) -> int:
    value = as_integer(max_memory, "max_memory")
    if value < 1:
        raise ValueError(f"max_memory: expected at least 1 byte, got {max_memory}")
    return min(value, 2**62)


def _contributions(fronts: _Fronts, dominated: str, max_memory: int) -> Tensor:
    if dominated not in ("count", "ignore"):
        raise ValueError(f'dominated: expected "count" or "ignore", got {dominated!r}')
    contributions = _ops.hypervolume_contributions(
        fronts.points.detach(),
        fronts.ref_point.detach(),
        fronts.maximize,
        fronts.raises,
        fronts.lengths,
        dominated == "ignore",
        _as_max_memory(max_memory),
    )
    # Masked rows contribute nothing, not even a reference point's NaN.
    return contributions if fronts.mask is None else torch.where(fronts.mask, contributions, 0)


def _value(fronts: _Fronts, max_memory: int, part: int = 0, parts: int = 1) -> Tensor:
    points, ref_point, maximize, raises, lengths, _ = fronts
    differentiated = torch.is_grad_enabled() and (points.requires_grad or ref_point.requires_grad)
    if differentiated or forward_ad._current_level >= 0:  # forward mode: the Function says that it has none
        value: Tensor = _Hypervolume.apply(  # type: ignore[no-untyped-call]
            points, ref_point, maximize, raises, lengths, max_memory, part, parts
        )
        return value
    if max_memory == _MAX_MEMORY and parts == 1:  # the dispatcher does not convert what is left out
        return _ops.hypervolume(points, ref_point, maximize, raises, lengths)
    return _ops.hypervolume(points, ref_point, maximize, raises, lengths, max_memory, part, parts)


# Pieces that a call with `progress` is cut into: enough to be seen moving. Each sorts its fronts again, which shows in
# calls of milliseconds and not in those of minutes.
_PIECES = 64


def _in_pieces(fronts: _Fronts, max_memory: int, progress: Callable[[int, int], object]) -> Tensor:
    """The fronts in groups, and from four objectives on each group in regions of the space."""
    *batch, n, m = fronts.points.shape
    count = math.prod(batch)
    points = fronts.points.reshape(count, n, m).double()  # rounded once, when all is summed
    ref_point = fronts.ref_point.expand(*batch, m).reshape(count, m)
    lengths = None if fronts.lengths is None else fronts.lengths.reshape(count)
    groups = max(1, min(count, _PIECES))
    parts = 1 if m <= 3 or count == 0 else max(1, _PIECES // groups)
    bounds = [count * group // groups for group in range(groups + 1)]
    values = []
    for group in range(groups):
        rows = slice(bounds[group], bounds[group + 1])
        piece = fronts._replace(
            points=points[rows], ref_point=ref_point[rows], lengths=None if lengths is None else lengths[rows]
        )
        value = _value(piece, max_memory, 0, parts)
        progress(group * parts + 1, groups * parts)
        for part in range(1, parts):
            value = value + _value(piece, max_memory, part, parts)
            progress(group * parts + part + 1, groups * parts)
        values.append(value)
    return torch.cat(values).reshape(batch).to(fronts.points.dtype)


class _Hypervolume(torch.autograd.Function):
    # ctx in forward rather than a setup_context: that would bind arguments by inspection, 60 µs a call.

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        ref_point: Tensor,
        maximize: bool,
        raises: bool,
        lengths: Tensor | None,
        max_memory: int,
        part: int,
        parts: int,
    ) -> Tensor:
        value, gradient = _ops.hypervolume_gradient(
            points, ref_point, maximize, raises, lengths, max_memory, part, parts
        )
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
        return (grad_points if ctx.needs_input_grad[0] else None, grad_ref, *(None,) * 6)


class _OnceDifferentiable(torch.autograd.Function):
    """The gradient, tied to what it depends on, so that a second derivative fails instead of vanishing."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, points: Tensor, ref_point: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("hypervolume is differentiable once; its second derivative is not implemented")
