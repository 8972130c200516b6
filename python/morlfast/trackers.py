"""Estimators with a state that follows the batches: RiskPO's quantiles and single-stream PO's values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morlfast._arguments import as_floating, as_integer, as_integers, as_number, as_tensor, same_device
from morlfast._groups import (
    Groups,
    as_column,
    as_labels,
    as_mask,
    as_nonnegative,
    as_rollouts,
    as_tokens,
    can_look,
    dense,
    on_tokens,
    over_ranks,
)
from morlfast.advantages import group_advantages

Credit = Literal["uniform", "sum_mean", "score", "std"]


def riskpo(
    rewards: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    bundle_size: int | None = None,
    bundle_ids: Any = None,
    lower: float = 0.2,
    upper: float = 0.8,
    quantiles: Literal["batch", "track", "mix"] | None = None,
    tracker: RiskQuantiles | None = None,
    tail: Literal["lower", "upper"] | None = "lower",
    tail_weight: float = 1.5,
    natural_baseline: bool = False,
    scale: Literal["bundle", "none"] = "bundle",
    zero_variance: Literal["zero", "unscaled", "eps"] = "zero",
    credit: Credit = "sum_mean",
    eps: float = 1e-6,
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Mixed value-at-risk advantages of papers: the g-th responses to all questions of a bundle, scored together.

    With the score :math:`s = \sum_b r_{b,g}` of a paper and quantiles :math:`q_\alpha, q_\beta` of paper scores
    (:math:`\alpha` = ``lower``, :math:`\beta` = ``upper``):

    .. math::
        A = \frac{w \, \mathrm{cv} + \mathrm{rv}}{(1 + w)(\sigma + \epsilon)}, \quad
        \mathrm{rv} = \frac{(s - q_\alpha)^+ - (s - q_\beta)^+}{\beta - \alpha + \epsilon}, \quad
        \mathrm{cv} = -\frac{(q_\alpha - s)^+}{\alpha + \epsilon}

    Credit to the paper's responses: ``"uniform"`` A each; ``"score"`` A/2 where the response scores above 0, 3A/2
    elsewhere; ``"std"`` A over the deviation of the question's responses (1 up to 1e-3); ``"sum_mean"``
    :math:`A \rho_b / \sum_b \rho_b` with :math:`\rho_b = r_{b,g} - \bar r_b`, equal shares of A where that sum is up
    to 1e-6. (sum_mean, which the paper's script uses, can turn the sign: a correct response may get A < 0.)

    Args:
        rewards: (N,).
        group_size, group_ids, offsets: the questions, as in `morlfast.group_advantages`.
        bundle_size: questions a bundle, consecutive in order of their first rollout; or ``bundle_ids``: (N,) labels.
        quantiles: of the ``"batch"`` (linear, each bundle's own), of the tracker (``"track"``), or their mean
            (``"mix"``). Default: ``"track"`` with a tracker, else ``"batch"``, which is also what a tracker without
            updates means.
        tracker: a `RiskQuantiles`; feed it with ``tracker.update(paper_scores(...))``.
        tail: mix rv with cv of the ``"lower"`` tail, with :math:`(s - q_\beta)^+ / (1 - \beta + \epsilon)` of the
            ``"upper"`` one (risk seeking), or use rv alone (None); ``tail_weight`` is w.
        natural_baseline: adds :math:`q_\alpha - q_\beta` to the numerator of rv.
        scale: divide by the deviation (n - 1) of the bundle's papers (1 for a single paper), or not.
        zero_variance: equal papers of a bundle are ``"zero"``, ``"unscaled"``, or divided by ``"eps"`` as in the
            paper's code, which with tracked quantiles gives advantages of the order of 1e6.
        mask, lengths, num_tokens, process_group: as in `morlfast.group_advantages`.

    Returns:
        (N,) or (N, T) in the dtype of ``rewards``. A bundle has as many papers as its shortest question has scored
        responses; those left over are 0. NaN means not scored and is in no paper. Float64, O(N log N).

    Source: RiskPO (2025), arXiv 2510.00911, with the defaults of its script.

    >>> import torch
    >>> rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    >>> riskpo(rewards, group_size=5, bundle_size=2, credit="uniform")[:5]
    tensor([ 0.1594, -2.8685,  0.9562,  0.1594,  0.9562])
    """
    given = as_rollouts(rewards, objectives=False)
    for name, value, allowed in (
        ("quantiles", quantiles, (None, "batch", "track", "mix")),
        ("tail", tail, (None, "lower", "upper")),
        ("scale", scale, ("bundle", "none")),
        ("zero_variance", zero_variance, ("zero", "unscaled", "eps")),
        ("credit", credit, ("uniform", "sum_mean", "score", "std")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    lower, upper = as_number(lower, "lower"), as_number(upper, "upper")
    if not 0 <= lower < upper <= 1:
        raise ValueError(f"lower, upper: expected 0 <= lower < upper <= 1, got {lower!r} and {upper!r}")
    if tracker is None and quantiles in ("track", "mix"):
        raise ValueError(f"tracker: quantiles={quantiles!r} needs one")
    eps, w = as_nonnegative(eps, "eps"), as_number(tail_weight, "tail_weight")
    if tracker is not None:
        if not isinstance(tracker, RiskQuantiles):
            raise TypeError(f"tracker: expected a RiskQuantiles, got {tracker!r:.80}")
        same_device("rewards", given, "tracker", tracker.values)
    papers, own = _Papers.of(given, group_size, group_ids, offsets, bundle_size, bundle_ids, process_group)
    s, bundles = papers.scores, papers.bundles

    low, high = papers.quantile(lower), papers.quantile(upper)
    if tracker is not None and tracker.updates > 0 and quantiles != "batch":
        tracked = [tracker.quantile(level) for level in (lower, upper)]
        low, high = ((low + tracked[0]) / 2, (high + tracked[1]) / 2) if quantiles == "mix" else tracked
    a = (s - low).clamp(min=0) - (s - high).clamp(min=0)
    if natural_baseline:
        a = a + (low - high)
    a = a / (upper - lower + eps)
    if tail == "lower":
        a = (a - w * (low - s).clamp(min=0) / (lower + eps)) / (1 + w)
    elif tail == "upper":
        a = (a + w * (s - high).clamp(min=0) / (1 - upper + eps)) / (1 + w)
    if scale == "bundle":
        count = bundles.sum(papers.first)
        std = bundles.std(bundles.centred(s, papers.first), papers.first)
        scaled = a / (torch.where(count > 1, std, 1.0) + eps)
        if zero_variance != "eps":
            # Sums of the same rewards in another order differ by rounding.
            equal = (count > 1) & (std <= 1e-12 * bundles.max(torch.where(papers.first, s.abs(), 0.0)))
            scaled = torch.where(equal, a if zero_variance == "unscaled" else 0.0, scaled)
        a = scaled

    a = torch.where(papers.member, papers.credited(a, credit, eps), 0.0)
    return on_tokens(a[own], given, mask, lengths, num_tokens)


def paper_scores(
    rewards: Any,
    group_size: int | None = None,
    *,
    group_ids: Any = None,
    offsets: Any = None,
    bundle_size: int | None = None,
    bundle_ids: Any = None,
    process_group: Any = None,
) -> Tensor:
    """RiskPO's paper scores: (N,) float64, the score in the row of each paper's first response, NaN elsewhere.

    Arguments as in `riskpo`. A tracker leaves NaN out, and the shape does not depend on the data, so that nothing waits
    for a device: ``tracker.update(paper_scores(rewards, group_size=8, bundle_size=5))``. With ``process_group`` the
    rows are those of all ranks, so that the trackers of all ranks stay the same.

    >>> import torch
    >>> paper_scores(torch.tensor([1.0, 0.0, 1.0, 1.0]), group_size=2, bundle_size=2)
    tensor([2., 1., nan, nan], dtype=torch.float64)
    """
    given = as_rollouts(rewards, objectives=False)
    papers, _ = _Papers.of(given, group_size, group_ids, offsets, bundle_size, bundle_ids, process_group)
    return torch.where(papers.first, papers.scores, math.nan)


class RiskQuantiles:
    r"""Quantiles of RiskPO's paper scores, followed from batch to batch.

    .. math:: q_l \leftarrow q_l + \eta \, (l - \mathrm{mean}[s < q_l])

    for every level l; the first update starts at the batch's quantiles (linear). Pass it as ``tracker=`` to
    `riskpo` and feed it with ``update(paper_scores(...))``.

    Args:
        levels: ascending numbers in (0, 1); 0.05, 0.10, ... 0.95 by default.
        learning_rate: :math:`\eta`, at least 0.
        device: of the values, which are float64.

    Source: RiskPO (2025), arXiv 2510.00911.

    >>> import torch
    >>> tracker = RiskQuantiles()
    >>> tracker.update(torch.tensor([1.0, 0.0, 2.0, 1.0, 2.0]))
    >>> tracker.quantile(0.2), tracker.quantile(0.8)
    (tensor(0.8000, dtype=torch.float64), tensor(2., dtype=torch.float64))
    """

    def __init__(
        self, levels: Sequence[float] | None = None, *, learning_rate: float = 0.1, device: Any = None
    ) -> None:
        if levels is None:
            levels = [k / 20 for k in range(1, 20)]
        self.levels = tuple(as_number(level, "levels") for level in levels)
        rises = all(a < b for a, b in zip((0.0, *self.levels), (*self.levels, 1.0), strict=True))
        if not self.levels or not rises:
            raise ValueError(f"levels: expected ascending numbers between 0 and 1, got {list(self.levels)}")
        self.learning_rate = as_nonnegative(learning_rate, "learning_rate")
        self.updates = 0
        self.values = torch.zeros(len(self.levels), dtype=torch.float64, device=device)
        self._levels = torch.tensor(self.levels, dtype=torch.float64, device=device)

    def update(self, scores: Any) -> None:
        """Moves every quantile. ``scores`` of any shape; NaN and infinite ones are left out.

        Without any score nothing moves. O(n log n). Until there have been scores it looks for them, which waits for a
        GPU.
        """
        s = as_floating(scores, "scores").detach().to(torch.float64).flatten()
        same_device("the tracker", self.values, "scores", s)
        scored = s.isfinite()
        if s.numel() == 0 or (self.updates == 0 and not bool(scored.any())):
            return
        count = scored.sum()
        ascending = torch.where(scored, s, math.inf).sort().values
        if self.updates == 0:
            self.values = _quantiles(ascending, count - 1, self._levels)
        else:
            below = torch.searchsorted(ascending, self.values) / count.clamp(min=1).to(s)
            step = self.learning_rate * (self._levels - below)
            self.values = self.values + torch.where(count > 0, step, 0.0)
        self.updates += 1

    def quantile(self, level: float) -> Tensor:
        """The value of the level nearest to ``level`` (the lower on ties), a tensor without dimensions."""
        wanted = as_number(level, "level")
        nearest = min(range(len(self.levels)), key=lambda k: abs(self.levels[k] - wanted))
        return self.values[nearest]

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on: copies."""
        return {
            "levels": list(self.levels),
            "learning_rate": self.learning_rate,
            "updates": self.updates,
            "values": self.values.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, on this tracker's device."""
        device = self.values.device
        loaded = RiskQuantiles(state["levels"], learning_rate=state["learning_rate"], device=device)
        values = as_tensor(state["values"], "values", dtype=torch.float64, device=device)
        if values.shape != loaded.values.shape:
            raise ValueError(f"values: expected shape {tuple(loaded.values.shape)}, got {tuple(values.shape)}")
        if not bool(values.isfinite().all()):
            raise ValueError(f"values: expected finite numbers, got {values.tolist()}")
        loaded.values, loaded.updates = values.clone(), as_integer(state["updates"], "updates")
        vars(self).update(vars(loaded))


def spo(
    rewards: Any,
    values: Any,
    *,
    eps: float = 1e-8,
    mask: Any = None,
    lengths: Any = None,
    num_tokens: int | None = None,
    process_group: Any = None,
) -> Tensor:
    r"""Single-stream policy optimization: one rollout a prompt against a tracked value, whitened over the batch.

    .. math:: A_i = \frac{d_i - \bar d}{\mathrm{std}(d) + \epsilon}, \quad d_i = r_i - \hat v_i

    Args:
        rewards: (N,).
        values: (N,), the values of the prompts before this batch: `SinglestreamTracker.values`.
        mask, lengths, num_tokens, process_group: as in `morlfast.group_advantages`.

    Returns:
        (N,) or (N, T) in the dtype of ``rewards``. Equal d, and a batch of one, give exactly 0. NaN means not scored:
        0, and no part of the statistics. Float64 (deviation n - 1), O(N).

    Source: arXiv 2509.13232. (Self-play preference optimization, also called SPO, is `morlfast.rewards`'.)

    >>> import torch
    >>> spo(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 0.5]))
    tensor([ 0.5774, -1.1547,  0.5774])
    """
    given = as_rollouts(rewards, objectives=False)
    d = given.detach().to(torch.float64) - as_column(values, "values", given)
    a = group_advantages(
        d, group_size=1, baseline="batch", scale="batch", eps=as_nonnegative(eps, "eps"), process_group=process_group
    )
    return on_tokens(a, given, mask, lengths, num_tokens)


class SinglestreamTracker:
    r"""The success rate of every prompt as a Beta distribution that forgets as the policy moves.

    .. math::
        \hat v = \frac{\alpha}{\alpha + \beta}, \quad \rho = \mathrm{clip}(2^{-D / D_\mathrm{half}},
        \rho_\mathrm{min}, \rho_\mathrm{max}), \quad \alpha \leftarrow \rho \alpha + r, \quad
        \beta \leftarrow \rho \beta + 1 - r

    Args:
        num_prompts: Q; prompts are named by integers from 0 to Q - 1.
        half_life: :math:`D_\mathrm{half}`.
        least_rho, most_rho: what is kept of the past at each visit, in (0, 1].
        device: of the state, which is float64.

    A new tracker has :math:`\alpha = \beta = 1/2`; `from_rollouts` starts from offline rollouts.

    Source: single-stream policy optimization, arXiv 2509.13232.

    >>> import torch
    >>> tracker = SinglestreamTracker.from_rollouts(torch.tensor([3, 0]), 8)
    >>> tracker.values()
    tensor([0.3889, 0.0556], dtype=torch.float64)
    """

    def __init__(
        self,
        num_prompts: int,
        *,
        half_life: float = 0.06,
        least_rho: float = 0.875,
        most_rho: float = 0.96,
        device: Any = None,
    ) -> None:
        prompts = as_integer(num_prompts, "num_prompts")
        if prompts < 0:
            raise ValueError(f"num_prompts: expected an int >= 0, got {prompts}")
        self.half_life = as_number(half_life, "half_life")
        if not 0 < self.half_life < math.inf:
            raise ValueError(f"half_life: expected a positive number, got {half_life!r}")
        self.least_rho, self.most_rho = as_number(least_rho, "least_rho"), as_number(most_rho, "most_rho")
        if not 0 < self.least_rho <= self.most_rho <= 1:
            raise ValueError(
                f"least_rho, most_rho: expected 0 < least_rho <= most_rho <= 1, got {least_rho!r} and {most_rho!r}"
            )
        self.alpha = torch.full((prompts,), 0.5, dtype=torch.float64, device=device)
        self.beta = torch.full((prompts,), 0.5, dtype=torch.float64, device=device)

    @classmethod
    def from_rollouts(cls, successes: Any, rollouts: Any, **options: Any) -> SinglestreamTracker:
        r"""Starts from s successes in n rollouts of each prompt, with the weight of a long run of visits.

        .. math::
            \alpha_0 = N_0 \frac{s + 1/2}{n + 1}, \quad \beta_0 = N_0 \frac{n - s + 1/2}{n + 1}, \quad
            N_0 = \frac{1}{1 - \rho_\mathrm{min}}

        ``successes``: (Q,), counts or sums of rewards from 0 to 1; ``rollouts``: (Q,) or a number, at least as many
        (checked, which waits for a GPU). ``least_rho`` has to be below 1.
        """
        s = as_tensor(successes, "successes").to(torch.float64)
        if s.dim() != 1:
            raise ValueError(f"successes: expected shape (Q,), got {tuple(s.shape)}")
        tracker = cls(s.shape[0], **{"device": s.device, **options})
        if tracker.least_rho == 1:
            raise ValueError("least_rho: expected a number below 1, whose run of visits has an end")
        n = rollouts if isinstance(rollouts, Tensor) else as_tensor(rollouts, "rollouts", device=s.device)
        n = as_column(n.expand(s.shape) if n.dim() == 0 else n, "rollouts", s, "successes")
        if not bool(((s >= 0) & (s <= n) & n.isfinite()).all()):
            raise ValueError("successes, rollouts: expected 0 <= successes <= rollouts, finite")
        weight = 1 / ((1 - tracker.least_rho) * (n + 1))
        tracker.alpha, tracker.beta = ((weight * (x + 0.5)).to(tracker.alpha) for x in (s, n - s))
        return tracker

    def values(self, prompts: Any = None) -> Tensor:
        r""":math:`\hat v` of ``prompts`` (N,), or of all (Q,). Read them before `update`."""
        alpha, beta = self.alpha, self.beta
        if prompts is not None:
            rows = self._rows(prompts)
            alpha, beta = alpha[rows], beta[rows]
        return alpha / (alpha + beta)

    def update(self, prompts: Any, rewards: Any, divergence: Any = None) -> None:
        r"""Forgets and adds what a batch has shown.

        Args:
            prompts: (N,) integers. SPO draws without replacement; a prompt that comes more often adds all its rewards
                and keeps the mean of its :math:`\rho`.
            rewards: (N,), from 0 to 1; a rollout with NaN (not scored) changes nothing.
            divergence: (N,) D, the mean of :math:`|\log \pi_\mathrm{stored} - \log \pi|` over the tokens of the
                prompt's previous response, see `divergence`; 0 at the first visit, where it is NaN (not known), and by
                default.

        Rewards and divergences out of range raise on the CPU; a GPU does not wait to look, and clips them.
        """
        rows = self._rows(prompts)
        r = as_column(rewards, "rewards", rows, "prompts")
        d = torch.zeros_like(r) if divergence is None else as_column(divergence, "divergence", rows, "prompts")
        if can_look(r) and bool(((r < 0) | (r > 1)).any()):
            raise ValueError("rewards: expected values from 0 to 1")
        if can_look(d) and bool((d < 0).any()):
            raise ValueError("divergence: expected values >= 0")
        scored = ~r.isnan()
        r, d = r.clamp(0.0, 1.0), torch.where(d.isnan(), 0.0, d)
        visits = torch.zeros_like(self.alpha).index_add_(0, rows, scored.to(r))
        rho = torch.exp2(-d / self.half_life).clamp(self.least_rho, self.most_rho)
        kept = torch.zeros_like(self.alpha).index_add_(0, rows, torch.where(scored, rho, 0.0))
        rho = torch.where(visits > 0, kept / visits.clamp(min=1), 1.0)
        self.alpha = (rho * self.alpha).index_add_(0, rows, torch.where(scored, r, 0.0))
        self.beta = (rho * self.beta).index_add_(0, rows, torch.where(scored, 1 - r, 0.0))

    def sampling_weights(self, prompts: Any = None, *, exploration: float = 0.05) -> Tensor:
        r""":math:`\sqrt{\hat v (1 - \hat v)}` plus ``exploration`` >= 0, (Q,) or (N,): the unknown comes first."""
        v = self.values(prompts)
        return (v * (1 - v)).sqrt() + as_nonnegative(exploration, "exploration")

    def sample(
        self,
        count: int,
        prompts: Any = None,
        *,
        exploration: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``count`` distinct prompts, (count,) int64, drawn by `sampling_weights` from ``prompts`` or from all.

        Sequential draws without replacement, as the order of exponential clocks. O(Q log count).
        """
        weights = self.sampling_weights(prompts, exploration=exploration)
        count = as_integer(count, "count")
        if not 0 <= count <= weights.shape[0]:
            raise ValueError(f"count: expected an int from 0 to {weights.shape[0]}, got {count}")
        clocks = torch.empty_like(weights).exponential_(generator=generator)
        drawn = torch.topk(weights / clocks, count).indices
        return drawn if prompts is None else self._rows(prompts)[drawn]

    @staticmethod
    def divergence(stored_log_probs: Any, log_probs: Any, mask: Any) -> Tensor:
        r"""Mean of :math:`|\log \pi_\mathrm{stored} - \log \pi|` over counted tokens: three (N, T) to (N,) float64.

        A row without counted tokens is 0.
        """
        now = as_tokens(log_probs, "log_probs").to(torch.float64)
        stored = as_tokens(stored_log_probs, "stored_log_probs", now, "log_probs").to(torch.float64)
        on = as_mask(mask, now, "log_probs")
        drift = (stored - now).abs()
        return torch.where(on, drift, 0.0).sum(-1) / on.sum(-1).clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on: copies."""
        return {
            "alpha": self.alpha.clone(),
            "beta": self.beta.clone(),
            "half_life": self.half_life,
            "least_rho": self.least_rho,
            "most_rho": self.most_rho,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, on this tracker's device."""
        device = self.alpha.device
        alpha = as_tensor(state["alpha"], "alpha", dtype=torch.float64, device=device)
        beta = as_tensor(state["beta"], "beta", dtype=torch.float64, device=device)
        if alpha.dim() != 1 or alpha.shape != beta.shape:
            raise ValueError(f"alpha, beta: expected one shape (Q,), got {tuple(alpha.shape)} and {tuple(beta.shape)}")
        if not bool(((alpha >= 0) & (beta >= 0) & (alpha + beta > 0) & (alpha + beta).isfinite()).all()):
            raise ValueError("alpha, beta: expected finite numbers >= 0 with a positive sum")
        options = {name: state[name] for name in ("half_life", "least_rho", "most_rho")}
        loaded = SinglestreamTracker(alpha.shape[0], device=device, **options)
        loaded.alpha, loaded.beta = alpha.clone(), beta.clone()
        vars(self).update(vars(loaded))

    def _rows(self, prompts: Any) -> Tensor:
        rows = as_integers(prompts, "prompts", "the tracker", self.alpha).to(torch.int64)
        count = self.alpha.shape[0]
        if rows.dim() != 1:
            raise ValueError(f"prompts: expected shape (N,), got {tuple(rows.shape)}")
        if can_look(rows) and bool(((rows < 0) | (rows >= count)).any()):
            raise ValueError(f"prompts: expected values from 0 to {count - 1}")
        return rows


class _Papers(NamedTuple):
    """RiskPO's papers; everything by rollout, (N,)."""

    rewards: Tensor  # float64, 0 where not scored
    scored: Tensor
    scores: Tensor  # of the rollout's paper
    member: Tensor  # whether it is in one
    first: Tensor  # whether it is the first of it
    questions: Groups
    bundles: Groups
    papers: Groups

    @classmethod
    def of(
        cls,
        given: Tensor,
        group_size: Any,
        group_ids: Any,
        offsets: Any,
        bundle_size: Any,
        bundle_ids: Any,
        process_group: Any,
    ) -> tuple[_Papers, slice]:
        """Of all ranks' rows, and which of them are this rank's."""
        if (bundle_size is None) == (bundle_ids is None):
            raise ValueError("bundle_size, bundle_ids: expected exactly one of them")
        own = slice(None)
        if process_group is None:
            questions = Groups.of(given, group_size, group_ids, offsets)
        else:
            labels = {} if bundle_ids is None else {"bundle_ids": bundle_ids}
            everyone = over_ranks(process_group, given, (group_size, group_ids, offsets), **labels)
            given, own = everyone.rewards, everyone.own
            questions = Groups.of(given, everyone.groups.get("group_size"), everyone.groups.get("group_ids"), None)
            bundle_ids = everyone.labels[0] if everyone.labels else None
        if bundle_size is not None:
            bundle_size = as_integer(bundle_size, "bundle_size")
            if bundle_size < 1:
                raise ValueError(f"bundle_size: expected a positive int, got {bundle_size}")
            opens = questions.rank(torch.ones_like(given, dtype=torch.bool)) == 0
            number = questions.sum(torch.where(opens, opens.cumsum(0) - 1, 0))  # of the question, by first rollout
            bundles = Groups(number.to(torch.int64) // bundle_size)
        else:
            bundles = Groups(dense(as_labels(bundle_ids, "bundle_ids", given)))
        r = given.detach().to(torch.float64)
        scored = ~r.isnan()
        r = torch.where(scored, r, 0.0)
        position = questions.rank(scored)
        number_of_papers = -bundles.max(-questions.sum(scored))
        member = scored & (position < number_of_papers)
        papers = bundles.refined(torch.where(member, position, max(len(given) - 1, 0)))
        scores = papers.sum(torch.where(member, r, 0.0))
        first = member & (papers.rank(member) == 0)
        return cls(r, scored, scores, member, first, questions, bundles, papers), own

    def credited(self, a: Tensor, credit: Credit, eps: float) -> Tensor:
        """What each response gets of its paper's advantage."""
        if credit == "uniform":
            return a
        if credit == "score":
            return a * torch.where(self.rewards > 0, 0.5, 1.5)
        rho = self.questions.centred(self.rewards, self.scored)
        if credit == "std":
            std = self.questions.std(rho, self.scored)
            return a / (torch.where(std > 1e-3, std, 1.0) + eps)
        total = self.papers.sum(torch.where(self.member, rho, 0.0))
        responses = self.papers.sum(self.member)
        split = total.abs() > 1e-6
        return a * torch.where(split, rho / torch.where(split, total, 1.0), 1 / responses.clamp(min=1))

    def quantile(self, level: float) -> Tensor:
        """Of the paper scores of the rollout's bundle, linear between them; any number where there are none."""
        if len(self.scores) == 0:
            return self.scores
        by_score = torch.sort(torch.where(self.first, self.scores, math.inf), stable=True)
        by_bundle = torch.sort(self.bundles.index[by_score.indices], stable=True)
        ascending = by_score.values[by_bundle.indices]
        last = (self.bundles.sum(self.first) - 1).clamp(min=0)
        return _quantiles(ascending, last, level, self.bundles.starts[self.bundles.index])


def _quantiles(ascending: Tensor, last: Tensor, level: float | Tensor, start: int | Tensor = 0) -> Tensor:
    """Linear between the values from `start` to `start + last`. (`torch.quantile` refuses more than 2^24 of them.)"""
    place = last * level
    below = place.floor()
    lo = ascending[start + below.to(torch.int64)]
    hi = ascending[start + torch.minimum(below + 1, last).to(torch.int64)]
    return torch.where(hi > lo, lo + (place - below) * (hi - lo), lo)
