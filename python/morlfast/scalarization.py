"""Vectors of objectives to numbers: one value for each point and weight; and orders that need no weight."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from morlfast._arguments import (
    as_float32_or_64,
    as_integer,
    as_number,
    as_points,
    as_ref_point,
    objective_senses,
    same_device,
)


def weighted_sum(values: Any, weights: Any) -> Tensor:
    r"""Weighted sum of the objectives, of the same sense as they are.

    .. math:: u(v, w) = \sum_j w_j v_j

    Args:
        values: (..., n, m) or (m,), float32 or float64; array-likes are taken too.
        weights: (..., W, m) or (m,); batch shapes broadcast. For a weight of its own for each row, give
            ``values[:, None]`` and ``weights[:, None]``.

    Returns:
        (..., W, n), without W for ``weights`` (m,) and without n for ``values`` (m,), in the dtype of ``values``.
        Differentiable in both. IEEE rules: NaN spreads, and 0 times infinity is NaN.

    Raises:
        TypeError: for dtypes that are neither float32, float64 nor integers.
        ValueError: for shapes that do not fit, and mixed devices.

    >>> weighted_sum([[1.0, 0.0], [0.0, 2.0]], [[0.5, 0.5], [0.9, 0.1]])
    tensor([[0.5000, 1.0000],
            [0.9000, 0.2000]], dtype=torch.float64)
    """
    pairs = _Pairs(values, weights)
    return pairs.result(pairs.sum_of(pairs.values))


def weighted_log(values: Any, weights: Any, *, floor: float = 0.0) -> Tensor:
    r"""Weighted sum of logarithms, to be maximized: the logarithm of the weighted Nash product.

    .. math:: u(v, w) = \sum_j w_j \log \max(v_j, \mathrm{floor})

    Args:
        values: as `weighted_sum`; utilities that are maximized and positive.
        weights: as `weighted_sum`, >= 0.
        floor: values below are raised to it. With 0 a value that is not positive gives -inf, unless its weight is 0:
            that adds nothing.

    Returns:
        As `weighted_sum`.

    Raises:
        TypeError, ValueError: as `weighted_sum`; also for a negative floor.

    Source: Jain et al. (2023), the log-scalarization of multi-objective GFlowNets.

    >>> weighted_log([1.0, 0.0], [[1.0, 0.0], [0.5, 0.5]])
    tensor([0., -inf], dtype=torch.float64)
    """
    floor = as_number(floor, "floor")
    if not floor >= 0:
        raise ValueError(f"floor: expected a number >= 0, got {floor}")
    pairs = _Pairs(values, weights)
    return pairs.result(_weighted_log(pairs, pairs.values.clamp(min=floor)))


def chebyshev(
    values: Any, weights: Any, ideal_point: Any, *, nadir_point: Any = None, augmentation: float = 0.0
) -> Tensor:
    r"""Weighted Chebyshev distance to the ideal point, to be minimized whatever the sense of the objectives.

    .. math:: g(v, w) = \max_j w_j d_j + \rho \sum_j d_j, \qquad d_j = |z_j - v_j|

    Its negative is the reward of MORL/D and multi-objective GFlowNets. With ``nadir_point`` d_j is divided by
    :math:`|z^{nad}_j - z_j|`.

    Args:
        values: as `weighted_sum`.
        weights: as `weighted_sum`, >= 0.
        ideal_point: z, a scalar, (m,), or broadcastable to the batch shape + (m,); at least as good as all values, or
            (utopian) a little better.
        nadir_point: as ``ideal_point``; a range of 0 in an objective counts as 1.
        augmentation: rho >= 0. A small one (1e-3) rules out points that are only weakly Pareto optimal.

    Returns:
        As `weighted_sum`. Differentiable also in ``ideal_point``; where several objectives attain the maximum they
        share the gradient.

    Raises:
        TypeError, ValueError: as `weighted_sum`; also for augmentation < 0.

    Sources: Bowman (1976); Steuer and Choo (1983) for the augmentation.

    >>> chebyshev([[1.0, 3.0], [2.0, 2.0]], [0.5, 0.5], [3.0, 3.0])
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    augmentation = _not_negative(augmentation, "augmentation")
    pairs = _Pairs(values, weights)
    ideal = pairs.point(ideal_point, "ideal_point")
    distances = (pairs.values - ideal).abs()
    if nadir_point is not None:
        spread = (pairs.point(nadir_point, "nadir_point") - ideal).abs()
        distances = distances / torch.where(spread > 0, spread, 1.0)
    return pairs.result(_augmented(pairs, pairs.weights, distances, augmentation, weighted=False))


