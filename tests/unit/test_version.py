"""One version: the package's, the compiled core's, the crates' and the installed distribution's."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

import requant
from requant import _requant

ROOT = Path(__file__).parents[2]


def test_package_core_and_crates_have_one_version() -> None:
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text("utf-8"))["workspace"]
    assert requant.__version__ == _requant.__version__ == workspace["package"]["version"]
    for manifest in ROOT.glob("rust/*/Cargo.toml"):
        assert tomllib.loads(manifest.read_text("utf-8"))["package"]["version"] == {"workspace": True}, manifest


def test_the_installed_distribution_has_it_too() -> None:
    try:
        installed = importlib.metadata.version("requant")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from the source tree, not installed")
    assert installed == requant.__version__


def test_it_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", requant.__version__)
