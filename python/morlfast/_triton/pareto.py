"""Non-dominated sorting, rank(q) = max over p dominating q of rank(p) + 1, independent of the number of
fronts.

Fronts of at most SMALL points: 1 launch; one program a front compares all pairs once and iterates the formula
to its fixpoint. Larger ones: points are put in lexicographic order, where dominators come first, and cut into
blocks of BLOCK. Launch b raises the ranks of all points past block b - 1 above those of their dominators in
it, and its first program then settles block b. Past n, points are NaN: they neither dominate nor are
dominated.

Floor: n (n - 1) / 2 * m comparisons; n / BLOCK launches, each reading the points past its block once; O(n m)
memory. In lexicographic order the first objective needs no comparison; in its place a number of the distinct
points (increasing, equal for duplicates) tells dominators from duplicates. Before that: one launch, m stable
sorts, one launch and a cumulative sum. Points are compared in their own dtype; float64 runs at the GPU's
float64 rate.
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
# Points settled together within a block.
SETTLED = 64
# Pairs (sources x targets) compared in one step of a program.
PAIRS = 2048
# Targets of a program. More of them share each load of a source; fewer fill the GPU where n is at most FILLED.
TARGETS, MANY_TARGETS = 128, 512
FILLED = 65536
# Up to here the loop over objectives is unrolled.
UNROLLED = 4
# Rows of a program that only moves points.
ROWS = 512
# Fusion is named because its default varies. Named a limit, ptxas no longer spills a few registers to run more
# programs at once.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 128}


@triton.jit
def _fixpoint(dominates, rank):
    """Longest chains in the relation dominates [sources, targets] over one set of points, starting from rank."""
    changed = 1
    while changed > 0:
        raised = tl.maximum(rank, tl.max(tl.where(dominates, rank[:, None] + 1, 0), axis=0))
        changed = tl.max((raised > rank).to(tl.int32), axis=0)
        rank = raised
    return rank


@triton.jit(do_not_specialize=["n", "m", "front_stride", "point_stride", "objective_stride"])
def small_kernel(
    points_ptr,  # [fronts, n, m]
    ranks_ptr,  # [fronts, n]
    n,
    m,
    front_stride,
    point_stride,
    objective_stride,
    MAXIMIZE: tl.constexpr,
    SIZE: tl.constexpr,
):
    front = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, SIZE)
    inside = index < n
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
        no_worse &= value[:, None] <= value[None, :]
        better |= value[:, None] < value[None, :]
    rank = _fixpoint(no_worse & better, tl.zeros([SIZE], tl.int32))
    last = tl.max(tl.where(comparable, rank, -1), axis=0) + 1
    tl.store(ranks_ptr + front * n + index, tl.where(comparable, rank, last), mask=inside)


@triton.jit(do_not_specialize=["fronts", "n", "m", "front_stride", "point_stride", "objective_stride"])
def columns_kernel(
    points_ptr,  # [fronts, n, m]
    columns_ptr,  # [fronts, m, n]: minimized, without -0.0, NaN in every objective or in none
    fronts,
    n,
    m,
    front_stride,
    point_stride,
    objective_stride,
    MAXIMIZE: tl.constexpr,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = point < fronts.to(tl.int64) * n
    front, index = point // n, point % n
    at = points_ptr + front * front_stride + index * point_stride
    comparable = inside
    objective = at
    for _ in range(m):
        value = tl.load(objective, mask=inside, other=0.0)
        comparable &= value == value
        objective += objective_stride
    column = columns_ptr + front * m * n + index
    for _ in range(m):
        value = tl.load(at, mask=inside, other=0.0)
        if MAXIMIZE:
            value = -value
        value = tl.where(value == 0, 0.0, value)
        value = tl.where(comparable, value, float("nan"))
        tl.store(column, value, mask=inside)
        at += objective_stride
        column += n


@triton.jit(do_not_specialize=["fronts", "n", "m", "padded"])
def gather_kernel(
    columns_ptr,  # [fronts, m, n]
    order_ptr,  # [fronts, n]
    sorted_ptr,  # [fronts, m, padded], NaN past n
    fresh_ptr,  # [fronts, padded] int32: 1 where a point differs from the one before it
    fronts,
    n,
    m,
    padded,
    SIZE: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    exists = point < fronts.to(tl.int64) * padded
    front, index = point // padded, point % padded
    inside = exists & (index < n)
    follows = inside & (index > 0)
    source = tl.load(order_ptr + front * n + index, mask=inside, other=0)
    previous = tl.load(order_ptr + front * n + index - 1, mask=follows, other=0)
    fresh = tl.zeros([SIZE], tl.int1)
    column = columns_ptr + front * m * n
    result = sorted_ptr + front * m * padded + index
    for _ in range(m):
        value = tl.load(column + source, mask=inside, other=float("nan"))
        before = tl.load(column + previous, mask=follows, other=float("nan"))
        # Two NaN points are equal.
        fresh |= (value != before) & ((value == value) | (before == before))
        tl.store(result, value, mask=exists)
        column += n
        result += padded
    tl.store(fresh_ptr + point, (fresh & follows).to(tl.int32), mask=exists)


@triton.jit
def _dominates(points_ptr, numbers_ptr, padded, m, source, target, M: tl.constexpr):
    """Dominance [sources, targets] between lexicographically sorted points."""
    relation = tl.load(numbers_ptr + source)[:, None] < tl.load(numbers_ptr + target)[None, :]
    points_ptr += padded
    if M > 0:
        for _ in tl.static_range(1, M):
            relation &= tl.load(points_ptr + source)[:, None] <= tl.load(points_ptr + target)[None, :]
            points_ptr += padded
        return relation
    # Carried as integers, since ptxas spills tiles of predicates.
    carried = relation.to(tl.int32)
    for _ in range(1, m):
        no_worse = tl.load(points_ptr + source)[:, None] <= tl.load(points_ptr + target)[None, :]
        carried &= no_worse.to(tl.int32)
        points_ptr += padded
    return carried != 0


@triton.jit
def _raised(
    points_ptr,
    numbers_ptr,
    ranks_ptr,
    padded,
    m,
    start,
    target,
    BLOCK: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
    M: tl.constexpr,
):
    """1 + the highest rank among the dominators of each target in the settled block at `start`, 0 without
    one."""
    highest = tl.zeros([SOURCES, TARGETS], tl.int32)
    for at in range(0, BLOCK, SOURCES):
        source = start + at + tl.arange(0, SOURCES)
        relation = _dominates(points_ptr, numbers_ptr, padded, m, source, target, M)
        highest = tl.maximum(highest, tl.where(relation, tl.load(ranks_ptr + source)[:, None] + 1, 0))
    return tl.max(highest, axis=0)


@triton.jit
def _settled(
    points_ptr,
    numbers_ptr,
    padded,
    m,
    start,
    rank,
    BLOCK: tl.constexpr,
    SETTLED: tl.constexpr,
    SOURCES: tl.constexpr,
    M: tl.constexpr,
):
    """Final ranks of the block at `start`, from ranks raised by all earlier blocks."""
    lane = tl.arange(0, BLOCK)
    target = start + lane
    for at in range(0, BLOCK, SETTLED):
        group = at + tl.arange(0, SETTLED)
        chains = _dominates(points_ptr, numbers_ptr, padded, m, start + group, start + group, M)
        settled = _fixpoint(chains, tl.gather(rank, group, 0))
        within = lane - at
        member = (within >= 0) & (within < SETTLED)
        rank = tl.where(member, tl.gather(settled, tl.where(member, within, 0), 0), rank)
        for part in range(0, SETTLED, SOURCES):
            source = part + tl.arange(0, SOURCES)
            relation = _dominates(points_ptr, numbers_ptr, padded, m, start + at + source, target, M)
            source_rank = tl.gather(settled, source, 0)
            rank = tl.maximum(rank, tl.max(tl.where(relation, source_rank[:, None] + 1, 0), axis=0))
    return rank


@triton.jit
def _settle_block(
    sorted_ptr,
    numbers_ptr,
    order_ptr,
    sorted_ranks_ptr,
    last_ptr,
    ranks_ptr,
    n,
    padded,
    m,
    start,
    BLOCK: tl.constexpr,
    SOURCES: tl.constexpr,
    SETTLED: tl.constexpr,
    M: tl.constexpr,
):
    target = start + tl.arange(0, BLOCK)
    rank = tl.load(sorted_ranks_ptr + target)
    if start > 0:
        raised = _raised(
            sorted_ptr,
            numbers_ptr,
            sorted_ranks_ptr,
            padded,
            m,
            start - BLOCK,
            target,
            BLOCK,
            BLOCK,
            SOURCES,
            M,
        )
        rank = tl.maximum(rank, raised)
    rank = _settled(sorted_ptr, numbers_ptr, padded, m, start, rank, BLOCK, SETTLED, SOURCES, M)
    # NaN points come last and share the rank after the others.
    first_objective = tl.load(sorted_ptr + target)
    comparable = first_objective == first_objective
    last = tl.maximum(tl.load(last_ptr), tl.max(tl.where(comparable, rank, -1), axis=0) + 1)
    rank = tl.where(comparable, rank, last)
    tl.store(last_ptr, last)
    tl.store(sorted_ranks_ptr + target, rank)
    original = tl.load(order_ptr + target, mask=target < n, other=0)
    tl.store(ranks_ptr + original, rank, mask=target < n)


@triton.jit
def _raise_tile(
    sorted_ptr,
    numbers_ptr,
    sorted_ranks_ptr,
    padded,
    m,
    settled,
    start,
    BLOCK: tl.constexpr,
    TARGETS: tl.constexpr,
    SOURCES: tl.constexpr,
    M: tl.constexpr,
):
    target = start + tl.arange(0, TARGETS)
    rank = tl.load(sorted_ranks_ptr + target)
    raised = _raised(
        sorted_ptr,
        numbers_ptr,
        sorted_ranks_ptr,
        padded,
        m,
        settled,
        target,
        BLOCK,
        TARGETS,
        SOURCES,
        M,
    )
    tl.store(sorted_ranks_ptr + target, tl.maximum(rank, raised))


@triton.jit(do_not_specialize=["n", "padded", "m", "block", "programs"])
def block_kernel(
    sorted_ptr,  # [fronts, m, padded] in lexicographic order, NaN past n
    numbers_ptr,  # [fronts, padded] int32, the number of the distinct point
    order_ptr,  # [fronts, n] int64
    sorted_ranks_ptr,  # [fronts, padded] int32, final up to block - 1, lower bounds past it
    last_ptr,  # [fronts] int32, 1 + the highest rank up to block - 1
    ranks_ptr,  # [fronts, n] int32, the result, in the order of the caller
    n,
    padded,
    m,
    block,
    programs,
    BLOCK: tl.constexpr,
    TARGETS: tl.constexpr,
    PAIRS: tl.constexpr,
    SETTLED: tl.constexpr,
    M: tl.constexpr,
):
    """Raises every point past block - 1 by block - 1; a front's first program then settles `block`."""
    front = tl.program_id(0).to(tl.int64) // programs
    program = tl.program_id(0).to(tl.int64) % programs
    padded = padded.to(tl.int64)
    start = block.to(tl.int64) * BLOCK
    sorted_ptr += front * m * padded
    numbers_ptr += front * padded
    sorted_ranks_ptr += front * padded
    if program == 0:
        _settle_block(
            sorted_ptr,
            numbers_ptr,
            order_ptr + front * n,
            sorted_ranks_ptr,
            last_ptr + front,
            ranks_ptr + front * n,
            n,
            padded,
            m,
            start,
            BLOCK,
            PAIRS // BLOCK,
            SETTLED,
            M,
        )
    else:
        _raise_tile(
            sorted_ptr,
            numbers_ptr,
            sorted_ranks_ptr,
            padded,
            m,
            start - BLOCK,
            start + BLOCK + (program - 1) * TARGETS,
            BLOCK,
            TARGETS,
            PAIRS // TARGETS,
            M,
        )


