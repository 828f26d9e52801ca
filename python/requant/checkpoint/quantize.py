"""Checkpoints quantized without a graph: their matrices in blocks of few bits, everything else as it is.

    result = requant.quantize_checkpoint("model.safetensors", "model.int4.safetensors")

The layout is that of compressed-tensors' ``pack-quantized`` format, which vLLM and transformers read:

    NAME.weight_packed  int32 [N, K * bits / 32]    unsigned, the first in the low bits, zero point 2^(bits - 1)
    NAME.weight_scale   float32 [N, K / block_size]
    NAME.weight_shape   int64 [2]                   N, K

and the file carries the ``quantization_config`` that belongs into the model's ``config.json``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import thread_count
from requant.arrays.lowbit import ALGORITHMS, BlockScheme, quantize_blocks
from requant.checkpoint.safetensors import Checkpoint, write_checkpoint
from requant.config.rules import matches
from requant.documents import document_of
from requant.errors import ConfigError, DataError, ModelError
from requant.evaluation.distance import decibels
from requant.files import check_outputs
from requant.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockWeights
    from requant.checkpoint.safetensors import Entry
    from requant.stored import StoredWeight

    Read = Callable[[], NDArray[Any]]

SCHEMA = 1
#: Names that loaders keep in floats: tables that are looked up, and the head.
EXCLUDED = (r".*embed.*", r".*lm_head.*")
_PACKED_BITS = (2, 4, 8)
_SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A tensor that was written.

    Attributes:
        name: what it was called.
        shape: its shape.
        dtype: ``int4`` and the like, or what it was stored in.
        bytes: what it takes, scales included.
        sqnr_db: power of the weights over power of the error; None where it is as it was.
        reason: why it is as it was (None: it is not).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    sqnr_db: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A checkpoint that was written; ``to_dict`` gives JSON types.

    Attributes:
        source: what was quantized.
        output: the file.
        dtype: the type of matrices.
        tensors: each tensor.
        source_bytes: size of the tensors before.
        bytes: size of the file.
        quantization_config: what belongs into the model's ``config.json`` under that key.
        seconds: how long it took.
    """

    source: str
    output: str
    dtype: str
    tensors: tuple[CheckpointTensor, ...]
    source_bytes: int
    bytes: int
    quantization_config: Mapping[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA)


def quantize_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    bits: int = 4,
    block_size: int = 32,
    algorithm: str = "mse",
    exclude: Sequence[str] = EXCLUDED,
    threads: int = 0,
) -> CheckpointReport:
    """Quantize the matrices of a safetensors checkpoint, symmetrically, in blocks along their rows.

    One tensor is in memory at a time, whatever the size of the checkpoint.

    Args:
        source: a ``.safetensors`` file, or the ``.safetensors.index.json`` of a sharded one.
        output: the file to write.
        bits: 2, 4 or 8.
        block_size: neighbours that share a scale: 16, 32, 64, 128, 256; 0 for whole rows.
        algorithm: how scales are chosen, one of ``requant.arrays.lowbit.ALGORITHMS``.
        exclude: names, or regular expressions of whole names, to leave as they are.
        threads: CPU threads; 0 uses all cores.

    Raises:
        ConfigError: other bits or block sizes, or an unknown algorithm.
        DataError: a weight that is not finite; its place is told.
        MissingFileError: there is no such file.
        ModelError: it is no checkpoint, damaged, or has no matrix that can be quantized.
        OutputError: the file cannot be written.
    """
    watch = Stopwatch()
    if bits not in _PACKED_BITS:
        raise ConfigError(f"bits is {bits}, and checkpoints pack integers of 2, 4 or 8 bits")
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"algorithm {algorithm!r} needs data, and a checkpoint has no graph to run them through",
            hint=f"choose one of {', '.join(ALGORITHMS)}",
        )
    threads = thread_count(threads)
    scheme = BlockScheme(bits, block_size, symmetric=True)
    check_outputs([output], [source])
    checkpoint = Checkpoint(source)
    check_outputs([output], checkpoint.files)
    weights = {weight.name: weight for weight in checkpoint.weights()}
    work = _Work(scheme, algorithm, threads)
    tensors: list[tuple[str, np.dtype[Any] | str, tuple[int, ...], Read]] = []
    kept: dict[str, CheckpointTensor] = {}
    for name, entry in checkpoint.entries.items():
        reason = _reason(name, entry, name in weights, scheme, exclude)
        if reason is None:
            tensors += work.tensors(weights[name])
        else:
            kept[name] = CheckpointTensor(name, entry.shape, entry.dtype.lower(), entry.nbytes, reason=reason)
            tensors.append((name, entry.dtype, entry.shape, entry.array))
    if len(kept) == len(checkpoint.entries):
        why = next(iter(kept.values())).reason if kept else "it is empty"
        raise ModelError(
            f"{source} has no matrix to quantize: {why}", hint="choose another block size, or exclude less"
        )
    config = _quantization_config(scheme, [n.removesuffix(_SUFFIX) for n, t in kept.items() if len(t.shape) == 2])
    write_checkpoint(output, tensors, checkpoint.metadata | {"quantization_config": json.dumps(config)})
    return CheckpointReport(
        source=str(source),
        output=str(output),
        dtype=f"int{bits}",
        tensors=tuple(kept.get(name) or work.done[name] for name in checkpoint.entries),
        source_bytes=sum(entry.nbytes for entry in checkpoint.entries.values()),
        bytes=Path(output).stat().st_size,
        quantization_config=config,
        seconds=watch.elapsed,
    )


