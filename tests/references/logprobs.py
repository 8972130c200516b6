"""Log-probabilities of tokens and entropies, and their gradients, from the formulas, in float64."""

from __future__ import annotations

import numpy as np


def log_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log p (V,) of one row: x - log sum exp x."""
    x = np.asarray(logits, dtype=np.float64) / temperature
    with np.errstate(all="ignore"):
        shifted = x - x.max()
        return shifted - np.log(np.exp(shifted).sum())


def entropy_of(log_p: np.ndarray) -> float:
    """-sum p log p; what has probability 0 adds nothing."""
    terms = [np.exp(value) * value for value in log_p if not np.isneginf(value)]
    return -sum(terms) if terms else np.nan


def token_logprobs(
    logits: np.ndarray, tokens: np.ndarray, temperature: float = 1.0, read: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """logits (N, V), tokens (N,), read (N,) -> log-probabilities and entropies (N,); rows that are not read have 0."""
    log_probs, entropies = np.zeros(len(tokens)), np.zeros(len(tokens))
    for i, token in enumerate(tokens):
        if read is None or read[i]:
            log_p = log_probabilities(logits[i], temperature)
            log_probs[i], entropies[i] = log_p[token], entropy_of(log_p)
    return log_probs, entropies


def gradient(
    logits: np.ndarray,
    tokens: np.ndarray,
    of_log_probs: np.ndarray,
    of_entropies: np.ndarray,
    temperature: float = 1.0,
    read: np.ndarray | None = None,
) -> np.ndarray:
    """(N, V): d/dx_v log p_token = 1[v = token] - p_v; d/dx_v H = -p_v (log p_v + H)."""
    result = np.zeros(logits.shape)
    for i, token in enumerate(tokens):
        if read is not None and not read[i]:
            continue
        log_p = log_probabilities(logits[i], temperature)
        entropy = entropy_of(log_p)
        for v, value in enumerate(log_p):
            p = np.exp(value)
            result[i, v] = of_log_probs[i] * ((v == token) - p)
            if p > 0:
                result[i, v] -= of_entropies[i] * p * (value + entropy)
    return result / temperature
