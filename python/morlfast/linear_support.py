"""Optimistic linear support: corner weights of a convex coverage set, what they may still bring, and the loop (OLS)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from morlfast._arguments import as_minimization, as_number, as_points, as_tensor, raise_for_nan, same_device

# A constraint counts as tight where its slack is below this, in units of the objectives' ranges; where that leaves a
# corner undetermined, below ten times as much, and so on.
_TIGHT = 1e-11
_TIGHT_AT_MOST = 1e-5

# Bounds from both sides that differ by less than about this, in the same units, are the optimum.
_AGREES = 1e-9

# Beyond so many objectives there are more facets than linear programs.
_MAX_HULL_OBJECTIVES = 6


def corner_weights(points: Any, *, maximize: bool | Sequence[bool]) -> Tensor:
    r"""Weights at which the best point changes: the corners of the scalarized value of a set of points.

    .. math:: \text{the } w \text{ of the vertices of } \{(w, v) : w \in \Delta^{m-1},\ p \cdot w \le v \ \forall p\}

    (maximized objectives; mirrored where they are minimized). Between corners the best value
    :math:`\max_p p \cdot w` is linear, so that improvements of a set of policies need only be looked for there.

    Worked out in float64 on the host: for two objectives by a sweep with exact orientation tests, for more by Qhull on
    objectives that are scaled to unit range, whose corners are then solved for again from their tight constraints; a
    constraint with slack below 1e-11 of the ranges is tight (more, where points are equal but for that much noise), and
    corners with the same tight constraints are one. No coordinate is rounded, so that corners of sets on a fine scale,
    or far from zero, are not lost.

    Args:
        points: (n, m), float32 or float64, values of policies; array-likes are taken too. Dominated and equal points
            change nothing.
        maximize: whether objectives are maximized; a bool, or one for each objective.

    Returns:
        (K, m) in the dtype and on the device of ``points``, rows in ascending lexicographic order, the m extreme
        weights among them. Only they when there are no points. Waits for the device. O(n log n) for m = 2;
        O(n^floor(m / 2)) corners at worst.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for other shapes, and for points that are not finite; the message names the row.
        ImportError: without SciPy, for m > 2.

    Sources: Cheng (1988) for linear support; Roijers (2016, section 3.3); Barber, Dobkin and Huhdanpaa (1996) for
    Qhull.

    >>> corner_weights([[1.0, 0.0], [0.8, 0.8], [0.0, 1.0]], maximize=True)
    tensor([[0.0000, 1.0000],
            [0.2000, 0.8000],
            [0.8000, 0.2000],
            [1.0000, 0.0000]], dtype=torch.float64)
    """
    points = _as_set(points, "points")
    values = _maximized(points, maximize)
    n, m = values.shape
    with torch.device("cpu"):
        if n == 0 or m == 1:
            corners = torch.eye(m, dtype=torch.float64)
        elif m == 2:
            corners = torch.tensor(_corners_of_two_objectives(values.tolist()), dtype=torch.float64)
        else:
            corners = _corners(values)
    for j in reversed(range(m)):
        corners = corners[corners[:, j].argsort(stable=True)]
    return corners.to(dtype=points.dtype, device=points.device)


def corner_priorities(
    weights: Any,
    points: Any,
    visited: Any,
    *,
    maximize: bool | Sequence[bool],
    visited_values: Any = None,
) -> Tensor:
    r"""By how much a new policy could at most improve the scalarized value at each weight (OLS).

    .. math:: \max \{w \cdot u : w_i \cdot u \le v_i \text{ for all visited } w_i\} - \max_p w \cdot p

    The visited weights' best values v bound what any vector can attain. As a function of w the optimum is the lower
    convex envelope of the points (w_i, v_i), so one convex hull answers for all weights at once, when the extreme
    weights are among the visited ones and m <= 6. Each answer is checked from both sides by duality; where rounding in
    the hull shows, and in all other cases, there is one linear program a weight (HiGHS).

    Args:
        weights: (K, m), >= 0, such as `corner_weights`; float32 or float64. Array-likes are taken too.
        points: (n, m), values found so far.
        visited: (V, m), weights for which the best policy was looked for.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        visited_values: (V,), best scalarized value at each visited weight; None: that of ``points``.

    Returns:
        (K,) in the dtype and on the device of ``weights``, >= 0 up to rounding; inf where nothing bounds the value
        (the weight lies outside the hull of the visited ones), or without points. Computed in float64 on the host;
        waits for the device.

    Raises:
        TypeError: for dtypes that are neither float32, float64 nor integers.
        ValueError: for shapes that do not fit, numbers that are not finite, negative weights, and mixed devices.
        ImportError: without SciPy, for m > 1.

    Source: Roijers (2016, section 3.3).

    >>> points, visited = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    >>> corner_priorities([[0.5, 0.5], [1.0, 0.0]], points, visited, maximize=True)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    weights, points, visited = _as_set(weights, "weights"), _as_set(points, "points"), _as_set(visited, "visited")
    m = weights.shape[1]
    for name, tensor in (("points", points), ("visited", visited)):
        same_device("weights", weights, name, tensor)
        if tensor.shape[1] != m:
            raise ValueError(f"{name}: expected {m} objectives as in weights, got shape {tuple(tensor.shape)}")
    for name, tensor in (("weights", weights), ("visited", visited)):
        if bool((tensor < 0).any()) or bool((tensor.sum(-1) <= 0).any()):
            raise ValueError(f"{name}: expected weights >= 0 that are not all 0")
    at, known, seen = _on_host(weights), _maximized(points, maximize), _on_host(visited)
    if visited_values is not None:
        is_tensor = isinstance(visited_values, Tensor)
        bounds = _on_host(visited_values if is_tensor else as_tensor(visited_values, "visited_values", device="cpu"))
        if bounds.shape != (seen.shape[0],) or not bool(bounds.isfinite().all()):
            raise ValueError(f"visited_values: expected {seen.shape[0]} finite numbers, got {visited_values!r:.80}")
        senses, _, _ = as_minimization(points[:0], maximize)
        bounds = bounds if senses else -bounds
    elif known.shape[0] > 0:
        bounds = (seen @ known.T).amax(-1)
    with torch.device("cpu"):
        if known.shape[0] == 0:
            priorities = torch.full((at.shape[0],), math.inf, dtype=torch.float64)
        else:
            priorities = _optimistic_values(at, seen, bounds, _ranges(known)) - (at @ known.T).amax(-1)
    return priorities.to(dtype=weights.dtype, device=weights.device)


