"""D3S, PODS and T-PPO's filter against the papers' numbers and plain Python; schedules, states, losses, ranks."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast import gae, group_advantages, select_rollouts, select_tokens
from morlfast.downsampling import (
    D3S,
    PODS,
    D3SBudget,
    D3SSchedule,
    LinearSchedule,
    t_ppo_tokens,
    token_denominator,
    token_mean,
)
from references import downsampling as reference
from torch.autograd import gradcheck

F64 = torch.float64
NAN, INF = math.nan, math.inf
SCOPES = ["batch", "group", "sequence"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flags(*shape: int, seed: int = 0, share: float = 0.7) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def constant(rollouts: float | None, ratio: float, **options: Any) -> D3S:
    return D3S(D3SSchedule(rollouts, ratio), **options)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint of tensors and Python's own types."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# Schedules.


def test_row_64_the_budget_moves_with_progress():
    schedule = D3SSchedule(LinearSchedule(64, 256), LinearSchedule(0.1, 1.0))
    assert schedule(0.25) == D3SBudget(112, 0.325)
    assert schedule(0.0) == D3SBudget(64, 0.1)
    assert schedule(1.0) == D3SBudget(256, 1.0)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1))
def test_a_schedule_is_linear_and_stays_between_its_ends(start, end, progress):
    schedule = LinearSchedule(start, end)
    assert schedule(0) == start
    assert schedule(1) == end
    assert min(start, end) <= schedule(progress) <= max(start, end)
    exact = (1 - Fraction(progress)) * Fraction(start) + Fraction(progress) * Fraction(end)
    assert abs(Fraction(schedule(progress)) - exact) <= Fraction(max(abs(start), abs(end))) / 2**51


@pytest.mark.parametrize(("start", "end"), [(3, 10), (10, 3), (0, 7), (64, 255), (1, 2)])
def test_rollouts_are_rounded_half_up(start, end):
    schedule = D3SSchedule(LinearSchedule(start, end), 1.0)
    steps = 2 * abs(end - start)  # a half at every other step
    for i in range(steps + 1):
        exact = start + Fraction(i, steps) * (end - start)
        assert schedule(i / steps).rollouts == math.floor(exact + Fraction(1, 2)), i
    assert D3SSchedule(2.5, 1.0)(0.3).rollouts == 3
    assert D3SSchedule(2.49, 1.0)(0.3).rollouts == 2


def test_a_number_is_a_schedule_that_stays():
    assert D3SSchedule(64, 0.1) == D3SSchedule(LinearSchedule(64, 64), LinearSchedule(0.1, 0.1))
    assert all(D3SSchedule(64, 0.1)(p) == D3SBudget(64, 0.1) for p in (0, 0.1, 0.3, 1))
    assert D3SSchedule(None, 0.1)(0.7) == D3SBudget(None, 0.1)
    assert D3SSchedule(None, 0.1).is_constant
    assert not D3SSchedule(LinearSchedule(1, 2), 0.1).is_constant
    assert not D3SSchedule(None, LinearSchedule(0.1, 0.2)).is_constant


@pytest.mark.parametrize("progress", [-0.1, 1.1, NAN, INF])
def test_progress_must_be_a_fraction(progress):
    with pytest.raises(ValueError, match="progress"):
        LinearSchedule(0, 1)(progress)


@pytest.mark.parametrize("progress", [None, "half", [0.5]])
def test_progress_must_be_a_number(progress):
    with pytest.raises(TypeError, match="progress"):
        LinearSchedule(0, 1)(progress)


@pytest.mark.parametrize(
    ("name", "rollouts", "ratio", "error"),
    [
        ("rollouts", -1, 0.5, ValueError),
        ("rollouts", LinearSchedule(4, -1), 0.5, ValueError),
        ("rollouts", INF, 0.5, ValueError),
        ("rollouts", "4", 0.5, TypeError),
        ("ratio", 4, 1.1, ValueError),
        ("ratio", 4, LinearSchedule(-0.1, 1), ValueError),
        ("ratio", 4, NAN, ValueError),
        ("ratio", 4, None, TypeError),
    ],
)
def test_budgets_must_be_counts_and_shares(name, rollouts, ratio, error):
    with pytest.raises(error, match=name):
        D3SSchedule(rollouts, ratio)


@pytest.mark.parametrize(
    ("value", "error"), [(NAN, ValueError), (INF, ValueError), ("1", TypeError), (None, TypeError)]
)
def test_ends_must_be_finite_numbers(value, error):
    with pytest.raises(error, match="start"):
        LinearSchedule(value, 1)
    with pytest.raises(error, match="end"):
        LinearSchedule(1, value)


# Selection.


ROW_64 = torch.tensor([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0, 0.866, 0.866, -0.866, -0.866])


def test_row_64_rollouts_have_the_largest_variance_across_groups():
    d3s = D3S(D3SSchedule(4, 1.0))
    selection = d3s.select_rollouts(ROW_64)
    assert len(selection.indices) == 4
    assert abs(ROW_64[selection.indices].var(correction=0).item() - 1.099845) < 1e-6
    assert torch.equal(selection.mask, select_rollouts(ROW_64, 4, scope="batch").mask)


def test_row_64_tokens_have_the_largest_products():
    entropies = torch.tensor([[0.1, 2.0, 0.3, 1.0], [3.0, 0.2, 0.1, 2.5]])
    for advantages in (torch.tensor([1.0, -0.5]), torch.tensor([[1.0] * 4, [-0.5] * 4])):
        kept = D3S(D3SSchedule(None, 0.25)).select(advantages, entropies, torch.ones(2, 4))
        assert kept.tokens.flatten().nonzero().flatten().tolist() == [1, 4]
        assert torch.equal(kept.tokens, select_tokens(advantages, entropies, torch.ones(2, 4), 0.25))
        assert kept.rollouts.indices.tolist() == [0, 1]


@st.composite
def batches(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Few distinct values, so that many tie; rows without tokens; advantages of rollouts or of tokens."""
    group_size = draw(st.integers(1, 3))
    n, t = group_size * draw(st.integers(0, 3)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = [-2.0, -1.0, 0.0, 0.5, 2.0] + [NAN] * draw(st.booleans())
    shape = draw(st.sampled_from([(n,), (n, t)]))
    advantages = torch.from_numpy(rng.choice(values, size=shape)).float()
    entropies = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 3.0], size=(n, t))).float()
    mask = torch.from_numpy(rng.random((n, t)) < draw(st.sampled_from([0.0, 0.4, 0.9, 1.0])))
    return advantages, entropies, mask, group_size


