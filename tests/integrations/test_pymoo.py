"""`morlfast.integrations.pymoo` against pymoo."""

from __future__ import annotations

import doctest

import morlfast
import numpy as np
import pytest

hv = pytest.importorskip("pymoo.indicators.hv")

from morlfast.integrations import pymoo as ours  # noqa: E402
from pymoo.indicators import gd, gd_plus, igd, igd_plus  # noqa: E402
from pymoo.util.nds import non_dominated_sorting  # noqa: E402


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
    assert isinstance(indicator, ours.Hypervolume)
    assert indicator.do(np.zeros((1, 2))) == 1.0


def test_an_algorithm_of_pymoo_goes_the_same_way_and_shows_the_same_hypervolumes(capsys, monkeypatch):
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.optimize import minimize
    from pymoo.problems import get_problem

    def run():
        result = minimize(get_problem("zdt1", n_var=4), NSGA2(pop_size=20), ("n_gen", 10), seed=1, verbose=True)
        return result.F, [float(line.split("|")[-1]) for line in capsys.readouterr().out.splitlines()[3:]]

    F, expected = run()
    sorts = []
    monkeypatch.setattr(morlfast, "non_dominated_sort", recorded(morlfast.non_dominated_sort, sorts))
    with ours.patch():
        own_F, value = run()
    assert len(sorts) >= 10
    assert np.array_equal(own_F, F)
    assert len(expected) == 10
    assert value == pytest.approx(expected, rel=1e-9)  # as many digits are shown


def recorded(function, calls):
    def record(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    return record


@pytest.mark.parametrize("name", ["NSGA3", "CTAEA", "SMSEMOA"])
def test_algorithms_of_pymoo_find_the_same_points(name):
    import importlib

    from pymoo.optimize import minimize
    from pymoo.problems import get_problem
    from pymoo.util.ref_dirs import get_reference_directions

    module = importlib.import_module(f"pymoo.algorithms.moo.{'sms' if name == 'SMSEMOA' else name.lower()}")
    cls = getattr(module, name)
    directions = get_reference_directions("das-dennis", 3, n_partitions=4)

    def run():
        algorithm = cls(pop_size=16) if name == "SMSEMOA" else cls(directions)
        return minimize(get_problem("dtlz2", n_var=6), algorithm, ("n_gen", 6), seed=1).F

    expected = run()
    with ours.patch():
        assert np.array_equal(run(), expected)


def sets(rng, n, m):
    """Random, tied, duplicated, one front a row, integers."""
    F = rng.random((n, m))
    yield F
    yield rng.integers(0, 4, (n, m)).astype(float)
    yield F[rng.integers(0, n, n)]
    yield np.repeat(F[:, :1], m, axis=1)
    yield rng.integers(0, 4, (n, m))


def assert_same(value, expected):
    if isinstance(expected, (list, tuple)):
        assert type(value) is type(expected)
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_same(one, other)
        return
    assert value.dtype == expected.dtype
    assert value.shape == expected.shape
    assert np.array_equal(value, expected)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (5, 1), (60, 2), (60, 3), (50, 5)])
