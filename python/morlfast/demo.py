"""`python -m morlfast demo`: learn Deep Sea Treasure with four morlfast operators, in seconds, on a CPU.

A submarine chooses between near, poor and far, rich treasures: each episode returns (treasure, -steps). The
environment is MO-Gymnasium's `deep-sea-treasure-v0` (convex map), undiscounted. For each of 20 preferences,
weight vectors at equal angles, one tabular softmax policy learns what that preference wants by policy gradients:

1. roll out a group of episodes for every preference;
2. `group_advantages` turns their returns into one advantage an episode: each objective is centred in its group,
   divided by its standard deviation over the batch and weighted by the group's preference. Episodes without
   treasure are NaN: not scored, so they teach nothing;
3. `select_tokens` keeps the half of all time steps where |advantage| * policy entropy is highest;
4. one Adam step on advantage * log-probability of the kept actions, plus a small entropy bonus;
5. `hypervolume` and `non_dominated_sort` say how far the greedy policies are from the known front.

Training needs 500,000 episodes, too many for an environment that steps in Python. It is finite and deterministic,
so `chart` first plays every action in every state it can reach, through `reset` and `step` alone, and episodes
are then rolled out as tensors on the recorded table. What is reported at the end is played afresh in the
environment: one greedy episode for each of the 20 policies. Episodes seen in training do not count: 200,000 episodes
of random play also stumble over most of the front, but have learned no policy.

The same training with `scale="group"`, stock GDPO, runs beside it. Once a group has only two different outcomes, a
farther treasure and a nearer one, their z-scores are +z and -z whatever the treasures are worth, so that the weights
alone decide and the middle of the front is lost.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec

import numpy as np
import torch
from torch import Tensor

from morlfast import group_advantages, hypervolume, non_dominated_sort, select_tokens

ENVIRONMENT = "deep-sea-treasure-v0"
PREFERENCES = 20
EPISODES = 32  # in a group: those of one preference in one step
HORIZON = 50  # time steps after which a training episode without treasure ends
LEARNING_RATE = 0.05
ENTROPY_BONUS = 0.02
TOKEN_RATIO = 0.5
STEPS_PER_EVALUATION = 10

REF_POINTS = torch.tensor([[0.0, -50.0], [0.0, -25.0]])  # (treasure, -steps)
REQUIRED_SHARES = torch.tensor([0.95, 0.90])  # of the known front's hypervolume at each reference point

OURS, STOCK, RANDOM = "greedy policies, scale='batch'", "greedy policies, stock GDPO", "random play"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if the greedy policies reach the required shares, 1 if not, 2 if a package is missing."""
    parser = argparse.ArgumentParser(prog="python -m morlfast demo", description="Learn Deep Sea Treasure.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for front.png and demo.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="policy-gradient steps (default 400)")
    arguments = parser.parse_args(argv)
    try:
        import matplotlib  # noqa: F401
        import mo_gymnasium
        import tqdm  # noqa: F401
    except ImportError as error:
        print(f'The demo needs {error.name}: pip install "morlfast[demo]"', file=sys.stderr)
        return 2

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32", category=UserWarning)
        env = mo_gymnasium.make(ENVIRONMENT)
    sea = chart(env)
    progress = Progress(torch.tensor(np.stack(env.unwrapped.pareto_front(gamma=1.0)), dtype=torch.float32), Stopwatch())
    preferences = equal_angles(PREFERENCES)
    policies, curve = train(sea, preferences, "batch", arguments.steps, arguments.seed, progress)
    stock_policies, stock_curve = train(sea, preferences, "group", arguments.steps, arguments.seed, progress)
    returns, stock_returns = play_greedily(env, sea, policies), play_greedily(env, sea, stock_policies)
    shares = {
        OURS: progress.shares(returns),
        STOCK: progress.shares(stock_returns),
        RANDOM: progress.shares(play_randomly(sea, arguments.seed)).mean(0),
    }
    optimal = {OURS: progress.optimal(returns), STOCK: progress.optimal(stock_returns)}
    missed = shares[OURS] < REQUIRED_SHARES
    seconds = time.perf_counter() - start

    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(arguments.out / "front.png", progress.known_front, returns, stock_returns, curve, stock_curve, shares[RANDOM])
    known_hypervolume = progress.known_hypervolumes[0].item()
    report = {
        "environment": ENVIRONMENT,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "ref_point": REF_POINTS[0].tolist(),
        "hypervolume": shares[OURS][0].item() * known_hypervolume,
        "known_hypervolume": known_hypervolume,
        "random_hypervolume": shares[RANDOM][0].item() * known_hypervolume,
        "stock_gdpo_hypervolume": shares[STOCK][0].item() * known_hypervolume,
        "ref_points": REF_POINTS.tolist(),
        "required_shares": REQUIRED_SHARES.tolist(),
        "shares": {
            "found": shares[OURS].tolist(),
            "stock_gdpo": shares[STOCK].tolist(),
            "random": shares[RANDOM].tolist(),
        },
        "passed": not missed.any().item(),
        "preferences": preferences.tolist(),
        "returns": returns.tolist(),
        "stock_gdpo_returns": stock_returns.tolist(),
        "known_front": progress.known_front.tolist(),
        "operators": progress.stopwatch.report(),
        "seconds": seconds,
    }
    (arguments.out / "demo.json").write_text(json.dumps(report, indent=2) + "\n")
    print_table(shares, optimal, len(progress.known_front), progress.stopwatch, seconds)
    print(f"Wrote {arguments.out / 'front.png'} and {arguments.out / 'demo.json'}.")
    for ref_point, share, required in zip(
        REF_POINTS[missed].tolist(), shares[OURS][missed].tolist(), REQUIRED_SHARES[missed].tolist(), strict=True
    ):
        print(
            f"FAILED: the greedy policies reach {share:.1%} of the known hypervolume at {_point(ref_point)}; "
            f"{required:.0%} are required.",
            file=sys.stderr,
        )
    return int(missed.any().item())


class Sea(NamedTuple):
    """The environment as `chart` found it, for S states and A actions."""

    state_of: dict[tuple[int, ...], int]  # observation -> state; 0 is the start
    next_state: Tensor  # (S, A) int64; a terminal state follows itself
    reward: Tensor  # (S, A, 2) treasure and -1 a step; zero in a terminal state
    terminal: Tensor  # (S,) bool


def chart(env: Any) -> Sea:
    """Play every action in every state that can be reached, breadth first, and record what the environment did."""
    actions = range(int(env.action_space.n))
    start, _ = env.reset(seed=0)
    state_of = {tuple(start.tolist()): 0}
    routes: list[list[int]] = [[]]  # actions that lead from the start to each state
    terminal = [False]
    next_state: list[list[int]] = []
    reward: list[list[list[float]]] = []
    while len(next_state) < len(routes):
        state = len(next_state)
        next_state.append([state] * len(actions))
        reward.append([[0.0, 0.0] for _ in actions])
        if terminal[state]:
            continue
        for action in actions:
            env.reset()
            for step in routes[state]:
                env.step(step)
            observation, step_reward, terminated, _, _ = env.step(action)
            found = tuple(observation.tolist())
            if found not in state_of:
                state_of[found] = len(routes)
                routes.append([*routes[state], action])
                terminal.append(bool(terminated))
            next_state[state][action] = state_of[found]
            reward[state][action] = step_reward.tolist()
    return Sea(state_of, torch.tensor(next_state), torch.tensor(reward), torch.tensor(terminal))


def equal_angles(count: int) -> Tensor:
    """Weights (count, 2) for (treasure, -steps), in the middles of equal parts of the quarter circle.

    No knowledge of the front is in them: dividing by the standard deviations makes the objectives comparable.
    """
    angles = (torch.arange(count) + 0.5) * (math.pi / 2 / count)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def train(
    sea: Sea,
    preferences: Tensor,
    scale: Literal["batch", "group"],
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Learn one tabular softmax policy a preference.

    Returns the logits (P, S, A) and the learning curve: step -> shares (2,) of the known hypervolumes.
    """
    from tqdm import tqdm

    timed = progress.stopwatch
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(len(preferences), *sea.next_state.shape, requires_grad=True)  # (P, S, A)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    weights = preferences.repeat_interleave(EPISODES, dim=0)  # (N, 2), N = P * EPISODES
    policy = torch.arange(len(preferences)).repeat_interleave(EPISODES)[:, None]  # (N, 1)
    curve: dict[int, Tensor] = {}
    bar = tqdm(range(1, steps + 1), desc=f"scale='{scale}'", unit="step")
    for step in bar:
        log_probs = logits.log_softmax(-1)  # (P, S, A)
        entropy = -(log_probs.exp() * log_probs).sum(-1)  # (P, S)
        batch = roll_out(sea, log_probs.detach().exp(), EPISODES, generator)

        rewards = batch.returns.masked_fill(~batch.found_treasure[:, None], math.nan)
        advantages = timed(group_advantages, rewards, EPISODES, weights=weights, method="gdpo", scale=scale)
        token_entropy = entropy[policy, batch.states]  # (N, T)
        scored = batch.under_way & batch.found_treasure[:, None]
        kept = timed(select_tokens, advantages, token_entropy.detach(), scored, TOKEN_RATIO)

        gain = advantages[:, None] * log_probs[policy, batch.states, batch.actions] * kept
        loss = -(gain + ENTROPY_BONUS * token_entropy * batch.under_way).sum() / len(rewards)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if step % STEPS_PER_EVALUATION == 0 or step == steps:
            greedy = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
            returns = roll_out(sea, greedy, 1, generator).returns
            curve[step] = progress.shares(returns)
            bar.set_postfix_str(f"hypervolume {curve[step][0]:.1%}, {progress.optimal(returns)} optimal returns")
    return logits.detach(), curve


class Rollouts(NamedTuple):
    """N episodes, those of one policy after another, of at most T time steps."""

    states: Tensor  # (N, T) int64
    actions: Tensor  # (N, T) int64
    under_way: Tensor  # (N, T) bool: False after the end
    returns: Tensor  # (N, 2)
    found_treasure: Tensor  # (N,) bool


def roll_out(sea: Sea, policies: Tensor, episodes: int, generator: torch.Generator) -> Rollouts:
    """Play `episodes` episodes with each of the policies, action probabilities (P, S, A), on the charted sea."""
    policy = torch.arange(len(policies)).repeat_interleave(episodes)  # (N,)
    state = torch.zeros_like(policy)
    cumulative = policies.cumsum(-1)[..., :-1]  # (P, S, A - 1): actions are drawn by inverting it
    states, actions = [], []
    for _ in range(HORIZON):
        uniform = torch.rand(len(policy), 1, generator=generator)
        action = torch.searchsorted(cumulative[policy, state], uniform, right=True).squeeze(-1)
        states.append(state)
        actions.append(action)
        state = sea.next_state[state, action]
        if sea.terminal[state].all():
            break
    visited, taken = torch.stack(states, dim=1), torch.stack(actions, dim=1)
    returns = sea.reward[visited, taken].sum(1)
    return Rollouts(visited, taken, ~sea.terminal[visited], returns, sea.terminal[state])


def play_greedily(env: Any, sea: Sea, logits: Tensor) -> Tensor:
    """Returns (P, 2) of one episode in the environment itself for each policy, taking its most probable actions."""
    returns = torch.zeros(len(logits), 2)
    for policy, best_actions in enumerate(logits.argmax(-1).tolist()):
        observation, _ = env.reset()
        terminated = truncated = False
        while not (terminated or truncated):
            action = best_actions[sea.state_of[tuple(observation.tolist())]]
            observation, reward, terminated, truncated, _ = env.step(action)
            returns[policy] += torch.from_numpy(reward)
    return returns


def play_randomly(sea: Sea, seed: int) -> Tensor:
    """Returns (EPISODES, PREFERENCES, 2): sets of as many uniformly random episodes as there are greedy ones."""
    uniform = torch.full((PREFERENCES, *sea.next_state.shape), 1 / sea.next_state.shape[1])
    returns = roll_out(sea, uniform, EPISODES, torch.Generator().manual_seed(seed)).returns
    return returns.reshape(PREFERENCES, EPISODES, 2).transpose(0, 1)


Parameters = ParamSpec("Parameters")


class Stopwatch:
    """Calls operators and adds up how often and how long."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(
        self, operator: Callable[Parameters, Tensor], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Tensor:
        start = time.perf_counter()
        result = operator(*args, **kwargs)
        self.seconds[operator.__name__] += time.perf_counter() - start
        self.calls[operator.__name__] += 1
        return result

    def report(self) -> dict[str, dict[str, float]]:
        return {name: {"calls": self.calls[name], "seconds": self.seconds[name]} for name in sorted(self.calls)}


class Progress:
    """Compares returns with the known front, at both reference points."""

    def __init__(self, known_front: Tensor, stopwatch: Stopwatch) -> None:
        self.known_front = known_front
        self.stopwatch = stopwatch
        self.known_hypervolumes = self._hypervolumes(known_front)

    def shares(self, returns: Tensor) -> Tensor:
        """(..., n, 2) -> (..., 2): hypervolume of n returns over that of the known front."""
        return self._hypervolumes(returns) / self.known_hypervolumes

    def optimal(self, returns: Tensor) -> int:
        """How many different returns no point of the known front dominates."""
        together = torch.cat([returns, self.known_front])
        ranks = self.stopwatch(non_dominated_sort, together, maximize=True)[: len(returns)]
        return len(returns[ranks == 0].unique(dim=0))

    def _hypervolumes(self, points: Tensor) -> Tensor:
        *batch, n, m = points.shape
        at_each_ref_point = points.unsqueeze(-3).expand(*batch, len(REF_POINTS), n, m)
        return self.stopwatch(hypervolume, at_each_ref_point, REF_POINTS, maximize=True)


def print_table(
    shares: dict[str, Tensor], optimal: dict[str, int], known: int, stopwatch: Stopwatch, seconds: float
) -> None:
    columns = [_point(ref_point) for ref_point in REF_POINTS.tolist()]
    print(f"\n{'share of the known hypervolume at':42}{columns[0]:>11}{columns[1]:>11}   optimal returns")
    for name, share in shares.items():
        found = f"{optimal[name]} of {known}" if name in optimal else ""
        print(f"  {name:40}{share[0].item():11.1%}{share[1].item():11.1%}   {found}".rstrip())
    print(f"  {'required':40}{REQUIRED_SHARES[0].item():11.1%}{REQUIRED_SHARES[1].item():11.1%}")
    print(
        f"One greedy episode for each of {PREFERENCES} preferences, played in {ENVIRONMENT}; "
        f"random play is the mean over {EPISODES} sets\nof {PREFERENCES} uniformly random episodes."
    )
    print(f"\n{'operator':24}{'calls':>8}{'seconds':>10}{'of the run':>13}")
    for name, row in stopwatch.report().items():
        print(f"  {name:22}{row['calls']:8}{row['seconds']:10.3f}{row['seconds'] / seconds:13.1%}")
    print(f"  {'whole run':30}{seconds:10.3f}")


def draw(
    path: Path,
    known_front: Tensor,
    returns: Tensor,
    stock_returns: Tensor,
    curve: dict[int, Tensor],
    stock_curve: dict[int, Tensor],
    random_share: Tensor,
) -> None:
    """The fronts in objective space, and the learning curves at the nearer reference point."""
    from matplotlib.figure import Figure  # without pyplot: draws with Agg and leaves the caller's backend alone

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    fronts, curves = figure.subplots(1, 2)
    fronts.plot(*known_front.T.tolist(), "o", mfc="none", mec="0.4", ms=12, label="known front")
    fronts.plot(*returns.T.tolist(), "o", color="tab:blue", ms=6, label=OURS)
    fronts.plot(*stock_returns.T.tolist(), "x", color="tab:red", ms=8, mew=2, label=STOCK)
    fronts.set(title=ENVIRONMENT, xlabel="treasure", ylabel="-steps")
    fronts.legend()

    for label, color, learning in ((OURS, "tab:blue", curve), (STOCK, "tab:red", stock_curve)):
        curves.plot(list(learning), [share[1].item() for share in learning.values()], color=color, label=label)
    curves.axhline(REQUIRED_SHARES[1].item(), color="0.4", ls="--", label="required")
    curves.axhline(random_share[1].item(), color="0.4", ls=":", label=RANDOM)
    curves.set(
        title=f"share of the known hypervolume at {_point(REF_POINTS[1].tolist())}", xlabel="step", ylim=(0, 1.02)
    )
    curves.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def _point(point: list[float]) -> str:
    return f"({point[0]:g}, {point[1]:g})"
