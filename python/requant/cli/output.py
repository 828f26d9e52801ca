"""What a command leaves behind: a result on standard output, errors on standard error, an exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from requant.documents import json_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

DONE = 0
MISSED = 1  # the result is there, and is not what was asked for
WRONG = 2  # input or output
BUG = 101
INTERRUPTED = 130

#: Pictures of control characters, which a name from a file could command the terminal by.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
CONTROLS |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def print_result(args: argparse.Namespace, document: Mapping[str, Any], show: Callable[[], None]) -> None:
    """Print ``document`` and nothing else with ``--json``, nothing with ``--quiet``, and otherwise what people see."""
    if args.json:
        print(json_text(document), end="")
    elif not args.quiet:
        show()


def print_error(label: str, text: str) -> None:
    """Print ``text`` on standard error, its first line behind ``label`` and the others indented."""
    first, *rest = [line.translate(CONTROLS) for line in text.splitlines()] or [""]
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    shown = f"\033[1;31m{label}\033[0m" if colour else label
    print("\n".join([f"{shown}: {first}", *(f"  {line}" for line in rest)]), file=sys.stderr)
