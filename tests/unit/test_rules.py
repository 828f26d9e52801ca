"""Wishes for single nodes and tensors: what they match, what they change, and what is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import Net, samples

import requant
from requant import QuantConfig
from requant.config.rules import Rule
from requant.errors import ConfigError
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.stages import load_float

if TYPE_CHECKING:
    from requant.planning.plan import QuantPlan


def net() -> bytes:
    """conv (stem) -> Relu -> conv (body.0) -> Sigmoid -> conv (body(1)"""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.op("Relu", net.conv(x, 3, 4, name="stem"), name="act", output="a")
    b = net.op("Sigmoid", net.conv(a, 4, 4, name="body.0"), name="gate", output="b")
    model: bytes = net.model(net.conv(b, 4, 4, name="body(1", bias=False)).SerializeToString()
    return model


def plan(**options: Any) -> QuantPlan:
    graph, _ = prepare(load_float(net()))
    return build_plan(graph, QuantConfig(**options))


def quantized(**options: Any) -> set[str]:
    return {node.name for node in plan(**options).nodes}


ALL = {"stem", "body.0", "gate", "body(1"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"exclude": "stem"}, ALL - {"stem"}),
        ({"exclude": ["body(1"]}, {"stem", "body.0"}),  # no regular expression, but a name; nothing reads the gate
        ({"exclude": [r"body\.\d"]}, {"stem", "body(1"}),
        ({"exclude": ["Conv"]}, set()),
        ({"include": ["Conv"]}, ALL - {"gate"}),
        ({"include": ["body.*", "gate"], "exclude": ["body.0"]}, {"body(1"}),
        ({"exclude": ["Conv"], "rules": [{"match": "stem", "quantize": True}]}, {"stem"}),
        ({"rules": [Rule("stem", quantize=True), Rule("stem", quantize=False)]}, ALL - {"stem"}),
        ({"exclude": ["b"]}, ALL - {"gate"}),  # by the tensor it gives
    ],
)
def test_nodes_are_left_in_float(options: dict[str, Any], expected: set[str]) -> None:
    assert quantized(**options) == expected


def test_the_reason_names_the_rule() -> None:
    reasons = {skip.node: skip.reason for skip in plan(exclude=["stem"]).skipped}
    assert reasons["stem"] == "excluded by 'stem'"
    assert {skip.reason for skip in plan(include=["Conv"]).skipped} == {"it is not included"}
    assert {skip.reason for skip in plan(exclude=[".*"]).skipped} == {"excluded by '.*'"}


@pytest.mark.parametrize("options", [{"exclude": ["stam"]}, {"include": ["stam"]}, {"rules": [Rule("stam", clip=1)]}])
def test_what_matches_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'stam' matches no node, op type or tensor of the model; did you mean 'stem"):
        plan(**options)


@pytest.mark.parametrize(
    ("match", "meant"),
    [
        ("CONV", "did you mean 'Conv'?"),
        ("tem", "did you mean '.*tem.*', as in 'stem'?"),
        ("^ste$", "did you mean '.*ste.*', as in 'stem'?"),
        ("c0", "did you mean 'stem', the Conv that reads it?"),
    ],
)
def test_what_is_part_of_a_name_or_reads_a_weight_is_suggested(match: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"matches no node, op type or tensor of the model; {meant}")):
        plan(exclude=[match])


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: dict[str, Any] = {"range": np.array([0, 1], np.float32), "clip": np.float32(2)}
    of_numpy = Rule("x", **numbers)
    assert of_numpy == Rule("x", range=(0.0, 1.0), clip=2.0)
    numbers = {"scale": np.float32(0.5), "zero_point": np.uint8(3)}
    assert Rule("x", **numbers) == Rule("x", scale=0.5, zero_point=3)
    assert "clip = 2.0" in QuantConfig(rules=(of_numpy,)).to_toml()


def test_ranges_are_fixed_clipped_and_chosen_by_another_method() -> None:
    data = samples_of(net())
    options: dict[str, Any] = {"rules": [Rule("x", range=(-2, 3)), Rule("Conv", clip=0.25), Rule("b", method="minmax")]}
    result = requant.quantize(net(), data, **options)
    tensors, table = result.plan.tensors, result.table
    assert table is not None
    assert (tensors["x"].fixed, tensors["b"].method) == (requant.Range(-2.0, 3.0), "minmax")
    ranges = table.ranges(result.plan, QuantConfig(**options))
    assert ranges["a"] == requant.Range(0.0, 0.25)  # behind the clamp of a convolution
    assert "x" not in table  # a fixed range needs no data


def samples_of(model: bytes) -> dict[str, Any]:
    import onnx

    return samples(onnx.load_from_string(model), 16)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"match": ""}, "a rule's match is ''"),
        ({"quantize": False}, "has no match"),
        ({"match": "a"}, "says nothing"),
        ({"match": "a", "qantize": False}, "did you mean 'quantize'"),
        ({"match": "a", "quantize": "no"}, "expected true or false"),
        ({"match": "a", "clip": 0}, "expected a number above 0"),
        ({"match": "a", "clip": True}, "expected a number above 0"),
        ({"match": "a", "clip": "atuo"}, "expected a number above 0, or auto"),
        ({"match": "a", "range": [1, 0]}, "low below high"),
        ({"match": "a", "range": [0, float("nan")]}, "low below high"),
        ({"match": "a", "method": "mean"}, "choose one of|rule 'a': method is 'mean'"),
        ("a", "expected a table"),
    ],
)
def test_bad_rules_are_refused(rule: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        QuantConfig(rules=(rule,))


def test_rules_survive_a_recipe(tmp_path: Any) -> None:
    config = QuantConfig(
        include=("a.*", 'quo"ted'),
        exclude=(r"b\d",),
        rules=(Rule("c", range=(-1, 2.5)), Rule("d", quantize=False, method="mse"), Rule("e", clip=10.0)),
    )
    path = tmp_path / "recipe.toml"
    path.write_text(config.to_toml(), "utf-8")
    assert QuantConfig.from_recipe(path) == config
    assert QuantConfig.from_dict(config.to_dict()) == config
