"""What the documents show runs as shown."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest

from requant.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for i, text in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        ):
            found.append((f"{document.name}-{i}", text))
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped examples, as a fresh clone has it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "build").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "code"), blocks("python"), ids=lambda value: value if "-" in value[:30] else "")
def test_python_blocks_run(project: Path, name: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize(("name", "text"), blocks("console"), ids=lambda value: value if "-" in value[:30] else "")
def test_console_blocks_run(project: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "requant"
        assert main(arguments) == 0, capsys.readouterr().err


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", document.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda path: path.name
)
def test_tables_have_a_line_for_each_row(document: Path) -> None:
    lines = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    assert not [line for line in lines if "|---" in line and not line.startswith("|---")]
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            columns = [re.sub(r"`[^`]*`", "", row).count("|") for row in (before, line)]
            assert columns[0] == columns[1], line


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for place, section in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = document.parent / place if place else document
        assert target.exists(), place
        if section:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert section in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], section
