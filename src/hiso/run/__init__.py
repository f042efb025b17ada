"""A run: settings in, a folder out, from which it goes on after any interruption.

Begin with `settings.py` and `launch.py`; `loop.py` is the one outer loop, also of Flower and of
the baselines. `folder.py` says what lies where, `results.py` reads it again, `workload/` makes
model, data and objective from the settings, `observer.py` is how anybody watches.
"""
