"""One round without a network: server, clients, the messages between them, and the log.

Begin with `messages.py` (plan and reply), then `server.py` (ask, tell, close) and `client.py`
(catch up, probe, answer). `accept/` decides which replies and rounds are valid, `aggregate.py`
makes a record from the replies, `ledger/` stores the record, and `wire.py` converts messages to
bytes and back.
"""
