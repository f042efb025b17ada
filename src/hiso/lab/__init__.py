"""The laboratory: how hiso is measured. The command line alone imports it.

`compare/` runs a grid of methods, tasks and seeds; `baselines/` are rivals that send vectors;
`theory/` tests what the mathematics promises; `bench/` measures time and memory.
"""
