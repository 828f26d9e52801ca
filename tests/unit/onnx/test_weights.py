"""Weights of a graph with rows along the axis that their products sum over."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from requant.onnx.graph import Graph
from requant.onnx.weights import stored_weights

RNG = np.random.default_rng(0)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], inputs: dict[str, list[int]]) -> Graph:
    made = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in node.input}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(made - used)]
    fed = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    main = helper.make_graph(nodes, "g", fed, outputs, tensors)
    return Graph.load(helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def reals(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("trans", [0, 1])
def test_products_sum_over_the_last_axis(trans: int) -> None:
    w, gemm, bias = reals(4, 6), reals(*((5, 6) if trans else (6, 5))), reals(5)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "gemm", "bias"], ["y"], transB=trans),
    ]
    found = {s.name: s for s in stored_weights(graph(nodes, {"w": w, "gemm": gemm, "bias": bias}, {"x": [2, 4]}))}
    assert np.array_equal(found["w"].read(), w.T)
    assert np.array_equal(found["gemm"].read(), gemm if trans else gemm.T)
    assert (found["w"].activation, found["gemm"].activation) == ("x", "h")
    assert (found["bias"].shape, found["bias"].used, found["bias"].activation) == ((5,), False, None)
    for stored in found.values():
        array = stored.read()
        assert array.shape == stored.shape
        assert array.flags.c_contiguous


def test_weights_behind_transpose_identity_and_cast() -> None:
    w, half = reals(6, 4), reals(4, 6).astype(np.float16)
    nodes = [
        helper.make_node("Identity", ["w"], ["i"]),
        helper.make_node("Transpose", ["i"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
        helper.make_node("Cast", ["half"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["z"]),
    ]
    found = {s.name: s for s in stored_weights(graph(nodes, {"w": w, "half": half}, {"x": [2, 4]}))}
    assert np.array_equal(found["w"].read(), w)
    assert np.array_equal(found["half"].read(), half.T.astype(np.float32))
    assert found["w"].activation == found["half"].activation == "x"


def test_a_tied_embedding_is_as_it_is_looked_up() -> None:
    table = reals(9, 4)
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("Transpose", ["table"], ["t"]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    (found,) = stored_weights(graph(nodes, {"table": table}, {"x": [3]}))
    assert np.array_equal(found.read(), table)
    assert found.activation == "h"


def test_readers_that_do_not_agree_leave_a_weight_as_stored() -> None:
    w = reals(4, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    (found,) = stored_weights(graph(nodes, {"w": w}, {"x": [2, 4]}))
    assert np.array_equal(found.read(), w)
    assert found.activation is None


def test_weights_on_the_left_stacks_and_convolutions() -> None:
    left, stack, filters = reals(3, 4), reals(2, 4, 5), reals(3, 1, 3, 3)
    nodes = [
        helper.make_node("MatMul", ["left", "x"], ["y"]),
        helper.make_node("MatMul", ["s", "stack"], ["z"]),
        helper.make_node("Conv", ["image", "filters"], ["f"]),
    ]
    inputs = {"x": [4, 2], "s": [2, 3, 4], "image": [1, 1, 8, 8]}
    constants = {"left": left, "stack": stack, "filters": filters}
    found = {s.name: s for s in stored_weights(graph(nodes, constants, inputs))}
    assert np.array_equal(found["left"].read(), left)
    assert found["left"].activation is None  # its columns meet rows of x
    assert np.array_equal(found["stack"].read(), stack.swapaxes(1, 2))
    assert found["stack"].activation == "s"
    assert np.array_equal(found["filters"].read(), filters)
    assert found["filters"].used


def test_constants_that_are_no_weights() -> None:
    scalar, ids = np.array(2.0, np.float32), np.array([1, 2], np.int64)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(reals(4))),
        helper.make_node("Mul", ["x", "scalar"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["i"]),
        helper.make_node("Reshape", ["i", "ids"], ["y"]),
    ]
    ids[:] = [4, 2]
    found = stored_weights(graph(nodes, {"scalar": scalar, "ids": ids}, {"x": [2, 4]}))
    assert [s.name for s in found] == ["c"]
