"""What surrounds the CUDA kernel, without a GPU: the kernel's contract stands in for it, written out in O(n^2)."""

from __future__ import annotations

import pytest
import torch
from morlfast import _C, hypervolume
from morlfast._cuda import hypervolume as layout

F64 = torch.float64


def by(points, k):
    """Rows by (objective k, the other objectives, row)."""
    z, others = points.tolist(), [j for j in range(points.shape[1]) if j != k]
    return torch.tensor(
        sorted(range(len(z)), key=lambda i: (z[i][k], *(z[i][j] for j in others), i)), dtype=torch.int32
    )


def measure(points, ref, before, k):
    """What the last point of `before` covers in the projection along k and no earlier point does."""
    others = [j for j in range(points.shape[1]) if j != k]
    if torch.equal(points[before[-1]], ref):  # does not count
        return torch.tensor(0.0)
    if not others:
        return torch.tensor(float(len(before) == 1))
    seen = points[before][:, others]
    return hypervolume(seen, ref[others], maximize=False) - hypervolume(seen[:-1], ref[others], maximize=False)


def kernel(points, ref, order, rank, gradient):
    """`_C.hypervolume_cuda` by its contract."""
    slopes = torch.zeros_like(points)
    for f, front in enumerate(points):
        for k in range(points.shape[2]):
            rows = by(front, k).long()
            if k < len(order):
                assert torch.equal(order[k, f].long(), rows)
                if len(order) > 1:  # the kernel for two objectives reads no ranks
                    assert torch.equal(rank[k, f].long()[rows], torch.arange(len(rows)))
            for place, row in enumerate(rows.tolist()):
                slopes[f, row, k] = -measure(front, ref[f], rows[: place + 1], k)
    value = -((ref[:, None] - points) * slopes)[..., -1].sum(-1)
    return value, slopes if gradient else None


def orders(points, axes):
    """`_C.lexicographic_orders_cuda` by its contract."""
    order = torch.zeros(axes, *points.shape[:2], dtype=torch.int32)
    for k in range(axes):
        for f, front in enumerate(points):
            order[k, f] = by(front, k)
    return order, order.long().argsort(-1).int()


def check_sorted(points, ref, order, rank, counts):
    assert points.is_contiguous()
    assert ref.is_contiguous()
    assert torch.equal(counts, (points < ref[:, None]).all(-1) & counts)
    expected = orders(points, points.shape[2])
    assert torch.equal(order, expected[0])
    assert torch.equal(rank, expected[1])


def dominated_volume(points, ref, order, rank, counts, gradient, max_memory, part, parts):
    """`_C.dominated_volume_cuda` by its contract: here part p has the p-th share of the whole."""
    check_sorted(points, ref, order, rank, counts)
    value, slopes = torch.ops.morlfast.hypervolume_gradient(points, ref, False, False)
    share = 2 * (part + 1) / (parts * (parts + 1))
    return share * value, share * slopes if gradient else None


def exclusive_volume(points, ref, order, rank, counts, low, low_rank, first_own, max_memory):
    """`_C.exclusive_volume_cuda` by its contract."""
    check_sorted(points, ref, order, rank, counts)
    volume = torch.zeros(low.shape[:2], dtype=F64)
    for f, front in enumerate(points):
        for j, corner in enumerate(low[f]):
            others = counts[f].clone()
            if first_own >= 0:
                others[first_own + j] = False
                assert torch.equal(corner.nan_to_num(-7), front[first_own + j].nan_to_num(-7))
                assert torch.equal(low_rank[:, f, j], rank[:, f, first_own + j] + 1)
            elif not corner.isnan().any():
                assert torch.equal(low_rank[:, f, j].long(), (front <= corner).sum(0))
            both = torch.cat([front[others], corner[None]])
            volume[f, j] = value_of(both, ref[f]) - value_of(front[others], ref[f])
    return volume


def value_of(points, ref):
    return torch.ops.morlfast.hypervolume(points, ref, False, False)


def dominated_rows(points):
    below = (points[:, None] <= points[:, :, None]).all(-1) & (points[:, None] < points[:, :, None]).any(-1)
    return below.any(-1)


