"""`morlfast.integrations.trl` inside TRL's own trainer, and the presets "trl" and "trl-async" against its formulas."""

from __future__ import annotations

import asyncio
import itertools
import os
import warnings
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
# Their deprecations are no business of these tests.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from datasets.table import InMemoryTable  # noqa: E402
from morlfast import group_advantages  # noqa: E402
from morlfast.downsampling import D3S, PODS, D3SSchedule, LinearSchedule  # noqa: E402
from morlfast.integrations import _trl_downsampling  # noqa: E402
from morlfast.integrations import trl as ours  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402
from trl.experimental.async_grpo.async_rollout_worker import RolloutGroup, _AsyncRolloutLoop  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
PROMPTS = [f"{word} z" for word in WORDS[3:11]]


class Trainer(ours.MultiObjectiveMixin, GRPOTrainer):
    pass


# Rewards are whole numbers: of those TRL's own mean of a group of four has no rounding, which it would multiply by 1e4.
def vowels(completions, **_):
    return [float(sum(word in "aeiou" for word in text.split())) for text in completions]


def brevity(completions, **_):
    """Not every completion has this reward."""
    return [None if "b" in text or "c" in text else -float(len(text.split())) for text in completions]


def early_letters(completions, **_):
    """Nor this one, so that some have none of the two."""
    return [None if "b" in text else float(sum(word < "h" for word in text.split())) for text in completions]


def tokenizer():
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model():
    torch.manual_seed(5)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        )
    )


def prompts():
    # With a fingerprint given, nothing is pickled to make one.
    return Dataset(InMemoryTable.from_pydict({"prompt": PROMPTS}), fingerprint="prompts")


