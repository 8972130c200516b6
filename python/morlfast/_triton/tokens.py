"""Exact top-k token masks by radix selection, and the quantile mask that interpolates between two scores.

The score |A| * H becomes an order-preserving unsigned integer; 8-bit digits from the top narrow down the k-th
largest key tau of each segment (the batch, a group of rows, a row). Tokens above tau are kept, and of those
equal to tau the first few in flat order; a quantile needs the largest key below tau as well. Scores are recomputed
in every pass, never stored; integer counts make every pass deterministic.

Floor: entropies and mask read once, the result written once. Rows of at most ROW_LIMIT tokens that are
segments of their own: 1 launch, one program a row, the row read (digits + 1) times, mostly from cache.
Otherwise: digits (4 for float32, 8 for float64) histogram launches, one that makes thresholds of them, one that counts
ties, a cumulative sum of one number a tile, and the selection; tokens are read (digits + 1) times, once more where
ties straddle k or a quantile lies between two scores. That is a fifth of the bandwidth of one read at best, for a batch
in float32 that no cache holds. Scratch: 256 counts a digit and segment, and one count a tile (2,048 tokens); with
group_ids as many segments as rows, since the number of groups is not known on the host.

Over ranks the digits are told from outside, one histogram a launch, and so are the thresholds.
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
    bits = value.to(tl.uint64 if value.dtype == tl.float64 else tl.uint32, bitcast=True)
    sign = tl.full(bits.shape, 1, bits.dtype) << (bits.dtype.primitive_bitwidth - 1)
    ones = sign | (sign - 1)  # not ~: the interpreter's NumPy has no unsigned -1
    return tl.where((bits & sign) != 0, bits ^ ones, bits | sign)


@triton.jit
def value_of(key):
    """The float32 or float64 value of a key of `ordered`."""
    sign = tl.full(key.shape, 1, key.dtype) << (key.dtype.primitive_bitwidth - 1)
    bits = tl.where((key & sign) != 0, key ^ sign, key ^ (sign | (sign - 1)))
    return bits.to(tl.float64, bitcast=True) if key.dtype == tl.uint64 else bits.to(tl.float32, bitcast=True)


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
def _places(valid, ratio, least, QUANTILE: tl.constexpr, WIDE: tl.constexpr):
    """Places from the largest (from 1) that decide: the last one kept, or the two that a quantile lies between, with
    the weight of the first; 0 if none is kept."""
    count = valid.to(tl.float64)
    if QUANTILE:
        # As torch.quantile: in the scores' own type, beyond the integers that float32 holds in float64.
        share = tl.full([], 1.0, tl.float64) - ratio
        rank = share * (count - 1.0)
        if not WIDE:
            narrow = share.to(tl.float32) * (count - 1.0).to(tl.float32)
            rank = tl.where(valid <= 2**24, narrow.to(tl.float64), rank)
        lower = tl.floor(rank)
        first = tl.where(valid > 0, valid - tl.ceil(rank).to(tl.int64), 0)
        last = tl.where(valid > 0, valid - lower.to(tl.int64), 0)
        weight = rank - lower
    else:
        # Two products, each rounded: the second takes back the rounding of ratio itself.
        exact = ratio * count
        exact = exact * (1.0 - 2.0**-50)
        first = tl.minimum(valid, tl.maximum(tl.ceil(exact).to(tl.int64), least))
        last = first
        weight = exact * 0.0
    return first, last, weight


@triton.jit
def _above_quantile(lower, upper, weight, WIDE: tl.constexpr):
    """The key above which scores reach the quantile between two keys. torch.lerp, whose kernels contract."""
    own: tl.constexpr = tl.uint64 if WIDE else tl.uint32
    low = value_of(lower.to(own))
    high = value_of(upper.to(own))
    weight = weight.to(low.dtype)
    step = high - low
    quantile = tl.where(weight < 0.5, tl.fma(weight, step, low), tl.fma(weight - 1.0, step, high))
    ones = tl.zeros([], tl.uint64) - 1
    return tl.where(quantile == quantile, ordered(quantile).to(tl.uint64) - 1, ones)


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

    Programs run through sorted rows, so a segment's programs are consecutive and in flat order; without bounds they
    need not be, and its first program is not known.
    """
    across = tl.cdiv(columns, WIDTH)
    program = tl.program_id(0).to(tl.int64)
    top = program // across * R
    lane = tl.arange(0, R * WIDTH)
    position = top + lane // WIDTH
    col = program % across * WIDTH + lane % WIDTH
    inside = (position < rows) & (col < columns)
    row = position if order_ptr is None else tl.load(order_ptr + position, mask=inside, other=0)
    if group_ptr is None:
        segment = top // group_rows
        first = segment * group_rows
    else:
        segment = tl.load(group_ptr + top)
        first = segment if bounds_ptr is None else tl.load(bounds_ptr + segment)
    return row, col, inside, segment, first // R * across


