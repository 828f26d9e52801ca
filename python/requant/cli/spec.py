"""What a command says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Command:
    """One command of ``requant``.

    Attributes:
        name: as the user types it.
        usage: what stands behind the name in the first line of its help.
        help: what it is for, in a sentence.
        add_arguments: gives a parser the options of this command alone; those of every command are added behind.
        run: does it with the parsed arguments, and returns the exit status.
    """

    name: str
    usage: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