@pytest.mark.parametrize("rollout_scope", ["batch", "group"])
@pytest.mark.parametrize("token_scope", SCOPES)
@given(batches(), st.one_of(st.none(), st.integers(0, 4)), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans())
def test_both_levels_match_plain_python(rollout_scope, token_scope, case, budget, ratio, drop):
    advantages, entropies, mask, group_size = case
    labels = [i // group_size for i in range(len(entropies))]
    zeros = "drop" if drop else "keep"
    d3s = constant(budget, ratio, rollout_scope=rollout_scope, token_scope=token_scope, zero_advantages=zeros)
    kept = d3s.select(advantages, entropies, mask, group_ids=torch.tensor(labels, dtype=torch.int64))
    scopes = {"rollout_scope": rollout_scope, "token_scope": token_scope, "groups": labels, "drop_zeros": drop}
    arrays = (x.numpy() for x in (advantages, entropies, mask))
    rows, tokens = reference.select(*arrays, budget, ratio, **scopes)
    assert kept.rollouts.indices.tolist() == rows
    assert kept.rollouts.mask.nonzero().flatten().tolist() == sorted(rows)
    assert kept.tokens.tolist() == tokens.tolist()


def test_the_share_is_of_the_tokens_of_selected_rollouts():
    advantages, entropies, mask = normal(16), normal(16, 50).abs(), flags(16, 50)
    kept = constant(6, 0.3).select(advantages, entropies, mask)
    valid = int(mask[kept.rollouts.indices].sum())
    assert int(kept.tokens.sum()) == math.ceil(0.3 * valid)
    assert not kept.tokens[~kept.rollouts.mask].any()
    assert torch.equal(kept.tokens, select_tokens(advantages, entropies, mask & kept.rollouts.mask[:, None], 0.3))
    everyone = constant(6, 0.3).select_tokens(advantages, entropies, mask)
    assert int(everyone.sum()) == math.ceil(0.3 * int(mask.sum()))


def test_ratio_one_keeps_every_valid_token_of_selected_rollouts():
    advantages, entropies, mask = normal(8), normal(8, 20).abs(), flags(8, 20)
    for scope in SCOPES:
        kept = constant(3, 1.0, token_scope=scope).select(advantages, entropies, mask, group_size=4)
        assert torch.equal(kept.tokens, mask & kept.rollouts.mask[:, None])


def test_no_rollouts_leave_no_tokens_and_a_loss_of_zero():
    advantages, entropies, mask = normal(4), normal(4, 5).abs(), torch.ones(4, 5)
    d3s = constant(0, 0.5, at_least=3)
    kept = d3s.select(advantages, entropies, mask)
    assert kept.rollouts.indices.shape == (0,)
    assert not kept.tokens.any()
    values = normal(4, 5).requires_grad_()
    loss = token_mean(values, kept.tokens, mask)
    assert loss.item() == 0.0
    loss.backward()
    assert not values.grad.any()


def test_advantages_of_zero_fill_the_budget_last_or_are_dropped():
    entropies, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]), torch.ones(4, 2)
    zeros = torch.zeros(4)
    kept = constant(2, 0.5).select(zeros, entropies, mask)
    assert kept.rollouts.indices.tolist() == [0, 1]
    assert kept.tokens.tolist() == [[True, True], [False, False], [False, False], [False, False]]
    dropped = constant(2, 0.5, zero_advantages="drop").select(zeros, entropies, mask)
    assert dropped.rollouts.indices.tolist() == []
    assert not dropped.tokens.any()

    one_sided = torch.tensor([0.0, 1.0, 2.0, -0.0])
    assert constant(2, 1.0).select_rollouts(one_sided).indices.tolist() == [0, 2]
    drop = constant(3, 0.5, zero_advantages="drop")
    kept = drop.select(one_sided, entropies, mask)
    assert kept.rollouts.indices.tolist() == [1, 2]
    assert int(kept.tokens.sum()) == 2
    by_token = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, -1.0], [2.0, 2.0]])  # 0.5, -1 and 2 a rollout
    kept = constant(3, 1.0, zero_advantages="drop").select(by_token, entropies, mask)
    assert kept.rollouts.indices.tolist() == [1, 2, 3]
    assert kept.tokens.tolist() == [[False, False], [True, False], [True, True], [True, True]]


