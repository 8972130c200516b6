"""verl 0.9.1: its own functions beside those of the plugin, of `patch()` and of the preset, on the same batches."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import morlfast
import morlfast.estimators
import morlfast.returns
import numpy as np
import pytest
import tomllib
import torch
from morlfast.integrations import verl as ours
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import torch_functional
from verl.utils.groupwise import as_torch_index
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

ROOT = Path(__file__).parents[2]
T = 24

# verl's name in its registry, its function, ours in the registry, the preset's method.
ESTIMATORS = [
    ("grpo", "compute_grpo_outcome_advantage", "morlfast_grpo", "grpo"),
    ("grpo_vectorized", "compute_grpo_vectorized_outcome_advantage", "morlfast_grpo", "grpo_vectorized"),
    ("gdpo", "compute_gdpo_outcome_advantage", "morlfast_gdpo", "gdpo"),
    ("rloo", "compute_rloo_outcome_advantage", "morlfast_rloo", "rloo"),
    ("rloo_vectorized", "compute_rloo_vectorized_outcome_advantage", None, "rloo_vectorized"),
    ("opo", "compute_opo_outcome_advantage", "morlfast_opo", "opo"),
    ("gpg", "compute_gpg_outcome_advantage", "morlfast_gpg", None),  # the preset centres; its factor is verl's
    ("grpo_passk", "compute_grpo_passk_outcome_advantage", "morlfast_pass_at_k", "pass_at_k"),
    (
        "reinforce_plus_plus_baseline",
        "compute_reinforce_plus_plus_baseline_outcome_advantage",
        "morlfast_reinforce_plus_plus_baseline",
        "reinforce_pp_baseline",
    ),
]
KINDS = ["random", "ragged", "singletons", "constant", "nan"]


def batch(kind: str, mask_dtype: torch.dtype = torch.int64, dtype: torch.dtype = torch.float32) -> dict:
    """Scores at the last token, some at others too; uids as verl makes them, in any order."""
    draw = torch.Generator().manual_seed(KINDS.index(kind))
    groups = {"random": [8] * 6, "ragged": [2, 3, 5, 9, 16, 4], "singletons": [1, 6, 1, 2, 1, 7]}.get(kind, [4] * 8)
    uids = [str(uuid.UUID(int=int(x))) for x in torch.randint(1 << 60, (len(groups),), generator=draw)]
    uids = np.array([uid for uid, size in zip(uids, groups, strict=True) for _ in range(size)], dtype=object)
    order = torch.randperm(len(uids), generator=draw)
    uids, n = uids[order.numpy()], len(uids)
    lengths = torch.randint(1, T + 1, (n,), generator=draw)
    mask = torch.arange(T) < lengths[:, None]
    mask &= (torch.rand(n, T, generator=draw) < 0.8) | (torch.arange(T) == 0)  # tokens of tools do not count
    mask[3] = False
    rewards = torch.zeros(n, T, dtype=dtype)
    rewards[torch.arange(n), lengths - 1] = torch.randn(n, generator=draw).to(dtype)
    rewards[:, 0] += 0.25 * torch.rand(n, generator=draw).to(dtype)  # a penalty on its way
    if kind == "constant":
        rewards[:] = 0
        rewards[:, -1] = torch.tensor([{uid: 0.5 * i for i, uid in enumerate(sorted(set(uids)))}[uid] for uid in uids])
    if kind == "nan":
        rewards[5, 0] = torch.nan
    return {"token_level_rewards": rewards, "response_mask": mask.to(mask_dtype), "index": uids}


def assert_same(mine: torch.Tensor, verls: torch.Tensor, mask: torch.Tensor, tolerance: float = 2e-6) -> None:
    """Where tokens count. Elsewhere ours is 0; verl's too, if it is not the product of NaN and 0."""
    assert mine.dtype == verls.dtype or verls.dtype == torch.float64
    assert (mine[mask == 0] == 0).all()
    torch.testing.assert_close(
        mine[mask != 0], verls[mask != 0].to(mine.dtype), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def as_verl_has_it(name: str, inputs: dict) -> dict:
    """What compute_advantage adds: a configuration, which pass@k asserts and GDPO must not have when it gets a sum."""
    return {**inputs, "config": None if name == "gdpo" else {"norm_adv_by_std_in_grpo": True}}


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "function", "registered", "method"), ESTIMATORS, ids=[row[0] for row in ESTIMATORS])
def test_the_numbers_are_verls(name, function, registered, method, kind, mask_dtype) -> None:
    inputs = batch(kind, mask_dtype)
    call = as_verl_has_it(name, inputs)
    mask = inputs["response_mask"]
    if name == "grpo_passk" and kind == "singletons":
        for estimate in (getattr(core_algos, function), getattr(ours, function)):
            with pytest.raises(ValueError, match=r"."):
                estimate(**call)
        return
    verls, verls_returns = getattr(core_algos, function)(**call)
    if name == "grpo_passk" and kind == "nan":  # top-k has NaN as the largest, and the others keep their 0
        verls = torch.where(verls.isnan().any(1, keepdim=True), torch.nan, verls)
        group = inputs["index"] == inputs["index"][5]
        verls[group] = torch.nan
    mine, returns = getattr(ours, function)(**call)
    assert returns is mine
    assert verls_returns is not None
    assert_same(mine, verls, mask)
    with ours.patch():
        assert torch.equal(getattr(core_algos, function)(**call)[0].nan_to_num(9), mine.nan_to_num(9))
        assert torch.equal(core_algos.get_adv_estimator_fn(name)(**call)[0].nan_to_num(9), mine.nan_to_num(9))
    assert getattr(core_algos, function) is not getattr(ours, function)
    if registered is not None:
        estimate = core_algos.get_adv_estimator_fn(registered)
        assert torch.equal(estimate(**call)[0].nan_to_num(9), mine.nan_to_num(9))
    if method is not None:
        advantages = morlfast.group_advantages(
            token_rewards=inputs["token_level_rewards"],
            group_ids=inputs["index"],
            mask=mask,
            preset="verl",
            method=method,
        )
        assert torch.equal(advantages.nan_to_num(9), mine.nan_to_num(9))


