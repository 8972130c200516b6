"""Weight vectors, their adaptation and neighbours, and linear support, against definitions and other libraries."""

from __future__ import annotations

import math
import sys
from itertools import product
from math import comb
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.linear_support import LinearSupport, corner_priorities, corner_weights
from morlfast.weights import (
    awa_weights,
    incremental_simplex_lattice,
    layered_simplex_lattice,
    psa_weights,
    riesz_energy,
    riesz_weights,
    sample_weights,
    simplex_lattice,
    weight_neighbors,
    ws_transform,
)
from references import weights as reference

F32, F64 = torch.float32, torch.float64
INF = math.inf
NAN = math.nan


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn_weights(*shape: int, seed: int = 100, dtype: torch.dtype = F64) -> torch.Tensor:
    drawn = uniform(*shape, seed=seed) + 0.05
    return (drawn / drawn.sum(-1, keepdim=True)).to(dtype)


def on_simplex(weights: torch.Tensor, atol: float = 1e-12) -> bool:
    sums = weights.double().sum(-1)
    return bool((weights >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=atol)


def is_lexicographic(weights: torch.Tensor) -> bool:
    rows = list(map(tuple, weights.tolist()))
    return rows == sorted(rows)


# --- lattices ---


@pytest.mark.parametrize(
    ("m", "partitions"), [(1, 0), (1, 4), (2, 1), (2, 7), (3, 12), (4, 6), (5, 5), (7, 3), (12, 2)]
)
def test_a_lattice_is_every_composition(m, partitions):
    got = simplex_lattice(m, partitions)
    assert got.dtype == F64
    expected = reference.simplex_lattice(m, partitions) if partitions else [(1.0,)]
    assert len(expected) == comb(partitions + m - 1, m - 1)
    assert got.tolist() == [[float(a) for a in row] for row in expected]  # k / H, rounded once


@pytest.mark.parametrize("partitions", [3, 7, 10, 49, 99, 100])
def test_no_composition_is_lost_to_rounding(partitions):
    """Filtering a grid of multiples of 0.1 by a sum of exactly 1 loses 4 of 66 weights."""
    got = simplex_lattice(3, partitions)
    assert len(got) == comb(partitions + 2, 2)
    assert on_simplex(got, 1e-15)
    steps = got * partitions
    assert torch.allclose(steps, steps.round(), rtol=0, atol=1e-12)


def test_no_partition_is_the_centre():
    assert simplex_lattice(4, 0).tolist() == [[0.25] * 4]


@pytest.mark.parametrize(("m", "partitions"), [(2, 1), (2, 13), (3, 8), (4, 4), (6, 3)])
def test_lattices_agree_with_pymoo(m, partitions):
    ref_dirs = pytest.importorskip("pymoo.util.ref_dirs")
    expected = ref_dirs.get_reference_directions("das-dennis", m, n_partitions=partitions)
    got = simplex_lattice(m, partitions).numpy()
    assert len(np.unique(got.round(9), axis=0)) == len(got)
    assert np.unique(got.round(9), axis=0).tolist() == np.unique(expected.round(9), axis=0).tolist()


@pytest.mark.parametrize(
    ("m", "partitions", "scales"),
    [(3, [3, 2], [1.0, 0.5]), (2, [4], [0.25]), (5, [2, 1, 0], [1.0, 0.5, 0.1]), (1, [1], [1])],
)
def test_layers_are_drawn_to_the_centre(m, partitions, scales):
    expected: list[tuple[float, ...]] = []
    for h, scale in zip(partitions, scales, strict=True):
        lattice = [tuple(map(float, row)) for row in reference.simplex_lattice(m, h)] if h else [(1 / m,) * m]
        expected += reference.layer(lattice, scale)
    got = layered_simplex_lattice(m, partitions, scales)
    assert got.numpy() == pytest.approx(np.array(expected, dtype=float), abs=1e-15)
    assert on_simplex(got)


def test_a_weight_of_two_layers_is_kept_once():
    got = layered_simplex_lattice(2, [2, 4, 2], [1.0, 0.5, 0.0])
    # 1, 1/2, 0, then 3/4, 5/8, (1/2), 3/8, 1/4, then the centre three times.
    assert got[:, 0].sort().values.tolist() == pytest.approx([0, 0.25, 0.375, 0.5, 0.625, 0.75, 1])
    assert got[:3, 0].sort().values.tolist() == [0, 0.5, 1]


def test_layers_agree_with_pymoo():
    ref_dirs = pytest.importorskip("pymoo.util.ref_dirs")
    parts = [
        ref_dirs.get_reference_directions("das-dennis", 4, n_partitions=h, scaling=s) for h, s in ((3, 1.0), (2, 0.5))
    ]
    expected = np.unique(np.vstack(parts).round(9), axis=0)
    got = layered_simplex_lattice(4, [3, 2], [1.0, 0.5]).numpy()
    assert np.unique(got.round(9), axis=0) == pytest.approx(expected, abs=1e-8)
    assert len(got) == len(expected)


@pytest.mark.parametrize(("m", "rings"), [(2, 0), (2, 1), (2, 5), (3, 1), (3, 2), (3, 5), (4, 3), (5, 2)])
def test_an_incremental_lattice_grows_by_rings(m, rings):
    expected = sorted(reference.incremental_simplex_lattice(m, rings)) if rings else [(1 / m,) * m]
    got = incremental_simplex_lattice(m, len(expected))
    assert got.numpy() == pytest.approx(np.array(expected, dtype=float), abs=1e-15)
    assert is_lexicographic(got)


@pytest.mark.parametrize(("m", "rings"), [(2, 4), (3, 3), (4, 2)])
def test_incremental_lattices_agree_with_pymoo(m, rings):
    ref_dirs = pytest.importorskip("pymoo.util.ref_dirs")
    expected = ref_dirs.get_reference_directions("incremental", m, n_partitions=rings)
    assert incremental_simplex_lattice(m, len(expected)).numpy() == pytest.approx(expected, abs=1e-15)


def test_an_unreachable_count_names_its_neighbours():
    with pytest.raises(ValueError, match=r"count.*\b19\b.*\b31\b"):
        incremental_simplex_lattice(3, 20)
    with pytest.raises(ValueError, match="count"):
        incremental_simplex_lattice(3, 0)


def test_one_objective_has_one_weight():
    for got in (
        simplex_lattice(1, 9),
        layered_simplex_lattice(1, [2, 3], [1.0, 0.5]),
        incremental_simplex_lattice(1, 1),
    ):
        assert got.tolist() == [[1.0]]
    assert riesz_weights(1, 1).tolist() == [[1.0]]
    with pytest.raises(ValueError, match="count"):
        incremental_simplex_lattice(1, 2)
    with pytest.raises(ValueError, match="count"):
        riesz_weights(1, 2)


def test_lattices_in_float32():
    for got in (
        simplex_lattice(3, 7, dtype=F32),
        layered_simplex_lattice(3, [3, 2], [1.0, 0.5], dtype=F32),
        incremental_simplex_lattice(3, 10, dtype=F32),
        riesz_weights(3, 7, dtype=F32),
        sample_weights(3, 7, dtype=F32),
    ):
        assert got.dtype == F32
        assert on_simplex(got, 1e-6)
    assert torch.equal(simplex_lattice(3, 7, dtype=F32), simplex_lattice(3, 7).float())


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: simplex_lattice(0, 3), "objectives"),
        (lambda: simplex_lattice(3, -1), "partitions"),
        (lambda: simplex_lattice(3, 2.5), "partitions"),
        (lambda: simplex_lattice("3", 2), "objectives"),
        (lambda: layered_simplex_lattice(3, [], []), "partitions"),
        (lambda: layered_simplex_lattice(3, [2, 1], [1.0]), "scales"),
        (lambda: layered_simplex_lattice(3, [2], [1.5]), "scales"),
        (lambda: layered_simplex_lattice(3, [-2], [0.5]), "partitions"),
        (lambda: riesz_weights(0, 3), "objectives"),
        (lambda: riesz_weights(3, 0), "count"),
        (lambda: riesz_weights(3, 5, power=0.0), "power"),
        (lambda: sample_weights(0, 3), "objectives"),
        (lambda: sample_weights(3, -1), "count"),
        (lambda: sample_weights(3, 2, distribution="normal"), "distribution"),
        (lambda: sample_weights(3, 2, distribution="dirichlet", alpha=0.0), "alpha"),
        (lambda: sample_weights(3, 2, distribution="dirichlet", alpha=[1.0, 1.0]), "alpha"),
        (lambda: simplex_lattice(3, 2, dtype=torch.int64), "dtype"),
    ],
)
def test_what_cannot_be_made_is_named(call, argument):
    with pytest.raises((ValueError, TypeError), match=argument):
        call()


