"""Returns, GAE, V-trace and whitening: papers' numbers, sums from the definitions, masks, cuts, NaN, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.returns import (
    discounted_returns,
    dual_critic_advantages,
    gae,
    kl_shaped_rewards,
    length_adaptive_lambda,
    linear_scan,
    return_differences,
    reward_to_go,
    turn_returns,
    v_trace,
    whiten,
)
from references import returns as reference

F64 = torch.float64
INF = math.inf
NAN = math.nan
MASK_DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, F64]
FLOATS = [(torch.float32, 1e-6), (F64, 1e-13), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flags(*shape: int, seed: int = 0, share: float = 0.7) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def same(got: torch.Tensor, expected, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def close(got: torch.Tensor, expected) -> None:
    """As the papers' numbers are printed."""
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=F64), rtol=1e-4, atol=2e-6)


def everywhere(value, like: torch.Tensor) -> np.ndarray:
    tensor = torch.as_tensor(value, dtype=F64)
    return (tensor[:, None] if tensor.dim() == 1 else tensor).expand(like.shape).numpy()


# The papers' numbers.


def test_row_4_mashost_action_returns():
    actions = torch.tensor([[0, -0.2, 0, 0.1, 0], [0, 0, -0.2, 0, 0], [0.1, 0.1, 0, 0, 0], [0, -0.2, -0.2, 0, 0]])
    lengths = torch.tensor([4, 3, 2, 5])
    mask = torch.arange(5) < lengths[:, None]
    group = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    got = torch.where(mask, group + 0.5 * discounted_returns(actions, 1.0, mask=mask), 0.0)
    close(
        got,
        [[0.95, 0.95, 1.05, 1.05, 0], [-1.1, -1.1, -1.1, 0, 0], [1.1, 1.05, 0, 0, 0], [-1.2, -1.2, -1.1, -1, -1]],
    )


def test_row_6_uni_o4_gae_with_two_masks():
    ends = torch.tensor([[0, 0, 1, 0]])
    got = gae(
        torch.tensor([[1.0, 0, 2, -1]], dtype=F64),
        torch.tensor([[0.5, 0.4, 0.3, 0.2]], dtype=F64),
        next_values=torch.tensor([[0.4, 0.3, 0.9, 0.1]], dtype=F64),
        gamma=0.99,
        lam=0.95,
        terminated=ends,
        done=ends,
    )
    same(got.advantages, [[2.302846925, 1.49585, 1.7, -1.101]], 1e-9)


def test_row_7_retroformer_return_differences():
    got = return_differences(torch.tensor([[0.0, 0.3, 0.3, 1.0], [0.5, 0.2, 1.0, 1.0]]))
    close(got, [[0.3, 0, 0.7], [-0.3, 0.8, 0]])


def test_row_23_temporally_aware_returns_reset_at_done():
    rewards, gamma = normal(2, 5), flags(2, 5).double() * 0.5 + 0.4
    done = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]])
    got = discounted_returns(rewards, gamma, done=done)
    same(got[:, :2], discounted_returns(rewards[:, :2], gamma[:, :2], bootstrap=got[:, 2] * torch.tensor([0, 1])))
    same(got[0, 2:], discounted_returns(rewards, gamma)[0, 2:])


def test_row_31_barfi_learned_discount_and_its_gradient():
    rewards = torch.tensor([[0.2, 0.05, 2.25]], dtype=F64)
    gamma = torch.tensor(0.9, dtype=F64, requires_grad=True)
    got = discounted_returns(rewards, gamma)
    same(got.detach(), [[2.0675, 2.075, 2.25]])
    slopes = [torch.autograd.grad(got[0, t], gamma, retain_graph=True)[0] for t in range(3)]
    same(torch.stack(slopes), [4.1, 2.25, 0])
    log_probs = torch.tensor([[-1.0, -0.5, -2.0]], dtype=F64)
    same(-(log_probs * got.detach()).sum(), 7.605)


@pytest.mark.parametrize(
    ("finished", "score", "expected"),
    [(False, 0.0, [0.19975, 0.105, -0.1, 0]), (True, 1.0, [0.714175, 0.6465, 0.47, 0.6])],
)
def test_row_32_t_ppo_egae(finished, score, expected):
    rewards = torch.tensor([[0, 0, 0, score, 7.0]])
    values = torch.tensor([[0.2, 0.3, 0.5, 0.4, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    got = gae(rewards, values, mask=mask, bootstrap="repeat_last", finished=torch.tensor([finished]))
    close(got.advantages, [[*expected, 0]])


def test_row_46_pdppo_takes_the_larger_advantage():
    streams = [torch.tensor([[x], [y]]) for x, y in ((3.0, 1.0), (2.0, 1.2), (2.5, 1.5), (2.2, 0.9))]
    got = dual_critic_advantages(*streams)
    close(got.advantages, [[1.0], [0.6]])
    assert got.from_post.tolist() == [[False], [True]]
    close(got.returns, [[3.0], [1.0]])
    close(got.post_returns, [[2.5], [1.5]])


def test_row_55_meta_policy_optimization():
    kl = torch.tensor([[0.2, 0.1, -0.1, 5.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 1, 0]])
    rewards = kl_shaped_rewards([3.0], kl, torch.zeros(1, 4, dtype=F64), beta=0.05, mask=mask)
    same(rewards, [[-0.01, -0.005, 3.005, 0]])
    values = torch.tensor([[0.1, 0.2, 0.4, 8.0]], dtype=F64)
    advantages = gae(rewards, values, gamma=1.0, lam=0.95, mask=mask).advantages
    close(advantages, [[2.626262, 2.66975, 2.605, 0]])
    close(whiten(advantages, mask), [[-0.224463, 1.093151, -0.868688, 0]])


def test_row_63_igpo_turns_are_scanned_and_broadcast():
    ends = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]])
    # Of February 2026: rewards normalized before the scan; of November 2025: centred after it.
    normalized = torch.tensor([[0, -0.492364, 0, 1.477094], [0, -1.230912, 0, 0.246182]])
    close(
        turn_returns(normalized, ends),
        [[0.98473, 0.98473, 1.477094, 1.477094], [-0.98473, -0.98473, 0.246182, 0.246182]],
    )
    raw = torch.tensor([[0, 0.2, 0, 1], [0, -0.1, 0, 0]])
    got = turn_returns(raw, ends)
    close(got - got.mean(0), [[0.65, 0.65, 0.5, 0.5], [-0.65, -0.65, -0.5, -0.5]])


