"""Quality indicators of point sets: utilities over weights, distances to a reference set, spread and diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from morlfast import _ops
from morlfast._arguments import (
    NanPolicy,
    as_float32_or_64,
    as_integer,
    as_lengths_or_mask,
    as_number,
    as_points,
    as_ref_point,
    check_lengths,
    looks_for_nan,
    objective_senses,
    raise_for_nan,
    same_device,
)
from morlfast.pareto import is_non_dominated

Mean = Literal["power_mean", "mean_after_root"]

# The numbers that the operator best_points knows its formulas by.
_DOT_PRODUCT, _CHEBYSHEV, _SQUARED_DISTANCE, _SQUARED_EXCESS, _LARGEST_DIFFERENCE, _LARGEST_QUOTIENT = range(6)


# --- utilities over weights ---


def expected_utility(
    points: Any,
    weights: Any,
    *,
    maximize: bool = True,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Mean over the weights of the utility of the best point for each.

    .. math:: EU(P, W) = \frac{1}{|W|} \sum_{w \in W} \max_{p \in P} w \cdot p

    Args:
        points: sets, shape (..., n, m), any n >= 0 and m >= 1; float32 or float64 with any strides. Array-likes are
            taken too; integers and Python's numbers become float64.
        weights: shape (W, m), or (..., W, m) with a batch shape that broadcasts with that of ``points``.
        maximize: whether larger utilities are better; ``False`` takes the smallest product for each weight.
        lengths: integers of the batch shape of ``points``; only the first ``lengths`` points of each set count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look, and under ``torch.compile``) lets such a point count as not there, and a NaN in
            ``weights`` give NaN.

    Returns:
        Tensor of the batch shape on the device of ``points``, float64 if either input is, else float32; computed in
        float64. An empty set has the worst value, -inf (inf when minimizing), and so has one without weights. A product
        without a value, 0 * inf, is passed over.

    Differentiable, in the best point for each weight (of equally good points the lowest row) and in the weights.
    O(W n m) operations without a W x n array.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit, NaN under ``"raise"``, lengths outside 0..n (on the CPU), mixed devices.

    Source: Zintgraf, Kanters, Roijers, Oliehoek and Beau (2015).

    >>> points = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    >>> expected_utility(points, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor(2.5000)
    """
    _check_sense(maximize)
    sets = _as_sets(points, weights, "weights", lengths, mask, None, nan)
    return _mean(_utilities(sets.points, sets.others, maximize), sets.others, -math.inf if maximize else math.inf)


