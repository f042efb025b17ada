"""Clients and server in one process.

Begin with `federation.py`, the front door `hiso.Federation`; `arguments.py` checks what it is
given. `simulation.py` answers a round for all its clients on one replica, `replay.py` is a late
joiner. The engine over a network is `hiso.flower`, which needs a run's settings and folder.
"""
