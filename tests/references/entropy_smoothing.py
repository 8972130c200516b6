"""EPO's penalty and history by loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def penalty(
    entropies: Rows,
    history: Sequence[float],
    steps: Sequence[int],
    mask: Sequence[Sequence[bool]],
    low: float,
    high: float,
    alpha: float,
    scope: str = "token",
    sequence_mean: str = "valid",
    least_step: int = 0,
    gate: str = "row",
) -> tuple[list[list[float]], list[list[bool]]]:
    """Penalties and which valid tokens have none."""
    penalties, in_range = [], []
    for row, step, valid in zip(entropies, steps, mask, strict=True):
        expected = history[step] if history else math.nan
        own = [h for h, counts in zip(row, valid, strict=True) if counts or sequence_mean == "all"]
        mean = math.fsum(own) / len(own) if own else math.nan
        active = (max(steps) if gate == "batch" else step) >= least_step
        given = []
        for h, counts in zip(row, valid, strict=True):
            x = mean if scope == "sequence" else h
            outside = not (expected * low < x < expected * high) and not math.isnan(expected)
            given.append(alpha if counts and active and outside else 0.0)
        penalties.append(given)
        in_range.append([counts and p == 0 for counts, p in zip(valid, given, strict=True)])
    return penalties, in_range


def means(epochs: Sequence[tuple[Rows, Sequence[int], Sequence[Sequence[bool]]]], num_steps: int) -> list[float]:
    """Of the epochs that reached a step, the mean of the mean over its valid tokens; NaN where none did."""
    history: list[list[float]] = [[] for _ in range(num_steps)]
    for entropies, steps, mask in epochs:
        for step in range(num_steps):
            tokens = [
                h
                for row, s, valid in zip(entropies, steps, mask, strict=True)
                for h, counts in zip(row, valid, strict=True)
                if s == step and counts and math.isfinite(h)
            ]
            if tokens:
                history[step].append(math.fsum(tokens) / len(tokens))
    return [math.fsum(own) / len(own) if own else math.nan for own in history]
