"""What counts: which replies (`replies.py`), how many (`quorum.py`), and which rounds.

`divergence.py` stops a run whose loss is not finite or has exploded.
"""
