"""`morlfast.integrations.evox` and `.evomo` against EvoX and EvoMO."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

pytest.importorskip("evox")

CASES = [
    (n, m, kind)
    for n, m in [(1, 2), (2, 1), (40, 2), (60, 3), (50, 5), (100, 2)]
    for kind in ("random", "ties", "duplicates", "line")
]


def points(n, m, kind, dtype=torch.float32, seed=5):
    generator = torch.Generator().manual_seed(seed + n)
    if kind == "ties":
        return torch.randint(0, 4, (n, m), generator=generator).to(dtype)
    x = torch.rand(n, m, generator=generator, dtype=torch.float64).to(dtype)
    if kind == "duplicates":
        return torch.cat([x[: n // 2], x[: n - n // 2]])
    if kind == "line":  # as many fronts as points
        return x[:, :1].expand(n, m).contiguous()
    return x


@pytest.fixture(params=["evox", "evomo"])
def library(request):
    """Our module, and the module where the library keeps its own."""
    pytest.importorskip(request.param)
    selection = importlib.import_module(f"{request.param}.operators.selection")
    return importlib.import_module(f"morlfast.integrations.{request.param}"), selection


def test_the_examples_of_docstrings_hold(library):
    results = doctest.testmod(library[0])
    assert (results.attempted > 0, results.failed) == (True, 0)


@pytest.mark.parametrize(("n", "m", "kind"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_are_those_of_the_original(library, n, m, kind, dtype):
    ours, selection = library
    x = points(n, m, kind, dtype)
    value, expected = ours.non_dominate_rank(x), selection.non_dominate_rank(x)
    assert value.dtype is expected.dtype is torch.int32
    assert torch.equal(value, expected)


def test_integers_and_half_precision_are_taken(library):
    ours, selection = library
    x = points(30, 3, "ties")
    for dtype in (torch.int64, torch.int32, torch.float16, torch.bfloat16):
        assert torch.equal(ours.non_dominate_rank(x.to(dtype)), selection.non_dominate_rank(x.to(dtype)))


def test_infinities_and_signed_zeros_are_ordinary_values(library):
    ours, selection = library
    inf = float("inf")
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [-inf, 2.0], [inf, inf], [inf, -inf], [0.0, inf]])
    assert torch.equal(ours.non_dominate_rank(x), selection.non_dominate_rank(x))


def test_nan_is_worst_and_none_are_fine(library):
    ours, _ = library
    x = torch.tensor([[1.0, 3.0], [float("nan"), 0.0], [2.0, 4.0]])
    assert ours.non_dominate_rank(x).tolist() == [0, 2, 1]
    assert ours.non_dominate_rank(torch.empty(0, 2)).tolist() == []


def test_it_compiles_in_one_graph(library):
    ours, selection = library
    x = points(40, 3, "random")
    with ours.patch():
        compiled = torch.compile(lambda x: selection.non_dominate_rank(2 * x) + 1, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), ours.non_dominate_rank(2 * x) + 1)


def test_it_can_be_mapped_over_populations(library):
    ours, selection = library
    x = torch.stack([points(30, 3, "random", seed=seed) for seed in range(4)])
    value = torch.vmap(ours.non_dominate_rank)(x)
    assert value.dtype is torch.int32
    assert torch.equal(value, torch.stack([selection.non_dominate_rank(population) for population in x]))


def run(algorithms, name, m=3, steps=8):
    """Objectives of the population of each step, on DTLZ2."""
    from evox.problems.numerical import DTLZ2
    from evox.workflows import StdWorkflow

    torch.manual_seed(3)
    algorithm = getattr(algorithms, name)(pop_size=28, n_objs=m, lb=torch.zeros(8), ub=torch.ones(8))
    workflow = StdWorkflow(algorithm, DTLZ2(d=8, m=m))
    workflow.init_step()
    steps_of_it = []
    for _ in range(steps):
        workflow.step()
        steps_of_it.append(workflow.algorithm.fit.clone())
    return torch.cat(steps_of_it)


# HypE samples for half a second a step, and EvoX's NSGA-III compiles loops for as long.
@pytest.mark.parametrize("name", ["NSGA2", "NSGA3", "HypE", "RVEAa"])
def test_algorithms_take_the_same_steps(library, name):
    ours, selection = library
    package = selection.__name__.partition(".")[0]
    algorithms = importlib.import_module(f"{package}.algorithms")
    steps = 1 if name == "HypE" or (package, name) == ("evox", "NSGA3") else 8
    expected = run(algorithms, name, steps=steps)
    original = selection.non_dominate_rank
    with ours.patch():
        assert selection.non_dominate_rank is ours.non_dominate_rank
        value = run(algorithms, name, steps=steps)
    assert selection.non_dominate_rank is original
    torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def evomo():
    return pytest.importorskip("evomo.operators.selection.non_dominate")


@pytest.mark.parametrize(("n", "m", "kind"), CASES)
@pytest.mark.parametrize("constraints", [None, 1, 3])
def test_constraints_are_those_of_evomo(evomo, n, m, kind, constraints):
    from morlfast.integrations.evomo import non_dominate_rank

    generator = torch.Generator().manual_seed(n)
    x = points(n, m, kind)
    shape = (n,) if constraints is None else (n, constraints)
    for cv in (
        torch.randn(shape, generator=generator),
        torch.randint(-1, 3, shape, generator=generator).float(),
        torch.rand(shape, generator=generator) + 0.1,
    ):
        value, expected = non_dominate_rank(x, cv), evomo.non_dominate_rank(x, cv)
        assert value.dtype is expected.dtype
        assert torch.equal(value, expected)


@pytest.mark.parametrize(("n", "m", "kind"), CASES)
def test_environmental_selection_stops_where_evomo_does(evomo, n, m, kind):
    from morlfast.integrations.evomo import environmental_selection_rank

    if not hasattr(evomo, "_environmental_selection_rank"):
        pytest.skip("EvoMO before 0.3.0 does not stop")
    x = points(n, m, kind)
    cv = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(n)).float()
    for topk in {1, max(n // 3, 1), max(n - 1, 1), n}:
        for violations in (None, cv, torch.zeros(n)):
            value = environmental_selection_rank(x, topk, violations)
            expected = evomo._environmental_selection_rank(x, topk, violations)
            assert value.dtype is expected.dtype
            assert torch.equal(value, expected)


def test_environmental_selection_compiles_in_one_graph(evomo):
    from morlfast.integrations.evomo import environmental_selection_rank

    x = points(40, 3, "random")
    compiled = torch.compile(environmental_selection_rank, fullgraph=True, backend="eager")
    for topk in (10, 40):
        assert torch.equal(compiled(x, topk), environmental_selection_rank(x, topk))


def test_environmental_selection_of_evomo_chooses_the_same(evomo):
    from morlfast.integrations import evomo as ours

    f = points(60, 3, "random")
    x = torch.arange(60.0).unsqueeze(-1)
    cv = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(1)).float()
    for violations in (None, cv):
        torch.manual_seed(0)
        expected = evomo.nd_environmental_selection(x, f, 25, violations)
        with ours.patch():
            torch.manual_seed(0)
            value = evomo.nd_environmental_selection(x, f, 25, violations)
        assert torch.equal(value[0], expected[0])
        assert torch.equal(value[2], expected[2])