def penalty_boundary_intersection(
    values: Any, weights: Any, ideal_point: Any, *, maximize: bool | Sequence[bool], theta: float = 5.0
) -> Tensor:
    r"""Distance along the direction of the weight plus a penalty for the distance from it, to be minimized (PBI).

    .. math:: g(v, w) = d_1 + \theta d_2, \qquad d_1 = \frac{(v - z) \cdot w}{\|w\|}, \qquad
        d_2 = \Big\|v - z - d_1 \frac{w}{\|w\|}\Big\|

    with z - v in place of v - z where an objective is maximized. d_1 has a sign: beyond the ideal point it is negative.

    Args:
        values: as `weighted_sum`.
        weights: as `weighted_sum`; a direction, of any length but 0 (which gives NaN).
        ideal_point: as `chebyshev`.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        theta: >= 0.

    Returns:
        As `weighted_sum`. Differentiable also in ``ideal_point``; on the direction itself the gradient of d_2 is 0.

    Raises:
        TypeError, ValueError: as `weighted_sum`; also for theta < 0.

    Source: Zhang and Li (2007).

    >>> penalty_boundary_intersection([[1.0, 1.0], [0.0, 2.0]], [0.5, 0.5], 0.0, maximize=False)
    tensor([1.4142, 8.4853], dtype=torch.float64)
    """
    theta = _not_negative(theta, "theta")
    pairs = _Pairs(values, weights)
    worse = pairs.worse(pairs.point(ideal_point, "ideal_point"), maximize)
    direction = pairs.weights / pairs.weights.norm(dim=-1, keepdim=True)
    along = direction.to(worse.dtype) @ worse.mT
    squared = torch.zeros_like(along)
    for j in range(pairs.objectives):  # no (..., W, n, m) temporary, and no difference of squares
        squared = squared + (worse[..., None, :, j] - along * direction[..., :, None, j]).square()
    on_direction = squared == 0
    away = torch.where(on_direction, 0.0, torch.where(on_direction, 1.0, squared).sqrt())
    return pairs.result(along + theta * away)


def achievement(
    values: Any,
    weights: Any,
    ref_point: Any,
    *,
    maximize: bool | Sequence[bool],
    augmentation: float = 0.0,
    min_weight: float = 1e-10,
) -> Tensor:
    r"""Achievement scalarizing function (ASF), to be minimized: how far a point falls short of the reference point.

    .. math:: g(v, w) = \max_j \frac{v_j - r_j}{w_j} + \rho \sum_j \frac{v_j - r_j}{w_j}

    with r_j - v_j where an objective is maximized. Unlike `chebyshev` it needs no ideal point: a point better than the
    reference point in every objective gets a negative value.

    Args:
        values: as `weighted_sum`.
        weights: as `weighted_sum`; entries below ``min_weight`` are raised to it.
        ref_point: r, a scalar, (m,), or broadcastable to the batch shape + (m,).
        maximize: whether objectives are maximized; a bool, or one for each objective.
        augmentation: rho >= 0.
        min_weight: > 0.

    Returns:
        As `weighted_sum`. Differentiable also in ``ref_point``.

    Raises:
        TypeError, ValueError: as `weighted_sum`; also for augmentation < 0 and min_weight <= 0.

    Source: Wierzbicki (1980).

    >>> achievement([[1.0, 3.0], [2.0, 2.0]], [0.5, 0.5], [2.0, 3.0], maximize=False)
    tensor([0., 0.], dtype=torch.float64)
    >>> achievement([[1.0, 3.0], [2.0, 2.0]], [0.5, 0.5], [2.0, 3.0], maximize=False, augmentation=0.1)
    tensor([-0.2000, -0.2000], dtype=torch.float64)
    """
    augmentation = _not_negative(augmentation, "augmentation")
    min_weight = as_number(min_weight, "min_weight")
    if not min_weight > 0:
        raise ValueError(f"min_weight: expected a positive number, got {min_weight}")
    pairs = _Pairs(values, weights)
    worse = pairs.worse(pairs.point(ref_point, "ref_point"), maximize)
    inverse = 1 / pairs.weights.clamp(min=min_weight)
    return pairs.result(_augmented(pairs, inverse, worse, augmentation, weighted=True))


