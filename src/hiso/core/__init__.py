"""The parts of a replica: exact arithmetic that every holder of the log repeats bit for bit.

Begin with `record.py` (one round's scalars) and `replica/replica.py` (weights that fold records).
`identity.py` holds everything on which the bits depend; `method/` holds the update rules, `noise/`
the random directions, `kernels/` the loops over the weights, `measure/` the measurement of
scalars. Needs only torch and NumPy (and numba or Triton for a kernel backend).
"""