class LinearSupport:
    """The loop of optimistic linear support: which weight to learn next, until none can bring more than epsilon.

    Values are maximized. Names and results are those of ``LinearSupport`` of MORL-Baselines, with tensors for arrays;
    corners are not rounded, all priorities come from one convex hull, and corners that cannot improve on the set by
    more than epsilon end the loop (MORL-Baselines goes on to corners whose priority equals epsilon, up to rounding).

    Args:
        num_objectives: m >= 1.
        epsilon: improvement that a weight must promise; None keeps every corner that was not visited.
        verbose: whether to print each step.
        generator: draws the next weight of GPI-LS when all priorities are 0; torch's default one when None.

    Sources: Roijers (2016) for OLS; Alegre, Bazzan, Roijers, Nowé and da Silva (2023) for GPI-LS.

    >>> coverage_set = torch.tensor([[1.0, 0.0], [0.8, 0.8], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    >>> support = LinearSupport(num_objectives=2)
    >>> while (weight := support.next_weight()) is not None:
    ...     removed = support.add_solution(coverage_set[(coverage_set @ weight).argmax()], weight)
    >>> sorted(value.tolist() for value in support.ccs)
    [[0.0, 1.0], [0.8, 0.8], [1.0, 0.0]]
    """

    def __init__(
        self,
        num_objectives: int,
        epsilon: float | None = 0.0,
        verbose: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(num_objectives, int) or isinstance(num_objectives, bool) or num_objectives < 1:
            raise ValueError(f"num_objectives: expected an int >= 1, got {num_objectives!r}")
        self.num_objectives = num_objectives
        self.epsilon = None if epsilon is None else as_number(epsilon, "epsilon")
        self.verbose = verbose
        self.visited_weights: list[Tensor] = []
        self.ccs: list[Tensor] = []
        self.weight_support: list[Tensor] = []
        self.iteration = 0
        self.ols_ended = False
        extreme = torch.eye(num_objectives, dtype=torch.float64, device="cpu")
        self.queue: list[tuple[float, Tensor]] = [(math.inf, weight) for weight in extreme]
        self._generator = generator

    def next_weight(
        self,
        algo: Literal["ols", "gpi-ls"] = "ols",
        gpi_values: Callable[[Tensor], Any] | None = None,
    ) -> Tensor | None:
        """The weight with the highest priority, or None when there is none left.

        Args:
            algo: ``"ols"``: priorities are those of `corner_priorities`, and no weight comes twice. ``"gpi-ls"``: what
                generalized policy improvement attains at the corners, minus the best of the set.
            gpi_values: for GPI-LS, a function from the corners (K, m) to the values (K, m) of the GPI policy at each.

        Returns:
            (m,) float64 on the CPU. Equal priorities go to an extreme weight, then to the lexicographically first
            corner, except for GPI-LS when all are 0: then one of them is drawn.
        """
        if algo not in ("ols", "gpi-ls"):
            raise ValueError(f'algo: expected "ols" or "gpi-ls", got {algo!r}')
        if self.ccs:
            corners = self.compute_corner_weights()
            if algo == "ols":
                priorities = corner_priorities(corners, *self._sets(), maximize=True)
                smallest = self._threshold()
                wanted = (priorities > smallest) & ~self._was_visited(corners)
            else:
                if gpi_values is None:
                    raise ValueError('gpi_values: expected a function with algo="gpi-ls", got None')
                priorities = self.gpi_ls_priority(corners, gpi_values(corners))
                wanted = priorities >= (-math.inf if self.epsilon is None else self.epsilon)
            corners, priorities = corners[wanted], priorities[wanted]
            # Extreme weights first among equals: until all are visited, most priorities are infinite.
            order = (corners.amax(-1) < 1).to(torch.int8).argsort(stable=True)
            order = order[priorities[order].argsort(descending=True, stable=True)]
            if algo == "gpi-ls" and len(order) > 0 and priorities[order[0]] == 0:
                order = torch.randperm(len(order), generator=self._generator, device="cpu")
            self.queue = [(float(priorities[row]), corners[row]) for row in order.tolist()]
        self._say(f"coverage set: {len(self.ccs)} values; queue: {len(self.queue)} weights")
        if not self.queue:
            self.ols_ended = True
            return None
        priority, weight = self.queue.pop(0)
        self._say(f"next weight: {weight.tolist()}, priority {priority}")
        return weight

    def add_solution(self, value: Any, w: Any) -> list[int]:
        """Adds the value (m,) found for weight w (m,); returns the rows of ``ccs`` that it made obsolete.

        A value that is worse than the set at every visited weight is discarded; then the row it would have had is
        returned. A value of the set becomes obsolete when it is not strictly better than the new one at any visited
        weight for which it is best.
        """
        value, w = self._vector(value, "value"), self._vector(w, "w")
        self.iteration += 1
        self.visited_weights.append(w)
        if self.is_dominated(value):
            self._say(f"discarded {value.tolist()}")
            return [len(self.ccs)]
        removed: list[int] = []
        if self.ccs:
            values, visited = self._sets()
            scalarized, new = _scalarized(visited, values), _scalarized(visited, value[None])[:, 0]
            for row in reversed(range(len(self.ccs))):
                is_best = scalarized[:, row] == scalarized.amax(-1)
                if not bool((is_best & (new < scalarized[:, row])).any()):
                    removed.append(row)
                    scalarized = torch.cat([scalarized[:, :row], scalarized[:, row + 1 :]], dim=1)
                    del self.ccs[row], self.weight_support[row]
                    if not self.ccs:
                        break
        self.ccs.append(value)
        self.weight_support.append(w)
        return removed

    def ended(self) -> bool:
        """Whether the last `next_weight` found none."""
        return self.ols_ended

    def get_weight_support(self) -> list[Tensor]:
        """The weights (m,) for which the values of ``ccs`` were found."""
        return [weight.clone() for weight in self.weight_support]

    def get_corner_weights(self, top_k: int | None = None) -> list[Tensor]:
        """The corners (m,) still in the queue, highest priority first; only so many of them when ``top_k`` is given."""
        return [weight.clone() for _, weight in self.queue[:top_k]]

    def compute_corner_weights(self) -> Tensor:
        """`corner_weights` of ``ccs``, (K, m)."""
        return corner_weights(self._sets()[0], maximize=True)

    def ols_priority(self, w: Any) -> float:
        """`corner_priorities` of one weight (m,)."""
        return float(corner_priorities(self._vector(w, "w")[None], *self._sets(), maximize=True))

    def gpi_ls_priority(self, w: Any, gpi_values: Any) -> Tensor:
        """What a GPI policy attains at each of the weights (K, m), minus the best of ``ccs``: (K,)."""
        weights = _as_set(w, "w").double()
        attained = torch.stack([self._vector(value, "gpi_values") for value in gpi_values])
        return (weights @ attained.T).amax(-1) - (weights @ self._sets()[0].T).amax(-1)

    def max_scalarized_value(self, w: Any) -> float | None:
        """The best value of ``ccs`` for a weight (m,); None without values."""
        return float((self._sets()[0] @ self._vector(w, "w")).max()) if self.ccs else None

    def max_value_lp(self, w: Any) -> float:
        """The best value that any vector could have for a weight (m,), given what was found at the visited ones."""
        best = self.max_scalarized_value(w)
        return math.inf if best is None else self.ols_priority(w) + best

    def is_dominated(self, value: Any) -> bool:
        """Whether a value (m,) is worse than ``ccs`` at every visited weight."""
        if not self.ccs:
            return False
        values, visited = self._sets()
        new = _scalarized(visited, self._vector(value, "value")[None])[:, 0]
        return bool((new < _scalarized(visited, values).amax(-1)).all())

    def _sets(self) -> tuple[Tensor, Tensor]:
        none = torch.empty((0, self.num_objectives), dtype=torch.float64, device="cpu")
        return (
            torch.stack(self.ccs) if self.ccs else none,
            torch.stack(self.visited_weights) if self.visited_weights else none,
        )

    def _threshold(self) -> float:
        """Epsilon plus what rounding of the values can promise."""
        if self.epsilon is None:
            return -math.inf
        values, _ = self._sets()
        spread = float((values.amax(0) - values.amin(0)).max())
        return self.epsilon + 1e-9 * spread + 1e-12 * float(values.abs().max())

    def _was_visited(self, corners: Tensor) -> Tensor:
        differences = (corners[:, None] - torch.stack(self.visited_weights)).abs().amax(-1)
        return (differences <= 1e-8).any(-1)

    def _vector(self, value: Any, name: str) -> Tensor:
        vector = _on_host(value if isinstance(value, Tensor) else as_tensor(value, name, device="cpu"))
        if vector.shape != (self.num_objectives,) or not bool(vector.isfinite().all()):
            raise ValueError(f"{name}: expected {self.num_objectives} finite numbers, got {value!r:.80}")
        return vector.clone()

    def _say(self, message: str) -> None:
        if self.verbose:
            print(f"[{self.iteration}] {message}")


def _scalarized(weights: Tensor, values: Tensor) -> Tensor:
    """(K, n), equal values to the last bit for equal rows, which a matrix product does not promise."""
    return sum(weights[:, j, None] * values[:, j] for j in range(weights.shape[1]))  # type: ignore[return-value]


# --- two objectives ---


def _corners_of_two_objectives(points: list[list[float]]) -> list[tuple[float, float]]:
    """The upper right hull of the points, and the normals of its edges."""
    hull: list[list[float]] = []
    for point in sorted(points, reverse=True):  # objective 0 falls
        if hull and point[1] <= hull[-1][1]:  # dominated
            continue
        while len(hull) >= 2 and not _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    corners = {(0.0, 1.0), (1.0, 0.0)}
    for right, left in itertools.pairwise(hull):
        loss, gain = right[0] - left[0], left[1] - right[1]
        if loss > 0:  # equal in objective 0: the weight (1, 0), which is there
            corners.add((gain / (loss + gain), loss / (loss + gain)))
    return list(corners)


def _turns_left(first: list[float], second: list[float], third: list[float]) -> bool:
    """Exactly: in floating point where that is certain, else in rational numbers."""
    left = (second[0] - first[0]) * (third[1] - first[1])
    right = (second[1] - first[1]) * (third[0] - first[0])
    if abs(left - right) > 1e-14 * (abs(left) + abs(right)):
        return left > right
    (x1, y1), (x2, y2), (x3, y3) = (map(Fraction, point) for point in (first, second, third))
    return (x2 - x1) * (y3 - y1) > (y2 - y1) * (x3 - x1)


# --- more objectives ---


def _corners(values: Tensor) -> Tensor:
    """Corners (K, m) of maximized values (n, m), m >= 3, by Qhull."""
    import numpy as np

    spatial = _scipy("spatial")
    n, m = values.shape
    ranges = _ranges(values)
    # With u_j proportional to w_j range_j, and each objective moved to end at 0, corners stay corners.
    scaled = ((values - values.amax(0)) / ranges).unique(dim=0)
    n = scaled.shape[0]
    # Halfspaces a x + b <= 0 for x = (u_1, ..., u_{m-1}, v): points below v; u in the simplex; v below a lid.
    halfspaces = torch.zeros(n + m + 1, m + 1, dtype=torch.float64)
    halfspaces[:n, : m - 1] = scaled[:, :-1] - scaled[:, -1:]
    halfspaces[:n, m - 1] = -1
    halfspaces[:n, m] = scaled[:, -1]
    halfspaces[n : n + m - 1, : m - 1] = -torch.eye(m - 1, dtype=torch.float64)
    halfspaces[n + m - 1, : m - 1] = 1
    halfspaces[n + m - 1, m] = -1
    halfspaces[n + m, m - 1] = 1
    halfspaces[n + m, m] = -2  # values lie in [-1, 0]
    inside = np.array([1 / m] * (m - 1) + [1.0])
    tolerance = _TIGHT
    try:
        intersections = spatial.HalfspaceIntersection(halfspaces.numpy(), inside).intersections
    except spatial.QhullError:  # points equal up to rounding: joggled
        intersections = spatial.HalfspaceIntersection(halfspaces.numpy(), inside, qhull_options="QJ").intersections
    vertices = torch.from_numpy(intersections)
    vertices = vertices[vertices.isfinite().all(-1) & (vertices[:, -1] < 1)]

    # Which constraints are tight says which corner it is; equations for (u, v): scaled u - v = 0, u_j = 0, sum u = 1.
    u = torch.cat([vertices[:, :-1], 1 - vertices[:, :-1].sum(-1, keepdim=True)], dim=-1)
    slack = torch.cat([vertices[:, -1:] - u @ scaled.T, u], dim=-1)
    equations = torch.zeros(n + m + 1, m + 1, dtype=torch.float64)
    equations[:n, :m], equations[:n, m] = scaled, -1
    equations[n : n + m, :m] = torch.eye(m, dtype=torch.float64)
    equations[n + m, :m] = 1
    solved = []
    while slack.shape[0] > 0 and tolerance <= _TIGHT_AT_MOST:
        tight, corner = (slack <= tolerance).unique(dim=0, return_inverse=True)
        active = torch.cat([tight, torch.ones(tight.shape[0], 1, dtype=torch.bool)], dim=-1)
        most = max(int(active.sum(-1).max()), m + 1)
        rows = active.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :most]
        is_row = active.gather(-1, rows)
        systems = equations[rows] * is_row[..., None]
        right = (is_row & (rows == n + m)).double()[..., None]
        solution, _, rank, _ = torch.linalg.lstsq(systems, right, rcond=1e-9, driver="gelsy")
        is_corner = rank == m + 1
        solved.append(torch.where(tight[is_corner, n:], 0.0, solution[is_corner, :m, 0]))
        # Where points are nearly equal Qhull merges facets, and the corner lies farther from them.
        is_left = ~is_corner[corner]
        slack, u = slack[is_left], u[is_left]
        tolerance *= 10
    w = torch.cat([*solved, u]).clamp(min=0) / ranges
    return w / w.sum(-1, keepdim=True)


