"""Log-probabilities and entropies from logits, and their gradient, against the trainers' formulas.

TRL's and verl's are written out: chunks of 128 and of 2048 rows of a `log_softmax` or `softmax`, and the token's
log-probability apart from them. On a GPU TRL's own kernel is a peer, where trl is installed. The memory that a call
adds is measured too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from morlfast import token_logprobs
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from bench.driver import Agreement, Case, Inputs, Operation, Peer, Shape, close

Formula = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Their sums lose four digits of float32 against large logits; in bfloat16 they have two or three at all.
SAME = {"float32": close(rtol=1e-5, atol=2e-4), "bfloat16": close(rtol=2e-2, atol=2e-2)}
SHAPES = ((256, 32000), (2048, 32000))
ON_GPU = ((1024, 151936), (8192, 151936))
TRL_CHUNK, VERL_CHUNK = 128, 2048
ROLLOUTS = 8


def own(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def trl(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """TRL 1.16 without its kernel: log_softmax in chunks for the entropy; log-probabilities rollout by rollout."""
    entropies = []
    for chunk in logits.split(TRL_CHUNK):
        log_p = log_softmax(chunk, dim=-1)
        entropies.append((log_p.exp() * log_p).sum(-1).neg())
    rollouts = list(zip(logits.chunk(ROLLOUTS), tokens.chunk(ROLLOUTS), strict=True))
    if logits.dtype == torch.float32:
        log_probs = [own(x, token) - torch.logsumexp(x, dim=-1) for x, token in rollouts]
    else:
        log_probs = [own(log_softmax(x, dim=-1), token) for x, token in rollouts]
    return torch.cat(log_probs), torch.cat(entropies)


def verl(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """verl 0.9 without flash attention: softmax and logsumexp in float32 chunks, a log_softmax for the tokens."""
    entropies = []
    for chunk in logits.split(VERL_CHUNK):
        x = chunk.float()
        entropies.append(torch.logsumexp(x, dim=-1) - (softmax(x, dim=-1) * x).sum(-1))
    return own(log_softmax(logits, dim=-1), tokens), torch.cat(entropies)


def trl_kernel() -> Formula:
    """TRL's Triton kernel, whose logits are (B, T, V)."""
    from trl.kernels import selective_log_softmax_and_entropy

    def both(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, entropies = selective_log_softmax_and_entropy(logits[None], tokens[None])
        return log_probs[0], entropies[0]

    return both


def plain(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    log_p = log_softmax(logits, dim=-1)
    return own(log_p, tokens), (log_p.exp() * log_p).sum(-1).neg()


def ours(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    log_probs, entropies = token_logprobs(logits, tokens)
    assert entropies is not None
    return log_probs, entropies


def stacked(formula: Formula) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, tokens: torch.stack([x.float() for x in formula(logits, tokens)])


def differentiated(formula: Formula) -> Callable[[Tensor, Tensor], Tensor]:
    """The gradient of the log-probabilities' and a bit of the entropies' sum, forward pass included."""

    def gradient(logits: Tensor, tokens: Tensor) -> Tensor:
        x = logits.detach().requires_grad_()
        log_probs, entropies = formula(x, tokens)
        loss = log_probs.float().sum() + 0.1 * entropies.float().sum()
        return torch.autograd.grad(loss, x)[0]

    return gradient


def _case(
    shape: Shape, kind: str, form: Callable[[Formula], Callable[[Tensor, Tensor], Tensor]], passes: int, gate: bool
) -> Case:
    n, v = shape
    dtype = DTYPES[kind]

    def setup(generator: torch.Generator) -> Inputs:
        logits = (3 * torch.randn(n, v, generator=generator)).to(dtype)
        return logits, torch.randint(v, (n,), generator=generator)

    def peer(name: str, formula: Formula, version: str, target: float | None = None) -> Peer:
        same: Agreement = SAME[kind]
        return Peer(name, same, lambda: form(formula), version=version, target=target if gate else None)

    return Case(
        setup=setup,
        ours=form(ours),
        dtype=kind,
        peers=(
            *((Peer("TRL Triton", SAME[kind], lambda: form(trl_kernel()), "trl"),) if shape in ON_GPU else ()),
            peer("TRL chunks", trl, "1.16 formula", 4.0 if dtype == torch.float32 else 1.0),
            peer("verl chunks", verl, "0.9 formula", 4.0 if dtype == torch.float32 else None),
            peer("torch", plain, torch.__version__),
        ),
        moved_bytes=passes * n * v * dtype.itemsize + n * (8 + 3 * 4),
        work=float(n * v),
        series=kind,
        memory=True,
    )


def forward(shape: Shape, kind: str) -> Case:
    return _case(shape, kind, stacked, passes=1, gate=shape == SHAPES[-1])


def backward(shape: Shape, kind: str) -> Case:
    return _case(shape, kind, differentiated, passes=3, gate=False)


OPERATIONS = (
    Operation(
        "token_logprobs",
        ("N", "V"),
        tuple(DTYPES),
        SHAPES,
        forward,
        cuda_variants=("bfloat16",),
        cuda_shapes=ON_GPU,
    ),
    Operation(
        "token_logprobs_backward",
        ("N", "V"),
        tuple(DTYPES),
        ((256, 32000), (1024, 32000)),
        backward,
        cuda_variants=("bfloat16",),
        cuda_shapes=ON_GPU[:1],
    ),
)
