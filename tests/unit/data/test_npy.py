"""Stored arrays: hostile headers, damage at any byte, and memory that does not grow with samples."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from requant.data import DataOptions, InputSpec, open_data
from requant.data.npy import StoredArray
from requant.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("n", 3))


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


def declared(shape: object, descr: object = "<f4", order: object = False) -> bytes:
    return header(f"{{'descr': {descr!r}, 'fortran_order': {order!r}, 'shape': {shape!r}}}\n")


def saved(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.npy cannot be read"),
        (b"\x93NUMPY", "x.npy cannot be read"),
        (b"hello world, no array here", "x.npy cannot be read: the magic string is not correct"),
        (header("{'descr'", (1, 0)), "x.npy cannot be read"),
        (header("{}", (1, 0)), "x.npy cannot be read: Header does not contain the correct keys"),
        (header("[" * 5000, (2, 0)), "x.npy cannot be read"),
        (header("{'a': 1}", (9, 9)), "x.npy cannot be read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "x.npy cannot be read"),
        (declared((-1, 3)), r"x.npy declares a negative dimension: \(-1, 3\)"),
        (declared((2**40, 3)), r"x.npy is truncated.*\n  expected 13,194,139,533,312 bytes for float32"),
        (declared((2**62, 2**62)), "x.npy is truncated"),
        (declared((2**63, 0)), "input 'x' has the wrong shape"),
        (declared((1, 3)) + bytes(11), "x.npy is truncated.*\n  expected 12 bytes.*\n  got 11 bytes"),
        (declared((1, 3), "|O") + bytes(24), "x.npy holds Python objects"),
        (declared((1, 3), [("a", "<f4"), ("b", "|O")]) + bytes(99), "x.npy holds Python objects"),
        (declared((1, 3), [("a", "<f4")]) + bytes(12), "input 'x' has the wrong dtype"),
        (declared((1, 3), "<U1") + bytes(12), "input 'x' has the wrong dtype"),
        (declared((1, 3), "<M8[s]") + bytes(24), "input 'x' has the wrong dtype"),
        (declared((1, 3), "nonsense") + bytes(24), "x.npy cannot be read"),
        (declared((1.5, 3)) + bytes(24), "x.npy cannot be read"),
        (declared((1, 3), order="yes") + bytes(24), "x.npy cannot be read"),
    ],
)
def test_hostile_headers(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "x.npy", [X])
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=message.replace("x.npy", "'x' of x.npz")):
        open_data(tmp_path / "x.npz", [X])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_header_version(version: tuple[int, int], tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}\n"
    (tmp_path / "x.npy").write_bytes(header(text, version) + x.tobytes())
    np.testing.assert_array_equal(next(open_data(tmp_path / "x.npy", [X]).batches()).feeds["x"], x)


SMALL = np.arange(12, dtype=np.float32).reshape(4, 3)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_a_data_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    compress = data.draw(st.booleans())
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, x=SMALL)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))]
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    try:
        batches = list(open_data(path, [X]).batches())
    except DataError:
        return
    assert sum(b.count for b in batches) > 0


def test_a_flipped_value_in_an_npz_fails_its_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=SMALL)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[content.index(SMALL.tobytes()) + 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"'x' of x.npz cannot be read: Bad CRC-32"):
        list(open_data(tmp_path / "x.npz", [X]).batches())


def test_bombs_are_refused_before_they_expand(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as member,
    ):
        rows = (65 << 20) // 12
        member.write(declared((rows, 3)))
        for _ in range(65):
            member.write(bytes(rows * 12 // 65 + 1))
    with pytest.raises(DataError, match=r"expands [0-9,]+ bytes to [0-9,]+, more than 1000:1"):
        open_data(tmp_path / "x.npz", [X])


def test_a_sample_bigger_than_the_limit_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", SMALL)
    options = DataOptions(max_bytes=11)
    with pytest.raises(DataError) as caught:
        list(open_data(tmp_path / "x.npy", [X], options).batches())
    assert str(caught.value) == (
        "x.npy is too big to read at once\n  expected at most 11 bytes\n  got 12 bytes for float32 (3,)\n"
        "help: raise DataOptions(max_bytes=...)"
    )
    np.save(tmp_path / "f.npy", np.asfortranarray(SMALL))
    with pytest.raises(DataError, match=r"in Fortran order it must be read whole; save numpy\.ascontiguousarray"):
        list(open_data(tmp_path / "f.npy", [X], options).batches())


@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "|b1", "<i8", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stored_equals_saved(shape: tuple[int, ...], dtype: str, order: Any) -> None:
    x = np.array(np.random.default_rng(1).integers(0, 2, shape), dtype, order=order)
    content = saved(x)
    stored = StoredArray(io.BytesIO(content), len(content), "x", 1 << 20)
    assert (stored.shape, stored.dtype) == (x.shape, x.dtype)
    for i in [*range(len(x)), 0] if x.ndim else []:
        np.testing.assert_array_equal(stored[i], x[i])
    np.testing.assert_array_equal(stored.load(), x)


def peak(source: Path, samples: int | None) -> int:
    tracemalloc.start()
    try:
        data = open_data(source, [InputSpec("x", F32, ("n", 256))], DataOptions(samples=samples), hold_back=True)
        count = sum(batch.count for batch in data.batches()) + sum(batch.count for batch in data.held_back())
        assert count == samples
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "samples"), [("npz", 10_000), ("compressed npz", 2_000), ("npy", 2_000)])
def test_memory_does_not_grow_with_samples(kind: str, samples: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (samples, 256)).astype(np.float32)
    path = tmp_path / ("x.npy" if kind == "npy" else "x.npz")
    if kind == "npy":
        np.save(path, x)
    else:
        (np.savez_compressed if "compressed" in kind else np.savez)(path, x=x)
    few, many = peak(path, 400), peak(path, samples)
    assert many <= 1.1 * few
    assert many < x.nbytes / 5


def test_files_are_closed_when_a_pass_is_broken_off(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.eye(100, 3, dtype=np.float32))
    batches = open_data(tmp_path / "x.npz", [X]).batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    # an unclosed file is a ResourceWarning, which the test run turns into an error
