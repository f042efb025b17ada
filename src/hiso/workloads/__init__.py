"""What is learned: for each kind of data its models, its examples and its objective.

`text/` is language (labels, written answers, free text), `vision/` small images. How a run's
settings choose among them is in `run/workload/`.
"""
