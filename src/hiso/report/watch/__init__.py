"""Shows a run while it goes on: words for people, figures for Prometheus, and a server for both.

Begin with `server.py`; `hiso.run.watch` gathers the facts.
"""
