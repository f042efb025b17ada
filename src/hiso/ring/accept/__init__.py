"""Decides which replies are valid (`replies.py`), whether enough agree (`quorum.py`), and which
rounds count.

`divergence.py` stops a run whose loss is not finite or has exploded.
"""
