"""Group advantages against the trainers' own functions where they are installed, else against their formulas.

verl's need its environment in front: `PYTHONPATH=.venv/trainers/verl python -m bench --op advantages --threads 2`, and
`--cap 60` for those that take that long.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

import morlfast
import numpy as np
import torch
from morlfast.returns import gae, whiten
from numpy.typing import NDArray
from torch import Tensor

from bench.driver import Case, Inputs, Operation, Peer, Shape, Unit, close

# The trainers compute in float32 and divide rounding noise by deviations as small as a group's.
SAME_ADVANTAGES = close(rtol=1e-4, atol=1e-4)
TRL, VERL, NEMO, SLIME = "1.16 formula", "0.9 formula, Python loop", "7ea279ab formula", "624b824a formula"
TRL_TARGETS = {(256, 1): 1.0, (256, 8): 1.0, (2048, 8): 3.0}
NAN_SHARE = {"scored": 0.0, "1 % NaN": 0.01}
MASKS = {"int64 mask": torch.int64, "bool mask": torch.bool, "float32 mask": torch.float32}


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
            peers=(Peer("TRL", SAME_ADVANTAGES, theirs, version=TRL, target=TRL_TARGETS.get((n, m))),),
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


def uids(n: int, group_size: int, generator: torch.Generator) -> NDArray[np.object_]:
    """One string for each rollout, as verl's driver has them, in any order."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    drawn = random.Random(seed)
    groups = [str(uuid.UUID(int=drawn.getrandbits(128), version=4)) for _ in range(n // group_size)]
    labels = np.array([label for label in groups for _ in range(group_size)], dtype=object)
    drawn.shuffle(labels)  # type: ignore[arg-type]
    return labels


def masks(n: int, num_tokens: int, kind: str, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(1, num_tokens + 1, (n, 1), generator=generator)
    return (torch.arange(num_tokens) < lengths).to(MASKS[kind])


def filling(n: int, num_tokens: int, target: float | None) -> Unit:
    """What the result costs even if it were a constant."""
    return Unit("torch.full of the result", lambda *_: torch.full((n, num_tokens), 1.0), target)


def _verl(function: str, **options: Any) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from verl.trainer.ppo import core_algos

        compute = getattr(core_algos, function)
        return lambda rewards, mask, index, *more: compute(rewards, mask, index, *more, **options)[0]

    return load


def grpo_tokens(shape: Shape, kind: str) -> Case:
    n, num_tokens, group_size = shape

    def setup(generator: torch.Generator) -> Inputs:
        mask = masks(n, num_tokens, kind, generator)
        rewards = torch.zeros(n, num_tokens)
        rewards.scatter_(1, (mask != 0).sum(1, keepdim=True) - 1, torch.randn(n, 1, generator=generator))
        return rewards, mask, uids(n, group_size, generator)

    def ours(rewards: Tensor, mask: Tensor, index: NDArray[np.object_]) -> Tensor:
        return morlfast.group_advantages(
            token_rewards=rewards, group_ids=index, mask=mask, preset="verl", method="grpo"
        )

    of_issue = kind == "int64 mask" and n == 16384
    loop, vectorized = (_verl(f"compute_grpo_{form}outcome_advantage") for form in ("", "vectorized_"))
    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        peers=(
            Peer("verl loop", SAME_ADVANTAGES, loop, "verl", target=15.0 if of_issue else None),
            Peer("verl vectorized", SAME_ADVANTAGES, vectorized, "verl", target=8.0 if of_issue else None),
        ),
        unit=filling(n, num_tokens, 1.5 if of_issue else None),
        moved_bytes=n * num_tokens * (4 + MASKS[kind].itemsize + 4),
        work=float(n),
        note="uid: an object array of UUID strings in any order",
    )


def gdpo_tokens(shape: Shape, kind: str) -> Case:
    n, num_tokens, m, group_size = shape
    weights = torch.linspace(0.5, 1.5, m)
    keys = [f"reward {k}" for k in range(m)]

    def setup(generator: torch.Generator) -> Inputs:
        rewards = rewards_of(n, m, "scored", generator)
        return rewards, masks(n, num_tokens, kind, generator), uids(n, group_size, generator)

    def ours(rewards: Tensor, mask: Tensor, index: NDArray[np.object_]) -> Tensor:
        return morlfast.group_advantages(
            rewards, group_ids=index, weights=weights, mask=mask, preset="verl", method="gdpo"
        )

    def prepare(rewards: Tensor, mask: Tensor, index: NDArray[np.object_]) -> Inputs:
        batch = {"prompts": mask[:, :0], "attention_mask": mask.long()}
        config = {"gdpo_reward_keys": keys, "gdpo_reward_weights": weights.tolist()}
        values = dict(zip(keys, rewards.T.numpy(), strict=True))
        return torch.zeros(n, num_tokens), mask, index, 1e-6, True, config, values, batch

    of_issue = kind == "int64 mask" and n == 16384
    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        peers=(
            Peer(
                "verl",
                SAME_ADVANTAGES,
                _verl("compute_gdpo_outcome_advantage"),
                "verl",
                prepare=prepare,
                target=150.0 if of_issue else None,
            ),
        ),
        unit=filling(n, num_tokens, 1.5 if of_issue else None),
        moved_bytes=n * (4 * m + num_tokens * (MASKS[kind].itemsize + 4)),
        work=float(n * m),
        note="uid: an object array of UUID strings in any order",
    )


def nemo_grpo(rewards: Tensor, prompts: Tensor) -> Tensor:
    """NeMo-RL, git 7ea279ab: mean and deviation of the others with the same prompt, prompt by prompt."""
    baseline, deviation = rewards.clone(), torch.zeros_like(rewards)
    for prompt in torch.unique(prompts, dim=0):
        rows = (prompts == prompt).all(dim=1).nonzero().squeeze(1)
        n = len(rows)
        if n == 1:
            continue
        own = rewards[rows]
        others = torch.ones(n, n) - torch.eye(n)
        mean, square = others @ own / (n - 1), others @ own.square() / (n - 1)
        baseline[rows] = mean
        deviation[rows] = ((square - mean.square()) * (n - 1) / (n - 2)).sqrt().nan_to_num(0.0)
    centred = rewards - baseline
    return torch.where(deviation > 0, centred / (deviation + 1e-6), centred)


def grpo_prompts(shape: Shape, kind: str) -> Case:
    n, prompt_length, group_size = shape

    def setup(generator: torch.Generator) -> Inputs:
        prompts = torch.randint(32_000, (n // group_size, prompt_length), generator=generator)
        order = torch.randperm(n, generator=generator)
        return torch.randn(n, generator=generator), prompts[order // group_size]

    def ours(rewards: Tensor, prompts: Tensor) -> Tensor:
        return morlfast.group_advantages(rewards, group_ids=prompts, preset="nemo", method="grpo")

    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        peers=(
            Peer(
                "NeMo-RL",
                SAME_ADVANTAGES,
                lambda: nemo_grpo,
                version=NEMO,
                target=100.0 if n == 16384 else None,
            ),
        ),
        moved_bytes=n * (8 * prompt_length + 4 + 4),
        work=float(n) ** 2,
        series=f"S={prompt_length}",
        note="rollouts of one prompt are those with equal token ids",
    )


GAMMA, LAM = 0.99, 0.95
CHUNK = 128


def slime_gae(rewards: Tensor, values: Tensor) -> Tensor:
    """slime, git 624b824a: chunks of 128 tokens by a matrix of powers of gamma lambda, then one after another."""
    n, num_tokens = rewards.shape
    following = torch.cat([values[:, 1:], values.new_zeros(n, 1)], dim=1)
    delta = (rewards + GAMMA * following - values).view(n, -1, CHUNK)
    steps = torch.arange(CHUNK)
    powers = torch.tril((GAMMA * LAM) ** (steps[:, None] - steps).clamp(min=0).float())  # from a token to earlier ones
    local = delta @ powers
    to_end = (GAMMA * LAM) ** (CHUNK - steps).float()
    behind = delta.new_zeros(n, 1)
    for chunk in reversed(range(num_tokens // CHUNK)):
        local[:, chunk] += behind * to_end
        behind = local[:, chunk, :1]
    return local.view(n, num_tokens)


def gae_tokens(shape: Shape, kind: str) -> Case:
    n, num_tokens = shape
    whitened = kind == "whitened"

    def setup(generator: torch.Generator) -> Inputs:
        rewards, values = torch.randn(2, n, num_tokens, generator=generator)
        return (rewards, values, masks(n, num_tokens, "int64 mask", generator)) if whitened else (rewards, values)

    def ours(rewards: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        advantages = gae(rewards, values, gamma=GAMMA, lam=LAM, mask=mask, outside="carry").advantages
        return whiten(advantages, mask, outside="whiten") if whitened else advantages

    verl = _verl("compute_gae_advantage_return", gamma=GAMMA, lam=LAM)
    slime = Peer("slime chunks", SAME_ADVANTAGES, lambda: slime_gae, version=SLIME, target=1.2 if n == 2048 else None)
    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        peers=(Peer("verl", SAME_ADVANTAGES, verl, "verl", target=10.0 if n == 2048 else None) if whitened else slime,),
        moved_bytes=n * num_tokens * (4 * 4 + 8 * whitened),
        work=float(n),
        series=kind,
        note="advantages and returns; whitened: by an int64 mask, as in verl",
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
    Operation(
        "grpo_tokens",
        ("N", "T", "G"),
        tuple(MASKS),
        ((256, 1024, 16), (2048, 1024, 16), (16384, 1024, 16)),
        grpo_tokens,
        devices=("cpu",),
    ),
    Operation(
        "gdpo_tokens",
        ("N", "T", "M", "G"),
        tuple(MASKS),
        ((256, 1024, 8, 16), (2048, 1024, 8, 16), (16384, 1024, 8, 16)),
        gdpo_tokens,
        devices=("cpu",),
    ),
    Operation(
        "grpo_prompts",
        ("N", "S", "G"),
        ("scored",),
        ((256, 512, 16), (2048, 512, 16), (16384, 512, 16)),
        grpo_prompts,
        devices=("cpu",),
    ),
    Operation(
        "gae",
        ("N", "T"),
        ("whitened", "plain"),
        ((256, 1024), (2048, 1024)),
        gae_tokens,
        devices=("cpu",),
    ),
)
