"""Writes one HTML page about one or several runs.

Begin with `page.py`; `gather.py` reads the runs, the other modules are the parts of the page.
"""
