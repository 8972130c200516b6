"""Linear recurrences along rows of tokens (returns, GAE) and whitening over the tokens of a mask.

A program follows R rows from one end to the other, W tokens at a time: y -> x + a y composes, so a tile is one
associative scan, and its last state goes on to the next tile. State and arithmetic are float64. Floor, reached: every
input is read once (values and mask of gae twice, the second time from the cache), every result written once, 1 launch.
The rows are the parallelism: fewer than a few hundred leave multiprocessors idle.

whiten: 2 launches, statistics of values and mask, then the result; values and mask are read twice.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import require
from morlfast._triton.moments import divisor, fold, is_set, merge, record, variance_of, wide

# Rows of a program, a warp each, and tokens of a tile.
ROWS, WIDTH = 4, 128
# Whitening: elements of a tile, tiles that a program writes, and programs that leave statistics.
TILE, TILES, RECORDS = 1024, 16, 512
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 168}


@triton.jit
def _times(a, state):
    """a * state, a the product of factors other than 0: where it vanished or overflowed, inf and 0 go through it."""
    product = a * state
    lost = (product != product) & (a == a) & (state == state)  # 0 * inf
    return tl.where(lost, tl.where(a.to(tl.int64, bitcast=True) < 0, -state, state), product)


@triton.jit
def _compose(x_first, a_first, cut_first, x_then, a_then, cut_then):
    """y -> x + a y, one after the other. A factor of exactly 0 cuts, whatever comes before."""
    x = x_then + tl.where(cut_then != 0, 0.0, _times(a_then, x_first))
    return x, _times(a_then, a_first), cut_first | cut_then


@triton.jit
def _latest(value_first, has_first, value_then, has_then):
    return tl.where(has_then != 0, value_then, value_first), has_first | has_then


@triton.jit
def _edge(tile, col, edge):
    """Column `edge` of a tile [R, W], [R, 1]."""
    return tl.sum(tl.where(col == edge, tile, tl.zeros_like(tile)), axis=1)[:, None]


@triton.jit
def _states(x, a, state, col, edge, REVERSE: tl.constexpr):
    """States y of a tile [R, W] after those before it [R, 1], and the last of them."""
    x, a, cut = tl.associative_scan((x, a, (a == 0).to(tl.int32)), 1, _compose, reverse=REVERSE)
    y = x + tl.where(cut != 0, 0.0, _times(a, state))
    return y, _edge(y, col, edge)


@triton.jit
def _numbers(pointer, row, col, row_stride, col_stride, inside):
    """A tile [R, W] in float64; pointers of rows have the column stride 0."""
    return wide(tl.load(pointer + row * row_stride + col * col_stride, mask=inside, other=0.0))


@triton.jit
def _store(out_ptr, value, inside):
    if out_ptr.dtype.element_ty != tl.float64:
        value = value.to(tl.float32).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, value, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def scan_kernel(
    x_ptr,  # [N, T]
    a_ptr,  # [N, T]
    initial_ptr,  # [N] or None
    mask_ptr,  # [N, T] or None
    y_ptr,  # [N, T]
    rows,
    columns,
    x_row,
    x_col,
    a_row,
    a_col,
    initial_row,
    mask_row,
    mask_col,
    REVERSE: tl.constexpr,
    CARRY: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """y_t = x_t + a_t y_{t+1}, or y_{t-1}; the mask's gaps hand the state on."""
    row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    if initial_ptr is None:
        state = tl.zeros([R, 1], tl.float64)
    else:
        state = wide(tl.load(initial_ptr + row * initial_row, mask=row < rows, other=0.0))
    tiles = tl.cdiv(columns, W)
    for step in range(tiles):
        at = (tiles - 1 - step if REVERSE else step) * W
        col = at + tl.arange(0, W)[None, :].to(tl.int64)
        inside = (row < rows) & (col < columns)
        x = _numbers(x_ptr, row, col, x_row, x_col, inside)
        a = _numbers(a_ptr, row, col, a_row, a_col, inside)
        valid = inside
        if mask_ptr is not None:
            valid = is_set(mask_ptr + row * mask_row + col * mask_col, inside)
        x = tl.where(valid, x, 0.0)
        a = tl.where(valid, a, 1.0)
        y, state = _states(x, a, state, col, at if REVERSE else at + W - 1, REVERSE)
        if not CARRY:
            y = tl.where(valid, y, 0.0)
        _store(y_ptr + row * columns + col, y, inside)


