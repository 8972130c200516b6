"""GRPO on all of its tokens, and on those that PODS, D3S or a mask of high entropies choose.

A recurrent network adds three digits: "4+7+5=" is to be answered by "16" and an end. It may write dots first, which it
is taught in a short supervised warm-up together with some arithmetic.
Two rewards: the right answer, and brevity, which counts for right answers only (an empty answer is the shortest).
Every variant generates the same number of rollouts a step, has the same learning rate and starts from the same weights.

    python examples/downsampling.py --out .

prints a table and writes downsampling.png. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from morlfast import (
    D3S,
    PODS,
    D3SSchedule,
    LinearSchedule,
    group_advantages,
    pack_tokens,
    select_tokens,
    token_denominator,
    token_logprobs,
)
from torch import Tensor, nn

DIGITS, PLUS, EQUALS, DOT, END, VOCABULARY = 10, 10, 11, 12, 13, 14
PROMPT = 6  # tokens, "4+7+5="
RESPONSE = 7  # tokens at most
SHORTEST = 3  # two digits and the end
PROMPTS, GROUP_SIZE = 16, 16  # a step: 256 rollouts
KEPT_OF_GROUP = 4  # PODS
ROLLOUTS = LinearSchedule(64, 128)  # D3S, of 256
RATIO = LinearSchedule(0.3, 0.6)  # D3S, of the tokens of these
HIGH_ENTROPY = 0.2  # of all tokens
UPDATES = 2  # with each step's rollouts
CLIP = 0.2
LEARNING_RATE = 1e-3


class Policy(nn.Module):
    """A GRU; the head is apart, to run on some of the tokens only."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, L) -> hidden (N, L, width), and the state after the last token."""
        return self.recurrent(self.tokens(tokens), state)


class Rollouts(NamedTuple):
    """What a policy has written to each prompt; N = prompts times group size, T = RESPONSE."""

    tokens: Tensor  # (N, PROMPT + T)
    log_probs: Tensor  # (N, T)
    entropies: Tensor  # (N, T)
    mask: Tensor  # (N, T), until the end, which counts
    rewards: Tensor  # (N, 2), right and brevity


class Selection(NamedTuple):
    """What a step trains on."""

    advantages: Tensor  # (N,)
    keep: Tensor  # (N, T)
    denominator: Tensor


class Curves(NamedTuple):
    """What came of one variant from one seed: one entry a step."""

    right: list[float]
    brevity: list[float]
    tokens: list[int]
    seconds: list[tuple[float, float, float]]  # generation, selection, update


class Results(NamedTuple):
    """Of each seed: evaluations before and after, and curves."""

    before: list[tuple[float, float, float]]  # right, brevity, tokens of a response
    after: dict[str, list[tuple[float, float, float]]]
    curves: dict[str, list[Curves]]


