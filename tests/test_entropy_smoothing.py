"""EPO against the numbers of its code and plain Python: penalty, history, weight, loss."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.entropy_smoothing import EntropyHistory, entropy_smoothing_penalty, epo_loss, epo_weight
from references import entropy_smoothing as reference
from torch.autograd import gradcheck

F64 = torch.float64
NAN, INF = math.nan, math.inf
ENTROPIES = torch.tensor([[0.1, 0.5, 1.2, 2.5], [0.0, 0.4, 0.9, 0.3]])
HISTORY, STEPS = torch.tensor([0.6, 0.5, 0.4]), torch.tensor([0, 2])


def close(got: torch.Tensor, expected: Any, rtol: float = 1e-4, atol: float = 2e-5) -> bool:
    """To the digits that the numbers of the code were printed with."""
    return torch.allclose(got.double(), torch.as_tensor(expected, dtype=F64), rtol=rtol, atol=atol)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Numbers of the authors' code.


def test_row_59_a_token_outside_its_range_is_penalized():
    got = entropy_smoothing_penalty(ENTROPIES, HISTORY, STEPS, low=0, high=2.0, penalty=0.1)
    assert close(got.penalty, [[0, 0, 0.1, 0.1], [0.1, 0, 0.1, 0]])
    assert got.in_range.float().mean().item() == 0.5


def test_row_59_a_sequence_is_penalized_by_its_mean():
    got = entropy_smoothing_penalty(ENTROPIES, HISTORY, STEPS, low=0.8, high=1.2, penalty=0.1, scope="sequence")
    assert close(got.penalty, [[0.1] * 4, [0.0] * 4])
    assert got.in_range.tolist() == [[False] * 4, [True] * 4]


def test_row_59_the_weight_falls_slowly_then_fast():
    weights = [epo_weight(k, 150) for k in (0, 37, 75, 76, 112, 150)]
    assert close(torch.tensor(weights), [1, 0.874563, 0.827067, 0.768632, 0.18211, 0.03983])


def test_row_59_the_loss():
    penalty = entropy_smoothing_penalty(ENTROPIES, HISTORY, STEPS).penalty
    loss = epo_loss(torch.tensor(0.0), ENTROPIES, penalty, weight=epo_weight(0, 150), entropy_coef=1e-3)
    assert abs(loss.item() + 0.0006875) < 1e-9
    assert abs(epo_loss(2.0, ENTROPIES, penalty, smoothing_coef=0.0).item() - (2.0 - 0.0007375)) < 1e-6


# The penalty.


@st.composite
def batches(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eighths, so that entropies lie on the ends of ranges; steps that history does not know."""
    n, t, s = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    entropies = torch.from_numpy(rng.integers(0, 17, (n, t)) / 8)
    history = torch.from_numpy(rng.choice([0.25, 0.5, 1.0, NAN], s))
    mask = torch.from_numpy(rng.random((n, t)) < draw(st.sampled_from([0.0, 0.5, 1.0])))
    return entropies, history, torch.from_numpy(rng.integers(0, s, n)), mask


@pytest.mark.parametrize("scope", ["token", "sequence"])
@pytest.mark.parametrize("sequence_mean", ["valid", "all"])
@given(
    batches(),
    st.sampled_from([(0.0, 2.0), (0.5, 1.0), (-1.0, 4.0)]),
    st.integers(0, 3),
    st.sampled_from(["row", "batch"]),
    st.booleans(),
)
def test_penalties_match_plain_python(scope, sequence_mean, case, ends, least_step, gate, empty):
    entropies, history, steps, mask = case
    low, high = ends
    history = history[:0] if empty else history
    options = {"scope": scope, "sequence_mean": sequence_mean, "least_step": least_step, "gate": gate}
    got = entropy_smoothing_penalty(entropies, history, steps, mask, low=low, high=high, penalty=0.25, **options)
    lists = (x.tolist() for x in (entropies, history, steps, mask))
    penalties, in_range = reference.penalty(*lists, low, high, 0.25, **options)
    assert got.penalty.tolist() == penalties
    assert got.in_range.tolist() == in_range


def test_a_row_counts_by_its_own_step_and_not_by_the_others_of_its_batch():
    entropies, steps, history = torch.full((3, 2), 9.0), torch.tensor([0, 24, 25]), torch.ones(30)
    by_row = entropy_smoothing_penalty(entropies, history, steps, least_step=25).penalty
    assert by_row.tolist() == [[0.0, 0.0], [0.0, 0.0], pytest.approx([0.1, 0.1])]
    for k in range(3):  # however micro-batches are cut
        alone = entropy_smoothing_penalty(entropies[k : k + 1], history, steps[k : k + 1], least_step=25).penalty
        assert torch.equal(alone, by_row[k : k + 1])
    by_batch = entropy_smoothing_penalty(entropies, history, steps, least_step=25, gate="batch").penalty
    assert (by_batch > 0).all()
    assert not entropy_smoothing_penalty(entropies, history, steps, least_step=26, gate="batch").penalty.any()


