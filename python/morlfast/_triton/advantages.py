"""Group-relative advantages.

Floor: rewards and weights read once, advantages written once, N * (M * (reward + weight bytes) + result
bytes); at the sizes of RL batches this is microseconds, so launches count. Launches:

- grpo, dr_grpo, rloo: 1, or 2 with scale "batch" (chunk statistics, then rows);
- gdpo: 3, or 4 with scale "batch" (the scores' own batch statistics need a pass over all groups);
- group_ids adds one stable sort of N keys, a cumulative sum and a search.

Statistics are float64: a few operations a reward, which even GPUs with one float64 unit in 64 hide behind the
launch. Values are shifted by a pivot (the first scored value) and tiles are merged pairwise (Chan, Golub,
LeVeque 1983), so equal values leave mean, deviation and centred values exactly zero. Multiply and add are not
fused: a fused w * r - pivot would not be zero for r = pivot / w.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import group_bounds, require, require_groups

# Elements of one tile of groups x members x objectives: 4 float64 a thread of 4 warps.
TILE = 512
# Members loaded at a time where group sizes are unknown (group_ids).
UNKNOWN_GROUP = 128
CHUNKS = 128

RLOO, GDPO = 1, 2
BATCH_SCALE = 2
# Named a limit, ptxas no longer spills a few registers to run more programs at once.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 168}


@triton.jit
def _members(slot, slots, bounds_ptr, group_size):
    """First and one-past-last sorted position of each group, [P]; empty past the last slot."""
    slot = slot.to(tl.int64)
    exists = slot < slots
    if bounds_ptr is None:
        start = slot * group_size
        stop = tl.where(exists, start + group_size, start)
    else:
        start = tl.load(bounds_ptr + slot, mask=exists, other=0)
        stop = tl.load(bounds_ptr + slot + 1, mask=exists, other=0)
    return start, stop


@triton.jit
def _rows(position, inside, order_ptr):
    return position if order_ptr is None else tl.load(order_ptr + position, mask=inside, other=0)


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
    K: tl.constexpr,
):
    """Rewards and weights [P, L, K] in float64, and which rewards are scored (present and not NaN)."""
    k = tl.arange(0, K)[None, None, :].to(tl.int64)
    row = row[:, :, None].to(tl.int64)
    present = inside[:, :, None] & (k < objectives)
    reward = tl.load(rewards_ptr + row * reward_row + k * reward_col, mask=present, other=0.0)
    if rewards_ptr.dtype.element_ty != tl.float64:
        reward = reward.to(tl.float32)
    reward = reward.to(tl.float64)
    scored = present & (reward == reward)
    if weights_ptr is None:
        weight = tl.full(reward.shape, 1.0, tl.float64)
    else:
        weight = tl.load(weights_ptr + row * weight_row + k * weight_col, mask=present, other=0.0)
        if weights_ptr.dtype.element_ty != tl.float64:
            weight = weight.to(tl.float32)
        weight = weight.to(tl.float64)
    return reward, weight, scored


@triton.jit
def _weighted_sum(reward, weight, scored):
    """s_i = sum over scored objectives of w_ik r_ik, and whether any was scored; [P, L, 1] each."""
    score = tl.sum(tl.where(scored, weight * reward, 0.0), axis=2)
    any_scored = tl.max(scored.to(tl.int32), axis=2) > 0
    return score[:, :, None], any_scored[:, :, None]


@triton.jit
def _fold(value, scored, pivot, count, mean, m2, L: tl.constexpr):
    """Adds a tile [P, L, K] to the statistics [P, K] of (value - pivot): count, mean, sum of squared
    deviations."""
    member = tl.arange(0, L)[None, :, None]
    first = tl.min(tl.where(scored, member, L), axis=1)
    head = tl.sum(tl.where(member == first[:, None, :], value, 0.0), axis=1)
    pivot = tl.where(count > 0, pivot, head)

    tile_count = tl.sum(scored.to(tl.float64), axis=1)
    shifted = tl.where(scored, value - pivot[:, None, :], 0.0)
    tile_mean = tl.sum(shifted, axis=1) / tl.maximum(tile_count, 1.0)
    deviation = tl.where(scored, shifted - tile_mean[:, None, :], 0.0)
    tile_m2 = tl.sum(deviation * deviation, axis=1)

    total = tl.maximum(count + tile_count, 1.0)
    delta = tile_mean - mean
    m2 += tile_m2 + delta * (delta * (count * tile_count / total))  # delta^2 may overflow where count is 0
    mean += delta * (tile_count / total)
    return pivot, count + tile_count, mean, m2


@triton.jit
def _merge(records_ptr, chunks, C: tl.constexpr, K: tl.constexpr):
    """Statistics [K] of the whole batch from its chunks' records, float64 [4, chunks, K]."""
    chunk = tl.arange(0, C)[:, None]
    at = records_ptr + chunk * K + tl.arange(0, K)[None, :]
    present = (chunk < chunks) & (tl.arange(0, K)[None, :] < K)
    plane = chunks * K
    pivots = tl.load(at, mask=present, other=0.0)
    counts = tl.load(at + plane, mask=present, other=0.0)
    means = tl.load(at + 2 * plane, mask=present, other=0.0)
    m2s = tl.load(at + 3 * plane, mask=present, other=0.0)

    first = tl.min(tl.where(counts > 0, chunk, C), axis=0)
    pivot = tl.sum(tl.where(chunk == first[None, :], pivots, 0.0), axis=0)
    count = tl.sum(counts, axis=0)
    offset = tl.where(counts > 0, (pivots - pivot[None, :]) + means, 0.0)
    mean = tl.sum(counts * offset, axis=0) / tl.maximum(count, 1.0)
    deviation = tl.where(counts > 0, offset - mean[None, :], 0.0)
    m2 = tl.sum(m2s + counts * deviation * deviation, axis=0)
    return pivot, count, mean, m2


