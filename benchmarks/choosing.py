"""The figures and tables of docs/choosing.md, from the folder of a comparison.

python benchmarks/choosing.py [FOLDER] [--record]

FOLDER is that of one or more calls of `edgezo compare`; of a line that was run with several
settings the last ones count, and of a run that is not finished its curve alone. Prints a table for
each task. With --record the rows and their curves go to results/choosing.json, and a figure for
each task and the tables to docs/. Without FOLDER all is made again from what was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from recording import FOLDER, RESULTS

from edgezo.compare import BASELINE, PLACES, family_of, table
from edgezo.compare_charts import paint_curves, paint_memory
from edgezo.compare_lines import FAMILIES, UNITS, judged_by, lines_of, with_curves
from edgezo.compare_rows import read
from edgezo.finite_json import finite_rows
from edgezo.objectives import LOSS
from edgezo.run_folder import RunFolder, is_run
from edgezo_runtime.files import write_text

PAGE = FOLDER.parent / "docs" / "choosing.md"
RECORD = RESULTS / "choosing.json"
#: What stands around the tables in the page.
MARKS = ("<!-- the tables of benchmarks/choosing.py -->\n", "<!-- their end -->\n")
_STYLE: Any = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # each text names them all
    "svg.fonttype": "none",  # text stays text: a third of the size
    "svg.hashsalt": "edgezo",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Row = Mapping[str, Any]


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--record", "keep", is_flag=True, help="Write results/choosing.json and the docs.")
def main(folder: Path | None, keep: bool) -> None:
    """Show what a comparison reached, and in which time and memory."""
    rows = json.loads(RECORD.read_text("utf-8")) if folder is None else compared(folder)
    tasks: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["task"]):
        tasks.setdefault(row["task"], []).append(row)
    if not tasks:
        raise click.ClickException(f"{folder} holds no rows: give a folder of `edgezo compare`")
    tables = {task: as_table(of_task) for task, of_task in tasks.items()}
    click.echo("\n".join(tables.values()), nl=False)
    if keep:
        write_text(RECORD, finite_rows(rows))
        for task, of_task in tasks.items():
            draw(of_task, PAGE.with_name(f"choosing-{task}.svg"))
        put(tables)


def compared(folder: Path) -> list[Row]:
    """Returns the rows of a comparison, families together, with their curves.

    Of a line only those of its last settings, and of these the last of each seed.
    """
    told = read(folder)
    found: dict[tuple[Any, ...], Row] = {}
    kept = {(row["task"], row["method"]): row["settings_id"] for row in told}
    for row in told:
        line = (row["task"], row["method"])
        if row["settings_id"] == kept[line]:
            found[(*line, row["seed"])] = row
    rows = [*found.values(), *unfinished(folder, {row["run"] for row in told})]
    rows.sort(key=lambda row: FAMILIES.index(row["family"]))
    return [_public(row) for row in with_curves(folder, rows)]


def unfinished(folder: Path, told: Set[str | None]) -> Iterator[Row]:
    """Yields a row for each run that none tells of, with the steps that were `taken`."""
    for path in sorted(folder.glob("*/*/seed-*")):
        task, method, _ = path.relative_to(folder).parts
        name = path.relative_to(folder).as_posix()
        if name not in told and is_run(path):
            run = RunFolder(path)
            settings = run.read_settings()
            yield {
                "task": task,
                "method": method,
                "family": family_of(settings["method"]),
                "seed": settings["seed"],
                "settings": settings,
                "taken": sum("loss" in line for line in run.read_metrics()),
                "run": name,
            }


def _public(row: Row) -> Row:
    """Returns a row without the machine's paths."""
    settings = {n: v for n, v in row["settings"].items() if n not in PLACES}
    if settings.get("prompt"):
        settings["prompt"] = Path(settings["prompt"]).name
    return {n: v for n, v in row.items() if n != "run"} | {"settings": settings}


def as_table(rows: Sequence[Row]) -> str:
    """Returns what the runs of one task have in common, and a table of its lines."""
    done = [row for row in rows if "taken" not in row]
    tuned = [row for row in done if row["family"] != BASELINE] or done
    places = " and ".join(sorted({row["device"] for row in done}))
    if commits := sorted({row["commit"][:8] for row in done if row["commit"]}):
        places += ", commit " + " and ".join(commits)
    first = {row["method"]: row for row in reversed(rows)}
    lines = [
        f"**{rows[0]['task']}**: {max(row['examples'] for row in done):,} training rows, batches "
        f"of {tuned[0]['batch']}, on {places}.\n",
        "| method | family | rate | steps | seeds | forwards | seconds | memory | score |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, method, seeds, forwards, seconds, memory, score, _ in table(done)[1:]:
        row = first[method]
        chosen = row["settings"] if row["family"] != BASELINE else {}
        rate, steps = chosen.get("lr"), chosen.get("steps")
        cells = (
            f"`{method}`",
            row["family"],
            f"{rate:g}" if isinstance(rate, float) else "",
            f"{steps:,}" if steps else "",
            *(seeds, forwards, seconds, memory.replace(" x", ""), score),
        )
        lines.append("| " + " | ".join(cells) + " |")
    stopped = [
        f"`{row['method']}` after {row['taken']:,} of {row['settings']['steps']:,} steps"
        for row in rows
        if "taken" in row
    ]
    if stopped:
        lines.append("\nNot finished, and in the left figure alone: " + ", ".join(stopped) + ".")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws scores by seconds and by peak memory, side by side."""
    lines = lines_of(rows)
    with pyplot.rc_context(_STYLE):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(10, 4), sharey=True, layout="constrained"
        )
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(ScalarFormatter())
        left.xaxis.set_minor_locator(NullLocator())
        name = judged_by(rows)
        left.set_ylabel(f"held-out {name}" + (", %" if name != LOSS else ""))
        paint_curves(lines, UNITS.index("seconds"), left)
        paint_memory(lines, right)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(path, metadata=nothing)
        pyplot.close(figure)


def put(tables: Mapping[str, str]) -> None:
    """Writes figures and tables between the marks of docs/choosing.md."""
    shown = [
        f"\n![{task}: score by seconds and by peak memory](choosing-{task}.svg)\n\n{lines}"
        for task, lines in tables.items()
    ]
    before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    write_text(PAGE, before + MARKS[0] + "".join(shown) + "\n" + MARKS[1] + after)


if __name__ == "__main__":
    main()