# Against sums.


@st.composite
def batches(draw):
    n, t = draw(st.integers(0, 11)), draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.4, 0.8, 1.0]))

    def matrix(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    def some(*shape: int, p: float = share) -> torch.Tensor | None:
        return torch.from_numpy(rng.random(shape) < p) if rng.random() < 0.7 else None

    return n, t, matrix, some, rng


@given(batches(), st.booleans(), st.booleans())
def test_linear_scan_matches_a_loop(case, reverse, carry):
    n, t, matrix, some, _ = case
    x, a, mask = matrix(n, t), matrix(n, t), some(n, t)
    initial = matrix(n) if t % 2 else None
    got = linear_scan(x, a, initial, mask=mask, reverse=reverse, outside="carry" if carry else "zero")
    arrays = [None if z is None else z.numpy() for z in (x, a, initial, mask)]
    same(got, reference.linear_scan(*arrays, reverse, carry))


@given(batches())
def test_gae_matches_sums(case):
    n, t, matrix, some, rng = case
    rewards, values = matrix(n, t), matrix(n, t)
    gamma = [0.9, matrix(n).abs(), matrix(n, t)][rng.integers(3)]
    lam, returns_lam = [0.7, matrix(n), matrix(n, t)][rng.integers(3)], [None, 0.3, matrix(n, t)][rng.integers(3)]
    options = {"mask": some(n, t), "terminated": some(n, t, p=0.2), "done": some(n, t, p=0.2)}
    behind = ["zero", "repeat_last", matrix(n), None][rng.integers(4)]
    if behind is None:
        options["next_values"] = matrix(n, t)
    else:
        options |= {"bootstrap": behind, "finished": some(n, p=0.5)}
    got = gae(rewards, values, gamma=gamma, lam=lam, returns_lam=returns_lam, **options)
    arrays = {name: x.numpy() for name, x in options.items() if isinstance(x, torch.Tensor)}
    expected = reference.gae(
        rewards.numpy(),
        values.numpy(),
        everywhere(gamma, rewards),
        everywhere(lam, rewards),
        None if returns_lam is None else everywhere(returns_lam, rewards),
        repeat_last=options.get("bootstrap") == "repeat_last" if isinstance(behind, str) else False,
        **arrays,
    )
    same(got.advantages, expected[0], 1e-10)
    same(got.returns, expected[1], 1e-10)


@given(batches())
def test_turn_returns_match_sums(case):
    n, t, matrix, some, rng = case
    rewards, mask = matrix(n, t), some(n, t)
    ends = torch.from_numpy(rng.random((n, t)) < 0.4)
    got = turn_returns(rewards, ends, 0.8, mask=mask)
    same(got, reference.turn_returns(rewards.numpy(), ends.numpy(), 0.8, None if mask is None else mask.numpy()), 1e-10)


@given(batches())
def test_v_trace_matches_the_papers_sum(case):
    n, t, matrix, _, _ = case
    rewards, values, ratios, behind = matrix(n, t), matrix(n, t), matrix(n, t), matrix(n)
    got = v_trace(rewards, values, ratios, gamma=0.9, lam=0.8, bootstrap=behind, max_rho=1.2, max_c=0.9, max_pg_rho=2)
    arrays = [x.numpy() for x in (rewards, values, ratios.exp())]
    expected = reference.v_trace(*arrays, 0.9, 0.8, behind.numpy(), 1.2, 0.9, 2)
    same(got.targets, expected[0], 1e-10)
    same(got.advantages, expected[1], 1e-10)


@pytest.mark.parametrize("convention", ["bessel", "population"])
@given(batches())
def test_whitening_matches_numpy(convention, case):
    n, t, matrix, _, rng = case
    values, mask = matrix(n, t) * 3 + 100, torch.from_numpy(rng.random((n, t)) < 0.6)
    got = whiten(values, mask, convention=convention)
    same(got, reference.whiten(values.numpy(), mask.numpy(), convention), 1e-8)


@pytest.mark.parametrize("t", [1023, 1024, 1025, 2048, 2050, 5000])
def test_lengths_around_pieces(t):
    x, a, mask = normal(9, t), normal(9, t, seed=1).sigmoid(), flags(9, t)
    same(linear_scan(x, a, mask=mask), reference.linear_scan(x.numpy(), a.numpy(), None, mask.numpy()))
    got = linear_scan(x, a, mask=mask, reverse=False, outside="carry")
    same(got, reference.linear_scan(x.numpy(), a.numpy(), None, mask.numpy(), False, True))
    v = normal(9, t, seed=2)
    whole = gae(x, v, gamma=0.9, lam=0.9, mask=mask)
    delta = gae(x, v, gamma=0.9, lam=0.0, mask=mask).advantages
    same(whole.advantages, reference.linear_scan(delta.numpy(), np.full((9, t), 0.81), None, mask.numpy()))


@pytest.mark.parametrize("rows", [1, 3, 15])
@pytest.mark.parametrize("reverse", [True, False])
def test_few_long_rows_are_cut_into_pieces(rows, reverse):
    t = 40_000
    x, a = normal(rows, t), 1 - 0.01 * normal(rows, t, seed=1).abs()
    mask, initial = flags(rows, t), normal(rows, seed=3)
    expected = reference.linear_scan(x.numpy(), a.numpy(), initial.numpy(), mask.numpy(), reverse)
    same(linear_scan(x, a, initial, mask=mask, reverse=reverse), expected, 1e-9)
    # Values at a piece's end belong to the next token of the mask, however far away it is.
    mask[:, 3000:25_000] = False
    got = gae(x, x.flip(1), gamma=0.99, lam=0.9, returns_lam=1.0, mask=mask)
    for i in range(rows):
        row = mask[i]
        packed = gae(x[i][None, row], x.flip(1)[i][None, row], gamma=0.99, lam=0.9, returns_lam=1.0)
        same(got.advantages[i, row], packed.advantages[0], 1e-9)
        same(got.returns[i, row], packed.returns[0], 1e-9)


def long_rows(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms and factors of 8 rows that are cut into pieces, with something odd in the rows 0, 2, 4, 6."""
    x, a = normal(8, 20_000), torch.full((8, 20_000), 0.5, dtype=F64)
    odd = slice(None, None, 2)
    if case.startswith("last"):
        x[:, :-1] = 0
        x[odd, -1] = float(case.split()[1])
    elif case == "infinities of both signs":
        x[odd, -1], x[odd, 100] = INF, -INF
    elif case == "negative factors":
        x[odd, -1], a[odd, ::3] = INF, -0.5
    elif case == "before a cut":
        x[odd, -1], a[odd, 9000] = NAN, 0
    elif case.startswith("behind a cut"):
        a[odd, 10_000], a[odd, 10_001] = 0, float(case.split()[3])
    elif case == "an infinite factor":
        x[odd, 9000:] = 0
        x[odd, -1], a[odd, 15_000] = 1, INF
    elif case == "an infinite factor of nothing":
        x[odd], a[odd, 15_000] = 0, INF
    elif case == "factors that overflow in between":
        x[odd], a[odd], a[odd, 12_000:14_000], a[odd, 10_300:12_000] = 0, 1, 1.5, 1 / 1.5
        x[odd, -1] = 1e-200
    elif case == "a large state":
        x[odd], a[odd] = 0, 0.95
        x[odd, -1] = 1e300
    return x, a


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        "last nan",
        "last inf",
        "last -inf",
        "infinities of both signs",
        "negative factors",
        "before a cut",
        "behind a cut nan",
        "behind a cut inf",
        "an infinite factor",
        "an infinite factor of nothing",
        "factors that overflow in between",
        "a large state",
    ],
)
def test_long_rows_do_not_depend_on_how_many_there_are(case, reverse):
    x, a = (z if reverse else z.flip(1) for z in long_rows(case))
    expected = linear_scan(x.repeat(2, 1), a.repeat(2, 1), reverse=reverse)  # 16 rows are not cut
    for n in (1, 3, 8):
        torch.testing.assert_close(
            linear_scan(x[:n], a[:n], reverse=reverse), expected[:n], rtol=1e-9, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("odd", [NAN, INF])
def test_long_rows_of_gae_do_not_depend_on_how_many_there_are(odd):
    rewards, values, lam = normal(8, 16_384), normal(8, 16_384, seed=1), torch.full((8, 16_384), 0.9, dtype=F64)
    done = torch.zeros(8, 16_384)
    done[:, 10_000] = 1
    lam[::2, 10_001] = odd
    rewards[1::2, -1] = odd
    rewards[3] = 0

    def estimate(n: int):
        columns = [torch.cat([z, z])[:n] for z in (rewards, values, lam, done)]
        return gae(*columns[:2], gamma=0.9, lam=columns[2], returns_lam=0.5, done=columns[3])

    expected = estimate(16)
    assert not expected.advantages[:, :10_000].isnan().any()
    for n in (1, 3, 8):
        for one, two in zip(estimate(n), expected, strict=True):
            torch.testing.assert_close(one, two[:n], rtol=1e-9, atol=1e-300, equal_nan=True)


@pytest.mark.parametrize("tokens", [[], [0], [700], [4096], [5000, 5001], [19_999], [3, 19_000]])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_values_behind_the_padding_of_long_rows(tokens, dtype):
    rewards, values = normal(1, 20_000), normal(1, 20_000, seed=1)
    mask = torch.zeros(1, 20_000, dtype=dtype)
    mask[0, tokens] = 1
    for bootstrap in ("repeat_last", "zero", normal(1, seed=2)):
        got = gae(rewards, values, mask=mask, bootstrap=bootstrap, returns_lam=1.0)
        packed = gae(rewards[:, tokens], values[:, tokens], bootstrap=bootstrap, returns_lam=1.0)
        same(got.advantages[:, tokens], packed.advantages)
        same(got.returns[:, tokens], packed.returns)


def test_one_huge_row_is_whitened_in_parts():
    values, mask = normal(2, 40_000) * 3 + 100, flags(2, 40_000)
    mask[0, :17_000] = False
    same(whiten(values, mask), reference.whiten(values.numpy(), mask.numpy(), "bessel"), 1e-9)


def test_results_do_not_depend_on_the_number_of_threads():
    x, a, mask = (
        normal(100, 700, dtype=torch.float32),
        normal(100, 700, seed=1, dtype=torch.float32).sigmoid(),
        flags(100, 700),
    )
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((linear_scan(x, a), *gae(x, a, mask=mask), whiten(x, mask)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# Identities.


def test_lambda_one_gives_the_return_less_the_value_and_zero_the_one_step_error():
    rewards, values = normal(4, 7), normal(4, 7, seed=1)
    got = gae(rewards, values, gamma=0.9, lam=1.0)
    same(got.returns, discounted_returns(rewards, 0.9))
    same(got.advantages, got.returns - values)
    one_step = rewards + 0.9 * torch.cat([values[:, 1:], torch.zeros(4, 1)], 1) - values
    same(gae(rewards, values, gamma=0.9, lam=0.0).advantages, one_step)


def test_v_trace_on_policy_gives_the_return():
    rewards, values = normal(3, 6), normal(3, 6, seed=1)
    got = v_trace(rewards, values, torch.zeros(3, 6), gamma=0.9)
    same(got.targets, discounted_returns(rewards, 0.9))
    same(got.advantages, got.targets - values)


def test_v_trace_skips_masked_tokens_and_stops_at_ends():
    rewards, values, ratios = normal(2, 8), normal(2, 8, seed=1), normal(2, 8, seed=2)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0, 0, 1]])
    got = v_trace(rewards, values, ratios, gamma=0.9, mask=mask)
    for i in range(2):
        on = mask[i].bool()
        packed = v_trace(*(x[i][None, on] for x in (rewards, values, ratios)), gamma=0.9)
        same(got.targets[i, on], packed.targets[0])
        same(got.advantages[i, on], packed.advantages[0])
    assert not got.targets[mask == 0].any()
    ends = torch.zeros(2, 8)
    ends[:, 3] = 1
    whole = v_trace(rewards, values, ratios, gamma=0.9, terminated=ends)
    first = v_trace(rewards[:, :4], values[:, :4], ratios[:, :4], gamma=0.9)
    same(whole.targets[:, :4], first.targets)
    same(whole.advantages[:, :4], first.advantages)


def test_skipped_tokens_change_nothing_for_the_others():
    rewards, values, mask = normal(6, 20), normal(6, 20, seed=1), flags(6, 20)
    got = gae(rewards, values, gamma=0.95, lam=0.9, mask=mask)
    for i in range(6):
        on = mask[i]
        packed = gae(rewards[i][None, on], values[i][None, on], gamma=0.95, lam=0.9)
        same(got.advantages[i, on], packed.advantages[0])
        same(got.returns[i, on], packed.returns[0])
    assert not got.advantages[~mask].any()
    assert not got.returns[~mask].any()


def test_carried_numbers_are_those_of_verl():
    """The formula of verl 0.9.1's compute_gae_advantage_return before its whitening."""
    rewards, values, mask = normal(5, 12), normal(5, 12, seed=1), flags(5, 12).long()
    following = trace = torch.zeros(5, dtype=F64)
    expected = torch.zeros(5, 12, dtype=F64)
    for t in reversed(range(12)):
        new = rewards[:, t] + 0.99 * following - values[:, t] + 0.99 * 0.95 * trace
        following = torch.where(mask[:, t] == 1, values[:, t], following)
        trace = expected[:, t] = torch.where(mask[:, t] == 1, new, trace)
    got = gae(rewards, values, gamma=0.99, lam=0.95, mask=mask, outside="carry")
    same(got.advantages, expected)
    same(got.returns, expected + values)


def test_openrlhf_steps_through_holes():
    """The formula of OpenRLHF 0.11.2's get_advantages_and_returns, which multiplies and scans every token."""
    rewards, values, mask = normal(5, 12), normal(5, 12, seed=1), flags(5, 12).long()
    r, v = rewards * mask, values * mask
    following = trace = torch.zeros(5, dtype=F64)
    expected = torch.zeros(5, 12, dtype=F64)
    for t in reversed(range(12)):
        trace = expected[:, t] = r[:, t] + 0.99 * following - v[:, t] + 0.99 * 0.95 * trace
        following = v[:, t]
    same(gae(r, v, gamma=0.99, lam=0.95).advantages, expected)
    assert not torch.allclose(gae(rewards, values, gamma=0.99, lam=0.95, mask=mask).advantages, expected * mask)


def test_reinforce_plus_plus_returns_skip_observations():
    rewards, mask = torch.tensor([[1.0, 5.0, 2.0, 4.0]]), torch.tensor([[1, 0, 1, 1]])
    got = discounted_returns(rewards, 0.5, mask=mask)
    assert got.tolist() == [[1 + 0.5 * 4, 0, 2 + 0.5 * 4, 4]]
    assert reward_to_go(rewards, mask=mask).tolist() == [[7, 0, 6, 4]]


def test_decoupled_lambdas_share_one_call():
    rewards, values, mask = normal(5, 9), normal(5, 9, seed=1), flags(5, 9)
    lam = length_adaptive_lambda(mask, alpha=0.5)
    same(lam, 1 - 1 / (0.5 * mask.sum(1).double()).clamp(min=1))
    got = gae(rewards, values, lam=lam, returns_lam=1.0, mask=mask)
    same(got.advantages, gae(rewards, values, lam=lam, mask=mask).advantages)
    same(got.returns, gae(rewards, values, lam=1.0, mask=mask).returns)


def test_bootstraps():
    rewards, values = normal(3, 4), normal(3, 4, seed=1)
    last = values[:, -1]
    same(gae(rewards, values, bootstrap="repeat_last").advantages, gae(rewards, values, bootstrap=last).advantages)
    shifted = torch.cat([values[:, 1:], last[:, None]], 1)
    same(gae(rewards, values, next_values=shifted).advantages, gae(rewards, values, bootstrap=last).advantages)
    finished = gae(rewards, values, bootstrap=last, finished=torch.tensor([1, 0, 1])).advantages
    same(finished[[0, 2]], gae(rewards, values).advantages[[0, 2]])


def test_turns_with_masked_ends_and_an_open_last_turn():
    rewards = torch.tensor([[1.0, 2.0, 9.0, 3.0, 4.0]])
    ends, mask = torch.tensor([[0, 0, 1, 0, 0]]), torch.tensor([[1, 1, 0, 1, 1]])
    assert turn_returns(rewards, ends, 0.5, mask=mask).tolist() == [[6.5, 6.5, 0, 7, 7]]


def test_return_differences_need_both_trials():
    got = return_differences(torch.tensor([[1.0, 3.0, NAN]]), mask=torch.tensor([[1, 1, 0]]))
    assert got.tolist() == [[2.0, 0.0]]


def test_kl_shaped_rewards_of_a_row_without_tokens_are_zero():
    got = kl_shaped_rewards([3.0, 1.0], torch.ones(2, 2), torch.zeros(2, 2), mask=torch.tensor([[0, 0], [1, 0]]))
    close(got, [[0, 0], [0.95, 0]])


# Whitening.


def test_whitening_of_equal_values_is_exactly_zero():
    for convention in ("bessel", "population"):
        assert not whiten(torch.full((7, 3), 0.1, dtype=F64), convention=convention).any()
        assert not whiten(torch.full((7, 3), 0.1, dtype=F64), convention=convention, eps=0.0).any()
    assert whiten(torch.full((2, 2), 0.1), shift_mean=False).tolist() == torch.full((2, 2), 0.1).tolist()


def test_whitening_outside_the_mask_and_without_shift():
    values, mask = normal(4, 5), flags(4, 5)
    chosen = values[mask]
    expected = (values - chosen.mean()) / (chosen.var() + 1e-8).sqrt()
    same(whiten(values, mask, outside="whiten"), expected)
    same(whiten(values, mask, outside="whiten", shift_mean=False), expected + chosen.mean())
    same(whiten(values, mask, eps=0.5)[mask], (chosen - chosen.mean()) / (chosen.var() + 0.5).sqrt())
    floor = whiten(values, mask, convention="population", eps=4.0)[mask]
    same(floor, (chosen - chosen.mean()) / max(chosen.var(correction=0).sqrt().item(), 2.0))


def test_whitening_keeps_digits_of_a_small_spread():
    values = torch.tensor([[1e8, 1e8 + 1, 1e8 + 2]], dtype=F64)
    same(whiten(values), [[-1, 0, 1]], 1e-7)


def test_whitening_of_too_few_tokens_is_zero_and_of_nan_is_nan():
    values = torch.tensor([[3.0, NAN]])
    assert whiten(values, torch.tensor([[1, 0]])).tolist() == [[0, 0]]
    assert whiten(values, torch.zeros(1, 2)).tolist() == [[0, 0]]
    assert whiten(values).isnan().all()
    assert whiten(torch.tensor([[3.0, INF]])).isnan().all()


# NaN, infinities, empty.


def test_nan_reaches_the_earlier_tokens_of_its_row_up_to_a_cut():
    rewards, values = normal(2, 6), normal(2, 6, seed=1)
    rewards[0, 4] = NAN
    done = torch.zeros(2, 6)
    done[0, 2] = 1
    plain = gae(rewards, values).advantages.isnan()
    assert plain.tolist() == [[True] * 5 + [False], [False] * 6]
    cut = gae(rewards, values, done=done).advantages.isnan()
    assert cut[0].tolist() == [False, False, False, True, True, False]
    assert discounted_returns(rewards, 0.9, done=done).isnan()[0].tolist() == cut[0].tolist()


def test_nothing_leaks_from_outside_the_mask_or_behind_an_end():
    rewards, values, mask = normal(3, 9), normal(3, 9, seed=1), flags(3, 9)
    mask[:, 4] = True
    expected = gae(rewards, values, mask=mask)
    for odd in (NAN, INF, -INF):
        spoiled = [torch.where(mask, x, odd) for x in (rewards, values)]
        got = gae(*spoiled, mask=mask)
        assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
    ends = torch.zeros(3, 9)
    ends[:, 4] = 1
    behind = torch.arange(9) > 4
    expected = gae(rewards, values, terminated=ends)
    got = gae(torch.where(behind, NAN, rewards), torch.where(behind, INF, values), terminated=ends)
    assert torch.equal(got.advantages[:, :5], expected.advantages[:, :5])


def test_infinities_follow_arithmetic():
    got = discounted_returns(torch.tensor([[1.0, INF, 2.0], [-INF, INF, 0.0]]), 0.5)
    assert got[0].tolist() == [INF, INF, 2]
    assert math.isnan(got[1, 0])
    assert got[1, 1:].tolist() == [INF, 0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (1, 1)])
def test_empty_and_single(shape):
    x = torch.ones(shape)
    assert linear_scan(x, 0.5).shape == shape
    assert gae(x, x, mask=x).advantages.tolist() == torch.zeros(shape).tolist()
    assert whiten(x).tolist() == torch.zeros(shape).tolist()
    assert turn_returns(x, x).tolist() == x.tolist()
    assert v_trace(x, x, x).advantages.shape == shape
    assert kl_shaped_rewards(torch.ones(shape[0]), x, x).tolist() == x.tolist()
    y = torch.ones(shape, requires_grad=True)
    linear_scan(y, 0.5, torch.ones(shape[0], requires_grad=True)).sum().backward()
    assert y.grad.tolist() == x.tolist()


def test_a_row_without_tokens_is_zero():
    got = gae(normal(2, 4), normal(2, 4), mask=torch.zeros(2, 4), bootstrap="repeat_last")
    assert not got.advantages.any()
    assert not got.returns.any()


# Dtypes and strides.


@pytest.mark.parametrize(("dtype", "tolerance"), FLOATS)
def test_floating_dtypes_round_once(dtype, tolerance):
    x, v, mask = normal(9, 30).to(dtype), normal(9, 30, seed=1).to(dtype), flags(9, 30)
    for got, exact in (
        (linear_scan(x, 0.9), linear_scan(x.double(), 0.9)),
        (gae(x, v, mask=mask).advantages, gae(x.double(), v.double(), mask=mask).advantages),
        (whiten(x, mask), whiten(x.double(), mask)),
        (turn_returns(x, mask), turn_returns(x.double(), mask)),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=1e-7)


def test_mixed_dtypes_give_the_wider():
    r, v = normal(2, 3), normal(2, 3, seed=1)
    for one, two in ((torch.float32, F64), (torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)):
        assert gae(r.to(one), v.to(two)).advantages.dtype == torch.promote_types(one, two)
    assert gae(torch.ones(2, 3, dtype=torch.int64), v.float()).returns.dtype == torch.float32


@pytest.mark.parametrize("dtype", MASK_DTYPES)
def test_masks_of_any_dtype_and_stride(dtype):
    rewards, values, mask = normal(5, 12), normal(5, 12, seed=1), flags(5, 12)
    marks = mask.to(dtype) * 3 if dtype != torch.bool else mask
    expected = gae(rewards, values, mask=mask, terminated=~mask)
    for layout in (marks, marks.t().contiguous().t(), torch.stack([marks, marks], 2)[..., 0]):
        got = gae(rewards, values, mask=layout, terminated=(layout == 0).to(dtype))
        assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
        assert torch.equal(whiten(rewards, layout), whiten(rewards, mask))


def test_any_strides_and_untouched_inputs():
    x, a = normal(6, 40, 2)[..., 0], normal(40, 6, seed=1).t()
    kept = x.clone(), a.clone()
    same(linear_scan(x, a), linear_scan(x.contiguous(), a.contiguous()))
    same(linear_scan(x, a[:, :1].expand(6, 40)), linear_scan(x, a[:, 0]))
    same(gae(x, a, gamma=a[:, 0]).advantages, gae(x.contiguous(), a.contiguous(), gamma=a[:, :1]).advantages)
    assert torch.equal(x, kept[0])
    assert torch.equal(a, kept[1])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_masks_that_the_operators_do_not_read(dtype):
    x, mask = normal(3, 5), flags(3, 5)
    odd = mask.to(dtype)
    assert torch.equal(linear_scan(x, 0.9, mask=odd), linear_scan(x, 0.9, mask=mask))
    assert torch.equal(whiten(x, odd), whiten(x, mask))
    for one, two in zip(
        gae(x, x, mask=odd, terminated=odd, done=odd, finished=odd[:, 0]),
        gae(x, x, mask=mask, terminated=mask, done=mask, finished=mask[:, 0]),
        strict=True,
    ):
        assert torch.equal(one, two)
    assert torch.equal(turn_returns(x, odd, mask=odd), turn_returns(x, mask, mask=mask))


def test_pythons_floats_are_doubles():
    r, v = normal(1, 5), normal(1, 5, seed=1)
    row = [[0.1, 0.2, 0.3, 0.4, 0.7]]
    tensor = torch.tensor(row, dtype=F64)
    for number in (0.95, [0.95], [[0.95] * 5], np.array([0.95])):
        assert torch.equal(gae(r, v, lam=number).advantages, gae(r, v, lam=0.95).advantages)
        assert torch.equal(linear_scan(r, number), linear_scan(r, 0.95))
    exact = torch.tensor([0.1], dtype=F64)
    assert torch.equal(gae(r, v, bootstrap=[0.1]).returns, gae(r, v, bootstrap=exact).returns)
    assert torch.equal(linear_scan(r, 0.5, [16_777_217]), linear_scan(r, 0.5, np.array([16_777_217])))
    assert torch.equal(gae(r, v, next_values=row).returns, gae(r, v, next_values=tensor).returns)
    assert torch.equal(v_trace(r, v, row).targets, v_trace(r, v, tensor).targets)
    shaped = kl_shaped_rewards([0.1], r, tensor)
    assert torch.equal(kl_shaped_rewards(exact, r, row), shaped)
    assert gae(r.float(), v.float(), lam=[0.95]).advantages.dtype == torch.float32


# Gradients.


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("outside", ["zero", "carry"])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_linear_scan(reverse, outside, masked):
    mask = flags(3, 6) if masked else None
    for a in (normal(3, 6, seed=1), normal(3, seed=1), normal(1, seed=1)[0]):
        inputs = [x.requires_grad_() for x in (normal(3, 6), a.clone(), normal(3, seed=2))]

        def scan(x, a, initial):
            return linear_scan(x, a, initial, mask=mask, reverse=reverse, outside=outside)

        assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize("options", [{}, {"bootstrap": "repeat_last"}, {"outside": "carry"}, {"returns_lam": 0.4}])
def test_gradients_of_gae(options):
    mask, ends = flags(4, 5, share=0.8), flags(4, 5, seed=5, share=0.2)
    inputs = [x.requires_grad_() for x in (normal(4, 5), normal(4, 5, seed=1), normal(4, seed=2), normal(4, 5, seed=3))]

    def estimate(rewards, values, gamma, lam):
        return gae(rewards, values, gamma=gamma, lam=lam, mask=mask, terminated=ends, **options)

    assert torch.autograd.gradcheck(estimate, inputs)
    with torch.no_grad():
        plain = estimate(*inputs)
    for one, two in zip(estimate(*inputs), plain, strict=True):
        same(one.detach(), two.numpy())


def test_gradients_of_turns_and_shaped_rewards():
    ends, mask = flags(3, 6, share=0.4), flags(3, 6, seed=1)
    gamma = torch.tensor(0.8, dtype=F64, requires_grad=True)
    rewards = normal(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, g: turn_returns(r, ends, g, mask=mask), (rewards, gamma))
    inputs = [x.requires_grad_() for x in (normal(3), normal(3, 6), normal(3, 6, seed=1))]
    assert torch.autograd.gradcheck(lambda *x: kl_shaped_rewards(*x, mask=mask), inputs)


@pytest.mark.parametrize(
    "options",
    [
        {"terminated": [[0, 1, 0, 0]]},
        {"terminated": [[0, 1, 0, 0]], "mask": [[1, 1, 0, 1]]},
        {"done": [[0, 1, 0, 0]], "next_values": [[0.5, 0.5, NAN, NAN]]},
        {"mask": [[1, 1, 0, 0]], "next_values": [[0.5, 0.5, NAN, INF]]},
        {"mask": [[1, 1, 0, 0]]},
    ],
)
@pytest.mark.parametrize("odd", [[0.5, 0.5, NAN, 0.5], [0.5, 0.5, 0.5, NAN], [0.5, 0.5, INF, NAN]])
def test_gradients_of_gamma_and_lambda_see_nothing_behind_an_end_or_outside_the_mask(options, odd):
    def slopes(values, **options):
        inputs = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.9, 0.8)]
        values = torch.tensor([values], dtype=F64, requires_grad=True)
        got = gae(torch.ones(1, 4, dtype=F64), values, gamma=inputs[0], lam=inputs[1], returns_lam=inputs[1], **options)
        return torch.autograd.grad((got.advantages + got.returns)[0, :2].sum(), [*inputs, values])

    clean = {"next_values": [[0.5, 0.5, 0.5, 0.5]]} if "next_values" in options else {}
    for one, two in zip(slopes(odd, **options), slopes([0.5] * 4, **(options | clean)), strict=True):
        assert not two.isnan().any()
        assert torch.equal(one, two)