def maximum_utility_loss(
    points: Any,
    reference: Any,
    weights: Any,
    *,
    maximize: bool = True,
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Most utility that is lost, for any of the weights, by choosing from the points instead of the reference set.

    .. math:: MUL(P, R, W) = \max_{w \in W} \Big[\max_{r \in R} w \cdot r - \max_{p \in P} w \cdot p\Big]

    Args:
        points, weights, maximize, lengths, mask, nan: as in :func:`expected_utility`.
        reference: shape (k, m), or (..., k, m) with a batch shape that broadcasts with that of ``points``.
        reference_lengths: integers of the batch shape of ``reference``; only its first rows count.

    Returns:
        Tensor of the batch shape; negative where the points are better than the reference set for every weight. inf if
        points, reference or weights are empty; NaN for a NaN in ``reference`` or ``weights`` (``nan="worst"``).

    Differentiable, in the best points of the weight with the largest loss. O(W (n + k) m). Raises as
    :func:`expected_utility`.

    Source: Zintgraf, Kanters, Roijers, Oliehoek and Beau (2015).

    >>> points, reference = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    >>> maximum_utility_loss(points, reference, [[1.0, 0.0], [0.5, 0.5]])
    tensor(1., dtype=torch.float64)
    """
    _check_sense(maximize)
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan)
    with_weights = _as_sets(sets.points.rows, weights, "weights", None, None, None, nan, looked_at=True)
    # In float64: what float32 rounds off each utility would be all that is left of their difference.
    own, queries = sets.points.like(with_weights.points).wide(), with_weights.others.wide()
    reference_set = sets.others.like(with_weights.points).wide()
    best, best_of_reference = _utilities(own, queries, maximize), _utilities(reference_set, queries, maximize)
    if queries.rows.shape[-2] == 0:
        return best.new_full(best.shape[:-1], math.inf, dtype=with_weights.points.rows.dtype)
    losses = best_of_reference - best if maximize else best - best_of_reference
    # Infinities that meet are not near, as for distances.
    losses = torch.where((best_of_reference == best) & best.isinf(), math.inf, losses)
    loss = torch.where(own.is_empty() | reference_set.is_empty(), math.inf, losses.amax(-1))
    return reference_set.nan_if_nan(loss).to(with_weights.points.rows.dtype)


def r2(
    points: Any,
    weights: Any,
    ideal_point: Any,
    *,
    normalization: Literal["mean", "frobenius"] = "mean",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""R2: mean over the weights of the smallest weighted Chebyshev distance to the ideal point.

    .. math:: R2(P, W, z) = \frac{1}{|W|} \sum_{w \in W} \min_{p \in P} \max_j w_j |z_j - p_j|

    Args:
        points, weights, lengths, mask, nan: as in :func:`expected_utility`.
        ideal_point: scalar, (m,), or broadcastable to the batch shape + (m,). NaN in it gives NaN (``nan="worst"``).
        normalization: ``"mean"`` divides the sum by the number of weights; ``"frobenius"`` by the root of the sum of
            all squared weights, as the code of multi-objective GFlowNets does.

    Returns:
        Tensor of the batch shape, float64 if ``points`` or ``weights`` are, else float32; smaller is better. inf for an
        empty set or no weights.

    Differentiable in points, weights and ideal point; where several objectives share the largest term they share its
    derivative, and at the ideal point it is 0. O(W n m). Raises as :func:`expected_utility`.

    Sources: Hansen and Jaszkiewicz (1998); Brockhoff, Wagner and Trautmann (2012) for the unary form; Jain et al.
    (2023), Multi-Objective GFlowNets, for the other normalization.

    >>> r2(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), 0.0)
    tensor(0.2500)
    """
    if normalization not in ("mean", "frobenius"):
        raise ValueError(f'normalization: expected "mean" or "frobenius", got {normalization!r}')
    sets = _as_sets(points, weights, "weights", lengths, mask, None, nan)
    rows = sets.points.rows
    ideal = as_ref_point(ideal_point, rows, "ideal_point")
    if sets.raises:
        _look_for_nan(ideal.reshape(-1, ideal.shape[-1]), "ideal_point", None)
    distances = (rows.double() - ideal.double()[..., None, :]).abs()
    others = sets.others.wide()
    best = _best(_CHEBYSHEV, sets.points._replace(rows=distances), others)
    value = _mean(best, others, math.inf)
    if normalization == "frobenius" and others.rows.shape[-2] > 0:
        value = value * (others.rows.shape[-2] / others.rows.square().sum((-2, -1)).sqrt())
    value = torch.where(sets.points.is_empty(), math.inf, value)
    return torch.where(ideal.isnan().any(-1), math.nan, value).to(rows.dtype)


# --- distances to a reference set ---


def gd(
    points: Any,
    reference: Any,
    *,
    p: float = 1,
    mean: Mean = "power_mean",
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Generational distance: how far the points are from the reference set, on average.

    .. math:: GD_p(P, R) = \Big(\frac{1}{|P|} \sum_{a \in P} d(a)^p\Big)^{1/p}, \qquad d(a) = \min_{r \in R} \|a - r\|_2

    Args:
        points, lengths, mask: as in :func:`expected_utility`.
        reference: shape (k, m), or (..., k, m) with a batch shape that broadcasts with that of ``points``.
        reference_lengths: integers of the batch shape of ``reference``; only its first rows count.
        p: exponent, above 0; inf gives the largest distance.
        mean: where the number of distances stands: ``"power_mean"`` as above; ``"mean_after_root"`` has
            :math:`(\sum d^p)^{1/p} / |P|`, which with p = 2 is Van Veldhuizen's definition and jMetal's number.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; under ``"worst"`` (default on CUDA and
            under ``torch.compile``) a NaN among the points gives inf and one in ``reference`` NaN.

    Returns:
        Tensor of the batch shape on the device of ``points``, float64 if either input is, else float32; computed in
        float64. inf for an empty set or an empty reference set. A distance without a value, inf - inf, is passed over.

    Differentiable in points and reference, through the nearest row (of equally near ones the lowest); a point on the
    reference set has derivative 0. O(n k m) operations without an n x k array. Raises as :func:`expected_utility`, and
    ValueError for p that is not above 0.

    Sources: Van Veldhuizen (1999); Schütze, Esquivel, Lara and Coello Coello (2012) for the power mean.

    >>> gd(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor(1.)
    """
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan)
    return _generational(_SQUARED_DISTANCE, sets, p, mean)


def gd_plus(
    points: Any,
    reference: Any,
    *,
    maximize: bool | Sequence[bool],
    p: float = 1,
    mean: Mean = "power_mean",
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""GD+: generational distance in which only what a point is worse than the reference counts.

    .. math:: d^+(a) = \min_{r \in R} \sqrt{\sum_j \max(a_j - r_j, 0)^2}

    (minimization), averaged as in :func:`gd`.

    Args:
        maximize: whether objectives are maximized; a bool, or one for each objective.
        points, reference, p, mean, lengths, mask, reference_lengths, nan: as in :func:`gd`.

    Returns, derivatives, complexity and errors: as :func:`gd`. 0 when every point weakly dominates a reference point.

    Source: Ishibuchi, Masuda, Tanigaki and Nojima (2015).

    >>> gd_plus(torch.tensor([[1.0, 1.0], [0.0, 0.5]]), torch.tensor([[0.0, 1.0]]), maximize=False)
    tensor(0.5000)
    """
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan)
    # The operator measures how far its points are worse than its queries: both are mirrored.
    return _generational(_SQUARED_EXCESS, sets.minimized(maximize, mirrored=True), p, mean)


def igd(
    points: Any,
    reference: Any,
    *,
    p: float = 1,
    mean: Mean = "power_mean",
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Inverted generational distance: how far the reference set is from the points, on average.

    .. math::
        IGD_p(P, R) = \Big(\frac{1}{|R|} \sum_{r \in R} d(r)^p\Big)^{1/p}, \qquad d(r) = \min_{a \in P} \|r - a\|_2

    Args: as in :func:`gd`, but under ``nan="worst"`` a NaN among the points makes that point count as not there;
        ``mean="mean_after_root"`` divides by the size of the reference set.

    Returns, derivatives, complexity and errors: as :func:`gd`.

    Sources: Coello Coello and Reyes Sierra (2004); Schütze, Esquivel, Lara and Coello Coello (2012) for the power mean.

    >>> igd(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 4.0]]))
    tensor(2.)
    """
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan)
    return _inverted(_SQUARED_DISTANCE, sets, p, mean)


def igd_plus(
    points: Any,
    reference: Any,
    *,
    maximize: bool | Sequence[bool],
    p: float = 1,
    mean: Mean = "power_mean",
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""IGD+: inverted generational distance in which only what a point is worse than the reference counts.

    .. math:: d^+(r) = \min_{a \in P} \sqrt{\sum_j \max(a_j - r_j, 0)^2}

    (minimization), averaged as in :func:`igd`. Unlike IGD it is weakly Pareto-compliant: a set that is better in the
    sense of dominance never has a larger value.

    Args:
        maximize: whether objectives are maximized; a bool, or one for each objective.
        points, reference, p, mean, lengths, mask, reference_lengths, nan: as in :func:`igd`.

    Returns, derivatives, complexity and errors: as :func:`gd`.

    Source: Ishibuchi, Masuda, Tanigaki and Nojima (2015).

    >>> igd_plus(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 4.0]]), maximize=False)
    tensor(0.5000)
    """
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan)
    return _inverted(_SQUARED_EXCESS, sets.minimized(maximize), p, mean)


