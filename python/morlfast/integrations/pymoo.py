"""`HV` in place of `pymoo.indicators.hv.HV`: pymoo's arguments and normalization, morlfast's computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pymoo.indicators import hv

from morlfast import hypervolume


class HV(hv.HV):  # type: ignore[misc]  # pymoo has no types
    """Hypervolume of a set of minimized points, an indicator of pymoo.

    Constructor and normalization are pymoo's own (`ref_point`, `pf`, `nds`, `norm_ref_point`, `ideal`, `nadir`,
    `zero_to_one`). One call takes one set, an array (n, m) or a single point (m,), and returns a Python float computed
    in float64. Points that are not strictly better than the reference point in every objective count nothing; the
    empty set has hypervolume 0.

    One thing differs: a NaN raises ValueError with its row, where pymoo 0.6.2 (moocore 0.3.2) ignores the row, returns
    a wrong number or never returns, depending on the number of objectives.

    For many sets at once call `morlfast.hypervolume`, which takes a batch.

    >>> front = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> HV(ref_point=np.array([4.0, 4.0]))(front)
    6.0
    """

    def _do(self, F: Any, *args: Any, **kwargs: Any) -> float:
        # Copies: torch neither reads arrays with negative strides nor likes read-only ones.
        points = torch.from_numpy(np.array(F, dtype=np.float64, order="C"))
        ref_point = torch.from_numpy(np.array(self.ref_point, dtype=np.float64))
        return hypervolume(points, ref_point, maximize=False).item()


Hypervolume = HV
