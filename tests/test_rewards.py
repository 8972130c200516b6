"""Rewards against loops over rollouts, and against the numbers of the papers they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast import group_advantages, hypervolume_improvement, weighted_sum
from morlfast.constrained_rewards import (
    calibrated_rewards,
    codpo_picks,
    constrained_rewards,
    crpg_weights,
    crraft_picks,
)
from morlfast.returns import gae, kl_shaped_rewards, whiten
from morlfast.reward_weighting import (
    HypervolumeMetaReward,
    gradient_influence,
    hypervolume_meta_rewards,
    influence_weights,
)
from morlfast.rewards import (
    all_zero_groups,
    best_of_n,
    craft_gui_rewards,
    ensemble_rewards,
    mixture_assignments,
    mixture_log_likelihoods,
    points_in_boxes,
    rluf_rewards,
    rubric_rewards,
    scaf_grpo_repair,
    target_ratio_rewards,
    weighted_rewards,
    win_rate_rewards,
    worst_group,
    worst_group_rewards,
)
from references import rewards as reference
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

F32, F64 = torch.float32, torch.float64
INF, NAN = math.inf, math.nan


def normal(*shape: int, seed: int = 0, missing: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=F64)
    return values.masked_fill(torch.rand(*shape, generator=generator) < missing, NAN)


def close(actual: torch.Tensor, expected: Any, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    wanted = torch.as_tensor(expected, dtype=F64)
    torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=atol, equal_nan=True)


def as_printed(actual: torch.Tensor, expected: Any) -> None:
    """Numbers that a paper's oracle prints to six digits."""
    close(actual, expected, rtol=1e-6, atol=1e-6)


# --- the numbers of the papers ---


def test_row_01_rluf_weighted_rewards_feed_group_advantages():
    logits, reacted = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    as_printed(logits.sigmoid(), [0.880797, 0.268941, 0.622459])
    as_printed(binary_cross_entropy_with_logits(logits, reacted), 0.304756)
    help_and_safety = torch.tensor([[0.9, 0.2], [0.4, 0.7], [0.5, 0.1], [0.3, 0.5]], dtype=F64)
    love = torch.tensor([0.8, 0.6, 1.0, 0.2], dtype=F64)
    rewards = rluf_rewards(help_and_safety, love.logit(), love_weight=0.3)
    as_printed(rewards, [1.34, 1.28, 0.9, 0.86])
    as_printed(group_advantages(rewards, group_size=4), [0.979608, 0.739704, -0.779688, -0.939624])


def test_row_02_weighted_sum_then_group_normalization():
    scores = torch.tensor(
        [[0.8, 0.6, 0.7, 0.9], [0.2, 0.9, 0.4, 1.0], [0.5, 0.5, 0.5, 0.5], [1.0, 0.1, 0.9, 0.2]], dtype=F64
    )
    weights = torch.full((4,), 0.25, dtype=F64)
    rewards = weighted_rewards(scores, weights)
    as_printed(rewards, [0.75, 0.625, 0.5, 0.55])
    expected = [1.320828, 0.172282, -0.976264, -0.516846]
    as_printed(group_advantages(rewards, group_size=4), expected)
    as_printed(group_advantages(scores, group_size=4, weights=weights), expected)


CGPO = {
    "rewards": torch.tensor([[1, 2, 0.5, -1], [0, 0.3, 0.8, 0.1]], dtype=F64),
    "satisfied": torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]),
    "baseline_rewards": torch.tensor([0.4, 0.2], dtype=F64),
    "kl": torch.tensor([[1, 2, 6, -0.5], [0, 12, 3, 4]], dtype=F64),
    "max_kl": 10.0,
}


def test_row_05_cgpo_calibrated_rewards():
    expected = [[0.645656, 0.832018, 0.524979, 0.197816], [0.450166, 0.524979, 0.645656, 0.475021]]
    as_printed(calibrated_rewards(CGPO["rewards"], CGPO["baseline_rewards"]), expected)


def test_row_05_cgpo_crpg_weights_and_loss():
    as_printed(constrained_rewards(**CGPO), [[0.581091, 0, 0.209992, 0.207707], [0.450166, 0, 0, 0]])
    weights = crpg_weights(**CGPO)
    expected = [[0.399971, -0.181119, 0.028872, 0.026588], [0.269047, -0.181119, -0.181119, -0.181119]]
    as_printed(weights, expected)
    log_probs = torch.tensor([[-5, -6, -4, -7], [-5.5, -6.5, -4.5, -5]], dtype=F64)
    close(-(weights * log_probs).mean(), -0.025425, atol=2e-6)  # the oracle's own float32: terms near 2 cancel


def test_row_05_cgpo_crraft_picks():
    gated = constrained_rewards(**CGPO, kl_rule="threshold")
    as_printed(gated, [[0.645656, 0, 0.524979, 0.197816], [0.450166, 0, 0, 0]])
    chosen, weight = crraft_picks(**CGPO)
    assert chosen.tolist() == [0, 0]
    as_printed(weight, [0.645656, 0.450166])


def test_row_05_cgpo_codpo_picks_exclude_by_infinity_and_not_by_zero():
    chosen, rejected, valid = codpo_picks(CGPO["rewards"], CGPO["satisfied"])
    assert chosen.tolist() == [0, 1]
    assert rejected.tolist() == [1, 3]  # a product with the mask would take [0, 0]: what was chosen
    assert valid.tolist() == [True, True]
    # The loss of the docstring for one pair.
    log_probs = torch.tensor([-5.0, -6.0, -7.0, -8.0], dtype=F64)
    lp_chosen, lp_rejected, ref, beta, lam = log_probs[chosen[0]], log_probs[rejected[0]], -5.5, 0.1, 5.0
    loss = -logsigmoid(beta * ((lp_chosen - ref) - (lp_rejected - ref))) - lam * lp_chosen / 10
    as_printed(loss, 3.144397)


