"""The log of a run in one SQLite file.

Begin with `ledger.py`, which appends and reads records. `runfile.py` is what the same file holds
beside the log (identity, settings, evaluations), `schema.py` its tables and how it is opened.
"""
