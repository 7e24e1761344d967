"""The command line: `invreg demo`, `reconstruct`, `simulate`, `info` and `list`."""

from invreg.cli.app import app, main

__all__ = ["app", "main"]
