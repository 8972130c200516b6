"""Brute-force oracles: slow, exact where they can be, and short enough to be believed at sight."""
