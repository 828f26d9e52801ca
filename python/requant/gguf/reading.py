"""Reading GGUF files: tensor by tensor, each dequantized as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ConfigError, ModelError, closest
from requant.gguf.blocks import BLOCK_TYPES, dequantize_gguf
from requant.gguf.header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from requant.gguf.header import ArrayValue, TensorEntry

#: Types that numpy has.
_PLAIN = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "f64": np.float64}


class GgufFile:
    """A GGUF file that was checked: its metadata, its tensors, and their reals.

    Attributes:
        path: where it is.
        metadata: keys and values; of an array only its length.
        tensors: each tensor by name, in the file's order.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        types = {kind.id: (kind.name, kind.block_size, kind.bytes) for kind in BLOCK_TYPES.values()}
        header = read_header(path, types)
        self.metadata: Mapping[str, str | int | float | bool | ArrayValue] = header.metadata
        self.tensors: Mapping[str, TensorEntry] = {entry.name: entry for entry in header.tensors}

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped: ``[..., bytes of a row]``.

        Raises:
            ConfigError: there is no such tensor.
        """
        entry = self._entry(name)
        shape = (*entry.shape[:-1], -1) if entry.nbytes and entry.shape else (entry.nbytes,)
        if not entry.nbytes:
            return np.zeros(shape, np.uint8)
        flat = np.memmap(self.path, np.uint8, "r", offset=entry.offset, shape=(entry.nbytes,))
        return np.asarray(flat).reshape(shape)

    def read(self, name: str, *, threads: int = 0) -> NDArray[Any]:
        """The reals of a tensor in float32; integers and float64 as they are.

        Raises:
            ConfigError: there is no such tensor.
            ModelError: its type is not one that is read here.
        """
        entry = self._entry(name)
        if entry.dtype in _PLAIN:
            plain = np.frombuffer(self.blocks(name).tobytes(), np.dtype(_PLAIN[entry.dtype]).newbyteorder("<"))
            return plain.reshape(entry.shape).astype(_PLAIN[entry.dtype])
        if entry.dtype not in BLOCK_TYPES:
            raise ModelError(
                f"{self.path}: tensor {name!r} is of type {entry.dtype}, which is not read",
                hint=f"types that are: {', '.join((*BLOCK_TYPES, *_PLAIN))}",
            )
        if not entry.nbytes:
            return np.zeros(entry.shape, np.float32)
        return dequantize_gguf(self.blocks(name), entry.dtype, threads=threads).reshape(entry.shape)

    def numpy_dtype(self, name: str) -> np.dtype[Any]:
        """What :meth:`read` gives a tensor in."""
        return np.dtype(_PLAIN.get(self._entry(name).dtype, np.float32))

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.tensors:
            raise ConfigError(f"{self.path} has no tensor {name!r}{closest(name, self.tensors)}")
        return self.tensors[name]


def read_gguf(path: str | Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a GGUF file by its name, in the file's order, dequantized to float32; integers as they are.

    Shapes are numpy's: a matrix that GGUF lists as ``[K, N]`` is ``[N, K]``.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is not GGUF, damaged, or has a tensor of a type that is not read; see :class:`GgufFile`.

    Example:
        >>> weights = requant.read_gguf("model.gguf")  # doctest: +SKIP
    """
    file = GgufFile(path)
    return {name: file.read(name) for name in file.tensors}