# --- Riesz ---


# riesz_energy of what pymoo 0.6.2 returns, whatever the seed.
PYMOO_ENERGIES = {(2, 20): 8.1621, (3, 10): 3.6231, (4, 56): 8.1458}


@pytest.mark.parametrize(("m", "count"), PYMOO_ENERGIES)
def test_riesz_weights_have_no_more_energy_than_those_of_pymoo(m, count):
    got = riesz_weights(m, count)
    assert got.shape == (count, m)
    assert on_simplex(got)
    assert is_lexicographic(got)
    assert riesz_energy(got) <= PYMOO_ENERGIES[m, count] + 1e-3


def test_the_energy_of_pymoo_is_what_pymoo_gives():
    ref_dirs = pytest.importorskip("pymoo.util.ref_dirs")
    peer = torch.from_numpy(ref_dirs.get_reference_directions("energy", 3, 10, seed=42))
    assert riesz_energy(peer).item() == pytest.approx(PYMOO_ENERGIES[3, 10], abs=1e-3)


def test_riesz_weights_of_two_objectives_are_nearly_equally_spaced():
    gaps = riesz_weights(2, 11)[:, 0].diff()
    assert gaps.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert gaps.max() < 1.15 * gaps.min()


def test_riesz_weights_reach_the_corners():
    got = riesz_weights(3, 3)
    assert torch.cdist(torch.eye(3, dtype=F64), got).amin(1).max() < 1e-6
    assert riesz_weights(4, 1).tolist() == [[0.25] * 4]


def test_riesz_weights_are_the_same_each_time_and_ones_own():
    first = riesz_weights(3, 7)
    expected = first.clone()
    first.fill_(NAN)
    again = riesz_weights(3, 7)
    assert torch.equal(again, expected)
    torch.manual_seed(1)
    assert torch.equal(riesz_weights(3, 7, seed=0), expected)
    assert not torch.equal(riesz_weights(3, 7, seed=1), expected)


def test_riesz_weights_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    riesz_weights(3, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_riesz_weights_have_a_gradient_to_nobody():
    assert not riesz_weights(3, 4).requires_grad
    with torch.inference_mode():
        made = riesz_weights(2, 5)
    assert not riesz_weights(2, 5).is_inference()
    assert torch.equal(riesz_weights(2, 5), made)


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("power", [None, 1.0, 7.0])
def test_riesz_energy(m, power):
    w = drawn_weights(2, 9, m)
    got = riesz_energy(w, power=power)
    assert got.shape == (2,)
    for i in range(2):
        assert got[i].item() == pytest.approx(reference.riesz_energy(w[i].tolist(), power or 2 * m), rel=1e-12)
    assert torch.autograd.gradcheck(lambda w: riesz_energy(w, power=power), (w.requires_grad_(),))


def test_riesz_energy_without_pairs_and_of_equal_rows():
    assert riesz_energy(drawn_weights(1, 3)).item() == -INF
    assert riesz_energy(drawn_weights(0, 3)).item() == -INF
    assert riesz_energy(torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])).item() == INF


