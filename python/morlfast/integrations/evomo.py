"""Sorting in place of EvoMO's: `non_dominate_rank`, and the one that its environmental selection stops early."""

from __future__ import annotations

from typing import Any

import torch
from evomo.operators import selection
from evomo.operators.selection import non_dominate
from torch import Tensor

import morlfast
from morlfast.integrations import Patch, check_version

CHECKED_VERSIONS = ("0.2.2", "0.3.0", "0.3.1")


def non_dominate_rank(x: Tensor, cv: Tensor | None = None) -> Tensor:
    """Ranks (n,) int32, from 0, of minimized points (n, m) with violations `cv`; with EvoMO's arguments.

    cv: (n,) or (n, c), summed: feasible, at most 0, before infeasible; less violation before more; equal ones by
    dominance. Under `torch.compile` and `torch.vmap` too.

    Two things differ: rows with a NaN are worst, one rank beyond the others, where EvoMO 0.3.1 puts them first; and no
    points have no ranks, where EvoMO raises. Memory is O(n) instead of O(n^2), and the time does not grow with the
    number of fronts.

    >>> non_dominate_rank(torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]), torch.tensor([1.0, 0.0, 0.0]))
    tensor([2, 0, 1], dtype=torch.int32)
    """
    return morlfast.non_dominated_sort(_floating(x), maximize=False, constraints=_violations(cv), nan="worst")


def environmental_selection_rank(f: Tensor, topk: int, cv: Tensor | None = None) -> Tensor:
    """`non_dominate_rank` up to the front with which `topk` points are ranked; all points beyond have rank n.

    >>> environmental_selection_rank(torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]), 2)
    tensor([0, 0, 4, 4], dtype=torch.int32)
    """
    ranks = morlfast.non_dominated_sort(
        _floating(f), maximize=False, constraints=_violations(cv), stop_after=topk, nan="worst"
    )
    beyond = ranks == ranks.amax(-1, keepdim=True)  # unless that is the front that completes them
    beyond &= (~beyond).sum(-1, keepdim=True) >= topk
    return ranks.masked_fill(beyond, f.shape[-2])


def patch(*, any_version: bool = False) -> Patch:
    """Let EvoMO sort here: its algorithms, NSGA-II's and NSGA-III's selection, and imports from it to come.

    `with patch():` gives the originals back at its end, `patch()` keeps them replaced until its `undo()`. A step that
    was compiled before keeps what it was compiled with. Raises RuntimeError for a version of EvoMO that the drop-ins
    were not checked against, unless `any_version`.
    """
    check_version("evomo", CHECKED_VERSIONS, any_version)
    replacements: dict[Any, Any] = {selection.non_dominate_rank: non_dominate_rank}
    if hasattr(non_dominate, "_environmental_selection_rank"):  # since 0.3.0
        replacements[non_dominate._environmental_selection_rank] = environmental_selection_rank
    return Patch("evomo", replacements)


def _floating(points: Tensor) -> Tensor:
    return points if points.dtype in (torch.float32, torch.float64) else points.double()


def _violations(cv: Tensor | None) -> Tensor | None:
    """(n,): constraints are summed, whatever their signs."""
    return cv.sum(-1) if cv is not None and cv.dim() > 1 else cv
