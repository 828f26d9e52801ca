"""The command line: parse, call the public API, render. The only importer of rich."""

from requant.cli.app import main, run

__all__ = ["main", "run"]
