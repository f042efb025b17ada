"""Exports a run: model folders, adapters of scalars, and predictions for texts.

Begin with `out.py` (writes exports) and `load.py` (rebuilds the model from an adapter or a run).
`adapter.py` reads and writes the adapter file, `columns.py` defines its arrays, and `cards.py`
writes cards for readers.
"""
