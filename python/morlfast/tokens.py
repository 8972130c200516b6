"""Which tokens to train on."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_group_ids, as_group_size, as_number, same_device

Scope = Literal["batch", "group", "sequence"]

_SCOPES = {"batch": 0, "group": 1, "sequence": 2}


def select_tokens(
    advantages: Tensor,
    entropies: Tensor,
    mask: Tensor,
    ratio: float,
    *,
    scope: Scope = "batch",
    group_size: int | None = None,
    group_ids: Any = None,
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
        group_size, group_ids: as in `group_advantages`; one of them for ``scope="group"``, none otherwise.

    Returns:
        bool tensor (N, T) on the same device. Not differentiable.

    Scores are float32 (float64 when advantages or entropies are); bfloat16 and float16 are widened before the product.
    A NaN score is not valid: it neither counts nor is kept. The count is ``ceil(ratio * v * (1 - 2**-50))``, so that
    0.1 of 30 tokens is 3 although 0.1 is a little more than a tenth in binary. O(N T): on the CPU at most three passes
    over the inputs.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: D3S, arXiv 2509.22115 (token level; the scope is an argument because descriptions of the paper disagree).

    >>> import torch
    >>> entropies = torch.tensor([[0.1, 2.0, 0.3], [1.0, 0.2, 0.0]])
    >>> select_tokens(torch.tensor([1.0, -3.0]), entropies, entropies > 0, ratio=0.4)
    tensor([[False,  True, False],
            [ True, False, False]])
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    if not isinstance(advantages, Tensor) or not advantages.is_floating_point():
        raise _not_floating("advantages", advantages)
    if not isinstance(entropies, Tensor) or not entropies.is_floating_point():
        raise _not_floating("entropies", entropies)
    shape = entropies.shape
    if len(shape) != 2:
        raise ValueError(f"entropies: expected shape (N, T), got {tuple(shape)}")
    if mask.shape != shape:
        raise ValueError(f"mask: expected the shape of entropies {tuple(shape)}, got {tuple(mask.shape)}")
    if advantages.shape != shape and advantages.shape != shape[:1]:
        raise ValueError(f"advantages: expected shape ({shape[0]},) or {tuple(shape)}, got {tuple(advantages.shape)}")
    device = entropies.device
    if advantages.device != device or mask.device != device:
        same_device("entropies", entropies, "advantages", advantages)
        same_device("entropies", entropies, "mask", mask)
    ratio = as_number(ratio, "ratio")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected 0 <= ratio <= 1, got {ratio!r}")
    if scope not in _SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(_SCOPES)}, got {scope!r}")
    if advantages.requires_grad or entropies.requires_grad or mask.requires_grad:
        advantages, entropies, mask = advantages.detach(), entropies.detach(), mask.detach()
    if scope == "group":
        if (group_size is None) == (group_ids is None):
            raise ValueError('group_size, group_ids: expected exactly one of them for scope="group"')
        if group_size is not None:
            group_size = as_group_size(group_size, shape[0])
        else:
            group_ids = as_group_ids(group_ids, shape[0], "entropies", entropies)
    elif group_size is not None or group_ids is not None:
        raise ValueError(f'group_size, group_ids: expected neither for scope="{scope}"')
    return _ops.select_tokens(advantages, entropies, mask, ratio, _SCOPES[scope], group_size or 0, group_ids)


def _not_floating(name: str, value: Any) -> TypeError:
    came = value.dtype if isinstance(value, Tensor) else type(value).__name__
    return TypeError(f"{name}: expected a floating-point tensor, got {came}")