def test_rollouts_without_a_score_or_a_token_are_not_selected():
    advantages = torch.tensor([5.0, NAN, -5.0, 1.0, -1.0])
    mask = torch.tensor([[0, 0], [1, 1], [1, 1], [0, 1], [1, 1]])
    for budget, rows in ((2, [2, 3]), (None, [2, 3, 4]), (9, [2, 3, 4])):
        kept = constant(budget, 1.0).select(advantages, torch.ones(5, 2), mask)
        assert kept.rollouts.indices.tolist() == rows
        assert torch.equal(kept.tokens, (mask != 0) & kept.rollouts.mask[:, None])
    assert constant(2, 1.0).select_rollouts(advantages).indices.tolist() == [0, 2]


def test_advantages_of_tokens_count_with_their_rows_mean():
    a, mask = normal(12), flags(12, 9)
    padded = torch.where(mask, a[:, None], 7.0)
    one, two = (
        constant(5, 0.4).select(a, normal(12, 9).abs(), mask),
        constant(5, 0.4).select(padded, normal(12, 9).abs(), mask),
    )
    assert torch.equal(one.rollouts.mask, two.rollouts.mask)
    assert torch.equal(one.tokens, two.tokens)


def test_a_budget_beyond_the_batch_selects_all_but_beyond_a_group_size_is_an_error():
    a = normal(6)
    assert constant(100, 1.0).select_rollouts(a).indices.tolist() == list(range(6))
    ragged = constant(4, 1.0, rollout_scope="group").select_rollouts(a, offsets=torch.tensor([0, 1, 6]))
    assert ragged.mask.sum() == 5
    with pytest.raises(ValueError, match="schedule: expected at most group_size = 3 rollouts of a group, got 4"):
        constant(4, 1.0, rollout_scope="group").select_rollouts(a, group_size=3)
    assert constant(3, 1.0).select_rollouts(torch.zeros(0)).indices.shape == (0,)