@triton.jit
def _finite_or_nan(mean):
    return mean + mean * 0.0


@triton.jit
def _std(count, mean, m2, ddof):
    """Standard deviation, 0 where count <= ddof; NaN where a value was not finite."""
    freedom = count - ddof
    return tl.where(freedom > 0, tl.sqrt(m2 / tl.maximum(freedom, 1.0)), mean * 0.0)


@triton.jit
def _divide(centred, divisor):
    return tl.where((divisor == 0) & (centred == centred), 0.0, centred / divisor)


@triton.jit
def _store(out_ptr, value, mask):
    if out_ptr.dtype.element_ty == tl.float64:
        tl.store(out_ptr, value, mask=mask)
    else:
        tl.store(out_ptr, value.to(tl.float32).to(out_ptr.dtype.element_ty), mask=mask)


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
    L: tl.constexpr,
    K: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    chunks = tl.num_programs(0)
    WIDTH: tl.constexpr = 1 if SUMMED else K
    pivot = tl.zeros([1, WIDTH], tl.float64)
    count = tl.zeros([1, WIDTH], tl.float64)
    mean = tl.zeros([1, WIDTH], tl.float64)
    m2 = tl.zeros([1, WIDTH], tl.float64)
    start = chunk * chunk_rows
    stop = tl.minimum(start + chunk_rows, rows)
    for at in range(start, stop, L):
        row = at + tl.arange(0, L)[None, :].to(tl.int64)
        reward, weight, scored = _load(
            rewards_ptr,
            weights_ptr,
            row,
            row < stop,
            objectives,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            K,
        )
        if SUMMED:
            score, any_scored = _weighted_sum(reward, weight, scored)
            pivot, count, mean, m2 = _fold(score, any_scored, pivot, count, mean, m2, L)
        else:
            pivot, count, mean, m2 = _fold(reward, scored, pivot, count, mean, m2, L)
    at_record = records_ptr + chunk * WIDTH + tl.arange(0, WIDTH)[None, :]
    plane = chunks * WIDTH
    tl.store(at_record, pivot)
    tl.store(at_record + plane, count)
    tl.store(at_record + 2 * plane, mean)
    tl.store(at_record + 3 * plane, m2)


