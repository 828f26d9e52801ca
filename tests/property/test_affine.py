"""Laws of the affine map over random shapes, types and values, against the specification's formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from requant.arrays.affine import (
    dequantize_packed,
    fake_quantize_array,
    fake_quantize_with_mask,
    params_from_data,
    quantize_array,
    quantize_packed,
)
from requant.arrays.slices import scale_shape
from requant.types import Granularity, PerBlock, PerChannel, PerTensor, PerToken, QuantParams, QuantScheme, QuantType

FLOATS = st.floats(width=32)
SCALES = st.floats(2.0**-126, 2.0**120, width=32) | st.sampled_from([0.5, 1.0, 2.0])


@st.composite
def granularities(draw: st.DrawFn, rank: int) -> Granularity:
    axis = draw(st.integers(-rank, rank - 1))
    kinds: list[Granularity] = [PerTensor(), PerToken(), PerChannel(axis), PerBlock(axis, draw(st.integers(1, 5)))]
    return draw(st.sampled_from(kinds))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, QuantParams]:
    shape = draw(hnp.array_shapes(max_dims=4, max_side=6, min_side=0))
    x = draw(hnp.arrays(np.float32, shape, elements=FLOATS))
    granularity = draw(granularities(len(shape)))
    narrow = draw(st.booleans())
    scheme = QuantScheme(draw(st.sampled_from(QuantType)), draw(st.booleans()), granularity, narrow)
    dtype = scheme.dtype
    params_shape = scale_shape(shape, granularity)
    scale = draw(hnp.arrays(np.float32, params_shape, elements=SCALES))
    zero_point = draw(hnp.arrays(dtype.numpy, params_shape, elements=st.integers(dtype.min + narrow, dtype.max)))
    return x, QuantParams(scale, zero_point, scheme)


def spread(params: Any, x: Any, granularity: Granularity) -> Any:
    """One parameter for each element of ``x``."""
    match granularity:
        case PerTensor():
            return params
        case PerChannel(axis):
            return np.moveaxis(np.broadcast_to(params, (*np.moveaxis(x, axis, -1).shape,)), -1, axis)
        case PerToken():
            return params[..., None]
        case PerBlock(axis, size):
            return np.repeat(params, size, axis).take(range(x.shape[axis]), axis)


@given(cases())
def test_equals_the_formula(case: tuple[Any, QuantParams]) -> None:
    x, params = case
    dtype, granularity = params.scheme.dtype, params.scheme.granularity
    scale = spread(params.scale, x, granularity)
    zero_point = spread(params.zero_point, x, granularity).astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        quotient = (x / scale).astype(np.float64)
    expected = np.clip(np.rint(quotient) + zero_point, dtype.min + params.scheme.narrow, dtype.max)
    expected = np.where(np.isnan(x), zero_point, expected)
    q = quantize_array(x, params)
    np.testing.assert_array_equal(q.data, expected)
    with np.errstate(over="ignore", under="ignore"):
        reals = ((expected - zero_point) * scale.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(q.dequantize(), reals)
    np.testing.assert_array_equal(fake_quantize_array(x, params), reals)


@given(cases(), st.sampled_from([None, 1, 3]), st.sampled_from(["float32", "float16"]))
def test_every_way_gives_the_same_bits(case: tuple[Any, QuantParams], threads: int | None, dtype: str) -> None:
    x, params = case
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        x = x.astype(dtype)
    q = quantize_array(x, params)
    out = np.empty_like(q.data)
    assert quantize_array(x.astype(np.float32), params, threads=threads, out=out).data is out
    np.testing.assert_array_equal(out, q.data)
    fake, mask = fake_quantize_with_mask(x, params, threads=threads)
    np.testing.assert_array_equal(fake, q.dequantize())
    inside = (q.data > params.scheme.dtype.min + params.scheme.narrow) & (q.data < params.scheme.dtype.max)
    assert mask[inside & ~np.isnan(x)].all()
    assert not mask[np.isnan(x)].any()
    if params.scheme.dtype.bits <= 4:
        packed = quantize_packed(x, params, threads=threads)
        np.testing.assert_array_equal(dequantize_packed(packed, x.shape, params), q.dequantize())


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=3, max_side=6),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    ),
    st.data(),
)
def test_parameters_from_data_cover_it(x: Any, data: st.DataObject) -> None:
    granularity = data.draw(granularities(x.ndim))
    symmetric = data.draw(st.booleans())
    dtype = data.draw(st.sampled_from(QuantType))
    params = params_from_data(x, QuantScheme(dtype, symmetric, granularity, symmetric and data.draw(st.booleans())))
    assert (params.scale >= np.finfo(np.float32).tiny).all()
    error = np.abs(fake_quantize_array(x, params).astype(np.float64) - x)
    # Scale, quotient and product are each rounded to 24 bits; the quotient is at most 65535.
    assert (error <= spread(params.scale, x, granularity) * np.float64(0.512)).all()