def test_groups_are_needed_where_a_scope_is_of_groups():
    a, h, mask = normal(6), normal(6, 4).abs(), torch.ones(6, 4)
    for scopes in ({"rollout_scope": "group"}, {"token_scope": "group"}):
        with pytest.raises(ValueError, match="group_size, group_ids"):
            constant(2, 0.5, **scopes).select(a, h, mask)
        by_size = constant(2, 0.5, **scopes).select(a, h, mask, group_size=3)
        by_label = constant(2, 0.5, **scopes).select(a, h, mask, group_ids=list("xxxyyy"))
        by_bound = constant(2, 0.5, **scopes).select(a, h, mask, offsets=torch.tensor([0, 3, 6]))
        for other in (by_label, by_bound):
            assert torch.equal(by_size.rollouts.mask, other.rollouts.mask)
            assert torch.equal(by_size.tokens, other.tokens)


def test_at_least_and_quantile_are_those_of_select_tokens():
    a, h, mask = normal(5), normal(5, 40).abs(), flags(5, 40)
    at_least = constant(None, 0.01, token_scope="sequence", at_least=3).select_tokens(a, h, mask)
    assert torch.equal(at_least, select_tokens(a, h, mask, 0.01, scope="sequence", at_least=3))
    assert at_least.sum(1).tolist() == [3] * 5
    quantile = constant(None, 0.2, threshold="quantile").select_tokens(a, h, mask)
    assert torch.equal(quantile, select_tokens(a, h, mask, 0.2, threshold="quantile"))


def test_d3s_selects_by_advantages_of_all_rollouts_and_pods_by_rewards():
    # The second group's rewards spread less, but normalized they spread as much.
    rewards = torch.tensor([0.0, 4.0, 8.0, 12.0, 0.0, 0.1, 0.2, 0.3])
    advantages = group_advantages(rewards, 4, eps=0.0)
    d3s = constant(4, 1.0).select_rollouts(advantages)
    assert d3s.indices.tolist() == [0, 3, 4, 7]
    assert constant(4, 1.0).select_rollouts(rewards).indices.tolist() == [0, 2, 3, 4]
    pods = PODS(2).select(rewards, group_size=4)
    assert pods.indices.tolist() == [0, 3, 4, 7]
    renormalized = group_advantages(rewards.masked_fill(~pods.mask, NAN), 4, eps=0.0)
    expected = group_advantages(rewards[pods.indices], 2, eps=0.0)
    assert torch.equal(renormalized[pods.indices], expected)
    assert not renormalized[~pods.mask].any()
    assert (advantages[d3s.indices].abs() > renormalized[pods.indices].abs()).all()  # D3S leaves them as they are


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_dtypes_of_advantages(dtype):
    a, h, mask = (normal(8) * 4).round().to(dtype), normal(8, 6).abs(), flags(8, 6)
    got, want = (constant(3, 0.5).select(x, h, mask) for x in (a, a.double()))
    assert torch.equal(got.rollouts.mask, want.rollouts.mask)
    assert torch.equal(constant(3, 0.5).select_rollouts(a.tolist()).mask, constant(3, 0.5).select_rollouts(a).mask)


