"""Does the number of rounds grow with the number of weights? Experiments on least squares.

Begin with `dimension.py`; `expected.py` predicts the number of rounds by an exact recursion.
"""
