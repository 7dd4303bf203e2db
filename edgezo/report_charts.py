"""The charts of a run's report, as SVG to stand inside an HTML page.

They are drawn in the page's own colours (its CSS variables), so that they follow light and dark.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = Mapping[str, Any]  # of metrics.jsonl

# Colours that stand for the page's own: matplotlib takes no CSS variables.
_VARIABLES = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--series)",
    "#050505": "var(--second)",
}
_INK, _MUTED, _LINE, _SERIES, _SECOND = _VARIABLES
_SIZE = (5.6, 3.0)  # inches
_MOST_POINTS = 2000  # of one line; more cannot be told apart and make a heavy page
_FAINT = 0.3
#: What is drawn of evaluations: name, title, and what it is multiplied by.
_HELD_OUT = (
    ("f1", "Held-out F1, %", 100),
    ("em", "Held-out exact match, %", 100),
    ("accuracy", "Held-out accuracy, %", 100),
    ("perplexity", "Held-out perplexity", 1),
)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def smoothed(values: Sequence[float]) -> list[float]:
    """Returns the exponential moving average over about a twentieth of `values`.

    It starts without a bias towards zero, and passes over what is not finite.
    """
    keep = 1 - 1 / max(1.0, len(values) / 20)
    total = weight = 0.0
    averages = []
    for value in values:
        if math.isfinite(value):
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        averages.append(total / weight if weight else math.nan)
    return averages


def draw(steps: Sequence[Line], evals: Sequence[Line]) -> list[tuple[str, str]]:
    """Returns the title and the SVG of each chart that there is something to draw for.

    Args:
        steps: the lines of `metrics.jsonl` that describe steps.
        evals: those that describe evaluations.
    """
    last = max((line["step"] for line in (*steps, *evals)), default=0)
    charts = enumerate(_charts(steps, evals))
    return [(title, svg(f"c{i}", partial(_counted, paint, last))) for i, (title, paint) in charts]


def _charts(
    steps: Sequence[Line], evals: Sequence[Line]
) -> Iterator[tuple[str, Callable[[Axes], None]]]:
    if steps:
        yield "Loss of each batch", lambda axes: _loss(axes, steps, evals)
    for key, title, scale in _HELD_OUT:
        points = _points(evals, lambda line, key=key: line["eval"].get(key))
        if points[0]:
            yield (
                title,
                lambda axes, p=points, s=scale: _held_out(axes, p[0], [s * y for y in p[1]]),
            )
    if steps:
        yield "Learning rate", lambda axes: _lr(axes, steps)
        yield "Size of the projected gradient", lambda axes: _slope(axes, steps)


def _loss(axes: Axes, steps: Sequence[Line], evals: Sequence[Line]) -> None:
    axes.plot(*_points(steps, lambda line: line["loss"]), color=_SERIES, alpha=_FAINT, lw=0.8)
    smooth = smoothed([line["loss"] for line in steps])
    lines = [{"step": line["step"], "y": y} for line, y in zip(steps, smooth, strict=True)]
    axes.plot(*_points(lines, lambda line: line["y"]), color=_SERIES, lw=1.8, label="smoothed")
    held_out = _points(evals, lambda line: line["eval"].get("loss"))
    if held_out[0]:
        axes.plot(*held_out, "o-", color=_SECOND, ms=4, lw=1.4, label="held out")
        axes.legend(frameon=False, labelcolor=_INK)


def _held_out(axes: Axes, steps: Sequence[int], values: Sequence[float]) -> None:
    axes.plot(steps, values, "o-", color=_SECOND, ms=4.5, lw=1.8)
    axes.margins(y=0.2)
    for at, side in ((0, "right"), (len(values) - 1, "center"))[len(values) == 1 :]:
        axes.annotate(
            f"{values[at]:.4g}",
            (steps[at], values[at]),
            xytext=(2, 7),
            textcoords="offset points",
            ha=side,
            color=_INK,
        )


def _lr(axes: Axes, steps: Sequence[Line]) -> None:
    axes.plot(*_points(steps, lambda line: line["lr"]), color=_SERIES, lw=1.8)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)


def _slope(axes: Axes, steps: Sequence[Line]) -> None:
    def size(line: Line) -> float | None:
        return abs(line["projected_grad"]) or None  # a logarithm has no place for zero

    taken = [line for line in steps if not line.get("skipped")]
    axes.plot(*_points(taken, size), ".", color=_SERIES, ms=3, alpha=0.55)
    axes.set_yscale("log")
    skipped = [line["step"] for line in steps if line.get("skipped")]
    for step in skipped[:_MOST_POINTS]:
        axes.axvline(step, color=_SECOND, lw=1)
    if skipped:
        axes.set_title(f"{len(skipped)} skipped", loc="right", color=_SECOND, fontsize=9)


def _points(
    lines: Sequence[Line], value: Callable[[Line], float | None]
) -> tuple[list[int], list[float]]:
    """Returns steps and values where the value is finite, thinned out where there are many."""
    found = [(line["step"], value(line)) for line in lines]
    kept = [(x, y) for x, y in found if y is not None and math.isfinite(y)]
    stride = -(-len(kept) // _MOST_POINTS) or 1
    kept = kept[::-1][::stride][::-1]  # the last one always stays
    return [x for x, _ in kept], [y for _, y in kept]


def _counted(paint: Callable[[Axes], None], last: int, axes: Axes) -> None:
    """Paints `axes`, whose horizontal axis counts steps up to `last`."""
    from matplotlib.ticker import MaxNLocator

    paint(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_xlim(-0.01 * last - 0.2, 1.04 * last + 0.2)
    axes.set_xlabel("step")


def svg(key: str, paint: Callable[[Axes], None]) -> str:
    """Draws one chart; `key` keeps its ids apart from others'."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():  # restores what the caller has set
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = key
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", lw=0.7)
        paint(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.strip()


_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # what it is measured with; it comes with matplotlib
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _LINE,
}
