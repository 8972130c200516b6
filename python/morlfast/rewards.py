"""Many rewards to one: weighted, rubric, ensemble, worst-group, target-ratio, win-rate and rule rewards; group repair.

What is made here goes into :func:`morlfast.group_advantages`; NaN means "not scored" in both. Scalarizations of value
vectors, and of every point by every weight, are in :mod:`morlfast.scalarization`; rewards under constraints in
:mod:`morlfast.constrained_rewards`; weights that follow the training in :mod:`morlfast.reward_weighting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import repeat
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from morlfast._arguments import as_bool, as_floating, as_integer, as_integers, as_number, as_tensor, same_device

Nan = Literal["skip", "zero", "propagate"]
Ensemble = Literal["mean", "wco", "uwo"]
Preferences = Literal["logistic", "sign"]


def weighted_rewards(rewards: Any, weights: Any = None, *, nan: Nan = "skip") -> Tensor:
    r"""Weighted sum of the rewards of each rollout.

    .. math:: s_i = \sum_{k \text{ scored}} w_{ik} r_{ik}

    Unlike :func:`morlfast.weighted_sum`, which has one value for each pair of a point and a weight, a rollout has its
    own weights, and a missing reward takes no part. Of methods that sum before they normalize,
    ``group_advantages(s, group_size)`` is ``group_advantages(rewards, group_size, weights=weights)``.

    Args:
        rewards: (..., M), M >= 1; float32 or float64. bfloat16, float16, integers and bools become float32.
        weights: (M,), or one row for each rollout, (..., M); ones by default.
        nan: ``"skip"``: NaN is not scored, and a rollout without any score gets NaN, which `group_advantages` reads as
            not scored; ``"zero"``: NaN counts as 0; ``"propagate"``: one NaN makes the sum NaN.

    Returns:
        (...), in the dtype of ``rewards``; summed in float64. Differentiable in rewards and weights. Infinite rewards
        follow IEEE rules: times weight 0 they give NaN. O(N M).

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit, and an unknown ``nan``.

    Sources: multi-objective GRPO, arXiv 2503.21819 (second-hand; the paper's weights are unverified), which normalizes
    this sum in its group; TRL 1.16 for the NaN policy.

    >>> weighted_rewards([[1.0, 0.5], [0.0, float("nan")]], [1.0, 2.0])
    tensor([2., 0.])
    """
    _check_nan(nan)
    rewards = as_rewards(rewards, "rewards", 1)

    def combine(rewards: Tensor, weights: Tensor | None) -> Tensor:
        terms, counted = _terms(rewards, weights, nan)
        return _unless_empty(terms.sum(-1), counted, nan).to(rewards.dtype)

    return _in_blocks(
        combine, rewards, None if weights is None else _per_objective(weights, rewards, "weights", "rewards")
    )


def rubric_rewards(items: Any, weights: Any = None, *, max_points: Any = None, nan: Nan = "skip") -> Tensor:
    r"""Sum of the points that a judge gives for the items of a rubric, raw or as a share of what could be had.

    .. math:: s_i = \sum_k w_{ik} c_{ik}, \qquad
        s_i = \frac{\sum_k w_{ik} c_{ik}}{\sum_k w_{ik} c^{max}_{ik}} \text{ with } \texttt{max\_points}

    Args:
        items: (..., I) points c, as ``rewards`` of `weighted_rewards`. NaN: the item is not in this rollout's rubric.
        weights: (I,) or (..., I); ones by default.
        max_points: a number, (I,) or (..., I): the most points of each item. None gives the raw sum, which is what MPO
            trains on.
        nan: as `weighted_rewards`. With ``"skip"`` the share is of the items that were scored.

    Returns:
        (...), in the dtype of ``items``. NaN without any item, and for a share of 0. Differentiable.

    Raises:
        TypeError, ValueError: as `weighted_rewards`.

    Source: Meta Policy Optimization (MPO), arXiv 2504.20157 (paper text and authors' code): the raw sum.

    >>> rubric_rewards([[1.0, 0.0, 2.0], [1.0, float("nan"), 1.0]])
    tensor([3., 2.])
    >>> rubric_rewards([[1.0, 0.0, 2.0], [1.0, float("nan"), 1.0]], max_points=2.0)
    tensor([0.5000, 0.5000])
    """
    items = as_rewards(items, "items", 1)
    terms, counted = _terms(items, weights, nan, "items")
    total = terms.sum(-1)
    if max_points is not None:
        most = _per_objective(max_points, items, "max_points", "items")
        reachable = most if weights is None else most * _per_objective(weights, items, "weights", "items")
        share_of = torch.where(counted, reachable, 0.0).sum(-1)
        total = torch.where(share_of == 0, math.nan, total / torch.where(share_of == 0, 1.0, share_of))
    return _unless_empty(total, counted, nan).to(items.dtype)


def rluf_rewards(
    rewards: Any, love_logits: Any, *, love_weight: float, weights: Any = None, nan: Nan = "skip"
) -> Tensor:
    r"""Rewards of RLUF: a weighted sum in which one objective is the probability that a user loves the response.

    .. math:: s_i = \sum_k w_{ik} r_{ik} + w_{love}\, \sigma(f_i)

    The reward model f is trained by ``torch.nn.functional.binary_cross_entropy_with_logits`` on users' reactions.

    Args:
        rewards: (..., M) other rewards (helpfulness, safety), as `weighted_rewards`.
        love_logits: (...), f; NaN is not scored.
        love_weight: weight of the probability. The paper sweeps it; a large one is over-optimized.
        weights: (M,) or (..., M), of ``rewards``; ones by default.
        nan: as `weighted_rewards`.

    Returns:
        (...), in the dtype of ``rewards``. Differentiable.

    Raises:
        TypeError, ValueError: as `weighted_rewards`.

    Source: Reinforcement Learning from User Feedback (second-hand for P[Love]; the weights are reconstructed, the
    paper's exact values are unverified).

    >>> rluf_rewards([[0.9, 0.2], [0.4, 0.7]], [0.0, float("inf")], love_weight=0.5)
    tensor([1.3500, 1.6000])
    """
    rewards = as_rewards(rewards, "rewards", 1)
    logits = _one_each(love_logits, rewards[..., 0], "love_logits", "rewards")
    total, counted = _terms(rewards, weights, nan)
    love = as_number(love_weight, "love_weight") * logits.double().sigmoid()
    if nan != "propagate":
        scored = ~love.isnan()
        love = torch.where(scored, love, 0.0)
        counted = torch.cat([counted, scored[..., None]], -1)
    return _unless_empty(total.sum(-1) + love, counted, nan).to(rewards.dtype)


def ensemble_rewards(
    rewards: Any,
    method: Ensemble,
    *,
    penalty: float = 0.1,
    ddof: int = 1,
    nan: Literal["skip", "propagate"] = "skip",
) -> Tensor:
    r"""One reward of an ensemble of reward models: its mean, its worst case, or its mean less its variance.

    ========  ===============================================================
    ``mean``  :math:`\frac{1}{E} \sum_e r_{ie}`
    ``wco``   :math:`\min_e r_{ie}` (worst-case optimization)
    ``uwo``   :math:`\bar r_i - \lambda\, \mathrm{var}_e(r_{ie})` (uncertainty-weighted; not the deviation)
    ========  ===============================================================

    Args:
        rewards: (..., E), E >= 1 members; dtypes as `weighted_rewards`.
        method: see above.
        penalty: lambda of ``uwo``, >= 0. The authors take 0.1 for PPO and 0.5 for best-of-n.
        ddof: the variance divides by E - ddof (the authors: 1 for PPO, 0 for best-of-n); where that is not positive it
            is 0.
        nan: ``"skip"``: a member that gave NaN takes no part, and a rollout without any member gets NaN;
            ``"propagate"``: one NaN makes the reward NaN.

    Returns:
        (...), in the dtype of ``rewards``; moments in float64 about the smallest reward, so that equal rewards have a
        variance of exactly 0. Differentiable; members that tie for the worst share the gradient. An infinite reward
        makes ``uwo`` NaN. O(N E).

    Raises:
        TypeError, ValueError: as `weighted_rewards`; also for an unknown method, and penalty or ddof < 0.

    Source: Coste, Anwar, Kirk and Krueger (2023), arXiv 2310.02743 (authors' code).

    >>> rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    >>> ensemble_rewards(rewards, "mean"), ensemble_rewards(rewards, "wco"), ensemble_rewards(rewards, "uwo")
    (tensor([2., 2.]), tensor([1., 2.]), tensor([1.8000, 2.0000]))
    """
    if method not in get_args(Ensemble):
        raise ValueError(f'method: expected "mean", "wco" or "uwo", got {method!r}')
    if nan not in ("skip", "propagate"):
        raise ValueError(f'nan: expected "skip" or "propagate", got {nan!r}')
    penalty, ddof = as_number(penalty, "penalty"), as_integer(ddof, "ddof")
    if not penalty >= 0 or ddof < 0:
        raise ValueError(f"penalty, ddof: expected numbers >= 0, got {penalty} and {ddof}")
    rewards = as_rewards(rewards, "rewards", 1)

    def combine(rewards: Tensor) -> Tensor:
        values = rewards.double()
        counted = ~values.isnan()
        least = torch.where(counted, values, math.inf).amin(-1, keepdim=True)
        if method == "wco":
            combined = least.squeeze(-1)
        else:
            count = counted.sum(-1)
            pivot = torch.where(least.isfinite(), least, 0.0).detach()
            centred = torch.where(counted, values - pivot, 0.0)
            mean = centred.sum(-1) / count.clamp(min=1)
            combined = pivot.squeeze(-1) + mean
            if method == "uwo":
                squares = torch.where(counted, centred - mean[..., None], 0.0).square().sum(-1)
                variance = torch.where(count > ddof, squares / (count - ddof).clamp(min=1), 0.0)
                combined = combined - penalty * variance
        enough = counted.any(-1) if nan == "skip" else counted.all(-1)
        return torch.where(enough, combined, math.nan).to(rewards.dtype)

    return _in_blocks(combine, rewards)


def best_of_n(scores: Any) -> Tensor:
    r"""Which of n samples has the largest score.

    .. math:: j_p = \arg\max_j s_{pj}

    Args:
        scores: (..., n), for example `ensemble_rewards` of the samples of each prompt; of any real dtype. Integers are
            compared in float64, exactly up to 2^53.

    Returns:
        int64 (...); the lowest index of equal scores. NaN is not scored; -1 where no sample is, and for n = 0.
        O(n) a prompt.

    Raises:
        TypeError, ValueError: for dtypes and shapes that do not fit.

    Source: Coste et al. (2023), arXiv 2310.02743 (authors' code).

    >>> best_of_n([[0.1, 0.7, 0.7], [float("nan"), -1.0, -2.0]])
    tensor([1, 1])
    """
    tensor = scores if isinstance(scores, Tensor) else _as_float64(scores, "scores")
    if not tensor.is_floating_point() and not tensor.is_complex():
        tensor = tensor.double()
    scores = as_rewards(tensor, "scores", 1, least=0)
    return first_largest(scores, ~scores.isnan())


def worst_group(rewards: Any) -> Tensor:
    r"""The group of users whose mean reward over the batch is lowest.

    .. math:: u^* = \arg\min_u \frac{1}{N} \sum_i r_{iu}

    Args:
        rewards: (N, U), the reward of each rollout by the reward model of each group; dtypes as `weighted_rewards`.

    Returns:
        int64 (), the lowest index of equal means. NaN is not scored: it takes no part in a mean, and a group without
        any score is not the worst, nor is one without a mean, with rewards of both +inf and -inf; -1 if no group has a
        mean.

    Raises:
        TypeError, ValueError: for dtypes and shapes that do not fit.

    Source: MaxMin-RLHF, arXiv 2402.08925 (paper: max over policies of the worst group's expected reward).

    >>> worst_group([[0.5, 0.7], [0.9, 0.2]])
    tensor(1)
    """
    rewards = _matrix(rewards)
    values = rewards.double()
    means = values.nanmean(0)
    return first_largest(-means, ~means.isnan())


def worst_group_rewards(rewards: Any, by: Literal["mean", "sample"] = "mean") -> Tensor:
    r"""Rewards of MaxMin-RLHF: those of the group of users that is worst off.

    .. math:: s_i = r_{iu^*},\; u^* = \arg\min_u \bar r_u \quad (\texttt{mean}); \qquad
        s_i = \min_u r_{iu} \quad (\texttt{sample})

    Args:
        rewards: (N, U), as `worst_group`.
        by: ``"mean"``: one group for the whole batch, `worst_group`, as the paper has it; ``"sample"``: the lowest
            reward of each rollout, as the released code has it.

    Returns:
        (N,), in the dtype of ``rewards``. NaN is not scored; a rollout without the score that is asked for gets NaN.
        Differentiable; groups that tie in a sample share the gradient. Nothing waits for a GPU. O(N U).

    Raises:
        TypeError, ValueError: as `worst_group`; also for an unknown ``by``.

    Source: MaxMin-RLHF, arXiv 2402.08925 (authors' code).

    >>> rewards = torch.tensor([[0.5, 0.7], [0.9, 0.2], [0.1, 0.3]])
    >>> worst_group_rewards(rewards), worst_group_rewards(rewards, by="sample")
    (tensor([0.7000, 0.2000, 0.3000]), tensor([0.5000, 0.2000, 0.1000]))
    """
    if by not in ("mean", "sample"):
        raise ValueError(f'by: expected "mean" or "sample", got {by!r}')
    rewards = _matrix(rewards)
    if by == "sample":
        return ensemble_rewards(rewards, "wco")
    # Without any score the index is -1, and every reward is NaN anyway; where no group has a mean it is group 0.
    worst = worst_group(rewards.detach()).clamp(min=0)
    return torch.index_select(rewards, 1, worst[None]).squeeze(1)


def mixture_log_likelihoods(margins: Any, user_ids: Any, *, num_users: int | None = None) -> Tensor:
    r"""How well each of several reward models explains the preferences of each user: the E step of MaxMin-RLHF.

    .. math:: \ell_{hu} = \sum_{p \in h} \log \sigma\big(r_u(y^w_p) - r_u(y^l_p)\big)

    The hard EM of the paper alternates `mixture_assignments` of this with training each model on the pairs of its users
    by ``-logsigmoid(margins[assignments[user_ids], pairs]).mean()``, and starts from user h with model h mod U.

    Args:
        margins: (U, P), chosen minus rejected reward of each pair by each model; dtypes as `weighted_rewards`.
        user_ids: (P,) integers from 0, the user of each pair, in any order.
        num_users: H. By default the largest id + 1, for which a GPU is waited for.

    Returns:
        (H, U) in the dtype of ``margins``, summed in float64 in the order of the pairs; 0 for a user without pairs. A
        pair to which some model gave NaN is left out for all. Differentiable. O(U P).

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit; on the CPU also for ids that are not in
            0..H - 1 (on a GPU these are an error of the device).

    Source: MaxMin-RLHF, arXiv 2402.08925 (authors' code).

    >>> mixture_log_likelihoods([[1.0, -0.2], [-1.0, 0.9]], [0, 1])
    tensor([[-0.3133, -1.3133],
            [-0.7981, -0.3412]])
    """
    margins = as_rewards(margins, "margins", 2, least=0)
    users = as_integers(user_ids, "user_ids", "margins", margins).to(torch.int64)
    if margins.dim() != 2 or users.shape != margins.shape[1:]:
        raise ValueError(
            f"margins, user_ids: expected shapes (U, P) and (P,), got {tuple(margins.shape)} and {tuple(users.shape)}"
        )
    if num_users is None:
        num_users = int(users.max()) + 1 if len(users) > 0 else 0
    num_users = as_integer(num_users, "num_users")
    if users.is_cpu and not torch.compiler.is_compiling() and bool(((users < 0) | (users >= num_users)).any()):
        raise ValueError(f"user_ids: expected values from 0 to {num_users - 1}, got {users.tolist()!r:.80}")
    scored = ~margins.isnan().any(0)
    terms = logsigmoid(torch.where(scored, margins, 0.0).double())
    terms = torch.where(scored, terms, 0.0)
    sums = terms.new_zeros(num_users, margins.shape[0])
    # Unlike index_add, accumulating by index_put has a fixed order on a GPU.
    return sums.index_put((users,), terms.mT, accumulate=True).to(margins.dtype)


def mixture_assignments(log_likelihoods: Any) -> Tensor:
    r"""The reward model that explains each user best: hard assignments.

    .. math:: u_h = \arg\max_u \ell_{hu}

    Args:
        log_likelihoods: (..., U), as `mixture_log_likelihoods` gives.

    Returns:
        int64 (...), the lowest index of equal ones, so 0 for a user without pairs.

    Raises:
        TypeError, ValueError: for dtypes and shapes that do not fit.

    Source: MaxMin-RLHF, arXiv 2402.08925 (authors' code).

    >>> mixture_assignments([[-0.3, -1.3], [-0.8, -0.3]])
    tensor([0, 1])
    """
    values = as_rewards(log_likelihoods, "log_likelihoods", 1)
    return first_largest(values, ~values.isnan())


def target_ratio_rewards(values: Any, targets: Any, *, scale: float = 1.0, max_reward: float = 1000.0) -> Tensor:
    r"""Rewards of a design space: targets over the distance from them, multiplied.

    .. math:: r_i = \min\Big(\frac{1}{c} \prod_j \frac{t_j}{|t_j - x_{ij}|},\; r_{max}\Big)

    At a target the quotient is infinite, so a design that meets any of its targets exactly gets ``max_reward``,
    whatever its other values are. A single objective's reward is that of its column: ``values[:, j:j + 1]``.

    Args:
        values: (..., M), what the simulator measured (power, latency, ...); dtypes as `weighted_rewards`.
        targets: (M,) or (..., M), > 0.
        scale: c > 0; the reference environment has 350 or 20 in some settings.
        max_reward: the cap, > 0.

    Returns:
        (...), in the dtype of ``values``, computed in float64; between 0 (an infinite value) and ``max_reward``. NaN in
        ``values`` gives NaN: not scored. Differentiable; the gradient is 0 at the cap. O(N M).

    Raises:
        TypeError, ValueError: as `weighted_rewards`; also for scale, max_reward and (on the CPU) targets that are not
            positive.

    Source: multi-agent RL for microprocessor design space exploration (authors' code, ArchGym), which divides by zero
    at the target.

    >>> target_ratio_rewards([[2.0, 0.3], [1.0, 0.3]], [1.0, 0.1], max_reward=10.0)
    tensor([ 0.5000, 10.0000])
    """
    scale, max_reward = as_number(scale, "scale"), as_number(max_reward, "max_reward")
    if not scale > 0 or not 0 < max_reward < math.inf:
        raise ValueError(f"scale, max_reward: expected positive numbers, got {scale} and {max_reward}")
    values = as_rewards(values, "values", 1)
    # A value in float32 meets the target that rounds to it.
    goals = _per_objective(targets, values, "targets", "values").to(values.dtype).double()
    if goals.is_cpu and not torch.compiler.is_compiling() and not bool((goals > 0).all()):
        raise ValueError(f"targets: expected positive numbers, got {targets!r:.80}")
    distances = (goals - values.double()).abs()
    with torch.no_grad():
        missing = distances.isnan().any(-1)
        capped = (distances == 0).any(-1) | ((goals / distances).prod(-1) / scale > max_reward)
    # What is capped or missing has no gradient, rather than 0 times an infinite one or NaN.
    ratios = (goals / torch.where((capped | missing)[..., None], 1.0, distances)).prod(-1) / scale
    rewards = torch.where(missing, math.nan, torch.where(capped, max_reward, ratios))
    return rewards.to(values.dtype)


def win_rate_rewards(
    preferences: Any = None,
    *,
    scores: Any = None,
    link: Preferences = "logistic",
    include_diagonal: bool = False,
) -> Tensor:
    r"""Self-play rewards: how often a rollout is preferred to the others of its group.

    .. math:: r_i = \frac{1}{K - 1} \sum_{j \ne i} P(y_i \succ y_j)

    and with the diagonal, where P = 1/2: :math:`r_i = \frac{1}{K} \sum_j P(y_i \succ y_j)`. Where
    :math:`P_{ij} + P_{ji} = 1` the rewards of a group have the mean 1/2. The paper's antisymmetric preferences in
    [-1, 1] give :math:`2 r_i - 1`.

    Args:
        preferences: (..., K, K) probabilities that the row's rollout is preferred to the column's, ties 1/2; dtypes as
            `weighted_rewards`. The diagonal is not read. NaN: the two were not compared.
        scores: instead, (..., K) scores s from which preferences are made; NaN is not scored.
        link: for ``scores``: ``"logistic"`` is P = sigmoid(s_i - s_j) (Bradley-Terry); ``"sign"`` is 1 for the larger,
            1/2 for equal ones.
        include_diagonal: whether a rollout is compared with itself too, as some later methods have it.

    Returns:
        (..., K) in the dtype given, summed in float64: the mean over the comparisons made, and NaN (not scored)
        without any, so for K = 1 without the diagonal. Equal scores are ties, infinite ones too. Differentiable, except
        with ``"sign"``.
        O(K^2) time and memory a group.

    Raises:
        TypeError, ValueError: for dtypes and shapes that do not fit, unless exactly one of preferences and scores is
            given, and for an unknown link.

    Source: Self-Play Preference Optimization towards a minimax winner, arXiv 2401.04056 (second-hand, the authors'
    project page; details are reconstructed).

    >>> win_rate_rewards(scores=[3.0, 1.0, 1.0], link="sign")
    tensor([1.0000, 0.2500, 0.2500])
    >>> win_rate_rewards([[0.0, 0.9], [0.1, 0.0]])
    tensor([0.9000, 0.1000])
    """
    as_bool(include_diagonal, "include_diagonal")
    if (preferences is None) == (scores is None):
        raise ValueError("preferences, scores: expected exactly one of them")
    if link not in get_args(Preferences):
        raise ValueError(f'link: expected "logistic" or "sign", got {link!r}')
    if preferences is not None:
        given = as_rewards(preferences, "preferences", 2, least=0)
        if given.shape[-1] != given.shape[-2]:
            raise ValueError(f"preferences: expected shape (..., K, K), got {tuple(given.shape)}")
        pairs = given.double()
    else:
        given = as_rewards(scores, "scores", 1, least=0)
        own = given.double()
        left, right = own[..., :, None], own[..., None, :]
        missing = left.isnan() | right.isnan()
        gaps = torch.where(missing | (left == right), 0.0, left - right)  # infinite ones may be equal
        pairs = torch.where(missing, math.nan, gaps.sigmoid() if link == "logistic" else (gaps.sign() + 1) / 2)
    own_place = torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    compared = ~pairs.isnan() & ~own_place
    total = torch.where(compared, pairs, 0.0).sum(-1)
    count = compared.sum(-1)
    if include_diagonal:
        total, count = total + 0.5, count + 1
    rates = torch.where(count > 0, total / count.clamp(min=1), math.nan)
    if include_diagonal and scores is not None:
        rates = torch.where(given.isnan(), math.nan, rates)
    return rates.to(given.dtype)


class RepairedGroups(NamedTuple):
    """What `scaf_grpo_repair` returns."""

    #: (P, G) with the reward of the hinted rollout in place of the replaced one
    rewards: Tensor
    #: int64 (P,), index in the group of the rollout that was replaced, -1 in groups without a repair
    replaced: Tensor
    #: int64 (P,), the hint level taken, counted from 1, -1 in groups without a repair
    levels: Tensor


def all_zero_groups(rewards: Any) -> Tensor:
    """Groups in which every rollout failed: which Scaf-GRPO samples again with hints.

    Args:
        rewards: (..., G), rewards that are 0 for a failure; dtypes as `weighted_rewards`.

    Returns:
        bool (...): whether at least one rollout of the group is scored and all that are have 0. NaN is not scored.

    Raises:
        TypeError, ValueError: for dtypes and shapes that do not fit.

    Source: Scaf-GRPO, arXiv 2510.19807 (authors' code, which looks at the sum of the group).

    >>> all_zero_groups([[0.0, 0.0], [0.0, 1.0]])
    tensor([ True, False])
    """
    rewards = as_rewards(rewards, "rewards", 1, least=0)
    failed = rewards == 0
    return torch.logical_and((failed | rewards.isnan()).all(-1), failed.any(-1))


def scaf_grpo_repair(rewards: Any, hint_rewards: Any) -> RepairedGroups:
    """Replaces the first rollout of each group that failed by the one that succeeded with the weakest hint.

    In a group of `all_zero_groups`, the lowest hint level whose rollout has a positive reward takes the place of
    rollout 0; ``group_advantages`` of the repaired rewards is then not zero. Prompt and response of that rollout are
    the caller's to replace, where ``replaced >= 0``.

    Args:
        rewards: (..., G), as `all_zero_groups`, G >= 1.
        hint_rewards: (..., L), reward of a rollout with the hint of each level, from the weakest; NaN for levels that
            were not tried. Rows of groups that need no repair are not read.

    Returns:
        RepairedGroups(rewards, replaced, levels): rewards in their dtype, copied; int64 (...) indices and levels
        (counted from 1, as in the paper: 1-4 knowledge, 5-8 planning, 9-12 solution), -1 where nothing was repaired: no
        need, or no hint helped. Nothing waits for a GPU. O(P (G + L)).

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit.

    Source: Scaf-GRPO, arXiv 2510.19807 (authors' code).

    >>> scaf_grpo_repair([[0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    RepairedGroups(rewards=tensor([[1., 0.],
            [0., 1.]]), replaced=tensor([ 0, -1]), levels=tensor([ 2, -1]))
    """
    rewards = as_rewards(rewards, "rewards", 1)
    hints = as_like(hint_rewards, rewards, "hint_rewards", "rewards").to(rewards.dtype)
    if hints.dim() == 0 or hints.shape[:-1] != rewards.shape[:-1]:
        raise ValueError(
            f"hint_rewards: expected the shape of rewards, {tuple(rewards.shape)}, with levels in place of rollouts, "
            f"got {tuple(hints.shape)}"
        )
    works = hints > 0
    first = first_largest(works.to(rewards.dtype), works)
    repaired = all_zero_groups(rewards) & (first >= 0)
    if hints.shape[-1] > 0:
        hinted = hints.gather(-1, first.clamp(min=0)[..., None])
        is_first = torch.arange(rewards.shape[-1], device=rewards.device) == 0
        rewards = torch.where(repaired[..., None] & is_first, hinted, rewards)
    else:
        rewards = rewards.clone()
    return RepairedGroups(rewards, torch.where(repaired, 0, -1), torch.where(repaired, first + 1, -1))


def points_in_boxes(points: Any, boxes: Any) -> Tensor:
    """Whether a click lies in the box of its target.

    Args:
        points: (..., 2), x and y; dtypes as `weighted_rewards`.
        boxes: (..., 4), left, top, right and bottom, in the units of the points.

    Returns:
        bool (...), the edges included. NaN is outside, and so is every point if left > right or top > bottom.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit.

    >>> points_in_boxes([[5.0, 5.0], [20.0, 5.0]], [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    tensor([ True, False])
    """
    points = as_rewards(points, "points", 1)
    corners = as_like(boxes, points, "boxes", "points")
    if points.shape[-1] != 2 or corners.shape != (*points.shape[:-1], 4):
        raise ValueError(
            "points, boxes: expected shapes (..., 2) and (..., 4), "
            f"got {tuple(points.shape)} and {tuple(corners.shape)}"
        )
    # In the narrower dtype: a point on an edge is there in both.
    narrow = torch.float32 if torch.float32 in (points.dtype, corners.dtype) else torch.float64
    points, corners = points.to(narrow), corners.to(narrow)
    return torch.all((points >= corners[..., :2]) & (points <= corners[..., 2:]), dim=-1)


def craft_gui_rewards(
    formats: Any,
    action_types: Any,
    target_types: Any,
    argument_scores: Any,
    *,
    clicks: Any = None,
    target_boxes: Any = None,
    judge_scores: Any = None,
    weights: tuple[float, float, float] = (0.1, 0.4, 0.5),
    judge_weight: float = 0.0,
) -> Tensor:
    r"""Rule rewards of an agent that acts on a screen: format, type of the action, its arguments.

    .. math:: r_i = w_f F_i + w_t [a_i = a^*_i] + w_a A_i + w_j J_i

    where A is ``argument_scores``, or whether the click lies in the target's box where there is one.

    Args:
        formats: (N,), bool or scores F in [0, 1]: whether the response is well formed.
        action_types, target_types: (N,) integers.
        argument_scores: (N,) scores A in [0, 1]: match or F1 of a text, match of a direction; dtypes as
            `weighted_rewards`. Not read where there is a box.
        clicks: (N, 2); NaN where the response has none, which is outside every box.
        target_boxes: (N, 4), left, top, right and bottom; NaN where the target is not a click.
        judge_scores: (N,) scores J of a judge, for tasks of understanding.
        weights: w_f, w_t, w_a.
        judge_weight: w_j.

    Returns:
        (N,) in the dtype of ``argument_scores``. NaN in a score that is read gives NaN: not scored. Differentiable in
        the scores. Nothing is normalized: :func:`morlfast.group_advantages` does that.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit, and one of clicks and target_boxes alone.

    Source: CRAFT-GUI, arXiv 2508.11360. Reconstructed from the abstract and summaries; the paper's exact form and
    weights are unverified.

    >>> craft_gui_rewards([1, 1], [3, 3], [3, 2], [0.5, 0.0])
    tensor([0.7500, 0.1000])
    """
    scores = as_rewards(argument_scores, "argument_scores", 1)
    if scores.dim() != 1:
        raise ValueError(f"argument_scores: expected shape (N,), got {tuple(scores.shape)}")
    if len(weights) != 3:
        raise ValueError(f"weights: expected three, of format, type and arguments, got {weights!r}")
    of_format, of_type, of_arguments = (as_number(weight, "weights") for weight in weights)
    arguments = scores.double()
    if (clicks is None) != (target_boxes is None):
        raise ValueError("clicks, target_boxes: expected both or none")
    if clicks is not None:
        boxes = as_like(target_boxes, scores, "target_boxes", "argument_scores")
        points = as_like(clicks, scores, "clicks", "argument_scores")
        if boxes.shape != (len(scores), 4) or points.shape != (len(scores), 2):
            raise ValueError(
                f"clicks, target_boxes: expected shapes ({len(scores)}, 2) and ({len(scores)}, 4), "
                f"got {tuple(points.shape)} and {tuple(boxes.shape)}"
            )
        has_box = ~boxes.isnan().any(-1)
        arguments = torch.where(has_box, points_in_boxes(points, boxes).double(), arguments)
    chosen = as_integers(action_types, "action_types", "argument_scores", scores)
    right = as_integers(target_types, "target_types", "argument_scores", scores)
    for name, types in (("action_types", chosen), ("target_types", right)):
        if types.shape != scores.shape:
            raise ValueError(f"{name}: expected shape {tuple(scores.shape)}, got {tuple(types.shape)}")
    well_formed = _one_each(formats, scores, "formats", "argument_scores")
    rewards = of_format * well_formed.double() + of_type * (chosen == right).double() + of_arguments * arguments
    if judge_scores is not None:
        judged = _one_each(judge_scores, scores, "judge_scores", "argument_scores")
        rewards = rewards + as_number(judge_weight, "judge_weight") * judged.double()
    return rewards.to(scores.dtype)


def as_rewards(values: Any, name: str, dims: int, *, least: int = 1) -> Tensor:
    """Float32 or float64 with at least `dims` dimensions and `least` entries in the last one."""
    tensor = as_floating(values, name)
    if tensor.dtype is not torch.float64:
        tensor = tensor.to(torch.float32)
    if tensor.dim() < dims:
        raise ValueError(f"{name}: expected {dims} or more dimensions, got shape {tuple(tensor.shape)}")
    if dims > 0 and tensor.shape[-1] < least:
        raise ValueError(f"{name}: expected at least {least} in the last dimension, got shape {tuple(tensor.shape)}")
    return tensor


def first_largest(values: Tensor, allowed: Tensor) -> Tensor:
    """Index of the largest of the allowed values, (..., n) to int64 (...); the lowest of ties; -1 where none is."""
    if values.shape[-1] == 0:
        return torch.full(values.shape[:-1], -1, dtype=torch.int64, device=values.device)
    values = values.detach()
    best = torch.where(allowed, values, -math.inf).amax(-1, keepdim=True)
    is_best = allowed & (values == best)  # an excluded entry never ties with an allowed -inf
    return torch.where(is_best.any(-1), is_best.to(torch.int8).argmax(-1), -1)


def _in_blocks(combine: Callable[..., Tensor], rewards: Tensor, *weights: Tensor | None) -> Tensor:
    """`combine` over the last dimension, of so many rollouts at a time that what it makes stays in a CPU's cache."""
    objectives, in_cache = rewards.shape[-1], 1 << 16
    if torch.compiler.is_compiling() or not rewards.is_cpu or rewards.numel() <= in_cache:
        return combine(rewards, *weights)
    rows = max(1, in_cache // objectives)
    blocks = rewards.reshape(-1, objectives).split(rows)
    of_blocks = [
        repeat(each, len(blocks))
        if each is None or each.shape != rewards.shape
        else each.reshape(-1, objectives).split(rows)
        for each in weights
    ]
    return torch.cat([combine(*block) for block in zip(blocks, *of_blocks, strict=True)]).reshape(rewards.shape[:-1])


def _check_nan(nan: Nan) -> None:
    if nan not in get_args(Nan):
        raise ValueError(f'nan: expected "skip", "zero" or "propagate", got {nan!r}')


def _terms(rewards: Tensor, weights: Any, nan: Nan, name: str = "rewards") -> tuple[Tensor, Tensor]:
    """Weighted rewards in float64, 0 where NaN counts so or not at all; and which of them count."""
    _check_nan(nan)
    is_nan = rewards.isnan()
    values = rewards.double()
    if nan != "propagate":
        values = torch.where(is_nan, 0.0, values)
    if weights is not None:
        values = values * _per_objective(weights, rewards, "weights", name)
        if nan == "skip":  # an infinite weight of what is not scored
            values = torch.where(is_nan, 0.0, values)
    return values, ~is_nan if nan == "skip" else torch.ones_like(is_nan)


def _unless_empty(total: Tensor, counted: Tensor, nan: Nan) -> Tensor:
    return torch.where(counted.any(-1), total, math.nan) if nan == "skip" else total


def _per_objective(values: Any, rewards: Tensor, name: str, of: str) -> Tensor:
    """A number, (M,) or one row for each rollout, in float64."""
    tensor = as_like(values, rewards, name, of).double()
    if tensor.dim() > 0 and tensor.shape != rewards.shape[-1:] and tensor.shape != rewards.shape:
        one, all_rows = tuple(rewards.shape[-1:]), tuple(rewards.shape)
        raise ValueError(f"{name}: expected shape {one} or {all_rows}, that of {of}, got {tuple(tensor.shape)}")
    return tensor


def _one_each(values: Any, like: Tensor, name: str, of: str) -> Tensor:
    tensor = as_like(values, like, name, of)
    if tensor.shape != like.shape:
        raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
    return tensor


def as_like(values: Any, like: Tensor, name: str, of: str) -> Tensor:
    """Real numbers on the device of the argument called `of`, in float64 what is no tensor; else where, an error."""
    tensor = values if isinstance(values, Tensor) else _as_float64(values, name, device=like.device)
    same_device(of, like, name, tensor)
    return as_rewards(tensor, name, 0)


def _as_float64(values: Any, name: str, **options: Any) -> Tensor:
    """Of lists and arrays: Python's floats are doubles, which float32 would round."""
    dtype = None if hasattr(values, "dtype") else torch.float64
    tensor = as_tensor(values, name, dtype=dtype, **options)
    return tensor if tensor.is_complex() else tensor.double()


def _matrix(rewards: Any) -> Tensor:
    tensor = as_rewards(rewards, "rewards", 2)
    if tensor.dim() != 2:
        raise ValueError(f"rewards: expected shape (N, U), got {tuple(tensor.shape)}")
    return tensor
