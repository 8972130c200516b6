"""`python -m morlfast demo`: learn Deep Sea Treasure with four morlfast operators, in seconds, on a CPU.

A submarine chooses between near, poor and far, rich treasures: an episode returns (treasure, -steps). The
environment is MO-Gymnasium's `deep-sea-treasure-v0` (convex map), undiscounted. For each of 20 preferences
(weight vectors at equal angles) a tabular softmax policy learns what that preference wants:

1. roll out a group of episodes for every preference;
2. `group_advantages` turns their returns into one advantage an episode: each objective is centred in its
   group, divided by its standard deviation over the batch and weighted by the group's preference. Episodes
   without treasure are NaN, that is not scored, and teach nothing;
3. `select_tokens` keeps the half of all time steps with the highest |advantage| * policy entropy;
4. one Adam step on advantage * log-probability of the kept actions, plus a small entropy bonus, with a
   learning rate that falls to zero;
5. `hypervolume` and `non_dominated_sort` say how far the greedy policies are from the known front.

Training takes 288,000 episodes, too many for an environment that steps in Python. It is finite and
deterministic, so `chart` first plays every action in every state it can reach, through `reset` and `step`
alone, and episodes are then rolled out as tensors on the recorded table. The result is played afresh in the
environment: one greedy episode for each of the 20 policies. Episodes seen in training do not count, since
as many episodes of random play also stumble over most of the front without having learned anything.

The same training with `scale="group"`, stock GDPO, runs beside it. When a group has only two different
returns left, a farther treasure and a nearer one, their z-scores are +z and -z whatever the treasures are
worth: the preference alone decides, and policies leave the middle of the front for its ends.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec

import numpy as np
import torch
from torch import Tensor

from morlfast import group_advantages, hypervolume, non_dominated_sort, select_tokens

ENVIRONMENT = "deep-sea-treasure-v0"
PREFERENCES = 20
EPISODES = 48  # in a group: those of one preference in one step
HORIZON = 50  # time steps after which a training episode without treasure ends
LEARNING_RATE = 0.05
ENTROPY_BONUS = 0.02
TOKEN_RATIO = 0.5
STEPS_PER_EVALUATION = 10

REF_POINTS = torch.tensor([[0.0, -50.0], [0.0, -25.0]])  # (treasure, -steps)
REQUIRED_SHARES = torch.tensor([0.95, 0.90])  # of the known front's hypervolume at each reference point


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns 0 if the greedy policies reach the required shares, 1 if not, 2 if a package is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m morlfast demo", description="Learn Deep Sea Treasure.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for front.png and demo.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="policy-gradient steps (default 300)")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        import matplotlib  # noqa: F401
        import mo_gymnasium
        import tqdm  # noqa: F401
    except ImportError as error:
        print(f'The demo needs {error.name}: pip install "morlfast[demo]"', file=sys.stderr)
        return 2

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")
        env = mo_gymnasium.make(ENVIRONMENT)
    sea = chart(env)
    known_front = torch.from_numpy(np.stack(env.unwrapped.pareto_front(gamma=1.0))).float()
    progress = Progress(known_front, Stopwatch())
    with one_thread():
        found = learn(env, sea, "batch", arguments.steps, arguments.seed, progress)
        stock = learn(env, sea, "group", arguments.steps, arguments.seed, progress)
        random_hypervolumes = progress.hypervolumes(play_randomly(sea, arguments.seed)).mean(0)
    random_shares = random_hypervolumes / progress.known_hypervolumes
    missed = found.shares < REQUIRED_SHARES

    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(arguments.out / "front.png", known_front, found, stock, random_shares)
    seconds = time.perf_counter() - start
    report = {
        "environment": ENVIRONMENT,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "passed": not missed.any().item(),
        "ref_point": REF_POINTS[0].tolist(),  # of the four hypervolumes
        "hypervolume": found.hypervolumes[0].item(),
        "known_hypervolume": progress.known_hypervolumes[0].item(),
        "random_hypervolume": random_hypervolumes[0].item(),
        "stock_gdpo_hypervolume": stock.hypervolumes[0].item(),
        "ref_points": REF_POINTS.tolist(),  # of the shares
        "required_shares": REQUIRED_SHARES.tolist(),
        "shares": {
            "found": found.shares.tolist(),
            "stock_gdpo": stock.shares.tolist(),
            "random": random_shares.tolist(),
        },
        "preferences": equal_angles(PREFERENCES).tolist(),
        "returns": found.returns.tolist(),
        "stock_gdpo_returns": stock.returns.tolist(),
        "known_front": known_front.tolist(),
        "operators": progress.stopwatch.report(),
        "seconds": seconds,
    }
    (arguments.out / "demo.json").write_text(json.dumps(report, indent=2) + "\n")
    print_table(found, stock, random_shares, progress, seconds)
    print(f"Wrote {arguments.out / 'front.png'} and {arguments.out / 'demo.json'}.")
    for i in missed.nonzero().flatten().tolist():
        print(
            f"FAILED: the greedy policies reach {found.shares[i].item():.1%} of the known hypervolume at "
            f"{_point(REF_POINTS[i])}; {REQUIRED_SHARES[i].item():.0%} are required.",
            file=sys.stderr,
        )
    return int(missed.any().item())


class Sea(NamedTuple):
    """The environment as `chart` found it: S states, A actions."""

    state_of: dict[tuple[int, ...], int]  # observation -> state; 0 is the start
    next_state: Tensor  # (S, A) int64; a terminal state follows itself
    reward: Tensor  # (S, A, 2) treasure and -1 a step; zero in a terminal state
    terminal: Tensor  # (S,) bool


def chart(env: Any) -> Sea:
    """Play every action in every state that can be reached, breadth first, and record what happens."""
    actions = range(int(env.action_space.n))
    start, _ = env.reset()
    state_of = {tuple(start.tolist()): 0}
    routes: list[list[int]] = [[]]  # the actions that lead to each state
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
            for move in routes[state]:
                env.step(move)
            observation, step_reward, terminated, _, _ = env.step(action)
            reached = tuple(observation.tolist())
            if reached not in state_of:
                state_of[reached] = len(routes)
                routes.append([*routes[state], action])
                terminal.append(bool(terminated))
            next_state[state][action] = state_of[reached]
            reward[state][action] = step_reward.tolist()
    return Sea(state_of, torch.tensor(next_state), torch.tensor(reward), torch.tensor(terminal))


def equal_angles(count: int) -> Tensor:
    """Weights (count, 2) of (treasure, -steps): the middles of equal parts of the quarter circle.

    They know nothing of the front; dividing by the standard deviations makes the objectives comparable.
    """
    angles = (torch.arange(count) + 0.5) * (math.pi / 2 / count)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


class Outcome(NamedTuple):
    """What a training came to."""

    returns: Tensor  # (P, 2) of each policy's greedy episode in the environment
    hypervolumes: Tensor  # (2,) at each reference point
    shares: Tensor  # (2,) of the known hypervolumes
    optimal: int  # how many different returns are Pareto-optimal
    curve: dict[int, Tensor]  # step -> shares


def learn(env: Any, sea: Sea, scale: Literal["batch", "group"], steps: int, seed: int, progress: Progress) -> Outcome:
    """Train a policy for each preference and play it in the environment."""
    policies, curve = train(sea, equal_angles(PREFERENCES), scale, steps, seed, progress)
    returns = play_greedily(env, sea, policies)
    hypervolumes = progress.hypervolumes(returns)
    shares = hypervolumes / progress.known_hypervolumes
    return Outcome(returns, hypervolumes, shares, progress.count_optimal(returns), curve)


def train(
    sea: Sea,
    preferences: Tensor,
    scale: Literal["batch", "group"],
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Learn one tabular softmax policy a preference: logits (P, S, A) and the learning curve."""
    from tqdm import tqdm

    timed = progress.stopwatch
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(len(preferences), *sea.next_state.shape, requires_grad=True)  # (P, S, A)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    # Whitened advantages do not shrink as policies settle, so the steps must.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    weights = preferences.repeat_interleave(EPISODES, dim=0)  # (N, 2), N = P * EPISODES
    policy = torch.arange(len(preferences)).repeat_interleave(EPISODES)[:, None]  # (N, 1)
    curve: dict[int, Tensor] = {}
    bar = tqdm(range(1, steps + 1), desc=f"scale={scale!r}", unit="step")
    for step in bar:
        log_probs = logits.log_softmax(-1)  # (P, S, A)
        policy_entropies = -(log_probs.exp() * log_probs).sum(-1)  # (P, S)
        batch = roll_out(sea, log_probs.detach().exp(), EPISODES, generator)

        rewards = batch.returns.masked_fill(~batch.found_treasure[:, None], math.nan)
        advantages = timed(group_advantages, rewards, EPISODES, weights=weights, method="gdpo", scale=scale)
        entropies = policy_entropies[policy, batch.states]  # (N, T)
        scored = batch.under_way & batch.found_treasure[:, None]
        kept = timed(select_tokens, advantages, entropies.detach(), scored, TOKEN_RATIO)

        gain = advantages[:, None] * log_probs[policy, batch.states, batch.actions] * kept
        bonus = ENTROPY_BONUS * entropies * batch.under_way
        optimizer.zero_grad()
        torch.autograd.backward(-(gain + bonus).sum() / len(rewards))
        optimizer.step()
        schedule.step()

        if step % STEPS_PER_EVALUATION == 0 or step == steps:
            greedy = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
            returns = roll_out(sea, greedy, 1, generator).returns
            curve[step] = progress.hypervolumes(returns) / progress.known_hypervolumes
            optimal = progress.count_optimal(returns)
            bar.set_postfix_str(f"hypervolume {curve[step][0].item():.1%}, {optimal} optimal returns")
    return logits.detach(), curve


