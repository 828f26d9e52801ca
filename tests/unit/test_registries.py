"""One list for each kind of thing: what names it elsewhere is held equal to it here."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import get_args

import requant
from requant import cli, config, errors, metrics, ops, targets, transforms, types, weights
from requant.cli.commands import COMMANDS
from requant.config import recipe
from requant.config.options import VERSION
from requant.onnx import ops as onnx_ops, passes
from requant.types import QuantType

PACKAGE = Path(requant.__file__).parent


def modules(package: str, *, but: tuple[str, ...] = ()) -> set[str]:
    folder = importlib.import_module(package).__path__
    return {module.name for module in pkgutil.iter_modules(folder)} - set(but)


def test_the_methods_are_those_of_the_core() -> None:
    assert tuple(ops.CALIBRATION_METHODS) == config.METHODS
    assert config.choices("method") == (*config.METHODS, config.AUTO)


def test_the_formulas_are_those_of_the_core() -> None:
    assert get_args(types.Rounding) == ops.ROUNDINGS


def test_choices_of_types_and_targets_are_real() -> None:
    assert {QuantType(name).bits for name in config.choices("weights")} == {8}
    assert {QuantType(name).bits for name in config.choices("activations")} == {8, 16}
    assert config.choices("target") == tuple(targets.TARGETS)


def test_every_target_file_is_listed() -> None:
    assert set(targets.TARGETS.values()) == modules("requant.targets", but=("spec",))


def test_every_metric_file_is_listed_and_named_like_its_line() -> None:
    assert set(metrics.METRICS.values()) == modules(
        "requant.metrics", but=("spec", "user", "ranking", "distance", "divergence")
    )
    assert [metrics.get_metric(name).name for name in metrics.METRICS] == list(metrics.METRICS)


def test_every_weight_algorithm_is_listed_and_offered() -> None:
    helpers = ("arithmetic", "budget", "moments", "plan", "resolve", "scaling", "sensitivity", "spec")
    assert set(weights.ALGORITHMS.values()) == modules("requant.weights", but=helpers)
    assert [weights.get_algorithm(name).name for name in weights.ALGORITHMS] == list(weights.ALGORITHMS)
    assert set(config.choices("algorithm")) == {weights.AUTO, *weights.ALGORITHMS}


def test_every_command_file_is_listed_and_named_like_its_command() -> None:
    helpers = ("app", "arguments", "commands", "machine", "options", "output", "parser", "render", "spec", "tables")
    parts_of_quantize = ("checkpoint", "keep", "show")
    names = [command.name for command in COMMANDS]
    assert set(names) == modules("requant.cli", but=(*helpers, *parts_of_quantize, "terminal", "values"))
    assert len(names) == len(set(names))


def test_every_op_file_is_listed() -> None:
    rows = [
        row
        for name in modules("requant.onnx.ops", but=("spec",))
        for row in importlib.import_module(f"requant.onnx.ops.{name}").ROWS
    ]
    assert len(rows) == len(onnx_ops.ROWS)
    assert all(row in onnx_ops.ROWS for row in rows)


def test_every_pass_file_is_used() -> None:
    used = {step.__module__.rpartition(".")[2] for _, step in passes.PASSES}
    assert used == modules("requant.onnx.passes", but=("rewriting",))
    assert all(what for what, _ in passes.PASSES)


def test_every_transform_file_is_used() -> None:
    used = {transform.__module__.rpartition(".")[2] for transform in transforms.TRANSFORMS}
    others = ("absorb", "change", "level")  # absorb moves sums, behind all of them; level chooses what balance does
    assert used == modules("requant.transforms", but=others)


def test_recipes_are_read_and_name_real_options() -> None:
    assert recipe.recipe_names() == sorted(path.stem for path in (PACKAGE / "recipes").iterdir())
    for name in recipe.recipe_names():
        assert config.QuantConfig.from_recipe(name).version == VERSION
    assert config.QuantConfig.from_recipe("default") == config.QuantConfig()


def test_error_codes_are_unique_and_errors_are_public() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RequantError)]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert {kind.__name__ for kind in kinds} <= set(requant.__all__)


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    guard = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    imports = [node for node in guard.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert {name: f"requant.{module}" for name, module in requant._HOME_OF.items()} == seen
    assert set(requant.__all__) == {*seen, "__version__"}
    assert dir(requant) == sorted(requant.__all__)


def test_public_names_load_and_live_where_the_table_says() -> None:
    for name in requant.__all__:
        assert getattr(requant, name) is not None
    for name, module in requant._HOME_OF.items():
        assert getattr(importlib.import_module(f"requant.{module}"), name) is getattr(requant, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(requant, "quantise")


def test_granularities_are_the_sum_type() -> None:
    assert set(get_args(types.Granularity)) == {types.PerTensor, types.PerChannel, types.PerBlock, types.PerToken}


def test_the_command_is_there() -> None:
    assert callable(cli.main)