def test_padding_does_not_move_the_mean_of_a_sequence():
    entropies = torch.tensor([[1.0, 1.0, NAN, 0.0], [1.0, 1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
    options = {"low": 0.9, "high": 1.1, "scope": "sequence"}
    got = entropy_smoothing_penalty(entropies, torch.ones(1), torch.zeros(2).long(), mask, **options)
    assert not got.penalty.any()
    assert torch.equal(got.in_range, mask != 0)
    padded = entropy_smoothing_penalty(
        entropies[1:], torch.ones(1), torch.zeros(1).long(), mask[1:], sequence_mean="all", **options
    )
    assert (padded.penalty > 0).tolist() == [[True, True, False, False]]


def test_an_unknown_step_and_an_empty_history_penalize_nobody():
    assert not entropy_smoothing_penalty(ENTROPIES, torch.tensor([NAN, 0.5, NAN]), STEPS).penalty.any()
    for history in (torch.zeros(0), EntropyHistory(3), EntropyHistory(0), []):
        got = entropy_smoothing_penalty(ENTROPIES, history, STEPS)
        assert not got.penalty.any()
        assert got.in_range.all()


def test_an_entropy_of_nan_is_outside():
    got = entropy_smoothing_penalty(torch.tensor([[NAN, 1.0]]), torch.ones(1), torch.zeros(1).long())
    assert got.in_range.tolist() == [[False, True]]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_the_penalty_has_the_dtype_of_the_entropies(dtype):
    entropies = ENTROPIES.to(dtype).requires_grad_()
    got = entropy_smoothing_penalty(entropies, HISTORY, STEPS, penalty=0.25).penalty
    assert got.dtype == dtype
    assert not got.requires_grad
    wide = entropy_smoothing_penalty(entropies.detach().double(), HISTORY.double(), STEPS, penalty=0.25).penalty
    assert torch.equal(got.double()[:, ::3], wide[:, ::3])  # those that rounding does not move across an end


def test_penalty_and_loss_compile_without_a_break():
    def loss(entropies, history, steps):
        penalty = entropy_smoothing_penalty(entropies, history, steps, scope="sequence", least_step=1).penalty
        return epo_loss(1.0, entropies, penalty, weight=0.5)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ENTROPIES, HISTORY, STEPS), loss(ENTROPIES, HISTORY, STEPS))


def test_arguments_of_the_penalty_must_fit():
    def call(**options: Any) -> None:
        given = {"entropies": ENTROPIES, "history": HISTORY, "steps": STEPS}
        entropy_smoothing_penalty(**{**given, **options})

    for name, bad, error in (
        ("entropies", torch.ones(4), ValueError),
        ("history", torch.ones(3, 1), ValueError),
        ("history", HISTORY.bfloat16(), TypeError),
        ("steps", torch.tensor([0]), ValueError),
        ("steps", torch.tensor([0.0, 2.0]), TypeError),
        ("steps", torch.tensor([0, 3]), ValueError),
        ("steps", torch.tensor([-1, 0]), ValueError),
        ("mask", torch.ones(2, 3), ValueError),
        ("low", 2.0, ValueError),
        ("low", "0", TypeError),
        ("penalty", None, TypeError),
        ("least_step", 0.5, TypeError),
        ("scope", "seq", ValueError),
        ("sequence_mean", "padded", ValueError),
        ("gate", "any", ValueError),
        ("history", HISTORY.to("meta"), ValueError),
        ("steps", STEPS.to("meta"), ValueError),
    ):
        with pytest.raises(error, match=name):
            call(**{name: bad})


# The history.


@given(st.lists(st.integers(0, 2**32), max_size=4), st.integers(1, 4))
def test_the_history_is_the_mean_over_epochs_that_reached_a_step(seeds, num_steps):
    history, epochs = EntropyHistory(num_steps), []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        n, t = rng.integers(0, 5), rng.integers(0, 4)
        entropies = torch.from_numpy(rng.choice([0.3, 0.7, 1.1, NAN, INF], (n, t), p=[0.3, 0.3, 0.2, 0.1, 0.1]))
        steps, mask = torch.from_numpy(rng.integers(0, num_steps, n)), torch.from_numpy(rng.random((n, t)) < 0.6)
        history.update(entropies, steps, mask)
        epochs.append(tuple(x.tolist() for x in (entropies, steps, mask)))
    want = torch.tensor(reference.means(epochs, num_steps), dtype=F64)
    assert torch.allclose(history.means(), want, rtol=1e-12, equal_nan=True)


def test_long_steps_do_not_weigh_more_than_short_epochs():
    history = EntropyHistory(1)
    history.update(torch.ones(100, 9), torch.zeros(100).long())
    history.update(torch.full((1, 1), 3.0), torch.zeros(1).long())
    assert history.means().tolist() == [2.0]
    before = history.means()
    history.update(torch.full((1, 1), 3.0), torch.zeros(1).long(), torch.zeros(1, 1))
    history.update(torch.zeros(0, 4), torch.zeros(0).long())
    assert torch.equal(history.means(), before)


def test_a_history_goes_on_where_it_was():
    history = EntropyHistory(3)
    history.update(ENTROPIES, STEPS)
    buffer = io.BytesIO()
    torch.save(history.state_dict(), buffer)
    buffer.seek(0)
    again = EntropyHistory(3)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    for tracker in (history, again):
        tracker.update(ENTROPIES + 1, STEPS - torch.tensor([0, 1]))
    assert torch.equal(history.means(), again.means())
    state = history.state_dict()
    state["sums"].zero_()
    assert history.means().sum() > 0


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sums", torch.zeros(2)),
        ("epochs", torch.zeros(4)),
        ("epochs", torch.tensor([0, -1, 0])),
        ("sums", torch.tensor([0.0, NAN, 0.0])),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(name, bad):
    history = EntropyHistory(3)
    history.update(ENTROPIES, STEPS)
    before = history.means()
    with pytest.raises(ValueError, match=name):
        history.load_state_dict({**EntropyHistory(3).state_dict(), name: bad})
    assert torch.equal(history.means().nan_to_num(), before.nan_to_num())


def test_arguments_of_the_history_must_fit():
    history = EntropyHistory(3)
    for arguments, error, name in (
        ((torch.ones(4), STEPS), ValueError, "entropies"),
        ((ENTROPIES, torch.tensor([0, 3])), ValueError, "steps"),
        ((ENTROPIES, torch.tensor([0, -1])), ValueError, "steps"),
        ((ENTROPIES, torch.tensor([0])), ValueError, "steps"),
        ((ENTROPIES, STEPS.float()), TypeError, "steps"),
        ((ENTROPIES, STEPS, torch.ones(2)), ValueError, "mask"),
        ((ENTROPIES.to("meta"), STEPS), ValueError, "entropies"),
    ):
        with pytest.raises(error, match=name):
            history.update(*arguments)
    with pytest.raises(TypeError, match="process_group"):
        history.update(ENTROPIES, STEPS, process_group="world")
    for num_steps, error in ((-1, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="num_steps"):
            EntropyHistory(num_steps)
    assert history.epochs.tolist() == [0, 0, 0]


# The weight.


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 5), st.floats(0, 5))
def test_the_weight_never_rises(total, drop, slow, fast):
    weights = [epo_weight(k, total, drop=drop, slow=slow, fast=fast) for k in range(total + 3)]
    assert weights[0] == 1.0
    assert all(0 <= b <= a + 1e-15 for a, b in pairwise(weights))
    assert weights[total] == weights[total + 2]


