"""`python -m bench`: run cases, print a Markdown table, write results as JSON and draw them.

Exit code 1 when a peer disagreed or a call failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("--op", default="all", help="operators or families, by commas (default: all)")
    parser.add_argument("--shape", help="one shape instead of the operator's own, such as 1000x64x3")
    parser.add_argument("--data", help="kinds of data, by commas (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of morlfast, torch and the peers (default: 1)")
    parser.add_argument("--peers", default="all", help="peers by commas, all (default) or none")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender of a row (default: 1)")
    parser.add_argument("--cap", type=float, default=5.0, help="skip a peer that takes longer a call (default: 5)")
    parser.add_argument(
        "--json",
        nargs="?",
        const=ROOT / "bench" / "results",
        type=Path,
        metavar="PATH",
        help="write rows to a .json file or a folder (default: bench/results/<machine>.json); "
        "rows of other measurements stay",
    )
    parser.add_argument(
        "--plot",
        nargs="?",
        const=ROOT / "docs",
        type=Path,
        metavar="PATH",
        help="draw the JSON's ratios to a file or a folder (default: docs/benchmarks-<machine>.svg); "
        "with --op none nothing is measured before",
    )
    parser.add_argument("--table", action="store_true", help="print what the JSON holds, short; as --plot does")
    parser.add_argument("--list", action="store_true", help="list operators, data, shapes and peers")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.threads < 1:
        sys.exit(f"--threads: expected a positive number, got {options.threads}")
    for name in THREAD_VARIABLES:  # read when the libraries are imported
        os.environ[name] = str(options.threads)
    from bench.run import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
