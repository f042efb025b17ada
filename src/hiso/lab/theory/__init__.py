"""Experiments on what the theory promises, each named in a TOML file.

Begin with `experiment.py`. `dimension/` races on least squares, `curvature/` looks at what h learns
on digits, `language/` at the same on a language model, `oracle.py` at what a perfect h is worth.
"""
