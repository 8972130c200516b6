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
    tokens = (
        torch.randn(8, generator=generator),
        torch.rand(8, 300, generator=generator),
        torch.rand(8, 300, generator=generator) < 0.8,
    )
    for scope, group_size in (("batch", None), ("group", 4), ("sequence", None)):
        check(
            f"select_tokens {scope}",
            lambda a, h, k, scope=scope, group_size=group_size: morlfast.select_tokens(
                a, h, k, 0.2, scope=scope, group_size=group_size
            ),
            *tokens,
        )
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