def test_inputs_may_require_a_gradient_and_are_left_unchanged():
    a, h, mask, rollouts = normal(6).requires_grad_(), normal(6, 5).requires_grad_(), flags(6, 5), flags(6)
    copies = [x.detach().clone() for x in (a, h, mask, rollouts)]
    d3s = constant(3, 0.5, zero_advantages="drop")
    assert not d3s.select(a, h, mask).tokens.requires_grad
    d3s.select_tokens(a, h, mask, rollouts=rollouts)
    for x, copy in zip((a, h, mask, rollouts), copies, strict=True):
        assert torch.equal(x, copy)
        assert x._version == 0


@pytest.mark.parametrize(
    ("rollouts", "error"),
    [
        (torch.tensor([0, 1]), TypeError),
        ([True] * 6, TypeError),
        (torch.ones(5) > 0, ValueError),
        (torch.ones(6, 5) > 0, ValueError),
        (torch.ones(6, device="meta") > 0, ValueError),
    ],
)
def test_rollouts_must_be_a_mask(rollouts, error):
    with pytest.raises(error, match="rollouts"):
        constant(3, 0.5).select_tokens(normal(6), normal(6, 5), torch.ones(6, 5), rollouts=rollouts)


def test_advantages_and_masks_must_fit():
    d3s = constant(3, 0.5)
    with pytest.raises(ValueError, match=r"advantages: expected shape \(N,\) or \(N, T\)"):
        d3s.select_rollouts(normal(2, 3, 4))
    with pytest.raises(ValueError, match="mask: expected one together with advantages"):
        d3s.select_rollouts(normal(6, 5))
    for mask in (torch.ones(6), torch.ones(5, 5)):
        with pytest.raises(ValueError, match=r"mask: expected shape \(6, T\)"):
            d3s.select_rollouts(normal(6), mask=mask)
    with pytest.raises(ValueError, match="mask"):
        d3s.select_rollouts(normal(6, 5), mask=torch.ones(6, 4))
    with pytest.raises(ValueError, match="device"):
        d3s.select_rollouts(normal(6), mask=torch.ones(6, 4, device="meta"))
    with pytest.raises(ValueError, match="entropies"):
        d3s.select(normal(6), normal(6), torch.ones(6, 4))


def test_both_levels_and_the_loss_compile_without_a_break():
    d3s = constant(3, 0.4, zero_advantages="drop")

    def loss(advantages, entropies, mask, finished):
        rollouts = d3s.select_rollouts(advantages, mask=mask).mask
        tokens = d3s.select_tokens(advantages, entropies, mask, rollouts=rollouts)
        policy = t_ppo_tokens(mask, finished, selected=tokens).policy
        return token_mean(entropies, policy, mask), tokens

    arguments = normal(6), normal(6, 9).abs(), flags(6, 9), flags(6)
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(*arguments)
    for x, want in zip(got, loss(*arguments), strict=True):
        assert torch.equal(x, want)


# Progress and state.

MOVING = D3SSchedule(LinearSchedule(2, 6), LinearSchedule(0.2, 1.0))


def test_steps_move_the_budget():
    d3s = D3S(MOVING, total_steps=4)
    a, h, mask = normal(8), normal(8, 10).abs(), torch.ones(8, 10)
    for step in range(7):
        progress = min(step / 4, 1)
        assert d3s.progress == progress
        assert d3s.budget() == MOVING(progress)
        kept, again = d3s.select(a, h, mask), D3S(MOVING).select(a, h, mask, progress=progress)
        assert len(kept.rollouts.indices) == d3s.budget().rollouts
        assert torch.equal(kept.rollouts.mask, again.rollouts.mask)
        assert torch.equal(kept.tokens, again.tokens)
        d3s.step()
    d3s = D3S(MOVING, total_steps=4)
    d3s.step(3)
    d3s.step(0)
    assert d3s.progress == 0.75


