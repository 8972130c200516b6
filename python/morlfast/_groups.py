"""Rollouts by group, for the estimators that are more than `morlfast.group_advantages`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_floating, as_number, as_tensor, same_device
from morlfast._rollout_arguments import as_groups, check_groups_of_ranks, label_columns
from morlfast.advantages import group_advantages


class Groups:
    """Rollouts by group: what a group has in sum, spread to its rows; no loop over groups, no waiting for a device."""

    def __init__(self, index: Tensor, size: int = 0, groups: int | None = None) -> None:
        self.index = index  # (N,) int64 from 0 to before the number of groups
        self.size = size  # of contiguous groups; 0: rows are sorted
        if size == 0:
            if groups is None:  # a GPU would have to tell their number: there are N, most of them empty
                groups = int(index.max()) + 1 if len(index) > 0 and can_look(index) else len(index)
            self.order = torch.sort(index, stable=True).indices
            self.lengths = index.new_zeros(groups).scatter_add_(0, index, torch.ones_like(index))
            self.starts = self.lengths.cumsum(0) - self.lengths

    @classmethod
    def of(cls, like: Tensor, group_size: Any, group_ids: Any, offsets: Any) -> Groups:
        """Of the rows of `like`, grouped as `group_advantages` groups them."""
        size, ids, bounds = as_groups(group_size, group_ids, offsets, like)
        row = torch.arange(like.shape[0], device=like.device)
        if ids is not None:
            return cls(dense(ids.to(torch.int64)))
        if bounds is None:
            return cls(row // size, size)
        if can_look(bounds) and (bounds[0] != 0 or bounds[-1] != len(row) or bool((bounds.diff() < 0).any())):
            raise ValueError(f"offsets: expected ascending values from 0 to {len(row)}")
        return cls(torch.searchsorted(bounds, row, right=True) - 1, groups=len(bounds) - 1)

    def refined(self, other: Tensor) -> Groups:
        """Rows are together where they are here and have the same entry, (N,) from 0 to N - 1, in `other`."""
        return Groups(dense(self.index * max(len(other), 1) + other))

    def by_group(self, x: Tensor, reduction: str) -> Tensor:
        """The groups' "sum" or "max" of float64 (N, ...), for `spread`."""
        if len(x) == 0:
            return x
        if self.size:
            parts: Tensor = x.unflatten(0, (-1, self.size))
            return parts.sum(1) if reduction == "sum" else parts.amax(1)
        reduced: Tensor = torch.segment_reduce(x[self.order], reduction, lengths=self.lengths, axis=0, unsafe=True)
        return reduced

    def spread(self, x: Tensor) -> Tensor:
        """A value of each group to the rows of the group, (N, ...)."""
        if self.size and len(x) > 0:
            return x[:, None].expand(-1, self.size, *x.shape[1:]).flatten(0, 1)
        return x[self.index]

    def sum(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, ...) float64; of bools it is their number."""
        return self.spread(self.by_group(x.to(torch.float64), "sum"))

    def max(self, x: Tensor) -> Tensor:
        """(N, ...) float64 to (N, ...)."""
        return self.spread(self.by_group(x, "max"))

    def centred(self, x: Tensor, where: Tensor, joint: bool = False) -> Tensor:
        """x minus the group's mean over `where`, 0 outside; columns apart, or all together with `joint`.

        Deviations from the group's maximum are averaged, so that equal values are exactly 0.
        """
        masked = torch.where(where, x, -math.inf)
        if joint:
            top = self.max(masked.amax(-1) if x.shape[-1] else x.new_full(x.shape[:-1], -math.inf))[..., None]
        else:
            top = self.max(masked)
        deviation = torch.where(where, x - top, 0.0)
        count = self.sum(where.sum(-1) if joint else where).clamp(min=1)
        mean = self.sum(deviation.sum(-1) if joint else deviation) / count
        mean = torch.where(mean.isfinite(), mean, math.nan)  # an infinite value poisons its group
        return torch.where(where, deviation - (mean[..., None] if joint else mean), 0.0)

    def std(self, centred: Tensor, where: Tensor) -> Tensor:
        """Deviation (n - 1) of what `centred` gave for `where`, 0 for one value, (N,)."""
        count = self.sum(where)
        return (self.sum(torch.where(where, centred.square(), 0.0)) / (count - 1).clamp(min=1)).sqrt()

    def rank(self, where: Tensor) -> Tensor:
        """How many earlier rows of the group are in `where`, (N, ...)."""
        if len(where) == 0:
            return where.to(torch.int64)
        if self.size:
            parts: Tensor = where.to(torch.int64).unflatten(0, (-1, self.size))
            return (parts.cumsum(1) - parts).flatten(0, 1)
        ones = where.to(torch.int64)[self.order]
        before = ones.cumsum(0) - ones
        before = before - before[self.starts[self.index[self.order]]]
        return torch.empty_like(before).index_copy_(0, self.order, before)


def can_look(tensor: Tensor) -> bool:
    """Whether values are checked: not where the host would wait for a device, nor while tracing."""
    return tensor.is_cpu and not torch.compiler.is_compiling()


def dense(labels: Tensor) -> Tensor:
    """(N,) from 0 to N - 1, equal where the int64 labels are."""
    if len(labels) == 0:
        return labels
    ordered = torch.sort(labels, stable=True)
    rises = torch.zeros_like(labels)
    rises[1:] = ordered.values[1:] != ordered.values[:-1]
    return torch.empty_like(labels).scatter_(0, ordered.indices, rises.cumsum(0))


def as_labels(labels: Any, name: str, like: Tensor) -> Tensor:
    """int64 (N,), equal where the labels are: integers, strings and whatever else names groups."""
    try:
        ids = as_groups(None, labels, None, like)[1]
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("group_ids", name)) from None
    assert ids is not None
    return ids.to(torch.int64)


class Everyone(NamedTuple):
    """The rows of all ranks."""

    rewards: Tensor
    groups: dict[str, Any]  # group_size or group_ids
    labels: list[Tensor]  # (N,) each
    own: slice


def over_ranks(process_group: Any, rewards: Tensor, groups: tuple[Any, Any, Any], **labels: Any) -> Everyone:
    """What estimators with statistics of the batch need of all ranks; groups are (group_size, group_ids, offsets)."""
    from morlfast._distributed import gather_rows

    group_size, group_ids, offsets = groups
    check_groups_of_ranks(group_size, group_ids, offsets)
    if group_ids is not None:
        labels = {"group_ids": group_ids, **labels}
    columns = [label_columns(column, len(rewards), rewards, name) for name, column in labels.items()]
    gathered, own = gather_rows(process_group, rewards.device, rewards.reshape(len(rewards), -1), *columns)
    everyone, *columns = gathered
    ids = [_ops.group_rows(column) for column in columns]
    grouping = {"group_size": group_size} if group_ids is None else {"group_ids": ids.pop(0)}
    return Everyone(everyone[:, 0] if rewards.dim() == 1 else everyone, grouping, ids, own)


def as_rollouts(values: Any, name: str = "rewards", objectives: bool = True) -> Tensor:
    """A number for each rollout, or several with `objectives`."""
    tensor = as_floating(values, name)
    if tensor.dim() != 1 and not (objectives and tensor.dim() == 2):
        raise ValueError(f"{name}: expected shape (N,){' or (N, M)' * objectives}, got {tuple(tensor.shape)}")
    return tensor


def as_tokens(values: Any, name: str, like: Tensor | None = None, like_name: str = "token_rewards") -> Tensor:
    tensor = as_floating(values, name)
    if tensor.dim() != 2 or (like is not None and tensor.shape != like.shape):
        expected = "(N, T)" if like is None else str(tuple(like.shape))
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
    if like is not None:
        same_device(like_name, like, name, tensor)
    return tensor.detach()


def as_column(values: Any, name: str, like: Tensor, like_name: str = "rewards") -> Tensor:
    """Another number for each rollout of `like`, in float64."""
    tensor = values if isinstance(values, Tensor) else as_tensor(values, name, device=like.device)
    same_device(like_name, like, name, tensor)
    if tensor.dtype.is_complex:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    if tensor.shape != like.shape:
        raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
    return tensor.detach().to(torch.float64)


def as_mask(mask: Any, like: Tensor, like_name: str, name: str = "mask") -> Tensor:
    tensor = mask if isinstance(mask, Tensor) else as_tensor(mask, name, device=like.device)
    same_device(like_name, like, name, tensor)
    if tensor.shape != like.shape:
        raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
    return tensor if tensor.dtype is torch.bool else tensor != 0


def as_nonnegative(value: Any, name: str) -> float:
    number = as_number(value, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a number >= 0, got {number!r}")
    return number


def on_tokens(
    advantages: Tensor,
    given: Tensor,
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """In the dtype of the rewards: (N,), or with a mask, or lengths and num_tokens, (N, T)."""
    advantages = advantages.to(given.dtype)
    if mask is None and num_tokens is None and out is None:
        return advantages
    return group_advantages(
        advantages,
        group_size=1,
        mask=mask,
        lengths=lengths,
        num_tokens=num_tokens,
        baseline="none",
        scale="none",
        nan="propagate",
        out=out,
    )
