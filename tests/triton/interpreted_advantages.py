"""Triton group_advantages against exact rational arithmetic; run by test_interpreter.py."""

import math
from dataclasses import asdict, fields, replace
from itertools import product
from typing import Any, get_args, get_type_hints

import pytest
import torch
from morlfast._triton import advantages as kernels
from morlfast.advantage_presets import AdvantageRules
from references import advantages as reference
from torch import Tensor

F64 = torch.float64
NAN, INF = math.nan, math.inf
METHODS = {
    "grpo": AdvantageRules(),
    "rloo": AdvantageRules(baseline="leave_one_out", scale="none"),
    "gdpo": AdvantageRules(aggregate="normalize_then_sum", whiten="rollouts"),
}
SCALES = ["none", "group", "batch"]
RAGGED = [7, -3, 7, 7, 12, -3, 7, 0, 12, 7, 7, 7, -3, 7, 7, 7, 7, 99, 7, 7, 7, 12, 12, 7]
OFFSETS = (0, 5, 5, 6, 12)


def rules_of(method: str = "grpo", scale: str | None = None, eps: float = 1e-4, ddof: int = 1) -> AdvantageRules:
    rules = METHODS[method]
    scale = scale or rules.scale
    return replace(rules, scale=scale, eps=eps, ddof=ddof, whiten_eps=eps, whiten_ddof=ddof)


def codes(rules: AdvantageRules) -> dict[str, Any]:
    """What the operator takes for the words, which are in the order of their codes."""
    types = get_type_hints(AdvantageRules)
    return {
        rule.name: words.index(value) if (words := get_args(types[rule.name])) else value
        for rule in fields(AdvantageRules)
        for value in (getattr(rules, rule.name),)
    }


def arguments(rewards: Tensor, groups: Any) -> tuple[int, Tensor | None, Tensor | None]:
    """Groups of one size, by ids, or a tuple of offsets."""
    if isinstance(groups, int):
        return groups, None, None
    return (0, None, torch.tensor(groups)) if isinstance(groups, tuple) else (0, torch.tensor(groups), None)


def run(rewards: Tensor, groups: Any, weights: Tensor | None = None, **options: Any) -> Tensor:
    return kernels.group_advantages(rewards, *arguments(rewards, groups), weights, **codes(rules_of(**options)))


