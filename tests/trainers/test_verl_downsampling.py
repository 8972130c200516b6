"""D3S and PODS in verl 0.9.1: methods of its V1 trainer, its losses, its configuration; over a queue in memory."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed
import yaml
from hydra import compose, initialize_config_module
from morlfast.downsampling import D3S, PODS
from morlfast.integrations import _verl_downsampling as downsampling
from morlfast.integrations import verl as ours
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from test_verl import KEYS, batch, legacy_data, scores_of
from test_verl import Queue as QueueOfRows
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import Metric
from verl.workers.utils import losses


def composed(*overrides: str) -> DictConfig:
    """verl's own, as its command line makes it."""
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


@functools.cache
def defaults() -> DictConfig:
    return composed()


def configuration(*overrides: str) -> DictConfig:
    """The same without composing it anew, which takes a second."""
    config = copy.deepcopy(defaults())
    micro = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"
    for override in ("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=8", micro, *overrides):
        key, _, value = override.removeprefix("+").partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value), force_add=override.startswith("+"))
    return config


class Queue(QueueOfRows):
    """Keeps what is written, as TransferQueue does."""

    def __init__(self, inputs: dict, fields: dict[str, list] | None = None, keys: list[str] | None = None) -> None:
        super().__init__(inputs, fields or {})
        self.keys = keys or self.keys
        draw = torch.Generator().manual_seed(5)
        for row, length in zip(self.rows, self.lengths, strict=True):
            row["loss_mask"] = row["response_mask"]
            row["entropy"] = 3 * torch.rand(length, generator=draw)
            row["old_log_probs"] = -torch.rand(length, generator=draw)
            row["prompts"], row["responses"] = torch.ones(3, dtype=torch.int64), torch.ones(length, dtype=torch.int64)
        self.meta = KVBatchMeta(
            keys=list(self.keys), tags=[{"seq_len": 3 + length} for length in self.lengths], partition_id="train"
        )

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
        super().kv_batch_put(keys, partition_id, fields)
        for name in fields.keys():  # noqa: SIM118
            for row, values in zip(self.rows, fields[name].unbind(), strict=True):
                assert row.get(name, values).shape == values.shape
                row[name] = values
        return KVBatchMeta(keys=list(keys), tags=self.meta.tags, partition_id=partition_id)

    def padded(self, name: str, width: int = 24) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(row[name], (0, width - len(row[name]))) for row in self.rows])

    def fetch(self, meta: KVBatchMeta) -> TensorDict:
        """What a worker gets: rows and the batch's other entries."""
        rows = [self.rows[self.keys.index(key)] for key in meta.keys]
        names = ["prompts", "responses", "response_mask", "loss_mask", "old_log_probs", "advantages", "returns"]
        fields = {
            name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged) for name in names
        }
        fields["row"] = torch.tensor([self.keys.index(key) for key in meta.keys])
        data = TensorDict(fields, batch_size=len(rows))
        tu.assign_non_tensor(data, **meta.extra_info)
        return data


class Workers:
    """The actor's workers, of which there are two: what they do with a batch, without a model."""

    def __init__(self, queue: Queue, config: DictConfig, dp: int = 2) -> None:
        self.queue, self.dp, self._dispatch_info = queue, dp, {"actor": [0, 1][:dp]}
        self.actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        draw = torch.Generator().manual_seed(6)
        # One parameter a token, of each row.
        shapes = [row["old_log_probs"] for row in queue.rows]
        self.log_probs = [(old + 0.02 * torch.randn(len(old), generator=draw)).requires_grad_() for old in shapes]
        self.entropies = [3 * torch.rand(len(old), generator=draw) for old in shapes]
        self.mini_batches: list[list[int]] = []
        self.metrics: list[dict] = []

    def update_actor(self, meta: KVBatchMeta) -> TensorDict:
        """TrainingWorker.train_mini_batch of each rank, with verl's iterator."""
        data = self.queue.fetch(meta)
        mini, part = data["mini_batch_size"] // self.dp, len(data) // self.dp
        ranks = [tu.index_select_tensor_dict(data, torch.arange(i * part, (i + 1) * part)) for i in range(self.dp)]
        for parts in zip(*(tu.make_iterator(rank, mini, epochs=1, seed=1) for rank in ranks), strict=True):
            self.mini_batches.append(torch.cat([one["row"] for one in parts]).tolist())
            tokens = sum(int(one["loss_mask"].values().sum()) for one in parts)
            for one in parts:
                self.loss(one, tokens).backward()
        assert len(data) == part * self.dp
        return tu.get_tensordict({}, {"metrics": {"mfu": [0.0]}})

    def loss(self, data: TensorDict, tokens: int) -> torch.Tensor:
        """One micro-batch, with the numbers that FSDPEngine.forward_backward_batch adds."""
        tu.assign_non_tensor(data, batch_num_tokens=tokens, dp_size=self.dp)
        prompt = torch.zeros(3)

        def nested(rows_of: list[torch.Tensor]) -> torch.Tensor:  # a model's outputs are one token early
            values = [torch.cat([prompt[:2], rows_of[row], prompt[:1]]) for row in data["row"].tolist()]
            return torch.nested.as_nested_tensor(values, layout=torch.jagged)

        output = {"log_probs": nested(self.log_probs)}
        if data["calculate_entropy"]:
            output["entropy"] = nested(self.entropies)
        loss, metrics = losses.ppo_loss(self.actor, output, data)
        self.metrics.append(metrics)
        return loss / self.dp  # gradients are averaged over ranks

    def gradients(self) -> torch.Tensor:
        rows = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.log_probs]
        return torch.stack([torch.nn.functional.pad(row, (0, 24 - len(row))) for row in rows])


