"""The update rules: each a few pure functions, from which every kernel backend is made.

Begin with `base.py`, what a method declares, and `zo_sgd.py`, the shortest one. `ops.py` has the
elementwise operations that a rule may use, `derived.py` state that follows from the log alone.
`registry.py` knows the methods by name: a new method is a file here and a line there.
"""
