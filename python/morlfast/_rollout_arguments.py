"""How rollouts are named together: groups by size, ids, labels or bounds, and tokens by a mask or lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import (
    as_group_ids,
    as_group_size,
    as_integer,
    as_integers,
    as_tensor,
    check_lengths,
    same_device,
)
from morlfast._labels import group_labels, label_digests

# Dtypes of a mask that the operator reads as they are.
_READ = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_READ |= {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def as_rewards(values: Any, name: str = "rewards") -> Tensor:
    """Floating point as it is; Python's numbers and integers in float64, where those that rewards have are exact."""
    tensor = values if isinstance(values, Tensor) else as_tensor(values, name)
    if tensor.dtype.is_complex:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    if not isinstance(values, Tensor) and not hasattr(values, "dtype"):
        tensor = as_tensor(values, name, dtype=torch.float64)
    return tensor.detach() if tensor.is_floating_point() else tensor.to(torch.float64)


def as_groups(
    group_size: Any, group_ids: Any, offsets: Any, rewards: Tensor
) -> tuple[int, Tensor | None, Tensor | None]:
    """Group size or 0, int32 or int64 ids (N,), int64 offsets (G + 1,)."""
    rows = rewards.shape[0]
    if (group_size is not None) + (group_ids is not None) + (offsets is not None) != 1:
        raise ValueError("group_size, group_ids, offsets: expected exactly one of them")
    if group_size is not None:
        return as_group_size(group_size, rows), None, None
    if offsets is not None:
        bounds = as_integers(offsets, "offsets", "rewards", rewards)
        if bounds.dim() != 1 or bounds.shape[0] == 0:
            raise ValueError(f"offsets: expected shape (G + 1,), got {tuple(bounds.shape)}")
        return 0, None, bounds.to(torch.int64).contiguous()
    if are_labels(group_ids):
        return 0, group_labels(group_ids, rows).to(rewards.device), None
    return 0, _as_ids(group_ids, rewards), None


def _as_ids(group_ids: Any, rewards: Tensor) -> Tensor:
    ids = as_integers(group_ids, "group_ids", "rewards", rewards)
    if ids.dim() != 2:
        return as_group_ids(ids, rewards.shape[0], "rewards", rewards)
    if ids.shape[0] != rewards.shape[0]:
        raise ValueError(
            f"group_ids: expected shape ({rewards.shape[0]}, S), one row a rollout, got {tuple(ids.shape)}"
        )
    return _ops.group_rows(ids if ids.stride(1) == 1 else ids.contiguous())


def are_labels(group_ids: Any) -> bool:
    """Whether these are Python objects or strings rather than numbers."""
    if isinstance(group_ids, Tensor):
        return False
    kind = getattr(getattr(group_ids, "dtype", None), "kind", None)
    if kind is not None:
        return kind not in "iubfc"  # numbers of the wrong kind get the error of a tensor
    if not isinstance(group_ids, (list, tuple)):
        return False
    return not all(
        isinstance(label, (float, list))
        or (isinstance(label, int) and -(2**63) <= label < 2**63 and not isinstance(label, bool))
        for label in group_ids
    )


def check_groups_of_ranks(group_size: Any, group_ids: Any, offsets: Any) -> None:
    """How groups that may span ranks are named."""
    if offsets is not None:
        raise ValueError("offsets: expected group_size or group_ids together with process_group")
    if (group_size is None) == (group_ids is None):
        raise ValueError("group_size, group_ids: expected exactly one of them")


def label_columns(group_ids: Any, rows: int, like: Tensor, name: str = "group_ids") -> Tensor:
    """(N, c) int64 on the device of `like`, equal on all ranks where the labels are; of integers their columns."""
    if are_labels(group_ids):
        try:
            return label_digests(group_ids, rows).to(like.device)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("group_ids", name)) from None
    ids = as_integers(group_ids, name, "rewards", like).to(torch.int64)
    if ids.dim() not in (1, 2) or ids.shape[0] != rows:
        raise ValueError(f"{name}: expected shape ({rows},) or ({rows}, S), got {tuple(ids.shape)}")
    return ids[:, None] if ids.dim() == 1 else ids


def as_mask_or_lengths(
    mask: Any, lengths: Any, num_tokens: Any, rewards: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """A mask (N, T) of any real dtype, or int64 lengths (N,); at most one of them."""
    rows = rewards.shape[0]
    if mask is not None and lengths is not None:
        raise ValueError("mask, lengths: expected at most one of them, got both")
    if num_tokens is not None and lengths is None:
        raise ValueError("num_tokens: expected only together with lengths")
    if mask is not None:
        tensor = mask if isinstance(mask, Tensor) else as_tensor(mask, "mask", device=rewards.device)
        if tensor.dtype.is_complex:
            raise TypeError(f"mask: expected bools, integers or floats, got {tensor.dtype}")
        if tensor.dim() != 2 or tensor.shape[0] != rows:
            raise ValueError(f"mask: expected shape ({rows}, T), got {tuple(tensor.shape)}")
        same_device("rewards", rewards, "mask", tensor)
        return tensor.detach() if tensor.dtype in _READ else tensor != 0, None
    if lengths is None:
        return None, None
    tensor = as_integers(lengths, "lengths", "rewards", rewards)
    if tensor.shape != (rows,):
        raise ValueError(f"lengths: expected shape ({rows},), got {tuple(tensor.shape)}")
    if num_tokens is None:
        return None, tensor.to(torch.int64).contiguous()
    tokens = as_integer(num_tokens, "num_tokens")
    if tokens < 0:
        raise ValueError(f"num_tokens: expected an int >= 0, got {tokens}")
    check_lengths(tensor, tokens)
    return torch.arange(tokens, device=rewards.device) < tensor[:, None], None
