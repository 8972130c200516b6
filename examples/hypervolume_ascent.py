"""Hypervolume as a training signal: gradient ascent moves whole sets of points onto a Pareto front, in seconds.

Two studies, each from 16 random starts at once, since `morlfast.hypervolume` takes a batch of fronts:

1. 32 points on DTLZ2 with three minimized objectives (Deb, Thiele, Laumanns and Zitzler 2002). Each point has
   12 parameters of its own; Adam climbs the hypervolume of the set.
2. 16 stochastic policies in a sea of ten treasures, the returns of MO-Gymnasium's `deep-sea-treasure-v0`:
   before each column a policy dives or sails on, and the return is (treasure, -steps). The derivative of the
   hypervolume with respect to the mean return of a policy is what this policy's objectives are worth now, so it
   weights them (Deist et al. 2023, arXiv 2102.04523), and REINFORCE on sampled episodes does the rest. Beside it:
   16 fixed linear preferences, which can only want the treasures themselves, not what lies between them.

A dominated point has gradient zero and would stay where it is. "Layer by layer" therefore climbs the sum of the
hypervolumes of all non-dominated layers, each taken alone, so that every point is non-dominated among those it is
measured with (Wang, Deutz, Bäck and Emmerich 2017). A point beyond the reference point has gradient zero too:
reference points here are worse than every start.

    python examples/hypervolume_ascent.py --out .

prints two tables and writes hypervolume_ascent.png. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from morlfast import hypervolume, hypervolume_subset, non_dominated_sort
from torch import Tensor

STARTS = 16  # S, of each study
LEARNING_RATE = 0.1  # falls to zero along half a cosine

POINTS, VARIABLES, OBJECTIVES = 32, 12, 3
DTLZ2_REF_POINT = torch.full((OBJECTIVES,), 1.5, dtype=torch.float64)

POLICIES, EPISODES = 16, 32
TREASURES = torch.tensor([0.7, 8.2, 11.5, 14.0, 15.1, 16.1, 19.6, 20.3, 22.4, 23.7], dtype=torch.float64)
STEPS_TO_TREASURES = torch.tensor([1, 3, 5, 7, 8, 9, 13, 14, 17, 19], dtype=torch.float64)
OUTCOMES = torch.stack([TREASURES, -STEPS_TO_TREASURES], dim=-1)  # (10, 2), maximized
SEA_REF_POINT = torch.tensor([0.0, -25.0], dtype=torch.float64)

Objective = Callable[[Tensor, Tensor, bool], Tensor]


class Ascent(NamedTuple):
    """What S sets of points did."""

    curve: list[float]  # mean hypervolume before each step and at the end
    points: Tensor  # (S, n, m) at the end
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hypervolume as a training signal: two tables and a picture.")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for hypervolume_ascent.png (default: here)")
    parser.add_argument("--steps", type=int, default=600, help="gradient steps of each ascent (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("The picture needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # tensors this small gain nothing from more

    objectives = {"hypervolume": of_the_set, "layer by layer": of_its_layers}
    on_dtlz2 = {name: climb_dtlz2(objective, arguments.steps, arguments.seed) for name, objective in objectives.items()}
    at_sea = {"linear preferences": train_policies(None, arguments.steps, arguments.seed)}
    for name, objective in objectives.items():
        at_sea[name] = train_policies(objective, arguments.steps, arguments.seed)

    print(f"\nDTLZ2: {POINTS} points, {OBJECTIVES} objectives, {arguments.steps} steps")
    chosen = greedily_chosen(points_of_the_sphere(100), POINTS, DTLZ2_REF_POINT, maximize=False)
    whole_of_dtlz2 = whole = DTLZ2_REF_POINT.prod().item() - math.pi / 6  # the front is an eighth of the unit sphere
    print_table(on_dtlz2, DTLZ2_REF_POINT, False, chosen, whole)

    print(f"\nsea treasures: {POLICIES} policies, 2 objectives, {arguments.steps} steps of {EPISODES} episodes each")
    corners, whole = upper_envelope()
    chosen = greedily_chosen(points_of_the_envelope(corners, 2000), POLICIES, SEA_REF_POINT, maximize=True)
    print_table(at_sea, SEA_REF_POINT, True, chosen, whole)
    wanted = hypervolume(corners, SEA_REF_POINT, maximize=True).item()
    print(f"  The {len(corners)} corners of the front, all that linear preferences want: {wanted:.3f}.")

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "hypervolume_ascent.png"
    draw(path, on_dtlz2, whole_of_dtlz2, at_sea, corners)
    print(f"\nWrote {path}.")
    return 0


def of_the_set(points: Tensor, ref_point: Tensor, maximize: bool) -> Tensor:
    """(S, n, m) -> (S, 1): dominated points have gradient zero."""
    return hypervolume(points, ref_point, maximize=maximize).unsqueeze(-1)


def of_its_layers(points: Tensor, ref_point: Tensor, maximize: bool) -> Tensor:
    """(S, n, m) -> (S, L): the hypervolume of each non-dominated layer alone. The first is that of the set."""
    ranks = non_dominated_sort(points.detach(), maximize=maximize)  # (S, n)
    layers = torch.arange(int(ranks.max()) + 1)
    members = ranks.unsqueeze(-2) == layers.unsqueeze(-1)  # (S, L, n)
    copies = points.unsqueeze(-3).expand(*members.shape, points.shape[-1])
    return hypervolume(copies, ref_point, maximize=maximize, mask=members)


# ---- 32 points on DTLZ2 ----


def dtlz2(x: Tensor) -> Tensor:
    """(..., VARIABLES) in [0, 1] -> (..., OBJECTIVES), minimized. The front, norm 1, is where x[..., 2:] is 0.5."""
    angles = x[..., : OBJECTIVES - 1] * (math.pi / 2)
    distance = (x[..., OBJECTIVES - 1 :] - 0.5).square().sum(-1, keepdim=True)
    one = torch.ones_like(distance)
    cosines = torch.cat([one, angles.cos().cumprod(-1)], dim=-1).flip(-1)
    sines = torch.cat([one, angles.sin().flip(-1)], dim=-1)
    return (1 + distance) * cosines * sines


def climb_dtlz2(objective: Objective, steps: int, seed: int) -> Ascent:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(STARTS, POINTS, VARIABLES, generator=generator, dtype=torch.float64)
    logits = (0.7 * logits).requires_grad_()
    optimizer, schedule = adam(logits, steps)
    curve = []
    start = time.perf_counter()
    for _ in range(steps):
        volumes = objective(dtlz2(logits.sigmoid()), DTLZ2_REF_POINT, False)
        curve.append(volumes[:, 0].mean().item())
        optimizer.zero_grad()
        torch.autograd.backward(-volumes.sum())
        optimizer.step()
        schedule.step()
    points = dtlz2(logits.detach().sigmoid())
    curve.append(hypervolume(points, DTLZ2_REF_POINT, maximize=False).mean().item())
    return Ascent(curve, points, time.perf_counter() - start)


def points_of_the_sphere(resolution: int) -> Tensor:
    """Directions with coordinates in multiples of 1 / resolution (sum 1), on the positive part of the sphere."""
    i, j = torch.meshgrid(torch.arange(resolution + 1), torch.arange(resolution + 1), indexing="ij")
    simplex = torch.stack([i, j, resolution - i - j], dim=-1)[i + j <= resolution].double()
    return torch.nn.functional.normalize(simplex, dim=-1)


# ---- 16 policies at sea ----


def train_policies(objective: Objective | None, steps: int, seed: int) -> Ascent:
    """REINFORCE with weighted returns; weights of fixed preferences where there is no objective."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(STARTS, POLICIES, len(OUTCOMES) - 1, generator=generator, dtype=torch.float64)
    logits = (0.5 * logits - 1).requires_grad_()  # most sail on at first
    optimizer, schedule = adam(logits, steps)
    angles = (torch.arange(POLICIES) + 0.5) * (math.pi / 2 / POLICIES)
    preferences = torch.stack([angles.sin(), angles.cos()], dim=-1).double()  # (POLICIES, 2)
    curve = []
    start = time.perf_counter()
    for _ in range(steps):
        log_probs = log_probabilities(logits)  # (S, POLICIES, 10)
        curve.append(expected_hypervolume(log_probs))
        probabilities = log_probs.detach().exp().flatten(0, 1)
        episodes = torch.multinomial(probabilities, EPISODES, replacement=True, generator=generator)
        episodes = episodes.view(STARTS, POLICIES, EPISODES)
        returns = OUTCOMES[episodes]  # (S, POLICIES, EPISODES, 2)
        means = returns.mean(2)
        weights = preferences if objective is None else directions(objective, means)
        advantages = ((returns - means.unsqueeze(2)) * weights.unsqueeze(-2)).sum(-1)
        optimizer.zero_grad()
        torch.autograd.backward(-(advantages * log_probs.gather(-1, episodes)).mean(-1).sum())
        optimizer.step()
        schedule.step()
    log_probs = log_probabilities(logits)
    curve.append(expected_hypervolume(log_probs))
    return Ascent(curve, log_probs.detach().exp() @ OUTCOMES, time.perf_counter() - start)


