"""Options are checked where they are given, and a recipe gives back what it was made from."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from requant.config import SMOOTH, QuantConfig, choices
from requant.config.contradictions import STATIC_ONLY
from requant.config.recipe import recipe_names
from requant.config.rules import Rule
from requant.errors import ConfigError, MissingFileError
from requant.types import PerTensor, QuantScheme, QuantType

if TYPE_CHECKING:
    from pathlib import Path

BAD: list[tuple[dict[str, Any], str]] = [
    ({"methd": "mse"}, r"unknown option 'methd'; did you mean 'method'\?"),
    ({"zzz": 1}, "unknown option 'zzz'\nhelp: options: method"),
    ({"method": "entopy"}, r"method is 'entopy'; did you mean 'entropy'\?"),
    ({"method": "MSE"}, "choose one of minmax"),
    ({"method": None}, "method is None, expected str"),
    ({"weights": "int4"}, "weights is 'int4'"),
    ({"activations": "float"}, "activations is 'float'"),
    ({"target": "ort"}, "choose one of ort-cpu, openvino"),
    ({"target": "tflite", "weights": "int8", "activations": "int8", "cpu": "vnni"}, "tflite knows no costs of kernels"),
    ({"saturation": "none"}, "choose one of safe, full"),
    ({"symmetric": 1}, "symmetric is 1, expected bool"),
    ({"per_channel": "yes"}, "per_channel is 'yes', expected bool"),
    ({"percentile": 0}, "above 0 and at most 100"),
    ({"percentile": 100.1}, "above 0 and at most 100"),
    ({"percentile": math.nan}, "above 0 and at most 100"),
    ({"percentile": True}, "percentile is True, expected float"),
    ({"percentile": "99"}, "percentile is '99', expected float"),
    ({"smooth": "atuo"}, r"smooth is 'atuo'; did you mean 'auto'\?"),
    ({"smooth": 1.5}, "smooth is 1.5, expected an alpha from 0 to 1"),
    ({"smooth": math.nan}, "expected an alpha from 0 to 1"),
    ({"smooth": True}, "smooth is True, expected str"),
    ({"equalize": 1}, "equalize is 1, expected bool"),
    ({"samples": 0}, "samples is 0, expected at least 1"),
    ({"samples": np.array([1, 2])}, "samples is array"),
    ({"exclude": {"a": 1}}, "exclude is {'a': 1}, expected names"),
    ({"exclude": {1, "a"}}, "expected names"),
    ({"samples": 1.5}, "samples is 1.5, expected int or unset"),
    ({"samples": True}, "samples is True"),
    ({"batch_size": 0}, "at least 1"),
    ({"threads": -1}, "threads is -1, expected at least 0"),
    ({"threads": None}, "threads is None, expected int"),
    ({"seed": -1}, "at least 0"),
    ({"version": 2}, "reads version 1"),
    ({"dynamic": 1}, "dynamic is 1, expected bool"),
    (
        {"dynamic": True, "method": "mse"},
        "method belongs to static quantization, and dynamic quantization calibrates nothing",
    ),
    ({"dynamic": True, "rest": "int8"}, "rest belongs to static"),
    ({"rest": "int4"}, "choose one of int8, float16, bfloat16, keep"),
    ({"dynamic": True, "symmetric": False}, "symmetric belongs to static"),
    ({"dynamic": True, "percentile": 99.0}, "percentile belongs to static"),
    ({"dynamic": True, "activations": "int8"}, "help: leave out activations or dynamic"),
]


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b"), {"b", "a"}, iter(["a", "b"]), np.array(["a", "b"])])
def test_names_may_come_in_any_iterable(names: Any) -> None:
    assert QuantConfig(exclude=names).exclude == ("a", "b")


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    for attempt in (QuantConfig().with_options, lambda **o: QuantConfig.from_dict(o)):
        with pytest.raises(ConfigError, match=message) as caught:
            attempt(**options)
        assert len(str(caught.value).splitlines()) <= 5


def test_a_config_is_frozen_and_options_make_a_new_one() -> None:
    config = QuantConfig(method="sqnr")
    changed = config.with_options(method="entropy", samples=5)
    assert (config.method, changed.method, changed.samples) == ("sqnr", "entropy", 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "mse"  # type: ignore[misc]


def test_every_option_is_documented() -> None:
    for field in dataclasses.fields(QuantConfig):
        assert f"        {field.name}: " in (QuantConfig.__doc__ or ""), field.name


def test_the_scheme_of_activations() -> None:
    config = QuantConfig(activations="int8", symmetric=True)
    assert config.activation_scheme == QuantScheme(QuantType.INT8, symmetric=True, granularity=PerTensor())


optional = st.none() | st.integers(1, 10**6)
configs = st.builds(
    QuantConfig,
    method=st.sampled_from(choices("method")),
    symmetric=st.booleans(),
    percentile=st.floats(1e-9, 100),
    per_channel=st.booleans(),
    weights=st.sampled_from(choices("weights")),
    activations=st.sampled_from(choices("activations")),
    equalize=st.booleans(),
    smooth=st.sampled_from(SMOOTH) | st.floats(0, 1),
    saturation=st.sampled_from(choices("saturation")),
    target=st.sampled_from(["ort-cpu", "generic"]),  # those that take any type
    rest=st.sampled_from(choices("rest")),
    samples=optional,
    batch_size=optional,
    threads=st.integers(0, 99),
    seed=optional,
)


dynamic_configs = st.builds(
    QuantConfig,
    dynamic=st.just(value=True),
    per_channel=st.booleans(),
    weights=st.sampled_from(choices("weights")),
    saturation=st.sampled_from(choices("saturation")),
    threads=st.integers(0, 99),
)


@given(config=configs | dynamic_configs)
def test_dicts_and_recipes_give_back_the_config(config: QuantConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert QuantConfig.from_dict(config.to_dict()) == config
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(config.to_toml(), "utf-8")
    assert QuantConfig.from_recipe(path) == config
    assert QuantConfig.from_recipe(str(path)) == config


def test_a_static_recipe_made_dynamic_is_refused_where_it_chooses_ranges() -> None:
    message = "belongs to static quantization"
    with pytest.raises(ConfigError, match=message):
        QuantConfig(method="entropy").with_options(dynamic=True)
    with pytest.raises(ConfigError, match=message):
        QuantConfig(dynamic=True).with_options(method="mse")
    with pytest.raises(ConfigError, match=message):
        QuantConfig(dynamic=True, symmetric=True)
    assert QuantConfig().with_options(dynamic=True) == QuantConfig(dynamic=True)
    assert not STATIC_ONLY & QuantConfig(dynamic=True).to_dict().keys()


NAMES = [field.name for kind in (QuantConfig, Rule) for field in dataclasses.fields(kind)]
TEXTS = st.recursive(
    st.sampled_from(
        ["true", "-1", "0", "9" * 30, "9" * 5000, f"0x{'f' * 5000}", "1e400", "nan", "-inf", "07:32:00", "[]"]
    )
    | st.text(max_size=3).map(json.dumps)
    | st.sampled_from([name for option in ("method", "target", "algorithm") for name in choices(option)]).map(
        json.dumps
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]") | inner.map("{{a={}}}".format),
    max_leaves=3,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.tuples(st.sampled_from([*NAMES, "zz"]), TEXTS), max_size=3),
    head=st.sampled_from(["", "[[rules]]\n"]),
)
def test_recipes_of_strange_values_are_read_or_refused(tmp_path: Path, lines: list[tuple[str, str]], head: str) -> None:
    path = tmp_path / "strange.toml"
    path.write_text(head + "".join(f"{name} = {value}\n" for name, value in lines), "utf-8", errors="replace")
    try:
        config = QuantConfig.from_recipe(path)
    except ConfigError:
        return
    assert QuantConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "a = " + "{a=" * 10**5, "samples = 9223372036854775808"])
def test_recipes_beyond_what_toml_holds_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not TOML"):
        QuantConfig.from_recipe(path)


def test_shipped_recipes_come_by_name() -> None:
    assert recipe_names() == ["default", "npu"]
    assert QuantConfig.from_recipe("npu").target == "generic"


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"'defualt' is neither.*did you mean 'default'\?\nhelp: shipped"):
        QuantConfig.from_recipe("defualt")
    with pytest.raises(MissingFileError):
        QuantConfig.from_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"method = ", "is not TOML"),
        (b"method = 'mse'\nmethod = 'mse'", "is not TOML"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"methd = 'mse'", "did you mean 'method'"),
        (b"[rules]\nConv = 'skip'", "expected a list of rules"),
        (b"method = 5", "method is 5, expected str"),
        (b"method = 1979-05-27", "method is datetime"),
    ],
)
def test_a_broken_recipe_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        QuantConfig.from_recipe(path)
