"""Language models on text: prompts, label words, written answers, free text.

Begin with `task.py` (what a task is) and `objective.py` (what a forward pass gives). `models.py`
loads and scores, `classifiers.py` models with a head, `examples.py` rows and splits, `encode.py`
their token ids, `generation.py` and `scores.py` written answers and how good they are.
"""
