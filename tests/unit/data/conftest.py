"""The forms data comes in: one table, so that every test of forms covers all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from requant.data import InputSpec

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
Form = Callable[[Path, Arrays, tuple[InputSpec, ...]], object]


def save_npz(path: Path, arrays: Arrays) -> Path:
    savez: Any = np.savez
    savez(path, **arrays)
    return path


def save_test_data(folder: Path, arrays: Arrays, inputs: tuple[InputSpec, ...]) -> None:
    import onnx

    folder.mkdir(parents=True)
    for i, spec in enumerate(inputs):
        tensor = onnx.numpy_helper.from_array(np.array(arrays[spec.name]), spec.name)
        (folder / f"input_{i}.pb").write_bytes(tensor.SerializeToString())


def pieces(arrays: Arrays, sizes: tuple[int, ...] = (1, 3, 2)) -> list[dict[str, Any]]:
    """The arrays cut along the first axis into pieces of uneven size; scalars stand in each."""
    count = max(len(x) for x in arrays.values() if x.ndim)
    cuts, start, turn = [], 0, 0
    while start < count:
        stop = start + sizes[turn % len(sizes)]
        cuts.append({name: x[start:stop] if x.ndim else x for name, x in arrays.items()})
        start, turn = stop, turn + 1
    return cuts


class Reader:
    """onnxruntime's CalibrationDataReader, as a duck."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds, self._next = feeds, iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._next, None)

    def rewind(self) -> None:
        self._next = iter(self._feeds)


class Loader:
    """A DataLoader: another iterator on each pass, lists of tensors, one buffer filled again and again."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[list[Any]]:
        for item in self._items:
            buffers = [np.array(x) for x in item.values()]
            yield [Tensor(x) for x in buffers]
            for buffer in buffers:
                buffer.fill(99)


class Tensor:
    """A tensor of another library: not an array, but convertible."""

    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self._data = data

    def detach(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._data


class DlpackOnly:
    """A tensor that speaks DLPack only."""

    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self._data = data

    def __dlpack__(self, **keywords: Any) -> Any:
        return self._data.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()


def _folder_of_npz(path: Path, arrays: Arrays, inputs: tuple[InputSpec, ...]) -> Path:
    for i, piece in enumerate(pieces(arrays)):
        save_npz(path / f"part{i}.npz", piece)  # part2 comes before part10
    return path


def _test_data_sets(path: Path, arrays: Arrays, inputs: tuple[InputSpec, ...]) -> Path:
    for i, piece in enumerate(pieces(arrays)):
        save_test_data(path / f"test_data_set_{i}", piece, inputs)
    return path


def _npz_compressed(path: Path, arrays: Arrays, inputs: tuple[InputSpec, ...]) -> Path:
    savez: Any = np.savez_compressed
    savez(path / "data.npz", **arrays)
    return path / "data.npz"


def _stacked(path: Path, arrays: Arrays, inputs: tuple[InputSpec, ...]) -> object:
    return {name: x[:, np.newaxis] if x.ndim else x for name, x in arrays.items()}


def _in_order(arrays: Arrays, inputs: tuple[InputSpec, ...]) -> tuple[Any, ...]:
    return tuple(arrays[spec.name] for spec in inputs)


FORMS: dict[str, Form] = {
    "dict": lambda path, arrays, inputs: dict(arrays),
    "stacked dict": _stacked,
    "dict of tensors": lambda path, arrays, inputs: {k: Tensor(x) for k, x in arrays.items()},
    "dict of dlpack": lambda path, arrays, inputs: {k: DlpackOnly(np.array(x)) for k, x in arrays.items()},
    "npz": lambda path, arrays, inputs: save_npz(path / "data.npz", arrays),
    "npz by str": lambda path, arrays, inputs: str(save_npz(path / "data.npz", arrays)),
    "compressed npz": _npz_compressed,
    "stacked npz": lambda path, arrays, inputs: save_npz(path / "s.npz", _stacked(path, arrays, inputs)),  # type: ignore[arg-type]
    "folder of npz": _folder_of_npz,
    "list of paths": lambda path, arrays, inputs: [
        save_npz(path / f"{i}.npz", piece) for i, piece in enumerate(pieces(arrays))
    ],
    "test data": _test_data_sets,
    "list of dicts": lambda path, arrays, inputs: pieces(arrays),
    "list of tuples": lambda path, arrays, inputs: [_in_order(piece, inputs) for piece in pieces(arrays)],
    "generator": lambda path, arrays, inputs: (piece for piece in pieces(arrays)),
    "loader": lambda path, arrays, inputs: Loader(
        [{s.name: piece[s.name] for s in inputs} for piece in pieces(arrays)]
    ),
    "reader": lambda path, arrays, inputs: Reader(pieces(arrays)),
    "fortran dict": lambda path, arrays, inputs: {k: np.array(x, order="F") for k, x in arrays.items()},
    "fortran npz": lambda path, arrays, inputs: save_npz(
        path / "f.npz", {k: np.array(x, order="F") for k, x in arrays.items()}
    ),
    "byte-swapped npz": lambda path, arrays, inputs: save_npz(
        path / "b.npz", {k: x.astype(x.dtype.newbyteorder("S")) for k, x in arrays.items()}
    ),
}


def _npy(path: Path, array: np.ndarray[Any, Any]) -> Path:
    np.save(path, array)
    return path


def _folder_of_npy(path: Path, arrays: Arrays, inputs: tuple[InputSpec, ...]) -> Path:
    for i, piece in enumerate(pieces(arrays)):
        _npy(path / f"x{i}.npy", piece[inputs[0].name])
    return path


SINGLE_FORMS: dict[str, Form] = {
    "array": lambda path, arrays, inputs: arrays[inputs[0].name],
    "tensor": lambda path, arrays, inputs: Tensor(np.asarray(arrays[inputs[0].name])),
    "list of arrays": lambda path, arrays, inputs: [piece[inputs[0].name] for piece in pieces(arrays)],
    "npy": lambda path, arrays, inputs: _npy(path / "x.npy", arrays[inputs[0].name]),
    "fortran npy": lambda path, arrays, inputs: _npy(path / "f.npy", np.asfortranarray(arrays[inputs[0].name])),
    "folder of npy": _folder_of_npy,
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture(params=FORMS | SINGLE_FORMS)
def single_form(request: pytest.FixtureRequest) -> Form:
    return (FORMS | SINGLE_FORMS)[request.param]