@triton.jit
def _tau(
    histogram_ptr,
    prefix_ptr,
    remaining_ptr,
    segments,
    segment,
    level,
    ratio,
    least,
    QUANTILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The first `level` digits of a segment's tau, from its state one level up; see _descend."""
    counts = tl.load(histogram_ptr + ((level - 1) * segments + segment) * 256 + tl.arange(0, 256)).to(tl.int64)
    prefix = tl.zeros([], tl.uint64)
    if level > 1:
        at = (level - 1) * segments + segment
        prefix = tl.load(prefix_ptr + at).to(tl.uint64, bitcast=True)
        remaining = tl.load(remaining_ptr + at)
    else:
        remaining, _, _ = _places(tl.sum(counts, axis=0), ratio, least, QUANTILE, WIDE)
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
        "least",
    ]
)
def histogram_kernel(
    advantages_ptr,  # [N, T], the column stride is 0 for (N,)
    entropies_ptr,  # [N, T]
    mask_ptr,  # [N, T]
    order_ptr,  # [N] rows by group, or None
    group_ptr,  # [N] segment of each sorted row, or None
    bounds_ptr,  # [segments], the first sorted row of each, or None
    histogram_ptr,  # [LEVELS, segments, 256], zero before the first launch; [segments, 256] if given_ptr
    prefix_ptr,  # [LEVELS, segments]
    remaining_ptr,  # [LEVELS, segments]
    given_ptr,  # [segments] the digits above, or None: those of tau
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
    least,
    QUANTILE: tl.constexpr,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Counts the level-th digit of the keys that share tau's digits above it."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row, col, inside, segment, first = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
    level = level.to(tl.int64)
    at = histogram_ptr + (segment if given_ptr is not None else level * segments + segment) * 256
    prefix = tl.zeros([], tl.uint64)
    if level > 0:
        if given_ptr is None:
            prefix, remaining, _ = _tau(
                histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio, least, QUANTILE, WIDE
            )
            # Every program of the segment has the same values; one passes them to the next launch.
            if tl.program_id(0) == first:
                tl.store(prefix_ptr + level * segments + segment, prefix.to(tl.int64, bitcast=True))
                tl.store(remaining_ptr + level * segments + segment, remaining)
        else:
            prefix = tl.load(given_ptr + segment).to(tl.uint64, bitcast=True)
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
        tl.atomic_add(at + tl.arange(0, 256), counts.to(histogram_ptr.dtype.element_ty), mask=counts > 0, sem="relaxed")


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
        "least",
    ]
)
def below_kernel(
    advantages_ptr,
    entropies_ptr,
    mask_ptr,
    order_ptr,
    group_ptr,
    bounds_ptr,
    histogram_ptr,
    prefix_ptr,
    remaining_ptr,
    below_ptr,  # [segments] int64, the largest key below tau with its sign bit flipped; the least int64 before
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
    least,
    QUANTILE: tl.constexpr,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The other score that a quantile lies between, where tau has no equals left to be it."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row, col, inside, segment, _ = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
    level = tl.full([], LEVELS, tl.int64)
    tau, remaining, matching = _tau(
        histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio, least, QUANTILE, WIDE
    )
    if remaining == matching:
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
        below = tl.where(live & (key < tau.to(key.dtype)), key, tl.zeros(key.shape, key.dtype)).to(tl.uint64)
        flipped = below ^ (tl.full(below.shape, 1, tl.uint64) << 63)
        tl.atomic_max(below_ptr + segment, tl.max(flipped.to(tl.int64, bitcast=True), axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["segments", "least"])
def threshold_kernel(
    histogram_ptr,
    prefix_ptr,
    remaining_ptr,
    below_ptr,  # [segments], or None without QUANTILE
    thresholds_ptr,  # [segments] int64
    ties_ptr,  # [segments] int64
    segments,
    ratio: tl.float64,
    least,
    QUANTILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The key above which tokens of a segment are kept, and how many of those equal to it."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    segment = tl.program_id(0).to(tl.int64)
    level = tl.full([], LEVELS, tl.int64)
    tau, remaining, matching = _tau(
        histogram_ptr, prefix_ptr, remaining_ptr, segments, segment, level, ratio, least, QUANTILE, WIDE
    )
    if QUANTILE:
        valid = tl.sum(tl.load(histogram_ptr + segment * 256 + tl.arange(0, 256)).to(tl.int64), axis=0)
        first, last, weight = _places(valid, ratio, least, QUANTILE, WIDE)
        below = tl.load(below_ptr + segment).to(tl.uint64, bitcast=True) ^ (tl.full([], 1, tl.uint64) << 63)
        lower = tl.where((last > first) & (remaining == matching), below, tau)
        tau = tl.where(valid > 0, _above_quantile(lower, tau, weight, WIDE), tau)
        remaining = tl.zeros([], tl.int64)
    else:
        # Where all of the equal ones are kept, nobody needs to count them.
        tau = tl.where(remaining == matching, tau - 1, tau)
        remaining = tl.where(remaining == matching, 0, remaining)
    tl.store(thresholds_ptr + segment, tau.to(tl.int64, bitcast=True))
    tl.store(ties_ptr + segment, remaining)


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
    thresholds_ptr,  # [segments] int64
    ties_ptr,  # [segments] int64
    equal_ptr,  # [programs] int32
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
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Counts the keys equal to the threshold in each tile, where some of the segment's are kept."""
    row, col, inside, segment, _ = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
    equal = tl.zeros([], tl.int32)
    if tl.load(ties_ptr + segment) > 0:
        threshold = tl.load(thresholds_ptr + segment).to(tl.uint64, bitcast=True)
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
        equal = tl.sum((live & (key == threshold.to(key.dtype))).to(tl.int32), axis=0)
    tl.store(equal_ptr + tl.program_id(0), equal)


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
    thresholds_ptr,  # [segments] int64
    ties_ptr,  # [segments] int64
    equal_ptr,  # [programs] int32
    equal_through_ptr,  # [programs] int64, inclusive cumulative sum of the former
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
    WIDE: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row, col, inside, segment, first = _place(order_ptr, group_ptr, bounds_ptr, rows, columns, group_rows, R, WIDTH)
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
    earlier_segments = tl.load(equal_through_ptr + first - 1, mask=first > 0, other=0)
    earlier = tl.load(equal_through_ptr + program) - tl.load(equal_ptr + program) - earlier_segments
    threshold = tl.load(thresholds_ptr + segment).to(tl.uint64, bitcast=True)
    keep, _ = _keep(key, live, threshold, tl.load(ties_ptr + segment) - earlier)
    tl.store(out_ptr + row * columns + col, keep, mask=inside)


@triton.jit(do_not_specialize=["columns", "advantage_row", "advantage_col", "entropy_row", "mask_row", "least"])
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
    least,
    QUANTILE: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The whole selection for one row."""
    LEVELS: tl.constexpr = 8 if WIDE else 4
    row = tl.program_id(0).to(tl.int64)
    tau = tl.zeros([], tl.uint64)
    remaining = tl.zeros([], tl.int64)
    valid = tl.zeros([], tl.int64)
    matching = tl.zeros([], tl.int64)
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
            valid = tl.sum(counts, axis=0).to(tl.int64)
            remaining, _, _ = _places(valid, ratio, least, QUANTILE, WIDE)
        tau, remaining, matching = _descend(counts, tau, remaining)
    if QUANTILE:
        first, last, weight = _places(valid, ratio, least, QUANTILE, WIDE)
        lower = tau
        if (last > first) & (remaining == matching):
            lower = tl.zeros([], tl.uint64)
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
                below = tl.where(live & (key < tau.to(key.dtype)), key, tl.zeros(key.shape, key.dtype))
                lower = tl.maximum(lower, tl.max(below.to(tl.uint64), axis=0))
        tau = tl.where(valid > 0, _above_quantile(lower, tau, weight, WIDE), tau)
        remaining = tl.zeros([], tl.int64)
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


class Tokens:
    """Scores of tokens in tiles, and which rows share a threshold: by default all, in one segment."""

    def __init__(self, advantages: Tensor, entropies: Tensor, mask: Tensor) -> None:
        require(entropies.dim() == 2, f"entropies: expected shape (N, T), got {tuple(entropies.shape)}")
        self.rows, self.columns = entropies.shape
        fits = advantages.shape in ((self.rows,), entropies.shape) and mask.shape == entropies.shape
        require(
            fits,
            f"advantages, mask: expected shapes that fit {tuple(entropies.shape)}, got {tuple(advantages.shape)}, "
            f"{tuple(mask.shape)}",
        )
        self.device = entropies.device
        self.scores = (advantages, entropies, mask)
        advantage_strides = (advantages.stride(0), advantages.stride(1) if advantages.dim() == 2 else 0)
        self.strides = (*advantage_strides, *entropies.stride(), *mask.stride())
        self.wide = torch.float64 in (advantages.dtype, entropies.dtype)
        self.levels = 8 if self.wide else 4
        self.width = min(TILE, max(128, _power_of_two(self.columns)))
        self.segments, self.group_rows, self.stacked = 1, self.rows, TILE // self.width
        self.order: Tensor | None = None
        self.group: Tensor | None = None
        self.bounds: Tensor | None = None

    def in_groups_of(self, group_rows: int) -> None:
        self.segments, self.group_rows = self.rows // group_rows, group_rows
        # A tile never straddles groups: as many rows as the largest power of two that divides a group.
        self.stacked = min(TILE // self.width, group_rows & -group_rows)

    def in_segments(self, count: int, order: Tensor | None, group: Tensor, bounds: Tensor | None) -> None:
        self.segments, self.group_rows, self.stacked = count, 1, 1
        self.order, self.group, self.bounds = order, group, bounds

    @property
    def programs(self) -> int:
        across: int = triton.cdiv(self.columns, self.width)
        return across * int(triton.cdiv(self.rows, self.stacked))

    def launch(self, kernel: Any, *own: Any, **budget: Any) -> None:
        kernel[(self.programs,)](
            *self.scores,
            *(self.order, self.group, self.bounds),
            *own,
            *(self.segments, self.rows, self.columns, self.group_rows),
            *self.strides,
            **budget,
            WIDE=self.wide,
            R=self.stacked,
            WIDTH=self.width,
            **launch_options(self.stacked * self.width),
        )

    def mask(self) -> Tensor:
        return torch.empty((self.rows, self.columns), dtype=torch.bool, device=self.device)

    def above(self, thresholds: Tensor, ties: Tensor) -> Tensor:
        """Keys above thresholds [segments] and the first ties [segments] of those equal to it."""
        out = self.mask()
        equal = torch.empty(self.programs, dtype=torch.int32, device=self.device)
        self.launch(tie_kernel, thresholds, ties, equal)
        self.launch(select_kernel, thresholds, ties, equal, torch.cumsum(equal, 0), out)
        return out


def select_tokens(
    advantages: Tensor,
    entropies: Tensor,
    mask: Tensor,
    ratio: float,
    scope: int = 0,
    group_size: int = 0,
    group_ids: Tensor | None = None,
    offsets: Tensor | None = None,
    at_least: int = 0,
    quantile: bool = False,
) -> Tensor:
    """Implements ``morlfast::select_tokens`` for CUDA: -> bool (N, T). What would have to wait for the device is not
    looked for: the first and last of offsets count as 0 and N."""
    tokens = Tokens(advantages, entropies, mask)
    rows, columns = tokens.rows, tokens.columns
    require(at_least >= 0 and not (quantile and at_least), f"at_least: expected 0 or, exact, more, got {at_least}")
    if scope == GROUP and offsets is not None:
        fits = offsets.dim() == 1 and offsets.numel() > (rows > 0) and offsets.dtype == torch.int64
        require(fits, f"offsets: expected int64 (G + 1,), got {tuple(offsets.shape)}")
    elif scope == GROUP:
        require_groups(rows, group_size, group_ids)
    if rows == 0 or columns == 0:
        return tokens.mask()
    budget = {"ratio": float(ratio), "least": min(at_least, rows * columns), "QUANTILE": quantile}
    with torch.cuda.device_of(entropies):
        if scope == SEQUENCE and columns <= ROW_LIMIT:
            out = tokens.mask()
            row_kernel[(rows,)](
                *tokens.scores,
                out,
                columns,
                *tokens.strides,
                **budget,
                WIDE=tokens.wide,
                WIDTH=tokens.width,
                **launch_options(tokens.width),
            )
            return out

        if scope == SEQUENCE:
            tokens.in_groups_of(1)
        elif scope == GROUP and offsets is not None:
            group = torch.searchsorted(offsets[1:-1], torch.arange(rows, device=tokens.device), right=True)
            count = offsets.numel() - 1
            bounds = torch.searchsorted(group, torch.arange(count, device=tokens.device))
            tokens.in_segments(count, None, group, bounds)
        elif scope == GROUP and group_ids is not None:
            tokens.in_segments(rows, *group_bounds(group_ids))
        elif scope == GROUP:
            tokens.in_groups_of(group_size)
        segments, levels = tokens.segments, tokens.levels
        counter = torch.int32 if rows * columns < 2**31 else torch.int64
        histogram = torch.zeros((levels, segments, 256), dtype=counter, device=tokens.device)
        prefix = torch.empty((levels, segments), dtype=torch.int64, device=tokens.device)
        tau = (histogram, prefix, torch.empty_like(prefix))
        for level in range(levels):
            tokens.launch(histogram_kernel, *tau, None, level, **budget)
        below = None
        if quantile:
            below = torch.full((segments,), -(2**63), dtype=torch.int64, device=tokens.device)
            tokens.launch(below_kernel, *tau, below, **budget)
        thresholds, ties = torch.empty_like(prefix[0]), torch.empty_like(prefix[0])
        threshold_kernel[(segments,)](*tau, below, thresholds, ties, segments, **budget, WIDE=tokens.wide, **OPTIONS)
        return tokens.above(thresholds, ties)


def token_histogram(
    advantages: Tensor, entropies: Tensor, mask: Tensor, segments: Tensor, prefixes: Tensor, level: int
) -> Tensor:
    """Implements ``morlfast::token_histogram`` for CUDA: -> int64 (S, 256). Segments are not looked at: those out of
    range count for the first or the last."""
    tokens, count = Tokens(advantages, entropies, mask), _segments(segments, prefixes, entropies, "prefixes")
    require(0 <= level < tokens.levels, f"level: expected 0 <= level < {tokens.levels}, got {level}")
    histogram = torch.zeros((count, 256), dtype=torch.int64, device=tokens.device)
    if tokens.rows == 0 or tokens.columns == 0:
        return histogram
    with torch.cuda.device_of(entropies):
        tokens.in_segments(count, None, segments.clamp(0, count - 1), None)
        budget = {"ratio": 0.0, "least": 0, "QUANTILE": False}
        tokens.launch(histogram_kernel, histogram, None, None, prefixes.contiguous(), level, **budget)
        return histogram


def select_tokens_above(
    advantages: Tensor, entropies: Tensor, mask: Tensor, segments: Tensor, thresholds: Tensor, ties: Tensor
) -> Tensor:
    """Implements ``morlfast::select_tokens_above`` for CUDA: -> bool (N, T). Segments as in token_histogram."""
    tokens, count = Tokens(advantages, entropies, mask), _segments(segments, thresholds, entropies, "thresholds")
    require(ties.shape == (count,) and ties.dtype == torch.int64, f"ties: expected int64 ({count},), got {ties.shape}")
    if tokens.rows == 0 or tokens.columns == 0:
        return tokens.mask()
    with torch.cuda.device_of(entropies):
        group, order = torch.sort(segments.clamp(0, count - 1), stable=True)
        bounds = torch.searchsorted(group, torch.arange(count, device=tokens.device))
        tokens.in_segments(count, order, group, bounds)
        return tokens.above(thresholds.contiguous(), ties.contiguous())


def _segments(segments: Tensor, of_each: Tensor, entropies: Tensor, name: str) -> int:
    """How many there are, from a vector (S,) with one number for each."""
    rows, count = entropies.shape[0], of_each.numel()
    fits = segments.shape == (rows,) and segments.dtype == torch.int64
    require(fits, f"segments: expected int64 ({rows},), got {segments.dtype} {tuple(segments.shape)}")
    fits = of_each.dim() == 1 and of_each.dtype == torch.int64 and (count > 0 or rows == 0)
    require(fits, f"{name}: expected int64 (S,), got {of_each.dtype} {tuple(of_each.shape)}")
    return count
