"""A comparison's page: its table, and scores by forward passes, by seconds and by peak memory."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgezo import report_charts
from edgezo.compare import table
from edgezo.compare_charts import MEMORY, paint_curves, paint_memory
from edgezo.compare_lines import UNITS, Line, judged_by, lines_of, with_curves
from edgezo.objectives import LOSS
from edgezo.report import figures, grid, section, write_page

PAGE = "comparison.html"


def write_comparison(out: Path, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Writes the page of the rows of a comparison in `out`, and returns its path.

    Returns:
        None if matplotlib is not installed.

    Raises:
        EdgezoError: the folder cannot be written.
    """
    if not report_charts.available():
        return None
    charts = []
    for number, task in enumerate(dict.fromkeys(row["task"] for row in rows)):
        of_task = [row for row in rows if row["task"] == task]
        name = judged_by(of_task)
        drawn = _draw(f"t{number}", lines_of(with_curves(out, of_task)))
        shown = name if name == LOSS else f"{name}, %"
        charts += [(f"{task}: held-out {shown}, by {unit}", svg) for unit, svg in drawn]
    heading, *lines = table(rows)
    path = out / PAGE
    name = out.resolve().name
    parts = [
        f"<header><p>edgezo comparison</p><h1>{html.escape(name)}</h1></header>",
        section("Results: mean and standard deviation over seeds", grid(heading, lines)),
        figures(charts),
    ]
    write_page(path, name, parts)
    return path


def _draw(key: str, lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Yields what each chart lays its scores along, and the chart."""
    for axis, unit in enumerate(UNITS):
        yield unit, report_charts.svg(f"{key}{axis}", partial(paint_curves, lines, axis))
    if any(line.memory is not None for line in lines):
        yield MEMORY, report_charts.svg(f"{key}m", partial(paint_memory, lines))