# --- samples ---


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"distribution": "dirichlet", "alpha": 0.5}, {"distribution": "gaussian"}])
def test_samples_lie_on_the_simplex_and_can_be_drawn_again(options):
    got = sample_weights(4, 50, generator=generator(3), **options)
    assert got.shape == (50, 4)
    assert got.dtype == F64
    assert on_simplex(got)
    assert torch.equal(got, sample_weights(4, 50, generator=generator(3), **options))
    assert not torch.equal(got, sample_weights(4, 50, generator=generator(4), **options))
    source = generator(3)
    first, second = (sample_weights(4, 50, generator=source, **options) for _ in range(2))
    assert torch.equal(first, got)
    assert not torch.equal(second, got)
    assert sample_weights(4, (3, 2), generator=source, **options).shape == (3, 2, 4)
    assert sample_weights(4, 0, generator=source, **options).shape == (0, 4)
    assert sample_weights(1, 3, generator=source, **options).tolist() == [[1.0]] * 3


@pytest.mark.parametrize("options", [{}, {"distribution": "dirichlet", "alpha": 0.5}, {"distribution": "gaussian"}])
def test_the_global_generator_is_drawn_from_only_without_another(options):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_weights(3, 5, generator=generator(0), **options)
    assert torch.equal(torch.get_rng_state(), before)
    first = sample_weights(3, 5, **options)
    torch.manual_seed(0)
    assert torch.equal(sample_weights(3, 5, **options), first)


@pytest.mark.parametrize("m", [2, 3, 6])
def test_uniform_samples_are_uniform(m):
    """Each weight is Beta(1, m - 1), and so is the sum of any of them Beta(k, m - k)."""
    stats = pytest.importorskip("scipy.stats")
    got = sample_weights(m, 20_000, generator=generator(m)).numpy()
    for j in range(m):
        assert stats.kstest(got[:, j], stats.beta(1, m - 1).cdf).pvalue > 1e-4
        if j > 0:
            assert stats.kstest(got[:, :j].sum(1), stats.beta(j, m - j).cdf).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [1.0, 0.3, 4.0, [0.5, 1.0, 3.0]])
def test_dirichlet_samples(alpha):
    stats = pytest.importorskip("scipy.stats")
    got = sample_weights(3, 20_000, distribution="dirichlet", alpha=alpha, generator=generator(1)).numpy()
    alphas = np.broadcast_to(alpha, 3)
    for j in range(3):
        assert stats.kstest(got[:, j], stats.beta(alphas[j], alphas.sum() - alphas[j]).cdf).pvalue > 1e-4


def test_gaussian_samples():
    stats = pytest.importorskip("scipy.stats")
    got = sample_weights(3, 20_000, distribution="gaussian", generator=generator(1)).numpy()
    normal = np.abs(np.random.default_rng(0).standard_normal((20_000, 3)))
    expected = normal / normal.sum(1, keepdims=True)
    for j in range(3):
        assert stats.ks_2samp(got[:, j], expected[:, j]).pvalue > 1e-4
    assert got.max(1).mean() == pytest.approx(expected.max(1).mean(), abs=0.01)


def test_a_small_alpha_still_gives_weights():
    got = sample_weights(4, 2000, distribution="dirichlet", alpha=1e-3, generator=generator(0))
    assert got.isfinite().all()
    assert on_simplex(got)
    assert on_simplex(
        sample_weights(4, 2000, distribution="dirichlet", alpha=0.05, generator=generator(0), dtype=F32), 1e-6
    )


# --- adaptation ---


@pytest.mark.parametrize("maximize", [True, False, [True, False, True]])
@pytest.mark.parametrize("delta", [0.1, 0.5])
def test_psa_moves_weights_away_from_the_nearest_point(maximize, delta):
    w, values, archive = drawn_weights(2, 7, 3), uniform(2, 7, 3), uniform(2, 11, 3, seed=1)
    archive[:, 3] = values[:, 2]
    values[:, 5] = values[:, 2]
    sign = torch.where(torch.tensor(maximize), 1.0, -1.0).double()
    got = psa_weights(w, values, archive, maximize=maximize, delta=delta)
    for i in range(2):
        expected = reference.psa_weights(
            w[i].tolist(), (sign * values[i]).tolist(), (sign * archive[i]).tolist(), delta, 0.01
        )
        assert got[i].numpy() == pytest.approx(np.array(expected), rel=1e-12)
    assert on_simplex(got)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 2.0]))
def test_psa_on_a_grid_full_of_ties(seed, least):
    rng = np.random.default_rng(seed)
    values, archive = rng.integers(0, 3, (5, 2)).astype(float), rng.integers(0, 3, (6, 2)).astype(float)
    w = drawn_weights(5, 2, seed=seed)
    got = psa_weights(w, values, archive, maximize=True, min_squared_distance=least)
    expected = reference.psa_weights(w.tolist(), values.tolist(), archive.tolist(), 0.1, least)
    assert got.numpy() == pytest.approx(np.array(expected), rel=1e-12)


def test_psa_without_a_point_to_move_from():
    w, values = torch.tensor([[1.0, 3.0]], dtype=F64), torch.tensor([[1.0, 1.0]], dtype=F64)
    for archive in (torch.zeros(0, 2, dtype=F64), torch.tensor([[1.05, 1.0], [NAN, 9.0]], dtype=F64)):
        assert psa_weights(w, values, archive, maximize=True).tolist() == [[0.25, 0.75]]
    empty = torch.zeros(0, 2, dtype=F64)
    assert psa_weights(empty, empty, values, maximize=True).shape == (0, 2)


