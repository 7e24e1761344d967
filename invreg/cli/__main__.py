"""`python -m invreg.cli`: the same as the console script `invreg`."""

from invreg.cli.app import main

if __name__ == "__main__":
    main()
