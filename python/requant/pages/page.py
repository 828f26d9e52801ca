"""The page around a result: style, headings, tables. Whatever comes from a model or a user is escaped here."""

from __future__ import annotations

from html import escape
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Rows of a table at most, so that the page of a large model stays small.
ROWS = 200
_FACTS = 24
_LONGEST = 72  # characters of a name that are shown
_TITLE = 160  # and in its tooltip
_SENTENCE = 400  # characters of a sentence that are shown

_STYLE = """
.requant{--ink:#1f2328;--dim:#59636e;--line:#d1d9e0;--paper:#fff;--card:#f6f8fa;--bar:#8fb4e8;--main:#0b57c4;--clip:#c2410c;
--good:#1a7f37;--bad:#b91c1c;color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,sans-serif}
@media(prefers-color-scheme:dark){.requant{--ink:#e6edf3;--dim:#9198a1;--line:#3d444d;--paper:#0d1117;--card:#151b23;
--bar:#3a5f94;--main:#79b8ff;--clip:#ffa657;--good:#56d364;--bad:#ff7b72}}
.requant *{box-sizing:border-box}
.requant h1{font-size:22px;line-height:1.3;margin:0 0 4px;overflow-wrap:anywhere}
.requant h2{font-size:17px;margin:32px 0 8px}
.requant h3{font:600 13px/1.4 ui-monospace,monospace;margin:0 0 6px;overflow-wrap:anywhere}
.requant p{margin:4px 0 12px;color:var(--dim)}
.requant dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:8px;margin:16px 0}
.requant dl div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;min-width:0}
.requant dt{color:var(--dim);font-size:13px;overflow-wrap:anywhere}
.requant dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.requant .wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
.requant table{border-collapse:collapse;width:100%;font-size:14px;margin:0;background:none;color:inherit}
.requant th,.requant td{padding:6px 10px;text-align:left;white-space:nowrap;border:0;border-top:1px solid var(--line)}
.requant thead th{border-top:0;color:var(--dim);font-weight:600;background:var(--card)}
.requant tbody th{font:13px/1.5 ui-monospace,monospace}
.requant .n{text-align:right;font-variant-numeric:tabular-nums}
.requant .text{white-space:normal;min-width:18em}
.requant .good{color:var(--good)}.requant .bad{color:var(--bad)}
.requant .mark{background:var(--card);font-weight:600}
.requant .grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:16px}
.requant figure{margin:0;padding:12px 14px;border:1px solid var(--line);border-radius:8px;min-width:0}
.requant figcaption{color:var(--dim);font-size:13px}
.requant svg{display:block;width:100%;height:auto;max-width:760px}
.requant svg text{fill:var(--dim);font:11px system-ui,sans-serif}
.requant .bars{fill:var(--bar)}.requant .range{fill:var(--main);opacity:.1}
.requant .edge{stroke:var(--main);stroke-width:1.5}.requant .axis{stroke:var(--line)}
.requant .line{fill:none;stroke-width:2}.requant .both{stroke:var(--bar);stroke-width:5;stroke-linecap:round}
.requant .granular{stroke:var(--main);stroke-dasharray:6 3}.requant .overload{stroke:var(--clip);stroke-dasharray:2 3}
.requant .fill{fill:var(--main)}.requant .dot{fill:var(--paper);stroke:var(--main);stroke-width:2}
.requant .target{stroke:var(--good);stroke-dasharray:5 4}
"""
_MARGINS = """
html{background:#fff}@media(prefers-color-scheme:dark){html{background:#0d1117}}
body{margin:0}main.requant{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
@media(max-width:500px){main.requant{padding:16px 12px}}
"""


def fragment(body: str) -> str:
    """``body`` with its style, to be shown inside of another page."""
    return f'<style>{_STYLE}</style><div class="requant">{body}</div>'


def page(title: str, body: str) -> str:
    """A whole document."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(cut(title))}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<style>{_STYLE}{_MARGINS}</style></head><body><main class="requant">{body}</main></body></html>\n'
    )


def heading(title: str, text: str) -> str:
    """What stands at the top: the name of the model, and what was done with it."""
    return f"<h1>{_arrows(cut(title))}</h1><p>{escape(text)}</p>"


def section(title: str, content: str, text: str = "") -> str:
    """A part of the page; nothing at all where it has no content."""
    if not content:
        return ""
    return f"<section><h2>{escape(title)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{content}</section>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """The headline figures, a label and a text each."""
    shown = islice(rows, _FACTS)
    cells = "".join(f"<div><dt>{escape(cut(label))}</dt><dd>{_arrows(text)}</dd></div>" for label, text in shown)
    return f"<dl>{cells}</dl>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, mark: int | None = None) -> str:
    """A table whose first column names the rows; cells are what ``cell``, ``number`` and ``name`` give.

    A column whose title ends in ``#`` holds numbers. ``mark`` is the row to point out.
    """
    if not rows:
        return ""
    right = [column.endswith("#") for column in columns]
    heads = "".join(
        f'<th scope="col"{_class("n" if is_right else "")}>{escape(column.removesuffix("#"))}</th>'
        for column, is_right in zip(columns, right, strict=True)
    )
    lines = []
    for i, (first, *rest) in enumerate(rows[:ROWS]):
        cells = "".join(
            f"<td{_class('n' if is_right else '')}>{cell}</td>" for cell, is_right in zip(rest, right[1:], strict=True)
        )
        lines.append(f'<tr{_class("mark" if i == mark else "")}><th scope="row">{first}</th>{cells}</tr>')
    more = len(rows) - ROWS
    left = f"<p>... and {more:,} more rows, which the JSON report holds.</p>" if more > 0 else ""
    content = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{content}</table></div>{left}'


def cut(text: str, longest: int = _LONGEST) -> str:
    """``text`` with its middle left out where it is too long; control characters are shown as what they are."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: 2 * _SENTENCE])
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"


def name(text: str) -> str:
    """A name, escaped; the whole of it in a tooltip where it is too long."""
    shown = cut(text)
    return escape(shown) if shown == text else f'<span title="{escape(cut(text, _TITLE))}">{escape(shown)}</span>'


def sentence(text: str) -> str:
    """A sentence or list, escaped, whole unless it is very long."""
    return escape(cut(text, _SENTENCE))


def words(text: str) -> str:
    """A sentence in a cell, which may break into lines."""
    return f'<div class="text">{sentence(text)}</div>'


def flag(text: str, *, good: bool) -> str:
    """A word that is good or bad news."""
    return f'<span class="{"good" if good else "bad"}">{escape(text)}</span>'


def _arrows(text: str) -> str:
    return escape(text.replace(" -> ", " \N{RIGHTWARDS ARROW} "))


def _class(value: str) -> str:
    return f' class="{value}"' if value else ""
