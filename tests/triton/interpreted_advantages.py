"""Triton group_advantages against exact rational arithmetic; run by test_interpreter.py."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from morlfast._triton import advantages as kernels
from references import advantages as reference
from torch import Tensor

F64 = torch.float64
NAN, INF = math.nan, math.inf
METHODS = {"grpo": 0, "rloo": 1, "gdpo": 2}
SCALES = {"none": 0, "group": 1, "batch": 2}
RAGGED = [7, -3, 7, 7, 12, -3, 7, 0, 12, 7, 7, 7, -3, 7, 7, 7, 7, 99, 7, 7, 7, 12, 12, 7]


def run(rewards: Tensor, groups: int | list[int], weights: Tensor | None = None, **options: Any) -> Tensor:
    method = options.pop("method", "grpo")
    scale = SCALES[options.pop("scale", reference.DEFAULT_SCALE[method])]
    size, ids = (groups, None) if isinstance(groups, int) else (0, torch.tensor(groups))
    return kernels.group_advantages(rewards, size, ids, weights, METHODS[method], scale, **options)


def expected(rewards: Tensor, groups: int | list[int], weights: Tensor | None = None, **options: Any) -> Tensor:
    rows = rewards.double().reshape(len(rewards), -1)
    labels = [i // groups for i in range(len(rewards))] if isinstance(groups, int) else groups
    if weights is not None:
        weights = weights.double().expand_as(rows).tolist()
    return torch.tensor(reference.group_advantages(rows.tolist(), labels, weights, **options), dtype=F64)


def normal(*shape: int, unscored: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=F64)
    return values.masked_fill(torch.rand(*shape, generator=generator) < unscored, NAN)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups longer than a tile, several chunks, chunks longer than a tile."""
    monkeypatch.setattr(kernels, "TILE", 8)
    monkeypatch.setattr(kernels, "UNKNOWN_GROUP", 4)
    monkeypatch.setattr(kernels, "CHUNKS", 2)


@pytest.mark.parametrize(
    ("method", "scale", "objectives", "groups"),
    [*product(METHODS, SCALES, [None, 3], [6, RAGGED])],
    ids=lambda value: "ragged" if value is RAGGED else str(value),
)
def test_every_method_and_scale(method: str, scale: str, objectives: int | None, groups: Any) -> None:
    rewards = normal(24, objectives, unscored=0.2) if objectives else normal(24, unscored=0.2)
    weights = normal(24, objectives, seed=1) if objectives else None
    result = run(rewards, groups, weights, method=method, scale=scale)
    torch.testing.assert_close(result, expected(rewards, groups, weights, method=method, scale=scale))


