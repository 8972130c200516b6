"""What is still to come at each token: returns, generalized advantages, V-trace, and their whitening."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from morlfast import _ops
from morlfast._arguments import as_bool, as_floating, as_number, as_tensor, same_device

Outside = Literal["zero", "carry"]
Convention = Literal["bessel", "population"]

_UNREAD = {torch.uint16, torch.uint32, torch.uint64}  # dtypes of masks that the operators do not read
_CONVENTIONS = {"bessel": (1e-8, 1, 1), "population": (1e-4, 2, 0)}  # eps, what it is added to, ddof


class GAE(NamedTuple):
    """Advantages and the returns that a critic is regressed on, (N, T) each."""

    advantages: Tensor
    returns: Tensor


class DualCriticGAE(NamedTuple):
    """The larger advantage at each token, the returns of both critics, and where the second one's was larger."""

    advantages: Tensor
    returns: Tensor
    post_returns: Tensor
    from_post: Tensor


class VTrace(NamedTuple):
    """Targets of the critic and advantages of the policy, (N, T) each."""

    targets: Tensor
    advantages: Tensor


def linear_scan(
    x: Any, a: Any, initial: Any = None, *, mask: Any = None, reverse: bool = True, outside: Outside = "zero"
) -> Tensor:
    r"""The linear recurrence that returns, traces and advantages are instances of.

    .. math:: y_t = x_t + a_t y_{t+1}, \qquad y_T = \text{initial}

    or, with ``reverse=False``, :math:`y_t = x_t + a_t y_{t-1}` from the first token to the last.

    Args:
        x: (N, T); float32, float64, bfloat16 or float16.
        a: a number, (N,) or (N, T); any of these dtypes. An expanded tensor is read as it is.
        initial: (N,), the state before the first step; 0 by default.
        mask: (N, T) bool, integer or floating point; a token with 0 hands the state on as it is.
        outside: what tokens outside the mask get: ``"zero"``, or the state that they ``"carry"``.

    Returns:
        (N, T) with the dtype and device of ``x``. Differentiable once in x, a and initial (reverse mode, not under
        `torch.func`).

    On the CPU the state is float64. A factor of exactly 0 cuts: nothing behind it matters, not even a NaN or infinity;
    otherwise they spread to the rest of their row, and to no other row. Empty rows are fine. O(N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> linear_scan(torch.tensor([[1.0, 2.0, 4.0]]), 0.5)
    tensor([[3., 4., 4.]])
    """
    x = _matrix(x, "x")
    n, t = x.shape
    valid = _flags(mask, "mask", x, "x")
    start = _one_a_row(initial, "initial", x, "x")
    number, factors = _factor(a, "a", x, "x")
    if factors is None:
        factors = torch.full((1,), number, dtype=torch.float64, device=x.device).expand(n)
    reverse, carry = as_bool(reverse, "reverse"), _carries(outside)
    if not _needs_grad(x, factors, start):
        return _ops.linear_scan(x, factors, start, valid, reverse, carry)
    if factors.dim() == 1:
        factors = factors[:, None].expand(n, t)
    if valid is None:
        return _scan(x, factors, start, reverse)
    valid = valid != 0
    y = _scan(torch.where(valid, x, 0.0), torch.where(valid, factors, 1.0), start, reverse)
    return y if carry else torch.where(valid, y, 0.0)