def test_row_09_target_ratio_rewards():
    """The environment's formula, on ratios that are exact in binary."""
    power, latency = 1.0, 0.5  # targets
    values = torch.tensor([[3.0, 1.0], [1.5, 0.75], [1.0, 8.0], [1.0009765625, 0.5009765625]], dtype=F64)
    numpy_values = values.numpy()
    ratios = power / np.abs(power - numpy_values[[0, 1, 3], 0]) * latency / np.abs(latency - numpy_values[[0, 1, 3], 1])
    rewards = target_ratio_rewards(values, [power, latency])
    close(rewards[[0, 1, 3]], np.minimum(ratios, 1000.0))
    assert rewards.tolist() == [0.5, 4.0, 1000.0, 1000.0]


def test_row_13_hypervolume_meta_rewards():
    guide = HypervolumeMetaReward([0.2, 0.2, 0.2], maximize=True)
    front = torch.tensor([[0.6, 0.3, 0.5], [0.4, 0.7, 0.3]], dtype=F64)
    candidates = torch.tensor([[0.5, 0.5, 0.6], [0.3, 0.3, 0.3], [0.7, 0.8, 0.9]], dtype=F64)
    improvements = hypervolume_improvement(candidates, front, 0.2, maximize=True)
    close(improvements, [0.023, 0.0, 0.19])
    expected = [0.53449392, 0.5, 0.78161931]
    close(hypervolume_meta_rewards(improvements), expected, atol=5e-9)
    for candidate, factor in zip(candidates, expected, strict=True):
        guide = HypervolumeMetaReward([0.2, 0.2, 0.2], maximize=True)
        assert guide.factor.item() == 1.0
        for point in front:
            guide.update(point)
        close(guide.update(candidate), factor, atol=5e-9)
        close(guide.factor, factor, atol=5e-9)


def test_row_13_hypervolume_meta_rewards_of_mixed_senses():
    guide = HypervolumeMetaReward([0.5, 900.0, 0.6], maximize=[True, False, True])
    guide.update([0.55, 800.0, 0.7])
    close(guide.update([0.6, 850.0, 0.65]), 0.5 + 1.5 * math.tanh(0.125), atol=5e-6)


def test_row_13_gradient_influence_weights():
    gradients = torch.tensor([[1, 0, 2], [-1, 1, 0], [0.5, 0.5, 0.5]], dtype=F64)
    influence = gradient_influence(gradients)
    close(influence, [5.5, 1.0, 2.25])
    as_printed(influence_weights([0.334, 0.333, 0.333], influence), [0.424433, 0.26982, 0.305746])


ENSEMBLE = [[1, 0.2, -0.5], [0.5, 0.4, 0.1], [0.9, 0.3, -1], [1.1, 0.1, 0.2], [0.7, 0.5, -0.3]]  # member by rollout


@pytest.mark.parametrize("dtype", [F32, F64])
def test_row_30_ensemble_rewards_and_best_of_n(dtype):
    rewards = torch.tensor(ENSEMBLE, dtype=dtype).mT
    mean, worst = ensemble_rewards(rewards, "mean"), ensemble_rewards(rewards, "wco")
    as_printed(mean, [0.84, 0.3, -0.3])
    as_printed(worst, [0.5, 0.1, -1.0])
    as_printed(ensemble_rewards(rewards, "uwo"), [0.8342, 0.2975, -0.3235])
    as_printed(ensemble_rewards(rewards, "uwo", penalty=0.5, ddof=0), [0.8168, 0.29, -0.394])
    assert best_of_n(mean) == best_of_n(worst) == 0


@pytest.mark.parametrize(
    ("include_diagonal", "expected"),
    [(False, [0.666666667, 0.666666667, 0.5, 0.166666667]), (True, [0.625, 0.625, 0.5, 0.25])],
)
def test_row_40_win_rate_rewards(include_diagonal, expected):
    preferences = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0.5], [0, 0, 0.5, 0]], dtype=F64)
    rewards = win_rate_rewards(preferences, include_diagonal=include_diagonal)
    as_printed(rewards, expected)
    as_printed(rewards.mean(), 0.5)


def test_row_43_scaf_grpo_repair():
    zeros = torch.zeros(1, 8, dtype=F64)
    assert group_advantages(zeros[0], group_size=8).tolist() == [0.0] * 8
    hints = torch.zeros(1, 12, dtype=F64)
    hints[0, 2:] = 1
    repaired = scaf_grpo_repair(zeros, hints)
    assert repaired.levels.tolist() == [3]
    assert repaired.replaced.tolist() == [0]
    advantages = group_advantages(repaired.rewards[0], group_size=8, eps=1e-6)
    as_printed(advantages, [2.474867] + [-0.353552] * 7)


def test_row_45_craft_gui_rewards_feed_group_advantages():
    rewards = craft_gui_rewards([1, 1, 0, 1], [7, 7, 7, 2], [7] * 4, torch.tensor([1, 0.5, 0, 0], dtype=F64))
    as_printed(rewards, [1, 0.75, 0.4, 0.1])
    as_printed(group_advantages(rewards, group_size=4), [1.108736, 0.475173, -0.411816, -1.172093])


def test_row_55_mpo_rubric_sums_become_whitened_advantages():
    rewards = rubric_rewards([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 2.0, 1.0]])
    assert rewards.tolist() == [3.0, 0.0, 5.0]
    kl, values = torch.tensor([[0.2, 0.1, -0.1]], dtype=F64), torch.tensor([[0.1, 0.2, 0.4]], dtype=F64)
    token_rewards = kl_shaped_rewards(rewards[:1], kl, torch.zeros_like(kl), beta=0.05)
    advantages = gae(token_rewards, values, gamma=1.0, lam=0.95).advantages
    as_printed(advantages, [[2.626262, 2.66975, 2.605]])
    as_printed(whiten(advantages), [[-0.224463, 1.093151, -0.868688]])


