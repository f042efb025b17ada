"""Small images, for studies that a laptop does in minutes.

`images.py` has the data, `models.py` the networks, `objective.py` what a forward pass gives.
"""
