"""Every CUDA kernel once on small inputs, checked against the CPU: what compute-sanitizer watches.

Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1, so that every tensor is an allocation of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morlfast
import torch
from torch import Tensor


def check(name: str, call: Callable[..., Any], *inputs: Tensor, tolerance: float = 1e-6) -> None:
    """The same values on both devices; inputs keep whether they require a gradient."""
    found = call(*(x.cuda() for x in inputs))
    torch.testing.assert_close(found.cpu(), call(*inputs), rtol=tolerance, atol=tolerance, equal_nan=True)
    print(name, flush=True)


def gradient(points: Tensor) -> Tensor:
    leaf = points.detach().requires_grad_()
    value = morlfast.hypervolume(leaf, 1.0, maximize=False, nan="worst")
    return torch.autograd.grad(value.sum(), leaf)[0]


def box_volume(points: Tensor, region: Any) -> Tensor:
    """Devices may list the boxes in another order; without end they are cut off at -1."""
    boxes = morlfast.box_decomposition(points, 1.0, region=region, maximize=False, nan="worst")
    return (boxes.upper - boxes.lower.clamp(min=-1)).prod(-1).sum(-1)


def hypervolume_family(points: Tensor, candidates: Tensor) -> None:
    what = tuple(points.shape)
    dominated: tuple[Any, ...] = ("count", "ignore")
    for mode in dominated:
        check(
            f"hypervolume_contributions {what} {mode}",
            lambda p, mode=mode: morlfast.hypervolume_contributions(
                p, 1.0, maximize=False, dominated=mode, nan="worst"
            ),
            points,
        )
    for joint in (False, True):
        check(
            f"hypervolume_improvement {what} joint={joint}",
            lambda c, p, joint=joint: morlfast.hypervolume_improvement(
                c, p, 1.0, maximize=False, joint=joint, nan="worst"
            ),
            candidates if joint else candidates[..., 0, :],
            points,
        )
    for region in ("dominated", "non_dominated"):
        check(f"box_decomposition {what} {region}", lambda p, region=region: box_volume(p, region), points)


def pareto_family(points: Tensor, violations: Tensor, lengths: Tensor) -> None:
    what = tuple(points.shape)
    minimized: dict[str, Any] = {"maximize": False, "nan": "worst"}
    check(f"non_dominated_sort {what}", lambda p: morlfast.non_dominated_sort(p, **minimized), points)
    check(
        f"non_dominated_sort {what} with constraints",
        lambda p, v, n: morlfast.non_dominated_sort(p, constraints=v, stop_after=20, lengths=n, **minimized),
        points,
        violations,
        lengths,
    )
    check(
        f"is_non_dominated {what}",
        lambda p, n: morlfast.is_non_dominated(p, deduplicate=True, lengths=n, **minimized),
        points,
        lengths,
    )
    check(f"dominance_counts {what}", lambda p: morlfast.dominance_counts(p, **minimized), points)
    check(
        f"is_dominated_by {what}",
        lambda p, o: morlfast.is_dominated_by(p, o, **minimized),
        points,
        points[:, ::2],
    )


def indicators(points: Tensor, others: Tensor) -> None:
    what = tuple(points.shape)
    for kind in range(6):
        check(
            f"best_points {what} kind {kind}",
            lambda q, p, kind=kind: torch.cat(torch.ops.morlfast.best_points(q, p, kind, None, True), -1),
            others,
            points,
        )
    check(f"farthest_query {what}", lambda q, p: torch.ops.morlfast.farthest_query(q, p, 4), others, points)


def advantages(rewards: Tensor, ids: Tensor, mask: Tensor) -> None:
    offsets = torch.tensor([0, 1, 40, 40, 96])
    for preset, method in (("trl", "grpo"), ("trl", "gdpo"), ("verl", "opo"), ("verl", "gdpo"), ("nemo", "grpo")):
        rules: dict[str, Any] = {"preset": preset, "method": method, "nan": "skip"}
        what = f"group_advantages {preset} {method}"
        check(
            f"{what} tokens",
            lambda r, k, rules=rules: morlfast.group_advantages(r, 8, mask=k, **rules),
            rewards,
            mask,
            tolerance=1e-4,
        )
        check(
            f"{what} ids",
            lambda r, i, k, rules=rules: morlfast.group_advantages(r, group_ids=i, lengths=k, **rules),
            rewards,
            ids,
            mask.sum(1),
            tolerance=1e-4,
        )
        check(
            f"{what} offsets",
            lambda r, o, k, rules=rules: morlfast.group_advantages(r, offsets=o, mask=k, **rules),
            rewards,
            offsets,
            mask,
            tolerance=1e-4,
        )
    for baseline, scale in (("batch", "batch"), ("runner_up", "none")):
        check(
            f"group_advantages {baseline}",
            lambda r, b=baseline, s=scale: morlfast.group_advantages(r, 8, baseline=b, scale=s),
            rewards,
            tolerance=1e-4,
        )
    check(
        "group_advantages of tokens' rewards",
        lambda t, k: morlfast.group_advantages(token_rewards=t, group_size=8, mask=k),
        torch.randn(mask.shape),
        mask,
        tolerance=1e-4,
    )


def returns(rewards: Tensor, values: Tensor, mask: Tensor) -> None:
    check("linear_scan", lambda x, a, k: morlfast.linear_scan(x, a, mask=k), rewards, values, mask, tolerance=1e-4)
    options: tuple[dict[str, Any], ...] = ({"bootstrap": "repeat_last"}, {"returns_lam": 1.0, "outside": "carry"})
    for given in options:
        check(
            f"gae {given}",
            lambda r, v, k, given=given: torch.cat(morlfast.gae(r, v, gamma=0.99, mask=k, **given)),
            rewards,
            values,
            mask,
            tolerance=1e-4,
        )
    check("whiten", lambda v, k: morlfast.whiten(v, k), values, mask, tolerance=1e-4)


def tokens(advantages: Tensor, entropies: Tensor, mask: Tensor, offsets: Tensor) -> None:
    scopes: tuple[dict[str, Any], ...] = ({}, {"scope": "group", "group_size": 4}, {"scope": "sequence"})
    for options in (*scopes, {"at_least": 400}, {"threshold": "quantile"}):
        check(
            f"select_tokens {options}",
            lambda a, h, k, options=options: morlfast.select_tokens(a, h, k, 0.2, **options),
            advantages,
            entropies,
            mask,
        )
    check(
        "select_tokens offsets",
        lambda a, h, k, o: morlfast.select_tokens(a, h, k, 0.2, scope="group", offsets=o),
        advantages,
        entropies,
        mask,
        offsets,
    )
    segments, prefixes = torch.arange(len(mask)) % 3, torch.zeros(3, dtype=torch.int64)
    for level in (0, 1):
        check(
            f"token_histogram {level}",
            lambda a, h, k, s, p, level=level: torch.ops.morlfast.token_histogram(a, h, k, s, p + 0xBF * level, level),
            advantages,
            entropies,
            mask,
            segments,
            prefixes,
        )
    check(
        "select_tokens_above",
        lambda a, h, k, s, p: torch.ops.morlfast.select_tokens_above(a, h, k, s, p + 0xBF000000, p + 2),
        advantages,
        entropies.ceil() / 4,
        mask,
        segments,
        prefixes,
    )


def rollouts(rewards: Tensor, ids: Tensor, offsets: Tensor) -> None:
    methods: tuple[Any, ...] = ("max_variance", "top", "bottom", "percentile")
    for method in methods:
        options: dict[str, Any] = {"method": method}
        check(
            f"select_rollouts {method}",
            lambda r, o=options: morlfast.select_rollouts(r, 3, group_size=8, **o).mask,
            rewards,
        )
        check(
            f"select_rollouts {method} of the batch",
            lambda r, o=options: morlfast.select_rollouts(r, 17, scope="batch", **o).indices,
            rewards,
        )
        check(
            f"select_rollouts {method} ids",
            lambda r, i, o=options: morlfast.select_rollouts(r, 3, group_ids=i, **o).mask,
            rewards,
            ids,
        )
        check(
            f"select_rollouts {method} offsets",
            lambda r, b, o=options: morlfast.select_rollouts(r, 3, offsets=b, **o).mask,
            rewards,
            offsets,
        )


def logprobs(logits: Tensor, chosen: Tensor, hidden: Tensor, weight: Tensor) -> None:
    def gradient_of(logits: Tensor, chosen: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        found = morlfast.token_logprobs(leaf, chosen, temperature=0.7)
        assert found.entropies is not None
        return torch.autograd.grad((found.log_probs * 2 + found.entropies).sum(), leaf)[0]

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)):
        check(
            f"token_logprobs {dtype}",
            lambda x, t: torch.stack([*morlfast.token_logprobs(x, t)]),  # type: ignore[arg-type]
            logits.to(dtype),
            chosen,
            tolerance=1e-5,
        )
        check(f"token_logprobs {dtype} gradient", gradient_of, logits.to(dtype), chosen, tolerance=tolerance)
    check(
        "linear_token_logprobs",
        lambda h, w, t: morlfast.linear_token_logprobs(h, w, t).log_probs,
        hidden,
        weight,
        chosen,
        tolerance=1e-4,
    )


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def grid(*shape: int) -> Tensor:
        """Ties, duplicates and points beyond the reference point."""
        return torch.randint(0, 70, shape, generator=generator).double() / 64

    for m in (1, 2, 3, 4, 6):
        for shape in ((5, 33, m), (2, 300, m), (1, 3000, m)) if m <= 3 else ((5, 33, m), (1, 90, m)):
            points = grid(*shape)
            points[0, 1, 0] = torch.nan
            lengths = torch.randint(0, shape[1] + 1, shape[:1], generator=generator)
            check(
                f"hypervolume {shape}",
                lambda p, n: morlfast.hypervolume(p, 1.0, maximize=False, lengths=n, nan="worst"),
                points,
                lengths,
            )
            check(f"hypervolume_gradient {shape}", gradient, points)
        hypervolume_family(grid(3, 33, m), grid(3, 9, 2, m))
        # Without ties, which rounding would break in two ways.
        check(
            f"hypervolume_subset {m}",
            lambda p: morlfast.hypervolume_subset(p, 5, 1.0, maximize=False, nan="worst"),
            torch.rand(2, 40, m, dtype=torch.float64, generator=generator),
        )
    for shape in ((3, 60, 3), (3, 70, 2), (1, 700, 3), (2, 90, 5)):
        points = grid(*shape)
        points[0, 1, 0] = torch.nan
        violations = torch.randint(0, 3, shape[:2], generator=generator).double()
        pareto_family(points, violations, torch.randint(0, shape[1] + 1, shape[:1], generator=generator))
        indicators(grid(*shape) + 1, grid(shape[0], 37, shape[2]) + 1)
    check(  # more than one window
        "non_dominated_sort (17000, 3)",
        lambda p: morlfast.non_dominated_sort(p, maximize=False),
        torch.rand(17000, 3, dtype=torch.float64, generator=generator),
    )
    rewards = torch.randn(96, 3, generator=generator)
    rewards[5, 1] = torch.nan
    ids = torch.randint(0, 9, (96,), generator=generator)
    mask = torch.rand(96, 300, generator=generator) < 0.7
    advantages(rewards, ids, mask)
    returns(torch.randn(9, 300, generator=generator), torch.randn(9, 300, generator=generator), mask[:9])
    tokens(
        torch.randn(8, generator=generator),
        torch.rand(8, 300, generator=generator),
        torch.rand(8, 300, generator=generator) < 0.8,
        torch.tensor([0, 3, 3, 8]),
    )
    rollouts(rewards[:, 1], ids, torch.tensor([0, 1, 40, 40, 96]))
    logprobs(
        torch.randn(2, 5, 3000, generator=generator),
        torch.randint(0, 3000, (2, 5), generator=generator),
        torch.randn(2, 5, 32, generator=generator),
        torch.randn(3000, 32, generator=generator),
    )
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
