"""`edgezo compare`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from edgezo.baselines import ICL, IN_CONTEXT, LINEAR_PROBE, NAMES
from edgezo.callbacks import Callback
from edgezo.cli.adapters import add_adapter
from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.cli.progress import RunProgress
from edgezo.cli.run_memory import memory_ratio
from edgezo.cli.run_options import run_options
from edgezo.compare import Run, compare, plan, table
from edgezo.compare_report import write_comparison
from edgezo.compare_rows import RESULTS, write_rows
from edgezo_runtime.errors import InputError

_PLAN = ("bundle", "data", "methods", "seeds", "settings")


@subcommand(
    "edgezo compare smollm2.edgezo --data sst2=train.jsonl:dev.jsonl --methods mezo,es \\\n"
    "      --seeds 0,1,2 --steps 1000 --eval-every 100 --out comparison"
)
@click.argument("bundle", required=False)
@click.option(
    "--data",
    multiple=True,
    metavar="TASK=TRAIN:DEV[:TEST]",
    help="Rows of a task; repeatable. With TEST scores are of these, and DEV chooses what --keep "
    "best keeps.",
)
@click.option(
    "--test-examples", type=click.IntRange(1), help="Draw so many of TEST.  [default: all]"
)
@click.option("--methods", help=f"Names from `edgezo methods`, default, {', '.join(NAMES)}.")
@click.option("--seeds", help="Seeds with commas between them.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for all runs.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="YAML with a comparison; flags win."
)
@run_options(
    "steps", "batch_size", "lr", "eps", "samples", "schedule", "tune", "objective", "metric",
    "max_tokens", "examples", "shots", "eval_examples", "eval_every", "keep", "device", "threads",
)  # fmt: skip
@click.option(
    "--in-context",
    type=click.IntRange(1),
    help="Also icl: show the untuned model so many solved rows.  [default of --methods icl: "
    f"{IN_CONTEXT}]",
)
@click.option(
    "--linear-probe",
    is_flag=True,
    help="Also linear-probe: fit a regression on the untuned model's features.",
)
@click.option("--keep-weights", is_flag=True, help="Keep each run's weights, not the journal only.")
@as_json
def command(
    bundle: str | None,
    data: tuple[str, ...],
    test_examples: int | None,
    methods: str | None,
    seeds: str | None,
    out: Path,
    config: Path | None,
    in_context: int | None,
    linear_probe: bool,
    keep_weights: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Tune BUNDLE by each method on each task with each seed, and compare what they reach.

    What is done already is not run again, and a run that was stopped goes on where it was: the same
    command continues. A name of the catalogue of prompts brings its prompt.
    """
    given = _read_plan(config) if config else {}
    bundle = bundle or given.get("bundle")
    if not isinstance(bundle, str):
        raise InputError("bundle is missing: give BUNDLE")
    tasks = _tasks(data) or _mapping(given, "data")
    if test_examples:
        tasks = {name: {**task, "test_examples": test_examples} for name, task in tasks.items()}
    named = {name: {} for name in _split(methods)} if methods else _mapping(given, "methods")
    listed = _split(seeds) if seeds else given.get("seeds", [0])
    numbers = [_seed(each) for each in (listed if isinstance(listed, list) else [listed])]
    if in_context:
        named = {ICL: {}} | named
        named[ICL] = {**named[ICL], "in_context": in_context}
    if linear_probe:
        named = {LINEAR_PROBE: {}} | named
    for what, found in (("--data", tasks), ("--methods", named), ("--seeds", numbers)):
        if not found:
            raise InputError(f"there is nothing to compare: give {what}")
    shared = {name: value for name, value in flags.items() if value is not None}
    settings = _mapping(given, "settings") | shared
    runs = plan(bundle, tasks, named, numbers, settings, out)
    tuned = sum(run.baseline is None for run in runs)
    done = 0

    @contextlib.contextmanager
    def watch(run: Run) -> Iterator[Callback]:
        click.echo(
            f"run {done + 1} of {tuned}: {run.task}, {run.method}, seed {run.settings.seed}",
            err=True,
        )
        with RunProgress(run.settings.steps) as progress:
            yield progress

    rows = []
    for row in compare(runs, out, watch, add_adapter, keep_weights, memory_ratio):
        rows.append(row)
        done += row["run"] is not None
    write_rows(out, rows)
    page = write_comparison(out, rows) if rows else None
    if as_json:
        print_json({"rows": rows, "finished": done == tuned, "out": str(out)})
    else:
        for line in _aligned(table(rows)):
            click.echo(line)
        click.echo(f"\nthe rows are in {out / RESULTS}" + (f", charts in {page}" if page else ""))
    have = {(row["task"], row["method"]) for row in rows}
    for run in runs if done == tuned else ():
        if run.baseline and (run.task, run.method) not in have:
            click.echo(f"task {run.task} has neither labels nor options: no {run.method}", err=True)
    if done < tuned:
        click.echo(f"stopped after {done} of {tuned} runs; the same command goes on", err=True)
        click.get_current_context().exit(130)


def _tasks(data: Sequence[str]) -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = {}
    for name, task in map(_task, data):
        if name in tasks:
            raise InputError(f"--data names two tasks {name}: give each a name of its own")
        tasks[name] = task
    return tasks


def _task(item: str) -> tuple[str, dict[str, Any]]:
    name, equals, paths = item.partition("=")
    files = paths.split(":")
    if not (name and equals and len(files) in (2, 3) and all(files)):
        raise InputError(f"--data {item} is no task: write TASK=TRAIN.jsonl:DEV.jsonl[:TEST.jsonl]")
    return name, dict(zip(("data", "eval_data", "test_data"), files, strict=False))


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict) or not set(values) <= set(_PLAN):
        raise InputError(f"{path} is no comparison: it may hold {', '.join(_PLAN)}")
    return values


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an entry of the plan that maps names to settings; a list of names has none."""
    found = values.get(name) or {}
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        found = dict.fromkeys(found)
    if not isinstance(found, dict):
        raise InputError(f"{name} of the comparison should map names to settings")
    if name == "settings":
        return found
    entries = {str(key): {} if entry is None else entry for key, entry in found.items()}
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise InputError(f"{name} of the comparison: {key} should map names to settings")
    return entries


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seed(value: object) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise InputError(f"seed {value!r} is no whole number") from error


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (0, 1, len(widths) - 1)
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
