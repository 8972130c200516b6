"""Pareto sets on CUDA: non-dominated sorting, and comparisons of all pairs.

Non-dominated sorting, rank(q) = max over p dominating q of rank(p) + 1, in a time that is bounded whatever the number
of fronts is. Fronts of at most SMALL points: 1 launch; one program a front compares all pairs once and iterates the
formula to its fixpoint. Larger ones:

1. The values of each objective become int32 numbers, so that what follows knows neither dtypes nor -0.0 nor NaN and
   does not run at the GPU's float64 rate. Points are put in lexicographic order, where dominators come first, and
   duplicates are left out: between distinct points the first objective then needs no comparison. A total violation
   orders points before the objectives do. Only points of equal violation are compared, by numbering (-violation,
   second objective) in place of the second objective; each violation's ranks start where those of the one before end.
2. Blocks of BLOCK points. Launch b raises the ranks of all points past block b - 1 in the same window above those of
   their dominators in it, and its first program then settles block b.
3. Windows of WINDOW points. Once one is settled, two launches raise all points past it. Its points are cut into
   BUCKETS of equal size along the second objective, for m = 3 also along the third. For m <= 3 a table holds the
   highest rank in each bucket of the one up to the end of each bucket of the other; a tile of targets reads it for the
   buckets wholly below it, and is compared with the points of the buckets that it crosses. For m > 3 a tile is compared
   with each bucket whose lower corner is not beyond the tile's upper corner. In both cases buckets without a rank that
   could raise the tile are skipped.

Work of m = 3: n WINDOW / 2 pairs within windows and, with two axes of about one crossed bucket for each tile, up to
2 n^2 / BUCKETS past them. For n = 10^6 that is 8e9 + 3e10 pairs of 2 comparisons instead of 5e11; at 6 instructions a
pair and 64 a clock and multiprocessor, about 20 ms on 132 of them at 1.7 GHz. m > 3: at most n^2 / 2 pairs of m - 1
comparisons, half of them skipped where objectives are independent. Steps that wait for each other: n / BLOCK launches,
each as long as its first program takes to settle a block (2 BLOCK^2 pairs on one multiprocessor, and for each SETTLED
points as many rounds as their longest chain is long, at most SETTLED; by the instructions 6 to 20 us), and 2 for each
window; for n = 10^6 about 4,000 in all, 25 to 80 ms. Memory O(n m). Before that a sort of each objective, about m / 2
sorts of pairs of them and, for n > WINDOW, two sorts of each of the one or two axes.

m = 1 is the lexicographic order alone. m = 2 takes the same way with one axis: patience sorting, O(n log n) on the CPU,
is a chain of n steps, which blocks shorten to n / BLOCK.

Pairs: one launch of a program for each FEW_TARGETS targets, which goes over all sources and stops when each target is
dominated; for that, a sort of the sources by their sum puts strong points first. Floor: 2 m comparisons in the points'
dtype for targets x sources, or what was needed to find a dominator; O(n) memory.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import require

SMALL = 64
BLOCK = 256
# Points settled together within a block: a warp's width, over which a maximum is one instruction.
SETTLED = 32
WINDOW = 16384
BUCKETS = 64
# Targets of a program, and the sources that they are compared with in one step.
TARGETS, SOURCES = 128, 32
# Targets where more registers are needed beside them.
FEW_TARGETS = 64
# Up to here the loop over objectives is unrolled.
UNROLLED = 4
# Rows of a program that only moves points.
ROWS = 512
# Numbers of the values of rows that are no points: behind `lengths`, or with a NaN.
MISSING = tl.constexpr(2**31 - 1)
# What a pair of points is looked at for.
DOMINATED, WEAKLY_DOMINATED, DOMINATED_OR_REPEATED = (tl.constexpr(relation) for relation in range(3))
# Sources of a step after which a program may stop.
CHUNK = 1024
# Fusion is named because its default varies. Named a limit, ptxas no longer spills a few registers to run more
# programs at once.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 128}
TILE_OPTIONS = {**OPTIONS, "num_warps": 8}
PAIR_OPTIONS = {**TILE_OPTIONS, "maxnreg": 168}


@triton.jit
def _fixpoint(dominated, rank):
    """Longest chains in the relation dominated [targets, sources] over one set of points, starting from rank."""
    changed = 1
    while changed > 0:
        raised = tl.maximum(rank, tl.max(tl.where(dominated, rank[None, :] + 1, 0), axis=1))
        changed = tl.max((raised > rank).to(tl.int32), axis=0)
        rank = raised
    return rank


@triton.jit(
    do_not_specialize=[
        "n",
        "m",
        "front_stride",
        "point_stride",
        "objective_stride",
        "violation_front",
        "violation_point",
    ]
)
def small_kernel(
    points_ptr,  # [fronts, n, m]
    violations_ptr,  # [fronts, n], or None
    lengths_ptr,  # [fronts], or None
    ranks_ptr,  # [fronts, n]
    n,
    m,
    front_stride,
    point_stride,
    objective_stride,
    violation_front,
    violation_point,
    MAXIMIZE: tl.constexpr,
    SIZE: tl.constexpr,
):
    front = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, SIZE)
    stored = index < n
    inside = stored
    if lengths_ptr is not None:
        inside &= index < tl.load(lengths_ptr + front)
    at = points_ptr + front * front_stride + index.to(tl.int64) * point_stride
    no_worse = inside[:, None] & inside[None, :]
    better = tl.zeros([SIZE, SIZE], tl.int1)
    comparable = inside
    for _ in range(m):
        value = tl.load(at, mask=inside, other=0.0)
        at += objective_stride
        if MAXIMIZE:
            value = -value
        comparable &= value == value
        no_worse &= value[None, :] <= value[:, None]
        better |= value[None, :] < value[:, None]
    dominated = no_worse & better
    if violations_ptr is not None:
        at = violations_ptr + front * violation_front + index.to(tl.int64) * violation_point
        violation = tl.load(at, mask=inside, other=0.0)
        comparable &= violation == violation
        dominated &= violation[:, None] == violation[None, :]
        dominated |= violation[None, :] < violation[:, None]
        dominated &= comparable[:, None] & comparable[None, :]
    rank = _fixpoint(dominated, tl.zeros([SIZE], tl.int32))
    last = tl.max(tl.where(comparable, rank, -1), axis=0) + 1
    rank = tl.where(comparable, rank, tl.where(inside, last, -1))
    tl.store(ranks_ptr + front * n + index, rank, mask=stored)


@triton.jit(
    do_not_specialize=[
        "fronts",
        "n",
        "m",
        "front_stride",
        "point_stride",
        "objective_stride",
        "violation_front",
        "violation_point",
    ]
)
def columns_kernel(
    points_ptr,  # [fronts, n, m]
    violations_ptr,  # [fronts, n], or None
    lengths_ptr,  # [fronts], or None
    columns_ptr,  # [fronts, m, n], with violations [fronts, 1 + m, n]: minimized, NaN in every column or in none
    fronts,
    n,
    m,
    front_stride,
    point_stride,
    objective_stride,
    violation_front,
    violation_point,
    MAXIMIZE: tl.constexpr,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = point < fronts.to(tl.int64) * n
    front, index = point // n, point % n
    at = points_ptr + front * front_stride + index * point_stride
    comparable = inside
    if lengths_ptr is not None:
        comparable &= index < tl.load(lengths_ptr + front, mask=inside, other=0)
    objective = at
    for _ in range(m):
        value = tl.load(objective, mask=inside, other=0.0)
        comparable &= value == value
        objective += objective_stride
    if violations_ptr is None:
        column = columns_ptr + front * m * n + index
    else:
        column = columns_ptr + front * (m + 1) * n + index
        violation = violations_ptr + front * violation_front + index * violation_point
        value = tl.load(violation, mask=inside, other=0.0)
        comparable &= value == value
        tl.store(column, tl.where(comparable, value, float("nan")), mask=inside)
        column += n
    for _ in range(m):
        value = tl.load(at, mask=inside, other=0.0)
        if MAXIMIZE:
            value = -value
        tl.store(column, tl.where(comparable, value, float("nan")), mask=inside)
        at += objective_stride
        column += n


@triton.jit(do_not_specialize=["rows", "n"])
def number_kernel(
    values_ptr,  # [rows, n], sorted, NaN last
    order_ptr,  # [rows, n] int64
    steps_ptr,  # [rows, n - 1] int32: how often neighbours differ up to here
    numbers_ptr,  # [rows, n] int32, in the order before sorting
    rows,
    n,
    SIZE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < rows.to(tl.int64) * n
    row, index = at // n, at % n
    value = tl.load(values_ptr + at, mask=inside, other=0.0)
    number = tl.load(steps_ptr + row * (n - 1) + index - 1, mask=inside & (index > 0), other=0)
    source = tl.load(order_ptr + at, mask=inside, other=0)
    tl.store(numbers_ptr + row * n + source, tl.where(value == value, number, MISSING), mask=inside)


@triton.jit(do_not_specialize=["fronts", "n", "columns"])
def fresh_kernel(
    numbers_ptr,  # [fronts, columns, n] int32
    order_ptr,  # [fronts, n] int64, lexicographic
    fresh_ptr,  # [fronts, n] int32: 1 where a point differs from the one before it
    fronts,
    n,
    columns,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = point < fronts.to(tl.int64) * n
    front, index = point // n, point % n
    follows = inside & (index > 0)
    source = tl.load(order_ptr + point, mask=inside, other=0)
    previous = tl.load(order_ptr + point - 1, mask=follows, other=0)
    fresh = tl.zeros([SIZE], tl.int1)
    column = numbers_ptr + front * columns * n
    for _ in range(columns):
        fresh |= tl.load(column + source, mask=follows, other=0) != tl.load(column + previous, mask=follows, other=0)
        column += n
    tl.store(fresh_ptr + point, fresh.to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["fronts", "n", "columns", "padded"])
def distinct_kernel(
    numbers_ptr,  # [fronts, columns, n] int32
    order_ptr,  # [fronts, n] int64
    distinct_ptr,  # [fronts, n] int32, the number of the distinct point
    sorted_ptr,  # [fronts, columns, padded] int32, MISSING past counts
    counts_ptr,  # [fronts] int32, distinct points
    fronts,
    n,
    columns,
    padded,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = point < fronts.to(tl.int64) * n
    front, index = point // n, point % n
    source = tl.load(order_ptr + point, mask=inside, other=0)
    distinct = tl.load(distinct_ptr + point, mask=inside, other=0)
    previous = tl.load(distinct_ptr + point - 1, mask=inside & (index > 0), other=-1)
    column = numbers_ptr + front * columns * n
    present = tl.load(column + source, mask=inside, other=MISSING) != MISSING
    # Missing rows are last: the last point before them knows how many there are.
    is_last = index + 1 == n
    following = tl.load(order_ptr + point + 1, mask=inside & ~is_last, other=0)
    is_last |= tl.load(column + following, mask=inside & ~is_last, other=0) == MISSING
    tl.store(counts_ptr + front, distinct + 1, mask=present & is_last)
    first = present & (previous != distinct)
    result = sorted_ptr + front * columns * padded + distinct
    for _ in range(columns):
        tl.store(result, tl.load(column + source, mask=first, other=0), mask=first)
        column += n
        result += padded


@triton.jit
def _no_worse(sources_ptr, targets_ptr, padded, columns, source, target, COLUMNS: tl.constexpr):
    """[targets, sources]: no column of the source is larger. A thread holds one source and several targets, whose
    columns stay in its registers from step to step."""
    relation = tl.load(sources_ptr + source)[None, :] <= tl.load(targets_ptr + target)[:, None]
    if COLUMNS > 0:
        for _ in tl.static_range(1, COLUMNS):
            sources_ptr += padded
            targets_ptr += padded
            relation &= tl.load(sources_ptr + source)[None, :] <= tl.load(targets_ptr + target)[:, None]
        return relation
    # Carried as integers, since ptxas spills tiles of predicates.
    carried = relation.to(tl.int32)
    for _ in range(1, columns):
        sources_ptr += padded
        targets_ptr += padded
        no_worse = tl.load(sources_ptr + source)[None, :] <= tl.load(targets_ptr + target)[:, None]
        carried &= no_worse.to(tl.int32)
    return carried != 0


@triton.jit
def _raised(
    sources_ptr,
    ranks_ptr,
    targets_ptr,
    padded,
    columns,
    start,
    target,
    BLOCK: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """1 + the highest rank among the dominators of each target in the BLOCK settled sources at `start`, 0 without
    one."""
    highest = tl.zeros([TARGETS, SOURCES], tl.int32)
    for at in range(0, BLOCK, SOURCES):
        source = start + at + tl.arange(0, SOURCES)
        relation = _no_worse(sources_ptr, targets_ptr, padded, columns, source, target, COLUMNS)
        rank = tl.load(ranks_ptr + source)[None, :]
        highest = tl.where(relation, tl.maximum(highest, rank + 1), highest)
    return tl.max(highest, axis=1)


@triton.jit
def _settled(
    columns_ptr,
    padded,
    columns,
    count,
    start,
    rank,
    BLOCK: tl.constexpr,
    SETTLED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Final ranks of the block at `start`, from ranks raised by all earlier blocks."""
    lane = tl.arange(0, BLOCK)
    target = start + lane
    member = tl.arange(0, SETTLED)
    for at in range(0, BLOCK, SETTLED):
        group = start + at + member
        chains = _no_worse(columns_ptr, columns_ptr, padded, columns, group, group, COLUMNS)
        chains &= (member[None, :] < member[:, None]) & (group < count)[None, :]
        settled = _fixpoint(chains, tl.gather(rank, at + member, 0))
        within = lane - at
        inside = (within >= 0) & (within < SETTLED)
        rank = tl.where(inside, tl.gather(settled, tl.where(inside, within, 0), 0), rank)
        relation = _no_worse(columns_ptr, columns_ptr, padded, columns, group, target, COLUMNS)
        raised = tl.max(tl.where(relation, settled[None, :] + 1, 0), axis=1)
        rank = tl.where(within >= SETTLED, tl.maximum(rank, raised), rank)
    return rank