def discounted_returns(
    rewards: Any,
    gamma: Any = 1.0,
    *,
    mask: Any = None,
    done: Any = None,
    bootstrap: Any = None,
    outside: Outside = "zero",
) -> Tensor:
    r"""Discounted return from each token on, under a fixed or a learned discount.

    .. math:: G_t = r_t + \gamma_t (1 - d_t) G_{t+1}

    Args:
        rewards: (N, T); float32, float64, bfloat16 or float16 (integers become float32).
        gamma: a number, or a tensor (), (N,) or (N, T): the discount between t and t + 1. Gradients reach it.
        mask: (N, T) bool, integer or floating point; tokens with 0 are skipped: their rewards do not count and
            they do not discount (verl's REINFORCE++).
        done: (N, T), nonzero at the last token of an episode, behind which a return sees nothing.
        bootstrap: (N,) value behind the last token; 0 by default.
        outside: what tokens outside the mask get: ``"zero"``, or the return that they ``"carry"``.

    Returns:
        (N, T) with the dtype and device of ``rewards``. Differentiable once, in rewards, gamma and bootstrap.

    NaN spreads to the earlier tokens of its row. O(N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Sources: REINFORCE++, arXiv 2501.03262; BARFI's learned discount (reconstructed, the paper's exact form is
    unverified), whose :math:`\partial G / \partial \gamma` is the gradient here.

    >>> discounted_returns(torch.tensor([[0.2, 0.05, 2.25]]), 0.9)
    tensor([[2.0675, 2.0750, 2.2500]])
    """
    rewards = _matrix(rewards, "rewards")
    ends = _flags(done, "done", rewards, "rewards")
    number, factors = _factor(gamma, "gamma", rewards, "rewards")
    if ends is not None:
        factors = torch.where(ends != 0, 0.0, _column(number, factors, rewards))
    start = _one_a_row(bootstrap, "bootstrap", rewards, "rewards")
    return linear_scan(rewards, number if factors is None else factors, start, mask=mask, outside=outside)


def reward_to_go(rewards: Any, *, mask: Any = None, outside: Outside = "zero") -> Tensor:
    r"""Sum of the rewards from each token on: `discounted_returns` with a discount of 1.

    .. math:: G_t = \sum_{u \ge t} r_u

    Args, result and errors: as in `discounted_returns`.

    >>> reward_to_go(torch.tensor([[0.0, 1.0, 2.0]]))
    tensor([[3., 3., 2.]])
    """
    return discounted_returns(rewards, 1.0, mask=mask, outside=outside)


def turn_returns(rewards: Any, turn_ends: Any, gamma: Any = 1.0, *, mask: Any = None) -> Tensor:
    r"""Discounted return of each turn, on every token of the turn.

    .. math:: G_k = \sum_{t \in \text{turn } k} r_t + \gamma_k G_{k+1}

    Args:
        rewards: (N, T), anywhere in a turn; float32, float64, bfloat16 or float16 (integers become float32).
        turn_ends: (N, T) bool, integer or floating point, nonzero at the last token of each turn, inside the mask or
            not. Tokens behind a row's last end are one more turn.
        gamma: the discount between turns: a number, or a tensor (), (N,) or (N, T) read at the ends.
        mask: (N, T); rewards of tokens with 0 do not count, and they get 0. A turn of such tokens only is a turn
            without reward.

    Returns:
        (N, T) with the dtype and device of ``rewards``. Differentiable once, in rewards and gamma.

    A NaN reward makes its whole turn and the earlier ones of its row NaN. O(N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: IGPO, arXiv 2510.14967, whose code finds the ends by looking for nonzero rewards; here they are given.

    >>> ends = torch.tensor([[0, 1, 0, 1]])
    >>> turn_returns(torch.tensor([[0.0, 1.0, 0.0, 4.0]]), ends, 0.5)
    tensor([[3., 3., 4., 4.]])
    """
    rewards = _matrix(rewards, "rewards")
    ends = _flags(turn_ends, "turn_ends", rewards, "rewards")
    if ends is None:
        raise TypeError("turn_ends: expected a mask of shape (N, T), got None")
    valid = _flags(mask, "mask", rewards, "rewards")
    number, factors = _factor(gamma, "gamma", rewards, "rewards")
    ends = ends != 0
    counted = rewards if valid is None else torch.where(valid != 0, rewards, 0.0)
    suffix = linear_scan(counted.double(), torch.where(ends, _column(number, factors, rewards), 1.0))
    # The suffix is the turn's return at its first token, which the others take over from there.
    starts = torch.cat([torch.ones_like(ends[:, :1]), ends[:, :-1]], 1)
    held = linear_scan(torch.where(starts, suffix, 0.0), torch.where(starts, 0.0, 1.0), reverse=False)
    return (held if valid is None else torch.where(valid != 0, held, 0.0)).to(rewards.dtype)