@pytest.mark.parametrize(("method", "groups"), [*product(METHODS, [12, RAGGED])], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_groups_of_several_tiles(method: str, groups: Any) -> None:
    rewards = normal(24, 3, unscored=0.3)
    options = {"method": method, "scale": "batch"}
    weights = torch.tensor([0.5, 1.0, -2.0])
    result = run(rewards, groups, weights, **options)
    torch.testing.assert_close(result, expected(rewards, groups, weights, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_result_has_the_dtype_of_rewards(dtype: torch.dtype, method: str) -> None:
    rewards = normal(12, 2).to(dtype)
    weights = torch.tensor([0.3, 0.7], dtype=dtype)
    result = run(rewards, 4, weights, method=method)
    assert result.dtype == dtype
    # One unit in the last place: the interpreter truncates where a GPU rounds.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected(rewards, 4, weights, method=method), rtol=unit, atol=unit / 8)


@pytest.mark.parametrize(("method", "scale", "eps"), [*product(METHODS, SCALES, [0.0, 1e-4])])
def test_equal_rewards_give_exactly_zero(method: str, scale: str, eps: float) -> None:
    rewards = torch.full((12, 2), 0.3, dtype=F64)
    weights = torch.tensor([0.1, 0.7], dtype=F64)
    assert (run(rewards, 4, weights, method=method, scale=scale, eps=eps) == 0).all()
    # 0.1 * 0.3 is not exact: a fused multiply-add of the pivot would leave its rounding error.
    assert (run(rewards[:, 0], 4, weights[:1], method=method, scale=scale, eps=eps) == 0).all()


@pytest.mark.usefixtures("small_tiles")
def test_equal_rewards_give_exactly_zero_across_tiles() -> None:
    rewards = torch.full((24,), 0.3, dtype=F64)
    for method, scale in product(METHODS, SCALES):
        assert (run(rewards, 24, torch.tensor([0.1]), method=method, scale=scale) == 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [1, [3, 1, 4, 15, 9]], ids=["size", "ids"])
def test_groups_of_one(method: str, groups: Any) -> None:
    rewards = normal(5)
    for scale, ddof in product(SCALES, [0, 1]):
        options = {"method": method, "scale": scale, "ddof": ddof}
        torch.testing.assert_close(run(rewards, groups, **options), expected(rewards, groups, **options))


@pytest.mark.parametrize("ddof", [0, 2, 5])
def test_deviations_of_too_few_values_are_zero(ddof: int) -> None:
    rewards = normal(10, unscored=0.3)
    for method, eps in product(METHODS, [0.0, 0.5]):
        options = {"method": method, "ddof": ddof, "eps": eps}
        torch.testing.assert_close(run(rewards, 5, **options), expected(rewards, 5, **options))


@pytest.mark.parametrize("infinity", [INF, -INF])
@pytest.mark.parametrize("place", [0, 3])
def test_an_infinite_reward_spoils_its_group(infinity: float, place: int) -> None:
    rewards = normal(12)
    rewards[place] = infinity
    rewards[2] = NAN
    for method, scale in [("grpo", "group"), ("grpo", "none"), ("rloo", "none"), ("rloo", "group")]:
        result = run(rewards, 4, method=method, scale=scale)
        assert result[[0, 1, 3]].isnan().all()
        assert result[2] == 0
        torch.testing.assert_close(result[4:], expected(rewards[4:], 4, method=method, scale=scale))


@pytest.mark.parametrize(("method", "scale"), [("grpo", "batch"), ("rloo", "batch"), ("gdpo", "none")])
@pytest.mark.usefixtures("small_tiles")
def test_an_infinite_reward_spoils_batch_statistics(method: str, scale: str) -> None:
    rewards = normal(24)
    rewards[17], rewards[20] = INF, NAN
    result = run(rewards, 4, method=method, scale=scale)
    assert result[20] == 0
    assert result[torch.arange(24) != 20].isnan().all()


def test_a_lone_infinite_reward_is_not_hidden_by_a_zero_deviation() -> None:
    rewards = torch.tensor([INF, NAN, 1.0, 2.0])
    for method in ("grpo", "rloo"):
        result = run(rewards, 2, method=method, eps=0.0)
        assert result[0].isnan()
        assert result[1] == 0


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_a_score_get_zero(method: str) -> None:
    rewards = torch.full((6, 2), NAN)
    for scale in SCALES:
        assert (run(rewards, 3, method=method, scale=scale) == 0).all()
        assert (run(rewards, [1, 1, 0, 5, 1, 0], method=method, scale=scale) == 0).all()


def test_strided_inputs_are_read_in_place_and_left_unchanged() -> None:
    rewards = normal(3, 48, unscored=0.1).t()[::2]
    weights = normal(24, 6, seed=2)[:, ::2]
    ids = torch.tensor(RAGGED).repeat_interleave(2)[::2]
    assert not any(x.is_contiguous() for x in (rewards, weights, ids))
    before = [x.clone() for x in (rewards, weights, ids)]
    for method in METHODS:
        result = kernels.group_advantages(rewards, 0, ids, weights, METHODS[method], SCALES["batch"])
        torch.testing.assert_close(result, expected(rewards, RAGGED, weights, method=method, scale="batch"))
    for tensor, copy in zip((rewards, weights, ids), before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


def test_large_offsets_keep_their_digits() -> None:
    rewards = 1e9 + normal(16)
    for method in METHODS:
        result = run(rewards, 8, method=method)
        torch.testing.assert_close(result, expected(rewards, 8, method=method), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_empty_batch(method: str) -> None:
    for rewards in (torch.empty(0), torch.empty(0, 3)):
        assert run(rewards, 4, method=method).shape == (0,)
        assert run(rewards, [], method=method).shape == (0,)


def test_too_many_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards: expected at most 512 objectives"):
        run(torch.zeros(2, 513), 2)
