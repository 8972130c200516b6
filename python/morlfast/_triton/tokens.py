"""Exact top-k token masks by radix selection.

The score |A| * H becomes an order-preserving unsigned integer; 8-bit digits from the top narrow down the k-th
largest key tau of each segment (the batch, a group of rows, a row). Tokens above tau are kept, and of those
equal to tau the first few in flat order. Scores are recomputed in every pass, never stored; integer counts
make every pass deterministic.

Floor: entropies and mask read once, the result written once. Rows of at most ROW_LIMIT tokens that are
segments of their own: 1 launch, one program a row, the row read (digits + 1) times, mostly from cache.
Otherwise: digits (4 for float32, 8 for float64) histogram launches, a launch that counts ties, a cumulative
sum of one number a tile, and the selection; tokens are read (digits + 1) times, once more where ties straddle
k. Scratch: 256 counts a digit and segment, and one count a tile (2,048 tokens); with group_ids as many
segments as rows, since the number of groups is not known on the host.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import group_bounds, require, require_groups

TILE = 2048
ROW_LIMIT = 16384

BATCH, GROUP, SEQUENCE = 0, 1, 2
OPTIONS = {"num_stages": 1, "enable_fp_fusion": False, "maxnreg": 128}


@triton.jit
def ordered(value):
    """Unsigned integers in the order of float32 or float64 values, above 0; -0.0 is 0.0."""
    value = tl.where(value == 0, 0.0, value)
    if value.dtype == tl.float64:
        bits = value.to(tl.uint64, bitcast=True)
        sign = tl.full(bits.shape, 1, tl.uint64) << 63
    else:
        bits = value.to(tl.uint32, bitcast=True)
        sign = tl.full(bits.shape, 1, tl.uint32) << 31
    ones = sign | (sign - 1)  # not ~: the interpreter's NumPy has no unsigned -1
    return tl.where((bits & sign) != 0, bits ^ ones, bits | sign)


@triton.jit
def _keys(
    advantages_ptr,
    entropies_ptr,
    mask_ptr,
    row,
    col,
    inside,
    advantage_row,
    advantage_col,
    entropy_row,
    entropy_col,
    mask_row,
    mask_col,
    WIDE: tl.constexpr,
):
    """Order-preserving keys of the scores (uint32, or uint64 if WIDE), and which tokens are valid."""
    advantage = tl.load(advantages_ptr + row * advantage_row + col * advantage_col, mask=inside, other=0.0)
    entropy = tl.load(entropies_ptr + row * entropy_row + col * entropy_col, mask=inside, other=0.0)
    valid = tl.load(mask_ptr + row * mask_row + col * mask_col, mask=inside, other=0)
    if mask_ptr.dtype.element_ty.is_floating() and mask_ptr.dtype.element_ty.primitive_bitwidth < 32:
        valid = valid.to(tl.float32)
    if WIDE:
        if advantages_ptr.dtype.element_ty != tl.float64:
            advantage = advantage.to(tl.float32)
        if entropies_ptr.dtype.element_ty != tl.float64:
            entropy = entropy.to(tl.float32)
        score = tl.abs(advantage.to(tl.float64)) * entropy.to(tl.float64)
    else:
        score = tl.abs(advantage.to(tl.float32)) * entropy.to(tl.float32)
    return ordered(score), inside & (valid != 0) & (score == score)


@triton.jit
def _kept(valid, ratio):
    """k = min(valid, ceil(ratio * valid * (1 - 2**-50))), in float64."""
    # Two products, each rounded, as the definition has them.
    exact = ratio * valid.to(tl.float64)
    exact = exact * (1.0 - 2.0**-50)
    return tl.minimum(valid, tl.ceil(exact).to(tl.int64))


@triton.jit
def _descend(counts, prefix, remaining):
    """The next digit of tau, from the histogram [256] of the keys that share its prefix.

    Returns the longer prefix, how many of the keys with that prefix are kept, and how many there are.
    """
    digits = tl.arange(0, 256)
    counts = counts.to(tl.int64)
    at_least = tl.cumsum(counts, axis=0, reverse=True)
    digit = tl.sum((at_least >= remaining).to(tl.int32), axis=0) - 1
    above = tl.sum(tl.where(digits > digit, counts, 0), axis=0)
    matching = tl.sum(tl.where(digits == digit, counts, 0), axis=0)
    return (prefix << 8) | digit.to(tl.uint64), remaining - above, matching


@triton.jit
def _digit(key, level, LEVELS: tl.constexpr):
    """The level-th digit from the top, and the digits above it."""
    shifted = key >> (8 * (LEVELS - 1 - level)).to(key.dtype)
    return (shifted & 255).to(tl.int32), shifted >> 8


@triton.jit
def _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R: tl.constexpr, WIDTH: tl.constexpr):
    """Where a program's tile [R * WIDTH] lies: rows, columns, which are inside; its segment and the segment's
    first program.

    Programs run through sorted rows, so a segment's programs are consecutive and in flat order.
    """
    across = tl.cdiv(columns, WIDTH)
    program = tl.program_id(0).to(tl.int64)
    top = program // across * R
    lane = tl.arange(0, R * WIDTH)
    position = top + lane // WIDTH
    col = program % across * WIDTH + lane % WIDTH
    inside = (position < rows) & (col < columns)
    if order_ptr is None:
        row = position
        segment = top // group_rows
        first = segment * group_rows
    else:
        row = tl.load(order_ptr + position, mask=inside, other=0)
        segment = tl.load(group_ptr + top)
        first = tl.load(bounds_ptr + segment)
    return row, col, inside, segment, first // R * across


@triton.jit
def _tau(histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio):
    """The first `level` digits of a segment's tau, from its state one level up; see _descend."""
    counts = tl.load(histogram_ptr + ((level - 1) * segments + segment) * 256 + tl.arange(0, 256)).to(tl.int64)
    prefix = tl.zeros([], tl.uint64)
    if level > 1:
        at = (level - 1) * segments + segment
        prefix = tl.load(prefix_ptr + at).to(tl.uint64, bitcast=True)
        remaining = tl.load(remaining_ptr + at)
    else:
        remaining = _kept(tl.sum(counts, axis=0), ratio)
    return _descend(counts, prefix, remaining)


