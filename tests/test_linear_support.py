"""Corner weights against exact vertex enumeration, priorities against linear programs, and the loop of OLS."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.linear_support import LinearSupport, corner_priorities, corner_weights

optimize = pytest.importorskip("scipy.optimize")


def solve(rows: list[list[Fraction]], right: list[Fraction]) -> list[Fraction] | None:
    """Gauss and Jordan in rational numbers; None for a singular matrix."""
    size = len(rows)
    table = [[*row, value] for row, value in zip(rows, right, strict=True)]
    for column in range(size):
        pivot = next((row for row in range(column, size) if table[row][column] != 0), None)
        if pivot is None:
            return None
        table[column], table[pivot] = table[pivot], table[column]
        table[column] = [entry / table[column][column] for entry in table[column]]
        for row in range(size):
            if row != column:
                factor = table[row][column]
                table[row] = [a - factor * b for a, b in zip(table[row], table[column], strict=True)]
    return [row[-1] for row in table]


def exact_corners(points: list[list[float]]) -> list[list[float]]:
    """Every vertex of {(w, v) : w in the simplex, p w <= v}: all choices of m tight constraints, in rationals."""
    m = len(points[0])
    constraints = [[*map(Fraction, point), Fraction(-1)] for point in points]
    constraints += [[Fraction(int(i == j)) for j in range(m)] + [Fraction(0)] for i in range(m)]
    on_simplex = [Fraction(1)] * m + [Fraction(0)]
    found = set()
    for chosen in itertools.combinations(constraints, m):
        solution = solve([on_simplex, *chosen], [Fraction(1)] + [Fraction(0)] * m)
        if solution is None or any(entry < 0 for entry in solution[:m]):
            continue
        best = max(sum(Fraction(p) * w for p, w in zip(point, solution, strict=False)) for point in points)
        if best == solution[m]:
            found.add(tuple(solution[:m]))
    return [[float(entry) for entry in corner] for corner in sorted(found)]


def front(n: int, m: int, seed: int = 0) -> torch.Tensor:
    points = torch.rand(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    return points / points.norm(dim=-1, keepdim=True)


def priorities_by_programs(weights, points, visited):
    bounds = (visited @ points.T).amax(-1)
    values = []
    for weight in weights:
        done = optimize.linprog(-weight.numpy(), visited.numpy(), bounds.numpy(), bounds=(None, None))
        values.append(-done.fun if done.status == 0 else math.inf)
    return torch.tensor(values, dtype=torch.float64) - (weights @ points.T).amax(-1)


def run(support: LinearSupport, points: torch.Tensor, limit: int = 200) -> int:
    for steps in range(limit):
        weight = support.next_weight()
        if weight is None:
            return steps
        support.add_solution(points[(points @ weight).argmax()], weight)
    return limit


@pytest.mark.parametrize("shape", [(7, 2), (6, 3), (5, 4), (1, 3), (2, 5)])
def test_corners_are_the_vertices_found_in_rational_numbers(shape):
    points = front(*shape)
    corners = corner_weights(points, maximize=True)
    torch.testing.assert_close(corners, torch.tensor(exact_corners(points.tolist()), dtype=torch.float64))


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6))
def test_ties_duplicates_and_collinear_points_make_no_false_corners(points):
    corners = corner_weights(points, maximize=True)
    torch.testing.assert_close(corners, torch.tensor(exact_corners(points), dtype=torch.float64))


@given(st.lists(st.lists(st.integers(-4, 4), min_size=2, max_size=2), min_size=1, max_size=8))
def test_two_objectives_are_exact(points):
    corners = corner_weights(points, maximize=True)
    torch.testing.assert_close(corners, torch.tensor(exact_corners(points), dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1000.0)])
def test_corners_do_not_depend_on_scale_and_offset(m, scale, offset):
    points = front(8, m)
    corners = corner_weights(points, maximize=True)
    moved = corner_weights(points * scale + offset, maximize=True)
    torch.testing.assert_close(moved, corners, rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise", [1e-15, 1e-13, 1e-12, 1e-11])
def test_copies_equal_but_for_noise_leave_the_corners_where_they_are(noise):
    points = front(7, 4)
    generator = torch.Generator().manual_seed(0)
    copies = points + noise * torch.randn(points.shape, dtype=torch.float64, generator=generator)
    points = torch.cat([points, copies])
    corners = corner_weights(points, maximize=True)
    expected = corner_weights(points[:7], maximize=True)
    assert (corners[:, None] - expected).abs().amax(-1).amin(0).max() < 1e-9
    # Where a copy takes over from its original there may be more corners, but none without m tight constraints.
    values = corners @ points.T
    tight = (values.amax(-1, keepdim=True) - values < 1e-9).sum(-1) + (corners < 1e-9).sum(-1)
    assert tight.min() >= 4


def test_senses_mirror():
    points = front(9, 3)
    corners = corner_weights(points, maximize=True)
    assert torch.equal(corner_weights(-points, maximize=False), corners)
    mirrored = points * torch.tensor([1.0, -1.0, 1.0])
    assert torch.equal(corner_weights(mirrored, maximize=[True, False, True]), corners)


def test_without_points_the_extreme_weights_are_the_corners():
    assert torch.equal(corner_weights(torch.empty(0, 3), maximize=True), torch.eye(3).flip(0))
    assert corner_weights([[2.0], [5.0]], maximize=True).tolist() == [[1.0]]


def test_results_keep_the_dtype():
    points = front(5, 3).float()
    assert corner_weights(points, maximize=True).dtype is torch.float32
    assert corner_priorities(torch.eye(3), points, torch.eye(3), maximize=True).dtype is torch.float32


@pytest.mark.parametrize("m", [2, 3, 4, 6])
def test_priorities_are_those_of_the_linear_programs(m):
    points = front(10, m)
    visited = torch.cat([torch.eye(m, dtype=torch.float64), points[:6] / points[:6].sum(-1, keepdim=True)])
    weights = corner_weights(points, maximize=True)[:30]
    priorities = corner_priorities(weights, points, visited, maximize=True)
    expected = priorities_by_programs(weights, points, visited)
    torch.testing.assert_close(priorities, expected, rtol=0, atol=1e-9)
    assert torch.equal(corner_priorities(weights, -points, visited, maximize=False), priorities)


def test_degenerate_sets_have_the_priorities_of_the_linear_programs():
    points = torch.cartesian_prod(*[torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)] * 3)
    points = points[points.sum(-1) == 3]
    visited = corner_weights(points, maximize=True)
    weights = torch.cat([visited, torch.full((1, 3), 1 / 3, dtype=torch.float64)])
    priorities = corner_priorities(weights, points, visited, maximize=True)
    torch.testing.assert_close(priorities, priorities_by_programs(weights, points, visited), rtol=0, atol=1e-9)


def test_nothing_bounds_a_weight_outside_the_hull_of_the_visited_ones():
    points, visited = front(4, 3), torch.eye(3, dtype=torch.float64)[:2]
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.4, 0.2]], dtype=torch.float64)
    priorities = corner_priorities(weights, points, visited, maximize=True)
    assert priorities.isinf().tolist() == [False, True]
    assert corner_priorities(weights, points[:0], visited, maximize=True).isinf().all()
    assert corner_priorities(weights, points, visited[:0], maximize=True).isinf().all()


def test_bounds_may_be_looser_than_the_points():
    points = visited = torch.eye(2, dtype=torch.float64)
    weight = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    tight = corner_priorities(weight, points, visited, maximize=True)
    loose = corner_priorities(weight, points, visited, maximize=True, visited_values=[2.0, 1.0])
    assert (tight.item(), loose.item()) == (0.5, 1.0)


@pytest.mark.parametrize(("n", "m"), [(12, 2), (12, 3), (8, 4)])
def test_ols_finds_every_point_that_is_best_somewhere(n, m):
    points = torch.cat([front(n, m), front(n, m) * 0.7])  # the second half is dominated
    support = LinearSupport(m)
    steps = run(support, points)
    assert support.ended()
    assert steps == support.iteration
    found = torch.stack(support.ccs)
    weights = torch.rand(500, m, dtype=torch.float64)
    torch.testing.assert_close((weights @ found.T).amax(-1), (weights @ points.T).amax(-1))


def test_epsilon_ends_the_loop_earlier_and_bounds_the_loss():
    points = front(100, 2)
    exact, loose = LinearSupport(2), LinearSupport(2, epsilon=0.01)
    assert run(loose, points) < run(exact, points)
    weights = torch.rand(500, 2, dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    loss = (weights @ points.T).amax(-1) - (weights @ torch.stack(loose.ccs).T).amax(-1)
    assert loss.max() <= 0.01


def test_the_extreme_weights_come_first():
    support, points = LinearSupport(4), front(20, 4)
    visited = []
    for _ in range(4):
        weight = support.next_weight()
        visited.append(weight)
        support.add_solution(points[(points @ weight).argmax()], weight)
    assert sorted(weight.argmax().item() for weight in visited) == [0, 1, 2, 3]
    assert all(weight.max() == 1 for weight in visited)


def test_adding_says_what_left():
    support = LinearSupport(2)
    assert support.add_solution([1.0, 0.0], [1.0, 0.0]) == []
    assert support.add_solution([0.0, 1.0], [0.0, 1.0]) == []
    assert support.add_solution([0.4, 0.4], [0.5, 0.5]) == [2]  # worse at every visited weight
    assert support.add_solution([1.0, 1.0], [0.5, 0.5]) == [1, 0]
    assert [value.tolist() for value in support.ccs] == [[1.0, 1.0]]
    assert len(support.get_weight_support()) == 1
    assert len(support.visited_weights) == support.iteration == 4


def test_a_value_found_again_replaces_its_copy():
    support = LinearSupport(3)
    value = torch.tensor([0.1, 0.7, 0.3])
    for weight in torch.eye(3):
        support.add_solution(value, weight)
    assert len(support.ccs) == 1


def test_gpi_priorities_choose_the_weight():
    support = LinearSupport(2)
    support.add_solution([1.0, 0.0], [1.0, 0.0])
    support.add_solution([0.0, 1.0], [0.0, 1.0])
    weight = support.next_weight("gpi-ls", lambda corners: torch.full_like(corners, 0.8))
    assert weight.tolist() == [0.5, 0.5]
    assert len(support.get_corner_weights(top_k=4)) == 0  # the extreme weights attain less than the set
    with pytest.raises(ValueError, match="gpi_values"):
        support.next_weight("gpi-ls")


def test_single_weights_have_what_the_sets_have():
    support, points = LinearSupport(3), front(9, 3)
    run(support, points, limit=5)
    corners = support.compute_corner_weights()
    values, visited = torch.stack(support.ccs), torch.stack(support.visited_weights)
    expected = corner_priorities(corners, values, visited, maximize=True)
    for corner, priority in zip(corners, expected, strict=True):
        assert support.ols_priority(corner) == pytest.approx(float(priority), abs=1e-12)
        best = support.max_scalarized_value(corner)
        assert support.max_value_lp(corner) == pytest.approx(best + float(priority), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: corner_weights([[1.0, math.nan]], maximize=True), ValueError, "row 0"),
        (lambda: corner_weights([[1.0, 1.0], [1.0, math.inf]], maximize=True), ValueError, "row 1"),
        (lambda: corner_weights(torch.rand(2, 3, 4), maximize=True), ValueError, "points"),
        (lambda: corner_weights([[1.0, 2.0]], maximize=[True]), ValueError, "maximize"),
        (lambda: corner_priorities([[0.5, 0.5]], [[1.0, 2.0, 3.0]], [[1.0, 0.0]], maximize=True), ValueError, "points"),
        (lambda: corner_priorities([[-0.5, 1.5]], [[1.0, 2.0]], [[1.0, 0.0]], maximize=True), ValueError, "weights"),
        (
            lambda: corner_priorities([[0.5, 0.5]], [[1.0, 2.0]], [[1.0, 0.0]], maximize=True, visited_values=[1, 2]),
            ValueError,
            "visited_values",
        ),
        (lambda: LinearSupport(0), ValueError, "num_objectives"),
        (lambda: LinearSupport(2).add_solution([1.0], [1.0, 0.0]), ValueError, "value"),
        (lambda: LinearSupport(2).next_weight("other"), ValueError, "algo"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()
