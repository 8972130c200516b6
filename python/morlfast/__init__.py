"""Fast, exact kernels for multi-objective reinforcement learning over PyTorch tensors."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "AdaptedWeights",
    "BoxDecomposition",
    "Estimate",
    "Filtered",
    "LinearSupport",
    "ParetoArchive",
    "achievement",
    "approximate_hypervolume",
    "average_hausdorff",
    "awa_weights",
    "box_decomposition",
    "cardinality",
    "chebyshev",
    "corner_priorities",
    "corner_weights",
    "crowding_distance",
    "dominance_counts",
    "epsilon_boxes",
    "epsilon_indicator",
    "expected_utility",
    "filter_non_dominated",
    "fronts",
    "gd",
    "gd_plus",
    "group_advantages",
    "hype_fitness",
    "hypervolume",
    "hypervolume_contributions",
    "hypervolume_improvement",
    "hypervolume_subset",
    "igd",
    "igd_plus",
    "incremental_simplex_lattice",
    "infer_reference_point",
    "is_dominated_by",
    "is_epsilon_non_dominated",
    "is_lorenz_non_dominated",
    "is_non_dominated",
    "is_on_convex_front",
    "layered_simplex_lattice",
    "least_contributor",
    "lexicographic_order",
    "lorenz_vectors",
    "maximum_utility_loss",
    "non_dominated_sort",
    "ordered_weighted_average",
    "penalty_boundary_intersection",
    "power_mean",
    "preference_entropy",
    "psa_weights",
    "r2",
    "riesz_energy",
    "riesz_weights",
    "sample_weights",
    "select_by_crowding",
    "select_tokens",
    "simplex_lattice",
    "spacing",
    "sparsity",
    "spread",
    "thresholded_lexicographic_order",
    "top_k_diversity",
    "weight_neighbors",
    "weighted_log",
    "weighted_sum",
    "ws_transform",
]

# A build that cannot be loaded still answers `python -m morlfast env`; every other use says why it failed.
_import_error: Exception | None = None
try:
    import torch as torch  # first: the compiled module shares torch's OpenMP run-time

    from morlfast.advantages import group_advantages
    from morlfast.crowding import (
        crowding_distance,
        select_by_crowding,
    )
    from morlfast.dominance import (
        epsilon_boxes,
        is_epsilon_non_dominated,
        is_lorenz_non_dominated,
        is_on_convex_front,
        lorenz_vectors,
    )
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
    from morlfast.indicators import (
        average_hausdorff,
        cardinality,
        epsilon_indicator,
        expected_utility,
        gd,
        gd_plus,
        igd,
        igd_plus,
        maximum_utility_loss,
        preference_entropy,
        r2,
        spacing,
        sparsity,
        spread,
        top_k_diversity,
    )
    from morlfast.linear_support import (
        LinearSupport,
        corner_priorities,
        corner_weights,
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
    from morlfast.pareto_archive import (
        ParetoArchive,
    )
    from morlfast.scalarization import (
        achievement,
        chebyshev,
        lexicographic_order,
        ordered_weighted_average,
        penalty_boundary_intersection,
        power_mean,
        thresholded_lexicographic_order,
        weighted_log,
        weighted_sum,
    )
    from morlfast.tokens import select_tokens
    from morlfast.weights import (
        AdaptedWeights,
        awa_weights,
        incremental_simplex_lattice,
        layered_simplex_lattice,
        psa_weights,
        riesz_energy,
        riesz_weights,
        sample_weights,
        simplex_lattice,
        weight_neighbors,
        ws_transform,
    )
except (ImportError, OSError) as error:
    _import_error = error

    def __getattr__(name: str) -> Any:
        if name not in __all__:  # submodules are looked for after this
            raise AttributeError(f"module 'morlfast' has no attribute {name!r}")
        raise ImportError(
            f"morlfast.{name} is not available, because morlfast could not be loaded: {_import_error}. "
            "Run `python -m morlfast env` to see what is missing and what to do."
        ) from _import_error
