"""`python -m interp`: the `interp` command, where its script is not on the path."""

from interp.cli import main

main()
