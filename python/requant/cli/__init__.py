"""The command line: parse, call the public API, render. The only importer of rich."""

try:
    from requant.cli.app import main, run
except KeyboardInterrupt:  # before there is a `main` to say so
    import sys

    print("interrupted: nothing was written", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["main", "run"]
