"""`morlfast.integrations.trl` inside TRL's own trainer, and the presets "trl" and "trl-async" against its formulas."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from grpo_task import Trainer, brevity, build, early_letters, trained
from morlfast import group_advantages
from morlfast.integrations import trl as ours
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.async_grpo.async_rollout_worker import RolloutGroup, _AsyncRolloutLoop

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Runs of the original by what its arguments say, each made once."""
    runs = {}

    def run(**arguments):
        key = repr(sorted(arguments.items()))
        if key not in runs:
            runs[key] = trained(GRPOTrainer, tmp_path_factory.mktemp("original"), **arguments)
        return runs[key]

    return run


def assert_same_run(own, original, but=()):
    (own_trainer, own_losses, own_advantages), (trainer, losses, advantages) = own, original
    assert len(losses) == 5
    assert any(abs(loss) > 1e-3 for loss in losses)
    torch.testing.assert_close(own_losses, losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(own_advantages, advantages, rtol=0, atol=1e-5)
    for own_parameter, parameter in zip(own_trainer.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(own_parameter, parameter, rtol=0, atol=1e-5)
    for own_entry, entry in zip(own_trainer.state.log_history, trainer.state.log_history, strict=True):
        assert {name for name in own_entry if not name.endswith("frac_advantage_zero")} == set(entry)
        rewards = {name: value for name, value in entry.items() if "reward" in name and name not in but}
        assert {name: own_entry[name] for name in rewards} == pytest.approx(rewards, rel=1e-6, nan_ok=True)


ARGUMENTS = [
    {},
    {"scale_rewards": "batch", "reward_weights": [1.0, 0.5], "reward_funcs": (early_letters, brevity)},
    {"scale_rewards": "none", "reward_weights": [0.25, 2.0]},
    {
        "multi_objective_aggregation": "normalize_then_sum",
        "reward_weights": [1.0, 0.5],
        "reward_funcs": (early_letters, brevity),
    },
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=["group", "batch", "none", "normalize_then_sum"])
def test_without_options_it_trains_as_the_original(arguments, originals, tmp_path):
    assert_same_run(trained(Trainer, tmp_path, **arguments), originals(**arguments))


def test_gdpo_trains_as_the_original_with_normalize_then_sum(originals, tmp_path):
    arguments = dict(ARGUMENTS[3])
    original = originals(**arguments)
    del arguments["multi_objective_aggregation"]
    own = trained(Trainer, tmp_path, options={"multi_objective": "gdpo"}, **arguments)
    # The one metric that looks at multi_objective_aggregation, of which nothing was said.
    assert_same_run(own, original, but=("frac_reward_zero_std", "eval_frac_reward_zero_std"))


def test_rloo_differs_from_the_original_and_says_what_it_logs(originals, tmp_path):
    trainer, losses, advantages = trained(Trainer, tmp_path, options={"multi_objective": "rloo"})
    _, original_losses, original_advantages = originals()
    assert np.abs(np.subtract(losses, original_losses)).max() > 1e-3
    first, original_first = advantages[:8], original_advantages[:8]  # from the same weights, hence the same completions
    assert (first - original_first).abs().max() > 0.1
    torch.testing.assert_close(first.view(2, 4).sum(1), torch.zeros(2), rtol=0, atol=1e-5)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[0]["frac_advantage_zero"] == pytest.approx(float((first == 0).float().mean()))
    assert any("eval_frac_advantage_zero" in entry for entry in trainer.state.log_history)


# ---- the numbers of one generation, with rewards of the test's own ----


def advantages_of(trainer, rewards, lengths=None, *, rank=0, ranks=1):
    """What `_generate_and_score_completions` of one of the processes makes of gathered rewards (N, M)."""
    n = len(rewards) // ranks
    completion_ids = [[5] * length for length in lengths or [2] * n]
    generated = ([[3, 4]] * n, completion_ids, ["c"] * n)
    if isinstance(trainer, GRPOTrainer):
        generated = ([[3, 4]] * n, completion_ids, None, ["c"] * n, None, {}, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_generate", lambda prompts: generated)
        # The trainer's own, so that the mixin's is called first.
        patch.setattr(GRPOTrainer, "_calculate_rewards", lambda *_: rewards.clone())
        patch.setattr(RLOOTrainer, "_calculate_rewards", lambda *_: rewards.clone())
        patch.setattr(type(trainer.accelerator), "process_index", rank)
        return trainer._generate_and_score_completions([{"prompt": "a b"}] * n)["advantages"]


def reward_batches():
    """Rewards (24, 2) in groups of 4: random, some not scored, groups of equal rewards, one or none scored."""
    generator = torch.Generator().manual_seed(8)
    random = torch.randn(24, 2, generator=generator)
    yield "random", random
    unscored = random.clone()
    unscored[torch.rand(24, 2, generator=generator) < 0.3] = torch.nan
    yield "NaN", unscored
    constant = random.clone()
    constant[4:8] = torch.tensor([0.5, -2.0])  # exact in TRL's float32 too
    constant[8:12, 1] = 3.0
    yield "constant", constant
    singleton = random.clone()
    singleton[5:8] = torch.nan  # one rollout of the group is scored
    singleton[8:12] = torch.nan  # none is
    singleton[13:16, 0] = torch.nan
    yield "singleton", singleton


REWARDS = dict(reward_batches())
with_rewards = pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())


def scoring(cls, tmp_path_factory, **arguments):
    trainer = build(cls, tmp_path_factory.mktemp("scoring"), reward_weights=[1.0, 0.5], **arguments)
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    return scoring(GRPOTrainer, tmp_path_factory, num_generations_eval=1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return scoring(Trainer, tmp_path_factory, num_generations_eval=1)


@pytest.fixture(scope="module")
def rloo(tmp_path_factory):
    return scoring(RLOOTrainer, tmp_path_factory, config=RLOOConfig, beta=0.0)


@with_rewards
@pytest.mark.parametrize(
    ("arguments", "method", "rules"),
    [
        ({}, "grpo", {}),
        ({"scale_rewards": "batch"}, "grpo", {"scale": "batch"}),
        ({"scale_rewards": "none"}, "dr_grpo", {}),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "gdpo", {}),
    ],
    ids=["grpo", "batch", "dr_grpo", "gdpo"],
)
def test_preset_has_the_numbers_of_grpo_trainer(rewards, arguments, method, rules, grpo, monkeypatch):
    for name, value in arguments.items():
        monkeypatch.setattr(grpo, name, value)
    value = group_advantages(rewards, group_size=4, weights=[1.0, 0.5], preset="trl", method=method, **rules)
    torch.testing.assert_close(value, advantages_of(grpo, rewards), rtol=1e-6, atol=1e-6)


def test_one_completion_a_prompt_in_evaluation(grpo, mixed, monkeypatch):
    for trainer in (grpo, mixed):
        monkeypatch.setattr(trainer.model, "training", False)
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        for trainer in (grpo, mixed):
            monkeypatch.setattr(trainer, "multi_objective_aggregation", aggregation)
        rewards = REWARDS["NaN"][:8]
        assert advantages_of(grpo, rewards).tolist() == [0.0] * 8
        assert advantages_of(mixed, rewards).tolist() == [0.0] * 8


@with_rewards
def test_preset_has_the_numbers_of_rloo_trainer(rewards, rloo):
    value = group_advantages(rewards, group_size=4, weights=[1.0, 0.5], preset="trl", method="rloo")
    torch.testing.assert_close(value, advantages_of(rloo, rewards), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "NaN", "constant"])
def test_whitening_is_that_of_rloo_trainer(name, rloo, monkeypatch):
    monkeypatch.setattr(rloo, "normalize_advantages", True)
    rewards = REWARDS[name]
    value = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="trl", method="rloo", whiten="rollouts")
    torch.testing.assert_close(value, advantages_of(rloo, rewards), rtol=1e-6, atol=1e-6)


