"""slime's hooks: its signatures, and its formulas rebuilt here in float64 (commit 624b824a)."""

from __future__ import annotations

import doctest
import inspect
import itertools
import math
from importlib import metadata
from types import SimpleNamespace

import morlfast
import pytest
import torch
from morlfast.integrations import slime
from morlfast.integrations.slime import custom_advantage_function, custom_reward_post_process

NAN = math.nan


def arguments(**options):
    defaults = {
        "advantage_estimator": "grpo",
        "rewards_normalization": True,
        "grpo_std_normalization": True,
        "n_samples_per_prompt": 4,
        "rollout_batch_size": 2,
        "reward_key": None,
        "kl_coef": 0.0,
        "gamma": 1.0,
        "lambd": 1.0,
    }
    return SimpleNamespace(**{**defaults, **options})


def sample(group, reward, rollout=None, length=3, **options):
    """The fields of slime's dataclass `Sample` that hooks may read."""
    defaults = {"index": None, "loss_mask": None, "remove_sample": False, "metadata": {}}
    return SimpleNamespace(
        **{
            **defaults,
            "group_index": group,
            "reward": reward,
            "rollout_id": rollout,
            "response_length": length,
            **options,
        }
    )


def samples(groups, rewards):
    return [sample(group, reward) for group, reward in zip(groups, rewards, strict=True)]


def grouped(groups, rewards, divide=True):
    result = torch.tensor(rewards, dtype=torch.float64)
    for group in set(groups):
        rows = torch.tensor([other == group for other in groups])
        centred = result[rows] - result[rows].mean()
        result[rows] = centred / (centred.std() + 1e-6) if divide and len(centred) > 1 else centred
    return result.tolist()


def test_signatures():
    assert tuple(inspect.signature(custom_reward_post_process).parameters) == ("args", "samples")
    assert tuple(inspect.signature(custom_advantage_function).parameters) == ("args", "rollout_data")


def test_slime_calls_its_hook_without_any_argument():
    """tests/plugin_contracts of slime: args without attributes, two samples."""
    raw, rewards = custom_reward_post_process(SimpleNamespace(), samples([0, 0], [0.5, 1.5]))
    assert raw == [0.5, 1.5]
    assert rewards == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], rel=2e-6)


def test_the_examples_of_docstrings_hold():
    results = doctest.testmod(slime)
    assert results.attempted > 0
    assert results.failed == 0


# ---- rewards ----

GROUPS = [3, 3, 0, 3, 0, 7, 0, 3, 0, 9, 9]
REWARDS = [1.0, 0.0, 0.25, 1.0, 0.5, 2.0, -1.0, 0.5, 0.25, 0.75, 0.75]


@pytest.mark.parametrize("estimator", ["grpo", "gspo", "cispo"])
@pytest.mark.parametrize("divide", [True, False])
def test_groups_of_any_size_in_any_order(estimator, divide):
    args = arguments(advantage_estimator=estimator, grpo_std_normalization=divide)
    raw, rewards = custom_reward_post_process(args, samples(GROUPS, REWARDS))
    assert raw == REWARDS
    assert rewards == pytest.approx(grouped(GROUPS, REWARDS, divide), rel=1e-9, abs=1e-12)


def test_reinforce_plus_plus_baseline_is_centred_only():
    args = arguments(advantage_estimator="reinforce_plus_plus_baseline")
    _, rewards = custom_reward_post_process(args, samples(GROUPS, REWARDS))
    assert rewards == pytest.approx(grouped(GROUPS, REWARDS, divide=False), abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"advantage_estimator": "ppo"}, {"advantage_estimator": "reinforce_plus_plus"}, {"rewards_normalization": False}],
)
def test_raw_rewards_where_slime_does_not_normalize(options):
    raw, rewards = custom_reward_post_process(arguments(**options), samples(GROUPS, REWARDS))
    assert raw == rewards == REWARDS


def test_unequal_groups_do_not_mix():
    """slime #1414, #2204: groups of 4, 3 and 4; the second, all 5.0, got -1.09 each."""
    groups = [0] * 4 + [1] * 3 + [2] * 4
    _, rewards = custom_reward_post_process(
        arguments(), samples(groups, [7.0, 5.0, 6.0, 9.0, 5.0, 5.0, 5.0, 8.0, 7.0, 7.0, 6.0])
    )
    assert rewards[4:7] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.1, 1.0 / 3.0])
def test_equal_rewards_are_exactly_zero(value):
    _, rewards = custom_reward_post_process(arguments(), samples([0] * 7, [value] * 7))
    assert rewards == [0.0] * 7


