"""The table of papers is true, and systems that need no function of their own are computed with the public ones."""

from __future__ import annotations

import re
from pathlib import Path

import moocore
import morlfast
import numpy as np
import pytest
import torch
from morlfast import (
    ParetoArchive,
    chebyshev,
    crowding_distance,
    expected_utility,
    hype_fitness,
    hypervolume,
    igd,
    is_lorenz_non_dominated,
    is_non_dominated,
    lexicographic_order,
    non_dominated_sort,
    ordered_weighted_average,
    penalty_boundary_intersection,
    power_mean,
    preference_entropy,
    psa_weights,
    r2,
    select_by_crowding,
    select_tokens,
    simplex_lattice,
    sparsity,
    thresholded_lexicographic_order,
    top_k_diversity,
    weight_neighbors,
    weighted_log,
    weighted_sum,
)
from morlfast.returns import gae

ROOT = Path(__file__).parents[1]
F64 = torch.float64
STATES = ("works", "in part", "not yet", "no kernel")


def table() -> list[list[str]]:
    lines = (ROOT / "docs/papers.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| (\d+|\+) \|", line)
    ]
    assert rows
    return rows


def names_of_tests(file: str) -> list[str]:
    return re.findall(r"^def (test_\w+)\(", (ROOT / "tests" / file).read_text(), flags=re.MULTILINE)


def test_every_system_has_one_row():
    rows = table()
    assert [row[0] for row in rows] == [*map(str, range(1, 73)), "+"]
    assert {len(row) for row in rows} == {7}
    assert {row[3] for row in rows} <= set(STATES)


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0])
def test_functions_and_tests_of_a_row_exist(row):
    number, _, _, state, functions, tests, formula = row
    names = re.findall(r"`([\w.]+)`", functions)
    called = "".join((ROOT / "tests" / file).read_text() for file in set(re.findall(r"`(\w+\.py)::", tests)))
    for name in names:
        assert name in morlfast.__all__
        assert callable(getattr(morlfast, name))
        assert re.search(rf"\b{name}\(", called), f"{name} in {tests}"
    for file, prefix in re.findall(r"`(\w+\.py)::(\w+)`", tests):
        assert any(re.match(rf"{prefix}(_|$)", name) for name in names_of_tests(file)), f"{file}::{prefix}"
        assert "gdpo" in prefix if number == "+" else re.fullmatch(rf"test_row_0?{number}", prefix)
    if state in ("works", "in part"):
        assert names
        assert "::" in tests
        assert formula
    if state == "not yet":
        assert not names
        assert not tests


def test_every_test_of_a_row_is_in_the_table():
    in_table = {
        (file, int(number)) for number, *_, tests, _ in table()[:-1] for file in re.findall(r"`(\w+\.py)::", tests)
    }
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for name in names_of_tests(path.name):
            if found := re.match(r"test_row_(\d+)(_|$)", name):
                assert (path.name, int(found[1])) in in_table, f"{path.name}::{name}"


# --- systems whose computation is that of the general functions ---


def maximized(n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=F64)


def volume(points: torch.Tensor, ref: float | list[float]) -> float:
    return moocore.hypervolume(points.numpy(), ref=np.broadcast_to(ref, points.shape[-1]), maximise=True)


def test_row_03_c_morl_crowding_distance_and_selection():
    front = [[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]]
    assert crowding_distance(front, variant="c-morl").tolist() == [np.inf, 1.5, 1.5, np.inf]
    assert sorted(select_by_crowding(front, 2, maximize=True).tolist()) == [0, 3]


@pytest.mark.parametrize("m", [2, 3, 6, 9])
def test_row_03_c_morl_front_metrics(m):
    points, weights = maximized(30, m), simplex_lattice(m, 2)
    keep = is_non_dominated(points, maximize=True)
    assert keep.tolist() == moocore.is_nondominated(points.numpy(), maximise=True).tolist()
    front = points[keep]
    assert hypervolume(front, 0.0, maximize=True).item() == pytest.approx(volume(front, 0.0))
    utilities = (weights.numpy() @ front.numpy().T).max(1)
    assert expected_utility(front, weights).item() == pytest.approx(utilities.mean())
    gaps = np.diff(np.sort(front.numpy(), 0), axis=0)
    assert sparsity(front).item() == pytest.approx((gaps**2).sum() / (len(front) - 1))


def test_row_08_harmonyguard_front_of_compliance_and_utility():
    agents = torch.tensor([[0.92, 0.31], [0.85, 0.44], [0.92, 0.28], [0.60, 0.44], [0.55, 0.52]], dtype=F64)
    assert is_non_dominated(agents, maximize=True).tolist() == [True, True, False, False, True]
    area = 0.92 * 0.31 + 0.85 * (0.44 - 0.31) + 0.55 * (0.52 - 0.44)
    assert hypervolume(agents, 0.0, maximize=True).item() == pytest.approx(area)


