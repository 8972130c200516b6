"""One measurement for every operator: fresh inputs, contenders interleaved, no ratio without agreement.

A case gives inputs, our call and its peers. Each contender visits the same pool of distinct inputs, generated outside
the time; in a round they take turns, on different inputs, in an order that rotates. Before anything is timed each
peer's results are checked against ours on the same inputs: a peer that disagrees gets an error row and no ratio.

Times are wall times. Host calls also carry CPU times: on a shared machine a long call loses the core more often than a
short one, so there the ratio of CPU times is the fairer one. Each row says how many cores other processes kept busy.
"""

from __future__ import annotations

import gc
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.environment import added_memory, busy_seconds

Shape = tuple[int, ...]
Inputs = tuple[Any, ...]
Row = dict[str, Any]

MIN_REPETITIONS, MAX_REPETITIONS = 3, 300
POOL_BYTES = 400 << 20
CHECKED_INPUTS = 5
# In cache, and long enough to hide the call: what the arithmetic limit repeats.
LIMIT_ELEMENTS = {"cpu": 1 << 14, "cuda": 1 << 20}


@dataclass(frozen=True)
class Agreement:
    """`problem(ours, theirs, inputs)` is None when the results agree within the stated tolerance."""

    tolerance: str
    problem: Callable[[Any, Any, Inputs], str | None]


@dataclass(frozen=True)
class Peer:
    """Another library's way to the same result."""

    name: str
    agreement: Agreement
    load: Callable[[], Callable[..., Any]]  # imports the library; ImportError means that it is not installed
    distribution: str | None = None  # whose version is stamped; None for a formula written out here
    version: str = ""
    prepare: Callable[..., Inputs] = lambda *inputs: inputs  # to the peer's own containers, outside the time
    host: bool = False  # takes CPU memory only; on a GPU its time is the host's
    target: float | None = None  # at least this ratio
    left_out: str = ""  # why it is not run at this shape


@dataclass(frozen=True)
class Unit:
    """A call that costs are counted in, where no other library does the same work."""

    name: str
    call: Callable[..., Any]
    target: float | None = None  # at most so many units


@dataclass(frozen=True)
class Yardstick:
    """What more threads do for the machine itself: one piece of work on one thread and on as many as our call has."""

    name: str
    one: Callable[..., Any]
    more: Callable[..., Any]


@dataclass(frozen=True)
class Case:
    setup: Callable[[torch.Generator], Inputs]  # distinct inputs at every call, on the CPU
    ours: Callable[..., Any]
    dtype: str
    peers: tuple[Peer, ...] = ()
    unit: Unit | None = None
    moved_bytes: int = 0  # each input read once, each result written once
    operations: int = 0  # the least arithmetic, where that is the limit; 0: memory is
    operations_are: str = ""
    work: float = 1.0  # grows as the peers' time does: foresees it from a smaller shape of the same series
    series: str = ""
    calls: int = 1  # calls in one repetition, for what is shorter than a clock reading
    error: Callable[[Any, Inputs], float] | None = None  # of a result, where results are estimates
    threads: int | None = None  # of our call, where they are what is measured; None: the run's
    yardsticks: tuple[Yardstick, ...] = ()
    memory: bool = False  # whether the memory that a call adds is measured too
    note: str = ""


@dataclass(frozen=True)
class Operation:
    name: str
    axes: tuple[str, ...]  # what the numbers of a shape are
    variants: tuple[str, ...]  # kinds of data or of call, a row each
    shapes: tuple[Shape, ...]  # ascending, so that a slow peer is foreseen
    case: Callable[[Shape, str], Case]
    devices: tuple[str, ...] = ("cpu", "cuda")
    shapes_of: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)  # of variants with other shapes
    cuda_variants: tuple[str, ...] | None = None  # None: as on the CPU
    cuda_shapes: tuple[Shape, ...] | None = None

    def on(self, device: str) -> tuple[tuple[str, ...], tuple[Shape, ...]]:
        """Variants and shapes that a run on this device measures."""
        if device == "cpu":
            return self.variants, self.shapes
        return self.cuda_variants or self.variants, self.cuda_shapes or self.shapes

    def cases(self, device: str) -> Iterator[tuple[str, Shape]]:
        variants, shapes = self.on(device)
        for variant in variants:
            own = self.shapes_of.get(variant, shapes) if device == "cpu" else shapes
            yield from ((variant, shape) for shape in own)