def average_hausdorff(
    points: Any,
    reference: Any,
    *,
    p: float = 1,
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Averaged Hausdorff distance; with p = inf the Hausdorff distance.

    .. math:: \Delta_p(P, R) = \max(GD_p(P, R), IGD_p(P, R))

    Args: as in :func:`gd`.

    Returns, derivatives, complexity and errors: as :func:`gd`; symmetric in points and reference.

    Source: Schütze, Esquivel, Lara and Coello Coello (2012).

    >>> average_hausdorff(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 4.0]]))
    tensor(2.)
    """
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan)
    return torch.maximum(
        _generational(_SQUARED_DISTANCE, sets, p, "power_mean"), _inverted(_SQUARED_DISTANCE, sets, p, "power_mean")
    )


def epsilon_indicator(
    points: Any,
    reference: Any,
    *,
    maximize: bool | Sequence[bool],
    kind: Literal["additive", "multiplicative"] = "additive",
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Smallest epsilon by which every point must improve so that the set weakly dominates the reference set.

    .. math::
        \epsilon_+(P, R) = \max_{r \in R} \min_{a \in P} \max_j (a_j - r_j), \qquad
        \epsilon_*(P, R) = \max_{r \in R} \min_{a \in P} \max_j a_j / r_j

    (minimization; maximized objectives have r_j - a_j and r_j / a_j).

    Args:
        maximize: whether objectives are maximized; a bool, or one for each objective.
        kind: ``"additive"`` or ``"multiplicative"``; the latter needs values above 0 (and takes maximized ones as
            1 / value, so that those below 5.6e-309 count as 0).
        points, reference, lengths, mask, reference_lengths, nan: as in :func:`igd`.

    Returns:
        Tensor of the batch shape, float64 if either input is, else float32; smaller is better. inf for an empty set or
        an empty reference set. A row without a value, inf - inf or inf / inf, is passed over.

    Not differentiable. At worst O(n k m); on the CPU a reference row is only compared with points until one shows that
    it does not decide. Raises as :func:`expected_utility`, and ValueError for values that are not above 0
    with ``"multiplicative"`` (on the CPU; on CUDA, which must not look, and under ``torch.compile`` the result is NaN).

    Source: Zitzler, Thiele, Laumanns, Fonseca and Grunert da Fonseca (2003).

    >>> points, reference = [[3.5, 5.5], [4.1, 3.2], [5.5, 1.5]], [[1, 6], [3, 4], [6, 1]]
    >>> epsilon_indicator(points, reference, maximize=False)
    tensor(2.5000, dtype=torch.float64)
    >>> epsilon_indicator(points, reference, maximize=False, kind="multiplicative")
    tensor(3.5000, dtype=torch.float64)
    """
    if kind not in ("additive", "multiplicative"):
        raise ValueError(f'kind: expected "additive" or "multiplicative", got {kind!r}')
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan).detached()
    dtype = sets.points.rows.dtype
    valid = None
    if kind == "additive":
        sets = sets.minimized(maximize)
    else:
        if not sets.points.rows.is_cuda and not torch.compiler.is_compiling():
            for name, side in (("points", sets.points), ("reference", sets.others)):
                if bool((side.filled(side.rows, 1) <= 0).any()):
                    raise ValueError(f"{name}: expected values above 0 for the multiplicative epsilon indicator")
        else:
            valid = ~(sets.points.has_not_positive() | sets.others.has_not_positive())
        senses = objective_senses(maximize, sets.points.rows.shape[-1])
        sets = sets.wide().transformed(lambda rows: _with_senses(rows, senses, torch.reciprocal))
    formula = _LARGEST_DIFFERENCE if kind == "additive" else _LARGEST_QUOTIENT
    value = _ops.farthest_query(
        sets.others.rows, sets.points.rows_for_search(), formula, sets.points.lengths, sets.others.lengths
    )
    value = torch.where(sets.others.is_empty(), math.inf, value)
    return (value if valid is None else torch.where(valid, value, math.nan)).to(dtype)


# --- how many points there are, and how they lie ---