def power_mean(values: Any, weights: Any, p: float) -> Tensor:
    r"""Weighted power mean, to be maximized: from the best objective (p = inf) to the worst (p = -inf).

    .. math:: M_p(v, w) = \Big(\sum_j w_j v_j^p \Big/ \sum_j w_j\Big)^{1/p}

    p = 1 is the mean, 0 the geometric mean (the weighted Nash product), -1 the harmonic one, p -> -inf the egalitarian
    minimum; p <= 1 is fair in the sense of Pigou and Dalton.

    Args:
        values: as `weighted_sum`; utilities >= 0. Negative ones give NaN, except for p = 1 and p = ±inf.
        weights: as `weighted_sum`, >= 0. Objectives of weight 0 do not count; all 0 gives NaN.
        p: any number, ±inf included.

    Returns:
        As `weighted_sum`. Computed by logarithms, so that no power overflows; differentiable for positive values.

    Raises:
        TypeError, ValueError: as `weighted_sum`; also for p = NaN.

    Source: Hardy, Littlewood and Pólya (1934, chapter II).

    >>> [round(power_mean([1.0, 4.0], [0.5, 0.5], p).item(), 4) for p in (-torch.inf, -1, 0, 1, 2, torch.inf)]
    [1.0, 1.6, 2.0, 2.5, 2.9155, 4.0]
    """
    p = as_number(p, "p")
    if p != p:
        raise ValueError("p: expected a number, got NaN")
    pairs = _Pairs(values, weights)
    total = pairs.weights.sum(-1)[..., None]
    if p == 1:
        return pairs.result(pairs.sum_of(pairs.values) / total)
    if p == 0:
        return pairs.result((_weighted_log(pairs, pairs.values) / total).exp())
    if abs(p) > sys.float_info.max:  # infinite, also where torch.compile made p a symbol
        extreme = pairs.extreme(pairs.values if p > 0 else -pairs.values)
        extreme = torch.where(total > 0, extreme, math.nan)
        return pairs.result(extreme if p > 0 else -extreme)
    exponents = p * pairs.values.log()
    largest = pairs.extreme(exponents.detach())
    # What lies far above the largest has weight 0.
    shift = torch.where(largest.isinf(), 0.0, largest)
    mean = torch.zeros_like(largest)
    for j in range(pairs.objectives):
        scaled = (exponents[..., None, :, j] - shift).clamp(max=80).exp()
        mean = mean + pairs.weights[..., :, None, j] * scaled
    mean = ((mean / total).log() + shift) / p
    # All 0, or one infinite: the logarithm of the mean is known, and infinite.
    return pairs.result(torch.where(largest.isinf(), torch.where(total > 0, largest / p, math.nan), mean).exp())


def ordered_weighted_average(values: Any, weights: Any) -> Tensor:
    r"""Weighted sum of the sorted objectives, the worst first (OWA); to be maximized.

    .. math:: u(v, w) = \sum_j w_j v_{(j)}, \qquad v_{(1)} \le v_{(2)} \le \dots \le v_{(m)}

    With weights that do not increase it is the generalized Gini welfare function (GGF), which prefers fair vectors; w =
    (1, 0, ..., 0) is the minimum, equal weights the mean.

    Args:
        values: as `weighted_sum`; utilities that are maximized, on one scale.
        weights: as `weighted_sum`; w_1 belongs to the worst objective of each point.

    Returns:
        As `weighted_sum`.

    Raises:
        TypeError, ValueError: as `weighted_sum`.

    Sources: Yager (1988); Weymark (1981).

    >>> ordered_weighted_average([[4.0, 0.0], [1.0, 2.0]], [0.75, 0.25])
    tensor([1.0000, 1.2500], dtype=torch.float64)
    """
    pairs = _Pairs(values, weights)
    return pairs.result(pairs.sum_of(pairs.values.sort(dim=-1).values))