@dataclass
class Settings:
    device: str = "cpu"
    threads: int = 1
    seconds: float = 1.0  # for each contender of a row
    cap: float = 5.0  # a peer whose one call would take longer is not run
    peers: tuple[str, ...] | None = None  # None: all
    environment: Callable[[], Row] = dict
    rates: dict[tuple[str, ...], float] = field(default_factory=dict)  # seconds of a peer for a unit of work


def close(rtol: float, atol: float = 0.0) -> Agreement:
    """Equal within rtol * |theirs| + atol, everywhere."""

    def problem(ours: Any, theirs: Any, inputs: Inputs) -> str | None:
        x, y = _flat(ours), _flat(theirs)
        if x.shape != y.shape:
            return f"{x.numel()} values against {y.numel()}"
        excess = (x - y).abs() - rtol * y.abs()
        excess = torch.where(x == y, torch.zeros_like(excess), excess)  # equal infinities
        if bool((excess <= atol).all()):
            return None
        worst = int(torch.nan_to_num(excess, nan=math.inf).argmax())
        return f"{x[worst].item()!r} against {y[worst].item()!r} at {worst}"

    bounds = [f"rtol {rtol:g}"] * (rtol > 0) + [f"atol {atol:g}"] * (atol > 0)
    return Agreement(", ".join(bounds) or "exactly equal", problem)


def _flat(values: Any) -> Tensor:
    # Not through the default dtype: a list of Python floats would become float32.
    return torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().reshape(-1)


def rows_of(operation: Operation, shape: Shape, variant: str, settings: Settings) -> Iterator[Row]:
    """One row a peer (or one row alone) for one shape and one kind of data."""
    case = operation.case(shape, variant)
    base: Row = {
        "op": operation.name,
        "variant": variant,
        "shape": "x".join(map(str, shape)),
        "axes": " ".join(operation.axes),
        "dtype": case.dtype,
        "device": settings.device,
        "threads": case.threads or settings.threads,
        "bytes": case.moved_bytes,
        "operations": case.operations,
        "operations_are": case.operations_are,
        "note": case.note,
        "environment": settings.environment(),
    }
    rows: list[Row] = []
    contenders: dict[str, _Contender] = {}
    try:
        pool = _Pool(case, settings)
        contenders["ours"] = _Contender(case.ours, pool.inputs, pool, settings)
        if case.memory:
            base["ours_added_mb"] = _added_mb(contenders["ours"], settings)
    except Exception as error:
        yield {**base, "peer": None, "status": "error", "detail": f"morlfast: {_say(error)}"}
        return
    for peer in case.peers:
        if settings.peers is not None and peer.name not in settings.peers:
            continue
        row, contender = _admit(peer, operation.name, variant, case, contenders["ours"], pool, settings)
        if case.memory and contender is not None:
            row["theirs_added_mb"] = _added_mb(contender, settings)
        rows.append(row)
        if contender is not None:
            contenders[peer.name] = contender
    if case.unit is not None:
        contenders["unit"] = _Contender(case.unit.call, pool.inputs, pool, settings)
    elif case.moved_bytes and case.threads is None:
        limit, what = _limit(case, pool, settings)
        contenders["limit"] = _Contender(limit, pool.inputs, pool, settings)
        base["limit_is"] = what
    for yardstick in case.yardsticks:
        for threads, call in (("one", yardstick.one), ("more", yardstick.more)):
            contenders[f"{yardstick.name}, {threads}"] = _Contender(call, pool.inputs, pool, settings)
    base["busy_elsewhere"] = _interleave(contenders)

    times = {name: contender.summary(case.calls) for name, contender in contenders.items()}
    if case.unit is not None:
        row = {**base, "peer": None, "status": "alone", "ours": times["ours"], "target": case.unit.target}
        row["unit"] = {"name": case.unit.name, **times["unit"]}
        row["cost_in_units"] = times["ours"]["median_ms"] / times["unit"]["median_ms"]
        if "cpu_median_ms" in times["ours"]:
            row["cpu_cost_in_units"] = times["ours"]["cpu_median_ms"] / times["unit"]["cpu_median_ms"]
        yield row
        if not rows:
            return
    for yardstick in case.yardsticks:
        one, more = (times[f"{yardstick.name}, {threads}"]["median_ms"] for threads in ("one", "more"))
        base.setdefault("machine", {})[yardstick.name] = one / more
    for row in [{**base, **row} for row in rows or [{"peer": None, "status": "alone"}]]:
        row["ours"] = times["ours"]
        if "limit" in times:
            row["limit"] = times["limit"]
            row["share_of_limit"] = times["limit"]["median_ms"] / times["ours"]["median_ms"]
        if row["peer"] in contenders:
            row["theirs"] = times[row["peer"]]
            row["ratio"] = row["theirs"]["median_ms"] / row["ours"]["median_ms"]
            # Threads divide the wall time of a call, not its CPU time.
            if case.threads is None and "cpu_median_ms" in row["ours"] and "cpu_median_ms" in row["theirs"]:
                row["cpu_ratio"] = row["theirs"]["cpu_median_ms"] / row["ours"]["cpu_median_ms"]
            key = (operation.name, variant, case.series, row["peer"])
            settings.rates[key] = row["theirs"]["median_ms"] / 1000 / case.work
        yield row


