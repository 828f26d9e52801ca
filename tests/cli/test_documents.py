"""Every JSON document is what its shipped schema says; every page is whole, small, safe and asks for nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.digits import CALIB, EVAL, MODEL
from tests.models import Net, samples

import requant
from requant.checkpoint.safetensors import write_checkpoint
from requant.cli import main
from requant.planning.plan import Skip
from requant.report import TensorQuality
from requant.schema import DOCUMENTS, FOLDER, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 500_000

pytestmark = pytest.mark.usefixtures("quick_latency")

COMMANDS = {
    "report": ["quantize", MODEL, "--data", CALIB, "--eval", EVAL, "-o", "out.onnx"],
    "comparison": ["compare", MODEL, "q.onnx", "--data", EVAL, "--samples", "32"],
    "sensitivity": ["sensitivity", MODEL, "--data", CALIB, "--depth", "1", "--eval", EVAL],
    "drift": ["drift", "q.onnx", "--data", EVAL, "--samples", "32"],
    "evaluation": ["evaluate", MODEL, "--data", EVAL],
    "gguf": ["gguf", MODEL, "-o", "out.gguf", "--type", "q8_0"],
    "inspection": ["inspect", MODEL],
    "calibration": ["calibrate", MODEL, "--data", CALIB, "-o", "table.json"],
    "edit": ["edit", "q.onnx", "--input", "image=uint8", "-o", "edited.onnx"],
    "doctor": ["doctor"],
    "checkpoint": ["quantize", "w.safetensors", "--weight-only", "int4", "-o", "w.int4.safetensors"],
}
assert {*COMMANDS, "keep"} == set(DOCUMENTS)  # a search is part of a report


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    requant.quantize(MODEL, CALIB, threads=1).save("q.onnx")
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    write_checkpoint("w.safetensors", [("fc.weight", weight.dtype, weight.shape, lambda: weight)])


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "$") -> Iterator[str]:
    """What of ``value`` is not as ``schema`` says; the keywords that our schemas use, and no others."""
    known = {"$schema", "$defs", "title", "$ref", "const", "enum", "anyOf", "type", "properties", "required"}
    assert schema.keys() <= known | {"additionalProperties", "items", "prefixItems", "minItems"}
    if "$ref" in schema:
        yield from problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "const" in schema and value != schema["const"]:
        yield f"{where} is {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}"
    if "anyOf" in schema and all(list(problems(value, option, root, where)) for option in schema["anyOf"]):
        yield f"{where} is {value!r}, none of the options"
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if "type" in schema:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = {"number": number, "integer": number and isinstance(value, int)}
        allowed = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(good.get(kind, isinstance(value, kinds.get(kind, ()))) for kind in allowed):
            yield f"{where} is {value!r}, not {' or '.join(allowed)}"
            return
    if isinstance(value, dict):
        yield from (f"{where} lacks {key}" for key in schema.get("required", ()) if key not in value)
        for key, inner in value.items():
            rule = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            if rule is False:
                yield f"{where} has {key}"
            elif isinstance(rule, dict):
                yield from problems(inner, rule, root, f"{where}.{key}")
    if isinstance(value, list):
        yield from problems_of_items(value, schema, root, where)


def problems_of_items(value: list[Any], schema: dict[str, Any], root: dict[str, Any], where: str) -> Iterator[str]:
    places = schema.get("prefixItems", [])
    if len(value) < schema.get("minItems", 0):
        yield f"{where} has {len(value)} items"
    for i, inner in enumerate(value):
        rule = places[i] if i < len(places) else schema.get("items", True)
        if rule is False:
            yield f"{where} has an item {i}"
        elif isinstance(rule, dict):
            yield from problems(inner, rule, root, f"{where}[{i}]")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_shipped_schemas_are_those_of_the_types(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text("utf-8") == text_of(name), "run python -m requant.schema"


@pytest.mark.parametrize("name", COMMANDS)
def test_documents_are_as_their_schema_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMANDS[name], "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert list(problems(document, schema, schema)) == []
    assert list(problems({**document, "schema": 99}, schema, schema)) == ["$.schema is 99"]
    assert list(problems({}, schema, schema))


@pytest.mark.parametrize(
    ("options", "kind"),
    [([], "nodes"), (["--dynamic"], "dynamic"), (["--weight-only", "int4"], "blocked")],
    ids=["static", "dynamic", "weight-only"],
)
def test_inspections_of_every_kind_are_as_their_schema_says(
    options: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net()
    convolved = net.op("Conv", net.input("x", ["n", 64, 8, 8]), net.normal(64, 64, 1, 1))
    pooled = net.op("GlobalAveragePool", net.op("HardSigmoid", convolved, alpha=1 / 6))
    model = net.model(net.gemm(net.op("Flatten", pooled), 64, 64, output="y"))
    Path("net.onnx").write_bytes(model.SerializeToString())
    schema = json.loads((FOLDER / "inspection.json").read_text("utf-8"))
    assert main(["inspect", "net.onnx", *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document[kind]
    assert "as add" in [node["saturates"] for node in document["nodes"]] or options
    assert list(problems(document, schema, schema)) == []


def test_a_search_is_as_its_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMANDS["report"], "--keep", "0.9", "--json", "--report", "report.json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads(Path("report.json").read_text("utf-8"))
    assert written == {name: value for name, value in printed.items() if name != "output"}
    schema = json.loads((FOLDER / "keep.json").read_text("utf-8"))
    assert list(problems(written["keep"], schema, schema)) == []
    spoilt = [{**step, "share": "most"} for step in written["keep"]["steps"]]
    assert list(problems({**written["keep"], "steps": spoilt}, schema, schema))
    assert list(problems({}, schema, schema)) == [f"$ lacks {name}" for name in schema["required"]]
    report = json.loads((FOLDER / "report.json").read_text("utf-8"))
    assert list(problems(written, report, report)) == []


class Page(HTMLParser):
    """Tags, attributes and text; refuses what is not closed in order."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Page:
    """``text`` parsed, if it is a page that nothing can be said against."""
    assert len(text.encode()) <= LIMIT
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "image", "use", "a", "form", "base"}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "data", "action"} & attributes.keys()
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"https?:|url\(|@import", text)
    return page


