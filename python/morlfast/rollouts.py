"""Which rollouts to train on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_group_size, as_integer, check_choice
from morlfast._groups import Groups, as_nonnegative
from morlfast._rollout_arguments import as_groups, as_rewards, check_groups_of_ranks, label_columns

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Method = Literal["max_variance", "top", "bottom", "random", "stratified", "percentile"]

# What the operator does for each method.
_CODES = {"max_variance": 0, "top": 1, "bottom": 2, "random": 1, "stratified": 3, "percentile": 3}


class RolloutSelection(NamedTuple):
    """Rollouts to train on, as rows and as a mask."""

    indices: Tensor
    """(K,) int64, group by group, ascending inside a group."""
    mask: Tensor
    """(N,) bool."""


def select_rollouts(
    rewards: Any,
    k: int,
    *,
    group_size: int | None = None,
    group_ids: Any = None,
    offsets: Any = None,
    scope: Literal["group", "batch"] = "group",
    method: Method = "max_variance",
    generator: torch.Generator | None = None,
    process_group: ProcessGroup | None = None,
) -> RolloutSelection:
    r"""k rollouts of each group, or of the batch: PODS's and D3S's choice, the largest variance.

    .. math:: \operatorname*{argmax}_{S : |S| = k} \operatorname{Var}_{i \in S}(r_i)

    is made of the i largest and the k - i smallest rewards for some i; all of them are looked at.

    Args:
        rewards: (N,) rewards or advantages; float32, float64, bfloat16, float16, or integers (taken as float64).
        k: how many of each group (of all rows for ``scope="batch"``); at most `group_size`, where groups have one.
        group_size, group_ids, offsets: which rows form a group, as in `group_advantages`; exactly one of them for
            ``scope="group"``, none for ``"batch"``.
        scope: ``"group"``: k rollouts of each group (PODS, D3S-I). ``"batch"``: k of all rows, whatever their groups
            (D3S, with advantages that groups have normalized).
        method: ``"max_variance"``; or, to compare with: the k largest (``"top"``) or smallest (``"bottom"``); k
            drawn at ``"random"``; one drawn from each of k equal strata of the sorted rewards (``"stratified"``), or
            the middle one of each (``"percentile"``).
        generator: where ``"random"`` and ``"stratified"`` draw from; on the device of the rewards. With process_group
            the draws are those of its first rank.
        process_group: groups, or the batch, are of all ranks' rows, in rank order. Every rank gets the part of the
            selection that lies in its own rows.

    Returns:
        `RolloutSelection`: ``indices`` into rewards, group by group (groups by id in the order of their first rows),
        and the ``mask``. Not differentiable; advantages of the selected ones are a second call of `group_advantages`.

    A NaN reward is not scored and never selected; where fewer than k of a group are scored, all of these are. Of equal
    rewards the lowest rows are selected. Variances are compared in float64 about the middle of the group's range,
    infinities as the largest double; of equal variances that with most of the largest rewards, if these are all k, and
    otherwise that with fewest. Without rows nothing is selected. O(N log N). On a GPU the host waits for the number of
    indices.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: PODS, arXiv 2504.13818; D3S, arXiv 2509.22115.

    >>> rewards = torch.tensor([0.0, 1.0, 0.5, 0.4, 0.2, 0.9, 0.8, 0.7])
    >>> select_rollouts(rewards, 2, group_size=4).indices
    tensor([0, 1, 4, 5])
    """
    values = as_rewards(rewards)
    if values.dim() != 1:
        raise ValueError(f"rewards: expected shape (N,), got {tuple(values.shape)}")
    k = as_integer(k, "k")
    if k < 0:
        raise ValueError(f"k: expected an int >= 0, got {k}")
    check_choice(method, "method", _CODES)
    _check_scope(scope, group_size, group_ids, offsets)
    draws = method in ("random", "stratified")
    _check_generator(generator, method if not draws else None, values)
    own = slice(None)
    if process_group is not None:
        if scope == "group":
            check_groups_of_ranks(group_size, group_ids, offsets)
        table, group_size, group_ids, own = _of_ranks(process_group, group_size, group_ids, values[:, None])
        values = table[:, 0]
    rows = values.shape[0]
    uniform = None
    if draws:
        uniform = torch.rand(rows, dtype=torch.float64, device=values.device, generator=generator)
        if process_group is not None:
            dist.broadcast(uniform, group=process_group, group_src=0)
    if scope == "batch":
        size, ids, bounds = max(rows, 1), None, None
    else:
        size, ids, bounds = as_groups(group_size, group_ids, offsets, values)
        if group_size is not None and rows > 0 and k > size:
            raise ValueError(f"k: expected at most group_size {size}, got {k}")
    if method == "random":
        assert uniform is not None
        values, uniform = torch.where(values.isnan(), math.nan, uniform), None
    mask = _ops.select_rollouts(values, k, size, ids, bounds, _CODES[method], uniform)
    return _selection(mask[own], None if ids is None else ids[own])


def filter_zero_variance(
    rewards: Any,
    *,
    group_size: int | None = None,
    group_ids: Any = None,
    offsets: Any = None,
    least_std: float = 0.0,
    singleton: Literal["drop", "keep"] = "drop",
    process_group: ProcessGroup | None = None,
) -> RolloutSelection:
    r"""The rollouts of groups whose rewards differ: DAPO's dynamic sampling, without its resampling.

    A group stays if one of its objectives has :math:`\max r > \min r`, compared exactly, and with `least_std` a
    deviation (n - 1) above it. Rounding cannot keep a constant group, as a float32 deviation does.

    Args:
        rewards: (N,), or (N, M) with one column an objective; floating point or integers.
        group_size, group_ids, offsets: as in `group_advantages`; exactly one of them.
        least_std: deviations up to this are none (slime: 1e-6).
        singleton: what becomes of a group with one scored rollout (verl keeps it).
        process_group: groups are of all ranks' rows, as in `select_rollouts`.

    Returns:
        `RolloutSelection`, indices as those of `select_rollouts`.

    A NaN reward is not scored; a rollout without a score is dropped, and a group without scores too. Infinite rewards
    differ from finite ones. O(N M), and a sort of the groups' ids.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: DAPO, arXiv 2503.14476 (dynamic sampling).

    >>> filter_zero_variance(torch.tensor([1.0, 1.0, 0.0, 1.0]), group_size=2).indices
    tensor([2, 3])
    """
    values = as_rewards(rewards)
    if values.dim() != 1 and values.dim() != 2:
        raise ValueError(f"rewards: expected shape (N,) or (N, M), got {tuple(values.shape)}")
    least_std = as_nonnegative(least_std, "least_std")
    check_choice(singleton, "singleton", ("drop", "keep"))
    values = (values if values.dim() == 2 else values[:, None]).to(torch.float64)
    own = slice(None)
    if process_group is not None:
        check_groups_of_ranks(group_size, group_ids, offsets)
        values, group_size, group_ids, own = _of_ranks(process_group, group_size, group_ids, values)
    # Ids once: Groups would look at labels again.
    size, ids, bounds = as_groups(group_size, group_ids, offsets, values)
    groups = Groups.of(values, size or None, ids, bounds)
    scored = ~values.isnan()
    largest = groups.max(torch.where(scored, values, -math.inf))
    smallest = -groups.max(torch.where(scored, -values, -math.inf))
    differs = largest > smallest
    if least_std > 0:
        centred = groups.centred(values, scored)
        differs &= ~(groups.std(centred, scored) <= least_std)
    keep = differs.any(1)
    if singleton == "keep":
        keep |= groups.sum(scored.any(1)) == 1
    keep &= scored.any(1)
    return _selection(keep[own], None if ids is None else ids[own])


def _check_scope(scope: Any, group_size: Any, group_ids: Any, offsets: Any) -> None:
    check_choice(scope, "scope", ("group", "batch"))
    given = (group_size is not None) + (group_ids is not None) + (offsets is not None)
    if scope == "batch" and given > 0:
        raise ValueError('group_size, group_ids, offsets: expected none of them for scope="batch"')
    if scope == "group" and given != 1:
        raise ValueError('group_size, group_ids, offsets: expected exactly one of them for scope="group"')


def _selection(mask: Tensor, ids: Tensor | None) -> RolloutSelection:
    rows = mask.nonzero().squeeze(1)
    if ids is not None:
        first = _ops.group_rows(ids[:, None])
        rows = rows[torch.sort(first[rows], stable=True).indices]
    return RolloutSelection(rows, mask)


def _check_generator(generator: Any, method: str | None, rewards: Tensor) -> None:
    """`method`: one that draws nothing."""
    if generator is None:
        return
    if method is not None:
        raise ValueError(f'generator: expected None for method="{method}", which draws nothing')
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {generator!r:.80}")
    if generator.device.type != rewards.device.type:
        raise ValueError(f"generator: expected the device of rewards, {rewards.device}, got {generator.device}")


def _of_ranks(
    process_group: ProcessGroup, group_size: Any, group_ids: Any, rewards: Tensor
) -> tuple[Tensor, Any, Any, slice]:
    """Rewards (N, M) of every rank's rows, their groups, and which of the rows are this rank's."""
    from morlfast._distributed import gather_rows

    columns = [rewards]
    if group_ids is not None:
        columns.append(label_columns(group_ids, len(rewards), rewards))
    (everyone, *labels), own = gather_rows(process_group, rewards.device, *columns)
    if group_ids is not None:
        group_ids = _ops.group_rows(labels[0])
    if group_size is not None:
        group_size = as_group_size(group_size, len(everyone))
    return everyone, group_size, group_ids, own
