"""What h learns about a language model, and what an oracle's h could gain.

Begin with `language.py`.
"""