def log_probabilities(logits: Tensor) -> Tensor:
    """(..., 9) logits of diving before each column but the last -> (..., 10) of ending at each treasure."""
    dive, sail_on = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    certain = torch.zeros_like(logits[..., :1])
    return torch.cat([certain, sail_on.cumsum(-1)], dim=-1) + torch.cat([dive, certain], dim=-1)


def expected_hypervolume(log_probs: Tensor) -> float:
    """Of the exact expected returns, mean over the starts."""
    return hypervolume(log_probs.detach().exp() @ OUTCOMES, SEA_REF_POINT, maximize=True).mean().item()


def directions(objective: Objective, means: Tensor) -> Tensor:
    """The derivatives of the objective with respect to each policy's mean return, as unit vectors (or zero)."""
    means = means.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(means, SEA_REF_POINT, True).sum(), means)
    return torch.nn.functional.normalize(gradient, dim=-1)


def upper_envelope() -> tuple[Tensor, float]:
    """Corners (k, 2) of the front of expected returns, by steps, and the hypervolume of the whole front.

    A policy can mix outcomes in any proportion, so the front is the concave envelope of the outcomes.
    """
    corners: list[tuple[float, float]] = []
    for treasure, minus_steps in OUTCOMES.tolist():
        while len(corners) > 1:
            (t0, s0), (t1, s1) = corners[-2:]
            if (t1 - t0) * (s1 - minus_steps) > (treasure - t1) * (s0 - s1):
                break
            corners.pop()
        corners.append((treasure, minus_steps))
    front = torch.tensor(corners, dtype=torch.float64)
    gaps = front[:-1, 1] - front[1:, 1]
    trapezoids = (gaps * (front[:-1, 0] + front[1:, 0]) / 2).sum() + front[-1, 0] * (front[-1, 1] - SEA_REF_POINT[1])
    return front, trapezoids.item()


