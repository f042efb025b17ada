"""Creates model, shards and objective from the settings.

Begin with `base.py`, which defines what a run needs from a workload, and `load.py`, which chooses
one: `text.py` or `vision.py`. `objects.py` accepts models and data that are Python objects,
`own_task.py` makes a task from a file's columns, `divide.py` makes the clients' shards.
"""
