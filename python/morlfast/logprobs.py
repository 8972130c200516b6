"""Log-probabilities of tokens and entropies of their distributions: from logits, and from hidden states."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_bool, as_floating, as_integer, as_integers, as_number, as_tensor, same_device
from morlfast._distributed import rank_and_world_size

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_READ = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class TokenLogprobs(NamedTuple):
    """log p(token) and the entropy in nats of the distribution it is from, each in the shape of the tokens."""

    log_probs: Tensor
    entropies: Tensor | None


def token_logprobs(
    logits: Any,
    tokens: Any,
    *,
    temperature: float = 1.0,
    entropy: bool = True,
    mask: Any = None,
    ignore_index: int = -100,
    process_group: ProcessGroup | None = None,
    first_token: int | None = None,
) -> TokenLogprobs:
    r"""Log-probability of each token and entropy over the whole vocabulary, in one pass over the logits.

    .. math::
        x = \mathrm{logits} / \tau, \qquad L = \log \sum_v e^{x_v}, \qquad
        \log p = x_{\mathrm{token}} - L, \qquad H = L - \sum_v e^{x_v - L} x_v

    Args:
        logits: (..., V); float32, float64, bfloat16 or float16 (integers become float32), any strides: up to three
            dimensions are read where they are, ``logits[:, :-1]`` and a ``transpose`` too; more are viewed as three,
            or copied where they cannot be.
        tokens: (...) integers in 0..V-1.
        temperature: :math:`\tau`, between 1e-30 and 1e30.
        entropy: whether to compute entropies; without them about half of the arithmetic is left.
        mask: (...) bool, integer or floating point; the logits of a token with 0 are not read, it gets 0 and they a
            gradient of 0.
        ignore_index: a token that is treated like one outside the mask.
        process_group: the ranks among whom the vocabulary is divided. ``logits`` are this rank's slice of it, tokens
            those of the whole vocabulary and, like the mask, the same on every rank.
        first_token: the first token of this rank's slice; rank times V by default, where all slices are equal. Slices
            that are not are an error on the CPU, and NaN on a GPU.

    Returns:
        TokenLogprobs(log_probs, entropies), (...) each, float64 for float64 logits, otherwise float32; entropies is
        None without ``entropy``. Differentiable once in logits (reverse mode, not under `torch.func`); the gradient
        has the logits' dtype and costs one more pass. With ``process_group`` every rank gets the same, by two
        all-reduces of a few numbers a token, and the gradient of its slice without communication.

    Logits of -inf have probability 0 and add nothing to the entropy. A NaN, +inf or nothing but -inf in a row makes its
    results NaN. Statistics of bfloat16 and float16 are those of the numbers widened to float32. Nothing of the size of
    the logits is allocated, except the gradient. O(N V).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came. A token outside the vocabulary
            raises on the CPU; a GPU, which must not wait, gives NaN.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> token_logprobs(logits, torch.tensor([0, 2]))
    TokenLogprobs(log_probs=tensor([-0.4076, -1.0986]), entropies=tensor([0.8324, 1.0986]))
    """
    logits = _floating(logits, "logits")
    if logits.dim() == 0:
        raise ValueError("logits: expected shape (..., V), got ()")
    tokens, ignore_index = _tokens(tokens, mask, ignore_index, "logits", logits, logits.shape[:-1])
    vocabulary = _vocabulary(process_group, first_token, logits.shape[-1])
    temperature, entropy = _temperature(temperature), as_bool(entropy, "entropy")
    rows = logits.flatten(0, -3) if logits.dim() > 3 else logits[(None,) * (3 - logits.dim())]
    log_probs, entropies = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        rows, tokens.reshape(rows.shape[:2]), temperature, entropy, ignore_index, vocabulary
    )
    return TokenLogprobs(log_probs.reshape(tokens.shape), entropies.reshape(tokens.shape) if entropy else None)


def linear_token_logprobs(
    hidden: Any,
    weight: Any,
    tokens: Any,
    *,
    bias: Any = None,
    temperature: float = 1.0,
    entropy: bool = True,
    mask: Any = None,
    ignore_index: int = -100,
    max_memory: int = 2**28,
    process_group: ProcessGroup | None = None,
    first_token: int | None = None,
    reduce_hidden_gradient: bool = True,
) -> TokenLogprobs:
    r"""`token_logprobs` of ``hidden @ weight.T + bias``, without ever holding these logits: some rows at a time.

    .. math:: \mathrm{logits} = h W^\top + b

    Args:
        hidden: (..., D), the states that the language model's head is given; float32, float64, bfloat16 or float16.
        weight: (V, D) of the head, in the dtype of ``hidden``.
        tokens, temperature, entropy, ignore_index: as in `token_logprobs`.
        bias: (V,) of the head, in the dtype of ``hidden``.
        mask: (...) bool, integer or floating point; a token with 0 gets 0, and its hidden state is not multiplied. To
            that end, ``labels != -100`` of labels that have ignored ones.
        max_memory: bytes for logits and, in the backward pass, their gradient, of as many rows as fit, at least one.
            The weight's gradient and, for bfloat16 and float16, one chunk's part of it (V, D) are held besides.
        process_group, first_token: as in `token_logprobs`; weight and bias are this rank's slice of the vocabulary,
            hidden the same on every rank.
        reduce_hidden_gradient: whether to all-reduce the gradient of ``hidden``; False where what produced it does so
            already (Megatron's column-parallel layers), which then gets this rank's part.

    Returns:
        TokenLogprobs(log_probs, entropies), (...) each, as `token_logprobs`. Differentiable once in hidden, weight and
        bias: the backward pass computes the logits again. For bfloat16 and float16, logits, their gradient and each
        chunk's product for the weight's gradient are rounded to that dtype, as in the head itself (a logit of 59 by
        up to 0.125 in bfloat16); what is computed from the logits, and the sums over chunks, are float32.

    Under autocast, float32 becomes its dtype, as in the head itself. With a mask, the rows outside it or with
    ``ignore_index`` are dropped first, which waits for a GPU; without one, and under `torch.compile`, where their
    number would break the graph, they are multiplied and not read. O(N V D).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> hidden, weight = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 5.0], [1.0, 5.0], [0.0, 5.0]])
    >>> linear_token_logprobs(hidden, weight, torch.tensor([0, 2]))
    TokenLogprobs(log_probs=tensor([-0.4076, -1.0986]), entropies=tensor([0.8324, 1.0986]))
    """
    hidden, weight = _floating(hidden, "hidden"), _floating(weight, "weight")
    if hidden.dim() == 0 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"hidden, weight: expected shapes (..., D) and (V, D), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    bias = None if bias is None else _floating(bias, "bias")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    shape = hidden.shape[:-1]
    tokens, ignore_index = _tokens(tokens, mask, ignore_index, "hidden", hidden, shape)
    vocabulary = _vocabulary(process_group, first_token, weight.shape[0])
    temperature, entropy = _temperature(temperature), as_bool(entropy, "entropy")
    reduces = as_bool(reduce_hidden_gradient, "reduce_hidden_gradient")
    most = as_integer(max_memory, "max_memory")
    if most <= 0:
        raise ValueError(f"max_memory: expected an int > 0, got {max_memory}")

    hidden, weight, bias = _under_autocast(hidden, weight, bias)
    for name, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise TypeError(f"{name}: expected the dtype of hidden, {hidden.dtype}, got {tensor.dtype}")
        if tensor is not None:
            same_device("hidden", hidden, name, tensor)
    tokens, states = tokens.reshape(-1), hidden.flatten(0, -2) if hidden.dim() > 1 else hidden[None]
    traced = torch.compiler.is_compiling()
    if tokens.is_cpu and process_group is None and not traced:  # before anything is multiplied
        wrong = tokens[(tokens != ignore_index) & ((tokens < 0) | (tokens >= vocabulary.size))]
        if len(wrong) > 0:
            raise ValueError(f"tokens: expected 0 <= token < {vocabulary.size} or {ignore_index}, got {int(wrong[0])}")
    count, kept = tokens.shape[0], None
    if mask is not None and not traced and not tokens.is_meta:
        kept = (tokens != ignore_index).nonzero()[:, 0]
        tokens, states = tokens[kept], states[kept]
    log_probs, entropies = _LinearTokenLogprobs.apply(  # type: ignore[no-untyped-call]
        states, weight, bias, tokens, temperature, entropy, ignore_index, vocabulary, most, reduces
    )
    if kept is not None:
        log_probs = log_probs.new_zeros(count).index_copy(0, kept, log_probs)
        entropies = entropies.new_zeros(count).index_copy(0, kept, entropies) if entropy else None
    return TokenLogprobs(log_probs.reshape(shape), entropies.reshape(shape) if entropy else None)


# --- arguments ---


def _floating(values: Any, name: str) -> Tensor:
    tensor = as_floating(values, name)
    if tensor.dtype not in _READ:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")
    return tensor


def _tokens(
    values: Any, mask: Any, ignore_index: Any, like_name: str, like: Tensor, shape: torch.Size
) -> tuple[Tensor, int]:
    """int64 tokens, the ignored index wherever the mask is 0; and that index."""
    tokens = as_integers(values, "tokens", like_name, like).to(torch.int64)
    if tokens.shape != shape:
        raise ValueError(f"tokens: expected the leading shape of {like_name} {tuple(shape)}, got {tuple(tokens.shape)}")
    index = as_integer(ignore_index, "ignore_index")
    if mask is None:
        return tokens, index
    flags = mask if isinstance(mask, Tensor) else as_tensor(mask, "mask", device=like.device)
    if flags.dtype.is_complex:
        raise TypeError(f"mask: expected bool, integers or floating point, got {flags.dtype}")
    if flags.shape != shape:
        raise ValueError(f"mask: expected the shape of tokens {tuple(shape)}, got {tuple(flags.shape)}")
    same_device(like_name, like, "mask", flags)
    return torch.where(flags != 0, tokens, index), index


def _temperature(value: Any) -> float:
    temperature = as_number(value, "temperature")
    if not 1e-30 <= temperature <= 1e30:  # what logits are multiplied by is a normal float32
        raise ValueError(f"temperature: expected a number between 1e-30 and 1e30, got {value}")
    return temperature


class _Vocabulary(NamedTuple):
    """Tokens first..first + size - 1 are this rank's, or all are (no group)."""

    first: int
    size: int
    group: ProcessGroup | None
    derived: bool = False  # first, from the size and the rank


