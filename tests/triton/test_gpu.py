"""The public functions on CUDA tensors against themselves on the CPU, and the promises that only a GPU can
break."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import morlfast
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def no_synchronization() -> Iterator[Callable[[], None]]:
    """Call it after warming up: from there on, waiting for the device raises."""

    def forbid() -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    yield forbid
    torch.cuda.set_sync_debug_mode("default")


def to_cuda(options: dict[str, Any]) -> dict[str, Any]:
    return {name: x.cuda() if isinstance(x, Tensor) else x for name, x in options.items()}


def same(function: Callable[..., Tensor], *tensors: Any, exact: bool = True, **options: Any) -> None:
    expected = function(*tensors, **options)
    moved = [x.cuda() if isinstance(x, Tensor) else x for x in tensors]
    result = function(*moved, **to_cuda(options))
    assert result.is_cuda
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(result.cpu(), expected, equal_nan=True, **tolerance)


def picks(values: list[float], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)[torch.randint(len(values), shape)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Every combination compiles kernels of its own: all of them for one dtype, the one with all the parts for the others.
@pytest.mark.parametrize(
    ("method", "scale", "dtype"),
    [
        ("dr_grpo", "none", torch.float32),
        *product(["grpo", "rloo", "gdpo"], ["none", "group", "batch"], [torch.float32]),
        *product(["gdpo"], ["batch"], DTYPES[1:]),
    ],
    ids=str,
)
def test_advantages(method: str, scale: str, dtype: torch.dtype) -> None:
    rewards = torch.randn(4096, 3).masked_fill(torch.rand(4096, 3) < 0.1, NAN).to(dtype)
    weights = torch.rand(4096, 3).to(dtype)
    options = {"method": method, "scale": scale}
    same(morlfast.group_advantages, rewards, 8, exact=False, **options)
    same(morlfast.group_advantages, rewards[:, 0], 512, exact=False, **options)
    ids = torch.randint(-50, 50, (4096,))
    same(morlfast.group_advantages, rewards, group_ids=ids, weights=weights, exact=False, **options)


@pytest.mark.parametrize(
    ("preset", "method"),
    [(name, method) for name, preset in morlfast.PRESETS.items() for method in preset.methods],
    ids=str,
)
def test_presets(preset: str, method: str) -> None:
    rewards, mask = torch.randn(512, 2), torch.rand(512, 100) < 0.7
    rewards[8:16] = 0.3  # a constant group; the next but for one rollout
    rewards[16:23] = 0.3
    options = {"preset": preset, "method": method, "mask": mask}
    same(morlfast.group_advantages, rewards, 8, exact=False, **options)
    if method in ("gdpo", "opo", "pass_at_k", "rloo"):
        same(morlfast.group_advantages, rewards, group_ids=torch.randperm(512) % 61, exact=False, **options)


@pytest.mark.parametrize(
    ("columns", "dtype"), [*product([1, 100, 4096], DTYPES[:1]), *product([100], DTYPES[1:])], ids=str
)
def test_advantages_of_tokens(columns: int, dtype: torch.dtype) -> None:
    rewards, weights = torch.randn(96, 3).to(dtype), torch.rand(96, 3).to(dtype)
    offsets, mask = torch.tensor([0, 1, 40, 40, 96]), torch.rand(96, columns) < 0.7
    options = {"weights": weights, "exact": False}
    for typed in (mask, mask.long(), mask.to(torch.bfloat16), mask.t().contiguous().t()):
        same(morlfast.group_advantages, rewards, 6, mask=typed, **options)
    same(morlfast.group_advantages, rewards, 96, mask=mask, **options)
    options |= {"offsets": offsets, "whiten": "tokens", "baseline": "length_weighted"}
    same(morlfast.group_advantages, rewards, mask=mask, **options)
    per_token = torch.randn(96, columns).to(dtype)
    same(morlfast.group_advantages, token_rewards=per_token, group_size=6, mask=mask, exact=False)


def test_tokens_of_a_large_batch_are_those_of_the_rollouts() -> None:
    rewards = torch.randn(16384, device="cuda")
    mask = torch.rand(16384, 4096, device="cuda") < 0.8
    for group_size in (1, 4, 16, 1024, 16384):
        rows = morlfast.group_advantages(rewards, group_size)
        out = torch.full(mask.shape, NAN, device="cuda")
        assert morlfast.group_advantages(rewards, group_size, mask=mask, out=out) is out
        torch.testing.assert_close(out, torch.where(mask, rows[:, None], 0.0))


def test_prompts_are_groups() -> None:
    prompts = torch.randint(0, 3, (300, 4))
    same(morlfast.group_advantages, torch.randn(300), group_ids=prompts, exact=False)
    same(torch.ops.morlfast.group_rows.default, prompts)


def test_what_would_raise_after_a_look_at_the_values() -> None:
    rewards = torch.tensor([1.0, NAN, 2.0, 3.0], device="cuda")
    with pytest.raises(ValueError, match="rewards: expected no NaN"):
        morlfast.group_advantages(rewards, 2, nan="raise")
    assert morlfast.group_advantages(rewards, 2, singleton="raise").isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    [
        (5, 1, torch.float32),
        (64, 1000, torch.float32),
        (3, 50_000, torch.float32),
        *[(301, 128, d) for d in DTYPES[1:]],
    ],
    ids=str,
)
def test_returns(rows: int, columns: int, dtype: torch.dtype) -> None:
    shape = (rows, columns)
    rewards, values, mask = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.rand(shape) < 0.7
    same(morlfast.linear_scan, rewards, torch.rand(shape), torch.randn(rows), mask=mask, reverse=False, exact=False)
    same(morlfast.linear_scan, rewards, torch.rand(rows), exact=False)
    for options in (
        {"gamma": 0.99, "mask": mask.to(dtype)},
        {"gamma": torch.rand(rows), "lam": torch.rand(shape), "returns_lam": 1.0, "bootstrap": torch.randn(rows)},
        {"bootstrap": "repeat_last", "done": torch.rand(shape) < 0.1, "terminated": torch.rand(shape) < 0.1},
        {"next_values": torch.randn(shape), "mask": mask, "outside": "carry"},
    ):
        for part in range(2):
            same(
                lambda r, v, part=part, **given: morlfast.gae(r, v, **given)[part],
                rewards,
                values,
                exact=False,
                **options,
            )
    if columns > 1:
        for convention in ("bessel", "population"):
            same(morlfast.whiten, values, mask, convention=convention, exact=False)
        same(morlfast.whiten, values, shift_mean=False, exact=False)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_equal_rewards_give_exactly_zero(size: int) -> None:
    for objectives in (2, 5):
        rewards = torch.full((size * 5, objectives), 0.3, dtype=torch.float64, device="cuda")
        weights = torch.linspace(0.1, 0.7, objectives, dtype=torch.float64, device="cuda")
        mask = torch.ones(size * 5, 33, dtype=torch.bool, device="cuda")
        for method in ("grpo", "dr_grpo", "rloo", "gdpo"):
            options = {"weights": weights, "method": method, "eps": 0.0}
            assert (morlfast.group_advantages(rewards, size, **options) == 0).all()
            assert (morlfast.group_advantages(rewards, size, mask=mask, **options) == 0).all()
        rewards[0] = 0.7  # the others of the first rollout are equal
        for scale in ("leave_one_out", "batch"):
            own = morlfast.group_advantages(rewards, size, weights=weights, mask=mask, eps=0.0, scale=scale)
            assert (own[size:] == 0).all()
            if scale == "leave_one_out":
                assert (own[0] == 0).all()


@pytest.mark.parametrize("objectives", [1, 5, 100, 512])
def test_advantages_of_many_rows_and_objectives(objectives: int) -> None:
    rows = 1_000_000 // objectives // 10 * 10
    rewards = torch.randn(rows, objectives)
    same(morlfast.group_advantages, rewards, 10, method="gdpo", scale="batch", exact=False)
    same(morlfast.group_advantages, rewards, rows, exact=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 100, 2049, 20000])
def test_tokens(columns: int, dtype: torch.dtype) -> None:
    values = [-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, NAN, INF, -INF]
    for entropies in (torch.rand(24, columns).to(dtype), picks(values, 24, columns, dtype=dtype)):
        mask = torch.rand(24, columns) < 0.7
        ids = torch.randint(-3, 3, (24,))
        for advantages, ratio in product([torch.randn(24).to(dtype), torch.randn(24, columns).to(dtype)], [0.2, 1.0]):
            arguments = (advantages, entropies, mask, ratio)
            same(morlfast.select_tokens, *arguments)
            same(morlfast.select_tokens, *arguments, scope="sequence")
            same(morlfast.select_tokens, *arguments, scope="group", group_size=6)
            same(morlfast.select_tokens, *arguments, scope="group", group_ids=ids)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 50_257), (2, 4, 32_000), (40, 30, 1000)], ids=str)
def test_logprobs(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    logits, tokens = (3 * torch.randn(shape)).to(dtype), torch.randint(shape[2], shape[:2])
    if shape[2] > 1:
        logits[torch.rand(shape) < 0.1] = -INF
        logits[0, 0, 3], logits[0, 1, -1], logits[0, 2] = NAN, INF, -INF
    tokens[0, -1] = -100
    operator = torch.ops.morlfast.token_logprobs.default
    for x, t in (
        (logits, tokens),
        (logits[:, 1:], tokens[:, :-1]),
        (logits.transpose(0, 1), tokens.t()),
        (logits.transpose(1, 2).contiguous().transpose(1, 2), tokens),
    ):
        for options in ({"temperature": 0.7}, {"first_token": shape[2] // 2, "partial": True}):
            for part in range(3):
                same(lambda x, t, part=part, options=options: operator(x, t, **options)[part], x, t, exact=False)
        same(gradient_of_logits, x, t, exact=False, temperature=0.7)
    outside = torch.tensor([[shape[2], -1]], device="cuda")
    assert operator(torch.randn(1, 2, shape[2], device="cuda"), outside)[0].isnan().all()


def test_logprobs_from_hidden_states() -> None:
    hidden, weight, tokens = torch.randn(3, 20, 16), torch.randn(500, 16), torch.randint(500, (3, 20))
    options = {"mask": torch.rand(3, 20) < 0.7, "max_memory": 2 * 500 * 4 * 7}
    for part in range(2):
        same(
            lambda h, w, t, part=part, **given: morlfast.linear_token_logprobs(h, w, t, **given)[part],
            *(hidden, weight, tokens),
            exact=False,
            **options,
        )


def test_more_tokens_than_float32_can_count() -> None:
    rows, columns = 4100, 4096
    assert rows * columns > 2**24
    for entropies in (torch.rand(rows, columns), picks([0.0, 1.0, 2.0], rows, columns)):
        same(morlfast.select_tokens, torch.ones(rows), entropies, torch.ones(rows, columns), 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_tokens_by_bounds_quantiles_and_least_numbers(dtype: torch.dtype) -> None:
    offsets, values = torch.tensor([0, 0, 5, 6, 6, 24]), [-1.0, 0.0, 0.5, 1.0, NAN, INF]
    for columns in (100, 5000, 20_000):
        mask, advantages = torch.rand(24, columns) < 0.7, torch.randn(24).to(dtype)
        for entropies in (torch.rand(24, columns).to(dtype), picks(values, 24, columns, dtype=dtype)):
            for scope in ({}, {"scope": "sequence"}, {"scope": "group", "offsets": offsets}):
                same(morlfast.select_tokens, advantages, entropies, mask, 0.0, at_least=7, **scope)
                for ratio in (0.0, 0.2, 0.77):
                    same(morlfast.select_tokens, advantages, entropies, mask, ratio, threshold="quantile", **scope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tokens_of_segments(dtype: torch.dtype) -> None:
    operators = torch.ops.morlfast
    for columns, entropies in ((1, torch.rand(500, 1)), (3000, picks([0.0, 1.0, 2.0, NAN], 500, 3000))):
        scores = (torch.randn(500).to(dtype), entropies.to(dtype), torch.rand(500, columns) < 0.7)
        segments, prefixes = torch.randint(0, 6, (500,)), torch.zeros(7, dtype=torch.int64)
        ties = torch.randint(0, 1000, (7,))
        for level in range(8 if dtype == torch.float64 else 4):
            same(operators.token_histogram.default, *scores, segments, prefixes, level)
            prefixes = prefixes << 8 | operators.token_histogram(*scores, segments, prefixes, level).argmax(1)
        same(operators.select_tokens_above.default, *scores, segments, prefixes, ties)
        same(operators.select_tokens_above.default, *scores, segments, prefixes - 1, ties * 0)


def selected_rollouts(*arguments: Any, **options: Any) -> Tensor:
    return morlfast.select_rollouts(*arguments, **options).mask


# Sums of few integers are exact: splits of equal variances are told apart as on the CPU.
@pytest.mark.parametrize("method", ["max_variance", "top", "bottom", "percentile"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64], ids=str)
def test_rollouts(method: str, dtype: torch.dtype) -> None:
    ids, offsets = torch.randint(-9, 9, (6000,)), torch.tensor([0, 0, 1, 900, 900, 6000])
    odd = picks([-2.0, -0.0, 0.0, 1.0, 3.0, *[NAN] * dtype.is_floating_point], 6000).to(dtype)
    for rewards in (odd, torch.randint(0, 2, (6000,)).to(dtype), torch.randint(-100, 100, (6000,)).to(dtype)):
        for size, k in [(1, 1), (5, 3), (12, 12), (60, 16), (500, 125), (3000, 700)]:
            same(selected_rollouts, rewards, k, group_size=size, method=method)
        for groups in ({"group_ids": ids}, {"offsets": offsets}, {"scope": "batch"}):
            same(selected_rollouts, rewards, 64, method=method, **groups)


def test_rollouts_reach_the_largest_variance() -> None:
    rewards = torch.randn(65536)
    for size, k in [(64, 16), (512, 100), (65536, 1000)]:
        groups = {"group_size": size}
        own, expected = (
            x.cpu().view(-1, size) for x in (selected_rollouts(r, k, **groups) for r in (rewards.cuda(), rewards))
        )
        by_group = rewards.double().view(-1, size)
        variances = [by_group[mask].view(-1, k).var(1, correction=0) for mask in (own, expected)]
        torch.testing.assert_close(variances[0], variances[1], rtol=1e-12, atol=0)


def test_strata_of_rollouts() -> None:
    rewards, uniform = picks([0.0, 1.0, 2.0, NAN], 3000), torch.rand(3000, dtype=torch.float64)
    operator = torch.ops.morlfast.select_rollouts.default
    same(operator, rewards, 7, 30, None, None, 3, uniform)
    same(operator, rewards, 7, 0, torch.randint(-9, 9, (3000,)), None, 3, uniform)
    same(operator, rewards, 7, 0, None, torch.tensor([0, 3, 3, 3000]), 3, uniform)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("n", [1, 17, 64, 65, 128, 129, 256, 257, 1000, 3000])
def test_sort(n: int, m: int, dtype: torch.dtype) -> None:
    odd = [-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN]
    for points in (torch.rand(3, n, m, dtype=dtype), picks(odd, 3, n, m, dtype=dtype)):
        for maximize in (False, True):
            same(morlfast.non_dominated_sort, points, maximize=maximize, nan="worst")


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [40, 300, 40_000])
def test_sort_with_constraints_lengths_and_early_stop(n: int, m: int) -> None:
    options: dict[str, Any] = {"maximize": False, "nan": "worst"}
    lengths = torch.tensor([0, n // 2, n])
    for points in (torch.rand(3, n, m), picks([0.0, 1.0, 2.0, NAN], 3, n, m, dtype=torch.float64)):
        same(morlfast.non_dominated_sort, points, lengths=lengths, **options)
        same(morlfast.non_dominated_sort, points, stop_after=n // 3, **options)
        for violations in (picks([0.0, -1.0, 0.5, INF, NAN], 3, n), torch.rand(3, n)):
            same(morlfast.non_dominated_sort, points, constraints=violations, lengths=lengths, **options)


# One window of sources after the other: along one axis, two, and by their corners.
@pytest.mark.parametrize("m", [2, 3, 4])
def test_sort_of_many_windows(m: int) -> None:
    uniform = torch.rand(100_000, m, dtype=torch.float64)
    simplex = uniform / uniform.sum(-1, keepdim=True)
    chains = torch.rand(50_000, 1) + 1e-3 * torch.rand(50_000, m)
    for points in (uniform, simplex, chains, picks([0.0, 1.0, 2.0, 3.0], 60_000, m), torch.rand(2, 33_000, m)):
        same(morlfast.non_dominated_sort, points, maximize=False)


def test_sort_of_large_fronts() -> None:
    same(morlfast.non_dominated_sort, torch.rand(20_000, 3), maximize=False)
    same(morlfast.non_dominated_sort, torch.rand(70_000, 3), maximize=True)
    chain = torch.arange(20_000.0)[torch.randperm(20_000)]
    same(morlfast.non_dominated_sort, torch.stack([chain, chain], 1), maximize=False)


def test_sort_of_more_fronts_than_a_grid_is_high() -> None:
    same(morlfast.non_dominated_sort, torch.rand(100_000, 12, 2), maximize=False)
    same(morlfast.non_dominated_sort, torch.rand(70_000, 70, 2), maximize=False)


def test_a_million_points_fit() -> None:
    points = torch.rand(1_000_000, 2, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ranks = morlfast.non_dominated_sort(points, maximize=False)
    assert torch.cuda.max_memory_allocated() - before < 20 * points.nbytes
    first = morlfast.non_dominated_sort(points[ranks == 0], maximize=False)
    assert (first == 0).all()


# Every combination compiles kernels of its own.
@pytest.mark.parametrize(
    ("m", "dtype"), [(1, torch.float32), (3, torch.float32), (3, torch.float64), (12, torch.float32)], ids=str
)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 3000])
def test_dominance(n: int, m: int, dtype: torch.dtype) -> None:
    odd = [-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN]
    for points in (torch.rand(3, n, m, dtype=dtype), picks(odd, 3, n, m, dtype=dtype)):
        others = torch.cat([points, picks(odd, 3, 50, m, dtype=dtype)], 1)
        for lengths in (None, torch.tensor([0, n // 2, n])):
            options: dict[str, Any] = {"maximize": m == 3, "lengths": lengths, "nan": "worst"}
            same(morlfast.dominance_counts, points, **options)
            for flag in (False, True):
                same(morlfast.is_non_dominated, points, deduplicate=flag, **options)
                same(morlfast.is_dominated_by, points, others, weakly=flag, **options)


def test_dominance_of_large_sets() -> None:
    simplex = torch.rand(30_000, 3, dtype=torch.float64)
    simplex /= simplex.sum(-1, keepdim=True)
    for points in (torch.rand(30_000, 3), simplex):
        same(morlfast.is_non_dominated, points, maximize=False)
        same(morlfast.dominance_counts, points, maximize=True)


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize(
    ("sets", "count", "n", "m", "dtype"),
    [
        (3, 5, 3000, 2, torch.float32),
        (1, 5000, 1, 2, torch.float32),
        (2, 7, 0, 2, torch.float32),
        (1, 1, 70_000, 3, torch.float64),
        (40, 33, 65, 5, torch.float64),
    ],
    ids=str,
)
def test_best_points(sets: int, count: int, n: int, m: int, kind: int, dtype: torch.dtype) -> None:
    best_points = torch.ops.morlfast.best_points.default
    odd = [-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN]
    for queries, points in (
        (torch.rand(sets, count, m, dtype=dtype) + 0.5, torch.rand(sets, n, m, dtype=dtype) + 0.5),
        (picks(odd, sets, count, m, dtype=dtype), picks(odd, sets, n, m, dtype=dtype)),
    ):
        for lengths in (None, torch.randint(0, n + 1, (sets,))):
            expected = best_points(queries, points, kind, lengths, True)
            counted = None if lengths is None else lengths.cuda()
            result = best_points(queries.cuda(), points.cuda(), kind, counted, True)
            torch.testing.assert_close([x.cpu() for x in result], list(expected), rtol=0, atol=0, equal_nan=True)
            if kind > 0:
                same(torch.ops.morlfast.farthest_query.default, queries, points, kind, lengths)


def best_value(queries: Tensor, points: Tensor) -> Tensor:
    return torch.ops.morlfast.best_points.default(queries, points, 2)[0]


def advantages_of(rewards: Tensor, values: Tensor, **options: Any) -> Tensor:
    return morlfast.gae(rewards, values, **options).advantages


def entropies_of(logits: Tensor, tokens: Tensor) -> Tensor | None:
    return morlfast.token_logprobs(logits, tokens).entropies


def gradient_of_logits(logits: Tensor, tokens: Tensor, **options: Any) -> Tensor:
    """With the results as gradients of the results."""
    log_probs, entropies, log_sums = torch.ops.morlfast.token_logprobs.default(logits, tokens, **options)
    return torch.ops.morlfast.token_logprobs_gradient.default(
        logits, tokens, log_sums, entropies, log_probs, entropies, **options
    )


def calls() -> list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]:
    """Every path with launches of its own, on CUDA tensors."""
    operators = torch.ops.morlfast
    rewards, ids = torch.randn(64, 3).cuda(), torch.randint(5, (64,)).cuda()
    tokens = (torch.randn(64).cuda(), torch.rand(64, 3000).cuda(), (torch.rand(64, 3000) < 0.7).cuda(), 0.2)
    mask, offsets = (torch.rand(64, 300) < 0.7).cuda(), torch.tensor([0, 5, 6, 64]).cuda()
    sort, sizes = morlfast.non_dominated_sort, torch.tensor([600, 900]).cuda()
    return [
        *[
            (morlfast.group_advantages, (rewards, *size), {"method": method, "scale": "batch", **group})
            for method in ("grpo", "rloo", "gdpo")
            for size, group in [((8,), {}), ((), {"group_ids": ids})]
        ],
        *[
            (morlfast.group_advantages, (rewards, *size), {"mask": mask, "preset": "verl", "method": method, **group})
            for method in ("grpo", "gdpo", "opo")
            for size, group in [((8,), {}), ((), {"group_ids": ids}), ((), {"offsets": offsets})]
        ],
        (morlfast.linear_scan, (torch.rand(64, 300).cuda(), torch.rand(64, 300).cuda()), {}),
        (advantages_of, (torch.rand(64, 300).cuda(), torch.rand(64, 300).cuda()), {"mask": mask}),
        (morlfast.whiten, (torch.rand(64, 300).cuda(),), {"mask": mask}),
        (morlfast.select_tokens, tokens, {}),
        (morlfast.select_tokens, tokens, {"scope": "sequence"}),
        (morlfast.select_tokens, tokens, {"scope": "group", "group_size": 8}),
        (morlfast.select_tokens, tokens, {"scope": "group", "group_ids": ids}),
        (morlfast.select_tokens, tokens, {"scope": "group", "offsets": offsets}),
        (morlfast.select_tokens, tokens, {"threshold": "quantile"}),
        (morlfast.select_tokens, tokens, {"scope": "sequence", "threshold": "quantile"}),
        (operators.token_histogram.default, (*tokens[:3], ids, torch.zeros_like(ids[:5]), 0), {}),
        (operators.select_tokens_above.default, (*tokens[:3], ids, 3 << 30 | ids[:5], ids[:5]), {}),
        *[
            (operators.select_rollouts.default, (rewards[:, 0], 3, *groups, method), {})
            for groups in ((8, None, None), (0, ids, None), (0, None, offsets))
            for method in (0, 1, 3)
        ],
        *[
            (function, (torch.randn(*shape).cuda(), torch.randint(shape[-1], shape[:-1]).cuda()), {})
            for function in (entropies_of, gradient_of_logits)
            for shape in [(4, 5, 20_000), (32, 40, 300)]
        ],
        (sort, (torch.rand(7, 40, 3).cuda(),), {"maximize": True}),
        (sort, (torch.rand(2, 1000, 3).cuda(),), {"maximize": False}),
        (sort, (torch.rand(1000, 1).cuda(),), {"maximize": False}),
        (sort, (torch.rand(40_000, 3).cuda(),), {"maximize": False}),
        (sort, (torch.rand(2, 1000, 3).cuda(),), {"maximize": False, "constraints": torch.rand(2, 1000).cuda()}),
        (sort, (torch.rand(2, 1000, 3).cuda(),), {"maximize": False, "stop_after": 500, "lengths": sizes}),
        (morlfast.is_non_dominated, (torch.rand(2, 3000, 3).cuda(),), {"maximize": False, "lengths": sizes}),
        (morlfast.dominance_counts, (torch.rand(2, 3000, 3).cuda(),), {"maximize": False, "lengths": sizes}),
        (morlfast.is_dominated_by, (torch.rand(2, 300, 3).cuda(), torch.rand(2, 3000, 3).cuda()), {"maximize": False}),
        (best_value, (torch.rand(2, 100, 3).cuda(), torch.rand(2, 3000, 3).cuda()), {}),
    ]


def test_nothing_waits_for_the_device(no_synchronization: Callable[[], None]) -> None:
    work = calls()
    for function, arguments, options in work:
        function(*arguments, **options)
    no_synchronization()
    for function, arguments, options in work:
        function(*arguments, **options)


def test_runs_on_the_current_stream() -> None:
    """The inputs are written late on a side stream: a launch on another stream would read them too early."""
    for function, arguments, options in calls():
        expected = function(*arguments, **options)
        late = [torch.zeros_like(x) if isinstance(x, Tensor) else x for x in arguments]
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            for target, source in zip(late, arguments, strict=True):
                if isinstance(target, Tensor):
                    target.copy_(source)
            result = function(*late, **options)
        stream.synchronize()
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_can_be_captured_in_a_graph() -> None:
    for function, arguments, options in calls():
        expected = function(*arguments, **options)
        inputs = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function(*inputs, **options)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(*inputs, **options)
        for x in inputs:
            if isinstance(x, Tensor):
                x.zero_()
        graph.replay()
        for target, source in zip(inputs, arguments, strict=True):
            if isinstance(target, Tensor):
                target.copy_(source)
        graph.replay()
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_repeats_bit_for_bit_and_leaves_inputs_unchanged() -> None:
    for function, arguments, options in calls():
        copies = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
        first = function(*arguments, **options)
        for _ in range(5):
            torch.testing.assert_close(function(*arguments, **options), first, rtol=0, atol=0)
        for x, copy in zip(arguments, copies, strict=True):
            if isinstance(x, Tensor):
                torch.testing.assert_close(x, copy, rtol=0, atol=0)


def test_new_sizes_compile_nothing() -> None:
    """But for rows of tokens, which are read in vectors where their number is a multiple of 16."""
    from morlfast._triton import advantages, indicators, pareto, returns, rollouts, tokens

    kernels = (
        *(
            advantages.group_kernel,
            returns.scan_kernel,
            tokens.histogram_kernel,
            tokens.row_kernel,
            rollouts.group_kernel,
            pareto.block_kernel,
        ),
        *(pareto.rank_kernel, pareto.window_kernel, pareto.pair_kernel, indicators.best_kernel),
    )

    def run(n: int) -> int:
        rewards, score = torch.randn(n * 8, device="cuda"), torch.rand(n, 3000 + n, device="cuda")
        morlfast.group_advantages(rewards, 8)
        morlfast.group_advantages(rewards[:n], 1, mask=score > 0.2)
        morlfast.select_rollouts(rewards, 2, group_size=8)
        morlfast.linear_scan(score, score)
        for scope in ("batch", "sequence"):
            morlfast.select_tokens(score[:, 0], score, score > 0.2, 0.5, scope=scope)
        for points in (torch.rand(1000 + n, 3, device="cuda"), torch.rand(40_000 + n, 3, device="cuda")):
            morlfast.non_dominated_sort(points, maximize=False)
            morlfast.dominance_counts(points, maximize=False)
            best_value(points[: n + 1], points)
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)

    compiled = run(16)
    assert run(31) == compiled
    assert run(48) == compiled


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_inputs() -> None:
    for function, arguments, options in calls():
        expected = function(*arguments, **options)
        there = [x.to("cuda:1") if isinstance(x, Tensor) else x for x in arguments]
        moved = {name: x.to("cuda:1") if isinstance(x, Tensor) else x for name, x in options.items()}
        result = function(*there, **moved)
        assert result.device.index == 1
        torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=0, atol=0)
