"""Log-probabilities of tokens, entropies and log-partition functions of logits, in one read of them, and the gradient.

Floor of the forward pass: logits read once, three numbers a row written; of the gradient: logits read once, written
once. Both are reached: 1 launch each, 2 where fewer than FEW_ROWS rows are cut into SPLITS parts at most.

The forward pass is designed for what follows and was not measured on a GPU. At [8192, 151936] bfloat16, 80 % of an
H100's 3.35 TB/s is 1.34e12 elements a second. Its 132 multiprocessors at 1.755 GHz, with 128 issue slots and 16
exponentials a clock each, have 22 slots and 2.8 exponentials for an element. Hence

- one exponential an element: exp2 of a difference that is multiplied by log2(e) / temperature. With conversion,
  maximum, difference, product, the two sums and the floor under 0 * log 0 the loop is 316 instructions for 32 elements
  of a thread, 9.9 each (Triton 3.9, 9.0);
- no reduction over a block within the loop. A tile is [R, L, E]: E neighbours are one 16-byte load, L the threads, R
  loads in flight of a thread (64 bytes; 8 blocks of 128 threads are 64 KiB a multiprocessor, where latency times
  bandwidth is less than half of it). Each thread has a maximum and sums of its own, which it rescales once a tile: one
  exponential more for R * E elements, no shuffle, no barrier. Threads are merged once, at the end of the row;
- every 16 bytes aligned whatever the vocabulary is: the fewer than E elements at either end of a row are one load of
  their own, and only the last, incomplete tile has a mask, which is constant over 16 bytes.

Sums are float32 of at most R * E elements in a tile and of one number a tile from then on (float64 for float64).
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from morlfast._triton import require

# Loads of a thread in flight, and threads of a block: a lane of a tile each.
LOADS, LANES = 4, 128
# With fewer rows they are cut into parts, so that there are about so many programs.
FEW_ROWS, PROGRAMS, SPLITS = 512, 1024, 64
# Elements that a program of the gradient writes, of float64 an eighth.
TILE = 4096
OPTIONS = {"num_warps": LANES // 32, "num_stages": 1, "enable_fp_fusion": True, "maxnreg": 64}
MERGE_OPTIONS = {**OPTIONS, "num_warps": 1}

_LOG2_E = tl.constexpr(math.log2(math.e))
_LOG_2 = tl.constexpr(math.log(2.0))
# exp2 of it is 0; what it is multiplied by stays finite.
_FLOOR = tl.constexpr(-2000.0)


@triton.jit
def _finite(peak):
    """What differences are taken to: -inf - -inf would be NaN."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def _fold(x, factor, peak, total, weighted, ENTROPY: tl.constexpr):
    """Adds a tile [R, L, E] to the lanes' maxima, sums of exp2(u) and of u exp2(u), [L] each; u = factor (x - peak)."""
    new_peak = tl.maximum(peak, tl.max(tl.max(x, axis=2), axis=0))
    base = _finite(new_peak)
    u = (x - base[None, :, None]) * factor
    e = tl.exp2(u)
    lower = (peak - base) * factor
    scale = tl.exp2(lower)
    if ENTROPY:
        weighted = (weighted + total * tl.maximum(lower, _FLOOR)) * scale
        weighted += tl.sum(tl.sum(e * tl.maximum(u, _FLOOR), axis=2), axis=0)
    total = total * scale + tl.sum(tl.sum(e, axis=2), axis=0)
    return new_peak, total, weighted


@triton.jit
def _merge(peaks, totals, weighted, factor):
    """One row's statistics from those of lanes or parts."""
    peak = tl.max(peaks, axis=0)
    lower = (peaks - _finite(peak)) * factor
    scale = tl.exp2(lower)
    total = tl.sum(totals * scale, axis=0)
    return peak, total, tl.sum((weighted + totals * tl.maximum(lower, _FLOOR)) * scale, axis=0)


@triton.jit
def _finish(
    logits_ptr,  # the row's first logit
    log_probs_ptr,
    entropies_ptr,
    log_sums_ptr,
    row,
    token,
    read,
    vocabulary,
    logit_col,
    factor,
    temperature,
    peak,
    total,
    weighted,
    PARTIAL: tl.constexpr,
):
    inside = (token >= 0) & (token < vocabulary) & read
    logit = tl.load(logits_ptr + token * logit_col, mask=inside, other=float("-inf")).to(factor.dtype)
    log2_total = tl.log2(total)
    log_sum = peak.to(tl.float64) / temperature + log2_total.to(tl.float64) * _LOG_2
    log_prob = ((logit - _finite(peak)) * factor - log2_total) * _LOG_2
    entropy = (log2_total - weighted / total) * _LOG_2
    nothing = float("nan")
    if PARTIAL:
        nothing = float("-inf")
        entropy = tl.where(total == 0, 0.0, entropy)
    else:
        log_sum = tl.where(total == 0, nothing, log_sum)
    log_prob = tl.where(inside & (total != 0), log_prob, nothing)
    tl.store(log_probs_ptr + row, tl.where(read, log_prob, 0.0))
    tl.store(log_sums_ptr + row, tl.where(read, log_sum, 0.0))
    if entropies_ptr is not None:
        tl.store(entropies_ptr + row, tl.where(read, entropy, 0.0))