def return_differences(returns: Any, *, mask: Any = None) -> Tensor:
    r"""What each trial gained over the one before it: Retroformer's reward of a reflection.

    .. math:: r_{k,i} = G_{k,i+1} - G_{k,i}

    Args:
        returns: (K, I + 1) episode returns of the trials of K tasks, float32, float64, bfloat16 or float16.
        mask: (K, I + 1), nonzero where a trial took place.

    Returns:
        (K, I) with the dtype and device of ``returns``; 0 unless both trials took place. Differentiable. O(K I).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Retroformer, arXiv 2308.02151.

    >>> return_differences(torch.tensor([[0.0, 0.25, 0.25, 1.0]]))
    tensor([[0.2500, 0.0000, 0.7500]])
    """
    returns = _matrix(returns, "returns")
    if returns.shape[1] < 1:
        raise ValueError(f"returns: expected at least one trial, got shape {tuple(returns.shape)}")
    valid = _flags(mask, "mask", returns, "returns")
    gains: Tensor = returns[:, 1:] - returns[:, :-1]
    if valid is None:
        return gains
    return torch.where((valid[:, 1:] != 0) & (valid[:, :-1] != 0), gains, 0.0)


def gae(
    rewards: Any,
    values: Any,
    *,
    gamma: Any = 1.0,
    lam: Any = 0.95,
    returns_lam: Any = None,
    mask: Any = None,
    terminated: Any = None,
    done: Any = None,
    next_values: Any = None,
    bootstrap: Any = "zero",
    finished: Any = None,
    outside: Outside = "zero",
) -> GAE:
    r"""Generalized advantage estimation.

    .. math::
        \delta_t &= r_t + \gamma (1 - \mathrm{terminated}_t) V_{t+1} - V_t \\
        A_t &= \delta_t + \gamma \lambda (1 - \mathrm{done}_t) A_{t+1}, \qquad R_t = A_t + V_t

    Args:
        rewards, values: (N, T); float32, float64, bfloat16 or float16 (integers become float32).
        gamma, lam: numbers, or tensors (), (N,) or (N, T). See `length_adaptive_lambda`.
        returns_lam: lambda of the returns, where it is another than that of the advantages (VAPO's decoupled GAE:
            1.0 for the critic).
        mask: (N, T) bool, integer or floating point. Tokens with 0 are skipped: the next value and the trace are those
            of the next token of the mask (verl, NeMo-RL), and their reward and value are not looked at.
        terminated: (N, T), nonzero where the episode is over: the next value counts 0.
        done: (N, T), nonzero where the trace is cut, by termination or truncation; ``terminated`` by default.
        next_values: (N, T) values of the states that were reached; by default those of the next tokens, which behind a
            truncation are another episode's.
        bootstrap: value behind the last token of a row, which a row that was cut short needs: ``"zero"``,
            ``"repeat_last"`` (the last token's own value: EGAE) or a tensor (N,). Not with ``next_values``.
        finished: (N,), nonzero for rows whose bootstrap is 0 whatever ``bootstrap`` says.
        outside: what tokens outside the mask get: ``"zero"``, or the advantage that they ``"carry"``, and it plus
            their value as return (verl's numbers; its loss masks them).

    Returns:
        GAE(advantages, returns), (N, T) each, in the wider dtype of rewards and values. Differentiable once in
        rewards, values, gamma, lam, returns_lam, next_values and bootstrap; pass ``values.detach()`` for a baseline.

    On the CPU the state is float64. Masks select: what lies behind an end or outside the mask does not leak, not even
    a NaN. A NaN inside spreads to the earlier tokens of its row up to a cut, and to no other row. A row without a token
    is all 0. O(N T); masks are read as they are, not converted.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Sources: Schulman et al. (2016), arXiv 1506.02438; two masks: Uni-O4, arXiv 2311.03351; decoupled: VAPO, arXiv
    2504.05118; EGAE: T-PPO, arXiv 2506.15050 (its bootstrap, from second-hand descriptions of the paper).

    >>> values = torch.tensor([[0.2, 0.3, 0.5, 0.4]])
    >>> gae(torch.zeros(1, 4), values, bootstrap="repeat_last").advantages
    tensor([[ 0.1998,  0.1050, -0.1000,  0.0000]])
    """
    rewards, values = _matrix(rewards, "rewards"), _matrix(values, "values")
    _same_shape(values, "values", rewards, "rewards")
    gammas, lams = _factor(gamma, "gamma", rewards, "rewards"), _factor(lam, "lam", rewards, "rewards")
    own = None if returns_lam is None else _factor(returns_lam, "returns_lam", rewards, "rewards")
    valid, ends = (_flags(x, name, rewards, "rewards") for x, name in ((mask, "mask"), (terminated, "terminated")))
    cuts = ends if done is None else _flags(done, "done", rewards, "rewards")
    if next_values is not None:
        next_values = _matrix(next_values, "next_values", rewards)
        _same_shape(next_values, "next_values", rewards, "rewards")
        if finished is not None or not (isinstance(bootstrap, str) and bootstrap == "zero"):
            raise ValueError("bootstrap, finished: expected neither with next_values, which say what lies behind")
    repeat_last = False
    if isinstance(bootstrap, str):
        if bootstrap not in ("zero", "repeat_last"):
            raise ValueError(f'bootstrap: expected "zero", "repeat_last" or a tensor, got {bootstrap!r}')
        repeat_last, bootstrap = bootstrap == "repeat_last", None
    behind = _one_a_row(bootstrap, "bootstrap", rewards, "rewards")
    over = None if finished is None else _as_flags(finished, "finished", rewards)
    if over is not None:
        _check_rows(over, "finished", rewards, "rewards")
    carry = _carries(outside)
    tensors = (rewards, values, gammas[1], lams[1], own and own[1], next_values, behind)
    if _needs_grad(*tensors):
        return _differentiable_gae(
            rewards, values, gammas, lams, own, valid, ends, cuts, next_values, behind, over, repeat_last, carry
        )
    return GAE(
        *_ops.gae(
            rewards,
            values,
            gamma=gammas[0],
            lam=lams[0],
            returns_lam=own and own[0],
            gammas=gammas[1],
            lams=lams[1],
            returns_lams=own and own[1],
            mask=valid,
            terminated=ends,
            done=cuts,
            next_values=next_values,
            bootstrap=behind,
            finished=over,
            repeat_last=repeat_last,
            carry=carry,
        )
    )