@pytest.mark.parametrize("kind", ["random", "ragged"])
@pytest.mark.parametrize(("name", "function"), [row[:2] for row in ESTIMATORS], ids=[row[0] for row in ESTIMATORS])
def test_in_float64_they_are_verls_to_the_digits_that_it_keeps(name, function, kind) -> None:
    inputs = as_verl_has_it(name, batch(kind, dtype=torch.float64))
    verls, _ = getattr(core_algos, function)(**inputs)
    mine, _ = getattr(ours, function)(**inputs)
    assert mine.dtype == torch.float64
    # One casts all to float32, the whitening has a factor n / (n - 1) in float32.
    tolerance = {"grpo_vectorized": 2e-6, "gdpo": 1e-7, "reinforce_plus_plus_baseline": 1e-7}.get(name, 1e-12)
    assert_same(mine, verls, inputs["response_mask"], tolerance)


def test_without_division_grpo_is_dr_grpo() -> None:
    inputs = batch("ragged")
    verls, _ = core_algos.compute_grpo_outcome_advantage(**inputs, norm_adv_by_std_in_grpo=False)
    for mine, _ in (
        ours.compute_grpo_outcome_advantage(**inputs, norm_adv_by_std_in_grpo=False),
        core_algos.get_adv_estimator_fn("morlfast_dr_grpo")(**inputs, config={}),
        core_algos.get_adv_estimator_fn("morlfast_grpo")(**inputs, config={"norm_adv_by_std_in_grpo": False}),
    ):
        assert_same(mine, verls, inputs["response_mask"])


def test_equal_scores_are_zero_where_verl_divides_rounding_noise() -> None:
    rewards = torch.zeros(7, 3)
    rewards[:, -1] = 0.35
    call = {"token_level_rewards": rewards, "response_mask": torch.ones(7, 3), "index": np.array(["a"] * 7, object)}
    assert core_algos.compute_grpo_outcome_advantage(**call)[0].abs().max() > 0.01
    assert (ours.compute_grpo_outcome_advantage(**call)[0] == 0).all()


