"""The examples run, and what they say about their problems is true."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from morlfast import hypervolume, non_dominated_sort

pytest.importorskip("matplotlib")


def example(name):
    """By its path: other packages install a folder "examples" too."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ascent = example("hypervolume_ascent")


@pytest.fixture(autouse=True)
def threads_are_given_back():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_prints_tables_and_draws(tmp_path, capsys):
    assert ascent.main(["--out", str(tmp_path / "new"), "--steps", "3"]) == 0
    assert (tmp_path / "new/hypervolume_ascent.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for label in ("before", "linear preferences", "layer by layer", "the whole front"):
        assert label in out


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit, match="0"):
        ascent.main(["--help"])
    assert "--steps" in capsys.readouterr().out


def test_the_front_of_dtlz2_is_an_eighth_of_the_sphere():
    x = torch.rand(100, ascent.VARIABLES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (ascent.dtlz2(x).norm(dim=-1) > 1).all()
    x[:, 2:] = 0.5
    front = ascent.dtlz2(x)
    torch.testing.assert_close(front.norm(dim=-1), torch.ones(100, dtype=torch.float64))
    assert (front >= 0).all()
    dense = ascent.points_of_the_sphere(150)
    volume = hypervolume(dense, ascent.DTLZ2_REF_POINT, maximize=False).item()
    assert volume == pytest.approx(ascent.DTLZ2_REF_POINT.prod().item() - math.pi / 6, abs=0.02)


def test_every_start_is_better_than_the_reference_point():
    for study, ref_point, sign in (
        (ascent.climb_dtlz2(ascent.of_the_set, 0, 0), ascent.DTLZ2_REF_POINT, 1),
        (ascent.train_policies(None, 0, 0), ascent.SEA_REF_POINT, -1),
    ):
        assert (sign * study.points < sign * ref_point).all()


def test_only_layers_move_dominated_points():
    points = torch.rand(2, 10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    dominated = non_dominated_sort(points.detach(), maximize=False) > 0
    assert dominated.any()
    ref_point = torch.ones(3, dtype=torch.float64)
    moved = {}
    for objective in (ascent.of_the_set, ascent.of_its_layers):
        (gradient,) = torch.autograd.grad(objective(points, ref_point, False).sum(), points)
        moved[objective] = (gradient < 0).all(-1)
    assert torch.equal(moved[ascent.of_the_set], ~dominated)
    assert moved[ascent.of_its_layers].all()
    layers = ascent.of_its_layers(points, ref_point, False)
    torch.testing.assert_close(layers[:, :1], ascent.of_the_set(points, ref_point, False))


def test_episodes_end_at_treasures_with_certainty():
    logits = torch.randn(5, len(ascent.OUTCOMES) - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    probabilities = ascent.log_probabilities(logits).exp()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(probabilities[:, 0], logits[:, 0].sigmoid())


def test_no_mixture_of_treasures_is_better_than_the_front():
    corners, whole = ascent.upper_envelope()
    dense = ascent.points_of_the_envelope(corners, 20_001)
    assert hypervolume(dense, ascent.SEA_REF_POINT, maximize=True).item() == pytest.approx(whole, rel=1e-3)
    mixtures = (
        torch.distributions.Dirichlet(torch.full((10,), 0.2, dtype=torch.float64)).sample((1000,)) @ ascent.OUTCOMES
    )
    more = torch.cat([corners, mixtures])
    assert hypervolume(more, ascent.SEA_REF_POINT, maximize=True).item() < whole


def test_ascent_gains_and_layers_gain_more():
    plain, layered = (ascent.climb_dtlz2(objective, 150, 7) for objective in (ascent.of_the_set, ascent.of_its_layers))
    assert plain.curve[0] == layered.curve[0]
    assert plain.curve[0] < plain.curve[-1] < layered.curve[-1]
    linear, learned = (ascent.train_policies(objective, 150, 7) for objective in (None, ascent.of_its_layers))
    assert linear.curve[0] == learned.curve[0]
    assert linear.curve[0] < linear.curve[-1] < learned.curve[-1]


def test_what_an_evaluation_needs_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "morl_baselines", None)
    monkeypatch.setitem(sys.modules, "morl_baselines.multi_policy.pareto_q_learning.pql", None)
    assert example("morl_evaluation").main([]) == 2
    assert "pip install" in capsys.readouterr().err
