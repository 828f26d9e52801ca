"""Weight-only quantization to a target: bits are raised where they must be, and the model can be made again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.models import language_model, run, tokens, two_gemm

import requant
from requant import weightonly
from requant.errors import ConfigError, ModelError
from requant.search import bits as bitsearch

pytestmark = pytest.mark.usefixtures("quick_latency", "fast_integers")

DATA = tokens(32)


def keep(share: float, **options: Any) -> requant.Kept:
    asked = {"weight_only": "int4", "algorithm": "rtn", "threads": 1}
    return requant.quantize_to_keep(language_model(), DATA, share, **{**asked, **options})


def cosine(model: bytes) -> float:
    """What the search judges this model by: the least cosine that an output with this much noise can have."""
    held = {name: array[7::8] for name, array in DATA.items()}
    exact, got = (run(each, held)[0].astype(np.float64) for each in (language_model(), model))
    return float(np.sqrt(1 - np.sum((got - exact) ** 2) / np.sum(exact**2)))


def quantize(bits: str, **options: Any) -> requant.QuantizedModel:
    asked = {"weight_only": bits, "algorithm": "rtn", "threads": 1}
    return requant.quantize(language_model(), DATA, **{**asked, **options})


@pytest.fixture(scope="module")
def plain() -> dict[str, requant.QuantizedModel]:
    return {bits: quantize(bits) for bits in ("int4", "int8")}


def test_the_bits_asked_for_are_all_where_they_will_do(plain: dict[str, requant.QuantizedModel]) -> None:
    kept = keep(0.5)
    assert kept.met
    assert kept.kept == "cosine of the outputs"
    assert len(kept.steps) == 1
    assert kept.model.data == plain["int4"].data
    assert kept.config == requant.QuantConfig(weight_only="int4", algorithm="rtn", threads=1)
    assert kept.share == pytest.approx(cosine(kept.model.data), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"algorithm": "gptq"}, {"format": "qdq"}])
def test_bits_are_mixed_where_they_must_be(options: dict[str, Any], plain: dict[str, requant.QuantizedModel]) -> None:
    few, many = (cosine(quantize(bits, **options).data) for bits in ("int4", "int8"))
    kept = keep((few + many) / 2, **options)
    assert kept.met
    assert kept.share == pytest.approx(cosine(kept.model.data), rel=1e-6)
    assert {node.scheme.bits for node in kept.model.plan.blocked} == {4, 8}
    assert requant.quantize(language_model(), DATA, kept.config).data == kept.model.data
    step = kept.steps[kept.chosen]
    assert step.bytes == len(kept.model.data)
    assert step.integer_nodes == len(kept.model.plan.blocked)
    assert not any(
        each.bytes < step.bytes and each.surely is not None and each.surely >= kept.target for each in kept.steps
    )
    if not options:
        assert len(plain["int4"].data) < step.bytes < len(plain["int8"].data)


def test_weights_stay_float_where_8_bits_are_too_few(plain: dict[str, requant.QuantizedModel]) -> None:
    target = (1 + cosine(plain["int8"].data)) / 2
    kept = keep(target)
    step = kept.steps[kept.chosen]
    assert kept.met
    assert step.in_float
    float_weights = {node.name: node for node in onnx.load_from_string(kept.model.data).graph.node}
    assert all(float_weights[name].op_type in ("MatMul", "Gather") for name in step.in_float)
    assert not {node.name for node in kept.model.plan.blocked} & set(step.in_float)
    assert requant.quantize(language_model(), DATA, kept.config).data == kept.model.data


def test_a_table_and_its_head_are_raised_together() -> None:
    model = language_model(tied=True)
    kept = requant.quantize_to_keep(model, DATA, 0.99999, weight_only="int4", algorithm="rtn", threads=1)
    assert kept.met
    left = set(kept.steps[kept.chosen].in_float)
    assert {"embed", "head"} <= left or not {"embed", "head"} & left


def test_rules_say_where_a_layer_begins() -> None:
    kept = keep(0.5, weight_only="int8", rules=[{"match": "gate0", "bits": 2}])
    assert len(kept.steps) == 1
    assert {node.name: node.scheme.bits for node in kept.model.plan.blocked}["gate0"] == 2
    raised = keep((kept.share + 1) / 2, weight_only="int8", rules=[{"match": "gate0", "bits": 2}])
    assert {node.name: node.scheme.bits for node in raised.model.plan.blocked}["gate0"] > 2


def test_what_cannot_be_kept_gives_the_model_that_keeps_most() -> None:
    kept = keep(1.0)
    assert not kept.met
    assert kept.share == max(step.share or 0.0 for step in kept.steps) < 1


def test_an_interrupt_leaves_the_best_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, calls = weightonly.round_to_plan, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rounded(*arguments)

    monkeypatch.setattr(bitsearch, "round_to_plan", interrupted)
    kept = keep(0.999999)
    assert kept.interrupted
    assert len(kept.steps) == 2
    assert kept.share == max(step.share or 0.0 for step in kept.steps)
    assert requant.quantize(language_model(), DATA, kept.config).data == kept.model.data


def test_what_goes_ill_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep and target_bits both choose"):
        keep(0.9, target_bits=5.0)
    with pytest.raises(ModelError, match=r"nothing in .* can be quantized"):
        requant.quantize_to_keep(two_gemm(), run_inputs(), 0.9, weight_only="int4", exclude=["Gemm"])


def run_inputs() -> dict[str, Any]:
    return {"x": np.zeros((16, 8), np.float32)}
