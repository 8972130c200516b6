"""Fast, exact kernels for multi-objective reinforcement learning over PyTorch tensors."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "BoxDecomposition",
    "Estimate",
    "Filtered",
    "approximate_hypervolume",
    "box_decomposition",
    "dominance_counts",
    "filter_non_dominated",
    "fronts",
    "group_advantages",
    "hype_fitness",
    "hypervolume",
    "hypervolume_contributions",
    "hypervolume_improvement",
    "hypervolume_subset",
    "infer_reference_point",
    "is_dominated_by",
    "is_non_dominated",
    "least_contributor",
    "non_dominated_sort",
    "select_tokens",
]

# A build that cannot be loaded still answers `python -m morlfast env`; every other use says why it failed.
_import_error: Exception | None = None
try:
    import torch as torch  # first: the compiled module shares torch's OpenMP run-time

    from morlfast.advantages import group_advantages
    from morlfast.hypervolume import (
        BoxDecomposition,
        box_decomposition,
        hypervolume,
        hypervolume_contributions,
        hypervolume_improvement,
        hypervolume_subset,
        least_contributor,
    )
    from morlfast.hypervolume_approximation import (
        Estimate,
        approximate_hypervolume,
        hype_fitness,
        infer_reference_point,
    )
    from morlfast.pareto import (
        Filtered,
        dominance_counts,
        filter_non_dominated,
        fronts,
        is_dominated_by,
        is_non_dominated,
        non_dominated_sort,
    )
    from morlfast.tokens import select_tokens
except (ImportError, OSError) as error:
    _import_error = error

    def __getattr__(name: str) -> Any:
        if name not in __all__:  # submodules are looked for after this
            raise AttributeError(f"module 'morlfast' has no attribute {name!r}")
        raise ImportError(
            f"morlfast.{name} is not available, because morlfast could not be loaded: {_import_error}. "
            "Run `python -m morlfast env` to see what is missing and what to do."
        ) from _import_error
