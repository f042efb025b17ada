"""The round, without a network: server, clients, the messages between them, and the log.

Begin with `messages.py` (plan and reply), then `server.py` (ask, tell, close) and `client.py`
(catch up, probe, answer). `accept/` decides which replies and rounds count, `aggregate.py` makes
a record of them, `ledger/` keeps it, `wire.py` is each message as bytes.
"""
