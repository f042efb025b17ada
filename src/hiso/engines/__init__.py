"""Clients and server in one process.

Begin with `federation.py`, which defines `hiso.Federation`; `arguments.py` checks its arguments.
`simulation.py` runs a round for all sampled clients on one replica. `replay.py` rebuilds a replica
from a ledger. The engine over a network is `hiso.flower`, which needs a run's settings and folder.
"""