def test_psa_of_ragged_archives():
    w, values, archive = drawn_weights(2, 7, 3), uniform(2, 7, 3), uniform(2, 11, 3, seed=1)
    lengths = torch.tensor([4, 0])
    got = psa_weights(w, values, archive, maximize=True, archive_lengths=lengths)
    torch.testing.assert_close(got[0], psa_weights(w[0], values[0], archive[0, :4], maximize=True))
    torch.testing.assert_close(got[1], w[1])


def test_psa_agrees_with_morl_baselines(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # which it imports and does not use here
    morld = pytest.importorskip("morl_baselines.multi_policy.morld.morld")
    w, values, archive = drawn_weights(7, 3).numpy(), uniform(7, 3).numpy(), uniform(11, 3, seed=1).numpy()
    policies = [
        SimpleNamespace(weights=row.copy(), wrapped=SimpleNamespace(set_weights=lambda weights: None)) for row in w
    ]
    algorithm = SimpleNamespace(
        weight_adaptation_method="PSA",
        delta=0.1,
        population=policies,
        archive=SimpleNamespace(evaluations=list(archive), individuals=list(archive)),
    )
    morld.MORLD._MORLD__adapt_weights(algorithm, list(values))
    got = psa_weights(w, values, archive, maximize=True)
    assert got.numpy() == pytest.approx(np.array([p.weights for p in policies]), rel=1e-12)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_awa_replaces_the_crowded_by_the_sparse(m, count):
    for seed in range(4):
        w, values, archive = drawn_weights(12, m), uniform(12, m, seed=seed), uniform(20, m, seed=seed + 50)
        ideal = torch.full((m,), -0.01, dtype=F64)
        got = awa_weights(w, values, archive, ideal, maximize=False, count=count)
        expected, rows = reference.awa_weights(
            w.tolist(), values.tolist(), archive.tolist(), ideal.tolist(), count, 1e-6
        )
        assert got.archive_rows.dtype == torch.int64
        assert got.archive_rows.tolist() == rows
        assert got.weights.numpy() == pytest.approx(np.array(expected), rel=1e-12)
        assert on_simplex(got.weights)
        assert (got.archive_rows >= 0).sum() == count


@pytest.mark.parametrize("maximize", [True, [True, False]])
def test_awa_of_maximized_objectives(maximize):
    w, values, archive = drawn_weights(9, 2), uniform(9, 2), uniform(8, 2, seed=1)
    sign = torch.where(torch.tensor(maximize), -1.0, 1.0).double()
    ideal = torch.tensor([1.1, 1.2], dtype=F64)
    got = awa_weights(w, values, archive, ideal, maximize=maximize, count=2)
    expected = awa_weights(w, sign * values, sign * archive, sign * ideal, maximize=False, count=2)
    torch.testing.assert_close(got.weights, expected.weights)
    assert torch.equal(got.archive_rows, expected.archive_rows)


def test_awa_of_an_archive_that_has_nothing_new():
    w, values = drawn_weights(6, 2), uniform(6, 2)
    for archive in (values.clone(), values[:0], torch.full((3, 2), NAN, dtype=F64)):
        got = awa_weights(w, values, archive, [0.0, 0.0], maximize=False, count=1)
        level = got.archive_rows.max().item()
        # The only value of the archive that is not among those left is the one that went.
        assert level == -1 or torch.equal(archive[level], values[got.archive_rows.argmax()])
    got = awa_weights(
        w, values, torch.stack([values[0], torch.tensor([NAN, 0.0])]), [0.0, 0.0], maximize=False, count=3
    )
    assert (got.archive_rows >= 0).sum() <= 1


def test_awa_on_the_ideal_point_is_finite():
    w, values = drawn_weights(4, 2), uniform(4, 2) + 1
    got = awa_weights(w, values, [[0.0, 5.0]], [0.0, 0.0], maximize=False, count=1)
    row = got.archive_rows.tolist().index(0)
    assert got.weights[row, 0].item() == pytest.approx(1.0, abs=1e-6)
    assert on_simplex(got.weights)


def test_awa_renews_a_twentieth_by_default():
    got = awa_weights(drawn_weights(60, 3), uniform(60, 3), uniform(90, 3, seed=1), [0.0] * 3, maximize=False)
    assert (got.archive_rows >= 0).sum() == 3
    few = awa_weights(drawn_weights(5, 3), uniform(5, 3), uniform(90, 3, seed=1), [0.0] * 3, maximize=False)
    assert (few.archive_rows >= 0).sum() == 1


def test_ws_transform_inverts_weights():
    w = drawn_weights(2, 5, 3)
    got = ws_transform(w)
    assert got.numpy() == pytest.approx((1 / w / (1 / w).sum(-1, keepdim=True)).numpy(), rel=1e-12)
    torch.testing.assert_close(ws_transform(got), w)
    corner = ws_transform(torch.tensor([1.0, 0.0], dtype=F64))
    assert corner.tolist() == pytest.approx([1e-6, 1 - 1e-6], abs=1e-11)
    assert on_simplex(ws_transform(torch.eye(4, dtype=F64)))


def test_awa_lets_values_with_nan_leave_first():
    w, values = drawn_weights(6, 2), uniform(6, 2)
    values[4, 1] = NAN
    got = awa_weights(w, values, uniform(5, 2, seed=1), 0.0, maximize=False, count=1)
    assert (got.archive_rows >= 0).nonzero().flatten().tolist() == [4]
    assert on_simplex(got.weights)


W, V, A = drawn_weights(5, 2), uniform(5, 2), uniform(7, 2, seed=1)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: psa_weights(W, V, A, maximize=True, delta=0.0), "delta"),
        (lambda: psa_weights(W[0], V, A, maximize=True), "weights"),
        (lambda: psa_weights(W, V[:4], A, maximize=True), "values"),
        (lambda: psa_weights(W, V, A[:, :1], maximize=True), "archive"),
        (lambda: psa_weights(W, V, A, maximize=True, archive_lengths=[3]), "archive_lengths"),
        (lambda: psa_weights(W, V, A), "maximize"),
        (lambda: psa_weights(W, V, A, maximize=[True]), "maximize"),
        (lambda: awa_weights(W, V, A, 0.0, maximize=True, count=-1), "count"),
        (lambda: awa_weights(W, V, A, 0.0, maximize=True, count=5), "count"),
        (lambda: awa_weights(W, V, A, 0.0, maximize=True, epsilon=0.0), "epsilon"),
        (lambda: awa_weights(W, V[:4], A, 0.0, maximize=True), "values"),
        (lambda: awa_weights(W, V, A[:, :1], 0.0, maximize=True), "archive"),
        (lambda: awa_weights(W, V, A, [0.0, 0.0, 0.0], maximize=True), "ideal_point"),
        (lambda: ws_transform(W, epsilon=0.0), "epsilon"),
        (lambda: ws_transform(W.half()), "weights"),
        (lambda: sample_weights(3, 2, alpha=2.0), "alpha"),
        (lambda: sample_weights(3, 2, distribution="gaussian", alpha=2.0), "alpha"),
        (lambda: riesz_energy(W[0]), "weights"),
        (lambda: riesz_energy(W, power=-1.0), "power"),
    ],
)
def test_what_does_not_fit_is_named(call, argument):
    with pytest.raises((ValueError, TypeError), match=argument):
        call()


