"""A line chart as SVG that stands inside a page: its colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

WIDE, NARROW = 720, 420
"""Widths of a chart: alone, and beside another."""
HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40
MOST_POINTS = 600
"""Of a line; of more, those that stand side by side are one, their mean."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    kind: str
    """The class that gives it its colour in the page."""
    points: Sequence[Point]
    dots: bool = False
    """Whether each point has a dot."""
    ringed: float | None = None
    """The x of the point with a ring around its dot."""


_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ label }}">
{% for at, word in ys %}
<line class="grid" x1="{{ left }}" x2="{{ width - right }}" y1="{{ at }}" y2="{{ at }}"/>
<text class="tick" x="{{ left - 8 }}" y="{{ at + 4 }}" text-anchor="end">{{ word }}</text>
{% endfor %}
{% for at, word in xs %}
<text class="tick" x="{{ at }}" y="{{ height - bottom + 18 }}" text-anchor="middle">{{ word }}</text>
{% endfor %}
<text class="tick" x="{{ (left + width - right) / 2 }}" y="{{ height - 4 }}"
 text-anchor="middle">{{ x_name }}</text>
{% for line in lines %}
<polyline class="line {{ line.kind }}" points="{{ line.path }}"/>
{% for x, y, word in line.dots %}
<circle class="dot {{ line.kind }}" cx="{{ x }}" cy="{{ y }}" r="3.5"><title>{{ word }}</title></circle>
{% endfor %}
{% if line.ring %}
<circle class="ring {{ line.kind }}" cx="{{ line.ring[0] }}" cy="{{ line.ring[1] }}" r="7.5"/>
{% endif %}
{% endfor %}
</svg>"""
)


def chart(
    lines: Sequence[Line],
    label: str,
    *,
    x_name: str = "optimizer step",
    y_from_zero: bool = False,
    width: int = WIDE,
) -> Markup:
    """The lines over a common x, without points that are not finite; empty where there are no others."""
    drawn = [
        (line, _thinned([each for each in line.points if all(map(math.isfinite, each))])) for line in lines
    ]
    points = [point for _, line in drawn for point in line]
    if not points:
        return Markup("")
    xs, ys = zip(*points, strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(0.0 if y_from_zero else min(ys), max(ys))
    x_low, x_high = min(xs), max([*xs, min(xs) + 1e-9])
    y_low, y_high = min([*y_ticks, *ys]), max([*y_ticks, *ys])

    def x_at(x: float) -> float:
        return _between(LEFT, width - RIGHT, (x - x_low) / (x_high - x_low))

    def y_at(y: float) -> float:
        return _between(HEIGHT - BOTTOM, TOP, (y - y_low) / (y_high - y_low))

    def described(line: Line, shown: Sequence[Point]) -> dict[str, object]:
        ring = next(((x_at(x), y_at(y)) for x, y in shown if x == line.ringed), None)
        return {
            "kind": line.kind,
            "path": " ".join(f"{x_at(x)},{y_at(y)}" for x, y in shown),
            "dots": [(x_at(x), y_at(y), f"{line.name}: {y:.6g} at {x:g}") for x, y in shown]
            if line.dots
            else [],
            "ring": ring,
        }

    return Markup(
        _TEMPLATE.render(
            width=width,
            height=HEIGHT,
            left=LEFT,
            right=RIGHT,
            bottom=BOTTOM,
            label=label,
            x_name=x_name,
            xs=[(x_at(x), f"{x:g}") for x in x_ticks if x_low <= x <= x_high and x == int(x)],
            ys=[(y_at(y), f"{y:.6g}") for y in y_ticks],
            lines=[described(line, shown) for line, shown in drawn],
        )
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`, about so many: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _between(begin: float, end: float, part: float) -> float:
    return round(begin + part * (end - begin), 1)


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = math.ceil(len(points) / MOST_POINTS) if points else 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]
