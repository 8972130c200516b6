"""An agent of MORL-Baselines evaluated by its own functions and by morlfast's in their place: same numbers, less time.

Pareto Q-learning (Van Moffaert and Nowé 2014) learns MO-Gymnasium's `fruit-tree-v0`: a tree of depth six, at each of
its 64 leaves a fruit with six nutrients, which are the objectives. No fruit dominates another. Every few hundred steps
the policies found so far are followed to their fruits, and the set of returns is evaluated twice, once as
MORL-Baselines is and once within `morlfast.integrations.morl_baselines.patch()`.

    python examples/morl_evaluation.py --out .

prints a table and writes morl_evaluation.png. Needs matplotlib, tqdm, mo-gymnasium and morl-baselines.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

GAMMA = 0.99
OBJECTIVES = 6
REF_POINT = np.zeros(OBJECTIVES)
REQUIRED = {
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "mo_gymnasium": "mo-gymnasium",
    "morl_baselines.multi_policy.pareto_q_learning.pql": "morl-baselines wandb",
}


class Evaluation(NamedTuple):
    """Indicators by name, and the seconds that each took."""

    values: dict[str, float]
    seconds: dict[str, float]


class Curves(NamedTuple):
    """What came of the agent: one entry an evaluation."""

    steps: list[int]
    original: list[Evaluation]
    patched: list[Evaluation]
    known: np.ndarray  # (64, m), all returns there are
    found: np.ndarray  # (64,), after how many steps, or NaN


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="An agent of MORL-Baselines evaluated with and without morlfast.")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for morl_evaluation.png (default: here)")
    parser.add_argument("--steps", type=int, default=4000, help="of training (default 4000)")
    parser.add_argument("--evaluations", type=int, default=20, help="during the training (default 20)")
    parser.add_argument("--weights", type=int, default=100, help="preferences that utilities are averaged over")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for module, packages in REQUIRED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"This example needs {packages}: pip install {packages} ({error})", file=sys.stderr)
            return 2
    torch.set_num_threads(1)  # sets this small gain nothing from more

    preferences = np.random.default_rng(arguments.seed).dirichlet(np.ones(OBJECTIVES), arguments.weights)
    curves = learn(arguments.steps, arguments.evaluations, preferences, arguments.seed)
    print_table(curves)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "morl_evaluation.png"
    draw(path, curves)
    print(f"\nWrote {path}.")
    return 0


def learn(steps: int, evaluations: int, preferences: np.ndarray, seed: int) -> Curves:
    import mo_gymnasium
    from morl_baselines.common import pareto
    from morl_baselines.multi_policy.pareto_q_learning.pql import PQL
    from morlfast.integrations import morl_baselines
    from tqdm import tqdm

    env = mo_gymnasium.make("fruit-tree-v0")
    agent = PQL(env, REF_POINT, gamma=GAMMA, epsilon_decay_steps=steps, final_epsilon=0.2, seed=seed, log=False)
    known = np.array(env.unwrapped.pareto_front(gamma=GAMMA))
    both = (nullcontext, morl_baselines.patch)
    archives = []
    for patched in both:
        with patched():
            archives.append(pareto.ParetoArchive())
            evaluate(list(known), known, preferences, pareto.ParetoArchive())  # the first call is never the usual one
    curves = Curves([], [], [], known, np.full(len(known), np.nan))
    with tqdm(total=steps, unit="step", desc="Pareto Q-learning") as bar:
        for k in range(1, evaluations + 1):
            agent.train(steps * k // evaluations, env, action_eval="pareto_cardinality")
            returns = [agent.track_policy(vector, env) for vector in agent.get_local_pcs()]
            for patched, archive, results in zip(both, archives, curves[1:3], strict=True):
                with patched():
                    results.append(evaluate(returns, known, preferences, archive))
            curves.steps.append(agent.global_step)
            new = np.isclose(known, np.array(returns)[:, None]).all(-1).any(0) & np.isnan(curves.found)
            curves.found[new] = agent.global_step
            bar.set_postfix(hypervolume=f"{curves.patched[-1].values['hypervolume']:.0f}", refresh=False)
            bar.update(agent.global_step - bar.n)
    return curves


def evaluate(returns: list[np.ndarray], known: np.ndarray, preferences: np.ndarray, archive: Any) -> Evaluation:
    """By what MORL-Baselines' modules hold now."""
    from morl_baselines.common import pareto, performance_indicators

    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        seconds[name] = time.perf_counter() - start
        return result

    def keep_all() -> int:
        for number, vector in enumerate(returns):
            archive.add(number, vector)
        return len(archive.evaluations)

    front = list(timed("Pareto filter", pareto.filter_pareto_dominated, returns))
    values = {
        "Pareto filter": len(front),
        "archive": timed("archive", keep_all),
        "hypervolume": timed("hypervolume", performance_indicators.hypervolume, REF_POINT, front),
        "expected utility": timed("expected utility", performance_indicators.expected_utility, front, preferences),
        "maximum utility loss": timed(
            "maximum utility loss", performance_indicators.maximum_utility_loss, front, known, preferences
        ),
        "IGD": timed("IGD", performance_indicators.igd, known, front),
        "sparsity": timed("sparsity", performance_indicators.sparsity, front),
    }
    return Evaluation(values, seconds)


