"""Checkpoints in the safetensors format, read and written without the package of that name.

    length of the header u64    header: JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}    data

A header is checked against the size of the file before anything is believed, and tensors are mapped and looked at one
at a time: a checkpoint of any size takes no more memory than its largest tensor. The format is little-endian.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ConfigError, ModelError, closest
from requant.files import missing_file, replacing
from requant.stored import StoredWeight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

#: Bytes of an element, and numpy's dtype; bfloat16 as its bits.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_REALS = frozenset({"F16", "BF16", "F32", "F64"})
_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name != "BF16"}
_MAX_HEADER = 100_000_000  # as the format's own readers have it
_MAX_AXES = 64
_MAX_BYTES = 2**63  # what an array may stride over
_LENGTH = 8
_METADATA = "__metadata__"
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: element type in the format's words, shape, and where its bytes begin in which file."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize

    def array(self) -> NDArray[Any]:
        """Its elements, mapped; those of bfloat16 as their bits."""
        dtype = _DTYPES[self.dtype]
        if not math.prod(self.shape):
            return np.zeros(self.shape, dtype)
        return np.asarray(np.memmap(self.path, dtype, "r", offset=self.offset, shape=self.shape))


class Checkpoint:
    """A checkpoint in one file, or in the files that an index lists; all heads are checked when it is opened.

    Attributes:
        path: what was opened, a ``.safetensors`` file or a ``.safetensors.index.json``.
        files: the files that it lies in.
        entries: each tensor by name.
        metadata: the strings that the file carries beside the tensors.

    Raises:
        MissingFileError: a file does not exist.
        ModelError: a file is not of this format, or damaged: what is wrong is told.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.entries: dict[str, Entry] = {}
        if self.path.name.endswith(_INDEX):
            listed = _read_index(self.path)
            self.files = tuple(self.path.parent / name for name in dict.fromkeys(listed.values()))
            for file in self.files:
                self._take(file, {name for name, where in listed.items() if where == file.name})
        else:
            self.files = (self.path,)
            self._take(self.path, None)

    def _take(self, path: Path, listed: set[str] | None) -> None:
        entries, metadata = _read_header(path)
        if listed is not None and (missing := sorted(listed - set(entries))):
            raise ModelError(f"{path} does not hold tensor {missing[0]!r}, which {self.path.name} says it does")
        self.entries |= {name: entry for name, entry in entries.items() if listed is None or name in listed}
        self.metadata |= metadata

    def weights(self) -> tuple[StoredWeight, ...]:
        """The tensors of reals."""
        return tuple(
            StoredWeight(name, entry.shape, partial(self.read, name))
            for name, entry in self.entries.items()
            if entry.dtype in _REALS
        )

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor of reals in float32.

        Raises:
            ConfigError: there is no such tensor, or it does not hold reals.
        """
        if name not in self.entries:
            raise ConfigError(f"{self.path} has no tensor {name!r}{closest(name, self.entries)}")
        entry = self.entries[name]
        if entry.dtype not in _REALS:
            raise ConfigError(f"tensor {name!r} of {self.path} holds {entry.dtype}, expected reals")
        array = entry.array()
        if entry.dtype == "BF16":
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, which is told with its place
            return np.asarray(array, np.float32, order="C")


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor."""
    listed = _json(_bytes_of(path, _MAX_HEADER), str(path)).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{path} has no weight_map", hint="give a .safetensors file or its index")
    for name, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{path} puts tensor {name[:80]!r} into {str(file)[:80]!r}, expected a .safetensors file beside it"
            )
    return listed


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if size < _LENGTH or length > min(size - _LENGTH, _MAX_HEADER):
                raise ModelError(
                    f"{path} is not a safetensors file: its header would have {length} bytes, the file has {size}",
                    hint="check the download; a pointer of git-lfs is no checkpoint",
                )
            header = _json(file.read(length), str(path))
    except FileNotFoundError:
        raise missing_file("checkpoint", path) from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror}") from problem
    metadata = header.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path} has metadata that are not strings")
    spans = {name: _span(path, name, fields) for name, fields in header.items()}
    _check_spans(path, {name: span for name, (*_, span) in spans.items()}, size - _LENGTH - length)
    start = _LENGTH + length
    return {
        name: Entry(dtype, shape, path, start + begin) for name, (dtype, shape, (begin, _)) in spans.items()
    }, metadata