def test_rubric_points_as_a_share():
    assert rubric_rewards([[1.0, 0.0, 2.0]], max_points=[2.0, 1.0, 3.0]).tolist() == [0.5]


def test_row_65_maxmin_mixture_assignments():
    margins = torch.tensor([[1, 0.5, -1, 0.2], [-0.2, 0.3, 0.9, 0.8]], dtype=F64)
    likelihoods = mixture_log_likelihoods(margins, [0, 0, 1, 1])
    as_printed(likelihoods, [[-0.787339, -1.352494], [-1.911401, -0.712255]])
    assert mixture_assignments(likelihoods).tolist() == [0, 1]


def test_row_65_maxmin_worst_group_rewards():
    rewards = torch.tensor([[0.5, 0.9, 0.1], [0.7, 0.2, 0.3]]).mT
    as_printed(worst_group_rewards(rewards, by="sample"), [0.5, 0.2, 0.1])
    assert worst_group(rewards) == 1
    as_printed(worst_group_rewards(rewards), [0.7, 0.2, 0.3])


# --- against loops ---


@pytest.mark.parametrize("nan", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("own_weights", [False, True])
def test_weighted_rewards_are_what_a_loop_gives(nan, own_weights):
    rewards = normal(40, 3, missing=0.4)
    weights = normal(40, 3, seed=1) if own_weights else normal(3, seed=1)
    expected = [
        reference.weighted(row, weight, nan)
        for row, weight in zip(rewards.tolist(), weights.expand(40, 3).tolist(), strict=True)
    ]
    close(weighted_rewards(rewards, weights, nan=nan), expected)


def test_weights_are_ones_by_default_and_a_batch_has_any_shape():
    rewards = normal(2, 3, 4)
    close(weighted_rewards(rewards), rewards.sum(-1))
    close(weighted_rewards(rewards, [1.0, 2.0, 3.0, 4.0]), weighted_sum(rewards, [1.0, 2.0, 3.0, 4.0]))


def test_an_infinite_weight_of_what_is_not_scored_does_not_matter():
    assert weighted_rewards([[NAN, 2.0]], [INF, 3.0]).tolist() == [6.0]
    assert weighted_rewards([[0.0, 2.0]], [INF, 3.0]).isnan()


def test_advantages_of_weighted_rewards_are_those_of_the_rewards_with_weights():
    rewards, weights = normal(32, 3, missing=0.5), [0.2, 0.5, 1.0]
    rewards[5] = NAN
    own = group_advantages(weighted_rewards(rewards, weights), group_size=8)
    close(own, group_advantages(rewards, group_size=8, weights=torch.tensor(weights, dtype=F64)), rtol=1e-9)
    assert own[5] == 0


@pytest.mark.parametrize("method", ["mean", "wco", "uwo"])
@pytest.mark.parametrize("ddof", [0, 1, 4])
def test_ensemble_rewards_are_what_a_loop_gives(method, ddof):
    rewards = normal(60, 5, missing=0.4)
    rewards[3] = NAN
    expected = [reference.ensemble(row, method, 0.7, ddof) for row in rewards.tolist()]
    close(ensemble_rewards(rewards, method, penalty=0.7, ddof=ddof), expected)
    missing = rewards.isnan().any(-1)
    assert ensemble_rewards(rewards, method, nan="propagate").isnan().equal(missing)


@given(st.lists(st.lists(st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0, INF, NAN]), min_size=4, max_size=4), min_size=1))
def test_best_of_n_is_the_first_of_the_largest(rows):
    assert best_of_n(rows).tolist() == [reference.best(row, [True] * 4) for row in rows]


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0, INF, NAN]), min_size=3, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_codpo_pairs_are_what_a_loop_picks(prompts):
    rewards, met = [row for row, _ in prompts], [row for _, row in prompts]
    chosen, rejected, valid = codpo_picks(rewards, met)
    expected = [reference.codpo_pair(row, flags) for row, flags in prompts]
    assert list(zip(chosen.tolist(), rejected.tolist(), strict=True)) == expected
    assert valid.tolist() == [pair[0] >= 0 for pair in expected]


@pytest.mark.parametrize("rule", ["linear", "threshold"])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_constrained_rewards_are_what_a_loop_gives(rule, calibrated, limited):
    rewards, baseline, kl = normal(20, 4, missing=0.2), normal(20, seed=1, missing=0.1), 2 * normal(20, 4, seed=2)
    rewards[0, :2] = torch.tensor([INF, -INF], dtype=F64)
    kl[1, 0], kl[2, 1], kl[3, 2] = 1.5, NAN, INF
    met = normal(20, 4, seed=3) > -0.5
    arguments: dict[str, Any] = {"baseline_rewards": baseline} if calibrated else {}
    if limited:
        arguments |= {"kl": kl, "max_kl": 1.5}
    expected = [
        [
            reference.constrained(r, v, baseline[p].item() if calibrated else None, d if limited else None, 1.5, rule)
            for r, v, d in zip(rewards[p].tolist(), met[p].tolist(), kl[p].tolist(), strict=True)
        ]
        for p in range(20)
    ]
    gated = constrained_rewards(rewards, met, kl_rule=rule, **arguments)
    close(gated, expected)
    if rule == "threshold":
        chosen, weight = crraft_picks(rewards, met, **arguments)
        for row, j, w in zip(expected, chosen.tolist(), weight.tolist(), strict=True):
            assert j == reference.best(row, [a > 0 for a in row])
            assert w == pytest.approx(row[j] if j >= 0 else 0.0)
    elif calibrated:  # without, an infinite reward makes the mean infinite
        centre = reference.mean(reference.scored([a for row in expected for a in row]))
        close(
            crpg_weights(rewards, met, **arguments),
            [[0.0 if math.isnan(a) else a - centre for a in row] for row in expected],
        )


