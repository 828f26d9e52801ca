"""JSON Schemas (draft 2020-12) of what ``--json``, ``--report`` and ``to_dict`` give, made from the results' own types.

They are shipped in ``requant/schemas``; ``python -m requant.schema`` writes them anew, and a test holds them equal to
the types. A field that is added keeps the version ``schema``; one that goes or changes its meaning raises it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from requant import ablation, comparison, drift, evaluation, report
from requant.plan import Skip
from requant.ranges import RangeView
from requant.timing import Timing
from requant.trials import Score

FOLDER = Path(__file__).parent / "schemas"

#: Each document: its type, its version, and what ``to_dict`` adds to the fields.
DOCUMENTS: dict[str, tuple[type, int, dict[str, Any]]] = {
    "report": (report.Report, report.SCHEMA, {"worst": {"type": "array", "items": {"type": "string"}}}),
    "comparison": (comparison.Comparison, comparison.SCHEMA, {"worst": {"type": "array", "items": {"type": "string"}}}),
    "sensitivity": (ablation.Sensitivity, ablation.SCHEMA, {}),
    "drift": (drift.Drift, drift.SCHEMA, {}),
    "evaluation": (evaluation.Evaluation, evaluation.SCHEMA, {}),
}
#: Names that the modules import for type checkers only.
_NAMES = {
    "Mapping": Mapping,
    "Any": Any,
    "Skip": Skip,
    "RangeView": RangeView,
    "Timing": Timing,
    "TokenFigures": comparison.TokenFigures,
    "Score": Score,
    "OutputQuality": report.OutputQuality,
}
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a document."""
    kind, version, more = DOCUMENTS[name]
    definitions: dict[str, Any] = {}
    body = _object(kind, definitions)
    body["properties"] = {"schema": {"const": version}, **body["properties"], **more}
    body["required"] = ["schema", *body["required"], *more]
    # A command adds to the document what it did besides, such as the file it wrote.
    body["additionalProperties"] = True
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"requant {name}, version {version}",
        **body,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, localns=_NAMES)
    return {
        "type": "object",
        "properties": {field.name: _schema(hints[field.name], definitions) for field in fields(kind)},
        "required": [field.name for field in fields(kind) if field.default is MISSING],
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # it is being written
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"no JSON type stands for {hint}")


def text_of(name: str) -> str:
    """The file of a document's schema."""
    return json.dumps(schema_of(name), indent=1) + "\n"


if __name__ == "__main__":
    for document in DOCUMENTS:
        (FOLDER / f"{document}.json").write_text(text_of(document), "utf-8")
