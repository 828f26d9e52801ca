"""From arguments to an exit status."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.cli import checkpoint, compare, drift, edit, evaluate, gguf, keep, sensitivity, show
from requant.cli.options import config_of, data_options
from requant.cli.parser import parse
from requant.documents import finite, json_text
from requant.errors import ConfigError, RequantError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from requant.config import QuantConfig

INTERRUPTED = 130
BUG = 101


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        args = parse(arguments, _formatter(arguments))
        _log_to_stderr(args)
        for library in getattr(args, "custom_ops", None) or ():
            from requant.runtime import register_custom_ops

            register_custom_ops(library)
        return _COMMANDS[args.command](args)
    except RequantError as error:
        if debug:
            traceback.print_exc()
        _print_error(f"error[{error.code}]", str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _print_error("interrupted", "nothing was written")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        _print_error("error[RQ511]", f"{problem.strerror or problem}: {problem.filename or 'standard output'}")
        return 2
    except MemoryError:
        _print_error("error[RQ530]", "out of memory\nhelp: use a smaller --batch-size")
        return 2
    except Exception as error:
        if debug:
            traceback.print_exc()
        _print_error("bug", f"{type(error).__name__}: {error}\nhelp: please report it with the output of --debug")
        return BUG


def run() -> None:
    """The console script: as ``main``, but an interrupt does not wait for threads that are still at work."""
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _formatter(arguments: list[str]) -> Any:
    import argparse

    if not {"-h", "--help"} & set(arguments) or not sys.stdout.isatty():
        return argparse.HelpFormatter
    from rich_argparse import RichHelpFormatter

    class Formatter(RichHelpFormatter):
        group_name_formatter = str  # as they are written, not Each Word In Capitals

    return Formatter


def _print_error(label: str, text: str) -> None:
    first, *rest = text.splitlines() or [""]
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    shown = f"\033[1;31m{label}\033[0m" if colour else label
    print("\n".join([f"{shown}: {first}", *(f"  {line}" for line in rest)]), file=sys.stderr)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        print(f"{level}: {record.getMessage()}", file=sys.stderr)


def _log_to_stderr(args: argparse.Namespace) -> None:
    logger = logging.getLogger("requant")
    logger.handlers = [h for h in logger.handlers if not isinstance(h, _Handler)]
    logger.addHandler(_Handler())
    logger.setLevel(logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING)
    logger.propagate = False
    for library in map(logging.getLogger, ("onnx", "onnx_ir", "onnxscript")):  # their remarks are not meant for users
        library.handlers = library.handlers or [logging.NullHandler()]


def _quantize(args: argparse.Namespace) -> int:
    import requant
    from requant.calibration.table import CalibrationTable
    from requant.cli import render, terminal
    from requant.files import check_outputs, is_checkpoint, write_atomically

    config = config_of(args)
    _refuse_unjudged(args)
    if is_checkpoint(args.model):
        return checkpoint.run(args, config)
    if args.dry_run:
        return _show_plan(args, config)
    output = Path(args.output or f"{Path(args.model).stem}.{config.weight_only or 'int8'}.onnx")
    check_outputs(
        [output, args.report, args.html, args.save_recipe], [args.model, args.data, args.eval, args.table, args.recipe]
    )
    judged: dict[str, Any] = {"evaluation": args.eval, "labels": args.labels}
    kept = None
    if args.keep is not None:
        kept = keep.search(args, config, {**judged, "metric": args.metric})
        result, config = kept.model, kept.config
    else:
        table = CalibrationTable.load(args.table) if args.table else None
        with terminal.progress(quiet=args.quiet or args.json) as progress:
            result = requant.quantize(
                args.model,
                args.data,
                config,
                table=table,
                data_options=data_options(args),
                progress=progress,
                metric=args.metric or "top1",
                **judged,
            )
    views = [result.view_range(name) for name in show.chosen(result, args.show)]
    result.save(output, external_data=args.external_data)
    walked = {} if kept is None else {"keep": kept.to_dict()}
    document = {**result.report.to_dict(), **walked}
    if args.report:
        write_atomically(args.report, json_text(document).encode())
    if args.html:
        write_atomically(args.html, result.report.to_html(kept).encode())
    if args.save_recipe:
        write_atomically(args.save_recipe, config.to_toml().encode())
    if args.json:
        shown = {"shown": [finite(asdict(view)) for view in views]} if views else {}
        print(json_text({**document, **shown, "output": str(output)}), end="")
    elif not args.quiet:
        render.report(result.report, output)
        if kept is not None:
            render.kept(kept)
        for view in views:
            show.draw(view)
    return 0 if kept is None else keep.status(kept)


def _refuse_unjudged(args: argparse.Namespace) -> None:
    """Refuse what says how models are judged where none is."""
    for name in ("metric", "labels"):
        if getattr(args, name) is not None and args.eval is None and args.keep is None:
            raise ConfigError(
                f"--{name} says how models are judged, and no labelled samples are given",
                hint=f"give --eval DATA or --keep SHARE, or leave out --{name}",
            )


def _show_plan(args: argparse.Namespace, config: QuantConfig) -> int:
    import requant
    from requant.api import refuse_hopeless
    from requant.cli import render

    inspection = requant.inspect(args.model, config)
    if args.command == "quantize":
        refuse_hopeless(inspection)
    if args.json:
        print(json_text(inspection.to_dict()), end="")
    elif not args.quiet:
        render.inspection(inspection)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    return _show_plan(args, config_of(args))


def _calibrate(args: argparse.Namespace) -> int:
    import requant
    from requant.cli import render, terminal
    from requant.files import check_outputs

    config = config_of(args)
    check_outputs([args.output], [args.model, args.data, args.recipe])
    with terminal.progress(quiet=args.quiet or args.json) as progress:
        table = requant.calibrate(args.model, args.data, config, data_options=data_options(args), progress=progress)
    ranges = table.all_ranges(config)
    table.save(args.output, ranges)
    if args.json:
        document = {"schema": 1, "output": args.output, "samples": table.samples, "ranges": ranges}
        print(json_text(finite(document)), end="")
    elif not args.quiet:
        render.table(table, ranges, args.output)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from requant.cli import render
    from requant.cli.doctor import examine

    findings = examine()
    if args.json:
        print(json_text({"schema": 1, **findings}), end="")
    elif not args.quiet:
        render.doctor(findings)
    return 0


_COMMANDS = {
    "quantize": _quantize,
    "calibrate": _calibrate,
    "inspect": _inspect,
    "evaluate": evaluate.run,
    "compare": compare.run,
    "sensitivity": sensitivity.run,
    "drift": drift.run,
    "edit": edit.run,
    "gguf": gguf.run,
    "doctor": _doctor,
}