@triton.jit(
    do_not_specialize=[
        "slots",
        "group_size",
        "objectives",
        "chunks",
        "reward_row",
        "reward_col",
        "weight_row",
        "weight_col",
        "ddof",
    ]
)
def baseline_kernel(
    rewards_ptr,  # [N, M]
    weights_ptr,  # [N, M] or None
    order_ptr,  # [N] rows by group, or None: groups are contiguous
    bounds_ptr,  # [N + 1] positions in order, or None
    records_ptr,  # [4, chunks, 1] or None
    out_ptr,  # [N]
    slots,
    group_size,
    objectives,
    chunks,
    reward_row,
    reward_col,
    weight_row,
    weight_col,
    eps: tl.float64,
    ddof,
    LEAVE_ONE_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    P: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
):
    """A_i = (s_i - b_i) / (sigma + eps) for P groups."""
    slot = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    start, stop = _members(slot, slots, bounds_ptr, group_size)
    longest = tl.max(stop - start)
    pivot = tl.zeros([P, 1], tl.float64)
    count = tl.zeros([P, 1], tl.float64)
    mean = tl.zeros([P, 1], tl.float64)
    m2 = tl.zeros([P, 1], tl.float64)
    for at in range(0, longest, L):
        position = start[:, None] + at + tl.arange(0, L)[None, :]
        inside = position < stop[:, None]
        row = _rows(position, inside, order_ptr)
        reward, weight, scored = _load(
            rewards_ptr,
            weights_ptr,
            row,
            inside,
            objectives,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            K,
        )
        score, any_scored = _weighted_sum(reward, weight, scored)
        pivot, count, mean, m2 = _fold(score, any_scored, pivot, count, mean, m2, L)
    mean = _finite_or_nan(mean)

    # Of the batch [1], of each group [P, 1]; 1 / 1 leaves A_i = c_i.
    if SCALE == 2:
        _, batch_count, batch_mean, batch_m2 = _merge(records_ptr, chunks, C, 1)
        divisor = _std(batch_count, batch_mean, batch_m2, ddof)[None, :] + eps
    elif SCALE == 1:
        divisor = _std(count, mean, m2, ddof) + eps
    else:
        divisor = tl.full([1, 1], 1.0, tl.float64)
    if LEAVE_ONE_OUT:
        stretch = tl.where(count > 1, count / tl.maximum(count - 1, 1.0), 0.0)
    else:
        stretch = tl.full([1, 1], 1.0, tl.float64)

    for at in range(0, longest, L):
        position = start[:, None] + at + tl.arange(0, L)[None, :]
        inside = position < stop[:, None]
        row = _rows(position, inside, order_ptr)
        reward, weight, scored = _load(
            rewards_ptr,
            weights_ptr,
            row,
            inside,
            objectives,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            K,
        )
        score, any_scored = _weighted_sum(reward, weight, scored)
        centred = ((score - pivot[:, None, :]) - mean[:, None, :]) * stretch[:, None, :]
        advantage = tl.where(any_scored, _divide(centred, divisor[:, None, :]), 0.0)
        _store(out_ptr + row[:, :, None], advantage, inside[:, :, None])