def build(cls, folder, *, reward_funcs=(vowels, brevity), config=GRPOConfig, options=None, **arguments):
    arguments = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "num_generations_eval": 2,
        "max_completion_length": 6,
        "learning_rate": 0.5,
        "optim": "sgd",  # Adam would make steps of 1e-2 from gradients of 1e-8
        "max_steps": 4,
        "logging_steps": 1,
        "seed": 11,
        **arguments,
    }
    args = config(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    return cls(
        model=model(),
        reward_funcs=list(reward_funcs),
        args=args,
        train_dataset=prompts(),
        eval_dataset=prompts(),
        processing_class=tokenizer(),
        **(options or {}),
    )


def trained(cls, folder, **arguments):
    """The trainer after its steps and an evaluation, the losses of both, and the advantages of each generation."""
    trainer = build(cls, folder, **arguments)
    advantages = []
    generate = trainer._generate_and_score_completions

    def recorded(inputs):
        output = generate(inputs)
        logged = list(trainer._logs["advantages"])[-len(inputs) :]
        if trainer.model.training and "trained_on" in trainer._logs["extra"]:
            logged = list(itertools.compress(logged, list(trainer._logs["extra"]["trained_on"])[-len(inputs) :]))
        assert logged == output["advantages"].tolist()
        advantages.append(output["advantages"])
        return output

    trainer._generate_and_score_completions = recorded
    trainer.train()
    evaluation = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, [*losses, evaluation["eval_loss"]], torch.cat(advantages)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Runs of the original by what its arguments say, each made once."""
    runs = {}

    def run(**arguments):
        key = repr(sorted(arguments.items()))
        if key not in runs:
            runs[key] = trained(GRPOTrainer, tmp_path_factory.mktemp("original"), **arguments)
        return runs[key]

    return run


def assert_same_run(own, original, but=()):
    (own_trainer, own_losses, own_advantages), (trainer, losses, advantages) = own, original
    assert len(losses) == 5
    assert any(abs(loss) > 1e-3 for loss in losses)
    torch.testing.assert_close(own_losses, losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(own_advantages, advantages, rtol=0, atol=1e-5)
    for own_parameter, parameter in zip(own_trainer.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(own_parameter, parameter, rtol=0, atol=1e-5)
    for own_entry, entry in zip(own_trainer.state.log_history, trainer.state.log_history, strict=True):
        assert {name for name in own_entry if not name.endswith("frac_advantage_zero")} == set(entry)
        rewards = {name: value for name, value in entry.items() if "reward" in name and name not in but}
        assert {name: own_entry[name] for name in rewards} == pytest.approx(rewards, rel=1e-6, nan_ok=True)


ARGUMENTS = [
    {},
    {"scale_rewards": "batch", "reward_weights": [1.0, 0.5], "reward_funcs": (early_letters, brevity)},
    {"scale_rewards": "none", "reward_weights": [0.25, 2.0]},
    {
        "multi_objective_aggregation": "normalize_then_sum",
        "reward_weights": [1.0, 0.5],
        "reward_funcs": (early_letters, brevity),
    },
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=["group", "batch", "none", "normalize_then_sum"])
def test_without_options_it_trains_as_the_original(arguments, originals, tmp_path):
    assert_same_run(trained(Trainer, tmp_path, **arguments), originals(**arguments))


def test_gdpo_trains_as_the_original_with_normalize_then_sum(originals, tmp_path):
    arguments = dict(ARGUMENTS[3])
    original = originals(**arguments)
    del arguments["multi_objective_aggregation"]
    own = trained(Trainer, tmp_path, options={"multi_objective": "gdpo"}, **arguments)
    # The one metric that looks at multi_objective_aggregation, of which nothing was said.
    assert_same_run(own, original, but=("frac_reward_zero_std", "eval_frac_reward_zero_std"))


def test_rloo_differs_from_the_original_and_says_what_it_logs(originals, tmp_path):
    trainer, losses, advantages = trained(Trainer, tmp_path, options={"multi_objective": "rloo"})
    _, original_losses, original_advantages = originals()
    assert np.abs(np.subtract(losses, original_losses)).max() > 1e-3
    first, original_first = advantages[:8], original_advantages[:8]  # from the same weights, hence the same completions
    assert (first - original_first).abs().max() > 0.1
    torch.testing.assert_close(first.view(2, 4).sum(1), torch.zeros(2), rtol=0, atol=1e-5)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[0]["frac_advantage_zero"] == pytest.approx(float((first == 0).float().mean()))
    assert any("eval_frac_advantage_zero" in entry for entry in trainer.state.log_history)


# ---- the numbers of one generation, with rewards of the test's own ----


def advantages_of(trainer, rewards, lengths=None, *, rank=0, ranks=1):
    """What `_generate_and_score_completions` of one of the processes makes of gathered rewards (N, M)."""
    n = len(rewards) // ranks
    completion_ids = [[5] * length for length in lengths or [2] * n]
    generated = ([[3, 4]] * n, completion_ids, ["c"] * n)
    if isinstance(trainer, GRPOTrainer):
        generated = ([[3, 4]] * n, completion_ids, None, ["c"] * n, None, {}, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_generate", lambda prompts: generated)
        # The trainer's own, so that the mixin's is called first.
        patch.setattr(GRPOTrainer, "_calculate_rewards", lambda *_: rewards.clone())
        patch.setattr(RLOOTrainer, "_calculate_rewards", lambda *_: rewards.clone())
        patch.setattr(type(trainer.accelerator), "process_index", rank)
        return trainer._generate_and_score_completions([{"prompt": "a b"}] * n)["advantages"]


def reward_batches():
    """Rewards (24, 2) in groups of 4: random, some not scored, groups of equal rewards, one or none scored."""
    generator = torch.Generator().manual_seed(8)
    random = torch.randn(24, 2, generator=generator)
    yield "random", random
    unscored = random.clone()
    unscored[torch.rand(24, 2, generator=generator) < 0.3] = torch.nan
    yield "NaN", unscored
    constant = random.clone()
    constant[4:8] = torch.tensor([0.5, -2.0])  # exact in TRL's float32 too
    constant[8:12, 1] = 3.0
    yield "constant", constant
    singleton = random.clone()
    singleton[5:8] = torch.nan  # one rollout of the group is scored
    singleton[8:12] = torch.nan  # none is
    singleton[13:16, 0] = torch.nan
    yield "singleton", singleton


REWARDS = dict(reward_batches())
with_rewards = pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())


def scoring(cls, tmp_path_factory, **arguments):
    trainer = build(cls, tmp_path_factory.mktemp("scoring"), reward_weights=[1.0, 0.5], **arguments)
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    return scoring(GRPOTrainer, tmp_path_factory, num_generations_eval=1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return scoring(Trainer, tmp_path_factory, num_generations_eval=1)


@pytest.fixture(scope="module")
def rloo(tmp_path_factory):
    return scoring(RLOOTrainer, tmp_path_factory, config=RLOOConfig, beta=0.0)


@with_rewards
@pytest.mark.parametrize(
    ("arguments", "method", "rules"),
    [
        ({}, "grpo", {}),
        ({"scale_rewards": "batch"}, "grpo", {"scale": "batch"}),
        ({"scale_rewards": "none"}, "dr_grpo", {}),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "gdpo", {}),
    ],
    ids=["grpo", "batch", "dr_grpo", "gdpo"],
)
def test_preset_has_the_numbers_of_grpo_trainer(rewards, arguments, method, rules, grpo, monkeypatch):
    for name, value in arguments.items():
        monkeypatch.setattr(grpo, name, value)
    value = group_advantages(rewards, group_size=4, weights=[1.0, 0.5], preset="trl", method=method, **rules)
    torch.testing.assert_close(value, advantages_of(grpo, rewards), rtol=1e-6, atol=1e-6)


def test_one_completion_a_prompt_in_evaluation(grpo, mixed, monkeypatch):
    for trainer in (grpo, mixed):
        monkeypatch.setattr(trainer.model, "training", False)
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        for trainer in (grpo, mixed):
            monkeypatch.setattr(trainer, "multi_objective_aggregation", aggregation)
        rewards = REWARDS["NaN"][:8]
        assert advantages_of(grpo, rewards).tolist() == [0.0] * 8
        assert advantages_of(mixed, rewards).tolist() == [0.0] * 8


@with_rewards
def test_preset_has_the_numbers_of_rloo_trainer(rewards, rloo):
    value = group_advantages(rewards, group_size=4, weights=[1.0, 0.5], preset="trl", method="rloo")
    torch.testing.assert_close(value, advantages_of(rloo, rewards), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "NaN", "constant"])
def test_whitening_is_that_of_rloo_trainer(name, rloo, monkeypatch):
    monkeypatch.setattr(rloo, "normalize_advantages", True)
    rewards = REWARDS[name]
    value = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="trl", method="rloo", whiten="rollouts")
    torch.testing.assert_close(value, advantages_of(rloo, rewards), rtol=1e-6, atol=1e-6)


@with_rewards
def test_preset_has_the_numbers_of_async_grpo(rewards):
    groups = rewards.to(torch.float64).view(6, 4, 2)
    expected = []
    for group in groups:
        columns = [[None if value != value else value for value in column.tolist()] for column in group.T]
        expected += asyncio.run(_scores(columns))
    value = group_advantages(rewards.double(), group_size=4, preset="trl-async", method="grpo")
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


async def _scores(columns):
    """Advantages that TRL's asynchronous worker gives one group, from the rewards of each function."""
    n = len(columns[0])
    sequences = [[SimpleNamespace(input_ids=[1], completion_mask=[1], old_log_probs=[0.0])] for _ in range(n)]
    group = RolloutGroup([[]] * n, {}, [[]] * n, [[1]] * n, sequences, [0] * n, [0] * n, 0, 0, [None] * n, [None] * n)
    worker = SimpleNamespace(
        reward_funcs=[lambda column=column, **_: column for column in columns],
        reward_func_names=[str(k) for k in range(len(columns))],
        _env_reward_types=[],
        _provides_rollout_reward=False,
    )
    return [sample.advantage for sample in await _AsyncRolloutLoop._score_group(worker, group)]


def test_equal_rewards_give_exactly_zero_not_rounding(grpo, mixed, monkeypatch):
    for trainer in (grpo, mixed):
        monkeypatch.setattr(trainer, "num_generations", 6)
    rounding = 0.0
    for reward in (0.1, 0.3, 0.6, 0.7, 0.9):
        rewards = torch.full((24, 2), reward)
        assert advantages_of(mixed, rewards).tolist() == [0.0] * 24
        rounding = max(rounding, float(advantages_of(grpo, rewards).abs().max()))
    assert 1e-5 < rounding < 1e-2  # TRL's divisor is 1e-4 then


def test_each_process_gets_its_own_rows(mixed, grpo):
    rewards = REWARDS["random"]
    whole = advantages_of(mixed, rewards)
    for rank in (0, 1):
        rows = advantages_of(mixed, rewards, rank=rank, ranks=2)
        assert torch.equal(rows, whole[12 * rank : 12 * rank + 12])
        torch.testing.assert_close(rows, advantages_of(grpo, rewards, rank=rank, ranks=2), rtol=1e-6, atol=1e-6)


def test_options_are_attributes_read_for_each_generation(mixed, monkeypatch):
    rewards = REWARDS["random"]
    for method in ("rloo", "dr_grpo", "gdpo"):
        monkeypatch.setattr(mixed, "multi_objective", method)
        expected = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="trl", method=method)
        assert torch.equal(advantages_of(mixed, rewards), expected)
    monkeypatch.setattr(mixed, "multi_objective", "grpo")
    monkeypatch.setattr(mixed, "advantage_rules", {"eps": 1e-6, "ddof": 0})
    monkeypatch.setattr(mixed, "reward_weights", torch.tensor([0.0, 3.0]))
    expected = group_advantages(rewards, 4, weights=[0.0, 3.0], eps=1e-6, ddof=0)
    assert torch.equal(advantages_of(mixed, rewards), expected)