def test_fronts_are_those_of_pymoo(rng, n, m):
    for F in sets(rng, n, m):
        for arguments in (
            {},
            {"return_rank": True},
            {"only_non_dominated_front": True},
            {"only_non_dominated_front": True, "return_rank": True},
            *({"return_rank": True, "n_stop_if_ranked": count} for count in (0, 1, n // 2, n, n + 1)),
            *({"return_rank": True, "n_fronts": count} for count in (0, 1, 2, n + 1)),
            {"n_fronts": 2, "n_stop_if_ranked": n // 2},
        ):
            value = ours.NonDominatedSorting().do(F, **arguments)
            assert_same(value, non_dominated_sorting.NonDominatedSorting().do(F, **arguments))


def test_fronts_of_no_points(rng):
    for F in (np.empty((0, 3)), np.array([])):
        for arguments in ({}, {"return_rank": True}, {"only_non_dominated_front": True}):
            value = ours.NonDominatedSorting().do(F, **arguments)
            assert_same(value, non_dominated_sorting.NonDominatedSorting().do(F, **arguments))
        assert_same(ours.find_non_dominated(F), non_dominated_sorting.find_non_dominated(F))


class LooseDominator:
    """A little better is not better."""

    def calc_domination_matrix(self, F, _F=None):
        rounded = np.round(F, 1)
        worse, better = ((sign * (rounded[:, None] - rounded) > 0).any(-1) for sign in (1, -1))
        return better.astype(int) - worse


def test_epsilon_and_dominators_of_ones_own(rng):
    F = rng.random((30, 2))
    for arguments in ({"epsilon": 0.1}, {"epsilon": np.array([0.1, 0.2])}, {"dominator": LooseDominator()}):
        value = ours.NonDominatedSorting(**arguments).do(F, return_rank=True)
        assert_same(value, non_dominated_sorting.NonDominatedSorting(**arguments).do(F, return_rank=True))


def test_the_non_dominated_alone_and_against_others(rng):
    for F in sets(rng, 40, 3):
        assert_same(ours.find_non_dominated(F), non_dominated_sorting.find_non_dominated(F))
        for others in (F, F[:5], rng.integers(0, 3, (4, 3)).astype(float)):
            value, expected = ours.find_non_dominated(F, others), non_dominated_sorting.find_non_dominated(F, others)
            assert_same(value, expected)


def test_rows_with_nan_come_last():
    F = np.array([[1.0, 3.0], [np.nan, 0.0], [2.0, 4.0]])
    assert [front.tolist() for front in ours.NonDominatedSorting().do(F)] == [[0], [2], [1]]
    assert ours.find_non_dominated(F).tolist() == [0]


INDICATORS = [
    (ours.IGD, igd.IGD),
    (ours.GD, gd.GD),
    (ours.IGDPlus, igd_plus.IGDPlus),
    (ours.GDPlus, gd_plus.GDPlus),
]
distances = pytest.mark.parametrize(("own", "original"), INDICATORS, ids=["IGD", "GD", "IGDPlus", "GDPlus"])


@distances
@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_distances_are_those_of_pymoo(rng, own, original, m):
    scale = 10.0 ** np.arange(m)
    for arguments in (
        {},
        {"norm_by_dist": True},
        {"zero_to_one": True},
        {"zero_to_one": True, "ideal": np.zeros(m), "nadir": 1.2 * scale},
        {"norm_by_dist": True, "ideal": np.zeros(m), "nadir": 1.2 * scale},
    ):
        pf = rng.random((20, m)) * scale
        for F in (rng.random((30, m)) * scale, pf[rng.integers(0, 20, 30)], rng.integers(0, 4, (9, m)), pf[0]):
            value, expected = own(pf, **arguments)(F), original(pf, **arguments)(F)
            assert type(value) is type(expected) is float
            assert value == pytest.approx(expected, rel=1e-12, abs=1e-13)


@distances
def test_distances_of_no_points_and_of_any_layout(rng, own, original):
    pf, F = rng.random((12, 3)), rng.random((10, 6))
    assert own(pf)(np.empty((0, 3))) == original(pf)(np.empty((0, 3))) == 0
    for view in (F[::-1, ::2], np.asfortranarray(F[:, 3:])):
        assert own(pf)(view) == pytest.approx(original(pf)(view), rel=1e-12)
    with pytest.raises(ValueError, match="row 1"):
        own(pf)(np.array([[0.5] * 3, [0.1, np.nan, 0.1]]))


def test_patch_reaches_what_was_made_before_and_ends(rng):
    places = [
        (non_dominated_sorting, "find_non_dominated"),
        (non_dominated_sorting.NonDominatedSorting, "do"),
        *((original, "_do") for original in (hv.Hypervolume, hv.HV, *(original for _, original in INDICATORS))),
    ]
    originals = [getattr(*place) for place in places]
    F = rng.random((9, 3))
    indicators = [hv.HV(ref_point=np.ones(3)), *(original(F[:4]) for _, original in INDICATORS)]
    expected = [indicator(F[4:]) for indicator in indicators]
    with ours.patch():
        assert all(getattr(*place).__module__ == ours.__name__ for place in places)
        with pytest.raises(ValueError, match="row 1"):
            indicators[0](np.array([[0.5, 0.5, 0.5], [np.nan, 0.5, 0.5]]))
        assert [indicator(F[4:]) for indicator in indicators] == pytest.approx(expected, rel=1e-12)
    assert [getattr(*place) for place in places] == originals
    assert "_do" not in vars(gd.GD)


def test_nan_is_an_error_that_names_the_row():
    with pytest.raises(ValueError, match="row 1"):
        ours.HV(ref_point=np.ones(4))(np.array([[0.5] * 4, [0.1, np.nan, 0.1, 0.1]]))


def test_the_ways_to_give_no_reference_point():
    for cls in (hv.HV, ours.HV):
        with pytest.raises(AssertionError, match="reference point"):
            cls()