@triton.jit(
    do_not_specialize=[
        "slots",
        "group_size",
        "objectives",
        "chunks",
        "reward_row",
        "reward_col",
        "weight_row",
        "weight_col",
        "ddof",
    ]
)
def decoupled_kernel(
    rewards_ptr,  # [N, M]
    weights_ptr,  # [N, M] or None
    order_ptr,  # [N] or None
    bounds_ptr,  # [N + 1] or None
    records_ptr,  # [4, chunks, K] or None
    scores_ptr,  # [N] float64
    slots,
    group_size,
    objectives,
    chunks,
    reward_row,
    reward_col,
    weight_row,
    weight_col,
    eps: tl.float64,
    ddof,
    SCALE: tl.constexpr,
    P: tl.constexpr,
    L: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
):
    """gdpo: s_i = sum_k w_ik (r_ik - mean_g r_k) / (sigma_k + eps) for P groups.

    The scores feed the other kernels as rewards: an unscored row is NaN there, so a score that is NaN is
    written as +inf.
    """
    slot = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    start, stop = _members(slot, slots, bounds_ptr, group_size)
    longest = tl.max(stop - start)
    pivot = tl.zeros([P, K], tl.float64)
    count = tl.zeros([P, K], tl.float64)
    mean = tl.zeros([P, K], tl.float64)
    m2 = tl.zeros([P, K], tl.float64)
    for at in range(0, longest, L):
        position = start[:, None] + at + tl.arange(0, L)[None, :]
        inside = position < stop[:, None]
        row = _rows(position, inside, order_ptr)
        reward, weight, scored = _load(
            rewards_ptr,
            weights_ptr,
            row,
            inside,
            objectives,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            K,
        )
        pivot, count, mean, m2 = _fold(reward, scored, pivot, count, mean, m2, L)
    mean = _finite_or_nan(mean)

    if SCALE == 2:
        _, batch_count, batch_mean, batch_m2 = _merge(records_ptr, chunks, C, K)
        divisor = _std(batch_count, batch_mean, batch_m2, ddof)[None, :] + eps
    elif SCALE == 1:
        divisor = _std(count, mean, m2, ddof) + eps
    else:
        divisor = tl.full([1, 1], 1.0, tl.float64)

    for at in range(0, longest, L):
        position = start[:, None] + at + tl.arange(0, L)[None, :]
        inside = position < stop[:, None]
        row = _rows(position, inside, order_ptr)
        reward, weight, scored = _load(
            rewards_ptr,
            weights_ptr,
            row,
            inside,
            objectives,
            reward_row,
            reward_col,
            weight_row,
            weight_col,
            K,
        )
        standard = _divide((reward - pivot[:, None, :]) - mean[:, None, :], divisor[:, None, :])
        score, any_scored = _weighted_sum(standard, weight, scored)
        score = tl.where(score == score, score, float("inf"))
        score = tl.where(any_scored, score, float("nan"))
        tl.store(scores_ptr + row[:, :, None], score, mask=inside[:, :, None])


@triton.jit(do_not_specialize=["rows", "chunks", "ddof"])
def standardize_kernel(
    scores_ptr,  # [N] float64, NaN where not scored
    records_ptr,  # [4, chunks, 1]
    out_ptr,  # [N]
    rows,
    chunks,
    eps: tl.float64,
    ddof,
    L: tl.constexpr,
    C: tl.constexpr,
):
    """A_i = (s_i - mean(s)) / (std(s) + eps) over the batch."""
    pivot, count, mean, m2 = _merge(records_ptr, chunks, C, 1)
    row = tl.program_id(0).to(tl.int64) * L + tl.arange(0, L)
    score = tl.load(scores_ptr + row, mask=row < rows, other=float("nan"))
    centred = (score - pivot) - _finite_or_nan(mean)
    advantage = _divide(centred, _std(count, mean, m2, ddof) + eps)
    _store(out_ptr + row, tl.where(score == score, advantage, 0.0), row < rows)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _chunk_statistics(rewards: Tensor, weights: Tensor | None, weight_strides: tuple[int, int], summed: bool) -> Tensor:
    rows, objectives = rewards.shape
    k = _power_of_two(objectives)
    chunk_limit = _chunk_limit(1 if summed else k)
    members = TILE // k
    chunk_rows = max(members, triton.cdiv(rows, chunk_limit))
    chunks = triton.cdiv(rows, chunk_rows)
    records = torch.empty((4, chunks, 1 if summed else k), dtype=torch.float64, device=rewards.device)
    chunk_statistics_kernel[(chunks,)](
        rewards,
        weights,
        records,
        rows,
        objectives,
        chunk_rows,
        *rewards.stride(),
        *weight_strides,
        SUMMED=summed,
        L=members,
        K=k,
        **OPTIONS,
    )
    return records