def _added_mb(contender: _Contender, settings: Settings) -> float | None:
    added = added_memory(lambda: contender.call(*contender.inputs[0]), settings.device)
    return None if added is None else added / 1e6


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


def _admit(
    peer: Peer, operation: str, variant: str, case: Case, ours: _Contender, pool: _Pool, settings: Settings
) -> tuple[Row, _Contender | None]:
    """The peer's row so far and, when its results agree with ours, the peer as a contender."""
    row: Row = {"peer": peer.name, "peer_version": peer.version, "tolerance": peer.agreement.tolerance}
    row["peer_device"] = "cpu" if peer.host else settings.device
    if peer.target is not None:
        row["target"] = peer.target
    if peer.left_out:
        return {**row, "status": "skipped", "detail": peer.left_out}, None
    try:
        if peer.distribution is not None:
            row["peer_version"] = importlib.metadata.version(peer.distribution)
        call = peer.load()
    except ImportError as error:  # PackageNotFoundError is one
        missing = isinstance(error, importlib.metadata.PackageNotFoundError)
        detail = f"{peer.distribution or peer.name}: not installed" if missing else _say(error)
        return {**row, "status": "not installed", "detail": detail}, None
    expected = settings.rates.get((operation, variant, case.series, peer.name), 0.0) * case.work
    if expected > settings.cap:
        detail = f"about {expected:.3g} s a call, foreseen from a smaller shape; the cap is {settings.cap:g} s"
        return {**row, "status": "skipped", "detail": detail}, None
    try:
        prepared = [peer.prepare(*inputs) for inputs in pool.inputs[:2]]
        contender = _Contender(call, prepared, pool, settings, host=peer.host)
        needed = max(contender.repetitions, min(CHECKED_INPUTS, len(pool.inputs)))  # Python lists are large
        prepared += [peer.prepare(*inputs) for inputs in pool.inputs[2:needed]]
        checked, started, errors = 0, time.perf_counter() - contender.first_seconds, []
        for index in range(min(len(prepared), CHECKED_INPUTS)):
            theirs = contender.first if index == 0 else call(*prepared[index])
            mine = ours.call(*pool.inputs[index])
            problem = peer.agreement.problem(mine, theirs, pool.inputs[index])
            if problem is not None:
                detail = f"results disagree ({peer.agreement.tolerance}): {problem}"
                return {**row, "status": "disagrees", "detail": detail}, None
            if case.error is not None:
                errors.append([case.error(result, pool.inputs[index]) for result in (mine, theirs)])
            checked += 1
            if time.perf_counter() - started > settings.seconds:
                break
        contender.first = None
    except Exception as error:
        return {**row, "status": "error", "detail": f"{peer.name}: {_say(error)}"}, None
    if errors:
        medians = torch.tensor(errors, dtype=torch.float64).quantile(0.5, dim=0).tolist()
        row["errors"] = dict(zip(("ours", "theirs"), medians, strict=True))
    return {**row, "status": "ok", "checked_inputs": checked}, contender


