"""Measures time and memory on this machine, as ratios within one process.

Begin with `report.py`. `kernels.py` and `rounds.py` measure time, `memory.py` peak memory,
`targets.py` has the targets, and `usual.py` is the usual implementation for comparison.
"""