def _optimistic_values(weights: Tensor, visited: Tensor, bounds: Tensor, ranges: Tensor) -> Tensor:
    """max {w u : visited u <= bounds} for each weight (K, m); inf where unbounded."""
    m = weights.shape[1]
    if visited.shape[0] == 0:
        return torch.full((weights.shape[0],), math.inf, dtype=torch.float64)
    if m == 1:
        return weights[:, 0] * (bounds / visited[:, 0]).amin()
    is_extreme = visited > 0
    has_extremes = bool(is_extreme[is_extreme.sum(-1) == 1].any(0).all())
    if has_extremes and m <= _MAX_HULL_OBJECTIVES:
        return _lower_envelope(weights, visited, bounds, ranges)
    return _by_programs(weights, visited, bounds)


def _by_programs(weights: Tensor, visited: Tensor, bounds: Tensor) -> Tensor:
    linprog = _scipy("optimize").linprog
    values = []
    for weight in weights:
        done = linprog(-weight.numpy(), visited.numpy(), bounds.numpy(), bounds=(None, None), method="highs")
        if done.status not in (0, 3):
            raise RuntimeError(f"HiGHS did not solve the linear program of weight {weight.tolist()}: {done.message}")
        values.append(-done.fun if done.status == 0 else math.inf)
    return torch.tensor(values, dtype=torch.float64)