def test_row_09_power_and_latency_front_of_all_designs():
    designs = maximized(442_368, 2)
    designs[:, 1] += 0.1 / (designs[:, 0] + 0.1)
    order = np.lexsort((designs[:, 1].numpy(), designs[:, 0].numpy()))
    latency = designs[:, 1].numpy()[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], latency[:-1]]))
    expected = np.zeros(len(designs), bool)
    expected[order] = latency < best_before
    assert (is_non_dominated(designs, maximize=False).numpy() == expected).all()


def test_row_10_morld_weights_neighbours_and_scalarizations():
    weights, values, archive = simplex_lattice(2, 5), maximized(6, 2), maximized(9, 2, seed=1)
    moved = []
    for w, e in zip(weights.numpy(), values.numpy(), strict=True):
        distances = ((archive.numpy() - e) ** 2).sum(1)
        nearest = archive.numpy()[np.where(distances > 0.01, distances, np.inf).argmin()]
        w = np.where(e >= nearest, w * 1.1, w / 1.1)
        moved.append(w / w.sum())
    np.testing.assert_allclose(psa_weights(weights, values, archive, maximize=True), moved)
    distances = np.linalg.norm(weights.numpy()[:, None] - weights.numpy()[None], axis=-1) + np.diag([np.inf] * 6)
    nearest = np.sort(distances, 1)[:, :2]
    found = weight_neighbors(weights, 2)
    np.testing.assert_allclose(np.take_along_axis(distances, found.numpy(), 1), nearest)
    ideal = values.max(0).values + 0.5
    expected = -(weights.numpy()[:, None] * np.abs(values.numpy()[None] - ideal.numpy())).max(-1)
    np.testing.assert_allclose(-chebyshev(values, weights, ideal), expected)
    np.testing.assert_allclose(weighted_sum(values, weights), weights.numpy() @ values.numpy().T)
    kept = ParetoArchive(2, maximize=True)
    for batch in maximized(90, 2, seed=2).split(10):
        kept.insert(batch)
    best = moocore.filter_dominated(maximized(90, 2, seed=2).numpy(), maximise=True)
    np.testing.assert_array_equal(kept.points, best)


def test_row_11_hpo_mean_hypervolume_of_ragged_fronts_over_seeds():
    fronts = maximized(4 * 3 * 12, 3).reshape(4, 3, 12, 3)  # trials, seeds
    lengths = torch.tensor([[12, 3, 1], [0, 5, 12], [7, 7, 7], [2, 11, 4]])
    objective = hypervolume(fronts, 0.0, maximize=True, lengths=lengths).mean(-1)
    for trial in range(4):
        volumes = [volume(f[:n], 0.0) if n else 0.0 for f, n in zip(fronts[trial], lengths[trial], strict=True)]
        assert objective[trial].item() == pytest.approx(np.mean(volumes))


def test_row_14_mogfn_scalarizations_and_metrics():
    rewards, preferences = maximized(40, 3), simplex_lattice(3, 6)
    np.testing.assert_allclose(
        weighted_log(rewards, preferences), preferences.numpy() @ np.log(rewards.numpy()).T, rtol=1e-12
    )
    distances = (preferences.numpy()[:, None] * np.abs(1 - rewards.numpy())[None]).max(-1)
    np.testing.assert_allclose(chebyshev(rewards, preferences, 1.0), distances)
    own = r2(rewards, preferences, 1.0, normalization="frobenius").item()
    assert own == pytest.approx(distances.min(1).sum() / np.linalg.norm(preferences.numpy()))
    grid = preferences / preferences.max(-1, keepdim=True).values
    assert igd(rewards, grid).item() == pytest.approx(moocore.igd(rewards.numpy(), ref=grid.numpy(), maximise=True))
    assert hypervolume(rewards, 0.0, maximize=True).item() == pytest.approx(volume(rewards, 0.0))
    served = np.linalg.norm(rewards.numpy()[:, None] - grid.numpy()[None], axis=-1).argmin(1)
    shares = np.bincount(served, minlength=len(grid)) / len(rewards)
    entropy = -(shares * np.log(shares + 1e-8)).sum()
    assert preference_entropy(rewards, grid, eps=1e-8).item() == pytest.approx(entropy)
    apart = np.linalg.norm(rewards.numpy()[:, None] - rewards.numpy()[None], axis=-1)
    best = np.argsort(-rewards[:, 0].numpy())[:10]
    pairs = apart[np.ix_(best, best)][np.triu_indices(10, 1)]
    assert top_k_diversity(apart, rewards[:, 0], 10).item() == pytest.approx(pairs.mean())


