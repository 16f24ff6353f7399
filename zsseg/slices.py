"""Draw the trials of a sweep: one slice for each setting, its values against the objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsseg.artifacts import write_file
from zsseg.charts import figure, own_style, png
from zsseg.search_space import Choices, Range, Space, Value

FINISHED, BEST, PRUNED = "#0072B2", "#D55E00", "#999999"
COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """A trial as it is drawn.

    Attributes:
        values: Of the searched settings.
        objective: NaN where it was pruned.
        quarters: The objective on the way; a pruned trial is drawn at the last one.
        best: Whether it is the best of all.
    """

    values: Mapping[str, Value]
    objective: float
    quarters: Sequence[float]
    best: bool

    @property
    def height(self) -> float:
        """Where it is drawn; NaN: nowhere."""
        if not math.isnan(self.objective):
            return self.objective
        return self.quarters[-1] if self.quarters else math.nan


def draw(path: Path, space: Space, points: Sequence[Point], *, ylabel: str) -> None:
    """Write the slices of a sweep as a PNG.

    Raises:
        ArtifactError: It cannot be written.
    """
    columns = min(COLUMNS, len(space.search))
    rows = -(-len(space.search) // columns)
    with own_style():
        drawn = figure(1 + 3.4 * columns, 0.8 + 2.9 * rows)
        grid = drawn.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes in grid[len(space.search) :]:
            axes.set_visible(False)
        for place, (axes, (name, each)) in enumerate(zip(grid, space.search.items(), strict=False)):
            _slice(axes, name, each, points)
            if place % columns == 0:
                axes.set_ylabel(ylabel, fontsize=8)
        handles, labels = grid[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper left", ncols=len(labels), fontsize=8)
        write_file(path, png(drawn))


def _slice(axes: Any, name: str, each: Range | Choices, points: Sequence[Point]) -> None:
    places = {value: place for place, value in enumerate(each.samples)} if isinstance(each, Choices) else None
    shown = [point for point in points if name in point.values and not math.isnan(point.height)]
    for label, colour, marker, size, kind in (
        ("pruned, where it stood on fewer photos", PRUNED, "x", 26, [p for p in shown if math.isnan(p.objective)]),
        ("finished", FINISHED, "o", 26, [p for p in shown if not math.isnan(p.objective) and not p.best]),
        ("best", BEST, "*", 110, [p for p in shown if p.best]),
    ):
        across = [point.values[name] if places is None else places[point.values[name]] for point in kind]
        axes.scatter(across, [point.height for point in kind], s=size, c=colour, marker=marker, label=label)
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if places is None:
        axes.set_xscale("log" if isinstance(each, Range) and each.log else "linear")
    else:
        axes.set_xticks(range(len(places)), labels=[plain(value, 14) for value in places], fontsize=7)
        axes.set_xlim(-0.5, len(places) - 0.5)


def plain(value: Value, width: int = 60) -> str:
    """Return a setting's value as people read it."""
    if isinstance(value, bool) or not isinstance(value, float):
        text = " + ".join(value) if isinstance(value, tuple) else str(value)
        return text if len(text) <= width else f"{text[: width - 1]}…"
    return f"{value:.3g}"