def test_at_the_largest_divergence_the_threshold_is_open_and_the_ramp_closed():
    arguments: dict[str, Any] = {"kl": [[1.5, 1.5 + 1e-6]], "max_kl": 1.5}
    assert constrained_rewards([[0.7, 0.7]], [[1, 1]], **arguments).tolist() == [[0.0, 0.0]]
    gated = constrained_rewards(torch.tensor([[0.7, 0.7]]), [[1, 1]], kl_rule="threshold", **arguments)
    assert gated.equal(torch.tensor([[0.7, 0.0]]))


def test_equal_infinite_rewards_are_as_good_as_each_other():
    calibrated = calibrated_rewards([[INF, 0.0, -INF], [INF, 0.0, -INF]], [INF, -INF])
    assert calibrated.tolist() == [[0.5, 0.0, 0.0], [1.0, 1.0, 0.5]]


def test_all_judges_have_to_agree():
    verdicts = torch.tensor([[[1, 1], [1, 0]], [[0, 0], [1, 1]]])
    rewards = torch.ones(2, 2)
    assert constrained_rewards(rewards, verdicts).tolist() == [[1, 0], [0, 1]]
    assert constrained_rewards(rewards, verdicts.double()).tolist() == [[1, 0], [0, 1]]
    assert constrained_rewards(rewards, torch.tensor([[True, False], [False, True]])).tolist() == [[1, 0], [0, 1]]


def test_what_was_not_judged_is_not_satisfied():
    assert constrained_rewards([[1.0, 1.0]], [[NAN, 1.0]]).tolist() == [[0, 1]]


def test_crraft_falls_back_to_a_baseline_that_satisfies_the_constraints():
    rewards = torch.tensor([[0.2, 0.9], [0.5, 0.3], [0.5, 0.3], [NAN, NAN]])
    met = torch.tensor([[1, 1], [0, 0], [0, 0], [1, 1]])
    chosen, weight = crraft_picks(rewards, met, baseline_satisfied=[[1, 1], [1, 1], [1, 0], [1, 1]])
    assert chosen.tolist() == [1, 2, -1, 2]
    torch.testing.assert_close(weight, torch.tensor([0.9, 0.5, 0.0, 0.5]))
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0], [-1.0, -1.0, -2.0]])
    picked = log_probs.gather(-1, chosen.clamp(min=0)[..., None])[..., 0]
    loss = -(weight * picked).sum() / (weight != 0).sum()
    assert loss.item() == pytest.approx((0.9 * 2 + 0.5 * 6 + 0.5 * 2) / 3)


def test_crpg_weights_of_equal_rewards_are_exactly_zero():
    for dtype in (F32, F64):
        assert not crpg_weights(torch.full((7, 3), 0.1, dtype=dtype), torch.ones(7, 3)).any()


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_worst_group_rewards_are_what_a_loop_gives(missing):
    rewards = normal(30, 4, missing=missing)
    rewards[2] = NAN
    u = reference.worst_group(rewards.tolist())
    assert worst_group(rewards) == u
    close(worst_group_rewards(rewards), rewards[:, u])
    close(
        worst_group_rewards(rewards, by="sample"),
        [min(reference.scored(row), default=NAN) for row in rewards.tolist()],
    )


def test_a_group_without_scores_is_not_the_worst_and_ties_go_to_the_first():
    assert worst_group([[NAN, 0.5, 0.5], [NAN, 0.1, 0.1]]) == 1
    assert worst_group([[NAN, NAN]]) == -1
    assert worst_group_rewards([[NAN, NAN]]).isnan().all()
    assert worst_group(torch.empty(0, 3)) == -1
    assert worst_group_rewards(torch.empty(0, 3)).shape == (0,)


def test_mixture_log_likelihoods_are_what_a_loop_gives():
    margins = 3 * normal(3, 50, missing=0.05)
    margins[0, :2] = torch.tensor([900.0, -900.0], dtype=F64)
    users = torch.arange(50) * 7 % 11
    expected = reference.log_likelihoods(margins.tolist(), users.tolist(), 12)
    likelihoods = mixture_log_likelihoods(margins, users, num_users=12)
    close(likelihoods, expected)
    assert mixture_assignments(likelihoods).tolist() == [reference.best(row, [True] * 3) for row in expected]
    assert not likelihoods[11].any()  # no pairs
    assert mixture_log_likelihoods(margins[:, :0], [], num_users=2).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(("scale", "cap"), [(1.0, 1000.0), (350.0, 2.0)])
def test_target_ratio_rewards_are_what_a_loop_gives(scale, cap):
    values = normal(50, 2, missing=0.1).abs()
    values[:3, 0] = torch.tensor([0.25, INF, 0.25], dtype=F64)
    values[2, 1] = NAN
    expected = [reference.target_ratio(row, [0.25, 0.5], scale, cap) for row in values.tolist()]
    close(target_ratio_rewards(values, [0.25, 0.5], scale=scale, max_reward=cap), expected)


def test_a_design_at_a_target_gets_the_cap_and_no_gradient():
    values = torch.tensor([[1.0, 3.0], [1.0, INF], [2.0, 3.0], [1.0 + 1e-300, 3.0]], dtype=F64, requires_grad=True)
    rewards = target_ratio_rewards(values, [1.0, 2.0], max_reward=50.0)
    assert rewards.tolist() == [50, 50, 2, 50]
    (gradient,) = torch.autograd.grad(rewards.sum(), values)
    assert gradient.tolist() == [[0, 0], [0, 0], [-2, -2], [0, 0]]


