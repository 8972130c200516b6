"""Non-domination ranks from their definition, over the whole n x n dominance relation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dominates(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """p is nowhere worse than q and somewhere better (minimization); false for NaN."""
    return (p <= q).all(-1) & (p < q).any(-1)


def non_dominated_sort(points: np.ndarray, maximize: bool | Sequence[bool] = False) -> np.ndarray:
    """rank[q] = 1 + the largest rank of the points dominating q, 0 if none does; rows with NaN come last."""
    points = np.asarray(points, dtype=np.float64)
    z = np.where(maximize, -points, points)
    n = len(z)
    dominance = dominates(z[:, None, :], z[None, :, :])  # [n, n]: row dominates column
    ranks = np.full(n, -1, dtype=np.int32)
    missing = np.isnan(z).any(-1)
    # Whoever dominates q precedes q lexicographically, so its rank is known in time.
    for q in sorted(np.flatnonzero(~missing), key=lambda i: tuple(z[i])):
        ranks[q] = 1 + max(ranks[dominance[:, q]], default=-1)
    ranks[missing] = 1 + max(ranks[~missing], default=-1)
    return ranks
