"""The log of a run in one SQLite file.

Begin with `ledger.py`, which appends and reads records. `runfile.py` handles the file's other
contents (identity, settings, evaluations); `schema.py` defines its tables and opens it.
"""