def points_of_the_envelope(corners: Tensor, count: int) -> Tensor:
    """At even distances between the fewest and the most steps."""
    minus_steps = torch.linspace(corners[0, 1], corners[-1, 1], count, dtype=torch.float64)
    segment = torch.searchsorted(-corners[:, 1], -minus_steps).clamp(1, len(corners) - 1)
    left, right = corners[segment - 1], corners[segment]
    share = (left[:, 1] - minus_steps) / (left[:, 1] - right[:, 1])
    return left + share.unsqueeze(-1) * (right - left)


# ---- both ----


def adam(parameters: Tensor, steps: int) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.CosineAnnealingLR]:
    optimizer = torch.optim.Adam([parameters], lr=LEARNING_RATE)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def greedily_chosen(front: Tensor, count: int, ref_point: Tensor, maximize: bool) -> tuple[int, float]:
    """How many points the front was sampled with, and the hypervolume of `count` chosen among them."""
    best = front[hypervolume_subset(front, count, ref_point, maximize=maximize)]
    return len(front), hypervolume(best, ref_point, maximize=maximize).item()


def print_table(
    ascents: dict[str, Ascent],
    ref_point: Tensor,
    maximize: bool,
    chosen: tuple[int, float],
    whole: float,
) -> None:
    """Mean, deviation and best of the starts; what the mean misses to the whole front; points not dominated."""

    def row(label: str, volumes: Tensor, rest: str = "") -> None:
        mean = volumes.mean().item()
        deviation = f"± {volumes.std().item():.3f}" if len(volumes) > 1 else ""
        missing = whole - mean
        print(f"  {label:32}{mean:10.3f} {deviation:9}{volumes.max().item():10.3f}{missing:10.3f}   {rest}".rstrip())

    print(f"  {f'({STARTS} starts)':32}{'mean hypervolume':20}{'best':>10}{'missing':>10}   not dominated   seconds")
    first = next(iter(ascents.values()))
    print(f"  {'before':32}{first.curve[0]:10.3f} {'':9}{'':10}{whole - first.curve[0]:10.3f}")
    for name, ascent in ascents.items():
        volumes = hypervolume(ascent.points, ref_point, maximize=maximize)
        kept = (non_dominated_sort(ascent.points, maximize=maximize) == 0).double().sum(-1).mean().item()
        row(name, volumes, f"{kept:7.1f} of {ascent.points.shape[1]}   {ascent.seconds:7.1f}")
    sampled, volume = chosen
    n = first.points.shape[1]
    row(f"{n} chosen of {sampled} on the front", torch.tensor([volume]))
    row("the whole front", torch.tensor([whole], dtype=torch.float64))