# --- neighbours ---


def manhattan(a: list[float], b: list[float]) -> float:
    return math.fsum(abs(x - y) for x, y in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return 1 - math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize(
    ("metric", "distance"), [("euclidean", math.dist), ("manhattan", manhattan), ("cosine", cosine)]
)
@pytest.mark.parametrize("include_self", [False, True])
def test_neighbours_are_the_nearest_first(metric, distance, include_self):
    w = drawn_weights(30, 3)
    for k in (1, 5, 29, 30)[: 4 if include_self else 3]:
        got = weight_neighbors(w, k, metric=metric, include_self=include_self)
        assert got.dtype == torch.int64
        assert got.tolist() == reference.neighbors(w.tolist(), k, distance, include_self)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_neighbours_of_duplicates_and_ties(seed, include_self, skip_duplicates):
    """Eighths: distances are exact up to the root, so ties are ties."""
    rng = np.random.default_rng(seed)
    w = rng.multinomial(8, np.ones(3) / 3, rng.integers(2, 14)) / 8
    k = int(rng.integers(1, len(w) + include_self))
    got = weight_neighbors(w, k, include_self=include_self, skip_duplicates=skip_duplicates)
    expected = reference.neighbors(w.tolist(), k, reference.dist, include_self, skip_duplicates)
    assert got.tolist() == expected


def test_neighbours_agree_with_morl_baselines():
    utils = pytest.importorskip("morl_baselines.common.utils")
    w = [*map(np.array, drawn_weights(12, 3).tolist())]
    w += [w[3], w[0]]
    got = weight_neighbors(np.array(w), 5, skip_duplicates=True)
    for i, row in enumerate(w):
        assert got[i].tolist() == utils.nearest_neighbors(5, row, w, lambda a, b: np.sum(np.square(a - b)))


def test_neighbours_of_many_weights():
    """More rows than a chunk has."""
    w = drawn_weights(1500, 4)
    got = weight_neighbors(w, 4)
    distances = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(INF)
    expected = distances.topk(4, largest=False)
    torch.testing.assert_close(distances.gather(1, got), expected.values, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("k", "options"), [(0, {}), (5, {}), (6, {"include_self": True}), (-1, {})])
def test_too_many_neighbours(k, options):
    with pytest.raises(ValueError, match="k"):
        weight_neighbors(drawn_weights(5, 3), k, **options)


def test_bad_neighbours_are_named():
    with pytest.raises(ValueError, match="metric"):
        weight_neighbors(drawn_weights(5, 3), 2, metric="hamming")
    with pytest.raises(ValueError, match="weights"):
        weight_neighbors(drawn_weights(5), 2)
    with pytest.raises(TypeError, match="k"):
        weight_neighbors(drawn_weights(5, 3), 2.0)


# --- corner weights ---


def corners(points: np.ndarray, maximize: bool | list[bool] = True) -> torch.Tensor:
    return corner_weights(torch.tensor(points, dtype=F64), maximize=maximize)


def check_corners(points: np.ndarray, maximize: bool | list[bool] = True) -> None:
    signs = np.where(maximize, 1, -1)
    expected = sorted(reference.corner_weights((signs * points).tolist()))
    got = corners(points, maximize)
    assert got.shape == (len(expected), points.shape[1])
    assert on_simplex(got)
    assert is_lexicographic(got)
    unmatched = np.array(expected, dtype=float)
    assert np.abs(got.numpy()[:, None] - unmatched[None]).max(-1).min(0).max() < 1e-9
    assert np.abs(got.numpy()[:, None] - unmatched[None]).max(-1).min(1).max() < 1e-9


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 1), (1, 2), (8, 2), (2, 3), (7, 3), (5, 4), (4, 5)])
def test_corner_weights_are_the_vertices(n, m):
    for seed in range(3):
        check_corners(np.random.default_rng(seed).integers(-9, 10, (n, m)))


@pytest.mark.parametrize("side", [1, 2, 3])
def test_corner_weights_of_ties_and_duplicates(side):
    """Degenerate vertices, where more inequalities are tight than needed."""
    for seed in range(6):
        check_corners(np.random.default_rng(seed).integers(0, side + 1, (7, 3)))
        check_corners(np.random.default_rng(seed).integers(0, side + 1, (5, 4)))


