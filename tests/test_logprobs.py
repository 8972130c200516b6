"""Log-probabilities of tokens and entropies: formulas, strides, masks, infinities, gradients, memory, slices of the
vocabulary on several ranks."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from morlfast.logprobs import linear_token_logprobs, token_logprobs
from ranks import Ranks
from references import logprobs as reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
DTYPES = [F32, F64, BF16, torch.float16]
NAN, INF = math.nan, math.inf


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)).to(dtype)


def draws(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def some(*shape: int, share: float = 0.7, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def close(got: Tensor | None, expected: Any, tolerance: float = 1e-6) -> None:
    assert got is not None
    expected = torch.as_tensor(expected, dtype=F64)
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def expected_of(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, read: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    flat = logits.double().reshape(-1, logits.shape[-1]).numpy()
    mask = None if read is None else read.reshape(-1).numpy()
    found = reference.token_logprobs(flat, tokens.reshape(-1).numpy(), temperature, mask)
    return tuple(torch.from_numpy(x).reshape(tokens.shape) for x in found)  # type: ignore[return-value]


def tolerance_of(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == F64 else 2e-6


# Values.


@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_those_of_the_formulas(dtype: torch.dtype, temperature: float) -> None:
    for size in (1, 2, 7, 64, 1000):
        logits, tokens = normal(3, 4, size, dtype=dtype), draws(3, 4, below=size)
        found = token_logprobs(logits, tokens, temperature=temperature)
        exact = expected_of(logits, tokens, temperature)
        for got, want in zip(found, exact, strict=True):
            assert got.dtype == (F64 if dtype == F64 else F32)
            close(got, want, tolerance_of(dtype))
        without = token_logprobs(logits, tokens, temperature=temperature, entropy=False)
        assert without.entropies is None
        close(without.log_probs, exact[0], tolerance_of(dtype))


def test_the_numbers_of_two_tokens() -> None:
    p = torch.tensor([0.25, 0.75], dtype=F64)
    log_probs, entropies = token_logprobs(p.log() + 5, torch.tensor(1))
    close(log_probs, math.log(0.75), 1e-14)
    close(entropies, math.log(4) - 0.75 * math.log(3), 1e-14)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :-1],
        lambda x: x.transpose(0, 1),
        lambda x: x.permute(2, 1, 0),
        lambda x: x[1:2].expand(3, -1, -1),
        lambda x: x[..., ::2],
        lambda x: x[0],
        lambda x: x[0, 0],
        lambda x: x[None].expand(2, *x.shape),
        lambda x: x[None, :, :, None].transpose(0, 2),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_shape_and_strides(view: Any, dtype: torch.dtype) -> None:
    logits = view(normal(4, 5, 12, dtype=dtype))
    size = logits.shape[-1]
    for tokens in (draws(*logits.shape[:-1], below=size), draws(*logits.shape[:-1][::-1], below=size)):
        tokens = tokens if tokens.shape == logits.shape[:-1] else tokens.permute(*reversed(range(tokens.dim())))
        for got, want in zip(token_logprobs(logits, tokens), expected_of(logits, tokens), strict=True):
            close(got, want, tolerance_of(dtype))


def test_integers_and_tokens_of_any_integer_dtype() -> None:
    logits, tokens = draws(6, 9, below=5), draws(6, below=9)
    exact = expected_of(logits, tokens)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        for got, want in zip(token_logprobs(logits, tokens.to(dtype)), exact, strict=True):
            close(got, want)
    close(token_logprobs(logits, tokens.tolist()).log_probs, exact[0])


def test_a_language_model_sized_row_is_as_precise_as_promised() -> None:
    """bfloat16 entropies within 1e-5, where a softmax in bfloat16 is off by 0.06."""
    logits, tokens = normal(3, 32000), draws(3, below=32000)
    logits[1:] *= torch.tensor([[2.0], [5.0]])
    for dtype in (F32, BF16):
        rounded = logits.to(dtype)
        log_probs, entropies = token_logprobs(rounded, tokens)
        exact = expected_of(rounded, tokens)
        close(log_probs, exact[0], 1e-6)
        torch.testing.assert_close(entropies.double(), exact[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_extreme_logits(scale: float) -> None:
    logits, tokens = normal(5, 40) * scale, draws(5, below=40)
    for got, want in zip(token_logprobs(logits, tokens), expected_of(logits, tokens), strict=True):
        close(got, want, 1e-12)


def test_minus_infinity_has_probability_zero() -> None:
    logits, tokens = normal(4, 30), draws(4, below=30)
    kept = some(4, 30)
    kept.scatter_(1, tokens[:, None], True)
    kept[3] = False
    kept[3, tokens[3]] = True
    log_probs, entropies = token_logprobs(logits.masked_fill(~kept, -INF), tokens)
    for row in range(4):
        own = token_logprobs(logits[row, kept[row]], kept[row, : tokens[row]].sum())
        close(log_probs[row], own.log_probs, 1e-12)
        close(entropies[row], own.entropies, 1e-12)
    assert log_probs[3] == 0
    assert entropies[3] == 0
    forbidden = logits.masked_fill(torch.nn.functional.one_hot(tokens, 30).bool(), -INF)
    assert (token_logprobs(forbidden, tokens).log_probs == -INF).all()
    assert token_logprobs(forbidden, tokens).entropies.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_spoil_their_row_and_no_other(dtype: torch.dtype) -> None:
    for bad in (NAN, INF):
        for where in (0, 17, 39):
            logits, tokens = normal(3, 40, dtype=dtype), draws(3, below=40)
            logits[1, where] = bad
            for got in token_logprobs(logits, tokens):
                assert got.isnan().tolist() == [False, True, False]
    logits = torch.full((2, 40), -INF, dtype=dtype)
    for got in token_logprobs(logits, draws(2, below=40)):
        assert got.isnan().all()


def test_finite_logits_however_low_are_a_distribution() -> None:
    logits = torch.full((2, 8), torch.finfo(F32).min)
    found = token_logprobs(logits, draws(2, below=8))
    close(found.log_probs, [-math.log(8)] * 2)
    close(found.entropies, [math.log(8)] * 2)


def test_the_references_say_what_torch_says() -> None:
    logits, tokens = normal(5, 9), draws(5, below=9)
    for one, two in zip(expected_of(logits, tokens, 0.7), by_autograd(logits, tokens, 0.7), strict=True):
        close(one, two, 1e-13)


# Masks.


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, F32, BF16], ids=str)
def test_rows_outside_the_mask_are_zero_and_not_read(dtype: torch.dtype) -> None:
    mask = some(5, 6)
    logits = normal(5, 6, 20).masked_fill(~mask[..., None], NAN).requires_grad_()
    tokens = draws(5, 6, below=20).masked_fill(~mask, 10**12)
    found = token_logprobs(logits, tokens, mask=mask.to(dtype))
    exact = expected_of(logits.detach(), tokens, read=mask)
    for got, want in zip(found, exact, strict=True):
        close(got, want, 1e-12)
    (grad,) = torch.autograd.grad(found.log_probs.sum() + found.entropies.sum(), logits)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).all()


@pytest.mark.parametrize("index", [-100, -1, 3])
def test_an_ignored_token_is_outside_the_mask(index: int) -> None:
    logits, tokens = normal(40, 7), draws(40, below=7)
    tokens[::5] = index
    read = tokens != index
    exact = expected_of(logits, tokens.clamp(min=0), read=read)
    found = token_logprobs(logits, tokens, ignore_index=index)
    masked = token_logprobs(logits, tokens, ignore_index=index, mask=torch.ones(40))
    for got, again, want in zip(found, masked, exact, strict=True):
        close(got, want, 1e-12)
        assert torch.equal(got, again)


def test_empty_inputs() -> None:
    for shape in ((0, 7), (2, 0, 7), (0, 3, 7), (0, 0)):
        logits = torch.empty(shape, requires_grad=True)
        tokens = torch.empty(shape[:-1], dtype=torch.int64)
        found = token_logprobs(logits, tokens)
        assert [x.shape for x in found] == [shape[:-1]] * 2
        found.log_probs.sum().backward()
        assert logits.grad.shape == shape
        hidden, weight = torch.empty(*shape[:-1], 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
        found = linear_token_logprobs(hidden, weight, tokens)
        assert [x.shape for x in found] == [shape[:-1]] * 2
        found.log_probs.sum().backward()
        assert (weight.grad == 0).all()
    ignored = torch.full((3,), -100)
    assert (token_logprobs(torch.empty(3, 0), ignored).log_probs == 0).all()


def test_inputs_stay_as_they_are() -> None:
    logits, tokens, mask = normal(4, 5, 9), draws(4, 5, below=9), some(4, 5)
    before = [x.clone() for x in (logits, tokens, mask)]
    token_logprobs(logits, tokens, mask=mask)
    linear_token_logprobs(logits, normal(9, 9), tokens, mask=mask)
    for tensor, copy in zip((logits, tokens, mask), before, strict=True):
        assert torch.equal(tensor, copy)


# Errors.

X, TOKENS = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
H, W = torch.zeros(2, 3, 4), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: token_logprobs(X, TOKENS[0]), ValueError, r"tokens: expected the leading shape of logits \(2, 3\)"),
        (lambda: token_logprobs(X, TOKENS + 5), ValueError, r"tokens: .*got 5 at \(0, 0\)"),
        (lambda: token_logprobs(X, TOKENS - 1), ValueError, r"tokens: .*got -1"),
        (lambda: token_logprobs(X, TOKENS.float()), TypeError, "tokens: expected integers"),
        (lambda: token_logprobs(X, TOKENS, temperature=0.0), ValueError, "temperature: expected a number between"),
        (lambda: token_logprobs(X, TOKENS, temperature=1e-39), ValueError, "temperature: .*got 1e-39"),
        (lambda: linear_token_logprobs(H, W, TOKENS, temperature=1e39), ValueError, "temperature: .*got 1e\\+39"),
        (lambda: token_logprobs(X, TOKENS, temperature=NAN), ValueError, "temperature: .*got nan"),
        (lambda: token_logprobs(X, TOKENS, temperature="1"), TypeError, "temperature: expected a number"),
        (lambda: token_logprobs(X, TOKENS, mask=X), ValueError, "mask: expected the shape of tokens"),
        (lambda: token_logprobs(X, TOKENS, mask=TOKENS * 1j), TypeError, "mask: expected bool"),
        (lambda: token_logprobs(X, TOKENS, entropy=1), TypeError, "entropy: expected a bool"),
        (lambda: token_logprobs(X, TOKENS, ignore_index=0.5), TypeError, "ignore_index: expected an int"),
        (lambda: token_logprobs(X, TOKENS, ignore_index=2**63), ValueError, "ignore_index: expected"),
        (lambda: token_logprobs(X, TOKENS, first_token=0), ValueError, "first_token: .* with process_group"),
        (lambda: token_logprobs(X, TOKENS, process_group="tp"), TypeError, "process_group: expected"),
        (lambda: token_logprobs(torch.tensor(1.0), TOKENS), ValueError, r"logits: expected shape \(\.\.\., V\)"),
        (lambda: token_logprobs(X * 1j, TOKENS), TypeError, "logits: expected real numbers"),
        (lambda: token_logprobs(X.to(torch.float8_e5m2), TOKENS), TypeError, "logits: expected float32"),
        (lambda: token_logprobs(X.to("meta"), TOKENS), ValueError, "tokens: expected the device of logits"),
        (lambda: token_logprobs(X[..., :0], TOKENS), ValueError, "tokens: "),
        (lambda: linear_token_logprobs(H, W.t(), TOKENS), ValueError, "hidden, weight: expected shapes"),
        (lambda: linear_token_logprobs(H, W.double(), TOKENS), TypeError, "weight: expected the dtype of hidden"),
        (lambda: linear_token_logprobs(H, W, TOKENS + 5), ValueError, "tokens: expected 0 <= token < 5 .*got 5"),
        (lambda: linear_token_logprobs(H, W, TOKENS, bias=H), ValueError, r"bias: expected shape \(5,\)"),
        (lambda: linear_token_logprobs(H, W, TOKENS, max_memory=0), ValueError, "max_memory: expected an int > 0"),
        (lambda: linear_token_logprobs(H, W, TOKENS[0]), ValueError, "tokens: expected the leading shape of hidden"),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Gradients.


def test_gradients_by_finite_differences() -> None:
    tokens, mask = draws(2, 3, below=6), torch.tensor([[1, 1, 0], [1, 1, 1]])
    logits = normal(6, 3, 2).permute(2, 1, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(token_logprobs(x, tokens, temperature=0.7, mask=mask)), logits)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, tokens, entropy=False).log_probs, logits)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, tokens).entropies, logits)
    hidden, weight, bias = (normal(*shape).requires_grad_() for shape in ((2, 3, 4), (6, 4), (6,)))

    def linear(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        # Two rows at a time
        return tuple(linear_token_logprobs(h, w, tokens, bias=b, temperature=0.7, mask=mask, max_memory=2 * 2 * 6 * 8))

    assert torch.autograd.gradcheck(linear, (hidden, weight, bias))


def by_autograd(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(-1, tokens[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("used", ["both", "log_probs", "entropies"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_log_softmax(dtype: torch.dtype, used: str) -> None:
    logits = normal(3, 6, 50, dtype=dtype).requires_grad_()
    tokens, weights = draws(3, 5, below=50), [normal(3, 5, seed=i) for i in (1, 2)]
    wide = logits.detach().double().requires_grad_()
    found = token_logprobs(logits[:, :-1], tokens, temperature=0.8)
    exact = by_autograd(wide[:, :-1], tokens, 0.8)
    picked = {"both": (0, 1), "log_probs": (0,), "entropies": (1,)}[used]
    (grad,) = torch.autograd.grad(sum((found[i] * weights[i]).sum() for i in picked), logits)
    (want,) = torch.autograd.grad(sum((exact[i] * weights[i]).sum() for i in picked), wide)
    assert grad.dtype == dtype
    close(grad, want, {F64: 1e-12, F32: 2e-6}.get(dtype, torch.finfo(dtype).eps))
    (of_reference, *_) = (
        reference.gradient(
            wide.detach()[:, :-1].reshape(-1, 50).numpy(),
            tokens.reshape(-1).numpy(),
            *(weights[i].reshape(-1).numpy() * (i in picked) for i in (0, 1)),
            0.8,
        ),
    )
    close(want[:, :-1].reshape(-1, 50), of_reference, 1e-12)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_an_offset_of_all_logits_changes_no_gradient(dtype: torch.dtype) -> None:
    """log sum exp of 1000 in float32 would be off by up to 3e-5, and p by as much; 10**6 by 0.03."""
    for offset in (1e3, -1e3, 1e6):
        logits, tokens = (normal(8, 500) + offset).to(dtype), draws(8, below=500)
        inputs = [logits.requires_grad_(), logits.detach().double().requires_grad_()]
        results = [token_logprobs(inputs[0], tokens, temperature=0.7), by_autograd(inputs[1], tokens, 0.7)]
        (got,), (want,) = (
            torch.autograd.grad((log_probs + entropies).sum(), x)
            for x, (log_probs, entropies) in zip(inputs, results, strict=True)
        )
        close(got, want, 2**-8 if dtype == BF16 else 2e-6)
        relative = (got.double() - want).norm() / want.norm()
        assert relative < (2**-8 if dtype == BF16 else 3e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_extreme_temperatures(dtype: torch.dtype, temperature: float) -> None:
    logits, tokens = normal(5, 40, dtype=dtype), draws(5, below=40)
    logits[:, ::3] = -INF
    tokens[0], tokens[1] = 1, logits[1].argmax()
    logits.requires_grad_()
    found = token_logprobs(logits, tokens, temperature=temperature)
    for got, want in zip(found, expected_of(logits.detach(), tokens, temperature), strict=True):
        close(got.detach(), want)
    (grad,) = torch.autograd.grad(found.log_probs.sum() + found.entropies.sum(), logits)
    assert grad.isfinite().all()


def test_gradients_where_logits_are_infinite_or_nan() -> None:
    logits, tokens = normal(4, 12), draws(4, below=12)
    logits[0, ::2], logits[1, 5], logits[2, tokens[2]] = -INF, NAN, -INF
    tokens[0] = 1
    logits.requires_grad_()
    found = token_logprobs(logits, tokens)
    (grad,) = torch.autograd.grad(found.log_probs[[0, 1, 3]].sum() + found.entropies.sum(), logits)
    assert grad[1].isnan().all()
    assert grad[[0, 2, 3]].isfinite().all()
    assert (grad[0, ::2] == 0).all()


def test_the_second_derivative_raises() -> None:
    logits, tokens = normal(2, 3, 5).requires_grad_(), draws(2, 3, below=5)
    hidden, weight = normal(2, 3, 4).requires_grad_(), normal(5, 4).requires_grad_()
    for results, inputs in (
        (token_logprobs(logits, tokens), (logits,)),
        (linear_token_logprobs(hidden, weight, tokens), (hidden, weight)),
    ):
        for result in results:
            grads = torch.autograd.grad(result.sum(), inputs, create_graph=True)
            with pytest.raises(RuntimeError, match="differentiable once"):
                sum(grad.sum() for grad in grads).backward()
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: token_logprobs(x, tokens).entropies.sum())(logits.detach())


def test_what_needs_no_gradient_gets_none() -> None:
    hidden, weight, tokens = normal(3, 4), normal(5, 4).requires_grad_(), draws(3, below=5)
    linear_token_logprobs(hidden, weight, tokens).log_probs.sum().backward()
    assert hidden.grad is None
    assert weight.grad is not None
    assert not token_logprobs(hidden, tokens.clamp(max=3)).log_probs.requires_grad


# From hidden states.


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_hidden_states_give_what_their_logits_give(rows: int, masked: bool) -> None:
    shapes = ((3, 4, 6), (17, 6), (17,))
    hidden, weight, bias = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))
    tokens, mask = draws(3, 4, below=17), some(3, 4) if masked else torch.ones(3, 4, dtype=torch.bool)
    g, h = normal(3, 4, seed=7), normal(3, 4, seed=8)
    options: dict[str, Any] = {"bias": bias, "temperature": 0.8, "max_memory": rows * 2 * 17 * 8}
    found = linear_token_logprobs(hidden, weight, tokens, mask=mask if masked else None, **options)
    exact = by_autograd(hidden @ weight.t() + bias, tokens, 0.8)
    exact = tuple(torch.where(mask, x, 0.0) for x in exact)
    for got, want in zip(found, exact, strict=True):
        close(got, want.detach(), 1e-12)
    inputs = (hidden, weight, bias)
    grads = torch.autograd.grad((found[0] * g).sum() + (found[1] * h).sum(), inputs)
    wanted = torch.autograd.grad((exact[0] * g).sum() + (exact[1] * h).sum(), inputs)
    for got, want in zip(grads, wanted, strict=True):
        close(got, want, 1e-12)


def test_nothing_inside_the_mask() -> None:
    hidden, weight = normal(3, 4).requires_grad_(), normal(5, 4).requires_grad_()
    found = linear_token_logprobs(hidden, weight, draws(3, below=5), mask=torch.zeros(3))
    assert all((x == 0).all() for x in found)
    (found.log_probs.sum() + found.entropies.sum()).backward()
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("ignored", ["mask", "ignore_index"])
def test_hidden_states_outside_the_mask_reach_nothing(ignored: str) -> None:
    hidden, weight, read, tokens = normal(6, 4), normal(5, 4).requires_grad_(), some(6, share=0.5), draws(6, below=5)
    hidden[~read] = NAN
    mask = read if ignored == "mask" else None
    tokens = tokens if ignored == "mask" else tokens.masked_fill(~read, -100)
    found = linear_token_logprobs(hidden.requires_grad_(), weight, tokens, mask=mask)
    (found.log_probs.sum() + found.entropies.sum()).backward()
    assert weight.grad.isfinite().all()
    assert (hidden.grad[~read] == 0).all()
    assert (found.log_probs[~read] == 0).all()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_gradients_of_weights_add_up_in_float32(dtype: torch.dtype) -> None:
    """2048 equal rows, one at a time: a sum in bfloat16 would stand still at 256 of them."""
    hidden = torch.ones(2048, 2, dtype=dtype)
    weight, bias = torch.zeros(3, 2, dtype=dtype, requires_grad=True), torch.zeros(3, dtype=dtype, requires_grad=True)
    tokens = torch.zeros(2048, dtype=torch.int64)
    linear_token_logprobs(hidden, weight, tokens, bias=bias, max_memory=1).log_probs.sum().backward()
    exact = torch.tensor([2 / 3, -1 / 3, -1 / 3], dtype=F64) * 2048
    torch.testing.assert_close(weight.grad.double(), exact[:, None].expand(3, 2), rtol=2**-7, atol=0)
    torch.testing.assert_close(bias.grad.double(), exact, rtol=2**-7, atol=0)


def test_under_autocast_the_head_has_its_dtype_forward_and_backward() -> None:
    hidden, weight = normal(8, 6, dtype=F32).requires_grad_(), normal(11, 6, dtype=F32).requires_grad_()
    tokens = draws(8, below=11)
    with torch.autocast("cpu", BF16):
        found = linear_token_logprobs(hidden, weight, tokens)
    exact = linear_token_logprobs(hidden.bfloat16(), weight.bfloat16(), tokens)
    assert torch.equal(found.log_probs, exact.log_probs)
    for got, want in zip(
        torch.autograd.grad(found.entropies.sum(), (hidden, weight)),
        torch.autograd.grad(exact.entropies.sum(), (hidden, weight)),
        strict=True,
    ):
        assert got.dtype == F32
        assert torch.equal(got, want)


def test_a_backward_pass_under_autocast_has_the_dtypes_of_the_forward_pass() -> None:
    hidden, weight = normal(8, 6, dtype=F32).requires_grad_(), normal(11, 6, dtype=F32).requires_grad_()
    loss = linear_token_logprobs(hidden, weight, draws(8, below=11)).log_probs.sum()
    expected = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    with torch.autocast("cpu", BF16):
        found = torch.autograd.grad(loss, (hidden, weight))
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


# Memory.


class Allocations(TorchDispatchMode):
    """Elements of every tensor that an operation makes, other than views of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)}
        for x in torch.utils._pytree.tree_leaves(results):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.elements.append(x.numel())
        return results


