"""Group-relative advantages.

Floor: rewards and weights read once, advantages written once; with a mask (N, T) the mask read once and N * T
advantages written, beside which the rewards are nothing. Without a mask all of it is microseconds, so launches
count:

- rules of the group alone: 1, with a mask too where groups are contiguous, of one size and not huge (every
  program computes its group's statistics anew and writes some columns of some rows); otherwise a mask is 1 more;
- baseline or scale "batch": 1 more (statistics of chunks of the batch);
- whitening: 1 more (programs leave the statistics of what they wrote, the last launch merges them);
- token counts that no lengths give: 1 more (a pass over the mask);
- sums of more than GROUP_TILE objectives, such as rewards of tokens: 1 more;
- group_ids: one stable sort of N keys, a cumulative sum and a search.

Statistics are float64: a few operations a reward, which even GPUs with one float64 unit in 64 hide behind the
launch; see moments.py. Multiply and add are not fused: a fused w * r - pivot would not be zero for r = pivot / w.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import group_bounds, require, require_groups
from morlfast._triton.moments import divisor, fold, is_set, merge, record, variance_of, wide

# Elements of one tile of groups x members x objectives: of rewards whose statistics are one number an objective, and
# of groups, whose statistics are many; the most objectives.
TILE = 512
GROUP_TILE = 128
# Members loaded at a time where group sizes are unknown (group_ids, offsets).
UNKNOWN_GROUP = 32
# Chunks of the batch, and programs that leave statistics: one program merges them in one tile.
CHUNKS = 128
RECORDS = 512
# Tokens: a tile of rows x columns, and the columns of one program.
ROWS, COLUMNS, SPAN = 16, 128, 2048
# Rewards of a group whose statistics every program of the group may compute anew.
RECOMPUTED = 2048

# Codes of the operator's rules, in the order of AdvantageRules.
NORMALIZE_THEN_SUM = tl.constexpr(1)
NO_BASELINE, GROUP_MEAN, OTHERS_MEAN, BATCH_MEAN, TOKEN_MEAN, RUNNER_UP = (tl.constexpr(code) for code in range(6))
NO_SCALE, GROUP_STD, BATCH_STD, OTHERS_STD = (tl.constexpr(code) for code in range(4))
SINGLETON_ZERO, SINGLETON_REWARD = tl.constexpr(0), tl.constexpr(1)
CONSTANT_ZERO, CONSTANT_UNSCALED = tl.constexpr(0), tl.constexpr(1)
NAN_SKIP, NAN_POISONS, NAN_ZERO, NAN_SKIP_REWARD, NAN_RAISE = (tl.constexpr(code) for code in range(5))
WHITEN_TOKENS = tl.constexpr(2)

# Named a limit, ptxas no longer spills a few registers to run more programs at once.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 168}


def group_options(elements: int, token_bytes: int) -> dict[str, Any]:
    """A thread each element of a tile; with results of tokens, many programs at once to keep the memory busy."""
    warps = max(4, elements // 32)
    registers = 200 if warps <= 8 else 128
    if token_bytes:
        registers = 96 if token_bytes <= 4 else 255
    return OPTIONS | {"num_warps": warps, "maxnreg": registers}


@triton.jit
def _members(slot, slots, bounds_ptr, group_size, rows):
    """First and one-past-last sorted position of each group, [P]; empty past the last slot."""
    slot = slot.to(tl.int64)
    exists = slot < slots
    if bounds_ptr is None:
        start = slot * group_size
        stop = tl.where(exists, start + group_size, start)
    else:
        start = tl.load(bounds_ptr + slot, mask=exists, other=0)
        stop = tl.load(bounds_ptr + slot + 1, mask=exists, other=0)
        # Offsets are the caller's: whatever they are, all rows are written and nothing else.
        start = tl.where(slot == 0, 0, tl.minimum(tl.maximum(start, 0), rows))
        stop = tl.where(slot == slots - 1, rows, tl.minimum(tl.maximum(stop, 0), rows))
    return start, stop


@triton.jit
def _rows(position, inside, order_ptr):
    return position if order_ptr is None else tl.load(order_ptr + position, mask=inside, other=0)


@triton.jit
def _weighted_sum(value, weight, scored):
    """s_i = sum over scored objectives of w_ik v_ik, and whether any was scored; [P, L, 1] each."""
    score = tl.sum(tl.where(scored, weight * value, 0.0), axis=2)
    any_scored = tl.max(scored.to(tl.int32), axis=2) > 0
    return score[:, :, None], any_scored[:, :, None]


@triton.jit
def _load(
    rewards_ptr,
    weights_ptr,
    row,
    inside,
    objectives,
    reward_row,
    reward_col,
    weight_row,
    weight_col,
    SUMMED: tl.constexpr,
    NAN: tl.constexpr,
    K: tl.constexpr,
):
    """What is normalized and which of it is scored, the scores [P, L, 1] if SUMMED or the rewards [P, L, K]; weights
    [P, L, K]. Float64."""
    k = tl.arange(0, K)[None, None, :].to(tl.int64)
    row = row[:, :, None].to(tl.int64)
    present = inside[:, :, None] & (k < objectives)
    value = wide(tl.load(rewards_ptr + row * reward_row + k * reward_col, mask=present, other=0.0))
    if weights_ptr is None:
        weight = tl.full(value.shape, 1.0, tl.float64)
    else:
        weight = wide(tl.load(weights_ptr + row * weight_row + k * weight_col, mask=present, other=0.0))
    scored = present
    if NAN == NAN_ZERO:
        value = tl.where(value == value, value, 0.0)
    elif NAN != NAN_POISONS:
        scored = present & (value == value)
    if SUMMED:
        value, scored = _weighted_sum(value, weight, scored)
        if NAN == NAN_SKIP_REWARD:
            scored = inside[:, :, None]
    return value, scored, weight


@triton.jit
def _extremes(value, scored, position, top, top_at, second, L: tl.constexpr):
    """Adds a tile [P, L, K] to the largest value of each column, the first position that has it, and the largest
    value elsewhere, [P, K] each."""
    value = tl.where(scored, value, float("-inf"))
    tile_top = tl.max(value, axis=1)
    at = tl.where(scored & (value == tile_top[:, None, :]), position, 2**62)
    tile_at = tl.min(at, axis=1)
    elsewhere = tl.where(position == tile_at[:, None, :], float("-inf"), value)
    second = tl.maximum(tl.maximum(second, tl.max(elsewhere, axis=1)), tl.minimum(top, tile_top))
    top_at = tl.where(tile_top > top, tile_at, top_at)
    return tl.maximum(top, tile_top), top_at, second


@triton.jit
def _scaled(centred, variance, eps, least_std, EPS_TO: tl.constexpr, ZERO_VARIANCE: tl.constexpr):
    if ZERO_VARIANCE == CONSTANT_ZERO:
        instead = 0.0
    elif ZERO_VARIANCE == CONSTANT_UNSCALED:
        instead = centred
    else:
        instead = float("nan")
    return tl.where(tl.sqrt(variance) <= least_std, instead, centred / divisor(variance, eps, EPS_TO))


@triton.jit
def _result(value, scored, dtype: tl.constexpr):
    """0 without a score, NaN for what is not finite; 0 has no sign."""
    value = tl.where(value - value == 0, value + 0.0, float("nan"))
    value = tl.where(scored, value, 0.0)
    return value if dtype == tl.float64 else value.to(tl.float32).to(dtype)


@triton.jit
def _store_tokens(
    out_ptr,  # [N, T]
    mask_ptr,  # [N, T]
    advantage,  # [R], of the result's type
    row,  # [R]
    inside,  # [R]
    columns,
    mask_row,
    mask_col,
    R: tl.constexpr,
    W: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Writes columns program_id(1) * SPAN ... of some rows: the advantage where the mask is set, 0 elsewhere."""
    begin = tl.program_id(1) * SPAN
    stop = tl.minimum(begin + SPAN, columns)
    own = tl.broadcast_to(advantage[:, None], (R, W))
    none = tl.zeros([R, W], out_ptr.dtype.element_ty)
    for at in range(begin, stop, W):
        col = at + tl.arange(0, W)[None, :].to(tl.int64)
        present = inside[:, None] & (col < columns)
        counted = is_set(mask_ptr + row[:, None] * mask_row + col * mask_col, present)
        tl.store(out_ptr + row[:, None] * columns + col, tl.where(counted, own, none), mask=present)


