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
downsampling = example("downsampling")


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


def test_variants_are_compared_in_a_table_and_a_picture(tmp_path, capsys):
    short = ["--steps", "2", "--seeds", "2", "--warm-up", "3"]
    assert downsampling.main(["--out", str(tmp_path), *short]) == 0
    assert (tmp_path / "downsampling.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for label in ("after the warm-up", *downsampling.VARIANTS):
        assert label in out


def answers(*written):
    """Rewards of what a policy writes that is certain of these tokens."""

    class Certain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.step = -1
            self.head = torch.nn.Identity()

        def forward(self, tokens, state):
            self.step += 1
            wanted = torch.tensor([row[self.step] for row in written])
            return torch.log(torch.nn.functional.one_hot(wanted, downsampling.VOCABULARY).float())[:, None], state

    prompts = torch.tensor([[4, 10, 7, 10, 5, 11]]).expand(len(written), 6)
    correct = torch.tensor([[1, 6, downsampling.END]]).expand(len(written), 3)
    return downsampling.generate(Certain(), prompts, correct, torch.Generator().manual_seed(0))


def test_right_answers_are_rewarded_and_short_ones_more():
    dot, end = downsampling.DOT, downsampling.END
    rollouts = answers(
        [1, 6, end, 0, 0, 0, 0],
        [dot, 1, 6, end, 1, 6, end],
        [dot, dot, dot, dot, 1, 6, end],
        [dot, dot, dot, dot, dot, 1, 6],
        [1, 7, end, 0, 0, 0, 0],
        [1, dot, 6, end, 0, 0, 0],
        [end, 1, 6, end, 0, 0, 0],
    )
    assert rollouts.rewards.tolist() == [[1, 1], [1, 0.75], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert rollouts.mask.sum(1).tolist() == [3, 4, 7, 7, 3, 4, 1]
    assert torch.equal(rollouts.log_probs, torch.zeros(7, 7))
    assert torch.equal(rollouts.entropies, torch.zeros(7, 7))


def test_prompts_have_the_answers_of_their_sums():
    prompts, correct = downsampling.sums(200, torch.Generator().manual_seed(0))
    terms = prompts[:, ::2]
    assert torch.equal(terms.sum(1), 10 * correct[:, 0] + correct[:, 1])
    assert (prompts[0, 1::2].tolist(), correct[0, 2].item()) == ([10, 10, 11], downsampling.END)


def rollouts_of_a_step():
    policy = downsampling.warm_up(20, 0)
    generator = torch.Generator().manual_seed(0)
    prompts, correct = downsampling.sums(downsampling.PROMPTS, generator)
    rows = [x.repeat_interleave(downsampling.GROUP_SIZE, 0) for x in (prompts, correct)]
    rollouts = downsampling.generate(policy, *rows, generator)
    rewards = torch.rand(rollouts.rewards.shape, generator=generator).round(decimals=1)
    return policy, rollouts._replace(rewards=rewards)


def test_each_variant_trains_on_its_share():
    _, rollouts = rollouts_of_a_step()
    kept = {name: select(rollouts, 0.0).keep for name, select in downsampling.VARIANTS.items()}
    valid = int(rollouts.mask.sum())
    assert torch.equal(kept["GRPO"], rollouts.mask)
    assert not any((keep & ~rollouts.mask).any() for keep in kept.values())
    groups = kept["GRPO + PODS"].any(1).view(downsampling.PROMPTS, downsampling.GROUP_SIZE)
    assert (groups.sum(1) == downsampling.KEPT_OF_GROUP).all()
    assert kept["GRPO + D3S"].any(1).sum() <= downsampling.ROLLOUTS.start
    assert kept["GRPO + D3S"].sum() < downsampling.RATIO.start * valid / 2
    assert abs(int(kept["GRPO + entropy mask"].sum()) - downsampling.HIGH_ENTROPY * valid) < 2


def test_the_loss_of_kept_tokens_is_that_of_all_with_the_others_masked(monkeypatch):
    monkeypatch.setattr(downsampling, "UPDATES", 1)
    policy, rollouts = rollouts_of_a_step()
    stays = torch.optim.SGD(policy.parameters(), 0.0)
    for name, select in downsampling.VARIANTS.items():
        selection = select(rollouts, 0.5)
        hidden, _ = policy(rollouts.tokens[:, :-1])
        log_probs = policy.head(hidden[:, downsampling.PROMPT - 1 :]).log_softmax(2)
        chosen = log_probs.gather(2, rollouts.tokens[:, downsampling.PROMPT :, None])[..., 0]
        torch.testing.assert_close(chosen.detach(), rollouts.log_probs, rtol=1e-4, atol=1e-5)  # of the same policy
        loss = -(selection.advantages[:, None] * chosen)[selection.keep].sum() / selection.denominator
        gradients = torch.autograd.grad(loss, list(policy.parameters()))
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        downsampling.update(policy, stays, rollouts, selection)
        for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient / norm.clamp(min=1.0), rtol=2e-3, atol=1e-5, msg=name)


def test_a_comparison_is_the_same_when_it_is_repeated():
    first, again = (downsampling.compare(3, 1, 5, 1e-3) for _ in range(2))
    assert (first.before, first.after) == (again.before, again.after)
    for name in downsampling.VARIANTS:
        for one, other in zip(first.curves[name], again.curves[name], strict=True):
            assert one._replace(seconds=[]) == other._replace(seconds=[])