@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x[:, :-1], lambda x: x.transpose(0, 1), lambda x: x[None, :, :-1], lambda x: x[0]]
)
def test_logits_are_not_copied(view: Any) -> None:
    logits = normal(6, 5, 300, dtype=BF16).requires_grad_()
    tokens = draws(*view(logits).shape[:-1], below=300)
    own = view(logits)
    with Allocations() as made:
        found = token_logprobs(own, tokens, temperature=0.7, mask=some(*tokens.shape))
    assert max(made.elements) <= tokens.numel()
    loss = found.log_probs.sum() + found.entropies.sum()
    with Allocations() as made:
        loss.backward(inputs=[own] if own.is_leaf else [logits])
    own_size = [n for n in made.elements if n > tokens.numel()]
    assert own_size[0] == own.numel()  # the gradient
    assert all(n == logits.numel() for n in own_size[1:])  # what views make of it


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_no_logits_of_all_rows_are_ever_held(dtype: torch.dtype) -> None:
    rows, size, width, most = 64, 500, 8, 4
    hidden, weight = (
        normal(rows, width, dtype=dtype).requires_grad_(),
        normal(size, width, dtype=dtype).requires_grad_(),
    )
    with Allocations() as made:
        found = linear_token_logprobs(
            hidden, weight, draws(rows, below=size), max_memory=most * 2 * size * dtype.itemsize
        )
        (found.log_probs.sum() + found.entropies.sum()).backward()
    assert max(made.elements) <= max(most * size, size * width)
    assert made.elements.count(most * size) >= rows // most


