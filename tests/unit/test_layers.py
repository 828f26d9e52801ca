"""Imports run one way, and each library has one door."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import requant

PACKAGE = Path(requant.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: Which modules may import a library, by the beginning of their path in the package.
DOORS = {
    "onnx": "onnx/",
    "onnx_ir": "onnx/",
    "onnxscript": "onnx/",
    "google": "onnx/",
    "onnxruntime": "runtime/installation.py",
    "rich": "cli/",
    "rich_argparse": "cli/",
    "PIL": "data/",
    "gguf": "gguf/",
}

#: Layers from the bottom up; a module imports from its own layer and those before it only.
LAYERS = (
    (
        "types",
        "errors",
        "version",
        "files",
        "serialized",
        "parallel",
        "remote",
        "uncollected",
        "pages",
        "stopwatch",
        "stored",
        "documents",
        "wording",
    ),
    ("_requant", "ops"),
    ("arrays", "observers"),
    ("targets", "config"),
    ("data", "metrics", "onnx", "runtime", "machine"),
    ("planning", "report"),
    ("calibration", "evaluation"),
    ("weights", "drift"),
    ("building", "checkpoint", "gguf"),
    ("transforms",),
    ("stages", "quantized", "concluding", "weightonly", "editing"),
    ("api", "search", "schema"),
    ("cli", "__main__"),
)
#: Single modules of a higher layer: a table of ops, what a tensor dequantizes itself by, and values of a plan.
EXCEPTIONS = {("targets", "requant.onnx.ops"), ("types", "requant.arrays"), ("onnx", "requant.planning.plan")}

CORE = Path(__file__).resolve().parents[2] / "rust" / "requant-core" / "src"
#: The same of the compiled core.
CORE_LAYERS = (
    ("types", "error", "threads"),
    ("arrays",),
    ("requantize",),
    ("kernels",),
    ("pack",),
    ("affine",),
    ("gemm",),
    ("conv",),
    ("pool", "elementwise"),
    ("stats", "weights", "gguf", "reconstruction"),
    ("calibration",),
)
#: What is written once above the kernels, and compiled by them for their instructions.
CORE_EXCEPTIONS = {("kernels", "gguf"), ("kernels", "weights")}


def imports(path: Path) -> list[tuple[str, bool]]:
    """What a file imports, and whether it does so only for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "requant" else [node.module]
            found += [(name, id(node) in typing_only) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typing_only) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_libraries_come_in_through_their_door(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    for name, typing_only in imports(path):
        door = DOORS.get(name.partition(".")[0])
        assert door is None or typing_only or place.startswith(door), f"{place} imports {name}"
        assert name != "requant._requant" or place == "ops.py", f"{place} imports the compiled core"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in level, f"{own} is in no layer"
    for name, typing_only in imports(path):
        parts = name.split(".")
        if parts[0] != "requant" or len(parts) < 2 or typing_only or (own, name) in EXCEPTIONS:
            continue
        if parts[1] in level:
            assert level[parts[1]] <= level[own], f"{own} imports {name}"


def core_imports(path: Path) -> set[str]:
    """The modules of the core that a file names."""
    text = re.sub(r"//.*", "", path.read_text("utf-8"))
    found = set(re.findall(r"\bcrate::(\w+)", text))
    for group in re.findall(r"\bcrate::\{(.*?)\};", text, re.DOTALL):
        flat = group
        while "{" in flat:
            flat = re.sub(r"\{[^{}]*\}", "", flat)
        found |= {name.strip().partition("::")[0] for name in flat.split(",")}
    return {name for name in found if name.islower()}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.rs")), ids=lambda p: p.relative_to(CORE).as_posix())
def test_modules_of_the_core_call_one_way(path: Path) -> None:
    level = {name: index for index, names in enumerate(CORE_LAYERS) for name in names}
    own = path.relative_to(CORE).with_suffix("").parts[0]
    if own == "lib":
        return
    assert own in level, f"{own} is in no layer"
    for name in core_imports(path) & level.keys():
        assert level[name] <= level[own] or (own, name) in CORE_EXCEPTIONS, f"{own} calls {name}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stderr == ""
    return {name.partition(".")[0] for name in child.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import requant",
        "import requant; requant.QuantConfig(); requant.Observer(); requant.compute_params",
        "import requant.config",
        "from requant.cli import main",
    ],
)
def test_importing_loads_no_heavy_library(statement: str) -> None:
    heavy = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "rich", "rich_argparse", "PIL", "google", "ml_dtypes"}
    assert not heavy & loaded_after(statement)


def test_importing_the_package_alone_loads_not_even_numpy() -> None:
    assert not {"numpy", "asyncio", "importlib.metadata"} & loaded_after("import requant")
