"""Returns and advantages token by token, from their definitions as sums rather than as recurrences."""

from __future__ import annotations

import numpy as np


def linear_scan(x, a, initial=None, mask=None, reverse=True, carry=False) -> np.ndarray:
    """x, a, mask (N, T), initial (N,); a factor of 0 cuts."""
    n, t = x.shape
    y = np.zeros((n, t))
    for i in range(n):
        state = 0.0 if initial is None else float(initial[i])
        for j in reversed(range(t)) if reverse else range(t):
            on = mask is None or mask[i, j] != 0
            if on:
                state = float(x[i, j]) + (float(a[i, j]) * state if a[i, j] != 0 else 0.0)
            y[i, j] = state if on or carry else 0.0
    return y


def gae(
    rewards,
    values,
    gamma,
    lam,
    returns_lam=None,
    mask=None,
    terminated=None,
    done=None,
    next_values=None,
    bootstrap=None,
    finished=None,
    repeat_last=False,
) -> tuple[np.ndarray, np.ndarray]:
    """All (N, T) but bootstrap and finished (N,). A_t is the sum over the later tokens of their delta, each weighed
    by the product of gamma lambda up to there."""
    n, t = rewards.shape
    advantages, returns = np.zeros((n, t)), np.zeros((n, t))
    done = terminated if done is None else done
    for i in range(n):
        tokens = [j for j in range(t) if mask is None or mask[i, j] != 0]
        behind = 0.0
        if bootstrap is not None:
            behind = float(bootstrap[i])
        elif repeat_last and tokens:
            behind = float(values[i, tokens[-1]])
        if finished is not None and finished[i] != 0:
            behind = 0.0
        delta = {}
        for place, j in enumerate(tokens):
            following = float(values[i, tokens[place + 1]]) if place + 1 < len(tokens) else behind
            if next_values is not None:
                following = float(next_values[i, j])
            ended = terminated is not None and terminated[i, j] != 0
            delta[j] = float(rewards[i, j]) + (0.0 if ended else gamma[i, j] * following) - float(values[i, j])
        for place, j in enumerate(tokens):
            for lambdas, result in ((lam, advantages), (lam if returns_lam is None else returns_lam, returns)):
                total, weight = 0.0, 1.0
                for k in tokens[place:]:
                    total += weight * delta[k]
                    if done is not None and done[i, k] != 0:
                        break
                    weight *= gamma[i, k] * lambdas[i, k]
                result[i, j] = total
            returns[i, j] += float(values[i, j])
    return advantages, returns


def turn_returns(rewards, turn_ends, gamma, mask=None) -> np.ndarray:
    """rewards, turn_ends, mask (N, T), gamma a number."""
    n, t = rewards.shape
    result = np.zeros((n, t))
    for i in range(n):
        turn = [int(sum(turn_ends[i, :j] != 0)) for j in range(t)]
        on = [mask is None or mask[i, j] != 0 for j in range(t)]
        for j in range(t):
            if on[j]:
                later = [k for k in range(t) if on[k] and turn[k] >= turn[j]]
                result[i, j] = sum(gamma ** (turn[k] - turn[j]) * float(rewards[i, k]) for k in later)
    return result


def v_trace(
    rewards, values, ratios, gamma, lam, bootstrap, max_rho, max_c, max_pg_rho
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the paper's eq. 1: rewards, values, ratios (N, T), bootstrap (N,), the rest numbers."""
    n, t = rewards.shape
    targets, advantages = np.zeros((n, t)), np.zeros((n, t))
    for i in range(n):
        following = [*values[i, 1:], bootstrap[i]]
        delta = [min(max_rho, ratios[i, k]) * (rewards[i, k] + gamma * following[k] - values[i, k]) for k in range(t)]
        for s in range(t):
            product = 1.0
            targets[i, s] = values[i, s]
            for k in range(s, t):
                targets[i, s] += gamma ** (k - s) * product * delta[k]
                product *= lam * min(max_c, ratios[i, k])
        later = [*targets[i, 1:], bootstrap[i]]
        for s in range(t):
            advantages[i, s] = min(max_pg_rho, ratios[i, s]) * (rewards[i, s] + gamma * later[s] - values[i, s])
    return targets, advantages


def whiten(values, mask, convention) -> np.ndarray:
    chosen = values[mask != 0].astype(np.float64)
    if len(chosen) < 2:
        return np.zeros(values.shape)
    variance = chosen.var(ddof=1) + 1e-8 if convention == "bessel" else max(chosen.var(), 1e-8)
    return np.where(mask != 0, (values - chosen.mean()) / np.sqrt(variance), 0.0)
