"""Group-relative advantages: GRPO and its family, one or many objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from morlfast import _ops
from morlfast._arguments import as_floating, as_group_size, as_integer, as_number, as_tensor, same_device
from morlfast._rollout_arguments import as_groups, as_mask_or_lengths, check_groups_of_ranks, label_columns
from morlfast.advantage_presets import (
    PRESETS,
    AdvantageRules,
    Aggregate,
    Baseline,
    EpsTo,
    NanRewards,
    Scale,
    Singleton,
    Whiten,
    ZeroVariance,
    rules_of,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# The operator's codes of the rules that are words.
_WORDS: Mapping[str, Mapping[str, int]] = {
    name: {word: code for code, word in enumerate(get_args(words))}
    for name, words in (
        ("aggregate", Aggregate),
        ("baseline", Baseline),
        ("scale", Scale),
        ("eps_to", EpsTo),
        ("singleton", Singleton),
        ("zero_variance", ZeroVariance),
        ("nan", NanRewards),
        ("whiten", Whiten),
        ("whiten_eps_to", EpsTo),
    )
}
_RULES = tuple(rule.name for rule in fields(AdvantageRules))  # in the order of the operator's arguments
_AGGREGATE, _BASELINE, _NAN, _WHITEN = map(_RULES.index, ("aggregate", "baseline", "nan", "whiten"))
_LENGTH_WEIGHTED = _WORDS["baseline"]["length_weighted"]
_BY_TOKENS = _WORDS["whiten"]["tokens"]
_PROPAGATE, _RAISE = _WORDS["nan"]["propagate"], _WORDS["nan"]["raise"]
_SKIPS = _WORDS["nan"]["skip"], _WORDS["nan"]["skip_reward"]


def group_advantages(
    rewards: Any = None,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    token_rewards: Any = None,
    weights: Any = None,
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    preset: str = "trl",
    method: str | None = None,
    aggregate: Aggregate | None = None,
    baseline: Baseline | None = None,
    scale: Scale | None = None,
    eps: float | None = None,
    eps_to: EpsTo | None = None,
    ddof: int | None = None,
    singleton: Singleton | None = None,
    zero_variance: ZeroVariance | None = None,
    least_std: float | None = None,
    nan: NanRewards | None = None,
    whiten: Whiten | None = None,
    whiten_eps: float | None = None,
    whiten_eps_to: EpsTo | None = None,
    whiten_ddof: int | None = None,
    process_group: ProcessGroup | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Advantage of every rollout relative to the rollouts of the same prompt.

    With rewards :math:`r_{ik}`, weights :math:`w_{ik}`, a baseline b and a divisor d for each group and objective:

    .. math::
        A_i = \frac{s_i - b}{d},\; s_i = \sum_k w_{ik} r_{ik}
        \qquad\text{or}\qquad
        A_i = \sum_k w_{ik} \frac{r_{ik} - b_k}{d_k}

    for ``aggregate="sum_then_normalize"`` or ``"normalize_then_sum"``, then whitened over the batch if asked for. A
    preset names a trainer, and a method one of its estimators: together they choose every rule below; a rule given as
    a keyword replaces that one. The default is TRL's GRPO. `PRESETS` lists all of them, with the versions they were
    checked against.

    Args:
        rewards: (N,), or (N, M) for M objectives; float32, float64, bfloat16 or float16. Integers, bools and lists of
            Python's numbers become float32.
        group_size: rollouts a group; groups are contiguous and N is a multiple.
        group_ids: instead: (N,) integers, or a list or NumPy array of strings or other labels, equal for rollouts of
            one group, in any order; or (N, S) integers, such as prompts, whose equal rows are one group.
        offsets: instead: (G + 1,) integers; group g is the rows from offsets[g] to before offsets[g + 1].
        token_rewards: instead of ``rewards``: (N, T), summed over the tokens in float64, padding too.
        weights: (M,) or (N, M) weights of the objectives; ones by default.
        mask: (N, T) of any dtype, read as it is, nonzero where a token counts: the result is (N, T).
        lengths: (N,) tokens of each rollout, instead of a mask.
        num_tokens: T, to get (N, T) for ``lengths``: the first tokens of each row count.
        preset, method: a row of rules; method None is the first of the preset.
        aggregate: ``"sum_then_normalize"`` or ``"normalize_then_sum"`` (each objective by itself, GDPO).
        baseline: ``"group"`` (its mean), ``"leave_one_out"`` (mean of the group's other rollouts), ``"batch"`` (mean of
            all), ``"length_weighted"`` (:math:`\sum_j L_j r_j / \sum_j L_j` with token counts L, OPO; without tokens
            the mean), ``"runner_up"`` (only the largest of a group, of equal ones the first, has an advantage: its
            distance to the second largest), ``"none"``.
        scale: whose standard deviation divides: ``"group"``, ``"batch"``, ``"leave_one_out"`` (of the group's other
            rollouts) or ``"none"``.
        eps, eps_to: the divisor is std + eps (``"std"``), sqrt(var + eps) (``"variance"``) or max(std, eps)
            (``"floor"``).
        ddof: a standard deviation of n values divides by n - ddof, and is 0 where that is not positive.
        singleton: a group with one scored rollout, if baseline or scale is of the group: ``"zero"``, ``"reward"``
            (mean 0 and deviation 1: r / (1 + eps), or r without a scale), ``"nan"`` or ``"raise"`` (on CUDA, which
            does not wait to look: NaN).
        zero_variance, least_std: deviations up to ``least_std`` give ``"zero"``, ``"unscaled"`` (what the baseline
            leaves) or ``"nan"``.
        nan: a NaN reward is ``"skip"``: not scored, so that it takes part in no statistic, and a rollout without any
            score gets 0 and no part in whitening; ``"skip_reward"``: the same for each objective, but such a rollout
            has the score 0 from the sum on; ``"propagate"``: poison to what depends on it; ``"zero"``: 0;
            ``"raise"``: ValueError (waits for a GPU).
        whiten: (A - mean) over the divisor of the whole batch, each rollout counted once (``"rollouts"``) or once a
            token (``"tokens"``); ``"none"``. With ``whiten_eps``, ``whiten_eps_to`` and ``whiten_ddof``; 0 without
            deviation.
        process_group: groups span the ranks of this group: the result is that of all ranks' rows in rank order, whose
            numbers may differ. A small all-reduce and one of all rows; labels are compared by 128-bit digests. Waits.
        out: contiguous tensor of the result's shape and dtype, to be written and returned; shares no memory with the
            other arguments.

    Returns:
        (N,), or (N, T) with 0 for tokens that do not count; dtype (bfloat16 and float16 too) and device of ``rewards``.
        Not differentiable.

    Statistics are two-pass in float64 about a group's first score: equal scores have exactly no deviation and exactly
    the mean that they have, whatever they round to, and so do equal scores of a rollout's others. A group with an
    infinite score becomes NaN, and with statistics of the batch all rollouts do; so do scores whose differences or sums
    leave float64. O(N M + N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Sources: GRPO, Shao et al. (2024), arXiv 2402.03300, eq. 3; Dr. GRPO, Liu et al. (2025), arXiv 2503.20783; RLOO,
    Ahmadian et al. (2024), arXiv 2402.14740; GDPO, arXiv 2601.05242; the trainers named in `PRESETS`.

    >>> import torch
    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), group_size=2, method="rloo")
    tensor([ 1., -1.,  0.,  0.])
    >>> group_advantages(torch.tensor([1.0, 3.0]), group_ids=["a", "a"], mask=torch.ones(2, 2), scale="none")
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """
    rewards = _as_rewards(rewards, token_rewards)
    codes = list(_codes_of(preset, method))
    given = (aggregate, baseline, scale, eps, eps_to, ddof, singleton, zero_variance, least_std, nan)
    for place, value in enumerate((*given, whiten, whiten_eps, whiten_eps_to, whiten_ddof)):
        if value is not None:
            codes[place] = _code(_RULES[place], value)
    if token_rewards is not None:
        if weights is not None:
            raise ValueError("weights: expected none together with token_rewards, which are of one objective")
        codes[_AGGREGATE] = 0  # the sum over the tokens comes first
    if codes[_NAN] == _RAISE and rewards.is_cuda and bool(rewards.isnan().any()):
        raise ValueError("rewards: expected no NaN, got NaN")
    weights = None if weights is None else _as_weights(weights, rewards)
    mask, lengths = as_mask_or_lengths(mask, lengths, num_tokens, rewards)
    counts_tokens = codes[_BASELINE] == _LENGTH_WEIGHTED or codes[_WHITEN] == _BY_TOKENS
    if counts_tokens and mask is None and lengths is None:
        rule = 'baseline="length_weighted"' if codes[_BASELINE] == _LENGTH_WEIGHTED else 'whiten="tokens"'
        raise ValueError(f"mask, lengths: expected one of them, by which {rule} counts tokens")
    if process_group is not None:
        check_groups_of_ranks(group_size, group_ids, offsets)
        if counts_tokens and mask is not None:
            lengths = (mask != 0).sum(1)
        scores = rewards if token_rewards is None else _token_sums(rewards, codes[_NAN])
        lengths = lengths if counts_tokens else None
        advantages = _over_ranks(process_group, scores, group_size, group_ids, weights, lengths, codes)
        if advantages.dtype != rewards.dtype:
            advantages = advantages.float().to(rewards.dtype)
        if mask is not None:
            # No baseline, no scale, and NaN stays: each rollout's advantage as it is, at its tokens.
            advantages = _ops.group_advantages(advantages, 1, mask=mask, baseline=0, scale=0, nan=_PROPAGATE)
        if out is None:
            return advantages
        _check_out(out, advantages, None)
        return out.copy_(advantages)
    size, ids, bounds = as_groups(group_size, group_ids, offsets, rewards)
    if out is None:
        return _ops.group_advantages(rewards, size, ids, bounds, weights, lengths, mask, *codes)
    _check_out(out, rewards, mask)
    _ops.group_advantages_out(rewards, out, size, ids, bounds, weights, lengths, mask, *codes)
    return out