def test_progress_comes_from_somewhere():
    d3s = D3S(MOVING)
    with pytest.raises(ValueError, match="progress: expected a number from 0 to 1, or total_steps"):
        d3s.select_rollouts(normal(8))
    with pytest.raises(ValueError, match="progress"):
        d3s.progress  # noqa: B018
    with pytest.raises(ValueError, match="total_steps"):
        d3s.step()
    assert d3s.budget(0.5) == D3SBudget(4, MOVING(0.5).ratio)
    assert constant(3, 0.5).budget() == D3SBudget(3, 0.5)  # which moves with nothing
    for n, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n: expected"):
            D3S(MOVING, total_steps=3).step(n)
    with pytest.raises(ValueError, match="progress"):
        D3S(MOVING, total_steps=3).select_rollouts(normal(8), progress=1.5)


OTHER: dict[str, Any] = {
    "total_steps": 9,
    "rollout_scope": "group",
    "token_scope": "sequence",
    "entropy": "old",
    "loss_denominator": "all",
    "at_least": 2,
    "threshold": "quantile",
    "zero_advantages": "drop",
}


def test_a_checkpoint_goes_on_where_it_was():
    options = {name: value for name, value in OTHER.items() if name != "threshold"}
    schedule = D3SSchedule(LinearSchedule(np.float64(2), 6), LinearSchedule(np.float64(0.2), 1))
    d3s = D3S(schedule, **{**options, "total_steps": np.int64(9)})
    d3s.step(np.int64(5))
    again = D3S(MOVING, **options)
    again.load_state_dict(saved_and_loaded(d3s.state_dict()))
    assert again.progress == d3s.progress == 5 / 9
    assert again.state_dict() == d3s.state_dict()
    without = constant(None, 0.5)
    without.load_state_dict(saved_and_loaded(constant(None, 0.5).state_dict()))


@pytest.mark.parametrize("name", [*OTHER, "rollouts", "ratio"])
def test_a_state_of_another_configuration_is_refused(name):
    d3s = D3S(MOVING, total_steps=4)
    d3s.step(3)
    if name in OTHER:
        other = D3S(MOVING, **{"total_steps": 4, name: OTHER[name]})
    else:
        ends = {"rollouts": LinearSchedule(2, 6), "ratio": LinearSchedule(0.2, 1.0), name: 1.0}
        other = D3S(D3SSchedule(**ends), total_steps=4)
    with pytest.raises(ValueError, match=f"^{name}: "):
        other.load_state_dict(d3s.state_dict())
    assert other.steps == 0
    state = d3s.state_dict()
    del state[name]
    with pytest.raises(ValueError, match=f"^{name}: "):
        D3S(MOVING, total_steps=4).load_state_dict(state)


@pytest.mark.parametrize(("steps", "error"), [(-1, ValueError), ("3", TypeError), (0.5, TypeError)])
def test_a_state_has_a_number_of_steps(steps, error):
    d3s = D3S(MOVING, total_steps=4)
    with pytest.raises(error, match="steps"):
        d3s.load_state_dict({**d3s.state_dict(), "steps": steps})


@pytest.mark.parametrize("name", ["rollout_scope", "token_scope", "entropy", "loss_denominator", "threshold"])
def test_choices_must_be_known(name):
    with pytest.raises(ValueError, match=f"{name}: expected one of .*, got 'other'"):
        D3S(MOVING, **{name: "other"})


def test_other_arguments_must_fit():
    with pytest.raises(TypeError, match="schedule"):
        D3S((64, 0.1))
    for value, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="total_steps"):
            D3S(MOVING, total_steps=value)
    with pytest.raises(ValueError, match="at_least"):
        D3S(MOVING, at_least=-1)
    with pytest.raises(ValueError, match="at_least: expected 0 with a quantile, got 1"):
        D3S(MOVING, at_least=1, threshold="quantile")
    assert "token_scope='batch'" in repr(D3S(MOVING, total_steps=4))


# PODS.