def small_options(size: int) -> dict[str, Any]:
    """Launch options for fronts of at most `size` points: 16 pairs a thread."""
    return {**OPTIONS, "num_warps": max(1, size * size // 512)}


def _lexicographic_order(columns: Tensor) -> Tensor:
    """[fronts, m, n] -> [fronts, n]: stable sorts from the last objective to the first."""
    order = torch.sort(columns[:, -1], dim=1, stable=True).indices
    for k in range(columns.shape[1] - 2, -1, -1):
        keys = columns[:, k].gather(1, order)
        order = order.gather(1, torch.sort(keys, dim=1, stable=True).indices)
    return order


def _sort_large(points: Tensor, maximize: bool) -> Tensor:
    """[fronts, n, m] -> [fronts, n]."""
    fronts, n, m = points.shape
    device = points.device
    block_size = min(BLOCK, 1 << (n - 1).bit_length())
    targets = MANY_TARGETS if n > FILLED else min(TARGETS, block_size)
    blocks = triton.cdiv(n, block_size)
    padded = blocks * block_size + max(0, targets - block_size)

    columns = torch.empty((fronts, m, n), dtype=points.dtype, device=device)
    columns_kernel[(triton.cdiv(fronts * n, ROWS),)](
        points,
        columns,
        fronts,
        n,
        m,
        *points.stride(),
        MAXIMIZE=maximize,
        SIZE=ROWS,
        **OPTIONS,
    )
    order = _lexicographic_order(columns)
    ordered = torch.empty((fronts, m, padded), dtype=points.dtype, device=device)
    fresh = torch.empty((fronts, padded), dtype=torch.int32, device=device)
    gather_kernel[(triton.cdiv(fronts * padded, ROWS),)](
        columns,
        order,
        ordered,
        fresh,
        fronts,
        n,
        m,
        padded,
        SIZE=ROWS,
        **OPTIONS,
    )
    numbers = torch.cumsum(fresh, 1, dtype=torch.int32)
    if m == 1:
        # A sort inverts the permutation: under deterministic algorithms some torch's scatter waits for the device.
        return numbers.gather(1, order.argsort(1))

    ranks = torch.empty((fronts, n), dtype=torch.int32, device=device)

    sorted_ranks = torch.zeros_like(numbers)
    last = torch.zeros(fronts, dtype=torch.int32, device=device)
    for block in range(blocks):
        behind = max(0, n - (block + 1) * block_size) if block > 0 else 0
        programs = 1 + triton.cdiv(behind, targets)
        block_kernel[(fronts * programs,)](
            ordered,
            numbers,
            order,
            sorted_ranks,
            last,
            ranks,
            n,
            padded,
            m,
            block,
            programs,
            BLOCK=block_size,
            TARGETS=targets,
            PAIRS=PAIRS,
            SETTLED=min(SETTLED, block_size),
            M=m if m <= UNROLLED else 0,
            **OPTIONS,
        )
    return ranks


def non_dominated_sort(points: Tensor, maximize: bool = False, nan_raises: bool = True) -> Tensor:
    """Implements ``morlfast::non_dominated_sort`` for CUDA: (..., n, m) -> int32 (..., n)."""
    require(not nan_raises, "nan_raises: a CUDA operator must not wait for the device to look for NaN; pass False")
    require(points.dim() >= 2, f"points: expected shape (..., n, m), got {tuple(points.shape)}")
    batch, (n, m) = points.shape[:-2], points.shape[-2:]
    fronts = batch.numel()
    if fronts == 0 or n == 0:
        return torch.empty((*batch, n), dtype=torch.int32, device=points.device)
    stacked = points.reshape(fronts, n, m)
    with torch.cuda.device_of(points):
        if n > SMALL:
            ranks = _sort_large(stacked, maximize)
        else:
            ranks = torch.empty((fronts, n), dtype=torch.int32, device=points.device)
            size = max(16, 1 << (n - 1).bit_length())
            small_kernel[(fronts,)](
                stacked,
                ranks,
                n,
                m,
                *stacked.stride(),
                MAXIMIZE=maximize,
                SIZE=size,
                **small_options(size),
            )
    return ranks.view((*batch, n))
