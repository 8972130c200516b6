"""Selection of rollouts of the largest variance against PODS's loop, rebuilt from its description, and a sort."""

from __future__ import annotations

from collections.abc import Callable

import morlfast
import torch
from torch import Tensor

from bench.driver import Agreement, Case, Inputs, Operation, Peer, Shape, Unit


def pods_loop(k: int, group_size: int) -> Callable[[Tensor], Tensor]:
    """PODS (arXiv 2504.13818), group by group: the k largest, then i largest and k - i smallest for i = 0, 1, ...;
    a split is replaced by one of strictly larger variance."""

    def select(rewards: Tensor) -> Tensor:
        selected = torch.zeros(rewards.shape, dtype=torch.bool, device=rewards.device)
        for start in range(0, len(rewards), group_size):
            group = rewards[start : start + group_size]
            order = torch.argsort(group, descending=True)
            best = order[:k]
            most = group[best].var()
            for i in range(k):
                split = torch.cat([order[:i], order[group_size - (k - i) :]])
                variance = group[split].var()
                if variance > most:
                    best, most = split, variance
            selected[start + best] = True
        return selected

    return select


def split_sums(k: int, group_size: int) -> Callable[[Tensor], Tensor]:
    """All groups at once: a sort, and sums of the i largest and k - i smallest for every i."""

    def select(rewards: Tensor) -> Tensor:
        ordered, order = rewards.view(-1, group_size).double().sort(dim=1, descending=True)
        x = ordered - (ordered[:, :1] + ordered[:, -1:]) / 2
        powers = torch.stack([x, x.square()])  # [2, groups, group_size]
        high = torch.nn.functional.pad(powers[:, :, :k].cumsum(2), (1, 0))
        low = torch.nn.functional.pad(powers[:, :, group_size - k :].flip(2).cumsum(2), (1, 0)).flip(2)
        total, squares = high + low
        top = (k * squares - total.square()).argmax(1, keepdim=True)
        place = torch.arange(group_size, device=rewards.device)
        chosen = (place < top) | (place >= group_size - k + top)
        return torch.zeros_like(chosen).scatter_(1, order, chosen).flatten()

    return select


def same_variance(k: int, group_size: int) -> Agreement:
    def problem(ours: Tensor, theirs: Tensor, inputs: Inputs) -> str | None:
        groups = inputs[0].double().view(-1, group_size)
        reached = []
        for mask in (ours, theirs):
            chosen = mask.view(-1, group_size)
            if not bool((chosen.sum(1) == k).all()):
                return f"not {k} of each group"
            reached.append(groups[chosen].view(-1, k).var(1))
        difference = ((reached[0] - reached[1]) / reached[1].clamp(min=1e-12)).abs().max().item()
        return f"variances apart by {difference:g}" if difference > 1e-5 else None

    return Agreement("variance reached, rtol 1e-05", problem)


def select_rollouts(shape: Shape, kind: str) -> Case:
    n, group_size, k = shape

    def setup(generator: torch.Generator) -> Inputs:
        rewards = torch.randn(n, generator=generator)
        return ((rewards > 0).float() if kind == "binary" else rewards,)

    def ours(rewards: Tensor) -> Tensor:
        if group_size == n:
            return morlfast.select_rollouts(rewards, k, scope="batch").mask
        return morlfast.select_rollouts(rewards, k, group_size=group_size).mask

    agreement, of_issue = same_variance(k, group_size), (n, group_size, k) == (65536, 64, 16)
    loop = Peer(
        "PODS loop",
        agreement,
        lambda: pods_loop(k, group_size),
        version="rebuilt from its description",
        target=100.0 if of_issue else None,
        left_out="k splits of k rewards each" if group_size == n else "",
    )
    return Case(
        setup=setup,
        ours=ours,
        dtype="float32",
        peers=(loop, Peer("torch, all splits at once", agreement, lambda: split_sums(k, group_size))),
        unit=Unit("torch.sort of the rewards", lambda rewards: rewards.view(-1, group_size).sort(dim=1), 3.0),
        moved_bytes=n * (4 + 1),
        work=float(n),
    )


OPERATIONS = (
    Operation(
        "select_rollouts",
        ("N", "G", "k"),
        ("rewards", "binary"),
        ((8192, 64, 16), (65536, 64, 16), (65536, 65536, 16384)),
        select_rollouts,
    ),
)
