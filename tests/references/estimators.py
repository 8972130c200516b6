"""Advantage estimators as their papers write them: loops over groups and rollouts, Python numbers, None: not scored."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import fmean, stdev

import mpmath  # which torch brings: SymPy needs it

Value = float | None
Rows = Sequence[Sequence[float]]


def members(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Rows of each label, in order of first appearance."""
    groups: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    return groups


def z(values: Sequence[Value], rows: Sequence[int], eps: float) -> dict[int, float]:
    """(x - mean) / (std + eps) with n - 1; equal values, and one value, are 0."""
    scored = [i for i in rows if values[i] is not None]
    if len({values[i] for i in scored}) < 2:
        return dict.fromkeys(scored, 0.0)
    mean, std = fmean(values[i] for i in scored), stdev(values[i] for i in scored)
    return {i: (values[i] - mean) / (std + eps) for i in scored}


def centred(values: Sequence[Value], labels: Sequence[Hashable]) -> list[float]:
    result = [0.0] * len(values)
    for rows in members(labels).values():
        scored = [i for i in rows if values[i] is not None]
        if len({values[i] for i in scored}) > 1:
            mean = fmean(values[i] for i in scored)
            for i in scored:
                result[i] = values[i] - mean
    return result


def gpg(rewards: Sequence[Value], labels: Sequence[Hashable], f_norm: float = 1.0) -> list[float]:
    """All counts are of scored rollouts: ``nan="skip"``."""
    scored = [r for r in rewards if r is not None]
    alpha = len(scored) / max(sum(r != 0 for r in scored), 1)
    return [alpha * c / f_norm for c in centred(rewards, labels)]


def optimal_token_baseline(
    rewards: Rows,
    mask: Rows,
    log_probs: Rows,
    squares: Rows,
    labels: Sequence[Hashable],
    ratios: Rows | None = None,
    align: str = "position",
    zero_tail: bool = True,
    eps: float = 1e-8,
) -> tuple[list[list[float]], list[list[float]]]:
    n, num_tokens = len(rewards), len(rewards[0]) if rewards else 0
    columns = [[t for t in range(num_tokens) if mask[i][t]] for i in range(n)]
    is_scored = [not any(math.isnan(rewards[i][t]) for t in columns[i]) for i in range(n)]
    advantages = [[0.0] * num_tokens for _ in range(n)]
    returns = [[0.0] * num_tokens for _ in range(n)]
    steps: list[dict[int, tuple[float, float, int]]] = [{} for _ in range(n)]  # step -> (G, W, column)
    for i in range(n):
        if not is_scored[i]:
            continue
        weight = 0.0
        for k, t in enumerate(columns[i]):
            rho = 1.0 if ratios is None else ratios[i][t]
            weight += (1 - 2 * math.exp(log_probs[i][t]) + squares[i][t]) * rho**2
            g = sum(rewards[i][u] for u in columns[i] if u >= t)
            steps[i][k if align == "token" else t] = (g, weight, t)
            returns[i][t] = g
    for group in members(labels).values():
        rows = [i for i in group if is_scored[i] and (steps[i] or align == "position")]
        lengths = sorted(len(steps[i]) for i in rows)
        for i in rows:
            for step, (g, _, t) in steps[i].items():
                at_step = [steps[j][step] for j in rows if step in steps[j]]
                total = sum(w for _, w, _ in at_step) + eps
                baseline = sum(g * w for g, w, _ in at_step) / total if total > 0 else 0.0
                alone = len(rows) > 1 and len(steps[i]) == lengths[-1] > lengths[-2]
                if len(rows) == 1 or (zero_tail and alone and step >= lengths[-2]):
                    baseline = 0.0
                advantages[i][t] = g - baseline
    return advantages, returns


