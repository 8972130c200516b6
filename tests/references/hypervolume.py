"""The hypervolume family by its definitions, in exact rational arithmetic. Slow; any number of objectives.

Infinite coordinates stay floats, and volumes with an infinite side are infinite.

The measure of a union of orthants is taken by slicing: cut along the last objective at every coordinate, and measure
in each slab what is left of the points in one objective less. Counting the cells of the grid that all coordinates
cut out gives the same without recursion and serves to check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise, product
from math import isinf, prod

Rational = int | Fraction
Point = tuple[Rational, ...]
Senses = bool | Sequence[bool]


def hypervolume(points: Sequence[Sequence[float]], ref_point: Sequence[float], maximize: Senses = False) -> Rational:
    """Volume of {x : z <= x < ref_point for some point z}; maximized objectives are mirrored."""
    ref = _minimized(ref_point, maximize)
    return _measure(_counting(points, ref, maximize).values(), ref)


def hypervolume_by_cells(
    points: Sequence[Sequence[float]], ref_point: Sequence[float], maximize: Senses = False
) -> Rational:
    """The same: a cell belongs to the region iff some point lies at or below its lower corner. O(n^(m+1))."""
    ref = _minimized(ref_point, maximize)
    front = set(_counting(points, ref, maximize).values())
    covered = (cell for cell in _cells(front, ref) if any(_covers(z, [low for low, _ in cell]) for z in front))
    return sum(prod(high - low for low, high in cell) for cell in covered)


def hypervolume_gradient(
    points: Sequence[Sequence[float]], ref_point: Sequence[float], maximize: Senses = False
) -> tuple[list[list[Rational]], list[Rational]]:
    """Derivative with respect to every coordinate, [n, m], and to the reference point, [m].

    Along objective k, minus the measure of what point i covers of the projection onto the other objectives
    and no point before it covers; the order is by objective k, then the other objectives in index order, then
    row.
    """
    m = len(ref_point)
    ref = _minimized(ref_point, maximize)
    front = _counting(points, ref, maximize)
    sign = [-1 if flipped else 1 for flipped in _flips(maximize, m)]

    grad_points: list[list[Rational]] = [[0] * m for _ in points]
    grad_ref: list[Rational] = [0] * m
    for k in range(m):
        project = [(z[:k] + z[k + 1 :], i) for i, z in front.items()]
        before: list[Point] = []
        covered: Rational = 0
        for others, i in sorted(project, key=lambda entry: (front[entry[1]][k], *entry)):
            before.append(others)
            measure = _measure(before, ref[:k] + ref[k + 1 :]) - covered
            covered += measure
            grad_points[i][k] = -sign[k] * measure
            grad_ref[k] += sign[k] * measure
    return grad_points, grad_ref


def hypervolume_contributions(
    points: Sequence[Sequence[float]],
    ref_point: Sequence[float],
    maximize: Senses = False,
    dominated: str = "count",
) -> list[Rational]:
    """What the hypervolume loses when one row is left out, [n]; "ignore" leaves out all dominated rows before."""
    ref = _minimized(ref_point, maximize)
    front = _counting(points, ref, maximize)
    if dominated == "ignore":
        every = set(front.values())
        front = {i: z for i, z in front.items() if not any(y != z and _covers(y, z) for y in every)}
    total = _measure(front.values(), ref)
    return [
        total - _measure([z for j, z in front.items() if j != i], ref) if i in front else 0 for i in range(len(points))
    ]


def hypervolume_contributions_by_cells(
    points: Sequence[Sequence[float]], ref_point: Sequence[float], maximize: Senses = False
) -> list[Rational]:
    """The same as the volume of the cells that one row alone covers: no difference, so coordinates may be infinite."""
    ref = _minimized(ref_point, maximize)
    front = _counting(points, ref, maximize)
    volume: list[Rational] = [0] * len(points)
    for cell in _cells(front.values(), ref):
        rows = [i for i, z in front.items() if _covers(z, [low for low, _ in cell])]
        if len(rows) == 1:
            volume[rows[0]] += prod(high - low for low, high in cell)
    return volume


def hypervolume_improvement(
    candidates: Sequence[Sequence[Sequence[float]]],
    front: Sequence[Sequence[float]],
    ref_point: Sequence[float],
    maximize: Senses = False,
) -> list[Rational]:
    """What each set of candidates, all its points together, adds to the hypervolume of the front."""
    before = hypervolume(front, ref_point, maximize)
    return [hypervolume([*front, *together], ref_point, maximize) - before for together in candidates]


def hypervolume_subset(
    points: Sequence[Sequence[float]], k: int, ref_point: Sequence[float], maximize: Senses = False
) -> list[int]:
    """k rows, each picked for the most that any row adds to those picked before; the lowest row of equals."""
    picked: list[int] = []
    for _ in range(k):
        left = [i for i in range(len(points)) if i not in picked]
        gain = {i: hypervolume([points[j] for j in [*picked, i]], ref_point, maximize) for i in left}
        picked.append(max(left, key=lambda i: (gain[i], -i)))
    return picked


def in_region(
    x: Sequence[float],
    points: Sequence[Sequence[float]],
    ref_point: Sequence[float],
    region: str,
    maximize: Senses = False,
) -> bool:
    """Whether x is better than the reference point everywhere and (not) at or behind a point."""
    ref = _minimized(ref_point, maximize)
    x = _minimized(x, maximize)
    covered = any(_covers(z, x) for z in _counting(points, ref, maximize).values())
    return _better(x, ref) and covered == (region == "dominated")


def in_box(x: Sequence[float], lower: Sequence[float], upper: Sequence[float], maximize: Senses = False) -> bool:
    """Whether x lies in the half-open box, which has its better side: [lower, upper), or (lower, upper] maximized."""
    flips = _flips(maximize, len(x))
    return all(
        low < a <= high if flip else low <= a < high for a, low, high, flip in zip(x, lower, upper, flips, strict=True)
    )


def box_is_in_region(
    lower: Sequence[float],
    upper: Sequence[float],
    points: Sequence[Sequence[float]],
    ref_point: Sequence[float],
    region: str,
    maximize: Senses = False,
) -> bool:
    """Whether all of a box is: behind one point at its best corner, or in front of all up to its worst corner."""
    flips = _flips(maximize, len(ref_point))
    ref = _minimized(ref_point, maximize)
    best = [-high if flip else low for low, high, flip in zip(lower, upper, flips, strict=True)]
    worst = [-low if flip else high for low, high, flip in zip(lower, upper, flips, strict=True)]
    front = _counting(points, ref, maximize).values()
    if not _covers(worst, ref):
        return False
    if region == "dominated":
        return any(_covers(z, best) for z in front)
    return not any(_better(z, worst) for z in front)


def boxes_are_disjoint(lower: Sequence[Sequence[float]], upper: Sequence[Sequence[float]]) -> bool:
    """Whether no two boxes share any volume."""
    boxes = list(zip(lower, upper, strict=True))
    return not any(
        all(max(a, c) < min(b, d) for a, b, c, d in zip(*one, *other, strict=True))
        for j, other in enumerate(boxes)
        for one in boxes[:j]
    )


def box_volumes(lower: Sequence[Sequence[float]], upper: Sequence[Sequence[float]]) -> Rational:
    """Sum of the volumes of finite boxes."""
    sides = ([_exact(b) - _exact(a) for a, b in zip(*box, strict=True)] for box in zip(lower, upper, strict=True))
    return sum(prod(box) for box in sides)


def _exact(x: float) -> Rational:
    if isinf(x):
        return x  # type: ignore[return-value]
    return int(x) if float(x).is_integer() else Fraction(x)


def _flips(maximize: Senses, m: int) -> list[bool]:
    return [maximize] * m if isinstance(maximize, bool) else list(maximize)


def _minimized(point: Sequence[float], maximize: Senses) -> Point:
    flips = _flips(maximize, len(point))
    return tuple(-_exact(x) if flip else _exact(x) for x, flip in zip(point, flips, strict=True))


def _counting(points: Sequence[Sequence[float]], ref: Point, maximize: Senses) -> dict[int, Point]:
    """Row -> minimized point, of the points that are better than the reference point in every objective."""
    front = enumerate(_minimized(z, maximize) for z in points)
    return {i: z for i, z in front if _better(z, ref)}


def _better(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x < y for x, y in zip(a, b, strict=True))


def _covers(point: Sequence[float], x: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(point, x, strict=True))


def _cells(points: Iterable[Point], ref: Point) -> Iterator[tuple[tuple[Rational, Rational], ...]]:
    """The cells, m intervals each, that points and reference point cut out."""
    cuts = [sorted({*values, last}) for *values, last in zip(*points, ref, strict=True)]
    return product(*[list(pairwise(along)) for along in cuts])


def _measure(points: Iterable[Point], ref: Point) -> Rational:
    return _sliced(frozenset(points), ref)


@lru_cache(maxsize=1 << 16)
def _sliced(points: frozenset[Point], ref: Point) -> Rational:
    if not points or not ref:
        return len(points)
    slabs = pairwise(sorted({z[-1] for z in points} | {ref[-1]}))
    return sum(
        (high - low) * _sliced(frozenset(z[:-1] for z in points if z[-1] <= low), ref[:-1]) for low, high in slabs
    )
