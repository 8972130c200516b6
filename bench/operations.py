"""Table of everything that can be measured."""

from __future__ import annotations

from bench import advantages, hypervolume, overhead, pareto, tokens
from bench.driver import Operation

FAMILIES = {
    "hypervolume": hypervolume.OPERATIONS,
    "pareto": pareto.OPERATIONS,
    "advantages": advantages.OPERATIONS,
    "tokens": tokens.OPERATIONS,
    "overhead": overhead.OPERATIONS,
}
OPERATIONS: dict[str, Operation] = {op.name: op for family in FAMILIES.values() for op in family}