def test_gradients_of_a_learned_discount_see_nothing_behind_an_end():
    gamma = torch.tensor(0.9, dtype=F64, requires_grad=True)
    rewards = torch.tensor([[1.0, 2.0, NAN, NAN]], dtype=F64)
    got = discounted_returns(rewards, gamma, done=torch.tensor([[0, 1, 0, 0]]))
    assert torch.autograd.grad(got[0, :2].sum(), gamma)[0].item() == 2


def test_equal_advantages_are_the_states_own_and_so_is_their_gradient():
    streams = [normal(2, 3, seed=k % 2).requires_grad_() for k in range(4)]
    got = dual_critic_advantages(*streams)
    assert not got.from_post.any()
    got.advantages.sum().backward()
    assert streams[0].grad.any()
    assert not streams[2].grad.any()
    for k in (0, 2):
        odd = [x.detach().clone() for x in streams]
        odd[k][0, 2] = NAN
        assert dual_critic_advantages(*odd).advantages.isnan().tolist() == [[True] * 3, [False] * 3]


def test_a_second_derivative_raises():
    x = normal(2, 3).requires_grad_()
    grad = torch.autograd.grad(linear_scan(x, 0.9).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(grad.sum(), x)


def tangent(f, x):
    with torch.autograd.forward_ad.dual_level():
        return f(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    "derive",
    [lambda f, x: torch.func.jvp(f, (x,), (x,)), lambda f, x: torch.func.grad(lambda x: f(x).sum())(x), tangent],
)
def test_other_derivatives_raise_and_do_not_vanish(derive):
    for f in (lambda x: linear_scan(x, 0.9), lambda x: gae(x, x).advantages, lambda x: turn_returns(x, x)):
        with pytest.raises(RuntimeError, match=r"autograd\.Function|custom Function"):
            derive(f, normal(2, 3))


# torch's machinery.

X, A, M = normal(5, 7), normal(5, 7, seed=1), flags(5, 7)
CALLS = {
    "linear_scan": (X, A[:, 0], None, M),
    "gae": (X.float(), A, 0.9, 0.8, 1.0, None, X[:, 0], None, M, ~M, None, None, X[:, 1], M[:, 0], False, True),
    "whiten": (X, M),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.morlfast, name).default, CALLS[name])


