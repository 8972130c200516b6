"""Hypervolume and its gradient by counting the cells of a grid, in exact rational arithmetic.

All coordinates cut the space into cells. A cell belongs to the dominated region iff some point lies at or
below its lower corner. Any number of objectives; O(n^(m+1)) time.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from math import prod

Point = tuple[Fraction, ...]
Cell = tuple[Fraction, ...]


def hypervolume(
    points: Sequence[Sequence[float]], ref_point: Sequence[float], maximize: bool | Sequence[bool] = False
) -> Fraction:
    """Volume of {x : z <= x < ref_point for some point z}; maximized objectives are mirrored."""
    ref = _minimized(ref_point, maximize)
    front = [_minimized(z, maximize) for z in points]
    counting = [z for z in front if all(a < b for a, b in zip(z, ref, strict=True))]
    width = _cells(counting, ref, range(len(ref)))
    return sum((width[corner] for corner in width if any(_covers(z, corner) for z in counting)), Fraction(0))


def hypervolume_gradient(
    points: Sequence[Sequence[float]], ref_point: Sequence[float], maximize: bool | Sequence[bool] = False
) -> tuple[list[list[Fraction]], list[Fraction]]:
    """Derivative with respect to every coordinate, [n, m], and to the reference point, [m].

    Along objective k, minus the measure of what point i covers of the projection onto the other objectives
    and no point before it covers; the order is by objective k, then the other objectives in index order, then
    row.
    """
    m = len(ref_point)
    ref = _minimized(ref_point, maximize)
    front = [_minimized(z, maximize) for z in points]
    counting = [i for i, z in enumerate(front) if all(a < b for a, b in zip(z, ref, strict=True))]
    sign = [-1 if flipped else 1 for flipped in _flips(maximize, m)]

    grad_points = [[Fraction(0)] * m for _ in points]
    grad_ref = [Fraction(0)] * m
    for k in range(m):
        others = [j for j in range(m) if j != k]
        width = _cells([front[i] for i in counting], ref, others)
        covered: set[Cell] = set()
        for i in sorted(counting, key=lambda i: (front[i][k], *(front[i][j] for j in others), i)):
            mine = {corner for corner in width if _covers([front[i][j] for j in others], corner)}
            measure = sum((width[corner] for corner in mine - covered), Fraction(0))
            grad_points[i][k] = -sign[k] * measure
            grad_ref[k] += sign[k] * measure
            covered |= mine
    return grad_points, grad_ref


def _flips(maximize: bool | Sequence[bool], m: int) -> list[bool]:
    return [maximize] * m if isinstance(maximize, bool) else list(maximize)


def _minimized(point: Sequence[float], maximize: bool | Sequence[bool]) -> Point:
    flips = _flips(maximize, len(point))
    return tuple(-Fraction(x) if flip else Fraction(x) for x, flip in zip(point, flips, strict=True))


def _cells(points: Sequence[Point], ref: Point, objectives: Sequence[int]) -> dict[Cell, Fraction]:
    """Lower corner -> measure of each cell that points and reference point cut out, over some objectives."""
    intervals = []
    for j in objectives:
        cuts = sorted({z[j] for z in points} | {ref[j]})
        intervals.append([(low, high - low) for low, high in pairwise(cuts)])
    return {
        tuple(low for low, _ in cell): prod((size for _, size in cell), start=Fraction(1))
        for cell in product(*intervals)
    }


def _covers(point: Sequence[Fraction], corner: Cell) -> bool:
    return all(a <= b for a, b in zip(point, corner, strict=True))
