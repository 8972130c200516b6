"""Estimates of the hypervolume, HypE's fitness and inferred reference points: values, errors, every stated edge."""

from __future__ import annotations

import math
from collections.abc import Iterator

import morlfast
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast import hypervolume_approximation
from morlfast.hypervolume_approximation import Estimate, approximate_hypervolume, hype_fitness, infer_reference_point
from references import hypervolume as exact
from references import hypervolume_approximation as reference
from torch.utils._python_dispatch import TorchDispatchMode

F64 = torch.float64
INF = math.inf
NAN = math.nan
METHODS = ["polar", "box"]
SAMPLERS = ["sobol", "random"]
FRONT = [[1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [3.0, 1.0, 3.0]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are small, and threads that wait for busy cores take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimate(points, ref_point, maximize=False, *, seed: int = 0, samples: int = 1024, **options) -> Estimate:
    generator = seeded(seed)
    return approximate_hypervolume(
        points, ref_point, maximize=maximize, samples=samples, generator=generator, **options
    )


def hype(points, ref_point, k, maximize=False, *, seed: int = 0, samples: int = 1024, **options) -> torch.Tensor:
    generator = seeded(seed)
    return hype_fitness(points, ref_point, k=k, maximize=maximize, samples=samples, generator=generator, **options)


def infer(points, maximize=True, **options) -> torch.Tensor:
    return infer_reference_point(points, maximize=maximize, **options)


def fronts(batch: tuple[int, ...], n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*batch, n, m, generator=seeded(seed), dtype=F64)


# All three where they do the same: what to call, and the shape of the result behind the batch.
FUNCTIONS = {
    "estimate": lambda points, **options: torch.stack(estimate(points, 0.9, **options), -1),
    "hype": lambda points, **options: hype(points, 0.9, 2, **options),
    "infer": lambda points, **options: infer(points, **options),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
sampling = pytest.mark.parametrize("function", [FUNCTIONS["estimate"], FUNCTIONS["hype"]], ids=["estimate", "hype"])

SHAPES = {
    "inverted": lambda x: 1 - x / np.linalg.norm(x, axis=1, keepdims=True),
    "linear": lambda x: x / x.sum(1, keepdims=True),
    "sphere": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "cloud": lambda x: np.minimum(x, 1.0),
}


# The estimate.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("m", "n"), [(2, 40), (3, 40), (4, 40), (5, 30), (6, 30), (7, 25), (8, 20), (9, 15), (10, 12)])
def test_estimates_lie_within_their_errors_of_moocore(shape, m, n):
    moocore = pytest.importorskip("moocore")
    x = SHAPES[shape](np.abs(np.random.default_rng(m).standard_normal((n, m))) + 1e-3)
    truth = moocore.hypervolume(x, ref=np.full(m, 1.1))
    for method in METHODS:
        for sampler in SAMPLERS:
            value, error = estimate(x, 1.1, samples=8192, method=method, sampler=sampler)
            assert abs(value.item() - truth) <= 5 * error.item(), (method, sampler)
            assert error.item() < 0.2 * truth, (method, sampler)


@st.composite
def grids(draw, max_m: int, max_n: int) -> tuple[list[list[int]], list[int], list[bool]]:
    """Small integers full of ties, some on or beyond the reference point; mixed senses; the box's sides are 4."""
    m = draw(st.integers(1, max_m))
    rows = draw(st.lists(st.lists(st.integers(0, 5), min_size=m, max_size=m), max_size=max_n))
    if rows:
        rows += [[0 if j == i else 3 for j in range(m)] for i in range(m)]
    maximize = draw(st.lists(st.booleans(), min_size=m, max_size=m))
    signs = [-1 if flip else 1 for flip in maximize]
    rows = [[s * a for s, a in zip(signs, row, strict=True)] for row in rows]
    return rows, [4 * s for s in signs], maximize


@given(grids(max_m=4, max_n=8), st.sampled_from(METHODS), st.sampled_from(SAMPLERS))
def test_estimates_of_integer_grids_lie_within_their_errors(case, method, sampler):
    rows, ref, maximize = case
    points = torch.tensor(rows, dtype=F64).reshape(-1, len(ref))
    value, error = estimate(points, ref, maximize, method=method, sampler=sampler)
    truth = float(exact.hypervolume(rows, ref, maximize))
    assert abs(value.item() - truth) <= 6 * error.item() + 1e-12 * truth


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_standard_error_is_calibrated(method, sampler):
    points = fronts((), 10, 3)
    truth = morlfast.hypervolume(points, 1.0, maximize=False).item()
    options = {"method": method, "sampler": sampler, "samples": 512}
    z = torch.tensor(
        [(v.item() - truth) / e.item() for v, e in (estimate(points, 1.0, seed=s, **options) for s in range(200))]
    )
    assert abs(z.mean()) < 0.25  # unbiased: the mean of 200 has standard deviation 0.07
    assert 0.9 < z.std() < 1.25  # normal: 1; Student's t with 15 degrees of freedom: 1.07
    assert z.abs().max() < 6


@pytest.mark.parametrize("method", METHODS)
def test_sobol_points_err_less_than_random_numbers(method):
    points = fronts((), 20, 3)
    truth = morlfast.hypervolume(points, 1.0, maximize=False)
    rms = {}
    for sampler in SAMPLERS:
        options = {"method": method, "sampler": sampler, "samples": 4096}
        errors = [estimate(points, 1.0, seed=seed, **options).value - truth for seed in range(20)]
        rms[sampler] = torch.stack(errors).square().mean().sqrt().item()
    assert rms["sobol"] < 0.5 * rms["random"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_objective_is_exact(method, sampler):
    for samples in (2, 3, 1000):
        options = {"method": method, "sampler": sampler, "samples": samples}
        assert estimate([[3.0], [1.7], [9.0]], 4.0, **options) == (4.0 - 1.7, 0.0)
        assert estimate([[3.0], [1.7], [9.0]], 4.0, True, **options) == (5.0, 0.0)


@pytest.mark.parametrize("m", [2, 5, 30])
def test_one_point_fills_its_box(m):
    value, error = estimate([[0.5] * m, [2.0] * m], 1.0, method="box")
    assert value.item() == 0.5**m
    assert error.item() == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_units_change_nothing(method):
    points, scale = fronts((), 12, 4), 2.0 ** torch.tensor([0, -30, 30, 7], dtype=F64)
    value, error = estimate(points, 1.0, method=method)
    scaled_value, scaled_error = estimate(points * scale, scale, method=method)
    assert scaled_value == value * scale.prod()
    assert scaled_error == error * scale.prod()


@pytest.mark.parametrize("method", METHODS)
def test_mirrored_objectives_have_the_same_estimate(method):
    points, maximize = fronts((), 12, 3), [True, False, True]
    signs = torch.tensor([-1.0, 1.0, -1.0], dtype=F64)
    expected = estimate(points, 1.0, method=method)
    assert estimate(points * signs, signs, maximize, method=method) == expected
    assert estimate(-points, -1.0, True, method=method) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [300, 1000])
def test_many_objectives_do_not_overflow(method, m):
    value, error = estimate(torch.zeros(2, m), 1.0, samples=64, method=method)
    assert 0 <= value < INF
    assert 0 <= error < INF


@pytest.mark.parametrize("samples", [2, 3, 15, 16, 17, 100])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_samples_is_taken(samples, sampler):
    value, error = estimate(FRONT, 4.0, samples=samples, sampler=sampler)
    assert 0 < value <= 50
    assert 0 < error < 50


# HypE's fitness.


@given(grids(max_m=3, max_n=4), st.data())
def test_fitness_of_integer_grids_is_that_of_the_definition(case, data):
    # Scrambled Sobol' points put the same number into every cell of such a grid, so nothing is left to chance.
    rows, ref, maximize = case
    points = torch.tensor(rows, dtype=F64).reshape(-1, len(ref))
    k = data.draw(st.integers(1, max(len(rows), 1)))
    expected = torch.tensor([float(x) for x in reference.hype_fitness(rows, ref, k, maximize)], dtype=F64)
    torch.testing.assert_close(hype(points, ref, k, maximize, samples=2**14), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_fitness_of_one_removal_is_the_contribution(m, sampler):
    moocore = pytest.importorskip("moocore")
    x = SHAPES["linear"](np.random.default_rng(m).random((8, m)) + 0.1)
    x[7] = x[3] + 0.1  # dominated
    truth = torch.from_numpy(moocore.hv_contributions(x, ref=np.full(m, 1.1), ignore_dominated=False))
    fitness = hype(x, 1.1, 1, samples=65536, sampler=sampler)
    torch.testing.assert_close(fitness, truth, rtol=0.2 if m == 6 else 0.05, atol=2e-3 * truth.sum().item())
    assert fitness[7] == 0


@pytest.mark.parametrize("m", [1, 3])
def test_fitness_of_all_shares_the_hypervolume_out(m):
    points = fronts((5,), 9, m)
    total = hype(points, 1.0, 9, samples=16384).sum(-1)
    torch.testing.assert_close(total, morlfast.hypervolume(points, 1.0, maximize=False), rtol=5e-3, atol=0)


def test_only_points_that_count_are_among_those_removed():
    points = torch.cat([fronts((), 5, 3), torch.full((4, 3), 2.0, dtype=F64)])
    for k in (1, 3, 5):
        assert torch.equal(hype(points, 1.0, k)[:5], hype(points[:5], 1.0, k))
    # More than there are: all of them.
    assert torch.equal(hype(points, 1.0, 9)[:5], hype(points[:5], 1.0, 5))
    assert (hype(points, 1.0, 9)[5:] == 0).all()


def test_duplicates_share_alike():
    points = torch.tensor(FRONT)[[0, 1, 1, 2]]
    assert (hype(points, 4.0, 1)[1:3] == 0).all()
    fitness = hype(points, 4.0, 2)
    assert fitness[1] == fitness[2] > 0


def test_fitness_of_one_objective():
    # Of [1.5, 3) the best has all; with two to go of three it takes half of the pairs for [3, 3.5), and so on.
    fitness = hype([[1.5], [3.0], [3.5]], 4.0, 2, samples=65536)
    expected = [float(x) for x in reference.hype_fitness([[3], [6], [7]], [8], 2, [False])]
    torch.testing.assert_close(fitness * 2, torch.tensor(expected, dtype=F64), rtol=2e-3, atol=0)


@pytest.mark.parametrize("k", [0, -1, 4, 2**40])
def test_k_must_be_within_the_front(k):
    with pytest.raises(ValueError, match=rf"k: .* 3.*{k}"):
        hype(FRONT, 4.0, k)


@pytest.mark.parametrize("k", [1.0, None, True, "1"])
def test_k_must_be_an_int(k):
    with pytest.raises(TypeError, match="k:"):
        hype(FRONT, 4.0, k)


# The reference point.


@pytest.mark.parametrize(
    ("points", "options", "expected"),
    [
        ([[0.0, 10.0], [10.0, 0.0], [-5.0, -50.0]], {}, [-1.0, -1.0]),
        ([[0.0, 10.0], [10.0, 0.0]], {"scale": 0.5}, [-5.0, -5.0]),
        ([[2.0, -4.0]], {}, [1.8, -4.4]),
        ([[2.0, -4.0], [2.0, -4.0], [1.0, -5.0]], {}, [1.8, -4.4]),
        ([[0.0, 1.0]], {}, [-1e-8, 0.9]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": [-2.0, 5.0]}, [-2.0, 5.0]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": [-2.0, 5.0], "scale_max_ref_point": True}, [-2.2, 4.5]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": 10.0}, [-1.0, -1.0]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": [-10.0, 10.0]}, [-12.0, -1.0]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": [NAN, 5.0]}, [-1.0, 5.0]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": [NAN, 5.0], "scale_max_ref_point": True}, [-1.0, 4.0]),
        ([[0.0, 10.0], [10.0, 0.0]], {"max_ref_point": NAN}, [-1.0, -1.0]),
        (torch.zeros(0, 2, dtype=F64), {"max_ref_point": [3.0, -4.0]}, [3.0, -4.0]),
        (torch.zeros(0, 2, dtype=F64), {"max_ref_point": [3.0, -4.0], "scale_max_ref_point": True}, [2.7, -4.4]),
    ],
)
def test_reference_points_worked_by_hand(points, options, expected):
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(infer(points, **options), expected, rtol=1e-14, atol=1e-22)
    mirrored = {key: -torch.tensor(x, dtype=F64) if key == "max_ref_point" else x for key, x in options.items()}
    minimized = infer(-torch.as_tensor(points, dtype=F64), False, **mirrored)
    torch.testing.assert_close(-minimized, expected, rtol=1e-14, atol=1e-22)


def botorch_cases():
    values = st.integers(-3, 3).map(float)

    @st.composite
    def cases(draw):
        m = draw(st.integers(1, 4))
        row = st.lists(values, min_size=m, max_size=m)
        points = draw(st.lists(row, min_size=1, max_size=8))
        limit = draw(st.none() | st.lists(values | st.just(NAN), min_size=m, max_size=m))
        return points, limit, draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 1.0]))

    return cases()


