"""`morlfast.integrations.morl_baselines` against MORL-Baselines."""

from __future__ import annotations

import doctest
import importlib
import sys
import types

import numpy as np
import pytest

performance_indicators = pytest.importorskip("morl_baselines.common.performance_indicators")

from morlfast.integrations import morl_baselines as ours  # noqa: E402
from morlfast.integrations.pymoo import HV  # noqa: E402

original = performance_indicators.hypervolume


@pytest.fixture
def rng():
    return np.random.default_rng(21)


def test_the_examples_of_docstrings_hold():
    results = doctest.testmod(ours)
    assert (results.attempted > 0, results.failed) == (True, 0)


@pytest.mark.parametrize("m", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [1, 6, 30])
def test_lists_of_arrays_some_dominated_some_beyond_the_reference(rng, m, n):
    ref_point = np.full(m, -0.7)
    points = list(rng.standard_normal((n, m)))
    assert ours.hypervolume(ref_point, points) == pytest.approx(original(ref_point, points), rel=1e-12)


def test_lists_of_tuples_arrays_single_points_integers_and_float32(rng):
    ref_point = np.zeros(3)
    values = rng.integers(-1, 4, (12, 3))
    for points in (
        [tuple(value) for value in values.tolist()],
        values,
        values.astype(np.float32),
        list(values),
        values[0] + 2,
        values[:0],
    ):
        value = ours.hypervolume(ref_point, points)
        assert type(value) is float
        assert value == original(ref_point, points)


def test_an_empty_list_has_no_volume():
    assert ours.hypervolume(np.zeros(2), []) == 0.0
    with pytest.raises(ValueError, match="at least 1 column"):
        original(np.zeros(2), [])


def test_nan_is_an_error_that_names_the_row():
    with pytest.raises(ValueError, match="row 1"):
        ours.hypervolume(np.zeros(2), [np.ones(2), np.array([np.nan, 1.0])])


@pytest.fixture
def algorithms(monkeypatch):
    """MORL-Baselines logs by wandb at module level and is not asked to here: an empty module stands in for it."""
    if importlib.util.find_spec("wandb") is None:
        monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    return pytest.importorskip("morl_baselines.multi_policy.pareto_q_learning.pql")


def test_install_reaches_modules_imported_before_and_after_and_can_be_undone(algorithms):
    evaluation = importlib.import_module("morl_baselines.common.evaluation")
    with ours.install():
        assert performance_indicators.hypervolume is ours.hypervolume
        assert algorithms.hypervolume is ours.hypervolume
        assert evaluation.hypervolume is ours.hypervolume
        with ours.install():  # again
            assert algorithms.hypervolume is ours.hypervolume
        assert algorithms.hypervolume is ours.hypervolume
    for module in (performance_indicators, algorithms, evaluation):
        assert module.hypervolume is original


def test_pareto_q_learning_scores_the_same(algorithms):
    mo_gymnasium = pytest.importorskip("mo_gymnasium")
    env = mo_gymnasium.make("deep-sea-treasure-v0")
    agent = algorithms.PQL(env, np.array([0.0, -50.0]), gamma=1.0, epsilon_decay_steps=2000, seed=1, log=False)
    with ours.install():
        agent.train(2000, env)
        scores = [agent.score_hypervolume(state) for state in range(agent.num_states)]
    expected = [agent.score_hypervolume(state) for state in range(agent.num_states)]
    assert np.max(expected) > 0
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_ipro_takes_the_class(algorithms, rng):
    outer_loop = pytest.importorskip("morl_baselines.multi_policy.ipro.outer_loop")
    points, ref_point = rng.random((10, 3)), np.full(3, 1.0)
    expected = outer_loop.OuterLoop.compute_hypervolume(None, points, ref_point)
    before = outer_loop.Hypervolume
    with ours.install():
        assert outer_loop.Hypervolume is HV
        assert outer_loop.OuterLoop.compute_hypervolume(None, points, ref_point) == pytest.approx(expected, rel=1e-12)
    assert outer_loop.Hypervolume is before