@with_rewards
def test_preset_has_the_numbers_of_async_grpo(rewards):
    groups = rewards.to(torch.float64).view(6, 4, 2)
    expected = []
    for group in groups:
        columns = [[None if value != value else value for value in column.tolist()] for column in group.T]
        expected += asyncio.run(_scores(columns))
    value = group_advantages(rewards.double(), group_size=4, preset="trl-async", method="grpo")
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


async def _scores(columns):
    """Advantages that TRL's asynchronous worker gives one group, from the rewards of each function."""
    n = len(columns[0])
    sequences = [[SimpleNamespace(input_ids=[1], completion_mask=[1], old_log_probs=[0.0])] for _ in range(n)]
    group = RolloutGroup([[]] * n, {}, [[]] * n, [[1]] * n, sequences, [0] * n, [0] * n, 0, 0, [None] * n, [None] * n)
    worker = SimpleNamespace(
        reward_funcs=[lambda column=column, **_: column for column in columns],
        reward_func_names=[str(k) for k in range(len(columns))],
        _env_reward_types=[],
        _provides_rollout_reward=False,
    )
    return [sample.advantage for sample in await _AsyncRolloutLoop._score_group(worker, group)]


def test_equal_rewards_give_exactly_zero_not_rounding(grpo, mixed, monkeypatch):
    for trainer in (grpo, mixed):
        monkeypatch.setattr(trainer, "num_generations", 6)
    rounding = 0.0
    for reward in (0.1, 0.3, 0.6, 0.7, 0.9):
        rewards = torch.full((24, 2), reward)
        assert advantages_of(mixed, rewards).tolist() == [0.0] * 24
        rounding = max(rounding, float(advantages_of(grpo, rewards).abs().max()))
    assert 1e-5 < rounding < 1e-2  # TRL's divisor is 1e-4 then


