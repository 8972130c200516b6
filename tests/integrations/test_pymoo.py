"""`morlfast.integrations.pymoo` against pymoo."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

hv = pytest.importorskip("pymoo.indicators.hv")

from morlfast.integrations import pymoo as ours  # noqa: E402


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def both(F, **arguments):
    return ours.HV(**arguments)(F), hv.HV(**arguments)(F)


def test_the_examples_of_docstrings_hold():
    results = doctest.testmod(ours)
    assert (results.attempted > 0, results.failed) == (True, 0)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_random_points_some_dominated_some_beyond_the_reference(rng, m, n):
    value, expected = both(rng.random((n, m)) * 1.3, ref_point=np.full(m, 1.1))
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_ties_and_duplicates_of_integers(rng, m):
    for F in rng.integers(0, 4, (20, 15, m)):
        value, expected = both(F, ref_point=np.full(m, 3))
        assert value == expected


def test_the_result_is_a_python_float_computed_in_double(rng):
    F = rng.random((9, 3)).astype(np.float32)
    value, expected = both(F, ref_point=np.ones(3))
    assert type(value) is type(expected) is float
    assert value == pytest.approx(expected, rel=1e-13)


def test_empty_sets_and_single_points():
    assert both(np.empty((0, 3)), ref_point=np.ones(3)) == (0.0, 0.0)
    assert both(np.array([0.5, 0.25]), ref_point=np.ones(2)) == (0.375, 0.375)


def test_all_beyond_the_reference(rng):
    assert both(rng.random((9, 3)) + 1, ref_point=np.ones(3)) == (0.0, 0.0)


@pytest.mark.parametrize("arguments", ["pf", "pf ref_point", "ideal nadir ref_point", "ref_point"])
@pytest.mark.parametrize("zero_to_one", [True, False])
@pytest.mark.parametrize("norm_ref_point", [True, False])
def test_normalization_is_that_of_pymoo(rng, arguments, zero_to_one, norm_ref_point):
    given = {
        "pf": rng.random((30, 3)) * [1, 10, 100],
        "ideal": np.zeros(3),
        "nadir": np.array([1, 10, 100]),
        "ref_point": np.array([1.2, 11, 120]),
    }
    chosen = {name: given[name] for name in arguments.split()}
    if chosen.keys() == {"ref_point"} and zero_to_one:
        for cls in (hv.HV, ours.HV):
            with pytest.raises(AssertionError, match="bounds"):
                cls(**chosen, zero_to_one=True)
        return
    F = rng.random((20, 3)) * [1, 10, 100]
    value, expected = both(F, **chosen, zero_to_one=zero_to_one, norm_ref_point=norm_ref_point)
    assert value == pytest.approx(expected, rel=1e-12)


def test_any_layout_and_read_only(rng):
    F = rng.random((10, 6))
    F.setflags(write=False)
    for view in (F[::-1, ::2], F[:, :3], np.asfortranarray(F[:, 3:])):
        value, expected = both(view, ref_point=np.ones(3))
        assert value == pytest.approx(expected, rel=1e-12)


def test_it_is_an_indicator_of_pymoo():
    indicator = ours.HV(ref_point=np.ones(2))
    assert isinstance(indicator, hv.HV)
    assert isinstance(indicator, hv.Hypervolume)
    assert ours.Hypervolume is ours.HV
    assert indicator.do(np.zeros((1, 2))) == 1.0


def test_an_algorithm_of_pymoo_shows_the_same_hypervolumes(monkeypatch, capsys):
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.optimize import minimize
    from pymoo.problems import get_problem
    from pymoo.util.display import multi

    def last_column():
        algorithm = NSGA2(pop_size=20, output=multi.MultiObjectiveOutput())
        minimize(get_problem("zdt1", n_var=2), algorithm, ("n_gen", 10), seed=1, verbose=True)
        return [float(line.split("|")[-1]) for line in capsys.readouterr().out.splitlines()[3:]]

    expected = last_column()
    monkeypatch.setattr(multi, "Hypervolume", ours.Hypervolume)
    assert len(expected) == 10
    assert last_column() == pytest.approx(expected, rel=1e-9)  # as many digits are shown


def test_nan_is_an_error_that_names_the_row():
    with pytest.raises(ValueError, match="row 1"):
        ours.HV(ref_point=np.ones(4))(np.array([[0.5] * 4, [0.1, np.nan, 0.1, 0.1]]))


def test_the_ways_to_give_no_reference_point():
    for cls in (hv.HV, ours.HV):
        with pytest.raises(AssertionError, match="reference point"):
            cls()
