"""`morlfast.integrations.morl_baselines` against MORL-Baselines."""

from __future__ import annotations

import doctest
import importlib
import pickle
import runpy
import sys
import types
from copy import deepcopy
from pathlib import Path

import morlfast
import numpy as np
import pytest
import torch

performance_indicators = pytest.importorskip("morl_baselines.common.performance_indicators")

from morl_baselines.common import pareto, weights  # noqa: E402
from morlfast.integrations import morl_baselines as ours  # noqa: E402
from morlfast.integrations.pymoo import Hypervolume  # noqa: E402

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


def fronts(rng, n, m):
    """As lists and arrays: random, tied, duplicated, float32, integers."""
    values = rng.random((n, m)) - 0.3
    yield list(values)
    yield [tuple(value) for value in values.tolist()]
    yield rng.integers(0, 4, (n, m)).astype(float)
    yield values[rng.integers(0, n, n)]
    yield list(values.astype(np.float32))
    yield rng.integers(0, 4, (n, m))
    yield values[::-1, ::-1]


def assert_same(value, expected, *inputs):
    """Equal arrays, or numbers of the same type, up to the precision that the original has of its `inputs`."""
    assert type(value) is type(expected)
    if isinstance(expected, np.ndarray):
        assert value.dtype == expected.dtype
        assert np.array_equal(value, expected)
    else:
        single = any(np.asarray(values).dtype == np.float32 for values in inputs)
        assert value == pytest.approx(expected, rel=1e-5 if single else 1e-12, abs=1e-6 if single else 1e-13)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (12, 1), (40, 2), (40, 3), (30, 6)])
def test_indicators(rng, n, m):
    for front in fronts(rng, n, m):
        assert_same(ours.sparsity(front), performance_indicators.sparsity(front), front)
        for reference in fronts(rng, 15, m):
            assert_same(ours.igd(reference, front), performance_indicators.igd(reference, front))


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (12, 1), (40, 2), (40, 3), (30, 6)])
def test_utilities(rng, n, m):
    directions = rng.dirichlet(np.ones(m), 25)
    for front in fronts(rng, n, m):
        for weights_set in (list(directions), directions.astype(np.float32), rng.integers(0, 3, (5, m))):
            value, expected = (
                functions.expected_utility(front, weights_set) for functions in (ours, performance_indicators)
            )
            assert_same(value, expected, front, weights_set)
            for reference in (list(rng.random((9, m))), front):
                value, expected = (
                    functions.maximum_utility_loss(front, reference, weights_set)
                    for functions in (ours, performance_indicators)
                )
                assert_same(value, expected, front, reference, weights_set)


def test_utilities_of_ones_own(rng):
    front, reference, directions = rng.random((12, 3)), rng.random((9, 3)), rng.dirichlet(np.ones(3), 20)

    def chebyshev(weights, point):
        return -np.max(weights * (2 - point))

    for utility in (chebyshev, lambda weights, point: float(np.prod(point**weights))):
        for functions in (ours, performance_indicators):
            arguments = {"weights_set": directions, "utility": utility}
            value = functions.expected_utility(front, **arguments)
            loss = functions.maximum_utility_loss(front, reference, **arguments)
            if functions is ours:
                own = value, loss
        assert own == (value, loss)


def test_a_front_of_no_vectors_is_never_perfect(rng):
    reference = list(rng.random((4, 2)))
    for none in ([], np.empty((0, 2))):
        assert ours.igd(reference, none) == np.inf
        assert ours.expected_utility(none, reference) == -np.inf
        assert ours.maximum_utility_loss(none, reference, reference) == np.inf
        assert ours.sparsity(none) == performance_indicators.sparsity(none) == 0
        assert ours.get_non_pareto_dominated_inds(none).tolist() == []
    assert ours.get_non_dominated(set()) == set()


def test_nan_names_the_row_or_is_dominated():
    front = [np.ones(2), np.array([np.nan, 1.0])]
    for call in (
        lambda: ours.igd(front[:1], front),
        lambda: ours.sparsity(front),
        lambda: ours.expected_utility(front, front[:1]),
        lambda: ours.maximum_utility_loss(front, front[:1], front[:1]),
    ):
        with pytest.raises(ValueError, match="row 1"):
            call()
    assert ours.get_non_pareto_dominated_inds(front).tolist() == [True, False]
    archive = ours.ParetoArchive()
    for evaluation in front:
        archive.add(None, evaluation)
    assert archive.evaluations == front[:1]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (12, 1), (60, 2), (60, 3), (50, 6)])
