"""Triton log-probabilities and entropies against their formulas in float64; run by test_interpreter.py."""

import math
from typing import Any

import pytest
import torch
from morlfast._triton import logprobs as kernels
from torch import Tensor

F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf
DTYPES = [F32, F64, torch.bfloat16, torch.float16]
TOLERANCE = {F64: 1e-12}


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of several loads, several of them a row."""
    for name, value in {"LOADS": 2, "LANES": 16, "TILE": 64, "FEW_ROWS": 0}.items():
        monkeypatch.setattr(kernels, name, value)


@pytest.fixture(params=[False, True], ids=["whole rows", "rows in parts"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FEW_ROWS": 12 if request.param else 0, "SPLITS": 4, "PROGRAMS": 12}.items():
        monkeypatch.setattr(kernels, name, value)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)).to(dtype)


def some_tokens(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def same(result: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def plain(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    x = logits.double() / temperature
    log_p = x.log_softmax(-1)
    read = tokens != ignore_index
    log_probs = log_p.gather(-1, torch.where(read, tokens, 0)[..., None])[..., 0]
    entropies = -torch.where(log_p == -INF, 0.0, log_p.exp() * log_p).sum(-1)
    return tuple(torch.where(read, y, 0.0) for y in (log_probs, entropies, x.logsumexp(-1)))  # type: ignore[return-value]


def check(logits: Tensor, tokens: Tensor, **options: Any) -> None:
    tolerance = TOLERANCE.get(logits.dtype, 2e-6)
    expected = plain(logits, tokens, **options)
    found = kernels.token_logprobs(logits, tokens, **options)
    dtype = F64 if logits.dtype == F64 else F32
    for result, exact, own in zip(found, expected, (dtype, dtype, F64), strict=True):
        assert result.dtype == own
        same(result, exact, tolerance)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_and_every_alignment(dtype: torch.dtype) -> None:
    for size, start in ((1, 0), (5, 3), (31, 0), (257, 3), (600, 1)):
        logits = normal(2, size + 3, dtype=dtype)[None, :, start : start + size]
        check(logits, some_tokens(1, 2, below=size))


def test_without_entropy() -> None:
    logits, tokens = normal(2, 2, 300), some_tokens(2, 2, below=300)
    log_probs, none, log_sums = kernels.token_logprobs(logits, tokens, entropy=False)
    expected = plain(logits, tokens)
    assert none.shape == (0,)
    same(log_probs, expected[0])
    same(log_sums, expected[2])


def test_inputs_of_any_strides_and_temperatures() -> None:
    check(normal(2, 3, 77)[:, :-1], some_tokens(2, 3, below=77)[:, 1:], temperature=0.3)
    check(normal(2, 2, 77).transpose(0, 1), some_tokens(2, 2, below=77).t(), temperature=2.5)
    check(normal(77, 2, 2).permute(2, 1, 0), some_tokens(2, 2, below=77))
    check(normal(1, 2, 150)[..., ::2].expand(2, 2, 75), some_tokens(2, 1, below=75).expand(2, 2), temperature=0.7)


def test_ignored_rows_are_zero_and_not_read() -> None:
    logits, tokens = normal(2, 6, 90), some_tokens(2, 6, below=90)
    tokens[0, 1] = tokens[1] = -7
    logits[0, 1] = NAN
    spoiled = logits.clone()
    for result, exact in zip(
        kernels.token_logprobs(spoiled, tokens, ignore_index=-7),
        plain(logits.nan_to_num(), tokens, ignore_index=-7),
        strict=True,
    ):
        same(result, exact)


def odd_rows() -> tuple[Tensor, Tensor]:
    logits, tokens = normal(1, 9, 300), some_tokens(1, 9, below=300)
    logits[0, 0, 17] = NAN
    logits[0, 1, 290] = INF
    logits[0, 2, ::2] = -INF
    logits[0, 3] = -INF
    logits[0, 4] = -INF
    logits[0, 4, 211] = 3.0
    tokens[0, 4] = 211
    logits[0, 5, tokens[0, 5]] = -INF
    logits[0, 6, :250] = -INF
    logits[0, 7] = torch.finfo(F32).min
    logits[0, 8] *= 1e4
    return logits, tokens


@pytest.mark.usefixtures("cut")
def test_infinities_and_nan() -> None:
    logits, tokens = odd_rows()
    log_probs, entropies, _ = kernels.token_logprobs(logits, tokens)
    exact = plain(logits, tokens)
    assert exact[0][0, [0, 1, 3]].isnan().all()
    same(log_probs, exact[0])
    same(entropies, exact[1], 1e-5)


@pytest.mark.usefixtures("cut")
def test_a_slice_of_the_vocabulary() -> None:
    logits, tokens = normal(2, 5, 120), some_tokens(2, 5, below=120)
    part = logits[..., 30:100]
    log_probs, entropies, log_sums = kernels.token_logprobs(part, tokens, first_token=30, partial=True)
    inside = (tokens >= 30) & (tokens < 100)
    expected = plain(part, torch.where(inside, tokens - 30, 0))
    same(log_probs, torch.where(inside, expected[0], -INF))
    same(entropies, expected[1])
    same(log_sums, expected[2])
    whole = kernels.token_logprobs(part, tokens, first_token=30)
    same(whole[0], torch.where(inside, expected[0], NAN))
    for nothing in (torch.full((2, 5, 70), -INF), torch.empty(2, 5, 0)):
        log_probs, entropies, log_sums = kernels.token_logprobs(nothing, tokens, first_token=30, partial=True)
        assert (log_probs == -INF).all()
        assert (log_sums == -INF).all()
        assert (entropies == 0).all()


@pytest.mark.parametrize(("dtype", "temperature"), [(dtype, 0.7) for dtype in DTYPES] + [(F32, 1.0)], ids=str)
def test_gradient(dtype: torch.dtype, temperature: float) -> None:
    for logits, tokens in [
        (normal(2, 3, 71, dtype=dtype)[:, :-1], some_tokens(2, 3, below=71)[:, :-1]),
        (normal(64, 2, 2, dtype=dtype).permute(2, 1, 0), some_tokens(2, 2, below=64).t()),
    ]:
        tokens = tokens.clone()
        tokens[0, 0] = -100
        exact = logits.double().requires_grad_()
        log_probs, entropies, _ = plain(exact, tokens, temperature)
        g, h = normal(*tokens.shape, seed=1), normal(*tokens.shape, seed=2)
        saved = kernels.token_logprobs(logits, tokens, temperature)
        pairs = [(g[:, :1].expand_as(g), h.t().contiguous().t())]
        for own_g, own_h in pairs + [(g, None), (None, h)] * (dtype == F32):
            found = kernels.token_logprobs_gradient(
                logits, tokens, saved[2], saved[1], own_g, own_h, temperature=temperature
            )
            total = sum((y * w.double()).sum() for y, w in ((log_probs, own_g), (entropies, own_h)) if w is not None)
            (expected,) = torch.autograd.grad(total, exact, retain_graph=True)
            assert found.dtype == dtype
            assert found.is_contiguous()
            assert (found[0, 0] == 0).all()
            close = {F64: 1e-10, F32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
            same(found, expected, close)
    without = kernels.token_logprobs_gradient(logits, tokens, saved[2], torch.empty(0), g, None, temperature)
    assert without.shape == logits.shape


def test_the_gradient_of_a_slice_is_a_slice_of_the_gradient() -> None:
    logits, tokens = normal(2, 5, 120), some_tokens(2, 5, below=120)
    g, h = normal(2, 5, seed=1), normal(2, 5, seed=2)
    _, entropies, log_sums = kernels.token_logprobs(logits, tokens)
    whole = kernels.token_logprobs_gradient(logits, tokens, log_sums, entropies, g, h)
    part = kernels.token_logprobs_gradient(logits[..., 30:100], tokens, log_sums, entropies, g, h, first_token=30)
    same(part, whole[..., 30:100].double(), 0)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_an_offset_of_all_logits_changes_no_gradient(dtype: torch.dtype) -> None:
    for offset in (1e3, -1e3, 1e6):
        logits, tokens = (normal(1, 3, 200).double() + offset).to(dtype), some_tokens(1, 3, below=200)
        exact = logits.double().requires_grad_()
        expected = plain(exact, tokens, 0.7)
        (want,) = torch.autograd.grad((expected[0] + expected[1]).sum(), exact)
        _, entropies, log_sums = kernels.token_logprobs(logits, tokens, 0.7)
        same(log_sums, expected[2].detach(), 1e-9)
        ones = torch.ones(1, 3)
        found = kernels.token_logprobs_gradient(logits, tokens, log_sums, entropies, ones, ones, 0.7)
        same(found, want, 1e-5 if dtype == F32 else 2**-8)


def test_the_gradient_where_logits_are_infinite_or_nan() -> None:
    logits, tokens = odd_rows()
    logits = logits[:, [0, 1, 2, 4, 5, 6]]
    tokens = tokens[:, [0, 1, 2, 4, 5, 6]]
    g, h = normal(1, 6, seed=1), normal(1, 6, seed=2)
    _, entropies, log_sums = kernels.token_logprobs(logits, tokens)
    found = kernels.token_logprobs_gradient(logits, tokens, log_sums, entropies, g, h)
    assert found[0, :2].isnan().all()
    log_p = logits[0, 2:].double().log_softmax(-1)
    p, own = log_p.exp(), torch.nn.functional.one_hot(tokens[0, 2:], 300)
    terms = torch.where(p > 0, p * (log_p + entropies[0, 2:, None].double()), 0.0)
    same(found[0, 2:], g[0, 2:, None] * (own - p) - h[0, 2:, None] * terms, 1e-5)


def test_empty_inputs() -> None:
    for shape in ((0, 4, 9), (3, 0, 9)):
        results = kernels.token_logprobs(torch.empty(shape), torch.empty(shape[:2], dtype=torch.int64))
        assert [x.shape for x in results] == [shape[:2]] * 3
        empty = torch.empty(shape[:2])
        grad = kernels.token_logprobs_gradient(torch.empty(shape), empty.long(), empty, empty, empty, empty)
        assert grad.shape == shape


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, tokens = normal(2, 3, 8), some_tokens(2, 3, below=8)
    with pytest.raises(ValueError, match=r"logits: expected shape \(B, T, V\)"):
        kernels.token_logprobs(logits[0], tokens)
    with pytest.raises(ValueError, match=r"tokens: expected shape \(2, 3\), got \(3, 2\)"):
        kernels.token_logprobs(logits, tokens.t())
    with pytest.raises(ValueError, match="tokens: expected int64"):
        kernels.token_logprobs(logits, tokens.int())
    with pytest.raises(ValueError, match="grad_entropies: expected shape"):
        kernels.token_logprobs_gradient(logits, tokens, normal(2, 3), normal(2, 3), None, normal(2, 4))