def test_row_19_expressivity_operators_on_returns_and_on_their_mean():
    """Inner (ESR) is the mean of the operator over episodes, outer (SER) the operator of the mean return."""
    returns = maximized(200, 3) + 0.1
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    x = returns.numpy()
    operators = {
        "linear": (lambda v: weighted_sum(v, weights), lambda v: v @ weights.numpy()),
        "Nash product": (lambda v: weighted_log(v, weights).exp(), lambda v: np.prod(v ** weights.numpy(), -1)),
        "minimum": (lambda v: power_mean(v, weights, -np.inf), lambda v: v.min(-1)),
        "Gini": (lambda v: ordered_weighted_average(v, weights), lambda v: np.sort(v, -1) @ weights.numpy()),
    }
    for name, (operator, definition) in operators.items():
        assert operator(returns).mean().item() == pytest.approx(definition(x).mean()), name
        assert operator(returns.mean(0)).item() == pytest.approx(definition(x.mean(0))), name
    coarse = (returns * 4).floor()
    best = max(range(200), key=lambda i: (*coarse[i].tolist(), -i))
    assert lexicographic_order(coarse, maximize=True)[0] == best
    enough = max(range(200), key=lambda i: (*coarse[i, :2].clamp(max=2).tolist(), coarse[i, 2].item(), -i))
    assert thresholded_lexicographic_order(coarse, [2.0, 2.0], maximize=True)[0] == enough
    sums = np.cumsum(np.sort(x, -1), -1)
    assert is_lorenz_non_dominated(returns).tolist() == (moocore.is_nondominated(sums, maximise=True).tolist())


def test_row_24_gmorl_hypervolume_over_preferences():
    weights = torch.linspace(0, 1, 51, dtype=F64)
    delay, energy = -1 - weights.square(), -2 + weights.sqrt()  # one policy a preference
    front = torch.stack([delay, energy], -1)
    assert hypervolume(front, -3.0, maximize=True).item() == pytest.approx(volume(front, -3.0))


def test_row_27_momaland_vector_rewards_linearized_before_or_after_gae():
    rewards, values, weights = maximized(20, 3), maximized(20, 3, seed=1), simplex_lattice(3, 3)
    per_objective = gae(rewards.mT, values.mT, gamma=0.99, lam=0.99).advantages  # objective by step
    linearized = gae(weighted_sum(rewards, weights), weighted_sum(values, weights), gamma=0.99, lam=0.99)
    np.testing.assert_allclose(linearized.advantages, weights @ per_objective, rtol=1e-9, atol=1e-9)
    for w, row in zip(weights.numpy(), linearized.advantages.numpy(), strict=True):
        advantage, value_behind = 0.0, 0.0
        for r, v, own in zip(*((x.numpy() @ w)[::-1] for x in (rewards, values)), row[::-1], strict=True):
            advantage = r + 0.99 * value_behind - v + 0.99 * 0.99 * advantage
            value_behind = v
            assert own == pytest.approx(advantage)
    team_returns = per_objective.mT + 5
    assert hypervolume(team_returns, 0.0, maximize=True).item() == pytest.approx(volume(team_returns, 0.0))
    utilities = (weights @ team_returns.mT).max(-1).values
    assert expected_utility(team_returns, weights).item() == pytest.approx(utilities.mean().item())


def test_row_58_evomo_sort_decomposition_and_hype():
    points, weights = maximized(60, 3), simplex_lattice(3, 4)
    ranks = moocore.pareto_rank(points.numpy())
    assert non_dominated_sort(points, maximize=False).tolist() == (ranks - ranks.min()).tolist()
    ideal = points.min(0).values
    shifted, unit = (points - ideal).numpy(), (weights / weights.norm(dim=-1, keepdim=True)).numpy()
    along = unit @ shifted.T
    away = np.linalg.norm(shifted[None] - along[..., None] * unit[:, None], axis=-1)
    pbi = penalty_boundary_intersection(points, weights, ideal, maximize=False)
    np.testing.assert_allclose(pbi, along + 5 * away, rtol=1e-9, atol=1e-9)
    front = points[is_non_dominated(points, maximize=False)]
    generator = torch.Generator().manual_seed(0)
    fitness = hype_fitness(front, 1.2, k=1, maximize=False, generator=generator)
    whole = volume(-front, -1.2)
    losses = [whole - volume(-torch.cat([front[:i], front[i + 1 :]]), -1.2) for i in range(len(front))]
    np.testing.assert_allclose(fitness, losses, atol=0.01 * whole)


def test_row_64_d3s_tokens_of_largest_advantage_times_entropy():
    advantages = torch.tensor([1.0, -0.5])
    entropies = torch.tensor([[0.1, 2.0, 0.3, 1.0], [3.0, 0.2, 0.1, 2.5]])
    kept = select_tokens(advantages, entropies, torch.ones(2, 4, dtype=torch.bool), ratio=0.25)
    assert kept.flatten().nonzero().flatten().tolist() == [1, 4]
