"""D3S, PODS, the loss and EPO's history over ranks: what one rank gives for all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from morlfast.downsampling import D3S, PODS, D3SSchedule, token_mean
from morlfast.entropy_smoothing import EntropyHistory


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flags(*shape: int, seed: int = 0, share: float = 0.7) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def select_of_ranks(d3s: D3S, advantages: torch.Tensor, entropies: torch.Tensor, mask: torch.Tensor, ids: Any) -> Any:
    return d3s.select(advantages, entropies, mask, group_ids=ids, process_group=dist.group.WORLD)


def pods_of_ranks(rewards: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return PODS(2).select(rewards, group_ids=ids, process_group=dist.group.WORLD).mask


def mean_of_ranks(values: torch.Tensor, keep: torch.Tensor, mask: torch.Tensor, denominator: str) -> Any:
    values.requires_grad_()
    options: dict[str, Any] = {"loss_denominator": denominator, "process_group": dist.group.WORLD}
    loss = token_mean(values, keep, mask, **options)
    loss.backward()
    return loss.detach(), values.grad


@pytest.mark.parametrize("rollout_scope", ["batch", "group"])
@pytest.mark.parametrize("token_scope", ["batch", "group", "sequence"])
def test_ranks_select_what_one_rank_selects(ranks, rollout_scope, token_scope):
    advantages, entropies, mask = (normal(12) * 2).round() / 2, normal(12, 20).abs(), flags(12, 20)
    ids = torch.tensor([5, -1, 5, 9, -1, 5, 9, 9, -1, 5, 2, 9])
    for budget, zeros in ((2, "keep"), (5, "drop"), (100, "keep"), (None, "drop")):
        d3s = D3S(D3SSchedule(budget, 0.3), rollout_scope=rollout_scope, token_scope=token_scope, zero_advantages=zeros)
        want = d3s.select(advantages, entropies, mask, group_ids=ids)
        arguments = [(d3s, advantages[rows], entropies[rows], mask[rows], ids[rows]) for rows in ranks.rows()]
        got = ranks.run(select_of_ranks, arguments)
        assert torch.equal(torch.cat([own.rollouts.mask for own in got]), want.rollouts.mask)
        assert torch.equal(torch.cat([own.tokens for own in got]), want.tokens)


def test_ranks_select_the_rollouts_of_pods(ranks):
    rewards, ids = normal(12), torch.tensor([5, -1, 5, 9, -1, 5, 9, 9, -1, 5, 2, 9])
    got = torch.cat(ranks.run(pods_of_ranks, [(rewards[rows], ids[rows]) for rows in ranks.rows()]))
    assert torch.equal(got, PODS(2).select(rewards, group_ids=ids).mask)


@pytest.mark.parametrize("denominator", ["kept", "all"])
def test_averaged_over_ranks_the_loss_is_the_mean_of_all_tokens(ranks, denominator):
    values, keep, mask = normal(12, 6).double(), flags(12, 6, share=0.2), flags(12, 6)
    single = values.clone().requires_grad_()
    want = token_mean(single, keep, mask, loss_denominator=denominator)
    want.backward()
    arguments = [(values[rows], keep[rows], mask[rows], denominator) for rows in ranks.rows()]
    answers = ranks.run(mean_of_ranks, arguments)
    losses, gradients = zip(*answers, strict=True)
    assert torch.allclose(torch.stack(losses).mean(), want, rtol=1e-13)
    assert torch.allclose(torch.cat(gradients) / len(answers), single.grad, rtol=1e-13)


def update_of_ranks(entropies: torch.Tensor, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    history = EntropyHistory(4)
    history.update(entropies, steps, mask, process_group=dist.group.WORLD)
    return history.means()


def test_every_rank_has_the_history_of_all_rows(ranks):
    entropies, steps, mask = normal(12, 5).abs(), torch.arange(12) % 3, flags(12, 5)
    history = EntropyHistory(4)
    history.update(entropies, steps, mask)
    for got in ranks.run(update_of_ranks, [(entropies[rows], steps[rows], mask[rows]) for rows in ranks.rows()]):
        assert torch.allclose(got, history.means(), rtol=1e-14, equal_nan=True)