@pytest.mark.parametrize("include_diagonal", [False, True])
def test_win_rate_rewards_are_what_a_loop_gives(include_diagonal):
    preferences = normal(6, 5, 5, missing=0.3).sigmoid()
    preferences[0, 2] = NAN
    expected = [reference.win_rates(group, include_diagonal) for group in preferences.tolist()]
    close(win_rate_rewards(preferences, include_diagonal=include_diagonal), expected)


@pytest.mark.parametrize("include_diagonal", [False, True])
@pytest.mark.parametrize("link", ["logistic", "sign"])
def test_win_rates_of_scores_are_those_of_their_preferences(link, include_diagonal):
    scores = normal(8, 6, missing=0.2)
    scores[:, 1] = scores[:, 0]
    scores[0] = torch.tensor([INF, INF, -INF, -INF, 0.0, NAN], dtype=F64)
    for group, rates in zip(
        scores.tolist(),
        win_rate_rewards(scores=scores, link=link, include_diagonal=include_diagonal),
        strict=True,
    ):
        preferences = [[reference.preference(a, b, link) for b in group] for a in group]
        expected = reference.win_rates(preferences, include_diagonal)
        close(rates, [NAN if math.isnan(a) else rate for a, rate in zip(group, expected, strict=True)])


def test_a_rollout_without_opponents_is_not_scored():
    assert win_rate_rewards([[0.5]]).isnan().all()
    assert win_rate_rewards([[0.5]], include_diagonal=True).tolist() == [0.5]
    assert win_rate_rewards(scores=torch.empty(3, 0)).shape == (3, 0)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, NAN]), min_size=3, max_size=3),
            st.lists(st.sampled_from([0.0, 1.0, 0.5, -1.0, NAN]), min_size=4, max_size=4),
        ),
        min_size=1,
    )
)
def test_repaired_groups_are_what_a_loop_gives(groups):
    result = scaf_grpo_repair([group for group, _ in groups], [hints for _, hints in groups])
    for p, (group, hints) in enumerate(groups):
        rewards, replaced, level = reference.repaired(group, hints)
        close(result.rewards[p], torch.tensor(rewards))
        assert (result.replaced[p].item(), result.levels[p].item()) == (replaced, level)


def test_repair_without_levels_changes_nothing_and_inputs_stay():
    rewards = torch.zeros(2, 3)
    result = scaf_grpo_repair(rewards, torch.empty(2, 0))
    assert result.levels.tolist() == [-1, -1]
    assert result.rewards.data_ptr() != rewards.data_ptr()
    assert scaf_grpo_repair(rewards, torch.ones(2, 1)).rewards.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert not rewards.any()
    assert all_zero_groups([[NAN, NAN], [NAN, 0.0]]).tolist() == [False, True]
    assert all_zero_groups(torch.empty(2, 0)).tolist() == [False, False]


def test_edges_of_a_box_are_inside():
    box = [1.0, 2.0, 3.0, 4.0]
    inside = [[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]]
    outside = [[0.999, 3.0], [2.0, 4.001], [NAN, 3.0], [2.0, INF]]
    assert points_in_boxes(inside + outside, [box] * 7).tolist() == [True] * 3 + [False] * 4
    assert not points_in_boxes([2.0, 3.0], [3.0, 2.0, 1.0, 4.0])  # left > right


def test_a_click_is_scored_by_its_box_and_other_actions_by_their_arguments():
    clicks = [[5.0, 5.0], [15.0, 5.0], [NAN, NAN], [NAN, NAN]]
    boxes = [[0.0, 0.0, 10.0, 10.0]] * 3 + [[NAN] * 4]
    rewards = craft_gui_rewards(
        [1, 1, 1, 1], [0, 0, 1, 2], [0, 0, 0, 2], [NAN, 1.0, 1.0, 0.5], clicks=clicks, target_boxes=boxes
    )
    as_printed(rewards, [1.0, 0.5, 0.1, 0.75])
    judged = craft_gui_rewards([1], [0], [0], [1.0], judge_scores=[0.5], weights=(1.0, 2.0, 3.0), judge_weight=4.0)
    assert judged.tolist() == [8.0]


@pytest.mark.parametrize("nan", ["skip", "zero"])
def test_rubric_shares_are_of_the_items_that_count(nan):
    items, weights, most = normal(20, 4, missing=0.3), normal(4, seed=1).exp(), normal(20, 4, seed=2).exp()
    items[0] = NAN
    filled = items if nan == "skip" else items.nan_to_num()
    expected = [
        reference.rubric_share(row, weights.tolist(), m) for row, m in zip(filled.tolist(), most.tolist(), strict=True)
    ]
    close(rubric_rewards(items, weights, max_points=most, nan=nan), expected)
    assert rubric_rewards([[1.0, 2.0]], max_points=0.0).isnan().all()


def test_a_missing_love_probability_leaves_the_other_rewards():
    rewards, logits = [[1.0, NAN], [NAN, NAN], [NAN, NAN]], [NAN, 0.0, NAN]
    assert rluf_rewards(rewards, logits, love_weight=2.0)[:2].tolist() == [1.0, 1.0]
    assert rluf_rewards(rewards, logits, love_weight=2.0)[2].isnan()
    assert rluf_rewards(rewards, logits, love_weight=2.0, nan="zero").tolist() == [1.0, 1.0, 0.0]
    assert rluf_rewards(rewards, logits, love_weight=2.0, nan="propagate").isnan().all()


# --- rewards that follow the training ---