def test_pods_is_select_rollouts_of_each_group():
    rewards = normal(24)
    for method in ("max_variance", "top", "bottom", "percentile"):
        got, want = (
            PODS(3, method).select(rewards, group_size=8),
            select_rollouts(rewards, 3, group_size=8, method=method),
        )
        assert torch.equal(got.indices, want.indices)
    ids = [i % 3 for i in range(24)]
    assert torch.equal(PODS(3).select(rewards, group_ids=ids).mask, select_rollouts(rewards, 3, group_ids=ids).mask)
    drawn = [PODS(3, "random").select(rewards, group_size=8, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(drawn[0].indices, drawn[1].indices)
    assert PODS(4) == PODS(4, "max_variance", renormalize=True)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((-1,), ValueError, "k"),
        ((2.0,), TypeError, "k"),
        ((2, "best"), ValueError, "method"),
        ((2, "top", 1), TypeError, "renormalize"),
    ],
)
def test_arguments_of_pods_must_fit(arguments, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        PODS(*arguments)


# The loss.


@given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 2**32), st.sampled_from(["kept", "all"]))
def test_the_mean_is_that_of_a_loop(n, t, seed, denominator):
    values, keep, mask = normal(n, t, seed=seed).double(), flags(n, t, seed=seed, share=0.4), flags(n, t, seed=seed + 1)
    got = token_mean(values, keep, mask, loss_denominator=denominator)
    want = reference.token_mean(values.numpy(), keep.numpy(), mask.numpy(), denominator == "all")
    assert got.shape == ()
    assert math.isclose(got.item(), want, rel_tol=1e-13, abs_tol=1e-13)
    count = token_denominator(keep, mask, loss_denominator=denominator)
    assert count.item() == max(int((mask & (keep | (denominator == "all"))).sum()), 1)
    assert count.dtype == F64


@pytest.mark.parametrize("denominator", ["kept", "all"])
def test_the_mean_has_a_gradient_at_kept_tokens_alone(denominator):
    values, keep, mask = normal(4, 6).double().requires_grad_(), flags(4, 6, share=0.4), flags(4, 6)
    assert gradcheck(lambda v: token_mean(v, keep, mask, loss_denominator=denominator), (values,))
    token_mean(values, keep, mask, loss_denominator=denominator).backward()
    weight = 1 / token_denominator(keep, mask, loss_denominator=denominator)
    assert torch.equal(values.grad, torch.where(keep & mask, weight, 0.0))


def test_what_is_not_kept_is_not_read():
    keep, mask = torch.tensor([[1, 0, 1], [0, 1, 0]]), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    values = torch.tensor([[2.0, NAN, INF], [-INF, 4.0, NAN]], requires_grad=True)
    loss = token_mean(values, keep, mask)
    loss.backward()
    assert loss.item() == 3.0
    assert values.grad.tolist() == [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
    assert token_mean(values, keep, mask, loss_denominator="all").item() == pytest.approx(6 / 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_narrow_values_are_summed_in_float32(dtype):
    values = torch.full((64, 512), 0.1, dtype=dtype)
    ones = torch.ones(64, 512)
    got = token_mean(values, ones, ones)
    assert got.dtype == (F64 if dtype is F64 else torch.float32)
    assert math.isclose(got.item(), values[0, 0].item(), rel_tol=1e-5)


def test_the_denominator_of_d3s_is_the_configured_one():
    mask, tokens = torch.ones(3, 4), flags(3, 4, share=0.3)
    assert constant(2, 0.5).denominator(tokens, mask).item() == int(tokens.sum())
    assert constant(2, 0.5, loss_denominator="all").denominator(tokens, mask).item() == 12


def test_arguments_of_the_mean_must_fit():
    ones = torch.ones(2, 3)
    for function in (lambda **o: token_mean(ones, **o), token_denominator):
        with pytest.raises(ValueError, match="keep"):
            function(keep=torch.ones(3, 2), mask=ones)
        with pytest.raises(ValueError, match="mask"):
            function(keep=torch.ones(2), mask=torch.ones(2))
        with pytest.raises(ValueError, match="loss_denominator"):
            function(keep=ones, mask=ones, loss_denominator="kept_tokens")
        with pytest.raises(TypeError, match="process_group"):
            function(keep=ones, mask=ones, process_group="world")
        with pytest.raises(ValueError, match="device"):
            function(keep=ones.to("meta"), mask=ones)
    with pytest.raises(ValueError, match="values"):
        token_mean(torch.ones(2), ones, ones)


# T-PPO.


def test_row_32_t_ppo_trains_the_policy_on_every_token_and_the_critic_on_finished_responses():
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    prompt = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    finished = torch.tensor([False, True, True])
    policy, value = t_ppo_tokens(mask, finished, prompt_mask=prompt)
    assert policy.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0]]
    assert value.int().tolist() == [[0] * 5, [0, 0, 1, 0, 0], [0, 1, 1, 1, 0]]
    window = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    narrowed = t_ppo_tokens(mask, finished, selected=window, prompt_mask=prompt)
    assert narrowed.policy.int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert torch.equal(narrowed.value, value)
    rows = t_ppo_tokens(mask, finished, selected=torch.tensor([1, 0, 1]), prompt_mask=prompt)
    assert torch.equal(rows.policy, policy & torch.tensor([[True], [False], [True]]))