def length_adaptive_lambda(lengths: Any, alpha: float = 0.05) -> Tensor:
    r"""Lambda that grows with the response, so that a reward reaches the first token of a long one too.

    .. math:: \lambda = 1 - \frac{1}{\max(\alpha \ell, 1)}

    Args:
        lengths: (N,) tokens of each response, or their mask (N, T).
        alpha: the larger, the less bias; finite.

    Returns:
        (N,) float64 in [0, 1), for `gae`; 0 where alpha times the length is at most 1.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: VAPO, arXiv 2504.05118; the clamp is NeMo-RL's.

    >>> length_adaptive_lambda([10, 100, 1000])
    tensor([0.0000, 0.8000, 0.9800], dtype=torch.float64)
    """
    tensor = lengths if isinstance(lengths, Tensor) else as_tensor(lengths, "lengths")
    if tensor.dtype.is_complex:
        raise TypeError(f"lengths: expected real numbers, got {tensor.dtype}")
    if tensor.dim() not in (1, 2):
        raise ValueError(f"lengths: expected shape (N,) or a mask (N, T), got {tuple(tensor.shape)}")
    alpha = as_number(alpha, "alpha")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: expected a finite number > 0, got {alpha!r}")
    counts = tensor if tensor.dim() == 1 else (tensor != 0).sum(1)
    return 1 - 1 / (alpha * counts.to(torch.float64)).clamp(min=1.0)


def dual_critic_advantages(
    rewards: Any, values: Any, post_rewards: Any, post_values: Any, *, gamma: Any = 1.0, lam: Any = 1.0, **options: Any
) -> DualCriticGAE:
    r"""The larger of two advantages at each token: of the states and of the post-decision states.

    .. math:: A_t = \max(A^x_t, A_t), \qquad \text{with } \lambda = 1: \max(R^x - V^x(s^x), R - V(s))

    Args:
        rewards, values: (N, T), the rewards and critic of the states.
        post_rewards, post_values: (N, T), those of the post-decision states (after the deterministic part of a step).
        gamma, lam, options: as in `gae`, the same for both.

    Returns:
        DualCriticGAE(advantages, returns, post_returns, from_post), (N, T) each. Equal advantages count as the states'
        own, their gradient too; a NaN in either gives NaN. Differentiable as `gae`. O(N T).

    Raises: as `gae`.

    Source: PDPPO (post-decision PPO), from two independent summaries with the same equations.

    >>> dual_critic_advantages(torch.tensor([[3.0]]), [[2.0]], torch.tensor([[2.5]]), [[2.2]]).advantages
    tensor([[1.]])
    """
    rewards, values = _matrix(rewards, "rewards"), _matrix(values, "values")
    post_rewards, post_values = _matrix(post_rewards, "post_rewards"), _matrix(post_values, "post_values")
    for name, tensor in (("values", values), ("post_rewards", post_rewards), ("post_values", post_values)):
        _same_shape(tensor, name, rewards, "rewards")
    own = gae(rewards, values, gamma=gamma, lam=lam, **options)
    post = gae(post_rewards, post_values, gamma=gamma, lam=lam, **options)
    from_post = post.advantages > own.advantages
    larger = torch.where(from_post | post.advantages.isnan(), post.advantages, own.advantages)
    return DualCriticGAE(larger, own.returns, post.returns, from_post)