@pytest.mark.parametrize("function", ["compute_gdpo_outcome_advantage", ESTIMATORS[-1][1]])
@pytest.mark.parametrize("tokens", [0, 1])
def test_fewer_than_two_tokens_cannot_be_whitened(function, tokens) -> None:
    mask = torch.zeros(2, 3, dtype=torch.int64)
    mask.view(-1)[4 : 4 + tokens] = 1
    for module in (core_algos, ours):
        with pytest.raises(ValueError, match=r"."):
            getattr(module, function)(
                token_level_rewards=torch.eye(2, 3), response_mask=mask, index=np.array(["a", "a"], dtype=object)
            )


# ---- what has returns ----


def token_batch(dtype: torch.dtype, mask_dtype: torch.dtype) -> dict:
    inputs = batch("ragged", mask_dtype, dtype)
    draw = torch.Generator().manual_seed(11)
    rewards = torch.randn(inputs["response_mask"].shape, generator=draw).to(dtype)
    return {"token_level_rewards": rewards, "response_mask": inputs["response_mask"]}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-7)], ids=str)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8)])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.float32], ids=str)  # verl subtracts the mask from 1
def test_gae_is_verls_at_every_token(mask_dtype, gamma, lam, dtype, tolerance) -> None:
    inputs = token_batch(dtype, mask_dtype)
    values = torch.randn(inputs["response_mask"].shape, generator=torch.Generator().manual_seed(12)).to(dtype)
    call = {**inputs, "values": values, "gamma": gamma, "lam": lam}
    verls = core_algos.compute_gae_advantage_return(**call)
    for mine, theirs in zip(ours.compute_gae_advantage_return(**call), verls, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    data = DataProto(
        TensorDict({**inputs, "values": values}, batch_size=len(values)), {"uid": batch("ragged")["index"]}
    )
    with ours.patch():
        data = ray_trainer.compute_advantage(data, "gae", gamma=gamma, lam=lam, config={})
    torch.testing.assert_close(data.batch["advantages"], verls[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(data.batch["returns"], verls[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-7)], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.float32], ids=str)
def test_reinforce_plus_plus_is_verls(mask_dtype, gamma, dtype, tolerance) -> None:
    call = {**token_batch(dtype, mask_dtype), "config": SimpleNamespace(gamma=gamma)}
    verls = core_algos.compute_reinforce_plus_plus_outcome_advantage(**call)
    with ours.patch():
        patched = core_algos.get_adv_estimator_fn("reinforce_plus_plus")(**call)
    registered = core_algos.get_adv_estimator_fn("morlfast_reinforce_plus_plus")(**call)
    for mine in (ours.compute_reinforce_plus_plus_outcome_advantage(**call), patched, registered):
        for one, theirs in zip(mine, verls, strict=True):
            torch.testing.assert_close(one, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_verls_masked_whiten(shift_mean, mask_dtype) -> None:
    inputs = token_batch(torch.float32, mask_dtype)
    values, mask = 3 * inputs["token_level_rewards"] + 5, inputs["response_mask"]
    verls = torch_functional.masked_whiten(values, mask, shift_mean=shift_mean)
    mine = morlfast.returns.whiten(values, mask, shift_mean=shift_mean, outside="whiten")
    torch.testing.assert_close(mine, verls, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize(
    ("function", "align"),
    [
        ("compute_optimal_token_baseline_advantage", "position"),
        ("compute_multi_turn_optimal_token_baseline_advantage", "token"),
    ],
)
@pytest.mark.parametrize("kind", ["random", "ragged", "singletons"])
def test_the_optimal_token_baseline_is_verls(kind, function, align) -> None:
    inputs = batch(kind, dtype=torch.float64)
    rewards, mask = inputs["token_level_rewards"], inputs["response_mask"]
    draw = torch.Generator().manual_seed(13)
    log_probs, squares, ratios = (torch.rand(mask.shape, generator=draw, dtype=torch.float64) for _ in range(3))
    verls = getattr(core_algos, function)(
        **inputs, old_log_probs=-log_probs, sum_pi_squared=squares, rollout_is_weights=ratios
    )
    mine = morlfast.estimators.optimal_token_baseline(
        rewards, mask, -log_probs, squares, group_ids=inputs["index"], ratios=ratios, align=align
    )
    for one, theirs in zip(mine, verls, strict=True):
        assert_same(one, theirs, mask, tolerance=1e-9)


# ---- GDPO, of several rewards ----

KEYS, WEIGHTS = ["accuracy", "format", "brevity"], [1.0, 0.5, 2.0]


def scores_of(n: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    return {
        "accuracy": draw.integers(0, 2, n).astype(float),
        "format": draw.integers(0, 2, n).astype(float),
        "brevity": -draw.random(n),
    }


def legacy_data(inputs: dict, scores: dict[str, np.ndarray]) -> DataProto:
    """What verl's older trainer hands to compute_advantage."""
    mask = inputs["response_mask"]
    n = len(mask)
    attention = torch.cat([torch.ones(n, 5, dtype=torch.int64), torch.ones_like(mask)], dim=1)
    tensors = {
        "prompts": torch.zeros(n, 5, dtype=torch.int64),
        "attention_mask": attention,
        "response_mask": mask,
        "token_level_rewards": inputs["token_level_rewards"],
    }
    return DataProto(TensorDict(tensors, batch_size=n), {"uid": inputs["index"], **scores})


def gdpo_config(**more: object) -> object:
    return OmegaConf.create({"gdpo_reward_keys": KEYS, "gdpo_reward_weights": WEIGHTS, **more})


@pytest.mark.parametrize("kind", ["random", "ragged", "singletons"])
@pytest.mark.parametrize("weights", [WEIGHTS, None])
def test_gdpo_of_several_rewards(kind, weights) -> None:
    inputs = batch(kind)
    scores = scores_of(len(inputs["index"]))
    config = gdpo_config(gdpo_reward_weights=weights)
    verls = ray_trainer.compute_advantage(legacy_data(inputs, scores), "gdpo", config=config).batch["advantages"]
    with ours.patch():
        data = ray_trainer.compute_advantage(legacy_data(inputs, scores), "gdpo", config=config)
    mask = inputs["response_mask"]
    assert_same(data.batch["advantages"], verls, mask)
    assert torch.equal(data.batch["returns"], data.batch["advantages"])
    advantages = morlfast.group_advantages(
        np.stack([scores[key] for key in KEYS], axis=1).astype(np.float32),
        group_ids=inputs["index"],
        weights=None if weights is None else torch.tensor(weights),
        mask=mask,
        preset="verl",
        method="gdpo",
    )
    assert torch.equal(advantages, data.batch["advantages"])


def test_gdpo_says_which_reward_is_missing() -> None:
    inputs = batch("random")
    scores = scores_of(len(inputs["index"]))
    with pytest.raises(ValueError, match="gdpo_reward_keys: expected the rewards"):
        ours.compute_gdpo_outcome_advantage(**inputs, config={}, non_tensor_batch=scores)
    with pytest.raises(ValueError, match=r"no reward honesty in .*; there are accuracy, format, brevity"):
        ours.compute_gdpo_outcome_advantage(**inputs, config={"gdpo_reward_keys": ["honesty"]}, non_tensor_batch=scores)
    with pytest.raises(ValueError, match="hands only their sum"):  # verl silently takes the sum for the only reward
        ours.compute_gdpo_outcome_advantage(**inputs, config=gdpo_config())


class Queue:
    """TransferQueue's two calls that V1's trainer makes, with the containers that it gives back."""

    def __init__(self, inputs: dict, fields: dict[str, list]) -> None:
        mask, rewards = inputs["response_mask"], inputs["token_level_rewards"]
        self.keys = [f"{uid}_{session}_0" for session, uid in enumerate(inputs["index"])]
        # V1 keeps rows without their padding, masked tokens among them.
        self.lengths = [max(1, int(row.nonzero().max()) + 1 if row.any() else 1) for row in mask]
        self.rows = [
            {
                "uid": uid,
                "response_mask": mask[i, : self.lengths[i]],
                "rm_scores": rewards[i, : self.lengths[i]],
                **{name: values[i] for name, values in fields.items()},
            }
            for i, uid in enumerate(inputs["index"])
        ]
        self.asked: list[list[str]] = []

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        assert (keys, partition_id) == (self.keys, "train")
        self.asked.append(list(select_fields))
        return list_of_dict_to_tensordict(
            [{name: row[name] for name in select_fields if name in row} for row in self.rows]
        )

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> TensorDict:
        assert (keys, partition_id) == (self.keys, "train")
        return fields


V1_FIELDS = ["uid", "response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", "ref_log_prob", "values"]


def v1_advantages(queue: Queue, estimator: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Of each row, by the V1 trainer's own method."""
    monkeypatch.setattr(trainer_base, "tq", queue)
    algorithm = {"adv_estimator": estimator, "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0}
    config = OmegaConf.create(
        {
            "algorithm": {**algorithm, "gdpo_reward_keys": KEYS, "gdpo_reward_weights": WEIGHTS},
            "actor_rollout_ref": {"rollout": {"n": 4}},
        }
    )
    meta = SimpleNamespace(keys=queue.keys, partition_id="train")

    class Batch(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.keys)

    written = trainer_base.PPOTrainer._compute_advantage(SimpleNamespace(config=config), Batch(**vars(meta)), {})
    assert V1_FIELDS in queue.asked
    return list(written["advantages"].unbind())


@pytest.mark.parametrize("reward_model", ["compute_score", "colocated"])
def test_gdpo_in_the_v1_trainer(reward_model, monkeypatch) -> None:
    inputs = batch("random")
    n = len(inputs["index"])
    scores = scores_of(n)
    if reward_model == "colocated":  # writes a field for each
        fields = {"extra_fields": [{}] * n, **{key: [float(x) for x in scores[key]] for key in KEYS}}
    else:
        infos = [{"score": 0.0, **{key: scores[key][i] for key in KEYS}} for i in range(n)]
        fields = {"extra_fields": [{"turn_scores": [], "reward_extra_info": info} for info in infos]}
        fields["format"] = ["a column of the dataset"] * n
    expected = ray_trainer.compute_advantage(legacy_data(inputs, scores), "gdpo", config=gdpo_config())
    queue = Queue(inputs, fields)
    with pytest.raises(KeyError, match="prompts"):
        v1_advantages(queue, "gdpo", monkeypatch)
    for estimator in ("morlfast_gdpo", "gdpo"):
        with ours.patch():
            rows = v1_advantages(queue, estimator, monkeypatch)
        for i, row in enumerate(rows):
            length = queue.lengths[i]
            assert_same(row, expected.batch["advantages"][i, :length], inputs["response_mask"][i, :length])
    rows = v1_advantages(queue, "morlfast_gdpo", monkeypatch)  # the plugin alone
    assert all(len(row) == length for row, length in zip(rows, queue.lengths, strict=True))
    with pytest.raises(KeyError, match="prompts"):  # nothing of the patch stays
        v1_advantages(queue, "gdpo", monkeypatch)


def test_gdpo_does_not_train_on_a_column_of_the_data_set(monkeypatch) -> None:
    """Whose name is that of a reward which compute_score left out of a row."""
    inputs = batch("random")
    n = len(inputs["index"])
    scores = scores_of(n)
    infos = [{key: scores[key][i] for key in KEYS} for i in range(n)]
    del infos[3]["format"], infos[7]["format"]
    fields = {"extra_fields": [{"reward_extra_info": info} for info in infos], "format": [9.0] * n}
    with pytest.raises(ValueError, match=rf"expected format in what .* got none for 2 of {n} rows, .* row 3$"):
        v1_advantages(Queue(inputs, fields), "morlfast_gdpo", monkeypatch)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "opo"])
def test_other_estimators_in_the_v1_trainer_ask_for_nothing_more(estimator, monkeypatch) -> None:
    inputs = batch("ragged")
    queue = Queue(inputs, {"extra_fields": [{}] * len(inputs["index"])})
    verls = v1_advantages(queue, estimator, monkeypatch)
    with ours.patch():
        patched = v1_advantages(queue, estimator, monkeypatch)
    registered = v1_advantages(queue, f"morlfast_{estimator}", monkeypatch)
    for i, row in enumerate(verls):
        mask = inputs["response_mask"][i, : queue.lengths[i]]
        assert_same(patched[i], row, mask)
        assert_same(registered[i], row, mask)
    assert queue.asked == [V1_FIELDS] * 3


# ---- labels of groups ----


def test_labels_that_verls_conversion_merges_stay_apart() -> None:
    rewards, mask = torch.eye(4, 2), torch.ones(4, 2, dtype=torch.int64)
    labels = np.array(["1", "01", "1", "01"], dtype=object)
    assert as_torch_index(labels).tolist() == [1, 1, 1, 1]
    loop, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, labels)
    vectorized, _ = core_algos.compute_grpo_vectorized_outcome_advantage(rewards, mask, labels)
    mine, _ = ours.compute_grpo_vectorized_outcome_advantage(rewards, mask, labels)
    assert not torch.allclose(loop, vectorized)
    assert_same(mine, loop, mask)


def test_fractions_are_no_labels() -> None:
    labels = np.array([0.2, 0.7, 1.4, 0.2])
    assert as_torch_index(labels).tolist() == [0, 0, 1, 0]
    with pytest.raises(TypeError, match="group_ids"):
        ours.compute_grpo_vectorized_outcome_advantage(torch.eye(4, 2), torch.ones(4, 2), labels)


@pytest.mark.parametrize("labels", [[-5, 7, -5, 7], [10**15, 3, 10**15, 3]])
def test_integers_of_any_size_are_labels(labels) -> None:
    rewards, mask = torch.eye(4, 2), torch.ones(4, 2, dtype=torch.int64)
    index = np.array(labels)
    with pytest.raises((IndexError, RuntimeError)):  # verl has one place for each number up to the largest
        core_algos.compute_grpo_vectorized_outcome_advantage(rewards, mask, index)
    loop, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, index)
    mine, _ = ours.compute_grpo_vectorized_outcome_advantage(rewards, mask, index)
    assert_same(mine, loop, mask)


# ---- the patch and the plugin ----


def test_patches_reach_module_and_registry_and_may_overlap() -> None:
    registry = core_algos.ADV_ESTIMATOR_REGISTRY
    names = [function.__name__ for function in ours._DROP_INS]
    entries, functions = dict(registry), [getattr(core_algos, name) for name in names]
    first = ours.patch()
    with ours.patch():
        first.undo()
        assert [getattr(core_algos, name) for name in names] == list(ours._DROP_INS)
        assert set(ours._DROP_INS) <= set(registry.values())
        assert not set(functions) & set(registry.values())
    assert dict(registry) == entries
    assert [getattr(core_algos, name) for name in names] == functions


def test_unknown_versions_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda distribution: "0.10.0")
    with pytest.raises(RuntimeError, match=r"verl 0\.10\.0 .* 0\.9\.1 and later patch releases of it only"):
        ours.patch()
    with ours.patch(any_version=True):
        assert core_algos.compute_rloo_outcome_advantage is ours.compute_rloo_outcome_advantage


def test_the_plugin_says_that_a_version_is_unknown_and_registers_nothing(monkeypatch, caplog) -> None:
    monkeypatch.setattr(metadata, "version", lambda distribution: "0.10.0")
    finders = list(sys.meta_path)
    with caplog.at_level(logging.WARNING):
        ours._plug_in()
    assert "verl 0.10.0" in caplog.text
    assert "options +morlfast.d3s and +morlfast.pods may be ignored" in caplog.text
    assert sys.meta_path == finders


@pytest.fixture
def run_with_entry_point(tmp_path):
    """Run a script where metadata has the entry point of pyproject.toml: installed, or written here."""

    def run(script: str) -> None:
        path = list(filter(None, sys.path))
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["verl.plugins"]
        installed = metadata.entry_points(group="verl.plugins")
        if {point.name: point.value for point in installed}.items() < declared.items() or not installed:
            info = tmp_path / "morlfast-0.1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: morlfast\nVersion: 0.1.0\n")
            lines = [f"{name} = {value}\n" for name, value in declared.items()]
            (info / "entry_points.txt").write_text("[verl.plugins]\n" + "".join(lines))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *path])}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]

    return run


