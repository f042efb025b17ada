"""Rows of data: reading files, splitting them, and dividing them among clients.

`files.py` reads, `sharing.py` keeps rows with text in common in one split, `partition.py` gives
each client its rows, `batches.py` draws batches of encoded examples, and `shards.py` draws batches
from the user's own lists and data sets.
"""
