"""``requant edit``: integer inputs and outputs, each said in one word such as ``image=uint8:scale=0.1``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from requant.cli.output import DONE, print_result
from requant.cli.spec import Command
from requant.errors import ConfigError, closest

if TYPE_CHECKING:
    import argparse

# A name may hold colons and equals signs, a type neither.
_SPEC = re.compile(r"(?P<name>.+?)=(?P<dtype>\w+)(?::(?P<options>.*))?")
#: How many numbers each option takes; None: any number.
_INPUT_OPTIONS: dict[str, int | None] = {"scale": 1, "zero_point": 1, "mean": None, "std": None}
_OUTPUT_OPTIONS: dict[str, int | None] = {"scale": 1, "zero_point": 1, "range": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``requant edit``."""
    parser.add_argument("model", metavar="MODEL", help="a quantized model, .onnx")
    parser.add_argument("-o", "--output-file", metavar="FILE", required=True, help="the edited model")
    parser.add_argument(
        "--input",
        metavar="NAME=TYPE[:OPTION=NUMBERS,...]",
        action="append",
        default=[],
        help="let an input take uint8, int8, uint16 or int16 q, for ((q - zero_point) * scale - mean) / std; options "
        "scale, zero_point, mean, std; without any, the integers that the model quantizes it to",
    )
    parser.add_argument(
        "--output",
        metavar="NAME=TYPE[:OPTION=NUMBERS,...]",
        action="append",
        default=[],
        help="let an output give integers; options scale, zero_point, or range=LOWEST,HIGHEST; without any, the "
        "integers that the model dequantizes for it",
    )


def run(args: argparse.Namespace) -> int:
    """Edit, verify, save, tell."""
    from requant.cli import render
    from requant.editing import ModelEditor
    from requant.files import check_outputs

    inputs = [parse_spec("--input", text, _INPUT_OPTIONS) for text in args.input]
    outputs = [parse_spec("--output", text, _OUTPUT_OPTIONS) for text in args.output]
    if not inputs and not outputs:
        raise ConfigError("nothing to convert", hint="give --input NAME=TYPE or --output NAME=TYPE")
    check_outputs([args.output_file], [args.model])
    editor = ModelEditor(args.model)
    for name, dtype, options in inputs:
        editor.convert_input_type(name, dtype, **options)
    for name, dtype, options in outputs:
        editor.convert_output_type(name, dtype, **options)
    edited = editor.save(args.output_file)
    document = {**edited.to_dict(), "output": args.output_file}
    print_result(args, document, lambda: render.edited(edited, args.output_file))
    return DONE


def parse_spec(option: str, text: str, known: dict[str, int | None]) -> tuple[str, str, dict[str, Any]]:
    """Name, type and options of ``NAME=TYPE[:OPTION=NUMBERS,...]``; numbers are separated by commas, as options are.

    Raises:
        ConfigError: it is not of this form, or an option or number is wrong.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{option} is {text!r}, expected NAME=TYPE[:OPTION=NUMBERS,...] such as image=uint8",
            hint="the file to write is -o FILE",
        )
    given: dict[str, list[str]] = {}
    for part in () if match["options"] is None else match["options"].split(","):
        key, equals, number = part.partition("=")
        if equals:
            if key not in known:
                raise ConfigError(
                    f"{option} {text!r}: unknown option {key!r}{closest(key, known)}",
                    hint=f"choose from {', '.join(known)}",
                )
            if key in given:
                raise ConfigError(f"{option} {text!r}: {key} is given twice", hint="give it once")
            given[key] = [number]
        elif given:
            given[next(reversed(given))].append(part)
        else:
            raise ConfigError(f"{option} {text!r}: expected OPTION=NUMBERS after the colon, got {part!r}")
    options: dict[str, Any] = {}
    for key, numbers in given.items():
        count = known[key]
        if count is not None and len(numbers) != count:
            raise ConfigError(f"{option} {text!r}: {key} takes {count} number(s), got {len(numbers)}")
        try:
            values = tuple((int if key == "zero_point" else float)(number) for number in numbers)
        except ValueError:
            kind = "an integer" if key == "zero_point" else "numbers"
            raise ConfigError(f"{option} {text!r}: {key} is {','.join(numbers)!r}, expected {kind}") from None
        options[key] = values[0] if count == 1 else values
    return match["name"], match["dtype"], options


COMMAND = Command(
    "edit",
    "MODEL [--input NAME=TYPE] [--output NAME=TYPE] -o FILE [options]",
    "Let a quantized model take and give integers.",
    add_arguments,
    run,
)