def test_a_rollout_of_many_samples_counts_once():
    """slime #2300: three samples of one successful rollout and one of a failed one."""
    batch = [sample(0, 1.0, 5), sample(0, 1.0, 5), sample(0, 0.0, 6), sample(0, 1.0, 5)]
    raw, rewards = custom_reward_post_process(arguments(grpo_std_normalization=False), batch)
    assert raw == [1.0, 1.0, 0.0, 1.0]
    assert rewards == [0.5, 0.5, -0.5, 0.5]


def test_a_rollout_belongs_to_its_group():
    batch = [sample(group, reward, 0) for group, reward in [(0, 1.0), (1, 3.0)]] + [
        sample(0, 0.0, 1),
        sample(1, 0.0, 1),
    ]
    _, rewards = custom_reward_post_process(arguments(grpo_std_normalization=False), batch)
    assert rewards == [0.5, 1.5, -0.5, -1.5]


def test_samples_of_a_rollout_must_agree():
    batch = [sample(0, 1.0, 5), sample(0, 0.0, 6), sample(0, 0.5, 5)]
    with pytest.raises(ValueError, match=r"^samples: expected one reward .* got \[1.0\] for sample 0 and \[0.5\] for"):
        custom_reward_post_process(arguments(), batch)
    agreeing = [sample(0, None, 5), sample(0, 0.0, 6), sample(0, None, 5)]
    assert custom_reward_post_process(arguments(), agreeing)[0] == [None, 0.0, None]


def test_without_indices_groups_are_rollouts_in_a_row():
    batch = [sample(None, r, rollout) for r, rollout in [(1.0, 0), (1.0, 0), (0.0, 1), (4.0, None), (2.0, None)]]
    _, rewards = custom_reward_post_process(arguments(n_samples_per_prompt=2, grpo_std_normalization=False), batch)
    assert rewards == [0.5, 0.5, -0.5, 1.0, -1.0]
    with pytest.raises(ValueError, match=r"^group_size: expected a positive divisor of the 4 rollouts, got 3$"):
        custom_reward_post_process(arguments(n_samples_per_prompt=3), batch)
    batch[0].group_index = 0
    with pytest.raises(ValueError, match=r"^samples: expected a group_index for each, got 4 rollouts of 5 without$"):
        custom_reward_post_process(arguments(n_samples_per_prompt=2), batch)


def test_reward_key():
    batch = [sample(0, {"score": reward, "other": 5.0}) for reward in (1.0, 0.0)]
    raw, rewards = custom_reward_post_process(arguments(reward_key="score", grpo_std_normalization=False), batch)
    assert raw == [1.0, 0.0]
    assert rewards == [0.5, -0.5]


def test_several_objectives():
    accuracy, style = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0, 2.0, 0.0]
    groups = [0, 1, 0, 1, 0, 1]
    batch = [
        sample(g, {"accuracy": a, "style": s, "notes": "x"}) for g, a, s in zip(groups, accuracy, style, strict=True)
    ]
    args = arguments(morlfast_rewards={"accuracy": 1.0, "style": 0.5}, reward_key="accuracy")
    raw, rewards = custom_reward_post_process(args, batch)
    total = [a + 0.5 * s for a, s in zip(accuracy, style, strict=True)]
    assert raw == total
    assert rewards == pytest.approx(grouped(groups, total), rel=1e-9)

    args.morlfast_advantages = {"preset": "trl", "method": "gdpo"}
    _, rewards = custom_reward_post_process(args, batch)
    table = torch.tensor([accuracy, style], dtype=torch.float64).T
    want = morlfast.group_advantages(table, group_ids=groups, weights=[1.0, 0.5], preset="trl", method="gdpo")
    assert rewards == want.tolist()


def test_rules_that_count_tokens():
    lengths = [3, 1, 4, 2]
    batch = [sample(0, reward, length=n) for reward, n in zip([1.0, 0.0, 2.0, 5.0], lengths, strict=True)]
    batch[1].loss_mask, batch[1].response_length = [1, 0, 0, 1, 0, 0], 6
    batch[3].remove_sample = True
    args = arguments(morlfast_advantages={"preset": "verl", "method": "opo"})
    _, rewards = custom_reward_post_process(args, batch)
    baseline = (3 * 1.0 + 2 * 0.0 + 4 * 2.0) / 9
    assert rewards == pytest.approx([1 - baseline, -baseline, 2 - baseline, 5 - baseline])


