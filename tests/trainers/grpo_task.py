"""A tiny real model and task for TRL's trainers; imported before TRL is, for what it sets."""

from __future__ import annotations

import itertools
import os
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
# Their deprecations are no business of these tests.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from datasets.table import InMemoryTable  # noqa: E402
from morlfast.integrations.trl import MultiObjectiveMixin  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
PROMPTS = [f"{'y ' * place}{word} z" for place, word in enumerate(WORDS[3:11])]  # of different lengths


class Trainer(MultiObjectiveMixin, GRPOTrainer):
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
