"""Triton linear scans, GAE and whitening against their definitions; run by test_interpreter.py."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from morlfast._triton import returns as kernels
from torch import Tensor

F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf
MASKS = [torch.bool, torch.int64, torch.bfloat16]


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, tiles of several rows, and programs with several tiles."""
    for name, value in {"ROWS": 2, "WIDTH": 4, "TILE": 16, "TILES": 2, "RECORDS": 4}.items():
        monkeypatch.setattr(kernels, name, value)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some(*shape: int, share: float = 0.7, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def scanned(x: Tensor, a: Tensor, initial: Tensor | None, mask: Tensor | None, reverse: bool, carry: bool) -> Tensor:
    """One token after the other; a factor of 0 cuts."""
    y = torch.zeros_like(x)
    state = torch.zeros(len(x), dtype=F64) if initial is None else initial.clone()
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        valid = torch.ones(len(x), dtype=torch.bool) if mask is None else mask[:, t] != 0
        step = x[:, t] + torch.where(a[:, t] == 0, 0.0, a[:, t] * state)
        state = torch.where(valid, step, state)
        y[:, t] = state if carry else torch.where(valid, state, 0.0)
    return y


@pytest.mark.parametrize(("reverse", "carry"), product([True, False], repeat=2))
def test_linear_scan(reverse: bool, carry: bool) -> None:
    x, a, initial = normal(3, 11), normal(3, 11, seed=1), normal(3, seed=2)
    a[0, 4] = a[2, 7] = 0
    x[0, 2], x[0, 6] = NAN, INF
    for mask in (None, *(some(3, 11).to(dtype) for dtype in MASKS)):
        result = kernels.linear_scan(x, a, initial, mask, reverse, carry)
        same(result, scanned(x, a, initial, mask, reverse, carry))
    row_each = a[:, 1]
    same(
        kernels.linear_scan(x[1:], row_each[1:], None, None, reverse),
        scanned(x[1:], row_each[1:, None].expand(2, 11), None, None, reverse, False),
    )


def test_nothing_before_a_cut_comes_through() -> None:
    x, a = normal(2, 13), torch.full((2, 13), 0.9, dtype=F64)
    a[:, 6] = 0
    for bad in (NAN, INF):
        spoiled = x.clone()
        spoiled[:, 7:] = bad
        same(kernels.linear_scan(spoiled, a)[:, :7], kernels.linear_scan(x, a)[:, :7])
        spoiled = x.clone()
        spoiled[:, :6] = bad
        same(kernels.linear_scan(spoiled, a, reverse=False)[:, 6:], kernels.linear_scan(x, a, reverse=False)[:, 6:])


def test_factors_that_multiply_to_infinity_leave_zeros() -> None:
    zeros = torch.zeros(1, 16, dtype=F64)
    assert (kernels.linear_scan(zeros, torch.full((1, 16), 1e200, dtype=F64)) == 0).all()


def vanishing(case: str) -> tuple[Tensor, Tensor]:
    """Terms and factors of two rows, any two factors of which multiply to 0; the first row has something odd."""
    x, a = torch.ones(2, 21, dtype=F64), torch.full((2, 21), 1e-200, dtype=F64)
    kind, odd = case.split()
    value = float(odd)
    if kind == "term":
        x[0, -1] = value
    elif kind == "negative":
        x[0, 9], a[0, ::3] = value, -1e-200
    elif kind == "opposed":
        x[0, -1], x[0, 2] = value, -value
    elif kind == "cut":
        x[0, -1], a[0, 8] = value, 0
    else:  # a factor right behind a cut: the same tile, or the next one
        at = {"behind": 9, "before": 8}[kind]
        a[0, at - 1], a[0, at] = 0, value
    return x, a


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("odd", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("kind", ["term", "negative", "opposed", "cut", "behind", "before"])
def test_only_a_factor_of_zero_cuts(kind: str, odd: str, reverse: bool) -> None:
    x, a = (z if reverse else z.flip(1) for z in vanishing(f"{kind} {odd}"))
    result = kernels.linear_scan(x, a, reverse=reverse)
    same(result, scanned(x, a, None, None, reverse, False))
    same(result, torch.ops.morlfast.linear_scan(x, a, reverse=reverse))
    spoiled = ~result[0].isfinite()
    assert spoiled.all() if kind == "term" else spoiled.any()
    if kind in ("cut", "behind", "before"):
        assert not spoiled.all()


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_initial_states_that_are_not_finite_go_through_vanishing_factors(odd: float, reverse: bool) -> None:
    x, a, mask = torch.ones(2, 21, dtype=F64), torch.full((2, 21), -1e-200, dtype=F64), some(2, 21)
    initial = torch.tensor([odd, 1.0], dtype=F64)
    result = kernels.linear_scan(x, a, initial, mask, reverse, True)
    assert not result[0].isfinite().any()
    same(result, scanned(x, a, initial, mask, reverse, True))
    same(result, torch.ops.morlfast.linear_scan(x, a, initial, mask, reverse, True))


def test_a_cut_stops_a_factor_that_is_not_finite() -> None:
    for bad in (NAN, INF):
        for at in (3, 4, 5):  # of tiles of 4
            x, a = torch.ones(1, 11, dtype=F64), torch.full((1, 11), 0.5, dtype=F64)
            a[0, at], a[0, at + 1] = 0, bad
            for state in (None, torch.tensor([bad], dtype=F64)):
                result = kernels.linear_scan(x, a, state)
                same(result, scanned(x, a, state, None, True, False))
                assert result[0, : at + 1].isfinite().all()
                same(kernels.linear_scan(x, a.flip(1), state, reverse=False), result.flip(1))
            a[0, at - 1], a[0, at + 1] = bad, 0.5
            same(kernels.linear_scan(x, a), scanned(x, a, None, None, True, False))


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("cut", [None, "done", "terminated", "both"])
def test_only_the_end_of_an_episode_cuts_gae(cut: str | None, odd: float) -> None:
    shape = (2, 19)
    rewards, values = torch.ones(shape, dtype=F64), torch.zeros(shape, dtype=F64)
    rewards[0, -1] = odd
    lams = torch.full(shape, 1e-200, dtype=F64)
    flags = torch.zeros(shape, dtype=torch.bool)
    flags[:, 7] = True
    options: dict[str, Any] = {key: flags for key in ("done", "terminated") if cut in (key, "both")}
    if "done" in options:
        lams[1, 8] = odd
    found = kernels.gae(rewards, values, 0.9, lams=lams, returns_lam=1e-160, **options)
    on_cpu = torch.ops.morlfast.gae(rewards, values, 0.9, lams=lams, returns_lam=1e-160, **options)
    gamma = torch.full(shape, 0.9, dtype=F64)
    exact = (
        estimated(rewards, values, gamma, lams, **options)[0],
        estimated(rewards, values, gamma, torch.full(shape, 1e-160, dtype=F64), **options)[1],
    )
    for result, cpu, expected in zip(found, on_cpu, exact, strict=True):
        same(result, cpu)
        same(result, expected)
        ended = 8 if "done" in options else 0
        assert result[0, :ended].isfinite().all()
        assert not result[0, ended:].isfinite().any()


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16])
def test_results_have_the_dtype_of_the_terms(dtype: torch.dtype) -> None:
    x = normal(2, 9).to(dtype)
    a = torch.full((2,), 0.5)
    result = kernels.linear_scan(x, a)
    assert result.dtype == dtype
    exact = scanned(x.double(), a.double()[:, None].expand(2, 9), None, None, True, False)
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def estimated(
    rewards: Tensor,
    values: Tensor,
    gamma: Tensor,
    lam: Tensor,
    mask: Tensor | None = None,
    terminated: Tensor | None = None,
    done: Tensor | None = None,
    next_values: Tensor | None = None,
    bootstrap: Tensor | None = None,
    finished: Tensor | None = None,
    repeat_last: bool = False,
    carry: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token after the other, from the last."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for i in range(len(rewards)):
        tokens = [t for t in range(values.shape[1]) if mask is None or mask[i, t]]
        behind = 0.0
        if finished is not None and finished[i]:
            behind = 0.0
        elif bootstrap is not None:
            behind = bootstrap[i].item()
        elif repeat_last and tokens:
            behind = values[i, tokens[-1]].item()
        advantage = 0.0
        for t in reversed(range(values.shape[1])):
            valid = t in tokens
            if valid:
                following = behind if next_values is None else next_values[i, t].item()
                if terminated is not None and terminated[i, t]:
                    following = 0.0
                delta = rewards[i, t].item() + gamma[i, t].item() * following - values[i, t].item()
                trace = 0.0 if done is not None and done[i, t] else gamma[i, t].item() * lam[i, t].item() * advantage
                advantage = delta + trace
                behind = values[i, t].item()
            if valid or carry:
                advantages[i, t], returns[i, t] = advantage, advantage + values[i, t]
    return advantages, returns


@pytest.mark.parametrize("tail", ["zero", "repeat_last", "bootstrap", "finished", "next_values"])
@pytest.mark.parametrize("masked", [None, *MASKS], ids=str)
def test_gae(tail: str, masked: torch.dtype | None) -> None:
    shape = (3, 11)
    rewards, values = normal(*shape), normal(*shape, seed=1)
    options: dict[str, Any] = {"carry": tail in ("bootstrap", "finished")}
    if masked is not None:
        mask = some(*shape)
        mask[0, -3:], mask[1] = False, False
        options["mask"] = mask.to(masked)
        values[0, -1] = NAN if not options["carry"] else 0.0  # padding
    if tail in ("zero", "bootstrap"):
        options |= {"done": some(*shape, share=0.2), "terminated": some(*shape, share=0.3, seed=1).float()}
    if tail in ("bootstrap", "finished"):
        options["bootstrap"] = normal(3, seed=2)
    if tail == "finished":
        options["finished"] = torch.tensor([True, False, True])
    if tail == "next_values":
        options["next_values"] = normal(*shape, seed=3)
    options["repeat_last"] = tail in ("repeat_last", "finished")
    gamma, lam = torch.full(shape, 0.9, dtype=F64), torch.full(shape, 0.8, dtype=F64)
    for found, exact in zip(
        kernels.gae(rewards, values, 0.9, 0.8, **options),
        estimated(rewards, values, gamma, lam, **options),
        strict=True,
    ):
        same(found, exact)


def test_factors_of_every_shape_and_a_lambda_of_the_returns() -> None:
    shape = (3, 9)
    rewards, values, mask = normal(*shape), normal(*shape, seed=1), some(*shape)
    gammas, lams, returns_lams = normal(3, seed=2), normal(*shape, seed=3), normal(*shape, seed=4)
    gamma = gammas[:, None].expand(shape)
    found = kernels.gae(rewards, values, gammas=gammas, lams=lams, returns_lams=returns_lams, mask=mask)
    same(found[0], estimated(rewards, values, gamma, lams, mask)[0])
    same(found[1], estimated(rewards, values, gamma, returns_lams, mask)[1])
    found = kernels.gae(rewards, values, 0.9, 0.8, 1.0)
    whole = torch.ones(shape, dtype=F64)
    same(found[0], estimated(rewards, values, whole * 0.9, whole * 0.8)[0])
    same(found[1], estimated(rewards, values, whole * 0.9, whole)[1])


def test_inputs_of_any_strides_and_dtypes() -> None:
    rewards, values = normal(8, 6, dtype=torch.bfloat16).t()[::2], normal(3, 8, dtype=torch.float16)
    mask = some(8, 3).t()
    found = kernels.gae(rewards, values, 0.9, 0.8, mask=mask)
    assert found[0].dtype == found[1].dtype == F32
    whole = torch.ones(3, 8, dtype=F64)
    exact = estimated(rewards.double(), values.double(), whole * 0.9, whole * 0.8, mask)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns", [3, 19])
@pytest.mark.parametrize(("eps_to", "ddof"), product(range(3), [0, 1]))
def test_whitening(columns: int, eps_to: int, ddof: int) -> None:
    values, mask = 1e6 + normal(5, columns), some(5, columns)
    sample = values[mask] - 1e6
    variance = sample.var(correction=ddof)
    divisor = [variance.sqrt() + 0.1, (variance + 0.1).sqrt(), variance.sqrt().clamp(min=0.1)][eps_to]
    whitened = (values - 1e6 - sample.mean()) / divisor
    found = kernels.whiten(values, mask.to(MASKS[eps_to]), 0.1, eps_to, ddof)
    torch.testing.assert_close(found, torch.where(mask, whitened, 0.0), rtol=1e-8, atol=1e-8)
    found = kernels.whiten(values, mask, 0.1, eps_to, ddof, False, True)
    torch.testing.assert_close(found, whitened + sample.mean() + 1e6)
    values[~mask] = NAN
    assert kernels.whiten(values, mask, 0.1, eps_to, ddof).isfinite().all()


def test_equal_values_and_no_values_whiten_to_zero() -> None:
    values = torch.full((3, 7), 0.3, dtype=F64)
    for mask in (None, some(3, 7), torch.zeros(3, 7), torch.eye(3, 7) * torch.tensor([1.0, 0, 0, 0, 0, 0, 0])):
        for eps in (0.0, 1e-8):
            assert (kernels.whiten(values, mask, eps, 0) == 0).all()


def test_a_value_that_is_not_finite_spoils_whitening() -> None:
    for bad in (NAN, INF):
        values = normal(3, 7)
        values[1, 2] = bad
        assert kernels.whiten(values).isnan().all()


def test_empty_inputs() -> None:
    for shape in ((0, 5), (3, 0)):
        empty = torch.empty(shape)
        assert kernels.linear_scan(empty, empty).shape == shape
        assert [x.shape for x in kernels.gae(empty, empty)] == [shape, shape]
        assert kernels.whiten(empty).shape == shape


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = normal(3, 4)
    with pytest.raises(ValueError, match="a: expected shape"):
        kernels.linear_scan(x, normal(4))
    with pytest.raises(ValueError, match="mask: expected shape"):
        kernels.gae(x, x, mask=torch.ones(3, 5))
