"""``requant doctor``: what this machine has, and what one should know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli.output import DONE, print_result
from requant.cli.spec import Command

if TYPE_CHECKING:
    import argparse


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    """Look, tell."""
    from requant.cli import render
    from requant.machine import examine

    machine = examine()
    print_result(args, machine.to_dict(), lambda: render.doctor(machine))
    return DONE


COMMAND = Command(
    "doctor",
    "[options]",
    "Versions, CPU features, kernels in use, runtimes found.",
    add_arguments,
    run,
)
