"""The command `hiso`."""

from hiso.cli.app import main

__all__ = ["main"]
