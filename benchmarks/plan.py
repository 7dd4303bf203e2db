"""Predicted and measured peak memory: what `edgezo plan` says of a run, and what the run then took.

python benchmarks/plan.py FOLDER --data TRAIN --eval-data DEV [--model BUNDLE] [--method NAME]...
                          [--record]

Everything that the plan lists is trained, one run after the other, with the settings of the plan.
FOLDER keeps the plan and the peaks, and what it holds is not measured again: a call that was
stopped goes on, and --method takes a few of the runs. Prints a table; with --record it goes to
docs/choosing.md and the numbers to results/plan.json. The data are SST-2's, {"text", "label"}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from recording import FOLDER, record

from edgezo.cli.bench import bundle_for
from edgezo_runtime.files import write_text

PAGE = FOLDER.parent / "docs" / "choosing.md"
#: What stands around the table in the page.
MARKS = ("<!-- the table of benchmarks/plan.py -->\n", "<!-- the end of that table -->\n")
ROWS, STEPS, THREADS = 16, 12, 2
CONDITIONS = {
    "prompt": "sst2",
    "batch-size": ROWS,
    "examples": 1000,
    "eval-examples": 64,
    "steps": STEPS,
    "threads": THREADS,
}
ACROSS = 3  # runs in a line of the table
Run = Mapping[str, Any]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Training rows.")
@click.option("--eval-data", type=click.Path(path_type=Path, exists=True), help="Held-out rows.")
@click.option("--method", multiple=True, help="Train what is planned of it.  [default: all]")
@click.option("--record", "keep", is_flag=True, help="Write results/plan.json and the docs.")
def main(
    folder: Path,
    model: str,
    data: Path | None,
    eval_data: Path | None,
    method: tuple[str, ...],
    keep: bool,
) -> None:
    """Measure how well peaks are predicted."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [str(bundle_for(model))]
    for name, value in {"data": data, "eval-data": eval_data, **CONDITIONS}.items():
        words += () if value is None else (f"--{name}", str(value))
    runs = planned(folder / "plan.json", words)
    peaks = folder / "peaks.jsonl"
    lines = peaks.read_text("utf-8").splitlines() if peaks.exists() else ()
    found = {told(run): run for run in map(json.loads, lines)}
    for run in runs:
        if told(run) not in found and (not method or run["method"] in method):
            found[told(run)] = measured(run, words)
            with peaks.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[told(run)]) + "\n")
            click.echo(f"{told(run)}: {found[told(run)]['peak_rss_mb']:g} MB", err=True)
    predicted = "predicted_peak_rss_mb"
    rows = [found[told(r)] | {predicted: r[predicted]} for r in runs if told(r) in found]
    table = as_table(rows)
    click.echo(table, nl=False)
    if keep:
        record("plan", {"conditions": CONDITIONS, "runs": rows})
        before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
        write_text(PAGE, before + MARKS[0] + table + MARKS[1] + rest.partition(MARKS[1])[2])


def planned(path: Path, words: Sequence[str]) -> list[Run]:
    """Returns the alternatives of the plan in `path`, which is made if it is not there."""
    if not path.exists():
        write_text(path, edgezo("plan", *words))
    return json.loads(path.read_text("utf-8"))["alternatives"]


def measured(run: Run, words: Sequence[str]) -> Run:
    """Trains, and returns what the run was and its peak."""
    flags = [] if run["recipe"] else ["--method", run["method"], "--tune", run["tune"]]
    if "prefix_cache" in run:
        flags += ["--prefix-cache", run["prefix_cache"]]
    with tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch:
        done = json.loads(edgezo("train", *words, *flags, "--out", str(Path(scratch) / "run")))
    return {**named(run), "peak_rss_mb": done["peak_rss_mb"]}


def named(run: Run) -> Run:
    """Returns what tells a run from the others."""
    return {name: run[name] for name in ("method", "tune", "recipe")}


def told(run: Run) -> str:
    """Returns that as words."""
    if run["recipe"]:
        return "the recipe"
    return f"`{run['method']}`" + (f" on {run['tune']}" if run["tune"] != "full" else "")


def edgezo(*words: str) -> str:
    """Runs a command of edgezo and returns what it printed last, which is JSON."""
    line = [sys.executable, "-m", "edgezo", *words, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1] + "\n"


def as_table(rows: Sequence[Run]) -> str:
    """Returns the peaks in MB, and how far the predicted one is off."""
    cells = [
        f"{told(row)} | {row['predicted_peak_rss_mb']:,.0f} | {row['peak_rss_mb']:,.0f} | "
        f"{round(row['predicted_peak_rss_mb'] / row['peak_rss_mb'] - 1, 3) + 0.0:+.1%}"
        for row in rows
    ]
    cells += [" | | | "] * (-len(cells) % ACROSS)
    lines = [
        "| " + " | ".join(["run | predicted | measured | error"] * ACROSS) + " |",
        "|" + "---|---:|---:|---:|" * ACROSS,
    ]
    height = len(cells) // ACROSS
    lines += ("| " + " | ".join(cells[n::height]) + " |" for n in range(height))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
