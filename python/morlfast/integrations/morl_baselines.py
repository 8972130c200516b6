"""`hypervolume` in place of `morl_baselines.common.performance_indicators.hypervolume`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from morlfast import hypervolume as _hypervolume
from morlfast.integrations import rebind


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
    values = np.array(points, dtype=np.float64, order="C")
    if values.size == 0:
        return 0.0
    front = torch.from_numpy(np.atleast_2d(values))
    return _hypervolume(front, torch.from_numpy(np.array(ref_point, dtype=np.float64)), maximize=True).item()


def install() -> ExitStack:
    """Let MORL-Baselines compute its hypervolumes here.

    That pays from five objectives or several hundred points on. One small front of fewer objectives costs what it cost
    before, most of it making an array of a list.

    Replaces the function in `performance_indicators`, for imports to come, and in the modules that have imported it
    (PGMORL, PQL, PCN, LCN, linear support, `log_all_multi_policy_metrics`). IPRO takes pymoo's class instead, which is
    replaced if IPRO has been imported; so import the algorithms first.

    `install()` lasts as long as the process; `with install():` gives the originals back at its end.
    """
    import pymoo.indicators.hv
    from morl_baselines.common import performance_indicators

    from morlfast.integrations.pymoo import HV

    return rebind(
        "morl_baselines",
        {
            performance_indicators.hypervolume: hypervolume,
            pymoo.indicators.hv.HV: HV,
            pymoo.indicators.hv.Hypervolume: HV,
        },
    )
