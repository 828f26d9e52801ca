"""``python -m requant``."""

from requant.cli import run

run()
