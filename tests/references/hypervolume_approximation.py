"""HypE's fitness from its definition, in exact rational arithmetic: every set of points that may be removed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise, product
from math import prod


def hype_fitness(
    points: Sequence[Sequence[int]], ref_point: Sequence[int], k: int, maximize: Sequence[bool]
) -> list[Fraction]:
    """Mean over the sets of k counting points with a among them, of what a has of the volume that goes with the set.

    A cell goes when all points that dominate it do, and they share it equally. With fewer than k counting points, all
    of them are removed.
    """
    signs = [-1 if flip else 1 for flip in maximize]
    ref = [s * r for s, r in zip(signs, ref_point, strict=True)]
    front = {i: [s * a for s, a in zip(signs, z, strict=True)] for i, z in enumerate(points)}
    front = {i: z for i, z in front.items() if all(a < b for a, b in zip(z, ref, strict=True))}
    intervals = [list(pairwise(sorted({z[j] for z in front.values()} | {ref[j]}))) for j in range(len(ref))]
    cells = []
    for cell in product(*intervals):
        owners = {i for i, z in front.items() if all(a <= low for a, (low, _) in zip(z, cell, strict=True))}
        cells.append((owners, Fraction(prod(high - low for low, high in cell))))

    fitness = [Fraction(0)] * len(points)
    for a in front:
        removals = [set(s) for s in combinations(front, min(k, len(front))) if a in s]
        for owners, volume in cells:
            if a in owners:
                fitness[a] += volume / len(owners) * Fraction(sum(owners <= s for s in removals), len(removals))
    return fitness
