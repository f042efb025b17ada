"""Models, examples and objectives for each kind of data.

`text/` is language (labels, written answers, free text), `vision/` small images. `run/workload/`
chooses between them according to a run's settings.
"""
