"""Charts as inline SVG, coloured by the page; legible from 360 pixels of width on."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from requant.pages.page import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requant.calibration.ranges import RangeView

_WIDTH, _LEFT, _RIGHT = 360, 46, 352


def _svg(height: int, label: str, content: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{content}</svg>'


def histogram(view: RangeView) -> str:
    """Bars as high as the logarithm of their counts, the chosen range behind them."""
    top, bottom, left, right = 18, 110, 4, 356
    most = math.log1p(max(view.counts)) or 1.0
    step = (right - left) / len(view.counts)
    bars = []
    for i, count in enumerate(view.counts):
        if count:
            height = max((bottom - top) * math.log1p(count) / most, 1)
            bars.append(f"M{left + i * step:.1f} {bottom}v-{height:.1f}h{step * 0.9:.1f}V{bottom}z")
    ends = [left + (end - view.start) / (view.stop - view.start) * (right - left) for end in (view.lo, view.hi)]
    shaded = (
        f'<rect class="range" x="{ends[0]:.1f}" y="{top}" width="{ends[1] - ends[0]:.1f}" height="{bottom - top}"/>'
    )
    edges = "".join(f'<line class="edge" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom + 4}"/>' for x in ends)
    labels = "".join(
        f'<text x="{min(max(x, 22), _WIDTH - 22):.1f}" y="{bottom + 16}" text-anchor="middle">{end:.4g}</text>'
        for x, end in zip(ends, (view.lo, view.hi), strict=True)
    )
    axis = f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    label = f"Histogram of {cut(view.name)}, chosen range {view.lo:.4g} to {view.hi:.4g}"
    return _svg(132, label, f'{shaded}<path class="bars" d="{"".join(bars)}"/>{axis}{edges}{labels}')


def error_curve(view: RangeView) -> str:
    """Rounding, clipping and total error over the width of the range, both axes logarithmic."""
    top, bottom = 22, 116
    worst = max(point.total for point in view.curve)
    if worst <= 0:
        return ""
    least = min(point.total for point in view.curve if point.total > 0)
    high, low = math.log10(worst), math.log10(least) - 1
    first, last = math.log2(view.curve[0].factor), math.log2(view.curve[-1].factor)

    def x(factor: float) -> float:
        return _LEFT + (math.log2(factor) - first) / (last - first or 1) * (_RIGHT - _LEFT)

    def y(error: float) -> float:
        return bottom - (math.log10(error) - low) / (high - low) * (bottom - top)

    def line(kind: str, value: Callable[[int], float]) -> str:
        points = [
            f"{x(point.factor):.1f} {y(value(i)):.1f}" for i, point in enumerate(view.curve) if value(i) >= 10**low
        ]
        return f'<path class="line {kind}" d="M{"L".join(points)}"/>' if points else ""

    curve = view.curve
    lines = (
        line("both", lambda i: curve[i].total),
        line("granular", lambda i: curve[i].granular),
        line("overload", lambda i: curve[i].overload),
    )
    chosen = view.chosen
    at = x(1)
    dot = f'<circle class="dot" cx="{at:.1f}" cy="{y(chosen.total):.1f}" r="4"/>' if chosen.total > 0 else ""
    marks = (
        f'<line class="edge" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">chosen</text>'
        f'<text x="{_LEFT}" y="{bottom + 14}">x {curve[0].factor:.2g}</text>'
        f'<text x="{_RIGHT}" y="{bottom + 14}" text-anchor="end">x {curve[-1].factor:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{top + 4}" text-anchor="end">{worst:.0e}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{10**low:.0e}</text>'
    )
    keys = "".join(
        f'<line class="line {kind}" x1="{at_x}" x2="{at_x + 22}" y1="9" y2="9"/>'
        f'<text x="{at_x + 27}" y="13">{text}</text>'
        for kind, at_x, text in (("granular", 46, "rounding"), ("overload", 140, "clipping"), ("both", 230, "both"))
    )
    axes = f'<path class="axis" fill="none" d="M{_LEFT} {top}V{bottom}H{_RIGHT}"/>'
    label = (
        f"Mean squared error of {cut(view.name)} over the width of its range; the chosen one costs {chosen.total:.3g}"
    )
    return _svg(136, label, f"{axes}{''.join(lines)}{marks}{dot}{keys}")


def frontier(points: Sequence[tuple[float, float]], chosen: int, target: float, across: str) -> str:
    """Points (cost, share kept), the target as a line; what it is stands above, where no point can be."""
    if not points:
        return ""
    top, bottom = 26, 164
    costs, shares = [cost for cost, _ in points], [*(share for _, share in points), target]
    low, high = min(shares), max(shares)
    low, high = low - 0.05 * (high - low or 0.01), high + 0.05 * (high - low or 0.01)
    left, right = min(costs), max(costs)
    spread = right - left or 1.0

    def x(cost: float) -> float:
        return _LEFT + 12 + (cost - left) / spread * (_RIGHT - _LEFT - 24)

    def y(share: float) -> float:
        return bottom - (share - low) / (high - low) * (bottom - top)

    dots = "".join(
        f'<circle class="{"fill" if i == chosen else "dot"}" cx="{x(cost):.1f}" cy="{y(share):.1f}" r="5"/>'
        for i, (cost, share) in enumerate(points)
    )
    axes = f'<path class="axis" fill="none" d="M{_LEFT} {top}V{bottom}H{_RIGHT}"/>'
    goal = (
        f'<line class="target" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(target):.1f}" y2="{y(target):.1f}"/>'
        f'<line class="target" x1="{_LEFT}" x2="{_LEFT + 22}" y1="9" y2="9"/>'
        f'<text x="{_LEFT + 27}" y="13">target {target:g}</text>'
    )
    texts = (
        f'<text x="{_LEFT - 4}" y="{top + 8}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{_LEFT}" y="{bottom + 14}">{left:.4g}</text>'
        f'<text x="{_RIGHT}" y="{bottom + 14}" text-anchor="end">{right:.4g}</text>'
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{bottom + 14}" text-anchor="middle">{escape(across)}</text>'
    )
    return _svg(184, f"Share kept over {across}, target {target:g}", f"{axes}{goal}{dots}{texts}")


def bar(share: float, clipped: float = 0.0) -> str:
    """A bar in a cell: ``share`` of its width, ``clipped`` of that in the colour of clipping."""
    width, whole = 96, min(max(share, 0.0), 1.0) * 96
    cut_off = whole * min(max(clipped, 0.0), 1.0)
    return (
        f'<svg viewBox="0 0 {width} 10" style="width:{width}px" aria-hidden="true">'
        f'<rect class="fill" width="{whole - cut_off:.1f}" height="10"/>'
        f'<rect style="fill:var(--clip)" x="{whole - cut_off:.1f}" width="{cut_off:.1f}" height="10"/></svg>'
    )