def _as_rewards(rewards: Any, token_rewards: Any) -> Tensor:
    if (rewards is None) == (token_rewards is None):
        raise ValueError("rewards, token_rewards: expected exactly one of them")
    if rewards is not None:
        tensor = as_floating(rewards, "rewards")
        if tensor.dim() != 1 and tensor.dim() != 2:
            raise ValueError(f"rewards: expected shape (N,) or (N, M), got {tuple(tensor.shape)}")
    else:
        tensor = as_floating(token_rewards, "token_rewards")
        if tensor.dim() != 2:
            raise ValueError(f"token_rewards: expected shape (N, T), got {tuple(tensor.shape)}")
    return tensor.detach() if tensor.requires_grad else tensor


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


def _token_sums(token_rewards: Tensor, nan: int) -> Tensor:
    """The sums that the operator would take, in float64: infinite what it would poison, NaN what has no score."""
    sums = _ops.group_advantages(token_rewards.double(), 1, baseline=0, scale=0, nan=nan)
    sums.masked_fill_(sums.isnan(), math.inf)
    if nan in _SKIPS:
        sums.masked_fill_(token_rewards.isnan().all(1), math.nan)
    return sums


def _check_out(out: Any, rewards: Tensor, mask: Tensor | None) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a tensor, got {out!r:.80}")
    same_device("rewards", rewards, "out", out)
    shape = rewards.shape[:1] if mask is None else mask.shape
    if out.shape != shape or out.dtype != rewards.dtype or not out.is_contiguous():
        raise ValueError(
            f"out: expected a contiguous {rewards.dtype} tensor of shape {tuple(shape)}, got {out.dtype} of shape "
            f"{tuple(out.shape)} with strides {out.stride()}"
        )
    if out.requires_grad:
        raise ValueError("out: expected a tensor that needs no gradient")


