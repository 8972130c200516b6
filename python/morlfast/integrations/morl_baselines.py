"""Indicators, Pareto filters, the archive and equally spaced weights in place of MORL-Baselines'; all maximized.

Value vectors come as MORL-Baselines has them, a list of arrays or tuples or an array (n, m), and are computed with in
float64. `filter_pareto_dominated` and `filter_convex_dominated` are not here: the originals call
`get_non_pareto_dominated_inds`, so they are faster in a patched MORL-Baselines. `cardinality` is a length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import deepcopy
from itertools import compress
from typing import Any

import numpy as np
import torch
from morl_baselines.common import pareto, performance_indicators, weights
from pymoo.indicators import hv

import morlfast
from morlfast.integrations import Patch, check_version
from morlfast.integrations.pymoo import HV, Hypervolume

CHECKED_VERSIONS = ("1.1.0", "1.2.0", "1.3.0")

_expected_utility = performance_indicators.expected_utility
_maximum_utility_loss = performance_indicators.maximum_utility_loss
_get_reference_directions = weights.get_reference_directions


def hypervolume(ref_point: Any, points: Any) -> float:
    """Hypervolume of a set of maximized value vectors, with MORL-Baselines' arguments.

    Args:
        ref_point: (m,), worse than the points that shall count.
        points: the value vectors, a list of arrays or tuples or an array (n, m); a single vector (m,) is taken too.

    Returns:
        A Python float, computed in float64.

    Two things differ from MORL-Baselines 1.3.0. An empty list has hypervolume 0, where the original raises ValueError
    for lists and returns 0 for arrays of shape (0, m). A NaN raises ValueError with its row, where the original ignores
    the row, returns NaN or never returns, depending on the number of objectives.

    Scoring candidates one after the other against one front is a call of `morlfast.hypervolume_improvement`, and many
    fronts are one call of `morlfast.hypervolume`: both are faster than any loop over this function.

    >>> hypervolume(np.zeros(2), [np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([3.0, 1.0])])
    6.0
    """
    front = _tensor(points)
    if front.numel() == 0:
        return 0.0
    return morlfast.hypervolume(torch.atleast_2d(front), _tensor(ref_point), maximize=True).item()


def igd(known_front: Any, current_estimate: Any) -> float:
    """Mean Euclidean distance from each vector of the known front to the nearest one of the estimate.

    An estimate of no vectors has `inf`, where MORL-Baselines 1.3.0 raises ValueError for lists and returns a perfect 0
    for arrays of shape (0, m). A NaN raises ValueError with its row.

    >>> igd([np.array([0.0, 1.0]), np.array([1.0, 0.0])], [np.array([0.0, 1.0])])
    0.7071067811865476
    """
    reference = _tensor(known_front)
    return morlfast.igd(_rows(current_estimate, reference.shape[-1]), reference).item()


def sparsity(front: Any) -> Any:
    """Squared gaps between neighbours in each objective, summed and divided by n - 1; 0 for fewer than two vectors.

    The smaller the better says PGMORL (Xu et al. 2020), and one vector alone is best of all: compare it for fronts of
    many vectors only. A NaN raises ValueError with its row.

    >>> float(sparsity([np.array([0.0, 2.0]), np.array([1.0, 0.0])]))
    5.0
    """
    if len(front) < 2:
        return 0.0
    number = 0.0 + np.asarray(front).dtype.type(0)  # float32 stays float32 from NumPy 2 on
    return type(number)(morlfast.sparsity(_tensor(front)).item())


def expected_utility(front: Any, weights_set: Any, utility: Callable[..., Any] = np.dot) -> Any:
    """Mean over the weights of the best utility on the front; of the type that NumPy has for both.

    The dot product is computed here, any other `utility(weights, vector)` by MORL-Baselines, one call a pair. For the
    dot product no vectors have `-inf`, where MORL-Baselines 1.3.0 raises ValueError; a NaN raises ValueError with its
    row.

    >>> float(expected_utility([np.array([0.0, 2.0]), np.array([1.0, 0.0])], [np.array([0.5, 0.5])]))
    1.0
    """
    if utility is not np.dot:
        return _expected_utility(front, weights_set, utility)
    directions = np.asarray(weights_set)
    points = _rows(front, directions.shape[-1])
    value = morlfast.expected_utility(points, _tensor(directions)).item()
    dtype = np.result_type(np.asarray(front), directions)
    return (dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)).type(value)


def maximum_utility_loss(front: Any, reference_set: Any, weights_set: Any, utility: Callable[..., Any] = np.dot) -> Any:
    """What the front's best utility loses against that of the reference set at the worst of the weights.

    The dot product is computed here, any other `utility(weights, vector)` by MORL-Baselines. For the dot product no
    vectors lose `inf`, where MORL-Baselines 1.3.0 raises ValueError; a NaN raises ValueError with its row.

    >>> float(maximum_utility_loss([np.array([0.0, 2.0])], [np.array([3.0, 0.0])], [np.array([1.0, 0.0])]))
    3.0
    """
    if utility is not np.dot:
        return _maximum_utility_loss(front, reference_set, weights_set, utility)
    directions = np.asarray(weights_set)
    points, reference = (_rows(vectors, directions.shape[-1]) for vectors in (front, reference_set))
    value = morlfast.maximum_utility_loss(points, reference, _tensor(directions)).item()
    return np.result_type(np.asarray(front), np.asarray(reference_set), directions).type(value)


def get_non_pareto_dominated_inds(candidates: Any, remove_duplicates: bool = True) -> Any:
    """Which vectors no other dominates, a bool array (n,); of equal ones the first alone, with `remove_duplicates`.

    A vector with a NaN never is. Memory is O(n), where MORL-Baselines 1.3.0 has arrays of m n^2 bytes.

    >>> get_non_pareto_dominated_inds([(1.0, 3.0), (3.0, 1.0), (3.0, 1.0), (0.0, 1.0)])
    array([ True,  True, False, False])
    """
    vectors = _tensor(candidates)
    if len(vectors) == 0:
        return np.zeros(0, dtype=bool)
    return morlfast.is_non_dominated(vectors, maximize=True, deduplicate=remove_duplicates, nan="worst").numpy()


def get_non_dominated_inds(solutions: Any) -> Any:
    """`get_non_pareto_dominated_inds` without duplicates.

    >>> get_non_dominated_inds(np.array([[1.0, 3.0], [3.0, 1.0], [3.0, 1.0], [0.0, 1.0]]))
    array([ True,  True, False, False])
    """
    return get_non_pareto_dominated_inds(solutions)


def get_non_dominated(candidates: set[Any]) -> set[Any]:
    """The vectors of a set, as tuples, that no other dominates; of the empty set the empty set.

    >>> get_non_dominated({(1, 3), (3, 1), (0, 1)}) == {(1, 3), (3, 1)}
    True
    """
    vectors = np.array(list(candidates))
    return set(map(tuple, vectors[get_non_pareto_dominated_inds(vectors)]))


class ParetoArchive(pareto.ParetoArchive):  # type: ignore[misc]  # MORL-Baselines is not followed by mypy
    """Individuals whose evaluations no other dominates, in the order they came, of equal ones the first.

    `individuals` and `evaluations` are plain lists, as in MORL-Baselines, and may be assigned. A candidate is copied
    when it is kept, not before. An evaluation with a NaN is never kept. With `convex_hull` MORL-Baselines' own `add`
    works.

    >>> archive = ParetoArchive()
    >>> for name, evaluation in {"a": (1.0, 3.0), "b": (0.0, 1.0), "c": (2.0, 3.0), "d": (3.0, 1.0)}.items():
    ...     archive.add(name, np.array(evaluation))
    >>> archive.individuals
    ['c', 'd']
    """

    def __init__(self, convex_hull: bool = False) -> None:
        super().__init__(convex_hull)
        self.individuals: list[Any]
        self.evaluations: list[Any]
        self._archive: morlfast.ParetoArchive | None = None
        self._numbers: list[int] = []  # by which the archive knows the individuals
        self._known: list[Any] = []  # the evaluations that it stands for

    def add(self, candidate: Any, evaluation: Any) -> None:
        if self.convex_hull:
            super().add(candidate, evaluation)
            return
        if self._archive is None or self._known is not self.evaluations or len(self._numbers) != len(self.evaluations):
            self._archive = morlfast.ParetoArchive(len(evaluation), maximize=True, nan="worst")
            self._numbers = list(range(len(self.evaluations)))
            if self.evaluations:  # assigned, for instance from a file
                self._archive.insert(_tensor(self.evaluations), torch.tensor(self._numbers))
        number = self._numbers[-1] + 1 if self._numbers else 0
        if self._archive.insert(_tensor(evaluation).unsqueeze(0), torch.tensor([number])).item():
            self._numbers = [*self._numbers, number]
            self.evaluations = [*self.evaluations, evaluation]
            self.individuals = [*self.individuals, deepcopy(candidate)]
        if len(self._archive) < len(self.evaluations):
            numbers = set(self._archive.payload.tolist())
            kept = [number in numbers for number in self._numbers]
            self._numbers = list(compress(self._numbers, kept))
            self.evaluations = list(compress(self.evaluations, kept))
            self.individuals = list(compress(self.individuals, kept))
        self._known = self.evaluations


def get_reference_directions(name: str, *arguments: Any, **options: Any) -> Any:
    """pymoo's directions by name; those of least Riesz energy, which take it seconds, are made once and kept.

    MORL-Baselines 1.3.0 has them made for the utility loss of every evaluation anew, always the same ones.
    """
    if name == "energy" and len(arguments) == 2 and not options:
        return _riesz_directions(*arguments).copy()
    return _get_reference_directions(name, *arguments, **options)


@functools.lru_cache
def _riesz_directions(objectives: int, count: int) -> Any:
    return _get_reference_directions("energy", objectives, count)


def patch(*, any_version: bool = False) -> Patch:
    """Let MORL-Baselines evaluate and filter here.

    Replaces the functions of this module in `common.performance_indicators` and `common.pareto`, for imports to come,
    and in the modules that have imported them (`common.evaluation`, PGMORL, MORL/D, PQL, PCN, LCN, linear support);
    pymoo's hypervolume in IPRO, if that has been imported, so import the algorithms first; and pymoo's reference
    directions by those that are made once.

    `with patch():` gives the originals back at its end, `patch()` keeps them replaced until its `undo()`. Archives that
    exist already stay what they are. Raises RuntimeError for a version of MORL-Baselines that the drop-ins were not
    checked against, unless `any_version`.
    """
    check_version("morl-baselines", CHECKED_VERSIONS, any_version)
    return Patch(
        "morl_baselines",
        {
            performance_indicators.hypervolume: hypervolume,
            performance_indicators.igd: igd,
            performance_indicators.sparsity: sparsity,
            performance_indicators.expected_utility: expected_utility,
            performance_indicators.maximum_utility_loss: maximum_utility_loss,
            pareto.get_non_pareto_dominated_inds: get_non_pareto_dominated_inds,
            pareto.get_non_dominated_inds: get_non_dominated_inds,
            pareto.get_non_dominated: get_non_dominated,
            pareto.ParetoArchive: ParetoArchive,
            weights.get_reference_directions: get_reference_directions,
            hv.HV: HV,
            hv.Hypervolume: Hypervolume,
        },
    )


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def _rows(vectors: Any, objectives: int) -> torch.Tensor:
    """(n, m), also of a list of none."""
    return _tensor(vectors).reshape(-1, objectives)