def test_row_32_its_advantages_are_those_of_gae_on_unfinished_responses():
    values = torch.tensor([[0.2, 0.3, 0.5, 0.4]]).double().expand(2, 4)
    rewards = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 1]]).double()
    finished = torch.tensor([False, True])
    policy, value = t_ppo_tokens(torch.ones(2, 4), finished)
    advantages = gae(rewards, values, gamma=1.0, lam=0.95, bootstrap="repeat_last", finished=finished).advantages
    expected = torch.tensor([[0.19975, 0.105, -0.1, 0.0], [0.714175, 0.6465, 0.47, 0.6]]).double()
    assert torch.allclose(torch.where(policy, advantages, NAN), expected, atol=1e-6)
    targets = gae(rewards, values, gamma=1.0, returns_lam=1.0, bootstrap="repeat_last", finished=finished).returns
    assert targets[value].tolist() == [1.0] * 4


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_no_tokens_train_nothing(shape):
    policy, value = t_ppo_tokens(torch.ones(shape), torch.ones(shape[0]))
    assert policy.shape == value.shape == shape


def test_arguments_of_t_ppo_must_fit():
    mask, finished = torch.ones(3, 4), torch.ones(3)
    for name, bad in (("finished", torch.ones(4)), ("selected", torch.ones(4)), ("prompt_mask", torch.ones(4, 3))):
        with pytest.raises(ValueError, match=name):
            t_ppo_tokens(**{"mask": mask, "finished": finished, name: bad})
    with pytest.raises(ValueError, match=r"mask: expected shape \(N, T\)"):
        t_ppo_tokens(torch.ones(3), finished)
    with pytest.raises(ValueError, match="device"):
        t_ppo_tokens(mask, finished.to("meta"))


def test_lists_are_doubles_as_in_select_rollouts():
    d3s = D3S(D3SSchedule(2, 1.0))
    for values in ([0.1, 0.1 + 1e-12, 0.1 - 1e-12], torch.tensor([2**24 + 1, 2**24, 2**24 + 2])):
        assert torch.equal(d3s.select_rollouts(values).mask, select_rollouts(values, 2, scope="batch").mask)


def test_equal_advantages_of_tokens_are_equal_advantages_of_rollouts():
    lengths = torch.tensor([1, 3, 2, 3])
    mask = torch.arange(3) < lengths[:, None]
    advantages = torch.full((4, 3), 0.1, dtype=F64).masked_fill(~mask, torch.inf)
    assert D3S(D3SSchedule(3, 1.0)).select_rollouts(advantages, mask=mask).indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("state", [None, 3, [1]])
def test_a_state_is_a_mapping(state):
    with pytest.raises(TypeError, match="state: expected what state_dict returns"):
        D3S(D3SSchedule(3, 1.0)).load_state_dict(state)


def test_a_state_of_other_types_is_refused_by_name():
    d3s = D3S(D3SSchedule(3, 1.0))
    with pytest.raises(ValueError, match="rollouts: expected that of this D3S"):
        d3s.load_state_dict({**d3s.state_dict(), "rollouts": 5})
