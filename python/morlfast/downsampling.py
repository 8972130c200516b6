"""Training on a part of the rollouts and tokens: D3S with its schedule, PODS, T-PPO's filter, and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from morlfast._arguments import as_bool, as_floating, as_integer, as_number, as_tensor, check_choice, same_device
from morlfast._groups import as_mask, as_tokens
from morlfast._rollout_arguments import as_rewards
from morlfast.rollouts import Method, RolloutSelection, select_rollouts
from morlfast.tokens import Scope, select_tokens

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LossDenominator = Literal["kept", "all"]


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    r"""A number that moves linearly with training progress p, from 0 to 1.

    .. math:: x(p) = (1 - p) \, x_\mathrm{start} + p \, x_\mathrm{end}

    It stays between its ends, whatever rounding does. ValueError for p outside [0, 1].

    >>> LinearSchedule(0.1, 1.0)(0.25)
    0.325
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            number = as_number(getattr(self, name), name)
            if not math.isfinite(number):
                raise ValueError(f"{name}: expected a finite number, got {number!r}")
            object.__setattr__(self, name, float(number))

    def __call__(self, progress: float) -> float:
        p = as_number(progress, "progress")
        if not 0 <= p <= 1:
            raise ValueError(f"progress: expected a number from 0 to 1, got {progress!r}")
        low, high = sorted((self.start, self.end))
        return min(max((1 - p) * self.start + p * self.end, low), high)


class D3SBudget(NamedTuple):
    """What D3S keeps at some progress."""

    rollouts: int | None
    """How many rollouts; None for all."""
    ratio: float
    """Which share of their tokens."""


@dataclass(frozen=True, slots=True)
class D3SSchedule:
    r"""How many rollouts and which share of their tokens D3S keeps as training goes on.

    .. math:: [N, K](p) = (1 - p) \, [N, K]_\mathrm{init} + p \, [N, K]_\mathrm{final}

    Args:
        rollouts: N, a `LinearSchedule` or a number, at least 0; None keeps all rollouts. Rounded half up.
        ratio: K, a `LinearSchedule` or a number, from 0 to 1.

    The values that the paper uses are not known, so there are no defaults.

    Source: D3S, arXiv 2509.22115.

    >>> D3SSchedule(LinearSchedule(64, 256), LinearSchedule(0.1, 1.0))(0.25)
    D3SBudget(rollouts=112, ratio=0.325)
    """

    rollouts: LinearSchedule | float | None
    ratio: LinearSchedule | float

    def __post_init__(self) -> None:
        rollouts, ratio = self.linear()
        object.__setattr__(self, "rollouts", rollouts)
        object.__setattr__(self, "ratio", ratio)

    def __call__(self, progress: float) -> D3SBudget:
        rollouts, ratio = self.linear()
        # A half that the product has rounded below itself is still a half.
        count = None if rollouts is None else math.floor(rollouts(progress) * (1 + 2**-50) + 0.5)
        return D3SBudget(count, ratio(progress))

    def linear(self) -> tuple[LinearSchedule | None, LinearSchedule]:
        """Both as linear schedules; a number is one that stays."""
        rollouts = None if self.rollouts is None else _as_schedule(self.rollouts, "rollouts", math.inf)
        return rollouts, _as_schedule(self.ratio, "ratio", 1.0)

    @property
    def is_constant(self) -> bool:
        """Whether the budget is the same at any progress."""
        return all(schedule is None or schedule.start == schedule.end for schedule in self.linear())


def _as_schedule(value: Any, name: str, most: float) -> LinearSchedule:
    if isinstance(value, LinearSchedule):
        schedule = value
    else:
        number = as_number(value, name)
        if not math.isfinite(number):
            raise ValueError(f"{name}: expected a LinearSchedule or a finite number, got {value!r}")
        schedule = LinearSchedule(number, number)
    low, high = sorted((schedule.start, schedule.end))
    if low < 0 or high > most:
        expected = "at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{name}: expected numbers {expected}, got {schedule.start!r} and {schedule.end!r}")
    return schedule


class D3SSelection(NamedTuple):
    """What both levels of D3S keep."""

    rollouts: RolloutSelection
    tokens: Tensor
    """(N, T) bool; only tokens of selected rollouts."""