def _vocabulary(process_group: ProcessGroup | None, first_token: Any, size: int) -> _Vocabulary:
    if process_group is None:
        if first_token is not None:
            raise ValueError("first_token: expected only together with process_group")
        return _Vocabulary(0, size, None)
    rank, _ = rank_and_world_size(process_group)
    first = rank * size if first_token is None else as_integer(first_token, "first_token")
    if first < 0:
        raise ValueError(f"first_token: expected an int >= 0, got {first_token}")
    return _Vocabulary(first, size, process_group, first_token is None)


def _under_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Autocast is off in a backward pass, which has to compute the logits of the forward pass again."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x is not None and x.dtype == torch.float32 else x for x in tensors]


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A backward pass that is called under autocast has the dtypes of its forward pass all the same."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


# --- the vocabulary of all ranks ---


def _over_ranks(
    results: tuple[Tensor, Tensor, Tensor], tokens: Tensor, ignore_index: int, vocabulary: _Vocabulary
) -> tuple[Tensor, Tensor, Tensor]:
    """log p, H and L over all slices: with w_r = exp(L_r - L), L = log sum_r exp L_r and H = sum_r w_r (H_r + L - L_r).

    Differences are taken to the largest L_r, M, which cancels.
    """
    log_probs, entropies, log_sums = results
    # A maximum need not hand a NaN on; the sums below do.
    maxima = torch.where(log_sums.isnan(), -math.inf, log_sums).flatten()
    # Of sizes that offsets were derived from, the largest and the smallest.
    sizes = [float(x) if vocabulary.derived else -math.inf for x in (vocabulary.size, -vocabulary.size)]
    maxima = torch.cat([maxima, *(maxima.new_full((1,), x) for x in sizes)])
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=vocabulary.group)
    unequal = maxima[-2] + maxima[-1] > 0
    if tokens.is_cpu and unequal:
        raise ValueError(
            f"first_token: expected on every rank where the slices of the vocabulary are not equal, got None with "
            f"slices of {int(-maxima[-1])} to {int(maxima[-2])}"
        )
    largest = torch.where(unequal, math.nan, maxima[:-2].view(log_sums.shape))
    below = log_sums - largest
    weight = below.exp()
    inside = (tokens >= vocabulary.first) & (tokens < vocabulary.first + vocabulary.size)
    terms = [weight, inside.double(), torch.where(inside, log_probs.double() + below, 0.0)]
    if entropies.shape == tokens.shape:
        terms.append(torch.where(weight == 0, 0.0, weight * (entropies.double() - below)))
    table = torch.stack(terms)
    dist.all_reduce(table, group=vocabulary.group)

    total, owners, token, *weighted = table
    read = tokens != ignore_index
    wrong = read & (owners != 1)
    if tokens.is_cpu and wrong.any():
        raise ValueError(
            f"tokens: expected each in exactly one rank's slice of the vocabulary, got {int(tokens[wrong][0])} in "
            f"{int(owners[wrong][0])} of them; this rank's begins with first_token = {vocabulary.first}"
        )
    log_total = total.log()
    token = torch.where(wrong, math.nan, token - log_total)
    log_sums = largest + log_total
    found = [token, *(log_total + x / total for x in weighted)]
    token, *weighted = (torch.where(read, x, 0.0).to(log_probs.dtype) for x in found)
    return token, weighted[0] if weighted else entropies, torch.where(read, log_sums, 0.0)