def test_rules_of_another_trainer_count_the_tokens_of_the_loss(mixed, monkeypatch):
    rewards = REWARDS["random"]
    lengths = [1 + i % 5 for i in range(24)]
    monkeypatch.setattr(mixed, "advantage_preset", "verl")
    for method in ("opo", "gdpo"):
        monkeypatch.setattr(mixed, "multi_objective", method)
        expected = group_advantages(rewards, 4, weights=[1.0, 0.5], lengths=lengths, preset="verl", method=method)
        assert torch.equal(advantages_of(mixed, rewards, lengths), expected)


def test_what_is_not_scored_is_so_with_every_preset(mixed, monkeypatch):
    rewards = REWARDS["singleton"]
    monkeypatch.setattr(mixed, "advantage_preset", "torchrl")  # whose own rule is NaN for the group, twice
    expected = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="torchrl", nan="skip", singleton="zero")
    assert expected.isfinite().all()
    assert torch.equal(advantages_of(mixed, rewards), expected)
    monkeypatch.setattr(mixed, "advantage_rules", {"nan": "zero"})
    expected = group_advantages(rewards, 4, weights=[1.0, 0.5], preset="torchrl", nan="zero")
    assert torch.equal(advantages_of(mixed, rewards), expected)


def test_an_infinite_reward_raises_with_its_function(mixed):
    rewards = REWARDS["random"].clone()
    rewards[3, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"reward_funcs: .* from brevity"):
        advantages_of(mixed, rewards)


