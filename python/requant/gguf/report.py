"""What was written into a GGUF file, or out of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from requant.documents import document_of

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor that was written.

    Attributes:
        name: what it is called in both files.
        shape: its shape, rows last; GGUF lists it the other way round.
        dtype: its type in the file.
        bytes: what it takes there.
        float_bytes: what it takes in float32.
        sqnr_db: power of the weights over power of the error (None: exact).
        weighted: whether the importance of its columns was known.
        reason: why it is not of the type that was asked for (None: it is).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    float_bytes: int
    sqnr_db: float | None
    weighted: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GgufReport:
    """A file that was written; ``to_dict`` gives JSON types.

    Attributes:
        source: what the weights came from.
        output: the file.
        dtype: the type of matrices that was asked for; ``float32`` on the way back.
        tensors: each tensor, in the file's order.
        bytes: size of the file.
        data: what importance was measured on; None where it was not.
        notes: what a user should know.
        seconds: how long it took.
    """

    source: str
    output: str
    dtype: str
    tensors: tuple[GgufTensor, ...]
    bytes: int
    data: str | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def float_bytes(self) -> int:
        """What the tensors take in float32."""
        return sum(tensor.float_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the tensors' data for each weight."""
        return 32 * sum(tensor.bytes for tensor in self.tensors) / max(self.float_bytes, 1)

    @property
    def worst(self) -> tuple[GgufTensor, ...]:
        """The ten tensors of lowest SQNR, worst first; exact ones are none."""
        lossy = [tensor for tensor in self.tensors if tensor.sqnr_db is not None]
        return tuple(sorted(lossy, key=lambda tensor: tensor.sqnr_db or 0.0)[:10])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        own = {"float_bytes": self.float_bytes, "bits_per_weight": self.bits_per_weight}
        return document_of(self, SCHEMA, **own, worst=[tensor.name for tensor in self.worst])
