"""`morlfast.integrations.torchrl` beside torchrl's own `MCAdvantage`."""

from __future__ import annotations

import doctest
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from morlfast import group_advantages, select_rollouts
from morlfast.integrations import torchrl as ours
from morlfast.integrations.torchrl import MultiObjectiveAdvantage, PODSSelector
from tensordict import TensorDict, lazy_stack
from torchrl.data import LazyStackStorage, LazyTensorStorage, ReplayBuffer
from torchrl.objectives.llm import MCAdvantage, MCAdvantageSelector

PROMPTS = ("a", "b", "c")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def trajectory(rewards, prompt="a"):
    """Steps with `rewards` (T, ...), the last of them done."""
    steps = len(rewards)
    done = (torch.arange(steps) == steps - 1)[:, None]
    return TensorDict(
        query=prompt,
        step=torch.arange(steps),
        next=TensorDict(reward=rewards, done=done, batch_size=[steps]),
        batch_size=[steps],
    )


def stream(generator, *, per_prompt=6, objectives=1, dtype=torch.float32):
    """Trajectories of three prompts, interleaved, of 1 to 9 steps."""
    order = list(PROMPTS) * per_prompt
    random.Random(0).shuffle(order)
    for prompt in order:
        steps = int(torch.randint(1, 10, (), generator=generator))
        yield trajectory(torch.randn(steps, objectives, generator=generator, dtype=dtype), prompt)


