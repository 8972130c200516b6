"""Standard deviations that trainers report or hand on for each rollout, beside the advantages."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def group_deviations(rewards: Tensor, scored: Tensor, group_ids: Tensor, leave_one_out: bool = False) -> Tensor:
    r"""Deviation (n - 1) of each rollout's group, or of the scored others of it: float64 (N,).

    .. math:: \sigma_i^2 = \frac{1}{n - 1} \sum_{j \in g} c_j^2, \qquad
              \sigma_i^2 = \frac{1}{n - 2} \Big(\sum_{j \in g} c_j^2 - \frac{n}{n - 1} c_i^2\Big),
        \quad c_j = r_j - \bar r

    `group_ids` are in 0..N - 1. NaN where it has no degree of freedom, and where a scored reward is NaN or infinite.
    Equal rewards have exactly 0, with one that differs left out too.
    """
    values = rewards.double()

    def sums(terms: Tensor) -> Tensor:
        return torch.zeros_like(values).index_add_(0, group_ids, terms)[group_ids]

    def centred(counted: Tensor) -> tuple[Tensor, Tensor]:
        count = sums(counted.double())
        least = torch.full_like(values, math.inf)
        least.scatter_reduce_(0, group_ids, values.masked_fill(~counted, math.inf), "amin")
        above = torch.where(counted, values - least[group_ids], 0.0)
        return count, torch.where(counted, above - sums(above) / count, 0.0)

    count, own = centred(scored)
    if not leave_one_out:
        squares, degrees = sums(own.square()), count - 1
    else:
        # The difference cancels for the farthest rollout of a group alone, whose others have a mean of their own.
        rows = torch.arange(len(values), device=values.device)
        largest = torch.zeros_like(values).scatter_reduce_(0, group_ids, own.abs(), "amax")[group_ids]
        candidates = torch.where(scored & (own.abs() == largest), rows, len(values))
        farthest = torch.full_like(rows, len(values)).scatter_reduce_(0, group_ids, candidates, "amin")[group_ids]
        others = sums(centred(scored & (rows != farthest))[1].square())
        rest = sums(own.square()) - own.square() * count / (count - 1)
        squares, degrees = torch.where(rows == farthest, others, rest), count - 1 - scored.double()
    return torch.where(degrees > 0, (squares / degrees).sqrt(), math.nan)