@given(botorch_cases())
def test_reference_points_are_those_of_botorch(case):
    pytest.importorskip("botorch")
    from botorch.utils.multi_objective.hypervolume import infer_reference_point as botorch_infer_reference_point

    points, limit, scale_limit, scale = case
    limit = None if limit is None else torch.tensor(limit, dtype=F64)
    points = torch.tensor(points, dtype=F64)
    front = points[morlfast.non_dominated_sort(points, maximize=True) == 0].unique(dim=0)
    expected = botorch_infer_reference_point(front, limit, scale=scale, scale_max_ref_point=scale_limit)
    got = infer(points, scale=scale, max_ref_point=limit, scale_max_ref_point=scale_limit)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_each_objective_has_its_sense():
    points = torch.tensor([[0.0, 10.0], [10.0, 20.0], [-1.0, 11.0]], dtype=F64)
    assert infer(points, [True, False], max_ref_point=[NAN, 30.0]).tolist() == [-1.0, 30.0]
    assert infer(points, [True, False]).tolist() == [-1.0, 21.0]


def test_the_front_lies_within_the_inferred_reference_point():
    points = fronts((4,), 30, 3)
    ref_point = infer(points, False)
    front = morlfast.non_dominated_sort(points, maximize=False) == 0
    assert ((points < ref_point[:, None]).all(-1) | ~front).all()


