"""Integers of 2 and 4 bits, several to a byte: as ONNX stores them, and the same in one pass."""

from __future__ import annotations

import numpy as np
import pytest

from requant.arrays import affine, packing
from requant.errors import ConfigError
from requant.types import PerBlock, QuantScheme, QuantType

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((4, 6, 5)) * 3).astype(np.float32)
PACKED = [dtype for dtype in QuantType if dtype.bits <= 4]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 4)])
def test_packing_round_trips(dtype: QuantType, shape: tuple[int, ...]) -> None:
    q = np.asarray(RNG.integers(dtype.min, dtype.max, shape, endpoint=True)).astype(dtype.numpy)
    pack, unpack = (
        (packing.pack_int4, packing.unpack_int4) if dtype.bits == 4 else (packing.pack_int2, packing.unpack_int2)
    )
    packed = pack(q)
    assert packed.nbytes == -(-q.size * dtype.bits // 8)
    np.testing.assert_array_equal(unpack(packed, shape, dtype), q)
    onnx = pytest.importorskip("onnx")
    data_type = getattr(onnx.TensorProto, dtype.name, None)
    if data_type is None:
        pytest.skip(f"this onnx has no {dtype}")
    tensor = onnx.helper.make_tensor("q", data_type, shape, packed.tobytes(), raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(dtype.numpy), q)


def test_packing_follows_c_order_and_refuses_wide_values() -> None:
    q = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(packing.pack_int4(np.asfortranarray(q)), [0x10, 0x32, 0x54])
    with pytest.raises(ConfigError, match="integer 16 at index 1 is outside uint4"):
        packing.pack_int4(np.array([0, 16], np.uint8))
    with pytest.raises(TypeError, match="expected an array of int8 or uint8, got dtype int32"):
        packing.pack_int4(np.zeros(2, np.int32))
    with pytest.raises(ConfigError, match="packed data has 1 elements, expected 2"):
        packing.unpack_int4(np.zeros(1, np.uint8), (3,), QuantType.INT4)
    with pytest.raises(ConfigError, match="expected int4 or uint4, got int8"):
        packing.unpack_int4(np.zeros(1, np.uint8), (2,), QuantType.INT8)
    with pytest.raises(TypeError, match="expected an array of uint8, got dtype int8"):
        packing.unpack_int4(np.zeros(1, np.int8), (2,), QuantType.INT4)


@pytest.mark.parametrize("dtype", PACKED)
def test_packed_in_one_pass_is_packed_afterwards(dtype: QuantType) -> None:
    params = affine.params_from_data(X, QuantScheme(dtype, granularity=PerBlock(-1, 2)))
    q = affine.quantize_array(X, params)
    packed = affine.quantize_packed(X, params)
    np.testing.assert_array_equal(packed, (packing.pack_int4 if dtype.bits == 4 else packing.pack_int2)(q.data))
    np.testing.assert_array_equal(affine.dequantize_packed(packed, X.shape, params), q.dequantize())
    with pytest.raises(ConfigError, match="packed data has"):
        affine.dequantize_packed(packed[1:], X.shape, params)
    with pytest.raises(ConfigError, match="expected a type of 2 or 4 bits, got uint8"):
        affine.quantize_packed(X, affine.params_from_data(X, QuantScheme(QuantType.UINT8)))
