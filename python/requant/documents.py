"""JSON documents: what ``to_dict``, ``--json`` and ``--report`` give.

JSON has no infinity and no NaN. A number that is not finite is null in every document, and the schemas say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def document_of(result: DataclassInstance, version: int, **more: Any) -> dict[str, Any]:
    """The fields of ``result`` and what there is ``more``, as JSON types; ``schema`` is the ``version``."""
    return finite({"schema": version, **asdict(result), **more})


def finite(document: Mapping[str, Any]) -> dict[str, Any]:
    """``document`` with None for each number in it that is not finite, and the values of enums for their members."""
    return {key: _finite(value) for key, value in document.items()}


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Enum():
            return value.value
        case Mapping():
            return finite(value)
        case list():
            return [_finite(each) for each in value]
        case tuple():
            return tuple(_finite(each) for each in value)
        case _:
            return value


def json_text(document: Mapping[str, Any]) -> str:
    """A ``document``, whose numbers are ``finite``, as the text of a JSON file."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
