"""Tensors in files: mapped while someone looks at them, and in memory never.

A mapping lasts as long as the array that was made of it, so of a model that is larger than memory only the tensors in
use count. What is computed for such a model goes to a scratch file and is mapped from there in turn.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from requant.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

#: Smaller tensors are not worth a page of their own.
LEAST = mmap.PAGESIZE
_CHUNK = 1 << 22


class _Mapping(mmap.mmap):
    """A mapping that knows where it comes from, so that what lies in a file need not be written again."""

    path: Path
    start: int
    owner: object


class MappedTensor(ir.ExternalTensor):
    """A tensor in a range of a file.

    Its location is given from the root of the file system, so that one folder serves tensors of any files.

    Args:
        path: An absolute path without links.
        offset: Where the tensor begins.
        dtype: Its element type; types of less than a byte are packed.
        shape: Its shape.
        name: What the tensor is called.
        owner: What keeps the file, where it is a temporary one.
    """

    __slots__ = ("_file", "_stamp", "owner")

    def __init__(
        self, path: Path, offset: int, dtype: ir.DataType, shape: tuple[int, ...], name: str, *, owner: object = None
    ) -> None:
        length = -(-math.prod(shape) * dtype.bitwidth // 8)
        location = path.relative_to(path.anchor).as_posix()
        super().__init__(location, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=path.anchor)
        self._file = path
        self._stamp = None if owner is not None else _stamp(path)
        self.owner = owner

    def view(self) -> memoryview:
        """Its bytes, mapped.

        Raises:
            ModelError: The file is gone, or not what it was.
        """
        length, start = self.length or 0, self.offset or 0
        if not length:
            return memoryview(b"")
        try:
            with self._file.open("rb") as file:
                if self._stamp is not None and _stamp(self._file) != self._stamp:
                    raise ModelError(f"{self._file} was changed while it was read", hint="run it again")
                ahead = start % mmap.ALLOCATIONGRANULARITY
                raw = _Mapping(file.fileno(), length + ahead, access=mmap.ACCESS_READ, offset=start - ahead)
        except OSError as problem:
            raise ModelError(f"{self._file} cannot be read: {problem.strerror}") from problem
        raw.path, raw.start, raw.owner = self._file, start - ahead, self.owner
        return memoryview(raw)[ahead:]

    def numpy(self) -> NDArray[Any]:
        """Its values: a read-only view of the file, except for types of less than a byte, which are unpacked."""
        shape = tuple(self.shape.numpy())
        if self.dtype.bitwidth < 8:
            packed = onnx.TensorProto(data_type=self.dtype.value, dims=shape, raw_data=bytes(self.view()))
            return ir.TensorProtoTensor(packed).numpy()
        dtype = self.dtype.numpy()
        values = np.frombuffer(self.view(), dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype)
        return values.reshape(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy()
        return array if dtype is None and not copy else np.array(array, dtype, copy=copy)

    def tobytes(self) -> bytes:
        """A copy of its bytes."""
        return bytes(self.view())

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes, a few megabytes at a time, each mapped only while it is used."""
        yield from _chunks(self.view())

    def tofile(self, file: Any) -> None:
        """Write its bytes to an open file."""
        for chunk in self.chunks():
            file.write(chunk)


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Scratch:
    """A temporary file that tensors are put into; it goes when nothing refers to it any more."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="requant-")).resolve()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = folder / "tensors"
        self._path.touch()
        self._lock = threading.Lock()

    def put(self, data: memoryview, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> MappedTensor:
        """A tensor in the file, of its bytes; types of less than a byte are packed.

        Raises:
            ModelError: The disk is full.
        """
        try:
            with self._lock, self._path.open("ab") as file:
                file.write(b"\0" * (-file.tell() % mmap.ALLOCATIONGRANULARITY))
                offset = file.tell()
                file.write(data)
        except OSError as problem:
            raise ModelError(
                f"{self._path.parent} cannot take the tensors of a large model: {problem.strerror}",
                hint="set TMPDIR to a folder with room for the quantized model",
            ) from problem
        # The file grows meanwhile, which changes its size and time: its owner vouches for it.
        return MappedTensor(self._path, offset, dtype, shape, name, owner=self)


def tensor_of(array: NDArray[Any], name: str, scratch: Scratch | None) -> ir.TensorProtocol:
    """A tensor of ``array``: in its file where it lies in one, in ``scratch`` where it is large, else in memory."""
    found = _source(array)
    if found is not None:
        raw, offset = found
        return MappedTensor(raw.path, offset, ir.DataType.from_numpy(array.dtype), array.shape, name, owner=raw.owner)
    tensor = ir.Tensor(array, name=name)
    if scratch is None or tensor.nbytes < LEAST:
        return tensor
    return scratch.put(_bytes(tensor), tensor.dtype, array.shape, name)


def changed(
    tensor: ir.TensorProtocol,
    change: Callable[[NDArray[Any]], NDArray[Any]],
    dtype: ir.DataType,
    *,
    shape: ir.Shape | None = None,
) -> ir.TensorProtocol:
    """What ``change`` makes of ``tensor``, in the same shape or ``shape``; of one in a file when it is looked at."""

    def compute() -> ir.TensorProtocol:
        array = tensor.numpy()
        made = ir.tensor(change(array), dtype, name=tensor.name)
        forget(array)
        return made

    if not isinstance(tensor, MappedTensor):
        return compute()
    return ir.LazyTensor(compute, dtype, shape or tensor.shape, name=tensor.name)


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def fingerprint(array: NDArray[Any]) -> tuple[object, ...]:
    """What two arrays of the same values, shape and type have in common; of one in a file its place."""
    found = _source(array)
    if found is not None:
        raw, offset = found
        return array.dtype, array.shape, raw.path, offset
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return array.dtype, array.shape, flat.tobytes() if flat.size < LEAST else hashlib.sha256(flat.data).digest()


def forget(array: NDArray[Any]) -> None:
    """Give back the memory that ``array`` takes where it is mapped from a file, until it is looked at again."""
    raw = _mapping(array)
    if raw is not None and hasattr(mmap, "MADV_DONTNEED"):
        raw.madvise(mmap.MADV_DONTNEED)


def _mapping(array: NDArray[Any]) -> _Mapping | None:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    raw = base.obj if isinstance(base, memoryview) else base
    return raw if isinstance(raw, _Mapping) else None


def _source(array: NDArray[Any]) -> tuple[_Mapping, int] | None:
    """The mapping that all of ``array`` is a plain view of, and where in the file it begins; None if it is not."""
    raw = _mapping(array)
    if raw is None or not array.flags.c_contiguous or array.dtype.byteorder == ">":
        return None
    origin = np.frombuffer(raw, np.uint8).ctypes.data
    return raw, raw.start + array.ctypes.data - origin
