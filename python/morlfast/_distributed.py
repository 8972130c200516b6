"""Rows of every rank, bit for bit, by two all-reduces: groups of rollouts may span ranks."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(process_group: Any, device: torch.device, *columns: Tensor) -> tuple[list[Tensor], slice]:
    """Every rank's rows in rank order, and which of them are this rank's.

    Columns are (N_r, ...) of any dtype; N_r may differ between ranks and be 0, dtypes and further dimensions must not:
    ValueError on every rank. The first all-reduce tells how many rows there are, which the host waits for; the second
    sums int64 words that are zero except for this rank's rows, so NaN payloads and signed zeros arrive as they are.
    """
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group: expected a torch.distributed.ProcessGroup that this rank is in, got {process_group!r}"
        )
    rank, ranks = dist.get_rank(process_group), dist.get_world_size(process_group)
    layouts = [(column.dtype, tuple(column.shape[1:])) for column in columns]
    rows = columns[0].shape[0]

    counts = torch.zeros(ranks, 2, dtype=torch.int64, device=device)
    counts[rank] = torch.tensor([rows, _checksum(layouts)], device=device)
    dist.all_reduce(counts, group=process_group)
    each_rows, checksums = counts.T.tolist()
    others = [other for other in range(ranks) if checksums[other] != checksums[rank]]
    if others:
        own = ", ".join(f"{dtype} (N, {', '.join(map(str, shape))})" for dtype, shape in layouts)
        raise ValueError(
            "process_group: expected the same dtypes and shapes, but for N, of rewards, groups and token counts on "
            f"every rank, got {own} on rank {rank} and others on ranks {others}"
        )

    # row i: the bytes of its values, column after column, filled up to whole words
    widths = [dtype.itemsize * math.prod(shape) for dtype, shape in layouts]
    start, total = sum(each_rows[:rank]), sum(each_rows)
    own_rows = slice(start, start + rows)
    words = torch.zeros(total, -(-sum(widths) // 8), dtype=torch.int64, device=device)
    pieces = words.view(torch.uint8)[:, : sum(widths)].split(widths, 1)
    for column, piece, width in zip(columns, pieces, widths, strict=True):
        flat = column.detach().to(device).reshape(rows, math.prod(column.shape[1:]))
        piece[own_rows] = flat.contiguous().view(torch.uint8).reshape(rows, width)
    if words.numel() > 0:
        dist.all_reduce(words, group=process_group)
    gathered = [
        piece.clone(memory_format=torch.contiguous_format).view(dtype).reshape(total, *shape)
        for piece, (dtype, shape) in zip(pieces, layouts, strict=True)
    ]
    return gathered, own_rows


def _checksum(layouts: list[tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """63 bits of the dtypes and shapes, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(layouts).encode(), digest_size=8).digest(), "little") >> 1
