"""Einsums that are matrix products become MatMul, and give the same; onnxruntime's Einsum is the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, strategies as st
from onnx import helper, numpy_helper
from tests.models import Net, run

import requant
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.passes.einsum import letters

if TYPE_CHECKING:
    from collections.abc import Mapping


SIZES = {"b": 2, "n": 3, "s": 4, "t": 5, "h": 6, "d": 7, "e": 8, "0": 3, "1": 2}
DYNAMIC = "bst"


def model(
    equation: str, shapes: Mapping[str, list[int]], constants: str, *, dynamic: bool, opset: int = 17
) -> onnx.ModelProto:
    """One Einsum of inputs ``x`` and ``y`` or constants of these names; ``dynamic`` leaves some sizes open."""
    rng = np.random.default_rng(0)
    terms = equation.partition("->")[0].split(",")
    weights = [
        numpy_helper.from_array(rng.standard_normal(shapes[name]).astype(np.float32), name) for name in constants
    ]
    inputs = [
        helper.make_tensor_value_info(
            name,
            onnx.TensorProto.FLOAT,
            [
                f"{name}{i}" if dynamic and (letter in DYNAMIC or "." in term) else size
                for i, (letter, size) in enumerate(zip(term.ljust(len(shapes[name])), shapes[name], strict=False))
            ],
        )
        for name, term in zip(shapes, terms, strict=True)
        if name not in constants
    ]
    node = helper.make_node("Einsum", list(shapes), ["z"], name="contraction", equation=equation)
    out = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def prepared(proto: onnx.ModelProto, shapes: Mapping[str, list[int]]) -> Graph:
    """``proto`` after preparation, which must not have changed what it gives."""
    graph = Graph.load(proto.SerializeToString())
    found, _ = prepare(graph)
    onnx.checker.check_model(onnx.load_from_string(found.to_bytes()), full_check=True)
    rng = np.random.default_rng(1)
    feeds = {spec.name: rng.standard_normal(shapes[spec.name]).astype(np.float32) for spec in graph.inputs}
    (wanted,), (got,) = run(proto, feeds), run(found.to_bytes(), feeds)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    return found


def shapes_of(equation: str) -> dict[str, list[int]]:
    terms = equation.partition("->")[0].split(",")
    return {name: [SIZES[a] for a in term] for name, term in zip("xy", terms, strict=False)}


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    ("equation", "constants", "ops"),
    [
        ("bsd,de->bse", "y", {"MatMul"}),
        ("bsd,ed->bse", "y", {"MatMul"}),
        ("de,bsd->bse", "x", {"MatMul"}),
        ("sd,de", "y", {"MatMul"}),
        ("bsd,dnh->bsnh", "y", {"MatMul", "Reshape"}),
        ("bsd,ndh->bsnh", "y", {"MatMul", "Reshape"}),
        ("bsd,dnh->bnsh", "y", {"MatMul", "Reshape", "Transpose"}),
        ("bsnh,nhd->bsd", "y", {"Reshape", "MatMul"}),
        ("bsnh,dhn->bsd", "y", {"Reshape", "MatMul"}),
        ("bnsh,nhd->bsd", "y", {"Transpose", "Reshape", "MatMul"}),
        ("bnsd,bntd->bnst", "", {"Transpose", "MatMul"}),
        ("bsnd,btnd->bnst", "", {"Transpose", "MatMul"}),
        ("btnd,bsnd->bnst", "", {"Transpose", "MatMul"}),
        ("bnst,bntd->bsnd", "", {"Transpose", "MatMul"}),
        ("bnd,ndh->bnh", "y", {"Transpose", "MatMul"}),
        ("bd,bdh->bh", "", {"Unsqueeze", "MatMul", "Squeeze"}),
        ("bsd,d->bs", "y", {"MatMul", "Squeeze"}),
        ("bstd,bedt->bse", "", {"Transpose", "Reshape", "MatMul"}),
        ("bsd,btde->bste", "", {"MatMul"}),
        ("bdst,dn->bnst", "y", {"Transpose", "MatMul"}),
    ],
)
def test_products_become_matmul(equation: str, constants: str, ops: set[str], dynamic: bool) -> None:
    shapes = shapes_of(equation)
    for opset in (13, 21):
        graph = prepared(model(equation, shapes, constants, dynamic=dynamic, opset=opset), shapes)
        assert ops <= {node.op_type for node in graph.nodes} <= ops | {"Transpose", "Reshape", "Unsqueeze"}
        (product,) = (node for node in graph.nodes if node.op_type == "MatMul")
        assert product.name == "contraction"
        if constants:
            assert product.inputs[1] is not None
            assert product.inputs[1].name in graph.model.graph.initializers
            assert graph.model.graph.initializers.keys() == {
                value.name for node in graph.nodes for value in node.inputs if value and value.const_value is not None
            }


@pytest.mark.parametrize(
    ("equation", "x", "y", "constants"),
    [
        ("...d,de->...e", [2, 3, 7], [7, 8], "y"),
        ("...ij,...jk->...ik", [2, 3, 4, 5], [2, 3, 5, 6], ""),
        ("...ij,...jk->...ik", [2, 1, 4, 5], [1, 3, 5, 6], ""),
        ("...ij,jk", [2, 3, 5], [5, 6], "y"),
        ("b...d,d...->b...", [2, 3, 7], [7, 3], ""),
        ("bij,bjk->bik", [1, 4, 5], [3, 5, 6], ""),
        ("bij,bjk->bik", [3, 4, 5], [1, 5, 6], "y"),
    ],
)
def test_ellipses_and_axes_of_size_one(equation: str, x: list[int], y: list[int], constants: str) -> None:
    for dynamic in (True, False):
        shapes = {"x": x, "y": y}
        graph = prepared(model(equation, shapes, constants, dynamic=dynamic), shapes)
        assert "Einsum" not in {node.op_type for node in graph.nodes}


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("bsd->bds", [2, 4, 7], None),
        ("iij,jk->ik", [3, 3, 4], [4, 5]),  # a diagonal
        ("bsd,de->be", [2, 4, 7], [7, 8]),  # rows are summed
        ("bs,bd->bsd", [2, 4], [2, 7]),  # nothing is
        ("bd,bd->bd", [2, 7], [2, 7]),
        ("ij,jk->ik", [3, 1], [4, 5]),  # a column that is repeated
    ],
)
def test_what_is_no_product_stays(equation: str, x: list[int], y: list[int] | None) -> None:
    shapes = {"x": x} if y is None else {"x": x, "y": y}
    graph = prepared(model(equation, shapes, "", dynamic=False), shapes)
    assert "Einsum" in {node.op_type for node in graph.nodes}


@st.composite
def products(draw: st.DrawFn) -> tuple[str, dict[str, list[int]], str, bool]:
    """A random product in a random order of letters."""
    kinds = {kind: draw(st.integers(int(kind == "terms"), 2)) for kind in ("batch", "rows", "columns", "terms")}
    drawn = iter(draw(st.permutations("bnsthdeu")))
    found = {kind: "".join(next(drawn) for _ in range(count)) for kind, count in kinds.items()}
    orders = [
        found["batch"] + found["rows"] + found["terms"],
        found["batch"] + found["columns"] + found["terms"],
        found["batch"] + found["rows"] + found["columns"],
    ]
    x, y, z = ("".join(draw(st.permutations(order))) for order in orders)
    sizes = SIZES | {"u": draw(st.sampled_from([1, 3]))}
    shapes = {name: [sizes[a] for a in axes] for name, axes in (("x", x), ("y", y))}
    return f"{x},{y}->{z}", shapes, draw(st.sampled_from(["", "x", "y"])), draw(st.booleans())


@given(products())
def test_any_product_gives_the_same(product: tuple[str, dict[str, list[int]], str, bool]) -> None:
    equation, shapes, constants, dynamic = product
    graph = prepared(model(equation, shapes, constants, dynamic=dynamic), shapes)
    assert "Einsum" not in {node.op_type for node in graph.nodes}
    assert "MatMul" in {node.op_type for node in graph.nodes}


def test_letters_of_an_equation() -> None:
    assert letters(" b s d , d e ", [3, 2]) == (["bsd", "de"], "bes")
    assert letters("...ij,...jk", [3, 4]) == (["1ij", "01jk"], "01ik")
    assert letters("...ij,jk->ik...", [None, 2]) is None
    assert letters("...ij", [1]) is None
    assert letters("ij", [2, 2]) is None


def attention(*, einsum: bool) -> onnx.ModelProto:
    """Self-attention of four heads, with its products written as Einsum, or as MatMul between transposes."""
    net = Net()
    x = net.input("x", ["n", 6, 32])
    heads: list[Any] = []
    for _ in range(3):
        w = net.normal(32, 4, 8, scale=0.2) if einsum else net.normal(32, 32, scale=0.2)
        if einsum:
            heads.append(net.op("Einsum", x, w, equation="bsd,dnh->bsnh"))
        else:
            heads.append(net.op("Reshape", net.op("MatMul", x, w), net.const(np.array([0, 0, 4, 8]))))
    q, k, v = heads
    if einsum:
        scores = net.op("Einsum", q, k, equation="bqnh,bknh->bnqk")
    else:
        q, k = net.op("Transpose", q, perm=[0, 2, 1, 3]), net.op("Transpose", k, perm=[0, 2, 3, 1])
        scores = net.op("MatMul", q, k)
    shares = net.op("Softmax", scores, axis=-1)
    w = net.normal(32, 32, scale=0.2)
    if einsum:
        mixed = net.op("Einsum", shares, v, equation="bnqk,bknh->bqnh")
        w = net.op("Reshape", w, net.const(np.array([4, 8, 32])))
        return net.model(net.op("Einsum", mixed, w, equation="bsnh,nhd->bsd"))
    mixed = net.op("Transpose", net.op("MatMul", shares, net.op("Transpose", v, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return net.model(net.op("MatMul", net.op("Reshape", mixed, net.const(np.array([0, 0, 32]))), w))


def test_attention_in_einsums_is_treated_as_attention_in_products() -> None:
    x = np.random.default_rng(2).standard_normal((64, 6, 32)).astype(np.float32)
    counts, outputs = [], []
    for einsum in (True, False):
        proto = attention(einsum=einsum)
        result = requant.quantize(proto.SerializeToString(), {"x": x[:48]}, threads=1)
        counts.append(dict(result.report.quantized))
        outputs.append((run(proto, {"x": x[48:]})[0], run(result.data, {"x": x[48:]})[0]))
    assert counts[0] == counts[1]
    assert counts[0]["MatMul"] >= 4
    np.testing.assert_allclose(outputs[0][0], outputs[1][0], rtol=1e-4, atol=1e-5)
    errors = [float(np.mean((got - wanted) ** 2) / np.mean(wanted**2)) for wanted, got in outputs]
    assert errors[0] < 2 * errors[1] < 0.01
