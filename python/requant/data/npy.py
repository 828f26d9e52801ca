"""`.npy` files and `.npz` members, read one row at a time and never unpickled.

A header is untrusted: what it declares is compared with the bytes that are there before anything is allocated.
Format: numpy.lib.format, versions 1 to 3.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy_format

from requant.data.spec import describe, mismatch
from requant.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from requant.data.convert import Array

# Deflate reaches 1032:1 on zeros only; small members of zeros are honest and cheap.
MAX_RATIO = 1000
RATIO_APPLIES_ABOVE = 64 << 20

_READ_ERRORS = (
    ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, EOFError, OSError, RuntimeError,
    NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class StoredArray:
    """An array in a file: ``x[i]`` reads one row; rows in ascending order read the file once, front to back.

    Args:
        file: Readable and seekable, at the start of the npy header.
        size: Bytes of header and data together.
        where: Name for messages.
        max_bytes: Largest row, or whole array where rows are not contiguous, that is read.

    Raises:
        DataError: the header is broken, declares what the file does not hold, or declares Python objects.
    """

    def __init__(self, file: IO[bytes], size: int, where: str, max_bytes: int) -> None:
        self._file, self._where, self._max_bytes = file, where, max_bytes
        with reading(where):
            version = npy_format.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"npy format version {version} is unknown")
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            self.shape, self._fortran, self.dtype = read(file)
            self._start = self._position = file.tell()
        if self.dtype.hasobject:
            raise DataError(
                f"{where} holds Python objects, which would have to be unpickled",
                hint="save one numeric array for each input",
            )
        if min(self.shape, default=0) < 0:
            raise DataError(f"{where} declares a negative dimension: {self.shape}")
        self._fortran = self._fortran and len(self.shape) > 1
        self._loaded: Array | None = None
        declared = math.prod(self.shape) * self.dtype.itemsize
        if declared > size - self._start:
            raise mismatch(
                f"{where} is truncated, or its header is wrong",
                f"{declared:,} bytes for {describe(self.dtype, self.shape)}",
                f"{max(size - self._start, 0):,} bytes",
                "write the file again with numpy.save or numpy.savez",
            )

    def __getitem__(self, index: int) -> Array:
        """Row ``index`` along the first axis, a new array."""
        if self._fortran:
            return np.asarray(self.load()[index])
        shape = self.shape[1:]
        step = math.prod(shape) * self.dtype.itemsize
        return self._read(self._start + index * step, shape)

    def load(self) -> Array:
        """The whole array."""
        if self._loaded is None:
            shape = self.shape[::-1] if self._fortran else self.shape
            data = self._read(self._start, shape)
            self._loaded = data.T if self._fortran else data
        return self._loaded

    def _read(self, offset: int, shape: tuple[int, ...]) -> Array:
        wanted = math.prod(shape) * self.dtype.itemsize
        if wanted > self._max_bytes:
            why = "in Fortran order it must be read whole; save numpy.ascontiguousarray(x), or" if self._fortran else ""
            raise mismatch(
                f"{self._where} is too big to read at once",
                f"at most {self._max_bytes:,} bytes",
                f"{wanted:,} bytes for {describe(self.dtype, shape)}",
                f"{why} raise DataOptions(max_bytes=...)".strip(),
            )
        data = np.empty(shape, self.dtype)
        with reading(self._where):
            if offset != self._position:
                self._file.seek(offset)
            left = memoryview(data.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            while left:
                got = self._file.readinto(left)  # type: ignore[attr-defined]
                if not got:
                    raise EOFError(f"{len(left):,} bytes are missing")
                left = left[got:]
            self._position = offset + wanted
        return data


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Errors of a damaged file as DataError, with the name of the file."""
    try:
        yield
    except DataError:
        raise
    except _READ_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{where} cannot be read: {reason}", hint="the file is damaged or of another kind") from error


@contextmanager
def open_npy(path: Path, max_bytes: int) -> Iterator[StoredArray]:
    """The array of an `.npy` file.

    Raises:
        DataError: the file is damaged.
    """
    with _opened(path) as file:
        yield StoredArray(file, path.stat().st_size, path.name, max_bytes)


@contextmanager
def open_npz(path: Path, max_bytes: int) -> Iterator[dict[str, StoredArray]]:
    """The arrays of an `.npz` file by name.

    Raises:
        DataError: the file is damaged, or expands more than any honest array does.
    """
    with _opened(path) as file:
        with reading(path.name):
            archive = zipfile.ZipFile(file)
        yield {
            info.filename.removesuffix(".npy"): _member(archive, info, path.name, max_bytes)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }


def _opened(path: Path) -> IO[bytes]:
    with reading(path.name):
        return path.open("rb")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_name: str, max_bytes: int) -> StoredArray:
    where = f"{info.filename.removesuffix('.npy')!r} of {file_name}"
    if info.file_size > max(RATIO_APPLIES_ABOVE, MAX_RATIO * info.compress_size):
        raise DataError(
            f"{where} expands {info.compress_size:,} bytes to {info.file_size:,}, more than {MAX_RATIO}:1",
            hint="save it with numpy.savez, uncompressed, if that is meant",
        )
    with reading(where):
        file = archive.open(info)
    return StoredArray(file, info.file_size, where, max_bytes)
