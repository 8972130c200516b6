"""The demo end to end, in the real MO-Gymnasium environment."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

mo_gymnasium = pytest.importorskip("mo_gymnasium")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from morlfast import demo  # noqa: E402

UNTUNED_SEED = 100  # the settings were chosen on seeds 0 to 4


def run(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = demo.main(["--out", str(out), *options])
    return code, json.loads((out / "demo.json").read_text())


@pytest.fixture(scope="module")
def env() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")
        return mo_gymnasium.make(demo.ENVIRONMENT)


@pytest.fixture(scope="module")
def known_front(env: Any) -> list[list[float]]:
    return [point.tolist() for point in env.unwrapped.pareto_front(gamma=1.0)]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("demo")
    return *run(out, "--seed", "3", "--steps", "2"), out


def staircase_area(returns: list[list[float]], ref_point: list[float]) -> float:
    """The area between maximized 2-d points and the reference point, one step of the staircase at a time."""
    area, top = 0.0, ref_point[1]
    for x, y in sorted(returns, reverse=True):
        if x > ref_point[0] and y > top:
            area += (x - ref_point[0]) * (y - top)
            top = y
    return area


def test_an_untuned_seed_reaches_the_required_shares(
    tmp_path: Path, known_front: list[list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run(tmp_path, "--seed", str(UNTUNED_SEED))
    assert code == 0
    assert report["passed"] is True
    assert "FAILED" not in capsys.readouterr().err
    for ref_point, required in (([0, -50], 0.95), ([0, -25], 0.90)):
        share = staircase_area(report["returns"], ref_point) / staircase_area(known_front, ref_point)
        assert share >= required
    assert report["hypervolume"] > report["random_hypervolume"]


def test_too_short_a_training_fails_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(tmp_path, "--steps", "1")
    assert code == 1
    assert report["passed"] is False
    errors = capsys.readouterr().err
    assert "FAILED" in errors
    assert "95% are required" in errors


def test_files_and_keys(short_run: tuple[int, dict[str, Any], Path]) -> None:
    _, report, out = short_run
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "front.png"]
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert report["seed"] == 3
    assert report["steps"] == 2
    assert report["seconds"] > 0
    assert set(report["shares"]) == {"found", "stock_gdpo", "random"}
    assert all(len(shares) == len(report["ref_points"]) for shares in report["shares"].values())
    assert set(report["operators"]) == {
        "group_advantages",
        "hypervolume",
        "non_dominated_sort",
        "select_tokens",
    }
    assert report["operators"]["group_advantages"]["calls"] == 2 * report["steps"]


def test_hypervolumes_match_an_independent_computation(
    short_run: tuple[int, dict[str, Any], Path], known_front: list[list[float]]
) -> None:
    _, report, _ = short_run
    assert report["known_hypervolume"] == pytest.approx(staircase_area(known_front, [0, -50]))
    assert report["hypervolume"] == pytest.approx(staircase_area(report["returns"], [0, -50]))
    for ref_point, share in zip(report["ref_points"], report["shares"]["found"], strict=True):
        expected = staircase_area(report["returns"], ref_point) / staircase_area(known_front, ref_point)
        assert share == pytest.approx(expected)


def test_a_seed_determines_the_result(short_run: tuple[int, dict[str, Any], Path], tmp_path: Path) -> None:
    code, report, _ = short_run
    again_code, again = run(tmp_path, "--seed", "3", "--steps", "2")
    for result in (report, again):
        del result["seconds"]
        for row in result["operators"].values():
            del row["seconds"]
    assert (again_code, again) == (code, report)


def test_the_chart_agrees_with_the_environment(env: Any) -> None:
    sea = demo.chart(env)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.full((1, *sea.next_state.shape), 1 / sea.next_state.shape[1])
    rollouts = demo.roll_out(sea, uniform, 50, generator)
    for states, actions, under_way, expected, found_treasure in zip(*rollouts, strict=True):
        observation, _ = env.reset()
        total, terminated = torch.zeros(2), False
        for state, action in zip(states[under_way].tolist(), actions[under_way].tolist(), strict=True):
            assert not terminated
            assert sea.state_of[tuple(observation.tolist())] == state
            observation, reward, terminated, _, _ = env.step(action)
            total += torch.from_numpy(reward)
        assert terminated == found_treasure.item()
        torch.testing.assert_close(total, expected)


def test_the_thread_count_is_given_back() -> None:
    threads = torch.get_num_threads()
    with demo.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mo_gymnasium", None)
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert 'The demo needs mo_gymnasium: pip install "morlfast[demo]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
