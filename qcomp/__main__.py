"""``python -m qcomp`` is the command line."""

from qcomp.cli import main

main()
