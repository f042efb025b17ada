"""The update rules: each is a few pure functions, from which all backends generate kernels.

Begin with `base.py`, which defines what a method declares, and `zo_sgd.py`, the shortest method.
`ops.py` has the elementwise operations that a rule may use; `derived.py` handles state that is
computed from the log alone. `registry.py` lists the methods by name. To add a method, add a file
here and a line in `registry.py`.
"""
