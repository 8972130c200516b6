"""Pareto sets: non-dominated sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from morlfast import _ops
from morlfast._arguments import NanPolicy, as_minimization, as_points, nan_raises


def non_dominated_sort(points: Any, *, maximize: bool | Sequence[bool], nan: NanPolicy | None = None) -> Tensor:
    r"""Rank of every point of every front: 0 for non-dominated points, then one more than its worst dominator's.

    .. math:: rank(q) = \begin{cases} 0 & \text{if nothing dominates } q \\
              1 + \max_{p \prec q} rank(p) & \text{otherwise} \end{cases}

    p dominates q when it is at least as good in every objective and better in one.

    Args:
        points: shape (..., n, m), any n >= 0 and m >= 1; float32 or float64 with any strides. Array-likes
            are taken too; integers and Python's numbers become float64.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look) puts such rows on the last rank together: they dominate nothing.

    Returns:
        int32 tensor of shape (..., n) on the device of ``points``. Duplicates share a rank; infinities are ordinary
        values and -0.0 equals 0.0. Not differentiable.

    CPU: O(n log n) for m <= 2; O(n log n log F) for m = 3, with F fronts; for more objectives bitsets of dominators,
    O(m n^2 / 64) word operations. GPU: O(m n^2) comparisons in tiles. On both O(n) memory a front, and a time that does
    not grow with the number of fronts.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit, and NaN under ``"raise"``.

    Sources: Jensen (2003) for m = 2; Zhang et al. (2015), efficient non-dominated sort with binary search, for the
    search over fronts.

    >>> import torch
    >>> non_dominated_sort(torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]), maximize=False)
    tensor([0, 0, 1], dtype=torch.int32)
    """
    points = as_points(points)
    if points.shape[-1] < 1:
        raise ValueError(f"points: expected at least one objective, got shape {tuple(points.shape)}")
    maximize, points, _ = as_minimization(points, maximize)
    raises = nan_raises(nan, points)
    if points.requires_grad:
        points = points.detach()
    return _ops.non_dominated_sort(points, maximize, raises)