class Rollouts(NamedTuple):
    """N episodes, those of one policy after another, of at most T time steps."""

    states: Tensor  # (N, T) int64
    actions: Tensor  # (N, T) int64
    under_way: Tensor  # (N, T) bool, False after the end
    returns: Tensor  # (N, 2)
    found_treasure: Tensor  # (N,) bool


def roll_out(sea: Sea, policies: Tensor, episodes: int, generator: torch.Generator) -> Rollouts:
    """Play `episodes` episodes with each policy, action probabilities (P, S, A), on the charted sea."""
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
    """Returns (P, 2) of each policy's most probable actions, in one episode of the environment itself."""
    returns = torch.zeros(len(logits), 2)
    for policy, best_action in enumerate(logits.argmax(-1).tolist()):
        observation, _ = env.reset()
        terminated = truncated = False
        while not (terminated or truncated):
            action = best_action[sea.state_of[tuple(observation.tolist())]]
            observation, reward, terminated, truncated, _ = env.step(action)
            returns[policy] += torch.from_numpy(reward)
    return returns


def play_randomly(sea: Sea, seed: int) -> Tensor:
    """Returns (EPISODES, PREFERENCES, 2): sets of as many uniformly random episodes as greedy ones."""
    uniform = torch.full((PREFERENCES, *sea.next_state.shape), 1 / sea.next_state.shape[1])
    returns = roll_out(sea, uniform, EPISODES, torch.Generator().manual_seed(seed)).returns
    return returns.reshape(PREFERENCES, EPISODES, 2).transpose(0, 1)