class _Pool:
    """Distinct inputs, as many as our own repetitions ask for and memory allows."""

    def __init__(self, case: Case, settings: Settings) -> None:
        generator = torch.Generator().manual_seed(0)
        size = max(1, case.moved_bytes)
        first = _to_device(case.setup(generator), settings.device)
        case.ours(*first)  # compiles, loads, allocates
        clock = _Clock(settings)
        seconds = min(clock.seconds(case.ours, first)[0] for _ in range(2))
        count = max(MIN_REPETITIONS, min(_repetitions(seconds, settings), POOL_BYTES // size))
        others = (_to_device(case.setup(generator), settings.device) for _ in range(count - 1))
        self.inputs: list[Inputs] = [first, *others]


def _to_device(inputs: Inputs, device: str) -> Inputs:
    if device == "cpu":
        return inputs
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs)


def _repetitions(seconds: float, settings: Settings) -> int:
    return max(MIN_REPETITIONS, min(MAX_REPETITIONS, int(settings.seconds / max(seconds, 1e-9))))


class _Clock:
    """Wall and CPU time on the host; on a GPU the time between two events, with a cold L2 cache before the first."""

    def __init__(self, settings: Settings, host: bool = False) -> None:
        self.cuda = settings.device != "cpu" and not host
        if self.cuda:
            cache = torch.cuda.get_device_properties(settings.device).L2_cache_size
            # Written before every call: it evicts the inputs, and hides the launch behind its own time.
            self.flush = torch.empty(max(2 * cache, 64 << 20), dtype=torch.int8, device=settings.device)

    def seconds(self, call: Callable[..., Any], inputs: Inputs) -> tuple[float, float]:
        if not self.cuda:
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            call(*inputs)
            wall = time.perf_counter_ns() - wall
            return wall * 1e-9, (time.process_time_ns() - cpu) * 1e-9
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.flush.zero_()
        begin.record()
        call(*inputs)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3, math.nan


class _Contender:
    """A call, its inputs and its times."""

    def __init__(
        self,
        call: Callable[..., Any],
        inputs: list[Inputs],
        pool: _Pool,
        settings: Settings,
        host: bool = False,
    ) -> None:
        self.call, self.inputs = call, inputs
        self.clock = _Clock(settings, host)
        kept: list[Any] = []
        first = self.clock.seconds(lambda *x: kept.append(call(*x)), inputs[0])
        self.first, self.first_seconds = kept[0], first[0]
        self.samples: list[tuple[float, float]] = []
        if first[0] > settings.cap:  # the one call that showed it
            self.samples, self.repetitions = [first], 0
        else:
            second = first if first[0] > settings.seconds else self.clock.seconds(call, inputs[1])
            # Never an input twice: a front that comes back flatters whatever branches on it.
            self.repetitions = min(_repetitions(min(first[0], second[0]), settings), len(pool.inputs))

    def summary(self, calls: int) -> Row:
        wall, cpu = (torch.tensor(self.samples, dtype=torch.float64) * (1e3 / calls)).unbind(1)
        q20, median, q80 = wall.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
        summary = {"median_ms": median, "q20_ms": q20, "q80_ms": q80, "repetitions": len(self.samples)}
        if not self.clock.cuda:
            summary["cpu_median_ms"] = cpu.quantile(0.5).item()
        return summary


def _interleave(contenders: dict[str, _Contender]) -> float | None:
    """Rounds in which each contender takes its turn; slow ones sit rounds out, evenly.

    Returns how many cores other processes kept busy meanwhile.
    """
    entries = list(contenders.values())
    rounds = max(c.repetitions for c in entries)
    gc.collect()
    gc.disable()
    busy, own, wall = busy_seconds(), time.process_time(), time.perf_counter()
    try:
        for r in range(rounds):
            for turn in range(len(entries)):
                place = (r + turn) % len(entries)
                c = entries[place]
                if (r + 1) * c.repetitions // rounds == r * c.repetitions // rounds:
                    continue
                # Apart from one another, so that nobody finds an input in cache that another has just read.
                offset = place * len(c.inputs) // len(entries)
                c.samples.append(c.clock.seconds(c.call, c.inputs[(len(c.samples) + offset) % len(c.inputs)]))
    finally:
        gc.enable()
    own, wall, now = time.process_time() - own, time.perf_counter() - wall, busy_seconds()
    if busy is None or now is None or wall < 0.1:  # the system counts in hundredths of a second
        return None
    return max(0.0, now - busy - own) / wall


def _limit(case: Case, pool: _Pool, settings: Settings) -> tuple[Callable[..., Any], str]:
    """What the machine does at best: as many float64 minima in cache, or a copy of the same bytes."""
    turn = iter(range(1 << 62))
    if case.operations:
        elements = min(case.operations, LIMIT_ELEMENTS["cpu" if settings.device == "cpu" else "cuda"])
        x, y = torch.rand(2, elements, dtype=torch.float64, device=settings.device)
        out = torch.empty_like(x)
        times = range(math.ceil(case.operations / elements))

        def minima(*_: Any) -> None:
            for _i in times:
                torch.minimum(x, y, out=out)

        return minima, "as many float64 minima in cache"
    size = max(1, case.moved_bytes // 2)
    sources = torch.ones(min(len(pool.inputs), 8), size, dtype=torch.uint8, device=settings.device)
    targets = torch.zeros_like(sources)

    def copy(*_: Any) -> None:
        i = next(turn) % len(sources)
        targets[i].copy_(sources[i])

    return copy, "a copy of the same bytes"


def failed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] in ("disagrees", "error")]