@triton.jit(do_not_specialize=["rows", "columns", "mask_row"])
def count_kernel(
    mask_ptr,  # [N, T]
    counts_ptr,  # [N] int64
    rows,
    columns,
    mask_row,
    mask_col,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """Tokens of each row."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    counts = tl.zeros([R, W], tl.int32)
    for at in range(0, columns, W):
        col = at + tl.arange(0, W)[None, :].to(tl.int64)
        present = (row < rows)[:, None] & (col < columns)
        counts += is_set(mask_ptr + row[:, None] * mask_row + col * mask_col, present).to(tl.int32)
    tl.store(counts_ptr + row, tl.sum(counts.to(tl.int64), axis=1), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "objectives", "reward_row", "reward_col", "weight_row", "weight_col"])
def sum_kernel(
    rewards_ptr,  # [N, M]
    weights_ptr,  # [N, M] or None
    scores_ptr,  # [N] float64: NaN without a score, inf for one that is not finite
    rows,
    objectives,
    reward_row,
    reward_col,
    weight_row,
    weight_col,
    NAN: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """Scores of more objectives than a tile has."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[None, :]
    inside = row < rows
    total = tl.zeros([1, R, 1], tl.float64)
    any_scored = inside[:, :, None] & (NAN == NAN_SKIP_REWARD)
    for at in range(0, objectives, W):
        first = tl.zeros([], tl.int64) + at
        score, scored, _ = _load(
            rewards_ptr + first * reward_col,
            weights_ptr if weights_ptr is None else weights_ptr + first * weight_col,
            row,
            inside,
            objectives - at,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            True,
            NAN,
            W,
        )
        total += score
        any_scored |= scored
    total = tl.where(total - total == 0, total, float("inf"))
    tl.store(scores_ptr + row[:, :, None], tl.where(any_scored, total, float("nan")), mask=inside[:, :, None])


@triton.jit(
    do_not_specialize=[
        "rows",
        "objectives",
        "chunk_rows",
        "reward_row",
        "reward_col",
        "weight_row",
        "weight_col",
    ]
)
def chunk_statistics_kernel(
    rewards_ptr,  # [N, M]
    weights_ptr,  # [N, M] or None
    records_ptr,  # [4, chunks, K]: pivot, count, mean - pivot, sum of squared deviations
    rows,
    objectives,
    chunk_rows,
    reward_row,
    reward_col,
    weight_row,
    weight_col,
    SUMMED: tl.constexpr,  # of s_i rather than of each objective
    NAN: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = 1 if SUMMED else K
    pivot = tl.zeros([1, WIDTH], tl.float64)
    count = tl.zeros([1, WIDTH], tl.float64)
    mean = tl.zeros([1, WIDTH], tl.float64)
    m2 = tl.zeros([1, WIDTH], tl.float64)
    start = chunk * chunk_rows
    stop = tl.minimum(start + chunk_rows, rows)
    for at in range(start, stop, L):
        row = at + tl.arange(0, L)[None, :].to(tl.int64)
        value, scored, _ = _load(
            rewards_ptr,
            weights_ptr,
            row,
            row < stop,
            objectives,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            SUMMED,
            NAN,
            K,
        )
        pivot, count, mean, m2 = fold(value, scored, 1.0, pivot, count, mean, m2, L)
    record(records_ptr, chunk, tl.num_programs(0), pivot, count, mean, m2, WIDTH)


@triton.jit(
    do_not_specialize=[
        "rows",
        "slots",
        "blocks",
        "group_size",
        "parts",
        "part_rows",
        "objectives",
        "chunks",
        "reward_row",
        "reward_col",
        "weight_row",
        "weight_col",
        "ddof",
    ]
)
def group_kernel(
    rewards_ptr,  # [N, M]
    weights_ptr,  # [N, M] or None
    order_ptr,  # [N] rows by group, or None: groups are contiguous
    bounds_ptr,  # [slots + 1] positions in order, or None
    lengths_ptr,  # [N] tokens of each row, or None
    batch_ptr,  # [4, chunks, 1 or K] statistics of the batch, or None
    mask_ptr,  # [N, T], or None
    out_ptr,  # [N] or [N, T]; float64 [N] if records_ptr
    records_ptr,  # [4, programs, 1]: statistics of what the program wrote, or None
    rows,
    slots,
    blocks,
    group_size,
    parts,
    part_rows,
    objectives,
    chunks,
    columns,
    reward_row,
    reward_col,
    weight_row,
    weight_col,
    mask_row,
    mask_col,
    eps: tl.float64,
    least_std: tl.float64,
    ddof,
    SUMMED: tl.constexpr,
    OF_GROUP: tl.constexpr,  # baseline or scale is
    BASELINE: tl.constexpr,
    SCALE: tl.constexpr,
    EPS_TO: tl.constexpr,
    SINGLETON: tl.constexpr,
    ZERO_VARIANCE: tl.constexpr,
    NAN: tl.constexpr,
    BY_TOKEN: tl.constexpr,  # records count a row once a token
    P: tl.constexpr,
    L: tl.constexpr,  # members in a tile of statistics
    LW: tl.constexpr,  # members in a tile of results
    K: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,  # columns of a tile of tokens, or 0
    SPAN: tl.constexpr,
):
    """Advantages of P groups at a time, before whitening. A block is `part_rows` members of P groups.

    For whitening (records_ptr) a row without a score is written as NaN, one with a score that is not finite as inf.
    """
    WIDTH: tl.constexpr = 1 if SUMMED else K
    OTHERS: tl.constexpr = SCALE == OTHERS_STD
    if batch_ptr is not None:
        batch_pivot, batch_count, batch_mean, batch_m2 = merge(batch_ptr, chunks, C, WIDTH)
        batch_variance = variance_of(batch_count, batch_m2, ddof)[None, None, :]
    if records_ptr is not None:
        own_pivot = tl.zeros([1, 1], tl.float64)
        own_count = tl.zeros([1, 1], tl.float64)
        own_mean = tl.zeros([1, 1], tl.float64)
        own_m2 = tl.zeros([1, 1], tl.float64)

    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        slot = (block // parts).to(tl.int64) * P + tl.arange(0, P)
        start, stop = _members(slot, slots, bounds_ptr, group_size, rows)
        longest = tl.max(stop - start)
        pivot = tl.zeros([P, WIDTH], tl.float64)
        count = tl.zeros([P, WIDTH], tl.float64)
        mean = tl.zeros([P, WIDTH], tl.float64)
        m2 = tl.zeros([P, WIDTH], tl.float64)
        if BASELINE == TOKEN_MEAN:
            token_count = tl.zeros([P, WIDTH], tl.float64)
            token_sum = tl.zeros([P, WIDTH], tl.float64)
        if BASELINE == RUNNER_UP or OTHERS:
            top = tl.full([P, WIDTH], float("-inf"), tl.float64)
            top_at = tl.full([P, WIDTH], -1, tl.int64)
            second = top
        if OTHERS:
            bottom = top
            bottom_at = top_at
            after_bottom = top
        if OF_GROUP:
            for at in range(0, longest, L):
                position = start[:, None] + at + tl.arange(0, L)[None, :]
                inside = position < stop[:, None]
                row = _rows(position, inside, order_ptr)
                value, scored, _ = _load(
                    rewards_ptr,
                    weights_ptr,
                    row,
                    inside,
                    objectives,
                    reward_row,
                    reward_col,
                    weight_row,
                    weight_col,
                    SUMMED,
                    NAN,
                    K,
                )
                pivot, count, mean, m2 = fold(value, scored, 1.0, pivot, count, mean, m2, L)
                if BASELINE == TOKEN_MEAN:
                    tokens = tl.load(lengths_ptr + row, mask=inside, other=0).to(tl.float64)[:, :, None]
                    token_count += tl.sum(tl.where(scored, tokens, 0.0), axis=1)
                    token_sum += tl.sum(tl.where(scored, tokens * (value - pivot[:, None, :]), 0.0), axis=1)
                if BASELINE == RUNNER_UP or OTHERS:
                    top, top_at, second = _extremes(value, scored, position[:, :, None], top, top_at, second, L)
                if OTHERS:
                    bottom, bottom_at, after_bottom = _extremes(
                        -value, scored, position[:, :, None], bottom, bottom_at, after_bottom, L
                    )
        if OTHERS:
            # Of the others, sum of squares M2 - d^2 n / (n - 1): stable unless d^2 n / (n - 1) is most of M2, which it
            # can be for the largest and for the smallest value only. Theirs are summed.
            top_pivot = tl.zeros([P, WIDTH], tl.float64)
            top_count = tl.zeros([P, WIDTH], tl.float64)
            top_mean = tl.zeros([P, WIDTH], tl.float64)
            top_m2 = tl.zeros([P, WIDTH], tl.float64)
            bottom_pivot = tl.zeros([P, WIDTH], tl.float64)
            bottom_count = tl.zeros([P, WIDTH], tl.float64)
            bottom_mean = tl.zeros([P, WIDTH], tl.float64)
            bottom_m2 = tl.zeros([P, WIDTH], tl.float64)
            for at in range(0, longest, L):
                position = start[:, None] + at + tl.arange(0, L)[None, :]
                inside = position < stop[:, None]
                row = _rows(position, inside, order_ptr)
                value, scored, _ = _load(
                    rewards_ptr,
                    weights_ptr,
                    row,
                    inside,
                    objectives,
                    reward_row,
                    reward_col,
                    weight_row,
                    weight_col,
                    SUMMED,
                    NAN,
                    K,
                )
                at_top = position[:, :, None] == top_at[:, None, :]
                top_pivot, top_count, top_mean, top_m2 = fold(
                    value, scored & ~at_top, 1.0, top_pivot, top_count, top_mean, top_m2, L
                )
                at_bottom = position[:, :, None] == bottom_at[:, None, :]
                bottom_pivot, bottom_count, bottom_mean, bottom_m2 = fold(
                    value, scored & ~at_bottom, 1.0, bottom_pivot, bottom_count, bottom_mean, bottom_m2, L
                )

        # [P, 1, WIDTH], for the tiles of results.
        poison = mean[:, None, :] * 0.0  # 0, or NaN where a value of the group was not finite
        members = count[:, None, :]
        alone = members == 1.0
        stretch = tl.where(alone, 1.0, members / tl.maximum(members - 1.0, 1.0))
        part = (block % parts).to(tl.int64) * part_rows
        for at in range(part, tl.minimum(longest, part + part_rows), LW):
            position = start[:, None] + at + tl.arange(0, LW)[None, :]
            inside = position < stop[:, None]
            row = _rows(position, inside, order_ptr).to(tl.int64)
            value, scored, weight = _load(
                rewards_ptr,
                weights_ptr,
                row,
                inside,
                objectives,
                reward_row,
                reward_col,
                weight_row,
                weight_col,
                SUMMED,
                NAN,
                K,
            )
            shifted = value - pivot[:, None, :]
            from_mean = shifted - mean[:, None, :]
            if BASELINE == NO_BASELINE:
                centred = value
            elif BASELINE == BATCH_MEAN:
                centred = (value - batch_pivot[None, None, :]) - batch_mean[None, None, :]
            elif BASELINE == OTHERS_MEAN:
                centred = from_mean * stretch
            elif BASELINE == TOKEN_MEAN:
                token_mean = tl.where(token_count > 0, token_sum / tl.maximum(token_count, 1.0), mean)
                centred = shifted - token_mean[:, None, :]
            elif BASELINE == RUNNER_UP:
                leads = position[:, :, None] == top_at[:, None, :]
                centred = tl.where(leads, (top - second)[:, None, :], 0.0)
            else:
                centred = from_mean
            if SINGLETON == SINGLETON_REWARD and OF_GROUP and BASELINE != BATCH_MEAN:
                centred = tl.where(alone, value, centred)

            if SCALE != NO_SCALE:
                if SCALE == BATCH_STD:
                    variance = batch_variance
                elif SCALE == GROUP_STD:
                    variance = variance_of(members, m2[:, None, :], ddof)
                else:
                    left = m2[:, None, :] - from_mean * (from_mean * stretch)
                    left = tl.where(value == top[:, None, :], top_m2[:, None, :], left)
                    left = tl.where(-value == bottom[:, None, :], bottom_m2[:, None, :], left)
                    variance = variance_of(members - 1.0, left, ddof)
                if SINGLETON == SINGLETON_REWARD and SCALE != BATCH_STD:
                    variance = tl.where(alone, 1.0, variance)
                centred = _scaled(centred, variance, eps, least_std, EPS_TO, ZERO_VARIANCE)
            if OF_GROUP:
                if SINGLETON == SINGLETON_ZERO:
                    centred = tl.where(alone, 0.0, centred)
                elif SINGLETON != SINGLETON_REWARD:
                    centred = tl.where(alone, float("nan"), centred)
                centred += poison
            if batch_ptr is not None:
                centred += batch_mean[None, None, :] * 0.0
            if SUMMED:
                advantage = centred
            else:
                advantage, scored = _weighted_sum(centred, weight, scored)
                if NAN == NAN_SKIP_REWARD:
                    scored = inside[:, :, None]

            if records_ptr is not None:
                advantage = tl.where(advantage == advantage, advantage, float("inf"))
                written = tl.where(scored, advantage, float("nan"))
                tl.store(out_ptr + row[:, :, None], written, mask=inside[:, :, None])
                times = tl.full([1, P * LW, 1], 1.0, tl.float64)
                if BY_TOKEN:
                    times = tl.load(lengths_ptr + row, mask=inside, other=0).to(tl.float64)
                    times = tl.reshape(times, (1, P * LW, 1))
                own = tl.reshape(advantage, (1, P * LW, 1))
                own_scored = tl.reshape(scored, (1, P * LW, 1)) & (times > 0)
                own_pivot, own_count, own_mean, own_m2 = fold(
                    own, own_scored, times, own_pivot, own_count, own_mean, own_m2, P * LW
                )
            elif W == 0:
                result = _result(advantage, scored, out_ptr.dtype.element_ty)
                tl.store(out_ptr + row[:, :, None], result, mask=inside[:, :, None])
            else:
                result = _result(advantage, scored, out_ptr.dtype.element_ty)
                _store_tokens(
                    out_ptr,
                    mask_ptr,
                    tl.reshape(result, (P * LW,)),
                    tl.reshape(row, (P * LW,)),
                    tl.reshape(inside, (P * LW,)),
                    columns,
                    mask_row,
                    mask_col,
                    P * LW,
                    W,
                    SPAN,
                )
    if records_ptr is not None:
        record(records_ptr, tl.program_id(0), tl.num_programs(0), own_pivot, own_count, own_mean, own_m2, 1)


@triton.jit(do_not_specialize=["rows", "chunks", "ddof"])
def finish_kernel(
    scores_ptr,  # [N]: float64 as group_kernel leaves them for whitening, or advantages
    records_ptr,  # [4, chunks, 1]: statistics of the scores, or None
    mask_ptr,  # [N, T] or None
    out_ptr,  # [N] or [N, T]
    rows,
    chunks,
    columns,
    mask_row,
    mask_col,
    eps: tl.float64,
    ddof,
    EPS_TO: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SPAN: tl.constexpr,
):
    """A_i = (s_i - mean(s)) / (std(s) + eps) over the batch if records_ptr; to rows, or to tokens if W."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    inside = row < rows
    if records_ptr is None:
        result = tl.load(scores_ptr + row, mask=inside, other=0.0)
    else:
        pivot, count, mean, m2 = merge(records_ptr, chunks, C, 1)
        score = tl.load(scores_ptr + row, mask=inside, other=float("nan"))
        variance = variance_of(count, m2, ddof)
        advantage = _scaled((score - pivot) - mean, variance, eps, 0.0, EPS_TO, CONSTANT_ZERO) + mean * 0.0
        result = _result(advantage, score == score, out_ptr.dtype.element_ty)
    if W == 0:
        tl.store(out_ptr + row, result, mask=inside)
    else:
        _store_tokens(out_ptr, mask_ptr, result, row, inside, columns, mask_row, mask_col, R, W, SPAN)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _chunk_limit(width: int) -> int:
    """Chunks of the batch, so that one program can merge the records of all objectives."""
    return min(CHUNKS, TILE // width)


def _chunk_statistics(
    rewards: Tensor, weights: Tensor | None, strides: tuple[int, ...], summed: bool, nan: int
) -> Tensor:
    rows, objectives = rewards.shape
    k = _power_of_two(objectives)
    members = TILE // k
    chunk_rows = max(members, triton.cdiv(rows, _chunk_limit(1 if summed else k)))
    chunks = triton.cdiv(rows, chunk_rows)
    records = torch.empty((4, chunks, 1 if summed else k), dtype=torch.float64, device=rewards.device)
    chunk_statistics_kernel[(chunks,)](
        rewards,
        weights,
        records,
        rows,
        objectives,
        chunk_rows,
        *strides,
        SUMMED=summed,
        NAN=nan,
        L=members,
        K=k,
        **OPTIONS,
    )
    return records


def _sums(rewards: Tensor, weights: Tensor | None, strides: tuple[int, ...], nan: int) -> Tensor:
    rows, objectives = rewards.shape
    scores = torch.empty((rows, 1), dtype=torch.float64, device=rewards.device)
    tile = {"R": 4, "W": TILE // 4}
    sum_kernel[(triton.cdiv(rows, 4),)](
        rewards, weights, scores, rows, objectives, *strides, NAN=nan, **tile, **OPTIONS
    )
    return scores


def _token_counts(mask: Tensor) -> Tensor:
    rows, columns = mask.shape
    counts = torch.empty(rows, dtype=torch.int64, device=mask.device)
    tile = ROWS * COLUMNS
    count_kernel[(triton.cdiv(rows, 4),)](mask, counts, rows, columns, *mask.stride(), R=4, W=tile // 4, **OPTIONS)
    return counts


def group_advantages(
    rewards: Tensor,
    group_size: int,
    group_ids: Tensor | None = None,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *rules: Any,
    **more_rules: Any,
) -> Tensor:
    """Implements ``morlfast::group_advantages`` for CUDA: rewards (N,) or (N, M) -> (N,), or (N, T) of a mask."""
    out = rewards.new_empty(rewards.shape[:1] if mask is None else mask.shape)
    inputs = (group_ids, offsets, weights, lengths, mask)
    group_advantages_out(rewards, out, group_size, *inputs, *rules, **more_rules)
    return out


def group_advantages_out(
    rewards: Tensor,
    out: Tensor,
    group_size: int,
    group_ids: Tensor | None = None,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    aggregate: int = 0,
    baseline: int = 1,
    scale: int = 1,
    eps: float = 1e-4,
    eps_to: int = 0,
    ddof: int = 1,
    singleton: int = 0,
    zero_variance: int = 0,
    least_std: float = 0.0,
    nan: int = 0,
    whiten: int = 0,
    whiten_eps: float = 0.0,
    whiten_eps_to: int = 0,
    whiten_ddof: int = 1,
) -> None:
    """Implements ``morlfast::group_advantages_out`` for CUDA. What would have to wait for the device is not looked
    for: singleton "raise" gives NaN, nan "raise" counts as "propagate", the first and last of offsets as 0 and N."""
    require(rewards.dim() in (1, 2), f"rewards: expected shape (N,) or (N, M), got {tuple(rewards.shape)}")
    matrix = rewards if rewards.dim() == 2 else rewards.unsqueeze(1)
    rows, objectives = matrix.shape
    if offsets is not None:
        fits = offsets.dim() == 1 and offsets.numel() > (rows > 0) and offsets.dtype == torch.int64
        require(fits and offsets.is_contiguous(), f"offsets: expected int64 (G + 1,), got {tuple(offsets.shape)}")
    else:
        require_groups(rows, group_size, group_ids)
    if weights is not None:
        fits = weights.shape in ((objectives,), (rows, objectives))
        require(fits, f"weights: expected ({objectives},) or ({rows}, {objectives}), got {tuple(weights.shape)}")
    if lengths is not None:
        fits = lengths.shape == (rows,) and lengths.dtype == torch.int64 and lengths.is_contiguous()
        require(fits, f"lengths: expected contiguous int64 ({rows},), got {tuple(lengths.shape)}")
    if mask is not None:
        fits = mask.dim() == 2 and mask.shape[0] == rows
        require(fits, f"mask: expected shape ({rows}, T), got {tuple(mask.shape)}")
    fits = out.shape == (rewards.shape[:1] if mask is None else mask.shape) and out.dtype == rewards.dtype
    require(
        fits and out.is_contiguous(),
        "out: expected a contiguous tensor of the rewards' dtype, one advantage for "
        f"each rollout or token, got {tuple(out.shape)}",
    )
    summed = aggregate != NORMALIZE_THEN_SUM.value
    if objectives > TILE and not summed:
        raise ValueError(f"rewards: expected at most {TILE} objectives on CUDA to normalize each, got {objectives}")
    nan = NAN_POISONS.value if nan == NAN_RAISE.value else nan
    by_tokens = whiten == WHITEN_TOKENS.value
    counting = by_tokens or baseline == TOKEN_MEAN.value
    require(
        not counting or lengths is not None or mask is not None,
        "lengths: expected the tokens of each rollout, or a mask",
    )
    if out.numel() == 0:
        return
    if objectives == 0:
        out.zero_()
        return

    weight_strides = (0, 0)
    if weights is not None:
        weight_strides = (0, weights.stride(0)) if weights.dim() == 1 else (weights.stride(0), weights.stride(1))
    strides = (*matrix.stride(), *weight_strides)
    columns, mask_strides = (0, (0, 0)) if mask is None else (mask.shape[1], mask.stride())
    tile_columns = COLUMNS * 4 // max(4, out.element_size())
    eps, least_std, whiten_eps = float(eps), float(least_std), float(whiten_eps)
    with torch.cuda.device_of(rewards):
        if counting and lengths is None and mask is not None:
            lengths = _token_counts(mask)
        if summed and objectives > GROUP_TILE:
            matrix, weights, nan = _sums(matrix, weights, strides, nan), None, NAN_SKIP.value
            objectives, strides = 1, (1, 1, 0, 0)
        k = _power_of_two(objectives)
        batch = None
        if baseline == BATCH_MEAN.value or scale == BATCH_STD.value:
            batch = _chunk_statistics(matrix, weights, strides, summed, nan)

        order = bounds = None
        elements = max(GROUP_TILE, k)
        slots, members = rows, min(UNKNOWN_GROUP, elements // k)
        if group_ids is not None:
            order, _, bounds = group_bounds(group_ids)
        elif offsets is not None:
            bounds, slots = offsets, offsets.numel() - 1
        else:
            slots, members = rows // group_size, min(_power_of_two(group_size), elements // k)
        groups, written = elements // (members * k), members
        parts, part_rows = 1, rows
        fused = mask is not None and whiten == 0 and bounds is None and group_size * k <= RECOMPUTED
        if fused:
            tile_rows = min(ROWS, elements // k)
            written = min(members, tile_rows)
            groups = tile_rows // written
            parts, part_rows = triton.cdiv(group_size, written), written
        blocks = triton.cdiv(slots, groups) * parts

        records = None
        target = out
        programs = blocks
        if whiten:
            programs = min(blocks, RECORDS)
            records = torch.empty((4, programs, 1), dtype=torch.float64, device=rewards.device)
            target = torch.empty(rows, dtype=torch.float64, device=rewards.device)
        elif mask is not None and not fused:
            target = rewards.new_empty(rows)
        group_kernel[(programs, triton.cdiv(columns, SPAN) if fused else 1)](
            matrix,
            weights,
            order,
            bounds,
            lengths if counting else None,
            batch,
            mask if fused else None,
            target,
            records,
            rows,
            slots,
            blocks,
            group_size,
            parts,
            part_rows,
            objectives,
            0 if batch is None else batch.shape[1],
            columns,
            *strides,
            *mask_strides,
            eps,
            least_std,
            ddof,
            SUMMED=summed,
            OF_GROUP=baseline not in (NO_BASELINE.value, BATCH_MEAN.value)
            or scale in (GROUP_STD.value, OTHERS_STD.value),
            BASELINE=baseline,
            SCALE=scale,
            EPS_TO=eps_to,
            SINGLETON=singleton,
            ZERO_VARIANCE=zero_variance,
            NAN=nan,
            BY_TOKEN=by_tokens,
            P=groups,
            L=members,
            LW=written,
            K=k,
            C=_chunk_limit(1 if summed else k),
            W=tile_columns if fused else 0,
            SPAN=SPAN,
            **group_options(elements, out.element_size() if fused else 0),
        )
        if target is out:
            return
        tile_rows = TILE if mask is None else ROWS
        finish_kernel[(triton.cdiv(rows, tile_rows), max(1, triton.cdiv(columns, SPAN)))](
            target,
            records,
            mask,
            out,
            rows,
            programs,
            columns,
            *mask_strides,
            whiten_eps,
            whiten_ddof,
            EPS_TO=whiten_eps_to,
            R=tile_rows,
            C=RECORDS,
            W=0 if mask is None else tile_columns,
            SPAN=SPAN,
            **OPTIONS,
        )


def group_rows(rows: Tensor) -> Tensor:
    """Implements ``morlfast::group_rows`` for CUDA: (N, S) integers -> (N,), the first row that is equal. Waits for
    the device: the number of different rows is the shape of an intermediate result."""
    require(rows.dim() == 2, f"rows: expected shape (N, S), got {tuple(rows.shape)}")
    count = rows.shape[0]
    numbers = torch.arange(count, device=rows.device)
    if rows.numel() == 0:
        return torch.zeros_like(numbers)
    _, distinct = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full_like(numbers, count).scatter_reduce_(0, distinct, numbers, "amin")
    return first[distinct]
