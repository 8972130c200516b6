"""Forks, thread counts, concurrent callers, leaks, and an import without side effects."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import morlfast
import pytest
import torch

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


FRONTS = normal(800, 24, 3).double()
FRONT = normal(1500, 3, seed=1).double()
OBJECTIVES = normal(700, 6)
REWARDS = normal(40_000, 2).double()
IDS = torch.randint(0, 3000, (40_000,), generator=torch.Generator().manual_seed(0))
ADVANTAGES, ENTROPIES = normal(200), normal(200, 900, seed=1)
VALID = ENTROPIES > -1.5


def gradient(points: torch.Tensor) -> torch.Tensor:
    points = points.detach().requires_grad_()
    (grad,) = torch.autograd.grad(morlfast.hypervolume(points, 1.0, maximize=False).sum(), points)
    return grad


# Large enough that every one of them uses several threads.
WORK = {
    "hypervolume": lambda: morlfast.hypervolume(FRONTS, 1.0, maximize=False),
    "hypervolume of one front": lambda: morlfast.hypervolume(FRONT, 2.0, maximize=True),
    "hypervolume gradient": lambda: gradient(FRONTS[:400]),
    "ranks": lambda: morlfast.non_dominated_sort(FRONTS, maximize=False),
    "ranks of one front": lambda: morlfast.non_dominated_sort(FRONT, maximize=True),
    "ranks of many objectives": lambda: morlfast.non_dominated_sort(OBJECTIVES, maximize=True),
    "grpo": lambda: morlfast.group_advantages(REWARDS, 8),
    "grpo over the batch": lambda: morlfast.group_advantages(REWARDS, 8, scale="batch"),
    "rloo by ids": lambda: morlfast.group_advantages(REWARDS, group_ids=IDS, method="rloo"),
    "gdpo by ids": lambda: morlfast.group_advantages(REWARDS, group_ids=IDS, method="gdpo"),
    "gdpo over the batch": lambda: morlfast.group_advantages(REWARDS, 8, method="gdpo", scale="batch"),
    "tokens": lambda: morlfast.select_tokens(ADVANTAGES, ENTROPIES, VALID, 0.2),
    "tokens by sequence": lambda: morlfast.select_tokens(ADVANTAGES, ENTROPIES, VALID, 0.2, scope="sequence"),
    "tokens by group": lambda: morlfast.select_tokens(ADVANTAGES, ENTROPIES, VALID, 0.2, scope="group", group_size=8),
}


def all_results() -> list[bytes]:
    """Every result as bytes: after a fork even torch.equal hangs in torch's own threads."""
    return [work().numpy().tobytes() for work in WORK.values()]


@pytest.mark.parametrize("name", WORK)
def test_the_number_of_threads_does_not_change_a_bit(name):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(WORK[name]())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_callers_in_several_python_threads_do_not_disturb_each_other():
    expected = all_results()
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: all_results(), range(8)):
            assert results == expected


PRELUDE = f"""
import sys
sys.path[:0] = {__file__.rsplit("/", 1)[0]!r},
import test_process as t
import torch
"""


def test_a_forked_child_computes_what_its_parent_does(run_python):
    printed = run_python(
        PRELUDE
        + """
import os, signal
torch.set_num_threads(4)
expected = t.all_results()
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if t.all_results() == expected else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    # The parent goes on with all its threads.
    assert t.all_results() == expected
print("done")
"""
    )
    assert printed.endswith("done\n")


def test_a_fork_from_a_thread_other_than_the_first_one(run_python):
    printed = run_python(
        PRELUDE
        + """
import os, signal, threading
torch.set_num_threads(4)
expected = t.all_results()

def fork_and_compute():
    t.all_results()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if t.all_results() == expected else 1)
    print(os.waitpid(child, 0)[1])

thread = threading.Thread(target=fork_and_compute)
thread.start()
thread.join()
"""
    )
    assert printed.split() == ["0"]


class Fronts(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> torch.Tensor:
        return morlfast.hypervolume(FRONTS[i * 100 : (i + 1) * 100], 1.0, maximize=False)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_data_loader_workers_compute_after_a_fork():
    expected = WORK["hypervolume"]()
    loader = torch.utils.data.DataLoader(
        Fronts(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=100
    )
    assert torch.equal(torch.cat(list(loader)).flatten(), expected)


def ranks_as_a_list(seed: int) -> list[int]:
    return morlfast.non_dominated_sort(normal(300, 3, seed=seed), maximize=False).tolist()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_pool_computes():
    expected = [ranks_as_a_list(seed) for seed in range(8)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(ranks_as_a_list, range(8)).get(timeout=100) == expected


def test_inputs_are_released():
    for name, call, inputs in [
        ("points", lambda z: morlfast.hypervolume(z, 1.0, maximize=False), FRONTS[:2]),
        ("ranks", lambda z: morlfast.non_dominated_sort(z, maximize=False), FRONTS[:2]),
        ("rewards", lambda r: morlfast.group_advantages(r, 4), REWARDS[:8]),
        ("entropies", lambda h: morlfast.select_tokens(ADVANTAGES[:4], h, VALID[:4], 0.5), ENTROPIES[:4]),
    ]:
        x = inputs.clone()
        before = sys.getrefcount(x), x._use_count()
        results = [call(x) for _ in range(10)]
        assert (sys.getrefcount(x), x._use_count()) == before, name
        del results


def test_nothing_leaks(run_python):
    printed = run_python(
        PRELUDE
        + """
import resource
torch.set_num_threads(1)
import morlfast

fronts, advantages, entropies = t.FRONTS[:100, :4], t.ADVANTAGES[:30], t.ENTROPIES[:30, :40]
valid, rewards, ids = t.VALID[:30, :40], t.REWARDS[:200], t.IDS[:200]
bad = fronts.clone()
bad[3, 2, 1] = float("nan")

def refused(call):
    try:
        call()
    except ValueError:
        return
    raise AssertionError("NaN was taken")

CALLS = {
    "hypervolume": lambda: morlfast.hypervolume(fronts, 1.0, maximize=False),
    "gradient": lambda: t.gradient(fronts),
    "ranks": lambda: morlfast.non_dominated_sort(fronts, maximize=False),
    "grpo": lambda: morlfast.group_advantages(rewards, 4),
    "gdpo": lambda: morlfast.group_advantages(rewards, group_ids=ids, method="gdpo"),
    "tokens": lambda: morlfast.select_tokens(advantages, entropies, valid, 0.3),
    "refused fronts": lambda: refused(lambda: morlfast.hypervolume(bad, 1.0, maximize=False)),
    "refused ranks": lambda: refused(lambda: morlfast.non_dominated_sort(bad, maximize=False)),
}
for name, call in CALLS.items():
    for _ in range(500):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20_000 if name not in ("gradient", "gdpo") else 5_000):
        call()
    print(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="=")
"""
    )
    grown = {name: int(kilobytes) for name, kilobytes in (line.split("=") for line in printed.splitlines())}
    assert len(grown) == 8
    assert all(kilobytes < 2048 for kilobytes in grown.values()), grown


def test_importing_morlfast_does_not_touch_cuda(run_python):
    printed = run_python(
        """
import torch
def drivers():
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "libcuda.so" in line}
before = drivers()
import morlfast
print(torch.cuda.is_initialized(), drivers() - before, torch.get_num_threads() > 0)
"""
    )
    assert printed.split() == ["False", "set()", "True"]
