"""Arrays of any layout, dtype and library are the same to everything that takes arrays."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from requant import ops
from requant.arrays.affine import (
    dequantize_array,
    fake_quantize_array,
    fake_quantize_with_mask,
    params_from_data,
    quantize_array,
)
from requant.arrays.intake import as_float32
from requant.observers import Observer, ObserverSet, observe_many, observe_request
from requant.types import (
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantizedTensor,
    QuantParams,
    QuantScheme,
    QuantType,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from requant.types import Granularity

X = (np.random.default_rng(0).standard_normal((4, 6, 5)) * 3).astype(np.float32)
UINT8 = QuantScheme(QuantType.UINT8)
PARAMS = QuantParams(np.array(0.1, np.float32), np.array(0, np.uint8), UINT8)


def misaligned(x: NDArray[Any]) -> NDArray[Any]:
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: NDArray[Any]) -> NDArray[Any]:
    x = x.copy()
    x.flags.writeable = False
    return x


def strided(x: NDArray[Any]) -> NDArray[Any]:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 99, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "strided": strided,
    "reversed": lambda x: x[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "read-only": read_only,
    "misaligned": misaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerBlock(2, 2), PerToken()])
def test_memory_layout_does_not_matter(layout: str, granularity: Granularity) -> None:
    x = LAYOUTS[layout](X)
    np.testing.assert_array_equal(x, X)
    scheme = QuantScheme(granularity=granularity)
    params, expected_params = params_from_data(x, scheme), params_from_data(X, scheme)
    np.testing.assert_array_equal(params.scale, expected_params.scale)
    np.testing.assert_array_equal(params.zero_point, expected_params.zero_point)
    expected = quantize_array(X, params)
    np.testing.assert_array_equal(quantize_array(x, params).data, expected.data)
    np.testing.assert_array_equal(fake_quantize_array(x, params), expected.dequantize())
    seen, expected_seen = ops.TensorStatistics(), ops.TensorStatistics()
    observe_many([seen, expected_seen], [x, X])
    assert seen == expected_seen


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in {"float64", "longdouble"}])
@pytest.mark.parametrize("dtype", [QuantType.INT16, QuantType.UINT8])
def test_integer_layout_does_not_matter(layout: str, dtype: QuantType) -> None:
    params = params_from_data(X, QuantScheme(dtype, granularity=PerChannel(-1)))
    q = quantize_array(X, params)
    other = QuantizedTensor(LAYOUTS[layout](q.data), params)
    np.testing.assert_array_equal(other.dequantize(), q.dequantize())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint16", "int64", "bool"])
def test_other_numbers_are_float32_first(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.abs(X).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    params = params_from_data(x, UINT8)
    np.testing.assert_array_equal(quantize_array(x, params).data, quantize_array(x.astype(np.float32), params).data)


OTHERS = [np.ones(3, complex), np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")])]


@pytest.mark.parametrize("x", OTHERS, ids=lambda x: str(x.dtype))
@pytest.mark.parametrize(
    "call",
    [
        as_float32,
        lambda x: params_from_data(x, UINT8),
        lambda x: quantize_array(x, PARAMS),
        lambda x: observe_many([ops.TensorStatistics()], [x]),
        lambda x: observe_request(ops.TensorStatistics(), x, QuantType.UINT8),
    ],
)
def test_other_dtypes_are_type_errors(x: NDArray[Any], call: Callable[[NDArray[Any]], object]) -> None:
    with pytest.raises(TypeError, match=re.escape(f"expected an array of real numbers, got dtype {x.dtype}")):
        call(x)


@pytest.mark.parametrize(
    "call",
    [
        Observer().observe,
        lambda x: ObserverSet().observe({"x": x}),
        lambda x: params_from_data(x, UINT8),
        lambda x: quantize_array(x, PARAMS),
        lambda x: fake_quantize_array(x, PARAMS),
    ],
)
def test_masked_values_are_refused(call: Callable[[NDArray[Any]], object]) -> None:
    x = np.ma.masked_array(np.ones(3, np.float32), mask=[True, False, False])
    with pytest.raises(TypeError, match=r"without masked values; take the valid ones, x.compressed\(\), or fill them"):
        call(x)
    call(x[1:])  # nothing in it is masked
    call(x.compressed())


@pytest.mark.parametrize("held", [np.uint16, np.int32, np.int64, np.dtype(np.uint16).newbyteorder("S")])
@pytest.mark.parametrize("layout", [np.asarray, read_only, strided, misaligned])
def test_zero_points_of_any_dtype_and_layout(held: Any, layout: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    scheme = QuantScheme(QuantType.UINT16, granularity=PerChannel(1))
    scale, zero_point = np.full(6, 0.01, np.float32), np.array([0, 1, 300, 40_000, 65_535, 7], np.uint16)
    params = QuantParams(scale, layout(zero_point.astype(held)), scheme)
    expected = np.clip(np.rint(X / scale[:, None]) + zero_point[:, None], 0, 65_535).astype(np.uint16)
    got = quantize_array(X, params)
    np.testing.assert_array_equal(got.data, expected)
    np.testing.assert_array_equal(
        dequantize_array(got),
        (expected.astype(np.int32) - zero_point[:, None]).astype(np.float32) * scale[:, None],
    )


class Foreign:
    """An array of another library: nothing but DLPack."""

    def __init__(self, array: NDArray[Any], device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


def test_dlpack_is_taken_from_host_memory() -> None:
    expected = quantize_array(X, PARAMS)
    foreign: Any = Foreign(X)
    np.testing.assert_array_equal(quantize_array(foreign, PARAMS).data, expected.data)
    np.testing.assert_array_equal(fake_quantize_with_mask(foreign, PARAMS)[0], expected.dequantize())
    np.testing.assert_array_equal(as_float32(foreign), X)
    integers: Any = Foreign(expected.data)
    np.testing.assert_array_equal(dequantize_array(QuantizedTensor(integers, expected.params)), expected.dequantize())
    elsewhere: Any = Foreign(X, device=2)
    with pytest.raises(TypeError, match="expected an array in host memory, got DLPack device type 2; copy it"):
        quantize_array(elsewhere, PARAMS)