class D3S:
    r"""Dynamic dual-level down-sampling: the rollouts whose advantages vary most, and of their tokens those with the
    largest :math:`|A_{it}| H_{it}`, with a budget that moves over training.

    .. math::
        \hat S = \operatorname*{argmax}_{S : |S| = N(p)} \operatorname{Var}_{i \in S}(A_i), \quad
        \hat T = \operatorname{top}_{K(p)} \{ |A_{it}| H_{it} : i \in \hat S, \; t \text{ valid} \}

    Advantages are normalized over all rollouts of a group **before** the selection and stay as they are. (PODS selects
    by rewards and normalizes the selected ones.)

    Args:
        schedule: N and K over training.
        total_steps: how many calls of `step` training has; None where progress is given with each call.
        rollout_scope: N rollouts of the ``"batch"``, across groups (the paper's D3S), or of each ``"group"`` (its
            D3S-I).
        token_scope: K of the tokens of all selected rollouts (``"batch"``, as in the paper's formula), of those of each
            ``"group"``, or of each ``"sequence"``, as one description and one reviewer say. With one advantage a
            rollout, a sequence's ranking is that of its entropies alone.
        entropy: whose entropies a trainer is to pass: of the policy that is trained (``"current"``) or of the one that
            generated (``"old"``). The paper writes the entropy of :math:`\pi_\theta`; which is meant is not known. This
            class takes what it is given; `morlfast.integrations` read the attribute.
        loss_denominator: see `token_denominator`; not known of the paper.
        at_least: so many tokens of each token scope are kept where it has them.
        threshold: ``"exact"`` or ``"quantile"``, as in `morlfast.select_tokens`.
        zero_advantages: a rollout or token with advantage 0 has no policy gradient. ``"keep"``: it is one like any
            other; tokens with score 0 fill the budget last, and where all are 0 the first ones are kept. ``"drop"``: it
            is never selected and no part of the share, so there may be nothing to train on.

    State is the number of steps. The same inputs give the same selection on every device, with every number of
    threads and, with ``process_group``, of ranks. Every rank has to call `step` alike.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: D3S, arXiv 2509.22115, from second-hand descriptions of the paper: the formulas agree in all of them, the
    values of the schedule are in none.

    >>> import torch
    >>> d3s = D3S(D3SSchedule(2, LinearSchedule(0.5, 1.0)), total_steps=100)
    >>> entropies = torch.tensor([[0.1, 2.0], [1.0, 1.0], [0.7, 0.2], [1.5, 0.3]])
    >>> kept = d3s.select(torch.tensor([1.0, -0.1, 0.1, -1.0]), entropies, torch.ones(4, 2))
    >>> kept.rollouts.indices
    tensor([0, 3])
    >>> kept.tokens
    tensor([[False,  True],
            [False, False],
            [False, False],
            [ True, False]])
    """

    def __init__(
        self,
        schedule: D3SSchedule,
        *,
        total_steps: int | None = None,
        rollout_scope: Literal["batch", "group"] = "batch",
        token_scope: Scope = "batch",
        entropy: Literal["current", "old"] = "current",
        loss_denominator: LossDenominator = "kept",
        at_least: int = 0,
        threshold: Literal["exact", "quantile"] = "exact",
        zero_advantages: Literal["keep", "drop"] = "keep",
    ) -> None:
        if not isinstance(schedule, D3SSchedule):
            raise TypeError(f"schedule: expected a D3SSchedule, got {schedule!r:.80}")
        if total_steps is not None and as_integer(total_steps, "total_steps") < 1:
            raise ValueError(f"total_steps: expected a positive int, got {total_steps}")
        for name, value, allowed in (
            ("rollout_scope", rollout_scope, ("batch", "group")),
            ("token_scope", token_scope, get_args(Scope)),
            ("entropy", entropy, ("current", "old")),
            ("loss_denominator", loss_denominator, get_args(LossDenominator)),
            ("threshold", threshold, ("exact", "quantile")),
            ("zero_advantages", zero_advantages, ("keep", "drop")),
        ):
            check_choice(value, name, allowed)
        at_least = as_integer(at_least, "at_least")
        if at_least < 0 or (at_least > 0 and threshold == "quantile"):
            expected = "0 with a quantile" if threshold == "quantile" else "an int >= 0"
            raise ValueError(f"at_least: expected {expected}, got {at_least}")
        self.schedule = schedule
        self.total_steps = None if total_steps is None else int(total_steps)
        self.rollout_scope = rollout_scope
        self.token_scope = token_scope
        self.entropy = entropy
        self.loss_denominator: LossDenominator = loss_denominator
        self.at_least = at_least
        self.threshold = threshold
        self.zero_advantages = zero_advantages
        self.steps = 0

    def __repr__(self) -> str:
        return f"D3S({', '.join(f'{name}={value!r}' for name, value in self.state_dict().items())})"

    def step(self, n: int = 1) -> None:
        """Counts ``n`` more of the ``total_steps``; beyond these progress stays 1."""
        if self.total_steps is None:
            raise ValueError("total_steps: expected an int where D3S counts its steps, got None")
        n = as_integer(n, "n")
        if n < 0:
            raise ValueError(f"n: expected an int >= 0, got {n}")
        self.steps += int(n)

    @property
    def progress(self) -> float:
        """steps / total_steps, at most 1; ValueError without ``total_steps``."""
        if self.total_steps is None:
            raise ValueError("progress: expected a number from 0 to 1, or total_steps for D3S to count")
        return min(self.steps / self.total_steps, 1.0)

    def budget(self, progress: float | None = None) -> D3SBudget:
        """Rollouts and share of tokens at ``progress``, by default at the own one. A constant schedule needs none."""
        if progress is None:
            progress = 0.0 if self.total_steps is None and self.schedule.is_constant else self.progress
        return self.schedule(progress)

    def select_rollouts(
        self,
        advantages: Any,
        *,
        mask: Any = None,
        group_size: int | None = None,
        group_ids: Any = None,
        offsets: Any = None,
        process_group: ProcessGroup | None = None,
        progress: float | None = None,
    ) -> RolloutSelection:
        """The first level.

        Args:
            advantages: (N,) normalized over all rollouts; or (N, T) with a mask, of which the rows' means over their
                tokens count (that is the rollout's advantage, where all of its tokens have it).
            mask: (N, T), nonzero where a token is valid; a rollout without one is not selected.
            group_size, group_ids, offsets: the groups, for ``rollout_scope="group"``; not looked at otherwise.
            process_group: as in `morlfast.select_rollouts`.
            progress: from 0 to 1; by default the own one.

        Returns:
            `morlfast.RolloutSelection`. A NaN advantage (not scored) is never selected. A budget beyond the number of
            rollouts, of the batch or of ragged groups, selects all.
        """
        budget = self.budget(progress)
        a = self._countable(_of_rollouts(as_rewards(advantages, "advantages"), mask))
        if budget.rollouts is None:
            return select_rollouts(a, a.shape[0], scope="batch")
        groups: dict[str, Any] = {"scope": self.rollout_scope}
        if self.rollout_scope == "group":
            groups |= {"group_size": group_size, "group_ids": group_ids, "offsets": offsets}
            if group_size is not None and budget.rollouts > group_size:
                raise ValueError(
                    f"schedule: expected at most group_size = {group_size} rollouts of a group, got {budget.rollouts}"
                )
        return select_rollouts(a, budget.rollouts, **groups, process_group=process_group)

    def select_tokens(
        self,
        advantages: Any,
        entropies: Tensor,
        mask: Tensor,
        *,
        rollouts: Tensor | None = None,
        group_size: int | None = None,
        group_ids: Any = None,
        offsets: Any = None,
        process_group: ProcessGroup | None = None,
        progress: float | None = None,
    ) -> Tensor:
        """The second level.

        Args:
            advantages, entropies, mask: as in `morlfast.select_tokens`.
            rollouts: (N,) bool, the mask of the first level; all by default. The share is of the valid tokens of these.
            group_size, group_ids, offsets: the groups, for ``token_scope="group"``; not looked at otherwise.
            process_group: as in `morlfast.select_tokens`.
            progress: from 0 to 1; by default the own one.

        Returns:
            bool (N, T).
        """
        budget = self.budget(progress)
        a = self._countable(as_rewards(advantages, "advantages"))
        if rollouts is not None:
            selected = _as_selected(rollouts, a)
            # A token without a score is not valid: the mask need not be written anew.
            a = a.masked_fill(~selected.view(-1, *[1] * (a.dim() - 1)), math.nan)
        groups: dict[str, Any] = {}
        if self.token_scope == "group":
            groups = {"group_size": group_size, "group_ids": group_ids, "offsets": offsets}
        return select_tokens(
            a,
            entropies,
            mask,
            budget.ratio,
            scope=self.token_scope,
            at_least=self.at_least,
            threshold=self.threshold,
            process_group=process_group,
            **groups,
        )

    def select(
        self,
        advantages: Any,
        entropies: Tensor,
        mask: Tensor,
        *,
        group_size: int | None = None,
        group_ids: Any = None,
        offsets: Any = None,
        process_group: ProcessGroup | None = None,
        progress: float | None = None,
    ) -> D3SSelection:
        """Both levels: `select_rollouts`, and `select_tokens` among its rollouts."""
        options: dict[str, Any] = {
            "group_size": group_size,
            "group_ids": group_ids,
            "offsets": offsets,
            "process_group": process_group,
            "progress": progress,
        }
        rollouts = self.select_rollouts(advantages, mask=mask, **options)
        tokens = self.select_tokens(advantages, entropies, mask, rollouts=rollouts.mask, **options)
        return D3SSelection(rollouts, tokens)

    def denominator(self, tokens: Tensor, mask: Any, *, process_group: ProcessGroup | None = None) -> Tensor:
        """`token_denominator` of the tokens that `select_tokens` gave, as configured."""
        return token_denominator(tokens, mask, loss_denominator=self.loss_denominator, process_group=process_group)

    def state_dict(self) -> dict[str, Any]:
        """The steps and the configuration, in Python's numbers, strings and lists."""
        rollouts, ratio = self.schedule.linear()
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "rollouts": None if rollouts is None else [rollouts.start, rollouts.end],
            "ratio": [ratio.start, ratio.end],
            "rollout_scope": self.rollout_scope,
            "token_scope": self.token_scope,
            "entropy": self.entropy,
            "loss_denominator": self.loss_denominator,
            "at_least": self.at_least,
            "threshold": self.threshold,
            "zero_advantages": self.zero_advantages,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the steps of a state whose configuration is this one's; ValueError names what differs."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected what state_dict returns, got {state!r:.80}")
        for name, own in self.state_dict().items():
            if name not in state:
                raise ValueError(f"{name}: expected in the state, got none")
            came = list(state[name]) if isinstance(state[name], tuple) else state[name]
            if name != "steps" and came != own:
                raise ValueError(f"{name}: expected that of this D3S, {own!r}, got {came!r}")
        steps = as_integer(state["steps"], "steps")
        if steps < 0:
            raise ValueError(f"steps: expected an int >= 0, got {steps}")
        self.steps = steps

    def _countable(self, advantages: Tensor) -> Tensor:
        return advantages.masked_fill(advantages == 0, math.nan) if self.zero_advantages == "drop" else advantages


