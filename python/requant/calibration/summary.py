"""What ``requant calibrate`` tells of a table: the ranges that every method would choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.documents import document_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requant.types import Range

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class CalibrationSummary:
    """What follows from a ``CalibrationTable``.

    Attributes:
        output: the file that the table went to.
        samples: how many samples it was made of.
        ranges: for each tensor the range of each method, those of symmetric schemes under ``METHOD_symmetric``; none
            where the samples never reached it.
    """

    output: str
    samples: int
    ranges: Mapping[str, Mapping[str, Range]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA)