def test_arguments_of_the_weight_must_fit():
    for arguments, options, error, name in (
        ((0, 0), {}, ValueError, "total_epochs"),
        ((-1, 5), {}, ValueError, "epoch"),
        ((0.5, 5), {}, TypeError, "epoch"),
        ((1, 5), {"drop": 1.5}, ValueError, "drop"),
        ((1, 5), {"slow": -1}, ValueError, "slow"),
        ((1, 5), {"fast": NAN}, ValueError, "fast"),
    ):
        with pytest.raises(error, match=name):
            epo_weight(*arguments, **options)
    assert epo_weight(0, 1) == 1.0


# The loss.


def test_the_gradient_is_that_of_the_entropy_bonus_alone():
    entropies, mask = normal(3, 4).requires_grad_(), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    policy_loss = torch.tensor(0.5, dtype=F64, requires_grad=True)
    penalty = 0.1 * (normal(3, 4, seed=1) > 0).double()
    function = lambda p, h: epo_loss(p, h, penalty, mask, weight=0.7, entropy_coef=0.2)  # noqa: E731
    assert gradcheck(function, (policy_loss, entropies))
    function(policy_loss, entropies).backward()
    assert torch.allclose(entropies.grad, -0.2 * mask.double() / 3, rtol=1e-14)
    assert policy_loss.grad.item() == 1.0
    bonus = entropies.detach()[mask != 0].mean() - 0.7 * penalty[mask != 0].mean()
    assert math.isclose(function(policy_loss, entropies).item(), 0.5 - 0.2 * bonus.item(), rel_tol=1e-12)


def test_the_loss_reads_nothing_outside_the_mask():
    entropies = torch.tensor([[1.0, NAN]], requires_grad=True)
    loss = epo_loss(0.0, entropies, torch.tensor([[0.0, NAN]]), torch.tensor([[1, 0]]), entropy_coef=1.0)
    loss.backward()
    assert loss.item() == -1.0
    assert entropies.grad.tolist() == [[-1.0, 0.0]]
    assert epo_loss(0.25, entropies.detach(), torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0.25


def test_arguments_of_the_loss_must_fit():
    zeros = torch.zeros(2, 4)
    for name, bad, error in (
        ("entropies", torch.ones(4), ValueError),
        ("penalty", torch.ones(2, 3), ValueError),
        ("mask", torch.ones(2, 3), ValueError),
        ("weight", "1", TypeError),
        ("entropy_coef", None, TypeError),
        ("smoothing_coef", None, TypeError),
    ):
        with pytest.raises(error, match=name):
            epo_loss(**{"policy_loss": 0.0, "entropies": ENTROPIES, "penalty": zeros, name: bad})