def assert_same_writes(own, original, trajectories, tolerance=1e-6):
    """That both write the same groups at the same time, with the same advantages; how many groups they wrote."""
    written = 0
    for one in trajectories:
        value, expected = own.inv(one.clone()), original.inv(one.clone())
        assert (value is None) == (expected is None)
        if value is None:
            continue
        written += 1
        assert value.batch_size == expected.batch_size
        assert set(value.keys(True, True)) == set(expected.keys(True, True))
        assert torch.equal(value["step"], expected["step"])
        advantage = value.get("advantage", as_nested_tensor=True)
        expected_advantage = expected.get("advantage", as_nested_tensor=True)
        if expected_advantage.is_nested:
            assert torch.equal(advantage.offsets(), expected_advantage.offsets())
            advantage, expected_advantage = advantage.values(), expected_advantage.values()
        torch.testing.assert_close(advantage, expected_advantage, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert own.get_stats() == pytest.approx(original.get_stats())
    return written


def test_the_examples_of_docstrings_hold():
    results = doctest.testmod(ours)
    assert (results.attempted > 0, results.failed) == (True, 0)


@pytest.mark.parametrize("trajectory_return", [None, "sum", "max", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_and_queues_are_those_of_mc_advantage(trajectory_return, dtype, generator):
    own = MultiObjectiveAdvantage(4, trajectory_return=trajectory_return)
    original = MCAdvantage(4, trajectory_return=trajectory_return)
    assert assert_same_writes(own, original, stream(generator, dtype=dtype)) == 3
    assert own.queued_groups == 3  # two trajectories of each prompt wait
    assert own.queued_trajectories == 6


@pytest.mark.parametrize("trajectory_return", [None, "sum"])
def test_scalar_rewards_and_keys_and_tensor_prompts(trajectory_return, generator):
    arguments = {
        "prompt_key": "group",
        "rewards_key": "score",
        "advantage_key": ("next", "gain"),
        "done_key": ("next", "done"),
        "trajectory_return": trajectory_return,
    }
    own, original = MultiObjectiveAdvantage(2, **arguments), MCAdvantage(2, **arguments)
    for group in (7, 8, 8, 7):
        rewards = torch.randn(3, generator=generator)
        one = trajectory(rewards[:, None])
        one["group"], one["score"] = torch.full((3,), group), rewards
        value, expected = own.inv(one.clone()), original.inv(one.clone())
        assert (value is None) == (expected is None)
    assert value["next", "gain"].shape == (6,)
    torch.testing.assert_close(value["next", "gain"], expected["next", "gain"], rtol=1e-6, atol=1e-6)


def test_rewards_of_ragged_tokens(generator):
    """Steps of a conversation with one reward a token."""

    def conversations():
        for _, prompt in itertools.product(range(2), PROMPTS):
            tokens = torch.randint(1, 7, (int(torch.randint(1, 4, (), generator=generator)),), generator=generator)
            steps = []
            for i, n in enumerate(tokens.tolist()):
                following = TensorDict(reward=torch.randn(n, 1, generator=generator), done=[i == len(tokens) - 1])
                steps.append(TensorDict(query=prompt, step=torch.tensor(i), next=following))
            yield lazy_stack(steps)

    assert assert_same_writes(MultiObjectiveAdvantage(2), MCAdvantage(2), conversations()) == 3


def test_returns_of_single_steps_with_ragged_tokens(generator):
    arguments = {"grpo_size": 2, "trajectory_return": "sum"}
    trajectories = [trajectory(torch.randn(1, tokens, 1, generator=generator)) for tokens in (3, 5)]
    assert assert_same_writes(MultiObjectiveAdvantage(**arguments), MCAdvantage(**arguments), trajectories) == 1


def test_many_trajectories_at_once(generator):
    def flat(transform):
        return transform.inv(torch.cat([trajectory(rewards) for rewards in ragged]))

    def stacked(transform):
        return transform.inv(torch.stack([trajectory(rewards) for rewards in even]))

    ragged = [torch.randn(steps, 1, generator=generator) for steps in (2, 4, 1, 3)]
    even = torch.randn(4, 3, 1, generator=generator)
    for write, trajectory_return in itertools.product((flat, stacked), (None, "mean")):
        arguments = {"grpo_size": 2, "trajectory_return": trajectory_return}
        value, expected = write(MultiObjectiveAdvantage(**arguments)), write(MCAdvantage(**arguments))
        torch.testing.assert_close(value["advantage"], expected["advantage"], rtol=1e-6, atol=1e-6)


def test_bounds_and_candidates_select_the_same_trajectories(generator):
    arguments = {
        "grpo_size": 3,
        "trajectory_return": "sum",
        "keep_return_bounds": (-0.5, 0.5),
        "candidate_group_size": 5,
        "candidate_selection_min_size": 4,
        "candidate_selector": MCAdvantageSelector(strategy="balanced"),
    }
    own, original = MultiObjectiveAdvantage(**arguments), MCAdvantage(**arguments)
    assert assert_same_writes(own, original, stream(generator, per_prompt=10)) > 3
    assert own.unselected_trajectories > 0


def test_bounds_are_of_weighted_returns():
    rewards = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    arguments = {"grpo_size": 2, "trajectory_return": "sum", "keep_return_bounds": (0.9, 1.1)}
    for weights, is_written in (([5.0, 0.5], True), ([5.0, 1.0], False)):
        transform = MultiObjectiveAdvantage(weights=weights, **arguments)
        transform.inv(trajectory(rewards[:1]))
        assert (transform.inv(trajectory(rewards[1:])) is not None) == is_written


def test_a_group_of_equal_rewards_gets_exactly_zero():
    worst = 0.0
    for reward, size in itertools.product((0.05, 0.1, 0.35, 0.7, 0.95), (3, 7)):
        for trajectory_return in (None, "sum"):
            own = MultiObjectiveAdvantage(size, trajectory_return=trajectory_return)
            original = MCAdvantage(size, trajectory_return=trajectory_return)
            for _ in range(size):
                one = trajectory(torch.full((2, 1), reward))
                value, expected = own.inv(one.clone()), original.inv(one.clone())
            assert value["advantage"].count_nonzero() == 0
            worst = max(worst, float(expected["advantage"].abs().max()))
    assert worst > 1e-2  # rounding over 1e-6


@pytest.mark.filterwarnings("ignore:std")
def test_nan_poisons_its_group_and_one_step_alone_has_no_deviation():
    for rewards in ([[[1.0], [float("nan")]], [[0.0], [2.0]]], [[[5.0]]]):
        group = [trajectory(torch.tensor(steps)) for steps in rewards]
        own, original = MultiObjectiveAdvantage(len(group)), MCAdvantage(len(group))
        assert assert_same_writes(own, original, group) == 1
    transform = MultiObjectiveAdvantage(1)
    assert transform.inv(trajectory(torch.ones(1, 1)))["advantage"].isnan().all()


# ---- several objectives ----


@pytest.mark.parametrize(
    ("aggregate", "trajectory_return"),
    [
        *itertools.product(["sum_then_normalize"], [None, "sum", "mean"]),  # the maximum of sums is another one
        *itertools.product(["normalize_then_sum"], [None, "sum", "max", "mean"]),
    ],
)
def test_several_objectives(aggregate, trajectory_return, generator):
    """Against `MCAdvantage` of the weighted sum, or the weighted sum of `MCAdvantage` of each."""
    weights = torch.tensor([1.0, 0.25, 2.0])
    arguments = {"grpo_size": 3, "trajectory_return": trajectory_return}
    own = MultiObjectiveAdvantage(weights=weights, rules={"aggregate": aggregate}, **arguments)
    written = 0
    if aggregate == "sum_then_normalize":
        parts, part_weights = [weights], [1.0]
    else:
        parts, part_weights = torch.eye(3).unbind(), weights.tolist()
    originals = [MCAdvantage(**arguments) for _ in parts]
    for one in stream(generator, objectives=3):
        value = own.inv(one.clone())
        expected = 0.0
        for original, part, weight in zip(originals, parts, part_weights, strict=True):
            scalar = one.clone()
            scalar["next", "reward"] = (one["next", "reward"] @ part)[:, None]
            result = original.inv(scalar)
            expected = None if result is None else expected + weight * result["advantage"]
        assert (value is None) == (expected is None)
        if value is not None:
            written += 1
            assert value["next", "reward"].shape[-1] == 3
            torch.testing.assert_close(value["advantage"], expected, rtol=2e-6, atol=2e-6)
    assert written == 6


def test_methods_of_other_presets(generator):
    rewards = torch.randn(4, 2, generator=generator)
    transform = MultiObjectiveAdvantage(4, trajectory_return="sum", preset="trl", method="gdpo", weights=[1.0, 3.0])
    for row in rewards:
        group = transform.inv(trajectory(row[None]))
    expected = group_advantages(rewards, 4, weights=[1.0, 3.0], method="gdpo")
    torch.testing.assert_close(group["advantage"], expected[:, None], rtol=1e-6, atol=1e-6)


# ---- as a transform of a replay buffer ----


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyStackStorage])
def test_in_a_replay_buffer(storage, generator):
    batch = torch.stack([trajectory(rewards) for rewards in torch.randn(6, 5, 2, generator=generator)])
    buffer = ReplayBuffer(storage=storage(100), batch_size=4)
    buffer.append_transform(MultiObjectiveAdvantage(3, weights=[1.0, 0.5]))
    buffer.extend(batch[:2])
    assert len(buffer) == 0
    buffer.extend(batch[2:])
    assert len(buffer) == 30
    expected = group_advantages(
        batch["next", "reward"].reshape(30, 2), 15, weights=[1.0, 0.5], preset="torchrl", method="grpo"
    )
    torch.testing.assert_close(buffer[:]["advantage"].squeeze(-1), expected)
    assert buffer.sample()["advantage"].shape == (4, 1)


def test_it_moves_between_processes_with_its_queues(generator):
    rewards = torch.randn(2, 1, 2, generator=generator)
    transform = MultiObjectiveAdvantage(2, weights=[1.0, 4.0], rules={"eps": 1e-3})
    transform.inv(trajectory(rewards[0]))
    group = pickle.loads(pickle.dumps(transform)).inv(trajectory(rewards[1]))
    expected = transform.inv(trajectory(rewards[1]))
    assert torch.equal(group["advantage"], expected["advantage"])


# ---- PODS among candidates ----


def candidates(returns):
    return TensorDict({"return": torch.as_tensor(returns)}, batch_size=[len(returns)])


def most_varied(values, k):
    return max(itertools.combinations(range(len(values)), k), key=lambda rows: np.var([values[row] for row in rows]))


PODS_ARGUMENTS = {
    "grpo_size": 3,
    "trajectory_return": "sum",
    "candidate_group_size": 8,
    "candidate_selection_min_size": 8,
}


@pytest.mark.parametrize("cls", [MCAdvantage, MultiObjectiveAdvantage])
def test_pods_writes_the_trajectories_whose_returns_vary_most(cls, generator):
    transform = cls(candidate_selector=PODSSelector(), **PODS_ARGUMENTS)
    rewards = [torch.randn(int(torch.randint(1, 5, (), generator=generator)), 1, generator=generator) for _ in range(8)]
    for number, reward in enumerate(rewards):
        one = trajectory(reward)
        one["number"] = torch.full((len(reward),), number)
        group = transform.inv(one)
        assert (group is None) == (number < 7)
    returns = torch.stack([reward.sum() for reward in rewards])
    rows = list(most_varied(returns.tolist(), 3))
    assert group["number"].unique_consecutive().tolist() == rows
    chosen = returns[rows]
    advantages = (chosen - chosen.mean()) / chosen.std()
    expected = advantages.repeat_interleave(torch.tensor([len(rewards[row]) for row in rows]))
    torch.testing.assert_close(group["advantage"][:, 0], expected, rtol=1e-5, atol=1e-5)
    assert (transform.selected_trajectories, transform.unselected_trajectories) == (3, 5)


def test_pods_looks_at_weighted_returns(generator):
    rewards = torch.randn(8, 1, 2, generator=generator)
    weights = [0.1, 3.0]
    transform = MultiObjectiveAdvantage(candidate_selector=PODSSelector(), weights=weights, **PODS_ARGUMENTS)
    for number, reward in enumerate(rewards):
        one = trajectory(reward)
        one["number"] = torch.tensor([number])
        group = transform.inv(one)
    weighted = (rewards[:, 0] @ torch.tensor(weights)).tolist()
    assert group["number"].tolist() == list(most_varied(weighted, 3))


def test_pods_with_bounds_and_with_returns_that_are_none():
    nan = float("nan")
    selector = PODSSelector()
    returns = [0.0, 1.0, 0.5, 0.4, 0.9]
    assert selector.select(candidates(returns), group_size=2) == [0, 1]
    assert selector.select(candidates(returns), group_size=2, keep_return_bounds=(0.4, 0.6)) == [0, 1]
    assert selector.select(candidates(returns), group_size=2, keep_return_bounds=(0.6, 0.7)) is None
    assert selector.select(candidates([nan, 1.0, 0.5, 0.4, nan]), group_size=2) == [1, 3]
    assert selector.select(candidates([nan, 1.0, nan, nan]), group_size=2) is None
    # of equal variances that with most of the largest, and of equal returns the first
    assert selector.select(candidates([0.0, 1.0, 0.0, 1.0]), group_size=2) == [0, 1]


def test_pods_waits_for_as_many_candidates_as_there_are_numbers():
    transform = MCAdvantage(candidate_selector=PODSSelector(), **PODS_ARGUMENTS)
    for reward in [float("nan")] * 6 + [1.0]:
        assert transform.inv(trajectory(torch.full((1, 1), reward))) is None
    assert transform.inv(trajectory(torch.zeros(1, 1))) is None  # two of eight are numbers, three were asked for
    assert (transform.dropped_groups, transform.queued_trajectories) == (1, 0)


def test_nothing_to_select_from_is_an_error_and_no_silent_group():
    transform = MCAdvantage(2, trajectory_return="sum", candidate_group_size=8, candidate_selector=PODSSelector())
    transform.inv(trajectory(torch.zeros(1, 1)))
    with pytest.raises(ValueError, match=r"candidate_selection_min_size: expected more .* grpo_size=2 .* got 2"):
        transform.inv(trajectory(torch.ones(1, 1)))


@pytest.mark.parametrize("method", ["top", "bottom", "percentile", "random", "stratified"])
def test_other_methods_to_compare_with(method):
    returns = [0.3, 0.1, 0.9, 0.2, 0.7, 0.8]
    torch.manual_seed(3)
    chosen = PODSSelector(method).select(candidates(returns), group_size=3)
    torch.manual_seed(3)
    assert chosen == select_rollouts(returns, 3, group_size=6, method=method).indices.tolist()
    expected = {"top": [2, 4, 5], "bottom": [0, 1, 3]}
    assert chosen == expected.get(method, chosen)
    assert len(chosen) == 3


def test_pods_by_another_key_and_in_another_process():
    selector = pickle.loads(pickle.dumps(PODSSelector(in_keys=["score"])))
    table = TensorDict({"return": torch.zeros(4), "score": torch.tensor([0.2, 0.9, 0.1, 0.5])}, batch_size=[4])
    assert selector.select(table, group_size=2) == [1, 2]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "torchlr"}, ValueError, r"preset: expected one of .* got 'torchlr'"),
        ({"method": "gdpo"}, ValueError, r"method: expected one of grpo with preset 'torchrl', got 'gdpo'"),
        ({"rules": {"baseline": "mean"}}, ValueError, r"baseline: expected one of .* got 'mean'"),
        ({"rules": {"whiten": "tokens"}}, ValueError, r"mask, lengths: .* whiten=\"tokens\""),
        ({"rules": {"epsilon": 1}}, TypeError, "epsilon"),
    ],
)
def test_wrong_rules_are_errors_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        MultiObjectiveAdvantage(2, **arguments)


def test_weights_must_be_one_for_each_objective():
    transform = MultiObjectiveAdvantage(1, weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"weights: expected shape \(3,\)"):
        transform.inv(trajectory(torch.zeros(2, 3)))


def test_an_unknown_version_is_refused_unless_asked_for(monkeypatch):
    monkeypatch.setattr(ours, "CHECKED_VERSIONS", ("0.13.3",))
    with pytest.raises(RuntimeError, match=r"torchrl 0\.14\.1 is installed.*any_version=True"):
        MultiObjectiveAdvantage(2)
    with pytest.raises(RuntimeError, match=r"torchrl 0\.14\.1 is installed.*any_version=True"):
        PODSSelector()
    MultiObjectiveAdvantage(2, any_version=True)
    PODSSelector(any_version=True)


def test_an_unknown_method_is_an_error_at_construction():
    with pytest.raises(ValueError, match=r"method: expected one of max_variance, .* got 'max_var'"):
        PODSSelector("max_var")