@triton.jit(do_not_specialize=["padded", "columns", "front_stride", "block", "first_block", "programs"])
def block_kernel(
    columns_ptr,  # [fronts, columns, padded] int32, distinct points in lexicographic order
    counts_ptr,  # [fronts] int32
    ranks_ptr,  # [fronts, padded] int32, final up to block - 1, lower bounds past it
    last_ptr,  # [fronts] int32, 1 + the highest rank up to block - 1
    padded,
    columns,
    front_stride,
    block,
    first_block,
    programs,
    BLOCK: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
    SETTLED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Raises every point of a window past block - 1 by block - 1; a front's first program then settles `block`. The
    window's first block has nothing before it."""
    front = tl.program_id(0).to(tl.int64) // programs
    program = tl.program_id(0).to(tl.int64) % programs
    padded = padded.to(tl.int64)
    count = tl.load(counts_ptr + front)
    start = block.to(tl.int64) * BLOCK
    columns_ptr += front * front_stride
    ranks_ptr += front * padded
    if program == 0:
        if start < count:
            target = start + tl.arange(0, BLOCK)
            rank = tl.load(ranks_ptr + target)
            if block > first_block:
                raised = _raised(
                    columns_ptr,
                    ranks_ptr,
                    columns_ptr,
                    padded,
                    columns,
                    start - BLOCK,
                    target,
                    BLOCK,
                    BLOCK,
                    TARGETS * SOURCES // BLOCK,
                    COLUMNS,
                )
                rank = tl.maximum(rank, raised)
            rank = _settled(
                columns_ptr,
                padded,
                columns,
                count,
                start,
                rank,
                BLOCK,
                SETTLED,
                COLUMNS,
            )
            tl.store(ranks_ptr + target, rank)
            highest = tl.max(tl.where(target < count, rank, -1), axis=0) + 1
            tl.store(last_ptr + front, tl.maximum(tl.load(last_ptr + front), highest))
    else:
        first = start + BLOCK + (program - 1) * TARGETS
        if first < count:
            target = first + tl.arange(0, TARGETS)
            rank = tl.load(ranks_ptr + target)
            raised = _raised(
                columns_ptr,
                ranks_ptr,
                columns_ptr,
                padded,
                columns,
                start - BLOCK,
                target,
                BLOCK,
                TARGETS,
                SOURCES,
                COLUMNS,
            )
            tl.store(ranks_ptr + target, tl.maximum(rank, raised))


@triton.jit(do_not_specialize=["padded", "axes", "columns", "start"])
def bucket_kernel(
    sources_ptr,  # [fronts, axes, columns, padded] int32, the points of each window sorted along each axis
    order_ptr,  # [fronts, axes, padded] int64, which points these are
    counts_ptr,  # [fronts] int32
    ranks_ptr,  # [fronts, padded] int32
    source_ranks_ptr,  # [fronts, axes, BUCKETS * BUCKET] int32, in the order of the sources
    tops_ptr,  # [fronts, axes, BUCKETS] int32, 1 + the highest rank in each bucket
    table_ptr,  # [fronts, axes, BUCKETS, BUCKETS] int32, that up to the end of each bucket of the last axis
    padded,
    axes,
    columns,
    start,
    BUCKETS: tl.constexpr,
    BUCKET: tl.constexpr,
    SOURCES: tl.constexpr,
    TABLE: tl.constexpr,
):
    """What each bucket of the settled window at `start` can raise; one program a bucket."""
    row = tl.program_id(0).to(tl.int64) // BUCKETS
    bucket = tl.program_id(0).to(tl.int64) % BUCKETS
    front = row // axes
    padded = padded.to(tl.int64)
    count = tl.load(counts_ptr + front)
    if start < count:
        end = tl.arange(0, BUCKETS)
        last_axis = sources_ptr + ((front + 1) * axes * columns - 1) * padded + start
        limit = tl.load(last_axis + (end + 1) * BUCKET - 1)
        raises = tl.zeros([SOURCES, BUCKETS], tl.int32)
        top = tl.zeros([SOURCES], tl.int32)
        for at in range(0, BUCKET, SOURCES):
            position = bucket * BUCKET + at + tl.arange(0, SOURCES)
            source = tl.load(order_ptr + row * padded + start + position)
            rank = tl.load(ranks_ptr + front * padded + source)
            rank = tl.where(source < count, rank, -1)
            tl.store(source_ranks_ptr + row * (BUCKETS * BUCKET) + position, rank)
            top = tl.maximum(top, rank + 1)
            if TABLE:
                value = tl.load(sources_ptr + ((row + 1) * columns - 1) * padded + start + position)
                below = value[:, None] <= limit[None, :]
                raises = tl.maximum(raises, tl.where(below, rank[:, None] + 1, 0))
        tl.store(tops_ptr + row * BUCKETS + bucket, tl.max(top, axis=0))
        if TABLE:
            tl.store(table_ptr + (row * BUCKETS + bucket) * BUCKETS + end, tl.max(raises, axis=0))


@triton.jit(do_not_specialize=["padded", "axes", "columns", "front_stride", "start", "tiles"])
def window_kernel(
    columns_ptr,  # [fronts, columns, padded] int32
    targets_ptr,  # [fronts, axes, padded] int64, all points sorted along each axis
    sources_ptr,  # [fronts, axes, columns, padded] int32, the points of each window sorted along each axis
    lows_ptr,  # [fronts, axes, columns, padded / BUCKET] int32, the lower corner of each bucket
    source_ranks_ptr,  # [fronts, axes, BUCKETS * BUCKET] int32
    tops_ptr,  # [fronts, axes, BUCKETS] int32
    table_ptr,  # [fronts, axes, BUCKETS, BUCKETS] int32
    counts_ptr,  # [fronts] int32
    ranks_ptr,  # [fronts, padded] int32
    padded,
    axes,
    columns,
    front_stride,
    start,
    tiles,
    BUCKETS: tl.constexpr,
    BUCKET: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TABLE: tl.constexpr,
):
    """Raises the points past the settled window at `start`; one program a tile of targets along an axis.

    TABLE (m <= 3): a dominator lies in a bucket wholly below the tile, along both axes (the table has it), or in a
    bucket that the tile crosses along one of them.
    """
    row = tl.program_id(0).to(tl.int64) // tiles
    tile = tl.program_id(0).to(tl.int64) % tiles
    front, axis = row // axes, row % axes
    padded = padded.to(tl.int64)
    count = tl.load(counts_ptr + front)
    stop = start + BUCKETS * BUCKET
    columns_ptr += front * front_stride
    ranks_ptr += front * padded
    target = tl.load(targets_ptr + row * padded + tile * TARGETS + tl.arange(0, TARGETS))
    after = (target >= stop) & (target < count)
    rank = tl.load(ranks_ptr + target, mask=after, other=MISSING)
    lowest = tl.min(rank, axis=0)
    if lowest < MISSING:
        bucket = tl.arange(0, BUCKETS)
        sources_ptr += row * columns * padded + start
        end = tl.load(sources_ptr + axis * padded + (bucket + 1) * BUCKET - 1)
        key = tl.load(columns_ptr + axis * padded + target)
        below = tl.sum((end[None, :] <= key[:, None]).to(tl.int32), axis=1)
        first = 0
        last = tl.minimum(tl.max(tl.where(after, below, 0), axis=0), BUCKETS - 1)
        highest = tl.zeros([TARGETS], tl.int32)
        compared = tl.load(tops_ptr + row * BUCKETS + bucket) > lowest
        if TABLE:
            first = tl.min(tl.where(after, below, BUCKETS), axis=0)
            if axis == 0:
                entry = table_ptr + (row * BUCKETS + bucket[None, :]) * BUCKETS + bucket[:, None]
                raises = tl.max(tl.load(entry, mask=bucket[None, :] < first, other=0), axis=1)
                last_axis = sources_ptr + (axes * columns - 1) * padded
                limit = tl.load(last_axis + (bucket + 1) * BUCKET - 1)
                value = tl.load(columns_ptr + (columns - 1) * padded + target)
                highest = tl.max(tl.where(limit[None, :] <= value[:, None], raises[None, :], 0), axis=1)
        else:
            corner = lows_ptr + (row * columns * padded + start) // BUCKET + bucket
            for column in range(columns):
                value = tl.load(columns_ptr + column * padded + target)
                compared &= tl.load(corner) <= tl.max(tl.where(after, value, -1), axis=0)
                corner += padded // BUCKET
        for b in range(first, last + 1):
            if tl.max(tl.where(bucket == b, compared.to(tl.int32), 0), axis=0) > 0:
                raised = _raised(
                    sources_ptr,
                    source_ranks_ptr + row * (BUCKETS * BUCKET),
                    columns_ptr,
                    padded,
                    columns,
                    b * BUCKET,
                    target,
                    BUCKET,
                    TARGETS,
                    SOURCES,
                    COLUMNS,
                )
                highest = tl.maximum(highest, raised)
        # Programs of the other axis raise the same points.
        tl.atomic_max(ranks_ptr + target, highest, mask=after & (highest > rank))


@triton.jit(do_not_specialize=["fronts", "n", "front_stride", "padded"])
def level_kernel(
    levels_ptr,  # [fronts, padded] int32, the number of each distinct point's violation
    ranks_ptr,  # [fronts, padded] int32
    counts_ptr,  # [fronts] int32
    tops_ptr,  # [fronts, n] int32, 1 + the highest rank at each violation
    fronts,
    n,
    front_stride,
    padded,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = point < fronts.to(tl.int64) * n
    front, index = point // n, point % n
    inside &= index < tl.load(counts_ptr + front, mask=inside, other=0)
    level = tl.load(levels_ptr + front * front_stride + index, mask=inside, other=0)
    rank = tl.load(ranks_ptr + front * padded + index, mask=inside, other=0)
    at = front * n + level
    # One atomic for the many programs whose points all have the same violation.
    highest = tl.max(tl.where(inside, at, -1), axis=0)
    lowest = tl.min(tl.where(inside, at, highest), axis=0)
    if lowest < highest:
        tl.atomic_max(tops_ptr + at, rank + 1, mask=inside)
    else:
        tl.atomic_max(tops_ptr + highest, tl.max(tl.where(inside, rank + 1, 0), axis=0), mask=highest >= 0)


@triton.jit(do_not_specialize=["fronts", "n", "columns", "padded"])
def rank_kernel(
    numbers_ptr,  # [fronts, columns, n] int32
    order_ptr,  # [fronts, n] int64
    distinct_ptr,  # [fronts, n] int32
    sorted_ranks_ptr,  # [fronts, padded] int32 of distinct points, or None: their numbers are the ranks
    ends_ptr,  # [fronts, n] int32, the first rank past each violation, or None
    last_ptr,  # [fronts] int32, the rank of rows with a NaN
    lengths_ptr,  # [fronts], or None
    ranks_ptr,  # [fronts, n] int32, the result, in the order of the caller
    fronts,
    n,
    columns,
    padded,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = point < fronts.to(tl.int64) * n
    front = point // n
    source = tl.load(order_ptr + point, mask=inside, other=0)
    number = tl.load(numbers_ptr + front * columns * n + source, mask=inside, other=MISSING)
    comparable = number != MISSING
    rank = tl.load(distinct_ptr + point, mask=inside, other=0)
    if sorted_ranks_ptr is not None:
        rank = tl.load(sorted_ranks_ptr + front * padded + rank, mask=comparable, other=0)
    if ends_ptr is not None:
        rank += tl.load(ends_ptr + front * n + number - 1, mask=comparable & (number > 0), other=0)
    missing = tl.load(last_ptr + front, mask=inside, other=0)
    if lengths_ptr is not None:
        missing = tl.where(source < tl.load(lengths_ptr + front, mask=inside, other=0), missing, -1)
    tl.store(ranks_ptr + front * n + source, tl.where(comparable, rank, missing), mask=inside)


def small_options(size: int) -> dict[str, Any]:
    """Launch options for fronts of at most `size` points: 16 pairs a thread."""
    return {**OPTIONS, "num_warps": max(1, size * size // 512)}


def block_options(columns: int) -> dict[str, Any]:
    """Launch options of the block kernel: a thread keeps the columns of its 32 targets."""
    return TILE_OPTIONS if columns < 3 else PAIR_OPTIONS


def _programs(elements: int) -> tuple[int]:
    return (triton.cdiv(elements, ROWS),)


def _numbered(keys: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, n] -> the order of each row, int64, and the numbers of its distinct values, int32."""
    rows, n = keys.shape
    values, order = torch.sort(keys, dim=1, stable=True)
    steps = torch.cumsum(values[:, 1:] != values[:, :-1], 1, dtype=torch.int32)
    numbers = torch.empty((rows, n), dtype=torch.int32, device=keys.device)
    number_kernel[_programs(rows * n)](values, order, steps, numbers, rows, n, SIZE=ROWS, **OPTIONS)
    return order, numbers


def _joined(high: Tensor, low: Tensor) -> Tensor:
    """Keys in the order of (high, low), which are not negative."""
    return high.to(torch.int64) << 32 | low


def _lexicographic_order(numbers: Tensor, order: Tensor) -> Tensor:
    """[fronts, columns, n] -> [fronts, n], from the order of the last column: stable sorts of two columns each."""
    for k in range(numbers.shape[1] - 2, -1, -2):
        keys = numbers[:, k] if k == 0 else _joined(numbers[:, k - 1], numbers[:, k])
        order = order.gather(1, torch.sort(keys.gather(1, order), dim=1, stable=True).indices)
    return order


class _Windows:
    """Distinct points [fronts, columns, padded] in the order of one column, or of both for m = 3: all of them, as
    targets, and those of each window, as sources."""

    def __init__(self, columns: Tensor, counts: Tensor, ranks: Tensor) -> None:
        fronts, count, padded = columns.shape
        self.columns, self.counts, self.ranks = columns, counts, ranks
        self.table = count <= 2
        self.axes = count if self.table else 1
        self.targets = torch.sort(columns[:, : self.axes], dim=2).indices
        window = (self.targets // WINDOW).to(torch.int32)
        self.order = self.targets.gather(2, torch.sort(window, dim=2, stable=True).indices)
        shape = (fronts, self.axes, count, padded)
        self.sources = columns[:, None].expand(shape).gather(3, self.order[:, :, None].expand(shape))
        bucket = WINDOW // BUCKETS
        self.lows = None if self.table else self.sources.view(*shape[:3], padded // bucket, bucket).amin(4)
        self.source_ranks = torch.empty((fronts, self.axes, WINDOW), dtype=torch.int32, device=columns.device)
        self.tops = self.source_ranks.new_empty((fronts, self.axes, BUCKETS))
        self.highest = self.source_ranks.new_empty((fronts, self.axes, BUCKETS, BUCKETS)) if self.table else None

    def raise_past(self, start: int) -> None:
        """Raises all points past the settled window at `start`."""
        fronts, count, padded = self.columns.shape
        constants = {"BUCKETS": BUCKETS, "BUCKET": WINDOW // BUCKETS, "TABLE": self.table}
        bucket_kernel[(fronts * self.axes * BUCKETS,)](
            self.sources,
            self.order,
            self.counts,
            self.ranks,
            self.source_ranks,
            self.tops,
            self.highest,
            padded,
            self.axes,
            count,
            start,
            SOURCES=SOURCES,
            **constants,
            **TILE_OPTIONS,
        )
        tiles = padded // FEW_TARGETS
        window_kernel[(fronts * self.axes * tiles,)](
            self.columns,
            self.targets,
            self.sources,
            self.lows,
            self.source_ranks,
            self.tops,
            self.highest,
            self.counts,
            self.ranks,
            padded,
            self.axes,
            count,
            self.columns.stride(0),
            start,
            tiles,
            TARGETS=FEW_TARGETS,
            SOURCES=SOURCES,
            COLUMNS=count if count < UNROLLED else 0,
            **constants,
            **TILE_OPTIONS,
        )


def _sorted_ranks(columns: Tensor, counts: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Ranks [fronts, padded] of the distinct points [fronts, columns, padded], and 1 + the highest of each front."""
    fronts, count, padded = columns.shape
    block_size = min(BLOCK, 1 << (n - 1).bit_length())
    targets = min(TARGETS, block_size)
    ranks = torch.zeros((fronts, padded), dtype=torch.int32, device=columns.device)
    last = torch.zeros(fronts, dtype=torch.int32, device=columns.device)
    windows = _Windows(columns, counts, ranks) if n > WINDOW else None
    for start in range(0, n, WINDOW):
        stop = min(n, start + WINDOW)
        for block in range(start // block_size, triton.cdiv(stop, block_size)):
            behind = max(0, stop - (block + 1) * block_size) if block * block_size > start else 0
            programs = 1 + triton.cdiv(behind, targets)
            block_kernel[(fronts * programs,)](
                columns,
                counts,
                ranks,
                last,
                padded,
                count,
                columns.stride(0),
                block,
                start // block_size,
                programs,
                BLOCK=block_size,
                TARGETS=targets,
                SOURCES=SOURCES,
                SETTLED=min(SETTLED, block_size),
                COLUMNS=count if count < UNROLLED else 0,
                **block_options(count),
            )
        if windows is not None and stop < n:
            windows.raise_past(start)
    return ranks, last


def _sort_large(points: Tensor, violations: Tensor | None, lengths: Tensor | None, maximize: bool) -> Tensor:
    """[fronts, n, m] -> [fronts, n]."""
    fronts, n, m = points.shape
    device = points.device
    constrained = violations is not None
    count = m + constrained
    # float64 holds every float32, and violations are float64.
    values = torch.empty((fronts, count, n), dtype=torch.float64 if constrained else points.dtype, device=device)
    columns_kernel[_programs(fronts * n)](
        points,
        violations,
        lengths,
        values,
        fronts,
        n,
        m,
        *points.stride(),
        *(violations.stride() if violations is not None else (0, 0)),
        MAXIMIZE=maximize,
        SIZE=ROWS,
        **OPTIONS,
    )
    order, numbers = _numbered(values.view(fronts * count, n))
    numbers = numbers.view(fronts, count, n)
    order = _lexicographic_order(numbers, order.view(fronts, count, n)[:, -1])
    fresh = torch.empty((fronts, n), dtype=torch.int32, device=device)
    fresh_kernel[_programs(fronts * n)](numbers, order, fresh, fronts, n, count, SIZE=ROWS, **OPTIONS)
    distinct = torch.cumsum(fresh, 1, dtype=torch.int32)
    padded = triton.cdiv(n, WINDOW) * WINDOW if n > WINDOW else triton.cdiv(n, BLOCK) * BLOCK
    columns = torch.full((fronts, count, padded), MISSING.value, dtype=torch.int32, device=device)
    counts = torch.zeros(fronts, dtype=torch.int32, device=device)
    distinct_kernel[_programs(fronts * n)](
        numbers,
        order,
        distinct,
        columns,
        counts,
        fronts,
        n,
        count,
        padded,
        SIZE=ROWS,
        **OPTIONS,
    )

    sorted_ranks, last, ends = None, counts, None
    if m > 1:
        if constrained:
            levels = columns[:, 0]
            reversed_levels = torch.where(levels == MISSING.value, levels, MISSING.value - levels)
            columns[:, 2] = _numbered(_joined(reversed_levels, columns[:, 2]))[1]
        # Behind the first objective.
        sorted_ranks, last = _sorted_ranks(columns[:, count - m + 1 :], counts, n)
        if constrained:
            tops = torch.zeros((fronts, n), dtype=torch.int32, device=device)
            level_kernel[_programs(fronts * n)](
                levels,
                sorted_ranks,
                counts,
                tops,
                fronts,
                n,
                columns.stride(0),
                padded,
                SIZE=ROWS,
                **OPTIONS,
            )
            ends = torch.cumsum(tops, 1, dtype=torch.int32)
            last = ends[:, -1].contiguous()

    ranks = torch.empty((fronts, n), dtype=torch.int32, device=device)
    rank_kernel[_programs(fronts * n)](
        numbers,
        order,
        distinct,
        sorted_ranks,
        ends,
        last,
        lengths,
        ranks,
        fronts,
        n,
        count,
        padded,
        SIZE=ROWS,
        **OPTIONS,
    )
    return ranks


def _stopped(ranks: Tensor, stop_after: int) -> Tensor:
    """Ranks [fronts, n], all past the front of the stop_after-th point put on the one behind it."""
    if stop_after > ranks.shape[1]:
        return ranks
    last_exact = torch.where(ranks < 0, MISSING.value - 1, ranks).sort(1).values[:, stop_after - 1, None]
    return torch.minimum(ranks, last_exact + 1)


def non_dominated_sort(
    points: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    violations: Tensor | None = None,
    stop_after: int = 0,
) -> Tensor:
    """Implements ``morlfast::non_dominated_sort`` for CUDA: (..., n, m) -> int32 (..., n)."""
    _require_points(points, nan_raises, lengths)
    batch, (n, m) = points.shape[:-2], points.shape[-2:]
    fronts = batch.numel()
    fits = violations is None or violations.shape == points.shape[:-1]
    require(fits, f"violations: expected shape {tuple(points.shape[:-1])}")
    require(stop_after >= 0, f"stop_after: expected at least 0, got {stop_after}")
    if fronts == 0 or n == 0:
        return torch.empty((*batch, n), dtype=torch.int32, device=points.device)
    stacked = points.reshape(fronts, n, m)
    violations = None if violations is None else violations.reshape(fronts, n)
    lengths = None if lengths is None else lengths.reshape(fronts)
    with torch.cuda.device_of(points):
        if n > SMALL:
            ranks = _sort_large(stacked, violations, lengths, maximize)
        else:
            ranks = torch.empty((fronts, n), dtype=torch.int32, device=points.device)
            size = max(16, 1 << (n - 1).bit_length())
            small_kernel[(fronts,)](
                stacked,
                violations,
                lengths,
                ranks,
                n,
                m,
                *stacked.stride(),
                *(violations.stride() if violations is not None else (0, 0)),
                MAXIMIZE=maximize,
                SIZE=size,
                **small_options(size),
            )
        if stop_after > 0:
            ranks = _stopped(ranks, stop_after)
    return ranks.view((*batch, n))


@triton.jit
def _compared(no_worse, no_better, sound, theirs_ptr, own_ptr, exists, inside, MAXIMIZE: tl.constexpr):
    """Both relations [targets, sources] and whether sources are free of NaN, after one objective more."""
    theirs = tl.load(theirs_ptr, mask=exists, other=float("nan"))
    own = tl.load(own_ptr, mask=inside, other=float("nan"))
    sound &= theirs == theirs
    if MAXIMIZE:
        theirs = -theirs
        own = -own
    no_worse &= (theirs[None, :] <= own[:, None]).to(no_worse.dtype)
    no_better &= (theirs[None, :] >= own[:, None]).to(no_better.dtype)
    return no_worse, no_better, sound


@triton.jit
def _related(
    theirs_ptr,
    own_ptr,
    exists,
    inside,
    source,
    target,
    m,
    other_objective,
    objective_stride,
    MAXIMIZE: tl.constexpr,
    RELATION: tl.constexpr,
    M: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """Which sources stand in RELATION to which targets [targets, sources], and which sources have no NaN."""
    sound = exists
    # Carried as integers where objectives are not unrolled, since ptxas spills tiles of predicates.
    no_worse = tl.full([TARGETS, SOURCES], 1, tl.int1 if M > 0 else tl.int32)
    no_better = no_worse
    if M > 0:
        for _ in tl.static_range(M):
            no_worse, no_better, sound = _compared(
                no_worse, no_better, sound, theirs_ptr, own_ptr, exists, inside, MAXIMIZE
            )
            theirs_ptr += other_objective
            own_ptr += objective_stride
    else:
        for _ in range(m):
            no_worse, no_better, sound = _compared(
                no_worse, no_better, sound, theirs_ptr, own_ptr, exists, inside, MAXIMIZE
            )
            theirs_ptr += other_objective
            own_ptr += objective_stride
    related = no_worse != 0
    if RELATION == DOMINATED:
        related &= no_better == 0
    elif RELATION == DOMINATED_OR_REPEATED:
        earlier = source.to(tl.int32)[None, :] < target.to(tl.int32)[:, None]
        related &= (no_better == 0) | earlier
    return related, sound


@triton.jit(
    do_not_specialize=[
        "n",
        "k",
        "m",
        "tiles",
        "front_stride",
        "point_stride",
        "objective_stride",
        "other_front",
        "other_point",
        "other_objective",
    ]
)
def pair_kernel(
    points_ptr,  # [fronts, n, m], the targets
    others_ptr,  # [fronts, k, m], the sources
    order_ptr,  # [fronts, k] int64, in which sources are tried, or None
    lengths_ptr,  # [fronts], rows of others, or None
    result_ptr,  # [fronts, n]
    n,
    k,
    m,
    tiles,
    front_stride,
    point_stride,
    objective_stride,
    other_front,
    other_point,
    other_objective,
    MAXIMIZE: tl.constexpr,
    RELATION: tl.constexpr,
    COUNT: tl.constexpr,
    OWN: tl.constexpr,
    CHUNK: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
    M: tl.constexpr,
):
    """Targets that stand in RELATION to a source; how many sources with COUNT; with OWN (others are the points) those
    that do not."""
    front = tl.program_id(0).to(tl.int64) // tiles
    target = (tl.program_id(0).to(tl.int64) % tiles) * TARGETS + tl.arange(0, TARGETS)
    stored = target < n
    inside = stored
    length = k
    if lengths_ptr is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths_ptr + front), 0), k).to(tl.int32)
        if OWN:
            inside &= target < length
    points_ptr += front * front_stride
    others_ptr += front * other_front
    own = points_ptr + target * point_stride
    comparable = inside
    for c in range(m):
        value = tl.load(own + c * objective_stride.to(tl.int64), mask=inside, other=0.0)
        comparable &= value == value

    found = tl.zeros([TARGETS], tl.int32)
    present = 0  # sources without NaN, which beat every target with one
    at = 0
    looking = tl.max(inside.to(tl.int32), axis=0)
    while (at < length) & (looking > 0):
        hits = tl.zeros([TARGETS, SOURCES], tl.int32)
        for step in range(at, tl.minimum(at + CHUNK, length), SOURCES):
            position = step + tl.arange(0, SOURCES)
            exists = position < length
            source = position.to(tl.int64)
            if order_ptr is not None:
                source = tl.load(order_ptr + front * k + position, mask=exists, other=0)
            theirs = others_ptr + source * other_point
            related, sound = _related(
                theirs,
                own,
                exists,
                inside,
                source,
                target,
                m,
                other_objective.to(tl.int64),
                objective_stride.to(tl.int64),
                MAXIMIZE,
                RELATION,
                M,
                TARGETS,
                SOURCES,
            )
            present += tl.sum(sound.to(tl.int32), axis=0)
            hits = tl.where(related, hits + 1, hits)
        found += tl.sum(hits, axis=1)
        at += CHUNK
        if not COUNT:
            looking = tl.max((comparable & (found == 0)).to(tl.int32), axis=0)
            if not OWN:
                looking = tl.where(present == 0, 1, looking)
    found = tl.where(comparable, found, present)
    if COUNT:
        found = tl.where(inside, found, -1)
    elif OWN:
        found = (comparable & (found == 0)).to(tl.int32)
    else:
        found = (found > 0).to(tl.int32)
    tl.store(result_ptr + front * n + target, found.to(result_ptr.dtype.element_ty), mask=stored)


def _require_points(points: Tensor, nan_raises: bool, lengths: Tensor | None) -> None:
    require(not nan_raises, "nan_raises: a CUDA operator must not wait for the device to look for NaN; pass False")
    require(points.dim() >= 2, f"points: expected shape (..., n, m), got {tuple(points.shape)}")
    fits = lengths is None or lengths.shape == points.shape[:-2]
    require(fits, f"lengths: expected the batch shape {tuple(points.shape[:-2])}")


def _strongest_first(others: Tensor, maximize: bool, lengths: Tensor | None) -> Tensor:
    """[fronts, k]: rows by their sum, rows behind `lengths` last."""
    weakness = others.sum(2)
    if maximize:
        weakness = -weakness
    if lengths is not None:
        behind = torch.arange(others.shape[1], device=others.device) >= lengths[:, None]
        weakness.masked_fill_(behind, torch.nan)
    return torch.sort(weakness, dim=1, stable=True).indices


def _pairs(
    points: Tensor,
    others: Tensor | None,
    maximize: bool,
    lengths: Tensor | None,
    relation: int,
    dtype: torch.dtype = torch.bool,
) -> Tensor:
    """Without `others`, the points themselves; counts where the result is no bool."""
    own, count = others is None, dtype != torch.bool
    batch, (n, m) = points.shape[:-2], points.shape[-2:]
    fronts = batch.numel()
    result = torch.empty((*batch, n), dtype=dtype, device=points.device)
    if result.numel() == 0:
        return result
    points = points.reshape(fronts, n, m)
    others = points if others is None else others.reshape(fronts, others.shape[-2], m)
    k = others.shape[1]
    lengths = None if lengths is None else lengths.reshape(fronts)
    with torch.cuda.device_of(points):
        order = None if count or k <= CHUNK else _strongest_first(others, maximize, lengths)
        tiles = triton.cdiv(n, FEW_TARGETS)
        pair_kernel[(fronts * tiles,)](
            points,
            others,
            order,
            lengths,
            result,
            n,
            k,
            m,
            tiles,
            *points.stride(),
            *others.stride(),
            MAXIMIZE=maximize,
            RELATION=relation,
            COUNT=count,
            OWN=own,
            CHUNK=CHUNK,
            TARGETS=FEW_TARGETS,
            SOURCES=SOURCES,
            M=m if m < UNROLLED else 0,
            **PAIR_OPTIONS,
        )
    return result


def is_non_dominated(
    points: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    deduplicate: bool = False,
) -> Tensor:
    """Implements ``morlfast::is_non_dominated`` for CUDA: (..., n, m) -> bool (..., n)."""
    _require_points(points, nan_raises, lengths)
    relation = DOMINATED_OR_REPEATED if deduplicate else DOMINATED
    return _pairs(points, None, maximize, lengths, relation.value)


def dominance_counts(
    points: Tensor, maximize: bool = False, nan_raises: bool = True, lengths: Tensor | None = None
) -> Tensor:
    """Implements ``morlfast::dominance_counts`` for CUDA: (..., n, m) -> int32 (..., n)."""
    _require_points(points, nan_raises, lengths)
    return _pairs(points, None, maximize, lengths, DOMINATED.value, torch.int32)


def is_dominated_by(
    points: Tensor,
    others: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
    weakly: bool = False,
) -> Tensor:
    """Implements ``morlfast::is_dominated_by`` for CUDA: (..., n, m) and (..., k, m) -> bool (..., n)."""
    _require_points(points, nan_raises, lengths)
    expected = (*points.shape[:-2], *others.shape[-2:-1], points.shape[-1])
    fits = others.dtype == points.dtype and others.shape == expected
    require(fits, f"others: expected the dtype, batch and objectives of points, got {tuple(others.shape)}")
    relation = WEAKLY_DOMINATED if weakly else DOMINATED
    return _pairs(points, others, maximize, lengths, relation.value)
