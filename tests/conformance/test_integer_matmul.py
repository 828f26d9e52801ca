"""MatMulInteger and QLinearMatMul: ONNX's own node tests, and onnxruntime on random models, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.conformance.cases import assert_same, collect, flat, op_type

from requant.arrays.epilogue import Requantizer
from requant.arrays.matmul import PackedWeights, qmatmul

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPS = ["MatMulInteger", "QLinearMatMul"]


CASES = collect(OPS)


def qlinear(inputs: list[NDArray[Any]]) -> NDArray[Any]:
    """QLinearMatMul on matrices, from its inputs in the order of ONNX."""
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point = inputs
    requantizer = Requantizer(
        a_scale.item(),
        b_scale,
        y_scale.item(),
        y_zero_point=y_zero_point.item(),
        dtype=y_zero_point.dtype.name,  # type: ignore[arg-type]
    )
    return qmatmul(
        a, PackedWeights(b, zero_point=flat(b_zero_point)), a_zero_point=flat(a_zero_point), requantizer=requantizer
    )


def test_the_cases_are_there() -> None:
    assert {op_type(case) for case in CASES.values()} == set(OPS)


@pytest.mark.parametrize("name", CASES)
def test_node(name: str) -> None:
    case = CASES[name]
    assert case.data_sets
    inputs, outputs = map(list, case.data_sets[0])
    if op_type(case) == "MatMulInteger":
        a, b, a_zero_point, b_zero_point = inputs
        assert_same(
            qmatmul(a, PackedWeights(b, zero_point=flat(b_zero_point)), a_zero_point=flat(a_zero_point)), outputs[0]
        )
        return
    if inputs[1].dtype != np.float32:
        # Scales of float16: the numbers are the same in float32.
        inputs = [x.astype(np.float32) if x.dtype == np.float16 else x for x in inputs]
    a, b = inputs[0], inputs[3]
    if b.ndim == 2:
        assert_same(qlinear(inputs), outputs[0])
        return
    # A stack of matrices on the right is a product for each.
    stacked = [qlinear([x, *inputs[1:3], y, *inputs[4:]]) for x, y in zip(a, b, strict=True)]
    assert_same(np.stack(stacked), outputs[0])


def run(op: str, names: list[str], inputs: list[NDArray[Any]], output: type[np.generic]) -> NDArray[Any]:
    """One node in onnxruntime; all inputs but the first are constants, as weights are."""
    ort = pytest.importorskip("onnxruntime")
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"])],
        op,
        [helper.make_tensor_value_info("a", kind(inputs[0].dtype), list(inputs[0].shape))],
        [helper.make_tensor_value_info("y", kind(np.dtype(output)), None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names[1:], inputs[1:], strict=True)],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"a": inputs[0]})
    return np.asarray(result)


SHAPES = [(1, 1, 1), (1, 64, 40), (5, 33, 17), (32, 128, 48), (67, 200, 31)]


def weights(rng: np.random.Generator, dtype: type[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Signed ones of 6 bits: on a CPU without VNNI onnxruntime saturates pairs of products beyond 16 bits."""
    low, high = (0, 256) if dtype is np.uint8 else (-32, 32)
    return rng.integers(low, high, shape, dtype)


@pytest.mark.parametrize("b_type", [np.uint8, np.int8])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matmulinteger_equals_onnxruntime(shape: tuple[int, int, int], b_type: type[Any], each: bool) -> None:
    (m, k, n), rng = shape, np.random.default_rng(0)
    a, b = rng.integers(0, 256, (m, k), np.uint8), weights(rng, b_type, (k, n))
    zero_points = [np.asarray(rng.integers(0, 256), np.uint8), weights(rng, b_type, (1, n))[0] if each else b[0, 0]]
    inputs = [a, b, *map(np.asarray, zero_points)]
    expected = run(OPS[0], ["a", "b", "a_zero_point", "b_zero_point"], inputs, np.int32)
    got = qmatmul(a, PackedWeights(b, zero_point=flat(inputs[3])), a_zero_point=inputs[2])
    assert_same(got, expected)


@pytest.mark.parametrize("b_type", [np.uint8, np.int8])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_qlinearmatmul_equals_onnxruntime(
    shape: tuple[int, int, int], b_type: type[Any], each: bool, ties: bool
) -> None:
    (m, k, n), rng = shape, np.random.default_rng(1)
    a, b = rng.integers(0, 256, (m, k), np.uint8), weights(rng, b_type, (k, n))
    count = n if each else 1
    spread = 150 * (74 if b_type is np.uint8 else 18) * k**0.5
    # Powers of two make ties of every other sum; random scales make none.
    b_scale = 2.0 ** rng.integers(-2, 2, count) if ties else rng.random(count) + 0.1
    y_scale = 2.0 ** np.round(np.log2(spread / 100)) if ties else spread / 100 * 0.77
    b_zero_point = np.full(count, 120 if b_type is np.uint8 else -3, b_type)
    if not each:
        b_scale, b_zero_point = b_scale.reshape(()), b_zero_point.reshape(())
    a_scale = 1.0 if ties else 0.713
    inputs = [
        a, np.asarray(a_scale, np.float32), np.asarray(131, np.uint8),
        b, b_scale.astype(np.float32), b_zero_point,
        np.asarray(y_scale, np.float32), np.asarray(99, np.uint8),
    ]  # fmt: skip
    names = ["a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point"]
    expected = run(OPS[1], names, inputs, np.uint8)
    got = qlinear(inputs)
    assert_same(got, expected)
    if got.size > 500:
        assert np.mean((got > 0) & (got < 255)) > 0.5, "most results lie within the range"