@triton.jit(
    do_not_specialize=[
        "level",
        "segments",
        "rows",
        "columns",
        "group_rows",
        "advantage_row",
        "advantage_col",
        "entropy_row",
        "mask_row",
    ]
)
def histogram_kernel(
    advantages_ptr,  # [N, T], the column stride is 0 for (N,)
    entropies_ptr,  # [N, T]
    mask_ptr,  # [N, T]
    order_ptr,  # [N] rows by group, or None
    group_ptr,  # [N] segment of each sorted row, or None
    bounds_ptr,  # [N + 1] or None
    histogram_ptr,  # [LEVELS, segments, 256], zero before the first launch
    prefix_ptr,  # [LEVELS, segments]
    remaining_ptr,  # [LEVELS, segments]
    level,
    segments,
    rows,
    columns,
    group_rows,
    advantage_row,
    advantage_col,
    entropy_row,
    entropy_col,
    mask_row,
    mask_col,
    ratio: tl.float64,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Counts the level-th digit of the keys that share tau's digits above it."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row, col, inside, segment, first = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
    level = level.to(tl.int64)
    prefix = tl.zeros([], tl.uint64)
    if level > 0:
        prefix, remaining, _ = _tau(histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio)
        # Every program of the segment has the same values; one passes them to the next launch.
        if tl.program_id(0) == first:
            tl.store(prefix_ptr + level * segments + segment, prefix.to(tl.int64, bitcast=True))
            tl.store(remaining_ptr + level * segments + segment, remaining)
    key, live = _keys(
        advantages_ptr,
        entropies_ptr,
        mask_ptr,
        row,
        col,
        inside,
        advantage_row,
        advantage_col,
        entropy_row,
        entropy_col,
        mask_row,
        mask_col,
        WIDE,
    )
    digit, above = _digit(key, level, LEVELS)
    live = live & (above == prefix.to(key.dtype))
    # Below the first digits most tiles hold no candidate.
    if tl.max(live.to(tl.int32), axis=0) > 0:
        counts = tl.histogram(digit, 256, mask=live)
        at = histogram_ptr + (level * segments + segment) * 256 + tl.arange(0, 256)
        tl.atomic_add(at, counts.to(histogram_ptr.dtype.element_ty), mask=counts > 0, sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "segments",
        "rows",
        "columns",
        "group_rows",
        "advantage_row",
        "advantage_col",
        "entropy_row",
        "mask_row",
    ]
)
def tie_kernel(
    advantages_ptr,
    entropies_ptr,
    mask_ptr,
    order_ptr,
    group_ptr,
    bounds_ptr,
    histogram_ptr,
    prefix_ptr,
    remaining_ptr,
    ties_ptr,  # [programs] int32
    segments,
    rows,
    columns,
    group_rows,
    advantage_row,
    advantage_col,
    entropy_row,
    entropy_col,
    mask_row,
    mask_col,
    ratio: tl.float64,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Counts the keys equal to tau in each tile, where not all of the segment's are kept."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row, col, inside, segment, _ = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
    level = tl.full([], LEVELS, tl.int64)
    tau, remaining, matching = _tau(histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio)
    ties = tl.zeros([], tl.int32)
    if matching > remaining:
        key, live = _keys(
            advantages_ptr,
            entropies_ptr,
            mask_ptr,
            row,
            col,
            inside,
            advantage_row,
            advantage_col,
            entropy_row,
            entropy_col,
            mask_row,
            mask_col,
            WIDE,
        )
        ties = tl.sum((live & (key == tau.to(key.dtype))).to(tl.int32), axis=0)
    tl.store(ties_ptr + tl.program_id(0), ties)


@triton.jit
def _keep(key, live, tau, remaining):
    """Keys above tau and the first `remaining` of those equal to it; also how many are equal."""
    tau = tau.to(key.dtype)
    tie = (live & (key == tau)).to(tl.int32)
    before = tl.cumsum(tie, axis=0) - tie
    return live & ((key > tau) | ((tie > 0) & (before < remaining))), tl.sum(tie, axis=0)


@triton.jit(
    do_not_specialize=[
        "segments",
        "rows",
        "columns",
        "group_rows",
        "advantage_row",
        "advantage_col",
        "entropy_row",
        "mask_row",
    ]
)
def select_kernel(
    advantages_ptr,
    entropies_ptr,
    mask_ptr,
    order_ptr,
    group_ptr,
    bounds_ptr,
    histogram_ptr,
    prefix_ptr,
    remaining_ptr,
    ties_ptr,  # [programs] int32
    ties_through_ptr,  # [programs] int64, inclusive cumulative sum of ties
    out_ptr,  # [N, T]
    segments,
    rows,
    columns,
    group_rows,
    advantage_row,
    advantage_col,
    entropy_row,
    entropy_col,
    mask_row,
    mask_col,
    ratio: tl.float64,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row, col, inside, segment, first = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
    level = tl.full([], LEVELS, tl.int64)
    tau, remaining, _ = _tau(histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio)
    key, live = _keys(
        advantages_ptr,
        entropies_ptr,
        mask_ptr,
        row,
        col,
        inside,
        advantage_row,
        advantage_col,
        entropy_row,
        entropy_col,
        mask_row,
        mask_col,
        WIDE,
    )
    program = tl.program_id(0)
    earlier_segments = tl.load(ties_through_ptr + first - 1, mask=first > 0, other=0)
    earlier = tl.load(ties_through_ptr + program) - tl.load(ties_ptr + program) - earlier_segments
    keep, _ = _keep(key, live, tau, remaining - earlier)
    tl.store(out_ptr + row * columns + col, keep, mask=inside)


@triton.jit(do_not_specialize=["columns", "advantage_row", "advantage_col", "entropy_row", "mask_row"])
def row_kernel(
    advantages_ptr,
    entropies_ptr,
    mask_ptr,
    out_ptr,
    columns,
    advantage_row,
    advantage_col,
    entropy_row,
    entropy_col,
    mask_row,
    mask_col,
    ratio: tl.float64,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The whole selection for one row."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row = tl.program_id(0).to(tl.int64)
    tau = tl.zeros([], tl.uint64)
    remaining = tl.zeros([], tl.int64)
    for level in range(LEVELS):
        counts = tl.zeros([256], tl.int32)
        for left in range(0, columns, WIDTH):
            col = (left + tl.arange(0, WIDTH)).to(tl.int64)
            key, live = _keys(
                advantages_ptr,
                entropies_ptr,
                mask_ptr,
                row,
                col,
                col < columns,
                advantage_row,
                advantage_col,
                entropy_row,
                entropy_col,
                mask_row,
                mask_col,
                WIDE,
            )
            digit, above = _digit(key, tl.full([], level, tl.int64), LEVELS)
            counts += tl.histogram(digit, 256, mask=live & (above == tau.to(key.dtype)))
        if level == 0:
            remaining = _kept(tl.sum(counts, axis=0).to(tl.int64), ratio)
        tau, remaining, _ = _descend(counts, tau, remaining)
    for left in range(0, columns, WIDTH):
        col = (left + tl.arange(0, WIDTH)).to(tl.int64)
        key, live = _keys(
            advantages_ptr,
            entropies_ptr,
            mask_ptr,
            row,
            col,
            col < columns,
            advantage_row,
            advantage_col,
            entropy_row,
            entropy_col,
            mask_row,
            mask_col,
            WIDE,
        )
        keep, ties = _keep(key, live, tau, remaining)
        remaining -= ties
        tl.store(out_ptr + row * columns + col, keep, mask=col < columns)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def launch_options(tile: int) -> dict[str, Any]:
    """No more threads than tokens of a tile: a histogram should see each token once."""
    return {**OPTIONS, "num_warps": min(8, tile // 32)}


def select_tokens(
    advantages: Tensor,
    entropies: Tensor,
    mask: Tensor,
    ratio: float,
    scope: int = 0,
    group_size: int = 0,
    group_ids: Tensor | None = None,
) -> Tensor:
    """Implements ``morlfast::select_tokens`` for CUDA: -> bool (N, T)."""
    require(entropies.dim() == 2, f"entropies: expected shape (N, T), got {tuple(entropies.shape)}")
    rows, columns = entropies.shape
    fits = advantages.shape in ((rows,), (rows, columns)) and mask.shape == (rows, columns)
    require(
        fits,
        f"advantages, mask: expected shapes that fit ({rows}, {columns}), got {tuple(advantages.shape)}, "
        f"{tuple(mask.shape)}",
    )
    if scope == GROUP:
        require_groups(rows, group_size, group_ids)
    out = torch.empty((rows, columns), dtype=torch.bool, device=entropies.device)
    if rows == 0 or columns == 0:
        return out
    ratio = float(ratio)
    wide = torch.float64 in (advantages.dtype, entropies.dtype)
    levels = 8 if wide else 4
    advantage_strides = (advantages.stride(0), advantages.stride(1) if advantages.dim() == 2 else 0)
    strides = (*advantage_strides, *entropies.stride(), *mask.stride())
    width = min(TILE, max(128, _power_of_two(columns)))
    with torch.cuda.device_of(entropies):
        if scope == SEQUENCE and columns <= ROW_LIMIT:
            row_kernel[(rows,)](
                advantages,
                entropies,
                mask,
                out,
                columns,
                *strides,
                ratio,
                WIDE=wide,
                WIDTH=width,
                **launch_options(width),
            )
            return out

        order = group = bounds = None
        if scope == BATCH:
            segments, group_rows, stacked = 1, rows, TILE // width
        elif group_ids is not None:
            order, group, bounds = group_bounds(group_ids)
            segments, group_rows, stacked = rows, 1, 1
        else:
            group_rows = 1 if scope == SEQUENCE else group_size
            # A tile never straddles groups: as many rows as the largest power of two that divides a group.
            segments, stacked = rows // group_rows, min(TILE // width, group_rows & -group_rows)
        counter = torch.int32 if rows * columns < 2**31 else torch.int64
        histogram = torch.zeros((levels, segments, 256), dtype=counter, device=out.device)
        prefix = torch.empty((levels, segments), dtype=torch.int64, device=out.device)
        remaining = torch.empty_like(prefix)
        programs = triton.cdiv(rows, stacked) * triton.cdiv(columns, width)
        ties = torch.empty(programs, dtype=torch.int32, device=out.device)
        grid = (programs,)
        options = launch_options(stacked * width)
        tensors = (advantages, entropies, mask, order, group, bounds, histogram, prefix, remaining)
        sizes = (segments, rows, columns, group_rows, *strides)
        for level in range(levels):
            histogram_kernel[grid](
                *tensors,
                level,
                *sizes,
                ratio,
                WIDE=wide,
                R=stacked,
                WIDTH=width,
                **options,
            )
        tie_kernel[grid](*tensors, ties, *sizes, ratio, WIDE=wide, R=stacked, WIDTH=width, **options)
        ties_through = torch.cumsum(ties, 0)
        select_kernel[grid](
            *tensors,
            ties,
            ties_through,
            out,
            *sizes,
            ratio,
            WIDE=wide,
            R=stacked,
            WIDTH=width,
            **options,
        )
        return out