def test_tokens_of_a_rollout_are_those_of_its_samples():
    batch = [sample(0, 1.0, 5, length=2), sample(0, 4.0, 6, length=5), sample(0, 1.0, 5, length=8)]
    args = arguments(morlfast_advantages={"preset": "verl", "method": "opo"})
    _, rewards = custom_reward_post_process(args, batch)
    baseline = (10 * 1.0 + 5 * 4.0) / 15
    assert rewards == pytest.approx([1 - baseline, 4 - baseline, 1 - baseline])


def test_a_missing_reward_is_nan():
    batch = samples([0, 0, 1, 1], [1.0, None, 3.0, 4.0])
    raw, rewards = custom_reward_post_process(arguments(grpo_std_normalization=False), batch)
    assert raw == [1.0, None, 3.0, 4.0]
    assert math.isnan(rewards[0])
    assert rewards[2:] == [-0.5, 0.5]
    args = arguments(morlfast_advantages={"preset": "slime", "nan": "skip"})
    assert custom_reward_post_process(args, batch)[1][:2] == [0.0, 0.0]


# ---- advantages ----


def rollout_data(lengths=(3, 1, 5), seed=2):
    """What slime has on a rank when it calls the hook: lists with an entry for each sample."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return [torch.rand(n, generator=generator) - 0.5 for n in lengths]

    masks = [torch.rand(n, generator=generator) < 0.7 for n in lengths]
    for mask in masks:
        mask[:1] = True
    return {
        "kl": noise(),
        "values": noise(),
        "rewards": [1.0, -0.5, 0.25][: len(lengths)],
        "loss_masks": [mask.int() for mask in masks],
        "response_lengths": list(lengths),
        "total_lengths": [n + 2 for n in lengths],
    }


def check(data, advantages, returns):
    for name, wanted in (("advantages", advantages), ("returns", returns)):
        assert isinstance(data[name], list)
        assert [row.dtype for row in data[name]] == [torch.float32] * len(wanted)
        for row, want in zip(data[name], wanted, strict=True):
            torch.testing.assert_close(row.double(), torch.tensor(want, dtype=torch.float64), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("estimator", ["grpo", "gspo", "cispo", "reinforce_plus_plus_baseline"])
def test_each_token_has_its_samples_reward(estimator):
    data = rollout_data()
    assert custom_advantage_function(arguments(advantage_estimator=estimator, kl_coef=0.3), data) is None
    penalty = 0.3 if estimator == "reinforce_plus_plus_baseline" else 0.0
    rows = zip(data["rewards"], data["kl"], strict=True)
    want = [[reward - penalty * k for k in kl.double().tolist()] for reward, kl in rows]
    check(data, want, want)


def test_reinforce_plus_plus():
    data = rollout_data()
    args = arguments(advantage_estimator="reinforce_plus_plus", kl_coef=0.3, gamma=0.9)
    custom_advantage_function(args, data)
    want = []
    for reward, kl, mask in zip(data["rewards"], data["kl"], data["loss_masks"], strict=True):
        tokens = [-0.3 * k * m for k, m in zip(kl.double().tolist(), mask.tolist(), strict=True)]
        tokens[max(i for i, m in enumerate(mask.tolist()) if m)] += reward
        backwards = itertools.accumulate(reversed(tokens), lambda later, own: own + 0.9 * later)
        want.append(list(backwards)[::-1])
    check(data, want, want)


def test_ppo():
    data = rollout_data()
    custom_advantage_function(arguments(advantage_estimator="ppo", kl_coef=0.3, gamma=0.9, lambd=0.8), data)
    want = []
    for reward, kl, values in zip(data["rewards"], data["kl"], data["values"], strict=True):
        v = [*values.double().tolist(), 0.0]
        tokens = [-0.3 * k for k in kl.double().tolist()]
        tokens[-1] += reward
        deltas = [r + 0.9 * v[t + 1] - v[t] for t, r in enumerate(tokens)]
        want.append(list(itertools.accumulate(reversed(deltas), lambda later, own: own + 0.72 * later))[::-1])
    returns = [
        [a + v for a, v in zip(row, values.double().tolist(), strict=True)]
        for row, values in zip(want, data["values"], strict=True)
    ]
    check(data, want, returns)


def test_ppo_with_options_of_gae():
    data, plain = rollout_data(), rollout_data()
    args = arguments(advantage_estimator="ppo", gamma=0.9, lambd=0.8)
    custom_advantage_function(args, plain)
    args.morlfast_gae = {"lam": 0.5}
    custom_advantage_function(args, data)
    args = arguments(advantage_estimator="ppo", gamma=0.9, lambd=0.5)
    custom_advantage_function(args, plain := rollout_data())
    assert all(torch.equal(own, other) for own, other in zip(data["advantages"], plain["advantages"], strict=True))


@pytest.mark.parametrize("bootstrap", ["zero", "repeat_last", "tensor"])
def test_a_response_has_the_same_advantages_in_every_batch(bootstrap):
    """Whatever the longest one is that shorter ones are padded to."""
    behind = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)
    args = arguments(advantage_estimator="ppo", kl_coef=0.3, gamma=0.9, lambd=0.8)
    together = rollout_data()
    args.morlfast_gae = {"bootstrap": behind if bootstrap == "tensor" else bootstrap}
    custom_advantage_function(args, together)
    for row in range(3):
        alone = {name: values[row : row + 1] for name, values in rollout_data().items()}
        args.morlfast_gae = {"bootstrap": behind[row : row + 1] if bootstrap == "tensor" else bootstrap}
        custom_advantage_function(args, alone)
        for name in ("advantages", "returns"):
            torch.testing.assert_close(alone[name][0], together[name][row], rtol=0, atol=0)
    # The last token's delta: r - V, and what lies behind it.
    last = [data[2][-1].double().item() for data in (together["values"], together["kl"], together["advantages"])]
    after = {"zero": 0.0, "repeat_last": last[0], "tensor": 1.5}[bootstrap]
    assert last[2] == pytest.approx(0.25 - 0.3 * last[1] + 0.9 * after - last[0], abs=1e-6)


def test_rewards_may_be_a_tensor_and_rows_missing():
    data = rollout_data()
    data["rewards"] = torch.tensor(data["rewards"])
    custom_advantage_function(arguments(), data)
    assert data["advantages"][0].tolist() == [1.0, 1.0, 1.0]
    data = {**rollout_data(()), "rewards": []}
    custom_advantage_function(arguments(), data)
    assert data["advantages"] == data["returns"] == []


@pytest.mark.parametrize("estimator", ["ppo", "reinforce_plus_plus"])
def test_parts_of_responses_are_refused(estimator):
    data = rollout_data()
    data["response_lengths"] = [6, 2, 10]
    with pytest.raises(ValueError, match=rf"^rollout_data: expected whole responses for {estimator}, got parts of"):
        custom_advantage_function(arguments(advantage_estimator=estimator), data)


def test_errors():
    with pytest.raises(ValueError, match=r"^advantage_estimator: expected grpo, .*, got 'other'$"):
        custom_advantage_function(arguments(advantage_estimator="other"), rollout_data())
    data = rollout_data()
    data["loss_masks"][1] = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^loss_masks: expected a token to train on .*, got none in response 1$"):
        custom_advantage_function(arguments(advantage_estimator="reinforce_plus_plus"), data)
    data = rollout_data((3, 0, 5))
    with pytest.raises(ValueError, match=r"^kl: expected a token at least .*, got none in response 1$"):
        custom_advantage_function(arguments(advantage_estimator="ppo"), data)


def test_rewards_that_are_not_there_are_named():
    batch = [sample(0, {"a": 1.0, "b": 0.0}), sample(0, {"a": 1.0})]
    with pytest.raises(
        ValueError, match=r"^morlfast_rewards: expected an entry 'b' .*, got \{'a': 1.0\} for sample 1$"
    ):
        custom_reward_post_process(arguments(morlfast_rewards={"a": 1.0, "b": 0.5}), batch)
    with pytest.raises(ValueError, match=r"^reward_key: expected an entry 'b' .* for sample 1$"):
        custom_reward_post_process(arguments(reward_key="b"), batch)
    with pytest.raises(
        TypeError, match=r"^samples: expected a number as reward, or a dict with --reward-key .* sample 0$"
    ):
        custom_reward_post_process(arguments(), batch)


@pytest.mark.parametrize("options", [{}, {"morlfast_rewards": {"a": 1.0, "b": 0.5}}, {"reward_key": "a"}])
def test_no_samples(options):
    assert custom_reward_post_process(arguments(**options), []) == ([], [])


def test_versions_that_slime_says_are_checked(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: {"slime": "0.4.0"}[name])
    for call in (
        lambda args: custom_reward_post_process(args, samples([0, 0], [1.0, 2.0])),
        lambda args: custom_advantage_function(args, rollout_data()),
    ):
        with pytest.raises(RuntimeError, match=r"^slime 0\.4\.0 is installed, .* 0\.3\.1 only; .*"):
            call(arguments())
        call(arguments(morlfast_any_version=True))
    monkeypatch.setattr(metadata, "version", lambda name: {"slime": "0.3.1"}[name])
    custom_reward_post_process(arguments(), samples([0, 0], [1.0, 2.0]))