@triton.jit(do_not_specialize=["rows"])
def gae_kernel(
    rewards_ptr,  # [N, T]
    values_ptr,  # [N, T]
    gammas_ptr,  # [N, T] or None: gamma
    lams_ptr,  # [N, T] or None: lam
    returns_lams_ptr,  # [N, T] or None: returns_lam
    mask_ptr,  # [N, T] or None
    terminated_ptr,  # [N, T] or None
    done_ptr,  # [N, T] or None
    next_values_ptr,  # [N, T] or None
    bootstrap_ptr,  # [N] or None
    finished_ptr,  # [N] or None
    advantages_ptr,  # [N, T]
    returns_ptr,  # [N, T]
    rows,
    columns,
    reward_row,
    reward_col,
    value_row,
    value_col,
    gamma_row,
    gamma_col,
    lam_row,
    lam_col,
    returns_lam_row,
    returns_lam_col,
    mask_row,
    mask_col,
    terminated_row,
    terminated_col,
    done_row,
    done_col,
    next_value_row,
    next_value_col,
    bootstrap_row,
    finished_row,
    gamma: tl.float64,
    lam: tl.float64,
    returns_lam: tl.float64,
    DECOUPLED: tl.constexpr,  # the returns have a lambda of their own
    REPEAT_LAST: tl.constexpr,
    CARRY: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """delta_t = r_t + gamma_t V_{t+1} - V_t, A_t = delta_t + gamma_t lambda_t A_{t+1}, return_t = A_t + V_t."""
    row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    behind = tl.zeros([R, 1], tl.float64)  # the value behind a row's last token
    if bootstrap_ptr is not None:
        behind = wide(tl.load(bootstrap_ptr + row * bootstrap_row, mask=row < rows, other=0.0))
    repeats = (row < rows) & (REPEAT_LAST and bootstrap_ptr is None)
    if finished_ptr is not None:
        finished = is_set(finished_ptr + row * finished_row, row < rows)
        behind = tl.where(finished, 0.0, behind)
        repeats = repeats & ~finished
    later = tl.zeros([R, 1], tl.float64)  # the first value of the mask behind a tile, and whether there is one
    any_later = tl.zeros([R, 1], tl.int32)
    state = tl.zeros([R, 1], tl.float64)
    returns_state = tl.zeros([R, 1], tl.float64)
    tiles = tl.cdiv(columns, W)
    for step in range(tiles):
        at = (tiles - 1 - step) * W
        col = at + tl.arange(0, W)[None, :].to(tl.int64)
        inside = (row < rows) & (col < columns)
        value = _numbers(values_ptr, row, col, value_row, value_col, inside)
        valid = inside
        if mask_ptr is not None:
            valid = is_set(mask_ptr + row * mask_row + col * mask_col, inside)

        if next_values_ptr is not None:
            following = _numbers(next_values_ptr, row, col, next_value_row, next_value_col, inside)
        else:
            next_inside = (row < rows) & (col + 1 < columns)
            following = _numbers(values_ptr, row, col + 1, value_row, value_col, next_inside)
            followed = next_inside
            if mask_ptr is not None:
                there = is_set(mask_ptr + row * mask_row + (col + 1) * mask_col, next_inside).to(tl.int32)
                # The tile's last token takes the place of what lies behind the tile.
                outer = col == at + W - 1
                following = tl.where(outer & (there == 0), later, following)
                there = tl.where(outer, there | any_later, there)
                following, there = tl.associative_scan((following, there), 1, _latest, reverse=True)
                followed = there != 0
                later = _edge(tl.where(valid, value, following), col, at)
                any_later = _edge(valid.to(tl.int32) | there, col, at)
            following = tl.where(followed, following, tl.where(repeats, value, behind))

        discount = tl.full([R, W], 1.0, tl.float64) * gamma
        if gammas_ptr is not None:
            discount = _numbers(gammas_ptr, row, col, gamma_row, gamma_col, inside)
        gain = discount * following
        if terminated_ptr is not None:
            terminated = is_set(terminated_ptr + row * terminated_row + col * terminated_col, inside)
            gain = tl.where(terminated, 0.0, gain)
        x = (_numbers(rewards_ptr, row, col, reward_row, reward_col, inside) + gain) - value
        x = tl.where(valid, x, 0.0)
        if done_ptr is not None:
            done = is_set(done_ptr + row * done_row + col * done_col, inside)
            discount = tl.where(done, 0.0, discount)

        decay = tl.full([R, W], 1.0, tl.float64) * lam
        if lams_ptr is not None:
            decay = _numbers(lams_ptr, row, col, lam_row, lam_col, inside)
        a = tl.where(valid, discount * decay, 1.0)
        advantage, state = _states(x, a, state, col, at, True)
        target = advantage
        if DECOUPLED:
            decay = tl.full([R, W], 1.0, tl.float64) * returns_lam
            if returns_lams_ptr is not None:
                decay = _numbers(returns_lams_ptr, row, col, returns_lam_row, returns_lam_col, inside)
            a = tl.where(valid, discount * decay, 1.0)
            target, returns_state = _states(x, a, returns_state, col, at, True)
        target += value
        if not CARRY:
            advantage = tl.where(valid, advantage, 0.0)
            target = tl.where(valid, target, 0.0)
        _store(advantages_ptr + row * columns + col, advantage, inside)
        _store(returns_ptr + row * columns + col, target, inside)


@triton.jit
def _tile(index, rows, columns, R: tl.constexpr, W: tl.constexpr):
    """Rows [R, 1] and columns [1, W] of a tile, and which are inside."""
    across = tl.cdiv(columns, W)
    row = (index // across).to(tl.int64) * R + tl.arange(0, R)[:, None]
    col = (index % across).to(tl.int64) * W + tl.arange(0, W)[None, :]
    return row, col, (row < rows) & (col < columns)


@triton.jit(do_not_specialize=["rows", "tiles"])
def token_statistics_kernel(
    values_ptr,  # [N, T]
    mask_ptr,  # [N, T] or None
    records_ptr,  # [4, programs, 1]
    rows,
    columns,
    tiles,
    value_row,
    value_col,
    mask_row,
    mask_col,
    R: tl.constexpr,
    W: tl.constexpr,
):
    pivot = tl.zeros([1, 1], tl.float64)
    count = tl.zeros([1, 1], tl.float64)
    mean = tl.zeros([1, 1], tl.float64)
    m2 = tl.zeros([1, 1], tl.float64)
    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, col, inside = _tile(index, rows, columns, R, W)
        valid = inside
        if mask_ptr is not None:
            valid = is_set(mask_ptr + row * mask_row + col * mask_col, inside)
        value = _numbers(values_ptr, row, col, value_row, value_col, valid)
        value = tl.reshape(value, (1, R * W, 1))
        pivot, count, mean, m2 = fold(value, tl.reshape(valid, (1, R * W, 1)), 1.0, pivot, count, mean, m2, R * W)
    record(records_ptr, tl.program_id(0), tl.num_programs(0), pivot, count, mean, m2, 1)


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "ddof"])
def whiten_kernel(
    values_ptr,  # [N, T]
    mask_ptr,  # [N, T] or None
    records_ptr,  # [4, programs, 1]
    out_ptr,  # [N, T]
    rows,
    columns,
    tiles,
    programs,
    value_row,
    value_col,
    mask_row,
    mask_col,
    eps: tl.float64,
    ddof,
    EPS_TO: tl.constexpr,
    SHIFT_MEAN: tl.constexpr,
    OUTSIDE: tl.constexpr,  # the same formula outside the mask
    R: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
):
    """(value - mean) / divisor, and with the mean again unless SHIFT_MEAN."""
    pivot, count, mean, m2 = merge(records_ptr, programs, C, 1)
    by = divisor(variance_of(count, m2, ddof) + mean * 0.0, eps, EPS_TO)
    factor = tl.where((by == 0) | (count == 0), 0.0, 1.0 / by)
    for index in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, col, inside = _tile(index, rows, columns, R, W)
        value = _numbers(values_ptr, row, col, value_row, value_col, inside)
        whitened = ((value - pivot) - mean) * factor
        if not SHIFT_MEAN:
            whitened += pivot + mean
        if mask_ptr is not None and not OUTSIDE:
            whitened = tl.where(is_set(mask_ptr + row * mask_row + col * mask_col, inside), whitened, 0.0)
        _store(out_ptr + row * columns + col, whitened, inside)