def most_memory(call: Any) -> int:
    """MiB by which this process grows at most."""
    Path("/proc/self/clear_refs").write_text("5")

    def of(field: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) // 1024

    before = of("VmRSS")
    call()
    return of("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak of resident memory")
def test_the_process_grows_by_chunks_and_not_by_all_logits() -> None:
    """Were each chunk's logits freed, small results would break up the heap: it would grow by 125 MiB."""
    hidden, weight, tokens = normal(1024, 8, dtype=F32), normal(32000, 8, dtype=F32), draws(1024, below=32000)
    linear_token_logprobs(hidden[:8], weight, tokens[:8])
    assert most_memory(lambda: linear_token_logprobs(hidden, weight, tokens, max_memory=2**24)) <= 24


# Compiled.


def test_compiles_without_a_break() -> None:
    tokens, mask = draws(2, 3, below=7), some(2, 3)
    logits, hidden, weight, bias = normal(2, 4, 7), normal(2, 3, 5), normal(7, 5), normal(7)

    def loss(x: Tensor, h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        one = token_logprobs(x[:, :-1], tokens, temperature=0.7, mask=mask)
        two = linear_token_logprobs(h, w, tokens, bias=b, mask=mask, max_memory=2 * 2 * 7 * 8)
        alone = token_logprobs(x[:, 1:], tokens, entropy=False).log_probs
        alone = alone * linear_token_logprobs(h, w, tokens, entropy=False).log_probs
        return sum(y.sum() * (i + 1) for i, y in enumerate([*one, *two, alone]))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in (logits, hidden, weight, bias)]
    close(compiled(*inputs).detach(), loss(*inputs).detach(), 1e-12)
    for got, want in zip(
        torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(loss(*inputs), inputs), strict=True
    ):
        close(got, want, 1e-12)