def test_filters(rng, n, m):
    for front in fronts(rng, n, m):
        for remove_duplicates in (True, False):
            value = ours.get_non_pareto_dominated_inds(front, remove_duplicates)
            assert_same(value, pareto.get_non_pareto_dominated_inds(front, remove_duplicates))
            expected = pareto.filter_pareto_dominated(front, remove_duplicates)
            with ours.patch():
                assert_same(pareto.filter_pareto_dominated(front, remove_duplicates), expected)
        assert_same(ours.get_non_dominated_inds(np.array(front)), pareto.get_non_dominated_inds(np.array(front)))
        vectors = set(map(tuple, front))
        value, expected = ours.get_non_dominated(vectors), pareto.get_non_dominated(vectors)
        assert value == expected
        assert {type(number) for vector in value for number in vector} == {
            type(number) for vector in expected for number in vector
        }


@pytest.mark.parametrize("m", [2, 3, 4])
def test_convex_filters_in_a_patched_library(rng, m):
    for front in (rng.random((80, m)), rng.integers(0, 5, (60, m)), list(rng.standard_normal((40, m)))):
        expected = pareto.filter_convex_dominated(front)
        with ours.patch():
            assert_same(pareto.filter_convex_dominated(front), expected)


def test_convex_filters_of_the_library_keep_vertices_that_no_weights_prefer(rng):
    front = np.array([[0.0, 10.0], [10.0, 0.0], [1.0, 1.0]])
    assert [1.0, 1.0] in pareto.filter_convex_dominated(front).tolist()
    assert morlfast.is_on_convex_front(front, maximize=True).tolist() == [True, True, False]
    for m in (2, 3):
        front = rng.random((50, m))
        kept = {tuple(vector) for vector in pareto.filter_convex_dominated(front).tolist()}
        best = front[morlfast.is_on_convex_front(front, maximize=True).numpy()]
        assert {tuple(vector) for vector in best.tolist()} <= kept


class Individual:
    """Whose copies remember whom they are copied from."""

    def __init__(self, name):
        self.name = name
        self.is_copy = False

    def __deepcopy__(self, memo):
        copy = Individual(self.name)
        copy.is_copy = True
        return copy


def contents(archive):
    assert all(individual.is_copy for individual in archive.individuals)
    return [individual.name for individual in archive.individuals], list(map(tuple, archive.evaluations))


@pytest.mark.parametrize("convex_hull", [False, True])
@pytest.mark.parametrize("m", [2, 3])
def test_archives_hold_the_same_at_every_step(rng, convex_hull, m):
    for values in (rng.random((60, m)), rng.integers(0, 6, (60, m)), rng.random((60, m)).astype(np.float32)):
        if convex_hull:  # Qhull takes no sets of fewer, or of equal ones
            values = rng.random((40, m))
        start = m + 2 if convex_hull else 0
        archives = ours.ParetoArchive(convex_hull), pareto.ParetoArchive(convex_hull)
        for archive in archives:
            archive.evaluations = [*np.eye(m), np.zeros(m), *np.eye(m)[:1] * 0.9][:start]
            archive.individuals = [Individual(-k - 1) for k in range(start)]
            for individual in archive.individuals:
                individual.is_copy = True
        for name, value in enumerate(values):
            for archive in archives:
                archive.add(Individual(name), value)
            assert contents(archives[0]) == contents(archives[1])
    assert isinstance(archives[0], pareto.ParetoArchive)


def test_lists_of_an_archive_may_be_assigned(rng):
    archives = ours.ParetoArchive(), pareto.ParetoArchive()
    for round_ in range(3):
        values = rng.integers(0, 5, (20, 3)).astype(float)  # some dominated, some equal
        for archive in archives:
            archive.evaluations = list(values)
            archive.individuals = list(range(20))
            archive.add(100 + round_, np.array([4.0, 0.0, 4.0]))
            archive.evaluations.append(np.array([5.0, 0.0, 0.0]))
            archive.individuals.append(200)
            archive.add(300, np.array([0.0, 0.0, 0.0]))
        assert archives[0].individuals == archives[1].individuals
        assert np.array_equal(archives[0].evaluations, archives[1].evaluations)


def test_a_copied_archive_goes_its_own_way(rng):
    archive = ours.ParetoArchive()
    for name, value in enumerate(rng.random((20, 2))):
        archive.add(name, value)
    before = list(archive.individuals)
    copy = pickle.loads(pickle.dumps(deepcopy(archive)))
    copy.add("best", np.ones(2))
    assert copy.individuals == ["best"]
    assert archive.individuals == before
    archive.add("worst", np.zeros(2))
    assert archive.individuals == before


def test_reference_directions_are_made_once_and_the_same(monkeypatch):
    expected = weights.get_reference_directions("energy", 2, 4)
    value = ours.get_reference_directions("energy", 2, 4)
    assert_same(value, expected)
    value[:] = 0  # a caller's own
    monkeypatch.setattr(ours, "_get_reference_directions", lambda *arguments, **options: (arguments, options))
    assert_same(ours.get_reference_directions("energy", 2, 4), expected)
    for arguments, options in ((("energy", 2, 4), {"seed": 5}), (("das-dennis", 3), {"n_partitions": 4})):
        assert ours.get_reference_directions(*arguments, **options) == (arguments, options)


