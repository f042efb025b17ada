"""What a replica is made of: exact arithmetic that everybody who has the log repeats bit for bit.

Begin with `record.py` (one round's scalars) and `replica/replica.py` (weights that fold records).
`identity.py` fixes everything that the bits depend on; `method/` holds the update rules, `noise/`
the random directions, `kernels/` the loops over the weights, `measure/` what forward passes say.
Needs torch and NumPy alone (and numba or Triton for a kernel backend).
"""
