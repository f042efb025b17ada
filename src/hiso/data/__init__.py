"""Rows before any model sees them: reading files, splitting, and dividing among clients.

`files.py` reads, `sharing.py` keeps rows with text in common in one split, `partition.py` gives
each client its rows, `batches.py` draws batches of encoded examples, and `shards.py` draws them
from lists and data sets of the user's own.
"""