def _span(path: Path, name: str, fields: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    what = f"{path}: tensor {name[:80]!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, span = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelError(f"{what} has the type {str(dtype)[:40]!r}; read are {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_AXES:
        raise ModelError(f"{what} has a shape that is not a list of sizes")
    if not _are_sizes(span) or len(span) != 2:
        raise ModelError(f"{what} has offsets that are not two positions")
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if math.prod(filter(None, shape)) * _DTYPES[dtype].itemsize >= _MAX_BYTES:  # also where a 0 makes it take none
        raise ModelError(f"{what} has the shape {shape}, which no array can have")
    if span[1] - span[0] != needed:
        raise ModelError(f"{what} of shape {shape} and type {dtype} takes {needed} bytes, its offsets are {span}")
    return dtype, tuple(shape), (span[0], span[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_spans(path: Path, spans: Mapping[str, tuple[int, int]], size: int) -> None:
    """The tensors fill the data without holes, and share none of it."""
    ordered = sorted((begin, end, name) for name, (begin, end) in spans.items())
    for (_, end, name), (begin, _, other) in pairwise([(0, 0, "the beginning"), *ordered]):
        if begin != end:
            relation = "share bytes" if begin < end else "have a hole between them"
            raise ModelError(f"{path} is damaged: {name[:80]!r} and {other[:80]!r} {relation}")
    end = ordered[-1][1] if ordered else 0
    if end != size:
        raise ModelError(f"{path} is damaged: its tensors take {end} bytes, it has {size} of data")


def _bytes_of(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise missing_file("checkpoint", path) from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror}") from problem
    if len(data) > most:
        raise ModelError(f"{path} has more than {most} bytes, which no index has")
    return data


def _json(data: bytes, origin: str) -> dict[str, Any]:
    """The object that ``data`` spell; no name may stand in one twice, and all text can be written again."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in it twice")
        for text in (*found, *found.values()):
            if isinstance(text, str):
                text.encode()  # half of a surrogate pair, which JSON can escape, raises
        return found

    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{origin} has a header that cannot be read: {str(problem)[:100]}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{origin} has a header that is no JSON object")
    return header


def write_checkpoint(
    path: str | Path,
    tensors: Iterable[tuple[str, np.dtype[Any] | str, tuple[int, ...], Callable[[], NDArray[Any]]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, one tensor after another, whole or not at all.

    Args:
        path: where to.
        tensors: name, dtype (numpy's, or the format's word for it, as ``BF16``, whose arrays are bits), shape, and what
            gives the array, which is called when its turn has come.
        metadata: strings to carry beside the tensors.

    Raises:
        ModelError: two tensors have one name, or one has the name that the format keeps for itself.
        OutputError: the file cannot be written; what was there before is untouched.
    """
    listed = [(n, d if isinstance(d, str) else _NAMES[d], shape, read) for n, d, shape, read in tensors]
    header: dict[str, Any] = {}
    end = 0
    for name, dtype, shape, _ in listed:
        if name in header or name == _METADATA:
            problem = "stand in it twice" if name in header else "be called so, which is the name of the metadata"
            raise ModelError(f"{path} cannot be written: tensor {name[:80]!r} would {problem}")
        begin, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    if metadata:
        header = {_METADATA: dict(metadata), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    with replacing(path) as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for _, dtype, shape, read in listed:
            array = np.asarray(read(), _DTYPES[dtype], order="C")
            assert array.shape == shape  # what the header says
            file.write(array.reshape(-1).view(np.uint8).data)
