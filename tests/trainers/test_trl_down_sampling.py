"""D3S and PODS inside TRL's own trainer: `down_sampling=` of `morlfast.integrations.trl`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from grpo_task import PROMPTS, WORDS, Trainer, build, model, trained
from morlfast.downsampling import D3S, PODS, D3SSchedule, LinearSchedule
from morlfast.integrations import _trl_downsampling
from trl import GRPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def spread(completions, **_):
    """No two completions have the same."""
    return [sum(WORDS.index(word) * 1.37**place for place, word in enumerate(text.split())) for text in completions]


def steep(completions, prompts, **_):
    """Of two prompts the rewards of one are at least four times as far apart."""
    scales = [4.0 ** (WORDS.index(prompt.split()[-2]) - len(PROMPTS)) for prompt in prompts]
    return [scale * value for scale, value in zip(scales, spread(completions), strict=True)]


STEEP = {"reward_funcs": [steep], "scale_rewards": "none"}


def sometimes(completions, **_):
    """One in ten has this."""
    return [value if int(value) % 10 == 0 else None for value in spread(completions)]


TWO_STEPS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4}


def sharpen(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4)
    return net


def sampled(folder, down_sampling, cls=Trainer, **arguments):
    """A trainer with entropies and log-probabilities that differ, in training."""
    trainer = build(cls, folder, options={"down_sampling": down_sampling}, **{"reward_funcs": [spread], **arguments})
    sharpen(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def micro_batches(trainer):
    """Those of the first generation, as the training loop gets them."""
    batch = next(iter(trainer.get_train_dataloader()))
    prepared = []
    for step in range(trainer.args.steps_per_generation):
        trainer._step = step
        prepared.append(trainer._prepare_inputs(batch))
    return prepared


def by_completion(batches):
    return {
        tuple(ids.tolist()): advantage
        for batch in batches
        for ids, advantage in zip(batch["completion_ids"], batch["advantages"].tolist(), strict=True)
    }


@pytest.fixture
def generated(monkeypatch):
    """What the original makes, of all rollouts; a list with one for each generation."""
    outputs = []
    generate = GRPOTrainer._generate_and_score_completions

    def recorded(self, inputs):
        output = generate(self, inputs)
        outputs.append(dict(output))
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", recorded)
    return outputs


def most_varied(values, k):
    return max(itertools.combinations(range(len(values)), k), key=lambda rows: np.var([values[row] for row in rows]))


@pytest.mark.parametrize("renormalize", [True, False])
def test_pods_trains_on_the_rollouts_whose_rewards_vary_most(renormalize, generated, tmp_path):
    trainer = sampled(tmp_path, PODS(2, renormalize=renormalize), **TWO_STEPS)
    batches = micro_batches(trainer)
    every, rewards = generated[0], trainer._gathered_rewards[:, 0]
    assert len(rewards) == 8
    expected = {}
    for group in rewards.view(2, 4):
        first = len(expected) * 2
        rows = most_varied(group.tolist(), 2)
        chosen = group[list(rows)]
        advantages = (chosen - chosen.mean()) / (chosen.std() + 1e-4)
        for row, advantage in zip(rows, advantages.tolist(), strict=True):
            value = advantage if renormalize else float(every["advantages"][first + row])
            expected[tuple(every["completion_ids"][first + row].tolist())] = value
    assert by_completion(batches) == pytest.approx(expected, rel=1e-5)
    for batch in batches:
        assert {len(values) for values in batch.values() if values.dim() > 0} == {2}
        assert batch["num_items_in_batch"] == sum(each["completion_mask"].sum() for each in batches)
    assert trainer._metrics["train"]["frac_rollouts_trained"] == [0.5]
    share = batches[0]["num_items_in_batch"] / every["num_items_in_batch"]
    assert trainer._metrics["train"]["frac_tokens_trained"] == [pytest.approx(share.item())]


@pytest.mark.parametrize("scope", ["batch", "group"])
def test_d3s_trains_on_the_rollouts_whose_advantages_vary_most(scope, generated, tmp_path):
    schedule = D3SSchedule(LinearSchedule(4 if scope == "batch" else 2, 8 if scope == "batch" else 4), 1.0)
    trainer = sampled(tmp_path, D3S(schedule, rollout_scope=scope), **TWO_STEPS)
    batches = micro_batches(trainer)
    advantages = generated[0]["advantages"]
    groups = [advantages] if scope == "batch" else advantages.view(2, 4)
    expected = []
    for group in groups:
        first = len(expected) * 2
        expected += [first + row for row in most_varied(group.tolist(), 4 // len(groups))]
    ids = generated[0]["completion_ids"]
    assert by_completion(batches) == pytest.approx(
        {tuple(ids[row].tolist()): float(advantages[row]) for row in expected}, rel=1e-5
    )


def test_budgets_follow_the_training_in_whole_rows_for_each_micro_batch(tmp_path):
    """Of 8 rollouts 2, 3.5, 5 and 6.5 at the four steps: rounded to whole rows for two micro-batches."""
    counts = []

    class Recording(Trainer):
        def get_high_entropy_mask(self, entropies, mask, threshold):
            kept = super().get_high_entropy_mask(entropies, mask, threshold)
            counts.append((int(mask.sum()), int(kept.sum())))
            return kept

    d3s = D3S(D3SSchedule(LinearSchedule(2, 8), LinearSchedule(0.25, 0.75)))
    trainer, losses, advantages = trained(Recording, tmp_path, options={"down_sampling": d3s}, **TWO_STEPS)
    assert len(losses) == 5
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["frac_rollouts_trained"] * 8 for entry in entries] == [2, 4, 6, 6]
    assert len(advantages) == 2 + 4 + 6 + 6 + 16  # and the evaluation's
    ratios = (0.25, 0.25, 0.375, 0.375, 0.5, 0.5, 0.625, 0.625)
    assert [kept for _, kept in counts] == [int(np.ceil(r * v)) for r, (v, _) in zip(ratios, counts, strict=True)]
    assert not any("trained" in name for entry in trainer.state.log_history if "eval_loss" in entry for name in entry)
    assert d3s.steps == 0


def test_what_is_not_scored_fills_up_where_nothing_else_is_left(generated, tmp_path):
    trainer = sampled(tmp_path, PODS(2), reward_funcs=[sometimes], **{**TWO_STEPS, "num_generations": 8})
    batches = micro_batches(trainer)
    scored = ~trainer._gathered_rewards[:, 0].isnan()
    assert scored.sum() < 2
    ids = generated[0]["completion_ids"]
    rows = sorted([*scored.nonzero().flatten().tolist(), *(~scored).nonzero().flatten().tolist()[: 2 - scored.sum()]])
    assert by_completion(batches) == {tuple(ids[row].tolist()): 0.0 for row in rows}


TRUNCATED = {
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "max_completion_length": 24,
    "mask_truncated_completions": True,
}


@pytest.mark.parametrize("renormalize", [True, False])
def test_pods_selects_rollouts_with_tokens(renormalize, generated, tmp_path):
    trainer = sampled(tmp_path, PODS(2, renormalize=renormalize), **TRUNCATED)
    (batch,) = micro_batches(trainer)
    every, rewards = generated[0], trainer._gathered_rewards[:, 0]
    has_tokens = every["completion_mask"].any(1)
    assert sorted(has_tokens.view(2, 8).sum(1).tolist()) == [1, 4]  # so that one group has to be filled up
    expected = {}
    for group in range(2):
        rows = [row for row in range(8 * group, 8 * group + 8) if has_tokens[row]]
        rows = [rows[place] for place in most_varied(rewards[rows].tolist(), min(2, len(rows)))]
        chosen = rewards[rows]
        advantages = every["advantages"][rows]
        if renormalize:  # what fills up has no part in it
            advantages = (chosen - chosen.mean()) / (chosen.std() + 1e-4) if len(rows) > 1 else torch.zeros(1)
        ids = every["completion_ids"][rows].tolist()
        expected.update(zip(map(tuple, ids), advantages.tolist(), strict=True))
    on = batch["completion_mask"].any(1)
    assert (on.sum(), len(on)) == (3, 4)
    trained = {name: values[on] for name, values in batch.items() if name in ("completion_ids", "advantages")}
    assert by_completion([trained]) == pytest.approx(expected, rel=1e-5)
    assert not renormalize or batch["advantages"][~on].tolist() == [0.0]


def test_one_rollout_with_tokens_is_no_wrong_group_size(tmp_path):
    trainer = build(Trainer, tmp_path, options={"advantage_rules": {"singleton": "raise"}}, scale_rewards="none")
    rewards, lengths = torch.tensor([[1.0], [2.0], [5.0], [3.0]]), torch.tensor([3, 0, 1, 1])
    advantages = trainer._group_advantages(torch.cat([rewards, rewards], 1), 2, lengths, skip_empty=True)
    assert advantages.tolist() == [0.0, 0.0, 2.0, -2.0]


@pytest.mark.parametrize("scope", ["batch", "group"])
def test_d3s_selects_rollouts_with_tokens(scope, tmp_path):
    d3s = D3S(D3SSchedule(4 if scope == "batch" else 1, 1.0), rollout_scope=scope)
    (batch,) = micro_batches(sampled(tmp_path, d3s, **TRUNCATED))
    assert len(batch["advantages"]) == (4 if scope == "batch" else 2)
    assert batch["completion_mask"].any(1).all()


def some_words(completions, **_):
    """Those that do not begin with the first half of the alphabet."""
    return [None if text[:1] < "n" else value for text, value in zip(completions, spread(completions), strict=True)]


def test_what_is_not_scored_fills_up_before_what_has_no_tokens(generated, tmp_path):
    trainer = sampled(tmp_path, D3S(D3SSchedule(5, 1.0)), reward_funcs=[some_words], **TRUNCATED)
    (batch,) = micro_batches(trainer)
    has_tokens = generated[0]["completion_mask"].any(1)
    unscored = trainer._gathered_rewards[:, 0].isnan()
    assert 0 < (has_tokens & unscored).sum() < has_tokens.sum() == 5
    assert unscored[~has_tokens].any()
    assert batch["completion_mask"].any(1).all()


def log_probs_and_entropies(trainer, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    hidden = trainer.model.model(input_ids=ids, attention_mask=attention).last_hidden_state
    logits = trainer.model.lm_head(hidden)[:, batch["prompt_ids"].shape[1] - 1 : -1].log_softmax(-1)
    return logits.gather(2, batch["completion_ids"][..., None])[..., 0], -(logits.exp() * logits).sum(-1)


def top(scores, mask, ratio):
    """The ceil(ratio v) largest scores of the v valid ones."""
    kept = torch.zeros_like(mask, dtype=torch.bool)
    count = int(np.ceil(ratio * int(mask.sum()) - 1e-9))
    order = scores.masked_fill(mask == 0, -1.0).flatten().argsort(descending=True)
    kept.view(-1)[order[:count]] = True
    return kept


def expected_tokens(d3s, batches, entropies):
    """What D3S keeps of each micro-batch, by sorting."""
    scores = [batch["advantages"].abs()[:, None] * entropy for batch, entropy in zip(batches, entropies, strict=True)]
    masks = [batch["completion_mask"] for batch in batches]
    ratio = d3s.schedule(0.0).ratio
    if d3s.entropy == "old" and d3s.token_scope == "batch":
        width = max(mask.shape[1] for mask in masks)
        assert all(mask.shape[1] == width for mask in masks)
        return list(top(torch.cat(scores), torch.cat(masks), ratio).split([len(mask) for mask in masks]))
    if d3s.token_scope == "sequence":
        pairs = zip(scores, masks, strict=True)
        return [torch.stack([top(s, m, ratio) for s, m in zip(score, mask, strict=True)]) for score, mask in pairs]
    if d3s.token_scope == "group":
        kept = []
        for batch, score, mask in zip(batches, scores, masks, strict=True):
            own = torch.zeros_like(mask, dtype=torch.bool)
            for group in batch["prompt_ids"].unique(dim=0):
                rows = (batch["prompt_ids"] == group).all(1)
                own[rows] = top(score[rows], mask[rows], ratio)
            kept.append(own)
        return kept
    return [top(score, mask, ratio) for score, mask in zip(scores, masks, strict=True)]


def hand_made_loss(loss_type, denominator, batches, kept, log_probs, entropies, extra):
    """The gradients of GRPO and its kin where the policy has generated: of - A log p, divided as they divide."""
    losses = []
    masks = [batch["completion_mask"] for batch in batches]
    counted = kept if denominator == "kept" else masks
    for batch, keep, count, mask, log_prob, entropy in zip(
        batches, kept, counted, masks, log_probs, entropies, strict=True
    ):
        terms = -batch["advantages"][:, None] * log_prob * keep
        if loss_type in ("grpo", "sapo"):
            loss = (terms.sum(1) / count.sum(1).clamp(min=1)).mean() / 2
        elif loss_type == "bnpo":
            loss = terms.sum() / count.sum() / 2
        elif loss_type == "dr_grpo":
            loss = terms.sum() / (len(terms) * 6) / 2
        elif loss_type == "luspo":
            loss = terms.sum(1).mean() / 2
        else:
            loss = terms.sum() / sum(count.sum() for count in counted)
        if extra:  # a KL penalty over all tokens, and a bonus for the entropy of those that are trained
            distance = batch["ref_per_token_logps"] - log_prob
            penalty = 0.1 * (distance.exp() - distance - 1) * mask
            loss = loss + (penalty.sum(1) / mask.sum(1)).mean() / 2 - 0.05 * (entropy * keep).sum() / keep.sum() / 2
        losses.append(loss)
    return sum(losses)


HALF = D3SSchedule(None, 0.5)
THIRD = D3SSchedule(6, 0.3)


@pytest.mark.parametrize(
    ("loss_type", "d3s", "extra"),
    [
        *((name, D3S(THIRD), False) for name in ("grpo", "sapo", "bnpo", "dapo", "cispo", "vespo")),
        *((name, D3S(HALF, entropy="old"), False) for name in ("bnpo", "dapo")),
        *((name, D3S(HALF, loss_denominator="all"), False) for name in ("grpo", "bnpo", "dapo", "dr_grpo", "luspo")),
        ("dapo", D3S(THIRD, token_scope="sequence"), False),
        ("dapo", D3S(HALF, token_scope="group"), False),
        ("dapo", D3S(D3SSchedule(2, 0.3), rollout_scope="group"), False),
        ("grpo", D3S(THIRD), True),
        ("grpo", D3S(HALF, entropy="old", token_scope="sequence"), True),
        ("grpo", D3S(HALF, loss_denominator="all"), True),
    ],
)
def test_losses_over_kept_tokens_have_the_gradients_of_a_hand_made_one(loss_type, d3s, extra, tmp_path, monkeypatch):
    arguments = {"use_bias_correction_kl": False}
    if loss_type == "cispo":
        arguments["epsilon_high"] = 5.0  # which bounds the ratio itself there
    if d3s.token_scope == "group":
        arguments.update(STEEP)  # or it would select as from the batch
    trainer = sampled(tmp_path, d3s, loss_type=loss_type, **arguments, **TWO_STEPS)
    batches = micro_batches(trainer)
    if extra:
        monkeypatch.setattr(trainer, "beta", 0.1)
        monkeypatch.setattr(trainer, "entropy_coef", 0.05)
        monkeypatch.setattr(trainer, "_entropy_bonus_enabled", True)
        for batch in batches:
            batch["ref_per_token_logps"] = torch.full_like(batch["completion_ids"], -3.0, dtype=torch.float32)
    log_probs, entropies = zip(*(log_probs_and_entropies(trainer, batch) for batch in batches), strict=True)
    kept = expected_tokens(d3s, batches, [entropy.detach() for entropy in entropies])
    loss = hand_made_loss(loss_type, d3s.loss_denominator, batches, kept, log_probs, entropies, extra)
    parameters = list(trainer.model.parameters())
    expected = torch.autograd.grad(loss, parameters)
    before = [dict(batch) for batch in batches]
    gradients = torch.autograd.grad(sum(trainer.compute_loss(trainer.model, batch) for batch in batches), parameters)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-6)
    assert max(value.abs().max() for value in expected) > 1e-3
    for batch, own in zip(batches, before, strict=True):  # a second iteration over the same rollouts starts from these
        assert batch.keys() == own.keys()
        assert all(batch[name] is own[name] for name in own)
    assert trainer.top_entropy_quantile == 1.0
    total = sum(keep.sum() for keep in kept) / batches[0]["generated_items"]
    assert np.mean(trainer._metrics["train"]["frac_tokens_trained"]) == pytest.approx(total.item())


KEEP_ALL = [
    ({"loss_type": "dapo"}, PODS(4)),
    ({"loss_type": "grpo", "steps_per_generation": 4, "num_iterations": 2}, PODS(4, renormalize=False)),
    ({"loss_type": "dapo", "num_iterations": 2}, D3S(D3SSchedule(8, 1.0))),
    ({"loss_type": "grpo"}, D3S(D3SSchedule(4, 1), rollout_scope="group", token_scope="group", entropy="old")),
    ({"loss_type": "dr_grpo"}, D3S(D3SSchedule(None, 1.0), token_scope="sequence", loss_denominator="all")),
]


@pytest.mark.parametrize(("arguments", "method"), KEEP_ALL)
def test_where_all_are_kept_it_trains_as_the_original(arguments, method, tmp_path):
    arguments = {**TWO_STEPS, "max_steps": 3, **arguments}
    if "steps_per_generation" in arguments:
        arguments["per_device_train_batch_size"] = 2
    own, losses, _ = trained(Trainer, tmp_path, options={"down_sampling": method}, **arguments)
    original, expected, _ = trained(GRPOTrainer, tmp_path, **arguments)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    for parameter, value in zip(own.model.parameters(), original.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, value, rtol=0, atol=1e-5)
    for entry in own.state.log_history:
        assert entry.get("frac_rollouts_trained", 1.0) == 1.0
        assert entry.get("frac_tokens_trained", 1.0) == pytest.approx(1.0)


def test_evaluation_drops_nothing(tmp_path):
    expected = build(GRPOTrainer, tmp_path).evaluate()
    for method in (PODS(1), D3S(D3SSchedule(2, 0.1), entropy="old"), D3S(D3SSchedule(2, 0.1))):
        own = build(Trainer, tmp_path, options={"down_sampling": method}).evaluate()
        for name in ("eval_loss", "eval_entropy", "eval_reward", "eval_clip_ratio/low_mean"):
            assert own[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("method", [None, PODS(4)])
def test_the_entropy_mask_of_the_original_stays_without_d3s(method, tmp_path):
    arguments = {"top_entropy_quantile": 0.4, "loss_type": "grpo", "max_steps": 2}
    _, losses, _ = trained(Trainer, tmp_path, options={"down_sampling": method}, **arguments)
    _, expected, _ = trained(GRPOTrainer, tmp_path, **arguments)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    _, others, _ = trained(GRPOTrainer, tmp_path, **{**arguments, "top_entropy_quantile": 1.0})
    assert abs(losses[0] - others[0]) > 1e-3


def test_logged_completions_are_those_generated_and_say_which_were_trained_on(tmp_path):
    trainer = sampled(tmp_path, PODS(2), **TWO_STEPS)
    batches = micro_batches(trainer)
    advantages, chosen = trainer._logs["advantages"], trainer._logs["extra"]["trained_on"]
    assert len(trainer._logs["completion"]) == len(advantages) == len(chosen) == 8
    assert sorted(itertools.compress(advantages, chosen)) == sorted(by_completion(batches).values())
    trainer.model.eval()
    trainer._prepare_inputs([{"prompt": "a b"}] * 8)
    assert list(chosen) == [False] * 8  # those of the last generation alone
    assert len(trainer._logs["completion"]) == 8


def test_zero_advantages_are_counted_with_what_is_dropped(tmp_path):
    trainer = sampled(tmp_path, PODS(2, renormalize=False), **TWO_STEPS)
    batches = micro_batches(trainer)
    learned = sum(int((batch["advantages"] != 0).sum()) for batch in batches)
    assert learned == 4 < sum(advantage != 0 for advantage in trainer._logs["advantages"])
    assert trainer._metrics["train"]["frac_advantage_zero"] == [0.5]


def test_logged_flags_follow_the_option(tmp_path):
    trainer = sampled(tmp_path, None, **TWO_STEPS)
    micro_batches(trainer)
    trainer.down_sampling = PODS(2)
    trainer.model.eval()
    trainer._prepare_inputs([{"prompt": "a b"}] * 2)  # fewer than are logged
    chosen = trainer._logs["extra"]["trained_on"]
    assert list(chosen) == [None] * 6 + [False] * 2
    assert len(trainer._logs["prompt"]) == 8
    trainer.model.train()
    micro_batches(trainer)
    assert sum(chosen) == 4
    trainer.down_sampling = None
    trainer.model.eval()
    trainer._prepare_inputs([{"prompt": "a b"}] * 2)
    assert list(chosen)[6:] == [False] * 2
    trainer.model.train()
    micro_batches(trainer)
    assert list(chosen) == [True] * 8


def test_the_option_is_an_attribute_that_each_generation_reads(tmp_path):
    trainer = sampled(tmp_path, None, **TWO_STEPS)
    whole = micro_batches(trainer)
    trainer.down_sampling = D3S(D3SSchedule(4, 0.5))
    trainer.compute_loss(trainer.model, whole[1])  # of rollouts that were generated without it
    assert "frac_tokens_trained" not in trainer._metrics["train"]
    part = micro_batches(trainer)
    assert [len(batch["advantages"]) for batch in (*whole, *part)] == [4, 4, 2, 2]
    trainer.down_sampling = None
    trainer.compute_loss(trainer.model, part[1])
    assert len(trainer._metrics["train"]["frac_tokens_trained"]) == 1
    assert len(micro_batches(trainer)[0]["advantages"]) == 4


def test_a_resumed_training_goes_on_with_its_schedule(tmp_path):
    def run(checkpoint=None):
        d3s = D3S(D3SSchedule(LinearSchedule(2, 8), LinearSchedule(0.25, 0.75)))
        trainer = build(Trainer, tmp_path, options={"down_sampling": d3s}, **TWO_STEPS)
        trainer.args.set_save(strategy="steps", steps=2)
        trainer.args.save_only_model = False
        trainer.train(resume_from_checkpoint=checkpoint)
        return [entry for entry in trainer.state.log_history if "loss" in entry]

    names = ("frac_rollouts_trained", "frac_tokens_trained", "loss")
    whole, resumed = run(), run(str(tmp_path / "checkpoint-2"))
    assert len(whole) == len(resumed) == 4
    for entry, value in zip(whole, resumed, strict=True):
        assert [entry[name] for name in names] == pytest.approx([value[name] for name in names], abs=1e-5)


def test_rows_take_their_images_along():
    images = [2, 0, 1, 1]
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 2, 6], [1, 4, 4]])  # of each image
    batch = {
        "completion_ids": torch.arange(8).view(4, 2),
        "advantages": torch.arange(4.0),
        "num_images": images,
        "image_grid_thw": grids,
        "pixel_values": torch.arange(float(grids.prod(1).sum()))[:, None],
        "num_items_in_batch": torch.tensor(8),
        "nothing": None,
    }
    taken = _trl_downsampling._take_rows(batch, torch.tensor([0, 2]))
    assert taken["num_images"] == [2, 1]
    assert torch.equal(taken["image_grid_thw"], grids[:3])
    assert taken["pixel_values"][:, 0].tolist() == list(range(24))
    assert taken["completion_ids"].tolist() == [[0, 1], [4, 5]]
    assert taken["nothing"] is None
    assert taken["num_items_in_batch"] == 8


WRONG = pytest.mark.parametrize(
    ("arguments", "method", "error", "message"),
    [
        ({}, "pods", TypeError, r"down_sampling: expected D3S, PODS or None, got str"),
        ({}, PODS(5), ValueError, r"0 < k <= num_generations=4 .* got 5"),
        ({}, PODS(0), ValueError, r"0 < k <= num_generations=4 .* got 0"),
        (
            {**TWO_STEPS, "num_generations": 8},
            PODS(3),
            ValueError,
            r"k a multiple of 2, for 1 groups to fill 2 steps_per_generation on 1 processes evenly, got 3",
        ),
        ({}, D3S(D3SSchedule(9, 0.5)), ValueError, r"at most the 8 rollouts of a batch, got 9"),
        ({}, D3S(D3SSchedule(5, 0.5), rollout_scope="group"), ValueError, r"at most the 4 rollouts of a group, got 5"),
        (
            {"top_entropy_quantile": 0.2},
            D3S(HALF),
            ValueError,
            r"top_entropy_quantile: expected its default 1\.0.* 0\.2",
        ),
        ({"loss_type": "dr_grpo"}, D3S(HALF), ValueError, r'loss_denominator: expected "all".*dr_grpo'),
        ({"loss_type": "luspo"}, D3S(HALF), ValueError, r'loss_denominator: expected "all".*luspo'),
        ({}, D3S(HALF, threshold="quantile"), ValueError, r'threshold: expected "exact".*dapo.*got "quantile"'),
    ],
)


@WRONG
def test_what_cannot_be_sampled_is_an_error_at_construction(arguments, method, error, message, tmp_path):
    with pytest.raises(error, match=message):
        build(Trainer, tmp_path, options={"down_sampling": method}, **arguments)


@WRONG
def test_what_cannot_be_sampled_is_an_error_when_it_is_set_later(arguments, method, error, message, tmp_path):
    trainer = sampled(tmp_path, None, **arguments)
    trainer.down_sampling = method
    with pytest.raises(error, match=message):
        micro_batches(trainer)


# ---- two processes ----


TWO_PROCESSES = {
    "d3s": ({"num_generations": 4, **STEEP}, D3S(D3SSchedule(4, 0.3))),  # all of one prompt, of one process
    "old": (
        {"num_generations": 8, **STEEP},
        D3S(D3SSchedule(6, 0.5), rollout_scope="group", token_scope="group", entropy="old"),
    ),
    "pods": ({"num_generations": 16}, PODS(8, method="random")),
}


def one_of_two(rank, port, folder):
    """One process of two: its first generation, what is trained on of it, and the parameters after two steps."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    generate = GRPOTrainer._generate_and_score_completions
    generated = []

    class Recording(Trainer):
        def get_high_entropy_mask(self, entropies, mask, threshold):
            kept = super().get_high_entropy_mask(entropies, mask, threshold)
            self.masks.append((entropies.detach(), kept))
            return kept

    def recorded(self, inputs):
        output = generate(self, inputs)
        generated.append(dict(output))
        return output

    GRPOTrainer._generate_and_score_completions = recorded
    results = {}
    for name, (arguments, method) in TWO_PROCESSES.items():
        generated.clear()
        trainer = sampled(folder, method, cls=Recording, max_steps=2, **{**TWO_STEPS, **arguments})
        trainer.masks = []
        batches = micro_batches(trainer)
        losses = [trainer.compute_loss(trainer.model, batch).detach() for batch in batches]
        result = {"generated": generated[0], "batches": batches, "losses": losses, "masks": list(trainer.masks)}
        result["shares"] = list(trainer._metrics["train"]["frac_rollouts_trained"])
        if name == "d3s":
            trainer._step, trainer._buffered_inputs = 0, None
            trainer.train()
            result["parameters"] = [parameter.detach() for parameter in trainer.model.parameters()]
        results[name] = result
    torch.save(results, folder / f"{rank}.pt")