# --- gradients ---


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        tokens: Tensor,
        temperature: float,
        entropy: bool,
        ignore_index: int,
        vocabulary: _Vocabulary,
    ) -> tuple[Tensor, Tensor]:
        partial = vocabulary.group is not None
        results = _ops.token_logprobs(logits, tokens, temperature, vocabulary.first, partial, entropy, ignore_index)
        if partial:
            results = _over_ranks(results, tokens, ignore_index, vocabulary)
        log_probs, entropies, log_sums = results
        ctx.save_for_backward(logits, tokens, log_sums, entropies)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.entropy = (temperature, vocabulary.first, ignore_index), entropy
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, of_log_probs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, tokens, log_sums, entropies = ctx.saved_tensors
        of_entropies = of_entropies if ctx.entropy else None  # torch.compile makes zeros of what is not there
        grad = None
        if of_log_probs is not None or of_entropies is not None:
            grad = _ops.token_logprobs_gradient(
                logits, tokens, log_sums, entropies, of_log_probs, of_entropies, *ctx.options
            )
            (grad,) = _once_differentiable([grad], logits, of_log_probs, of_entropies)
        return grad, *(None,) * 5


class _LinearTokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (K, D)
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,  # (K,)
        temperature: float,
        entropy: bool,
        ignore_index: int,
        vocabulary: _Vocabulary,
        max_memory: int,
        reduces: bool,
    ) -> tuple[Tensor, Tensor]:
        partial = vocabulary.group is not None
        rows = max(1, max_memory // max(1, 2 * vocabulary.size * hidden.element_size()))
        chunks = [slice(start, start + rows) for start in range(0, max(1, hidden.shape[0]), rows)]
        options = (temperature, vocabulary.first, partial, entropy, ignore_index)
        logits = _room(hidden, weight, rows)
        each = [
            _ops.token_logprobs(_logits(hidden[chunk], weight, bias, logits), tokens[None, chunk], *options)
            for chunk in chunks
        ]
        log_probs, entropies, log_sums = (
            torch.cat([x.flatten() for x in pieces]) for pieces in zip(*each, strict=True)
        )
        if partial:
            log_probs, entropies, log_sums = _over_ranks(
                (log_probs, entropies, log_sums), tokens, ignore_index, vocabulary
            )
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sums, entropies)
        ctx.set_materialize_grads(False)
        ctx.options, ctx.entropy = (temperature, vocabulary.first, ignore_index), entropy
        ctx.rows, ctx.chunks, ctx.group = rows, chunks, vocabulary.group if reduces else None
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, of_log_probs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        of_entropies = of_entropies if ctx.entropy else None
        if of_log_probs is None and of_entropies is None:
            return (None,) * 10
        hidden, weight, bias, tokens, log_sums, entropies = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        with torch.no_grad(), _without_autocast(hidden):  # create_graph=True would record it
            logits = _room(hidden, weight, ctx.rows)
            grad_hidden = torch.empty_like(hidden) if of_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=wide) if of_weight else None
            grad_bias = torch.zeros_like(bias, dtype=wide) if of_bias else None
            for chunk in ctx.chunks:
                one_a_row = [
                    x if x is None or x.shape != tokens.shape else x[None, chunk]
                    for x in (tokens, log_sums, entropies, of_log_probs, of_entropies)
                ]
                own = _logits(hidden[chunk], weight, bias, logits)
                grad = _ops.token_logprobs_gradient(own, *one_a_row, *ctx.options)[0]
                if grad_hidden is not None:
                    grad_hidden[chunk] = grad @ weight
                if grad_weight is not None:
                    # What is ignored has a gradient of 0, and 0 times NaN must be 0.
                    states = hidden[chunk].masked_fill((tokens[chunk] == ctx.options[2])[:, None], 0)
                    if wide == weight.dtype:
                        grad_weight.addmm_(grad.t(), states)
                    else:
                        grad_weight += grad.t() @ states
                if grad_bias is not None:
                    grad_bias += grad.sum(0, dtype=wide)
                del grad
            if grad_hidden is not None and ctx.group is not None:
                dist.all_reduce(grad_hidden, group=ctx.group)
            grads = [x if x is None else x.to(weight.dtype) for x in (grad_hidden, grad_weight, grad_bias)]
        return *_once_differentiable(grads, hidden, weight, bias, of_log_probs, of_entropies), *(None,) * 7


def _room(hidden: Tensor, weight: Tensor, rows: int) -> Tensor:
    """For the logits of one chunk after the other. Were each chunk's freed, the next one's small results would be put
    into that block of the C library's heap, where the next chunk then no longer fits: the heap would grow by a chunk
    each time."""
    return hidden.new_empty(min(rows, hidden.shape[0]), weight.shape[0])


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """(1, K, V) of (K, D), within `room`."""
    out = room[: hidden.shape[0]]
    if bias is None:
        torch.mm(hidden, weight.t(), out=out)
    else:
        torch.addmm(bias, hidden, weight.t(), out=out)
    return out[None]


def _once_differentiable(grads: list[Tensor | None], *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients tied to what they depend on, so that a second derivative fails instead of vanishing."""
    if not torch.is_grad_enabled():  # create_graph=True
        return grads
    return [x if x is None else _OnceDifferentiable.apply(x, *inputs) for x in grads]  # type: ignore[no-untyped-call]


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor | None) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("token_logprobs is differentiable once; its second derivative is not implemented")