class Progress:
    """Compares returns with the known front."""

    def __init__(self, known_front: Tensor, stopwatch: Stopwatch) -> None:
        self.known_front = known_front
        self.stopwatch = stopwatch
        self.known_hypervolumes = self.hypervolumes(known_front)

    def hypervolumes(self, returns: Tensor) -> Tensor:
        """(..., n, 2) -> (..., 2): the hypervolume at each reference point."""
        *batch, n, m = returns.shape
        for_each_ref_point = returns.unsqueeze(-3).expand(*batch, len(REF_POINTS), n, m)
        return self.stopwatch(hypervolume, for_each_ref_point, REF_POINTS, maximize=True)

    def count_optimal(self, returns: Tensor) -> int:
        """How many different returns (n, 2) no point of the known front dominates."""
        together = torch.cat([returns, self.known_front])
        ranks = self.stopwatch(non_dominated_sort, together, maximize=True)[: len(returns)]
        return len(set(map(tuple, returns[ranks == 0].tolist())))


Parameters = ParamSpec("Parameters")


class Stopwatch:
    """Calls operators, and adds up how often and how long."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(
        self, operator: Callable[Parameters, Tensor], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Tensor:
        start = time.perf_counter()
        result = operator(*args, **kwargs)
        self.seconds[operator.__name__] += time.perf_counter() - start
        self.calls[operator.__name__] += 1
        return result

    def report(self) -> dict[str, dict[str, float]]:
        return {name: {"calls": n, "seconds": self.seconds[name]} for name, n in sorted(self.calls.items())}


@contextmanager
def one_thread() -> Iterator[None]:
    """More threads make tensors this small slower, many times slower where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