@pytest.mark.parametrize("name", ["report", "comparison", "sensitivity", "drift"])
def test_pages_are_whole_and_ask_for_nothing(name: str) -> None:
    assert main([*COMMANDS[name], "--html", "page.html", "-q"]) == 0
    page = checked(Path("page.html").read_text("utf-8"))
    html = next(attributes for tag, attributes in page.tags if tag == "html")
    assert html["lang"] == "en"
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert svgs
    assert all(a.get("aria-label") if a.get("role") == "img" else a.get("aria-hidden") == "true" for a in svgs)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_a_search_shows_its_frontier() -> None:
    line = [*COMMANDS["report"], "--keep", "0.9", "--html", "page.html", "-q"]
    assert main(line) == 0
    assert "0.9 of output fidelity was to be kept" in checked(Path("page.html").read_text("utf-8")).text


def test_notebooks_show_results_as_they_are() -> None:
    kept = requant.quantize_to_keep(MODEL, CALIB, 0.5, threads=1)
    judged = requant.evaluate(MODEL, EVAL)
    found, quantized = requant.inspect(MODEL), requant.inspect(kept.model.data)
    shown = [checked(each._repr_html_()).text for each in (kept, judged, found, quantized)]
    assert "Models tried" in shown[0] or "Frontier" in shown[0]
    assert f"{judged.value:#.6g} (higher is better)" in shown[1]
    assert all(f"{op} {count}" in shown[2] for op, count in found.op_types.items())
    assert all(line in shown[2] for line in found.prepared)
    assert all(skip.reason in shown[2] for skip in found.plan.skipped)
    assert "Quantized already: " in shown[3]


HOSTILE = """"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp;</style></svg>\x00\u202e{}"""


def test_hostile_names_stay_names() -> None:
    net = Net()
    x = net.input(HOSTILE, ["n", 8])
    model = net.model(
        net.gemm(net.op("Relu", net.gemm(x, 8, 16, name=HOSTILE), output=HOSTILE + "1"), 16, 4, output="y")
    )
    data = {x: samples(model, 64)[x]}
    result = requant.quantize(model, data, threads=1)
    report = replace(result.report, model=HOSTILE, skipped=(Skip(HOSTILE, HOSTILE, HOSTILE),), notes=(HOSTILE,))
    pages = [report.to_html(), report._repr_html_(), requant.measure_drift(result.data, data).to_html()]
    pages.append(requant.compare(model, result.data, data, measure=False).to_html())
    found = requant.sensitivity(model, data, threads=1)
    pages += [found.to_html(), found._repr_html_()]
    judged = requant.evaluate(model, data, metric="cosine", float_model=model)
    inspected = replace(requant.inspect(model), model=HOSTILE, prepared=(HOSTILE,), op_types={HOSTILE: 1})
    pages += [replace(judged, model=HOSTILE)._repr_html_(), inspected._repr_html_()]
    for text in pages:
        assert "<script>alert" in checked(text).text
        assert "\u202e" not in text
        assert "\x00" not in text


def test_large_models_give_small_pages() -> None:
    report = requant.quantize(MODEL, CALIB, threads=1).report
    name = "/model/layers.<&>" + "very/long/" * 100
    tensor = TensorQuality(name, "activation", -1.0, 1.0, 0.1, 0, 1e-3, 1e-4, 0.01, 30.0)
    large = replace(
        report,
        tensors=(tensor,) * 20_000,
        skipped=(Skip(name, "Conv" * 100, "because " * 100),) * 20_000,
        notes=(name,) * 1000,
        prepared=(name,) * 1000,
        ranges=tuple(replace(view, name=name) for view in report.ranges * 10),
        quantized={f"{name}{i}": 1 for i in range(1000)},
        model=name,
    )
    text = large.to_html()
    assert "19,800 more rows" in checked(text).text
    outputs = report.outputs * 3000
    checked(replace(large, outputs=outputs).to_html())


def test_charts_of_nothing_are_drawn() -> None:
    zeros = np.zeros((64, 8), np.float32)
    net = Net()
    model = net.model(net.gemm(net.input("x", ["n", 8]), 8, 4, output="y"))
    checked(requant.quantize(model, {"x": zeros}, threads=1).report.to_html())
    checked(requant.quantize(MODEL, dynamic=True).report.to_html())
