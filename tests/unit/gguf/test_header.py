"""Heads of GGUF files: what the package writes is read, and whatever else is refused with an error of ours."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.numpy import load_file

import requant
from requant.gguf.blocks import BLOCK_TYPES
from requant.gguf.header import FOREIGN_TYPES, ArrayValue, read_header
from requant.gguf.names import TYPES

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = {kind.id: (kind.name, kind.block_size, kind.bytes) for kind in BLOCK_TYPES.values()}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str | bytes, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def file(pairs: list[bytes], entries: list[bytes], data: int = 256, *, version: int = 3, align: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(pairs)) + b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % align) + bytes(data)


def refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(requant.ModelError, match=message) as caught:
        requant.read_gguf(path)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("llama.flag", val=True)
    writer.add_string("general.name", "größer")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("numbers", [1, 2, 3])
    rng = np.random.default_rng(0)
    writer.add_tensor("a", rng.standard_normal((3, 256)).astype(np.float32))
    writer.add_tensor("b", np.arange(5, dtype=np.int32))
    writer.add_tensor("c", rng.standard_normal((2, 2, 64)).astype(np.float16))
    blocks = requant.quantize_gguf(rng.standard_normal((4, 512)), "q4_k")
    writer.add_tensor("d", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_names_and_types_are_those_of_the_core_and_the_package() -> None:
    assert tuple(BLOCK_TYPES) == TYPES
    for number, (name, values, size) in FOREIGN_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name.lower(), gguf.GGML_QUANT_SIZES[kind]) == (name, (values, size))
    assert {int(kind) for kind in gguf.GGML_QUANT_SIZES} == set(FOREIGN_TYPES) | set(KNOWN)


def test_what_the_package_writes_is_read(written: Path) -> None:
    found = requant.GgufFile(written)
    assert found.metadata["general.architecture"] == "llama"
    assert found.metadata["llama.block_count"] == 2
    assert found.metadata["llama.eps"] == 0.5
    assert found.metadata["llama.flag"] is True
    assert found.metadata["general.name"] == "größer"
    assert found.metadata["tokenizer.ggml.tokens"] == ArrayValue(3)
    weights = requant.read_gguf(written)
    reader = gguf.GGUFReader(written)
    assert list(weights) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        ours = weights[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        if tensor.tensor_type == gguf.GGMLQuantizationType.I32:
            assert ours.dtype == np.int32
            assert np.array_equal(ours, tensor.data)
        else:
            assert np.array_equal(ours, gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_a_name_that_is_not_there(written: Path) -> None:
    with pytest.raises(requant.ConfigError, match="no tensor 'aa'"):
        requant.GgufFile(written).read("aa")
    with pytest.raises(requant.MissingFileError, match="does not exist"):
        requant.read_gguf(written.with_name("nothing.gguf"))
    with pytest.raises(requant.ModelError, match="cannot be read"):
        requant.read_gguf(written.parent)


F32 = 0
GOOD = [entry("w", (32, 2), F32, 0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"GGML" + bytes(60), "does not begin with GGUF"),
        (b"GGUF\x03\x00", "it ends within the head"),
        (file([], GOOD, version=1), "version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(99), "claims 9223372036854775808 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40) + bytes(99), "claims 1099511627776 metadata pairs"),
        (file([pair("k", 8, struct.pack("<Q", 2**62))], GOOD), "too long"),
        (file([pair("k", 8, struct.pack("<Q", 900))], GOOD), "too long|ends within"),
        (file([pair(b"\xff\xfe", 4, bytes(4))], GOOD), "not UTF-8"),
        (file([pair("k", 8, text(b"\xc3\x28"))], GOOD), "not UTF-8"),
        (file([pair("k", 4, bytes(4)), pair("k", 4, bytes(4))], GOOD), "'k' stands in it twice"),
        (file([pair("k", 99, bytes(4))], GOOD), "'k' has the unknown type 99"),
        (file([pair("k", 9, struct.pack("<IQ", 99, 1))], GOOD), "unknown type 99"),
        (file([pair("k", 9, struct.pack("<IQ", 4, 2**61))], GOOD), "claims 2305843009213693952 items"),
        (file([pair("k", 9, struct.pack("<IQ", 8, 2**40))], GOOD), "claims 1099511627776 strings"),
        (file([pair("k", 9, struct.pack("<IQ", 9, 2) * 8 + bytes(12))], GOOD), "nests arrays too deeply"),
        (file([pair("general.alignment", 4, struct.pack("<I", 0))], GOOD), "alignment is 0"),
        (file([pair("general.alignment", 4, struct.pack("<I", 48))], GOOD), "alignment is 48"),
        (file([pair("general.alignment", 10, struct.pack("<Q", 2**60))], GOOD), "alignment is 1152921504606846976"),
        (file([pair("general.alignment", 8, text("32"))], GOOD), "alignment is '32'"),
        (file([pair("general.alignment", 7, b"\x01")], GOOD), "alignment is True"),
        (file([], [entry("w", (1, 1, 1, 1, 1), F32, 0)]), "has 5 axes, expected at most 4"),
        (file([], [entry("w", (2**29, 2**30), F32, 0)]), "needs 2305843009213693952 bytes"),
        (file([], [entry("w", (2**32, 2**32), F32, 0)]), r"\[4294967296, 4294967296\], which no array can have"),
        (file([], [entry("w", (2**63, 0, 2), F32, 0)]), "no array can have"),
        (file([], [entry("w", (32,), 12, 0)]), "rows of 32 values, which do not divide into q4_k blocks of 256"),
        (file([], [entry("w", (32,), 77, 0)]), "unknown type 77"),
        (file([], [entry("w", (32, 3), F32, 0)]), r"shape \[3, 32\] needs 384 bytes"),
        (file([], [entry("w", (8,), F32, 2**60)]), "needs 32 bytes at"),
        (file([], [entry("w", (8,), F32, 4)]), "begins at 4, which is no multiple of 32"),
        (file([], [entry("w", (8,), F32, 0), entry("w", (8,), F32, 32)]), "'w' stands in it twice"),
        (file([], [entry("w", (16,), F32, 0), entry("v", (8,), F32, 32)]), "'w' and 'v' share bytes"),
        (file([], [entry(b"\xff", (8,), F32, 0)]), "not UTF-8"),
        (file([], [entry("w", (256,), 18, 0)]), "is of type iq3_xxs, which is not read"),
    ],
)
def test_hostile_heads_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    refused(tmp_path, data, message)


@pytest.mark.parametrize("name", ["a\0b", "n" * 65532])
def test_names_that_an_archive_would_cut_are_refused(tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "names.gguf", tmp_path / "out.npz"
    path.write_bytes(file([], [entry(name, (8,), F32, 0), entry("a\0c", (8,), F32, 32)]))
    with pytest.raises(requant.ModelError, match=r"cannot hold\nhelp: .*safetensors"):
        requant.unpack_gguf(path, out)
    assert not out.exists()
    requant.unpack_gguf(path, out.with_suffix(".safetensors"))
    assert set(load_file(out.with_suffix(".safetensors"))) == {name, "a\0c"}


def test_the_name_of_safetensors_metadata_is_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "names.gguf", tmp_path / "out.safetensors"
    path.write_bytes(file([], [entry("__metadata__", (8,), F32, 0)]))
    with pytest.raises(requant.ModelError, match="the name of the metadata"):
        requant.unpack_gguf(path, out)
    assert not out.exists()


def test_a_sound_head_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    nested = struct.pack("<IQ", 9, 2) + struct.pack("<IQ", 4, 1) + bytes(4) + struct.pack("<IQ", 8, 1) + text("x")
    head = [pair("general.alignment", 4, struct.pack("<I", 64)), pair("k", 9, nested)]
    path.write_bytes(file(head, [entry("w", (8,), F32, 64), entry("empty", (0, 4), F32, 0)], align=64, version=2))
    header = read_header(path, KNOWN)
    assert header.metadata["k"] == ArrayValue(2)
    assert header.tensors[0].offset % 64 == 0
    weights = requant.read_gguf(path)
    assert weights["w"].tolist() == [0.0] * 8
    assert weights["empty"].shape == (4, 0)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), cut=st.floats(0, 1.2))
def test_mutants_are_read_or_refused(written: Path, changes: list[tuple[float, int]], cut: float) -> None:
    original = written.read_bytes()
    head = original.index(b"\0\0\0\0\0\0\0\0", 600) if b"\0" * 8 in original[600:] else len(original)
    mutant = bytearray(original)
    for place, value in changes:
        mutant[int(place * min(head, 900))] = value
    path = written.with_name("mutant.gguf")
    path.write_bytes(mutant[: max(1, int(cut * len(mutant)))])
    try:
        weights = requant.read_gguf(path)
    except requant.RequantError:
        return
    # Q2_K blocks are the densest: 84 bytes for 256 values.
    assert sum(array.nbytes for array in weights.values()) <= 13 * path.stat().st_size


SIZES = st.sampled_from([0, 1, 2, 32, 64, 256, 2**31, 2**32 - 1, 2**32, 2**59, 2**60, 2**61, 2**63, 2**64 - 1])
NAMES = st.text(max_size=4) | st.binary(max_size=4)
ENTRIES = st.builds(
    entry,
    NAMES,
    st.lists(SIZES, max_size=5).map(tuple),
    st.sampled_from([*KNOWN, *FOREIGN_TYPES, 77]),
    SIZES | st.sampled_from([96, 128, 2**64 - 32]),
)
VALUES = st.tuples(
    st.integers(0, 13),
    st.one_of(st.binary(max_size=9), st.builds(struct.pack, st.just("<IQ"), SIZES.map(lambda s: s % 14), SIZES)),
)
PAIRS = st.builds(lambda key, value: pair(key, *value), NAMES | st.just("general.alignment"), VALUES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(PAIRS, max_size=2),
    entries=st.lists(ENTRIES, max_size=3),
    data=st.sampled_from([0, 32, 144, 1024]),
    align=st.sampled_from([1, 32, 64]),
)
def test_heads_of_hostile_numbers_are_read_or_refused(
    tmp_path: Path, pairs: list[bytes], entries: list[bytes], data: int, align: int
) -> None:
    path = tmp_path / "numbers.gguf"
    path.write_bytes(file(pairs, entries, data, align=align))
    try:
        weights = requant.read_gguf(path)
    except requant.ModelError:
        return
    assert sum(array.nbytes for array in weights.values()) <= 13 * data
