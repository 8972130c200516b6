"""Group advantages against the trainers' own formulas, written out here as torch and Python expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morlfast
import torch
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Peer, Shape, close

# The trainers compute in float32 and divide rounding noise by deviations as small as a group's.
SAME_ADVANTAGES = close(rtol=1e-4, atol=1e-4)
TRL, VERL = "1.16 formula", "0.9 formula, Python loop"
NAN_SHARE = {"scored": 0.0, "1 % NaN": 0.01}


def rewards_of(n: int, m: int, kind: str, generator: torch.Generator) -> Tensor:
    """(N, M): every other objective is a coin, as a verifier's rewards are; the rest are normal."""
    rewards = torch.randn(n, m, generator=generator)
    rewards[:, ::2] = torch.rand(n, (m + 1) // 2, generator=generator).round() if m > 1 else rewards[:, ::2]
    rewards[torch.rand(n, m, generator=generator) < NAN_SHARE[kind]] = torch.nan
    return rewards


def nan_std(values: Tensor, dim: int) -> Tensor:
    """Standard deviation with n - 1 over the values that are not NaN."""
    mean = torch.nanmean(values, dim=dim, keepdim=True)
    variance = torch.nanmean((values - mean) ** 2, dim=dim)
    count = torch.sum(~torch.isnan(values), dim=dim)
    return torch.sqrt(variance * (count / (count - 1)))


def trl_gdpo(rewards: Tensor, weights: Tensor, group_size: int) -> Tensor:
    """TRL 1.16, normalize_then_sum: A = (s - nanmean s) / (nanstd s + 1e-4), s = nansum_k w_k z_k."""
    groups = rewards.view(-1, group_size, rewards.shape[1])
    mean, std = torch.nanmean(groups, dim=1, keepdim=True), nan_std(groups, dim=1).unsqueeze(1)
    normalized = ((groups - mean) / (std + 1e-4)).view(rewards.shape)
    score = (normalized * weights).nansum(dim=1)
    score = torch.where(torch.isnan(rewards).all(dim=1), torch.nan, score)
    return torch.nan_to_num((score - torch.nanmean(score)) / (nan_std(score, dim=0) + 1e-4), nan=0.0)


def trl_grpo(rewards: Tensor, weights: Tensor, group_size: int) -> Tensor:
    """TRL 1.16, sum_then_normalize: A = (s - nanmean_g s) / (nanstd_g s + 1e-4), s = nansum_k w_k r_k."""
    score = (rewards * weights).nansum(dim=1)
    score = torch.where(torch.isnan(rewards).all(dim=1), torch.nan, score)
    groups = score.view(-1, group_size)
    mean = torch.nanmean(groups, dim=1).repeat_interleave(group_size)
    std = nan_std(groups, dim=1).repeat_interleave(group_size)
    return torch.nan_to_num((score - mean) / (std + 1e-4), nan=0.0)


def verl_grpo_loop(scores: Tensor, ids: list[int]) -> Tensor:
    """verl 0.9, grpo: A = (r - mean_g) / (std_g + 1e-6), mean 0 and std 1 in a group of one."""
    members: dict[int, list[Tensor]] = {}
    means, deviations = {}, {}
    with torch.no_grad():
        for i, group in enumerate(ids):
            members.setdefault(group, []).append(scores[i])
        for group, values in members.items():
            stacked = torch.stack(values)
            single = len(values) == 1
            means[group] = torch.tensor(0.0) if single else torch.mean(stacked)
            deviations[group] = torch.tensor(1.0) if single else torch.std(stacked)
        advantages = scores.clone()
        for i, group in enumerate(ids):
            advantages[i] = (advantages[i] - means[group]) / (deviations[group] + 1e-6)
    return advantages


def _versus_trl(formula: Callable[..., Tensor], method: str) -> Callable[[Shape, str], Case]:
    def case(shape: Shape, kind: str) -> Case:
        n, m, group_size = shape
        weights = torch.linspace(0.5, 1.5, m)

        def setup(generator: torch.Generator) -> Inputs:
            return rewards_of(n, m, kind, generator), weights

        def ours(rewards: Tensor, weights: Tensor) -> Tensor:
            return morlfast.group_advantages(rewards, group_size, weights=weights, method=method)  # type: ignore[arg-type]

        def theirs() -> Callable[..., Any]:
            return lambda rewards, weights: formula(rewards, weights, group_size)

        return Case(
            setup=setup,
            ours=ours,
            dtype="float32",
            peers=(Peer("TRL", SAME_ADVANTAGES, theirs, version=TRL),),
            moved_bytes=4 * n * (m + 1),
            work=float(n * m),
            series=f"m={m}",
        )

    return case


def grpo_ids(shape: Shape, kind: str) -> Case:
    n, group_size = shape

    def setup(generator: torch.Generator) -> Inputs:
        order = torch.randperm(n, generator=generator)
        return rewards_of(n, 1, kind, generator).reshape(n), torch.arange(n)[order] // group_size

    def ours(rewards: Tensor, ids: Tensor) -> Tensor:
        return morlfast.group_advantages(rewards, group_ids=ids, eps=1e-6)

    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        peers=(
            Peer(
                "verl",
                SAME_ADVANTAGES,
                lambda: verl_grpo_loop,
                version=VERL,
                prepare=lambda rewards, ids: (rewards.cpu(), ids.tolist()),
                host=True,
            ),
        ),
        moved_bytes=n * (4 + 8 + 4),
        work=float(n),
        note="shuffled integer ids for both; verl's own ids are strings in an object array",
    )


SIZES = (256, 2048, 16384, 131072)
OPERATIONS = (
    Operation(
        "gdpo",
        ("N", "M", "G"),
        tuple(NAN_SHARE),
        tuple((n, 8, 16) for n in SIZES),
        _versus_trl(trl_gdpo, "gdpo"),
    ),
    Operation(
        "grpo",
        ("N", "M", "G"),
        tuple(NAN_SHARE),
        tuple((n, m, 16) for m in (1, 8) for n in SIZES),
        _versus_trl(trl_grpo, "grpo"),
    ),
    Operation("grpo_ids", ("N", "G"), ("scored",), tuple((n, 16) for n in SIZES), grpo_ids),
)