@pytest.mark.parametrize("maximize", [False, [True, False, True]])
def test_corner_weights_of_other_senses(maximize):
    check_corners(np.random.default_rng(3).integers(-5, 6, (6, 3)), maximize)


def test_corner_weights_of_a_symmetric_front():
    check_corners(np.eye(3, dtype=int))
    check_corners(np.eye(4, dtype=int) * 3)
    check_corners(np.array(sorted(set(product((0, 1, 2), repeat=3)))[::4]))


def test_corner_weights_by_hand():
    got = corners(np.array([[0.0, 4.0], [3.0, 3.0], [4.0, 0.0], [1.0, 1.0]]))
    assert got.numpy() == pytest.approx(np.array([[0, 1], [0.25, 0.75], [0.75, 0.25], [1, 0]]))
    assert corners(np.zeros((0, 3))).tolist() == sorted(np.eye(3).tolist())
    assert corners(np.array([[2.0], [7.0]])).tolist() == [[1.0]]


def test_corner_weights_of_a_large_front_are_vertices():
    """Every corner is where the upper envelope has a vertex: m inequalities tight and independent."""
    m = 4
    directions = np.abs(np.random.default_rng(0).standard_normal((40, m)))
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    got = corners(points).numpy()
    assert len(np.unique(got.round(9), axis=0)) == len(got)
    for w in got:
        v = (points @ w).max()
        tight = np.vstack(
            [
                np.hstack([points[points @ w > v - 1e-9], -np.ones(((points @ w > v - 1e-9).sum(), 1))]),
                np.hstack([np.eye(m)[w < 1e-9], np.zeros(((w < 1e-9).sum(), 1))]),
                [[1.0] * m + [0.0]],
            ]
        )
        assert np.linalg.matrix_rank(tight, tol=1e-7) == m + 1


def test_corner_weights_in_float32_and_scaled():
    points = np.random.default_rng(0).integers(0, 9, (7, 3)).astype(float)
    expected = corners(points)
    got = corner_weights(torch.tensor(points, dtype=F32), maximize=True)
    assert got.dtype == F32
    assert torch.allclose(got.double(), expected, rtol=0, atol=1e-6)
    for scale in (1e-6, 1e6):
        assert torch.allclose(corners(points * scale), expected, rtol=0, atol=1e-9)
    shifted = corners(points + 1000.0)
    assert torch.allclose(shifted, expected, rtol=0, atol=1e-7)


def test_bad_points_of_corner_weights_are_named():
    for bad in (NAN, INF, -INF):
        for m in (2, 3):
            with pytest.raises(ValueError, match=r"points.*row 1"):
                corners(np.array([[1.0] * m, [bad] + [1.0] * (m - 1)]))
    with pytest.raises(ValueError, match="points"):
        corner_weights(torch.zeros(2, 3, 2), maximize=True)
    with pytest.raises(TypeError, match="maximize"):
        corner_weights(torch.zeros(3, 2))


# --- priorities ---


def priority(w: np.ndarray, points: np.ndarray, visited: np.ndarray, values: np.ndarray) -> float:
    """Roijers 2016, equation 3.8: what a new point could be worth, less the best known."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    done = linprog(-w, A_ub=visited, b_ub=values, bounds=(None, None), method="highs")
    return INF if done.status in (3, 4) else -done.fun - (points @ w).max()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6, 7])
def test_priorities_are_linear_programs(m):
    rng = np.random.default_rng(m)
    points = np.abs(rng.standard_normal((12, m)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    visited = np.vstack([np.eye(m), rng.dirichlet(np.ones(m), 5)])
    values = (visited @ points.T).max(1)
    w = np.vstack([corners(points).numpy()[:40], visited])
    got = corner_priorities(w, points, visited, maximize=True)
    assert got.shape == (len(w),)
    assert got.dtype == F64
    expected = [priority(row, points, visited, values) for row in w]
    assert got.tolist() == pytest.approx(expected, abs=1e-9)
    assert got[-len(visited) :].tolist() == pytest.approx([0.0] * len(visited), abs=1e-9)
    assert (got >= -1e-9).all()
    raised = corner_priorities(w, points, visited, maximize=True, visited_values=values + 0.1)
    expected = [priority(row, points, visited, values + 0.1) for row in w]
    assert raised.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_priorities_from_values_that_no_set_has(m):
    """Bounds above their own convex envelope bind nowhere; a weight may be visited twice with different values."""
    rng = np.random.default_rng(m)
    points, visited = rng.random((4, m)), np.vstack([np.eye(m), rng.dirichlet(np.ones(m), 8)])
    visited = np.vstack([visited, visited[-3:]])
    values = (visited @ points.T).max(1) + rng.exponential(0.3, len(visited))
    w = np.vstack([rng.dirichlet(np.ones(m), 20), visited])
    got = corner_priorities(w, points, visited, maximize=True, visited_values=values)
    assert got.tolist() == pytest.approx([priority(row, points, visited, values) for row in w], abs=1e-9)


@pytest.mark.parametrize("noise", [1e-15, 1e-12, 1e-10])
@pytest.mark.parametrize("m", [3, 4, 5])
def test_priorities_of_weights_visited_twice_up_to_rounding(m, noise):
    """Corner weights that nearly coincide: facets of the hull that no floating-point code tells apart."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        points = np.abs(rng.standard_normal((6, m)))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        points = np.vstack([points, points + rng.normal(0, noise, points.shape)])
        known = corners(points).numpy()[:60]
        visited = np.vstack([np.eye(m), known, known + np.abs(rng.normal(0, noise, known.shape))])
        values = (visited @ points.T).max(1)
        w = rng.dirichlet(np.ones(m), 3)
        got = corner_priorities(w, points, visited, maximize=True)
        assert got.tolist() == pytest.approx([priority(row, points, visited, values) for row in w], abs=1e-7)


