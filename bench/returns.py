"""Scans along tokens and whitening against the trainers' loops, written out from their formulas.

GAE against verl's own function and slime's chunks is in the family of advantages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from morlfast.returns import discounted_returns, gae, length_adaptive_lambda, turn_returns, whiten
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Peer, Shape, close

# float32 sums over a thousand tokens.
SAME = close(rtol=1e-4, atol=2e-4)
GAMMA, LAM = 0.99, 0.95
MASKS = {"bool mask": torch.bool, "int64 mask": torch.int64, "float32 mask": torch.float32}
SHAPES = ((256, 1024), (2048, 1024))


def responses(n: int, t: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """(N, T): answers of T / 3 to T tokens."""
    lengths = torch.randint(t // 3, t + 1, (n, 1), generator=generator)
    return (torch.arange(t) < lengths).to(dtype)


def carry_forward_gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float | Tensor = LAM) -> Tensor:
    """verl 0.9 and NeMo-RL: token by token; outside the mask the next value and the trace are kept."""
    m = mask.to(values.dtype)
    following = trace = values.new_zeros(len(values))
    reversed_: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + GAMMA * following - values[:, t]
        new = delta + GAMMA * lam * trace
        following = values[:, t] * m[:, t] + (1 - m[:, t]) * following
        trace = new * m[:, t] + (1 - m[:, t]) * trace
        reversed_.append(trace)
    return torch.stack(reversed_[::-1], dim=1) * m


def decoupled_gae(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """NeMo-RL, VAPO's lambdas: the whole estimation twice."""
    lam = 1 - 1 / (0.05 * mask.sum(1).float()).clamp(min=1)
    return carry_forward_gae(rewards, values, mask, lam), carry_forward_gae(rewards, values, mask, 1.0)


def carry_through_returns(rewards: Tensor, mask: Tensor) -> Tensor:
    """verl 0.9, REINFORCE++: token by token."""
    returns = torch.zeros_like(rewards)
    running = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        new = rewards[:, t] + GAMMA * running
        returns[:, t] = new * mask[:, t]
        running = new * mask[:, t] + running * (1 - mask[:, t])
    return returns


def bessel_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """verl 0.9, masked_whiten."""
    count = mask.sum()
    mean = (torch.where(mask.bool(), values, 0.0) * mask).sum() / (count + 1e-8)
    squares = torch.where(mask.bool(), (values - mean) ** 2, 0.0) * mask
    variance = squares.sum() / (count + 1e-8) * (count / (count - 1))
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def population_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """OpenRLHF 0.11: population variance, clamped."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).pow(2) * mask).sum() / count
    return (values - mean) * variance.clamp(min=1e-8).rsqrt() * mask


def looped_turns(rewards: Tensor, ends: Tensor) -> Tensor:
    """IGPO's scan: row by row and turn by turn, each turn's return written to its tokens."""
    result = torch.zeros_like(rewards)
    for i in range(len(rewards)):
        total, stop = 0.0, rewards.shape[1]
        for end in reversed(ends[i].nonzero().flatten().tolist()):
            result[i, end + 1 : stop] = total
            total = rewards[i, end].item() + GAMMA * total
            stop = end + 1
        result[i, :stop] = total
    return result


def _peer(name: str, formula: Callable[..., Any], version: str, target: float | None = None) -> Peer:
    return Peer(name, SAME, lambda: formula, version=version, target=target)


def gae_masks(shape: Shape, kind: str) -> Case:
    n, t = shape
    dtype = MASKS.get(kind, torch.bool)

    def setup(generator: torch.Generator) -> Inputs:
        rewards, values = torch.randn(2, n, t, generator=generator)
        return rewards, values, responses(n, t, dtype, generator)

    def ours(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return gae(rewards, values, gamma=GAMMA, lam=LAM, mask=mask).advantages

    def decoupled(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        lam = length_adaptive_lambda(mask)
        return gae(rewards, values, gamma=GAMMA, lam=lam, returns_lam=1.0, mask=mask).advantages

    loop = _peer("Python loop", carry_forward_gae, "verl 0.9, NeMo-RL formula", 10.0 if n == 2048 else None)
    twice = _peer("Python loop", lambda *inputs: decoupled_gae(*inputs)[0], "NeMo-RL formula")
    return Case(
        setup=setup,
        ours=decoupled if kind == "decoupled" else ours,
        dtype="float32",
        peers=(twice if kind == "decoupled" else loop,),
        moved_bytes=n * t * (4 * 4 + dtype.itemsize),
        work=float(n * t),
        series=kind,
    )


def returns_of(shape: Shape, kind: str) -> Case:
    n, t = shape

    def setup(generator: torch.Generator) -> Inputs:
        return torch.randn(n, t, generator=generator), responses(n, t, MASKS[kind], generator)

    return Case(
        setup=setup,
        ours=lambda rewards, mask: discounted_returns(rewards, GAMMA, mask=mask),
        dtype="float32",
        peers=(_peer("Python loop", carry_through_returns, "verl 0.9 formula"),) if kind != "bool mask" else (),
        moved_bytes=n * t * (2 * 4 + MASKS[kind].itemsize),
        work=float(n * t),
        series=kind,
    )


def whitened(shape: Shape, kind: str) -> Case:
    n, t = shape
    formula, convention = (bessel_whiten, "bessel") if kind == "bessel" else (population_whiten, "population")
    version = "verl 0.9 formula" if kind == "bessel" else "OpenRLHF 0.11 formula"

    def setup(generator: torch.Generator) -> Inputs:
        return torch.randn(n, t, generator=generator) + 0.5, responses(n, t, torch.int64, generator)

    return Case(
        setup=setup,
        ours=lambda values, mask: whiten(values, mask, convention=convention),  # type: ignore[arg-type]
        dtype="float32",
        peers=(_peer("torch", formula, version),),
        moved_bytes=n * t * (2 * 4 + 8),
        work=float(n * t),
        series=kind,
        note="by an int64 mask, as in both",
    )


def turns(shape: Shape, kind: str) -> Case:
    n, t = shape

    def setup(generator: torch.Generator) -> Inputs:
        ends = torch.rand(n, t, generator=generator) < 0.01
        return torch.where(ends, torch.randn(n, t, generator=generator), 0.0), ends

    return Case(
        setup=setup,
        ours=lambda rewards, ends: turn_returns(rewards, ends, GAMMA),
        dtype="float32",
        peers=(_peer("Python loop", looped_turns, "IGPO's scan"),),
        moved_bytes=n * t * (2 * 4 + 1),
        work=float(n * t),
    )


OPERATIONS = (
    Operation("gae_masks", ("N", "T"), (*MASKS, "decoupled"), SHAPES, gae_masks),
    Operation("discounted_returns", ("N", "T"), tuple(MASKS), SHAPES, returns_of),
    Operation("whiten", ("N", "T"), ("bessel", "population"), SHAPES, whitened),
    Operation("turn_returns", ("N", "T"), ("turns",), SHAPES, turns),
)
