"""The ring over a network: server and clients as applications of Flower.

At the server: `server_app.py`, which drives `rounds.py`; `sites.py` knows who can be reached,
`exchange.py` sends and waits. At a site: `worker.py` answers, `daemon.py` keeps it running, and
`client_app.py` carries messages between SuperNode and worker through `local_socket.py`.
"""
