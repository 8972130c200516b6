"""CUDA implementations written in Triton; imported only when a CUDA tensor arrives.

Launchers take tensors that the public functions have already checked. They never synchronize with the host,
use the caller's current stream, write to nothing they were given, and add in a fixed order. Triton compiles a
kernel at its first use for a dtype, which a CUDA graph capture cannot contain: call once before capturing.
"""

import torch
from torch import Tensor


def group_bounds(group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows gathered by group, without learning on the host how many groups there are.

    Returns ``order`` (N,), the rows sorted by id and, within a group, by row; ``group`` (N,), the number of
    the group at each sorted position; and ``bounds`` (N + 1,): group g is ``order[bounds[g]:bounds[g + 1]]``,
    empty when there is no group g. All int64.
    """
    sorted_ids, order = torch.sort(group_ids, stable=True)
    group = torch.zeros_like(order)
    torch.cumsum(sorted_ids[1:] != sorted_ids[:-1], 0, out=group[1:])
    bounds = torch.searchsorted(group, torch.arange(group.numel() + 1, device=group.device))
    return order, group, bounds


def require(fits: bool, what: str) -> None:
    """Memory safety of a raw operator call; public functions have said it in the caller's words before."""
    if not fits:
        raise ValueError(what)


def require_groups(rows: int, group_size: int, group_ids: Tensor | None) -> None:
    if group_ids is not None:
        require(group_ids.shape == (rows,), f"group_ids: expected shape ({rows},), got {tuple(group_ids.shape)}")
    else:
        fits = group_size >= 1 and rows % group_size == 0
        require(fits, f"group_size: expected a positive divisor of {rows} rollouts, got {group_size}")
