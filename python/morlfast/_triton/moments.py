"""Means and deviations of tiles and of whole batches, and reading elements of any type, for the kernels of several
families.

Values are shifted by a pivot, the first of them, and tiles are merged pairwise (Chan, Golub, LeVeque 1983), so that
equal values leave mean, deviation and centred values exactly zero.
"""

# Compile-time arguments are capitals, and kernels are typed by Triton alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

# Codes of eps_to.
TO_VARIANCE, AS_FLOOR = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def wide(x):
    """A loaded float of any type as float64."""
    return x if x.dtype == tl.float64 else x.to(tl.float32).to(tl.float64)


@triton.jit
def is_set(mask_ptr, present):
    """Which of the mask's elements, of any type, are nonzero."""
    element = tl.load(mask_ptr, mask=present, other=0)
    if element.dtype.is_floating() and element.dtype.primitive_bitwidth < 32:
        element = element.to(tl.float32)
    return element != 0


@triton.jit
def fold(value, scored, times, pivot, count, mean, m2, L: tl.constexpr):
    """Adds a tile [P, L, K], each value counted `times` times, to the statistics [P, K] of (value - pivot): count,
    mean, sum of squared deviations."""
    member = tl.arange(0, L)[None, :, None]
    first = tl.min(tl.where(scored, member, L), axis=1)
    head = tl.sum(tl.where(member == first[:, None, :], value, 0.0), axis=1)
    pivot = tl.where(count > 0, pivot, head)

    times = tl.where(scored, times, 0.0)
    tile_count = tl.sum(times, axis=1)
    shifted = tl.where(scored, value - pivot[:, None, :], 0.0)
    tile_mean = tl.sum(times * shifted, axis=1) / tl.maximum(tile_count, 1.0)
    deviation = tl.where(scored, shifted - tile_mean[:, None, :], 0.0)
    tile_m2 = tl.sum(times * (deviation * deviation), axis=1)

    total = tl.maximum(count + tile_count, 1.0)
    delta = tile_mean - mean
    m2 += tile_m2 + delta * (delta * (count * tile_count / total))  # delta^2 may overflow where count is 0
    mean += delta * (tile_count / total)
    return pivot, count + tile_count, mean, m2


@triton.jit
def record(records_ptr, program, programs, pivot, count, mean, m2, K: tl.constexpr):
    """Leaves statistics [1, K] for merge."""
    at = records_ptr + program * K + tl.arange(0, K)[None, :]
    plane = programs * K
    tl.store(at, pivot)
    tl.store(at + plane, count)
    tl.store(at + 2 * plane, mean)
    tl.store(at + 3 * plane, m2)


@triton.jit
def merge(records_ptr, chunks, C: tl.constexpr, K: tl.constexpr):
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
def variance_of(count, m2, ddof):
    """0 of count <= ddof values."""
    freedom = count - ddof
    return tl.where(freedom > 0, m2 / tl.maximum(freedom, 1.0), 0.0)


@triton.jit
def divisor(variance, eps, EPS_TO: tl.constexpr):
    if EPS_TO == TO_VARIANCE:
        return tl.sqrt(variance + eps)
    std = tl.sqrt(variance)
    return tl.where(std < eps, eps, std) if EPS_TO == AS_FLOOR else std + eps
