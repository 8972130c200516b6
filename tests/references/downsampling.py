"""D3S in plain Python: both levels from the references of each, and the loss by a loop."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from references import rollouts, tokens


def of_rollouts(advantages: np.ndarray, mask: np.ndarray) -> list[float]:
    """One number a rollout: its own, or the mean over its tokens; NaN without a token."""
    numbers = []
    for a, m in zip(advantages.tolist(), mask.tolist(), strict=True):
        if isinstance(a, list):
            own = [x for x, valid in zip(a, m, strict=True) if valid]
            numbers.append(math.fsum(own) / len(own) if own else math.nan)
        else:
            numbers.append(a if any(m) else math.nan)
    return numbers


def select(
    advantages: np.ndarray,
    entropies: np.ndarray,
    mask: np.ndarray,
    budget: int | None,
    ratio: float,
    *,
    rollout_scope: str = "batch",
    token_scope: str = "batch",
    groups: Sequence[Hashable] | None = None,
    drop_zeros: bool = False,
) -> tuple[list[int], np.ndarray]:
    """Rows of the selected rollouts and the kept tokens (N, T); groups [N] are labels."""
    n = len(entropies)
    a = of_rollouts(advantages, mask)
    if drop_zeros:
        a = [math.nan if x == 0 else x for x in a]
    labels = list(groups) if rollout_scope == "group" and budget is not None else [None] * n
    rows = rollouts.select_rollouts(a, n if budget is None else budget, labels)

    valid = np.zeros(mask.shape, dtype=bool)
    valid[rows] = mask[rows]
    if drop_zeros:
        valid &= (advantages if advantages.ndim == 2 else advantages[:, None]) != 0
    return rows, tokens.select_tokens(advantages, entropies, valid, ratio, token_scope, groups)


def token_mean(values: np.ndarray, keep: np.ndarray, mask: np.ndarray, every: bool) -> float:
    """Sum over tokens of both, over the number of these or of all in the mask."""
    total, count = [], 0
    for x, k, m in zip(values.flat, keep.flat, mask.flat, strict=True):
        if k and m:
            total.append(x)
        count += bool(m and (k or every))
    return math.fsum(total) / max(count, 1)
