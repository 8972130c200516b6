"""Group-relative advantages, one value at a time, in exact rational arithmetic up to each square root."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction

Value = Fraction | None  # None: not scored
DEFAULT_SCALE = {"grpo": "group", "gdpo": "group", "dr_grpo": "none", "rloo": "none"}


def group_advantages(
    rewards: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    weights: Sequence[Sequence[float]] | None = None,
    method: str = "grpo",
    scale: str | None = None,
    eps: float = 1e-4,
    ddof: int = 1,
) -> list[float]:
    """Advantages of finite rewards [N][M] (NaN: not scored); weights [N][M]; groups [N] are labels."""
    scale = scale or DEFAULT_SCALE[method]
    n = len(rewards)
    if weights is None:
        weights = [[1.0] * len(row) for row in rewards]
    objectives = range(len(rewards[0]) if n else 0)
    batch = list(range(n))
    members = {g: [i for i in batch if groups[i] == g] for g in groups}

    if method == "gdpo":
        columns = [[_value(row[k]) for row in rewards] for k in objectives]
        normalized = []
        for r in columns:
            z: list[Value] = [None] * n
            for group in members.values():
                mean, sigma = _mean(r, group), _sigma(r, group, batch, scale, ddof)
                for i in _scored(r, group):
                    z[i] = Fraction(_divide(r[i] - mean, sigma, eps))
            normalized.append(z)
        s = [_weighted_sum([z[i] for z in normalized], weights[i]) for i in batch]
        mean, sigma = _mean(s, batch), _std(s, batch, ddof)
        return [0.0 if s[i] is None else _divide(s[i] - mean, sigma, eps) for i in batch]

    s = [_weighted_sum([_value(r) for r in rewards[i]], weights[i]) for i in batch]
    result = [0.0] * n
    for group in members.values():
        mean, sigma = _mean(s, group), _sigma(s, group, batch, scale, ddof)
        for i in _scored(s, group):
            baseline = _mean(s, [j for j in group if j != i]) if method == "rloo" else mean
            centred = s[i] - baseline if baseline is not None else Fraction(0)
            result[i] = _divide(centred, sigma, eps)
    return result


def _value(x: float) -> Value:
    return None if math.isnan(x) else Fraction(x)


def _weighted_sum(values: Sequence[Value], weights: Sequence[float]) -> Value:
    terms = [Fraction(w) * v for w, v in zip(weights, values, strict=True) if v is not None]
    return sum(terms, Fraction(0)) if terms else None


def _scored(values: Sequence[Value], rows: Sequence[int]) -> list[int]:
    return [i for i in rows if values[i] is not None]


def _mean(values: Sequence[Value], rows: Sequence[int]) -> Value:
    scored = _scored(values, rows)
    return sum((values[i] for i in scored), Fraction(0)) / len(scored) if scored else None


def _std(values: Sequence[Value], rows: Sequence[int], ddof: int) -> float:
    scored = _scored(values, rows)
    if not scored or len(scored) - ddof <= 0:
        return 0.0
    mean = _mean(values, rows)
    return math.sqrt(sum((values[i] - mean) ** 2 for i in scored) / (len(scored) - ddof))


def _sigma(values: Sequence[Value], group: Sequence[int], batch: Sequence[int], scale: str, ddof: int) -> float | None:
    return None if scale == "none" else _std(values, group if scale == "group" else batch, ddof)


def _divide(centred: Fraction, sigma: float | None, eps: float) -> float:
    """centred / (sigma + eps); no division where there is no sigma, 0 where the divisor is 0."""
    if sigma is None:
        return float(centred)
    return float(centred) / (sigma + eps) if sigma + eps else 0.0
