"""Selection of rollouts: every subset, or every split into largest and smallest, in exact rational arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from itertools import combinations
from sys import float_info


def exact(reward: float) -> Fraction:
    """An infinite reward counts as the largest finite double of its sign."""
    return Fraction(math.copysign(float_info.max, reward) if math.isinf(reward) else reward)


def variance(rewards: Sequence[Fraction]) -> Fraction:
    """The population's; of no rewards 0."""
    if not rewards:
        return Fraction(0)
    mean = sum(rewards, Fraction(0)) / len(rewards)
    return sum(((x - mean) ** 2 for x in rewards), Fraction(0)) / len(rewards)


def largest_variance(rewards: Sequence[float], k: int) -> Fraction:
    """Of all subsets of size k."""
    return max(variance(subset) for subset in combinations([exact(x) for x in rewards], k))


def best_split(rewards: Sequence[float], k: int) -> Counter[float]:
    """How many of each value: the i largest and k - i smallest; of equal variances i = k, then the smallest i."""
    ascending = sorted(rewards)
    splits = [ascending[: k - i] + ascending[len(ascending) - i :] for i in (k, *range(k))]
    return Counter(max(splits, key=lambda split: variance([exact(x) for x in split])))


def stratified(rewards: Sequence[float], k: int, uniform: Sequence[float]) -> list[int]:
    """Ranks floor((j + u_j) n / k) of the ascending order, ties by row."""
    n = len(rewards)
    ascending = sorted(range(n), key=lambda i: (rewards[i], i))
    return [ascending[min(math.floor((j + uniform[j]) * n / k), n - 1)] for j in range(k)]


def select_rollouts(
    rewards: Sequence[float], k: int, groups: Sequence[Hashable], method: str = "max_variance"
) -> list[int]:
    """Rows of the selected rollouts, group by group; groups [N] are labels."""
    selected = []
    for label in dict.fromkeys(groups):
        rows = [i for i, g in enumerate(groups) if g == label and not math.isnan(rewards[i])]
        values = [rewards[i] + 0.0 for i in rows]  # -0.0 is 0.0
        size = min(k, len(rows))
        if method == "percentile":
            selected += sorted(rows[j] for j in stratified(values, size, [0.5] * size))
            continue
        ascending = sorted(values)
        left = {
            "max_variance": lambda: best_split(values, size),  # noqa: B023
            "top": lambda: Counter(ascending[len(ascending) - size :]),  # noqa: B023
            "bottom": lambda: Counter(ascending[:size]),  # noqa: B023
        }[method]()
        for i, value in zip(rows, values, strict=True):
            if left[value] > 0:
                left[value] -= 1
                selected.append(i)
    return selected