def _chunk_limit(width: int) -> int:
    """Chunks of the batch, so that one program can merge the records of all objectives."""
    return min(CHUNKS, TILE // width)


def group_advantages(
    rewards: Tensor,
    group_size: int,
    group_ids: Tensor | None = None,
    weights: Tensor | None = None,
    method: int = 0,
    scale: int = 1,
    eps: float = 1e-4,
    ddof: int = 1,
) -> Tensor:
    """Implements ``morlfast::group_advantages`` for CUDA: rewards (N,) or (N, M) -> (N,)."""
    require(rewards.dim() in (1, 2), f"rewards: expected shape (N,) or (N, M), got {tuple(rewards.shape)}")
    matrix = rewards if rewards.dim() == 2 else rewards.unsqueeze(1)
    rows, objectives = matrix.shape
    require_groups(rows, group_size, group_ids)
    if weights is not None:
        fits = weights.shape in ((objectives,), (rows, objectives))
        require(fits, f"weights: expected ({objectives},) or ({rows}, {objectives}), got {tuple(weights.shape)}")
    if objectives > TILE:
        raise ValueError(f"rewards: expected at most {TILE} objectives on CUDA, got {objectives}")
    out = torch.empty(rows, dtype=rewards.dtype, device=rewards.device)
    if rows == 0:
        return out
    if objectives == 0:
        return out.zero_()
    weight_strides = (0, 0)
    if weights is not None:
        weight_strides = (0, weights.stride(0)) if weights.dim() == 1 else (weights.stride(0), weights.stride(1))
    k = _power_of_two(objectives)
    eps = float(eps)
    with torch.cuda.device_of(rewards):
        if group_ids is None:
            order = bounds = None
            slots = rows // group_size
            members = min(_power_of_two(group_size), TILE // k)
        else:
            order, _, bounds = group_bounds(group_ids)
            slots = rows
            members = min(UNKNOWN_GROUP, TILE // k)
        groups = TILE // (members * k)
        grid = (triton.cdiv(slots, groups),)
        strides = (*matrix.stride(), *weight_strides)
        if method != GDPO:
            records = _chunk_statistics(matrix, weights, weight_strides, True) if scale == BATCH_SCALE else None
            baseline_kernel[grid](
                matrix,
                weights,
                order,
                bounds,
                records,
                out,
                slots,
                group_size,
                objectives,
                0 if records is None else records.shape[1],
                *strides,
                eps,
                ddof,
                LEAVE_ONE_OUT=method == RLOO,
                SCALE=scale,
                P=groups,
                L=members,
                K=k,
                C=_chunk_limit(1),
                **OPTIONS,
            )
            return out
        records = _chunk_statistics(matrix, weights, weight_strides, False) if scale == BATCH_SCALE else None
        scores = torch.empty((rows, 1), dtype=torch.float64, device=rewards.device)
        decoupled_kernel[grid](
            matrix,
            weights,
            order,
            bounds,
            records,
            scores,
            slots,
            group_size,
            objectives,
            0 if records is None else records.shape[1],
            *strides,
            eps,
            ddof,
            SCALE=scale,
            P=groups,
            L=members,
            K=k,
            C=_chunk_limit(k),
            **OPTIONS,
        )
        records = _chunk_statistics(scores, None, (0, 0), True)
        standardize_kernel[(triton.cdiv(rows, TILE),)](
            scores,
            records,
            out,
            rows,
            records.shape[1],
            eps,
            ddof,
            L=TILE,
            C=_chunk_limit(1),
            **OPTIONS,
        )
        return out