def lexicographic_order(
    values: Any, *, maximize: bool | Sequence[bool], priority: Sequence[int] | None = None
) -> Tensor:
    """Rows from best to worst: by the most important objective, ties by the next one.

    Args:
        values: (..., n, m), float32 or float64; array-likes are taken too.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        priority: objectives from the most to the least important; those left out do not count. None: 0, 1, ..., m - 1.

    Returns:
        int64 (..., n), row indices; ``order[..., 0]`` is the lexicographic optimum. Ties go to the lowest row; -0.0
        equals 0.0; rows with a NaN come last, in their order. m stable sorts, O(m n log n).

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for objectives that do not exist or come twice in ``priority``.

    Source: Fishburn (1974).

    >>> lexicographic_order([[1.0, 0.0], [2.0, 5.0], [2.0, 7.0]], maximize=True)
    tensor([2, 1, 0])
    """
    return _lexicographic_order(as_points(values, "values"), maximize, priority)


def thresholded_lexicographic_order(
    values: Any,
    thresholds: Any,
    *,
    maximize: bool | Sequence[bool],
    priority: Sequence[int] | None = None,
) -> Tensor:
    r"""Lexicographic order in which more than enough of an objective counts as enough (TLO, TLQ-learning).

    .. math:: v_j \leftarrow \min(v_j, t_j) \quad (\max \text{ where minimized}), \text{ then lexicographically}

    Args:
        values: as `lexicographic_order`.
        thresholds: (m,), in the order of the objectives; infinitely good ones do not bind. With ``priority=None`` also
            (m - 1,): the last objective has none, as in TLQ-learning.
        maximize: as `lexicographic_order`.
        priority: as `lexicographic_order`.

    Returns:
        As `lexicographic_order`.

    Raises:
        TypeError, ValueError: as `lexicographic_order`; also for thresholds of another shape.

    Sources: Gábor, Kalmár and Szepesvári (1998); Vamplew, Dazeley, Berry, Issabekov and Dekker (2011).

    >>> thresholded_lexicographic_order([[9.0, 1.0], [5.0, 3.0], [4.0, 8.0]], [5.0], maximize=True)
    tensor([1, 0, 2])
    """
    values = as_points(values, "values")
    m = values.shape[-1]
    senses = objective_senses(maximize, m)
    bounds = as_float32_or_64(thresholds, "thresholds")
    bounds = bounds if isinstance(thresholds, Tensor) else bounds.to(values.device)
    same_device("values", values, "thresholds", bounds)
    if bounds.shape == (m - 1,) and priority is None:
        bounds = torch.cat([bounds, bounds.new_full((1,), math.inf if senses[-1] else -math.inf)])
    if bounds.shape != (m,):
        raise ValueError(
            f"thresholds: expected shape ({m},), or ({m - 1},) without priority, got {tuple(bounds.shape)}"
        )
    columns = []
    for j, maximized in enumerate(senses):
        clip = torch.minimum if maximized else torch.maximum
        columns.append(clip(values[..., j], bounds[j]))
    return _lexicographic_order(torch.stack(columns, dim=-1), senses, priority)


def _lexicographic_order(values: Tensor, maximize: Any, priority: Sequence[int] | None) -> Tensor:
    m = values.shape[-1]
    senses = objective_senses(maximize, m)
    objectives = list(range(m))
    if priority is not None:
        objectives = [as_integer(j, "priority") for j in priority]
        if len(set(objectives)) != len(objectives) or not all(0 <= j < m for j in objectives):
            raise ValueError(f"priority: expected different objectives in 0..{m - 1}, got {list(priority)}")
    is_nan = values.isnan().any(-1)
    order = torch.arange(values.shape[-2], device=values.device).expand(values.shape[:-1])
    for j in reversed(objectives):
        key = (-values[..., j] if senses[j] else values[..., j]) + 0.0  # -0.0 becomes 0.0
        key = torch.where(is_nan, 0.0, key)
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    return order.gather(-1, is_nan.gather(-1, order).to(torch.int8).argsort(dim=-1, stable=True))


