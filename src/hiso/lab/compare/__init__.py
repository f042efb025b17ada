"""Runs and compares methods, tasks and seeds named in one file.

Begin with `comparison.py`. `spec.py` reads the file, `trials.py` lists its runs, `execute.py` runs
them, `figures.py`, `tables.py` and `picture.py` show the results.
"""
