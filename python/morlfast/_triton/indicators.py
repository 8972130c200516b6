"""The best point of a set for each query: what most quality indicators average.

A program goes over a share of the points of one set for a tile of queries and keeps each query's best value, and its
row, in registers; a second launch joins the shares. Shares are more than one only where queries are too few to fill a
GPU, and depend on shapes alone, so results repeat bit for bit. The farthest query is the largest of these values.

Floor: W n m terms of two or three float64 operations, whatever the dtype: float32 is widened, as on the CPU, so that
the lowest row of equal values is the same one there. At least 32 operations a clock and multiprocessor on 8.0, 9.0 and
10.0, 2 on other chips. Each tile of QUERIES queries reads all points, mostly from the second-level cache; scratch
is 16 bytes for each query and share.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import require

# Queries of a program, and the points that they are compared with in one step.
QUERIES, POINTS = 32, 64
# Programs that fill a GPU, and the points that are worth one.
PROGRAMS, SHARE = 512, 1024
# Up to here the loop over objectives is unrolled.
UNROLLED = 3
# Queries of a program that joins shares.
JOINED = 256

KINDS = 6
DOT_PRODUCT, CHEBYSHEV, SQUARED_DISTANCE, SQUARED_EXCESS, LARGEST_DIFFERENCE, LARGEST_QUOTIENT = (
    tl.constexpr(kind) for kind in range(KINDS)
)
OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 168}


@triton.jit
def _joined(value, query_ptr, point_ptr, asked, exists, KIND: tl.constexpr):
    """Values [queries, points] after one objective more; NaN stays NaN."""
    q = tl.load(query_ptr, mask=asked, other=1.0).to(tl.float64)[:, None] + 0.0  # a quotient by -0.0 is one by 0.0
    p = tl.load(point_ptr, mask=exists, other=float("nan")).to(tl.float64)[None, :]
    if KIND == DOT_PRODUCT:
        return value - q * p  # of which the least is sought
    if KIND == SQUARED_DISTANCE:
        return value + (q - p) * (q - p)
    if KIND == SQUARED_EXCESS:
        excess = tl.where(p - q <= 0, 0.0, p - q)
        return value + excess * excess
    if KIND == CHEBYSHEV:
        term = q * p
    elif KIND == LARGEST_DIFFERENCE:
        term = p - q
    else:
        term = p / q
    return tl.where((term > value) | (term != term), term, value)


@triton.jit(
    do_not_specialize=[
        "count",
        "n",
        "m",
        "tiles",
        "shares",
        "share",
        "query_set",
        "query_row",
        "query_objective",
        "point_set",
        "point_row",
        "point_objective",
    ]
)
def best_kernel(
    queries_ptr,  # [sets, count, m]
    points_ptr,  # [sets, n, m]
    lengths_ptr,  # [sets], or None
    least_ptr,  # [sets, count, shares] float64; the dot product with its sign changed
    rows_ptr,  # [sets, count, shares] int64, -1 without one; or None
    count,
    n,
    m,
    tiles,
    shares,
    share,
    query_set,
    query_row,
    query_objective,
    point_set,
    point_row,
    point_objective,
    KIND: tl.constexpr,
    QUERIES: tl.constexpr,
    POINTS: tl.constexpr,
    M: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64) % shares
    tile = tl.program_id(0).to(tl.int64) // shares
    points_set, tile = tile // tiles, tile % tiles
    query = tile * QUERIES + tl.arange(0, QUERIES)
    asked = query < count
    own = queries_ptr + points_set * query_set + query * query_row
    length = n.to(tl.int64)
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + points_set), length)
    objective_of_query = query_objective.to(tl.int64)
    objective_of_point = point_objective.to(tl.int64)

    start: tl.constexpr = float("-inf") if KIND == CHEBYSHEV or KIND >= LARGEST_DIFFERENCE else 0.0
    least = tl.full([QUERIES, POINTS], float("inf"), tl.float64)
    row = tl.full([QUERIES, POINTS], -1, tl.int32)
    for at in range(part * share, tl.minimum((part + 1) * share, length), POINTS):
        point = at + tl.arange(0, POINTS)
        exists = point < length
        theirs = points_ptr + points_set * point_set + point * point_row
        value = tl.full([QUERIES, POINTS], start, tl.float64)
        if M > 0:
            for k in tl.static_range(M):
                value = _joined(
                    value, own + k * objective_of_query, theirs + k * objective_of_point, asked, exists, KIND
                )
        else:
            for k in range(m):
                value = _joined(
                    value, own + k * objective_of_query, theirs + k * objective_of_point, asked, exists, KIND
                )
        better = value < least
        if rows_ptr is not None:
            better |= (value == least) & (row < 0)
            row = tl.where(better, point.to(tl.int32)[None, :], row)
        least = tl.where(better, value, least)

    result = tl.min(least, axis=1)
    sound = asked
    for k in range(m):
        value = tl.load(own + k * objective_of_query, mask=asked, other=0.0)
        sound &= value == value
    at = (points_set * count + query) * shares + part
    tl.store(least_ptr + at, tl.where(sound, result, float("nan")), mask=asked)
    if rows_ptr is not None:
        attains = (least == result[:, None]) & (row >= 0)
        first = tl.min(tl.where(attains, row, 2**31 - 1), axis=1)
        found = sound & (first < 2**31 - 1)
        tl.store(rows_ptr + at, tl.where(found, first, -1).to(tl.int64), mask=asked)


@triton.jit(do_not_specialize=["queries", "shares"])
def join_kernel(
    least_ptr,  # [queries, shares] float64
    least_rows_ptr,  # [queries, shares] int64, or None
    values_ptr,  # [queries]
    rows_ptr,  # [queries] int64, or None
    queries,
    shares,
    NEGATED: tl.constexpr,
    SIZE: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = query < queries
    at = query * shares
    least = tl.load(least_ptr + at, mask=inside, other=0.0)
    if rows_ptr is not None:
        row = tl.load(least_rows_ptr + at, mask=inside, other=-1)
    for share in range(1, shares):
        value = tl.load(least_ptr + at + share, mask=inside, other=0.0)
        better = value < least
        if rows_ptr is not None:
            theirs = tl.load(least_rows_ptr + at + share, mask=inside, other=-1)
            better |= (value == least) & (row < 0)
            row = tl.where(better, theirs, row)
        least = tl.where(better, value, least)
    # Without -0.0.
    least = 0.0 - least if NEGATED else least + 0.0
    tl.store(values_ptr + query, least.to(values_ptr.dtype.element_ty), mask=inside)
    if rows_ptr is not None:
        tl.store(rows_ptr + query, row, mask=inside)


def best_points(
    queries: Tensor,
    points: Tensor,
    kind: int,
    lengths: Tensor | None = None,
    with_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Implements ``morlfast::best_points`` for CUDA: (..., W, m) and (..., n, m) -> (..., W) and int64 (..., W)."""
    require(points.dim() >= 2, f"points: expected shape (..., n, m), got {tuple(points.shape)}")
    batch, (n, m) = points.shape[:-2], points.shape[-2:]
    fits = queries.dtype == points.dtype and queries.dim() == points.dim()
    fits = fits and (*queries.shape[:-2], queries.shape[-1]) == (*batch, m)
    require(fits, f"queries: expected the dtype, batch and objectives of points, got {tuple(queries.shape)}")
    fits = lengths is None or lengths.shape == batch
    require(fits, f"lengths: expected the batch shape {tuple(batch)}")
    require(m >= 1, "points: expected at least 1 objective, got 0")
    require(0 <= kind < KINDS, f"kind: expected 0 to {KINDS - 1}, got {kind}")

    sets, count = batch.numel(), queries.shape[-2]
    device = points.device
    values = torch.empty((*batch, count), dtype=points.dtype, device=device)
    rows = torch.empty((*batch, count if with_rows else 0), dtype=torch.int64, device=device)
    if values.numel() == 0:
        return values, rows
    tiles = triton.cdiv(count, QUERIES)
    shares = max(1, min(triton.cdiv(PROGRAMS, sets * tiles), triton.cdiv(n, SHARE)))
    share = triton.cdiv(triton.cdiv(n, shares), POINTS) * POINTS
    with torch.cuda.device_of(points):
        least = torch.empty((sets * count, shares), dtype=torch.float64, device=device)
        least_rows = torch.empty_like(least, dtype=torch.int64) if with_rows else None
        queries, points = queries.reshape(sets, count, m), points.reshape(sets, n, m)
        best_kernel[(sets * tiles * shares,)](
            queries,
            points,
            None if lengths is None else lengths.reshape(sets),
            least,
            least_rows,
            count,
            n,
            m,
            tiles,
            shares,
            share,
            *queries.stride(),
            *points.stride(),
            KIND=kind,
            QUERIES=QUERIES,
            POINTS=POINTS,
            M=m if m <= UNROLLED else 0,
            **OPTIONS,
        )
        join_kernel[(triton.cdiv(sets * count, JOINED),)](
            least,
            least_rows,
            values,
            rows if with_rows else None,
            sets * count,
            shares,
            NEGATED=kind == DOT_PRODUCT.value,
            SIZE=JOINED,
            **OPTIONS,
        )
    return values, rows


def farthest_query(
    queries: Tensor,
    points: Tensor,
    kind: int,
    lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
) -> Tensor:
    """Implements ``morlfast::farthest_query`` for CUDA: (..., W, m) and (..., n, m) -> (...), from all best points."""
    require(kind != DOT_PRODUCT.value, f"kind: expected 1 to {KINDS - 1}, got {kind}")
    fits = query_lengths is None or query_lengths.shape == queries.shape[:-2]
    require(fits, f"query_lengths: expected the batch shape {tuple(queries.shape[:-2])}")
    values, _ = best_points(queries, points, kind, lengths)
    count = values.shape[-1]
    if count == 0:
        return values.new_full(values.shape[:-1], -torch.inf)
    if query_lengths is not None:
        behind = torch.arange(count, device=values.device) >= query_lengths[..., None]
        values.masked_fill_(behind, -torch.inf)
    return values.amax(-1)
