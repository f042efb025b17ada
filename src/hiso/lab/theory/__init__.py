"""Experiments that test the theory, each defined by a TOML file.

Begin with `experiment.py`. `dimension/` counts rounds on least squares, `curvature/` examines what
h learns on digits, `language/` does the same on a language model, and `oracle.py` measures the gain
of a true diagonal.
"""