def test_importing_verl_is_enough_and_a_module_of_ones_own_patches(run_with_entry_point, tmp_path) -> None:
    """In one process, since importing verl takes seconds; verl itself imports VERL_USE_EXTERNAL_MODULES in this way."""
    (tmp_path / "faster_verl.py").write_text("from morlfast.integrations import verl\n\nverl.patch()\n")
    run_with_entry_point(
        "import importlib.util, pickle, sys, verl\n"
        "assert 'morlfast.integrations.verl' in sys.modules\n"
        "assert 'verl.trainer.ppo.core_algos' not in sys.modules\n"  # whoever computes no advantages pays nothing
        "assert importlib.util.find_spec('verl.trainer.ppo.core_algos')\n"  # to look is not to import
        "from verl.trainer.ppo import core_algos\n"
        "names = list(sys.modules['morlfast.integrations.verl'].ESTIMATORS)\n"
        "for name in names:\n"
        "    assert callable(core_algos.get_adv_estimator_fn(name))\n"
        "assert core_algos.get_adv_estimator_fn('rloo').__module__ == 'verl.trainer.ppo.core_algos'\n"
        "pickle.dumps(core_algos.__loader__)\n"
        "from verl.utils.import_utils import import_external_libs\n"
        "import_external_libs('faster_verl')\n"
        "for function in (core_algos.compute_grpo_outcome_advantage, core_algos.get_adv_estimator_fn('rloo')):\n"
        "    assert function.__module__ == 'morlfast.integrations.verl'\n"
        "importlib.reload(core_algos)\n"
        "for name in names:\n"
        "    assert callable(core_algos.get_adv_estimator_fn(name))\n"
        "from morlfast.integrations.verl import patch\n"
        "assert core_algos.compute_grpo_outcome_advantage.__module__ == 'verl.trainer.ppo.core_algos'\n"
        "with patch():\n"
        "    assert core_algos.get_adv_estimator_fn('rloo').__module__ == 'morlfast.integrations.verl'\n"
        "assert core_algos.get_adv_estimator_fn('rloo').__module__ == 'verl.trainer.ppo.core_algos'\n"
        "from verl.workers import engine_workers\n"  # a worker's loss selects tokens where a batch says so
        "assert 'morlfast' in engine_workers.ppo_loss.__code__.co_filename\n",
    )


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A package that can be imported anew in each test."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").write_text("")
    (tmp_path / "shelf" / "book.py").write_text("pages = []")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "shelf.book"
    for name in ("shelf.book", "shelf"):
        sys.modules.pop(name, None)


