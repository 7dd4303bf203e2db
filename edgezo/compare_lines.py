"""What a comparison's charts and figures show: one line for each method on a task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezo.compare import BASELINE, score_of
from edgezo.objectives import LOSS
from edgezo.run_folder import RunFolder

#: A run's evaluations: its forward passes and seconds so far, and what it scored.
Curve = list[tuple[int, float, float]]
#: What a curve's first and second numbers count.
UNITS = ("forward passes", "seconds")
FAMILIES: tuple[str, ...] = (BASELINE, "forward-only", "hybrid", "first-order")


@dataclass(frozen=True)
class Line:
    """A method on a task: means over its seeds.

    Attributes:
        name: the line's in the comparison.
        family: one of `FAMILIES`.
        score: percent, or a loss; NaN where no run is finished.
        memory: peak memory over that of inference; None where it was not measured.
        curve: of its evaluations, scores as `score`; empty for a baseline.
    """

    name: str
    family: str
    score: float
    memory: float | None
    curve: Curve


def with_curves(out: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of a comparison in `out`, each with the `curve` of its run.

    It is empty for a baseline, and where the run's folder is gone.
    """
    return [{**row, "curve": _curve(out / row["run"]) if row.get("run") else []} for row in rows]


def _curve(run: Path) -> Curve:
    found: Curve = []
    forwards, seconds = 0, 0.0
    for line in RunFolder(run).read_metrics():
        if "forwards" in line:
            forwards += line["forwards"]
            seconds += line["seconds"]
        elif "eval" in line:
            found.append((forwards, round(seconds, 4), score_of(line["eval"])[1]))
    return found


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Returns the lines of one task's rows, which have a `curve` each."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    scale = 1 if judged_by(rows) == LOSS else 100
    return [_line(name, group, scale) for name, group in groups.items()]


def judged_by(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns what the rows of one task are judged by."""
    return next((name for name, _ in map(score_of, rows) if name != LOSS), LOSS)


def _line(name: str, rows: Sequence[Mapping[str, Any]], scale: int) -> Line:
    ratios = [row["memory_ratio"] for row in rows if row.get("memory_ratio") is not None]
    memory = statistics.fmean(ratios) if ratios else None
    curves = [row["curve"] for row in rows if row["curve"]]
    curve = [
        (
            round(statistics.fmean(point[0] for point in points)),
            statistics.fmean(point[1] for point in points),
            scale * statistics.fmean(_number(point[2]) for point in points),
        )
        for points in zip(*curves, strict=False)  # up to the shortest one's end
    ]
    score = scale * statistics.fmean(score_of(row)[1] for row in rows)
    return Line(name, rows[0]["family"], score, memory, curve)


def _number(score: float | None) -> float:
    return math.nan if score is None else score  # as JSON has it
