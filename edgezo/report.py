"""A run's report: one HTML page that needs no other file and no network."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgezo import report_charts
from edgezo.run_folder import REPORT, RunFolder
from edgezo_runtime import journal
from edgezo_runtime.files import write_text

COMPARISON = "comparison.json"
# Settings that are paths: the page may be mailed, and folders are nobody else's business.
_PATHS = ("bundle", "data", "eval_data", "prompt", "out")
_HEADER = ("method", "seed", "noise", "onnxruntime", "numpy", "threads")


@dataclass(frozen=True)
class Comparison:
    """A model before and after its tuning.

    Attributes:
        rows: name, value before, value after; each as it is to be read.
        examples: predictions, each by column; where there is a ``label``, the cells ``before`` and
            ``after`` are marked right or wrong.
    """

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


def write_report(run: RunFolder, extra: Comparison | None = None) -> Path | None:
    """Writes `report.html` into a run's folder; the same run gives the same bytes.

    Args:
        run: with its journal, settings and metrics.
        extra: shown first. It is kept in the folder, so that a report written again has it too.

    Returns:
        The page's path, or None if matplotlib is not installed.

    Raises:
        InputError: the run's journal or settings are damaged.
        EdgezoError: the folder cannot be written.
    """
    if not report_charts.available():
        return None
    if extra is None:
        extra = _kept_comparison(run)
    else:
        write_text(run.path / COMPARISON, json.dumps(asdict(extra)) + "\n")
    lines = run.read_metrics()
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if "eval" in line]
    log = journal.read(run.journal)
    settings = run.read_settings()
    charts = report_charts.draw(steps, evals)
    tables = [
        _table("Results", _results(run, steps, evals, len(log.records), settings)),
        _table("Settings", _settings(settings, log.header)),
    ]
    name = run.path.resolve().name
    parts = [
        f"<header><p>edgezo run</p><h1>{html.escape(name)}</h1>{_summary(steps, evals)}</header>",
        _comparison(extra) if extra else "",
        figures(charts),
        f'<div class="grid">{"".join(tables)}</div>',
    ]
    path = run.path / REPORT
    write_page(path, name, parts)
    return path


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Writes one HTML page of `parts`, in the style of all reports."""
    write_text(path, _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(parts)))