def test_an_empty_front_without_reference_raises_or_is_nan():
    points = fronts((2,), 4, 3)
    for options in ({}, {"max_ref_point": [0.0, NAN, 0.0]}):
        with pytest.raises(ValueError, match="max_ref_point"):
            infer(points, lengths=[4, 0], **options)
        with pytest.raises(ValueError, match="max_ref_point"):
            infer(points[:, :0], **options)
        got = infer(points, lengths=[4, 0], nan="worst", **options)
        assert not got[0].isnan().any()
        assert got[1].isnan().tolist() == [
            key not in options or bool(x) for key, x in zip(["max_ref_point"] * 3, [0, 1, 0], strict=True)
        ]


@pytest.mark.parametrize("scale", ["much", None, [0.1]])
def test_scale_must_be_a_number(scale):
    with pytest.raises(TypeError, match="scale"):
        infer(FRONT, scale=scale)


# The samples.


@sampling
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_generator_decides_everything(function, sampler):
    points = fronts((), 9, 3)
    results = []
    for _ in range(2):
        torch.manual_seed(len(results))
        state = torch.get_rng_state()
        results.append(function(points, seed=3, sampler=sampler))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)
    assert not torch.equal(results[0], function(points, seed=4, sampler=sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_default_generator_is_that_of_torch(sampler):
    results = []
    for seed in (1, 1, None):
        if seed is not None:
            torch.manual_seed(seed)
        results.append(approximate_hypervolume(FRONT, 4.0, maximize=False, samples=64, sampler=sampler).value)
    assert results[0] == results[1] != results[2]
    own = seeded(1)
    assert (
        approximate_hypervolume(FRONT, 4.0, maximize=False, samples=64, sampler=sampler, generator=own).value
        == results[0]
    )


@sampling
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("elements", [1, 50, 1000, 2**22])
def test_pieces_of_any_size_give_the_same_to_rounding(function, sampler, elements, monkeypatch):
    points, lengths = fronts((3, 2), 7, 3), torch.tensor([[7, 0], [3, 7], [1, 6]])
    expected = function(points, lengths=lengths, sampler=sampler, samples=300)
    monkeypatch.setitem(hypervolume_approximation._ELEMENTS, "cpu", elements)
    got = function(points, lengths=lengths, sampler=sampler, samples=300)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-15)


class LargestBuffer(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and not func.is_view:
                self.size = max(self.size, x.nbytes)
        return result


@sampling
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("batch", "n", "m", "samples"), [((), 10, 3, 2**19), ((3000,), 5, 2, 300), ((), 50000, 2, 40), ((2,), 2, 100, 2000)]
)
def test_no_buffer_is_larger_than_the_points_or_its_bound(function, sampler, batch, n, m, samples):
    points = fronts(batch, n, m)
    with LargestBuffer() as largest:
        function(points, samples=samples, sampler=sampler)
    assert (
        0
        < largest.size
        <= max(8 * hypervolume_approximation._ELEMENTS["cpu"], points.nbytes, 8 * (n + 1) * math.prod(batch))
    )


# Batches, ragged fronts, dtypes and layouts: all three functions.


@each_function
def test_a_batch_equals_a_loop(function):
    points = fronts((4, 5), 17, 3)
    got = function(points)
    expected = torch.stack([torch.stack([function(points[i, j]) for j in range(5)]) for i in range(4)])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@each_function
def test_ragged_fronts_are_cut(function):
    points = fronts((2, 3), 6, 3)
    lengths = torch.tensor([[6, 2, 3], [5, 6, 4]])
    mask = torch.arange(6) < lengths[..., None]
    hidden = points.masked_fill(~mask[..., None], NAN)  # what is cut off is not even looked at
    got = function(hidden, lengths=lengths)
    assert torch.equal(function(hidden, mask=mask), got)
    for i in range(2):
        for j in range(3):
            alone = function(points[i, j, : lengths[i, j]])
            torch.testing.assert_close(got[i, j, : len(alone)], alone, rtol=1e-12, atol=0)
            assert function is not FUNCTIONS["hype"] or (got[i, j, len(alone) :] == 0).all()
    assert torch.equal(function(hidden, mask=mask.tolist()), got)


@each_function
@pytest.mark.parametrize("batch", [(0,), (3, 0)])
@pytest.mark.parametrize("n", [0, 4])
def test_an_empty_batch_gives_an_empty_result(function, batch, n):
    got = function(torch.zeros(*batch, n, 2)) if n else None
    assert got is None or (got.dtype == torch.float32 and got.numel() == 0 and got.shape[: len(batch)] == batch)


@pytest.mark.parametrize("batch", [(), (2,), (0,), (2, 0)])
def test_empty_fronts(batch):
    points = torch.zeros(*batch, 0, 3)
    value, error = estimate(points, 1.0)
    assert value.shape == error.shape == batch
    assert (value == 0).all()
    assert (error == 0).all()
    assert hype(points, 1.0, 1).shape == (*batch, 0)
    assert torch.equal(infer(points, max_ref_point=2.0), torch.full((*batch, 3), 2.0))


@each_function
def test_float32_is_widened_then_computed_in_float64(function):
    points = fronts((3,), 8, 3).float()
    got = function(points)
    assert got.dtype == torch.float32
    assert torch.equal(got, function(points.double()).float()) or function is not FUNCTIONS["infer"]
    torch.testing.assert_close(got, function(points.double()).float())


@each_function
def test_lists_arrays_and_integers_become_float64(function):
    rows = [[-1.0, -3.0], [-2.0, -2.0], [-3.0, -1.0]]
    expected = function(torch.tensor(rows, dtype=F64))
    assert expected.dtype == F64
    for points in (rows, np.array(rows), np.array(rows, dtype=np.int64), torch.tensor(rows).int()):
        assert torch.equal(function(points), expected)


@each_function
def test_any_strides_give_the_same_bits(function):
    x = fronts((3, 2), 9, 3)
    padded = torch.full((3, 2, 19, 5), NAN, dtype=F64)
    padded[..., 1::2, 1:4] = x
    for view in (
        x.transpose(-1, -2).contiguous().transpose(-1, -2),
        x.movedim(0, -1).contiguous().movedim(-1, 0),
        padded[..., 1::2, 1:4],
    ):
        assert torch.equal(function(view), function(x))
    assert torch.equal(function(x[0, 0].expand(4, 9, 3))[3], function(x[0, 0].expand(4, 9, 3))[0])


@each_function
def test_inputs_are_left_unchanged_and_nothing_is_differentiated(function):
    points, mask = fronts((2,), 6, 3).requires_grad_(), torch.ones(2, 6, dtype=torch.bool)
    copies = [points.detach().clone(), mask.clone()]
    assert not function(points, mask=mask).requires_grad
    assert torch.equal(points, copies[0])
    assert torch.equal(mask, copies[1])
    assert points._version == mask._version == 0


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1, 3), (1, 5, 3), (5, 1)])
def test_reference_points_broadcast_over_the_batch(shape):
    points, ref = fronts((2, 5), 6, 3), torch.rand(shape, generator=seeded(1), dtype=F64) + 0.25
    full = ref.expand(2, 5, 3).contiguous()
    assert all(torch.equal(a, b) for a, b in zip(estimate(points, ref), estimate(points, full), strict=True))
    assert torch.equal(hype(points, ref, 2), hype(points, full, 2))
    assert torch.equal(infer(points, max_ref_point=ref), infer(points, max_ref_point=full))


