"""Time and memory on this machine, as ratios within one process.

Begin with `report.py`. `kernels.py` and `rounds.py` measure time, `memory.py` peaks, `targets.py`
holds what is asked for, and `usual.py` is the usual implementation to compare with.
"""