@pytest.fixture
def wandb(monkeypatch):
    """MORL-Baselines logs by wandb at module level: here is what it logged."""
    module = types.ModuleType("wandb")
    module.logged = {}
    module.log = lambda values, commit=True: module.logged.update(values)
    module.Table = lambda columns, data: data
    monkeypatch.setitem(sys.modules, "wandb", module)
    yield module
    for name in [
        name for name in sys.modules if name.startswith("morl_baselines.") and "wandb" in vars(sys.modules[name])
    ]:
        del sys.modules[name]  # it holds this module


@pytest.fixture
def algorithms(wandb):
    return pytest.importorskip("morl_baselines.multi_policy.pareto_q_learning.pql")


def test_patch_reaches_modules_imported_before_and_after_and_can_be_undone(algorithms):
    evaluation = importlib.import_module("morl_baselines.common.evaluation")
    places = [
        (performance_indicators, "hypervolume igd sparsity expected_utility maximum_utility_loss"),
        (pareto, "get_non_pareto_dominated_inds get_non_dominated_inds get_non_dominated ParetoArchive"),
        (algorithms, "hypervolume get_non_dominated"),
        (evaluation, "hypervolume igd expected_utility maximum_utility_loss get_reference_directions"),
        (weights, "get_reference_directions"),
    ]
    originals = [[getattr(module, name) for name in names.split()] for module, names in places]
    with ours.patch():
        for module, names in places:
            for name in names.split():
                assert getattr(module, name) is getattr(ours, name)
        with ours.patch():  # again
            assert algorithms.hypervolume is ours.hypervolume
        assert algorithms.hypervolume is ours.hypervolume
    assert [[getattr(module, name) for name in names.split()] for module, names in places] == originals


def test_pareto_q_learning_learns_the_same(algorithms):
    mo_gymnasium = pytest.importorskip("mo_gymnasium")

    def learn():
        env = mo_gymnasium.make("deep-sea-treasure-v0")
        agent = algorithms.PQL(env, np.array([0.0, -50.0]), gamma=1.0, epsilon_decay_steps=1000, seed=1, log=False)
        front = agent.train(1500, env)
        return front, agent.non_dominated, [agent.score_hypervolume(state) for state in range(agent.num_states)]

    front, sets, scores = learn()
    with ours.patch():
        own_front, own_sets, own_scores = learn()
    assert own_front == front
    assert own_sets == sets
    assert np.max(scores) > 0
    np.testing.assert_allclose(own_scores, scores, rtol=1e-12)


def test_an_evaluation_logs_the_same(wandb, algorithms, rng, monkeypatch):
    evaluation = importlib.import_module("morl_baselines.common.evaluation")
    monkeypatch.setattr(evaluation, "equally_spaced_weights", lambda m, n: list(np.eye(m)))
    front, known = list(rng.random((40, 2))), list(rng.random((30, 2)) * 1.1)

    def evaluate():
        wandb.logged.clear()
        evaluation.log_all_multi_policy_metrics(front, np.zeros(2), 2, 0, 4, known)
        return dict(wandb.logged)

    expected = evaluate()
    with ours.patch():
        value = evaluate()
    assert value.keys() == expected.keys()
    assert value["eval/front"] == expected["eval/front"]
    for name in ("hypervolume", "eum", "cardinality", "igd", "mul"):
        assert value[f"eval/{name}"] == pytest.approx(expected[f"eval/{name}"], rel=1e-6)


def test_ipro_takes_the_class(algorithms, rng):
    outer_loop = pytest.importorskip("morl_baselines.multi_policy.ipro.outer_loop")
    points, ref_point = rng.random((10, 3)), np.full(3, 1.0)
    expected = outer_loop.OuterLoop.compute_hypervolume(None, points, ref_point)
    before = outer_loop.Hypervolume
    with ours.patch():
        assert outer_loop.Hypervolume is Hypervolume
        assert outer_loop.OuterLoop.compute_hypervolume(None, points, ref_point) == pytest.approx(expected, rel=1e-12)
    assert outer_loop.Hypervolume is before


def test_the_example_evaluates_an_agent_both_ways(algorithms, tmp_path, capsys):
    for module in ("matplotlib", "tqdm", "mo_gymnasium"):
        pytest.importorskip(module)
    main = runpy.run_path(Path(__file__).parents[2] / "examples/morl_evaluation.py")["main"]
    threads = torch.get_num_threads()
    try:
        assert main(["--out", str(tmp_path), "--steps", "300", "--evaluations", "2", "--weights", "9"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "morl_evaluation.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for label in ("fruits found", "maximum utility loss", "archive"):
        assert label in out
    assert float(out.split("all evaluations: ")[1].split()[0]) < 1e-9
    assert pareto.ParetoArchive is not ours.ParetoArchive