def bnpo(
    rewards: Sequence[Value], labels: Sequence[Hashable], singleton: str = "zero", least_variance: float = 1e-12
) -> list[float]:
    """Rewards in [0, 1]. With 60 digits, of which the log gammas of close rates cancel up to 25."""
    with mpmath.workdps(60):
        values = [None if r is None else mpmath.mpf(r) for r in rewards]
        scored = {label: [i for i in rows if values[i] is not None] for label, rows in members(labels).items()}
        p = {label: mpmath.fsum(values[i] for i in rows) / len(rows) for label, rows in scored.items() if len(rows) > 1}
        if singleton == "reward":
            p |= {label: mpmath.mpf(0) for label, rows in scored.items() if len(rows) == 1}
        alpha = beta = mpmath.mpf(1)
        if len(p) > 1:
            mu = mpmath.fsum(p.values()) / len(p)
            v = mpmath.fsum((q - mu) ** 2 for q in p.values()) / (len(p) - 1)
            if v > least_variance:
                kappa = mu * (1 - mu) / v - 1
                alpha, beta = max(alpha, 1 + kappa * mu / 3), max(beta, 1 + kappa * (1 - mu) / 3)
        result = [0.0] * len(rewards)
        for label, mean in p.items():
            density = mean ** (alpha - 1) * (1 - mean) ** (beta - 1) / mpmath.beta(alpha, beta)
            weight = min(1 / density, 10**6) if density else 10**6
            for i in scored[label]:
                result[i] = float(weight * (values[i] - mean))
        return result


def quantile(values: Sequence[float], level: float) -> float:
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    k = math.floor(place)
    return ordered[k] + (place - k) * (ordered[min(k + 1, len(ordered) - 1)] - ordered[k])


def riskpo(
    rewards: Sequence[Value],
    labels: Sequence[Hashable],
    bundles: Sequence[Hashable],
    lower: float = 0.2,
    upper: float = 0.8,
    tracked: tuple[float, float] | None = None,
    quantiles: str = "batch",
    tail: str | None = "lower",
    w: float = 1.5,
    natural_baseline: bool = False,
    scale: str = "bundle",
    zero_variance: str = "zero",
    credit: str = "sum_mean",
    eps: float = 1e-6,
) -> list[float]:
    result = [0.0] * len(rewards)
    for rows in members(bundles).values():
        questions = [
            [rows[i] for i in group if rewards[rows[i]] is not None]
            for group in members([labels[i] for i in rows]).values()
        ]
        papers = list(zip(*questions, strict=False))
        if not papers:
            continue
        scores = [sum(rewards[i] for i in paper) for paper in papers]
        low, high = quantile(scores, lower), quantile(scores, upper)
        if tracked is not None and quantiles == "track":
            low, high = tracked
        elif tracked is not None and quantiles == "mix":
            low, high = (low + tracked[0]) / 2, (high + tracked[1]) / 2
        equal = len(set(scores)) == 1
        std = 1.0 if len(scores) == 1 else 0.0 if equal else stdev(scores)
        for paper, s in zip(papers, scores, strict=True):
            a = max(s - low, 0) - max(s - high, 0) + (low - high if natural_baseline else 0)
            a /= upper - lower + eps
            if tail == "lower":
                a = (-w * max(low - s, 0) / (lower + eps) + a) / (1 + w)
            elif tail == "upper":
                a = (w * max(s - high, 0) / (1 - upper + eps) + a) / (1 + w)
            if scale == "bundle":
                if std == 0 and zero_variance == "zero":
                    a = 0.0
                elif std > 0 or zero_variance == "eps":
                    a /= std + eps
            ratios = {}
            for question, i in zip(questions, paper, strict=True):
                values = [rewards[j] for j in question]
                if credit == "score":
                    result[i] = a * (0.5 if rewards[i] > 0 else 1.5)
                elif credit == "std":
                    deviation = stdev(values) if len(set(values)) > 1 else 0.0
                    result[i] = a / ((deviation if deviation > 1e-3 else 1.0) + eps)
                else:
                    result[i] = a
                ratios[i] = rewards[i] - fmean(values)
            if credit == "sum_mean":
                total = sum(ratios.values())
                for i in paper:
                    result[i] = a * (ratios[i] / total if abs(total) > 1e-6 else 1 / len(paper))
    return result


def copo(
    rewards: Sequence[Value],
    answers: Sequence[Hashable],
    labels: Sequence[Hashable],
    k: float = 5.0,
    b: float = 1.0,
    consistency_reward: bool = False,
    eps: float = 1e-6,
) -> tuple[list[float], list[float], list[float]]:
    n = len(rewards)
    local, glob, weights = [0.0] * n, [0.0] * n, [1 / (1 + math.exp(k * b))] * n
    groups = {g: [i for i in rows if rewards[i] is not None] for g, rows in members(labels).items()}
    entropy, prompt_rewards = {}, {}
    for group, rows in groups.items():
        if not rows:
            continue
        shares = [len(same) / len(rows) for same in members([answers[i] for i in rows]).values()]
        entropy[group] = -sum(p * math.log2(p + 1e-8) for p in shares)
        r = fmean(rewards[i] for i in rows)
        if consistency_reward and len(rows) > 1:
            r *= 1 - (1 - 1 / len(rows)) / math.log2(len(rows)) * entropy[group]
        prompt_rewards[group] = r
        for i, a in z(rewards, rows, eps).items():
            local[i] = a
    names = list(prompt_rewards)
    spread = z([prompt_rewards[name] for name in names], range(len(names)), eps)
    for k_name, name in enumerate(names):
        for i in groups[name]:
            glob[i] = spread[k_name]
    for i, label in enumerate(labels):
        if label in entropy:
            weights[i] = 1 / (1 + math.exp(-k * (entropy[label] - b)))
    return local, glob, weights


