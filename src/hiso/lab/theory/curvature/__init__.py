"""What HiSo's h learns on a network that is small enough for an exact Hessian.

Begin with `digits.py`; `learned.py` derives what h can learn at best, `factors.py` and
`lanczos.py` compute the actual curvature.
"""
