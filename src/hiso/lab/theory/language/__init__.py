"""What h learns of a language model, and what an oracle's h would be worth.

Begin with `language.py`.
"""