def sums(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts (count, PROMPT) and their answers (count, SHORTEST)."""
    terms = torch.randint(0, 10, (count, 3), generator=generator)
    signs = torch.tensor([PLUS, PLUS, EQUALS]).expand(count, 3)
    prompts = torch.stack([terms, signs], 2).flatten(1)
    total = terms.sum(1)
    return prompts, torch.stack([total // 10, total % 10, torch.full((count,), END)], 1)


def warm_up(steps: int, seed: int) -> Policy:
    """Taught right answers after zero to four dots."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(steps):
        prompts, answers = sums(128, generator)
        dots = torch.randint(0, RESPONSE - SHORTEST + 1, (128, 1), generator=generator)
        place = torch.arange(RESPONSE) - dots
        target = torch.where(place < 0, DOT, answers.gather(1, place.clamp(0, SHORTEST - 1)))
        hidden, _ = policy(torch.cat([prompts, target[:, :-1]], 1))
        learned = token_logprobs(policy.head(hidden[:, PROMPT - 1 :]), target, mask=place < SHORTEST, entropy=False)
        optimizer.zero_grad()
        (-learned.log_probs.sum() / (place < SHORTEST).sum()).backward()
        optimizer.step()
    return policy


@torch.no_grad()
def generate(policy: Policy, prompts: Tensor, answers: Tensor, generator: torch.Generator) -> Rollouts:
    new, state, response, log_probs, entropies = prompts, None, [], [], []
    for _ in range(RESPONSE):
        hidden, state = policy(new, state)
        logits = policy.head(hidden[:, -1])
        new = torch.multinomial(logits.softmax(1), 1, generator=generator)
        of_new = token_logprobs(logits, new[:, 0], entropy=True)
        response.append(new)
        log_probs.append(of_new.log_probs)
        entropies.append(of_new.entropies)
    tokens = torch.cat(response, 1)
    ends = (tokens == END).long()
    ended_before = ends.cumsum(1) - ends > 0
    place = (tokens == DOT).long().cumprod(1).sum(1, keepdim=True) + torch.arange(SHORTEST)
    said = tokens.gather(1, place.clamp(max=RESPONSE - 1))
    right = ((said == answers) & (place < RESPONSE)).all(1).float()
    lengths = (~ended_before).sum(1)
    brevity = right * (RESPONSE - lengths) / (RESPONSE - SHORTEST)
    rewards = torch.stack([right, brevity], 1)
    tokens = torch.cat([prompts, tokens], 1)
    return Rollouts(tokens, torch.stack(log_probs, 1), torch.stack(entropies, 1), ~ended_before, rewards)


def gdpo(rewards: Tensor, group_size: int) -> Tensor:
    return group_advantages(rewards, group_size, method="gdpo")


def on_all(rollouts: Rollouts, progress: float) -> Selection:
    keep = rollouts.mask
    return Selection(gdpo(rollouts.rewards, GROUP_SIZE), keep, token_denominator(keep, rollouts.mask))


def by_pods(rollouts: Rollouts, progress: float) -> Selection:
    """Of each group the rollouts whose sums of rewards vary most, with advantages among themselves."""
    selected = PODS(KEPT_OF_GROUP).select(rollouts.rewards.sum(1), group_size=GROUP_SIZE)
    advantages = torch.zeros(len(selected.mask))
    advantages[selected.indices] = gdpo(rollouts.rewards[selected.indices], KEPT_OF_GROUP)
    keep = rollouts.mask & selected.mask[:, None]
    return Selection(advantages, keep, token_denominator(keep, rollouts.mask))


def by_d3s(rollouts: Rollouts, progress: float) -> Selection:
    """Rollouts across groups whose advantages vary most, and of their tokens those with large |A| H."""
    advantages = gdpo(rollouts.rewards, GROUP_SIZE)
    d3s = D3S(D3SSchedule(ROLLOUTS, RATIO))
    keep = d3s.select(advantages, rollouts.entropies, rollouts.mask, progress=progress).tokens
    return Selection(advantages, keep, d3s.denominator(keep, rollouts.mask))


def by_entropy(rollouts: Rollouts, progress: float) -> Selection:
    """The mask of TRL's `top_entropy_quantile`, whose loss is still divided by the number of all tokens."""
    score = rollouts.entropies
    keep = select_tokens(None, None, rollouts.mask, HIGH_ENTROPY, score=score, threshold="quantile")
    denominator = token_denominator(keep, rollouts.mask, loss_denominator="all")
    return Selection(gdpo(rollouts.rewards, GROUP_SIZE), keep, denominator)


VARIANTS: dict[str, Callable[[Rollouts, float], Selection]] = {
    "GRPO": on_all,
    "GRPO + PODS": by_pods,
    "GRPO + D3S": by_d3s,
    "GRPO + entropy mask": by_entropy,
}


def update(policy: Policy, optimizer: torch.optim.Optimizer, rollouts: Rollouts, selection: Selection) -> None:
    """The GRU runs on rollouts with a kept token, the head and the loss on the kept tokens alone."""
    rows = selection.keep.any(1)
    if not rows.any():
        return
    packed = pack_tokens(selection.keep[rows])
    tokens = rollouts.tokens[rows]
    targets = packed.pack(tokens[:, PROMPT:])
    old = packed.pack(rollouts.log_probs[rows])
    advantages = packed.pack(selection.advantages[rows, None].expand(selection.keep[rows].shape))
    for _ in range(UPDATES):
        hidden, _ = policy(tokens[:, :-1])
        logits = policy.head(packed.pack(hidden[:, PROMPT - 1 :]))
        ratio = (token_logprobs(logits, targets, entropy=False).log_probs - old).exp()
        gains = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        optimizer.zero_grad()
        (-gains.sum() / selection.denominator).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()


class Training:
    """One variant from one seed: every variant sees the same prompts, and its sampler has the same seed."""

    def __init__(self, policy: Policy, variant: str, steps: int, seed: int, learning_rate: float) -> None:
        self.policy, self.select, self.steps, self.seed = policy, VARIANTS[variant], steps, seed
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.optimizer = torch.optim.Adam(policy.parameters(), learning_rate)
        self.curves = Curves([], [], [], [])

    def step(self) -> None:
        prompts, answers = (x.repeat_interleave(GROUP_SIZE, 0) for x in sums(PROMPTS, self.generator))
        times = [time.perf_counter()]
        rollouts = generate(self.policy, prompts, answers, self.generator)
        times.append(time.perf_counter())
        selection = self.select(rollouts, len(self.curves.tokens) / self.steps)
        times.append(time.perf_counter())
        update(self.policy, self.optimizer, rollouts, selection)
        times.append(time.perf_counter())
        right, brevity = rollouts.rewards.mean(0).tolist()
        self.curves.right.append(right)
        self.curves.brevity.append(brevity)
        self.curves.tokens.append(int(selection.keep.sum()))
        self.curves.seconds.append((times[1] - times[0], times[2] - times[1], times[3] - times[2]))


def evaluate(policy: Policy, seed: int) -> tuple[float, float, float]:
    """Right, brevity and tokens of a response, sampled for 2000 prompts."""
    generator = torch.Generator().manual_seed(2000 + seed)
    rollouts = generate(policy, *sums(2000, generator), generator)
    right, brevity = rollouts.rewards.mean(0).tolist()
    return right, brevity, rollouts.mask.sum(1).float().mean().item()


def compare(steps: int, seeds: int, warm_up_steps: int, learning_rate: float) -> Results:
    """Variants take turns, step by step, so that what else the machine does slows all of them alike."""
    results = Results([], {name: [] for name in VARIANTS}, {name: [] for name in VARIANTS})
    for seed in range(seeds):
        taught = warm_up(warm_up_steps, seed)
        results.before.append(evaluate(taught, seed))
        trainings = {name: Training(copy.deepcopy(taught), name, steps, seed, learning_rate) for name in VARIANTS}
        for _ in range(steps):
            for training in trainings.values():
                training.step()
        for name, training in trainings.items():
            results.after[name].append(evaluate(training.policy, seed))
            results.curves[name].append(training.curves)
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    return results


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def print_table(results: Results) -> None:
    steps = len(results.curves["GRPO"][0].tokens)
    print(f"\n{len(results.before)} seeds, {steps} steps of {PROMPTS} x {GROUP_SIZE} rollouts")
    print(f"{'':52}{'tokens of':>11}{'tokens':>12}{'ms a step, medians':>40}")
    columns = f"{'a response':>11}{'trained on':>12}{'generation':>12}{'selection':>11}{'update':>9}{'all':>8}"
    print(f"{'':22}{'right':>15}{'brevity':>15}{columns}")
    for name, evaluations in {"after the warm-up": results.before, **results.after}.items():
        right, brevity, lengths = zip(*evaluations, strict=True)
        line = f"{name:22}{spread(right):>15}{spread(brevity):>15}{statistics.fmean(lengths):11.2f}"
        if name in results.curves:
            curves = results.curves[name]
            every_step = [seconds for c in curves for seconds in c.seconds]
            parts = [1000 * statistics.median(part) for part in zip(*every_step, strict=True)]
            line += f"{statistics.fmean(sum(c.tokens) for c in curves):12,.0f}"
            line += (
                f"{parts[0]:12.1f}{parts[1]:11.2f}{parts[2]:9.1f}{1000 * statistics.median(map(sum, every_step)):8.1f}"
            )
        print(line)


def draw(path: Path, results: Results) -> None:
    """Both rewards over steps, and over the tokens trained on."""
    from matplotlib.figure import Figure  # pyplot would change the caller's backend

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    right, brevity, tokens = figure.subplots(1, 3)
    for name, curves in results.curves.items():
        trained = torch.tensor([c.tokens for c in curves], dtype=torch.float64).cumsum(1).mean(0)
        steps = len(trained)
        width = min(9, steps)
        for axes, x, values in (
            (right, torch.arange(steps), [c.right for c in curves]),
            (brevity, torch.arange(steps), [c.brevity for c in curves]),
            (tokens, trained, [c.right for c in curves]),
        ):
            smooth = torch.tensor(values).unfold(1, width, 1).mean(2)  # (seeds, steps - width + 1)
            x = x[width - 1 :]
            mean, deviation = smooth.mean(0), smooth.std(0, correction=min(1, len(values) - 1))
            (line,) = axes.plot(x, mean, label=name)
            axes.fill_between(x, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, linewidth=0)
    right.set(title="right answers", xlabel="step")
    brevity.set(title="brevity of right answers, 0 for others", xlabel="step")
    tokens.set(title="right answers", xlabel="tokens trained on", xscale="log")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=80)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="GRPO on all tokens, and on those of PODS, D3S and an entropy mask.")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for downsampling.png (default: here)")
    parser.add_argument("--steps", type=int, default=150, help="of training (default 150)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--warm-up", type=int, default=200, help="supervised steps before (default 200)")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help=f"(default {LEARNING_RATE})")
    arguments = parser.parse_args(argv)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        print(f"This example needs matplotlib: pip install matplotlib ({error})", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # tensors this small gain nothing from more

    results = compare(arguments.steps, arguments.seeds, arguments.warm_up, arguments.learning_rate)
    print_table(results)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "downsampling.png"
    draw(path, results)
    print(f"\nWrote {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
