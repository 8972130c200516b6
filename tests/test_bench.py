"""The benchmarks say nothing that they have not checked. No clock is asserted on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import hypervolume, indicators, overhead, pareto, report, threads, weights  # noqa: E402
from bench.__main__ import THREAD_VARIABLES, main  # noqa: E402
from bench.__main__ import arguments as parse  # noqa: E402
from bench.driver import Case, Operation, Peer, Row, Settings, Unit, Yardstick, close, failed, rows_of  # noqa: E402
from bench.environment import added_memory  # noqa: E402
from bench.operations import OPERATIONS  # noqa: E402
from bench.run import run  # noqa: E402

SETTINGS = Settings(seconds=0.005, environment=lambda: {"torch": torch.__version__})


def double(peers: tuple[Peer, ...], **options: Any) -> Operation:
    def case(shape: tuple[int, ...], variant: str) -> Case:
        return Case(
            **options,
            setup=lambda generator: (torch.rand(shape, generator=generator),),
            ours=lambda x: 2 * x,
            dtype="float32",
            peers=peers,
            moved_bytes=8 * shape[0],
            work=float(shape[0]),
        )

    return Operation("double", ("n",), ("uniform",), ((8,),), case)


def peer(name: str, call: Callable[..., object]) -> Peer:
    return Peer(name, close(rtol=1e-6), lambda: call)


def measure(*peers: Peer, settings: Settings = SETTINGS, **options: Any) -> list[Row]:
    return list(rows_of(double(peers, **options), (8,), "uniform", settings))


def command(*arguments: str) -> int:
    """As the command line does, without the environment variables that it sets for its own process."""
    threads = torch.get_num_threads()
    try:
        return run(parse(list(arguments)))
    finally:
        torch.set_num_threads(threads)


def test_a_peer_that_agrees_gets_a_ratio_with_its_check() -> None:
    (row,) = measure(peer("sum", lambda x: x + x))
    assert row["status"] == "ok"
    assert row["ratio"] == row["theirs"]["median_ms"] / row["ours"]["median_ms"]
    assert row["checked_inputs"] >= 1
    assert row["tolerance"] == "rtol 1e-06"
    assert row["limit_is"] == "a copy of the same bytes"
    for times in (row["ours"], row["theirs"], row["limit"]):
        assert times["q20_ms"] <= times["median_ms"] <= times["q80_ms"]
        assert times["repetitions"] >= 3
    assert failed([row]) == []


def test_a_peer_that_disagrees_gets_no_ratio() -> None:
    right, wrong = measure(peer("sum", lambda x: x + x), peer("wrong", lambda x: x + x + 0.1))
    assert "ratio" in right
    assert "ratio" not in wrong
    assert "theirs" not in wrong
    assert wrong["status"] == "disagrees"
    assert "at " in wrong["detail"]
    assert failed([right, wrong]) == [wrong]
    assert "disagrees" in report.line(wrong)


@pytest.mark.parametrize(
    "theirs", [lambda x: 2 * x[1:], lambda x: torch.full_like(x, torch.nan)], ids=["length", "NaN"]
)
def test_another_length_or_nan_is_a_disagreement(theirs: Callable[..., object]) -> None:
    (row,) = measure(peer("wrong", theirs))
    assert row["status"] == "disagrees"


def test_python_floats_are_compared_in_float64() -> None:
    values = torch.rand(50, dtype=torch.float64)
    assert close(rtol=1e-15).problem(values, values.tolist(), ()) is None
    assert close(rtol=1e-15).problem(values, [x * (1 + 1e-12) for x in values.tolist()], ()) is not None


def test_a_peer_that_raises_is_an_error_row() -> None:
    def broken(_: object) -> None:
        raise RuntimeError("no such kernel")

    (row,) = measure(peer("broken", broken))
    assert row["status"] == "error"
    assert "RuntimeError: no such kernel" in row["detail"]
    assert failed([row]) == [row]


def test_a_missing_peer_is_reported() -> None:
    absent = replace(peer("absent", lambda x: 2 * x), distribution="morlfast-no-such-distribution")
    (row,) = measure(absent)
    assert row["status"] == "not installed"
    assert "not installed" in report.line(row)
    assert failed([row]) == []


def test_a_slow_peer_is_foreseen_and_skipped() -> None:
    settings = Settings(seconds=0.005, cap=1.0, rates={("double", "uniform", "", "slow"): 1.0})
    (row,) = measure(peer("slow", lambda x: 2 * x), settings=settings)
    assert row["status"] == "skipped"
    assert "8 s a call" in row["detail"]
    assert "ratio" not in row


def test_a_peer_that_is_left_out_says_why_and_is_not_called() -> None:
    def never(_: object) -> None:
        raise AssertionError

    (row,) = measure(replace(peer("slow", never), left_out="minutes a call"))
    assert row["status"] == "skipped"
    assert "minutes a call" in report.line(row)
    assert failed([row]) == []


def test_a_slow_peer_is_called_once() -> None:
    calls: list[int] = []

    def slow(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        time.sleep(0.02)
        return x + x

    (row,) = measure(peer("slow", slow), settings=replace(SETTINGS, cap=0.01))
    assert row["status"] == "ok"
    assert len(calls) == row["theirs"]["repetitions"] == row["checked_inputs"] == 1


def test_a_target_stands_beside_its_ratio() -> None:
    (row,) = measure(replace(peer("sum", lambda x: x + x), target=2.5))
    assert row["target"] == 2.5
    assert "(target 2.5)" in report.line(row)
    assert "(target 2.5)" in report.summary([row])


def test_a_cost_needs_no_target() -> None:
    (row,) = measure(unit=Unit("a sum", lambda x: x + x))
    assert row["cost_in_units"] == row["ours"]["median_ms"] / row["unit"]["median_ms"]
    assert "target" not in report.line(row) + report.summary([row])
    assert "costs" in report.line(row)


def test_a_cost_stands_beside_ratios() -> None:
    cost, ratio = measure(peer("sum", lambda x: x + x), unit=Unit("a sum", lambda x: x + x))
    assert cost["peer"] is None
    assert "cost_in_units" in cost
    assert "ratio" not in cost
    assert ratio["peer"] == "sum"
    assert "ratio" in ratio
    assert report.summary([cost, ratio]).splitlines()[0] == (
        "| data: double | n | morlfast, ms | sum | cost in a sum |"
    )


def test_added_memory_is_that_of_the_peak() -> None:
    added = added_memory(lambda: torch.ones(1 << 23).sum(), "cpu")  # 32 MB that are gone afterwards
    if added is None:
        pytest.skip("this system does not say")
    assert 30e6 < added < 60e6
    (row,) = measure(peer("sum", lambda x: x + x), memory=True)
    assert row["ours_added_mb"] >= 0
    assert row["theirs_added_mb"] >= 0
    assert report.line(row).count(" MB") == 2
    assert report.summary([row]).count(" MB") == 2


def test_estimates_carry_their_errors() -> None:
    (row,) = measure(
        Peer("worse", close(rtol=0.5), lambda: lambda x: 2.2 * x),
        error=lambda result, inputs: float((result / (2 * inputs[0]) - 1).abs().max()),
    )
    assert row["errors"] == {"ours": 0.0, "theirs": pytest.approx(0.1, rel=1e-3)}
    assert "error 0.1" in report.line(row)
    assert "errors 0 and 0.1" in report.summary([row])


def test_threads_are_measured_beside_the_machine() -> None:
    sleeps = Yardstick("sleep", lambda _: time.sleep(0.004), lambda _: time.sleep(0.002))
    (row,) = measure(peer("1 thread", lambda x: x + x), threads=2, yardsticks=(sleeps,))
    assert row["threads"] == 2
    assert set(row["machine"]) == {"sleep"}
    assert "cpu_ratio" not in row  # threads divide the wall time only
    assert "limit" not in row
    assert "(sleep " in report.line(row)
    assert "cores busy elsewhere: " in report.line(row)


def test_a_call_on_other_threads_leaves_the_number_as_it_was() -> None:
    before = torch.get_num_threads()
    assert threads.on_threads(before + 1, torch.get_num_threads)() == before + 1
    assert torch.get_num_threads() == before


def test_a_gpu_has_its_own_shapes_where_they_are_named() -> None:
    operation = OPERATIONS["hypervolume"]
    assert operation.on("cpu") == (operation.variants, operation.shapes)
    for name in ("hypervolume", "hypervolume_gradient"):
        _, shapes = OPERATIONS[name].on("cuda")
        assert {(4096, 128, m) for m in (2, 3, 4, 5)} | {(1, 100000, 3)} <= set(shapes)
    assert OPERATIONS["gdpo"].on("cuda") == OPERATIONS["gdpo"].on("cpu")


def test_kinds_of_data_may_have_their_own_shapes() -> None:
    operation = replace(double(()), variants=("uniform", "large"), shapes_of={"large": ((9,),)}, cuda_shapes=((7,),))
    assert list(operation.cases("cpu")) == [("uniform", (8,)), ("large", (9,))]
    assert list(operation.cases("cuda")) == [("uniform", (7,)), ("large", (7,))]
    sorting = list(OPERATIONS["non_dominated_sort"].cases("cpu"))
    for m in (2, 3, 4, 5, 7, 10):
        for n in (50, 1000, 2000, 5000, 20000):
            assert {("uniform", (n, m)), ("one-front", (n, m))} <= set(sorting)
    assert {("many-fronts", (20000, 3)), ("many-fronts", (20000, 5)), ("uniform", (1000000, 3))} <= set(sorting)


def test_every_input_is_fresh() -> None:
    seen: list[int] = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(hash(tuple(x.tolist())))
        return x + x

    (row,) = measure(peer("watch", watch))
    assert len(set(seen)) >= row["theirs"]["repetitions"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_setup_draws_distinct_inputs_and_every_shape_has_its_axes(name: str) -> None:
    operation = OPERATIONS[name]
    assert all(len(shape) == len(operation.axes) for shape in operation.shapes)
    generator = torch.Generator().manual_seed(0)
    smallest = min(operation.shapes, key=lambda shape: torch.Size(shape).numel())
    for variant in operation.variants:
        case = operation.case(smallest, variant)
        first, second = case.setup(generator), case.setup(generator)
        assert any(not torch.equal(x, y) for x, y in tensors(first, second))


def tensors(first: object, second: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [(first, second)]
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return [pair for x, y in zip(first, second, strict=True) for pair in tensors(x, y)]
    return []


@pytest.mark.parametrize("kind", ["uniform", "one-front", "many-fronts"])
def test_sorting_data_are_what_they_are_called(kind: str) -> None:
    import morlfast

    points = pareto.points_of((400, 3), kind, torch.Generator().manual_seed(0))
    fronts = int(morlfast.non_dominated_sort(points, maximize=False).max()) + 1
    assert {"uniform": 5 < fronts < 100, "one-front": fronts == 1, "many-fronts": fronts > 200}[kind]


@pytest.mark.parametrize("kind", hypervolume.KINDS)
def test_fronts_are_what_they_are_called(kind: str) -> None:
    import morlfast

    (points,) = hypervolume.fronts((1, 200, 3), kind, torch.Generator().manual_seed(0))
    assert (points < hypervolume.REF_POINT[kind]).all()
    ranks = morlfast.non_dominated_sort(points, maximize=False)
    assert bool((ranks == 0).all()) == (kind != "cloud")


@pytest.mark.parametrize(
    ("kind", "feasible", "different"),
    [
        ("infeasible", range(1), range(300, 301)),
        ("infeasible, 10 violations", range(1), range(2, 11)),
        ("half infeasible", range(100, 200), range(100, 202)),
    ],
)
def test_violations_are_what_they_are_called(kind: str, feasible: range, different: range) -> None:
    _, violations = pareto.with_violations((300, 3), kind, torch.Generator().manual_seed(0))
    assert int((violations <= 0).sum()) in feasible
    assert len(violations.unique()) in different


TINY = {
    "hypervolume": "3x12x4",
    "hypervolume_gradient": "3x12x4",
    "hypervolume_contributions": "1x12x4",
    "hypervolume_improvement": "6x10x3",
    "hypervolume_subset": "12x4x3",
    "box_decomposition": "1x10x3",
    "approximate_hypervolume": "2x10x3",
    "hypervolume_threads": "2x4x16x5",
    "non_dominated_sort": "40x3",
    "non_dominated_sort_batch": "4x12x3",
    "non_dominated_sort_half": "40x3",
    "non_dominated_sort_constrained": "40x3",
    "is_non_dominated": "40x3",
    "dominance_counts": "40x3",
    "crowding_distance": "40x3",
    "pareto_archive": "20x5x3",
    "non_dominated_sort_threads": "2x4x16x3",
    "expected_utility": "10x20x3",
    "maximum_utility_loss": "6x8x10x3",
    "distance_to_reference": "10x20x3",
    "sparsity": "20x3",
    "indicator_threads": "2x10x20x3",
    "riesz_weights": "4x2",
    "weight_neighbors": "20x4x3",
    "corner_weights": "8x3",
    "corner_priorities": "4x8x3",
    "linear_support": "5x3",
}
MEASURED = [*hypervolume.OPERATIONS, *pareto.OPERATIONS, *indicators.OPERATIONS, *weights.OPERATIONS]


@pytest.mark.parametrize("operation", MEASURED, ids=lambda operation: operation.name)
def test_peers_agree(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervolume, "SAMPLES", 1 << 12)
    shape = tuple(map(int, TINY[operation.name].split("x")))
    settings = SETTINGS
    if operation not in hypervolume.OPERATIONS:  # those that take long to import have no part in this
        quick = {"moocore", "pymoo", "pygmo", "NumPy", "torch all pairs", "SciPy sorted distances", "SciPy k-d tree"}
        quick |= {f"{name} loop" for name in quick} | {"morlfast on 1 thread", "torch cdist and topk"}
        settings = replace(SETTINGS, peers=tuple(quick) if operation.name != "riesz_weights" else ())
    for variant in operation.variants:
        for row in rows_of(operation, shape, variant, settings):
            assert row["status"] in ("ok", "alone", "not installed", "skipped"), row.get("detail")
            assert report.line(row).count("|") == report.HEADER.split("\n")[0].count("|")


def test_contributions_below_a_peers_threshold_may_be_its_zero() -> None:
    theirs = torch.tensor([0.0, 0.5], dtype=torch.float64)
    ours = torch.tensor([1e-8, 0.5], dtype=torch.float64)
    assert hypervolume.same_contributions(1.5e-8).problem(ours, theirs, ()) is None
    assert hypervolume.same_contributions(0.0).problem(ours, theirs, ()) is not None
    assert hypervolume.same_contributions(1.5e-8).problem(ours + 1e-7, theirs, ()) is not None


@pytest.mark.parametrize("region", ["dominated", "non_dominated"])
def test_boxes_of_another_volume_disagree(region: str) -> None:
    import morlfast

    points = hypervolume.fronts((2, 9, 3), "linear", torch.Generator().manual_seed(0))
    boxes = morlfast.box_decomposition(points, 1.1, region=region, maximize=False)
    theirs = torch.stack([-boxes.upper, -boxes.lower])
    agreement = hypervolume.same_boxes(region)
    assert agreement.problem(boxes, theirs, ()) is None
    assert agreement.problem(boxes, theirs[:, :, 1:], ()) is not None


def test_ranks_after_the_cut_are_one_more() -> None:
    theirs = torch.tensor([0, 0, 1, 1, 2, 3])
    agreement = pareto.same_ranks_until(3)
    assert agreement.problem(torch.tensor([0, 0, 1, 1, 2, 2]), theirs, ()) is None
    assert agreement.problem(theirs, theirs, ()) is not None
    assert agreement.problem(torch.tensor([0, 0, 1, 1, 1, 1]), theirs, ()) is not None


def test_a_lower_energy_agrees_and_a_higher_one_does_not() -> None:
    spread, crowded = (torch.tensor([[x, 1 - x] for x in row]) for row in ((0.0, 0.5, 1.0), (0.0, 0.1, 1.0)))
    agreement = weights.energy_not_worse(1e-3)
    assert agreement.problem(spread, crowded, ()) is None
    assert agreement.problem(spread, spread, ()) is None
    assert agreement.problem(crowded, spread, ()) is not None


def test_equally_far_neighbors_agree() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    agreement = weights.same_distances()
    ours = torch.tensor([[0, 1], [1, 0], [2, 1]])
    assert agreement.problem(ours, [[0, 1], [1, 2], [2, 1]], (rows,)) is None
    assert agreement.problem(ours, [[0, 2], [1, 2], [2, 1]], (rows,)) is not None


def test_a_missing_corner_disagrees() -> None:
    corners = torch.eye(3, dtype=torch.float64)
    agreement = weights.same_corners()
    assert agreement.problem(corners, corners.flip(0).numpy(), ()) is None
    assert agreement.problem(corners, corners[:2].numpy(), ()) is not None
    assert agreement.problem(corners, corners[[0, 1, 1]].numpy(), ()) is not None


def test_a_case_runs_from_the_command_line_to_json_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "CALLS", 5)
    target = tmp_path / "results.json"
    common = ("--seconds", "0.002", "--json", str(target))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--op", "grpo", "--shape", "64x2x8", *common],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(report.HEADER)
    assert command("--op", "overhead", *common) == 0
    rows = json.loads(target.read_text())
    grpo = [row for row in rows if row["op"] == "grpo"]
    assert [row["variant"] for row in grpo] == ["scored", "1 % NaN"]
    assert all(row["status"] == "ok" and row["ratio"] > 0 for row in grpo)
    assert {row["target"] for row in rows if row["op"] == "overhead"} == {2.5, 5, None}
    for row in rows:
        assert row["threads"] == row["environment"]["threads"] == 1
        assert set(row["environment"]) >= {
            *("cpu", "cores", "gpu", "load_average", "date", "commit", "build"),
            *("python", "torch", "numpy", "cuda"),
        }
    assert str(Path.home()) not in target.read_text()
    assert command("--op", "grpo", "--data", "scored", "--shape", "64x2x8", *common) == 0
    assert len(json.loads(target.read_text())) == len(rows)  # replaced, not repeated


def test_rows_of_whole_cases_replace_those_of_peers_that_are_gone(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    both = measure(peer("sum", lambda x: x + x), peer("product", lambda x: x * 2))
    report.merge(target, both, whole_cases=True)
    report.merge(target, both[:1])
    assert [row["peer"] for row in report.load(target)] == ["sum", "product"]
    report.merge(target, both[:1], whole_cases=True)
    assert [row["peer"] for row in report.load(target)] == ["sum"]


def test_a_summary_has_a_ratio_only_where_the_row_has() -> None:
    text = report.summary(measure(peer("sum", lambda x: x + x), peer("wrong", lambda x: x)))
    assert text.splitlines()[0] == "| data: double | n | morlfast, ms | sum | wrong |"
    assert text.splitlines()[2].endswith(" disagrees |")


def test_a_plot_is_drawn_from_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = measure(peer("sum", lambda x: x + x))
    rows[0]["environment"] = {"gpu": None, "cpu": "a processor"}
    report.plot(rows, tmp_path / "plot.svg")
    assert "double" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "nothing"], "--op: expected some of hypervolume, "),
        (["--op", "gdpo", "--peers", "nobody"], "--peers: expected some of TRL, got 'nobody'"),
        (["--op", "gdpo", "--shape", "64x2"], "--shape: gdpo expects NxMxG, such as 256x8x16, got '64x2'"),
        (["--op", "gdpo", "--data", "cubes"], "--data: expected some of scored, 1 % NaN, got 'cubes'"),
        (["--op", "gdpo", "--threads", "0"], "--threads: expected a positive number, got 0"),
    ],
    ids=["op", "peer", "shape", "data", "threads"],
)
def test_errors_say_what_was_expected(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")  # put back after main has set them
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert message in str(stopped.value.code)


def gpu_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_gpu_program_names_its_stages_without_running_them(tmp_path: Path) -> None:
    done = gpu_script("--dry-run", "--out", str(tmp_path / "out"), "--wheels", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for stage in ("wheels", "check", "build", "import", "tests", "sanitizer racecheck", "bench"):
        assert stage in done.stdout
    assert not (tmp_path / "out").exists()


def test_the_gpu_program_refuses_unknown_arguments() -> None:
    assert gpu_script("--stages", "everything").returncode == 3
    assert gpu_script("--wheels", "no-such-folder").returncode == 3
    assert gpu_script("--what").returncode == 3
