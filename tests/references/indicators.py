"""Indicators of one front by the formulas of the literature: double loops over rows, float64.

Points, reference sets and weights are sequences of rows; `maximize` is one bool, or one for each objective, and mirrors
an objective before a formula for minimization is applied. Empty sets are the tests' affair, not the formulas'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from math import dist, fsum, inf, log, sqrt

Row = Sequence[float]
Rows = Sequence[Row]
Senses = bool | Sequence[bool]


def minimized(rows: Rows, maximize: Senses) -> list[list[float]]:
    def mirrored(row: Row) -> list[float]:
        flips = [maximize] * len(row) if isinstance(maximize, bool) else maximize
        return [-a if flip else a for a, flip in zip(row, flips, strict=True)]

    return [mirrored(row) for row in rows]


# --- the best point for each query, which most indicators average ---


def dot(q: Row, p: Row) -> float:
    return fsum(a * b for a, b in zip(q, p, strict=True))


def chebyshev(q: Row, p: Row) -> float:
    return max(a * b for a, b in zip(q, p, strict=True))


def squared_distance(q: Row, p: Row) -> float:
    return fsum((a - b) ** 2 for a, b in zip(q, p, strict=True))


def squared_distance_plus(q: Row, p: Row) -> float:
    """Ishibuchi et al. 2015: only how far p is worse than q counts."""
    return fsum(max(b - a, 0.0) ** 2 for a, b in zip(q, p, strict=True))


def additive_excess(q: Row, p: Row) -> float:
    return max(b - a for a, b in zip(q, p, strict=True))


def multiplicative_excess(q: Row, p: Row) -> float:
    return max(b / a for a, b in zip(q, p, strict=True))


KINDS: list[Callable[[Row, Row], float]] = [
    dot,
    chebyshev,
    squared_distance,
    squared_distance_plus,
    additive_excess,
    multiplicative_excess,
]


def best_points(queries: Rows, points: Rows, kind: int) -> tuple[list[float], list[int]]:
    """For each query the largest (kind 0) or smallest value over the points, and the lowest row that attains it."""
    sign = -1.0 if kind == 0 else 1.0
    values, rows = [], []
    for q in queries:
        best, best_row = inf, -1
        for row, p in enumerate(points):
            value = sign * KINDS[kind](q, p)
            if best_row < 0 or value < best:
                best, best_row = value, row
        values.append(sign * best)
        rows.append(best_row)
    return values, rows


# --- utilities ---


def expected_utility(points: Rows, weights: Rows, maximize: bool = True) -> float:
    """Zintgraf et al. 2015: the mean over the weights of the best weighted sum."""
    best = max if maximize else min
    return fsum(best(dot(w, p) for p in points) for w in weights) / len(weights)


def maximum_utility_loss(points: Rows, reference: Rows, weights: Rows, maximize: bool = True) -> float:
    """Zintgraf et al. 2015: the largest loss of utility against the reference set over the weights."""
    best = max if maximize else min
    sign = 1 if maximize else -1
    return max(sign * (best(dot(w, r) for r in reference) - best(dot(w, p) for p in points)) for w in weights)


def r2(points: Rows, weights: Rows, ideal_point: Row) -> float:
    """Hansen and Jaszkiewicz 1998 in the unary form of Brockhoff et al. 2012."""
    return fsum(r2_terms(points, weights, ideal_point)) / len(weights)


def r2_terms(points: Rows, weights: Rows, ideal_point: Row) -> list[float]:
    return [
        min(max(w_j * abs(z_j - p_j) for w_j, z_j, p_j in zip(w, ideal_point, p, strict=True)) for p in points)
        for w in weights
    ]


# --- distances to a reference set ---


def distances(from_rows: Rows, to_rows: Rows, distance: Callable[[Row, Row], float] = dist) -> list[float]:
    """From each row of the first set to the nearest row of the second."""
    return [min(distance(a, b) for b in to_rows) for a in from_rows]


def plus(reference_row: Row, point: Row) -> float:
    return sqrt(squared_distance_plus(reference_row, point))


def power_mean(values: Sequence[float], p: float) -> float:
    """((1/n) sum d^p)^(1/p), as Schuetze et al. 2012 average; p = inf: the largest."""
    if p == inf:
        return max(values)
    return (fsum(d**p for d in values) / len(values)) ** (1 / p)


def mean_after_root(values: Sequence[float], p: float) -> float:
    """(sum d^p)^(1/p) / n, as Van Veldhuizen 1998 has it with p = 2."""
    return fsum(d**p for d in values) ** (1 / p) / len(values)


def gd(points: Rows, reference: Rows, p: float = 1, mean: Callable[..., float] = power_mean) -> float:
    return mean(distances(points, reference), p)


def igd(points: Rows, reference: Rows, p: float = 1, mean: Callable[..., float] = power_mean) -> float:
    """Coello and Reyes 2004."""
    return mean(distances(reference, points), p)


def gd_plus(
    points: Rows, reference: Rows, maximize: Senses = False, p: float = 1, mean: Callable[..., float] = power_mean
) -> float:
    points, reference = minimized(points, maximize), minimized(reference, maximize)
    return mean(distances(points, reference, lambda a, r: plus(r, a)), p)


def igd_plus(
    points: Rows, reference: Rows, maximize: Senses = False, p: float = 1, mean: Callable[..., float] = power_mean
) -> float:
    points, reference = minimized(points, maximize), minimized(reference, maximize)
    return mean(distances(reference, points, plus), p)


def average_hausdorff(points: Rows, reference: Rows, p: float = 1) -> float:
    """Schuetze et al. 2012."""
    return max(gd(points, reference, p), igd(points, reference, p))


def epsilon_indicator(points: Rows, reference: Rows, maximize: Senses = False, kind: str = "additive") -> float:
    """Zitzler et al. 2003: the smallest epsilon by which the points, made better, weakly dominate the reference."""
    if kind == "additive":
        points, reference = minimized(points, maximize), minimized(reference, maximize)
        return max(min(additive_excess(r, p) for p in points) for r in reference)
    flips = [maximize] * len(points[0]) if isinstance(maximize, bool) else maximize

    def factor(r: Row, p: Row) -> float:
        return max(r_j / p_j if flip else p_j / r_j for r_j, p_j, flip in zip(r, p, flips, strict=True))

    return max(min(factor(r, p) for p in points) for r in reference)


# --- how a front is spread ---


def sparsity(points: Rows) -> float:
    """Xu et al. 2020: squared gaps between neighbours in each objective, summed, over n - 1; 0 for one point."""
    if len(points) < 2:
        return 0.0
    total = 0.0
    for column in zip(*points, strict=True):
        ordered = sorted(column)
        total += fsum((b - a) ** 2 for a, b in pairwise(ordered))
    return total / (len(points) - 1)


def nearest_distances(points: Rows, distance: Callable[[Row, Row], float]) -> list[float]:
    return [min(distance(p, q) for j, q in enumerate(points) if j != i) for i, p in enumerate(points)]


def city_block(p: Row, q: Row) -> float:
    return fsum(abs(a - b) for a, b in zip(p, q, strict=True))


def spacing(points: Rows, ddof: int = 1) -> float:
    """Schott 1995: the standard deviation of the city-block distances to the nearest other point."""
    d = nearest_distances(points, city_block)
    mean = fsum(d) / len(d)
    return sqrt(fsum((x - mean) ** 2 for x in d) / (len(d) - ddof))


def spread(points: Rows, extremes: tuple[Row, Row]) -> float:
    """Deb et al. 2002, two objectives: (d_f + d_l + sum |d_i - mean|) / (d_f + d_l + (n - 1) mean).

    The points are sorted by the first objective; d_f and d_l lead to the extremes of the true front.
    """
    ordered = sorted(points)
    first, last = sorted(extremes)
    d = [dist(a, b) for a, b in pairwise(ordered)]
    d_f, d_l = dist(ordered[0], first), dist(ordered[-1], last)
    mean = fsum(d) / len(d)
    return (d_f + d_l + fsum(abs(x - mean) for x in d)) / (d_f + d_l + len(d) * mean)


def generalized_spread(points: Rows, extremes: Rows) -> float:
    """Zhou et al. 2006: distances to the nearest other point, one extreme for each objective."""
    d = nearest_distances(points, dist)
    ends = fsum(distances(extremes, points))
    mean = fsum(d) / len(d)
    return (ends + fsum(abs(x - mean) for x in d)) / (ends + len(d) * mean)


# --- what GFlowNets measure (Jain et al. 2023) ---


def preference_entropy(points: Rows, reference: Rows, eps: float = 0.0) -> float:
    """Entropy of the histogram of the nearest reference row; ties go to the lowest."""
    counts = [0] * len(reference)
    for p in points:
        nearest = [dist(p, r) for r in reference]
        counts[nearest.index(min(nearest))] += 1
    shares = [c / len(points) for c in counts if c > 0]
    return -fsum(s * log(s + eps) for s in shares)


def top_k(scores: Sequence[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def top_k_diversity(distance: Callable[[int, int], float], scores: Sequence[float], k: int) -> float:
    """Mean distance between two of the k best rows."""
    pairs = list(combinations(top_k(scores, k), 2))
    return fsum(distance(i, j) for i, j in pairs) / len(pairs)


def cardinality(points: Rows, maximize: Senses) -> int:
    """Different non-dominated rows."""
    distinct = set(map(tuple, minimized(points, maximize)))

    def dominates(p: Row, q: Row) -> bool:
        return p != q and all(a <= b for a, b in zip(p, q, strict=True))

    return sum(not any(dominates(p, q) for p in distinct) for q in distinct)