# Points on or beyond the reference point, infinities, NaN.


@pytest.mark.parametrize("method", METHODS)
def test_points_on_or_beyond_the_reference_point_add_nothing(method):
    points = fronts((), 6, 3)
    bad = torch.tensor([[0.0, 0.0, 1.0], [-5.0, 2.0, 0.5], [INF, 0.0, 0.0], [-INF, 1.0, 0.0]], dtype=F64)
    both = torch.cat([points, bad])
    assert estimate(both, 1.0, method=method) == estimate(points, 1.0, method=method)
    assert hype(both, 1.0, 3).tolist() == [*hype(points, 1.0, 3).tolist(), 0, 0, 0, 0]
    assert estimate(bad, 1.0, method=method) == (0.0, 0.0)
    assert estimate(points, -INF, method=method) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_infinite_volumes(method):
    points = torch.tensor([[[-INF, 0.0], [0.5, 0.5]], [[0.0, 0.25], [0.25, 0.0]]], dtype=F64)
    value, error = estimate(points, 1.0, method=method)
    assert value[0] == INF
    assert error[0] == 0
    assert value[1] == estimate(points[1], 1.0, method=method).value
    assert hype(points, 1.0, 1).isnan().tolist() == [[True, True], [False, False]]
    assert estimate(points[1], INF, method=method) == (INF, 0.0)
    assert estimate(points[1], [1.0, INF], method=method) == (INF, 0.0)
    assert estimate(-points[0], -1.0, True, method=method) == (INF, 0.0)


