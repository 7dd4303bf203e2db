"""How a comparison is drawn: its methods are told apart by colour, their families by marker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgezo.compare import BASELINE
from edgezo.compare_lines import FAMILIES, UNITS, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

MEMORY = "peak memory / that of inference"
_MARKERS = dict(zip(FAMILIES, ("D", "o", "s", "^"), strict=True))
_STYLES = ("-", "--", ":", "-.")
_COLOURS = (0, 1, 2, 3, 4, 5, 6, 8, 9)  # of matplotlib's cycle, without its gray
_MARKED = 8  # evaluations of a curve, about
_ROOM = 0.3  # of the width, right of the last point, for names
_SIZE, _LINE = 7.5, 9.0  # of a name and of a line of text, in points
_NEAR = 6.0  # points between a name and what it names
_ROWS = 12  # up and down, that a name may be away


@dataclass(frozen=True)
class _Named:
    """A place that has a name; `x` is None for a level, named where the axes end."""

    name: str
    family: str
    colour: str
    x: float | None
    y: float


def paint_curves(lines: Sequence[Line], axis: int, axes: Axes) -> None:
    """Draws a curve for each method, and a level for each baseline.

    Args:
        lines: of one task.
        axis: which number of a curve's points is laid along; see `compare_lines.UNITS`.
        axes: empty; the horizontal scale may be logarithmic.
    """
    ends = []
    for line, colour, style in _looks(lines):
        points = [(point[axis], point[2]) for point in line.curve if math.isfinite(point[2])]
        if line.family == BASELINE and math.isfinite(line.score):
            axes.axhline(line.score, color=colour, lw=1, ls=style)
            ends.append(_Named(line.name, line.family, colour, None, line.score))
        elif points:
            xs, ys = zip(*points, strict=True)
            every = -(-len(points) // _MARKED)
            marked = slice((len(points) - 1) % every, None, every)  # the last one always is
            marker = _MARKERS[line.family]
            axes.plot(xs, ys, style, color=colour, marker=marker, markevery=marked, ms=3.5, lw=1.4)
            ends.append(_Named(line.name, line.family, colour, xs[-1], ys[-1]))
    if axes.get_xscale() == "linear":
        axes.set_xlim(left=0)
    _finish(axes, ends, UNITS[axis])


def paint_memory(lines: Sequence[Line], axes: Axes) -> None:
    """Draws a point for each line whose memory was measured, and where that of inference is."""
    ends = []
    for line, colour, _ in _looks(lines):
        if line.memory is not None and math.isfinite(line.score):
            axes.plot(line.memory, line.score, _MARKERS[line.family], color=colour, ms=6)
            ends.append(_Named(line.name, line.family, colour, line.memory, line.score))
    _finish(axes, ends, MEMORY)
    axes.axvline(1, color="gray", lw=0.7, ls=":")  # names need not keep clear of it


def _looks(lines: Sequence[Line]) -> list[tuple[Line, str, str]]:
    """Returns each line with its colour and its style; a baseline's is gray, and not solid."""
    tuned = [line for line in lines if line.family != BASELINE]
    bases = [line for line in lines if line.family == BASELINE]
    looks = [(line, "gray", _STYLES[1 + n % 3]) for n, line in enumerate(bases)]
    for number, line in enumerate(tuned):
        turn, place = divmod(number, len(_COLOURS))
        looks.append((line, f"C{_COLOURS[place]}", _STYLES[turn % len(_STYLES)]))
    return looks


def _finish(axes: Axes, ends: Sequence[_Named], unit: str) -> None:
    """Makes room for the names, writes them, and says which marker is which family."""
    from matplotlib.lines import Line2D

    axes.set_xlabel(unit)
    axes.margins(y=0.12)
    transform = axes.xaxis.get_transform()
    left, right = transform.transform(axes.get_xlim())
    axes.set_xlim(right=float(transform.inverted().transform(right + _ROOM * (right - left))))
    shown = [family for family in FAMILIES if any(end.family == family for end in ends)]
    if shown:
        marks = [Line2D([], [], marker=_MARKERS[name], ls="", color="gray", ms=5) for name in shown]
        above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(shown)}
        axes.legend(marks, shown, **above, frameon=False, fontsize=8, handletextpad=0.2)
    _name(axes, ends)


def _name(axes: Axes, ends: Sequence[_Named]) -> None:
    """Writes each name where it covers no other and no point, nor a curve if it can be.

    What is not right beside its point has a line to it.
    """
    from matplotlib.transforms import Affine2D, Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # from here on the axes stay where they are
    to_points = Affine2D().scale(72 / figure.dpi)
    area = Bbox(to_points.transform(axes.bbox.get_points()))
    curves = [line.get_path().transformed(line.get_transform() + to_points) for line in axes.lines]
    edge = axes.get_xlim()[1]
    data = [(edge if end.x is None else end.x, end.y) for end in ends]
    places = (axes.transData + to_points).transform(data) if data else []
    points = [place for place, end in zip(places, ends, strict=True) if end.x is not None]
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in points]

    def hidden(spot: _Spot) -> tuple[int, int]:
        crossed = sum(curve.intersects_bbox(spot.box, filled=False) for curve in curves)
        return (int(spot.box.count_overlaps(taken)) if taken else 0, crossed)

    for place, end, xy in sorted(
        zip(places, ends, data, strict=True), key=lambda each: -each[0][1]
    ):
        level = end.x is None  # its name stands on it
        spots = list(_spots(place[0], place[1], _width(end.name), level))
        seen = [spot for spot in spots if _within(spot.box, area)]
        spot = min(seen or spots, key=hidden)  # of equals the nearest
        taken.append(spot.box)
        side = "left" if spot.dx > 0 else "right"
        line = {"arrowstyle": "-", "lw": 0.5, "color": "gray", "shrinkA": 0, "shrinkB": 3}
        line["relpos"] = (0 if spot.dx > 0 else 1, 0.5)
        axes.annotate(
            end.name,
            xy,
            (spot.dx, spot.dy),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=_SIZE,
            color=end.colour,
            parse_math=False,
            arrowprops=line if abs(spot.dy) > _LINE * level else None,
        ).set_in_layout(False)


@dataclass(frozen=True)
class _Spot:
    """Where a name might be: its middle's side from what it names, and its box, in points."""

    dx: float
    dy: float
    box: Bbox


def _spots(x: float, y: float, width: float, level: bool) -> Iterator[_Spot]:
    """Yields spots at both sides of a place, the nearest first; rows of them fan out."""
    from matplotlib.transforms import Bbox

    for row in range(level, _ROWS):
        for dy in (row * _LINE, -row * _LINE):
            for dx in (_NEAR * (1 + row), -_NEAR * (1 + row)):
                left = x + dx if dx > 0 else x + dx - width
                yield _Spot(dx, dy, Bbox.from_bounds(left, y + dy - _LINE / 2, width, _LINE))


def _width(name: str) -> float:
    """Returns how wide a name is, in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(name, FontProperties(size=_SIZE), False)[0]


def _within(box: Bbox, area: Bbox) -> bool:
    return area.contains(box.x0, box.y0) and area.contains(box.x1, box.y1)
