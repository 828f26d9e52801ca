"""JSON Schemas (draft 2020-12) of what ``--json``, ``--report`` and ``to_dict`` give, made from the results' own types.

They are shipped in ``requant/schemas``; ``python -m requant.schema`` writes them anew, and a test holds them equal to
the types. A field that is added keeps the version ``schema``; one that goes or changes its meaning raises it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from requant import api, editing, machine, report
from requant.arrays.lowbit import BlockScheme
from requant.calibration import summary
from requant.calibration.ranges import RangeView
from requant.checkpoint import quantize as checkpoint
from requant.config import QuantConfig
from requant.data.spec import InputSpec
from requant.drift import verdict as drift
from requant.evaluation import compare as comparison, evaluate as evaluation
from requant.evaluation.timing import Timing
from requant.gguf import report as gguf
from requant.onnx.boundary import Boundary
from requant.onnx.graph import OutputSpec
from requant.planning.plan import BlockedNode, DynamicNode, NodePlan, QuantPlan, Skip
from requant.quantized import QuantizedModel
from requant.search import ablation, keeping
from requant.search.trials import Score
from requant.search.walk import Step
from requant.types import Range

FOLDER = Path(__file__).parent / "schemas"


@dataclass(frozen=True, slots=True)
class Document:
    """What ``to_dict`` of a type gives: its version, fields that it ``adds`` with their types, and those left out."""

    kind: type
    version: int
    adds: Mapping[str, Any] = field(default_factory=dict)
    without: frozenset[str] = frozenset()


_WORST = {"worst": tuple[str, ...]}
_SIZES = {"float_bytes": int, "bits_per_weight": float}
#: What an inspection says of its model and plan, by names of its own.
_INSPECTED = {
    "bytes": int,
    "ops": Mapping[str, int],
    "already_quantized": tuple[str, ...],
    "nodes": tuple[NodePlan, ...],
    "dynamic": tuple[DynamicNode, ...],
    "blocked": tuple[BlockedNode, ...],
    "activations": tuple[str, ...],
    "calibrated": tuple[str, ...],
    "skipped": tuple[Skip, ...],
}
#: Each document, by the name of its schema.
DOCUMENTS = {
    "report": Document(report.Report, report.SCHEMA, _WORST),
    "keep": Document(keeping.Kept, keeping.SCHEMA, {"config": Mapping[str, Any]}, frozenset({"model", "config"})),
    "comparison": Document(comparison.Comparison, comparison.SCHEMA, _WORST),
    "sensitivity": Document(ablation.Sensitivity, ablation.SCHEMA),
    "drift": Document(drift.Drift, drift.SCHEMA),
    "evaluation": Document(evaluation.Evaluation, evaluation.SCHEMA),
    "gguf": Document(gguf.GgufReport, gguf.SCHEMA, {**_SIZES, **_WORST}),
    "inspection": Document(
        api.Inspection, api.INSPECTION_SCHEMA, _INSPECTED, frozenset({"size", "op_types", "plan", "quantized_ops"})
    ),
    "calibration": Document(summary.CalibrationSummary, summary.SCHEMA),
    "edit": Document(editing.EditedModel, editing.SCHEMA, {"bytes": int}, frozenset({"data", "sources"})),
    "doctor": Document(machine.Machine, machine.SCHEMA),
    "checkpoint": Document(checkpoint.CheckpointReport, checkpoint.SCHEMA),
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
    "Step": Step,
    "OutputQuality": report.OutputQuality,
    "QuantConfig": QuantConfig,
    "QuantizedModel": QuantizedModel,
    "BlockScheme": BlockScheme,
    "Boundary": Boundary,
    "InputSpec": InputSpec,
    "OutputSpec": OutputSpec,
    "QuantPlan": QuantPlan,
    "Range": Range,
    "Path": Path,
    "np": np,
}
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # null: not finite
    type(None): {"type": "null"},
    Any: {},
    np.dtype[Any]: {"type": "string"},
}


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a document."""
    document = DOCUMENTS[name]
    definitions: dict[str, Any] = {}
    body = _object(document.kind, definitions, document.without)
    added = {name: _schema(hint, definitions) for name, hint in document.adds.items()}
    body["properties"] = {"schema": {"const": document.version}, **body["properties"], **added}
    body["required"] = ["schema", *body["required"], *document.adds]
    # A command adds to the document what it did besides, such as the file it wrote.
    body["additionalProperties"] = True
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"requant {name}, version {document.version}",
        **body,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(kind: type, definitions: dict[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    hints = get_type_hints(kind, localns=_NAMES)
    given = [field for field in fields(kind) if field.name not in without]
    return {
        "type": "object",
        "properties": {field.name: _schema(hints[field.name], definitions) for field in given},
        "required": [field.name for field in given if field.default is MISSING],
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None) or float not in arguments]  # a float may be null
        found = [_schema(kind, definitions) for kind in kinds]
        return found[0] if len(found) == 1 else {"anyOf": found}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if isinstance(origin or hint, type) and issubclass(origin or hint, tuple):  # a NamedTuple has its types as hints
        places = [_schema(place, definitions) for place in arguments or get_type_hints(hint).values()]
        return {"type": "array", "prefixItems": places, "items": False, "minItems": len(places)}
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