def _lower_envelope(weights: Tensor, visited: Tensor, bounds: Tensor, ranges: Tensor) -> Tensor:
    """The envelope of the points (visited, bounds), homogeneous of degree 1, at each weight."""
    spatial = _scipy("spatial")
    m = weights.shape[1]
    # The program in u_j / range_j, and with each row on the simplex: rows differ by factors only. Ranges that differ
    # by more would press the weights together at a corner.
    ranges = ranges.clamp(min=1e-6 * float(ranges.max()))
    rows = visited * ranges
    sizes = rows.sum(-1, keepdim=True)
    rows, heights = rows / sizes, bounds / sizes[:, 0]
    queries = weights * ranges
    query_sizes = queries.sum(-1, keepdim=True)
    queries = queries / query_sizes
    # Heights above the plane through the extreme weights: 0 at the corners of the simplex, and not above it.
    is_extreme = rows == 1
    at_corners = torch.where(is_extreme, heights[:, None], math.inf).amin(0)
    heights = heights - rows @ at_corners
    scale = float(heights.abs().max())
    if scale == 0:
        return (queries @ at_corners) * query_sizes[:, 0]
    # A summit above the middle gives the hull an inside and shields its lower facets from those behind.
    below = torch.cat([rows[:, :-1], heights[:, None] / scale], dim=-1)
    summit = torch.tensor([[1 / m] * (m - 1) + [1.0]], dtype=torch.float64)
    try:
        hull = spatial.ConvexHull(torch.cat([below, summit]).numpy())
    except spatial.QhullError:  # weights visited twice up to rounding
        return _by_programs(weights, visited, bounds)
    simplices = torch.from_numpy(hull.simplices).long()
    is_lower = (torch.from_numpy(hull.equations)[:, m - 1] < -1e-12) & (simplices < rows.shape[0]).all(-1)
    simplices, heights = simplices[is_lower], heights / scale
    # The plane through a facet's points: u = inverse @ heights; coordinates of a weight in it: y = weight @ inverse.
    inverses, singular = torch.linalg.inv_ex(rows[simplices])
    planes = (inverses @ heights[simplices][..., None])[..., 0]
    # By duality a plane that no point lies under bounds the optimum from below, and a facet that holds the weight
    # (y >= 0) bounds it from above: what Qhull's rounding got wrong shows, and goes to a linear program.
    is_bound = (singular == 0) & (planes @ rows.T - heights <= _AGREES).all(-1)
    inverses, planes = inverses[is_bound], planes[is_bound]
    highest = torch.full((queries.shape[0],), -math.inf, dtype=torch.float64)
    certain = torch.zeros(queries.shape[0], dtype=torch.bool)
    size = max(1, 2**22 // max(1, queries.shape[0]))
    for start in range(0, planes.shape[0], size):
        best, facet = (queries @ planes[start : start + size].T).max(-1)
        inside = (queries[:, None] @ inverses[start + facet] >= -_AGREES).all(-1)[:, 0]
        certain = torch.where(best > highest, inside, certain | (inside & (best == highest)))
        highest = torch.maximum(highest, best)
    # Where facets lie in one plane, the best one need not be the one that holds the weight.
    for query in (~certain).nonzero()[:, 0].tolist():
        holds = (queries[query] @ inverses >= -_AGREES).all(-1)
        certain[query] = bool((holds & (planes @ queries[query] >= highest[query] - _AGREES)).any())
    highest[~certain] = _by_programs(queries[~certain], rows, heights)
    return (highest * scale + queries @ at_corners) * query_sizes[:, 0]


def _ranges(values: Tensor) -> Tensor:
    ranges = values.amax(0) - values.amin(0)
    return torch.where(ranges > 0, ranges, 1.0)


def _scipy(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError(
            "linear support needs SciPy for three and more objectives: pip install 'morlfast[convex]'"
        ) from error


# --- arguments ---


def _as_set(points: Any, name: str) -> Tensor:
    """A finite tensor (n, m)."""
    tensor = as_points(points, name)
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (n, m) with m >= 1, got {tuple(tensor.shape)}")
    raise_for_nan(tensor.isnan().any(-1), name)
    infinite = tensor.isinf().any(-1).nonzero()
    if len(infinite) > 0:
        raise ValueError(f"{name}: expected finite numbers, got infinity in row {int(infinite[0])}")
    return tensor


def _on_host(points: Tensor) -> Tensor:
    return points.detach().to(dtype=torch.float64, device="cpu")


def _maximized(points: Tensor, maximize: bool | Sequence[bool]) -> Tensor:
    maximized, values, _ = as_minimization(points, maximize)
    return _on_host(values if maximized else -values)
