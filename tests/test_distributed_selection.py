"""select_tokens and select_rollouts over ranks: what one rank selects of all rows."""

from __future__ import annotations

from typing import Any

import morlfast
import pytest
import torch
import torch.distributed as dist

NAN, INF = float("nan"), float("inf")
N, T = 12, 40


def eighths(*shape: int, seed: int = 7) -> torch.Tensor:
    """With many ties."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


def normal(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- tokens ----

MASK = torch.arange(T) < torch.randint(0, T + 1, (N, 1), generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([5, -1, 5, 9, -1, 5, 9, 9, -1, 5, 2, 9])
LABELS = [f"prompt {i}" for i in IDS.tolist()]
WITH_NAN = normal(N, T).abs().masked_fill(normal(N, T, seed=2) > 1, NAN).masked_fill(normal(N, T, seed=3) > 2, INF)

# Advantages, entropies, options of every rank, options of which each rank has its rows.
CASES: dict[str, tuple[torch.Tensor, torch.Tensor, dict[str, Any], dict[str, Any]]] = {
    "batch": (normal(N), normal(N, T, seed=1).abs(), {}, {}),
    "ties": (eighths(N), eighths(N, T, seed=1).abs(), {}, {}),
    "all equal": (torch.ones(N), torch.ones(N, T), {}, {}),
    "advantages of tokens": (eighths(N, T), eighths(N, T, seed=1).abs(), {}, {}),
    "negative scores": (torch.ones(N), eighths(N, T), {}, {}),
    "float64": (normal(N).double(), normal(N, T, seed=1).double(), {}, {}),
    "bfloat16": (normal(N).bfloat16(), normal(N, T, seed=1).bfloat16(), {}, {}),
    "NaN and infinities": (normal(N), WITH_NAN, {}, {}),
    "at least": (normal(N), eighths(N, T, seed=1), {"at_least": 170}, {}),
    "groups of one size": (eighths(N), eighths(N, T, seed=1), {"scope": "group", "group_size": 4}, {}),
    "groups by id": (eighths(N), eighths(N, T, seed=1), {"scope": "group"}, {"group_ids": IDS}),
    "groups by label": (normal(N), WITH_NAN, {"scope": "group", "at_least": 3}, {"group_ids": LABELS}),
    "sequences": (eighths(N), eighths(N, T, seed=1), {"scope": "sequence"}, {}),
    "quantile": (torch.ones(N), normal(N, T, seed=1), {"threshold": "quantile"}, {}),
    "quantile of ties": (eighths(N), eighths(N, T, seed=1), {"threshold": "quantile"}, {}),
    "quantile in float64": (normal(N), normal(N, T, seed=1).double(), {"threshold": "quantile"}, {}),
    "quantile of NaN and infinities": (normal(N), WITH_NAN, {"threshold": "quantile"}, {}),
    "quantile of groups": (
        normal(N),
        normal(N, T, seed=1),
        {"scope": "group", "threshold": "quantile"},
        {"group_ids": LABELS},
    ),
}


RATIOS = (0.0, 0.1, 0.37, 1.0)


def tokens(advantages: Any, entropies: Any, mask: torch.Tensor, ratio: float, options: dict[str, Any]) -> torch.Tensor:
    return morlfast.select_tokens(advantages, entropies, mask, ratio, process_group=dist.group.WORLD, **options)


def tokens_of_all_ratios(
    advantages: torch.Tensor, entropies: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    return torch.stack([tokens(advantages, entropies, mask, ratio, options) for ratio in RATIOS])


@pytest.mark.parametrize("case", CASES)
def test_ranks_keep_the_tokens_that_one_rank_keeps(ranks, case):
    advantages, entropies, shared, rowwise = CASES[case]
    arguments = [
        (advantages[rows], entropies[rows], MASK[rows], {**shared, **{k: v[rows] for k, v in rowwise.items()}})
        for rows in ranks.rows()
    ]
    got = torch.cat(ranks.run(tokens_of_all_ratios, arguments), 1)
    for ratio, kept in zip(RATIOS, got, strict=True):
        want = morlfast.select_tokens(advantages, entropies, MASK, ratio, **shared, **rowwise)
        assert ratio in (0.0, 1.0) or 0 < int(want.sum()) < int(MASK.sum())
        assert torch.equal(kept, want), ratio


def test_scores_of_ranks_in_place_of_the_product(ranks):
    scores = eighths(N, T)
    want = morlfast.select_tokens(None, None, MASK, 0.25, score=scores)
    arguments = [(None, None, MASK[rows], 0.25, {"score": scores[rows]}) for rows in ranks.rows()]
    assert torch.equal(torch.cat(ranks.run(tokens, arguments)), want)


def test_ranks_may_pad_to_lengths_and_have_dtypes_of_their_own(ranks):
    advantages, entropies = eighths(N), eighths(N, T, seed=1).abs()
    want = morlfast.select_tokens(advantages.double(), entropies.double(), MASK, 0.3)
    arguments = []
    for rank, rows in enumerate(ranks.rows()):
        pad = (0, rank)
        own = torch.nn.functional.pad(entropies[rows], pad).to([torch.float32, torch.float64][rank % 2])
        arguments.append((advantages[rows], own, torch.nn.functional.pad(MASK[rows], pad).long(), 0.3, {}))
    got = [own[:, :T] for own in ranks.run(tokens, arguments)]
    assert torch.equal(torch.cat(got), want)


def test_large_batches_of_tokens(ranks):
    advantages, entropies = normal(N), normal(N, 20000, seed=1).abs()
    mask = normal(N, 20000, seed=2) > -1
    want = morlfast.select_tokens(advantages, entropies, mask, 0.2)
    arguments = [(advantages[rows], entropies[rows], mask[rows], 0.2, {}) for rows in ranks.rows()]
    assert torch.equal(torch.cat(ranks.run(tokens, arguments)), want)


# ---- rollouts ----

# Rewards, k, options of every rank, options of which each rank has its rows.
ROLLOUTS: dict[str, tuple[torch.Tensor, int, dict[str, Any], dict[str, Any]]] = {
    "batch": (normal(N), 5, {"scope": "batch"}, {}),
    "batch of ties": (eighths(N) > 0, 5, {"scope": "batch"}, {}),
    "contiguous groups": (normal(N), 2, {"group_size": 4}, {}),
    "by id": (eighths(N), 2, {}, {"group_ids": IDS}),
    "by label, NaN": (normal(N).masked_fill(normal(N, seed=1) > 0.5, NAN), 2, {}, {"group_ids": LABELS}),
    "top": (eighths(N), 2, {"method": "top"}, {"group_ids": LABELS}),
    "percentile": (eighths(N).double(), 5, {"method": "percentile", "scope": "batch"}, {}),
    "bfloat16": (normal(N).bfloat16(), 3, {"scope": "batch", "method": "bottom"}, {}),
}


def rollouts(rewards: torch.Tensor, k: int, options: dict[str, Any]) -> morlfast.RolloutSelection:
    return morlfast.select_rollouts(rewards, k, process_group=dist.group.WORLD, **options)


@pytest.mark.parametrize("case", ROLLOUTS)
def test_ranks_select_the_rollouts_that_one_rank_selects(ranks, case):
    rewards, k, shared, rowwise = ROLLOUTS[case]
    want = morlfast.select_rollouts(rewards, k, **shared, **rowwise)
    own = ranks.rows()
    arguments = [(rewards[rows], k, {**shared, **{name: v[rows] for name, v in rowwise.items()}}) for rows in own]
    answers = ranks.run(rollouts, arguments)
    assert torch.equal(torch.cat([answer.mask for answer in answers]), want.mask)
    for rows, answer in zip(own, answers, strict=True):
        kept = [i - rows.start for i in want.indices.tolist() if rows.start <= i < rows.stop]
        assert sorted(answer.indices.tolist()) == sorted(kept)
        if not rowwise:
            assert answer.indices.tolist() == kept


def draw(rewards: torch.Tensor, k: int, seed: int, options: dict[str, Any]) -> morlfast.RolloutSelection:
    generator = torch.Generator().manual_seed(seed)
    return morlfast.select_rollouts(rewards, k, generator=generator, process_group=dist.group.WORLD, **options)


@pytest.mark.parametrize("method", ["random", "stratified"])
def test_ranks_draw_what_one_rank_draws(ranks, method):
    want = morlfast.select_rollouts(
        normal(N), 2, group_ids=LABELS, method=method, generator=torch.Generator().manual_seed(3)
    )
    arguments = [
        (normal(N)[rows], 2, 3 + rank, {"group_ids": LABELS[rows], "method": method})
        for rank, rows in enumerate(ranks.rows())
    ]
    assert torch.equal(torch.cat([answer.mask for answer in ranks.run(draw, arguments)]), want.mask)


def with_variance(rewards: torch.Tensor, options: dict[str, Any]) -> morlfast.RolloutSelection:
    return morlfast.filter_zero_variance(rewards, process_group=dist.group.WORLD, **options)


@pytest.mark.parametrize("shape", [(N,), (N, 2)])
@pytest.mark.parametrize("options", [{"group_ids": LABELS}, {"group_size": 3}], ids=lambda options: next(iter(options)))
def test_groups_have_variance_over_ranks(ranks, shape, options):
    rewards = (eighths(*shape) > 1).float()
    rewards[:3] = 0.25  # a constant group of three
    want = morlfast.filter_zero_variance(rewards, **options)
    assert 0 < len(want.indices) < N
    arguments = [
        (rewards[rows], {name: own if name == "group_size" else own[rows] for name, own in options.items()})
        for rows in ranks.rows()
    ]
    assert torch.equal(torch.cat([answer.mask for answer in ranks.run(with_variance, arguments)]), want.mask)


# ---- arguments ----


@pytest.mark.parametrize("process_group", [True, "gloo", 0])
def test_process_group_is_checked(process_group):
    with pytest.raises(TypeError, match=r"^process_group: expected a torch.distributed.ProcessGroup"):
        morlfast.select_tokens(normal(N), normal(N, T), MASK, 0.5, process_group=process_group)
    with pytest.raises(TypeError, match=r"^process_group: expected a torch.distributed.ProcessGroup"):
        morlfast.select_rollouts(normal(N), 2, scope="batch", process_group=process_group)


def test_offsets_name_rows_of_one_rank_only(ranks):
    options = {"scope": "group", "offsets": [0, 2]}
    arguments = [(normal(2), normal(2, T), MASK[:2], 0.5, options) for _ in ranks.pipes]
    for answer in ranks.run_to_errors(tokens, arguments):
        with pytest.raises(ValueError, match=r"^offsets: expected group_size or group_ids together with process_group"):
            raise answer


def test_group_size_divides_the_rows_of_all_ranks(ranks):
    options = {"scope": "group", "group_size": 5}
    arguments = [(normal(N)[rows], normal(N, T)[rows], MASK[rows], 0.5, options) for rows in ranks.rows()]
    for answer in ranks.run_to_errors(tokens, arguments):
        with pytest.raises(ValueError, match="group_size: expected a positive divisor of the 12 rollouts, got 5"):
            raise answer