def v_trace(
    rewards: Any,
    values: Any,
    log_ratios: Any,
    *,
    gamma: Any = 1.0,
    lam: Any = 1.0,
    mask: Any = None,
    terminated: Any = None,
    done: Any = None,
    bootstrap: Any = None,
    max_rho: float = 1.0,
    max_c: float = 1.0,
    max_pg_rho: float = 1.0,
) -> VTrace:
    r"""Off-policy targets and advantages by truncated importance sampling.

    .. math::
        \delta_t &= \rho_t (r_t + \gamma V_{t+1} - V_t), \qquad \rho_t = \min(\bar\rho, \pi_t / \mu_t) \\
        v_t &= V_t + \delta_t + \gamma c_t (v_{t+1} - V_{t+1}), \qquad c_t = \lambda \min(\bar c, \pi_t / \mu_t) \\
        A_t &= \min(\bar\rho_{pg}, \pi_t / \mu_t) (r_t + \gamma v_{t+1} - V_t)

    Args:
        rewards, values: (N, T), as in `gae`.
        log_ratios: (N, T), :math:`\log \pi - \log \mu` of target and behaviour policy.
        gamma, lam, mask, terminated, done: as in `gae`.
        bootstrap: (N,) value behind the last token; 0 by default.
        max_rho, max_c, max_pg_rho: where ratios are cut off, ``math.inf`` for nowhere.

    Returns:
        VTrace(targets, advantages), (N, T) each, 0 outside the mask. Not differentiable: both are targets.

    With equal policies and lambda 1 the targets are the returns. NaN spreads as in `gae`. O(N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: IMPALA, Espeholt et al. (2018), arXiv 1802.01561, eq. 1 and section 4.2; max_pg_rho is that of its code.

    >>> v_trace(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, -9.0]])).targets
    tensor([[0.5001, 0.5001]])
    """
    rewards, values = _matrix(rewards, "rewards").detach(), _matrix(values, "values").detach()
    ratios = _matrix(log_ratios, "log_ratios", rewards).detach()
    _same_shape(values, "values", rewards, "rewards")
    _same_shape(ratios, "log_ratios", rewards, "rewards")
    limits = {"max_rho": max_rho, "max_c": max_c, "max_pg_rho": max_pg_rho}
    for name, limit in limits.items():
        if not as_number(limit, name) >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {limit!r}")
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    v = values.double()
    bootstrap = "zero" if bootstrap is None else _one_a_row(bootstrap, "bootstrap", rewards, "rewards")
    one_step = {"gamma": gamma, "lam": 0.0, "mask": mask, "terminated": terminated, "bootstrap": bootstrap}
    with torch.no_grad():
        ratios = ratios.double().exp()
        trace = ratios.clamp(max=max_c)
        for name, factor in (("gamma", gamma), ("lam", lam)):
            trace = trace * _column(*_factor(factor, name, rewards, "rewards"), rewards)
        cuts, name = (terminated, "terminated") if done is None else (done, "done")
        cuts = _flags(cuts, name, rewards, "rewards")
        if cuts is not None:
            trace = torch.where(cuts != 0, 0.0, trace)
        delta = gae(rewards, v, **one_step).advantages * ratios.clamp(max=max_rho)
        valid = _flags(mask, "mask", rewards, "rewards")
        targets = v + linear_scan(delta, trace, mask=valid)
        # r + gamma v' - V, the next target wherever the mask has the next token.
        advantages = (gae(rewards, targets, **one_step).advantages + targets - v) * ratios.clamp(max=max_pg_rho)
        if valid is not None:
            targets, advantages = (torch.where(valid != 0, x, 0.0) for x in (targets, advantages))
    return VTrace(targets.to(dtype), advantages.to(dtype))


