"""Rows as a Markdown table, as a JSON file and as a plot of its ratios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.driver import Row

HEADER = (
    "| operator | data | shape | morlfast, ms (20 to 80 %) | peer | peer, ms (20 to 80 %) | ratio of times | CPU times"
    " | of limit |\n|---|---|---|---|---|---|---|---|---|"
)
KEY = ("op", "variant", "shape", "dtype", "device", "threads", "peer")


def line(row: Row) -> str:
    """One line of the table that HEADER opens."""
    peer = " ".join(filter(None, (row["peer"], row.get("peer_version")))) or "none"
    ours, theirs = (_times(row.get(who)) + _memory(row, who) for who in ("ours", "theirs"))
    limit = f"{row['share_of_limit']:.0%}" if "share_of_limit" in row else ""
    ratio = " ".join([f"{row['ratio']:.2f}", *_beside_the_ratio(row)]) if "ratio" in row else row["status"]
    cpu_ratio = f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else ""
    if "errors" in row:
        ours, theirs = (f"{x}, error {row['errors'][y]:.1g}" for x, y in ((ours, "ours"), (theirs, "theirs")))
    if "unit" in row:
        peer, theirs = row["unit"]["name"], _times(row["unit"])
        ratio = f"costs {row['cost_in_units']:.2f}" + _target(row)
        cpu_ratio = f"costs {row['cpu_cost_in_units']:.2f}" if "cpu_cost_in_units" in row else ""
    elif row["status"] == "alone":
        ratio = ""
    elif row["status"] != "ok":
        theirs = row["detail"]
    cells = (row["op"], row["variant"], row["shape"], ours, peer, theirs, ratio, cpu_ratio, limit)
    return "| " + " | ".join(cells) + " |"


def _times(times: Row | None) -> str:
    if times is None:
        return ""
    return f"{_three(times['median_ms'])} ({_three(times['q20_ms'])} to {_three(times['q80_ms'])})"


def _memory(row: Row, who: str) -> str:
    added = row.get(f"{who}_added_mb")
    return "" if added is None else f", {_three(added)} MB"


def _target(row: Row) -> str:
    return "" if row.get("target") is None else f" (target {row['target']:g})"


def _beside_the_ratio(row: Row) -> list[str]:
    """The target; what more threads did for the machine itself, and who else was there."""
    notes = [_target(row).strip()] if _target(row) else []
    if "machine" in row:
        gains = [f"{name} {gain:.2f}" for name, gain in row["machine"].items()]
        busy = row["busy_elsewhere"]
        notes.append(f"({', '.join(gains)}; cores busy elsewhere: {'unknown' if busy is None else f'{busy:.1f}'})")
    return notes


def _three(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:.3g}" if 0.001 <= value < 1000 else f"{value:.0f}" if value >= 1000 else f"{value:.5f}"


def merge(path: Path, rows: list[Row], whole_cases: bool = False) -> None:
    """Write rows to a file, one a line, in place of earlier rows for the same measurement.

    Rows of whole cases, which have all peers, also replace those of peers that are no longer measured.
    """
    kept = {_key(row): row for row in (load(path) if path.exists() else [])}
    if whole_cases:
        cases = {_key(row)[:-1] for row in rows}
        gone = [key for key in kept if key[:-1] in cases and key not in {_key(row) for row in rows}]
        for key in gone:
            del kept[key]
    kept.update((_key(row), row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(_rounded(row)) for row in kept.values())
    path.write_text(f"[\n{lines}\n]\n")


def load(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text())
    return rows


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def summary(rows: list[Row]) -> str:
    """A Markdown table an operator: our median, and each peer's ratio of times (of CPU times)."""
    parts = []
    for op in dict.fromkeys(row["op"] for row in rows):
        own = [row for row in rows if row["op"] == op]
        peers = list(dict.fromkeys(_short(row["peer"]) for row in own if row["peer"]))
        unit = next((f"cost in {row['unit']['name']}" for row in own if "unit" in row), None)
        heads = [f"data: {op}", own[0]["axes"].replace(" ", "x"), "morlfast, ms", *peers, *filter(None, [unit])]
        table = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for variant, shape in dict.fromkeys((row["variant"], row["shape"]) for row in own):
            here = [row for row in own if (row["variant"], row["shape"]) == (variant, shape)]
            found = {_short(row["peer"]): row for row in here if row["peer"]}
            ours = next((_cell(row) for row in here if "ours" in row), here[0]["status"])
            cells = [_ratios(found[peer]) if peer in found else "" for peer in peers]
            costs = [f"{row['cost_in_units']:.2f}" + _target(row) for row in here if "unit" in row]
            table.append("| " + " | ".join([variant, shape, ours, *cells, *costs]) + " |")
        parts.append("\n".join(table))
    return "\n\n".join(parts)


