"""Language models on text: prompts, label words, written answers, free text.

Begin with `task.py` (what a task is) and `objective.py` (losses from forward passes). `models.py`
loads models, `classifiers.py` handles models with a classification head, `examples.py` makes
examples and splits from rows, `encode.py` makes token ids, `generation.py` writes answers, and
`scores.py` scores them.
"""