def _kept_comparison(run: RunFolder) -> Comparison | None:
    try:
        kept = json.loads((run.path / COMPARISON).read_text(encoding="utf-8"))
        rows = [(str(name), str(before), str(after)) for name, before, after in kept["rows"]]
        return Comparison(rows, [dict(example) for example in kept["examples"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _results(
    run: RunFolder,
    steps: Sequence[Mapping[str, Any]],
    evals: Sequence[Mapping[str, Any]],
    done: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    planned = settings.get("steps")
    skipped = sum(bool(line.get("skipped")) for line in steps)
    seconds = sum(line.get("seconds", 0.0) for line in steps)
    found: dict[str, Any] = {
        "steps": f"{done} of {planned}" if planned else done,
        "finished": run.weights.exists(),
        "skipped steps": skipped,
        "journal": f"{run.journal.stat().st_size:,} bytes",
    }
    if seconds:
        found["time of steps"] = f"{seconds:,.1f} s, {len(steps) / seconds:.2f} steps/s"
    smooth = report_charts.smoothed([line["loss"] for line in steps])
    if smooth and math.isfinite(smooth[-1]):
        found["training loss, smoothed, at the end"] = f"{smooth[-1]:.4f}"
    for key, (name, show) in _METRICS.items():
        values = [line["eval"][key] for line in evals if key in line["eval"]]
        if values:
            found[f"held-out {name}"] = " → ".join(map(show, _ends(values)))
    if evals:
        found["held-out examples"] = evals[-1]["eval"].get("examples")
    return found


def _settings(settings: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(settings)
    for name in _PATHS:
        if isinstance(shown.get(name), str):
            shown[name] = Path(shown[name]).name
    shown |= {name: header[name] for name in _HEADER if name in header and name not in shown}
    shown["base manifest sha256"] = str(header.get("base", ""))[:16]
    return {name: value for name, value in shown.items() if value is not None}


def _ends(values: Sequence[float]) -> list[float]:
    return [values[0], values[-1]] if len(values) > 1 else [values[-1]]


_METRICS = {
    "f1": ("F1", lambda value: f"{100 * value:.1f} %"),
    "em": ("exact match", lambda value: f"{100 * value:.1f} %"),
    "accuracy": ("accuracy", lambda value: f"{100 * value:.1f} %"),
    "perplexity": ("perplexity", lambda value: f"{value:,.3f}"),
    "loss": ("loss", lambda value: f"{value:.4f}"),
}


def _summary(steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page's one figure: the last held-out accuracy or perplexity."""
    for key, (name, show) in _METRICS.items():
        if evals and key in evals[-1]["eval"]:
            last = evals[-1]
            text = f"held-out {name} after step {last['step']}"
            return f"<p><strong>{show(last['eval'][key])}</strong> {text}</p>"
    return f"<p>{len(steps)} steps, no held-out rows</p>"


def _comparison(extra: Comparison) -> str:
    parts = []
    if extra.rows:
        parts.append(section("Before and after", grid(("", "before", "after"), extra.rows)))
    if extra.examples:
        columns = list(dict.fromkeys(name for example in extra.examples for name in example))
        cells = [[_prediction(example, name) for name in columns] for example in extra.examples]
        parts.append(section("Predictions on held-out rows", grid(columns, cells)))
    return "".join(parts)


@dataclass(frozen=True)
class _Marked:
    text: str
    right: bool


def _prediction(example: Mapping[str, Any], name: str) -> str | _Marked:
    text = str(example.get(name, ""))
    if name in ("before", "after") and "label" in example:
        return _Marked(text, text == str(example["label"]))
    return text


def figures(charts: Iterable[tuple[str, str]]) -> str:
    """Returns charts of a title and an SVG each, as HTML."""
    drawn = "".join(
        f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"
        for title, svg in charts
    )
    return f'<div class="grid">{drawn}</div>' if drawn else "<p>No step was taken yet.</p>"


def _table(title: str, fields: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_text(value))}</td></tr>"
        for name, value in fields.items()
    )
    return section(title, f"<table>{rows}</table>")


def grid(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table with a heading, as HTML."""

    def cell(value: Any) -> str:
        if isinstance(value, _Marked):
            kind, mark = ("right", "✓") if value.right else ("wrong", "✗")
            return f'<td class="{kind}">{mark} {html.escape(value.text)}</td>'
        return f"<td>{html.escape(str(value))}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def section(title: str, content: str) -> str:
    """Returns `content` under its title, as HTML."""
    return f'<section><h2>{html.escape(title)}</h2><div class="wide">{content}</div></section>'


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(inner)}" for name, inner in value.items())
    return str(value)


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f8fa; --card: #ffffff; --ink: #1b1f27; --muted: #616a78; --line: #dfe3ea;
  --series: #2563c9; --second: #c2570c; --right: #17803d; --wrong: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1a1f28; --ink: #e7eaf0; --muted: #9aa4b5; --line: #323a48;
    --series: #76a7fa; --second: #f0995a; --right: #5fce8a; --wrong: #f58a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
header p { margin: 0; color: var(--muted); }
header strong { color: var(--series); font-size: 1.9rem; line-height: 1.3; margin-right: .4rem; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2, figcaption { margin: 0 0 .6rem; font-size: 1rem; font-weight: 600; }
section, figure {
  margin: 1.25rem 0 0; padding: 1rem 1.1rem; min-width: 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.grid {
  display: grid; gap: 1.25rem; margin-top: 1.25rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
}
.grid > * { margin: 0; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; }
tr + tr > *, tbody tr > * { border-top: 1px solid var(--line); }
th { color: var(--muted); font-weight: 500; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.right, .wrong { white-space: nowrap; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
@media print { body { max-width: none; } section, figure { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · edgezo</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