def _short(peer: str | None) -> str:
    return (peer or "").removesuffix(" loop")


def _cell(row: Row) -> str:
    return _three(row["ours"]["median_ms"]) + _memory(row, "ours")


def _ratios(row: Row) -> str:
    if "ratio" not in row:
        return str(row["status"])
    parts = [_three(row["ratio"]), *([f"({_three(row['cpu_ratio'])})"] if "cpu_ratio" in row else [])]
    if "errors" in row:
        parts.append("errors {ours:.1g} and {theirs:.1g}".format(**row["errors"]))
    return " ".join([*parts, *_beside_the_ratio(row)]) + _memory(row, "theirs")


def plot(rows: list[Row], path: Path) -> None:
    """The smaller ratio of every row that has one, an operator a panel, on one logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "morlfast"})
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    rows = [row for row in rows if "ratio" in row]
    operations = list(dict.fromkeys(row["op"] for row in rows))
    if not operations:
        raise ValueError("nothing to plot: no row has a ratio")
    labels = {op: list(dict.fromkeys(_label(r) for r in rows if r["op"] == op)) for op in operations}
    peers = list(dict.fromkeys(_short(row["peer"]) for row in rows))
    # Ten colours, then the same ones with another marker.
    styles = {peer: {"color": f"C{index % 10}", "marker": "os^D"[index // 10 % 4]} for index, peer in enumerate(peers)}
    heights = [len(labels[op]) + 1 for op in operations]
    figure, panels = plt.subplots(
        len(operations),
        figsize=(9, 0.16 * sum(heights) + 0.5 * len(operations) + 1),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for op, axes in zip(operations, panels[:, 0], strict=True):
        for peer in peers:
            own = [r for r in rows if r["op"] == op and _short(r["peer"]) == peer]
            x, y = (
                [min(r["ratio"], r.get("cpu_ratio", r["ratio"])) for r in own],
                [labels[op].index(_label(r)) for r in own],
            )
            axes.plot(x, y, linestyle="", markersize=4, **styles[peer])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(labels[op])), labels[op], fontsize=6)
        axes.set_ylim(len(labels[op]) - 0.5, -0.5)
        axes.set_title(f"{op} ({next(r['axes'] for r in rows if r['op'] == op)})", fontsize=8, loc="left")
        axes.grid(axis="x", linewidth=0.3)
        axes.tick_params(axis="x", labelsize=7)
    panels[-1, 0].set_xscale("log")
    panels[-1, 0].set_xlabel(
        "peer's time / morlfast's, the smaller of wall and CPU times (right of 1: morlfast is faster)", fontsize=8
    )
    marks = [Line2D([], [], linestyle="", label=peer, **styles[peer]) for peer in peers]
    where = rows[0]["environment"]
    title = f"{where['gpu'] or where['cpu']}, {rows[0]['threads']} thread(s)"
    figure.legend(handles=marks, title=title, loc="outside upper center", ncols=min(len(peers), 7), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _label(row: Row) -> str:
    return f"{row['variant']} {row['shape']}"
