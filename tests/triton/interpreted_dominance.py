"""Triton comparisons of all pairs of points against the definition; run by test_interpreter.py."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from morlfast._triton import pareto as kernels
from references import pareto as reference
from torch import Tensor

NAN, INF = math.nan, math.inf
ODD = [-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN]


@pytest.fixture(params=["in order", "strongest first"], autouse=True)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = {"FEW_TARGETS": 16, "SOURCES": 8, "CHUNK": 8 if request.param == "strongest first" else 64}
    for name, value in constants.items():
        monkeypatch.setattr(kernels, name, value)


def same(result: Tensor, expected: list[np.ndarray]) -> None:
    torch.testing.assert_close(result, torch.from_numpy(np.stack(expected)).reshape(result.shape), rtol=0, atol=0)


def check(points: Tensor, others: Tensor, maximize: bool = False, lengths: Tensor | None = None) -> None:
    before = points.clone(), others.clone()
    fronts = math.prod(points.shape[:-2])
    own = points.reshape(fronts, *points.shape[-2:]).double().numpy()
    theirs = others.reshape(fronts, *others.shape[-2:]).double().numpy()
    counted = [None] * fronts if lengths is None else lengths.flatten().tolist()
    for flag in (False, True):
        same(
            kernels.is_non_dominated(points, maximize, False, lengths, flag),
            [
                reference.is_non_dominated(p, maximize, deduplicate=flag, length=k)
                for p, k in zip(own, counted, strict=True)
            ],
        )
        same(
            kernels.is_dominated_by(points, others, maximize, False, lengths, flag),
            [
                reference.is_dominated_by(p, q, maximize, weakly=flag, length=k)
                for p, q, k in zip(own, theirs, counted, strict=True)
            ],
        )
    same(
        kernels.dominance_counts(points, maximize, False, lengths),
        [reference.dominance_counts(p, maximize, length=k) for p, k in zip(own, counted, strict=True)],
    )
    torch.testing.assert_close((points, others), before, rtol=0, atol=0, equal_nan=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draws(values: list[float], *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values, dtype=dtype)[torch.randint(len(values), shape, generator=generator)]


@pytest.mark.parametrize("m", range(1, 6))
def test_number_of_objectives(m: int) -> None:
    check(normal(21, m), normal(13, m, seed=1), maximize=m % 2 == 0)


@pytest.mark.parametrize("m", [1, 3, 4])
def test_ties_and_duplicates(m: int) -> None:
    check(draws([0.0, 1.0, 2.0], 21, m), draws([0.0, 1.0, 2.0], 11, m, seed=1))


@pytest.mark.parametrize("maximize", [False, True])
def test_nan_is_worst_and_infinities_are_values(maximize: bool) -> None:
    check(draws(ODD, 21, 2), draws(ODD, 11, 2, seed=1), maximize)
    check(torch.full((5, 4), NAN), draws(ODD, 11, 4), maximize)
    check(draws(ODD, 11, 2), torch.full((5, 2), NAN), maximize)


def test_batches_of_any_strides_and_lengths() -> None:
    points = draws(ODD, 2, 34, 2, 3).transpose(1, 2)[:, :, ::2]
    others = draws(ODD, 2, 2, 3, 9, seed=1).mT
    check(points, others)
    check(points, others, lengths=torch.tensor([[0, 1], [5, 9]]))


def test_float64_points_that_are_equal_in_float32_are_told_apart() -> None:
    points = 1 + draws([0.0, 1.0, 2.0, 3.0], 30, 2, dtype=torch.float64) * 2.0**-50
    check(points[:19], points[19:])


def test_empty_sets_and_batches() -> None:
    for n, k in product([0, 3], [0, 3]):
        check(normal(2, n, 2), normal(2, k, 2))
    assert kernels.is_dominated_by(normal(0, 5, 2), normal(0, 4, 2), nan_raises=False).shape == (0, 5)
