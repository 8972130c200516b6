"""An archive that keeps the non-dominated points of all that are inserted, one batch after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from morlfast import _C, _ops
from morlfast._arguments import (
    NanPolicy,
    as_float32_or_64,
    as_integer,
    as_integers,
    as_ref_point,
    check_nan_policy,
    nan_raises,
    objective_senses,
    same_device,
)
from morlfast.crowding import rows_left_by_crowding
from morlfast.dominance import is_epsilon_non_dominated
from morlfast.hypervolume import least_contributor
from morlfast.hypervolume_approximation import infer_reference_point

Prune = Literal["crowding", "hypervolume", "epsilon"]


class ParetoArchive:
    """The non-dominated ones of all points that were inserted, each with an integer that says whose it is.

    Of equal points the first stays. Without ``capacity`` and ``epsilon`` the contents are those, in the order of
    insertion, that ``filter_non_dominated(everything, deduplicate=True)`` keeps, whatever the batches were.

    Args:
        objectives: m >= 1.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        capacity: the most points to keep, >= 1. Beyond, the worst leave one after another:
        prune: ``"crowding"``: the one with the least crowding distance (:func:`morlfast.crowding_distance`, "nsga2"),
            which is taken anew each time; ``"hypervolume"``: the one whose loss costs the least hypervolume
            (:func:`morlfast.least_contributor`); ``"epsilon"``: one point a grid cell is kept, as
            :func:`morlfast.is_epsilon_non_dominated` has it, which bounds the number without ``capacity``. Ties: the
            lowest row leaves; in a cell the first inserted stays.
        epsilon: side of the (additive) cells for ``"epsilon"``: a number > 0, or (m,).
        ref_point: for ``"hypervolume"``: a number, or (m,). By default :func:`morlfast.infer_reference_point` of the
            points, whenever some have to leave.
        dtype: float32 or float64, in which points are kept. Inserted points are rounded to it first.
        device: where points are kept.
        nan: ``"raise"`` (default on the CPU) names the first inserted row with a NaN, and nothing is inserted;
            ``"worst"`` (default on CUDA): such a row is not kept.

    A point that was pruned is forgotten, and with it what it dominated: points may come in later that it would have
    kept out.

    Inserting q points into n takes O(m q (q + n)) comparisons and O(m (q + n)) memory for the time of the call; what is
    kept moves to a larger place only when it has doubled. Pruning takes O(m n) for each point that leaves by
    ``"crowding"``, all contributions by ``"hypervolume"``, and comparing all cells, once, by ``"epsilon"``. Since the
    number of points depends on the data, inserting waits for a GPU.

    Raises:
        TypeError, ValueError: for arguments that do not fit, or not together; the archive stays as it was.

    Sources: Laumanns, Thiele, Deb and Zitzler (2002) for archives of bounded size; Beume, Naujoks and Emmerich (2007)
    for the least contributor; Kukkonen and Deb (2006) for pruning one after another.

    >>> archive = ParetoArchive(2, maximize=True)
    >>> archive.insert([[1.0, 3.0], [3.0, 1.0], [1.0, 1.0]])
    tensor([ True,  True, False])
    >>> archive.insert([[3.0, 2.0], [1.0, 3.0]])
    tensor([ True, False])
    >>> archive.points, archive.payload
    (tensor([[1., 3.],
            [3., 2.]], dtype=torch.float64), tensor([0, 3]))
    """

    def __init__(
        self,
        objectives: int,
        *,
        maximize: bool | Sequence[bool],
        capacity: int | None = None,
        prune: Prune = "crowding",
        epsilon: Any = None,
        ref_point: Any = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        nan: NanPolicy | None = None,
    ) -> None:
        objectives = as_integer(objectives, "objectives")
        if objectives < 1:
            raise ValueError(f"objectives: expected at least 1, got {objectives}")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        if prune not in get_args(Prune):
            raise ValueError(f'prune: expected "crowding", "hypervolume" or "epsilon", got {prune!r}')
        check_nan_policy(nan)
        if prune == "hypervolume" and objectives > _C.max_hypervolume_objectives:
            most = _C.max_hypervolume_objectives
            raise ValueError(f'objectives: expected at most {most} with prune="hypervolume", got {objectives}')
        if capacity is not None:
            capacity = as_integer(capacity, "capacity")
            if prune == "epsilon":
                raise ValueError(f'capacity: expected None with prune="epsilon", whose cells bound it, got {capacity}')
            if capacity < 1:
                raise ValueError(f"capacity: expected at least 1, got {capacity}")
        if (epsilon is not None) != (prune == "epsilon"):
            raise ValueError(f'epsilon: expected with prune="epsilon" and only there, got {epsilon!r}, prune={prune!r}')
        if ref_point is not None and prune != "hypervolume":
            raise ValueError(f'ref_point: expected with prune="hypervolume" only, got prune={prune!r}')
        self._maximize = objective_senses(maximize, objectives)
        self._capacity, self._prune, self._nan = capacity, prune, nan
        # Kept in one sense: where senses are mixed, maximized objectives are negated and all are minimized.
        self._sense = all(self._maximize)
        self._points = torch.empty((0, objectives), dtype=dtype, device=device)
        self._payload = torch.empty(0, dtype=torch.int64, device=device)
        mixed = not self._sense and any(self._maximize)
        self._signs = self._points.new_tensor([-1.0 if m else 1.0 for m in self._maximize]) if mixed else None
        self._ref_point = None if ref_point is None else self._as_vector(ref_point, "ref_point")
        if self._ref_point is not None and bool(self._ref_point.isnan().any()):
            raise ValueError(f"ref_point: expected no NaN, got {ref_point!r:.80}")
        self._epsilon = None if epsilon is None else self._as_vector(epsilon, "epsilon")
        if self._epsilon is not None and not bool((self._epsilon.isfinite() & (self._epsilon > 0)).all()):
            raise ValueError(f"epsilon: expected finite values > 0, got {epsilon!r:.80}")
        self._size = 0
        self._inserted = 0

    def insert(self, points: Any, payload: Any = None) -> Tensor:
        """Inserts points and returns which of them are in the archive now.

        Args:
            points: shape (q, m); array-likes are taken too.
            payload: integers (q,), kept with the points. By default the number of the row among all rows that were ever
                inserted: 0, 1, 2 ...

        Returns:
            bool (q,), False for a row that is dominated, equal to one before or in the archive, or pruned at once.
        """
        rows = self._as_rows(points)
        q = len(rows)
        if payload is not None:
            payload = as_integers(payload, "payload", "the archive", self._payload).to(torch.int64)
            if payload.shape != (q,):
                raise ValueError(f"payload: expected shape ({q},), one integer a point, got {tuple(payload.shape)}")
        raises = nan_raises(self._nan, rows)
        candidates = _ops.is_non_dominated(rows, self._sense, raises, None, True).nonzero().squeeze(-1)
        first = self._inserted
        self._inserted += q
        held = self._points[: self._size]
        if self._size > 0 and len(candidates) > 0:
            known = _ops.is_dominated_by(rows[candidates], held, self._sense, False, None, True)
            candidates = candidates[~known]
        is_in = torch.zeros(q, dtype=torch.bool, device=rows.device)
        if len(candidates) == 0:
            return is_in
        new = rows[candidates]
        self._keep((~_ops.is_dominated_by(held, new, self._sense, False)).nonzero().squeeze(-1))
        self._append(new, first + candidates if payload is None else payload[candidates])
        left = self._pruned()
        if left is None:
            is_in[candidates] = True
        else:
            before = self._size - len(new)
            is_in[candidates[left[left >= before] - before]] = True
            self._keep(left)
        return is_in

    @property
    def points(self) -> Tensor:
        """(n, m), in the order of insertion; a copy."""
        held = self._points[: self._size]
        return held.clone() if self._signs is None else held * self._signs

    @property
    def payload(self) -> Tensor:
        """int64 (n,); a copy."""
        return self._payload[: self._size].clone()

    @property
    def ref_point(self) -> Tensor | None:
        """float64 (m,), or None where it is inferred or not used."""
        return None if self._ref_point is None else self._ref_point.clone()

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"ParetoArchive({self._size} points, maximize={self._maximize}, capacity={self._capacity})"

    def clear(self) -> None:
        """Empties the archive; rows are numbered from 0 again."""
        self._points, self._payload = self._points[:0].clone(), self._payload[:0].clone()
        self._size = self._inserted = 0

    def to(self, device: torch.device | str) -> ParetoArchive:
        """Moves the archive to a device; returns itself."""
        self._points, self._payload = self._points.to(device), self._payload.to(device)
        self._signs = None if self._signs is None else self._signs.to(device)
        self._ref_point = None if self._ref_point is None else self._ref_point.to(device)
        self._epsilon = None if self._epsilon is None else self._epsilon.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The contents and how many rows were inserted, as tensors and plain values that ``torch.save`` takes."""
        return {
            "points": self.points,
            "payload": self.payload,
            "inserted": self._inserted,
            "maximize": list(self._maximize),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the contents of an archive with the same objectives, senses and dtype, bit for bit."""
        wanted = {"points", "payload", "inserted", "maximize"}
        if set(state) != wanted:
            raise ValueError(f"state: expected the keys {sorted(wanted)}, got {sorted(state)}")
        points, payload = state["points"], state["payload"]
        objectives = self._points.shape[1]
        if points.dim() != 2 or points.shape[1] != objectives or points.dtype != self._points.dtype:
            raise ValueError(
                f"state: expected points (n, {objectives}) of {self._points.dtype}, got {tuple(points.shape)} of "
                f"{points.dtype}"
            )
        if payload.shape != points.shape[:1] or payload.dtype != torch.int64:
            raise ValueError(
                f"state: expected payload ({len(points)},) of torch.int64, got {tuple(payload.shape)} of "
                f"{payload.dtype}"
            )
        if list(state["maximize"]) != self._maximize:
            raise ValueError(f"state: expected maximize {self._maximize}, got {state['maximize']}")
        if self._capacity is not None and len(points) > self._capacity:
            raise ValueError(f"state: expected at most {self._capacity} points, the capacity, got {len(points)}")
        points = points.to(self._points.device)
        self._points = points.clone() if self._signs is None else points * self._signs
        self._payload = payload.to(self._payload.device, copy=True)
        self._size, self._inserted = len(points), int(state["inserted"])

    def _as_vector(self, value: Any, name: str) -> Tensor:
        vector = as_ref_point(value, self._points, name)
        return vector.detach().to(torch.float64, copy=True)

    def _as_rows(self, points: Any) -> Tensor:
        """(q, m) as the archive keeps them: its dtype, device and sense."""
        rows = as_float32_or_64(points, "points", device=self._points.device).detach()
        objectives = self._points.shape[1]
        if rows.dim() != 2 or rows.shape[1] != objectives:
            raise ValueError(f"points: expected shape (q, {objectives}), got {tuple(rows.shape)}")
        same_device("the archive", self._points, "points", rows)
        rows = rows.to(self._points.dtype)
        return rows if self._signs is None else rows * self._signs

    def _keep(self, rows: Tensor) -> None:
        """Only these rows, ascending."""
        if len(rows) < self._size:
            self._points[: len(rows)] = self._points[rows]
            self._payload[: len(rows)] = self._payload[rows]
            self._size = len(rows)

    def _append(self, points: Tensor, payload: Tensor) -> None:
        size = self._size + len(points)
        if size > len(self._points):
            room = max(2 * len(self._points), size, 64)
            for name in ("_points", "_payload"):
                old = getattr(self, name)
                new = old.new_empty((room, *old.shape[1:]))
                new[: self._size] = old[: self._size]
                setattr(self, name, new)
        self._points[self._size : size] = points
        self._payload[self._size : size] = payload
        self._size = size

    def _pruned(self) -> Tensor | None:
        """Rows that stay, ascending; None where all do."""
        held = self._points[: self._size]
        if self._prune == "epsilon":
            return is_epsilon_non_dominated(held, self._epsilon, maximize=self._sense).nonzero().squeeze(-1)
        if self._capacity is None or self._size <= self._capacity:
            return None
        if self._prune == "crowding":
            return rows_left_by_crowding(self.points, self._capacity)  # whose ends depend on the sense, where equal
        return self._left_by_hypervolume(held, self._capacity)

    def _left_by_hypervolume(self, held: Tensor, k: int) -> Tensor:
        held = held.double()
        if self._ref_point is None:
            ref_point = infer_reference_point(held, maximize=self._sense)
        else:
            ref_point = self._ref_point if self._signs is None else self._ref_point * self._signs
        rows = torch.arange(len(held), device=held.device)
        while len(rows) > k:
            # Infinite points may give a reference point with NaN; then the lowest row leaves.
            least = least_contributor(held[rows], ref_point, maximize=self._sense, nan="worst")
            rows = torch.cat([rows[:least], rows[least + 1 :]])
        return rows
