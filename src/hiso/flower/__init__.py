"""Server and clients over a network, as applications of Flower.

At the server: `server_app.py` runs a run through `rounds.py`; `sites.py` keeps the reachable
clients, and `owners.py` whose number is whose; `waiting.py` says how long a round waits;
`exchange.py` sends messages and collects answers. At a site: `worker.py` answers requests,
`daemon.py` is its process, `network.py` its thread that pulls requests and sends answers, through
Flower's interface in `fleet.py`, with the key of `access.py`; `status.py` is what `hiso worker
status` reads. `client_app.py` and `actor.py` are for the simulation on Ray.
"""
