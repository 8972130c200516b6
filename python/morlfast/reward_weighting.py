"""Weights and factors of rewards that follow the training: by hypervolume, and by the objectives' gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from morlfast._arguments import as_float32_or_64, as_floating, as_number, same_device
from morlfast.hypervolume import hypervolume_improvement
from morlfast.pareto_archive import ParetoArchive
from morlfast.rewards import as_like


def hypervolume_meta_rewards(improvements: Any, *, base: float = 0.5, gain: float = 1.5) -> Tensor:
    r"""Factor on the rewards of a policy that is larger the more hypervolume the policy adds.

    .. math:: m = 0.5 + 1.5 \tanh(\Delta HV)

    Args:
        improvements: (...), what :func:`morlfast.hypervolume_improvement` gives; float32 or float64. bfloat16, float16,
            integers and bools become float32.
        base, gain: the factor without improvement, and what a large one adds.

    Returns:
        (...), in [base, base + gain] for improvements >= 0: tanh of a large one rounds to 1. Differentiable; NaN
        spreads.

    Raises:
        TypeError: for a dtype of complex numbers.

    Source: dynamic reward weighting, arXiv 2509.11452 (authors' code).

    >>> front, candidates = [[0.6, 0.3, 0.5], [0.4, 0.7, 0.3]], [[0.5, 0.5, 0.6], [0.3, 0.3, 0.3]]
    >>> from morlfast import hypervolume_improvement
    >>> hypervolume_meta_rewards(hypervolume_improvement(candidates, front, 0.2, maximize=True))
    tensor([0.5345, 0.5000], dtype=torch.float64)
    """
    values = as_floating(improvements, "improvements")
    if values.dtype is not torch.float64:
        values = values.to(torch.float32)
    return as_number(base, "base") + as_number(gain, "gain") * values.tanh()


class HypervolumeMetaReward:
    r"""The factor of hypervolume-guided reward weighting from one validation to the next.

    The buffer starts with the reference point alone, usually the validation metrics before training, and the factor is
    1. Each :meth:`update` measures what the new metrics p add to the buffer B, sets the factor by
    `hypervolume_meta_rewards`, and keeps p if it adds anything:

    .. math:: \Delta HV = HV(B \cup \{p\}) - HV(B), \qquad m = 0.5 + 1.5 \tanh(\Delta HV)

    The factor multiplies the whole scalar reward, so it cancels in advantages that divide by a deviation (GRPO) or are
    whitened; it acts through advantages that are not normalized (REINFORCE, RLOO, Dr. GRPO) or beside a KL term.

    Args:
        ref_point: (m,), float32, float64 or integers; what metrics are measured against, in their own units.
        maximize: whether metrics are maximized; a bool, or one for each metric.
        base, gain: as `hypervolume_meta_rewards`.

    Points that are not strictly better than the reference point in every metric add nothing. Points that others
    dominate leave the buffer, which changes no hypervolume. The state is on the device of ``ref_point``; how much is
    kept depends on the data, so updating waits for a GPU.

    Raises:
        TypeError, ValueError: for arguments that do not fit. NaN raises, and on a GPU adds nothing.

    Source: dynamic reward weighting, arXiv 2509.11452 (authors' code, whose hypervolume is not clipped to the
    reference point; here it is).

    >>> guide = HypervolumeMetaReward([0.5, 900.0], maximize=[True, False])
    >>> guide.update([0.6, 895.0]), guide.update([0.6, 895.0])
    (tensor(1.1932, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    >>> guide.points
    tensor([[6.0000e-01, 8.9500e+02]], dtype=torch.float64)
    """

    def __init__(
        self, ref_point: Any, *, maximize: bool | Sequence[bool], base: float = 0.5, gain: float = 1.5
    ) -> None:
        ref_point = as_float32_or_64(ref_point, "ref_point")
        if ref_point.dim() != 1 or len(ref_point) == 0:
            raise ValueError(f"ref_point: expected shape (m,), got {tuple(ref_point.shape)}")
        self._ref_point: Tensor = ref_point.detach().to(torch.float64, copy=True)
        self._archive = ParetoArchive(len(ref_point), maximize=maximize, device=ref_point.device)
        self._maximize = maximize
        self._base, self._gain = as_number(base, "base"), as_number(gain, "gain")
        self._factor: Tensor = self._ref_point.new_ones(())

    def update(self, metrics: Any) -> Tensor:
        """Takes the metrics (m,) of a validation and returns the new factor, float64 ()."""
        point = as_float32_or_64(metrics, "metrics")
        if not isinstance(metrics, Tensor):
            point = point.to(self._ref_point.device)
        same_device("ref_point", self._ref_point, "metrics", point)
        if point.shape != self._ref_point.shape:
            raise ValueError(f"metrics: expected shape {tuple(self._ref_point.shape)}, got {tuple(point.shape)}")
        row = point.detach().to(torch.float64)[None]
        improvement = hypervolume_improvement(row, self._archive.points, self._ref_point, maximize=self._maximize)
        if bool(improvement > 0):
            self._archive.insert(row)
        self._factor = hypervolume_meta_rewards(improvement, base=self._base, gain=self._gain).squeeze(0)
        return self._factor.clone()

    @property
    def factor(self) -> Tensor:
        """float64 (), what the last update returned; 1 before the first."""
        return self._factor.clone()

    @property
    def points(self) -> Tensor:
        """float64 (n, m), the buffer without its reference point; a copy."""
        return self._archive.points

    def state_dict(self) -> dict[str, Any]:
        """Buffer, reference point and factor, as tensors and plain values that ``torch.save`` takes."""
        return {
            "archive": self._archive.state_dict(),
            "ref_point": self._ref_point.clone(),
            "factor": self._factor.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of one with as many metrics and the same senses; its reference point too."""
        wanted = {"archive", "ref_point", "factor"}
        if set(state) != wanted:
            raise ValueError(f"state: expected the keys {sorted(wanted)}, got {sorted(state)}")
        if state["ref_point"].shape != self._ref_point.shape:
            raise ValueError(
                f"state: expected ref_point {tuple(self._ref_point.shape)}, got {tuple(state['ref_point'].shape)}"
            )
        self._archive.load_state_dict(state["archive"])
        self._ref_point = state["ref_point"].to(self._ref_point, copy=True)
        self._factor = state["factor"].to(self._factor, copy=True)


def gradient_influence(gradients: Any) -> Tensor:
    r"""How much a step along all objectives' gradients together improves each objective.

    .. math:: I_i = \sum_j \langle g_i, g_j \rangle = \langle g_i, \textstyle\sum_j g_j \rangle

    Args:
        gradients: (M, d); or M gradients in a sequence, each a tensor or a sequence of tensors (one a parameter, the
            same shapes in the same order for every objective), of any floating dtype on one device.

    Returns:
        float64 (M,), products and sums in float64. O(M d) time, one pass over the gradients, without the M x M matrix
        of products; memory for M times 2^18 numbers.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit.

    Source: dynamic reward weighting, arXiv 2509.11452 (authors' code, which sums the rows of the Gram matrix).

    >>> gradient_influence([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
    tensor([5.5000, 1.0000, 2.2500], dtype=torch.float64)
    """
    if isinstance(gradients, Tensor) or not (
        isinstance(gradients, Sequence) and all(_is_gradient(gradient) for gradient in gradients)
    ):
        matrix = as_floating(gradients, "gradients")
        if matrix.dim() != 2:
            raise ValueError(f"gradients: expected shape (M, d), got {tuple(matrix.shape)}")
        per_objective = [[row] for row in matrix]
    else:
        per_objective = [[gradient] if isinstance(gradient, Tensor) else list(gradient) for gradient in gradients]
    if not per_objective:
        raise ValueError("gradients: expected at least one objective")
    first = per_objective[0]
    shapes = [part.shape for part in first]
    for objective, parts in enumerate(per_objective):
        if [part.shape for part in parts] != shapes:
            raise ValueError(f"gradients: expected the shapes of objective 0 in every one, not so in {objective}")
        for part in parts:
            if not part.is_floating_point():
                raise TypeError(f"gradients: expected floating-point tensors, got {part.dtype}")
            same_device("gradients of objective 0", first[0], f"those of objective {objective}", part)
    device = first[0].device if first else None
    influence = torch.zeros(len(per_objective), dtype=torch.float64, device=device)
    chunk = 1 << 18
    for of_one_parameter in zip(*per_objective, strict=True):
        flat = [part.detach().reshape(-1) for part in of_one_parameter]
        for start in range(0, len(flat[0]), chunk):
            columns = torch.stack([part[start : start + chunk].double() for part in flat])
            influence += columns @ columns.sum(0)
    return influence


def influence_weights(weights: Any, influence: Any, *, lr: float = 1e-6, mu: float = 1e-5) -> Tensor:
    r"""One step of the weights of the objectives towards those whose gradients the others support.

    .. math:: w \leftarrow \mathrm{softmax}\Big(\log w + \frac{\eta}{\mu} I\Big)

    Args:
        weights: (M,), >= 0 and not all 0; they need not sum to 1. A weight of 0 stays 0. Float32 or float64;
            array-likes are taken too.
        influence: (M,), `gradient_influence`, or its mean over the steps since the last update.
        lr: eta, the learning rate of the policy.
        mu: > 0, how far weights may move; their ratio counts.

    Returns:
        (M,) in the dtype of ``weights``, summing to 1; computed in float64. Differentiable.

    Raises:
        TypeError, ValueError: for dtypes, shapes and devices that do not fit, mu <= 0, and on the CPU for weights that
            are negative, NaN or all 0, which elsewhere give NaN.

    Source: dynamic reward weighting, arXiv 2509.11452 (authors' code).

    >>> influence_weights([0.334, 0.333, 0.333], [5.5, 1.0, 2.25])
    tensor([0.4244, 0.2698, 0.3057])
    """
    lr, mu = as_number(lr, "lr"), as_number(mu, "mu")
    if not mu > 0:
        raise ValueError(f"mu: expected a positive number, got {mu}")
    weights = as_floating(weights, "weights")
    values = as_like(influence, weights, "influence", "weights")
    if weights.dim() != 1 or values.shape != weights.shape:
        raise ValueError(
            f"weights, influence: expected two shapes (M,), got {tuple(weights.shape)} and {tuple(values.shape)}"
        )
    if weights.is_cpu and not torch.compiler.is_compiling() and not bool((weights >= 0).all() & (weights > 0).any()):
        raise ValueError(f"weights: expected numbers >= 0 of which one is positive, got {weights.tolist()!r:.80}")
    return torch.softmax(weights.double().log() + lr / mu * values.double(), 0).to(weights.dtype)


def _is_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, Sequence) and len(value) > 0 and all(isinstance(part, Tensor) for part in value)
    )
