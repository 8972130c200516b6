"""What more threads do: our own call on several against one, beside the machine's own gain."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from bench.driver import Case, Inputs, Peer, Yardstick, close


def on_threads(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return call(*inputs)
        finally:
            torch.set_num_threads(before)

    return run


def case_on_threads(
    threads: int, setup: Callable[[torch.Generator], Inputs], call: Callable[..., Any], moved_bytes: int, series: str
) -> Case:
    return Case(
        setup=setup,
        ours=on_threads(threads, call),
        dtype="float64",
        # No bit may depend on the number of threads.
        peers=(Peer("morlfast on 1 thread", close(rtol=0), lambda: on_threads(1, call)),),
        moved_bytes=moved_bytes,
        series=series,
        threads=threads,
        yardsticks=_yardsticks(threads),
        note="wall times; copy: of 64 MB, arithmetic: zeta functions in cache; each on 1 thread over the same on all",
    )


@lru_cache
def _yardsticks(threads: int) -> tuple[Yardstick, ...]:
    source, target = torch.ones(2, 1 << 23, dtype=torch.float64)  # 64 MB each: beyond the caches
    x = 2 + torch.rand(1 << 16, dtype=torch.float64)  # 512 kB: in cache
    out = torch.empty_like(x)
    work: dict[str, Callable[..., Any]] = {
        "copy": lambda *_: target.copy_(source),
        "arithmetic": lambda *_: torch.special.zeta(x, x, out=out),
    }
    return tuple(Yardstick(name, on_threads(1, call), on_threads(threads, call)) for name, call in work.items())
