"""Peak memory of the runs in results/accuracy.json that were recorded without it.

python benchmarks/accuracy_memory.py --data FOLDER [--model BUNDLE]

FOLDER holds TASK/train.jsonl and TASK/SPLIT.jsonl of each task that a row names; the training rows
of a task like trec-16-13 are those of kshot/trec/16-13/train.jsonl. Runs that differ in their seed,
or in how far they go, alone are measured once, as `edgezo compare` measures them, the short ones
first, and each figure is written when it is there: a call that was stopped goes on. Methods with
true gradients need a bundle with a gradient graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from recording import RESULTS

from edgezo.baselines import baseline_of
from edgezo.cli.bench import bundle_for
from edgezo.cli.run_memory import memory_ratio
from edgezo.compare import Run
from edgezo.compare_rows import ROWS
from edgezo.finite_json import finite_rows
from edgezo.settings import BASE, RunSettings
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.files import write_text

RECORD = RESULTS / ROWS
#: Settings that change nothing of what the first steps hold.
GOING_ON = ("steps", "lr", "schedule", "eps", "eval_every", "keep", "snapshot_every")
Row = dict[str, Any]


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="All tasks' rows."
)
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
def main(data: Path, model: str) -> None:
    """Measure on this machine's cores what the rows lack, and write it into them."""
    bundle = bundle_for(model)
    rows = json.loads(RECORD.read_text("utf-8"))
    groups = unmeasured(rows)
    for number, group in enumerate(groups, 1):
        run = run_of(group[0], bundle, data)
        told = f"{number} of {len(groups)}: {run.task}, {run.method} ({len(group)})"
        try:
            ratio = memory_ratio(run)
        except EdgezoError as error:
            click.echo(f"{told}: {error}", err=True)
            continue
        for row in group:
            row["memory_ratio"] = ratio
        write_text(RECORD, finite_rows(rows))
        click.echo(f"{told}: {ratio:.2f} x")
    if left := sum(map(len, unmeasured(rows))):
        raise click.ClickException(f"{left} rows are still without it")


def unmeasured(rows: Sequence[Row]) -> list[list[Row]]:
    """Returns the rows without their memory, those together that one measurement is enough for."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["memory_ratio"] is None:
            held = [i for i in row["settings"].items() if i[0] not in GOING_ON and i[1] is not None]
            groups.setdefault(json.dumps([row["task"], sorted(held)]), []).append(row)
    return sorted(groups.values(), key=lambda group: _passes(group[0]))


def _passes(row: Row) -> float:
    """Returns about how many forward passes a measurement takes: those of the start and a step."""
    settings = row["settings"]
    if "steps" not in settings:
        return row["forwards"]
    start = 0 if settings.get("start", BASE) == BASE else row["examples"] / row["batch"]
    return start + (row["forwards"] - start) / settings["steps"]


def run_of(row: Mapping[str, Any], bundle: Path, data: Path) -> Run:
    """Returns the run that a row tells of, on the CPU."""
    settings = dict(row["settings"])
    name, shown = settings.pop("baseline", None), settings.pop("in_context", None)
    task, _, shots = row["task"].partition("-")
    train = data / "kshot" / task / shots if shots else data / task
    settings |= {
        "bundle": str(bundle),
        "data": str(train / "train.jsonl"),
        "eval_data": str(data / task / f"{row['split']}.jsonl"),
        "out": "",
        "seed": row["seed"],
    }
    made = RunSettings.from_dict(settings, str(RECORD))
    return Run(row["task"], row["method"], made, baseline_of(name, shown or None))


if __name__ == "__main__":
    main()
