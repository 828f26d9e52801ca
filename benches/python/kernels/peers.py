"""onnxruntime as a peer: one node, everything but its first input constant, one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable


def one_node(
    op_type: str,
    x: np.ndarray,
    constants: dict[str, np.ndarray],
    *,
    output: int | type[np.generic],
    order: tuple[str, ...] = (),
    domain: str = "",
    threads: int = 1,
    **attributes: Any,
) -> Callable[[], Any]:
    """The node ready to run on ``x``; its inputs are ``x`` and the constants, or what ``order`` names."""
    kind = output if isinstance(output, int) else helper.np_dtype_to_tensor_dtype(np.dtype(output))
    node = helper.make_node(op_type, order or ("x", *constants), ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    run = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run
    feeds = {"x": x}
    return lambda: run(None, feeds)


def versions() -> str:
    """For the head of a record."""
    return f"onnxruntime {onnxruntime.__version__}, NumPy {np.__version__}, onnx {onnx.__version__}"