def test_the_hook_leaves_room_for_those_of_others(shelf) -> None:
    asked = []

    class Other:
        @staticmethod
        def find_spec(name, path=None, target=None):
            asked.append(name)

    for _ in range(2):  # which ask each other
        ours._AfterImport(shelf, lambda module: module.pages.append("mine"))
    sys.meta_path.insert(2, Other)
    assert importlib.import_module(shelf).pages == ["mine", "mine"]
    assert shelf in asked


def test_the_hook_comes_after_every_execution_and_leaves_the_loader_as_it_was(shelf) -> None:
    ours._AfterImport(shelf, lambda module: module.pages.append("mine"))
    early = importlib.util.find_spec(shelf)
    book = importlib.import_module(shelf)
    assert book.pages == ["mine"]
    pickle.dumps(book.__loader__)
    assert importlib.reload(book).pages == ["mine"]
    another = importlib.util.module_from_spec(early)
    early.loader.exec_module(another)
    assert another.pages == ["mine"]


def test_an_error_after_the_import_is_logged_and_the_import_goes_on(shelf, caplog) -> None:
    ours._AfterImport(shelf, lambda module: module.no_such_name)
    assert importlib.import_module(shelf).pages == []
    assert "shelf.book is imported without" in caplog.text
    assert "no_such_name" in caplog.text
    assert "options +morlfast.d3s and +morlfast.pods may be ignored" in caplog.text
