"""What the command line asks for, done case by case."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from bench import report
from bench.driver import Operation, Row, Settings, Shape, failed, rows_of
from bench.environment import environment, machine
from bench.operations import FAMILIES, OPERATIONS


def run(options: argparse.Namespace) -> int:
    operations = chosen_operations(options.op)
    if options.list:
        print(*map(description, operations), sep="\n")
        return 0
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"--device {options.device}: torch finds no CUDA device")
    if options.data is not None:
        check_data(options.data, operations)
    torch.set_num_threads(options.threads)
    shape = {op.name: parsed(options.shape, op) for op in operations} if options.shape else {}
    settings = Settings(
        device=options.device,
        threads=options.threads,
        seconds=options.seconds,
        cap=options.cap,
        peers=chosen_peers(options.peers, operations),
        environment=partial(environment, options.device, options.threads),
    )
    target = results_file(options.json, options.device)
    rows: list[Row] = []
    if operations:
        print(report.HEADER, flush=True)
    for op in operations:
        if options.device.split(":")[0] not in op.devices:
            print(f"{op.name}: only on {', '.join(op.devices)}", file=sys.stderr)
            continue
        cases = op.cases(options.device)
        if shape:
            cases = ((variant, shape[op.name]) for variant in op.on(options.device)[0])
        for variant, own in cases:
            if options.data is not None and variant not in options.data.split(","):
                continue
            measured: list[Row] = []
            for row in rows_of(op, own, variant, settings):
                measured.append(row)
                print(report.line(row), flush=True)
            rows += measured
            if options.json is not None:
                report.merge(target, measured, whole_cases=settings.peers is None)
    if options.table:
        print(report.summary(report.load(target) if target.exists() else rows))
    if options.plot is not None:
        drawing = options.plot
        if not drawing.suffix:
            drawing = drawing / f"benchmarks-{target.stem}.svg"
        report.plot(report.load(target) if target.exists() else rows, drawing)
    for row in failed(rows):
        where = f"{row['op']} {row['variant']} {row['shape']}"
        print(f"{row['status']}: {where}, {row['peer'] or 'morlfast'}: {row['detail']}", file=sys.stderr)
    return 1 if failed(rows) else 0


def chosen_operations(names: str) -> list[Operation]:
    if names == "none":
        return []
    chosen: dict[str, Operation] = {}
    for name in OPERATIONS if names == "all" else names.split(","):
        # A name is an operator's before it is a family's; "hypervolume" is both.
        if name in OPERATIONS:
            chosen[name] = OPERATIONS[name]
        elif name in FAMILIES:
            chosen.update((op.name, op) for op in FAMILIES[name])
        else:
            known = ", ".join([*OPERATIONS, *(family for family in FAMILIES if family not in OPERATIONS)])
            sys.exit(f"--op: expected some of {known}, got {name!r}")
    return list(chosen.values())


def check_data(names: str, operations: list[Operation]) -> None:
    known = list(dict.fromkeys(variant for op in operations for variant in op.variants))
    for name in names.split(","):
        if name not in known:
            sys.exit(f"--data: expected some of {', '.join(known) or 'none'}, got {name!r}")


def chosen_peers(names: str, operations: list[Operation]) -> tuple[str, ...] | None:
    """Names of peers as rows carry them; "moocore" also stands for "moocore loop"."""
    if names == "all":
        return None
    if names == "none":
        return ()
    known = peers_of(operations)
    asked = names.split(",")
    for name in asked:
        if name not in known and f"{name} loop" not in known:
            sys.exit(f"--peers: expected some of {', '.join(known) or 'none'}, got {name!r}")
    return tuple(name for name in known if name in asked or name.removesuffix(" loop") in asked)


def peers_of(operations: list[Operation]) -> list[str]:
    cases = (
        op.case(shape, variant)
        for op in operations
        for variant in op.variants
        for shape in (*op.shapes_of.get(variant, op.shapes), *(op.cuda_shapes or ()))
    )
    return list(dict.fromkeys(peer.name for case in cases for peer in case.peers))


def parsed(text: str, operation: Operation) -> Shape:
    try:
        shape = tuple(map(int, text.split("x")))
    except ValueError:
        shape = ()
    if len(shape) != len(operation.axes) or min(shape) < 1:
        axes = "x".join(operation.axes)
        sys.exit(f"--shape: {operation.name} expects {axes}, such as {_text(operation.shapes[0])}, got {text!r}")
    return shape


def results_file(path: Path | None, device: str) -> Path:
    if path is None:
        path = Path(__file__).parent / "results"
    return path if path.suffix == ".json" else path / f"{machine(device)}.json"


def description(operation: Operation) -> str:
    shapes = " ".join(map(_text, operation.shapes))
    peers = ", ".join(peers_of([operation])) or "none"
    data = ", ".join(operation.variants)
    return f"{operation.name} ({'x'.join(operation.axes)}): {shapes}\n    data: {data}\n    peers: {peers}"


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