# Properties.

ROWS = st.lists(st.floats(-30, 30), min_size=1, max_size=20).map(lambda row: torch.tensor(row, dtype=F64))


@given(ROWS, st.floats(-1e3, 1e3), st.data())
def test_shifting_logits_changes_nothing(row: Tensor, shift: float, data: Any) -> None:
    token = torch.tensor(data.draw(st.integers(0, len(row) - 1)))
    for got, want in zip(token_logprobs(row + shift, token), token_logprobs(row, token), strict=True):
        close(got, want, 1e-11)


@given(ROWS)
def test_probabilities_sum_to_one_and_entropy_is_between_zero_and_log_v(row: Tensor) -> None:
    size = len(row)
    log_probs, entropies = token_logprobs(row.expand(size, size), torch.arange(size))
    close(log_probs.exp().sum(), 1.0, 1e-12)
    close(entropies, (-(log_probs.exp() * log_probs).sum()).expand(size), 1e-12)
    assert -1e-12 <= entropies[0] <= math.log(size) + 1e-12


@given(ROWS, st.floats(0.1, 10), st.data())
def test_temperature_divides_the_logits(row: Tensor, temperature: float, data: Any) -> None:
    token = torch.tensor(data.draw(st.integers(0, len(row) - 1)))
    found = token_logprobs(row, token, temperature=temperature)
    for got, want in zip(found, token_logprobs(row / temperature, token), strict=True):
        close(got, want, 1e-10)
    hotter = token_logprobs(row, token, temperature=temperature * 1.5).entropies
    assert hotter >= found.entropies - 1e-12


