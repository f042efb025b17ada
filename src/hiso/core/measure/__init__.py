"""Measures scalars of a batch along a round's directions.

`probe.py` lists the points to measure and turns outcomes into scalars. `outcome.py` has the result
of an objective for a batch, and `local.py` the quadratic model computed from label scores.
`backward.py` computes the same scalars by one backward pass; `calibrate.py` measures the accuracy
of scalars at a given mu.
"""
