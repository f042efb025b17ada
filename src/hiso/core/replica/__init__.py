"""The model on one machine: float32 weights that fold records, and a copy for forward passes.

Begin with `replica.py`. `local_steps.py` runs a client's local steps on a copy of the weights,
`lean.py` computes without a copy of the whole model, `adopt.py` finds the parameters that a
replica takes over, and `watch.py` detects changes by other code.
"""
