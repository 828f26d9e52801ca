"""From arguments to an exit status."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from requant.cli.output import BUG, CONTROLS, DONE, INTERRUPTED, WRONG, print_error
from requant.cli.parser import parse
from requant.errors import RequantError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_LAST_STREAM = 2  # the descriptor of standard error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    _hold_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        args = parse(arguments, _formatter(arguments))
        _log_to_stderr(args)
        for library in getattr(args, "custom_ops", None) or ():
            from requant.runtime import register_custom_ops

            register_custom_ops(library)
        return int(args.run(args))
    except RequantError as error:
        if debug:
            traceback.print_exc()
        print_error(f"error[{error.code}]", str(error))
        return error.exit_status
    except KeyboardInterrupt:
        print_error("interrupted", "nothing was written")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as problem:
        print_error("error[RQ511]", f"{problem.strerror or problem}: {problem.filename or 'standard output'}")
        return WRONG
    except MemoryError:
        print_error("error[RQ530]", "out of memory\nhelp: use a smaller --batch-size")
        return WRONG
    except Exception as error:
        if debug:
            traceback.print_exc()
        print_error("bug", f"{type(error).__name__}: {error}\nhelp: please report it with the output of --debug")
        return BUG


def run() -> None:
    """The console script: as ``main``, but an interrupt does not wait for threads that are still at work."""
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _hold_streams() -> None:
    """Put a sink in the place of a standard stream that is closed, so that no file that is opened takes its place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _formatter(arguments: list[str]) -> Any:
    import argparse

    if not {"-h", "--help"} & set(arguments) or not sys.stdout.isatty():
        return argparse.HelpFormatter
    from rich_argparse import RichHelpFormatter

    class Formatter(RichHelpFormatter):
        group_name_formatter = str  # as they are written, not Each Word In Capitals

    return Formatter


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        print(f"{level}: {record.getMessage().translate(CONTROLS)}", file=sys.stderr)


def _log_to_stderr(args: argparse.Namespace) -> None:
    logger = logging.getLogger("requant")
    logger.handlers = [h for h in logger.handlers if not isinstance(h, _Handler)]
    logger.addHandler(_Handler())
    logger.setLevel(logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING)
    logger.propagate = False
    for library in map(logging.getLogger, ("onnx", "onnx_ir", "onnxscript")):  # their remarks are not meant for users
        library.handlers = library.handlers or [logging.NullHandler()]
