"""`python -m interp`: the `interp` command, where its script is not on the path."""

from interp.cli import main

if __name__ == "__main__":
    main()