def kl_shaped_rewards(
    scores: Any, log_probs: Any, ref_log_probs: Any, *, beta: float = 0.05, mask: Any = None
) -> Tensor:
    r"""Rewards of tokens: a penalty for leaving the reference policy, and the score at the last token.

    .. math:: r_t = -\beta (\log \pi_t - \log \pi^{ref}_t) + \text{score} \cdot [t = \text{last}]

    Args:
        scores: (N,) rewards of whole responses.
        log_probs, ref_log_probs: (N, T) of the sampled tokens; float32, float64, bfloat16 or float16.
        beta: weight of the penalty.
        mask: (N, T), nonzero at the response's tokens; all by default.

    Returns:
        (N, T) with the dtype and device of ``log_probs``, 0 outside the mask. A row without tokens is all 0: its score
        has nowhere to go. NaN stays where it is. Differentiable in all three. O(N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: RLHF-PPO as Meta policy optimization (MPO, arXiv 2504.20157) uses it, with beta 0.05.

    >>> kl_shaped_rewards([3.0], torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -2.0]]), beta=0.5)
    tensor([[-0.5000,  3.0000]])
    """
    log_probs = _matrix(log_probs, "log_probs")
    ref_log_probs = _matrix(ref_log_probs, "ref_log_probs", log_probs)
    _same_shape(ref_log_probs, "ref_log_probs", log_probs, "log_probs")
    score = _one_a_row(scores, "scores", log_probs, "log_probs")
    if score is None:
        raise TypeError("scores: expected numbers of shape (N,), got None")
    beta = as_number(beta, "beta")
    valid = _flags(mask, "mask", log_probs, "log_probs")
    shaped = -beta * (log_probs.double() - ref_log_probs.double())
    at = torch.arange(log_probs.shape[1], device=log_probs.device)
    if valid is None:
        is_last = (at == log_probs.shape[1] - 1).expand(shaped.shape)
    else:
        valid = valid != 0
        shaped = torch.where(valid, shaped, 0.0)
        is_last = valid & (valid.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(is_last, shaped + score.double()[:, None], shaped).to(log_probs.dtype)


def whiten(
    values: Any,
    mask: Any = None,
    *,
    convention: Convention = "bessel",
    eps: float | None = None,
    shift_mean: bool = True,
    outside: Literal["zero", "whiten"] = "zero",
) -> Tensor:
    r"""Values less their mean over their deviation, over all tokens of the mask: a long response weighs more.

    ==============  ======================================================  ===================================
    ``bessel``      :math:`(x - \mu) / \sqrt{\sigma^2_{n-1} + 10^{-8}}`     verl, ROLL, NeMo-RL's GAE
    ``population``  :math:`(x - \mu) / \sqrt{\max(\sigma^2_n, 10^{-8})}`    OpenRLHF, NeMo-RL's REINFORCE++
    ==============  ======================================================  ===================================

    Args:
        values: (N, T); float32, float64, bfloat16 or float16.
        mask: (N, T) bool, integer or floating point, nonzero where a token counts; all by default.
        convention: which of the two.
        eps: instead of 1e-8: inside the root (bessel), the least variance (population).
        shift_mean: False adds the mean again.
        outside: tokens outside the mask get ``"zero"``, or the same formula (``"whiten"``, as verl).

    Returns:
        (N, T) with the dtype and device of ``values``. Not differentiable.

    Statistics are float64 about the first value: equal values give exactly 0 (or their mean). One token, or none, gives
    0, where verl raises. A NaN or infinity inside the mask makes every result NaN. O(N T).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> whiten(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[1, 1], [1, 0]]))
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """
    values = _matrix(values, "values")
    valid = _flags(mask, "mask", values, "values")
    if not isinstance(convention, str) or convention not in _CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(_CONVENTIONS)}, got {convention!r}")
    constant, eps_to, ddof = _CONVENTIONS[convention]
    if eps is not None:
        constant = as_number(eps, "eps")
        if not constant >= 0:
            raise ValueError(f"eps: expected a number >= 0, got {eps!r}")
        if convention == "population":
            constant = constant**0.5
    if outside not in ("zero", "whiten"):
        raise ValueError(f'outside: expected "zero" or "whiten", got {outside!r}')
    shift_mean = as_bool(shift_mean, "shift_mean")
    return _ops.whiten(values.detach(), valid, constant, eps_to, ddof, shift_mean, outside == "whiten")


