"""A model as the bytes of a file, its large tensors left where they lie: what is run, checked and saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class SerializedModel:
    """An ONNX model that may be larger than one protobuf message.

    Attributes:
        proto: The ModelProto. The locations of its external tensors are relative to ``folder``.
        folder: None where ``proto`` holds everything.
        external_bytes: How much its external tensors take.
        owner: What keeps those of them that lie in temporary files there.
    """

    proto: bytes = field(repr=False)
    folder: Path | None = None
    external_bytes: int = 0
    owner: object = field(default=None, repr=False)

    @classmethod
    def of(cls, model: SerializedModel | bytes) -> SerializedModel:
        """``model`` itself, or the one that the bytes of a file are."""
        return model if isinstance(model, SerializedModel) else cls(model)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return len(self.proto) + self.external_bytes