@each_function
def test_nan_names_the_row(function):
    points = fronts((2, 3), 4, 3)
    points[1, 0, 2, 1] = NAN
    with pytest.raises(ValueError, match=r"points.*row 2 of batch index \(1, 0\).*worst"):
        function(points)
    with pytest.raises(ValueError, match=r"points.*NaN in row 2;"):
        function(points[1, 0], nan="raise")


@each_function
def test_a_nan_row_does_nothing_when_nan_is_worst(function):
    points = fronts((), 6, 3)
    points[2, 1] = NAN
    got = function(points, nan="worst")
    rest = function(points[[0, 1, 3, 4, 5]])
    if function is FUNCTIONS["hype"]:
        assert got[2] == 0
        got = got[[0, 1, 3, 4, 5]]
    assert torch.equal(got, rest)


@pytest.mark.parametrize("n", [0, 4])
def test_nan_in_the_reference_point_raises_or_gives_nan(n):
    points, ref = fronts((2,), n, 2), torch.tensor([[1.0, NAN], [1.0, 1.0]], dtype=F64)
    for call in (estimate, lambda *a, **o: hype(*a, 1, **o)):
        with pytest.raises(ValueError, match=r"ref_point.*NaN"):
            call(points, ref)
    value, error = estimate(points, ref, nan="worst")
    assert value.isnan().tolist() == error.isnan().tolist() == [True, False]
    assert hype(points, ref, 1, nan="worst").isnan().tolist() == [[True] * n, [False] * n]


