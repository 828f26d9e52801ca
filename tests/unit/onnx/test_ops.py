"""The op table and the targets agree with ONNX and with each other."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from requant.errors import ConfigError
from requant.onnx.graph import _QUANTIZED_OPS
from requant.onnx.ops import OPS, ROWS, Kind, OpSpec, Role, Tie
from requant.onnx.reading import MAX_OPSET, MIN_OPSET
from requant.targets import TARGETS, get_target

ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.op_types[:2]))
TARGET = pytest.mark.parametrize("name", TARGETS)


def schemas(op_type: str) -> list[onnx.defs.OpSchema]:
    """The forms that ``op_type`` has in the opsets we accept."""
    found = {}
    for opset in range(MIN_OPSET, MAX_OPSET + 1):
        if onnx.defs.has(op_type, opset):
            schema = onnx.defs.get_schema(op_type, opset)
            found[schema.since_version] = schema
    return list(found.values())


def test_each_op_has_one_row() -> None:
    counts = Counter(op_type for row in ROWS for op_type in row.op_types)
    assert [op_type for op_type, count in counts.items() if count > 1] == []
    assert set(OPS) == set(counts)


@ROW
def test_ops_exist_with_the_inputs_of_their_row(row: OpSpec) -> None:
    for op_type in row.op_types:
        assert schemas(op_type), f"{op_type} is no operator of ONNX"
        for schema in schemas(op_type):
            if row.variadic:
                assert schema.inputs[0].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
            else:
                assert max(row.inputs) < schema.max_input, op_type
            for index, role in row.inputs.items():
                if role is Role.BIAS:
                    assert index >= schema.min_input, f"the bias of {op_type} is not optional"
                assert "tensor(float)" in schema.inputs[index].types or "T" in schema.inputs[index].type_str, op_type


@ROW
def test_rows_are_consistent(row: OpSpec) -> None:
    roles = list(row.inputs.values())
    assert roles[0] is Role.ACTIVATION
    assert (Role.WEIGHT in roles) == (row.kind in (Kind.COMPUTE, Kind.RECURRENT)) == (row.weight_axis is not None)
    assert roles.count(Role.WEIGHT) <= (2 if row.kind is Kind.RECURRENT else 1)
    assert (row.tie is Tie.SAME_AS_INPUT) == (row.kind is Kind.MOVE)
    assert not (row.tie is Tie.SAME_AS_INPUT and row.fixed_range), "a range cannot be tied and fixed"
    if row.fixed_range:
        assert row.fixed_range.lo <= 0 < row.fixed_range.hi
    if row.weight_axis and row.weight_axis.flag:
        for op_type in row.op_types:
            assert all(row.weight_axis.flag in schema.attributes for schema in schemas(op_type))


@TARGET
def test_targets_name_only_ops_that_have_a_row(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert target.float_output <= target.fused
    assert not target.fused & target.moves
    assert {OPS[op_type].kind for op_type in target.fused} <= {Kind.COMPUTE, Kind.FOLLOW}
    assert {OPS[op_type].kind for op_type in target.moves} == {Kind.MOVE}
    assert {OPS[op_type].kind for op_type in target.dynamic} <= {Kind.COMPUTE, Kind.RECURRENT}


def test_an_unknown_target_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ort-cpu'"):
        get_target("ort-cpus")


def test_ops_that_mean_a_quantized_model_are_none_that_we_quantize() -> None:
    assert not _QUANTIZED_OPS & set(OPS)
