"""Hypervolume on a CUDA device: the CPU's results, no synchronization, the caller's stream, CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from morlfast import (
    box_decomposition,
    hypervolume,
    hypervolume_contributions,
    hypervolume_improvement,
    hypervolume_subset,
    least_contributor,
)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch_and_n", "m"),
    [
        *[(shape, m) for m in (4, 5, 8, 16) for shape in [(1,), (7,), (0,), (0, 5), (3, 0), (2, 3, 12)]],
        ((512, 128), 4),
        ((128, 128), 5),
        ((16, 70), 6),
        ((2, 30), 9),
        ((2000,), 4),
        ((500,), 5),
    ],
    ids=str,
)
def test_many_objectives_agree_with_the_cpu(batch_and_n: tuple[int, ...], m: int, dtype: torch.dtype) -> None:
    assert_like_cpu(fronts(*batch_and_n, m, dtype=dtype), torch.ones(m, dtype=dtype), maximize=False)


def test_the_least_memory_and_pieces_give_the_same() -> None:
    points = fronts(3, 60, 6).cuda()
    expected = hypervolume(points.cpu(), 1.0, maximize=False)
    for options in ({"max_memory": 20_000}, {"progress": lambda done, total: None}):
        found = hypervolume(points, 1.0, maximize=False, **options)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="max_memory"):
        hypervolume(points, 1.0, maximize=False, max_memory=1000)


FAMILY = [(1, 40), (2, 200), (3, 200), (4, 60), (5, 40), (7, 15)]  # m, n


@pytest.mark.parametrize("dominated", ["count", "ignore"])
@pytest.mark.parametrize(("m", "n"), FAMILY)
def test_contributions_agree_with_the_cpu(m: int, n: int, dominated: str) -> None:
    points, lengths = fronts(4, n, m), torch.tensor([n, 0, 1, n // 2])
    options = {"maximize": False, "dominated": dominated}
    expected = hypervolume_contributions(points, 1.0, lengths=lengths, **options)
    found = hypervolume_contributions(points.cuda(), 1.0, lengths=lengths.cuda(), **options)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-13)
    least = least_contributor(points.cuda(), 1.0, lengths=lengths.cuda(), **options)
    assert torch.equal(least.cpu(), least_contributor(points, 1.0, lengths=lengths, **options))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("m", "n"), FAMILY)
def test_improvements_agree_with_the_cpu(m: int, n: int, joint: bool) -> None:
    points = fronts(3, n, m)
    candidates = fronts(3, 20, 3, m, seed=1) if joint else fronts(3, 50, m, seed=1)
    candidates[0, 0] = points[0, 0]
    expected = hypervolume_improvement(candidates, points, 1.0, maximize=False, joint=joint)
    found = hypervolume_improvement(candidates.cuda(), points.cuda(), 1.0, maximize=False, joint=joint)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("m", "n"), FAMILY)
def test_boxes_fill_what_they_should(m: int, n: int) -> None:
    points = fronts(3, n, m)
    boxes = box_decomposition(points.cuda(), 1.0, region="dominated", maximize=False)
    volume = (boxes.upper - boxes.lower).prod(-1).sum(-1)
    torch.testing.assert_close(volume.cpu(), hypervolume(points, 1.0, maximize=False), rtol=1e-11, atol=0)
    rest = box_decomposition(points.cuda(), 1.0, region="non_dominated", maximize=False)
    expected = box_decomposition(points, 1.0, region="non_dominated", maximize=False)
    volume, expected = ((b.upper - b.lower.clamp(min=-1.0)).prod(-1).sum(-1).cpu() for b in (rest, expected))
    torch.testing.assert_close(volume, expected, rtol=1e-11, atol=0)
    with pytest.raises(MemoryError, match="max_memory"):
        box_decomposition(points.cuda(), 1.0, region="non_dominated", maximize=False, max_memory=10)


@pytest.mark.parametrize(("m", "n"), FAMILY)
def test_subsets_agree_with_the_cpu(m: int, n: int) -> None:
    points = fronts(2, n, m)
    picks = hypervolume_subset(points.cuda(), 5, 1.0, maximize=False).cpu()
    assert torch.equal(picks, hypervolume_subset(points, 5, 1.0, maximize=False))


@pytest.mark.parametrize(("m", "n"), [(2, 2500), (3, 100), (4, 60), (5, 40)])
def test_the_family_does_not_synchronize_and_repeats_its_bits(m: int, n: int) -> None:
    points, ref_point = fronts(2, n, m).cuda(), torch.ones(m, dtype=torch.float64, device="cuda")
    candidates = fronts(2, 4, 2, m, seed=1).cuda()

    def family() -> tuple[Tensor, ...]:
        return (
            hypervolume_contributions(points, ref_point, maximize=False, dominated="ignore"),
            hypervolume_improvement(candidates, points, ref_point, maximize=False, joint=True),
            hypervolume_improvement(candidates[:, :, 0], points, ref_point, maximize=False),
            hypervolume_subset(points, 3, ref_point, maximize=False),
        )

    first = family()
    with no_synchronization():
        again = family()
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_maximization_mirrors(m: int) -> None:
    assert_like_cpu(-fronts(6, 200, m), -torch.ones(m, dtype=torch.float64), maximize=True)
    senses = [k % 2 == 0 for k in range(m)]
    signs = torch.tensor([-1.0 if sense else 1.0 for sense in senses], dtype=torch.float64)
    assert_like_cpu(signs * fronts(6, 200, m), signs, maximize=senses)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_a_reference_point_for_each_front_and_any_strides(m: int) -> None:
    points = fronts(m, 90, 4).permute(2, 1, 0)
    assert_like_cpu(points, 1 + fronts(4, m, seed=1), maximize=False)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_points_beyond_lengths_do_not_count(m: int) -> None:
    lengths = torch.tensor([0, 1, 40, 70])
    assert_like_cpu(fronts(4, 70, m), torch.ones(m, dtype=torch.float64), maximize=False, lengths=lengths)


@pytest.mark.parametrize(("m", "n"), [*((m, n) for m in (1, 2, 3) for n in (50, 4000)), (4, 50), (5, 30)])
def test_nan_rows_contribute_nothing(m: int, n: int) -> None:
    points = fronts(3, n, m)
    points[1, ::3, -1] = float("nan")
    assert_like_cpu(points, torch.ones(m, dtype=torch.float64), maximize=False, nan="worst")
    by_default = hypervolume(points.cuda(), 1.0, maximize=False)
    assert torch.equal(by_default, hypervolume(points.cuda(), 1.0, maximize=False, nan="worst"))
    with pytest.raises(ValueError, match="row 0"):
        hypervolume(points.cuda(), 1.0, maximize=False, nan="raise")


@pytest.mark.parametrize(("m", "n"), [*((m, n) for m in (1, 2, 3) for n in (50, 4000)), (4, 50), (5, 30)])
def test_nan_in_the_reference_point_is_nan_for_its_front_alone(m: int, n: int) -> None:
    ref_point = torch.ones(3, m, dtype=torch.float64)
    ref_point[1, 0] = float("nan")
    value = hypervolume(fronts(3, n, m).cuda(), ref_point.cuda(), maximize=False)
    assert value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_infinite_coordinates(m: int) -> None:
    points = fronts(4, 60, m)
    points[0, 3, 0] = -torch.inf
    points[1, 3, 0] = torch.inf
    ref_point = torch.ones(4, m, dtype=torch.float64)
    ref_point[2] = torch.inf
    assert_like_cpu(points, ref_point, maximize=False)


@pytest.mark.parametrize(
    ("m", "shape"),
    [
        *((m, shape) for m in (1, 2, 3) for shape in [(64, 128), (1, 20_000)]),
        (4, (64, 128)),
        (4, (1, 2000)),
        (6, (3, 60)),
    ],
    ids=str,
)
def test_the_same_bits_every_time(m: int, shape: tuple[int, int]) -> None:
    points, ref_point = fronts(*shape, m).cuda(), torch.ones(m, dtype=torch.float64, device="cuda")
    first = value_and_gradients(points, ref_point, maximize=False)
    for _ in range(5):
        again = value_and_gradients(points, ref_point, maximize=False)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize(("m", "n"), [*((m, n) for m in (1, 2, 3) for n in (128, 4000)), (4, 128), (4, 2500), (6, 40)])
def test_nothing_synchronizes(m: int, n: int) -> None:
    points = fronts(8, n, m).cuda().requires_grad_()
    ref_point = torch.ones(m, device="cuda", requires_grad=True)
    lengths = torch.full((8,), n - 3, device="cuda")
    with no_synchronization():
        hypervolume(points.detach(), ref_point.detach(), maximize=False, lengths=lengths)
        hypervolume(points, ref_point, maximize=False, lengths=lengths).sum().backward()
    assert points.grad is not None


@pytest.mark.parametrize(("m", "n"), [*((m, n) for m in (1, 2, 3) for n in (128, 4000)), (4, 128), (4, 2500), (6, 40)])
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


@pytest.mark.parametrize(("m", "n"), [*((m, n) for m in (1, 2, 3) for n in (128, 4000)), (4, 128), (4, 2500), (6, 40)])
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
