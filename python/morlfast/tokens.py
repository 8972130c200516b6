"""Which tokens to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_integer, as_number, check_choice, same_device
from morlfast._groups import can_look
from morlfast._rollout_arguments import as_groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Scope = Literal["batch", "group", "sequence"]

_SCOPES = {"batch": 0, "group": 1, "sequence": 2}


def select_tokens(
    advantages: Tensor | None,
    entropies: Tensor | None,
    mask: Tensor,
    ratio: float,
    *,
    scope: Scope = "batch",
    group_size: int | None = None,
    group_ids: Any = None,
    offsets: Any = None,
    score: Tensor | None = None,
    at_least: int = 0,
    threshold: Literal["exact", "quantile"] = "exact",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    r"""Mask of the tokens with the largest :math:`|A_{it}| H_{it}`: D3S's second level of down-sampling.

    Of the v valid tokens of a scope, the :math:`\lceil ratio \cdot v \rceil` with the largest score are kept, exactly:
    no sort, no quantile, any number of tokens. Equal scores go to the lowest (row, column).

    Args:
        advantages: (N,) one a rollout, or (N, T) one a token; float32, float64, bfloat16 or float16.
        entropies: (N, T) entropy of the policy at each token, in nats or any other unit.
        mask: (N, T) bool, uint8, signed integer or floating point; non-zero where a token is valid.
        ratio: share of the valid tokens to keep, 0 <= ratio <= 1.
        scope: what one threshold covers: the whole ``"batch"``, the rows of one ``"group"``, or each ``"sequence"``.
        group_size, group_ids, offsets: as in `group_advantages`; one of them for ``scope="group"``, none otherwise.
        score: (N, T) in place of :math:`|A| H`, which may then be None; of any sign.
        at_least: so many tokens of each scope are kept where it has them, whatever the ratio.
        threshold: ``"exact"``, or ``"quantile"``: the mask of TRL's ``get_high_entropy_mask``, bit for bit. It keeps
            the scores that reach the interpolated (1 - ratio)-quantile of the valid ones, as `torch.quantile` has it;
            so one token more or fewer, more where scores are equal, and at least one.
        process_group: scopes are of all ranks' rows, in rank order: this rank's part of the mask that one rank would
            have for all of them. Histograms of the scores' digits are all-reduced, 6 to 18 times; scores are not moved.

    Returns:
        bool tensor (N, T) on the same device. Not differentiable.

    Scores are float32 (float64 when advantages or entropies are); bfloat16 and float16 are widened before the product.
    A NaN score is not valid: it neither counts nor is kept. The count is ``ceil(ratio * v * (1 - 2**-50))``, so that
    0.1 of 30 tokens is 3 although 0.1 is a little more than a tenth in binary. O(N T): on the CPU one pass over the
    inputs as a rule, four at most.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: D3S, arXiv 2509.22115 (token level; the scope is an argument because descriptions of the paper disagree).
    The quantile is that of TRL's ``top_entropy_quantile``, arXiv 2506.01939.

    >>> import torch
    >>> entropies = torch.tensor([[0.1, 2.0, 0.3], [1.0, 0.2, 0.0]])
    >>> select_tokens(torch.tensor([1.0, -3.0]), entropies, entropies > 0, ratio=0.4)
    tensor([[False,  True, False],
            [ True, False, False]])
    """
    if score is not None:
        if not isinstance(score, Tensor) or not score.is_floating_point():
            raise _not_floating("score", score)
        name, entropies = "score", score
        advantages = torch.ones((), dtype=score.dtype, device=score.device).expand(score.shape[:1])
    else:
        name = "entropies"
        if not isinstance(advantages, Tensor) or not advantages.is_floating_point():
            raise _not_floating("advantages", advantages)
        if not isinstance(entropies, Tensor) or not entropies.is_floating_point():
            raise _not_floating("entropies", entropies)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    shape = entropies.shape
    if len(shape) != 2:
        raise ValueError(f"{name}: expected shape (N, T), got {tuple(shape)}")
    if mask.shape != shape:
        raise ValueError(f"mask: expected the shape of {name} {tuple(shape)}, got {tuple(mask.shape)}")
    if advantages.shape != shape and advantages.shape != shape[:1]:
        raise ValueError(f"advantages: expected shape ({shape[0]},) or {tuple(shape)}, got {tuple(advantages.shape)}")
    device = entropies.device
    if advantages.device != device or mask.device != device:
        same_device(name, entropies, "advantages", advantages)
        same_device(name, entropies, "mask", mask)
    ratio = as_number(ratio, "ratio")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected 0 <= ratio <= 1, got {ratio!r}")
    check_choice(scope, "scope", _SCOPES)
    at_least = as_integer(at_least, "at_least")
    if at_least < 0:
        raise ValueError(f"at_least: expected an int >= 0, got {at_least}")
    check_choice(threshold, "threshold", ("exact", "quantile"))
    quantile = threshold == "quantile"
    if quantile and at_least > 0:
        raise ValueError(f'at_least: expected 0 for threshold="quantile", got {at_least}')
    if advantages.requires_grad or entropies.requires_grad or mask.requires_grad:
        advantages, entropies, mask = advantages.detach(), entropies.detach(), mask.detach()
    if scope != "group" and not (group_size is None and group_ids is None and offsets is None):
        raise ValueError(f'group_size, group_ids, offsets: expected none of them for scope="{scope}"')
    if process_group is not None:
        from morlfast._tokens_over_ranks import select_tokens_of_ranks

        if scope != "sequence":
            groups = None if scope == "batch" else (group_size, group_ids, offsets)
            tensors = advantages, entropies, mask
            return select_tokens_of_ranks(process_group, *tensors, ratio, groups, at_least, quantile)
    size, ids, bounds = (0, None, None) if scope != "group" else as_groups(group_size, group_ids, offsets, entropies)
    return _ops.select_tokens(advantages, entropies, mask, ratio, _SCOPES[scope], size, ids, bounds, at_least, quantile)


def _not_floating(name: str, value: Any) -> TypeError:
    came = value.dtype if isinstance(value, Tensor) else type(value).__name__
    return TypeError(f"{name}: expected a floating-point tensor, got {came}")


class PackedTokens(NamedTuple):
    """Where the tokens of a mask are, and the two ways between (N, T, ...) and (K, ...); `pack_tokens` makes it."""

    indices: Tensor
    """(K,) int64 positions n T + t in row order; with a fixed size, N T in the entries that hold no token."""
    offsets: Tensor
    """(N + 1,) int64: the tokens of row n are entries offsets[n] to before offsets[n + 1]."""
    shape: tuple[int, int]
    """(N, T)."""
    size: int | None = None
    """K, where it was fixed."""

    def pack(self, x: Tensor) -> Tensor:
        """The tokens' entries of ``x`` (N, T, ...), (K, ...); zeros in entries without a token.

        Of any strides and dtype, read without a copy of ``x``; differentiable.
        """
        self._check("x", x, self.shape)
        if self.size is None:
            return x[self._rows_and_columns(self.indices)]
        n, t = self.shape
        if n * t == 0:
            return torch.cat([x.flatten(0, 1), x.new_zeros(self.size, *x.shape[2:])])
        without_token = (self.indices == n * t).view(-1, *[1] * (x.dim() - 2))
        return x[self._rows_and_columns(self.indices.clamp(max=n * t - 1))].masked_fill(without_token, 0)

    def unpack(self, values: Tensor, fill: float = 0) -> Tensor:
        """(N, T, ...) with ``values`` (K, ...) at the tokens and ``fill`` elsewhere; differentiable in values."""
        self._check("values", values, self.indices.shape)
        n, t = self.shape
        spare = 0 if self.size is None else 1  # where entries without a token go
        flat = values.new_full((n * t + spare, *values.shape[1:]), fill).index_copy_(0, self.indices, values)
        return flat[: n * t].view(n, t, *values.shape[1:])

    def _rows_and_columns(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        t = max(self.shape[1], 1)
        return indices // t, indices % t

    def _check(self, name: str, tensor: Any, leading: tuple[int, ...]) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.shape[: len(leading)] != leading:
            sizes = ", ".join(map(str, leading))
            raise ValueError(f"{name}: expected shape ({sizes}, ...), got {tuple(tensor.shape)}")
        same_device("the mask", self.indices, name, tensor)


def pack_tokens(mask: Tensor, *, size: int | None = None) -> PackedTokens:
    """Where the tokens of a mask are, so that a head or a loss runs on these alone.

    Args:
        mask: (N, T) bool, uint8, signed integer or floating point; a token where it is not zero.
        size: a fixed number K of entries, at least the number of tokens: for `torch.compile(fullgraph=True)`, CUDA
            graphs, and to not wait for a GPU. Entries without a token pack as zeros and are dropped by unpacking.

    Returns:
        `PackedTokens`: ``indices`` (K,), ``offsets`` (N + 1,) and ``shape`` (N, T), with ``pack(x)`` from (N, T, ...)
        to (K, ...) and ``unpack(values, fill=0)`` back, both differentiable. No token gives K = 0. O(N T).

    Without ``size`` the host waits for a GPU to tell K, and a compiled graph breaks there. More tokens than ``size``
    are an error on the CPU; a GPU, and a compiled graph, do not look: the first ``size`` tokens are packed, the others
    are left out, and ``offsets`` says so.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> import torch
    >>> packed = pack_tokens(torch.tensor([[True, False, True], [False, True, False]]))
    >>> packed.indices, packed.offsets
    (tensor([0, 2, 4]), tensor([0, 2, 3]))
    >>> hidden = torch.arange(6.0).view(2, 3)
    >>> packed.unpack(packed.pack(hidden) * 10, fill=-1)
    tensor([[ 0., -1., 20.],
            [-1., 40., -1.]])
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    if mask.dtype.is_complex:
        raise TypeError(f"mask: expected bools, integers or floats, got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"mask: expected shape (N, T), got {tuple(mask.shape)}")
    n, t = mask.shape
    holds = mask if mask.dtype is torch.bool else mask.detach() != 0
    offsets = torch.nn.functional.pad(holds.sum(1).cumsum(0), (1, 0))
    if size is None:
        return PackedTokens(holds.flatten().nonzero().squeeze(1), offsets, (n, t))
    size = as_integer(size, "size")
    if size < 0:
        raise ValueError(f"size: expected an int >= 0, got {size}")
    if can_look(offsets) and int(offsets[-1]) > size:
        raise ValueError(f"size: expected at least the {int(offsets[-1])} tokens of the mask, got {size}")
    indices = torch.nonzero_static(holds.flatten(), size=size, fill_value=n * t).squeeze(1)
    return PackedTokens(indices, offsets.clamp(max=size), (n, t), size)


def unpack_tokens(values: Tensor, packed: PackedTokens, fill: float = 0) -> Tensor:
    """`PackedTokens.unpack` as a function: ``values`` (K, ...) to their places in (N, T, ...), ``fill`` elsewhere.

    >>> import torch
    >>> unpack_tokens(torch.tensor([1.5]), pack_tokens(torch.tensor([[0, 1]])))
    tensor([[0.0000, 1.5000]])
    """
    if not isinstance(packed, PackedTokens):
        raise TypeError(f"packed: expected what pack_tokens returns, got {type(packed).__name__}")
    return packed.unpack(values, fill)