def count_boxes(points, ref, order, rank, counts, dominated, max_memory):
    check_sorted(points, ref, order, rank, counts)
    return torch.ops.morlfast.box_decomposition(points, ref, dominated, False, False)[2]


def fill_boxes(points, ref, order, rank, counts, dominated, max_memory, boxes):
    lower, upper, _ = torch.ops.morlfast.box_decomposition(points, ref, dominated, False, False)
    assert lower.shape[1] == boxes
    return lower, upper


@pytest.fixture
def contract(monkeypatch):
    for name, function in {
        "hypervolume_cuda": kernel,
        "lexicographic_orders_cuda": orders,
        "dominated_volume_cuda": dominated_volume,
        "exclusive_volume_cuda": exclusive_volume,
        "dominated_rows_cuda": dominated_rows,
        "count_boxes_cuda": count_boxes,
        "fill_boxes_cuda": fill_boxes,
    }.items():
        monkeypatch.setattr(_C, name, function, raising=False)


def ragged_fronts(m, maximize, dtype=F64):
    """Ties, duplicates, points beyond the reference point, a NaN; a reference point for each column of the batch."""
    generator = torch.Generator().manual_seed(m)
    points = torch.randint(-2, 5, (2, 3, 9, m), generator=generator).to(dtype)
    points[0, 1, 4, 0] = torch.nan
    ref = torch.full((3, m), -1.0 if maximize else 4.0, dtype=dtype)
    return points, ref, torch.tensor([[9, 9, 4], [0, 1, 8]])


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sorted_by_torch", [False, True])
def test_layout_and_contract_give_the_cpus_value_and_gradient(
    contract, monkeypatch, m, maximize, dtype, sorted_by_torch
):
    if sorted_by_torch:
        monkeypatch.setattr(layout, "_COUNTED_POINTS", -1)
    points, ref, lengths = ragged_fronts(m, maximize, dtype)
    value, gradient = layout.hypervolume_gradient(points, ref, maximize, False, lengths)
    expected, expected_gradient = torch.ops.morlfast.hypervolume_gradient(points, ref, maximize, False, lengths)
    assert value.dtype == gradient.dtype == dtype
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert torch.equal(layout.hypervolume(points, ref, maximize, False, lengths), value)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_parts_add_up(contract, m):
    points, ref, lengths = ragged_fronts(m, False)
    whole = layout.hypervolume_gradient(points, ref, False, False, lengths)
    parts = [layout.hypervolume_gradient(points, ref, False, False, lengths, 2**20, part, 3) for part in range(3)]
    torch.testing.assert_close(sum(value for value, _ in parts), whole[0])
    torch.testing.assert_close(sum(gradient for _, gradient in parts), whole[1])
    with pytest.raises(ValueError, match="part: expected 0 to 2, got 3"):
        layout.hypervolume(points, ref, False, False, lengths, 2**20, 3, 3)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("ignore_dominated", [False, True])
def test_contributions_are_the_cpus(contract, m, maximize, ignore_dominated):
    points, ref, lengths = ragged_fronts(m, maximize, torch.float32)
    arguments = (points, ref, maximize, False, lengths, ignore_dominated)
    expected = torch.ops.morlfast.hypervolume_contributions(*arguments)
    found = layout.hypervolume_contributions(*arguments)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("max_memory", [1, 2**30])
def test_improvements_are_the_cpus(contract, m, maximize, size, max_memory):
    points, ref, lengths = ragged_fronts(m, maximize)
    candidates = torch.randint(-3, 5, (2, 3, 5, size, m), generator=torch.Generator().manual_seed(9)).to(F64)
    if size > 0:
        candidates[1, 2, 3, 0, 0] = torch.nan
        candidates[0, 0, 0, 0] = points[0, 0, 0]
    expected = torch.ops.morlfast.hypervolume_improvement(candidates, points, ref, maximize, False, lengths)
    found = layout.hypervolume_improvement(candidates, points, ref, maximize, False, lengths, max_memory)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dominated", [False, True])
