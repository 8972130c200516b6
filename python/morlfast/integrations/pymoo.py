"""Sorting and indicators in place of pymoo's: its arguments and normalization, morlfast's computation."""

from __future__ import annotations

import sys
from bisect import bisect_left
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pymoo.indicators import gd, gd_plus, hv, igd, igd_plus
from pymoo.util.nds import non_dominated_sorting

import morlfast
from morlfast.integrations import Patch, check_version

CHECKED_VERSIONS = ("0.6.2",)

_do = non_dominated_sorting.NonDominatedSorting.do


class NonDominatedSorting(non_dominated_sorting.NonDominatedSorting):  # type: ignore[misc]  # pymoo has no types
    """Fronts of minimized points: `do(F, return_rank, only_non_dominated_front, n_stop_if_ranked, n_fronts)`.

    Arguments and results are pymoo's: a list of arrays of rows, one a front; with `return_rank` also ranks, where rows
    of fronts that are left out have `sys.maxsize`. With `n_stop_if_ranked` no front beyond is told apart. A `dominator`
    of one's own is left to pymoo.

    One thing differs: rows with a NaN are on the last front, where pymoo 0.6.2 (moocore 0.3.2) puts them on any.

    >>> NonDominatedSorting().do(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]))
    [array([0, 1]), array([2])]
    """

    def do(
        self,
        F: Any,
        return_rank: bool = False,
        only_non_dominated_front: bool = False,
        n_stop_if_ranked: int | None = None,
        n_fronts: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.dominator is not None:
            return _do(self, F, return_rank, only_non_dominated_front, n_stop_if_ranked, n_fronts, **kwargs)
        if only_non_dominated_front:
            n_fronts = 1
        points = _points(F if self.epsilon is None else F - self.epsilon)
        stop_after = 1 if n_fronts == 1 else None if n_stop_if_ranked is None else max(n_stop_if_ranked, 1)
        ranked = morlfast.non_dominated_sort(points, maximize=False, stop_after=stop_after, nan="worst")
        ranks = ranked.numpy().astype(np.int64)
        rows = np.argsort(ranks, kind="stable")
        ends = np.bincount(ranks).cumsum().tolist()
        if n_stop_if_ranked is not None:
            ends = ends[: bisect_left(ends, n_stop_if_ranked) + 1]
        if n_fronts is not None:
            ends = ends[:n_fronts]
        fronts = [rows[begin:end] for begin, end in pairwise([0, *ends])]
        if only_non_dominated_front:
            return fronts[0] if fronts else rows
        if return_rank:
            return fronts, np.where(ranks < len(fronts), ranks, sys.maxsize)
        return fronts


def find_non_dominated(F: Any, _F: Any = None) -> Any:
    """Rows of `F` that no other row, or no row of `_F`, dominates; minimized, duplicates kept.

    Rows with a NaN are dominated, where pymoo 0.6.2 keeps them.

    >>> find_non_dominated(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]))
    array([0, 1])
    """
    points = _points(F)
    if _F is None:
        kept = morlfast.is_non_dominated(points, maximize=False, nan="worst")
    else:
        kept = ~morlfast.is_dominated_by(points, _tensor(_F), maximize=False, nan="worst")
    return kept.numpy().nonzero()[0]


class Hypervolume(hv.Hypervolume):  # type: ignore[misc]
    """Hypervolume of a set of minimized points, an indicator of pymoo.

    Constructor and normalization are pymoo's own (`ref_point`, `pf`, `nds`, `norm_ref_point`, `ideal`, `nadir`,
    `zero_to_one`). One call takes one set, an array (n, m) or a single point (m,), and returns a Python float computed
    in float64. Points that are not strictly better than the reference point in every objective count nothing; the
    empty set has hypervolume 0.

    One thing differs: a NaN raises ValueError with its row, where pymoo 0.6.2 (moocore 0.3.2) ignores the row, returns
    a wrong number or never returns, depending on the number of objectives.

    For many sets at once call `morlfast.hypervolume`, which takes a batch.

    >>> front = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> Hypervolume(ref_point=np.array([4.0, 4.0]))(front)
    6.0
    """

    def _do(self, F: Any, *args: Any, **kwargs: Any) -> float:
        return morlfast.hypervolume(_tensor(F), _tensor(self.ref_point), maximize=False).item()


class HV(Hypervolume, hv.HV):  # type: ignore[misc]
    """`Hypervolume` by its short name."""


class IGD(igd.IGD):  # type: ignore[misc]
    """Mean distance from each point of `pf` to the nearest of a set of points, an indicator of pymoo.

    Constructor and normalization are pymoo's own, as in the three classes that follow: (`pf`, `zero_to_one`, `ideal`,
    `nadir`, `norm_by_dist`). The empty set has 0, as in pymoo (`default_if_empty`); a NaN raises ValueError with its
    row.

    >>> IGD(np.array([[0.0, 1.0], [1.0, 0.0]]))(np.array([[0.0, 2.0]]))
    1.618033988749895
    """

    def _do(self, F: Any, *args: Any, **kwargs: Any) -> float:
        return morlfast.igd(*_scaled(self, F)).item()


class GD(gd.GD):  # type: ignore[misc]
    """Mean distance from each of a set of points to the nearest point of `pf`, an indicator of pymoo.

    >>> GD(np.array([[0.0, 1.0], [1.0, 0.0]]))(np.array([[0.0, 2.0]]))
    1.0
    """

    def _do(self, F: Any, *args: Any, **kwargs: Any) -> float:
        return morlfast.gd(*_scaled(self, F)).item()


class IGDPlus(igd_plus.IGDPlus):  # type: ignore[misc]
    """`IGD` that counts only the objectives in which a minimized point is worse.

    >>> IGDPlus(np.array([[0.0, 1.0], [1.0, 0.0]]))(np.array([[0.0, 2.0]]))
    1.5
    """

    def _do(self, F: Any, *args: Any, **kwargs: Any) -> float:
        return morlfast.igd_plus(*_scaled(self, F), maximize=False).item()


class GDPlus(gd_plus.GDPlus):  # type: ignore[misc]
    """`GD` that counts only the objectives in which a minimized point is worse.

    >>> GDPlus(np.array([[0.0, 1.0], [1.0, 0.0]]))(np.array([[0.0, 2.0]]))
    1.0
    """

    def _do(self, F: Any, *args: Any, **kwargs: Any) -> float:
        return morlfast.gd_plus(*_scaled(self, F), maximize=False).item()


def patch(*, any_version: bool = False) -> Patch:
    """Let pymoo sort and measure here: algorithms, displays, terminations, whatever was made or imported before too.

    Replaces the methods of pymoo's own classes and, in its modules, `find_non_dominated`. `with patch():` gives the
    originals back at its end, `patch()` keeps them replaced until its `undo()`. Raises RuntimeError for a version of
    pymoo that the drop-ins were not checked against, unless `any_version`.
    """
    check_version("pymoo", CHECKED_VERSIONS, any_version)
    return Patch(
        "pymoo",
        {non_dominated_sorting.find_non_dominated: find_non_dominated},
        methods={
            (non_dominated_sorting.NonDominatedSorting, "do"): NonDominatedSorting.do,
            (hv.Hypervolume, "_do"): Hypervolume._do,
            (igd.IGD, "_do"): IGD._do,
            (gd.GD, "_do"): GD._do,
            (igd_plus.IGDPlus, "_do"): IGDPlus._do,
            (gd_plus.GDPlus, "_do"): GDPlus._do,
        },
    )


def _tensor(values: Any) -> torch.Tensor:
    """float64; a copy, since torch neither reads arrays with negative strides nor likes read-only ones."""
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def _points(F: Any) -> torch.Tensor:
    """(n, m); pymoo's empty populations have no second dimension."""
    return _tensor(F if len(F) > 0 else np.empty((0, 1)))


def _scaled(indicator: Any, F: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and reference points, in units of the front's extent with `norm_by_dist`."""
    points, reference = _tensor(F), _tensor(indicator.pf)
    if not indicator.norm_by_dist:
        return points, reference
    assert indicator.ideal is not None, "If norm_by_dist is enabled ideal and nadir must be set!"
    extent = _tensor(indicator.nadir - indicator.ideal)
    return points / extent, reference / extent
