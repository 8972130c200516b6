"""Selection of the tokens of highest entropy, or of highest |advantage| times entropy, in the whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import morlfast
import numpy
import torch
from torch import Tensor

from bench.driver import Agreement, Case, Inputs, Operation, Peer, Shape

RATIO = 0.2
MASKS = {"int64 mask": torch.int64, "float32 mask": torch.float32}
# Of the issue: at least so many times as fast as TRL's mask, and as a partition.
TARGETS = {(64, 4096): (20.0, 3.0), (512, 8192): (30.0, 4.0)}


def rollouts(shape: Shape, kind: str, generator: torch.Generator) -> Inputs:
    """Advantages (N,), entropies (N, T), mask (N, T): answers of T / 3 to T tokens."""
    n, t = shape
    lengths = torch.randint(t // 3, t + 1, (n, 1), generator=generator)
    advantages = torch.randn(n, generator=generator) if kind == "advantage-entropy" else torch.ones(n)
    entropies = -torch.log1p(-torch.rand(n, t, generator=generator))
    return advantages, entropies, (torch.arange(t) < lengths).to(MASKS.get(kind, torch.bool))


def quota(valid: int) -> int:
    return math.ceil(RATIO * valid * (1 - 2.0**-50))


def scores(advantages: Tensor, entropies: Tensor) -> Tensor:
    return advantages.abs()[:, None] * entropies


def trl_mask() -> Callable[..., Tensor]:
    """TRL 1.16: entropies of at least the interpolated quantile of the valid ones; the limit is 2**24 tokens."""

    def mask_of(advantages: Tensor, entropies: Tensor, mask: Tensor) -> Tensor:
        threshold = torch.quantile(entropies[mask.bool()].float(), 1 - RATIO)
        return (entropies * mask.float() >= threshold) & mask.bool()

    return mask_of


def topk_mask(product: bool) -> Callable[[], Callable[..., Tensor]]:
    def mask_of(advantages: Tensor, entropies: Tensor, mask: Tensor) -> Tensor:
        score = scores(advantages, entropies) if product else entropies
        valid = mask.bool()
        score = score.masked_fill(~valid, -torch.inf).flatten()
        chosen = torch.topk(score, quota(int(valid.sum())), sorted=False).indices
        selected = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
        selected[chosen] = True
        return selected.view(mask.shape)

    return lambda: mask_of


def partition_mask(product: bool) -> Callable[[], Callable[..., Any]]:
    def mask_of(advantages: Any, entropies: Any, mask: Any) -> Any:
        score = numpy.abs(advantages)[:, None] * entropies if product else entropies
        flags = mask != 0
        valid = score[flags]
        place = valid.size - quota(valid.size)
        return (score >= numpy.partition(valid, place)[place]) & flags

    return lambda: mask_of


def as_arrays(*inputs: Tensor) -> Inputs:
    return tuple(x.cpu().numpy() for x in inputs)


def same_but_for(flips: int, tolerance: str) -> Agreement:
    """The same tokens, except among equal scores at the threshold and for `flips` tokens next to it."""

    def problem(ours: Tensor, theirs: Any, inputs: Inputs) -> str | None:
        advantages, entropies, mask = inputs
        mask, theirs = mask.bool(), torch.as_tensor(theirs).to(ours.device)
        score = scores(advantages, entropies)
        if bool((theirs & ~mask).any()):
            return "they keep a token outside the mask"
        if int(ours.sum()) != quota(int(mask.sum())):
            return f"ours keeps {int(ours.sum())} tokens instead of {quota(int(mask.sum()))}"
        lowest = score[ours].min()
        above, level = int((theirs & (score > lowest)).sum()), int((ours & (score > lowest)).sum())
        if abs(above - level) > flips:
            return f"{above} tokens above the threshold against {level}"
        below = int((theirs & (score < lowest)).sum())
        if below > flips:
            return f"{below} tokens below the threshold"
        at_threshold = int((mask & (score == lowest)).sum())
        if abs(int(theirs.sum()) - int(ours.sum())) > flips + at_threshold:
            return f"{int(theirs.sum())} tokens against {int(ours.sum())}"
        return None

    return Agreement(tolerance, problem)


TIES = same_but_for(0, "same tokens but for equal scores at the threshold")
INTERPOLATED = same_but_for(1, "same tokens but for equal scores at the threshold and one token next to it")


SAME = Agreement(
    "exactly equal",
    lambda ours, theirs, _: None if torch.equal(ours, theirs) else f"{int((ours ^ theirs).sum())} differ",
)


def select_tokens(shape: Shape, kind: str) -> Case:
    n, t = shape
    product, quantile = kind == "advantage-entropy", kind == "quantile"
    of_trl, of_partition = TARGETS.get((n, t), (None, None))
    trl = Peer(
        "TRL torch.quantile", SAME if quantile else INTERPOLATED, trl_mask, version="1.16 formula", target=of_trl
    )
    by_count = (
        Peer("torch.topk", TIES, topk_mask(product), distribution="torch"),
        Peer(
            "numpy.partition",
            TIES,
            partition_mask(product),
            "numpy",
            prepare=as_arrays,
            host=True,
            target=of_partition,
        ),
    )

    def ours(advantages: Tensor, entropies: Tensor, mask: Tensor) -> Tensor:
        threshold: Literal["exact", "quantile"] = "quantile" if quantile else "exact"
        return morlfast.select_tokens(advantages, entropies, mask, RATIO, threshold=threshold)

    return Case(
        setup=lambda generator: rollouts(shape, kind, generator),
        ours=ours,
        dtype="float32",
        peers=by_count if product else (trl,) if quantile else (trl, *by_count),
        moved_bytes=4 * n + n * t * (4 + MASKS.get(kind, torch.bool).itemsize + 1),
        work=float(n * t),
    )


OPERATIONS = (
    Operation(
        "select_tokens",
        ("N", "T"),
        ("entropy", *MASKS, "quantile", "advantage-entropy"),
        ((64, 4096), (512, 8192)),
        select_tokens,
        cuda_shapes=((512, 8192), (2048, 8192)),
    ),
)