def test_boxes_are_the_cpus(contract, m, maximize, dominated):
    points, ref, lengths = ragged_fronts(m, maximize, torch.float32)
    for given in (points, points[:, :, :0], points[:0]):
        limit = lengths[: len(given)].clamp(max=given.shape[2])
        expected = torch.ops.morlfast.box_decomposition(given, ref, dominated, maximize, False, limit)
        found = layout.box_decomposition(given, ref, dominated, maximize, False, limit)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_boxes_keep_to_max_memory(contract):
    points, ref, lengths = ragged_fronts(4, False)
    with pytest.raises(MemoryError, match="max_memory = 1000"):
        layout.box_decomposition(points, ref, True, False, False, lengths, 1000)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("k", [0, 1, 5, 9])
def test_subsets_are_the_cpus(contract, m, maximize, k):
    points, ref, lengths = ragged_fronts(m, maximize)
    for limit in (None, lengths):
        expected = torch.ops.morlfast.hypervolume_subset(points, k, ref, maximize, False, limit)
        assert torch.equal(layout.hypervolume_subset(points, k, ref, maximize, False, limit), expected)


@pytest.mark.parametrize("m", [1, 3, 4])
def test_a_reference_point_of_nan_is_the_cpus(contract, m):
    points, ref, lengths = ragged_fronts(m, False)
    ref[1, 0] = torch.nan
    rest = (ref, False, False, lengths)
    operators = torch.ops.morlfast
    ours = layout.box_decomposition(points, ref, False, False, False, lengths)
    for found, expected in zip(
        ours, operators.box_decomposition(points, ref, False, False, False, lengths), strict=True
    ):
        assert torch.equal(found.nan_to_num(-7), expected.nan_to_num(-7))
    assert torch.equal(
        layout.hypervolume_subset(points, 3, *rest), operators.hypervolume_subset(points, 3, ref, False, False, lengths)
    )
    contributions = layout.hypervolume_contributions(points, *rest)
    assert torch.equal(contributions.isnan(), operators.hypervolume_contributions(points, *rest).isnan())


@pytest.mark.parametrize(
    "name", ["hypervolume", "hypervolume_gradient", "hypervolume_contributions", "box_decomposition"]
)
def test_nobody_waits_for_the_device_to_look_for_nan(name):
    points, ref, _ = ragged_fronts(3, False)
    arguments = (points, ref, True) if name == "box_decomposition" else (points, ref)
    with pytest.raises(ValueError, match="nan_raises"):
        getattr(layout, name)(*arguments)


@pytest.mark.parametrize(("m", "axes"), [(2, 1), (2, 2), (3, 3), (5, 5)])
def test_torch_sorts_and_the_kernels_counting_agree(contract, monkeypatch, m, axes):
    points = torch.randint(0, 4, (3, 50, m), generator=torch.Generator().manual_seed(m)).to(F64)
    points[points == 0] = -0.0
    points[0, ::2] = points[0, ::2].abs()  # 0.0 and -0.0 tie
    monkeypatch.setattr(layout, "_COUNTED_POINTS", -1)
    (order, rank), (counted, counted_rank) = layout._orders(points, axes), orders(points, axes)
    assert torch.equal(order, counted)
    if axes > 1:  # the kernel for two objectives reads no ranks
        assert torch.equal(rank, counted_rank)


@pytest.mark.parametrize("m", [3, 4])
def test_an_empty_batch_has_an_empty_result(contract, m):
    points, ref = torch.zeros(0, 5, m, dtype=F64), torch.ones(m, dtype=F64)
    value, gradient = layout.hypervolume_gradient(points, ref, False, False)
    assert value.shape == (0,)
    assert gradient.shape == (0, 5, m)
    assert layout.hypervolume_contributions(points, ref, False, False).shape == (0, 5)
    assert layout.hypervolume_improvement(torch.zeros(0, 2, 1, m, dtype=F64), points, ref, False, False).shape == (0, 2)
    assert layout.hypervolume_subset(points, 2, ref, False, False).shape == (0, 2)
