"""Bar charts as SVG: one self-contained element, for a file or a page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROW, _TOP, _MARGIN = 20, 40, 12  # height of a row, of the title; space at the edges
_LABELS, _BARS, _TEXTS = 340, 440, 200  # widths of the columns
_LONGEST = 46  # characters of a label that fit


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars below each other.

    Args:
        title: what stands above them.
        bars: a label, a length and a text behind the bar; lengths are not negative, the longest fills the width.
    """
    width, height = _LABELS + _BARS + _TEXTS + 2 * _MARGIN, _TOP + _ROW * len(bars) + _MARGIN
    longest = max((length for _, length, _ in bars), default=0.0) or 1.0
    left = _MARGIN + _LABELS
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_TOP - 16}" font-size="15" fill="#1f2328">{escape(title)}</text>',
    ]
    for row, (label, length, text) in enumerate(bars):
        middle = _TOP + _ROW * row + _ROW / 2
        shown = label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}"
        bar = _BARS * length / longest
        lines += [
            f'<text x="{left - 8}" y="{middle + 4:g}" text-anchor="end" fill="#1f2328">{escape(shown)}'
            f"<title>{escape(label)}</title></text>",
            f'<rect x="{left}" y="{middle - 7:g}" width="{bar:.2f}" height="14" rx="2" fill="#2f6feb"/>',
            f'<text x="{left + bar + 6:.2f}" y="{middle + 4:g}" fill="#59636e">{escape(text)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
