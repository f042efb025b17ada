"""Methods, tasks and seeds from one file, run and set side by side.

Begin with `comparison.py`. `spec.py` reads the file, `trials.py` makes runs of it, `execute.py`
runs them, `figures.py`, `tables.py` and `picture.py` show what came out.
"""
