"""Server and clients over a network, as applications of Flower.

At the server: `server_app.py` runs a run through `rounds.py`; `sites.py` keeps the reachable
clients, and `owners.py` whose number is whose; `waiting.py` says how long a round waits;
`exchange.py` sends messages and collects answers. At a site: `worker.py` answers
requests, `daemon.py` is its process, and `client_app.py` carries messages between SuperNode and
worker through `local_socket.py`.
"""
