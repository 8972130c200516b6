"""Weight vectors, scalarizations and linear support by their definitions: loops, and fractions where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from math import dist, fsum, log, prod, sqrt

Row = Sequence[float]
Rows = Sequence[Row]


# --- sets of weights ---


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write total as an ordered sum of non-negative integers, in lexicographic order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def simplex_lattice(objectives: int, partitions: int) -> list[tuple[Fraction, ...]]:
    """Das and Dennis 1998."""
    return [tuple(Fraction(a, partitions) for a in c) for c in compositions(partitions, objectives)]


def layer(weights: Sequence[Sequence[Fraction]], scale: Fraction) -> list[tuple[Fraction, ...]]:
    """Deb and Jain 2014: drawn towards the centre of the simplex."""
    return [tuple(scale * a + (1 - scale) / len(w) for a in w) for w in weights]


def incremental_simplex_lattice(objectives: int, rings: int) -> set[tuple[Fraction, ...]]:
    """Takagi, Takadama and Sato 2020: in each step all weights move inwards and a new edge is laid around them.

    In units of 1 / (m rings): the edge's points are sums of `step` vectors m e_j, and at least one of their coordinates
    is 0; later steps add 1 to every coordinate.
    """
    m = objectives
    points = {(0,) * m}
    for step in range(1, rings + 1):
        edge = {tuple(m * a for a in c) for c in compositions(step, m) if min(c) == 0}
        points = {tuple(a + 1 for a in p) for p in points} | edge
    return {tuple(Fraction(a, m * rings) for a in p) for p in points}


def riesz_energy(weights: Rows, power: float) -> float:
    """Logarithm of the mean over pairs of 1 / distance^power (Blank et al. 2021)."""
    terms = [dist(a, b) ** -power for a, b in combinations(weights, 2)]
    return log(fsum(terms) / len(terms))


def neighbors(
    weights: Rows,
    k: int,
    distance: Callable[[Row, Row], float] = dist,
    include_self: bool = False,
    skip_duplicates: bool = False,
) -> list[list[int]]:
    """The k nearest rows of each row, nearest first, ties to the lowest row; -1 where there are not enough."""
    result = []
    for i, w in enumerate(weights):
        by_distance = sorted((distance(w, other), j) for j, other in enumerate(weights) if j != i)
        listed = [i] if include_self else []
        known = [w]
        for _, j in by_distance:
            if not (skip_duplicates and weights[j] in known):
                listed.append(j)
                known.append(weights[j])
        result.append((listed + [-1] * k)[:k])
    return result


# --- adaptation ---


def psa_weights(
    weights: Rows, values: Rows, archive: Rows, delta: float, min_squared_distance: float
) -> list[list[float]]:
    """Czyzzak and Jaszkiewicz 1998, as MORL/D applies it; values are maximized.

    Where a value is no worse than in the nearest point of the archive that is not (nearly) itself, the objective's
    weight grows by 1 + delta, else it shrinks by as much.
    """
    result = []
    for w, value in zip(weights, values, strict=True):
        squared = [fsum((a - b) ** 2 for a, b in zip(value, other, strict=True)) for other in archive]
        near = [i for i in range(len(archive)) if squared[i] > min_squared_distance]
        if near:
            closest = archive[min(near, key=lambda i: (squared[i], i))]
            w = [a * (1 + delta) if v >= c else a / (1 + delta) for a, v, c in zip(w, value, closest, strict=True)]
        result.append([a / fsum(w) for a in w])
    return result


def sparsity_level(row: Row, others: Rows) -> float:
    """Qi et al. 2014, the vicinity distance: the product of the distances to the m nearest others."""
    return prod(sorted(dist(row, other) for other in others)[: len(row)])


def awa_weights(
    weights: Rows, values: Rows, elite: Rows, ideal_point: Row, count: int, eps: float
) -> tuple[list[list[float]], list[int]]:
    """Qi et al. 2014, minimization: the most crowded subproblems go, the elite's sparsest points come in their place.

    Returns the weights and for each the row of the elite that it was made from, -1 for those that stay.
    """
    kept, gone = list(range(len(values))), []
    for _ in range(count):
        levels = {i: sparsity_level(values[i], [values[j] for j in kept if j != i]) for i in kept}
        gone.append(min(kept, key=lambda i: (levels[i], i)))
        kept.remove(gone[-1])
    population = [values[i] for i in kept]
    result, rows = [list(w) for w in weights], [-1] * len(weights)
    for i in gone:
        level, row = max((sparsity_level(f, population), -row) for row, f in enumerate(elite))
        if level > 0:
            rows[i] = -row
            population.append(elite[-row])
            inverse = [1 / (abs(f - z) + eps) for f, z in zip(elite[-row], ideal_point, strict=True)]
            result[i] = [a / fsum(inverse) for a in inverse]
    return result, rows


# --- scalarizations ---


def weighted_sum(value: Row, weight: Row) -> float:
    return fsum(w * v for w, v in zip(weight, value, strict=True))


def weighted_log(value: Row, weight: Row) -> float:
    return fsum(w * log(v) for w, v in zip(weight, value, strict=True) if w != 0)


def chebyshev(value: Row, weight: Row, ideal_point: Row, augmentation: float = 0.0) -> float:
    """Bowman 1976; Steuer and Choo 1983 with the augmentation."""
    gaps = [abs(v - z) for v, z in zip(value, ideal_point, strict=True)]
    return max(w * g for w, g in zip(weight, gaps, strict=True)) + augmentation * fsum(gaps)


def penalty_boundary_intersection(value: Row, weight: Row, ideal_point: Row, theta: float = 5.0) -> float:
    """Zhang and Li 2007."""
    length = sqrt(fsum(w * w for w in weight))
    gaps = [v - z for v, z in zip(value, ideal_point, strict=True)]
    d1 = fsum(g * w for g, w in zip(gaps, weight, strict=True)) / length
    d2 = sqrt(fsum((g - d1 * w / length) ** 2 for g, w in zip(gaps, weight, strict=True)))
    return d1 + theta * d2


def achievement(value: Row, weight: Row, reference: Row, augmentation: float = 0.0) -> float:
    """Wierzbicki 1980, minimization: the largest weighted excess over the reference point."""
    excess = [(v - z) / w for v, z, w in zip(value, reference, weight, strict=True)]
    return max(excess) + augmentation * fsum(excess)


def power_mean(value: Row, weight: Row, p: float) -> float:
    """(sum w v^p)^(1/p); p = 0: the weighted geometric mean, for weights that sum to 1."""
    if p == 0:
        return prod(v**w for w, v in zip(weight, value, strict=True))
    if p in (float("inf"), -float("inf")):
        present = [v for w, v in zip(weight, value, strict=True) if w != 0]
        return max(present) if p > 0 else min(present)
    return fsum(w * v**p for w, v in zip(weight, value, strict=True)) ** (1 / p)


def ordered_weighted_average(value: Row, weight: Row) -> float:
    """Yager 1988: the first weight goes to the smallest value (Siddique et al. 2020 for fairness)."""
    return weighted_sum(sorted(value), weight)


# --- linear support ---


def corner_weights(values: Sequence[Sequence[int | Fraction]]) -> set[tuple[Fraction, ...]]:
    """Weights of the vertices of {(w, v): V w <= v, w in the simplex}, by trying all sets of tight inequalities.

    Roijers 2016, section 3.3. Every vertex has m of the n + m inequalities tight beside sum w = 1.
    """
    m = len(values[0])
    inequalities = [([Fraction(a) for a in row], Fraction(-1)) for row in values]
    inequalities += [([-Fraction(i == j) for i in range(m)], Fraction(0)) for j in range(m)]
    corners = set()
    for tight in combinations(inequalities, m):
        system = [[*row, v, Fraction(0)] for row, v in tight] + [[Fraction(1)] * m + [Fraction(0), Fraction(1)]]
        solution = solve(system)
        if solution is None:
            continue
        *w, v = solution
        if all(sum(a * b for a, b in zip(row, w, strict=True)) + c * v <= 0 for row, c in inequalities):
            corners.add(tuple(w))
    return corners


def solve(system: list[list[Fraction]]) -> list[Fraction] | None:
    """Gauss-Jordan on [A | b] with square A; None where A is singular."""
    rows = [row[:] for row in system]
    n = len(rows)
    for k in range(n):
        pivot = next((i for i in range(k, n) if rows[i][k] != 0), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [a / rows[k][k] for a in rows[k]]
        for i in range(n):
            if i != k and rows[i][k] != 0:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]
