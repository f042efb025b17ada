"""Does the number of rounds grow with the number of weights? Races on least squares.

Begin with `dimension.py`; `expected.py` is what an exact recursion says beforehand.
"""
