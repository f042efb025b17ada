"""Out of a run: a model folder, an adapter of scalars, and answers to texts.

Begin with `out.py` (what `hiso export` writes) and `load.py` (the model again, from an adapter or
a run). `adapter.py` is the file, `columns.py` its arrays, `cards.py` what people read with it.
"""