@given(ROWS, st.randoms(use_true_random=False), st.data())
def test_the_order_of_the_vocabulary_changes_nothing(row: Tensor, random: Any, data: Any) -> None:
    order = list(range(len(row)))
    random.shuffle(order)
    place = data.draw(st.integers(0, len(row) - 1))
    for got, want in zip(
        token_logprobs(row[order], torch.tensor(place)), token_logprobs(row, torch.tensor(order[place])), strict=True
    ):
        close(got, want, 1e-11)


def test_threads_change_nothing() -> None:
    threads = torch.get_num_threads()
    try:
        for shape in ((64, 700), (1, 9000)):
            logits, tokens = normal(*shape, dtype=F32), draws(shape[0], below=shape[1])
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(token_logprobs(logits, tokens))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


# The vocabulary divided among ranks.

CUTS = {2: [0, 5, 24], 4: [0, 1, 12, 18, 24]}
V = 24


def of_slice(logits: Tensor, tokens: Tensor, g: Tensor, h: Tensor, **options: Any) -> list[Tensor]:
    """Results of all ranks, and the gradient of this one's logits."""
    logits = logits.clone().requires_grad_()
    found = token_logprobs(logits, tokens, process_group=dist.group.WORLD, **options)
    (found.log_probs * g + found.entropies * h).sum().backward()
    return [*(x.detach() for x in found), logits.grad]