# Errors.


@pytest.mark.parametrize("samples", [1, 0, -5])
@sampling
def test_there_must_be_two_samples(function, samples):
    with pytest.raises(ValueError, match=f"samples.*2.*{samples}"):
        function(FRONT, samples=samples)


@sampling
def test_sobol_points_have_limits(function):
    with pytest.raises(ValueError, match="samples"):
        function(FRONT, samples=2**34 + 1)
    with pytest.raises(ValueError, match=r"points.*21201.*21202"):
        function(torch.zeros(2, 21202), samples=2)
    assert not function(torch.zeros(2, 21202), samples=2, sampler="random").isnan().any()


@sampling
@pytest.mark.parametrize(
    ("option", "error"),
    [({"samples": 2.5}, TypeError), ({"sampler": "halton"}, ValueError), ({"sampler": None}, ValueError)],
)
def test_sampling_errors_name_the_argument(function, option, error):
    with pytest.raises(error, match=next(iter(option))):
        function(FRONT, **option)


def test_method_must_be_known():
    with pytest.raises(ValueError, match="method"):
        estimate(FRONT, 4.0, method="spherical")


@each_function
@pytest.mark.parametrize(
    ("points", "error"),
    [
        ([["a", "b"]], TypeError),
        (torch.ones(2, 2, dtype=torch.float16), TypeError),
        (torch.ones(4), ValueError),
        (torch.ones(4, 0), ValueError),
    ],
)
def test_points_must_be_a_front(function, points, error):
    with pytest.raises(error, match="points"):
        function(points)


