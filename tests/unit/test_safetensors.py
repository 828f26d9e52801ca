"""Checkpoints against the safetensors package, and heads that are not to be believed."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.numpy import load_file, save_file

import requant
from requant.checkpoint.safetensors import Checkpoint, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

TENSORS: dict[str, Any] = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([[1.5, -2.0]], np.float16),
    "brain": np.array([[1.5, -2.0, 3e38]], ml_dtypes.bfloat16),
    "double": np.array([0.25, 1e300]),
    "ids": np.arange(5, dtype=np.int64),
    "flags": np.array([True, False]),
    "scalar": np.array(7.0, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, {"format": "pt", "who": "ü"})
    return path


def test_what_the_package_writes_is_read(checkpoint: Path) -> None:
    found = Checkpoint(checkpoint)
    assert set(found.entries) == set(TENSORS)
    assert found.metadata == {"format": "pt", "who": "ü"}
    assert {w.name for w in found.weights()} == {"a.weight", "half", "brain", "double", "scalar", "empty"}
    for weight in found.weights():
        array = weight.read()
        assert array.dtype == np.float32
        assert array.shape == weight.shape == TENSORS[weight.name].shape
        with np.errstate(over="ignore"):
            assert np.array_equal(array, TENSORS[weight.name].astype(np.float32))
    with pytest.raises(requant.ConfigError, match="holds I64, expected reals"):
        found.read("ids")
    with pytest.raises(requant.ConfigError, match="no tensor 'halv'; did you mean 'half'"):
        found.read("halv")


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    arrays = {name: array for name, array in TENSORS.items() if name != "brain"}
    write_checkpoint(path, [(n, a.dtype, a.shape, partial(np.asarray, a)) for n, a in arrays.items()], {"k": "v"})
    found = load_file(path)
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    assert {array.dtype for array in found.values()} == {array.dtype for array in arrays.values()}
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stays_of_a_write_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"before")

    def fails() -> np.ndarray:
        raise requant.DataError("no")

    with pytest.raises(requant.DataError):
        write_checkpoint(path, [("a", np.dtype(np.float32), (2,), fails)])
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_no_tensor_is_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": np.ones((32, 32), np.float32), "a.weight_packed": np.ones(3, np.float32)}, path)
    out = tmp_path / "out.safetensors"
    with pytest.raises(requant.ModelError, match=r"tensor 'a\.weight_packed' would stand in it twice"):
        requant.quantize_checkpoint(path, out)
    with pytest.raises(requant.ModelError, match="the name of the metadata"):
        write_checkpoint(out, [("__metadata__", np.dtype(np.float32), (3,), lambda: np.ones(3, np.float32))])
    assert not out.exists()


def test_files_of_an_index(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 2), np.float32), "unlisted": np.ones(1, np.float32)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros((3,), np.float32)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    found = Checkpoint(index)
    assert set(found.entries) == {"a", "b"}
    assert len(found.files) == 2
    assert found.read("a").tolist() == [[1, 1], [1, 1]]
    for listed, message in (
        ({"a": "../one.safetensors"}, "expected a .safetensors file beside it"),
        ({"a": "/etc/passwd"}, "expected a .safetensors file beside it"),
        ({"a": 3}, "expected a .safetensors file beside it"),
        ({"c": "two.safetensors"}, "does not hold tensor 'c'"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": listed}))
        with pytest.raises(requant.ModelError, match=message):
            Checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"a": "three.safetensors"}}))
    with pytest.raises(requant.MissingFileError):
        Checkpoint(index)


def head(tensors: Any, data: int = 16) -> bytes:
    encoded = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(data)


def tensor(begin: Any = 0, end: Any = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\1\0\0", "not a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{}", "would have 9223372036854775808 bytes"),
        (b"version https://git-lfs.github.com/spec/v1", "pointer of git-lfs"),
        (head(b"{", 0), "cannot be read"),
        (head(b'{"\xff": 1}', 0), "cannot be read"),
        (head(b"[" * 100_000, 0), "cannot be read"),
        (head(b"9" * 5000, 0), "cannot be read|no JSON object"),
        (head([], 0), "no JSON object"),
        (head(b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2)), "stands in it twice"),
        (head({"a": 3}), "not described by"),
        (head({"a": tensor() | {"more": 1}}), "not described by"),
        (head({"a": tensor(dtype="F8_E5M2")}), "has the type 'F8_E5M2'"),
        (head({"a": tensor(dtype=["F32"])}), "has the type"),
        (head({"a": tensor(shape=(-4,))}), "shape that is not a list of sizes"),
        (head({"a": tensor(shape=(True,))}), "shape that is not a list of sizes"),
        (head({"a": tensor(shape=(4.0,))}), "shape that is not a list of sizes"),
        (head({"a": tensor(shape="4")}), "shape that is not a list of sizes"),
        (head({"a": tensor(shape=(1,) * 65)}), "shape that is not a list of sizes"),
        (
            head({"a": tensor(shape=(2**62, 2**62, 2**62))}),
            "which no array can have",
        ),
        (head({"a": tensor(0, 0, (0, 2**62))}, 0), "which no array can have"),
        (head({"a": tensor(0, 0, (2**31, 0, 2**31))}, 0), "which no array can have"),
        (head({"\ud800": tensor()}), "surrogates not allowed"),
        (head({"a": tensor(), "__metadata__": {"a": "\udfff"}}), "surrogates not allowed"),
        (head({"a": tensor(shape=(2**70,))}), "shape that is not a list of sizes"),
        (head({"a": tensor(end=17)}), "takes 16 bytes"),
        (head({"a": tensor(16, 0)}), "takes 16 bytes"),
        (head({"a": tensor(-16, 0)}), "offsets that are not two positions"),
        (head({"a": tensor(2**63, 2**63 + 16)}), "offsets that are not two positions"),
        (head({"a": tensor() | {"data_offsets": [0, 8, 16]}}), "offsets that are not two positions"),
        (head({"a": tensor(), "b": tensor()}), "share bytes"),
        (head({"a": tensor(), "b": tensor(24, 40)}, 40), "have a hole"),
        (head({"a": tensor(8, 24)}, 24), "have a hole"),
        (head({"a": tensor()}, 15), "its tensors take 16 bytes, it has 15"),
        (head({"a": tensor()}, 17), "its tensors take 16 bytes, it has 17"),
        (head({}, 4), "its tensors take 0 bytes, it has 4"),
        (head({"__metadata__": {"a": 1}}, 0), "metadata that are not strings"),
        (head({"__metadata__": [1]}, 0), "metadata that are not strings"),
    ],
)
def test_hostile_heads_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(requant.ModelError, match=message) as caught:
        Checkpoint(path)
    assert len(str(caught.value).splitlines()) <= 5


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(requant.MissingFileError):
        Checkpoint(tmp_path / "nothing.safetensors")
    with pytest.raises(requant.MissingFileError):
        Checkpoint(tmp_path / "nothing.safetensors.index.json")
    with pytest.raises(requant.ModelError):
        Checkpoint(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), cut=st.floats(0, 1.2))
def test_mutants_are_read_or_refused(checkpoint: Path, changes: list[tuple[float, int]], cut: float) -> None:
    mutant = bytearray(checkpoint.read_bytes())
    for place, value in changes:
        mutant[int(place * (len(mutant) - 1))] = value
    path = checkpoint.with_name("mutant.safetensors")
    path.write_bytes(mutant[: int(cut * len(mutant))])
    try:
        arrays = [weight.read() for weight in Checkpoint(path).weights()]
    except requant.RequantError:
        return
    assert sum(array.nbytes for array in arrays) <= 2 * path.stat().st_size


NUMBERS: Any = st.sampled_from([0, 1, 2, 4, 8, 16, 2**31, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, -1, 4.0, True, None])
FIELDS: Any = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "BF16", "BOOL", "I64", "f32", "", None]),
        "shape": st.lists(NUMBERS, max_size=4) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), FIELDS | NUMBERS, max_size=3),
    data=st.sampled_from([0, 4, 16, 32]),
)
def test_heads_of_hostile_numbers_are_read_or_refused(tmp_path: Path, tensors: dict[str, Any], data: int) -> None:
    path = tmp_path / "numbers.safetensors"
    path.write_bytes(head(tensors, data))
    try:
        found = Checkpoint(path)
    except requant.ModelError:
        return
    assert sum(weight.read().nbytes for weight in found.weights()) <= 2 * data
