"""`morlfast.integrations.botorch` against BoTorch."""

from __future__ import annotations

import doctest

import pytest
import torch

box_decompositions = pytest.importorskip("botorch.utils.multi_objective.box_decompositions")

from botorch.acquisition.multi_objective import logei  # noqa: E402
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement  # noqa: E402
from botorch.acquisition.multi_objective.monte_carlo import (  # noqa: E402
    qExpectedHypervolumeImprovement,
    qNoisyExpectedHypervolumeImprovement,
)
from botorch.models import SingleTaskGP  # noqa: E402
from botorch.optim import initializers  # noqa: E402
from botorch.sampling.normal import SobolQMCNormalSampler  # noqa: E402
from botorch.utils.multi_objective import pareto  # noqa: E402
from botorch.utils.multi_objective.pareto import is_non_dominated  # noqa: E402
from morlfast.integrations import botorch as ours  # noqa: E402

PAIRS = [
    (ours.DominatedPartitioning, box_decompositions.DominatedPartitioning),
    (ours.FastNondominatedPartitioning, box_decompositions.FastNondominatedPartitioning),
]
both = pytest.mark.parametrize(("own", "original"), PAIRS, ids=["dominated", "non_dominated"])
pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(22)


def outcomes(generator, *shape, dtype=torch.float64):
    """Some dominated, some beyond the reference point 0."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64).mul(1.2).sub(0.2).to(dtype)


def volume_below(bounds, ideal):
    """Of the boxes (2, ..., K, m), cut at `ideal`."""
    return (bounds[1].clamp_max(ideal) - bounds[0].clamp_max(ideal)).prod(-1).sum(-1)


def test_the_examples_of_docstrings_hold():
    results = doctest.testmod(ours)
    assert (results.attempted > 0, results.failed) == (True, 0)


@both
@pytest.mark.parametrize("m", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [0, 1, 12])
def test_hypervolume_and_front(own, original, m, n, generator):
    Y = outcomes(generator, n, m)
    ref_point = torch.zeros(m, dtype=torch.float64)
    value, expected = own(ref_point, Y), original(ref_point, Y)
    torch.testing.assert_close(value.compute_hypervolume(), expected.compute_hypervolume(), rtol=1e-12, atol=1e-13)
    assert torch.equal(value.pareto_Y, expected.pareto_Y)
    assert torch.equal(value.ref_point, expected.ref_point)
    assert torch.equal(value.Y, Y)


@both
@pytest.mark.parametrize("m", [2, 3, 4])
def test_ties_and_duplicates(own, original, m, generator):
    for _ in range(10):
        Y = torch.randint(0, 4, (12, m), generator=generator).double()
        value, expected = own(torch.zeros(m).double(), Y), original(torch.zeros(m).double(), Y)
        assert value.compute_hypervolume() == expected.compute_hypervolume()
        assert torch.equal(value.pareto_Y, expected.pareto_Y)
        ideal = torch.full((m,), 4.0).double()
        assert volume_below(value.get_hypercell_bounds(), ideal) == volume_below(expected.get_hypercell_bounds(), ideal)


@both
@pytest.mark.parametrize("m", [2, 3, 4])
def test_boxes_are_disjoint_and_cover_the_same_region(own, original, m, generator):
    Y = outcomes(generator, 10, m)
    ref_point = torch.zeros(m).double()
    value, expected = own(ref_point, Y).get_hypercell_bounds(), original(ref_point, Y).get_hypercell_bounds()
    assert value.shape[0] == 2
    assert value.shape[2:] == (m,)
    assert value.dtype is torch.float64
    assert (value[0] <= value[1]).all()
    ideal = torch.full((m,), 1.5).double()
    torch.testing.assert_close(volume_below(value, ideal), volume_below(expected, ideal), rtol=1e-12, atol=0)
    samples = torch.rand(2000, 1, m, generator=generator, dtype=torch.float64) * 1.5
    inside = [((samples > bounds[0]) & (samples < bounds[1])).all(-1).sum(-1) for bounds in (value, expected)]
    assert torch.equal(*inside)
    assert inside[0].max() == 1


@both
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_point_counts(own, original, m, dtype):
    ref_point = torch.zeros(m, dtype=dtype)
    for Y in (torch.empty(0, m, dtype=dtype), -torch.ones(3, m, dtype=dtype), torch.zeros(1, m, dtype=dtype)):
        value, expected = own(ref_point, Y), original(ref_point, Y)
        assert value.compute_hypervolume() == expected.compute_hypervolume() == 0
        assert value.compute_hypervolume().dtype is dtype
        assert torch.equal(value.get_hypercell_bounds(), expected.get_hypercell_bounds())
        assert value.get_hypercell_bounds().dtype is dtype
    assert own(ref_point).compute_hypervolume() == 0


@both
@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_batches(own, original, m, batch, generator):
    Y = outcomes(generator, *batch, 8, m)
    Y[(0,) * len(batch)] = -1.0  # a front of no points
    for ref_point in (torch.zeros(m).double(), outcomes(generator, *batch, m) / 4):
        value = own(ref_point, Y)
        bounds = value.get_hypercell_bounds()
        assert bounds.shape[:-2] == (2, *batch)
        expanded = ref_point.expand(*batch, m)
        ideal = torch.full((m,), 1.5).double()
        for index in torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)).tolist():
            at = tuple(index)
            expected = original(expanded[at], Y[at])
            volumes = value.compute_hypervolume()[at], expected.compute_hypervolume()
            torch.testing.assert_close(*volumes, rtol=1e-12, atol=0)
            volume = volume_below(bounds[(slice(None), *at)], ideal)
            torch.testing.assert_close(volume, volume_below(expected.get_hypercell_bounds(), ideal), rtol=1e-12, atol=0)
    if m == 2 and len(batch) == 1:
        expected = original(ref_point, Y)
        torch.testing.assert_close(value.compute_hypervolume(), expected.compute_hypervolume(), rtol=1e-12, atol=1e-15)
        assert torch.equal(value.pareto_Y, expected.pareto_Y)


@both
@pytest.mark.parametrize("m", [2, 3])
def test_update_adds_points(own, original, m, generator):
    first, second, third = outcomes(generator, 3, 6, m)
    ref_point = torch.zeros(m).double()
    value, expected = own(ref_point, first), original(ref_point, first)
    value.get_hypercell_bounds()
    for more in (second, third, second - 2):
        value.update(more)
        expected.update(more)
        torch.testing.assert_close(value.compute_hypervolume(), expected.compute_hypervolume(), rtol=1e-12, atol=0)
        assert set(map(tuple, value.pareto_Y.tolist())) == set(map(tuple, expected.pareto_Y.tolist()))
        ideal = torch.full((m,), 1.5).double()
        volumes = [volume_below(partitioning.get_hypercell_bounds(), ideal) for partitioning in (value, expected)]
        torch.testing.assert_close(*volumes, rtol=1e-12, atol=0)
    late = own(ref_point)
    late.update(torch.cat([first, second, third]))
    assert late.compute_hypervolume() == value.compute_hypervolume()


@both
def test_nan_is_refused_as_botorch_refuses_it(own, original):
    for cls in (own, original):
        with pytest.raises(ValueError, match="NaN inputs are not supported"):
            cls(torch.zeros(2), torch.tensor([[1.0, float("nan")]]))


@both
def test_a_list_of_decompositions_takes_them(own, original, generator):
    Ys = [outcomes(generator, n, 3) for n in (3, 9)]
    ref_point = torch.zeros(3).double()
    value, expected = (
        box_decompositions.BoxDecompositionList(*(cls(ref_point, Y) for Y in Ys)) for cls in (own, original)
    )
    torch.testing.assert_close(value.compute_hypervolume(), expected.compute_hypervolume(), rtol=1e-12, atol=0)
    ideal = torch.full((3,), 1.5).double()
    volumes = [volume_below(partitioning.get_hypercell_bounds(), ideal) for partitioning in (value, expected)]
    torch.testing.assert_close(*volumes, rtol=1e-12, atol=0)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_hypervolume_is_differentiable(m, generator):
    Y = outcomes(generator, 7, m).requires_grad_()
    ref_point = torch.zeros(m).double()
    (gradient,) = torch.autograd.grad(ours.DominatedPartitioning(ref_point, Y).compute_hypervolume(), Y)
    assert torch.autograd.gradcheck(lambda Y: ours.DominatedPartitioning(ref_point, Y).compute_hypervolume(), Y)
    original = box_decompositions.DominatedPartitioning(ref_point, Y).compute_hypervolume()
    if m == 2:
        torch.testing.assert_close(gradient, torch.autograd.grad(original, Y)[0], rtol=1e-12, atol=1e-14)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(original, Y)


@pytest.fixture
def model(generator):
    """A Gaussian process of m outcomes as it is before any fit, on 8 points in the square."""

    def build(m):
        X = torch.rand(8, 2, generator=generator, dtype=torch.float64)
        Y = torch.randn(8, m, generator=generator, dtype=torch.float64)
        return SingleTaskGP(X, Y), Y, torch.full((m,), -1.0, dtype=torch.float64)

    return build


@pytest.mark.parametrize("m", [2, 3, 4])
def test_expected_hypervolume_improvement(model, m, generator):
    gp, Y, ref_point = model(m)
    candidates = torch.rand(5, 1, 2, generator=generator, dtype=torch.float64)
    value, expected = (
        ExpectedHypervolumeImprovement(gp, ref_point.tolist(), partitioning=cls(ref_point, Y))(candidates)
        for cls in PAIRS[1]
    )
    assert (expected > 0).all()
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)


def evaluate(acquisition, candidates):
    values = acquisition(candidates)
    return values.detach(), torch.autograd.grad(values.sum(), candidates)[0]


def sampler():
    return SobolQMCNormalSampler(torch.Size([32]), seed=1)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_monte_carlo_expected_hypervolume_improvement(model, m, generator):
    gp, Y, ref_point = model(m)
    candidates = torch.rand(5, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    results = [
        evaluate(
            qExpectedHypervolumeImprovement(gp, ref_point.tolist(), cls(ref_point, Y), sampler=sampler()), candidates
        )
        for cls in PAIRS[1]
    ]
    assert (results[1][0] > 0).any()
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_its_logarithm(model, m, generator, monkeypatch):
    """A smooth approximation that depends on the boxes; sharper, it does not."""
    monkeypatch.setattr(logei, "_load_attempted", True)  # else BoTorch compiles C++ here, for a minute
    gp, Y, ref_point = model(m)
    candidates = torch.rand(5, 2, 2, generator=generator, dtype=torch.float64)

    def values(cls, **smoothing):
        partitioning = cls(ref_point, Y)
        return logei.qLogExpectedHypervolumeImprovement(
            gp, ref_point.tolist(), partitioning, sampler=sampler(), **smoothing
        )(candidates).detach()

    sharp = [values(cls, tau_relu=1e-12, tau_max=1e-6) for cls in PAIRS[1]]
    torch.testing.assert_close(*sharp, rtol=1e-8, atol=1e-8)
    default = [values(cls) for cls in PAIRS[1]]
    torch.testing.assert_close(*default, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("m", [2, 3])
def test_patch_serves_noisy_expected_hypervolume_improvement(model, m, generator):
    gp, _, ref_point = model(m)
    X_baseline, candidates = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64)
    candidates = candidates.view(3, 2, 2).requires_grad_()

    def build():
        return qNoisyExpectedHypervolumeImprovement(
            gp, ref_point.tolist(), X_baseline, sampler=sampler(), incremental_nehvi=False
        )

    expected = evaluate(build(), candidates)
    with ours.patch():
        acquisition = build()
    value = evaluate(acquisition, candidates)
    partitionings = getattr(acquisition.partitioning, "box_decompositions", [acquisition.partitioning])
    assert {type(partitioning) for partitioning in partitionings} == {ours.FastNondominatedPartitioning}
    assert (expected[0] > 0).any()
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)


def test_patch_can_be_undone():
    from botorch.utils.multi_objective import hypervolume

    originals = [original for _, original in PAIRS]
    with ours.patch():
        for module in (box_decompositions, hypervolume):
            assert [getattr(module, cls.__name__) for cls in originals] == [own for own, _ in PAIRS]
        assert pareto.is_non_dominated is initializers.is_non_dominated is ours.is_non_dominated
    for module in (box_decompositions, hypervolume):
        assert [getattr(module, cls.__name__) for cls in originals] == originals
    assert pareto.is_non_dominated is initializers.is_non_dominated is is_non_dominated


def sets(generator, n, m):
    """Random, tied, duplicated, batches of both, integers."""
    Y = torch.rand(n, m, generator=generator, dtype=torch.float64)
    yield Y
    yield torch.randint(0, 4, (n, m), generator=generator).float()
    yield torch.cat([Y, Y[: n // 2]])
    yield Y.expand(3, 2, n, m).float() + torch.randint(0, 3, (3, 2, n, m), generator=generator)
    yield Y.unsqueeze(0)[:, ::2]
    yield torch.randint(0, 4, (n, m), generator=generator)


@pytest.mark.parametrize(("n", "m"), [(0, 2), (1, 3), (7, 1), (40, 2), (40, 3), (30, 5), (1100, 3)])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_the_non_dominated_are_those_of_botorch(n, m, maximize, deduplicate, generator):
    for Y in sets(generator, n, m):
        if n > 1000 and Y.dim() > 2:
            continue  # BoTorch takes a second for each
        value = ours.is_non_dominated(Y, maximize=maximize, deduplicate=deduplicate)
        expected = is_non_dominated(Y, maximize=maximize, deduplicate=deduplicate)
        assert value.dtype is expected.dtype is torch.bool
        assert torch.equal(value, expected)


def test_the_defaults_are_those_of_botorch(generator):
    Y = torch.randint(0, 4, (20, 2), generator=generator).double().requires_grad_()
    assert torch.equal(ours.is_non_dominated(Y), is_non_dominated(Y))


def test_points_with_nan_are_dominated():
    nan = float("nan")
    Y = torch.tensor([[1.0, 2.0], [nan, 3.0], [nan, nan], [0.0, 1.0]])
    assert ours.is_non_dominated(Y).tolist() == [True, False, False, False]
    assert is_non_dominated(Y).tolist() == [True, False, False, False]
    assert ours.is_non_dominated(Y, deduplicate=False).tolist() == [True, False, False, False]
    assert is_non_dominated(Y, deduplicate=False).tolist() == [True, True, False, False]


def test_moving_a_partitioning_moves_what_its_boxes_are_made_of():
    for name in ("DominatedPartitioning", "FastNondominatedPartitioning"):
        partitioning = getattr(ours, name)(torch.zeros(3), torch.rand(8, 3)).to(torch.float64)
        assert partitioning.get_hypercell_bounds().dtype == torch.float64
        assert partitioning.compute_hypervolume().dtype == torch.float64
        assert getattr(ours, name)(torch.zeros(3)).get_hypercell_bounds() is None
