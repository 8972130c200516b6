"""Triton non_dominated_sort against the definition; run by test_interpreter.py."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from morlfast._triton import pareto as kernels
from references import pareto as reference
from torch import Tensor

F64 = torch.float64
NAN, INF = math.nan, math.inf


def check(
    points: Tensor,
    maximize: bool = False,
    lengths: Tensor | None = None,
    violations: Tensor | None = None,
    stop_after: int = 0,
) -> None:
    before = points.clone()
    result = kernels.non_dominated_sort(points, maximize, False, lengths, violations, stop_after)
    assert result.dtype == torch.int32
    assert result.shape == points.shape[:-1]
    n, m = points.shape[-2:]
    fronts = math.prod(points.shape[:-2])
    none = [None] * fronts
    expected = [
        reference.non_dominated_sort(front, maximize, length=length, constraints=own, stop_after=stop_after or None)
        for front, length, own in zip(
            points.reshape(fronts, n, m).double().numpy(),
            none if lengths is None else lengths.flatten().tolist(),
            none if violations is None else violations.reshape(fronts, n).numpy(),
            strict=True,
        )
    ]
    torch.testing.assert_close(result, torch.from_numpy(np.stack(expected)).reshape(result.shape), rtol=0, atol=0)
    torch.testing.assert_close(points, before, rtol=0, atol=0, equal_nan=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draws(values: list[float], *shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(values)[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))]


@pytest.fixture(params=["one window", "windows", "small"], autouse=True)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Points that span several blocks of several steps, several windows, or that one program takes."""
    if request.param == "small":
        return 29
    constants = {
        "SMALL": 8,
        "BLOCK": 16,
        "SETTLED": 8,
        "WINDOW": 16 if request.param == "windows" else 1024,
        "BUCKETS": 4,
        "TARGETS": 8,
        "FEW_TARGETS": 8,
        "SOURCES": 4,
        "ROWS": 64,
    }
    for name, value in constants.items():
        monkeypatch.setattr(kernels, name, value)
    return 43


@pytest.mark.parametrize("m", range(1, 6))
def test_number_of_objectives(sizes: int, m: int) -> None:
    check(normal(sizes, m), maximize=m % 2 == 0)


@pytest.mark.parametrize("m", range(1, 5))
def test_ties_and_duplicates_share_a_rank(sizes: int, m: int) -> None:
    check(draws([0.0, 1.0, 2.0], sizes, m))


def test_one_front_and_a_front_for_every_point(sizes: int) -> None:
    x = torch.arange(sizes, dtype=F64)[torch.randperm(sizes, generator=torch.Generator().manual_seed(0))]
    check(torch.stack([x, -x], 1))
    check(torch.stack([x, x, x], 1))
    check(torch.ones(sizes, 2))


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("maximize", [False, True])
def test_nan_points_come_last_and_infinities_are_values(sizes: int, m: int, maximize: bool) -> None:
    check(draws([-INF, -1.0, -0.0, 0.0, 1.0, INF, *([NAN] if maximize else [])], sizes, m), maximize)


@pytest.mark.parametrize("m", [1, 2])
def test_all_nan(sizes: int, m: int) -> None:
    check(torch.full((sizes, m), NAN))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_batches_of_any_strides(sizes: int, dtype: torch.dtype) -> None:
    n = sizes // 2
    points = normal(2, 2 * n, 2, 3, dtype=dtype).transpose(1, 2)[:, :, ::2]
    assert not points.is_contiguous()
    check(points)
    check(normal(2, 3, n, dtype=dtype).transpose(1, 2))
    check(normal(1, 1, 3, dtype=dtype).expand(2, n, 3))


def test_float64_points_that_are_equal_in_float32_are_told_apart(sizes: int) -> None:
    check(1 + draws([0.0, 1.0, 2.0, 3.0], sizes, 2).double() * 2.0**-50)


@pytest.mark.parametrize("n", [0, 1, 2, 8, 9, 16, 17, 33])
def test_sizes_at_the_edges_of_blocks(n: int) -> None:
    for m in (1, 3):
        check(draws([0.0, 1.0, 2.0, 3.0], 2, n, m))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_less_violation_comes_first(sizes: int, m: int) -> None:
    check(draws([0.0, 1.0, 2.0], sizes, m), violations=draws([0.0, 0.0, 0.5, INF], sizes, seed=1).double())
    check(normal(sizes, m), True, violations=draws([0.0, -0.0, 1e-300, NAN], sizes, seed=1).double())


@pytest.mark.parametrize("m", [1, 3])
def test_a_front_for_every_violation(sizes: int, m: int) -> None:
    check(normal(sizes, m), violations=normal(sizes, seed=1, dtype=F64).abs())
    check(normal(sizes, m), violations=torch.ones(sizes, dtype=F64))


@pytest.mark.parametrize("m", [1, 3])
def test_rows_behind_lengths_have_no_rank(sizes: int, m: int) -> None:
    points = draws([0.0, 1.0, 2.0, NAN], 3, sizes, m)
    lengths = torch.tensor([0, sizes // 2, sizes + 1])
    check(points, lengths=lengths)
    check(points, lengths=lengths, violations=draws([0.0, 1.0, NAN], sizes, 3, seed=1).double().T)


def test_stops_after_so_many_points(sizes: int) -> None:
    points = draws([0.0, 1.0, 2.0, 3.0, NAN], 2, sizes, 2)
    for stop_after in (1, sizes // 3, sizes + 1):
        check(points, stop_after=stop_after, lengths=torch.tensor([sizes, sizes // 2]))


def test_empty_batches() -> None:
    for shape, m in product([(0, 5), (2, 0), (0,), (3, 0, 4)], [1, 3]):
        result = kernels.non_dominated_sort(torch.empty(*shape, m), nan_raises=False)
        assert result.shape == shape
