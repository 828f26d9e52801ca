"""GGUF files as arrays in formats that other tools read."""

from __future__ import annotations

import math
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import thread_count
from requant.checkpoint.safetensors import write_checkpoint
from requant.errors import ConfigError, ModelError
from requant.files import check_outputs, replacing
from requant.gguf.reading import GgufFile
from requant.gguf.report import GgufReport, GgufTensor
from requant.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from requant.types import Progress

_SUFFIXES = (".npz", ".safetensors")
_LONGEST_MEMBER = 65535  # bytes of a name


def unpack_gguf(
    source: str | Path, output: str | Path, *, threads: int = 0, progress: Progress | None = None
) -> GgufReport:
    """Write the tensors of a GGUF file, dequantized to float32, as ``.npz`` or ``.safetensors``.

    Args:
        source: the GGUF file.
        output: the file to write; its suffix says which format.
        threads: CPU threads; 0 uses all cores.
        progress: called after each tensor with those done and their number.

    Raises:
        ConfigError: another suffix.
        MissingFileError: there is no such file.
        ModelError: it is not GGUF, damaged, or has a tensor of a type that is not read, or of a name that the output
            cannot hold.
        OutputError: the output cannot be written.
    """
    watch = Stopwatch()
    kind = Path(output).suffix.lower()
    if kind not in _SUFFIXES:
        raise ConfigError(f"{output} ends in {kind or 'nothing'!r}, expected {' or '.join(_SUFFIXES)}")
    threads = thread_count(threads)
    check_outputs([output], [source])
    file = GgufFile(source)
    if kind == ".npz":
        _check_members(file)
    done = 0

    def read(name: str) -> NDArray[Any]:
        nonlocal done
        array = file.read(name, threads=threads)
        done += 1
        if progress is not None:
            progress(done, len(file.tensors))
        return array

    specs = [(name, file.numpy_dtype(name), entry.shape) for name, entry in file.tensors.items()]
    if kind == ".npz":
        _write_npz(output, [name for name, *_ in specs], read)
    else:
        write_checkpoint(output, [(n, t, shape, partial(read, n)) for n, t, shape in specs], {"format": "pt"})
    tensors = tuple(
        GgufTensor(entry.name, entry.shape, entry.dtype, entry.nbytes, 4 * math.prod(entry.shape), None)
        for entry in file.tensors.values()
    )
    size = Path(output).stat().st_size
    return GgufReport(str(source), str(output), "float32", tensors, size, None, (), watch.elapsed)


def _check_members(file: GgufFile) -> None:
    """Refuse names that an archive would cut short."""
    for name in file.tensors:
        if "\0" in name or len(f"{name}.npy".encode()) > _LONGEST_MEMBER:
            raise ModelError(
                f"{file.path}: tensor {name[:80]!r} has a name that an .npz archive cannot hold",
                hint="let the name of the output end in .safetensors",
            )


def _write_npz(output: str | Path, names: Sequence[str], read: Callable[[str], NDArray[Any]]) -> None:
    """As ``numpy.savez``, one array in memory at a time."""
    with replacing(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, read(name), allow_pickle=False)
