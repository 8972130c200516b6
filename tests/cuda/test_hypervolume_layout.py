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
                if len(order) == 3:  # the kernel for two objectives reads no ranks
                    assert torch.equal(rank[k, f].long()[rows], torch.arange(len(rows)))
            for place, row in enumerate(rows.tolist()):
                slopes[f, row, k] = -measure(front, ref[f], rows[: place + 1], k)
    value = -((ref[:, None] - points) * slopes)[..., -1].sum(-1)
    return value, slopes if gradient else None


def orders(points):
    """`_C.lexicographic_orders_cuda` by its contract."""
    axes = {1: 0, 2: 1, 3: 3}[points.shape[2]]
    order = torch.zeros(axes, *points.shape[:2], dtype=torch.int32)
    for k in range(axes):
        for f, front in enumerate(points):
            order[k, f] = by(front, k)
    return order, order.long().argsort(-1).int()


@pytest.fixture
def contract(monkeypatch):
    monkeypatch.setattr(_C, "hypervolume_cuda", kernel)
    monkeypatch.setattr(_C, "lexicographic_orders_cuda", orders)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sorted_by_torch", [False, True])
def test_layout_and_contract_give_the_cpus_value_and_gradient(
    contract, monkeypatch, m, maximize, dtype, sorted_by_torch
):
    if sorted_by_torch:
        monkeypatch.setattr(layout, "_COUNTED_POINTS", -1)
    generator = torch.Generator().manual_seed(m)
    points = torch.randint(-2, 5, (2, 3, 9, m), generator=generator).to(dtype)  # ties, duplicates, beyond the reference
    points[0, 1, 4, 0] = torch.nan
    ref = torch.full((3, m), -1.0 if maximize else 4.0, dtype=dtype)
    lengths = torch.tensor([[9, 9, 4], [0, 1, 8]])
    value, gradient = layout.hypervolume(points, ref, maximize, lengths, True)
    expected, expected_gradient = torch.ops.morlfast.hypervolume_gradient(points, ref, maximize, False, lengths)
    assert value.dtype == gradient.dtype == dtype
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("m", [2, 3])
def test_torch_sorts_and_the_kernels_counting_agree(contract, monkeypatch, m):
    points = torch.randint(0, 4, (3, 50, m), generator=torch.Generator().manual_seed(m)).to(F64)
    points[points == 0] = -0.0
    points[0, ::2] = points[0, ::2].abs()  # 0.0 and -0.0 tie
    monkeypatch.setattr(layout, "_COUNTED_POINTS", -1)
    (order, rank), (counted, counted_rank) = layout._orders(points), orders(points)
    assert torch.equal(order, counted)
    if m == 3:  # the kernel for two objectives reads no ranks
        assert torch.equal(rank, counted_rank)


def test_an_empty_batch_has_an_empty_result(contract):
    value, gradient = layout.hypervolume(torch.zeros(0, 5, 3, dtype=F64), torch.ones(3, dtype=F64), False, None, True)
    assert value.shape == (0,)
    assert gradient.shape == (0, 5, 3)
