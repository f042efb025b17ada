"""What forward passes say of a batch along a round's directions.

`probe.py` lists the points to measure at and turns outcomes into scalars; `outcome.py` is what an
objective returns for a batch, `local.py` the quadratic model that label scores give. `backward.py`
takes the same scalars from one backward pass, `calibrate.py` judges how true scalars are at a mu.
"""
