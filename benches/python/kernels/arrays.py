"""Quantizing, dequantizing and packing arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import peers
from harness import Claim, Row

import requant
from requant import PerBlock, PerChannel, PerTensor, PerToken, QuantScheme, QuantType

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = {"64 Ki": 1 << 16, "16 Mi": 1 << 24}
SCALE, ZERO_POINT = 0.03, 128


def rows(vnni: bool) -> Iterator[Row]:  # noqa: ARG001 - the asked ratios are those of every machine
    for name, size in SIZES.items():
        x = np.random.default_rng(0).normal(size=size).astype(np.float32)
        yield quantize(name, x)
        yield granularities(name, x.reshape(-1, 1024))
        yield dequantize(name, x)
        yield fake_quantize(name, x)
        yield packing(name, size)


def tensor_params(x: np.ndarray, granularity: Any = None) -> requant.QuantParams:
    return requant.params_from_data(x, QuantScheme(QuantType.UINT8, granularity=granularity or PerTensor()))


def constants() -> dict[str, np.ndarray]:
    return {"s": np.asarray(SCALE, np.float32), "z": np.asarray(ZERO_POINT, np.uint8)}


def quantize(name: str, x: np.ndarray) -> Row:
    params, out = tensor_params(x), np.empty(x.shape, np.uint8)
    runs = {
        "requant": lambda: requant.quantize_array(x, params, threads=1),
        "requant, out=": lambda: requant.quantize_array(x, params, threads=1, out=out),
        "onnxruntime QuantizeLinear": peers.one_node("QuantizeLinear", x, constants(), output=np.uint8),
        "NumPy": lambda: np.clip(np.rint(x / np.float32(SCALE)) + ZERO_POINT, 0, 255).astype(np.uint8),
    }
    at_least = 2 if x.size < 1 << 20 else 1
    claims = tuple(Claim(own, "onnxruntime QuantizeLinear", at_least) for own in ("requant", "requant, out="))
    return Row("quantize to uint8", name, x.size, "value", runs, claims)


def granularities(name: str, x: np.ndarray) -> Row:
    kinds = {
        "per tensor": None,
        "per channel, axis 0": PerChannel(0),
        "per channel, last axis": PerChannel(1),
        "per token": PerToken(),
        **{f"blocks of {size}": PerBlock(1, size) for size in (16, 32, 128)},
    }
    out = np.empty(x.shape, np.uint8)
    runs = {}
    for kind, granularity in kinds.items():
        params = tensor_params(x, granularity)
        runs[kind] = lambda params=params: requant.quantize_array(x, params, threads=1, out=out)
    claims = tuple(Claim(kind, "per tensor", round(1 / 1.3, 3)) for kind in list(kinds)[1:])
    return Row("quantize to uint8, granularity", name, x.size, "value", runs, claims)


def dequantize(name: str, x: np.ndarray) -> Row:
    quantized, out = requant.quantize_array(x, tensor_params(x)), np.empty(x.shape, np.float32)
    peer = peers.one_node("DequantizeLinear", quantized.data, constants(), output=np.float32)
    runs = {
        "requant": lambda: requant.dequantize_array(quantized, threads=1),
        "requant, out=": lambda: requant.dequantize_array(quantized, threads=1, out=out),
        "onnxruntime DequantizeLinear": peer,
    }
    at_least = 1.5 if x.size < 1 << 20 else 1.1
    claims = tuple(Claim(own, "onnxruntime DequantizeLinear", at_least) for own in ("requant", "requant, out="))
    return Row("dequantize from uint8", name, x.size, "value", runs, claims)


def fake_quantize(name: str, x: np.ndarray) -> Row:
    params, out, scale = tensor_params(x), np.empty(x.shape, np.float32), np.float32(SCALE)
    runs = {
        "requant": lambda: requant.fake_quantize_array(x, params, threads=1),
        "requant, out=": lambda: requant.fake_quantize_array(x, params, threads=1, out=out),
        "NumPy": lambda: (np.clip(np.rint(x / scale) + ZERO_POINT, 0, 255) - ZERO_POINT) * scale,
    }
    claims = tuple(Claim(own, "NumPy", 15) for own in ("requant", "requant, out="))
    return Row("fake-quantize to uint8", name, x.size, "value", runs, claims)


def packing(name: str, size: int) -> Row:
    q = np.random.default_rng(0).integers(-8, 8, size, np.int8)
    packed = requant.pack_int4(q)
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.INT4, [size], packed.tobytes(), raw=True)
    runs = {
        "pack": lambda: requant.pack_int4(q),
        "unpack": lambda: requant.unpack_int4(packed, (size,), QuantType.INT4),
        "onnx pack": lambda: onnx.numpy_helper._pack_4bitx2(q),  # noqa: SLF001 - there is no public one
        "onnx unpack": lambda: onnx.numpy_helper.to_array(tensor),
    }
    claims = (Claim("pack", "onnx pack", 8), Claim("unpack", "onnx unpack", 4))
    return Row("int4", name, size, "value", runs, claims)
