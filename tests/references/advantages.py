"""Group-relative advantages, one value at a time, in exact rational arithmetic up to each square root."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction

# Not scored: None. Poisoned, so that the result is NaN: math.nan.
Value = Fraction | float | None


def group_advantages(
    rewards: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    weights: Sequence[Sequence[float]] | None = None,
    lengths: Sequence[int] | None = None,
    *,
    aggregate: str,
    baseline: str,
    scale: str,
    eps: float,
    eps_to: str,
    ddof: int,
    singleton: str,
    zero_variance: str,
    least_std: float,
    nan: str,
    whiten: str,
    whiten_eps: float,
    whiten_eps_to: str,
    whiten_ddof: int,
) -> list[float]:
    """Advantages of finite rewards [N][M] (NaN: as `nan` says); weights [N][M]; groups [N] are labels."""
    n = len(rewards)
    objectives = range(len(rewards[0]) if n else 0)
    if weights is None:
        weights = [[1.0] * len(row) for row in rewards]
    members = {g: [i for i in range(n) if groups[i] == g] for g in groups}

    def value(x: float) -> Value:
        if not math.isnan(x):
            return Fraction(x)
        if nan == "raise":
            raise ValueError("NaN")
        return {"skip": None, "skip_reward": None, "propagate": math.nan, "zero": Fraction(0)}[nan]

    def total(i: int, terms: Sequence[Value]) -> Value:
        scored = [(Fraction(w), t) for w, t in zip(weights[i], terms, strict=True) if t is not None]
        if not scored and nan != "skip_reward":
            return None
        if any(poisoned(t) for _, t in scored):
            return math.nan
        return sum((w * t for w, t in scored), Fraction(0))

    def normalize(column: list[Value]) -> list[Value]:
        result = list(column)
        batch = [v for v in column if v is not None]
        for rows in members.values():
            rows = [i for i in rows if column[i] is not None]
            values = [column[i] for i in rows]
            of_group = baseline not in ("none", "batch") or scale in ("group", "leave_one_out")
            of_batch = baseline == "batch" or scale == "batch"
            if (of_group and any(map(poisoned, values))) or (of_batch and any(map(poisoned, batch))):
                for i in rows:
                    result[i] = math.nan
                continue
            for at, i in enumerate(rows):
                others = values[:at] + values[at + 1 :]
                alone = not others and of_group
                if alone and singleton != "reward":
                    if singleton == "raise":
                        raise ValueError("a group of one")
                    result[i] = math.nan if singleton == "nan" else Fraction(0)
                    continue
                if poisoned(column[i]):
                    continue
                if baseline == "batch":
                    centred = column[i] - mean(batch)
                elif baseline == "none" or alone:
                    centred = column[i]
                elif baseline == "group":
                    centred = column[i] - mean(values)
                elif baseline == "leave_one_out":
                    centred = column[i] - mean(others)
                elif baseline == "length_weighted":
                    tokens = sum(lengths[j] for j in rows)
                    own = sum((lengths[j] * column[j] for j in rows), Fraction(0))
                    centred = column[i] - (own / tokens if tokens else mean(values))
                else:
                    best = values.index(max(values))
                    centred = max(values) - max(values[:best] + values[best + 1 :]) if at == best else Fraction(0)
                if scale == "none":
                    result[i] = centred
                    continue
                if scale == "batch":
                    deviation = std(batch, ddof)
                elif alone:
                    deviation = 1.0
                else:
                    deviation = std(values if scale == "group" else others, ddof)
                if deviation > least_std:
                    result[i] = Fraction(float(centred) / divisor(deviation, eps, eps_to))
                else:
                    result[i] = {"zero": Fraction(0), "unscaled": centred, "nan": math.nan}[zero_variance]
        return result

    table = [[value(x) for x in row] for row in rewards]
    if aggregate == "sum_then_normalize":
        scores = normalize([total(i, table[i]) for i in range(n)])
    else:
        columns = [normalize([row[k] for row in table]) for k in objectives]
        scores = [total(i, [column[i] for column in columns]) for i in range(n)]
    if whiten != "none":
        counts = [1] * n if whiten == "rollouts" else lengths
        spread = [s for s, count in zip(scores, counts, strict=True) if s is not None for _ in range(count)]
        if any(map(poisoned, spread)):
            scores = [None if s is None else math.nan for s in scores]
        else:
            deviation = std(spread, whiten_ddof)
            by = divisor(deviation, whiten_eps, whiten_eps_to) if deviation else math.inf
            scores = [s if s is None or poisoned(s) else float(s - (mean(spread) or 0)) / by for s in scores]
    return [0.0 if s is None else float(s) for s in scores]


def poisoned(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def mean(values: Sequence[Fraction]) -> Fraction | None:
    return sum(values, Fraction(0)) / len(values) if values else None


def std(values: Sequence[Fraction], ddof: int) -> float:
    if len(values) <= ddof:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - ddof))


divisors: dict[str, Callable[[float, float], float]] = {
    "std": lambda deviation, eps: deviation + eps,
    "variance": lambda deviation, eps: math.sqrt(deviation**2 + eps),
    "floor": max,
}


def divisor(deviation: float, eps: float, eps_to: str) -> float:
    return divisors[eps_to](deviation, eps)
