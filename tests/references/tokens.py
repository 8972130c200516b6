"""Token selection by sorting every scope on (score descending, flat index ascending)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch


def count(ratio: float, valid: int, at_least: int = 0) -> int:
    """How many of the valid tokens are kept; 0.1 of 30 is 3 although 0.1 is slightly more than a tenth."""
    return min(valid, max(math.ceil(ratio * valid * (1 - 2**-50)), at_least))


def trl_mask(entropies: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
    """TRL's `get_high_entropy_mask` on one rank, from its description; the dtype that is given instead of float32."""
    valid = entropies[mask.bool()]
    if valid.numel() == 0:
        return torch.zeros_like(mask, dtype=torch.bool)
    return (entropies * mask >= torch.quantile(valid, threshold)) & mask.bool()


def select_tokens(
    advantages: np.ndarray,
    entropies: np.ndarray,
    mask: np.ndarray,
    ratio: float,
    scope: str = "batch",
    groups: Sequence[Hashable] | None = None,
    at_least: int = 0,
    threshold: str = "exact",
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
        if threshold == "quantile":
            values = torch.tensor([score[token].item() for token in tokens], dtype=torch.from_numpy(score).dtype)
            reached = trl_mask(values, torch.ones_like(values), 1 - ratio).tolist()
            kept = [token for token, reaches in zip(tokens, reached, strict=True) if reaches]
        else:
            descending = sorted(tokens, key=lambda token: (-score[token], token))
            kept = descending[: count(ratio, len(tokens), at_least)]
        for token in kept:
            keep[token] = True
    return keep
