"""Every error, word for word: expected, got, where, and the remedy."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from requant.data import DataOptions, ImageOptions, InputSpec, open_data
from requant.data.opening import FORMS
from requant.errors import ConfigError, DataError, MissingFileError, RequantError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = InputSpec("input", F32, ("batch", 3, 8, 6))
MASK = InputSpec("mask", I64, ("batch", "t"))


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def poisoned(value: float) -> np.ndarray[Any, Any]:
    x = np.random.default_rng(0).normal(size=(9, 3, 8, 6)).astype(np.float32)
    x[5, 1, 2, 3] = x[5, 2, 2, 3] = value
    return x


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "calib.npz", **arrays)
    return path / "calib.npz"


def truncated(path: Path) -> Path:
    np.save(path / "x.npy", ones(4, 3, 8, 6))
    data = (path / "x.npy").read_bytes()
    (path / "x.npy").write_bytes(data[:-100])
    return path / "x.npy"


def raw(path: Path, content: bytes, name: str = "x.npy") -> Path:
    (path / name).write_bytes(content)
    return path / name


def mixed(path: Path) -> Path:
    for name in ("a.npz", "b.npy", "c.npy"):
        raw(path, b"", name)
    return path


def test_data(path: Path, count: int) -> Path:
    folder = path / "model" / "test_data_set_0"
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"input_{i}.pb").write_bytes(b"")
    return path / "model"


test_data.__test__ = False  # type: ignore[attr-defined]
STACK = "float32 [batch, 3, 8, 6], or a stack of them"

CASES: dict[str, tuple[Callable[[Path], Any], tuple[InputSpec, ...], str]] = {
    "unknown input": (
        lambda path: npz(path, inptu=ones(2, 3, 8, 6)),
        (X,),
        "unknown input 'inptu' in calib.npz; did you mean 'input'?\n  expected 'input'\n  got 'inptu'\n"
        "help: name the arrays like the model's inputs",
    ),
    "missing input": (
        lambda path: npz(path, input=ones(2, 3, 8, 6)),
        (X, MASK),
        "input 'mask' is missing in calib.npz\n  expected 'input', 'mask'\n  got 'input'\n"
        "help: name the arrays like the model's inputs",
    ),
    "extra input": (
        lambda path: {"input": ones(2, 3, 8, 6), "zoom": ones(2)},
        (X,),
        "unknown input 'zoom' in the dict\n  expected 'input'\n  got 'input', 'zoom'\n"
        "help: leave out what the model does not take",
    ),
    "one array for two inputs": (
        lambda path: ones(2, 3, 8, 6),
        (X, MASK),
        "the ndarray is one array, and the model has 2 inputs\n  expected an array for each of 'input', 'mask'\n"
        "  got float32 (2, 3, 8, 6)\nhelp: give a dict or .npz keyed by input name",
    ),
    "tuple too long": (
        lambda path: [(ones(2, 3, 8, 6), ones(2), ones(2))],
        (X,),
        "item 0 of the list has 3 elements\n  expected 1, in the order 'input', and at most a label more\n"
        "  got a tuple of ndarray, ndarray, ndarray\nhelp: give a dict keyed by input name",
    ),
    "rank": (
        lambda path: [ones(3, 8, 6)],
        (X,),
        f"input 'input' has the wrong rank\n  expected {STACK}\n  got float32 (3, 8, 6) in item 0 of the list\n"
        "help: add the batch axis: x[numpy.newaxis]",
    ),
    "column of a table": (
        lambda path: {"age": ones(20)},
        (InputSpec("age", F32, ("batch", 1)),),
        "input 'age' has the wrong rank\n  expected float32 [batch, 1], or a stack of them\n"
        "  got float32 (20,) in the dict\nhelp: add the last axis: x[..., numpy.newaxis]",
    ),
    "pictures without channels": (
        lambda path: ones(20, 8, 6),
        (InputSpec("input", F32, ("batch", 1, 8, 6)),),
        "input 'input' has the wrong rank\n  expected float32 [batch, 1, 8, 6], or a stack of them\n"
        "  got float32 (20, 8, 6) in the ndarray\nhelp: add the missing axis: x[:, numpy.newaxis]",
    ),
    "no axis helps": (
        lambda path: ones(20, 8, 6),
        (X,),
        f"input 'input' has the wrong rank\n  expected {STACK}\n  got float32 (20, 8, 6) in the ndarray",
    ),
    "shape": (
        lambda path: npz(path, input=ones(2, 3, 8, 7)),
        (X,),
        f"input 'input' has the wrong shape\n  expected {STACK}\n  got float32 (2, 3, 8, 7) in calib.npz",
    ),
    "nhwc for nchw": (
        lambda path: npz(path, input=ones(2, 8, 6, 3)),
        (X,),
        f"input 'input' has the wrong shape\n  expected {STACK}\n  got float32 (2, 8, 6, 3) in calib.npz\n"
        "help: the data looks like NHWC and the model takes NCHW; use numpy.transpose(x, (0, 3, 1, 2))",
    ),
    "stack of nhwc for nchw": (
        lambda path: ones(2, 1, 8, 6, 3),
        (X,),
        f"input 'input' has the wrong shape\n  expected {STACK}\n  got float32 (2, 1, 8, 6, 3) in the ndarray\n"
        "help: the data looks like NHWC and the model takes NCHW; use numpy.transpose(x, (0, 1, 4, 2, 3))",
    ),
    "nchw for nhwc": (
        lambda path: ones(2, 3, 8, 6),
        (InputSpec("input", F32, (1, "h", "w", 3)),),
        "input 'input' has the wrong shape\n  expected float32 [1, h, w, 3], or a stack of them\n"
        "  got float32 (2, 3, 8, 6) in the ndarray\n"
        "help: the data looks like NCHW and the model takes NHWC; use numpy.transpose(x, (0, 2, 3, 1))",
    ),
    "stack for another fixed batch": (
        lambda path: ones(2, 3, 4),
        (InputSpec("x", F32, (2, 4)),),
        "input 'x' has the wrong shape\n  expected float32 [2, 4], or a stack of them\n"
        "  got float32 (2, 3, 4) in the ndarray",
    ),
    "stack beside rows": (
        lambda path: {"input": ones(2, 5, 3, 8, 6), "mask": ones(2, 4, dtype=np.int64)},
        (X, MASK),
        "input 'input' is a stack of 5 rows a sample beside inputs that are not stacked\n"
        "  expected float32 [batch, 3, 8, 6], or a stack of one row a sample\n"
        "  got float32 (2, 5, 3, 8, 6) in the dict\nhelp: stack all inputs or none",
    ),
    "pixels": (
        lambda path: ones(2, 3, 8, 6, dtype=np.uint8),
        (X,),
        "input 'input' has the wrong dtype\n  expected float32 [batch, 3, 8, 6]\n"
        "  got uint8 (2, 3, 8, 6) in the ndarray\n"
        "help: scale pixels as in training: (x / 255).astype('float32'); cast with .astype if already to scale",
    ),
    "floats for integers": (
        lambda path: ones(2, 4),
        (MASK,),
        "input 'mask' has the wrong dtype\n  expected int64 [batch, t]\n  got float32 (2, 4) in the ndarray\n"
        "help: cast it with .astype('int64') if its values are meant as int64",
    ),
    "complex": (
        lambda path: ones(2, 3, 8, 6, dtype=np.complex64),
        (X,),
        "input 'input' has the wrong dtype\n  expected float32 [batch, 3, 8, 6]\n"
        "  got complex64 (2, 3, 8, 6) in the ndarray\nhelp: give numbers",
    ),
    "objects": (
        lambda path: np.array([[None]], dtype=object),
        (MASK,),
        "input 'mask' has the wrong dtype\n  expected int64 [batch, t]\n  got object (1, 1) in the ndarray\n"
        "help: objects are never unpickled; give one numeric array",
    ),
    "ragged": (
        lambda path: [([[1.0], [2.0, 3.0]],)],
        (X,),
        "element 0 of item 0 of the list cannot be made an array: setting an array element with a sequence. The "
        "requested array has an inhomogeneous shape after 1 dimensions. The detected shape was (2,) + inhomogeneous "
        "part.\nhelp: pass numpy arrays or tensors",
    ),
    "counts": (
        lambda path: npz(path, input=ones(2, 3, 8, 6), mask=ones(3, 4, dtype=np.int64)),
        (X, MASK),
        "the inputs differ in their number of samples in calib.npz\n  expected as many of each\n"
        "  got 'input': 2, 'mask': 3\nhelp: save one entry along the first axis of every array for each sample; where "
        "that axis is no batch, add one: x[numpy.newaxis]",
    ),
    "labels": (
        lambda path: npz(path, input=ones(2, 3, 8, 6), y=ones(3)),
        (X,),
        "the labels do not match the samples in calib.npz\n  expected 2 labels\n  got float32 (3,)\n"
        "help: save one label for each sample",
    ),
    "empty array": (
        lambda path: npz(path, input=ones(0, 3, 8, 6)),
        (X,),
        f"no samples in calib.npz\nhelp: give {FORMS}",
    ),
    "no values": (
        lambda path: ones(2, 0, dtype=np.int64),
        (MASK,),
        "input 'mask' holds no values\n  expected int64 [batch, t], or a stack of them\n"
        "  got int64 (2, 0) in the ndarray",
    ),
    "empty list": (lambda path: [], (X,), f"no samples in list\nhelp: give {FORMS}"),
    "generator of paths": (
        lambda path: iter([path / "a.npz"]),
        (X,),
        "item 0 of the list_iterator is a path\nhelp: give a list of paths, such as sorted(folder.glob('*.npz'))",
    ),
    "empty generator": (lambda path: iter(()), (X,), f"no samples in tuple_iterator\nhelp: give {FORMS}"),
    "not data": (lambda path: 3, (X,), f"data cannot be read from a int\nhelp: give {FORMS}"),
    "no inputs": (lambda path: [], (), "the model has no inputs, so there is nothing to calibrate with"),
    "empty folder": (
        lambda path: path,
        (X,),
        "'{name}' holds no data of one kind\n  expected .npz files, .npy files or images\n  got none\n"
        f"help: give {FORMS}",
    ),
    "mixed folder": (
        mixed,
        (X,),
        "'{name}' holds no data of one kind\n  expected .npz files, .npy files or images\n  got 2 npy and 1 npz\n"
        f"help: give {FORMS}",
    ),
    "other file": (
        lambda path: raw(path, b"", "x.csv"),
        (X,),
        f"'x.csv' is no data file\n  expected an .npz, .npy or image file\n  got .csv\nhelp: give {FORMS}",
    ),
    "objects in npz": (
        lambda path: npz(path, input=np.array([{}, []], dtype=object)),
        (X,),
        "'input' of calib.npz holds Python objects, which would have to be unpickled\n"
        "help: save one numeric array for each input",
    ),
    "not a zip": (
        lambda path: raw(path, b"hello", "x.npz"),
        (X,),
        "x.npz cannot be read: File is not a zip file\nhelp: the file is damaged or of another kind",
    ),
    "masked values": (
        lambda _path: np.ma.masked_equal(np.arange(6.0), 2.0),
        (X,),
        "the MaskedArray has masked values, and a model takes none\nhelp: fill them: x.filled(0)",
    ),
    "empty npz": (
        npz,
        (X,),
        "input 'input' is missing in calib.npz\n  expected 'input'\n  got nothing\n"
        "help: name the arrays like the model's inputs",
    ),
    "truncated npy": (
        truncated,
        (X,),
        "x.npy is truncated, or its header is wrong\n  expected 2,304 bytes for float32 (4, 3, 8, 6)\n"
        "  got 2,204 bytes\nhelp: write the file again with numpy.save or numpy.savez",
    ),
    "test data count": (
        lambda path: test_data(path, 1),
        (X, MASK),
        "test_data_set_0 does not match the model's inputs\n"
        "  expected 2 files, input_0.pb and on, in the order 'input', 'mask'\n  got 1 files input_*.pb\n"
        "help: keep one file for each input of the model",
    ),
    "test data empty": (
        lambda path: test_data(path, 1),
        (X,),
        "test_data_set_0/input_0.pb holds a tensor of type undefined\nhelp: only numeric tensors can be fed",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_when_opened(case: str, tmp_path: Path) -> None:
    make, inputs, expected = CASES[case]
    source = make(tmp_path)
    with pytest.raises(DataError) as caught:
        open_data(source, inputs)
    assert str(caught.value) == expected.format(name=tmp_path.name)
    assert str(caught.value).count("\n") < 5


WHILE_READ: dict[str, tuple[Callable[[Path], Any], InputSpec, str]] = {
    "nan": (
        lambda path: npz(path, input=poisoned(np.nan)),
        X,
        "input 'input': 2 of 144 values in sample 5 (calib.npz) are NaN or infinite\n"
        "help: the first is nan at index (0, 1, 2, 3); remove or repair the sample",
    ),
    "infinity in a generator": (
        lambda path: (x[np.newaxis] for x in poisoned(-np.inf)),
        X,
        "input 'input': 2 of 144 values in sample 5 (item 5 of the generator) are NaN or infinite\n"
        "help: the first is -inf at index (0, 1, 2, 3); remove or repair the sample",
    ),
    "float64 too big": (
        lambda path: np.array([[1.0, 1e300]]),
        InputSpec("x", F32, ("n", 2)),
        "input 'x': 1 of 2 values in sample 0 (the ndarray) do not fit float32\n"
        "help: the first is 1e+300; the model takes float32 [n, 2]",
    ),
    "integer too big": (
        lambda path: np.array([[1, 2], [2**40, -(2**40)]]),
        InputSpec("x", np.dtype(np.int32), ("n", 2)),
        "input 'x': 2 of 2 values in sample 1 (the ndarray) do not fit int32\n"
        "help: the first is 1099511627776; the model takes int32 [n, 2]",
    ),
    "negative for unsigned": (
        lambda path: np.array([[1, -2]], np.int8),
        InputSpec("x", np.dtype(np.uint8), ("n", 2)),
        "input 'x': 1 of 2 values in sample 0 (the ndarray) do not fit uint8\n"
        "help: the first is -2; the model takes uint8 [n, 2]",
    ),
    "later item": (
        lambda path: iter([ones(1, 3, 8, 6), ones(1, 3, 8, 9)]),
        X,
        f"input 'input' has the wrong shape\n  expected {STACK}\n"
        "  got float32 (1, 3, 8, 9) in item 1 of the list_iterator",
    ),
    "too few for the batch": (
        lambda path: np.eye(3, dtype=np.float32),
        InputSpec("x", F32, (4, 3)),
        "too few samples: the model takes 4 at a time, and there are 3 of one shape\n"
        "help: give more samples, or a model with a dynamic batch",
    ),
}


@pytest.mark.parametrize("case", WHILE_READ)
def test_refused_when_read(case: str, tmp_path: Path) -> None:
    make, spec, expected = WHILE_READ[case]
    data = open_data(make(tmp_path), [spec])
    with pytest.raises(DataError) as caught:
        list(data.batches())
    assert str(caught.value) == expected


def test_missing_file(tmp_path: Path) -> None:
    npz(tmp_path, input=ones(1, 3, 8, 6))
    with pytest.raises(MissingFileError) as caught:
        open_data(tmp_path / "calb.npz", [X])
    assert str(caught.value) == (
        f"data {tmp_path}/calb.npz does not exist; did you mean 'calib.npz'?\nhelp: check the path"
    )


def test_a_name_with_the_same_suffix_is_not_alike(tmp_path: Path) -> None:
    npz(tmp_path, input=ones(1, 3, 8, 6)).rename(tmp_path / "q.npz")
    with pytest.raises(MissingFileError, match=r"z\.npz does not exist\n"):
        open_data(tmp_path / "z.npz", [X])


def test_a_seed_without_a_number_of_samples_chooses_nothing(tmp_path: Path) -> None:
    path = npz(tmp_path, input=ones(4, 3, 8, 6))
    with pytest.raises(ConfigError, match=r"all are used\nhelp: say how many: samples \(--samples N\)"):
        open_data(path, [X], DataOptions(seed=1))
    assert sum(batch.count for batch in open_data(path, [X], DataOptions(samples=2, seed=1)).batches()) == 2


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_data(npz(tmp_path, input=ones(1, 3, 8, 6), classes=ones(1)), [X], labels="class")
    assert str(caught.value) == (
        "no labels 'class' in calib.npz; did you mean 'classes'?\nhelp: it holds 'input', 'classes'"
    )


def test_seed_needs_a_known_size() -> None:
    with pytest.raises(ConfigError) as caught:
        open_data(iter([ones(1, 3, 8, 6)]), [X], DataOptions(samples=1, seed=0))
    assert str(caught.value) == (
        "samples cannot be drawn at random from list_iterator: it does not tell how many it has\n"
        "help: leave seed out to take the first, or give a list, arrays or files"
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: DataOptions(samples=0), "samples must be at least 1; got 0"),
        (lambda: DataOptions(batch_size=-1), "batch_size must be at least 1; got -1"),
        (lambda: DataOptions(seed=-1), "seed must be at least 0; got -1"),
        (lambda: ImageOptions(size=(0, 4)), "image size must be (height, width), both at least 1; got (0, 4)"),
        (lambda: ImageOptions(std=(1.0, 0.0, 1.0)), "image scale and std must not be 0"),
        (lambda: ImageOptions(mean=float("nan")), "image mean must be finite numbers; got nan"),
        (
            lambda: ImageOptions(resize="squash"),  # type: ignore[arg-type]
            "unknown image resize 'squash'\nhelp: choose one of crop, stretch, pad",
        ),
    ],
)
def test_options(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == expected


def test_data_errors_are_value_errors() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(DataError, RequantError)


def test_a_generator_is_not_read_past_the_bad_sample() -> None:
    seen = []

    def produce() -> Any:
        for i in range(100):
            seen.append(i)
            yield np.full((1, 3, 8, 6), np.nan if i == 2 else i, np.float32)

    with pytest.raises(DataError, match="sample 2"):
        list(open_data(produce(), [X]).batches())
    assert seen == [0, 1, 2]


def test_an_encrypted_or_unknown_member_is_a_data_error(tmp_path: Path) -> None:
    path = npz(tmp_path, input=ones(1, 3, 8, 6))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the encryption flag in the central directory
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'input' of calib.npz cannot be read"):
        open_data(path, [X])
    assert zipfile.is_zipfile(path)