# --- arguments ---


def _matrix(values: Any, name: str, like: Tensor | None = None) -> Tensor:
    """With `like` what only goes with it, and does not decide the result's dtype."""
    tensor = as_floating(values, name) if like is None else _auxiliary(values, name, like)
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected shape (N, T), got {tuple(tensor.shape)}")
    return tensor


def _auxiliary(values: Any, name: str, like: Tensor) -> Tensor:
    """Floating point on the device of `like`; what is not yet becomes float64: Python's floats are doubles."""
    if isinstance(values, Tensor):
        return as_floating(values, name)
    tensor = as_tensor(values, name, device=like.device, dtype=None if hasattr(values, "dtype") else torch.float64)
    return as_floating(tensor, name) if tensor.is_floating_point() or tensor.dtype.is_complex else tensor.double()


def _same_shape(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name}: expected the shape of {like_name} {tuple(like.shape)}, got {tuple(tensor.shape)}")
    same_device(like_name, like, name, tensor)


def _flags(flags: Any, name: str, like: Tensor, like_name: str) -> Tensor | None:
    """A mask as it is: nonzero counts."""
    if flags is None:
        return None
    tensor = _as_flags(flags, name, like)
    _same_shape(tensor, name, like, like_name)
    return tensor


def _as_flags(flags: Any, name: str, like: Tensor) -> Tensor:
    tensor = flags if isinstance(flags, Tensor) else as_tensor(flags, name, device=like.device)
    if tensor.dtype.is_complex:
        raise TypeError(f"{name}: expected bool, integers or floating point, got {tensor.dtype}")
    return tensor != 0 if tensor.dtype in _UNREAD else tensor.detach()


def _one_a_row(values: Any, name: str, like: Tensor, like_name: str) -> Tensor | None:
    if values is None:
        return None
    tensor = _auxiliary(values, name, like)
    _check_rows(tensor, name, like, like_name)
    return tensor


def _check_rows(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if tensor.shape != like.shape[:1]:
        raise ValueError(f"{name}: expected shape ({like.shape[0]},), one a row, got {tuple(tensor.shape)}")
    same_device(like_name, like, name, tensor)


def _factor(value: Any, name: str, like: Tensor, like_name: str) -> tuple[float, Tensor | None]:
    """A number, or a tensor (N,) or (N, T) instead of it."""
    if not isinstance(value, Tensor) and not hasattr(value, "__len__"):
        return as_number(value, name), None
    tensor = _auxiliary(value, name, like)
    n, t = like.shape
    if tensor.dim() == 0:
        tensor = tensor.expand(n)
    elif tensor.shape == (n, 1):
        tensor = tensor[:, 0]
    if tensor.shape != (n,) and tensor.shape != (n, t):
        raise ValueError(f"{name}: expected a number or shape (), ({n},) or ({n}, {t}), got {tuple(tensor.shape)}")
    same_device(like_name, like, name, tensor)
    return 1.0, tensor


def _column(number: float, tensor: Tensor | None, like: Tensor) -> Tensor:
    """The factor in float64, broadcastable to (N, T)."""
    if tensor is None:
        return torch.full((1, 1), number, dtype=torch.float64, device=like.device)
    return (tensor if tensor.dim() == 2 else tensor[:, None]).double()


def _carries(outside: Any) -> bool:
    if outside not in ("zero", "carry"):
        raise ValueError(f'outside: expected "zero" or "carry", got {outside!r}')
    return bool(outside == "carry")


def _needs_grad(*tensors: Tensor | None) -> bool:
    there = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in there):
        return True
    # Forward mode has to meet the autograd.Function, which refuses it: the operator would drop the tangents.
    return not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in there)


# --- gradients ---