@dataclass(frozen=True, slots=True)
class PODS:
    r"""Policy optimization with down-sampling: of each prompt's rollouts the k whose rewards vary most.

    .. math:: \operatorname*{argmax}_{S \subset g, |S| = k} \operatorname{Var}_{i \in S}(r_i)

    Args:
        k: rollouts a prompt.
        method: another one of `morlfast.select_rollouts`, to compare with.
        renormalize: advantages are those of the selected rollouts among themselves, which the authors' code has and
            their appendix is said to find better; or, when False, those among all rollouts. `morlfast.integrations`
            read this; by hand it is one more call, see the example.

    Selection is by **rewards**. (D3S selects by advantages normalized over all rollouts, and leaves them.)

    Source: PODS, arXiv 2504.13818.

    >>> import torch
    >>> from morlfast import group_advantages
    >>> rewards = torch.tensor([0.0, 1.0, 0.5, 0.4])
    >>> selection = PODS(2).select(rewards, group_size=4)
    >>> selection.indices
    tensor([0, 1])
    >>> group_advantages(rewards.masked_fill(~selection.mask, torch.nan), group_size=4, eps=0.0)
    tensor([-0.7071,  0.7071,  0.0000,  0.0000])
    """

    k: int
    method: Method = "max_variance"
    renormalize: bool = True

    def __post_init__(self) -> None:
        k = as_integer(self.k, "k")
        if k < 0:
            raise ValueError(f"k: expected an int >= 0, got {k}")
        check_choice(self.method, "method", get_args(Method))
        as_bool(self.renormalize, "renormalize")

    def select(
        self,
        rewards: Any,
        *,
        group_size: int | None = None,
        group_ids: Any = None,
        offsets: Any = None,
        generator: torch.Generator | None = None,
        process_group: ProcessGroup | None = None,
    ) -> RolloutSelection:
        """`morlfast.select_rollouts` of (N,) rewards with this k and method, whose arguments these are."""
        return select_rollouts(
            rewards,
            self.k,
            group_size=group_size,
            group_ids=group_ids,
            offsets=offsets,
            method=self.method,
            generator=generator,
            process_group=process_group,
        )


