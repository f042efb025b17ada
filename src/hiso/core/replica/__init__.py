"""The model on one machine: float32 weights that fold records, and a copy that computes.

Begin with `replica.py`. `local_steps.py` is a client's walk away from the shared weights, `lean.py`
computes without a whole copy, `adopt.py` says which parameters are taken over, and `watch.py`
notices when somebody else has written to them.
"""
