"""Group-relative advantages: GRPO and its family, one or many objectives."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_floating, as_group_ids, as_group_size, as_integer, as_number, as_tensor, same_device

Method = Literal["grpo", "dr_grpo", "rloo", "gdpo"]
Scale = Literal["group", "batch", "none"]

# Codes of the operator, and the scale that the paper's own formula uses.
_METHODS: dict[str, tuple[int, Scale]] = {
    "grpo": (0, "group"),
    "dr_grpo": (0, "none"),
    "rloo": (1, "none"),
    "gdpo": (2, "group"),
}
_SCALES = {"none": 0, "group": 1, "batch": 2}


def group_advantages(
    rewards: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    weights: Any = None,
    method: Method = "grpo",
    scale: Scale | None = None,
    eps: float = 1e-4,
    ddof: int = 1,
) -> Tensor:
    r"""Advantage of every rollout relative to the rollouts of the same prompt.

    With rewards :math:`r_{ik}`, weights :math:`w_{ik}`, score :math:`s_i = \sum_k w_{ik} r_{ik}` and group g of n:

    ============  ============================================================================================
    ``grpo``      :math:`A_i = (s_i - \bar s_g) / (\sigma + \epsilon)`
    ``dr_grpo``   :math:`A_i = s_i - \bar s_g`
    ``rloo``      :math:`A_i = s_i - \frac{1}{n-1}\sum_{j \in g, j \ne i} s_j`, over :math:`\sigma + \epsilon`
                  when a scale is given
    ``gdpo``      :math:`z_{ik} = (r_{ik} - \bar r_{gk}) / (\sigma_k + \epsilon)`, :math:`s_i = \sum_k w_{ik} z_{ik}`,
                  :math:`A_i = (s_i - \bar s) / (\mathrm{std}(s) + \epsilon)` over the batch
    ============  ============================================================================================

    Args:
        rewards: (N,), or (N, M) for M objectives; float32, float64, bfloat16 or float16. Integers and bools become
            float32.
        group_size: rollouts a group; groups are contiguous and N is a multiple.
        group_ids: instead of ``group_size``: (N,) integers, equal for rollouts of one group, any values in any order.
        weights: (M,) or (N, M) weights of the objectives; ones by default.
        method: which estimator, see above.
        scale: standard deviation to divide by: that of the ``"group"``, of the whole ``"batch"`` (about the batch's
            mean), or ``"none"``. Default: ``"group"`` for grpo and gdpo, ``"none"`` for dr_grpo and rloo.
        eps: added to every standard deviation; a divisor of 0 gives 0.
        ddof: standard deviations divide by n - ddof; where that is not positive they are 0.

    Returns:
        (N,) tensor with the dtype (bfloat16 and float16 too) and device of ``rewards``. Not differentiable.

    Statistics are two-pass in float64. Equal scores of a group give exactly 0, whatever they round to; so does a group
    of one (GDPO whitens such zeros with the rest of the batch). A NaN reward means "not scored": it takes no part in
    any statistic, and a rollout without any score gets 0. A group with an infinite score becomes NaN, and with batch
    statistics the whole batch does. O(N M).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Sources: GRPO, Shao et al. (2024), arXiv 2402.03300, eq. 3; Dr. GRPO, Liu et al. (2025), arXiv 2503.20783; RLOO,
    Ahmadian et al. (2024), arXiv 2402.14740; GDPO, arXiv 2601.05242. The defaults (ddof 1, eps 1e-4 added to the
    deviation) are those of TRL 1.16.

    >>> import torch
    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2, method="rloo")
    tensor([ 1., -1.,  0.,  0.])
    """
    rewards = as_floating(rewards, "rewards")
    dims = rewards.dim()
    if dims != 1 and dims != 2:
        raise ValueError(f"rewards: expected shape (N,) or (N, M), got {tuple(rewards.shape)}")
    rows = rewards.shape[0]
    if (group_size is None) == (group_ids is None):
        raise ValueError("group_size, group_ids: expected exactly one of them")
    if group_size is not None:
        group_size = as_group_size(group_size, rows)
    else:
        group_size, group_ids = 0, as_group_ids(group_ids, rows, "rewards", rewards)
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
    code, own_scale = _METHODS[method]
    if scale is None:
        scale = own_scale
    elif scale not in _SCALES:
        raise ValueError(f"scale: expected one of {', '.join(_SCALES)}, got {scale!r}")
    elif method == "dr_grpo" and scale != "none":
        raise ValueError(f'scale: dr_grpo divides by nothing, got {scale!r}; use method="grpo"')
    eps = as_number(eps, "eps")
    if not eps >= 0:
        raise ValueError(f"eps: expected a number >= 0, got {eps!r}")
    ddof = as_integer(ddof, "ddof")
    if ddof < 0:
        raise ValueError(f"ddof: expected an int >= 0, got {ddof!r}")
    if weights is not None:
        weights = _as_weights(weights, rewards)
    if rewards.requires_grad:
        rewards = rewards.detach()
    return _ops.group_advantages(rewards, group_size, group_ids, weights, code, _SCALES[scale], eps, ddof)


def _as_weights(weights: Any, rewards: Tensor) -> Tensor:
    if not isinstance(weights, Tensor):
        weights = as_tensor(weights, "weights", dtype=torch.float64, device=rewards.device)
    tensor = as_floating(weights, "weights").detach()
    objectives = rewards.shape[1] if rewards.dim() == 2 else 1
    a_row_each = rewards.dim() == 2 and tensor.shape == rewards.shape
    if tensor.shape != (objectives,) and not a_row_each:
        each = f" or {tuple(rewards.shape)}" if rewards.dim() == 2 else ""
        raise ValueError(f"weights: expected shape ({objectives},){each}, got {tuple(tensor.shape)}")
    same_device("rewards", rewards, "weights", tensor)
    return tensor