def trainer_of(config: DictConfig, queue: Queue, monkeypatch: pytest.MonkeyPatch, step: int = 1) -> PPOTrainerSync:
    """V1's trainer without what needs GPUs."""
    monkeypatch.setattr(trainer_base, "tq", queue)
    trainer = object.__new__(PPOTrainerSync)
    trainer.config, trainer.global_steps, trainer.total_training_steps = config, step, 10
    trainer.actor_rollout_wg = Workers(queue, config)
    return trainer


def run(
    overrides: list[str], queue: Queue, monkeypatch: pytest.MonkeyPatch, step: int = 1, update: bool = False
) -> tuple[PPOTrainerSync, dict]:
    trainer, metrics = trainer_of(configuration(*overrides), queue, monkeypatch, step), {}
    meta = trainer._compute_advantage(queue.meta, metrics)
    if update:
        assert trainer._update_actor(meta, metrics) is meta
    return trainer, metrics


def uids_of(inputs: dict) -> list[list[int]]:
    return [np.flatnonzero(inputs["index"] == uid).tolist() for uid in dict.fromkeys(inputs["index"])]


def largest_variance(values: torch.Tensor, k: int) -> float:
    """By all splits between the largest and the smallest."""
    ordered = values.double().sort().values
    choices = (torch.cat([ordered[:low], ordered[len(ordered) - (k - low) :]]) for low in range(k + 1))
    return max(float(choice.var(correction=0)) for choice in choices)


def scalars(queue: Queue) -> torch.Tensor:
    """Each row's advantage, NaN for a row without tokens."""
    advantages, mask = queue.padded("advantages"), queue.padded("loss_mask") != 0
    first = advantages[torch.arange(len(mask)), mask.int().argmax(1)]
    return torch.where(mask.any(1), first, torch.nan)


# ---- options ----


def test_the_command_lines_options() -> None:
    assert downsampling.down_sampling(defaults()) is None
    overrides = ["+morlfast.d3s.rollouts=[64,256]", "+morlfast.d3s.ratio=[0.1,1]", "+morlfast.d3s.at_least=2"]
    config = composed("algorithm.adv_estimator=grpo", "+algorithm.gdpo_reward_keys=[a,b]", *overrides)
    d3s = downsampling.down_sampling(config)
    assert isinstance(d3s, D3S)
    assert d3s.schedule(0.25) == (112, pytest.approx(0.325))
    assert (d3s.at_least, d3s.rollout_scope, d3s.entropy) == (2, "batch", "old")
    assert config.morlfast == configuration(*overrides).morlfast
    pods = downsampling.down_sampling(configuration("+morlfast.pods.k=4", "+morlfast.pods.renormalize=False"))
    assert isinstance(pods, PODS)
    assert (pods.k, pods.method, pods.renormalize) == (4, "max_variance", False)


