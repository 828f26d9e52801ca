"""The commands: each is a file here and a line in ``COMMANDS``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.cli import calibrate, compare, doctor, drift, edit, evaluate, gguf, inspect, quantize, sensitivity

if TYPE_CHECKING:
    from requant.cli.spec import Command

#: In the order of the help.
COMMANDS: tuple[Command, ...] = (
    quantize.COMMAND,
    calibrate.COMMAND,
    inspect.COMMAND,
    evaluate.COMMAND,
    compare.COMMAND,
    sensitivity.COMMAND,
    drift.COMMAND,
    edit.COMMAND,
    gguf.COMMAND,
    doctor.COMMAND,
)
