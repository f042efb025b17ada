"""Experiments and measurements of hiso. Only the command line imports this package.

`compare/` runs a grid of methods, tasks and seeds; `baselines/` has methods that send vectors, for
comparison; `theory/` tests the theory by experiments; `bench/` measures time and memory.
"""
