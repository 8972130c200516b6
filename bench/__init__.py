"""Benchmarks of morlfast against the best peer for each shape: `python -m bench --help`, from the repository root."""
