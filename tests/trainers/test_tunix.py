"""The preset "tunix" against Tunix's own reward manager and the advantage estimators in its registry.

Importing their modules takes jax and flax, so they are compiled out of the installed files. The one function of jax
that they call, zeros_like, is NumPy's here.
"""

from __future__ import annotations

import abc
import inspect
import os
import threading
import typing
from dataclasses import asdict, make_dataclass
from importlib.metadata import version
from types import SimpleNamespace

import morlfast
import numpy as np
import pytest
import torch
from absl import logging
from installed import definitions
from morlfast.advantage_presets import PRESETS

# How its configuration spells each method.
ESTIMATORS = {"grpo": "grpo", "dr_grpo": "drgrpo", "rloo": "rloo"}

FunctionRegistry = definitions(
    "tunix.rl.function_registry",
    "FunctionRegistry",
    threading=threading,
    logging=logging,
    FrozenSet=typing.FrozenSet,  # noqa: UP006
    **{
        f"_{kind}_CATEGORY": kind
        for kind in ("POLICY_LOSS_FN", "VALUE_LOSS_FN", "ADVANTAGE_ESTIMATOR", "REWARD_MANAGER")
    },
).FunctionRegistry
registry = FunctionRegistry()
function_registry = SimpleNamespace(
    register_advantage_estimator=lambda name: registry.register("ADVANTAGE_ESTIMATOR", name),
    register_reward_manager=lambda name: registry.register("REWARD_MANAGER", name),
)
definitions(
    "tunix.rl.algo_core",
    "compute_advantages",
    "compute_rloo_advantages",
    "compute_drgrpo_advantages",
    jnp=np,
    function_registry=function_registry,
)
SequenceRewardManager = definitions(
    "tunix.rl.reward_manager",
    "_calculate_scalar_reward_log_metrics",
    "AbstractRewardManager",
    "SequenceRewardManager",
    abc=abc,
    asdict=asdict,
    inspect=inspect,
    logging=logging,
    np=np,
    os=os,
    Sequence=typing.Sequence,
    function_registry=function_registry,
).SequenceRewardManager
AlgorithmConfig = make_dataclass("AlgorithmConfig", [])


def tunix(rewards: np.ndarray, method: str, group_size: int) -> torch.Tensor:
    """A reward function for each objective, its reward manager, then its estimator."""

    def reward_function(k: int):
        def reward(prompts, completions):
            return rewards[:, k].tolist()

        return reward

    manager = SequenceRewardManager([reward_function(k) for k in range(rewards.shape[1])], AlgorithmConfig())
    texts = [""] * len(rewards)
    scores = manager(texts, texts)["rewards"]
    estimator = registry.get("ADVANTAGE_ESTIMATOR", ESTIMATORS[method])
    return torch.from_numpy(estimator(rewards=scores, num_generations=group_size))


def both(rewards: np.ndarray, method: str, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    ours = morlfast.group_advantages(torch.from_numpy(rewards), group_size=group_size, preset="tunix", method=method)
    return ours, tunix(rewards, method, group_size)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def test_the_version_that_the_preset_names():
    assert version("google-tunix") == PRESETS["tunix"].version
    assert set(ESTIMATORS) == set(PRESETS["tunix"].methods)
    assert set(ESTIMATORS.values()) == set(registry.list_functions("ADVANTAGE_ESTIMATOR"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about the deviation of one value
@pytest.mark.parametrize("group_size", [1, 2, 5, 16])
@pytest.mark.parametrize("objectives", [1, 3])
@pytest.mark.parametrize("method", ESTIMATORS)
def test_same_advantages(method, objectives, group_size):
    ours, theirs = both(normal(80, objectives), method, group_size)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about the mean of no value
@pytest.mark.parametrize("method", ESTIMATORS)
def test_missing_rewards(method):
    rewards = normal(40, 3)
    rewards[np.random.default_rng(1).random(rewards.shape) < 0.3] = np.nan
    rewards[5] = np.nan
    rewards[16:24] = np.nan
    ours, theirs = both(rewards, method, 8)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_constant_groups_are_zero_and_nearly_so_in_its_float64(method):
    rewards = (np.arange(1, 20) / 20).repeat(7)[:, None]
    ours, theirs = both(rewards, method, 7)
    assert torch.equal(ours, torch.zeros_like(ours))
    assert 0 < theirs.abs().max() < 1e-9
