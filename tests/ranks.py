"""Processes that form a group of torch.distributed."""

from __future__ import annotations

import datetime
import itertools
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 60
WORLDS = {2: [7, 5], 4: [6, 0, 1, 5]}  # rows of each rank


class Ranks:
    """Processes of one group. Each calls the same function, with arguments of its own."""

    def __init__(self, world: int, folder: Path, backend: str = "gloo") -> None:
        context = multiprocessing.get_context("forkserver")  # imports torch once, not once a rank
        context.set_forkserver_preload(["torch", "morlfast", "pytest"])
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, rank, world, str(folder / "store"), backend))
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def rows(self) -> list[slice]:
        """Of WORLDS, which are each rank's."""
        ends = list(itertools.accumulate(WORLDS[len(self.pipes)]))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def run(self, function: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
        """What each rank returned."""
        answers = self.run_to_errors(function, arguments)
        for rank, answer in enumerate(answers):
            if isinstance(answer, Exception):
                raise AssertionError(f"on rank {rank}") from answer
        return answers

    def run_to_errors(self, function: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
        """What each rank returned, or the exception that it raised."""
        for pipe, own in zip(self.pipes, arguments, strict=True):
            pipe.send_bytes(pickle.dumps((function, own)))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(SECONDS), f"rank {rank} hangs"
            answers.append(pickle.loads(pipe.recv_bytes()))
        return answers

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def serve(pipe: Any, rank: int, world: int, store: str, backend: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        backend,
        store=dist.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            break
        try:
            answer = function(*arguments)
        except Exception as error:
            answer = error
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()