COLORS = {"hypervolume": "tab:orange", "layer by layer": "tab:blue", "linear preferences": "tab:red"}


def draw(path: Path, on_dtlz2: dict[str, Ascent], whole: float, at_sea: dict[str, Ascent], corners: Tensor) -> None:
    """What the first start became, and what the mean of all starts missed along the way."""
    from matplotlib.figure import Figure  # pyplot would change the caller's backend

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    space = figure.add_subplot(1, 3, 1, projection="3d")
    curves = figure.add_subplot(1, 3, 2)
    for name, ascent in on_dtlz2.items():
        marker = "o" if name == "layer by layer" else "x"
        space.scatter(
            *ascent.points[0].T.tolist(), color=COLORS[name], marker=marker, s=24, label=name, depthshade=False
        )
        curves.semilogy([whole - volume for volume in ascent.curve], color=COLORS[name], label=name)
    space.set(title=f"DTLZ2: {POINTS} points after ascent", xlabel="f1", ylabel="f2", zlabel="f3")
    space.view_init(30, 45)
    space.legend(loc="upper left", fontsize="small")
    curves.set(title=f"DTLZ2: hypervolume missing, mean of {STARTS} starts", xlabel="step")
    curves.legend()

    sea = figure.add_subplot(1, 3, 3)
    sea.plot(*corners.T.tolist(), color="0.6", label="front of expected returns")
    for name, marker in (("linear preferences", "x"), ("layer by layer", "o")):
        sea.plot(*at_sea[name].points[0].T.tolist(), marker, color=COLORS[name], label=name)
    sea.set(title=f"sea treasures: {POLICIES} policies", xlabel="treasure", ylabel="-steps")
    sea.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
