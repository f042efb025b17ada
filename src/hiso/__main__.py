"""`python -m hiso` is `hiso`."""

from hiso.cli import main

main()