def test_priorities_without_the_extreme_weights():
    rng = np.random.default_rng(0)
    points, visited = rng.random((4, 3)), rng.dirichlet(np.ones(3), 6)
    inside = rng.dirichlet(np.ones(6), 8) @ visited
    w = np.vstack([inside, rng.dirichlet(np.ones(3), 8), np.eye(3)])
    values = (visited @ points.T).max(1)
    got = corner_priorities(w, points, visited, maximize=True)
    assert got.tolist() == pytest.approx([priority(row, points, visited, values) for row in w], abs=1e-9)
    assert got[:8].isfinite().all()
    assert (got[-3:] == INF).all()


def test_priorities_where_the_program_is_unbounded():
    points = np.array([[1.0, 0.0], [0.0, 1.0]])
    w = np.array([[0.1, 0.9], [0.4, 0.6], [0.5, 0.5]])
    got = corner_priorities(w, points, np.array([[0.5, 0.5], [0.3, 0.7]]), maximize=True)
    assert got[0].item() == INF
    assert got[1].isfinite()
    assert got[2].item() == pytest.approx(0.0, abs=1e-12)
    assert (corner_priorities(w, points, np.zeros((0, 2)), maximize=True) == INF).all()
    assert (corner_priorities(w, np.zeros((0, 2)), np.eye(2), maximize=True) == INF).all()
    assert corner_priorities(w[:0], points, np.eye(2), maximize=True).shape == (0,)


@pytest.mark.parametrize("maximize", [False, [True, False, False]])
def test_priorities_of_other_senses(maximize):
    rng = np.random.default_rng(0)
    points, visited = rng.standard_normal((6, 3)), np.vstack([np.eye(3), np.full((1, 3), 1 / 3)])
    w = rng.dirichlet(np.ones(3), 9)
    signs = np.where(maximize, 1, -1)
    got = corner_priorities(w, points, visited, maximize=maximize)
    torch.testing.assert_close(got, corner_priorities(w, signs * points, visited, maximize=True), atol=1e-9, rtol=0)


def test_bad_priorities_are_named():
    with pytest.raises(ValueError, match="weights"):
        corner_priorities(np.eye(3), np.eye(2), np.eye(2), maximize=True)
    with pytest.raises(ValueError, match="visited"):
        corner_priorities(np.eye(2), np.eye(2), np.eye(3), maximize=True)
    with pytest.raises(ValueError, match="visited_values"):
        corner_priorities(np.eye(2), np.eye(2), np.eye(2), maximize=True, visited_values=[1.0])
    with pytest.raises(ValueError, match="weights"):
        corner_priorities([[-0.5, 1.5]], np.eye(2), np.eye(2), maximize=True)
    with pytest.raises(ValueError, match="visited"):
        corner_priorities(np.eye(2), np.eye(2), [[NAN, 1.0]], maximize=True)
    with pytest.raises(TypeError, match="points"):
        corner_priorities(np.eye(2), torch.eye(2).half(), np.eye(2), maximize=True)


# --- the loop ---


def solved(points: np.ndarray, support: LinearSupport, limit: int = 400) -> int:
    """Optimistic linear support with an oracle that knows all points."""
    for steps in range(limit):
        w = support.next_weight()
        if w is None:
            assert support.ended()
            return steps
        assert w.dtype == F64
        assert on_simplex(w, 1e-9)
        support.add_solution(points[(points @ w.numpy()).argmax()], w)
    raise AssertionError(f"no end after {limit} solutions")


