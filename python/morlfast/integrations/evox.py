"""`non_dominate_rank` in place of EvoX's, for its algorithms and its evaluation monitor."""

from __future__ import annotations

import torch
from evox.operators import selection
from torch import Tensor

import morlfast
from morlfast.integrations import Patch, check_version

CHECKED_VERSIONS = ("1.2.2", "1.3.0", "1.4.0")


def non_dominate_rank(x: Tensor) -> Tensor:
    """Ranks (n,) int32, from 0, of minimized points (n, m); with EvoX's argument.

    Under `torch.compile` and `torch.vmap` too. Two things differ: rows with a NaN are worst, one rank beyond the
    others, where EvoX 1.4.0 puts them first; and no points have no ranks, where EvoX raises. Memory is O(n) instead of
    O(n^2), and the time does not grow with the number of fronts.

    >>> non_dominate_rank(torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]))
    tensor([0, 0, 1], dtype=torch.int32)
    """
    if x.dtype not in (torch.float32, torch.float64):
        x = x.double()
    return morlfast.non_dominated_sort(x, maximize=False, nan="worst")


def patch(*, any_version: bool = False) -> Patch:
    """Let EvoX sort here: NSGA-II, NSGA-III, HypE, RVEAa, its monitor, and imports from it to come.

    `with patch():` gives the original back at its end, `patch()` keeps it replaced until its `undo()`. A step that was
    compiled before keeps what it was compiled with. Raises RuntimeError for a version of EvoX that the drop-in was not
    checked against, unless `any_version`.
    """
    check_version("evox", CHECKED_VERSIONS, any_version)
    return Patch("evox", {selection.non_dominate_rank: non_dominate_rank})
