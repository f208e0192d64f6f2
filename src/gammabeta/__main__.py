"""``python -m gammabeta``: the command line without its script."""

from gammabeta.cli.app import main

main()