def start_two(folder):
    """In a process of its own, since accelerate is in one world at a time; forked, to import everything once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=one_of_two, args=(rank, port, Path(folder))) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in both))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-c", f"import test_trl_down_sampling as tests; tests.start_two({str(folder)!r})"]
    ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def texts(batch):
    """(prompt, completion) of each row, without padding."""
    sides = [(batch[f"{side}_ids"], batch[f"{side}_mask"].bool()) for side in ("prompt", "completion")]
    return [tuple(tuple(ids[row][mask[row]].tolist()) for ids, mask in sides) for row in range(len(sides[0][0]))]


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_two_processes_train_on_what_one_would_select(name, two_processes):
    ranks = [results[name] for results in two_processes]
    arguments, method = TWO_PROCESSES[name]
    size = arguments["num_generations"]
    rows = [text for rank in ranks for text in texts(rank["generated"])]
    advantages = torch.cat([rank["generated"]["advantages"] for rank in ranks])
    widths = {rank["generated"]["prompt_ids"].shape[1] for rank in ranks}
    assert len(widths) == (2 if size < 16 else 1)  # so that rows which move are padded anew
    assert len(set(rows)) == len(rows) == 16
    trained = [
        (text, advantage)
        for rank in ranks
        for batch in rank["batches"]
        for text, advantage in zip(texts(batch), batch["advantages"].tolist(), strict=True)
    ]
    selected = sorted(rows.index(text) for text, _ in trained)
    assert len(set(selected)) == len(selected)
    for rank in ranks:
        assert len({len(batch["advantages"]) for batch in rank["batches"]}) == 1
        assert rank["shares"] == [len(selected) / 16]
    for parameter, other in zip(*(rank.get("parameters", ()) for rank in ranks), strict=True):
        assert torch.equal(parameter, other)
    if isinstance(method, PODS):
        assert len(selected) == 8
        return

    # no second normalization, and of whichever process the selected are
    assert selected == method.select_rollouts(advantages, group_size=size, progress=0.0).indices.tolist()
    assert dict(trained) == pytest.approx({rows[row]: float(advantages[row]) for row in selected}, rel=1e-5, abs=1e-5)
    generated_by_first = sum(row < 8 for row in selected)
    assert (generated_by_first == len(selected) // 2) == (method.rollout_scope == "group")

    kept_of = {}
    for place in range(2):
        both = [(rank["batches"][place], *rank["masks"][place]) for rank in ranks]
        for batch, entropies, kept in both:
            kept_of.update({text: own[: len(text[1])] for text, own in zip(texts(batch), kept, strict=True)})
            for text, own in zip(texts(batch), entropies, strict=True):
                alone = {
                    "prompt_ids": torch.tensor([text[0]]),
                    "prompt_mask": torch.ones(1, len(text[0]), dtype=torch.int64),
                    "completion_ids": torch.tensor([text[1]]),
                    "completion_mask": torch.ones(1, len(text[1]), dtype=torch.int64),
                }
                _, expected = log_probs_and_entropies(SimpleNamespace(model=sharpen(model())), alone)
                torch.testing.assert_close(own[: len(text[1])], expected[0], rtol=1e-4, atol=1e-5)
        if method.entropy == "current":
            columns = ("advantages", "completion_mask")
            whole = [torch.cat([batch[column] for batch, _, _ in both]) for column in columns]
            scores = torch.cat([entropies for _, entropies, _ in both])
            expected = method.select_tokens(whole[0], scores, whole[1], progress=0.0)
            assert torch.equal(torch.cat([kept for _, _, kept in both]), expected)

    counts = [int(kept_of[rows[row]].sum()) for row in selected]
    tokens = [len(rows[row][1]) for row in selected]
    if method.entropy == "old":
        for group in range(2):
            places = [place for place, row in enumerate(selected) if row // size == group]
            assert sum(counts[place] for place in places) == -(-sum(tokens[place] for place in places) // 2)
    for rank in ranks:
        for batch in rank["batches"]:
            assert batch["kept_items"] == sum(counts)
            assert batch["num_items_in_batch"] == sum(tokens)
    # ratios are 1, so that the mean of both processes' losses is that of - A over all kept tokens
    loss = sum(sum(rank["losses"]) for rank in ranks) / 2
    sums = [float(advantages[row]) * count for row, count in zip(selected, counts, strict=True)]
    assert float(loss) == pytest.approx(-sum(sums) / sum(counts), rel=1e-4, abs=1e-5)


def first_of_two(scope, others, **batch):
    """What the first process makes of rows that stay, where the other one has `others`."""
    batch = {
        "completion_ids": torch.zeros(4, 3, dtype=torch.int64),
        "completion_mask": torch.ones(4, 3, dtype=torch.int64),
        "advantages": torch.zeros(4),
        "num_items_in_batch": torch.tensor(24),
        **batch,
    }
    trainer = _trl_downsampling.DownSampling()
    trainer.accelerator = SimpleNamespace(
        num_processes=2, process_index=0, gather=lambda own: torch.cat([own.view(-1), torch.tensor([others])])
    )
    trainer.num_generations = 4
    trainer._metrics = {"train": defaultdict(list)}
    trainer._selected_with = D3S(D3SSchedule(4 if scope == "batch" else 2, 1.0), rollout_scope=scope)
    return trainer._down_sampled(batch, torch.tensor([0, 2, 5, 7]))


@pytest.mark.parametrize(
    ("others", "images", "message"),
    [(0, {"pixel_values": torch.zeros(4, 2)}, "got pixel_values;"), (1, {}, "got images on another one;")],
)
def test_images_that_may_have_to_move_are_refused_on_every_process(others, images, message):
    with pytest.raises(ValueError, match=rf"down_sampling: expected a batch of text.* {message}"):
        first_of_two("batch", others, **images)
    assert len(first_of_two("batch", 0)["advantages"]) == 2
    taken = first_of_two("group", others, **images)  # whole groups on each process
    assert [len(taken[name]) for name in ("advantages", *images)] == [2] * (1 + len(images))