def _reason(name: str, entry: Entry, real: bool, scheme: BlockScheme, exclude: Sequence[str]) -> str | None:
    """Why a tensor is left as it is, or None."""
    if not real:
        return "no reals"
    if len(entry.shape) != 2 or not math.prod(entry.shape):
        return "no matrix"
    if not name.endswith(_SUFFIX):
        return f"its name does not end in {_SUFFIX}"
    if any(matches(pattern, name) for pattern in exclude):
        return "excluded"
    k, unit = entry.shape[1], scheme.block_size or 32 // scheme.bits
    return f"rows of {k} values do not divide into {unit}" if k % unit else None


class _Work:
    """Quantizes a weight when the first of its tensors is written, and forgets it with the last."""

    def __init__(self, scheme: BlockScheme, algorithm: str, threads: int) -> None:
        self._scheme, self._algorithm, self._threads = scheme, algorithm, threads
        self._blocks: BlockWeights | None = None
        self.done: dict[str, CheckpointTensor] = {}

    def tensors(self, weight: StoredWeight) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...], Read]]:
        n, k = weight.shape
        packed = np.dtype("<i4"), (n, k * self._scheme.bits // 32)
        yield (f"{weight.name}_packed", *packed, partial(self._packed, weight))
        yield (f"{weight.name}_scale", np.dtype("<f4"), (n, self._scheme.blocks(k)), self._scales)
        yield (f"{weight.name}_shape", np.dtype("<i8"), (2,), partial(np.array, (n, k)))

    def _packed(self, weight: StoredWeight) -> NDArray[np.int32]:
        array = weight.read()
        try:
            blocks = quantize_blocks(array, self._scheme, self._algorithm, threads=self._threads or None)
        except DataError as problem:
            raise DataError(f"tensor {weight.name!r}: {problem.message or problem}", hint=problem.hint) from None
        signal, noise = float(np.vdot(array, array)), blocks.error(array)
        self._blocks = blocks
        self.done[weight.name] = CheckpointTensor(
            weight.name,
            weight.shape,
            f"int{self._scheme.bits}",
            blocks.nbytes + 16,
            decibels(signal, noise),
        )
        return blocks.data.reshape(len(array), -1).view("<i4")

    def _scales(self) -> NDArray[np.float32]:
        assert self._blocks is not None  # they were packed just before
        scales, self._blocks = self._blocks.scales, None
        return scales


def _quantization_config(scheme: BlockScheme, ignored: Sequence[str]) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if scheme.block_size else "channel",
        "group_size": scheme.block_size or None,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": sorted(ignored),
    }
