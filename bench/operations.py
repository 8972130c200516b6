"""Table of everything that can be measured."""

from __future__ import annotations

from bench import advantages, hypervolume, indicators, logprobs, overhead, pareto, returns, rollouts, tokens, weights
from bench.driver import Operation

FAMILIES = {
    "hypervolume": hypervolume.OPERATIONS,
    "pareto": pareto.OPERATIONS,
    "indicators": indicators.OPERATIONS,
    "weights": weights.OPERATIONS,
    "advantages": advantages.OPERATIONS,
    "returns": returns.OPERATIONS,
    "rollouts": rollouts.OPERATIONS,
    "tokens": tokens.OPERATIONS,
    "logprobs": logprobs.OPERATIONS,
    "overhead": overhead.OPERATIONS,
}
OPERATIONS: dict[str, Operation] = {op.name: op for family in FAMILIES.values() for op in family}