def test_the_factor_follows_the_hypervolume_of_all_metrics_so_far():
    ref, points = [0.2, 0.1, 0.3], normal(25, 3).sigmoid()
    guide = HypervolumeMetaReward(ref, maximize=True)
    for k, point in enumerate(points.tolist()):
        before, after = (reference.hypervolume(points[:n].tolist(), ref) for n in (k, k + 1))
        close(guide.update(point), 0.5 + 1.5 * math.tanh(after - before), atol=1e-9)
    kept = reference.hypervolume(guide.points.tolist(), ref)
    assert kept == pytest.approx(reference.hypervolume(points.tolist(), ref))


def test_metrics_that_add_nothing_are_not_kept():
    guide = HypervolumeMetaReward([0.0, 0.0], maximize=True)
    assert guide.update([1.0, 1.0]) > 0.5
    for nothing in ([2.0, -1.0], [2.0, 0.0], [1.0, 1.0], [0.5, 0.5]):
        assert guide.update(nothing) == 0.5
    assert guide.points.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="NaN"):
        guide.update([NAN, 1.0])


def test_the_state_of_a_guide_can_be_saved_and_loaded():
    guide = HypervolumeMetaReward([0.0, 9.0], maximize=[True, False])
    guide.update([1.0, 3.0])
    other = HypervolumeMetaReward([0.5, 5.0], maximize=[True, False])
    other.load_state_dict(guide.state_dict())
    assert other.factor == guide.factor
    assert other.update([2.0, 2.0]) == guide.update([2.0, 2.0])
    assert torch.equal(other.points, guide.points)
    with pytest.raises(ValueError, match="keys"):
        other.load_state_dict({})
    with pytest.raises(ValueError, match="ref_point"):
        HypervolumeMetaReward([0.0], maximize=True).load_state_dict(guide.state_dict())


def test_influence_is_the_row_sum_of_the_gram_matrix_however_gradients_come():
    gradients = normal(4, 600_000)  # more than one chunk
    expected = (gradients @ gradients.mT).sum(1)
    close(gradient_influence(gradients), expected, rtol=1e-9, atol=1e-7)
    close(gradient_influence(list(gradients)), expected, rtol=1e-9, atol=1e-7)
    small = normal(3, 12)
    parts = [[row[:6].reshape(2, 3), row[6:]] for row in small]
    close(gradient_influence(parts), reference.influence(small.tolist()))
    half = small.bfloat16()
    close(gradient_influence(half), reference.influence(half.tolist()))


def test_a_weight_of_zero_stays_and_weights_sum_to_one():
    weights = influence_weights(torch.tensor([0.0, 2.0, 2.0], dtype=F64), [1e6, 1.0, 1.0])
    assert weights.tolist() == [0.0, 0.5, 0.5]


# --- dtypes, strides, gradients, errors ---


def met(rewards: torch.Tensor) -> torch.Tensor:
    return rewards.new_tensor([1, 0, 1]).expand(rewards.shape)


# A name: what is called, with one tensor of (rollouts or prompts) x (objectives, members, samples).
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "weighted": lambda r: weighted_rewards(r, [0.5, 1.0, 2.0]),
    "rubric": lambda r: rubric_rewards(r, max_points=2.0),
    "rluf": lambda r: rluf_rewards(r, r[..., 0], love_weight=0.3),
    "mean": lambda r: ensemble_rewards(r, "mean"),
    "wco": lambda r: ensemble_rewards(r, "wco"),
    "uwo": lambda r: ensemble_rewards(r, "uwo", penalty=0.5),
    "worst group": worst_group_rewards,
    "worst group of each sample": lambda r: worst_group_rewards(r, by="sample"),
    "mixtures": lambda r: mixture_log_likelihoods(r, [0, 1, 0], num_users=2),
    "target ratio": lambda r: target_ratio_rewards(r, [3.0, 4.0, 5.0]),
    "win rates": lambda r: win_rate_rewards(scores=r),
    "win rates of preferences": lambda r: win_rate_rewards(r[:3]),
    "repair": lambda r: scaf_grpo_repair(r, r).rewards,
    "calibrated": lambda r: calibrated_rewards(r, r[..., 1]),
    "constrained": lambda r: constrained_rewards(r, met(r), baseline_rewards=r[..., 1], kl=r, max_kl=0.5),
    "crpg": lambda r: crpg_weights(r, met(r)),
    "meta": hypervolume_meta_rewards,
}
DIFFERENTIABLE = [name for name in FUNCTIONS if name != "crpg"]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_finite_differences(name):
    assert torch.autograd.gradcheck(FUNCTIONS[name], normal(5, 3, seed=4).requires_grad_())


def test_gradients_reach_weights_baselines_and_divergences():
    rewards, weights, baseline, kl = (normal(4, 3, seed=s).requires_grad_() for s in range(4))
    satisfied = torch.ones(4, 3)
    assert torch.autograd.gradcheck(weighted_rewards, (rewards, weights))
    assert torch.autograd.gradcheck(
        lambda b, d: constrained_rewards(rewards, satisfied, baseline_rewards=b[:, 0], kl=d, max_kl=1.0), (baseline, kl)
    )
    assert torch.autograd.gradcheck(influence_weights, (weights[0].exp(), kl[0]))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_what_is_not_scored_makes_no_gradient_nan(name):
    rewards = normal(6, 3, seed=5)
    rewards[1, 0] = rewards[2, 1] = NAN
    rewards[3] = NAN
    rewards.requires_grad_()
    result = FUNCTIONS[name](rewards)
    (gradient,) = torch.autograd.grad(torch.where(result.isnan(), 0.0, result).sum(), rewards)
    assert not gradient[~rewards.isnan()].isnan().any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strides_dtypes_and_inputs(name):
    rewards = normal(4, 3, seed=6, missing=0.1)
    kept = rewards.clone()
    expected = FUNCTIONS[name](rewards)
    assert expected.dtype is F64
    apart = torch.full((8, 6), 9.0, dtype=F64)[::2, ::2]
    apart.copy_(rewards)
    close(FUNCTIONS[name](apart), expected)
    close(FUNCTIONS[name](rewards.mT.contiguous().mT), expected)
    torch.testing.assert_close(rewards, kept, equal_nan=True, rtol=0, atol=0)
    for dtype in (F32, torch.bfloat16, torch.float16):
        narrow = rewards.to(dtype)
        result = FUNCTIONS[name](narrow)
        assert result.dtype is F32
        close(result, FUNCTIONS[name](narrow.double()), rtol=1e-6, atol=1e-6)
    assert FUNCTIONS[name](torch.tensor([[1, 0, 2], [3, 2, 1], [4, 2, 1]])).dtype is F32


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(("mixtures", "win rates of"))])
def test_no_rollouts_give_no_rewards(name):
    result = FUNCTIONS[name](torch.empty(0, 3, dtype=F64))
    assert result.shape[0] == 0


