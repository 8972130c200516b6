"""Rewards by their definitions: loops over rollouts, prompts, members and pairs. NaN: not scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Row = Sequence[float]
Rows = Sequence[Row]
NAN = math.nan


def scored(row: Row) -> list[float]:
    return [a for a in row if not math.isnan(a)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def mean(row: Row) -> float:
    return math.fsum(row) / len(row) if row else NAN


def variance(row: Row, ddof: int) -> float:
    if len(row) <= ddof:
        return 0.0
    centre = mean(row)
    return math.fsum((a - centre) ** 2 for a in row) / (len(row) - ddof)


def z_scores(row: Row, eps: float = 1e-4) -> list[float]:
    """GRPO over one group, as TRL has it."""
    return [(a - mean(row)) / (math.sqrt(variance(row, 1)) + eps) for a in row]


def weighted(row: Row, weights: Row, nan: str) -> float:
    """Missing rewards are skipped, zero, or spread."""
    if nan == "skip" and not scored(row):
        return NAN
    if nan == "propagate" and len(scored(row)) < len(row):
        return NAN
    return math.fsum(w * a for a, w in zip(row, weights, strict=True) if not math.isnan(a))


def rubric_share(items: Row, weights: Row, most: Row) -> float:
    given = [(c, w, m) for c, w, m in zip(items, weights, most, strict=True) if not math.isnan(c)]
    reachable = math.fsum(w * m for _, w, m in given)
    return math.fsum(w * c for c, w, _ in given) / reachable if given and reachable != 0 else NAN


def ensemble(row: Row, method: str, penalty: float, ddof: int) -> float:
    """Coste et al. 2023: mean, worst case, mean less variance."""
    members = scored(row)
    if not members:
        return NAN
    if method == "wco":
        return min(members)
    return mean(members) - (penalty * variance(members, ddof) if method == "uwo" else 0.0)


def best(row: Row, allowed: Sequence[bool], sign: int = 1) -> int:
    """First of the largest (sign 1) or smallest (sign -1) allowed values; -1 without one."""
    rows = [j for j, a in enumerate(row) if allowed[j] and not math.isnan(a)]
    return max(rows, key=lambda j: (sign * row[j], -j)) if rows else -1


def worst_group(rewards: Rows) -> int:
    means = [mean(scored(column)) for column in zip(*rewards, strict=True)]
    return best(means, [True] * len(means), -1)


def log_likelihoods(margins: Rows, user_ids: Sequence[int], users: int) -> list[list[float]]:
    """MaxMin-RLHF: the pairs of a user, under each model."""
    sums = [[0.0] * len(margins) for _ in range(users)]
    for p, user in enumerate(user_ids):
        column = [row[p] for row in margins]
        if len(scored(column)) == len(column):
            for u, a in enumerate(column):
                sums[user][u] += min(a, 0.0) - math.log1p(math.exp(-abs(a)))
    return sums


def target_ratio(row: Row, targets: Row, scale: float, cap: float) -> float:
    if len(scored(row)) < len(row):
        return NAN
    if any(a == t for a, t in zip(row, targets, strict=True)):
        return cap
    return min(math.prod(t / abs(t - a) for a, t in zip(row, targets, strict=True)) / scale, cap)


def win_rates(preferences: Rows, include_diagonal: bool) -> list[float]:
    rates = []
    for i, row in enumerate(preferences):
        others = scored([p for j, p in enumerate(row) if j != i])
        rates.append(mean([*others, 0.5] if include_diagonal else others))
    return rates


def preference(a: float, b: float, link: str) -> float:
    """P(a is preferred to b) from scores."""
    if math.isnan(a) or math.isnan(b):
        return NAN
    if a == b:
        return 0.5
    if link == "sign":
        return 1.0 if a > b else 0.0
    return sigmoid(a - b) if math.isfinite(a - b) else float(a > b)


def repaired(group: Row, hints: Row) -> tuple[list[float], int, int]:
    """Scaf-GRPO: rewards, replaced rollout and hint level (from 1); -1 without a repair."""
    if scored(group) and not any(scored(group)):
        for level, reward in enumerate(hints, 1):
            if reward > 0:
                return [reward, *group[1:]], 0, level
    return list(group), -1, -1


def constrained(
    reward: float, met: bool, baseline: float | None, kl: float | None, max_kl: float | None, rule: str
) -> float:
    """CGPO's reward of one sample."""
    if math.isnan(reward) or (baseline is not None and math.isnan(baseline)) or (kl is not None and math.isnan(kl)):
        return NAN
    value = reward if baseline is None else preference(reward, baseline, "logistic")
    factor = 1.0
    if kl is not None and max_kl is not None:
        factor = max(1 - kl / max_kl, 0.0) if rule == "linear" else float(kl <= max_kl)
    return value * factor if met and factor > 0 else 0.0


def codpo_pair(row: Row, met: Sequence[bool]) -> tuple[int, int]:
    """Best that satisfies, worst that does not (of all, if every scored one satisfies); (-1, -1) without a pair."""
    chosen = best(row, met)
    rejected = best(row, [not v for v in met], -1)
    if rejected < 0:
        rejected = best(row, [True] * len(row), -1)
    return (chosen, rejected) if chosen >= 0 and chosen != rejected else (-1, -1)


def hypervolume(points: Rows, ref: Row) -> float:
    """Maximized objectives, by cells of the grid that the coordinates make."""
    grid = [sorted({r, *(p[j] for p in points if p[j] > r)}) for j, r in enumerate(ref)]

    def volume(j: int, alive: list[Row]) -> float:
        if j == len(ref):
            return 1.0 if alive else 0.0
        return math.fsum(
            (high - low) * volume(j + 1, [p for p in alive if p[j] >= high]) for low, high in pairwise(grid[j])
        )

    return volume(0, list(points))


def influence(gradients: Rows) -> list[float]:
    """Row sums of the Gram matrix."""
    return [math.fsum(math.fsum(a * b for a, b in zip(g, h, strict=True)) for h in gradients) for g in gradients]
