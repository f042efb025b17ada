"""Small images, for experiments that take minutes on a laptop.

`images.py` has the data, `models.py` the networks, `objective.py` the losses.
"""
