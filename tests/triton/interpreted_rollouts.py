"""Triton select_rollouts against the references and the CPU; run by test_interpreter.py."""

import math
from fractions import Fraction
from typing import Any

import morlfast  # noqa: F401  registers the operators
import pytest
import torch
from morlfast._triton import rollouts as kernels
from references import rollouts as reference
from torch import Tensor

F64 = torch.float64
NAN, INF = math.nan, math.inf
METHODS = ("max_variance", "top", "bottom", "percentile")
# Few values, whose sums are exact: then the selection is, to the row.
TIED = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0, NAN])


def draws(values: Tensor, *shape: int, seed: int = 0) -> Tensor:
    return values[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))]


def select(
    rewards: Tensor, k: int, method: str = "max_variance", uniform: Tensor | None = None, **groups: Any
) -> Tensor:
    before = rewards.clone()
    mask = kernels.select_rollouts(rewards, k, method=METHODS.index(method), uniform=uniform, **groups)
    torch.testing.assert_close(rewards, before, rtol=0, atol=0, equal_nan=True)
    arguments = (groups.get("group_size", 0), groups.get("group_ids"), groups.get("offsets"))
    on_cpu = torch.ops.morlfast.select_rollouts(rewards.contiguous(), k, *arguments, METHODS.index(method), uniform)
    assert torch.equal(mask, on_cpu)
    return mask


def check(rewards: Tensor, k: int, labels: list[int], method: str, **groups: Any) -> None:
    rows = select(rewards, k, method, **groups).nonzero().flatten().tolist()
    assert rows == sorted(reference.select_rollouts(rewards.double().tolist(), k, labels, method))


@pytest.fixture(params=["one launch", "sorted in memory"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one launch":
        monkeypatch.setattr(kernels, "GROUP_LIMIT", 0)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize(("size", "k"), [(1, 1), (5, 0), (5, 3), (8, 7), (8, 8), (40, 12)])
def test_ties_go_to_the_lowest_rows(size: int, k: int, method: str) -> None:
    for rewards in (draws(TIED, 2 * size), draws(TIED[2:5], 2 * size, seed=1)):
        check(rewards, k, [i // size for i in range(2 * size)], method, group_size=size)


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_any_rows(method: str) -> None:
    rewards, ids = draws(TIED, 30), torch.tensor([3, -1, 3, 7, -1, 3] * 5)
    check(rewards, 4, ids.tolist(), method, group_ids=ids)
    check(rewards, 4, ids.tolist(), method, group_ids=ids.int())
    offsets = torch.tensor([0, 0, 7, 7, 8, 30, 30])
    check(rewards, 4, [1] * 7 + [3] + [4] * 22, method, offsets=offsets)
    check(rewards[:2], 4, [39, 39], method, offsets=torch.tensor([0] * 40 + [2]))
    check(rewards, 40, [0] * 30, method, offsets=torch.tensor([0, 30]))


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    rewards = draws(torch.arange(-60, 60), 24).to(dtype)
    check(rewards, 3, [i // 6 for i in range(24)], "max_variance", group_size=6)
    check(rewards[::2], 3, [i // 6 for i in range(12)], "top", group_size=6)


@pytest.mark.usefixtures("limit")
def test_the_variance_is_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    odd = torch.tensor([INF, -INF, 1e308, -1e308, 5e-324, 0.0, 1.0], dtype=F64)
    for rewards in (torch.randn(8, dtype=F64, generator=generator), draws(odd, 8), torch.full((8,), 1e-320, dtype=F64)):
        for k in (1, 3, 6):
            kept = [reference.exact(x) for x in rewards[select(rewards, k, group_size=8)].tolist()]
            best = reference.largest_variance(rewards.tolist(), k)
            assert len(kept) == k
            assert reference.variance(kept) >= best * (1 - Fraction(1, 10**12))


def test_float64_rewards_that_are_equal_in_float32_are_told_apart() -> None:
    rewards = 1 + torch.tensor([3, 1, 2, 0], dtype=F64) * 2.0**-50
    assert select(rewards, 2, group_size=4).tolist() == [True, False, False, True]


@pytest.mark.usefixtures("limit")
def test_nothing_scored_selects_nothing() -> None:
    for method in METHODS:
        rewards = torch.tensor([NAN, NAN, NAN, 1.0])
        assert select(rewards, 2, method, group_size=2).tolist() == [False, False, False, True]
        assert select(rewards[:0], 2, method, group_size=2).tolist() == []


def test_a_group_that_is_walked_over_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 16)
    rewards = draws(torch.arange(-9.0, 30.0), 70)
    for k in (15, 16, 33, 64):
        check(rewards, k, [0] * 70, "max_variance", offsets=torch.tensor([0, 70]))


def test_strata_are_drawn_as_on_the_cpu() -> None:
    rewards, ids = draws(TIED, 30), torch.tensor([3, -1, 3, 7, -1, 3] * 5)
    uniform = torch.rand(30, dtype=F64, generator=torch.Generator().manual_seed(0))
    for k in (1, 3, 4):
        assert select(rewards, k, "percentile", uniform, group_ids=ids).sum() == 3 * k
        select(rewards, k, "percentile", uniform, group_size=6)
        select(rewards, k, "percentile", 1 - uniform, offsets=torch.tensor([0, 11, 30]))
    many = torch.randn(200_003, generator=torch.Generator().manual_seed(0))
    assert select(many, 70_001, "percentile", group_size=len(many)).sum() == 70_001