def _differentiable_gae(
    rewards: Tensor,
    values: Tensor,
    gamma: tuple[float, Tensor | None],
    lam: tuple[float, Tensor | None],
    returns_lam: tuple[float, Tensor | None] | None,
    valid: Tensor | None,
    terminated: Tensor | None,
    done: Tensor | None,
    next_values: Tensor | None,
    bootstrap: Tensor | None,
    finished: Tensor | None,
    repeat_last: bool,
    carry: bool,
) -> GAE:
    """The formulas in float64, out of linear scans that have gradients."""
    r, v = rewards.double(), values.double()

    on = torch.ones_like(v, dtype=torch.bool) if valid is None else valid != 0
    if next_values is None:
        behind = v.new_zeros(len(v)) if bootstrap is None else bootstrap.double()
        if repeat_last:
            behind = _scan(torch.where(on, v, 0.0), torch.where(on, 0.0, 1.0).double(), None, False)[:, -1:].sum(1)
        if finished is not None:
            behind = torch.where(finished != 0, 0.0, behind)
        held = _scan(torch.where(on, v, 0.0), torch.where(on, 0.0, 1.0).double(), behind)  # the next token's value
        following = _behind(held, True, behind)
    else:
        following = next_values.double()
    discounted = _product(_column(*gamma, rewards), following)
    if terminated is not None:
        discounted = torch.where(terminated != 0, 0.0, discounted)
    delta = torch.where(on, r + discounted - v, 0.0)

    def trace(factor: tuple[float, Tensor | None]) -> Tensor:
        decay = _product(_column(*gamma, rewards), _column(*factor, rewards)).expand(delta.shape)
        if done is not None:
            decay = torch.where(done != 0, 0.0, decay)
        y = _scan(delta, torch.where(on, decay, 1.0), None)
        return y if carry else torch.where(on, y, 0.0)

    advantages = trace(lam)
    returns = (advantages if returns_lam is None else trace(returns_lam)) + v
    if not carry:
        returns = torch.where(on, returns, 0.0)
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    return GAE(advantages.to(dtype), returns.to(dtype))


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, initial: Tensor | None, reverse: bool) -> Tensor:
        y = _ops.linear_scan(x, a, initial, None, reverse)
        ctx.save_for_backward(a, initial, y)
        ctx.reverse = reverse
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, initial, y = ctx.saved_tensors
        # The adjoint runs the other way, each factor one token on: s_t = grad_t + a_{t-1} s_{t-1}.
        s = _ops.linear_scan(grad, _behind(a, not ctx.reverse, None), None, None, not ctx.reverse)
        if torch.is_grad_enabled():  # create_graph=True
            s = _OnceDifferentiable.apply(s, grad, a, y)  # type: ignore[no-untyped-call]
        grad_a = grad_initial = None
        if ctx.needs_input_grad[1]:
            # Behind a cut s is 0 and y may be NaN, which nothing before the cut depends on.
            grad_a = torch.where(s != 0, s * _behind(y, ctx.reverse, initial), 0.0).to(a.dtype)
        if ctx.needs_input_grad[2]:
            first = slice(-1, None) if ctx.reverse else slice(0, 1)  # the token that reads it
            grad_initial = (s[:, first] * a[:, first]).sum(1).to(initial.dtype)
        return s, grad_a, grad_initial, None


class _OnceDifferentiable(torch.autograd.Function):
    """The adjoint, tied to what it depends on, so that a second derivative fails instead of vanishing."""

    @staticmethod
    def forward(ctx: Any, adjoint: Tensor, *inputs: Tensor) -> Tensor:
        return adjoint.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("linear_scan is differentiable once; its second derivative is not implemented")


class _Product(torch.autograd.Function):
    """a b; what no gradient asks for has none, not even where the other factor is NaN."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            torch.where(grad != 0, grad * other, 0.0).sum_to_size(own.shape) if needed else None
            for needed, own, other in zip(
                ctx.needs_input_grad, ctx.saved_tensors, reversed(ctx.saved_tensors), strict=True
            )
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    y: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]
    return y


def _scan(x: Tensor, a: Tensor, initial: Tensor | None, reverse: bool = True) -> Tensor:
    y: Tensor = _LinearScan.apply(x, a, initial, reverse)  # type: ignore[no-untyped-call]
    return y


def _behind(values: Tensor, reverse: bool, end: Tensor | None) -> Tensor:
    """What each token has behind it in the direction of the scan; `end` or 0 at the end."""
    rest = values[:, 1:] if reverse else values[:, :-1]
    if values.shape[1] == 0:
        return values
    edge = values.new_zeros(len(values), 1) if end is None else end.to(values.dtype)[:, None]
    return torch.cat([rest, edge] if reverse else [edge, rest], 1)