@pytest.mark.parametrize("name", ["weighted", "uwo", "win rates", "repair", "target ratio", "constrained"])
def test_compiles_without_a_break_for_any_number_of_rollouts(name):
    rewards = normal(4, 3, seed=6, missing=0.1)
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="eager", dynamic=True)
    close(compiled(rewards), FUNCTIONS[name](rewards))


def test_equal_members_have_no_variance_and_infinite_ones_no_uncertainty():
    for dtype in (F32, F64):
        rewards = torch.full((3, 7), 0.1, dtype=dtype)
        assert ensemble_rewards(rewards, "uwo", penalty=1e30).equal(rewards[:, 0])
    infinite = torch.tensor([[INF, 1.0], [-INF, 1.0], [INF, INF], [INF, -INF]])
    close(ensemble_rewards(infinite, "mean"), [INF, -INF, INF, NAN])
    close(ensemble_rewards(infinite, "wco"), [1.0, -INF, INF, -INF])
    assert ensemble_rewards(infinite, "uwo").isnan().all()


def test_lists_keep_the_digits_of_pythons_numbers():
    one = torch.ones(1, 1, dtype=F64)
    for tenth in ([0.1], np.array([0.1]), torch.tensor([0.1], dtype=F64)):
        assert weighted_rewards(one, tenth).item() == 0.1
        assert rubric_rewards(one, max_points=tenth).item() == 10.0
        assert calibrated_rewards(one, tenth).item() == torch.tensor(0.9, dtype=F64).sigmoid().item()
    assert target_ratio_rewards(torch.tensor([[0.1, 1e6]], dtype=F64), [0.1, 1.0]).item() == 1000.0
    assert target_ratio_rewards(torch.tensor([[0.1, 1e6]]), [0.1, 1.0]).item() == 1000.0
    assert constrained_rewards(one, [[1]], kl=[[0.1]], max_kl=0.1, kl_rule="threshold").item() == 1.0
    own = torch.tensor([0.5, 0.5], dtype=F64)
    close(influence_weights(own, [0.1, 0.0], lr=1.0, mu=1.0), torch.tensor([0.1, 0.0], dtype=F64).softmax(0))
    for dtype in (F32, F64):  # an edge is an edge in the narrower of two dtypes
        assert points_in_boxes(torch.tensor([[0.1, 0.3]], dtype=dtype), [[0.0, 0.0, 0.1, 0.3]]).all()


def test_integer_scores_are_not_rounded():
    assert best_of_n(torch.tensor([2**24, 2**24 + 1])) == best_of_n([2**24, 2**24 + 1]) == 1
    assert best_of_n([0.1, 0.1 + 1e-12]) == 1


@pytest.mark.parametrize("own_weights", [False, True])
def test_many_rollouts_are_as_few(own_weights):
    """However they are divided into blocks."""
    rewards = normal(7, 4001, 5, missing=0.2)
    weights = normal(7, 4001, 5, seed=1) if own_weights else normal(5, seed=1)
    rewards.requires_grad_()
    for call in (
        lambda r, w: weighted_rewards(r, w),
        lambda r, w: ensemble_rewards(r, "uwo"),
        lambda r, w: ensemble_rewards(r, "wco"),
    ):
        whole = call(rewards, weights)
        rows = [call(r, w) for r, w in zip(rewards, weights if own_weights else [weights] * 7, strict=True)]
        close(whole.detach(), torch.stack(rows).detach(), rtol=0, atol=0)
        gradients = [torch.autograd.grad(x.nansum(), rewards)[0] for x in (whole, torch.stack(rows))]
        close(*gradients, rtol=0, atol=0)


def test_what_infinite_rewards_give():
    assert crpg_weights([[INF, 1.0], [NAN, 0.0]], torch.ones(2, 2)).isnan().tolist() == [[True, True], [False, True]]
    assert worst_group([[INF, 1.0], [-INF, 2.0]]) == 1
    assert constrained_rewards([[0.0, 1.0]], [[1, 1]], kl=[[-INF, -INF]], max_kl=1.0).isnan().all()
    assert hypervolume_meta_rewards([50.0]).item() == 2.0


