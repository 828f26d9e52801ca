"""``requant quantize --show``: the histogram of a tensor, its range, and the error of other ranges."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from requant.config.rules import Rule
from requant.errors import ConfigError, closest
from requant.report import by_quality

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from requant.calibration.ranges import RangeCost, RangeView
    from requant.config import QuantConfig
    from requant.quantized import QuantizedModel

logger = logging.getLogger(__name__)

_WORST = "worst"  # the name of what errs most
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ROWS = 8  # height of a histogram
_BAR = 32  # columns of the longest error bar
_ROOM = 90  # columns of a terminal from which on bars are so long
_DECADES = 4  # that the error bars span, in powers of ten below the longest


def add_argument(parser: Any) -> None:
    """The option ``--show``."""
    parser.add_argument(
        "--show",
        action="append",
        metavar="NAME",
        default=[],
        help="draw the histogram of these activations with the chosen range, and the error of narrower and wider "
        "ranges: a name or a regular expression, or worst (repeatable)",
    )


def refuse_unknown(names: Sequence[str], model: str, config: QuantConfig) -> None:
    """Refuse a name that means no activation of ``model``, before the work is done.

    Raises:
        ConfigError: one of them means none.
    """
    if not names:
        return
    import requant

    activations = list(requant.inspect(model, config).plan.tensors)
    for name in names:
        if not activations or not (name == _WORST or matching(name, activations)):
            raise ConfigError(
                f"--show {name!r} matches no activation that is calibrated{closest(name, activations)}",
                hint="the table of the report and --report FILE name them"
                if activations
                else "only static quantization calibrates activations, those of nodes that become integer",
            )


def matching(name: str, activations: Iterable[str]) -> list[str]:
    """Those of ``activations`` that ``name``, or the regular expression it is, means."""
    rule = Rule(name, quantize=True)
    return [each for each in activations if rule.matches(each)]


def chosen(result: QuantizedModel, names: Sequence[str]) -> list[str]:
    """The activations that ``names`` mean: by name, by regular expression, or ``worst``; none for what stayed float."""
    activations = [tensor for tensor in result.report.tensors if tensor.kind == "activation"]
    found: dict[str, None] = {}
    for name in names:
        meant = matching(name, (tensor.name for tensor in activations))
        if not meant and name == _WORST:
            meant = [tensor.name for tensor in by_quality(activations)[:1]]
        if not meant:
            logger.warning("--show %r draws nothing: what it names stayed in float", name)
        found |= dict.fromkeys(meant)
    return list(found)


def draw(view: RangeView) -> None:
    """Print it."""
    from rich.text import Text

    from requant.cli.tables import WIDE, table_of
    from requant.cli.terminal import open_console

    out = open_console()
    out.print()
    out.print(Text(view.name, style="bold"))
    for line in histogram(view, out.width):
        out.print(Text(line))
    table = table_of(("width", "range"), ("granular", "overload", "clipped") if out.width >= WIDE else ("clipped",))
    table.add_column("mean squared error", no_wrap=True)
    most, longest = max(point.total for point in view.curve), _BAR if out.width >= _ROOM else _BAR // 4
    for point in view.curve:
        mark = "" if point.factor != 1 else "<- chosen"
        both = (f"{point.granular:.2g}", f"{point.overload:.2g}") if out.width >= WIDE else ()
        table.add_row(
            f"{point.factor:.3g} x",
            f"[{point.lo:.4g}, {point.hi:.4g}]",
            *both,
            f"{point.clipped:.3%}",
            f"{bar(point, most, longest)} {point.total:.3g} {mark}".strip(),
            style="bold" if point.factor == 1 else None,
        )
    out.print(table)


def histogram(view: RangeView, room: int) -> list[str]:
    """Lines of bars whose height is the logarithm of the count, and below them the chosen range.

    Neighbouring bars are joined until they fit into ``room`` columns.
    """
    joined = -(-len(view.counts) // room)
    counts = [sum(view.counts[i : i + joined]) for i in range(0, len(view.counts), joined)]
    top = math.log1p(max(counts)) or 1.0
    heights = [math.ceil(math.log1p(count) / top * _ROWS * 8) for count in counts]
    lines = [
        "".join(_EIGHTHS[min(max(height - row * 8, 0), 8)] for height in heights) for row in reversed(range(_ROWS))
    ]
    width, columns = view.stop - view.start, len(counts)
    first = round((view.lo - view.start) / width * (columns - 1))
    last = round((view.hi - view.start) / width * (columns - 1))
    lines.append(" " * first + "├" + "─" * (last - first - 1) + "┤")
    beyond = f", {view.below + view.above:,} beyond the picture" if view.below or view.above else ""
    cost = view.chosen
    lines += [
        f"range [{view.lo:.4g}, {view.hi:.4g}] as {view.dtype}; seen [{view.min:.4g}, {view.max:.4g}], "
        f"{view.values:,} values ({view.zeros:,} of them zero){beyond}; height: log of the count",
        f"error {cost.total:.3g}: ▒ rounding {cost.granular:.3g}, █ clipping {cost.overload:.3g} "
        f"({cost.clipped:.3%} of the values)",
    ]
    return [line.rstrip() for line in lines]


def bar(point: RangeCost, most: float, longest: int = _BAR) -> str:
    """A bar as long as the logarithm of the error: ``▒`` as much of it as is rounding, ``█`` what is clipping."""
    if point.total <= 0 or most <= 0:
        return ""
    length = max(round(longest * (1 + math.log10(point.total / most) / _DECADES)), 1)
    rounding = round(length * point.granular / point.total)
    return "▒" * rounding + "█" * (length - rounding)