@pytest.mark.parametrize("ref", [[1.0, 2.0], torch.ones(4, 3), torch.ones(3, device="meta")])
def test_the_reference_point_must_fit(ref):
    for call in (estimate, lambda *a: hype(*a, 1), lambda points, ref: infer(points, max_ref_point=ref)):
        with pytest.raises(ValueError, match="ref_point"):
            call(torch.zeros(6, 3), ref)


@each_function
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lengths": [1, 2], "mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "lengths, mask"),
        ({"lengths": [1, 5]}, ValueError, "lengths.*4.*5"),
        ({"lengths": [1, -1]}, ValueError, "lengths.*4.*-1"),
        ({"lengths": [1.5, 1.0]}, TypeError, "lengths"),
        ({"lengths": [1]}, ValueError, "lengths"),
        ({"mask": torch.ones(2, 4)}, TypeError, "mask"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, ValueError, "mask"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool, device="meta")}, ValueError, "mask"),
        ({"nan": "ignore"}, ValueError, "nan"),
        ({"maximize": [True, False]}, ValueError, "maximize"),
        ({"maximize": "yes"}, TypeError, "maximize"),
    ],
)
def test_other_errors_name_the_argument(function, options, error, match):
    with pytest.raises(error, match=match):
        function(fronts((2,), 4, 3), **options)


# A GPU.


@pytest.mark.gpu
@each_function
def test_cuda_equals_the_cpu_without_waiting(function):
    points, lengths = fronts((3,), 50, 4), torch.tensor([50, 0, 20])
    expected = function(points, lengths=lengths, nan="worst")
    on_gpu = {"lengths": lengths.cuda(), "points": points.cuda()}
    function(**on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = function(**on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-11, atol=0, equal_nan=True)


@pytest.mark.gpu
@sampling
def test_a_generator_of_the_gpu_is_refused(function):
    with pytest.raises(ValueError, match="generator"):
        hype_fitness(FRONT, 4.0, k=1, maximize=False, generator=torch.Generator(device="cuda"))
