"""Decides which replies are valid (`replies.py`), whether enough agree (`quorum.py`), and which
rounds count.

`quarantine.py` decides which clients are asked, and `cuts.py` limits how much a reply counts.
`divergence.py` stops a run whose loss is not finite or has exploded.
"""
