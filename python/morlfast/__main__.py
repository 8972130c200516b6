"""``python -m morlfast env | demo | cmake-dir``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m morlfast", description=sys.modules["morlfast"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help="versions, how morlfast was built, and which implementation each operator takes")
    commands.add_parser("cmake-dir", help="folder for CMake's morlfast_DIR, to link the C++ library")
    commands.add_parser("demo", help="learn Deep Sea Treasure; --help lists its options", add_help=False)
    options, rest = parser.parse_known_args(argv)
    if options.command == "demo":
        from morlfast import demo

        return demo.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "env":
        from morlfast import env

        print(env.report())
    else:
        print(Path(__file__).parent / "lib" / "cmake" / "morlfast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
