"""EPO: entropies of an agent's tokens, held against what past epochs had at the same step of the environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from morlfast._arguments import (
    as_float32_or_64,
    as_integer,
    as_integers,
    as_number,
    as_tensor,
    check_choice,
    same_device,
)
from morlfast._groups import as_mask, as_nonnegative, as_tokens, can_look
from morlfast.downsampling import token_mean

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class EntropyPenalty(NamedTuple):
    """What `entropy_smoothing_penalty` gives each token, (N, T) each."""

    penalty: Tensor
    """In the dtype of the entropies; 0 outside the mask."""
    in_range: Tensor
    """bool: valid tokens that get no penalty."""


def entropy_smoothing_penalty(
    entropies: Any,
    history: Any,
    steps: Any,
    mask: Any = None,
    *,
    low: float = 0.0,
    high: float = 2.0,
    penalty: float = 0.1,
    scope: Literal["token", "sequence"] = "token",
    sequence_mean: Literal["valid", "all"] = "valid",
    least_step: int = 0,
    gate: Literal["row", "batch"] = "row",
) -> EntropyPenalty:
    r"""A constant for every token whose entropy is far from the mean that past epochs had at this environment step.

    .. math:: P_{it} = \begin{cases} 0 & \kappa_l \bar h_{s_i} < H_{it} < \kappa_r \bar h_{s_i} \\ \alpha &
        \text{otherwise} \end{cases}

    Args:
        entropies: (N, T) H of the policy; one row an environment step of a trajectory.
        history: :math:`\bar h`: an `EntropyHistory`, or (S,) means of the steps 0 to S - 1; NaN where nothing is known,
            and there is no penalty then. An empty one has no penalty for anyone.
        steps: (N,) integers s, which step of its environment each row is.
        mask: (N, T), nonzero where a token is valid; all by default.
        low, high: :math:`\kappa_l, \kappa_r`; the ends of the range are outside. The defaults are those of the
            authors' scripts; their configuration has 0.8 and 1.2.
        penalty: :math:`\alpha`; the scripts have 0.1 for ALFWorld and 0.05 for ScienceWorld.
        scope: ``"token"``: each token's own entropy decides; ``"sequence"``: the mean of the row's decides for the row.
        sequence_mean: over the row's ``"valid"`` tokens, or over ``"all"`` T, as in the authors' code, which then are
            all read: a NaN outside the mask penalizes its row.
        least_step: rows of earlier steps get no penalty; the authors' code has half of the most steps (25).
        gate: ``"row"``: `least_step` is asked of each row. ``"batch"``: if any row has come so far, all rows count, as
            in the authors' code, where it depends on how micro-batches are cut.

    Returns:
        `EntropyPenalty`. It is piecewise constant, so it has **no gradient**: in a loss it moves the value that is
        logged and no weight. Entropies are compared in float32, or in float64. A NaN entropy is outside every range.
        O(N T).

    Steps beyond the history raise on the CPU; a GPU does not look, and has no penalty for them.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: EPO, arXiv 2509.22576, and its code.

    >>> import torch
    >>> entropies = torch.tensor([[0.1, 0.5, 1.2, 2.5], [0.0, 0.4, 0.9, 0.3]])
    >>> entropy_smoothing_penalty(entropies, torch.tensor([0.6, 0.5, 0.4]), torch.tensor([0, 2])).penalty
    tensor([[0.0000, 0.0000, 0.1000, 0.1000],
            [0.1000, 0.0000, 0.1000, 0.0000]])
    """
    given = as_tokens(entropies, "entropies")
    rows = as_integers(steps, "steps", "entropies", given)
    if rows.shape != given.shape[:1]:
        raise ValueError(f"steps: expected shape ({given.shape[0]},), got {tuple(rows.shape)}")
    if isinstance(history, EntropyHistory):
        past = history.means()
    else:
        past = as_float32_or_64(history, "history", device=given.device)
    if past.dim() != 1:
        raise ValueError(f"history: expected shape (S,), got {tuple(past.shape)}")
    same_device("entropies", given, "history", past)
    low, high, alpha = as_number(low, "low"), as_number(high, "high"), as_number(penalty, "penalty")
    if not low < high:
        raise ValueError(f"low, high: expected low < high, got {low!r} and {high!r}")
    least_step = as_integer(least_step, "least_step")
    check_choice(scope, "scope", ("token", "sequence"))
    check_choice(sequence_mean, "sequence_mean", ("valid", "all"))
    check_choice(gate, "gate", ("row", "batch"))
    on = torch.ones_like(given, dtype=torch.bool) if mask is None else as_mask(mask, given, "entropies")

    h = given if given.dtype is torch.float64 else given.to(torch.float32)
    expected = _of_steps(past.to(h.dtype), rows.to(torch.int64))[:, None]
    if scope == "sequence":
        counted = on if sequence_mean == "valid" else torch.ones_like(on)
        count = counted.sum(1, keepdim=True)
        h = torch.where(counted, h, 0.0).sum(1, keepdim=True) / count
    inside = (h > expected * low) & (h < expected * high)
    active = rows >= least_step
    if gate == "batch":
        active = active.any().expand(active.shape)
    outside = ~inside & ~expected.isnan() & active[:, None] & on
    return EntropyPenalty(torch.where(outside, alpha, torch.zeros_like(given)), on & ~outside)


def _of_steps(history: Tensor, steps: Tensor) -> Tensor:
    """(N,), NaN where the history has no such step."""
    count = history.shape[0]
    if can_look(steps) and (bool((steps < 0).any()) or (count > 0 and bool((steps >= count).any()))):
        raise ValueError(f"steps: expected values from 0 to {count - 1}, got {steps.min()} to {steps.max()}")
    if count == 0:
        return history.new_full(steps.shape, math.nan)
    known = (steps >= 0) & (steps < count)
    return torch.where(known, history[steps.clamp(0, count - 1)], math.nan)


class EntropyHistory:
    r"""Mean entropy of the tokens at each step of the environment, averaged over epochs.

    .. math:: \bar h_s = \frac{1}{|E_s|} \sum_{e \in E_s} \frac{\sum_{i : s_i = s} \sum_t m_{it} H_{it}}
        {\sum_{i : s_i = s} \sum_t m_{it}}

    over the epochs :math:`E_s` that have reached step s. (The authors' code counts a step that an epoch did not reach
    as 0, and moves the others of that epoch to the last steps.) Their code adds an epoch's rollouts before it trains on
    them, so that an epoch is part of what it is held against; call `update` before or after, as you mean it.

    Args:
        num_steps: S, the most steps that the environment has.
        device: of the state, which is float64.

    Source: EPO, arXiv 2509.22576, and its code.

    >>> import torch
    >>> history = EntropyHistory(3)
    >>> history.update(torch.tensor([[1.0, 3.0], [4.0, 9.0]]), torch.tensor([0, 1]), torch.tensor([[1, 1], [1, 0]]))
    >>> history.update(torch.tensor([[4.0, 4.0]]), torch.tensor([0]))
    >>> history.means()
    tensor([3., 4., nan], dtype=torch.float64)
    """

    def __init__(self, num_steps: int, *, device: Any = None) -> None:
        count = as_integer(num_steps, "num_steps")
        if count < 0:
            raise ValueError(f"num_steps: expected an int >= 0, got {count}")
        self.sums = torch.zeros(count, dtype=torch.float64, device=device)
        self.epochs = torch.zeros(count, dtype=torch.int64, device=device)

    def update(
        self, entropies: Any, steps: Any, mask: Any = None, *, process_group: ProcessGroup | None = None
    ) -> None:
        """Adds an epoch.

        Args:
            entropies: (N, T), one row an environment step of a trajectory.
            steps: (N,) integers, which step of its environment each row is. Out of range they raise on the CPU; a GPU
                does not look, and leaves such rows out.
            mask: (N, T), nonzero where a token is valid; all by default. NaN and infinite entropies are left out.
            process_group: the epoch is that of all ranks' rows, so that every rank has the same history.
        """
        h = as_tokens(entropies, "entropies")
        same_device("the history", self.sums, "entropies", h)
        rows = as_integers(steps, "steps", "entropies", h).to(torch.int64)
        if rows.shape != h.shape[:1]:
            raise ValueError(f"steps: expected shape ({h.shape[0]},), got {tuple(rows.shape)}")
        on = h.isfinite() if mask is None else h.isfinite() & as_mask(mask, h, "entropies")
        count = self.sums.shape[0]
        known = (rows >= 0) & (rows < count)
        if can_look(rows) and not bool(known.all()):
            raise ValueError(f"steps: expected values >= 0 and below {count}, got {rows.min()} to {rows.max()}")
        own = torch.stack([torch.where(on, h.to(torch.float64), 0.0).sum(1), on.sum(1).to(torch.float64)], 1)
        table = own.new_zeros(count + 1, 2)
        table.index_add_(0, torch.where(known, rows, count), own)
        if process_group is not None:
            from morlfast._distributed import rank_and_world_size

            rank_and_world_size(process_group)  # or TypeError
            torch.distributed.all_reduce(table, group=process_group)
        total, tokens = table[:count].unbind(1)
        self.sums = self.sums + torch.where(tokens > 0, total / tokens.clamp(min=1), 0.0)
        self.epochs = self.epochs + (tokens > 0)

    def means(self) -> Tensor:
        r""":math:`\bar h`, (S,) float64; NaN for steps that no epoch has reached."""
        return self.sums / self.epochs

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on: copies."""
        return {"sums": self.sums.clone(), "epochs": self.epochs.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of the same number of steps, on this history's device."""
        loaded = EntropyHistory(self.sums.shape[0], device=self.sums.device)
        for name in ("sums", "epochs"):
            if not isinstance(state, Mapping) or name not in state:
                raise ValueError(f"{name}: expected in the state, got none")
            own = getattr(self, name)
            came = as_tensor(state[name], name, dtype=own.dtype, device=own.device)
            if came.shape != own.shape:
                raise ValueError(f"{name}: expected shape {tuple(own.shape)}, got {tuple(came.shape)}")
            setattr(loaded, name, came.clone())
        if not bool(((loaded.epochs >= 0) & loaded.sums.isfinite()).all()):
            raise ValueError("sums, epochs: expected finite sums and counts >= 0")
        vars(self).update(vars(loaded))


def epo_weight(epoch: int, total_epochs: int, *, drop: float = 0.2, slow: float = 2.0, fast: float = 3.0) -> float:
    r"""EPO's weight of the smoothing penalty, which falls slowly in the first half of training and fast in the second.

    .. math:: \beta_k = \begin{cases} 1 - d \, (1 - e^{-\gamma_s k / h}) & k \le h \\
        (1 - d) \, e^{-\gamma_f (k - h) / (K - h)} & k > h \end{cases} \qquad h = \lfloor K / 2 \rfloor

    Args:
        epoch: k, from 0; beyond K it counts as K.
        total_epochs: K, at least 1.
        drop, slow, fast: :math:`d, \gamma_s, \gamma_f`. At h the slow part is at 0.827 with the defaults and the fast
            one starts at 0.8.

    Source: EPO, arXiv 2509.22576: its code. The form in the paper is unverified; one description has
    :math:`1 + e^{-\gamma k / k_\mathrm{mid}}`.

    >>> [round(epo_weight(k, 150), 4) for k in (0, 75, 76, 150)]
    [1.0, 0.8271, 0.7686, 0.0398]
    """
    k, total = as_integer(epoch, "epoch"), as_integer(total_epochs, "total_epochs")
    if total < 1:
        raise ValueError(f"total_epochs: expected a positive int, got {total}")
    if k < 0:
        raise ValueError(f"epoch: expected an int >= 0, got {k}")
    d, slow, fast = as_nonnegative(drop, "drop"), as_nonnegative(slow, "slow"), as_nonnegative(fast, "fast")
    if d > 1:
        raise ValueError(f"drop: expected a number from 0 to 1, got {d!r}")
    k, half = min(k, total), total // 2
    if k <= half:
        return 1 - d * (1 - math.exp(-slow * k / max(half, 1)))
    return (1 - d) * math.exp(-fast * (k - half) / (total - half))


def epo_loss(
    policy_loss: Tensor | float,
    entropies: Tensor,
    penalty: Any,
    mask: Any = None,
    *,
    weight: float = 1.0,
    entropy_coef: float = 1e-3,
    smoothing_coef: float = 1.0,
) -> Tensor:
    r"""EPO's loss: the policy's, less an entropy bonus from which the smoothing penalty is taken off.

    .. math:: L = L_\mathrm{pg} - c_e \, (\bar H - c_s \beta_k \bar P)

    with means over the valid tokens.

    Args:
        policy_loss: a number or a tensor without dimensions; differentiable.
        entropies: (N, T) floating point; differentiable.
        penalty: (N, T), of `entropy_smoothing_penalty`; a constant.
        mask: (N, T), nonzero where a token is valid; all by default. NaN elsewhere is not read.
        weight: :math:`\beta_k` of `epo_weight`.
        entropy_coef, smoothing_coef: :math:`c_e, c_s`.

    Returns:
        A tensor without dimensions; both means are 0 without valid tokens. Its gradient is that of
        :math:`L_\mathrm{pg} - c_e \bar H`: the penalty is constant in the policy. O(N T).

    Source: EPO, arXiv 2509.22576, and its code, whose other aggregations of the loss are not here.

    >>> import torch
    >>> entropies = torch.tensor([[0.1, 0.5, 1.2, 2.5], [0.0, 0.4, 0.9, 0.3]])
    >>> penalty = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.1, 0.0, 0.1, 0.0]])
    >>> round(epo_loss(0.0, entropies, penalty).item(), 8)
    -0.0006875
    """
    given = as_tokens(entropies, "entropies")
    constant = as_tokens(penalty, "penalty", given, "entropies")
    on = torch.ones_like(given, dtype=torch.bool) if mask is None else as_mask(mask, given, "entropies")
    c_e, c_s = as_number(entropy_coef, "entropy_coef"), as_number(smoothing_coef, "smoothing_coef")
    bonus = token_mean(entropies, on, on) - c_s * as_number(weight, "weight") * token_mean(constant, on, on)
    return policy_loss - c_e * bonus