CURRENT = ["+morlfast.d3s.ratio=0.5", "+morlfast.d3s.entropy=current"]
CALCULATED = [*CURRENT, "actor_rollout_ref.actor.calculate_entropy=True"]
REFUSED = {
    "two": (["+morlfast.d3s.ratio=0.5", "+morlfast.pods.k=4"], r"^morlfast: expected one of d3s, pods, got d3s, pods$"),
    "neither": (["+morlfast.dapo.k=4"], r"^morlfast: expected one of d3s, pods, got dapo$"),
    "unknown": (
        ["+morlfast.d3s.ratio=0.5", "+morlfast.d3s.top=3"],
        r"^morlfast\.d3s: expected options of .*, got top$",
    ),
    "no options": (["+morlfast.pods=4"], r"^morlfast\.pods: expected options k, method, renormalize, got 4$"),
    "no k": (["+morlfast.pods.method=top"], r"^morlfast\.pods\.k: expected a value, got none$"),
    "three": (
        ["+morlfast.d3s.ratio=[0.1,0.2,0.3]"],
        r"^morlfast\.d3s\.ratio: .*\[start, end\], got \[0\.1, 0\.2, 0\.3\]$",
    ),
    "bypass": (
        ["+morlfast.d3s.ratio=0.5", "algorithm.rollout_correction.bypass_mode=True"],
        r"bypass_mode=False, got True",
    ),
    "no entropies": (CURRENT, r"expected actor_rollout_ref\.actor\.calculate_entropy=True, got False"),
    "groups": (
        [*CALCULATED, "+morlfast.d3s.token_scope=group"],
        r"token_scope: expected batch or sequence .* got group",
    ),
    "at least": ([*CALCULATED, "+morlfast.d3s.at_least=1"], r"expected at_least=0, .* a ratio above 0"),
    "quantile": ([*CALCULATED, "+morlfast.d3s.threshold=quantile"], r"kept: expected .* threshold=exact, .* a ratio"),
    "dynamic context parallel": (
        [*CALCULATED, "+actor_rollout_ref.actor.megatron.dynamic_context_parallel=True"],
        r"entropy=current: expected .*megatron\.dynamic_context_parallel=False, got True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_loaded(case) -> None:
    overrides, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        PPOTrainerSync(configuration(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["+morlfast.pods.k=4", "algorithm.rollout_correction.bypass_mode=True"],
        ["+morlfast.d3s.rollouts=9", "+morlfast.d3s.ratio=1", "algorithm.rollout_correction.bypass_mode=True"],
        [*CALCULATED, "algorithm.rollout_correction.bypass_mode=True"],
        [*CURRENT, "actor_rollout_ref.actor.entropy_coeff=0.01"],
        [*CALCULATED, "+morlfast.d3s.at_least=1", "+morlfast.d3s.loss_denominator=all"],
        [*CALCULATED, "+morlfast.d3s.threshold=quantile", "+morlfast.d3s.loss_denominator=all"],
        ["+morlfast.d3s.ratio=0.5", "+morlfast.d3s.threshold=quantile"],
        ["+morlfast.d3s.ratio=0.5", "+actor_rollout_ref.actor.megatron.dynamic_context_parallel=True"],
        [*CALCULATED, "+actor_rollout_ref.actor.megatron.dynamic_context_parallel=False"],
    ],
)
def test_what_can_be_is_not(overrides) -> None:
    assert downsampling.down_sampling(configuration(*overrides)) is not None


def test_the_older_trainer_refuses() -> None:
    with pytest.raises(ValueError, match=r"V1 trainer, trainer\.use_v1=True"):
        ray_trainer.RayPPOTrainer(configuration("+morlfast.pods.k=4"), None, {}, None)


class Later(ray_trainer.RayPPOTrainer):
    """Does not call its base's __init__, as verl's one-step-off and fully asynchronous trainers do not."""

    def __init__(self, tokenizer: object = None, config: object = None) -> None:
        self.tokenizer, self.config = tokenizer, config


class Separate(ray_trainer.RayPPOTrainer):
    def __init__(self, config: object, tokenizer: object) -> None:
        self.config, self.tokenizer = config, tokenizer


class Latest(Separate):
    pass


@pytest.mark.parametrize("trainer", [Separate, Latest])
def test_trainers_derived_from_the_older_one_refuse(trainer) -> None:
    with pytest.raises(ValueError, match=rf"use_v1=True, for d3s and pods, got {Separate.__name__}$"):
        trainer(configuration("+morlfast.pods.k=4"), None)
    with pytest.raises(ValueError, match=r"use_v1=True"):
        Later(config=configuration("+morlfast.pods.k=4"))
    made = trainer(defaults(), "tokenizer")
    assert (made.config, made.tokenizer) == (defaults(), "tokenizer")
    assert Later("first", config=defaults()).tokenizer == "first"


def test_trainers_that_were_derived_before_refuse_too() -> None:
    class Base:
        def __init__(self, config: object) -> None:
            self.config = config

    class Derived(Base):
        def __init__(self, config: object) -> None:
            self.config = config

    downsampling.extend_legacy_trainer(SimpleNamespace(RayPPOTrainer=Base))
    for trainer in (Base, Derived):
        with pytest.raises(ValueError, match=rf"got {trainer.__name__}$"):
            trainer(configuration("+morlfast.pods.k=4"))
        assert trainer(defaults()).config == defaults()


def test_verls_asynchronous_trainers_refuse() -> None:
    module = pytest.importorskip("verl.experimental.one_step_off_policy.ray_trainer")
    with pytest.raises(ValueError, match=r"use_v1=True, for d3s and pods, got OneStepOffRayTrainer$"):
        module.OneStepOffRayTrainer(configuration("+morlfast.pods.k=4"), None, {}, None)


def test_a_trainer_without_one_of_the_methods_is_left_as_it_is() -> None:
    class Trainer:
        def _compute_advantage(self, batch: object, metrics: dict) -> object: ...

        def _update_actor(self, batch: object, metrics: dict) -> object: ...

    module = SimpleNamespace(PPOTrainer=Trainer, compute_advantage_for_multi_trajectories=len)
    before = dict(vars(Trainer))
    with pytest.raises(AttributeError, match="_update_critic"):
        downsampling.extend_trainer(module, ours._rewards_of)
    assert dict(vars(Trainer)) == before
    assert module.compute_advantage_for_multi_trajectories is len


# ---- D3S ----


@pytest.mark.parametrize("step", [1, 6, 10])
@pytest.mark.parametrize("scope", ["batch", "group", "sequence"])
def test_d3s_selects_rollouts_and_tokens(scope, step, monkeypatch) -> None:
    inputs = batch("random")
    queue, plain = Queue(inputs), Queue(inputs)
    run([], plain, monkeypatch)
    options = ["+morlfast.d3s.rollouts=[10,20]", "+morlfast.d3s.ratio=[0.2,0.6]", f"+morlfast.d3s.token_scope={scope}"]
    _, metrics = run(options, queue, monkeypatch, step)
    assert torch.equal(queue.padded("advantages"), plain.padded("advantages"))  # of all rollouts
    progress = (step - 1) / 10
    k, ratio = round(10 + 10 * progress), 0.2 + 0.4 * progress
    whole, kept = inputs["response_mask"] != 0, queue.padded("response_mask")
    assert torch.equal(kept, queue.padded("loss_mask"))
    assert kept.dtype == torch.int64
    advantages = scalars(plain)
    scored = ~advantages.isnan()
    scores = plain.padded("advantages").abs() * plain.padded("entropy")
    rows = kept.any(1)
    assert metrics["morlfast/kept_rollouts"] == pytest.approx(k / int(scored.sum()))
    # Which rows: those that have tokens where each sequence keeps some.
    if scope == "sequence":
        assert rows.sum() == k
        assert float(advantages[rows].double().var(correction=0)) == pytest.approx(
            largest_variance(advantages[scored], k)
        )
    selected = largest_rows(advantages, k)
    assert not (kept.bool() & ~(whole & selected[:, None])).any()
    parts = {"batch": [list(range(48))], "group": uids_of(inputs), "sequence": [[row] for row in range(48)]}[scope]
    for part in parts:
        valid = (whole & selected[:, None])[part]
        count = int(np.ceil(ratio * int(valid.sum()) * (1 - 2**-50)))
        assert int(kept[part].sum()) == count
        if count:
            assert scores[part][kept[part] == 1].min() >= scores[part][valid].sort().values[-count]
    assert metrics["morlfast/kept_tokens"] == pytest.approx(int(kept.sum()) / int(whole.sum()))


def largest_rows(values: torch.Tensor, k: int) -> torch.Tensor:
    """(N,) bool, with values all different."""
    order = [row for row in values.argsort().tolist() if not values[row].isnan()]
    choices = [order[:low] + order[len(order) - (k - low) :] for low in range(k + 1)]
    best = max(choices, key=lambda rows: float(values[rows].double().var(correction=0)))
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, torch.tensor(best), True)


def test_d3s_within_groups(monkeypatch) -> None:
    inputs = batch("random")
    queue, plain = Queue(inputs), Queue(inputs)
    run([], plain, monkeypatch)
    options = ["+morlfast.d3s.rollouts=3", "+morlfast.d3s.ratio=1", "+morlfast.d3s.rollout_scope=group"]
    run(options, queue, monkeypatch)
    assert not any("entropy" in fields for fields in queue.asked)  # every token is kept
    rows, advantages = queue.padded("response_mask").any(1), scalars(plain)
    for group in uids_of(inputs):
        values = advantages[group][~advantages[group].isnan()]
        chosen = [row for row in group if rows[row]]
        assert len(chosen) == 3
        assert float(advantages[chosen].double().var(correction=0)) == pytest.approx(largest_variance(values, 3))
    whole = torch.where(rows[:, None], inputs["response_mask"], 0)
    assert torch.equal(queue.padded("response_mask"), whole)


def test_with_all_as_the_denominator_masks_stay_and_advantages_vanish(monkeypatch) -> None:
    inputs = batch("random")
    queue, kept = Queue(inputs), Queue(inputs)
    options = ["+morlfast.d3s.rollouts=10", "+morlfast.d3s.ratio=0.3"]
    run(options, kept, monkeypatch)
    run([*options, "+morlfast.d3s.loss_denominator=all"], queue, monkeypatch)
    for name in ("response_mask", "loss_mask"):
        assert torch.equal(queue.padded(name), inputs["response_mask"])
    expected = torch.where(kept.padded("response_mask") != 0, kept.padded("advantages"), 0)
    assert torch.equal(queue.padded("advantages"), expected)


def test_a_trainer_with_its_own_advantages_says_that_nothing_was_selected(monkeypatch) -> None:
    def own(data: DataProto, **options: object) -> DataProto:
        data.batch["advantages"] = data.batch["returns"] = data.batch["token_level_rewards"]
        return data

    monkeypatch.setattr(trainer_base, "compute_advantage_for_multi_trajectories", own)
    with pytest.raises(RuntimeError, match=r"PPOTrainerSync\._compute_advantage .* nothing could be selected"):
        run(["+morlfast.pods.k=4"], Queue(batch("random")), monkeypatch)


# ---- PODS ----


@pytest.mark.parametrize("renormalize", [True, False])
def test_pods_selects_and_normalizes_what_it_has_selected(renormalize, monkeypatch) -> None:
    inputs = batch("random")
    queue, plain = Queue(inputs), Queue(inputs)
    run([], plain, monkeypatch)
    _, metrics = run(["+morlfast.pods.k=4", f"+morlfast.pods.renormalize={renormalize}"], queue, monkeypatch)
    rows = queue.padded("response_mask").any(1)
    token_rewards = queue.padded("rm_scores")
    rewards = token_rewards.sum(1, dtype=torch.float64)
    scored = inputs["response_mask"].any(1)
    for group in uids_of(inputs):
        chosen = [row for row in group if rows[row]]
        assert len(chosen) == 4
        values = rewards[[row for row in group if scored[row]]]
        assert float(rewards[chosen].var(correction=0)) == pytest.approx(largest_variance(values, 4))
    assert torch.equal(queue.padded("response_mask"), torch.where(rows[:, None], inputs["response_mask"], 0))
    assert torch.equal(queue.padded("loss_mask"), queue.padded("response_mask"))
    assert metrics["morlfast/kept_rollouts"] == pytest.approx(24 / int(scored.sum()))
    if renormalize:
        alone, _ = core_algos.compute_grpo_outcome_advantage(
            token_rewards[rows], inputs["response_mask"][rows], inputs["index"][rows.numpy()]
        )
        assert torch.equal(queue.padded("advantages")[rows], alone)
        assert torch.equal(queue.padded("returns")[rows], alone)
        assert (queue.padded("advantages")[~rows] == 0).all()
        assert not torch.equal(alone, plain.padded("advantages")[rows])
    else:
        assert torch.equal(queue.padded("advantages"), plain.padded("advantages"))


@pytest.mark.parametrize("reward_model", ["compute_score", "colocated"])
def test_pods_with_gdpo_takes_the_rewards_of_the_selected_alone(reward_model, monkeypatch) -> None:
    inputs = batch("random")
    scores = scores_of(48)
    if reward_model == "colocated":  # writes a field for each
        fields = {"extra_fields": [{}] * 48, **{key: [float(x) for x in scores[key]] for key in KEYS}}
    else:
        fields = {"extra_fields": [{"reward_extra_info": {key: scores[key][i] for key in KEYS}} for i in range(48)]}
    queue = Queue(inputs, fields)
    gdpo = [f"+algorithm.gdpo_reward_keys=[{','.join(KEYS)}]", "algorithm.adv_estimator=morlfast_gdpo"]
    run(["+morlfast.pods.k=4", *gdpo], queue, monkeypatch)
    rows = queue.padded("response_mask").any(1)
    part = {name: values[rows.numpy() if name == "index" else rows] for name, values in inputs.items()}
    data = legacy_data(part, {key: scores[key][rows.numpy()] for key in KEYS})
    config = configuration(*gdpo).algorithm
    expected = ray_trainer.compute_advantage(data, "gdpo", config=config).batch["advantages"]
    mask = part["response_mask"] != 0
    torch.testing.assert_close(queue.padded("advantages")[rows][mask], expected[mask], rtol=2e-6, atol=2e-6)


# ---- rows that are no rollouts of their own ----


@pytest.mark.parametrize("options", [["+morlfast.pods.k=2"], ["+morlfast.d3s.rollouts=6", "+morlfast.d3s.ratio=1"]])
def test_outputs_of_one_session_go_together(options, monkeypatch) -> None:
    """verl has the advantage of a session from its last output; padding is of no group at all."""
    inputs = batch("random")
    inputs["response_mask"][:, 0] = 1
    inputs["response_mask"][-2:] = 0
    inputs["token_level_rewards"][-2:] = 0
    groups = uids_of(inputs)
    session = {row: f"{inputs['index'][row]}_{i // 2}_{1 - i % 2}" for group in groups for i, row in enumerate(group)}
    uids = inputs["index"].copy()
    for i in (46, 47):
        session[i], uids[i] = f"pad_{i}_0", "pad"
    inputs = {**inputs, "index": uids}
    queue = Queue(inputs, keys=[session[row] for row in range(48)])
    run(options, queue, monkeypatch)
    rows = queue.padded("response_mask").any(1)
    assert not rows[46:].any()
    sessions = [key.rsplit("_", 1)[0] for key in queue.keys]
    chosen = {name for name, kept in zip(sessions, rows.tolist(), strict=True) if kept}
    assert all(kept == (name in chosen) for name, kept in zip(sessions, rows.tolist(), strict=True))
    per_group = [len({name for name in chosen if name.startswith(uid)}) for uid in dict.fromkeys(uids) if uid != "pad"]
    if "pods" in options[0]:
        assert per_group == [2] * 6
    else:
        assert sum(per_group) == 6


def test_keys_of_other_agent_loops_are_sessions_of_their_own() -> None:
    final, last = downsampling._final_rows(["a_0_1", "a_0_0", "a_1_0", "b", "c_0", "d_e_f", "a_0_10"])
    assert last.tolist() == [6, 6, 2, 3, 4, 5, 6]
    assert final.tolist() == [False, False, True, True, True, True, True]


# ---- the update ----


def actor(mini: int) -> list[str]:
    """Mini-batches of 8 x mini rows."""
    return [f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}", "actor_rollout_ref.actor.clip_ratio=100"]


UNCLIPPED = ["actor_rollout_ref.actor.clip_ratio_low=100", "actor_rollout_ref.actor.clip_ratio_high=100"]
UNCLIPPED += ["actor_rollout_ref.actor.clip_ratio_c=1000000.0"]


def policy_gradient(trainer: PPOTrainerSync, queue: Queue, advantages: torch.Tensor) -> torch.Tensor:
    """-A exp(log pi - log pi_old) at every token, not divided by anything."""
    log_probs = [x.detach() for x in trainer.actor_rollout_wg.log_probs]
    new = torch.stack([torch.nn.functional.pad(x, (0, 24 - len(x))) for x in log_probs])
    return -advantages * (new - queue.padded("old_log_probs")).exp()


@pytest.mark.parametrize("options", [["+morlfast.pods.k=4"], ["+morlfast.d3s.rollouts=20", "+morlfast.d3s.ratio=0.4"]])
def test_updates_are_of_the_rows_that_have_tokens(options, monkeypatch) -> None:
    """24 rows of 48 for PODS: three mini-batches of eight, each divided by its own tokens."""
    queue = Queue(batch("random"))
    trainer, metrics = run([*options, *actor(1), *UNCLIPPED], queue, monkeypatch, update=True)
    mask = queue.padded("response_mask")
    rows = mask.any(1)
    mini_batches = trainer.actor_rollout_wg.mini_batches
    updated = list(itertools.chain(*mini_batches))
    assert len(set(updated)) == len(updated) == metrics["morlfast/update_rows"] == -(-int(rows.sum()) // 8) * 8
    assert rows[updated].sum() == rows.sum()
    fillers = [row for row in updated if not rows[row]]
    left = [row for row in range(48) if row not in updated]
    assert max([queue.lengths[row] for row in fillers], default=0) <= min(queue.lengths[row] for row in left)
    if "pods" in options[0]:
        assert len(mini_batches) == 3
        assert not fillers
    gradient = policy_gradient(trainer, queue, queue.padded("advantages")) * mask
    expected = torch.zeros_like(gradient)
    for mini_batch in mini_batches:
        assert mask[mini_batch].any()
        expected[mini_batch] = gradient[mini_batch] / mask[mini_batch].sum()
    torch.testing.assert_close(trainer.actor_rollout_wg.gradients(), expected, rtol=1e-5, atol=1e-8)
    assert expected.any()


@pytest.mark.parametrize(("mode", "mini"), [("seq-mean-token-mean", 6), ("seq-mean-token-mean", 1), ("token-mean", 6)])
def test_rows_without_tokens_that_make_a_step_smaller_are_warned_of_once(mode, mini, monkeypatch, caplog) -> None:
    """24 rows are selected of 48: no other is filled in for mini-batches of 8, half of them for one of 48."""
    queue = Queue(batch("random"))
    options = ["+morlfast.pods.k=4", f"actor_rollout_ref.actor.loss_agg_mode={mode}", *actor(mini), *UNCLIPPED]
    with caplog.at_level(logging.WARNING):
        trainer, metrics = run(options, queue, monkeypatch, update=True)
        trainer._update_actor(queue.meta, metrics)
    said = [record.getMessage() for record in caplog.records if "seq-mean" in record.getMessage()]
    if mode == "token-mean" or mini == 1:
        assert not said
        return
    assert len(said) == 1
    assert "_update_actor has a seq-mean loss_agg_mode, and 24 of its 48 rows have no token" in said[0]
    assert "0.5 times" in said[0]
    mask = queue.padded("response_mask")
    gradient = policy_gradient(trainer, queue, queue.padded("advantages")) * mask / mask.sum(1, keepdim=True).clamp(1)
    # Of two updates, each divided by all 48.
    torch.testing.assert_close(trainer.actor_rollout_wg.gradients(), 2 * gradient / 48, rtol=1e-5, atol=1e-8)


def test_with_all_as_the_denominator_every_row_is_updated(monkeypatch) -> None:
    inputs = batch("random")
    queue = Queue(inputs)
    options = ["+morlfast.d3s.rollouts=20", "+morlfast.d3s.ratio=0.4", "+morlfast.d3s.loss_denominator=all"]
    trainer, metrics = run([*options, *actor(6), *UNCLIPPED], queue, monkeypatch, update=True)
    assert sorted(trainer.actor_rollout_wg.mini_batches[0]) == list(range(48))
    assert "morlfast/update_rows" not in metrics
    gradient = policy_gradient(trainer, queue, queue.padded("advantages")) / inputs["response_mask"].sum()
    torch.testing.assert_close(trainer.actor_rollout_wg.gradients(), gradient, rtol=1e-5, atol=1e-8)
    kept = (trainer.actor_rollout_wg.gradients() != 0).sum()
    assert int(kept) / int(inputs["response_mask"].sum()) == pytest.approx(metrics["morlfast/kept_tokens"], abs=1e-6)


def test_without_options_an_update_is_verls(monkeypatch) -> None:
    inputs = batch("random")
    queue = Queue(inputs)
    trainer, metrics = run([*actor(6), *UNCLIPPED], queue, monkeypatch, update=True)
    assert not [name for name in metrics if "morlfast" in name]
    gradient = policy_gradient(trainer, queue, queue.padded("advantages")) * inputs["response_mask"]
    torch.testing.assert_close(
        trainer.actor_rollout_wg.gradients(), gradient / inputs["response_mask"].sum(), rtol=1e-5, atol=1e-8
    )


def test_nothing_is_updated_where_nothing_is_selected(monkeypatch) -> None:
    queue = Queue(batch("random"))
    options = ["+morlfast.d3s.rollouts=0", "+morlfast.d3s.ratio=0.4"]
    trainer, metrics = run([*options, *actor(1)], queue, monkeypatch, update=True)
    assert not trainer.actor_rollout_wg.mini_batches
    assert (metrics["morlfast/update_rows"], metrics["morlfast/kept_tokens"]) == (0, 0)


def test_a_critic_learns_from_the_same_rows(monkeypatch) -> None:
    queue = Queue(batch("random"))
    trainer, metrics = run(["+morlfast.pods.k=2", "critic.ppo_mini_batch_size=2"], queue, monkeypatch)
    seen = []

    class Critic:
        def train_mini_batch(self, meta: KVBatchMeta) -> SimpleNamespace:
            seen.extend(meta.keys)
            return SimpleNamespace(get=lambda: {"metrics": {"mfu": [0.0]}})

    trainer.critic_wg = Critic()
    assert trainer._update_critic(queue.meta, metrics) is queue.meta
    rows = queue.padded("response_mask").any(1)
    assert {queue.keys[row] for row in rows.nonzero()} <= set(seen)
    assert len(seen) == 16


# ---- the current policy's entropies ----


@pytest.mark.parametrize("denominator", ["kept", "all"])
@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_workers_select_by_their_own_entropies(scope, denominator, monkeypatch) -> None:
    inputs = batch("random")
    queue = Queue(inputs)
    options = [*CALCULATED, f"+morlfast.d3s.token_scope={scope}", f"+morlfast.d3s.loss_denominator={denominator}"]
    trainer, metrics = run([*options, *actor(6), *UNCLIPPED], queue, monkeypatch, update=True)
    assert not any("entropy" in fields for fields in queue.asked)
    assert metrics["morlfast/kept_tokens"] == 1
    workers = trainer.actor_rollout_wg
    mask = inputs["response_mask"] != 0
    entropies = torch.stack([torch.nn.functional.pad(x, (0, 24 - len(x))) for x in workers.entropies])
    scores = torch.where(mask, queue.padded("advantages").abs() * entropies, -1)
    rows = workers.mini_batches[0]
    parts = [rows[:24], rows[24:]] if scope == "batch" else [[row] for row in rows]  # micro-batches
    kept = torch.zeros_like(mask)
    for part in parts:
        count = -(-int(mask[part].sum()) // 2)
        flat = scores[part].flatten().argsort(descending=True, stable=True)[:count]
        inside = torch.zeros(len(part) * 24, dtype=torch.bool)
        inside[flat] = True
        kept[part] = inside.reshape(len(part), 24)
    gradient = policy_gradient(trainer, queue, queue.padded("advantages")) * kept
    tokens = int(mask.sum()) * (0.5 if denominator == "kept" else 1)
    torch.testing.assert_close(workers.gradients(), gradient / tokens, rtol=1e-5, atol=1e-8)
    shares = [micro["actor/morlfast_kept_tokens"] for micro in workers.metrics]
    assert Metric.aggregate_dp(shares) == pytest.approx(float(kept.sum() / mask.sum()))


def test_the_share_of_kept_tokens_is_the_mini_batchs(monkeypatch) -> None:
    """Whatever micro-batches it is in: one without a token does not count as one that keeps nothing."""
    inputs = batch("random")
    inputs["response_mask"][24:] = 0
    inputs["response_mask"][:, 0] = torch.arange(48) < 24
    queue = Queue(inputs)
    trainer, _ = run([*CALCULATED, "+morlfast.d3s.loss_denominator=all"], queue, monkeypatch)
    workers, tokens = trainer.actor_rollout_wg, int(inputs["response_mask"].sum())
    data = queue.fetch(queue.meta)
    rules = downsampling._rules(trainer._morlfast_step)
    tu.assign_non_tensor(data, calculate_entropy=True, global_batch_size=48, **{downsampling._RULES: rules})
    workers.dp = 1
    kept = 0
    for rows in (torch.arange(6), torch.arange(6, 24), torch.arange(24, 48)):
        workers.loss(tu.index_select_tensor_dict(data, rows), tokens)
        kept += -(-int(inputs["response_mask"][rows].sum()) // 2)
    shares = workers.metrics[0]["actor/morlfast_kept_tokens"].init_list()
    for micro in workers.metrics:  # as verl's engines gather them
        shares.extend(micro["actor/morlfast_kept_tokens"])
    assert len(shares.values) == 3
    assert shares.values[2] == 0
    assert shares.aggregate() == pytest.approx(kept / tokens)


def test_workers_select_over_their_process_group(monkeypatch, tmp_path) -> None:
    """Of one rank here; what several do is select_tokens's."""
    queue = Queue(batch("random"))
    trainer, _ = run([*CALCULATED, *actor(6)], queue, monkeypatch)
    workers, ppo_loss, select_tokens, groups = trainer.actor_rollout_wg, losses.ppo_loss, D3S.select_tokens, []

    def spy(self, *args, process_group=None, **options):
        groups.append(process_group)
        return select_tokens(self, *args, process_group=process_group, **options)

    monkeypatch.setattr(D3S, "select_tokens", spy)
    trainer._update_actor(queue.meta, {})
    alone = workers.gradients()
    for log_probs in workers.log_probs:
        log_probs.grad = None
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        world = torch.distributed.group.WORLD
        monkeypatch.setattr(losses, "ppo_loss", functools.partial(ppo_loss, dp_group=world))
        trainer._update_actor(queue.meta, {})
    finally:
        torch.distributed.destroy_process_group()
    assert groups == [None, None, world, world]
    assert torch.equal(workers.gradients(), alone)
    assert alone.any()
