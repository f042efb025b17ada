"""A run: from settings to a run folder, which allows resuming after any interruption.

Begin with `settings.py` and `launch.py`; `loop.py` is the outer loop, which Flower and the
baselines also use. `folder.py` defines the files of a run folder, `results.py` their content,
`workload/` creates model, data and objective from the settings, `observer.py` reports progress.
"""