def test_each_process_gets_its_own_rows(mixed, grpo):
    rewards = REWARDS["random"]
    whole = advantages_of(mixed, rewards)
    for rank in (0, 1):
        rows = advantages_of(mixed, rewards, rank=rank, ranks=2)
        assert torch.equal(rows, whole[12 * rank : 12 * rank + 12])
        torch.testing.assert_close(rows, advantages_of(grpo, rewards, rank=rank, ranks=2), rtol=1e-6, atol=1e-6)


def test_options_are_attributes_read_for_each_generation(mixed, monkeypatch):
    rewards = REWARDS["random"]
    for method in ("rloo", "dr_grpo", "gdpo"):
        monkeypatch.setattr(mixed, "multi_objective", method)
        expected = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="trl", method=method)
        assert torch.equal(advantages_of(mixed, rewards), expected)
    monkeypatch.setattr(mixed, "multi_objective", "grpo")
    monkeypatch.setattr(mixed, "advantage_rules", {"eps": 1e-6, "ddof": 0})
    monkeypatch.setattr(mixed, "reward_weights", torch.tensor([0.0, 3.0]))
    expected = group_advantages(rewards, 4, weights=[0.0, 3.0], eps=1e-6, ddof=0)
    assert torch.equal(advantages_of(mixed, rewards), expected)


def test_rules_of_another_trainer_count_the_tokens_of_the_loss(mixed, monkeypatch):
    rewards = REWARDS["random"]
    lengths = [1 + i % 5 for i in range(24)]
    monkeypatch.setattr(mixed, "advantage_preset", "verl")
    for method in ("opo", "gdpo"):
        monkeypatch.setattr(mixed, "multi_objective", method)
        expected = group_advantages(rewards, 4, weights=[1.0, 0.5], lengths=lengths, preset="verl", method=method)
        assert torch.equal(advantages_of(mixed, rewards, lengths), expected)


def test_what_is_not_scored_is_so_with_every_preset(mixed, monkeypatch):
    rewards = REWARDS["singleton"]
    monkeypatch.setattr(mixed, "advantage_preset", "torchrl")  # whose own rule is NaN for the group, twice
    expected = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="torchrl", nan="skip", singleton="zero")
    assert expected.isfinite().all()
    assert torch.equal(advantages_of(mixed, rewards), expected)
    monkeypatch.setattr(mixed, "advantage_rules", {"nan": "zero"})
    expected = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="torchrl", nan="zero")
    assert torch.equal(advantages_of(mixed, rewards), expected)


def test_an_infinite_reward_raises_with_its_function(mixed):
    rewards = REWARDS["random"].clone()
    rewards[3, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"reward_funcs: .* from brevity"):
        advantages_of(mixed, rewards)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({}, {"multi_objective": "gpdo"}, r"method: expected one of grpo, dr_grpo, rloo, gdpo .* got 'gpdo'"),
        ({}, {"advantage_preset": "trl2"}, r"preset: expected one of trl, .* got 'trl2'"),
        ({}, {"advantage_rules": {"epsilon": 1}}, r"advantage_rules: expected rules among aggregate.* got 'epsilon'"),
        ({}, {"advantage_rules": {"baseline": "mean"}}, r"baseline: expected one of .* got 'mean'"),
        ({"scale_rewards": "batch"}, {"multi_objective": "rloo"}, r"scale_rewards='batch' contradicts rloo"),
        ({"scale_rewards": "none"}, {"multi_objective": "gdpo"}, r"scale_rewards='none' contradicts gdpo"),
        ({"scale_rewards": "none"}, {"advantage_rules": {"scale": "batch"}}, r"scale_rewards='none' contradicts"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            {"multi_objective": "grpo"},
            r"multi_objective_aggregation=.* contradicts grpo of preset 'trl'",
        ),
    ],
)
def test_contradictions_are_errors_at_construction(arguments, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(Trainer, tmp_path, options=options, **arguments)


def test_scale_rewards_is_followed_where_it_contradicts_nothing(tmp_path):
    def rules(options, **arguments):
        return build(Trainer, tmp_path, options=options, **arguments)._advantage_rules()

    assert rules({"multi_objective": "grpo"}, scale_rewards="batch").scale == "batch"
    assert rules({"multi_objective": "dr_grpo"}, scale_rewards="none").scale == "none"
    assert rules({"multi_objective": "rloo"}, scale_rewards="none").scale == "none"
    assert rules({"advantage_rules": {"scale": "batch"}}).scale == "batch"
    assert rules({"advantage_preset": "verl"}, scale_rewards="none").eps == 1e-6


def test_an_unknown_version_is_refused_unless_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "CHECKED_VERSIONS", ("1.15.0",))
    with pytest.raises(RuntimeError, match=r"trl 1\.16\.0 is installed.*any_version=True"):
        build(Trainer, tmp_path)
    build(Trainer, tmp_path, options={"any_version": True})


def test_other_trainers_are_refused(tmp_path):
    class Other(ours.MultiObjectiveMixin, RLOOTrainer):
        pass

    with pytest.raises(TypeError, match="Other: expected a GRPOTrainer"):
        build(Other, tmp_path, config=RLOOConfig)
