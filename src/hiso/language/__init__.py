"""Models, tasks, data, and the loss of one on the other.

Nothing here knows of federation: a client is given an `objective.Objective` and a
`shards.Shard`, and that is all it needs.
"""
