"""A run, or several, as one page to look at.

Begin with `page.py`; `gather.py` reads the runs, the other modules are the parts of the page.
"""