def test_numpy_arrays_are_taken():
    rewards = np.array([[1.0, 2.0], [3.0, np.nan]])
    assert weighted_rewards(rewards, np.array([1.0, 0.5])).tolist() == [2.0, 3.0]
    assert best_of_n(rewards[:, ::-1]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_rewards(1.0), "rewards"),
        (lambda: weighted_rewards(torch.empty(3, 0)), "rewards"),
        (lambda: weighted_rewards([[1.0, 2.0]], [1.0]), "weights"),
        (lambda: weighted_rewards([[1.0, 2.0]], nan="ignore"), "nan"),
        (lambda: rubric_rewards([[1.0, 2.0]], max_points=[1.0]), "max_points"),
        (lambda: rluf_rewards([[1.0, 2.0]], [0.0, 0.0], love_weight=1.0), "love_logits"),
        (lambda: ensemble_rewards([[1.0]], "median"), "method"),
        (lambda: ensemble_rewards([[1.0]], "uwo", penalty=-1.0), "penalty"),
        (lambda: ensemble_rewards([[1.0]], "uwo", ddof=-1), "ddof"),
        (lambda: ensemble_rewards([[1.0]], "uwo", nan="zero"), "nan"),
        (lambda: worst_group([1.0]), "rewards"),
        (lambda: worst_group_rewards([[1.0]], by="group"), "by"),
        (lambda: mixture_log_likelihoods([[1.0, 2.0]], [0]), "user_ids"),
        (lambda: mixture_log_likelihoods([[1.0, 2.0]], [0, -1]), "user_ids"),
        (lambda: mixture_log_likelihoods([[1.0, 2.0]], [0, 2], num_users=2), "user_ids"),
        (lambda: target_ratio_rewards([[1.0]], [0.0]), "targets"),
        (lambda: target_ratio_rewards([[1.0]], [1.0], scale=0.0), "scale"),
        (lambda: target_ratio_rewards([[1.0]], [1.0], max_reward=INF), "max_reward"),
        (lambda: win_rate_rewards(), "preferences"),
        (lambda: win_rate_rewards([[0.5]], scores=[1.0]), "scores"),
        (lambda: win_rate_rewards([[0.5, 0.5]]), "preferences"),
        (lambda: win_rate_rewards(scores=[1.0], link="linear"), "link"),
        (lambda: scaf_grpo_repair([[0.0]], [0.0]), "hint_rewards"),
        (lambda: points_in_boxes([1.0, 2.0], [1.0, 2.0]), "boxes"),
        (lambda: craft_gui_rewards([1], [1], [1], [[1.0]]), "argument_scores"),
        (lambda: craft_gui_rewards([1, 1], [1], [1], [1.0]), "formats"),
        (lambda: craft_gui_rewards([1], [1, 1], [1], [1.0]), "action_types"),
        (lambda: craft_gui_rewards([1], [1], [1], [1.0], weights=(1.0,)), "weights"),
        (lambda: craft_gui_rewards([1], [1], [1], [1.0], clicks=[[1.0, 1.0]]), "target_boxes"),
        (lambda: calibrated_rewards([[1.0]], [[1.0]]), "baseline_rewards"),
        (lambda: constrained_rewards([[1.0]], [1]), "satisfied"),
        (lambda: constrained_rewards([[1.0]], [[1]], kl=[[1.0]]), "max_kl"),
        (lambda: constrained_rewards([[1.0]], [[1]], kl=[[1.0]], max_kl=0.0), "max_kl"),
        (lambda: constrained_rewards([[1.0]], [[1]], kl_rule="square"), "kl_rule"),
        (lambda: crraft_picks([[1.0]], [[1]], baseline_satisfied=[1, 1]), "baseline_satisfied"),
        (lambda: HypervolumeMetaReward(0.0, maximize=True), "ref_point"),
        (lambda: HypervolumeMetaReward([0.0], maximize=True).update([0.0, 1.0]), "metrics"),
        (lambda: gradient_influence([1.0]), "gradients"),
        (lambda: gradient_influence([torch.ones(2), torch.ones(3)]), "gradients"),
        (lambda: influence_weights([1.0], [1.0, 2.0]), "influence"),
        (lambda: influence_weights([1.0], [1.0], mu=0.0), "mu"),
        (lambda: influence_weights([0.0, 0.0], [1.0, 2.0]), "weights: expected numbers >= 0 of which one is positive"),
        (lambda: influence_weights([-1.0, 2.0], [1.0, 2.0]), "weights: expected numbers >= 0 of which one is positive"),
        (lambda: influence_weights([NAN, 2.0], [1.0, 2.0]), "weights: expected numbers >= 0 of which one is positive"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: weighted_rewards("rewards"),
        lambda: weighted_rewards(torch.ones(2, 2, dtype=torch.complex64)),
        lambda: ensemble_rewards([[1.0]], "uwo", penalty="much"),
        lambda: mixture_log_likelihoods([[1.0]], [0.5]),
        lambda: win_rate_rewards([[0.5]], include_diagonal=1),
        lambda: craft_gui_rewards([1], [1.5], [1], [1.0]),
        lambda: gradient_influence([torch.ones(2, dtype=torch.int64)]),
    ],
)
def test_wrong_types_are_type_errors(call):
    with pytest.raises(TypeError, match="expected"):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gpu_gives_the_same(name):
    rewards = normal(4, 3, seed=6, missing=0.1)
    expected = FUNCTIONS[name](rewards)
    close(FUNCTIONS[name](rewards.cuda()).cpu(), expected)


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_not_waited_for():
    rewards, weights, met = normal(16, 3, missing=0.1).cuda(), normal(3).exp().cuda(), torch.ones(16, 3).cuda()
    users = (torch.arange(3) % 2).cuda()
    calls = [
        lambda: weighted_rewards(rewards, weights),
        lambda: rubric_rewards(rewards, weights, max_points=weights),
        lambda: ensemble_rewards(rewards, "uwo"),
        lambda: best_of_n(rewards),
        lambda: worst_group_rewards(rewards),
        lambda: mixture_assignments(mixture_log_likelihoods(rewards, users, num_users=16)),
        lambda: target_ratio_rewards(rewards, weights),
        lambda: win_rate_rewards(scores=rewards),
        lambda: scaf_grpo_repair(rewards, rewards),
        lambda: crpg_weights(rewards, met, baseline_rewards=rewards[:, 0], kl=rewards, max_kl=1.0),
        lambda: crraft_picks(rewards, met, baseline_satisfied=met[:, 0]),
        lambda: codpo_picks(rewards, met),
    ]
    for call in calls:
        call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