@pytest.mark.parametrize("m", [2, 3, 4])
def test_linear_support_finds_the_convex_coverage_set(m):
    rng = np.random.default_rng(m)
    points = np.abs(rng.standard_normal((15, m)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[8:] *= rng.uniform(0.6, 1.0, (7, 1))
    support = LinearSupport(m)
    solved(points, support)
    found = torch.stack(support.ccs).numpy()
    assert {tuple(row) for row in found} <= {tuple(row) for row in points}
    w = np.vstack([corners(points).numpy(), rng.dirichlet(np.ones(m), 200)])
    assert (w @ found.T).max(1) == pytest.approx((w @ points.T).max(1), abs=1e-9)
    assert len(support.ccs) == len(support.weight_support)
    assert len({tuple(row) for row in found}) == len(found)


def test_linear_support_starts_with_the_extreme_weights():
    support = LinearSupport(3)
    seen = []
    for _ in range(3):
        w = support.next_weight()
        seen.append(w.tolist())
        support.add_solution(w, w)
    assert sorted(seen) == sorted(np.eye(3).tolist())
    assert not support.ended()
    assert support.next_weight().tolist() == pytest.approx([1 / 3] * 3)


def test_linear_support_stops_below_epsilon():
    angles = np.linspace(0, np.pi / 2, 200)
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    steps = {epsilon: solved(points, LinearSupport(2, epsilon=epsilon)) for epsilon in (0.1, 0.01, 0.001)}
    assert steps[0.1] < steps[0.01] < steps[0.001] < 100
    support = LinearSupport(2, epsilon=0.01)
    solved(points, support)
    w = np.stack([np.linspace(0, 1, 300), 1 - np.linspace(0, 1, 300)], 1)
    assert ((w @ points.T).max(1) - (w @ torch.stack(support.ccs).numpy().T).max(1)).max() <= 0.01


def test_linear_support_discards_what_is_never_best():
    support = LinearSupport(2)
    support.add_solution([4.0, 0.0], [1.0, 0.0])
    support.add_solution([0.0, 4.0], [0.0, 1.0])
    assert support.add_solution([1.0, 1.0], [0.5, 0.5]) == [2]
    assert len(support.ccs) == 2
    assert support.add_solution([5.0, 5.0], [0.5, 0.5]) in ([1, 0], [0, 1])
    assert [row.tolist() for row in support.ccs] == [[5.0, 5.0]]


def test_linear_support_measures():
    support = LinearSupport(2)
    assert support.max_scalarized_value([0.5, 0.5]) is None
    assert support.max_value_lp([0.5, 0.5]) == INF
    assert not support.is_dominated([0.0, 0.0])
    support.add_solution([4.0, 0.0], [1.0, 0.0])
    support.add_solution([0.0, 4.0], [0.0, 1.0])
    assert support.max_scalarized_value([0.25, 0.75]) == pytest.approx(3.0)
    assert support.max_value_lp([0.25, 0.75]) == pytest.approx(4.0)
    assert support.ols_priority([0.25, 0.75]) == pytest.approx(1.0)
    assert support.compute_corner_weights().numpy() == pytest.approx(np.array([[0, 1], [0.5, 0.5], [1, 0]]))
    assert support.is_dominated([3.0, 3.0])
    assert not support.is_dominated([4.0, 0.0])
    assert support.next_weight().tolist() == [0.5, 0.5]


def test_gpi_linear_support_takes_the_weight_that_gains_most():
    points = np.array([[4.0, 0.0, 1.0], [0.0, 4.0, 1.0], [1.0, 1.0, 3.0]])
    support = LinearSupport(3)
    for row, w in zip(points, np.eye(3), strict=True):
        support.add_solution(row, w)

    def evaluate(w: torch.Tensor) -> torch.Tensor:
        assert w.shape[1] == 3
        return 3.5 * w / w.norm(dim=1, keepdim=True)

    got = support.next_weight(algo="gpi-ls", gpi_values=evaluate)
    candidates = support.compute_corner_weights()
    gains = 3.5 * candidates.norm(dim=1) - (candidates @ torch.tensor(points).T).amax(1)
    assert torch.equal(got, candidates[gains.argmax()])
    assert support.gpi_ls_priority(got[None], evaluate(got[None])).tolist() == pytest.approx([gains.max().item()])
    with pytest.raises(ValueError, match="gpi_values"):
        support.next_weight(algo="gpi-ls")
    with pytest.raises(ValueError, match="algo"):
        support.next_weight(algo="hill-climbing")


def test_linear_support_shows_what_it_holds():
    support = LinearSupport(2)
    assert support.num_objectives == 2
    assert support.epsilon == 0.0
    support.add_solution([4.0, 0.0], [1.0, 0.0])
    support.add_solution(np.array([0.0, 4.0]), torch.tensor([0.0, 1.0]))
    support.add_solution([3.0, 3.0], support.next_weight())
    assert support.iteration == 3
    assert [row.tolist() for row in support.visited_weights] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert [row.tolist() for row in support.get_weight_support()] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert all(row.dtype == F64 for row in (*support.ccs, *support.visited_weights))
    first = support.next_weight()
    left = support.get_corner_weights()
    assert sorted([first.tolist(), *(row.tolist() for row in left)]) == [[0.25, 0.75], [0.75, 0.25]]
    assert support.get_corner_weights(top_k=0) == []
    held = support.get_weight_support()
    held[0].fill_(NAN)
    assert support.get_weight_support()[0].tolist() == [1.0, 0.0]


def test_linear_support_without_epsilon_visits_every_corner():
    points = np.array([[4.0, 0.0], [0.0, 4.0], [3.0, 3.0]])
    seen = set()
    support = LinearSupport(2, epsilon=None)
    while (w := support.next_weight()) is not None:
        assert tuple(w.tolist()) not in seen
        seen.add(tuple(w.tolist()))
        support.add_solution(points[(points @ w.numpy()).argmax()], w)
    assert {(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.25, 0.75), (0.75, 0.25)} <= seen
    assert support.ended()


def test_linear_support_of_one_objective():
    support = LinearSupport(1)
    assert support.next_weight().tolist() == [1.0]
    support.add_solution([2.0], [1.0])
    assert support.next_weight() is None
    assert support.add_solution([3.0], [1.0]) == [0]
    assert [row.tolist() for row in support.ccs] == [[3.0]]


def test_linear_support_goes_the_same_way_each_time():
    points = np.random.default_rng(0).random((12, 3))

    def way() -> list[list[float]]:
        support, weights = LinearSupport(3), []
        while (w := support.next_weight()) is not None:
            weights.append(w.tolist())
            support.add_solution(points[(points @ w.numpy()).argmax()], w)
        return weights

    assert way() == way()


def test_gpi_linear_support_draws_where_nothing_is_gained():
    points = np.array([[4.0, 0.0], [0.0, 4.0], [3.0, 3.0]])
    drawn = []
    for seed in (0, 0, 1, 2, 3, 4):
        support = LinearSupport(2, generator=generator(seed))
        for row, w in zip(points, ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]), strict=True):
            support.add_solution(row, w)

        def best(w: torch.Tensor) -> torch.Tensor:
            return torch.tensor(points)[(w @ torch.tensor(points).T).argmax(1)]

        drawn.append(tuple(support.next_weight(algo="gpi-ls", gpi_values=best).tolist()))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: LinearSupport(0), "num_objectives"),
        (lambda: LinearSupport(2.5), "num_objectives"),
        (lambda: LinearSupport(2).add_solution([1.0], [0.5, 0.5]), "value"),
        (lambda: LinearSupport(2).add_solution([1.0, 2.0], [1.0]), "w"),
        (lambda: LinearSupport(2).add_solution([1.0, NAN], [0.5, 0.5]), "value"),
        (lambda: riesz_weights(3, 4, starts=0), "starts"),
        (lambda: riesz_weights(3, 4, rounds=-1), "rounds"),
        (lambda: riesz_weights(3, 4, iterations=-1), "iterations"),
    ],
)
def test_what_linear_support_and_riesz_weights_cannot_take(call, argument):
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b"):
        call()