def _over_ranks(
    process_group: ProcessGroup,
    rewards: Tensor,
    group_size: Any,
    group_ids: Any,
    weights: Tensor | None,
    lengths: Tensor | None,
    codes: list[Any],
) -> Tensor:
    """This rank's part of the advantages of all ranks' rollouts."""
    from morlfast._distributed import gather_rows

    columns = [rewards if rewards.dim() == 2 else rewards[:, None]]
    if group_ids is not None:
        columns.append(label_columns(group_ids, rewards.shape[0], rewards))
    a_row_each = weights is not None and weights.dim() == 2
    if weights is not None and a_row_each:
        columns.append(weights)
    if lengths is not None:
        columns.append(lengths[:, None])
    gathered, own = gather_rows(process_group, rewards.device, *columns)
    everyone = iter(gathered)
    all_rewards = next(everyone)
    size = 0 if group_size is None else as_group_size(group_size, all_rewards.shape[0])
    all_ids = None if group_ids is None else _ops.group_rows(next(everyone))
    all_weights = next(everyone) if a_row_each else weights
    all_lengths = None if lengths is None else next(everyone)[:, 0].contiguous()
    if rewards.dim() == 1:
        all_rewards = all_rewards[:, 0]
    return _ops.group_advantages(all_rewards, size, all_ids, None, all_weights, all_lengths, None, *codes)[own]


def _code(rule: str, value: Any) -> Any:
    """What the operator takes for a rule."""
    words = _WORDS.get(rule)
    if words is None:
        number: float = as_integer(value, rule) if rule.endswith("ddof") else as_number(value, rule)
        if not number >= 0:
            expected = "an int" if rule.endswith("ddof") else "a number"
            raise ValueError(f"{rule}: expected {expected} >= 0, got {number!r}")
        return number
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{rule}: expected one of {', '.join(words)}, got {value!r}")
    return words[value]


# Rules of the presets as the operator takes them; a preset's first method under None too.
_CODES: Mapping[tuple[str, str | None], tuple[Any, ...]] = {
    (preset, method): tuple(_code(rule, getattr(rules_of(preset, method), rule)) for rule in _RULES)
    for preset in PRESETS
    for method in (None, *PRESETS[preset].methods)
}


def _codes_of(preset: Any, method: Any) -> tuple[Any, ...]:
    for name, value in (("preset", preset), ("method", method)):
        if not isinstance(value, str) and (name == "preset" or value is not None):
            raise TypeError(f"{name}: expected a str, got {value!r}")
    if (preset, method) not in _CODES:
        rules_of(preset, method)  # says which there are
    return _CODES[preset, method]
