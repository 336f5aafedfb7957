"""Draws the dashboard's panels, placed as in Grafana, from what Prometheus answered to their queries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 24
UNITS = {"percentunit": (100, "%"), "s": (1, "s"), "bytes": (2**-20, "MiB"), "h": (1, "h")}
"""Grafana's units: what to multiply with, and what to write."""


class Line(Protocol):
    """One series of a query."""

    @property
    def labels(self) -> Mapping[str, str]:
        """By name."""

    @property
    def points(self) -> Sequence[tuple[float, float]]:
        """Times in seconds, and values."""


def draw(dashboard: Path, answers: Mapping[str, Sequence[Sequence[Line]]], picture: Path) -> None:
    """Writes a PNG of all panels; `answers` has the series of each query of a panel, by the panel's title."""
    document = json.loads(dashboard.read_text())
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"])
    figure = Figure(figsize=(16, height * 0.32), layout=None, facecolor="white")
    begin = min(
        point[0]
        for queries in answers.values()
        for lines in queries
        for line in lines
        for point in line.points
    )
    for panel in document["panels"]:
        place = panel["gridPos"]
        left, bottom = place["x"] / COLUMNS, 1 - (place["y"] + place["h"]) / height
        if panel["type"] == "row":
            figure.text(left + 0.01, bottom + 0.2 / height, panel["title"], fontsize=13, weight="bold")
            continue
        axes = figure.add_axes(
            (left + 0.035, bottom + 1.3 / height, place["w"] / COLUMNS - 0.05, (place["h"] - 2.6) / height)
        )
        factor, unit = UNITS.get(panel["fieldConfig"]["defaults"].get("unit", ""), (1, ""))
        axes.set_title(f"{panel['title']}{f', {unit}' if unit else ''}", fontsize=9, loc="left")
        if panel["type"] == "timeseries":
            _curves(axes, [line for query in answers[panel["title"]] for line in query], begin, factor)
        else:
            _numbers(axes, [*_shown(panel, answers[panel["title"]], factor)])
    figure.savefig(picture, dpi=80)


def _curves(axes: Axes, lines: Sequence[Line], begin: float, factor: float) -> None:
    for line in lines:
        axes.plot(
            [time - begin for time, _ in line.points],
            [value * factor for _, value in line.points],
            label=_name(line),
            linewidth=1.2,
        )
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if 0 < len(lines) <= 6 and any(_name(line) for line in lines):
        axes.legend(fontsize=6, loc="best")


def _numbers(axes: Axes, shown: Sequence[str]) -> None:
    axes.axis("off")
    columns = 4 if len(shown) > 4 else 1
    for number, text in enumerate(shown):
        axes.text(
            (number % columns) / columns,
            1 - (number // columns + 1) * 0.3,
            text,
            fontsize=9,
            transform=axes.transAxes,
        )


def _shown(panel: dict[str, Any], queries: Sequence[Sequence[Line]], factor: float) -> Iterator[str]:
    """The last value of each series, after what Grafana calls it."""
    columns = {
        each["matcher"]["options"]: field["value"]
        for each in panel["fieldConfig"].get("overrides", [])
        for field in each["properties"]
        if field["id"] == "displayName"
    }
    for target, lines in zip(panel["targets"], queries, strict=True):
        legend = columns.get(f"Value #{target['refId']}") or target.get("legendFormat", "")
        for line in lines:
            name = _name(line) if "{{" in legend or not legend else f"{_name(line)} {legend}"
            yield f"{name}  {line.points[-1][1] * factor:.4g}".strip()


def _name(line: Line) -> str:
    return " ".join(
        value for key, value in line.labels.items() if key not in ("instance", "job", "namespace", "__name__")
    )
