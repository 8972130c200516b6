"""Which rollouts of each group to train on.

Floor: rewards read once, a byte a row written: microseconds, so launches count. Contiguous groups of at most
GROUP_LIMIT rows, but for strata: 1 launch, several groups a program. Rewards become unsigned integers of their order
and are sorted in registers; what a split selects is then a matter of prefix sums, and the mask one of two thresholds:
rows above the upper one, rows below the lower one, and the first few rows equal to either.

Larger groups, offsets, group_ids and strata: a stable sort by value and, unless groups are contiguous and of one size,
one by group, a launch with one program a group that walks over its k largest and k smallest rewards, and cumulative
sums and searches over the batch; O(N) memory. How many groups there are is never learned on the host.

Sums are float64, in an order that does not depend on the device's timing but is not that of the CPU: splits whose
objectives differ by less than their rounding may be told apart differently.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import group_bounds, require, require_groups
from morlfast._triton.tokens import ordered, value_of

GROUP_LIMIT = 512
TILE = 256
# Rewards that a program of split_kernel walks over at a time.
CHUNK = 512

MAX_VARIANCE, TOP, BOTTOM, STRATIFIED = (tl.constexpr(code) for code in range(4))

OPTIONS = {"num_stages": 1, "enable_fp_fusion": False, "maxnreg": 168}
SPLIT_OPTIONS = {**OPTIONS, "num_warps": 4}


@triton.jit
def _finite(value):
    """Infinities as the largest float64 of their sign."""
    largest = tl.full([], 1.7976931348623157e308, tl.float64)
    return tl.minimum(tl.maximum(value, -largest), largest)


@triton.jit
def _midpoint_and_scale(low, high):
    """(low + high) / 2, and one over the power of two at or below high - midpoint: no difference from the midpoint
    overflows, and a power of two rounds nothing."""
    midpoint = low * 0.5 + high * 0.5
    half = (high - midpoint).to(tl.int64, bitcast=True)
    unit = (half & 0x7FF0000000000000).to(tl.float64, bitcast=True)
    return midpoint, 1.0 / tl.maximum(unit, 2.2250738585072014e-308)


@triton.jit
def _objective(size, total, squares):
    """size**2 times the variance of `size` rewards."""
    return size.to(tl.float64) * squares - total * total


@triton.jit
def _best_split(ascending, scored, size, first, rows, sums_ptr):
    """How many of the smallest to select, [P, 1], from sorted keys [P, L] of which the first `scored` are rewards."""
    lane = tl.arange(0, ascending.shape[1])[None, :]
    present = lane < scored
    value = tl.where(present, _finite(value_of(ascending).to(tl.float64)), 0.0)
    low = tl.sum(tl.where(lane == 0, value, 0.0), axis=1)[:, None]
    high = tl.sum(tl.where(lane == scored - 1, value, 0.0), axis=1)[:, None]
    midpoint, scale = _midpoint_and_scale(low, high)
    value = (tl.where(present, value, midpoint) - midpoint) * scale
    square = value * value
    # Sums of the largest are needed in another lane than they come about in.
    tl.store(sums_ptr + first + lane, tl.cumsum(value, axis=1, reverse=True), mask=present)
    tl.store(sums_ptr + rows + first + lane, tl.cumsum(square, axis=1, reverse=True), mask=present)
    tl.debug_barrier()
    largest = sums_ptr + first + scored - size
    total = tl.load(largest, mask=size > 0, other=0.0)
    squares = tl.load(largest + rows, mask=size > 0, other=0.0)
    of_largest = _objective(size, total, squares)
    # Lane j - 1 stands for the j smallest and the size - j largest.
    count = lane + 1
    total = tl.cumsum(value, axis=1) + tl.load(largest + count, mask=count < size, other=0.0)
    squares = tl.cumsum(square, axis=1) + tl.load(largest + rows + count, mask=count < size, other=0.0)
    objective = tl.where(count <= size, _objective(size, total, squares), float("-inf"))
    best = tl.max(objective, axis=1)[:, None]
    smallest = tl.max(tl.where(objective == best, count, 0), axis=1)[:, None]
    return tl.where(best > of_largest, smallest, 0)


@triton.jit(do_not_specialize=["groups", "group_size", "k", "reward_row"])
def group_kernel(
    rewards_ptr,  # [N]
    sums_ptr,  # [2, N] float64, scratch: sums of the largest and of their squares; or None
    out_ptr,  # [N]
    groups,
    group_size,
    k,
    reward_row,
    METHOD: tl.constexpr,
    WIDE: tl.constexpr,
    P: tl.constexpr,
    L: tl.constexpr,
):
    """P contiguous groups of at most L rows."""
    slot = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)[:, None]
    lane = tl.arange(0, L)[None, :]
    inside = (slot < groups) & (lane < group_size)
    first = slot * group_size
    row = first + lane
    reward = tl.load(rewards_ptr + row * reward_row, mask=inside, other=0.0)
    reward = reward.to(tl.float64) if WIDE else reward.to(tl.float32)
    live = inside & (reward == reward)
    key = ordered(reward)
    ones = tl.zeros(key.shape, key.dtype)
    ones = (ones | 1) << (63 if WIDE else 31)
    ones = ones | (ones - 1)
    ascending = tl.sort(tl.where(live, key, ones), dim=1)

    scored = tl.sum(live.to(tl.int32), axis=1)[:, None]
    size = tl.minimum(scored, k)
    if METHOD == MAX_VARIANCE:
        smallest = _best_split(ascending, scored, size, first, groups * group_size, sums_ptr)
    elif METHOD == TOP:
        smallest = tl.zeros_like(size)
    else:
        smallest = size
    largest = size - smallest

    none = tl.zeros(key.shape, key.dtype)  # below every key
    lower = tl.max(tl.where(lane == smallest - 1, ascending, none), axis=1)[:, None]
    upper = tl.max(tl.where((lane == scored - largest) & (largest > 0), ascending, none), axis=1)[:, None]
    is_above = live & (key > upper) & (largest > 0)
    is_below = live & (key < lower)
    at_upper = (live & (key == upper)).to(tl.int32)
    at_lower = (live & (key == lower)).to(tl.int32)
    from_upper = largest - tl.sum(is_above.to(tl.int32), axis=1)[:, None]
    from_lower = smallest - tl.sum(is_below.to(tl.int32), axis=1)[:, None]
    either = from_upper + from_lower
    from_upper, from_lower = tl.where(upper == lower, either, from_upper), tl.where(upper == lower, either, from_lower)
    selected = is_above | is_below
    selected |= (at_upper > 0) & (tl.cumsum(at_upper, axis=1) <= from_upper)
    selected |= (at_lower > 0) & (tl.cumsum(at_lower, axis=1) <= from_lower)
    tl.store(out_ptr + row, selected, mask=inside)


@triton.jit(do_not_specialize=["rows", "k"])
def split_kernel(
    values_ptr,  # [N] float64, ascending in each group, NaN last
    bounds_ptr,  # [groups + 1]
    scored_ptr,  # [groups] how many are not NaN
    sums_ptr,  # [2, N] float64, scratch: sums of the smallest and of their squares
    smallest_ptr,  # [groups] how many of the smallest to select
    rows,
    k,
    C: tl.constexpr,
):
    """PODS's split of one group."""
    group = tl.program_id(0).to(tl.int64)
    start = tl.load(bounds_ptr + group)
    scored = tl.load(scored_ptr + group)
    size = tl.minimum(scored, k)
    low = _finite(tl.load(values_ptr + start, mask=scored > 0, other=0.0))
    high = _finite(tl.load(values_ptr + start + scored - 1, mask=scored > 0, other=0.0))
    midpoint, scale = _midpoint_and_scale(low, high)
    lane = tl.arange(0, C)
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for at in range(0, size, C):
        inside = at + lane < size
        place = start + at + lane
        value = tl.load(values_ptr + place, mask=inside, other=0.0)
        value = (tl.where(inside, _finite(value), midpoint) - midpoint) * scale
        tl.store(sums_ptr + place, total + tl.cumsum(value, axis=0), mask=inside)
        tl.store(sums_ptr + rows + place, squares + tl.cumsum(value * value, axis=0), mask=inside)
        total += tl.sum(value, axis=0)
        squares += tl.sum(value * value, axis=0)
    tl.debug_barrier()

    best = _objective(size, total, squares)
    largest = tl.zeros([], tl.int64)
    last = best  # of the split into the `size` largest and nothing else
    total = tl.zeros([], tl.float64)
    squares = tl.zeros([], tl.float64)
    for at in range(0, size, C):
        inside = at + lane < size
        value = tl.load(values_ptr + start + scored - 1 - at - lane, mask=inside, other=0.0)
        value = (tl.where(inside, _finite(value), midpoint) - midpoint) * scale
        high_sum = total + tl.cumsum(value, axis=0)
        high_squares = squares + tl.cumsum(value * value, axis=0)
        # Lane i - 1 stands for the i largest and the size - i smallest.
        count = at + lane + 1
        below = start + size - count - 1
        low_sum = tl.load(sums_ptr + below, mask=count < size, other=0.0)
        low_squares = tl.load(sums_ptr + rows + below, mask=count < size, other=0.0)
        objective = _objective(size, low_sum + high_sum, low_squares + high_squares)
        objective = tl.where(inside, objective, float("-inf"))
        top = tl.max(objective, axis=0)
        first = tl.min(tl.where(objective == top, count, size), axis=0)
        largest = tl.where(top > best, first, largest)
        best = tl.maximum(best, top)
        last = tl.max(tl.where(count == size, objective, float("-inf")), axis=0)
        total += tl.sum(value, axis=0)
        squares += tl.sum(value * value, axis=0)
    tl.store(smallest_ptr + group, tl.where(last == best, 0, size - largest))


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def group_options(tile: int) -> dict[str, Any]:
    return {**OPTIONS, "num_warps": min(8, max(4, tile // 128))}


def _from(flags: Tensor) -> Tensor:
    """How many are set before each position, and after the last, (N + 1,)."""
    return torch.nn.functional.pad(torch.cumsum(flags, 0), (1, 0))


def _select_sorted(
    rewards: Tensor,
    k: int,
    group_size: int,
    group_ids: Tensor | None,
    offsets: Tensor | None,
    method: int,
    uniform: Tensor | None,
) -> Tensor:
    """Any groups: `order` are the rows by group and, within a group, by reward; ties by row."""
    rows = rewards.numel()
    place = torch.arange(rows, device=rewards.device)
    values = rewards.to(torch.float64)
    # Radix sorts tell zeros and NaN apart by their signs; -0.0 + 0.0 is 0.0.
    values = torch.where(values == values, values + 0.0, float("nan"))
    if group_ids is None and offsets is None:
        slots = rows // group_size
        values, order = torch.sort(values.view(slots, group_size), dim=1, stable=True)
        group = place // group_size
        bounds = torch.arange(0, rows + 1, group_size, device=rewards.device)
        values, order = values.flatten(), order.flatten() + bounds[group]
    else:
        values, by_value = torch.sort(values, stable=True)
        if offsets is not None:
            slots, ids = min(rows, offsets.numel() - 1), torch.searchsorted(offsets[1:-1], by_value, right=True)
        elif group_ids is not None:
            slots, ids = rows, group_ids[by_value]
        by_group, group, bounds = group_bounds(ids)
        values, order = values[by_group], by_value[by_group]

    is_scored = values == values
    scored = _from(is_scored)[bounds].diff()
    size = scored.clamp(max=k)
    start, rank = bounds[group], place - bounds[group]
    if method == STRATIFIED.value:
        if uniform is None:
            shift: Tensor | float = 0.5
        else:
            begin = start
            if group_ids is not None:
                begin = _begin_by_appearance(order, group, bounds)[group]
            shift = uniform[begin + rank]
        # Strata that are no whole numbers of rollouts share some: each is taken once. place_j - j never descends.
        position = ((rank.double() + shift) * scored[group] / size[group]).long() - rank
        offset = torch.where(rank < size[group], position.clamp(min=0).minimum((scored - size)[group]), 0)
        position = torch.cummax(start + offset, 0).values + rank
        position = torch.where(rank < size[group], position, rows)
        selected = torch.zeros(rows + 1, dtype=torch.bool, device=rewards.device)
        selected = selected.scatter_(0, position, True)[:rows]
    else:
        smallest = torch.zeros_like(size) if method == TOP.value else size.clone()
        if method == MAX_VARIANCE.value:
            sums = torch.empty((2, rows), dtype=torch.float64, device=rewards.device)
            split_kernel[(slots,)](values, bounds, scored, sums, smallest, rows, k, C=CHUNK, **SPLIT_OPTIONS)
        largest = size - smallest
        taken = is_scored & ((rank < smallest[group]) | (rank >= (scored - largest)[group]))
        # Of a run of equal rewards as many are selected as were taken, the lowest rows.
        fresh = torch.ones_like(is_scored)
        torch.ne(values[1:], values[:-1], out=fresh[1:])
        fresh[1:] |= group[1:] != group[:-1]
        run = torch.cumsum(fresh, 0)
        begin = torch.searchsorted(run, run)
        end = torch.searchsorted(run, run, right=True)
        before = _from(taken)
        selected = place - begin < before[end] - before[begin]
    return torch.empty_like(selected).scatter_(0, order, selected)


def _begin_by_appearance(order: Tensor, group: Tensor, bounds: Tensor) -> Tensor:
    """(N,) how many rows the groups have that appear before each group."""
    rows = order.numel()
    first = torch.full_like(order, rows).scatter_reduce_(0, group, order, "amin")
    by_appearance = torch.argsort(first)
    sizes = bounds.diff()[by_appearance]
    return torch.empty_like(order).scatter_(0, by_appearance, torch.cumsum(sizes, 0) - sizes)


def select_rollouts(
    rewards: Tensor,
    k: int,
    group_size: int = 0,
    group_ids: Tensor | None = None,
    offsets: Tensor | None = None,
    method: int = 0,
    uniform: Tensor | None = None,
) -> Tensor:
    """Implements ``morlfast::select_rollouts`` for CUDA: (N,) -> bool (N,). What would have to wait for the device is
    not looked for: the first and last of offsets count as 0 and N."""
    require(rewards.dim() == 1, f"rewards: expected shape (N,), got {tuple(rewards.shape)}")
    require(k >= 0, f"k: expected 0 <= k, got {k}")
    require(0 <= method <= STRATIFIED.value, f"method: expected 0, 1, 2 or 3, got {method}")
    rows = rewards.numel()
    if offsets is not None:
        fits = offsets.dim() == 1 and offsets.numel() > (rows > 0) and offsets.dtype == torch.int64
        require(fits, f"offsets: expected int64 (G + 1,), got {tuple(offsets.shape)}")
    else:
        require_groups(rows, group_size, group_ids)
    if uniform is not None:
        fits = uniform.shape == (rows,) and uniform.dtype == torch.float64
        require(fits, f"uniform: expected float64 ({rows},), got {uniform.dtype} {tuple(uniform.shape)}")
    if rows == 0:
        return torch.empty(0, dtype=torch.bool, device=rewards.device)
    with torch.cuda.device_of(rewards):
        contiguous = group_ids is None and offsets is None
        if not contiguous or group_size > GROUP_LIMIT or method == STRATIFIED.value:
            return _select_sorted(rewards, k, group_size, group_ids, offsets, method, uniform)
        out = torch.empty(rows, dtype=torch.bool, device=rewards.device)
        sums = None
        if method == MAX_VARIANCE.value:
            sums = torch.empty((2, rows), dtype=torch.float64, device=rewards.device)
        groups, lanes = rows // group_size, _power_of_two(group_size)
        stacked = max(1, TILE // lanes)
        group_kernel[(triton.cdiv(groups, stacked),)](
            rewards,
            sums,
            out,
            groups,
            group_size,
            min(k, group_size),
            rewards.stride(0),
            METHOD=method,
            WIDE=rewards.dtype not in (torch.float32, torch.bfloat16, torch.float16),
            P=stacked,
            L=lanes,
            **group_options(stacked * lanes),
        )
        return out
