"""Token selection by sorting every scope on (score descending, flat index ascending)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def count(ratio: float, valid: int) -> int:
    """How many of the valid tokens are kept; 0.1 of 30 is 3 although 0.1 is slightly more than a tenth."""
    return min(valid, math.ceil(ratio * valid * (1 - 2**-50)))


def select_tokens(
    advantages: np.ndarray,
    entropies: np.ndarray,
    mask: np.ndarray,
    ratio: float,
    scope: str = "batch",
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """advantages (N,) or (N, T), entropies (N, T), mask (N, T); groups [N]: labels for scope="group"."""
    n, t = entropies.shape
    precision = np.float64 if np.float64 in (advantages.dtype, entropies.dtype) else np.float32
    if advantages.ndim == 1:
        advantages = np.repeat(advantages[:, None], t, axis=1)
    with np.errstate(all="ignore"):
        score = np.abs(advantages.astype(precision)) * entropies.astype(precision)

    scopes = defaultdict(list)
    for i in range(n):
        label = {"batch": None, "sequence": i, "group": groups[i] if groups is not None else None}[scope]
        scopes[label] += [(i, j) for j in range(t) if mask[i, j] != 0 and not np.isnan(score[i, j])]

    keep = np.zeros((n, t), dtype=bool)
    for tokens in scopes.values():
        for token in sorted(tokens, key=lambda token: (-score[token], token))[: count(ratio, len(tokens))]:
            keep[token] = True
    return keep
