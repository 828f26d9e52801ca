"""The whole command line: the commands with their arguments, and errors said as every other error is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from requant.cli.arguments import add_common
from requant.cli.commands import COMMANDS
from requant.errors import ConfigError, closest
from requant.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = "exit status: 0 done, 1 quality gate missed, 2 wrong input or output, 101 a bug, 130 interrupted"


class _Store(argparse._StoreAction):  # noqa: SLF001 - argparse has no public class of it
    """Takes a value; names of files and data only once, lest one is passed over without a word."""

    _given: str | None = None

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self._given not in (None, values) and self.metavar in ("FILE", "DATA"):
            raise ConfigError(
                f"{_called(self)} is given twice: {self._given!r} and {values!r}", hint="give one of them"
            )
        self._given = values
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _Store)

    def error(self, message: str) -> Any:
        raise ConfigError(message, hint=f"see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name, hint = _called(action), f"choose one of {', '.join(known)}"
            if action.dest == "command" and str(value).endswith((".onnx", ".safetensors")):
                hint = f"say what to do with it, such as `{self.prog} quantize {value}`"
            raise ConfigError(f"{name} is {value!r}{closest(str(value), known)}", hint=hint)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but what is missing is left to ``parse_args``: an unknown option comes first."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        parsed, unknown = super().parse_known_args(args, namespace)
        missing = [action for action in required if getattr(parsed, action.dest, None) is None]
        parsed.missing = [*getattr(parsed, "missing", ()), *(_called(action) for action in missing)]
        return parsed, unknown

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        missing = vars(parsed).pop("missing")
        command = " ".join(filter(None, (self.prog, parsed.command)))
        if unknown:
            known = [o for a in _options(self, getattr(parsed, "command", None)) for o in a.option_strings]
            kind = "option" if unknown[0].startswith("-") else "argument"
            if "--" in args and unknown[0] in args[args.index("--") + 1 :]:
                self.error(f"unknown argument {unknown[0]!r}: behind -- there are no options")
            if unknown[0] in known:
                self.error(f"option {unknown[0]!r} stands before the command, expected behind it")
            raise ConfigError(
                f"unknown {kind} {unknown[0]!r}{closest(unknown[0].split('=')[0], known)}",
                hint=f"see `{command} --help`",
            )
        if missing:
            names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            raise ConfigError(f"{names} {'is' if len(missing) == 1 else 'are'} missing", hint=f"see `{command} --help`")
        for action in _options(self, parsed.command):
            value = getattr(parsed, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]):
                raise ConfigError(f"{_called(action)} is an empty string", hint=f"see `{command} --help`")
        return parsed


def _called(action: argparse.Action) -> str:
    """What people call an option or argument."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _options(parser: argparse.ArgumentParser, command: str | None) -> list[argparse.Action]:
    actions = list(parser._actions)  # noqa: SLF001 - argparse has no public list of its options
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction) and command in action.choices:  # noqa: SLF001
            actions += action.choices[command]._actions  # noqa: SLF001
    return actions


def build_parser(formatter: Any) -> argparse.ArgumentParser:
    """The whole command line, with ``formatter`` as argparse's help formatter."""
    parser = _Parser(
        "requant",
        description="Quantize ONNX models, and prove the result.",
        epilog=_EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"requant {__version__}")
    parsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = parsers.add_parser(
            command.name,
            usage=f"requant {command.name} {command.usage}",
            help=command.help,
            description=command.help,
            formatter_class=formatter,
            allow_abbrev=False,
            epilog=_EPILOG,
        )
        command.add_arguments(own)
        add_common(own)
        own.set_defaults(run=command.run)
    return parser


def parse(argv: Sequence[str], formatter: Any) -> argparse.Namespace:
    """The parsed command line.

    Raises:
        ConfigError: an option or value does not exist or does not fit.
    """
    return build_parser(formatter).parse_args(argv)
