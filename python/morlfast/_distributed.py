"""Rows of every rank, bit for bit, by two all-reduces: groups of rollouts may span ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_MOST_COLUMNS = 8


def rank_and_world_size(process_group: Any) -> tuple[int, int]:
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group: expected a torch.distributed.ProcessGroup that this rank is in, got {process_group!r}"
        )
    return dist.get_rank(process_group), dist.get_world_size(process_group)


def gather_rows(process_group: Any, device: torch.device, *columns: Tensor) -> tuple[list[Tensor], slice]:
    """Every rank's rows in rank order, and which of them are this rank's.

    Columns are (N_r, c). N_r may differ between ranks; where ranks that have rows differ in dtypes or c, every rank
    raises ValueError, and a rank without rows gets those of the others. The first all-reduce tells all that, and the
    host waits for it; the second sums int64 words that are zero except for this rank's rows, so that NaN payloads and
    signed zeros arrive as they are.
    """
    rank, ranks = rank_and_world_size(process_group)
    rows = columns[0].shape[0]
    shapes = [rows, *(x for column in columns for x in (_DTYPES.index(column.dtype), column.shape[1]))]
    shapes += [-1] * (1 + 2 * _MOST_COLUMNS - len(shapes))

    table = torch.zeros(ranks, len(shapes), dtype=torch.int64, device=device)
    table[rank] = torch.tensor(shapes, device=device)
    dist.all_reduce(table, group=process_group)
    each_rows = table[:, 0].tolist()
    layouts = [_layout(row) for row in table[:, 1:].tolist()]
    _check_layouts(layouts, each_rows)
    layout = next((own for own, n in zip(layouts, each_rows, strict=True) if n > 0), layouts[rank])

    # row i: the bytes of its values, column after column, filled up to whole words
    widths = [dtype.itemsize * c for dtype, c in layout]
    start, total = sum(each_rows[:rank]), sum(each_rows)
    own_rows = slice(start, start + rows)
    words = torch.zeros(total, -(-sum(widths) // 8), dtype=torch.int64, device=device)
    pieces = words.view(torch.uint8)[:, : sum(widths)].split(widths, 1)
    if rows > 0:
        for column, piece in zip(columns, pieces, strict=True):
            piece[own_rows] = column.detach().to(device).contiguous().view(torch.uint8)
    if words.numel() > 0:
        dist.all_reduce(words, group=process_group)
    gathered = [
        piece.clone(memory_format=torch.contiguous_format).view(-1).view(dtype).view(total, c)
        for piece, (dtype, c) in zip(pieces, layout, strict=True)
    ]
    return gathered, own_rows


def _layout(numbers: list[int]) -> list[tuple[torch.dtype, int]]:
    return [(_DTYPES[code], c) for code, c in zip(numbers[::2], numbers[1::2], strict=True) if code >= 0]


def _check_layouts(layouts: list[list[tuple[torch.dtype, int]]], each_rows: list[int]) -> None:
    first = next((rank for rank, rows in enumerate(each_rows) if rows > 0), 0)
    for rank, (layout, rows) in enumerate(zip(layouts, each_rows, strict=True)):
        if len(layout) != len(layouts[first]) or (rows > 0 and layout != layouts[first]):
            shown = [", ".join(f"{dtype} (N, {c})" for dtype, c in layouts[other]) for other in (first, rank)]
            raise ValueError(
                "process_group: expected the same dtypes and columns of rewards, groups, weights and token counts on "
                f"every rank, got {shown[0]} on rank {first} and {shown[1]} on rank {rank}"
            )
