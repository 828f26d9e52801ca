"""The head of a GGUF file, read with care.

    magic "GGUF"  version u32  tensors u64  pairs u64
    pairs:        key string   type u32     value
    tensors:      name string  axes u32     sizes u64, the last axis first    type u32    offset u64
    data:         from the next multiple of the alignment on

Counts, lengths and sizes are believed only as far as the file has bytes for them, before anything is made of them: a
hostile file costs no more memory than its own size.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import ModelError
from requant.files import missing_file

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Number in files, name, values and bytes of a block of types that are known but have no blocks here.
FOREIGN_TYPES: Mapping[int, tuple[str, int, int]] = {
    9: ("q8_1", 32, 40),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
}
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_AXES = 4
_MAX_VALUES = 1 << 60  # eight bytes of each are what an array may stride over
_MAX_NAME = 1 << 16
_LEAST_PAIR = 8 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 4 + 8
_MAX_NESTING = 4
#: By their number: the struct codes of scalars.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """An array among the metadata, such as a vocabulary, which is passed over: how many items it has."""

    length: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a file: name, shape (rows last), type, where its bytes begin in the file, and how many they are."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data: version, metadata and tensors, in the file's order."""

    version: int
    metadata: Mapping[str, str | int | float | bool | ArrayValue]
    tensors: tuple[TensorEntry, ...]