def igpo(
    rewards: Rows,
    ends: Rows,
    mask: Rows,
    labels: Sequence[Hashable],
    normalization: str = "joint",
    gamma: float = 1.0,
    gain_weight: float = 1.0,
    outcome_weight: float = 1.0,
    eps: float = 1e-6,
) -> list[list[float]]:
    n, num_tokens = len(rewards), len(rewards[0]) if rewards else 0
    turns = [[t for t in range(num_tokens) if ends[i][t] and mask[i][t]] for i in range(n)]
    value = {
        (i, t): rewards[i][t] * (outcome_weight if t == turns[i][-1] else gain_weight)
        for i in range(n)
        for t in turns[i]
        if not math.isnan(rewards[i][t])
    }
    result = [[0.0] * num_tokens for _ in range(n)]
    normalized: dict[tuple[int, int], float] = {}
    for rows in members(labels).values():
        cells = [cell for cell in value if cell[0] in rows]
        kinds = [cells]
        if normalization == "separate":
            kinds = [[c for c in cells if (c[1] == turns[c[0]][-1]) is last] for last in (True, False)]
        for kind in kinds:
            if len({value[c] for c in kind}) < 2:
                continue
            mean = fmean(value[c] for c in kind)
            std = math.sqrt(fmean((value[c] - mean) ** 2 for c in kind) + 1e-8)
            normalized |= {c: (value[c] - mean) / (std + eps) for c in kind}
    source = value if normalization == "returns" else normalized
    for i in range(n):
        following, boundary = 0.0, num_tokens
        for start, end in reversed(list(zip([-1, *turns[i]], turns[i], strict=False))):
            following = source.get((i, end), 0.0) + gamma * following
            for t in range(start + 1, end + 1):
                result[i][t] = following
            boundary = start
        assert boundary in (-1, num_tokens)
    if normalization == "returns":
        known = [all((i, t) in value for t in turns[i]) for i in range(n)]
        columns = [
            centred([row[t] if known[i] else None for i, row in enumerate(result)], labels) for t in range(num_tokens)
        ]
        result = [[columns[t][i] for t in range(num_tokens)] for i in range(n)]
    return [[a if mask[i][t] else 0.0 for t, a in enumerate(row)] for i, row in enumerate(result)]


def hrpo(
    rewards: Sequence[Value],
    actions: Rows,
    labels: Sequence[Hashable],
    mask: Rows,
    coefficient: float = 0.5,
    gamma: float = 1.0,
    exempt: int = 0,
) -> list[list[float]]:
    c = centred(rewards, labels)
    result = []
    for i, row in enumerate(actions):
        group = [j for j in range(len(labels)) if labels[j] == labels[i] and rewards[j] is not None]
        std = math.sqrt(fmean(c[j] ** 2 for j in group)) if group else 0.0
        relative = c[i] / std if std else 0.0
        counted = [r if mask[i][t] and t >= exempt else 0.0 for t, r in enumerate(row)]
        returns = [sum(gamma ** (u - t) * counted[u] for u in range(t, len(row))) for t in range(len(row))]
        here = [relative + coefficient * g if mask[i][t] else 0.0 for t, g in enumerate(returns)]
        result.append([0.0] * len(row) if rewards[i] is None else here)
    return result


def aspo(
    advantages: Sequence[float],
    positions: Sequence[float],
    lengths: Sequence[float],
    eligible: Sequence[bool],
    labels: Sequence[Hashable],
    delta: float = -2.0,
    bound: float = 0.7,
) -> list[float]:
    result = list(advantages)
    for rows in members(labels).values():
        chosen = [i for i in rows if eligible[i]]
        for i in chosen:
            mean = fmean(positions[j] for j in chosen)
            bias = delta * (positions[i] - mean) / fmean(lengths[j] for j in chosen)
            limit = bound * abs(advantages[i])
            result[i] += max(-limit, min(limit, bias))
    return result