def token_denominator(
    keep: Any,
    mask: Any,
    *,
    loss_denominator: LossDenominator = "kept",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    r"""What a sum over the kept tokens is divided by.

    Args:
        keep: (N, T), nonzero where a token is trained on.
        mask: (N, T), nonzero where a token is valid: of all rollouts, or of the selected ones, as you count them.
        loss_denominator: ``"kept"``: the tokens of both, so that the loss is their mean and the step does not shrink
            with the share (a smaller mask, as verl divides by its response mask). ``"all"``: the tokens of ``mask``, so
            that a token weighs the same whether others are kept or not (TRL's entropy mask).
        process_group: counts are of all ranks, divided by their number: dividing by it and averaging gradients over
            ranks, as DDP does, is the mean over the tokens of all ranks. The selection may lie on few of them.

    Returns:
        float64 tensor without dimensions; 1 where there is no token, so that the loss is 0.

    O(N T), and one all-reduce of a number.

    >>> import torch
    >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    >>> keep = torch.tensor([[True, False, False], [True, False, False]])
    >>> token_denominator(keep, mask).item(), token_denominator(keep, mask, loss_denominator="all").item()
    (2.0, 4.0)
    """
    valid = mask if isinstance(mask, Tensor) else as_tensor(mask, "mask")
    if valid.dim() != 2:
        raise ValueError(f"mask: expected shape (N, T), got {tuple(valid.shape)}")
    return _denominator(as_mask(keep, valid, "mask", "keep"), valid != 0, loss_denominator, process_group)


def token_mean(
    values: Tensor,
    keep: Any,
    mask: Any,
    *,
    loss_denominator: LossDenominator = "kept",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    r"""Sum of ``values`` over the kept tokens, divided by `token_denominator`: a loss.

    .. math:: \frac{\sum_{it} m_{it} k_{it} x_{it}}{\max(1, \sum_{it} m_{it} k_{it})}
        \quad \text{or} \quad \frac{\sum_{it} m_{it} k_{it} x_{it}}{\max(1, \sum_{it} m_{it})}

    Args:
        values: (N, T) floating point; differentiable. What is not kept is not read: NaN there changes neither the loss
            nor a gradient.
        keep, mask, loss_denominator, process_group: as in `token_denominator`; the sum is this rank's.

    Returns:
        A tensor without dimensions, in float32, or float64 for float64 values; 0 where no token is kept.

    >>> import torch
    >>> values = torch.tensor([[1.0, 5.0, torch.nan], [3.0, 0.0, 0.0]])
    >>> keep, mask = torch.tensor([[1, 0, 0], [1, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    >>> token_mean(values, keep, mask), token_mean(values, keep, mask, loss_denominator="all")
    (tensor(2.), tensor(1.))
    """
    like = as_tokens(values, "values")
    on = as_mask(mask, like, "values")
    kept = as_mask(keep, like, "values", "keep")
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    total = torch.where(kept & on, as_floating(values, "values"), 0).sum(dtype=dtype)
    return total / _denominator(kept, on, loss_denominator, process_group).to(dtype)


def _denominator(
    keep: Tensor, mask: Tensor, loss_denominator: LossDenominator, process_group: ProcessGroup | None
) -> Tensor:
    """Of bools of one shape."""
    check_choice(loss_denominator, "loss_denominator", get_args(LossDenominator))
    count = (mask if loss_denominator == "all" else mask & keep).sum()
    ranks = 1
    if process_group is not None:
        from morlfast._distributed import rank_and_world_size

        _, ranks = rank_and_world_size(process_group)
        torch.distributed.all_reduce(count, group=process_group)
    return count.clamp(min=1).to(torch.float64) / ranks


class TPPOTokens(NamedTuple):
    """Tokens of T-PPO's two losses, (N, T) bool each."""

    policy: Tensor
    value: Tensor


def t_ppo_tokens(mask: Any, finished: Any, *, selected: Any = None, prompt_mask: Any = None) -> TPPOTokens:
    """Truncated PPO's token filter: the policy learns from every generated token, the critic from finished responses.

    Args:
        mask: (N, T), nonzero where a token is valid.
        finished: (N,), nonzero where the response has ended in this window of generation.
        selected: (N, T) or (N,), nonzero where the policy may learn: the tokens of this window, where ``mask`` has
            those of earlier ones too, or what `morlfast.select_tokens` keeps; all by default. The critic's tokens are
            not narrowed, since its Monte Carlo returns are known for the whole response.
        prompt_mask: (N, T), nonzero at tokens of the prompt, which neither learns from.

    Returns:
        `TPPOTokens`. The advantages are those of `morlfast.gae` with ``bootstrap="repeat_last"`` and ``finished``, the
        critic's targets those with ``returns_lam=1.0``. O(N T).

    Source: T-PPO, arXiv 2506.15050. Reconstructed, unverified: how the paper selects tokens.

    >>> import torch
    >>> policy, value = t_ppo_tokens(torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([False, True]))
    >>> policy.tolist(), value.tolist()
    ([[True, True, True], [True, True, False]], [[False, False, False], [True, True, False]])
    """
    tensor = mask if isinstance(mask, Tensor) else as_tensor(mask, "mask")
    if tensor.dim() != 2:
        raise ValueError(f"mask: expected shape (N, T), got {tuple(tensor.shape)}")
    generated = tensor != 0
    if prompt_mask is not None:
        generated = generated & ~as_mask(prompt_mask, tensor, "mask", "prompt_mask")
    rows = tensor[:, 0] if tensor.shape[1] > 0 else tensor.new_empty(tensor.shape[0])  # of the shape (N,)
    over = as_mask(finished, rows, "the rows of mask", "finished")
    policy = generated
    if selected is not None:
        chosen = selected if isinstance(selected, Tensor) else as_tensor(selected, "selected", device=tensor.device)
        by_row = chosen.dim() == 1
        chosen = as_mask(chosen, rows if by_row else tensor, "mask", "selected")
        policy = generated & (chosen[:, None] if by_row else chosen)
    return TPPOTokens(policy, generated & over[:, None])


def _of_rollouts(advantages: Tensor, mask: Any) -> Tensor:
    """(N,), NaN for rollouts without a token; the means over the tokens of (N, T)."""
    if advantages.dim() not in (1, 2):
        raise ValueError(f"advantages: expected shape (N,) or (N, T), got {tuple(advantages.shape)}")
    if mask is None:
        if advantages.dim() == 2:
            raise ValueError("mask: expected one together with advantages (N, T), got None")
        return advantages
    if advantages.dim() == 2:
        on = as_mask(mask, advantages, "advantages")
        if advantages.shape[1] == 0:
            return advantages.new_full(advantages.shape[:1], math.nan)
        # About the first of the row's tokens, so that the mean of equal advantages is theirs.
        wide = advantages.to(torch.float64)
        pivot = wide.gather(1, on.to(torch.uint8).argmax(1, keepdim=True))
        return pivot[:, 0] + torch.where(on, wide - pivot, 0.0).sum(1) / on.sum(1)
    on = mask if isinstance(mask, Tensor) else as_tensor(mask, "mask", device=advantages.device)
    if on.dim() != 2 or on.shape[0] != advantages.shape[0]:
        raise ValueError(f"mask: expected shape ({advantages.shape[0]}, T), got {tuple(on.shape)}")
    same_device("advantages", advantages, "mask", on)
    return advantages.masked_fill(~(on != 0).any(1), math.nan)


def _as_selected(rollouts: Any, advantages: Tensor) -> Tensor:
    if not isinstance(rollouts, Tensor) or rollouts.dtype is not torch.bool:
        came = rollouts.dtype if isinstance(rollouts, Tensor) else type(rollouts).__name__
        raise TypeError(f"rollouts: expected a bool tensor, the mask of a selection, got {came}")
    if rollouts.shape != advantages.shape[:1]:
        raise ValueError(f"rollouts: expected shape {tuple(advantages.shape[:1])}, got {tuple(rollouts.shape)}")
    same_device("advantages", advantages, "rollouts", rollouts)
    return rollouts
