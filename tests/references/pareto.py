"""Pareto dominance from its definition, for one front: the whole n x n relation, then what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Senses = bool | Sequence[bool]


def minimized(points: np.ndarray, maximize: Senses) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    return np.where(maximize, -points, points)


def no_worse(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[p, q]: row p of z is at least as good as row q of w in every objective; false for NaN."""
    return np.logical_and.reduce([z[:, None, k] <= w[None, :, k] for k in range(z.shape[1])])


def dominates(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[p, q]: row p of z is nowhere worse than row q of w and somewhere better (minimization); false for NaN."""
    return no_worse(z, w) & ~no_worse(w, z).T


def total_violation(constraints: np.ndarray) -> np.ndarray:
    """Of constraints g <= 0, (n, c), the sum of what lies above 0; (n,) is that sum already."""
    exceeded = np.maximum(np.asarray(constraints, dtype=np.float64), 0)  # NaN stays NaN
    return exceeded if exceeded.ndim == 1 else exceeded.sum(1)


def kept_rows(n: int, length: int | None = None, mask: np.ndarray | None = None) -> np.ndarray:
    return np.flatnonzero(np.arange(n) < (n if length is None else length) if mask is None else mask)


def non_dominated_sort(
    points: np.ndarray,
    maximize: Senses = False,
    *,
    constraints: np.ndarray | None = None,
    stop_after: int | None = None,
    length: int | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """rank[q] = 1 + the largest rank of the points dominating q, 0 if none does; rows with NaN come last.

    With constraints p dominates q when it violates them less, or equally and p dominates q (Deb et al. 2002).
    """
    points = np.asarray(points)
    ranks = np.full(len(points), -1, dtype=np.int32)
    rows = kept_rows(len(points), length, mask)
    if len(rows) < len(points):
        constraints = None if constraints is None else np.asarray(constraints)[rows]
        ranks[rows] = non_dominated_sort(points[rows], maximize, constraints=constraints, stop_after=stop_after)
        return ranks

    z = minimized(points, maximize)
    violation = np.zeros(len(z)) if constraints is None else total_violation(constraints)
    missing = np.isnan(z).any(-1) | np.isnan(violation)
    less_violated = violation[:, None] < violation[None, :]
    equally_violated = violation[:, None] == violation[None, :]
    dominance = less_violated | equally_violated & dominates(z, z)  # [n, n]: row dominates column
    # Whoever dominates q comes before q in this order, so its rank is known in time.
    for q in sorted(np.flatnonzero(~missing), key=lambda i: (violation[i], *z[i])):
        ranks[q] = 1 + ranks[dominance[:, q] & ~missing].max(initial=-1)
    ranks[missing] = 1 + ranks[~missing].max(initial=-1)
    return ranks if stop_after is None else stopped(ranks, stop_after)


def stopped(ranks: np.ndarray, stop_after: int) -> np.ndarray:
    """Ranks up to the first front with which `stop_after` points are ranked; all later ones are the next rank."""
    for rank in range(ranks.max(initial=-1)):
        if np.count_nonzero((ranks >= 0) & (ranks <= rank)) >= stop_after:
            return np.minimum(ranks, rank + 1)
    return ranks


def fronts(ranks: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(np.asarray(ranks) == rank).tolist() for rank in range(1 + np.max(ranks, initial=-1))]


def is_non_dominated(
    points: np.ndarray,
    maximize: Senses = False,
    *,
    deduplicate: bool = False,
    length: int | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """No row dominates it; of equal rows only the lowest one, if asked. Never a row with NaN."""
    z = minimized(points, maximize)
    rows = kept_rows(len(z), length, mask)
    rows = rows[~np.isnan(z[rows]).any(-1)]
    left_out = dominates(z[rows], z[rows]).any(0)
    if deduplicate:
        equal = no_worse(z[rows], z[rows]) & no_worse(z[rows], z[rows]).T
        left_out |= np.triu(equal, k=1).any(0)  # some earlier row is equal
    result = np.zeros(len(z), dtype=bool)
    result[rows[~left_out]] = True
    return result


def dominance_counts(
    points: np.ndarray, maximize: Senses = False, *, length: int | None = None, mask: np.ndarray | None = None
) -> np.ndarray:
    """How many rows dominate each. A row with NaN dominates none, and every row without dominates it."""
    z = minimized(points, maximize)
    rows = kept_rows(len(z), length, mask)
    missing = np.isnan(z[rows]).any(-1)
    counts = np.full(len(z), -1, dtype=np.int32)
    counts[rows] = np.where(missing, np.count_nonzero(~missing), dominates(z[rows], z[rows]).sum(0))
    return counts


def is_dominated_by(
    points: np.ndarray,
    others: np.ndarray,
    maximize: Senses = False,
    *,
    weakly: bool = False,
    length: int | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Some row of `others` dominates the point, or equals it (weakly). Every row without NaN dominates one with NaN."""
    z, w = minimized(points, maximize), minimized(others, maximize)
    w = w[kept_rows(len(w), length, mask)]
    w = w[~np.isnan(w).any(-1)]
    relation = no_worse if weakly else dominates
    return relation(w, z).any(0) | np.isnan(z).any(-1) & (len(w) > 0)