LABELS = {"found": "greedy policies", "stock": "same, stock GDPO (scale='group')", "random": "random play"}


def print_table(found: Outcome, stock: Outcome, random_shares: Tensor, progress: Progress, seconds: float) -> None:
    ref_points = "".join(f"{_point(ref_point):>11}" for ref_point in REF_POINTS)
    print(f"\n{'share of the known hypervolume at':40}{ref_points}   optimal returns")
    known = len(progress.known_front)
    for label, shares, optimal in (
        (LABELS["found"], found.shares, f"{found.optimal} of {known}"),
        (LABELS["stock"], stock.shares, f"{stock.optimal} of {known}"),
        (LABELS["random"], random_shares, ""),
        ("required of the greedy policies", REQUIRED_SHARES, ""),
    ):
        percentages = "".join(f"{share:11.1%}" for share in shares.tolist())
        print(f"  {label:38}{percentages}   {optimal}".rstrip())
    print(
        f"Greedy: one episode for each of {PREFERENCES} preferences in {ENVIRONMENT}. "
        f"Random: as many uniformly random\nepisodes, mean over {EPISODES} such sets."
    )
    print(f"\n{'operator':24}{'calls':>8}{'seconds':>10}")
    for name, row in progress.stopwatch.report().items():
        print(f"  {name:22}{row['calls']:8}{row['seconds']:10.3f}")
    print(f"  {'whole demo':30}{seconds:10.3f}")


def draw(path: Path, known_front: Tensor, found: Outcome, stock: Outcome, random_shares: Tensor) -> None:
    """The fronts in objective space, and the learning curves at the nearer reference point."""
    from matplotlib.figure import Figure  # pyplot would change the caller's backend

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    fronts, curves = figure.subplots(1, 2)
    fronts.plot(*known_front.T.tolist(), "o", mfc="none", mec="0.4", ms=12, label="known front")
    fronts.plot(*found.returns.T.tolist(), "o", color="tab:blue", label=LABELS["found"])
    fronts.plot(*stock.returns.T.tolist(), "x", color="tab:red", ms=8, mew=2, label=LABELS["stock"])
    fronts.set(title=ENVIRONMENT, xlabel="treasure", ylabel="-steps")
    fronts.legend()

    for label, color, outcome in (("found", "tab:blue", found), ("stock", "tab:red", stock)):
        shares = [share[1].item() for share in outcome.curve.values()]
        curves.plot(list(outcome.curve), shares, color=color, label=LABELS[label])
    curves.axhline(REQUIRED_SHARES[1].item(), color="0.4", ls="--", label="required")
    curves.axhline(random_shares[1].item(), color="0.4", ls=":", label=LABELS["random"])
    curves.set(title=f"share of the known hypervolume at {_point(REF_POINTS[1])}", xlabel="step")
    curves.set_ylim(0, 1.02)
    curves.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def _point(point: Tensor) -> str:
    return f"({', '.join(f'{value:g}' for value in point.tolist())})"
