"""From settings to model, shards and objective.

Begin with `base.py`, what a run needs of a workload, and `load.py`, which chooses one: `text.py`
or `vision.py`. `objects.py` takes models and data that are Python objects, `own_task.py` makes a
task from a file's columns, `divide.py` the clients' shards.
"""
