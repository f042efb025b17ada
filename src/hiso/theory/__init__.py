"""Experiments on what the theory says: rounds against dimension, and what h learns of curvature."""
