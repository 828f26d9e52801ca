"""With weights alone quantized, every trial is what quantizing the weights of that node, or all others, gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.models import language_model, run, tokens

import requant
from requant.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_latency")

DATA = tokens(32)


def sensitivity(*, tied: bool = False, **options: Any) -> requant.Sensitivity:
    asked = {"weight_only": "int4", "algorithm": "rtn", "threads": 1}
    return requant.sensitivity(language_model(tied=tied), DATA, **{**asked, **options})


def noise(*, tied: bool = False, **options: Any) -> Any:
    """Of the model that ``quantize`` gives, on the samples that are held back; approximately."""
    asked = {"weight_only": "int4", "algorithm": "rtn", "threads": 1}
    model = requant.quantize(language_model(tied=tied), DATA, **{**asked, **options}).data
    held = {name: array[7::8] for name, array in DATA.items()}
    exact, got = (run(each, held)[0].astype(np.float64) for each in (language_model(tied=tied), model))
    return pytest.approx(np.sum((got - exact) ** 2) / np.sum(exact**2), rel=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"format": "qdq", "symmetric": True}, {"weight_only": "int2", "algorithm": "hqq"}]
)
def test_trials_are_what_include_and_exclude_give(options: dict[str, Any]) -> None:
    found = sensitivity(**options)
    assert found.quantized.noise == noise(**options)
    assert {"MatMul", "Gather"} <= {op for part in found.parts for op in part.op_types}
    for part in (found.parts[0], found.parts[-1]):
        assert part.in_float.noise == noise(exclude=part.nodes, **options)
        assert part.in_integers is not None
        assert part.in_integers.noise == part.noise == noise(include=part.nodes, **options)


def test_a_head_alone_has_the_integers_that_it_shares_with_its_table() -> None:
    found = sensitivity(tied=True)
    assert found.quantized.noise == noise(tied=True)
    (head,) = (part for part in found.parts if part.name == "head")
    assert head.in_float.noise == noise(tied=True, exclude="head")
    assert head.noise == noise(tied=True, include="head", weight_only="int8")


def test_weights_are_rounded_by_what_the_float_model_reads() -> None:
    """A weight that is rounded alone has no earlier errors to make up for: ``include`` gives the same."""
    found = sensitivity(algorithm="gptq")
    for part in found.parts:
        assert part.noise == noise(algorithm="gptq", include=part.nodes)
    assert found.quantized.noise < sensitivity().quantized.noise
    assert sensitivity(algorithm="auto").quantized.noise < sensitivity().quantized.noise


def test_fewer_bits_hurt_more() -> None:
    few = {part.name: part.noise for part in sensitivity(weight_only="int2").parts}
    many = {part.name: part.noise for part in sensitivity(weight_only="int8").parts}
    assert few.keys() == many.keys()
    assert all(few[name] > 10 * noise for name, noise in many.items() if "embed" not in name and "Gather" not in name)


def test_a_target_of_bits_decides_what_is_tried() -> None:
    found = sensitivity(target_bits=8).quantized
    assert found.noise == noise(target_bits=8)
    assert found.noise < sensitivity().quantized.noise


def test_other_workers_find_the_same() -> None:
    with ThreadPoolExecutor(2) as executor:
        assert sensitivity(executor=executor).parts == sensitivity().parts


def test_statistics_of_activations_are_refused() -> None:
    table = requant.calibrate(language_model(), DATA)
    with pytest.raises(ConfigError, match="weights need none"):
        sensitivity(table=table)