def read_header(path: str | Path, types: Mapping[int, tuple[str, int, int]]) -> Header:
    """Read and check the head of a file.

    Args:
        path: the file.
        types: of each type by its number, besides :data:`FOREIGN_TYPES`: name, values and bytes of a block.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is not GGUF of version 2 or 3 in little-endian order, or damaged: what is wrong is told.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            if size < len(_MAGIC):
                raise ModelError(f"{path} is no GGUF file: it has {size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, str(path)).header({**FOREIGN_TYPES, **types})
    except FileNotFoundError:
        raise missing_file("GGUF file", path) from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror}") from problem


class _Reader:
    """A position in the bytes of a file; nothing is read beyond its end."""

    def __init__(self, data: mmap.mmap, origin: str) -> None:
        self._data, self._origin, self._at, self._size = data, origin, 0, len(data)

    def header(self, types: Mapping[int, tuple[str, int, int]]) -> Header:
        if self._take(4) != _MAGIC:
            raise self._damaged("it does not begin with GGUF", hint="give a .gguf file")
        version = self._integer("I")
        if version & 0xFFFF == 0:
            raise self._damaged("its numbers are big-endian", hint="convert it to little-endian order")
        if version not in _VERSIONS:
            raise self._damaged(f"it has version {version}, expected 2 or 3")
        tensors = self._count("tensors", _LEAST_TENSOR)
        pairs = self._count("metadata pairs", _LEAST_PAIR)
        metadata: dict[str, str | int | float | bool | ArrayValue] = {}
        for _ in range(pairs):
            key = self._string("a metadata key", _MAX_NAME)
            if key in metadata:
                raise self._damaged(f"metadata key {key[:80]!r} stands in it twice")
            metadata[key] = self._value(self._integer("I"), key, _MAX_NESTING)
        alignment = self._alignment(metadata)
        entries = [self._tensor(types) for _ in range(tensors)]
        start = -(-self._at // alignment) * alignment
        return Header(version, metadata, self._placed(entries, start, alignment))

    def _alignment(self, metadata: Mapping[str, object]) -> int:
        value = metadata.get("general.alignment", _ALIGNMENT)
        power = isinstance(value, int) and not isinstance(value, bool) and value > 0 and not value & (value - 1)
        if not isinstance(value, int) or not power or value > _MAX_ALIGNMENT:
            raise self._damaged(f"its alignment is {value!r}, expected a power of two up to {_MAX_ALIGNMENT}")
        return value

    def _tensor(self, types: Mapping[int, tuple[str, int, int]]) -> TensorEntry:
        name = self._string("a tensor name", _MAX_NAME)
        what = f"tensor {name[:80]!r}"
        axes = self._integer("I")
        if axes > _MAX_AXES:
            raise self._damaged(f"{what} has {axes} axes, expected at most {_MAX_AXES}")
        sizes = [self._integer("Q") for _ in range(axes)]
        if math.prod(filter(None, sizes)) >= _MAX_VALUES:  # also where a 0 makes it take no bytes
            raise self._damaged(f"{what} has the shape {sizes[::-1]}, which no array can have")
        number = self._integer("I")
        if number not in types:
            raise self._damaged(f"{what} has the unknown type {number}")
        dtype, block_size, block_bytes = types[number]
        row = sizes[0] if sizes else 1
        if row % block_size:
            raise self._damaged(
                f"{what} has rows of {row} values, which do not divide into {dtype} blocks of {block_size}"
            )
        nbytes = math.prod(sizes) // block_size * block_bytes
        return TensorEntry(name, tuple(reversed(sizes)), dtype, self._integer("Q"), nbytes)

    def _placed(self, entries: list[TensorEntry], start: int, alignment: int) -> tuple[TensorEntry, ...]:
        """The entries with offsets from the beginning of the file, each of bytes of its own."""
        placed: dict[str, TensorEntry] = {}
        for entry in entries:
            what = f"tensor {entry.name[:80]!r}"
            if entry.name in placed:
                raise self._damaged(f"{what} stands in it twice")
            if entry.offset % alignment:
                raise self._damaged(f"{what} begins at {entry.offset}, which is no multiple of {alignment}")
            if start + entry.offset + entry.nbytes > self._size:
                needed = f"{entry.nbytes} bytes at {start + entry.offset}"
                raise self._damaged(f"{what} of shape {list(entry.shape)} needs {needed}, the file has {self._size}")
            placed[entry.name] = TensorEntry(entry.name, entry.shape, entry.dtype, start + entry.offset, entry.nbytes)
        spans = sorted((e.offset, e.offset + e.nbytes, e.name) for e in placed.values() if e.nbytes)
        for (_, end, name), (begin, _, other) in pairwise(spans):
            if begin < end:
                raise self._damaged(f"tensors {name[:80]!r} and {other[:80]!r} share bytes")
        return tuple(placed.values())

    def _value(self, kind: int, key: str, nesting: int) -> str | int | float | bool | ArrayValue:
        if kind == _STRING:
            return self._string(f"the value of {key[:80]!r}", self._size)
        if kind != _ARRAY:
            return self._scalar(self._code(kind, key))
        if not nesting:
            raise self._damaged(f"metadata {key[:80]!r} nests arrays too deeply")
        inner = self._integer("I")
        if inner == _STRING:
            length = self._count(f"strings of {key[:80]!r}", 8)
            for _ in range(length):
                self._skip(self._integer("Q"), f"a string of {key[:80]!r}")
        elif inner == _ARRAY:
            length = self._count(f"arrays of {key[:80]!r}", 4 + 8)
            for _ in range(length):
                self._value(_ARRAY, key, nesting - 1)
        else:
            width = struct.calcsize(self._code(inner, key))
            length = self._count(f"items of {key[:80]!r}", width)
            self._skip(length * width, f"items of {key[:80]!r}")
        return ArrayValue(length)

    def _code(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise self._damaged(f"metadata {key[:80]!r} has the unknown type {kind}")
        return _SCALARS[kind]

    def _scalar(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack("<" + code, self._take(struct.calcsize(code)))[0]
        return value

    def _integer(self, code: str) -> int:
        return int(self._scalar(code))

    def _count(self, what: str, least: int) -> int:
        """A number of things that take at least so many bytes each."""
        count = self._integer("Q")
        if count > (self._size - self._at) // least:
            raise self._damaged(f"it claims {count} {what}, and has {self._size - self._at} bytes left")
        return count

    def _string(self, what: str, longest: int) -> str:
        length = self._integer("Q")
        if length > longest:
            raise self._damaged(f"{what} of {length} bytes is too long")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not UTF-8") from None

    def _take(self, length: int) -> bytes:
        start = self._at
        self._skip(length, "the head")
        return self._data[start : self._at]

    def _skip(self, length: int, what: str) -> None:
        if length > self._size - self._at:
            raise self._damaged(f"it ends within {what}: {length} bytes are needed at {self._at} of {self._size}")
        self._at += length

    def _damaged(self, problem: str, *, hint: str = "the file is damaged; make or download it again") -> ModelError:
        return ModelError(f"{self._origin} is not a readable GGUF file: {problem}", hint=hint)
