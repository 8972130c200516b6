"""In place of BoTorch's: `is_non_dominated`, `DominatedPartitioning` and `FastNondominatedPartitioning`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from botorch.utils.multi_objective import box_decompositions, pareto
from botorch.utils.multi_objective.box_decompositions.box_decomposition import BoxDecomposition
from botorch.utils.multi_objective.box_decompositions.utils import _expand_ref_point
from torch import Tensor

import morlfast
from morlfast.integrations import Patch, check_version

CHECKED_VERSIONS = ("0.18.0", "0.18.1")


def is_non_dominated(Y: Tensor, maximize: bool = True, deduplicate: bool = True) -> Tensor:
    """Which points (..., n, m) no other of their set dominates, a bool tensor (..., n); with BoTorch's arguments.

    With `deduplicate` of equal points the lowest row alone. One thing differs: a point with a NaN never is, as BoTorch
    says of its own too; but version 0.18.1 may keep such points without `deduplicate` and among more than a thousand.

    >>> is_non_dominated(torch.tensor([[1.0, 3.0], [3.0, 1.0], [3.0, 1.0], [0.0, 1.0]]))
    tensor([ True,  True, False, False])
    """
    if Y.dtype not in (torch.float32, torch.float64):
        Y = Y.double()
    return morlfast.is_non_dominated(Y, maximize=maximize, deduplicate=deduplicate, nan="worst")


class _Partitioning(BoxDecomposition):  # type: ignore[misc]  # BoTorch is not followed by mypy
    """What both have in common: `ref_point` (m,) or (..., m), `Y` (..., n, m) with any batch shape, both maximized.

    Boxes are computed when they are first asked for: the hypervolume alone needs none, and no memory for them.
    """

    region: Literal["dominated", "non_dominated"]
    hypercell_bounds: Tensor | None

    def __init__(self, ref_point: Tensor, Y: Tensor | None = None) -> None:
        super().__init__(ref_point=ref_point, sort=ref_point.shape[-1] == 2, Y=Y)

    def _validate_inputs(self) -> None:
        # BoTorch's own also refuses more than one batch dimension, and any batch of more than two objectives.
        self.batch_shape = self._neg_Y.shape[:-2]
        self.num_outcomes = self._neg_Y.shape[-1]

    def _compute_pareto_Y(self) -> Tensor:  # noqa: N802
        """Minimized, (..., n_pareto, m). Shorter fronts of a batch repeat their last point, empty ones `ref_point`."""
        neg_Y = self._neg_Y
        ref_point = _expand_ref_point(self._neg_ref_point, self.batch_shape).unsqueeze(-2)
        on_front = (neg_Y < ref_point).all(-1) & morlfast.is_non_dominated(neg_Y, maximize=False, deduplicate=True)
        sizes = on_front.sum(-1, keepdim=True)  # (..., 1)
        largest = int(sizes.max()) if sizes.numel() > 0 else 0
        front_first = (~on_front).int().argsort(dim=-1, stable=True)
        places = torch.arange(largest, device=neg_Y.device).minimum((sizes - 1).clamp_min(0))
        pareto = _take_rows(neg_Y, front_first.gather(-1, places))
        pareto = torch.where(sizes.unsqueeze(-1) > 0, pareto, ref_point)
        return _take_rows(pareto, pareto[..., 0].argsort(dim=-1)) if self.sort else pareto

    def partition_space(self) -> None:
        self.hypercell_bounds = None

    def _partition_space(self) -> None:
        lower, upper, _ = morlfast.box_decomposition(
            self._neg_pareto_Y.detach(), self._neg_ref_point, region=self.region, maximize=False
        )
        if lower.shape[-2] == 0:  # nothing is dominated; BoTorch has one empty cell then
            lower = upper = self._neg_ref_point.expand(*self.batch_shape, self.num_outcomes).unsqueeze(-2)
        self.hypercell_bounds = torch.stack([-upper, -lower])

    def get_hypercell_bounds(self) -> Tensor | None:
        """Lower and upper vertices of disjoint boxes, (2, ..., K, m), detached; cells (ref, ref) pad a batch.

        None as long as there is no `Y`.
        """
        if self.hypercell_bounds is None and self._neg_pareto_Y is not None:
            self._partition_space()
        return self.hypercell_bounds

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> _Partitioning:
        """What `.to()` calls: the points move too, since boxes are made from them later."""
        super()._apply(fn, *args, **kwargs)
        for name in ("_neg_Y", "_neg_pareto_Y"):  # plain attributes, not buffers
            tensor = vars(self).get(name)
            if tensor is not None:
                setattr(self, name, fn(tensor))
        return self

    def _compute_hypervolume_if_y_has_data(self) -> Tensor:
        return morlfast.hypervolume(self._neg_pareto_Y, self._neg_ref_point, maximize=False)


class DominatedPartitioning(_Partitioning):
    """Partition of the region that `Y` dominates, bounded by `ref_point`; BoTorch's arguments, methods and shapes.

    Beyond BoTorch 0.18.1: any batch shape for any number of objectives, and `compute_hypervolume()` is differentiable
    in `Y` for all of them. `update(Y)` adds points and computes afresh. Boxes are other boxes of the same region.

    >>> partitioning = DominatedPartitioning(torch.zeros(2), torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]))
    >>> partitioning.compute_hypervolume()
    tensor(6.)
    """

    region = "dominated"


class FastNondominatedPartitioning(_Partitioning):
    """Partition of the region above `ref_point` that `Y` does not dominate, unbounded above; for `partitioning=` of
    BoTorch's acquisition functions.

    Exact, so it also stands for `NondominatedPartitioning` with its default `alpha=0`; there is no `alpha` here.
    Otherwise as `DominatedPartitioning`.

    EHVI, qEHVI and qNEHVI do not depend on how the region is cut. qLogEHVI and qLogNEHVI smooth each box, so they do a
    little, between BoTorch's own two exact partitionings too; less with a smaller `tau_max`.

    >>> partitioning = FastNondominatedPartitioning(torch.zeros(2), torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
    >>> partitioning.get_hypercell_bounds().shape
    torch.Size([2, 3, 2])
    """

    region = "non_dominated"


NondominatedPartitioning = FastNondominatedPartitioning


def patch(*, any_version: bool = False) -> Patch:
    """Let BoTorch partition and filter here: qNEHVI, `get_acquisition_function` and whatever else names the originals.

    Replaces BoTorch's `is_non_dominated`, `DominatedPartitioning` and `FastNondominatedPartitioning` in its modules.
    `NondominatedPartitioning` stays, since BoTorch passes it `alpha`, as do default arguments.

    `with patch():` gives the originals back at its end, `patch()` keeps them replaced until its `undo()`. Raises
    RuntimeError for a version of BoTorch that the drop-ins were not checked against, unless `any_version`.
    """
    check_version("botorch", CHECKED_VERSIONS, any_version)
    return Patch(
        "botorch",
        {
            pareto.is_non_dominated: is_non_dominated,
            box_decompositions.DominatedPartitioning: DominatedPartitioning,
            box_decompositions.FastNondominatedPartitioning: FastNondominatedPartitioning,
        },
    )


def _take_rows(points: Tensor, rows: Tensor) -> Tensor:
    """(..., n, m), (..., k) -> (..., k, m)"""
    return points.gather(-2, rows.unsqueeze(-1).expand(*rows.shape, points.shape[-1]))
