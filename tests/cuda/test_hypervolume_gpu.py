"""Hypervolume on a CUDA device: the CPU's results, no synchronization, the caller's stream, CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from morlfast import hypervolume
from torch import Tensor

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def fronts(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Noisy simplexes on a coarse grid: ties, duplicates, dominated points, points beyond 1."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(*shape, generator=generator, dtype=torch.float64)
    if shape[-1] > 1:
        points = points / points.sum(-1, keepdim=True)
    points = points + 0.1 * torch.rand(*shape, generator=generator)
    return ((64 * points).round() / 64).to(dtype) + 0.2


def value_and_gradients(points: Tensor, ref_point: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    points, ref_point = points.detach().requires_grad_(), ref_point.detach().requires_grad_()
    value = hypervolume(points, ref_point, **options)
    weights = torch.arange(1, value.numel() + 1, dtype=value.dtype).reshape(value.shape).to(value.device)
    return value.detach(), *torch.autograd.grad((value * weights).sum(), (points, ref_point))


def assert_like_cpu(points: Tensor, ref_point: Tensor, **options: object) -> None:
    on_gpu = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
    expected = value_and_gradients(points, ref_point, **options)
    found = value_and_gradients(points.cuda(), ref_point.cuda(), **on_gpu)
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.is_cuda
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.cpu(), theirs, rtol=TOLERANCE[points.dtype], atol=0, equal_nan=True)
    alone = hypervolume(points.cuda(), ref_point.cuda(), **on_gpu)
    assert torch.equal(alone.nan_to_num(-1), found[0].nan_to_num(-1))


@contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(
    "batch_and_n",
    [(1,), (7,), (0,), (0, 5), (3, 0), (4096, 128), (2, 3, 33), (5, 1000), (3, 5000), (100_000,)],
    ids=str,
)
def test_agrees_with_the_cpu(batch_and_n: tuple[int, ...], m: int, dtype: torch.dtype) -> None:
    assert_like_cpu(fronts(*batch_and_n, m, dtype=dtype), torch.ones(m, dtype=dtype), maximize=False)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_maximization_mirrors(m: int) -> None:
    assert_like_cpu(-fronts(6, 200, m), -torch.ones(m, dtype=torch.float64), maximize=True)
    senses = [k % 2 == 0 for k in range(m)]
    signs = torch.tensor([-1.0 if sense else 1.0 for sense in senses], dtype=torch.float64)
    assert_like_cpu(signs * fronts(6, 200, m), signs, maximize=senses)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_reference_point_for_each_front_and_any_strides(m: int) -> None:
    points = fronts(m, 90, 4).permute(2, 1, 0)
    assert_like_cpu(points, 1 + fronts(4, m, seed=1), maximize=False)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_points_beyond_lengths_do_not_count(m: int) -> None:
    lengths = torch.tensor([0, 1, 40, 70])
    assert_like_cpu(fronts(4, 70, m), torch.ones(m, dtype=torch.float64), maximize=False, lengths=lengths)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("n", [50, 4000])
def test_nan_rows_contribute_nothing(m: int, n: int) -> None:
    points = fronts(3, n, m)
    points[1, ::3, -1] = float("nan")
    assert_like_cpu(points, torch.ones(m, dtype=torch.float64), maximize=False, nan="worst")
    by_default = hypervolume(points.cuda(), 1.0, maximize=False)
    assert torch.equal(by_default, hypervolume(points.cuda(), 1.0, maximize=False, nan="worst"))
    with pytest.raises(ValueError, match="row 0"):
        hypervolume(points.cuda(), 1.0, maximize=False, nan="raise")


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("n", [50, 4000])
def test_nan_in_the_reference_point_is_nan_for_its_front_alone(m: int, n: int) -> None:
    ref_point = torch.ones(3, m, dtype=torch.float64)
    ref_point[1, 0] = float("nan")
    value = hypervolume(fronts(3, n, m).cuda(), ref_point.cuda(), maximize=False)
    assert value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("m", [1, 2, 3])
def test_infinite_coordinates(m: int) -> None:
    points = fronts(4, 60, m)
    points[0, 3, 0] = -torch.inf
    points[1, 3, 0] = torch.inf
    ref_point = torch.ones(4, m, dtype=torch.float64)
    ref_point[2] = torch.inf
    assert_like_cpu(points, ref_point, maximize=False)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("shape", [(64, 128), (1, 20_000)], ids=str)
def test_the_same_bits_every_time(m: int, shape: tuple[int, int]) -> None:
    points, ref_point = fronts(*shape, m).cuda(), torch.ones(m, dtype=torch.float64, device="cuda")
    first = value_and_gradients(points, ref_point, maximize=False)
    for _ in range(5):
        again = value_and_gradients(points, ref_point, maximize=False)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("n", [128, 4000])
def test_nothing_synchronizes(m: int, n: int) -> None:
    points = fronts(8, n, m).cuda().requires_grad_()
    ref_point = torch.ones(m, device="cuda", requires_grad=True)
    lengths = torch.full((8,), n - 3, device="cuda")
    with no_synchronization():
        hypervolume(points.detach(), ref_point.detach(), maximize=False, lengths=lengths)
        hypervolume(points, ref_point, maximize=False, lengths=lengths).sum().backward()
    assert points.grad is not None


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("n", [128, 4000])
def test_runs_on_the_current_stream(m: int, n: int) -> None:
    host = fronts(8, n, m)
    points = torch.full_like(host, torch.nan, device="cuda")
    ref_point = torch.ones(m, dtype=torch.float64, device="cuda")
    ready, stream = host.cuda(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # another stream would still see NaN
        points.copy_(ready)
        value = hypervolume(points, ref_point, maximize=False)
    stream.synchronize()
    torch.testing.assert_close(value.cpu(), hypervolume(host, 1.0, maximize=False), rtol=1e-12, atol=0)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("n", [128, 4000])
def test_a_graph_replays_on_new_points(m: int, n: int) -> None:
    points, ref_point = fronts(8, n, m).cuda(), torch.ones(m, dtype=torch.float64, device="cuda")
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        hypervolume(points, ref_point, maximize=False)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = hypervolume(points, ref_point, maximize=False)
    for seed in (1, 2):
        other = fronts(8, n, m, seed=seed)
        points.copy_(other)
        graph.replay()
        torch.testing.assert_close(value.cpu(), hypervolume(other, 1.0, maximize=False), rtol=1e-12, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("m", [1, 2, 3])
def test_runs_on_the_device_of_its_points(m: int) -> None:
    host = fronts(8, 128, m)
    value = hypervolume(host.to("cuda:1"), torch.ones(m, device="cuda:1"), maximize=False)
    assert value.device == torch.device("cuda:1")
    torch.testing.assert_close(value.cpu(), hypervolume(host, 1.0, maximize=False), rtol=1e-12, atol=0)


def test_memory_is_linear() -> None:
    points, ref_point = fronts(1, 50_000, 3).cuda(), torch.ones(3, dtype=torch.float64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value_and_gradients(points, ref_point, maximize=False)
    assert torch.cuda.max_memory_allocated() - before < 1000 * 50_000
