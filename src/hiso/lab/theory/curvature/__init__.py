"""What HiSo's h learns on a network small enough for its exact Hessian.

Begin with `digits.py`; `learned.py` is what h can know at best, `factors.py` and `lanczos.py`
the curvature that is really there.
"""