def of_head(
    hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, g: Tensor, h: Tensor, **options: Any
) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    found = linear_token_logprobs(
        inputs[0], inputs[1], tokens, bias=inputs[2], process_group=dist.group.WORLD, max_memory=500, **options
    )
    (found.log_probs * g + found.entropies * h).sum().backward()
    return [*(x.detach() for x in found), *(x.grad for x in inputs)]


def call(function: Any, arguments: tuple, options: dict[str, Any]) -> Any:
    return function(*arguments, **options)


def slices(ranks: Ranks) -> list[slice]:
    cuts = CUTS[len(ranks.pipes)]
    return [slice(start, end) for start, end in pairwise(cuts)]


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows that are masked or ignored, NaN, infinite, or -inf in a whole slice or everywhere."""
    logits, tokens, mask = normal(V, 3, 8, dtype=dtype).permute(1, 2, 0), draws(3, 8, below=V), some(3, 8, share=0.8)
    mask[0] = True
    logits[0, 0, 3], logits[0, 1, 20], logits[0, 2], logits[0, 3, 5:] = NAN, INF, -INF, -INF
    logits[0, 4, :13], tokens[0, 3], tokens[0, 4], tokens[1, 0] = -INF, 2, 4, -100
    logits[0, 5, tokens[0, 5]] = -INF
    return logits, tokens, mask, normal(3, 8, seed=1), normal(3, 8, seed=2)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_slices_give_what_the_whole_vocabulary_gives(ranks: Ranks, dtype: torch.dtype) -> None:
    logits, tokens, mask, g, h = problem(dtype)
    own = logits.clone().requires_grad_()
    whole = token_logprobs(own, tokens, temperature=0.7, mask=mask)
    (whole.log_probs * g + whole.entropies * h).sum().backward()
    options = {"temperature": 0.7, "mask": mask}
    answers = ranks.run(
        call,
        [
            (of_slice, (logits[..., part], tokens, g, h), {**options, "first_token": part.start})
            for part in slices(ranks)
        ],
    )
    assert whole.log_probs[0, :3].isnan().all()
    tolerance = 1e-11 if dtype == F64 else 4e-6
    for (log_probs, entropies, grad), part in zip(answers, slices(ranks), strict=True):
        assert log_probs.dtype == whole.log_probs.dtype
        close(log_probs, whole.log_probs.detach(), tolerance)
        close(entropies, whole.entropies.detach(), tolerance)
        for got, first in zip((log_probs, entropies), answers[0], strict=False):
            assert torch.equal(got.nan_to_num(7), first.nan_to_num(7))
        close(grad[0, 3:], own.grad[0, 3:, part], max(tolerance, 2**-8 if dtype == BF16 else 0))
        close(grad[1:], own.grad[1:, :, part], max(tolerance, 2**-8 if dtype == BF16 else 0))


def test_slices_of_far_off_logits_are_as_precise_as_their_whole(ranks: Ranks) -> None:
    logits, tokens, g, h = (normal(8, V) + 1000).float(), draws(8, below=V), normal(8, seed=1), normal(8, seed=2)
    wide = logits.double().requires_grad_()
    exact = by_autograd(wide, tokens)
    (exact[0] * g + exact[1] * h).sum().backward()
    answers = ranks.run(
        call, [(of_slice, (logits[:, part], tokens, g, h), {"first_token": part.start}) for part in slices(ranks)]
    )
    for (log_probs, entropies, grad), part in zip(answers, slices(ranks), strict=True):
        close(log_probs, exact[0].detach(), 1e-6)
        close(entropies, exact[1].detach(), 1e-6)
        close(grad, wide.grad[:, part], 2e-6)


def test_equal_slices_need_no_offset(ranks: Ranks) -> None:
    logits, tokens = normal(6, V), draws(6, below=V)
    world = len(ranks.pipes)
    zero = torch.zeros(6, dtype=F64)
    answers = ranks.run(call, [(of_slice, (part, tokens, zero, zero), {}) for part in logits.chunk(world, -1)])
    for log_probs, entropies, _ in answers:
        for got, want in zip((log_probs, entropies), token_logprobs(logits, tokens), strict=True):
            close(got, want, 1e-12)


@pytest.mark.parametrize("reduces", [True, False])
def test_a_head_divided_among_ranks(ranks: Ranks, reduces: bool) -> None:
    shapes = ((3, 4, 6), (V, 6), (V,))
    hidden, weight, bias = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))
    tokens, mask, g, h = draws(3, 4, below=V), some(3, 4), normal(3, 4, seed=7), normal(3, 4, seed=8)
    whole = linear_token_logprobs(hidden, weight, tokens, bias=bias, mask=mask)
    (whole.log_probs * g + whole.entropies * h).sum().backward()
    answers = ranks.run(
        call,
        [
            (
                of_head,
                (hidden.detach(), weight.detach()[part], bias.detach()[part], tokens, g, h),
                {"mask": mask, "first_token": part.start, "reduce_hidden_gradient": reduces},
            )
            for part in slices(ranks)
        ],
    )
    for (log_probs, entropies, _, of_weight, of_bias), part in zip(answers, slices(ranks), strict=True):
        close(log_probs, whole.log_probs.detach(), 1e-12)
        close(entropies, whole.entropies.detach(), 1e-12)
        close(of_weight, weight.grad[part], 1e-12)
        close(of_bias, bias.grad[part], 1e-12)
    of_hidden = [answer[2] for answer in answers]
    for grad in of_hidden if reduces else [sum(of_hidden)]:
        close(grad, hidden.grad, 1e-12)


def test_slices_that_are_not_equal_need_offsets(ranks: Ranks) -> None:
    """Offsets of 5 and 7 logits would be 0 and 7: each token would be in one slice, and of another token."""
    logits, tokens, zero = normal(2, 12), torch.tensor([1, 8]), torch.zeros(2, dtype=F64)
    world = len(ranks.pipes)
    calls = [(of_slice, (logits[:, : 5 if rank == 0 else 7], tokens, zero, zero), {}) for rank in range(world)]
    for error in ranks.run_to_errors(call, calls):
        assert isinstance(error, ValueError)
        assert "first_token: expected on every rank" in str(error)
        assert "slices of 5 to 7" in str(error)


def test_a_token_in_no_slice_or_in_two_raises_on_every_rank(ranks: Ranks) -> None:
    logits, zero = normal(2, 6), torch.zeros(2, dtype=F64)
    world = len(ranks.pipes)
    for tokens, options in (
        (torch.tensor([0, 6 * world]), {}),
        (torch.tensor([3, 0]), {"first_token": 0}),
        (torch.tensor([0, -5]), {}),
    ):
        for error in ranks.run_to_errors(call, [(of_slice, (logits, tokens, zero, zero), options)] * world):
            assert isinstance(error, ValueError)
            assert "tokens: expected each in exactly one rank's slice" in str(error)
