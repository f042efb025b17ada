"""Baselines that send vectors (FedAvg, FedAdam, …), in the format of hiso's own runs.

Begin with `baseline_run.py`; `vector_client.py` and `vector_server.py` are the two sides.
"""