def expected(
    rewards: Tensor,
    groups: Any,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
    rules: AdvantageRules | None = None,
    **options: Any,
) -> Tensor:
    rows = rewards.double().reshape(len(rewards), -1)
    labels = groups
    if isinstance(groups, int):
        labels = [i // groups for i in range(len(rewards))]
    elif isinstance(groups, tuple):
        labels = [sum(i >= bound for bound in groups) for i in range(len(rewards))]
    if weights is not None:
        weights = weights.double().expand_as(rows).tolist()
    if lengths is not None:
        lengths = lengths.tolist()
    rules = rules or rules_of(**options)
    result = reference.group_advantages(rows.tolist(), labels, weights, lengths, **asdict(rules))
    return torch.tensor(result, dtype=F64)


def check(
    rewards: Tensor,
    groups: Any,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    **rules: Any,
) -> Tensor:
    """Against the definition, with the rules of grpo but for the given ones."""
    named = AdvantageRules(**rules)
    counts = (mask != 0).sum(1) if lengths is None and mask is not None else lengths
    exact = expected(rewards, groups, weights, counts, named)
    if mask is not None:
        exact = torch.where(mask != 0, exact[:, None], 0.0)
    result = kernels.group_advantages(rewards, *arguments(rewards, groups), weights, lengths, mask, **codes(named))
    torch.testing.assert_close(result, exact, rtol=1e-9, atol=1e-9, equal_nan=True)
    return result


def normal(*shape: int, unscored: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=F64)
    return values.masked_fill(torch.rand(*shape, generator=generator) < unscored, NAN)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups longer than a tile, several chunks, chunks longer than a tile."""
    sizes = {"TILE": 8, "GROUP_TILE": 8, "UNKNOWN_GROUP": 4, "CHUNKS": 2, "RECORDS": 2, "RECOMPUTED": 16}
    for name, value in {**sizes, "ROWS": 4, "COLUMNS": 4, "SPAN": 8}.items():
        monkeypatch.setattr(kernels, name, value)


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
        result = kernels.group_advantages(rewards, 0, ids, None, weights, **codes(rules_of(method, "batch")))
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
        run(torch.zeros(2, 513), 2, method="gdpo")


def others(values: Tensor, i: int) -> Tensor:
    return torch.cat([values[:i], values[i + 1 :]])


def test_deviation_of_others_that_lie_close() -> None:
    rewards = torch.tensor([-1e-3, 1e6, 1e-3, 0.0, 2e-3, 1e-3], dtype=F64)
    for sign in (1, -1):
        result = check(sign * rewards, 6, baseline="none", scale="leave_one_out", eps=1e-6)
        exact = sign * rewards[1] / (others(rewards, 1).std() + 1e-6)
        torch.testing.assert_close(result[1], exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("small", [False, True])
def test_equal_others_have_exactly_no_deviation(small: bool, request: pytest.FixtureRequest) -> None:
    if small:
        request.getfixturevalue("small_tiles")
    rules = codes(AdvantageRules(baseline="leave_one_out", scale="leave_one_out", eps=0.0))
    for place in (0, 7, 11):
        rewards = torch.full((12,), 0.3, dtype=F64)
        rewards[place] = 0.7
        result = kernels.group_advantages(rewards, 12, None, None, torch.tensor([0.1]), **rules)
        assert result[place] == 0
        assert (others(result, place) != 0).all()


@pytest.mark.usefixtures("small_tiles")
def test_only_the_largest_of_a_group_has_an_advantage_over_the_runner_up() -> None:
    rewards = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0, 1.0, NAN, 7.0, 4.0, 0.0, 1.0, 2.0] * 2, dtype=F64)
    result = check(rewards, 12, baseline="runner_up", scale="none")
    assert result.nonzero().flatten().tolist() == [7, 19]
    assert (check(rewards[:4], 4, baseline="runner_up", scale="none") == 0).all()


def words(rule: str) -> tuple[str, ...]:
    return get_args(get_type_hints(AdvantageRules)[rule])


@pytest.mark.parametrize("at", range(24))
def test_every_baseline_and_scale(at: int) -> None:
    baseline, scale = words("baseline")[at % 6], words("scale")[at // 6]
    rewards, lengths = normal(12, 2, unscored=0.2), torch.arange(12) % 5
    groups = (4, RAGGED[:12], OFFSETS)[(at + at // 6) % 3]
    check(
        rewards,
        groups,
        normal(12, 2, seed=1),
        lengths,
        aggregate=words("aggregate")[at // 6 % 2],
        baseline=baseline,
        scale=scale,
        singleton=words("singleton")[at % 3],
        eps_to=words("eps_to")[at // 6 % 3],
        whiten=words("whiten")[(at + at // 3) % 3],
        whiten_eps_to=words("eps_to")[at % 3],
    )


@pytest.mark.parametrize("nan", ["skip", "propagate", "zero", "skip_reward"])
@pytest.mark.parametrize(
    ("singleton", "zero_variance"), [("zero", "unscaled"), ("reward", "nan"), ("nan", "zero")], ids=str
)
def test_every_policy(nan: str, singleton: str, zero_variance: str) -> None:
    rewards = normal(12, 2, unscored=0.3)
    rewards[4:8] = 0.3
    rewards[9] = NAN
    rules = {"singleton": singleton, "zero_variance": zero_variance, "nan": nan, "least_std": 0.2}
    weights = torch.tensor([0.5, 2.0])
    check(rewards, 2, weights, **rules)
    check(rewards, (0, 1, 4, 8, 9, 10, 12), weights, **rules, aggregate="normalize_then_sum", whiten="rollouts")


def test_what_would_wait_for_the_device_to_be_raised_is_nan() -> None:
    rewards = torch.tensor([1.0, NAN, 2.0, 3.0])
    for rules, where in ((AdvantageRules(singleton="raise"), [0]), (AdvantageRules(nan="raise"), [0, 1])):
        assert kernels.group_advantages(rewards, 2, **codes(rules)).isnan().nonzero().flatten().tolist() == where


@pytest.mark.parametrize("nan", ["skip", "propagate", "zero", "skip_reward"])
@pytest.mark.usefixtures("small_tiles")
def test_scores_of_more_objectives_than_a_tile(nan: str) -> None:
    rewards = normal(8, 19, unscored=0.4)
    rewards[2], rewards[5] = NAN, rewards[5].nan_to_num()
    check(rewards, 4, normal(8, 19, seed=1) if nan != "zero" else None, nan=nan)
    check(rewards, (0, 3, 8), torch.ones(19), nan=nan, scale="batch", whiten="rollouts")


def some_mask(rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < 0.6


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float16, torch.float64],
    ids=str,
)
def test_tokens_of_masks_of_every_type(dtype: torch.dtype) -> None:
    mask = some_mask(12, 9).to(dtype)
    result = check(normal(12), 4, mask=mask)
    assert (result != 0).equal(mask != 0)


@pytest.mark.parametrize("group", [1, 3, 6, 24])
@pytest.mark.usefixtures("small_tiles")
def test_tokens_of_groups_of_every_size(group: int) -> None:
    check(normal(24), group, mask=some_mask(24, 11), singleton="reward")


@pytest.mark.parametrize("groups", [4, RAGGED[:12], OFFSETS], ids=repr)
@pytest.mark.parametrize("whiten", ["none", "rollouts", "tokens"])
@pytest.mark.usefixtures("small_tiles")
def test_tokens_of_every_grouping_and_whitening(groups: Any, whiten: str) -> None:
    mask = some_mask(11, 12).float().t()
    baseline = "batch" if whiten == "none" else "length_weighted"
    check(normal(12, unscored=0.2), groups, mask=mask, whiten=whiten, baseline=baseline)


def test_results_are_written_where_told() -> None:
    rewards = normal(8)
    out = torch.full((8,), NAN, dtype=F64)
    assert kernels.group_advantages_out(rewards, out, 4) is None
    torch.testing.assert_close(out, kernels.group_advantages(rewards, 4), rtol=0, atol=0)
    for wrong in (out[:4], out.float(), torch.zeros(8, 2, dtype=F64)[:, 0]):
        with pytest.raises(ValueError, match="out: expected a contiguous tensor"):
            kernels.group_advantages_out(rewards, wrong, 4)


def test_wrong_offsets_write_every_row_and_nothing_else() -> None:
    for offsets in ([2, 4], [-5, 99], [0, 6, 2, 8]):
        out = torch.full((3, 8), 9.0, dtype=F64)
        kernels.group_advantages_out(normal(8), out[1], 0, offsets=torch.tensor(offsets))
        assert (out[1] != 9).all()
        assert (out[[0, 2]] == 9).all()


def test_first_of_equal_rows() -> None:
    rows = torch.tensor([[3, 1], [2, 2], [3, 1], [0, -1], [2, 2], [3, 1]])
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        typed = rows.to(dtype)
        equal = (typed[:, None] == typed[None, :]).all(2)
        torch.testing.assert_close(kernels.group_rows(typed), equal.int().argmax(1))
    assert kernels.group_rows(torch.empty(0, 3, dtype=torch.int64)).shape == (0,)
    assert kernels.group_rows(torch.empty(4, 0, dtype=torch.int64)).tolist() == [0, 0, 0, 0]


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any, launches: list[Any]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        self.launches.append(grid)
        return self.kernel[grid]


@pytest.mark.parametrize(
    ("launches", "groups", "masked", "rules"),
    [
        (1, 4, False, {}),
        (1, 4, True, {}),
        (1, 4, True, {"baseline": "leave_one_out", "scale": "leave_one_out"}),
        (1, (0, 3, 8), False, {}),
        (2, (0, 3, 8), True, {}),
        (2, 4, False, {"scale": "batch"}),
        (2, 4, True, {"baseline": "batch", "scale": "none"}),
        (2, 4, False, {"aggregate": "normalize_then_sum", "whiten": "rollouts"}),
        (2, 4, True, {"aggregate": "normalize_then_sum", "whiten": "rollouts"}),
        (2, 4, True, {"baseline": "length_weighted"}),
        (3, 4, True, {"whiten": "tokens"}),
        (4, 4, True, {"scale": "batch", "whiten": "tokens"}),
    ],
    ids=str,
)
def test_launches(
    launches: int, groups: Any, masked: bool, rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    for name, kernel in list(vars(kernels).items()):
        if name.endswith("_kernel"):
            monkeypatch.setattr(kernels, name, Counted(kernel, made))
    check(normal(8, 2), groups, mask=some_mask(8, 9) if masked else None, **rules)
    assert len(made) == launches