@triton.jit
def _place(tokens_ptr, row, columns, token_batch, token_row, first_token, ignore_index):
    """Where a row is: batch, column; its token within the slice of the vocabulary, and whether the row is read."""
    batch, column = row // columns, row % columns
    token = tl.load(tokens_ptr + batch * token_batch + column * token_row)
    return batch, column, token - first_token, token != ignore_index


@triton.jit(do_not_specialize=["columns", "first_token", "ignore_index", "token_batch", "token_row"])
def forward_kernel(
    logits_ptr,  # [B, T, V]
    tokens_ptr,  # [B, T]
    log_probs_ptr,  # [B T]
    entropies_ptr,  # [B T] or None
    log_sums_ptr,  # [B T] float64
    records_ptr,  # [3, B T, parts], or None: one part
    columns,
    vocabulary,
    logit_batch,
    logit_row,
    logit_col,
    token_batch,
    token_row,
    first_token: tl.int64,
    ignore_index: tl.int64,
    temperature: tl.float64,
    ENTROPY: tl.constexpr,
    PARTIAL: tl.constexpr,
    R: tl.constexpr,
    L: tl.constexpr,
    E: tl.constexpr,  # elements of 16 bytes, or 1 where neighbours of a row are not neighbours in memory
):
    """A row, or one of the parts that it is cut into."""
    row = tl.program_id(0).to(tl.int64)
    batch, column, token, read = _place(tokens_ptr, row, columns, token_batch, token_row, first_token, ignore_index)
    logits_ptr += batch * logit_batch + column * logit_row
    state = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    factor = (tl.full([], _LOG2_E, tl.float64) / temperature).to(state)

    # `head` elements before the first 16 aligned bytes, then vectors, then the rest: head and rest are the edge.
    size = tl.where(read, vocabulary, 0)
    head = 0
    if E > 1:
        width: tl.constexpr = logits_ptr.dtype.element_ty.primitive_bitwidth // 8
        head = tl.minimum((16 - logits_ptr.to(tl.int64) % 16) % 16 // width, size).to(tl.int32)
    vectors = (size - head) // E
    tiles = tl.cdiv(vectors, R * L)
    each = tl.cdiv(tiles, tl.num_programs(1))
    start = tl.program_id(1) * each
    end = tl.minimum(start + each, tiles)
    whole = tl.minimum(end, vectors // (R * L))

    lane = tl.arange(0, L)
    edge = tl.where(tl.program_id(1) == 0, size - vectors * E, 0)
    at = tl.where(lane < head, lane, lane + vectors * E).to(tl.int64)
    ends = tl.load(logits_ptr + at * logit_col, mask=lane < edge, other=float("-inf")).to(state)
    peak = tl.full([L], float("-inf"), state)
    total = tl.zeros([L], state)
    weighted = tl.zeros([L], state)
    peak, total, weighted = _fold(ends[None, :, None], factor, peak, total, weighted, ENTROPY)

    vector = tl.arange(0, R)[:, None, None] * L + lane[None, :, None]  # [R, L, 1]
    if E > 1:
        body_ptr = tl.multiple_of(logits_ptr + head, 16)
        offset = vector * E + tl.arange(0, E)[None, None, :]  # [R, L, E]
        advance = tl.full([], R * L * E, tl.int64)
    else:
        body_ptr = logits_ptr
        offset = vector.to(tl.int64) * logit_col
        advance = tl.full([], R * L, tl.int64) * logit_col
    for tile in range(start, whole):
        x = tl.load(body_ptr + tile * advance + offset).to(state)
        peak, total, weighted = _fold(x, factor, peak, total, weighted, ENTROPY)
    if (start <= whole) & (whole < end):  # the incomplete tile is this part's
        inside = vector < vectors - whole * (R * L)
        x = tl.load(body_ptr + whole * advance + offset, mask=inside, other=float("-inf")).to(state)
        peak, total, weighted = _fold(x, factor, peak, total, weighted, ENTROPY)

    peak, total, weighted = _merge(peak, total, weighted, factor)
    if records_ptr is None:
        _finish(
            logits_ptr,
            log_probs_ptr,
            entropies_ptr,
            log_sums_ptr,
            row,
            token,
            read,
            vocabulary,
            logit_col,
            factor,
            temperature,
            peak,
            total,
            weighted,
            PARTIAL,
        )
    else:
        plane = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
        at = records_ptr + row * tl.num_programs(1) + tl.program_id(1)
        tl.store(at, peak)
        tl.store(at + plane, total)
        tl.store(at + 2 * plane, weighted)


@triton.jit(do_not_specialize=["parts", "columns", "first_token", "ignore_index", "token_batch", "token_row"])
def merge_kernel(
    logits_ptr,  # [B, T, V]
    tokens_ptr,  # [B, T]
    log_probs_ptr,  # [B T]
    entropies_ptr,  # [B T] or None
    log_sums_ptr,  # [B T] float64
    records_ptr,  # [3, B T, parts]
    parts,
    columns,
    vocabulary,
    logit_batch,
    logit_row,
    logit_col,
    token_batch,
    token_row,
    first_token: tl.int64,
    ignore_index: tl.int64,
    temperature: tl.float64,
    PARTIAL: tl.constexpr,
    P: tl.constexpr,
):
    """A row of which each part has left its statistics."""
    row = tl.program_id(0).to(tl.int64)
    batch, column, token, read = _place(tokens_ptr, row, columns, token_batch, token_row, first_token, ignore_index)
    state = records_ptr.dtype.element_ty
    factor = (tl.full([], _LOG2_E, tl.float64) / temperature).to(state)
    part = tl.arange(0, P)
    plane = tl.num_programs(0).to(tl.int64) * parts
    at = records_ptr + row * parts + part
    peak, total, weighted = _merge(
        tl.load(at, mask=part < parts, other=float("-inf")),
        tl.load(at + plane, mask=part < parts, other=0.0),
        tl.load(at + 2 * plane, mask=part < parts, other=0.0),
        factor,
    )
    _finish(
        logits_ptr + batch * logit_batch + column * logit_row,
        log_probs_ptr,
        entropies_ptr,
        log_sums_ptr,
        row,
        token,
        read,
        vocabulary,
        logit_col,
        factor,
        temperature,
        peak,
        total,
        weighted,
        PARTIAL,
    )


@triton.jit(do_not_specialize=["columns", "first_token", "ignore_index", "token_batch", "token_row"])
def gradient_kernel(
    logits_ptr,  # [B, T, V]
    tokens_ptr,  # [B, T]
    log_sums_ptr,  # [B, T] float64
    entropies_ptr,  # [B, T], read where grad_entropies is
    grad_log_probs_ptr,  # [B, T] or None
    grad_entropies_ptr,  # [B, T] or None
    grad_ptr,  # [B T, V]
    columns,
    vocabulary,
    logit_batch,
    logit_row,
    logit_col,
    token_batch,
    token_row,
    log_sum_batch,
    log_sum_row,
    entropy_batch,
    entropy_row,
    grad_log_prob_batch,
    grad_log_prob_row,
    grad_entropy_batch,
    grad_entropy_row,
    first_token: tl.int64,
    ignore_index: tl.int64,
    temperature: tl.float64,
    TILE: tl.constexpr,
):
    """grad_v = (g (1[v = token] - p_v) - h p_v (log p_v + H)) / temperature."""
    tiles = tl.cdiv(vocabulary, TILE)
    row = tl.program_id(0).to(tl.int64) // tiles
    batch, column, token, read = _place(tokens_ptr, row, columns, token_batch, token_row, first_token, ignore_index)
    state = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    inverse = (tl.full([], 1.0, tl.float64) / temperature).to(state)
    # log p = (x - origin) / temperature - rest: the difference of two large numbers is exact, and rest is small.
    log_sum = tl.load(log_sums_ptr + batch * log_sum_batch + column * log_sum_row)
    origin = (log_sum * temperature).to(state)
    rest = (log_sum - origin.to(tl.float64) / temperature).to(state)
    of_log_prob = tl.zeros([], state)
    if grad_log_probs_ptr is not None:
        at = grad_log_probs_ptr + batch * grad_log_prob_batch + column * grad_log_prob_row
        of_log_prob = tl.load(at).to(state) * inverse
    constant, slope = of_log_prob, tl.zeros([], state)
    if grad_entropies_ptr is not None:
        at = grad_entropies_ptr + batch * grad_entropy_batch + column * grad_entropy_row
        slope = tl.load(at).to(state) * inverse
        constant += slope * tl.load(entropies_ptr + batch * entropy_batch + column * entropy_row).to(state)

    # The remainder in 32 bits: what a multiple of 16 bytes can be read at once must be known to be one.
    col = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    inside = col < vocabulary
    at = logits_ptr + batch * logit_batch + column * logit_row + col.to(tl.int64) * logit_col
    x = tl.load(at, mask=col < tl.where(read, vocabulary, 0), other=float("-inf")).to(state)
    log_p = (x - origin) * inverse - rest
    p = tl.exp2(log_p * _LOG2_E)
    grad = -p * (constant + slope * tl.maximum(log_p, _FLOOR))
    grad = tl.where(col == token, grad + of_log_prob, grad)
    grad = tl.where(read, grad, 0.0)
    tl.store(grad_ptr + row * vocabulary + col, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def _check(logits: Tensor, tokens: Tensor, **others: Tensor | None) -> None:
    require(logits.dim() == 3, f"logits: expected shape (B, T, V), got {tuple(logits.shape)}")
    for name, tensor in {"tokens": tokens, **others}.items():
        if tensor is not None:
            fits = tensor.shape == logits.shape[:2]
            require(fits, f"{name}: expected shape {tuple(logits.shape[:2])}, got {tuple(tensor.shape)}")
    require(tokens.dtype == torch.int64, f"tokens: expected int64, got {tokens.dtype}")


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    first_token: int = 0,
    partial: bool = False,
    entropy: bool = True,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements ``morlfast::token_logprobs`` for CUDA: -> log-probabilities, entropies, log-sums (B, T)."""
    _check(logits, tokens)
    shape, vocabulary = tokens.shape, logits.shape[2]
    rows = tokens.numel()
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = torch.empty(shape, dtype=dtype, device=logits.device)
    log_sums = torch.empty(shape, dtype=torch.float64, device=logits.device)
    entropies = torch.empty(shape if entropy else (0,), dtype=dtype, device=logits.device)
    if rows == 0:
        return log_probs, entropies, log_sums
    elements = 16 // logits.element_size() if logits.stride(2) == 1 else 1
    parts = 1
    if rows < FEW_ROWS:
        tiles = triton.cdiv(vocabulary, LOADS * LANES * elements)
        parts = max(1, min(triton.cdiv(PROGRAMS, rows), tiles, SPLITS))
    records = torch.empty((3, rows, parts), dtype=dtype, device=logits.device) if parts > 1 else None
    results = (log_probs, entropies if entropy else None, log_sums)
    numbers = (shape[1], vocabulary, *logits.stride(), *tokens.stride(), first_token, ignore_index, float(temperature))
    with torch.cuda.device_of(logits):
        forward_kernel[(rows, parts)](
            logits,
            tokens,
            *results,
            records,
            *numbers,
            ENTROPY=entropy,
            PARTIAL=partial,
            R=LOADS,
            L=LANES,
            E=elements,
            **OPTIONS,
        )
        if records is not None:
            merge_kernel[(rows,)](
                logits, tokens, *results, records, parts, *numbers, PARTIAL=partial, P=SPLITS, **MERGE_OPTIONS
            )
    return log_probs, entropies, log_sums


def token_logprobs_gradient(
    logits: Tensor,
    tokens: Tensor,
    log_sums: Tensor,
    entropies: Tensor,
    grad_log_probs: Tensor | None,
    grad_entropies: Tensor | None,
    temperature: float = 1.0,
    first_token: int = 0,
    ignore_index: int = -100,
) -> Tensor:
    """Implements ``morlfast::token_logprobs_gradient`` for CUDA: -> (B, T, V) in the dtype of the logits."""
    read = None if grad_entropies is None else entropies
    others = {"log_sums": log_sums, "entropies": read}
    others |= {"grad_log_probs": grad_log_probs, "grad_entropies": grad_entropies}
    _check(logits, tokens, **others)
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if grad.numel() == 0:
        return grad
    tile = TILE // 8 if logits.dtype == torch.float64 else TILE
    strides = [step for x in others.values() for step in ((0, 0) if x is None else x.stride())]
    with torch.cuda.device_of(logits):
        gradient_kernel[(tokens.numel() * triton.cdiv(logits.shape[2], tile),)](
            logits,
            tokens,
            *others.values(),
            grad,
            logits.shape[1],
            logits.shape[2],
            *logits.stride(),
            *tokens.stride(),
            *strides,
            first_token,
            ignore_index,
            float(temperature),
            TILE=tile,
            **OPTIONS,
        )
    return grad