def cardinality(
    points: Any,
    *,
    maximize: bool | Sequence[bool],
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    """Number of different non-dominated points.

    Args: as in :func:`morlfast.is_non_dominated`.

    Returns:
        int64 tensor of the batch shape; 0 for an empty set. Of equal points one counts; rows with NaN do not
        (``nan="worst"``). MORL-Baselines counts all points of a set that it has filtered before: the same number.

    Complexity and errors: as :func:`morlfast.is_non_dominated`.

    >>> cardinality(torch.tensor([[1.0, 3.0], [2.0, 2.0], [1.0, 3.0], [3.0, 3.0]]), maximize=False)
    tensor(2)
    """
    return is_non_dominated(points, maximize=maximize, deduplicate=True, lengths=lengths, mask=mask, nan=nan).sum(-1)


def sparsity(points: Any, *, lengths: Any = None, mask: Any = None, nan: NanPolicy | None = None) -> Tensor:
    r"""Sum over the objectives of the squared gaps between neighbouring values, over n - 1.

    .. math:: SP(P) = \frac{1}{n - 1} \sum_j \sum_{i=2}^{n} (p_{(i)j} - p_{(i-1)j})^2

    with the values of each objective in ascending order.

    Args:
        points, lengths, mask: as in :func:`expected_utility`. Dominated points count: filter them first.
        nan: as in :func:`expected_utility`; under ``"worst"`` a NaN gives inf.

    Returns:
        Tensor of the batch shape with the dtype and device of ``points``; smaller is better. 0 for a single point, as
        in MORL-Baselines, and inf for an empty set. Equal infinite values have no gap.

    Differentiable. O(m n log n). Raises as :func:`expected_utility`.

    Source: Xu, Tian, Ma, Rus, Sueda and Matusik (2020), PGMORL.

    >>> sparsity(torch.tensor([[0.0, 3.0], [1.0, 2.0], [3.0, 0.0]]))
    tensor(5.)
    """
    own = _as_set(points, lengths, mask, nan)
    rows, counts = own.rows.double(), own.counts()
    n = rows.shape[-2]
    if n == 0:
        return own.rows.new_full(own.rows.shape[:-2], math.inf)
    ordered = own.filled(rows, math.inf).sort(-2).values
    above, below = ordered[..., 1:, :], ordered[..., :-1, :]
    gaps = torch.where(above == below, 0, above - below)
    if own.let_in is not None:
        gaps = torch.where((torch.arange(n - 1, device=rows.device) < counts[..., None] - 1)[..., None], gaps, 0)
    value = gaps.square().sum((-2, -1)) / (counts - 1).clamp(min=1)
    return own.inf_if_empty_or_nan(value).to(own.rows.dtype)


def spacing(
    points: Any, *, ddof: int = 1, lengths: Any = None, mask: Any = None, nan: NanPolicy | None = None
) -> Tensor:
    r"""Standard deviation of the distances from each point to its nearest neighbour.

    .. math:: S(P) = \sqrt{\frac{1}{n - ddof} \sum_i (\bar d - d_i)^2}, \qquad d_i = \min_{k \ne i} \|p_i - p_k\|_1

    Args:
        points, lengths, mask: as in :func:`expected_utility`.
        ddof: 1 as Schott has it; 0 is pymoo's number.
        nan: as in :func:`expected_utility`; under ``"worst"`` a NaN gives inf.

    Returns:
        Tensor of the batch shape with the dtype and device of ``points``; smaller is better. inf for fewer than two
        points, and where a distance is infinite.

    Differentiable. O(n^2 m), in blocks of rows. Raises as :func:`expected_utility`.

    Source: Schott (1995).

    >>> spacing(torch.tensor([[0.0, 3.0], [1.0, 2.0], [3.0, 0.0]]))
    tensor(1.1547)
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {ddof!r}")
    own = _as_set(points, lengths, mask, nan)
    counts = own.counts()
    nearest, infinite = _finite(_nearest_neighbours(own, 1.0))
    mean = own.sum_of(nearest) / counts.clamp(min=1)
    squares = own.sum_of((nearest - mean[..., None]).square()) / (counts - ddof).clamp(min=1)
    value = torch.where(counts < 2, math.inf, _power(squares, 0.5))
    value = torch.where(own.let_in_rows(infinite).any(-1), math.inf, value)
    return own.inf_if_empty_or_nan(value).to(own.rows.dtype)


def spread(
    points: Any,
    extremes: Any,
    *,
    variant: Literal["nsga2", "generalized"] = "nsga2",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""How evenly the points lie, and how near they come to the extremes of the true front.

    .. math::
        \Delta(P) = \frac{\sum_e d_e + \sum_i |d_i - \bar d|}{\sum_e d_e + |d| \, \bar d}

    Args:
        points, lengths, mask: as in :func:`expected_utility`.
        extremes: shape (k, m), or (..., k, m) with a batch shape that broadcasts with that of ``points``.
        variant: ``"nsga2"``, for two objectives and two extremes: the n - 1 gaps d_i between neighbours in the order of
            the first objective (then the second), and d_e from the first and last point to the first and last extreme.
            ``"generalized"``, for any m: the n distances d_i to the nearest other point, and d_e from each extreme to
            the nearest point. Distances are Euclidean in both.
        nan: as in :func:`expected_utility`; under ``"worst"`` a NaN among the points gives inf, in ``extremes`` NaN.

    Returns:
        Tensor of the batch shape, float64 if either input is, else float32; smaller is better. inf for fewer than two
        points, for points that all coincide with the extremes (0 / 0), and where a distance is infinite.

    Differentiable. O(n log n) for ``"nsga2"``, else O(n^2 m), in blocks of rows. Raises as :func:`expected_utility`,
    and ValueError where ``"nsga2"`` gets other than two objectives and extremes.

    Sources: Deb, Pratap, Agarwal and Meyarivan (2002), NSGA-II; Zhou, Jin, Zhang, Sendhoff and Tsang (2006).

    >>> points = torch.tensor([[0.0, 3.0], [1.0, 2.0], [3.0, 0.0]])
    >>> spread(points, [[0.0, 3.0], [3.0, 0.0]])
    tensor(0.3333, dtype=torch.float64)
    """
    if variant not in ("nsga2", "generalized"):
        raise ValueError(f'variant: expected "nsga2" or "generalized", got {variant!r}')
    sets = _as_sets(points, extremes, "extremes", lengths, mask, None, nan)
    own, ends = sets.points.wide(), sets.others.wide()
    counts = own.counts()
    n, m = own.rows.shape[-2:]
    dtype = sets.points.rows.dtype
    if variant == "nsga2" and (m, ends.rows.shape[-2]) != (2, 2):
        raise ValueError(
            f'extremes: expected two, for two objectives, with variant="nsga2", got {ends.rows.shape[-2]} for {m}'
        )
    if n == 0 or ends.rows.shape[-2] == 0:
        return own.rows.new_full(own.rows.shape[:-2], math.inf, dtype=dtype)
    if variant == "generalized":
        parts = own._replace(rows=own.rows[..., 0])
        (distances, infinite), number = _finite(_nearest_neighbours(own, 2.0)), counts
        to_ends = _power(_best(_SQUARED_DISTANCE, own, ends), 0.5).sum(-1)
    else:
        ordered = _rows_at(own.filled(own.rows, 0), _lexicographic_order(own.filled(own.rows, math.inf)))
        two = _rows_at(ends.rows, _lexicographic_order(ends.rows))
        last = _rows_at(ordered, (counts - 1).clamp(min=0)[..., None])
        to_ends = _norm(ordered[..., 0, :] - two[..., 0, :]) + _norm(last[..., 0, :] - two[..., 1, :])
        number = (counts - 1).clamp(min=0)
        between = torch.arange(n - 1, device=counts.device) < number[..., None]
        parts = own._replace(let_in=between)
        distances, infinite = _finite(_norm(ordered[..., 1:, :] - ordered[..., :-1, :]))
    mean = parts.sum_of(distances) / number.clamp(min=1)
    uneven = parts.sum_of((distances - mean[..., None]).abs())
    bottom = to_ends + number * mean
    worst = (counts < 2) | (bottom == 0) | ~bottom.isfinite() | parts.let_in_rows(infinite).any(-1)
    value = torch.where(worst, math.inf, (to_ends + uneven) / torch.where(worst, 1, bottom))
    return ends.nan_if_nan(own.inf_if_empty_or_nan(value)).to(dtype)


# --- what generative models of many candidates are measured by ---


def top_k_diversity(distances: Any, scores: Any, k: int, *, nan: NanPolicy | None = None) -> Tensor:
    r"""Mean distance between two of the k best candidates.

    .. math:: D_k = \frac{2}{k (k - 1)} \sum_{i < j \le k} d(x_{(i)}, x_{(j)})

    Args:
        distances: shape (..., n, n), symmetric: Levenshtein distances of sequences, one minus Tanimoto similarities of
            molecules, or any other; float32 or float64.
        scores: shape (..., n), larger is better; equal scores in the order of rows.
        k: candidates to take, at least 2; fewer where there are not as many.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA and under
            ``torch.compile``) ranks NaN scores last and lets a NaN distance between two of the k give -inf.

    Returns:
        Tensor of the batch shape with the dtype of ``distances``; larger is better. -inf for fewer than two candidates.

    Differentiable in the distances. O(n log n + k^2).

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit, k below 2, and NaN under ``"raise"``.

    Source: Jain et al. (2023), Multi-Objective GFlowNets.

    >>> distances = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    >>> top_k_diversity(distances, [0.1, 0.9, 0.5], k=2)
    tensor(2.)
    """
    table = as_points(distances, "distances")
    ranked = as_float32_or_64(scores, "scores", device=table.device)
    same_device("distances", table, "scores", ranked)
    n = table.shape[-1]
    if table.shape[-2] != n or ranked.shape != table.shape[:-1]:
        raise ValueError(
            f"distances, scores: expected shapes (..., n, n) and (..., n), got {tuple(table.shape)} and "
            f"{tuple(ranked.shape)}"
        )
    k = as_integer(k, "k")
    if k < 2:
        raise ValueError(f"k: expected at least 2, got {k}")
    if looks_for_nan(nan, table):
        _look_for_nan(table, "distances", None)
        _look_for_nan(ranked[..., None], "scores", None)
    k = min(k, n)
    if k < 2:
        return table.new_full(table.shape[:-2], -math.inf)
    # Ascending, so that NaN comes last.
    best = torch.sort(-ranked, stable=True, dim=-1).indices[..., :k]
    chosen = _rows_at(table, best).gather(-1, best[..., None, :].expand(*best.shape, k)).double()
    pairs = torch.ones(k, k, dtype=torch.bool, device=table.device).triu(1)
    value = torch.where(pairs, chosen, 0).sum((-2, -1)) / (k * (k - 1) / 2)
    return torch.where(value.isnan(), -math.inf, value).to(table.dtype)


def preference_entropy(
    points: Any,
    reference: Any,
    *,
    eps: float = 0.0,
    lengths: Any = None,
    mask: Any = None,
    reference_lengths: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Entropy of how the points distribute over the reference points nearest to them (PC-entropy).

    .. math:: H = -\sum_r q_r \log(q_r + \epsilon), \qquad q_r = \frac{|\{a \in P : r \text{ is nearest to } a\}|}{|P|}

    Args:
        points, reference, lengths, mask, reference_lengths: as in :func:`gd`.
        eps: added to the shares under the logarithm; 1e-8 is what the code of multi-objective GFlowNets has.
        nan: as in :func:`gd`; under ``"worst"`` a NaN among the points gives -inf, in ``reference`` NaN.

    Returns:
        Tensor of the batch shape, float64 if either input is, else float32, in nats: from 0 (one reference point has
        all) to log k; larger is better. -inf for an empty set or an empty reference set. Of equally near reference
        points the lowest row counts.

    Not differentiable. O(n k m). Raises as :func:`gd`.

    Source: Jain et al. (2023), Multi-Objective GFlowNets.

    >>> preference_entropy([[0.1, 1.0], [0.9, 0.0]], [[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
    tensor(0.6931, dtype=torch.float64)
    """
    eps = as_number(eps, "eps")
    if not eps >= 0:
        raise ValueError(f"eps: expected a number from 0 on, got {eps}")
    sets = _as_sets(points, reference, "reference", lengths, mask, reference_lengths, nan).detached()
    own, others = sets.points, sets.others
    batch, k = own.rows.shape[:-2], others.rows.shape[-2]
    _, nearest = _ops.best_points(own.rows, others.rows_for_search(), _SQUARED_DISTANCE, others.lengths, True)
    found = own.let_in_rows(nearest >= 0)
    histogram = torch.zeros((*batch, k + 1), dtype=torch.float64, device=own.rows.device)
    histogram.scatter_add_(-1, torch.where(found, nearest, k), found.double())
    counts = own.counts()
    shares = histogram[..., :k] / counts.clamp(min=1)[..., None]
    value = -torch.where(shares > 0, shares * (shares + eps).log(), 0).sum(-1) + 0.0
    value = torch.where(found.sum(-1) < counts.clamp(min=1), -math.inf, value)
    return others.nan_if_nan(value).to(own.rows.dtype)


# --- what the functions share ---


class _Set(NamedTuple):
    """Rows (..., n, m) of which some are let in."""

    rows: Tensor
    lengths: Tensor | None
    let_in: Tensor | None
    """bool (..., n): inside ``lengths`` or ``mask``."""
    masked: bool
    looked_at: bool
    """No row that is let in has a NaN."""

    def like(self, other: _Set) -> _Set:
        """With the batch shape and dtype of `other`."""
        if self.rows.dtype == other.rows.dtype and self.rows.shape[:-2] == other.rows.shape[:-2]:
            return self
        return self.spread_over(other.rows.shape[:-2], other.rows.dtype)

    def spread_over(self, batch: tuple[int, ...], dtype: torch.dtype) -> _Set:
        if self.rows.shape[:-2] == batch and self.rows.dtype is dtype:
            return self
        return self._replace(
            rows=self.rows.to(dtype).expand(*batch, *self.rows.shape[-2:]),
            lengths=None if self.lengths is None else self.lengths.expand(batch).contiguous(),
            let_in=None if self.let_in is None else self.let_in.expand(*batch, self.rows.shape[-2]),
        )

    def wide(self) -> _Set:
        return self._replace(rows=self.rows.double())

    def rows_for_search(self) -> Tensor:
        """Rows outside a mask as NaN, which the operator takes for not there; lengths it takes itself."""
        if not self.masked:
            return self.rows
        assert self.let_in is not None
        return torch.where(self.let_in[..., None], self.rows, math.nan)

    def filled(self, rows: Tensor, value: float) -> Tensor:
        return rows if self.let_in is None else torch.where(self.let_in[..., None], rows, value)

    def let_in_rows(self, marked: Tensor) -> Tensor:
        return marked if self.let_in is None else marked & self.let_in

    def sum_of(self, values: Tensor) -> Tensor:
        """Sum over the rows (..., n) that are let in."""
        return (values if self.let_in is None else torch.where(self.let_in, values, 0)).sum(-1)

    def counts(self) -> Tensor:
        if self.let_in is not None:
            return self.let_in.sum(-1)
        return torch.full(self.rows.shape[:-2], self.rows.shape[-2], device=self.rows.device)

    def is_empty(self) -> Tensor:
        return self.counts() == 0

    def has_nan(self) -> Tensor:
        return self.let_in_rows(self.rows.isnan().any(-1)).any(-1)

    def has_not_positive(self) -> Tensor:
        return self.let_in_rows((self.rows <= 0).any(-1)).any(-1)

    def nan_if_nan(self, value: Tensor) -> Tensor:
        return value if self.looked_at else torch.where(self.has_nan(), math.nan, value)

    def inf_if_empty_or_nan(self, value: Tensor) -> Tensor:
        if self.let_in is None and self.looked_at and self.rows.shape[-2] > 0:
            return value
        worst = self.is_empty() if self.looked_at else self.is_empty() | self.has_nan()
        return torch.where(worst, math.inf, value)


class _Sets(NamedTuple):
    """Points, and what they are measured against or by: one batch shape, dtype and device."""

    points: _Set
    others: _Set
    raises: bool

    def transformed(self, function: Any) -> _Sets:
        return self._replace(
            points=self.points._replace(rows=function(self.points.rows)),
            others=self.others._replace(rows=function(self.others.rows)),
        )

    def detached(self) -> _Sets:
        return self.transformed(lambda rows: rows.detach())

    def wide(self) -> _Sets:
        return self.transformed(lambda rows: rows.double())

    def minimized(self, maximize: bool | Sequence[bool], mirrored: bool = False) -> _Sets:
        senses = objective_senses(maximize, self.points.rows.shape[-1])
        return self.transformed(lambda rows: _with_senses(rows, [sense != mirrored for sense in senses], torch.neg))


def _with_senses(rows: Tensor, changed: list[bool], function: Any) -> Tensor:
    """The function on some columns."""
    if not any(changed):
        return rows
    if all(changed):
        result: Tensor = function(rows)
        return result
    columns = [function(column) if change else column for column, change in zip(rows.unbind(-1), changed, strict=True)]
    return torch.stack(columns, -1)


def _look_for_nan(rows: Tensor, name: str, let_in: Tensor | None) -> None:
    if rows.is_meta:
        return
    rows = rows.detach()
    if let_in is not None:
        rows = torch.where(let_in[..., None], rows, 0)
    if math.isnan(float(rows.sum())):  # NaN somewhere, or infinities of both signs
        raise_for_nan(rows.isnan().any(-1), name)


def _as_rows(values: Any, name: str, lengths: Any, mask: Any, device: torch.device | None = None) -> _Set:
    if device is not None:
        values = as_float32_or_64(values, name, device=device)
    rows = as_points(values, name)
    if rows.shape[-1] < 1:
        raise ValueError(f"{name}: expected at least one objective, got shape {tuple(rows.shape)}")
    lengths_name = "lengths" if name == "points" else f"{name}_lengths"
    own_lengths, let_in = as_lengths_or_mask(lengths, mask, rows, lengths_name)
    if own_lengths is not None:
        n = rows.shape[-2]
        check_lengths(own_lengths, n, lengths_name)
        let_in = torch.arange(n, device=rows.device) < own_lengths[..., None]
    return _Set(rows, own_lengths, let_in, own_lengths is None and let_in is not None, False)


def _as_set(points: Any, lengths: Any, mask: Any, nan: NanPolicy | None) -> _Set:
    own = _as_rows(points, "points", lengths, mask)
    if not looks_for_nan(nan, own.rows):
        return own
    _look_for_nan(own.rows, "points", own.let_in)
    return own._replace(looked_at=True)


def _as_sets(
    points: Any,
    others: Any,
    name: str,
    lengths: Any,
    mask: Any,
    other_lengths: Any,
    nan: NanPolicy | None,
    looked_at: bool = False,
) -> _Sets:
    own = _as_rows(points, "points", lengths, mask)
    other = _as_rows(others, name, other_lengths, None, own.rows.device)
    same_device("points", own.rows, name, other.rows)
    if other.rows.shape[-1] != own.rows.shape[-1]:
        raise ValueError(
            f"{name}: expected {own.rows.shape[-1]} objectives, as points has, got shape {tuple(other.rows.shape)}"
        )
    raises = looks_for_nan(nan, own.rows)
    if raises:
        if not looked_at:
            _look_for_nan(own.rows, "points", own.let_in)
        _look_for_nan(other.rows, name, other.let_in)
    batch, other_batch = own.rows.shape[:-2], other.rows.shape[:-2]
    if batch != other_batch and other_batch:  # torch imports sympy for the general case, which takes a second
        try:
            batch = torch.broadcast_shapes(batch, other_batch) if batch else other_batch
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected a batch shape that broadcasts with that of points {tuple(own.rows.shape)}, got "
                f"{tuple(other.rows.shape)}"
            ) from error
    dtype = torch.promote_types(own.rows.dtype, other.rows.dtype)
    return _Sets(
        own.spread_over(batch, dtype)._replace(looked_at=raises),
        other.spread_over(batch, dtype)._replace(looked_at=raises),
        raises,
    )


def _check_sense(maximize: Any) -> None:
    if not isinstance(maximize, bool):
        raise TypeError(f"maximize: expected a bool, the sense of the utilities, got {maximize!r}")


def _tracked(*tensors: Tensor) -> bool:
    """Whether derivatives are asked for, in reverse or forward mode."""
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return differentiated or forward_ad._current_level >= 0


def _best(kind: int, points: _Set, queries: _Set) -> Tensor:
    """The best value over the points for each query, (..., W), float64; differentiable through the best rows."""
    rows_to_search = points.rows_for_search()
    tracked = _tracked(points.rows, queries.rows)
    if not tracked:
        values, _ = _ops.best_points(queries.rows, rows_to_search, kind, points.lengths)
        return values.double()
    values, rows = _ops.best_points(queries.rows.detach(), rows_to_search.detach(), kind, points.lengths, True)
    values = values.double()
    if points.rows.shape[-2] == 0:
        return values
    chosen = _rows_at(points.rows, rows.clamp(min=0)).double()
    found = rows >= 0
    chosen = torch.where(found[..., None], chosen, 0)
    own = torch.where(found[..., None], queries.filled(queries.rows.double(), 0), 0)  # infinite padding has no slope
    return torch.where(found, _value_of_pair(kind, own, chosen), values)


def _value_of_pair(kind: int, q: Tensor, p: Tensor) -> Tensor:
    if kind == _DOT_PRODUCT:
        return (q * p).sum(-1)
    if kind == _CHEBYSHEV:
        return (q * p).amax(-1)
    if kind == _SQUARED_DISTANCE:
        return (q - p).square().sum(-1)
    assert kind == _SQUARED_EXCESS  # of the others no derivative is offered
    return (p - q).clamp(min=0).square().sum(-1)


def _utilities(points: _Set, weights: _Set, maximize: bool) -> Tensor:
    if maximize:
        return _best(_DOT_PRODUCT, points, weights)
    return 0 - _best(_DOT_PRODUCT, points, weights._replace(rows=-weights.rows))


def _mean(values: Tensor, rows: _Set, worst: float) -> Tensor:
    """Mean of float64 values (..., W) over the rows that are let in, in the dtype of the rows."""
    if values.shape[-1] == 0:
        return rows.rows.new_full(values.shape[:-1], worst)
    if rows.let_in is None:
        return values.mean(-1).to(rows.rows.dtype)
    counts = rows.counts()
    return torch.where(counts == 0, worst, rows.sum_of(values) / counts.clamp(min=1)).to(rows.rows.dtype)


def _power(values: Tensor, exponent: float) -> Tensor:
    """values >= 0 to a power; where a value is 0 so is the derivative."""
    if exponent == 1:
        return values
    if not _tracked(values):
        return values.sqrt() if exponent == 0.5 else values.pow(exponent)
    zero = values == 0
    base = torch.where(zero, 1, values)
    return torch.where(zero, 0, base.sqrt() if exponent == 0.5 else base.pow(exponent))


def _norm(vectors: Tensor) -> Tensor:
    return _power(vectors.square().sum(-1), 0.5)


def _average_distance(squares: Tensor, rows: _Set, p: float, mean: Mean) -> Tensor:
    """The mean of squared distances (..., W) to the power p / 2, and its root."""
    if mean not in ("power_mean", "mean_after_root"):
        raise ValueError(f'mean: expected "power_mean" or "mean_after_root", got {mean!r}')
    p = as_number(p, "p")
    if not p > 0:
        raise ValueError(f"p: expected a number above 0, got {p}")
    dtype, wide = rows.rows.dtype, rows.wide()
    if squares.shape[-1] == 0:
        return squares.new_full(squares.shape[:-1], math.inf, dtype=dtype)
    known = squares if rows.let_in is None else torch.where(rows.let_in, squares, 0)
    if p == 1 or p == 2:
        value = _power(_mean(_power(squares, p / 2), wide, math.inf), 1 / p)
    else:
        largest = known.amax(-1)
        if p == math.inf:
            value = _power(largest, 0.5)
        else:  # large powers of large distances would overflow, of small ones vanish
            scale = torch.where((largest > 0) & (largest < math.inf), largest, 1).detach()
            value = _power(_mean(_power(squares / scale[..., None], p / 2), wide, math.inf), 1 / p) * scale.sqrt()
    if mean == "mean_after_root":
        value = value * rows.counts().clamp(min=1).double() ** (1 / p - 1)
    if rows.let_in is not None:  # the largest of none
        value = torch.where(rows.is_empty(), math.inf, value)
    return value.to(dtype)


def _inverted(kind: int, sets: _Sets, p: float, mean: Mean) -> Tensor:
    return _average_distance(_best(kind, sets.points, sets.others), sets.others, p, mean)


def _generational(kind: int, sets: _Sets, p: float, mean: Mean) -> Tensor:
    squares = _best(kind, sets.others, sets.points)
    if not sets.points.looked_at:
        squares = torch.where(squares.isnan(), math.inf, squares)
    return sets.others.nan_if_nan(_average_distance(squares, sets.points, p, mean))


# Differences of coordinates that are held at a time: 16 MB.
_TERMS = 1 << 21


def _nearest_neighbours(own: _Set, norm: float) -> Tensor:
    """Distance (..., n) from each row to the nearest other row that is let in, float64; inf if there is none."""
    rows = own.filled(own.rows.double(), 0)
    n, m = rows.shape[-2:]
    if n == 0:
        return rows.new_empty(rows.shape[:-1])
    step = max(1, _TERMS // (n * m * max(1, math.prod(rows.shape[:-2]))))
    row = torch.arange(n, device=rows.device)
    nearest = []
    for first in range(0, n, step):
        difference = (rows[..., first : first + step, None, :] - rows[..., None, :, :]).abs()
        pairs = difference.sum(-1) if norm == 1 else difference.square().sum(-1)
        out = (row[first : first + step, None] == row) | pairs.isnan()  # itself; inf - inf
        if own.let_in is not None:
            out = out | ~own.let_in[..., None, :]
        nearest.append(torch.where(out, math.inf, pairs).amin(-1))
    distances = torch.cat(nearest, -1)
    return distances if norm == 1 else _power(distances, 0.5)


def _finite(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Infinite ones, and inf - inf, as 0, so that derivatives stay finite; and where they were."""
    infinite = ~distances.isfinite()
    return torch.where(infinite, 0, distances), infinite


def _lexicographic_order(rows: Tensor) -> Tensor:
    """Indices (..., n) of rows (..., n, 2) by the first objective, then the second."""
    by_second = torch.sort(rows[..., 1], stable=True, dim=-1).indices
    by_first = torch.sort(rows[..., 0].gather(-1, by_second), stable=True, dim=-1).indices
    return by_second.gather(-1, by_first)


def _rows_at(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(-2, index[..., None].expand(*index.shape, rows.shape[-1]))