class _Pairs:
    """Values (..., n, m) and weights (..., W, m) in one dtype, and the shape of the result for each pair of rows."""

    def __init__(self, values: Any, weights: Any) -> None:
        values = as_float32_or_64(values, "values")
        weights = weights if isinstance(weights, Tensor) else as_float32_or_64(weights, "weights").to(values.device)
        weights = as_float32_or_64(weights, "weights")
        same_device("values", values, "weights", weights)
        for name, tensor in (("values", values), ("weights", weights)):
            if tensor.dim() < 1:
                raise ValueError(f"{name}: expected shape (m,) or (..., n, m), got a scalar")
        if values.shape[-1] == 0 or values.shape[-1] != weights.shape[-1]:
            raise ValueError(
                f"weights: expected a weight for each objective of values, shape {tuple(values.shape)}, "
                f"got shape {tuple(weights.shape)}"
            )
        self._one_value, self._one_weight = values.dim() == 1, weights.dim() == 1
        self._dtype = values.dtype
        dtype = torch.promote_types(values.dtype, weights.dtype)
        self.values: Tensor = (values[None] if self._one_value else values).to(dtype)
        self.weights: Tensor = (weights[None] if self._one_weight else weights).to(dtype)
        self.objectives = values.shape[-1]
        try:
            torch.broadcast_shapes(self.values.shape[:-2], self.weights.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"weights: expected a batch shape that broadcasts with that of values, {tuple(values.shape)}, "
                f"got shape {tuple(weights.shape)}"
            ) from None

    def point(self, value: Any, name: str) -> Tensor:
        """(m,) or (..., 1, m), in the dtype of the values or a wider one."""
        point = as_ref_point(value, self.values, name)
        return point if point.dim() == 1 else point[..., None, :]

    def worse(self, than: Tensor, maximize: bool | Sequence[bool]) -> Tensor:
        """By how much the values are worse than a point, (..., n, m)."""
        difference = self.values - than
        senses = objective_senses(maximize, self.objectives)
        if all(senses):
            return -difference
        if not any(senses):
            return difference
        columns = [-difference[..., j] if maximized else difference[..., j] for j, maximized in enumerate(senses)]
        return torch.stack(columns, dim=-1)

    def sum_of(self, terms: Tensor) -> Tensor:
        """sum_j w_j terms_j, (..., W, n)."""
        return self.weights @ terms.mT

    def extreme(self, terms: Tensor) -> Tensor:
        """The largest term whose weight is positive, (..., W, n); -inf without one."""
        result = None
        for j in range(self.objectives):
            term = torch.where(self.weights[..., :, None, j] > 0, terms[..., None, :, j], -math.inf)
            result = term if result is None else torch.maximum(result, term)
        assert result is not None
        return result

    def result(self, scalars: Tensor) -> Tensor:
        if self._one_value:
            scalars = scalars.squeeze(-1)
            return (scalars.squeeze(-1) if self._one_weight else scalars).to(self._dtype)
        return (scalars.squeeze(-2) if self._one_weight else scalars).to(self._dtype)


def _weighted_log(pairs: _Pairs, values: Tensor) -> Tensor:
    """Sums of w_j log v_j where 0 times -inf is 0."""
    logarithms = values.log()
    lost = logarithms == -math.inf
    finite = pairs.sum_of(torch.where(lost, 0.0, torch.where(lost, 1.0, values).log()))
    any_lost = (pairs.weights > 0).to(values.dtype) @ lost.to(values.dtype).mT > 0
    return torch.where(any_lost, -math.inf, finite)


def _augmented(pairs: _Pairs, weights: Tensor, terms: Tensor, augmentation: float, *, weighted: bool) -> Tensor:
    """max_j w_j t_j + rho sum_j t_j (weighted: rho sum_j w_j t_j), (..., W, n) without a (..., W, n, m) temporary."""
    largest = weights[..., :, None, 0] * terms[..., None, :, 0]
    for j in range(1, pairs.objectives):
        largest = torch.maximum(largest, weights[..., :, None, j] * terms[..., None, :, j])
    if augmentation == 0:
        return largest
    total = weights.to(terms.dtype) @ terms.mT if weighted else terms.sum(-1)[..., None, :]
    return largest + augmentation * total


def _not_negative(value: Any, name: str) -> float:
    number = as_number(value, name)
    if not number >= 0:
        raise ValueError(f"{name}: expected a number >= 0, got {value}")
    return number