# ---- fewer rollouts and tokens ----


def spread(completions, **_):
    """No two completions have the same."""
    return [sum(WORDS.index(word) * 1.37**place for place, word in enumerate(text.split())) for text in completions]


def sometimes(completions, **_):
    """One in ten has this."""
    return [value if int(value) % 10 == 0 else None for value in spread(completions)]


TWO_STEPS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4}


def sampled(folder, down_sampling, cls=Trainer, **arguments):
    """A trainer with entropies and log-probabilities that differ, in training."""
    trainer = build(cls, folder, options={"down_sampling": down_sampling}, **{"reward_funcs": [spread], **arguments})
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(4)
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


@pytest.mark.parametrize(
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
def test_what_cannot_be_sampled_is_an_error_at_construction(arguments, method, error, message, tmp_path):
    with pytest.raises(error, match=message):
        build(Trainer, tmp_path, options={"down_sampling": method}, **arguments)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({}, {"multi_objective": "gpdo"}, r"method: expected one of grpo, dr_grpo, rloo, gdpo .* got 'gpdo'"),
        ({}, {"advantage_preset": "trl2"}, r"preset: expected one of trl, .* got 'trl2'"),
        ({}, {"advantage_rules": {"epsilon": 1}}, r"advantage_rules: expected rules among aggregate.* got 'epsilon'"),
        ({}, {"advantage_rules": {"baseline": "mean"}}, r"baseline: expected one of .* got 'mean'"),
        ({"scale_rewards": "batch"}, {"multi_objective": "rloo"}, r"scale_rewards='batch' contradicts rloo"),
        ({"scale_rewards": "none"}, {"multi_objective": "gdpo"}, r"scale_rewards='none' contradicts gdpo"),
        ({"scale_rewards": "none"}, {"advantage_rules": {"scale": "batch"}}, r"scale_rewards='none' contradicts"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            {"multi_objective": "grpo"},
            r"multi_objective_aggregation=.* contradicts grpo of preset 'trl'",
        ),
    ],
)
def test_contradictions_are_errors_at_construction(arguments, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(Trainer, tmp_path, options=options, **arguments)


def test_scale_rewards_is_followed_where_it_contradicts_nothing(tmp_path):
    def rules(options, **arguments):
        return build(Trainer, tmp_path, options=options, **arguments)._advantage_rules()

    assert rules({"multi_objective": "grpo"}, scale_rewards="batch").scale == "batch"
    assert rules({"multi_objective": "dr_grpo"}, scale_rewards="none").scale == "none"
    assert rules({"multi_objective": "rloo"}, scale_rewards="none").scale == "none"
    assert rules({"advantage_rules": {"scale": "batch"}}).scale == "batch"
    assert rules({"advantage_preset": "verl"}, scale_rewards="none").eps == 1e-6


def test_an_unknown_version_is_refused_unless_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "CHECKED_VERSIONS", ("1.15.0",))
    with pytest.raises(RuntimeError, match=r"trl 1\.16\.0 is installed.*any_version=True"):
        build(Trainer, tmp_path)
    build(Trainer, tmp_path, options={"any_version": True})


def test_other_trainers_are_refused(tmp_path):
    class Other(ours.MultiObjectiveMixin, RLOOTrainer):
        pass

    with pytest.raises(TypeError, match="Other: expected a GRPOTrainer"):
        build(Other, tmp_path, config=RLOOConfig)