def test_compiles_without_a_break():
    def every(x, v, mask, gamma):
        out = [*gae(x, v, gamma=gamma, mask=mask, bootstrap="repeat_last"), whiten(x, mask)]
        out += [turn_returns(x, mask), discounted_returns(x, 0.9, done=mask), reward_to_go(x)]
        return [*out, *v_trace(x, v, x, mask=mask), kl_shaped_rewards(x[:, 0], x, v, mask=mask)]

    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    for one, two in zip(compiled(X, A, M, X[:, 0]), every(X, A, M, X[:, 0]), strict=True):
        same(one, two.numpy())


# Errors.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear_scan(torch.ones(3), 1.0), ValueError, r"x: expected shape \(N, T\), got \(3,\)"),
        (
            lambda: linear_scan(torch.ones(3, 2), torch.ones(2)),
            ValueError,
            r"a: expected a number or shape \(\), \(3,\)",
        ),
        (lambda: linear_scan(torch.ones(3, 2), "x"), TypeError, "a: expected"),
        (lambda: linear_scan(torch.ones(3, 2), 1.0, torch.ones(2)), ValueError, r"initial: expected shape \(3,\)"),
        (lambda: linear_scan(torch.ones(3, 2), 1.0, outside="x"), ValueError, 'outside: expected "zero" or "carry"'),
        (lambda: linear_scan(torch.ones(3, 2), 1.0, reverse=1), TypeError, "reverse: expected a bool"),
        (lambda: gae(torch.ones(3, 2), torch.ones(2, 3)), ValueError, "values: expected the shape of rewards"),
        (lambda: gae(torch.ones(3, 2), torch.ones(3, 2), mask=torch.ones(3)), ValueError, "mask: expected the shape"),
        (lambda: gae(torch.ones(3, 2), torch.ones(3, 2), bootstrap="x"), ValueError, "bootstrap: expected"),
        (
            lambda: gae(torch.ones(1, 1), torch.ones(1, 1), next_values=torch.ones(1, 1), bootstrap="repeat_last"),
            ValueError,
            "bootstrap, finished: expected neither",
        ),
        (lambda: gae(torch.ones(1, 1) * 1j, torch.ones(1, 1)), TypeError, "rewards: expected real numbers"),
        (lambda: whiten(torch.ones(1, 2), convention="x"), ValueError, "convention: expected one of bessel"),
        (lambda: whiten(torch.ones(1, 2), eps=-1.0), ValueError, "eps: expected a number >= 0"),
        (lambda: whiten(torch.ones(1, 2), outside="carry"), ValueError, 'outside: expected "zero" or "whiten"'),
        (lambda: length_adaptive_lambda([1], alpha=0.0), ValueError, "alpha: expected a finite number > 0"),
        (lambda: length_adaptive_lambda([5, 0], alpha=INF), ValueError, "alpha: expected a finite number > 0"),
        (lambda: length_adaptive_lambda([5 + 1j]), TypeError, "lengths: expected real numbers"),
        (lambda: whiten(torch.ones(1, 2), convention=["bessel"]), ValueError, "convention: expected one of bessel"),
        (lambda: v_trace(X, A, X, terminated=X[:3]), ValueError, "terminated: expected the shape of rewards"),
        (lambda: v_trace(X, A, X, done=X[:3]), ValueError, "done: expected the shape of rewards"),
        (lambda: dual_critic_advantages(X, X, X[:3], X), ValueError, "post_rewards: expected the shape of rewards"),
        (lambda: dual_critic_advantages(X, X, X, X[:3]), ValueError, "post_values: expected the shape of rewards"),
        (lambda: dual_critic_advantages(X, X, X, X[0]), ValueError, r"post_values: expected shape \(N, T\)"),
        (lambda: gae(X, X, lam=np.array([1j])), TypeError, "lam: expected real numbers"),
        (lambda: gae(X, X, finished=X[:, 0] * 1j), TypeError, "finished: expected bool, integers"),
        (lambda: v_trace(X, A, X, max_c=-1.0), ValueError, "max_c: expected a number >= 0"),
        (lambda: v_trace(X, A, X, bootstrap="repeat_last"), TypeError, "bootstrap: expected a tensor"),
        (lambda: turn_returns(X, None), TypeError, "turn_ends: expected a mask"),
        (lambda: return_differences(torch.ones(2, 0)), ValueError, "returns: expected at least one trial"),
        (lambda: kl_shaped_rewards(None, X, X), TypeError, "scores: expected numbers"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("linear_scan", torch.ones(3, 2), torch.ones(2, 2)), ValueError),
        (("linear_scan", torch.ones(3, 2), torch.ones(3, 2, dtype=torch.int64)), TypeError),
        (("linear_scan", torch.ones(3), torch.ones(3)), ValueError),
        (("gae", torch.ones(3, 2), torch.ones(3)), ValueError),
        (("gae", torch.ones(3, 2), torch.ones(3, 2), 1.0, 1.0, None, torch.ones(1)), ValueError),
        (("whiten", torch.ones(3, 2), torch.ones(2, 2)), ValueError),
        (("whiten", torch.ones(3, 2), None, 1e-8, 7), ValueError),
    ],
)
def test_operators_check_memory_themselves(arguments, error):
    name, *rest = arguments
    with pytest.raises(error, match="expected"):
        getattr(torch.ops.morlfast, name)(*rest)


META = X.to("meta")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear_scan", (X, META), "a: expected the device of x"),
        ("linear_scan", (META, A), "a: expected the device of x"),
        ("linear_scan", (X, A, META[:, 0]), "initial: expected the device of x"),
        ("linear_scan", (META, META[:4]), "a: expected the rows and columns of x"),
        ("linear_scan", (META, META, META), "initial: expected the rows and columns of x"),
        ("linear_scan", (META, META, None, META[:, :6]), "mask: expected the rows and columns of x"),
        ("linear_scan", (META[0], META), r"x: expected shape \(N, T\)"),
        ("gae", (X, META), "values: expected the device of rewards"),
        ("gae", (X, X, 1.0, 1.0, None, None, META), "lams: expected the device of rewards"),
        ("gae", (META, META[:, :6]), "values: expected the rows and columns of rewards"),
        ("gae", (META, META, 1.0, 1.0, None, None, META[:4, 0]), "lams: expected the rows and columns of rewards"),
        ("whiten", (X, META), "mask: expected the device of values"),
        ("whiten", (META, META[:, 0]), "mask: expected the rows and columns of values"),
    ],
)
def test_fakes_check_devices_and_shapes(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.morlfast, name)(*arguments)
