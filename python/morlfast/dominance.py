"""Relations beside Pareto dominance: Lorenz, epsilon boxes, and the points that are best for some weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from morlfast._arguments import (
    NanPolicy,
    as_minimization,
    as_points,
    as_ref_point,
    counting_rows,
    place_of_row,
)
from morlfast.pareto import is_dominated_by, is_non_dominated

EpsilonKind = Literal["additive", "multiplicative"]


def lorenz_vectors(points: Any) -> Tensor:
    r"""What the worst-off objectives have together: of one, of two, and so on.

    .. math:: L_k = \sum_{j=1}^{k} v_{(j)}, \qquad v_{(1)} \le v_{(2)} \le \dots \le v_{(m)}

    For utilities, which are maximized. A vector whose Lorenz vector Pareto-dominates another's gives more to those who
    have little without giving less in total, so it is both fairer and no worse.

    Args:
        points: shape (..., n, m), m >= 1; float32 or float64 with any strides. Array-likes are taken too; integers and
            Python's numbers become float64.

    Returns:
        Tensor (..., n, m) with the dtype and device of ``points``; its last column is the sum over objectives.
        Differentiable; equal values share the gradient by the order of columns. Where a value is -inf all sums are
        -inf; otherwise a NaN makes a NaN in the last column at least.

    O(n m log m).

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit.

    Sources: Shorrocks (1983) for generalized Lorenz curves; Perny, Weng, Goldsmith and Hanna (2013) for multi-objective
    decision processes.

    >>> lorenz_vectors(torch.tensor([[3.0, 1.0], [2.0, 2.0]]))
    tensor([[1., 4.],
            [2., 4.]])
    """
    points = as_points(points, least_objectives=1)
    ascending = torch.sort(points.double(), dim=-1, stable=True).values
    sums = ascending.cumsum(-1)
    return torch.where(ascending[..., :1] == -math.inf, ascending[..., :1], sums).to(points.dtype)


def is_lorenz_non_dominated(
    points: Any,
    *,
    deduplicate: bool = False,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    """Whether no other point of its set is fairer: Pareto dominance between Lorenz vectors, of maximized utilities.

    Args:
        points: shape (..., n, m), as in :func:`lorenz_vectors`.
        deduplicate: whether only the lowest row of those with equal Lorenz vectors stays, which permuted utilities have
            as well as equal ones.
        lengths: integers of the batch shape; only the first ``lengths`` points count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN; ``"worst"`` (default on CUDA, which must
            not synchronize to look): such rows are dominated.

    Returns:
        bool (..., n) on the device of ``points``; False for padding and rows with a NaN. A subset of the non-dominated
        rows. Sums are compared as float64 has them, without tolerance.

    Cost: a sort of m values a point, and :func:`morlfast.is_non_dominated`, twice.

    Raises: as :func:`morlfast.is_non_dominated`.

    Source: Perny, Weng, Goldsmith and Hanna (2013); Michailidis, Röpke, Roijers, Ghebreab and Santos (2024), LCN.

    >>> is_lorenz_non_dominated(torch.tensor([[5.0, 0.0], [3.0, 2.0], [2.0, 3.0], [4.0, 1.0]]))
    tensor([False,  True,  True, False])
    """
    points = as_points(points, least_objectives=1).detach()
    # What a point dominates has no better sums: nothing is lost, and rounding cannot keep it.
    rows = is_non_dominated(points, maximize=True, lengths=lengths, mask=mask, nan=nan)
    vectors = lorenz_vectors(points.double())
    return is_non_dominated(vectors, maximize=True, deduplicate=deduplicate, mask=rows, nan="worst")


def epsilon_boxes(
    points: Any,
    epsilon: Any,
    *,
    maximize: bool | Sequence[bool],
    kind: EpsilonKind = "additive",
) -> Tensor:
    r"""Coordinates of the grid cell that each point lies in, to be minimized whatever ``maximize`` says.

    .. math:: b_k = \lfloor z_k / \epsilon_k \rfloor \quad \text{or} \quad
              b_k = \lfloor \pm \log |z_k| / \log(1 + \epsilon_k) \rfloor

    where z is minimized: the point with maximized objectives negated. In the second form ("multiplicative", for values
    >= 0) the logarithm is negated instead. Every cell contains its good face.

    Args:
        points: shape (..., n, m), float32 or float64 with any strides. Array-likes are taken too; integers and Python's
            numbers become float64.
        epsilon: side of the cells, finite and > 0: a number, or (m,).
        maximize: whether objectives are maximized; a bool, or one for each objective.
        kind: ``"additive"``, or ``"multiplicative"``, where a cell spans a factor of 1 + epsilon.

    Returns:
        float64 tensor (..., n, m) on the device of ``points``: whole numbers, infinite where a value is (or is 0, under
        ``"multiplicative"``), and NaN where a value is NaN (or negative, under ``"multiplicative"``). Not
        differentiable. Computed in float64 as written, so a value on a face may be rounded to either side: 0.3 / 0.1 is
        less than 3.

    O(n m).

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit, another kind, and epsilon <= 0 or not finite (on the CPU; a GPU must not
            look, and gives NaN).

    Source: Laumanns, Thiele, Deb and Zitzler (2002), section 4.

    >>> epsilon_boxes(torch.tensor([[0.2, 1.7], [1.1, 0.0]]), 0.5, maximize=False)
    tensor([[0., 3.],
            [2., 0.]], dtype=torch.float64)
    >>> epsilon_boxes(torch.tensor([[3.0, 9.0]]), 1.0, maximize=True, kind="multiplicative")
    tensor([[-2., -4.]], dtype=torch.float64)
    """
    return _in_boxes(as_points(points, least_objectives=1).detach(), epsilon, maximize, kind).floor()


def is_epsilon_non_dominated(
    points: Any,
    epsilon: Any,
    *,
    maximize: bool | Sequence[bool],
    kind: EpsilonKind = "additive",
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    """One point of each grid cell that no other cell dominates: a front thinned out to the resolution epsilon.

    Of several points in one cell the one nearest to the good corner stays, measured in sides of the cell (of the
    logarithms, under ``"multiplicative"``), ties to the lowest row.

    Args:
        points, epsilon, maximize, kind: as in :func:`epsilon_boxes`.
        lengths: integers of the batch shape; only the first ``lengths`` points count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default on the CPU) names the first row with a NaN, or with a negative value under
            ``"multiplicative"``; ``"worst"`` (default on CUDA, which must not synchronize to look) lets such rows go.

    Returns:
        bool (..., n) on the device of ``points``; False for padding. Marked rows are non-dominated, and every point
        that counts is within one cell of being dominated by one of them. With values from 0 to K epsilon at most
        (K + 1)^(m - 1) rows are marked.

    Cost: :func:`morlfast.is_non_dominated`, twice, and a sort.

    Raises: as :func:`epsilon_boxes` and :func:`morlfast.is_non_dominated`.

    Source: Laumanns, Thiele, Deb and Zitzler (2002), algorithm 3; Deb, Mohan and Mishra (2003) for the nearest corner.

    >>> front = torch.tensor([[0.1, 2.2], [0.3, 2.1], [1.6, 1.4], [2.5, 0.2]])
    >>> is_epsilon_non_dominated(front, 1.0, maximize=False)
    tensor([ True, False,  True,  True])
    """
    points = as_points(points, least_objectives=1).detach()
    places = _in_boxes(points, epsilon, maximize, kind)
    outside = places.isnan() & ~points.isnan()  # negative values have no logarithm
    rows, raises = counting_rows(points, lengths, mask, nan)
    negative = (outside.any(-1) & rows).nonzero() if raises else []
    if len(negative) > 0:
        *batch, row = negative[0].tolist()
        where = place_of_row(row, batch)
        raise ValueError(f'points: expected values >= 0 for kind="multiplicative", got a negative one in {where}')
    rows = rows & ~outside.any(-1)
    # What a point dominates lies in its cell or in a worse one: nothing is lost, and rounding cannot keep it.
    rows = is_non_dominated(points, maximize=maximize, mask=rows, nan="worst")

    boxes = places.floor()
    distances = torch.where(places.isinf(), 0, places - boxes).square().sum(-1)
    order = torch.sort(distances, dim=-1, stable=True).indices
    nearest_first = boxes.gather(-2, order[..., None].expand_as(boxes))
    kept = is_non_dominated(nearest_first, maximize=False, deduplicate=True, mask=rows.gather(-1, order), nan="worst")
    return torch.empty_like(kept).scatter_(-1, order, kept)


def is_on_convex_front(
    points: Any,
    *,
    maximize: bool | Sequence[bool],
    deduplicate: bool = True,
    lengths: Any = None,
    mask: Any = None,
    nan: NanPolicy | None = None,
) -> Tensor:
    r"""Whether a point is the only best one for some weights: the convex coverage set, of least size.

    .. math:: \exists\, w \ge 0 : \quad w^T z_i < w^T z_j \quad \text{for all } z_j \ne z_i \text{ (minimized)}

    These are the vertices of the convex hull of all that the points dominate. Non-dominated points in a concave part,
    on a face or on an edge are left out: for all weights others are at least as good.

    Args:
        points: shape (..., n, m) on the CPU, float32 or float64 with any strides. Array-likes are taken too; integers
            and Python's numbers become float64.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        deduplicate: whether only the lowest row of equal points stays.
        lengths: integers of the batch shape; only the first ``lengths`` points count.
        mask: bool, (..., n); only these points count. At most one of ``lengths`` and ``mask``.
        nan: ``"raise"`` (default) names the first row with a NaN; ``"worst"``: such rows are not on the front.

    Returns:
        bool (..., n); False for padding. Not empty where a point counts.

    Exact for m <= 2, and where all but two objectives are constant on the front. For more a point stays if it is better
    than every other by more than 1e-9 in some weighted mean of the objectives, each divided by its range among the
    non-dominated points. So points on a face, which rounding has moved by less, are left out, and of points that lie
    closer together than that possibly all.

    O(n log n) for m <= 2. For m = 3 to 6 a Quickhull, O(n log n) to O(n^floor(m / 2)), whose vertices are checked by
    weights from the facets around them in O(m n^2), and the few that are left by linear programs. For more objectives a
    linear program a point, against the vertices found so far. The fronts of a batch one after the other.

    Raises:
        ImportError: without SciPy, for m >= 3 (``pip install morlfast[convex]``).
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for shapes that do not fit, infinite values (which no weights rank), NaN under ``"raise"``, and
            tensors on a GPU.

    Sources: Barber, Dobkin and Huhdanpaa (1996), Quickhull; Clarkson (1994) for the linear programs; Shewchuk (1997)
    for the sign of a determinant; Roijers, Vamplew, Whiteson and Dazeley (2013) for the coverage set.

    >>> front = torch.tensor([[0.0, 4.0], [1.0, 3.0], [1.8, 1.8], [2.0, 1.0], [4.0, 0.0]])
    >>> is_on_convex_front(front, maximize=False)
    tensor([ True, False, False,  True,  True])
    """
    points = as_points(points, least_objectives=1).detach()
    if points.device.type != "cpu":
        raise ValueError(f"points: expected a tensor on the CPU, got {points.device}; move it with points.cpu()")
    rows, _ = counting_rows(points, lengths, mask, nan)
    infinite = (points.isinf().any(-1) & rows).nonzero()
    if len(infinite) > 0:
        *index, row = infinite[0].tolist()
        raise ValueError(f"points: expected finite values, got an infinity in {place_of_row(row, index)}")
    maximized, values, _ = as_minimization(points.double(), maximize)
    values = -values if maximized else values

    candidates = is_non_dominated(values, maximize=False, deduplicate=True, mask=rows, nan="worst")
    *batch, n, m = values.shape
    fronts = values.reshape(math.prod(batch), n, m)
    flags = candidates.reshape(math.prod(batch), n).clone()
    for front, flag in zip(fronts, flags, strict=True):
        flag[flag.clone()] = torch.from_numpy(_convex_vertices(front[flag].numpy()))
    vertices = flags.reshape(candidates.shape)
    if deduplicate:
        return vertices
    # Non-dominated and nowhere better than a vertex: a copy of it.
    copies = is_dominated_by(values, values, maximize=False, weakly=True, mask=vertices, nan="worst")
    return copies & is_non_dominated(values, maximize=False, mask=rows, nan="worst")


def _in_boxes(points: Tensor, epsilon: Any, maximize: bool | Sequence[bool], kind: str) -> Tensor:
    """float64 (..., n, m): where each point lies, minimized, in sides of a cell."""
    if kind not in get_args(EpsilonKind):
        raise ValueError(f'kind: expected "additive" or "multiplicative", got {kind!r}')
    sides = as_ref_point(epsilon, points, "epsilon").double()
    looks = not sides.is_cuda and not torch.compiler.is_compiling()
    if looks and not bool((sides.isfinite() & (sides > 0)).all()):
        raise ValueError(f"epsilon: expected finite values > 0, got {epsilon!r:.80}")
    values = points.double()
    if kind == "multiplicative":
        values, sides = values.log(), sides.log1p()
    maximized, values, _ = as_minimization(values, maximize)
    return (-values if maximized else values) / sides[..., None, :] + 0.0  # no -0.0


# --- vertices of the hull of a front and all that it dominates ---

_TOLERANCE = 1e-9  # in weighted means of objectives that range from 0 to 1
_FAR = 1e3
_MAX_QUICKHULL_OBJECTIVES = 6  # facets multiply by five to seven with each objective more
_FloatArray = np.ndarray[Any, np.dtype[np.float64]]
_BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


def _convex_vertices(points: _FloatArray) -> _BoolArray:
    """Vertices among different points (n, m), minimized, of which none dominates another."""
    points = points[:, (points != points[:1]).any(0)]
    n, m = points.shape
    if n <= 2:
        return np.ones(n, dtype=np.bool_)
    if m == 2:
        return _convex_chain(points)
    points = np.where(np.abs(points).max(0) > 1e300, points / 4, points)  # differences shall not overflow
    return _convex_vertices_of_unit_box((points - points.min(0)) / (points.max(0) - points.min(0)))


def _convex_chain(points: _FloatArray) -> _BoolArray:
    """m = 2: from the lowest in objective 0 to the lowest in objective 1, always turning left."""
    order = np.argsort(points[:, 0])
    chain: list[int] = []
    rows = points.tolist()
    for row in order.tolist():
        while len(chain) >= 2 and not _turns_left(rows[chain[-2]], rows[chain[-1]], rows[row]):
            chain.pop()
        chain.append(row)
    vertices = np.zeros(len(points), dtype=np.bool_)
    vertices[chain] = True
    return vertices


def _turns_left(a: list[float], b: list[float], c: list[float]) -> bool:
    """Whether (a, b, c) turns left, exactly."""
    left = (b[0] - a[0]) * (c[1] - a[1])
    right = (b[1] - a[1]) * (c[0] - a[0])
    # Shewchuk's bound on the rounding, and what products may lose at the lower end of the range.
    if abs(left - right) > 4e-16 * (abs(left) + abs(right)) + 1e-300:
        return left > right
    (a0, a1), (b0, b1), (c0, c1) = (map(Fraction, point) for point in (a, b, c))
    return (b0 - a0) * (c1 - a1) > (b1 - a1) * (c0 - a0)


def _convex_vertices_of_unit_box(points: _FloatArray) -> _BoolArray:
    """m >= 3: points that some weights tell from all others, by more than the tolerance."""
    n, m = points.shape
    if m <= _MAX_QUICKHULL_OBJECTIVES:
        possible, weights = _quickhull(points)
        rows = np.flatnonzero(possible)
        weights = weights[rows]
    else:
        possible = np.ones(n, dtype=np.bool_)
        weights = np.random.default_rng(0).dirichlet(np.ones(m), size=64 * m)
        rows = (points @ weights.T).argmin(0)
    vertices = np.zeros(n, dtype=np.bool_)
    vertices[rows[_margins(points, weights, rows) > _TOLERANCE]] = True

    compared = np.flatnonzero(vertices).tolist()
    left = possible.copy()
    undecided = np.flatnonzero(possible & ~vertices)[::-1]  # from the last: of rows that nearly equal the lowest stays
    for row in undecided.tolist():
        vertices[row] = left[row] = _is_vertex(points, row, left, compared)
    return vertices


def _quickhull(points: _FloatArray) -> tuple[_BoolArray, _FloatArray]:
    """Whether each point may be a vertex, and weights (n, m) in the middle of those that should then tell it apart."""
    spatial = _scipy("spatial")
    n, m = points.shape
    # Far out on what a point dominates: they span the space, and hide what no weights choose.
    far = points[points.sum(1).argmin()] + _FAR * np.eye(m)
    weights = np.zeros((n + m, m))
    try:
        hull = spatial.ConvexHull(np.concatenate([points, far]))
    except spatial.QhullError:
        return np.ones(n, dtype=np.bool_), weights[:n]
    normals = -hull.equations[:, :-1]
    lower = (normals > -2 / _FAR).all(1)  # at the rim they are tilted as the far points are not at infinity
    np.add.at(weights, hull.simplices[lower], normals[lower, None].clip(min=0))
    possible = np.zeros(n + m, dtype=np.bool_)
    possible[hull.vertices] = True
    return possible[:n], weights[:n] / weights[:n].sum(1, keepdims=True).clip(min=1e-300)


def _margins(points: _FloatArray, weights: _FloatArray, rows: np.ndarray[Any, Any]) -> _FloatArray:
    """(W,): by how much row `rows[w]` is better than every other for weights w."""
    margins = np.empty(len(rows))
    chunk = 1 + 2**22 // len(points)  # of weights, so that the values of all points take 32 MB
    for begin in range(0, len(rows), chunk):
        part = rows[begin : begin + chunk]
        values = weights[begin : begin + chunk] @ points.T
        own = values[np.arange(len(part)), part]
        values[np.arange(len(part)), part] = math.inf
        margins[begin : begin + chunk] = values.min(1) - own
    return margins


def _is_vertex(points: _FloatArray, row: int, left: _BoolArray, compared: list[int]) -> bool:
    """Whether some weights tell the row from all that are left; `compared` collects the rows that this takes."""
    linprog = _scipy("optimize").linprog
    m = points.shape[1]
    accuracy = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    while True:
        others = [other for other in compared if other != row and left[other]]
        # max t  s.t.  w.(other - row) >= t,  sum(w) = 1,  w >= 0
        found = linprog(
            np.append(np.zeros(m), -1.0),
            A_ub=np.hstack([points[row] - points[others], np.ones((len(others), 1))]),
            b_ub=np.zeros(len(others)),
            A_eq=np.append(np.ones(m), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * m + [(-1, 1)],
            method="highs",
            options=accuracy,
        )
        if found.status != 0:
            raise RuntimeError(f"is_on_convex_front: a linear program of SciPy failed: {found.message}")
        if found.x[m] <= _TOLERANCE:
            return False
        values = np.where(left, points @ found.x[:m], math.inf)
        own, values[row] = values[row], math.inf
        nearest = int(values.argmin())
        if values[nearest] - own > _TOLERANCE:
            return True
        if nearest in others:  # the solver's accuracy
            return False
        compared.append(nearest)


def _scipy(module: str) -> Any:
    try:
        return import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError(
            "is_on_convex_front needs SciPy for three and more objectives: pip install 'morlfast[convex]'"
        ) from error
