"""GGUF files, written through the ``gguf`` package one tensor at a time, and read back before they count."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from requant.errors import MissingDependencyError, VerificationError
from requant.evaluation.distance import decibels
from requant.files import replacing
from requant.gguf.blocks import dequantize_gguf, quantize_gguf
from requant.gguf.report import GgufTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from requant.gguf.choice import Choice
    from requant.gguf.metadata import Value
    from requant.stored import StoredWeight
    from requant.types import Progress

_CHUNK = 1 << 20


def package() -> Any:
    """The ``gguf`` package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError(
            "writing GGUF files needs the gguf package", hint="pip install 'requant[gguf]'"
        ) from None
    return gguf


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a file: weights with their types, importance of columns by activation, and the metadata."""

    weights: Sequence[StoredWeight]
    chosen: Sequence[Choice]
    importance: Mapping[str, NDArray[np.float32]]
    metadata: Mapping[str, Value]


def write(
    output: str | Path, content: Content, *, threads: int = 0, progress: Progress | None = None
) -> tuple[tuple[GgufTensor, ...], int]:
    """Write and verify a file; gives its tensors and its size.

    Raises:
        MissingDependencyError: the ``gguf`` package is not installed.
        OutputError: the file cannot be written; what was there before is untouched, as with every error.
        VerificationError: what was written does not read back as it should.
    """
    gguf = package()
    writer = gguf.GGUFWriter(None, str(content.metadata["general.architecture"]))
    for key, value in content.metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, _value_type(gguf, value))
    for weight, choice in zip(content.weights, content.chosen, strict=True):
        kind = choice.kind
        nbytes = math.prod(weight.shape) // kind.block_size * kind.bytes
        raw = gguf.GGMLQuantizationType(kind.id)
        writer.add_tensor_info(weight.name, weight.shape, np.dtype(np.float32), nbytes, raw_dtype=raw)
    written, sums = [], {}
    with replacing(output) as file:
        writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weight, choice in zip(content.weights, content.chosen, strict=True):
            weighed = None if choice.kind.is_float else content.importance.get(weight.activation or "")
            tensor, blocks = _quantized(weight, choice, weighed, threads)
            writer.write_tensor_data(blocks)
            sums[weight.name] = zlib.crc32(blocks.data)
            written.append(tensor)
            if progress is not None:
                progress(len(written), len(content.weights))
        file.flush()
        size = file.tell()
        _verify(file, written, sums)
    return tuple(written), size


def _value_type(gguf: Any, value: Value) -> Any:
    kinds = gguf.GGUFValueType
    if isinstance(value, bool):
        return kinds.BOOL
    if isinstance(value, int):
        return kinds.UINT32 if 0 <= value < 2**32 else kinds.INT64
    return kinds.FLOAT32 if isinstance(value, float) else kinds.STRING


def _quantized(
    weight: StoredWeight, choice: Choice, importance: NDArray[np.float32] | None, threads: int
) -> tuple[GgufTensor, NDArray[np.uint8]]:
    array, kind = weight.read(), choice.kind
    rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1] if array.ndim else 1)  # also where it is empty
    weighed = importance if importance is not None and len(importance) == rows.shape[1] else None
    blocks = quantize_gguf(rows, kind.name, importance=weighed, threads=threads)
    signal = noise = 0.0
    step = max(1, _CHUNK // max(rows.shape[1], 1))
    for first in range(0, len(rows), step):
        expected = rows[first : first + step].astype(np.float64)
        error = dequantize_gguf(blocks[first : first + step], kind.name, threads=threads) - expected
        signal += float(np.vdot(expected, expected))
        noise += float(np.vdot(error, error))
    tensor = GgufTensor(
        weight.name,
        weight.shape,
        kind.name,
        blocks.nbytes,
        array.nbytes,
        decibels(signal, noise),
        weighed is not None,
        choice.reason,
    )
    return tensor, blocks


def _verify(file: BinaryIO, written: Sequence[GgufTensor], sums: Mapping[str, int]) -> None:
    """Read the file back with the package, which has to find what was written.

    Raises:
        VerificationError: it does not.
    """
    reader = package().GGUFReader(file)
    if [tensor.name for tensor in reader.tensors] != [tensor.name for tensor in written]:
        raise VerificationError("the file that was written has other tensors than it should; nothing was kept")
    for found, tensor in zip(reader.tensors, written, strict=True):
        theirs = (tuple(map(int, reversed(found.shape))), found.tensor_type.name.lower())
        if theirs != (tensor.shape, tensor.dtype):
            raise VerificationError(f"tensor {tensor.name!r} reads back as {theirs}; nothing was kept")
        if zlib.crc32(np.ascontiguousarray(found.data).view(np.uint8).data) != sums[tensor.name]:
            raise VerificationError(f"the data of tensor {tensor.name!r} read back otherwise; nothing was kept")