def fruits_found(curves: Curves) -> str:
    return f"{np.isfinite(curves.found).sum()} of {len(curves.known)} fruits found"


def rows(curves: Curves) -> list[tuple[str, float, float, float, float]]:
    """Name, last value of both, median milliseconds of both; their sum at the end."""
    table = []
    for name in curves.original[0].values:
        values = [results[-1].values[name] for results in curves[1:3]]
        times = [1000 * np.median([result.seconds[name] for result in results]) for results in curves[1:3]]
        table.append((name, *values, *times))
    total = [sum(row[k] for row in table) for k in (3, 4)]
    return [*table, ("all", float("nan"), float("nan"), *total)]


def largest_difference(curves: Curves) -> float:
    """Of any indicator at any evaluation, relative."""
    pairs = [
        (one.values[name], other.values[name]) for one, other in zip(*curves[1:3], strict=True) for name in one.values
    ]
    return max(abs(one - other) / max(abs(one), 1.0) for one, other in pairs)


def print_table(curves: Curves) -> None:
    print(f"\n{fruits_found(curves)} after {curves.steps[-1]} steps")
    title = f"last of {len(curves.steps)} evaluations"
    print(f"  {title:24}{'MORL-Baselines':>18}{'morlfast':>18}{'ms, median of all':>22}")
    for name, original, patched, slow, fast in rows(curves):
        values = f"{original:18.10g}{patched:18.10g}" if original == original else f"{'':36}"
        print(f"  {name:24}{values}{slow:12.3f}{fast:10.3f}  {slow / fast:6.1f} x")
    print(f"  largest relative difference in all evaluations: {largest_difference(curves):.1e}")


def draw(path: Path, curves: Curves) -> None:
    """The fruits, the way there, and the times."""
    from matplotlib.figure import Figure  # pyplot would change the caller's backend

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    fruits, progress, times = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    never = np.isnan(curves.found)
    fruits.scatter(*curves.known[never, :2].T, color="0.7", marker="x", label="not found")
    points = fruits.scatter(*curves.known[~never, :2].T, c=curves.found[~never], cmap="viridis_r")
    figure.colorbar(points, ax=fruits, label="after step")
    fruits.set(title=fruits_found(curves), xlabel="return, nutrient 1 of 6", ylabel="nutrient 2 of 6")
    for name, color in (("hypervolume", "tab:blue"), ("expected utility", "tab:orange")):
        last = curves.patched[-1].values[name]
        for results, style in ((curves.original, "o"), (curves.patched, "-")):
            label = f"{name}, {'MORL-Baselines' if style == 'o' else 'morlfast'}"
            shares = [result.values[name] / last for result in results]
            progress.plot(curves.steps, shares, style, color=color, markersize=4, markerfacecolor="none", label=label)
    progress.set(title="indicators, as shares of their last value", xlabel="step")
    progress.legend(fontsize="small")
    table = rows(curves)
    cells = [[f"{slow:.3f}", f"{fast:.3f}", f"{slow / fast:.1f} x"] for *_, slow, fast in table]
    times.axis("off")
    drawn = times.table(
        cells,
        rowLabels=[row[0] for row in table],
        colLabels=["MORL-Baselines", "morlfast", ""],
        colWidths=[0.28, 0.2, 0.16],
        loc="center right",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1, 1.6)
    times.set_title("milliseconds an evaluation, median")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    sys.exit(main())
