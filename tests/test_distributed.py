"""group_advantages over ranks: bit for bit what one rank gives for all rows."""

from __future__ import annotations

import datetime
import struct
import uuid
from typing import Any

import morlfast
import numpy as np
import pytest
import torch
import torch.distributed as dist
from morlfast._distributed import gather_rows
from ranks import SECONDS, Ranks

NAN = float("nan")
N = 12


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


# ---- rows ----


def gather(columns: list[torch.Tensor]) -> tuple[list[torch.Tensor], slice]:
    return gather_rows(dist.group.WORLD, torch.device("cpu"), *columns)


def columns(dtype: torch.dtype) -> list[torch.Tensor]:
    """Every bit pattern may come."""
    generator = torch.Generator().manual_seed(3)
    if dtype is torch.bool:
        return [torch.rand(N, c, generator=generator) < 0.5 for c in (1, 3)]
    noise = [torch.randint(0, 256, (N, c * dtype.itemsize), generator=generator) for c in (1, 3)]
    return [values.to(torch.uint8).view(dtype) for values in noise]


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32],
        [torch.float64, torch.int64],
        [torch.bfloat16, torch.bool, torch.float16],
        [torch.uint8, torch.int8, torch.int16, torch.int32],
    ],
    ids=str,
)
def test_rows_arrive_bit_for_bit(ranks, dtypes):
    everyone = [column for dtype in dtypes for column in columns(dtype)]
    own = ranks.rows()
    for rank, answer in enumerate(ranks.run(gather, [([column[rows] for column in everyone],) for rows in own])):
        gathered, rows = answer
        assert rows == own[rank]
        for got, want in zip(gathered, everyone, strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(bits(got), bits(want))


def test_nan_payloads_signed_zeros_and_subnormals_arrive(ranks):
    patterns = [0x7FF800000000BEEF, 0xFFF0000000000001, 0x8000000000000000, 1, 0x7FF0000000000000, 0]
    doubles = torch.tensor([struct.unpack("<d", struct.pack("<Q", p)) for p in patterns * 2], dtype=torch.float64)
    doubles = doubles.view(torch.int64)  # arithmetic must not touch them on their way here
    answers = ranks.run(gather, [([doubles[rows].view(torch.float64)],) for rows in ranks.rows()])
    for (got,), _ in answers:
        assert torch.equal(got.view(torch.int64), doubles)


def test_columns_without_width_and_ranks_without_rows(ranks):
    world = len(ranks.pipes)
    for (got, other), rows in ranks.run(gather, [([torch.zeros(0, 2), torch.zeros(0, 1)],)] * world):
        assert (got.shape, other.shape, rows) == ((0, 2), (0, 1), slice(0, 0))
    for (got, other), _ in ranks.run(gather, [([torch.zeros(2, 0), torch.ones(2, 1)],)] * world):
        assert got.shape == (2 * world, 0)
        assert torch.equal(other, torch.ones(2 * world, 1))
    for (got,), _ in ranks.run(gather, [([torch.zeros(2, 0)],)] * world):
        assert got.shape == (2 * world, 0)


def test_a_rank_without_rows_takes_the_others_columns(ranks):
    full, empty = [torch.ones(1, 2), torch.ones(1, 2, dtype=torch.int64)], [torch.zeros(0, 1), torch.zeros(0, 1)]
    last = len(ranks.pipes) - 1
    arguments = [(empty if rank == last else full,) for rank in range(last + 1)]
    for (first, second), _ in ranks.run(gather, arguments):
        assert torch.equal(first, torch.ones(last, 2))
        assert torch.equal(second, torch.ones(last, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ([torch.zeros(1, 2, dtype=torch.float64)], r"torch.float64 \(N, 2\)"),
        ([torch.zeros(1, 3)], r"torch.float32 \(N, 3\)"),
        ([torch.zeros(1, 2), torch.zeros(1, 1)], r"torch.float32 \(N, 2\), torch.float32 \(N, 1\)"),
    ],
)
def test_different_columns_raise_on_every_rank(ranks, odd, shown):
    world = len(ranks.pipes)
    answers = ranks.run_to_errors(
        gather, [([torch.zeros(2, 2)] if rank < world - 1 else odd,) for rank in range(world)]
    )
    for answer in answers:
        with pytest.raises(
            ValueError,
            match=rf"^process_group: expected the same .*got torch.float32 \(N, 2\) on rank 0 and {shown} on rank "
            f"{world - 1}$",
        ):
            raise answer


# ---- advantages ----


def advantages(rewards: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    return morlfast.group_advantages(rewards, process_group=dist.group.WORLD, **options)


def scores(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Eighths, so that there are ties."""
    return (torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(7)) / 8).to(dtype)


def with_nan(rewards: torch.Tensor) -> torch.Tensor:
    return rewards.masked_fill(torch.rand(rewards.shape, generator=torch.Generator().manual_seed(8)) < 0.3, NAN)


IDS = torch.tensor([5, -1, 5, 9, -1, 5, 9, 9, -1, 5, 2, 9])
LABELS = [f"prompt {i}" for i in IDS.tolist()]
PROMPTS = torch.stack([torch.full((N,), 4), IDS, IDS * 3], 1)
LENGTHS = torch.tensor([3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 2])
WEIGHTS = torch.tensor([1.0, 0.5, -2.0])
UUIDS = [uuid.UUID(int=7 * int(i) + 7) for i in IDS]

# Options that are the same on every rank, and those of which each rank has its rows.
CASES: dict[str, tuple[torch.Tensor, dict[str, Any], dict[str, Any]]] = {
    "grpo": (scores(N), {}, {"group_ids": IDS}),
    "grpo of strings": (scores(N), {}, {"group_ids": LABELS}),
    "grpo of an object array": (scores(N, 3), {"weights": WEIGHTS}, {"group_ids": np.array(LABELS, object)}),
    "grpo of UUIDs": (scores(N), {}, {"group_ids": UUIDS}),
    "grpo of prompt tokens": (scores(N), {}, {"group_ids": PROMPTS}),
    "grpo of contiguous groups": (scores(N), {"group_size": 4}, {}),
    "grpo, NaN": (with_nan(scores(N, 3)), {}, {"group_ids": IDS}),
    "grpo, NaN poisons": (with_nan(scores(N)), {"preset": "verl", "method": "grpo"}, {"group_ids": LABELS}),
    "batch scale": (scores(N, dtype=torch.float64), {"scale": "batch"}, {"group_ids": IDS}),
    "batch baseline": (scores(N), {"baseline": "batch", "scale": "batch"}, {"group_ids": IDS}),
    "leave one out": (scores(N), {"baseline": "leave_one_out", "scale": "leave_one_out"}, {"group_ids": IDS}),
    "runner-up": (scores(N), {"baseline": "runner_up", "scale": "group"}, {"group_ids": LABELS}),
    "gdpo": (scores(N, 3), {"method": "gdpo", "weights": WEIGHTS}, {"group_ids": LABELS}),
    "gdpo, NaN": (with_nan(scores(N, 3)), {"method": "gdpo", "group_size": 3}, {}),
    "gdpo, weights of rows": (scores(N, 3), {"method": "gdpo", "group_size": 6}, {"weights": scores(N, 3)}),
    "gdpo, whitened by tokens": (
        scores(N, 3),
        {"preset": "verl", "method": "gdpo"},
        {"group_ids": LABELS, "lengths": LENGTHS},
    ),
    "opo": (scores(N), {"preset": "verl", "method": "opo"}, {"group_ids": IDS, "lengths": LENGTHS}),
    "bfloat16": (scores(N, 3, dtype=torch.bfloat16), {"method": "gdpo"}, {"group_ids": IDS}),
    "integers": (scores(N).mul(8).long(), {}, {"group_ids": LABELS}),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_give_what_one_rank_gives_for_all_rows(ranks, case):
    rewards, shared, rowwise = CASES[case]
    want = morlfast.group_advantages(rewards, **shared, **rowwise)
    own = ranks.rows()
    arguments = [(rewards[rows], {**shared, **{k: v[rows] for k, v in rowwise.items()}}) for rows in own]
    for rows, got in zip(own, ranks.run(advantages, arguments), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(bits(got), bits(want[rows]))


@pytest.mark.parametrize(
    "options", [{}, {"preset": "verl", "method": "gdpo"}, {"preset": "verl", "method": "opo"}], ids=str
)
def test_each_rank_has_its_tokens(ranks, options):
    own = ranks.rows()
    mask = torch.arange(7) < LENGTHS[:, None]
    want = morlfast.group_advantages(scores(N, 2), group_ids=LABELS, mask=mask, **options)
    arguments = []
    for rank, rows in enumerate(own):
        tokens = 7 + rank  # each rank pads to a length of its own
        padded = torch.nn.functional.pad(mask[rows], (0, rank)).to([torch.bool, torch.int64, torch.float32][rank % 3])
        groups = {"group_ids": LABELS[rows], **options}
        arguments.append((scores(N, 2)[rows], {**groups, "mask": padded}))
        assert padded.shape[1] == tokens
    for rank, (rows, got) in enumerate(zip(own, ranks.run(advantages, arguments), strict=True)):
        assert torch.equal(bits(got[:, :7]), bits(want[rows]))
        assert torch.equal(got[:, 7:], torch.zeros(want[rows].shape[0], rank))


def from_tokens(tokens: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    return morlfast.group_advantages(token_rewards=tokens, process_group=dist.group.WORLD, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("nan", ["skip", "propagate", "zero", "skip_reward"])
def test_token_rewards_are_summed_as_on_one_rank(ranks, dtype, nan):
    tokens = (scores(N, 50) + 1e4).to(dtype)
    tokens[2, 3] = tokens[5] = NAN
    tokens[9, 1], tokens[9, 2] = float("inf"), 1.0
    ids = torch.arange(N) % 4
    want = morlfast.group_advantages(token_rewards=tokens, group_ids=ids, nan=nan)
    arguments = [(tokens[rows], {"group_ids": ids[rows], "nan": nan}) for rows in ranks.rows()]
    got = torch.cat(ranks.run(from_tokens, arguments))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def into_out(rewards: torch.Tensor, options: dict[str, Any]) -> tuple[bool, torch.Tensor]:
    out = torch.full_like(rewards, NAN)
    got = morlfast.group_advantages(rewards, process_group=dist.group.WORLD, out=out, **options)
    return got is out, out


def test_out(ranks):
    want = morlfast.group_advantages(scores(N), group_ids=IDS)
    own = ranks.rows()
    answers = ranks.run(into_out, [(scores(N)[rows], {"group_ids": IDS[rows]}) for rows in own])
    for rows, (same, out) in zip(own, answers, strict=True):
        assert same
        assert torch.equal(out, want[rows])


def test_a_rank_without_rows_need_not_know_what_others_group_by(ranks):
    arguments = [(scores(4), {"group_ids": ["a", "b", "b", "a"]}) for _ in ranks.pipes]
    arguments[-1] = (torch.zeros(0), {"group_ids": []})
    world = len(arguments) - 1
    want = morlfast.group_advantages(scores(4).repeat(world), group_ids=["a", "b", "b", "a"] * world)
    *answers, empty = ranks.run(advantages, arguments)
    assert empty.shape == (0,)
    assert torch.equal(torch.cat(answers), want)


def in_a_part(members: list[int], rewards: torch.Tensor) -> torch.Tensor | str:
    group = dist.new_group(members, timeout=datetime.timedelta(seconds=SECONDS))
    try:
        return morlfast.group_advantages(rewards, group_ids=["a"] * len(rewards), process_group=group)
    except TypeError as error:
        return str(error)


def test_a_part_of_the_ranks(ranks):
    members = list(range(0, len(ranks.pipes), 2))
    answers = ranks.run(in_a_part, [(members, scores(8)[2 * rank : 2 * rank + 2]) for rank in range(len(ranks.pipes))])
    rows = torch.cat([scores(8)[2 * rank : 2 * rank + 2] for rank in members])
    want = morlfast.group_advantages(rows, group_ids=["a"] * len(rows))
    assert torch.equal(torch.cat([answers[rank] for rank in members]), want)
    for rank in set(range(len(answers))) - set(members):
        assert answers[rank].startswith("process_group: expected a torch.distributed.ProcessGroup that this rank is in")


def test_different_arguments_raise_on_every_rank(ranks):
    arguments = [(scores(4), {"group_ids": ["a", "b", "b", "a"]}) for _ in ranks.pipes]
    arguments[-1] = (scores(4), {"group_ids": [0, 1, 1, 0]})
    for answer in ranks.run_to_errors(advantages, arguments):
        with pytest.raises(
            ValueError, match=r"^process_group: expected the same dtypes and columns of rewards, groups"
        ):
            raise answer


def test_group_size_must_divide_the_rows_of_all_ranks(ranks):
    own = ranks.rows()
    for answer in ranks.run_to_errors(advantages, [(scores(N)[rows], {"group_size": 5}) for rows in own]):
        with pytest.raises(ValueError, match="group_size: expected a positive divisor of the 12 rollouts, got 5"):
            raise answer


@pytest.mark.parametrize("process_group", [True, "gloo", 0])
def test_process_group_is_checked(process_group):
    with pytest.raises(TypeError, match=r"^process_group: expected a torch.distributed.ProcessGroup"):
        morlfast.group_advantages(scores(4), group_size=2, process_group=process_group)


@pytest.mark.gpu
def test_on_a_gpu_by_nccl(tmp_path):
    alone = Ranks(1, tmp_path, "nccl")
    try:
        want = morlfast.group_advantages(scores(N, 3), group_ids=LABELS, method="gdpo")
        (got,) = alone.run(on_a_gpu, [()])
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    finally:
        alone.stop()


def on_a_gpu() -> torch.Tensor:
    options = {"group_ids": LABELS, "method": "gdpo", "process_group": dist.group.WORLD}
    return morlfast.group_advantages(scores(N, 3).cuda(), **options).cpu()