def _strides(tensor: Tensor | None, name: str, shape: torch.Size, a_row_each: bool = False) -> tuple[int, int]:
    if tensor is None:
        return 0, 0
    fits = tensor.shape == shape or (a_row_each and tensor.shape == shape[:1])
    require(fits, f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    return (tensor.stride(0), tensor.stride(1)) if tensor.dim() == 2 else (tensor.stride(0), 0)


def _stride(tensor: Tensor | None, name: str, rows: int) -> int:
    if tensor is None:
        return 0
    require(tensor.shape == (rows,), f"{name}: expected shape ({rows},), got {tuple(tensor.shape)}")
    return tensor.stride(0)


def linear_scan(
    x: Tensor,
    a: Tensor,
    initial: Tensor | None = None,
    mask: Tensor | None = None,
    reverse: bool = True,
    carry: bool = False,
) -> Tensor:
    """Implements ``morlfast::linear_scan`` for CUDA: (N, T) -> (N, T)."""
    require(x.dim() == 2, f"x: expected shape (N, T), got {tuple(x.shape)}")
    rows, columns = x.shape
    strides = (
        *x.stride(),
        *_strides(a, "a", x.shape, a_row_each=True),
        _stride(initial, "initial", rows),
        *_strides(mask, "mask", x.shape),
    )
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    with torch.cuda.device_of(x):
        scan_kernel[(triton.cdiv(rows, ROWS),)](
            x,
            a,
            initial,
            mask,
            y,
            rows,
            columns,
            *strides,
            REVERSE=reverse,
            CARRY=carry,
            R=ROWS,
            W=WIDTH,
            **OPTIONS,
        )
    return y


def gae(
    rewards: Tensor,
    values: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    returns_lam: float | None = None,
    gammas: Tensor | None = None,
    lams: Tensor | None = None,
    returns_lams: Tensor | None = None,
    mask: Tensor | None = None,
    terminated: Tensor | None = None,
    done: Tensor | None = None,
    next_values: Tensor | None = None,
    bootstrap: Tensor | None = None,
    finished: Tensor | None = None,
    repeat_last: bool = False,
    carry: bool = False,
) -> tuple[Tensor, Tensor]:
    """Implements ``morlfast::gae`` for CUDA: (N, T) -> advantages and returns (N, T)."""
    require(rewards.dim() == 2, f"rewards: expected shape (N, T), got {tuple(rewards.shape)}")
    shape = rewards.shape
    rows, columns = shape
    strides = (
        *rewards.stride(),
        *_strides(values, "values", shape),
        *_strides(gammas, "gammas", shape, a_row_each=True),
        *_strides(lams, "lams", shape, a_row_each=True),
        *_strides(returns_lams, "returns_lams", shape, a_row_each=True),
        *_strides(mask, "mask", shape),
        *_strides(terminated, "terminated", shape),
        *_strides(done, "done", shape),
        *_strides(next_values, "next_values", shape),
        _stride(bootstrap, "bootstrap", rows),
        _stride(finished, "finished", rows),
    )
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    advantages, returns = (torch.empty((rows, columns), dtype=dtype, device=rewards.device) for _ in range(2))
    if advantages.numel() == 0:
        return advantages, returns
    with torch.cuda.device_of(rewards):
        gae_kernel[(triton.cdiv(rows, ROWS),)](
            rewards,
            values,
            gammas,
            lams,
            returns_lams,
            mask,
            terminated,
            done,
            next_values,
            bootstrap,
            finished,
            advantages,
            returns,
            rows,
            columns,
            *strides,
            float(gamma),
            float(lam),
            float(lam if returns_lam is None else returns_lam),
            DECOUPLED=returns_lam is not None or returns_lams is not None,
            REPEAT_LAST=repeat_last,
            CARRY=carry,
            R=ROWS,
            W=WIDTH,
            **OPTIONS,
        )
    return advantages, returns


def whiten(
    values: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-8,
    eps_to: int = 1,
    ddof: int = 1,
    shift_mean: bool = True,
    outside: bool = False,
) -> Tensor:
    """Implements ``morlfast::whiten`` for CUDA: (N, T) -> (N, T)."""
    require(values.dim() == 2, f"values: expected shape (N, T), got {tuple(values.shape)}")
    rows, columns = values.shape
    strides = (*values.stride(), *_strides(mask, "mask", values.shape))
    out = torch.empty((rows, columns), dtype=values.dtype, device=values.device)
    if out.numel() == 0:
        return out
    width = min(TILE, triton.next_power_of_2(columns))
    tile = {"R": TILE // width, "W": width}
    tiles = triton.cdiv(rows, tile["R"]) * triton.cdiv(columns, width)
    programs = min(tiles, RECORDS)
    records = torch.empty((4, programs, 1), dtype=torch.float64, device=values.device)
    with torch.cuda.device_of(values):
        token_statistics_kernel[(programs,)](values, mask, records, rows, columns, tiles, *strides, **tile, **OPTIONS)
        whiten_kernel[(triton.cdiv(tiles, TILES),)](
            values,
            mask,
            records,
            out,
            rows,
            columns,
            tiles,
            programs,
            *strides,
            float(eps),
            ddof,
            EPS_TO=eps_to,
            SHIFT_MEAN=shift_mean,
            OUTSIDE=outside,
            C=RECORDS,
            **tile,
            **OPTIONS,
        )
    return out
