"""A picture with one pair of axes, written to a file in the format that its suffix names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune_api.failure import FailureClass, FineTuneError

BLUE, ORANGE, GREY = "#2a6f97", "#d1603d", "#9aa5ae"


@contextmanager
def picture(path: Path) -> Iterator[Axes]:
    """Axes to draw on; at the end of the `with` block the picture is in `path`.

    Raises FineTuneError when it cannot be written.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9eb", linewidth=0.8)
    axes.set_axisbelow(True)
    yield axes
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise FineTuneError(
            FailureClass.STORAGE_ERROR, f"{path}: {error.strerror}; the picture is not written"
        ) from error
