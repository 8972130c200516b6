"""Selection of tokens over ranks: digits of the threshold from all-reduced histograms of the scores' keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_group_size
from morlfast._distributed import gather_rows, rank_and_world_size
from morlfast._rollout_arguments import check_groups_of_ranks, label_columns

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Ranks:
    """The tokens of every rank, of which each rank sees its own."""

    def __init__(self, group: ProcessGroup, tensors: tuple[Tensor, Tensor, Tensor], segments: Tensor, count: int):
        self.group, self.tensors, self.segments = group, tensors, segments
        advantages, entropies, _ = tensors
        self.bits = 64 if torch.float64 in (advantages.dtype, entropies.dtype) else 32
        self.no_prefix = torch.zeros(count, dtype=torch.int64, device=segments.device)
        self.first_digits = self._histogram(self.no_prefix, 0)

    def _histogram(self, prefixes: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Counts (S, 256) of the digit `level` among keys that start with the prefixes: this rank's, and everyone's."""
        own = _ops.token_histogram(*self.tensors, self.segments, prefixes, level)
        everyones = own.clone()
        dist.all_reduce(everyones, group=self.group)
        return own, everyones

    def valid(self) -> Tensor:
        """How many tokens of each segment count, (S,)."""
        return self.first_digits[1].sum(1)

    def largest(self, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The key of the `wanted`-th largest score of each segment; how many tokens with that key are among the
        `wanted` largest; how many tokens of this rank have it. Segments of which none is wanted: any key."""
        key, left = self.no_prefix, wanted
        digits = torch.arange(256, device=wanted.device)
        for level in range(self.bits // 8):
            own, counts = self._histogram(key, level) if level > 0 else self.first_digits
            reached = counts.flip(1).cumsum(1).flip(1)  # keys with this digit or a larger one
            digit = ((reached >= left[:, None]).sum(1) - 1).clamp(min=0)[:, None]
            left = left - torch.where(digits > digit, counts, 0).sum(1)
            key = key << 8 | digit[:, 0]
        return key, left, own.gather(1, digit)[:, 0]

    def earlier(self, count: Tensor) -> Tensor:
        """The sum of (S,) over the ranks before this one."""
        rank, ranks = rank_and_world_size(self.group)
        table = count.new_zeros(ranks, len(count))
        table[rank] = count
        dist.all_reduce(table, group=self.group)
        return table[:rank].sum(0)

    def above(self, keys: Tensor, ties: Tensor) -> Tensor:
        return _ops.select_tokens_above(*self.tensors, self.segments, keys, ties)

    def score(self, keys: Tensor) -> Tensor:
        """The scores whose keys these are."""
        if self.bits == 64:
            return torch.where(keys < 0, keys ^ -(2**63), ~keys).view(torch.float64)
        bits = torch.where(keys >= 2**31, keys - 2**31, (2**32 - 1) - keys)
        return bits.to(torch.uint32).view(torch.float32)

    def key(self, scores: Tensor) -> Tensor:
        """The keys of scores that are no NaN."""
        scores = scores + 0.0  # -0.0 as 0.0
        if self.bits == 64:
            bits = scores.view(torch.int64)
            return torch.where(bits < 0, ~bits, bits ^ -(2**63))
        bits = scores.view(torch.int32).to(torch.int64)
        return torch.where(bits < 0, -1 - bits, bits + 2**31)


def select_tokens_of_ranks(
    process_group: ProcessGroup,
    advantages: Tensor,
    entropies: Tensor,
    mask: Tensor,
    ratio: float,
    groups: tuple[Any, Any, Any] | None,
    at_least: int,
    quantile: bool,
) -> Tensor:
    """This rank's part of what `select_tokens` keeps of every rank's rows; groups are (group_size, group_ids, offsets)
    or None for the whole batch."""
    rank_and_world_size(process_group)  # or TypeError
    segments, count = _segments(process_group, entropies, groups)
    # One kind of keys on every rank.
    wide = torch.tensor([torch.float64 in (advantages.dtype, entropies.dtype)], device=entropies.device).to(torch.int64)
    dist.all_reduce(wide, group=process_group)
    if bool(wide):
        entropies = entropies.double()
    ranks = _Ranks(process_group, (advantages, entropies, mask), segments, count)
    valid = ranks.valid()
    if quantile:
        return _reaching_quantile(ranks, valid, ratio)
    wanted = torch.ceil(ratio * valid.double() * (1 - 2.0**-50)).to(torch.int64).clamp(min=at_least)
    wanted = torch.minimum(wanted, valid)
    key, ties, own = ranks.largest(wanted)
    own_ties = torch.minimum((ties - ranks.earlier(own)).clamp(min=0), own)
    # No score has the largest key: it would be a NaN's.
    none = wanted == 0
    return ranks.above(key.masked_fill(none, -1), own_ties.masked_fill(none, 0))


def _reaching_quantile(ranks: _Ranks, valid: Tensor, ratio: float) -> Tensor:
    # Ranks in float32 as torch.quantile has them, as long as it can count the tokens at all.
    single = torch.tensor(1 - ratio, dtype=torch.float32, device=valid.device)
    rank = (single * (valid - 1).float()).double()
    rank = torch.where(valid > 2**24, (1 - ratio) * (valid - 1).double(), rank)
    if ranks.bits == 64:
        rank = (1 - ratio) * (valid - 1).double()
    rank = rank.clamp(min=0)
    lower, upper = (
        ranks.score(ranks.largest(valid - place.to(torch.int64))[0]) for place in (rank.floor(), rank.ceil())
    )
    threshold = torch.lerp(lower, upper, (rank - rank.floor()).to(lower.dtype))
    none = (valid == 0) | threshold.isnan()
    keys = ranks.key(threshold).masked_fill(none, -1)
    return ranks.above(keys, torch.full_like(keys, 2**62).masked_fill(none, 0))


def _segments(process_group: ProcessGroup, like: Tensor, groups: tuple[Any, Any, Any] | None) -> tuple[Tensor, int]:
    """The group of each of this rank's rows, (N,) int64, and how many there are on all ranks."""
    rows, device = len(like), like.device
    if groups is None:
        return torch.zeros(rows, dtype=torch.int64, device=device), 1
    group_size, group_ids, offsets = groups
    check_groups_of_ranks(group_size, group_ids, offsets)
    if group_ids is None:
        (everyone,), own = gather_rows(process_group, device, torch.empty(rows, 1, dtype=torch.bool, device=device))
        size = as_group_size(group_size, len(everyone))
        return torch.arange(own.start, own.stop, device=device) // size, len(everyone) // size
    (everyone,), own = gather_rows(process_group, device, label_columns(group_ids, rows, like))
    first, index = torch.unique(_ops.group_rows(everyone), return_inverse=True)
    return index[own], len(first)
