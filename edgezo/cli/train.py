"""`edgezo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgezo.cli.adapters import adapter_options, add_adapter
from edgezo.cli.common import (
    as_json,
    device_option,
    label_words_option,
    megabytes,
    print_json,
    prompt_option,
    subcommand,
    task_option,
    template_option,
    threads_option,
)
from edgezo.cli.progress import RunProgress
from edgezo.objectives import OBJECTIVES
from edgezo.report import write_report
from edgezo.settings import KEEP, Settings
from edgezo.train import Result, train
from edgezo_runtime.errors import InputError
from edgezo_runtime.memory import peak_bytes
from edgezo_runtime.methods import METHODS
from edgezo_runtime.prefix_cache import PRECISIONS
from edgezo_runtime.schedule import NAMES
from edgezo_runtime.select import ADAPTERS, WORDS

WHAT = ", ".join(("full", *ADAPTERS, *WORDS))


def pairs(
    ctx: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str] | None:
    """Reads ``name=value`` options; None where there is none."""
    found: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"--set {pair} sets nothing; write --set NAME=VALUE")
        found[name.strip()] = value.strip()
    return found or None


@subcommand("edgezo train smollm2.edgezo --data train.jsonl --eval-data dev.jsonl --out runs/first")
@click.argument("bundle", required=False)
@click.option("--data", help="Training rows, JSONL; of arrays also .npz.")
@click.option("--eval-data", help="Held-out rows, likewise.")
@click.option("--examples", type=int, help="Draw so many training rows by the seed.")
@click.option("--shots", type=int, help="Draw so many training rows of each label.")
@click.option(
    "--eval-examples",
    type=int,
    help="Draw so many held-out rows: of --eval-data, else of the training rows that are left.",
)
@click.option("--out", help="Folder for the run.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with settings; flags win.")
@prompt_option
@task_option
@template_option
@label_words_option
@click.option("--tune", help=f"{WHAT}, or patterns of names.  [default: full]")
@adapter_options
@click.option("--objective", help=f"{', '.join(OBJECTIVES)}.  [default: loss]")
@click.option("--max-tokens", type=int, help="Longest answer to judge.  [default: 32]")
@click.option("--method", help=f"{', '.join(METHODS)}.  [default: mezo]")
@click.option("--steps", type=int, help="Number of steps.  [default: 1000]")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 16]")
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=pairs,
    help="Another setting of the method; `edgezo methods` lists them.",
)
@click.option("--lr", help="Learning rate of the first step, or auto.  [default: the method's]")
@click.option("--schedule", help=f"{', '.join(NAMES)}.  [default: linear]")
@click.option("--eps", type=float, help="Perturbation scale.  [default: the method's]")
@click.option("--weight-decay", type=float, help="Decoupled, for matrices.  [default: 0]")
@click.option(
    "--samples", type=int, help="Directions per step, where several.  [default: the method's]"
)
@click.option(
    "--zo-batch-size", type=int, help="Of addax: rows of its estimate.  [default: --batch-size]"
)
@click.option("--length-limit", type=int, help="Of addax: tokens.  [default: the rows' median]")
@click.option("--seed", type=int, help="Names every random choice.  [default: 0]")
@click.option("--eval-every", type=int, help="Steps between evaluations.  [default: at the end]")
@click.option("--keep", help=f"{', '.join(KEEP)}: the weights to save.  [default: last]")
@click.option(
    "--prefix-cache",
    help=f"{', '.join(PRECISIONS)}: keep the frozen lower layers' outputs.  [default: none]",
)
@click.option("--snapshot-every", type=int, help="Steps between snapshots.  [default: none]")
@device_option
@threads_option
@as_json
def command(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Tune BUNDLE with forward passes only, in the memory of inference.

    Rows are {"text", "label"}, {"prompt", "completion"}, {"messages"} or {"text"}, or other
    columns that --template names. The run can be stopped with Ctrl-C and continued with
    `edgezo resume`.
    """
    settings = Settings.resolve(flags, config)
    with RunProgress(settings.steps) as progress:
        result = train(settings, progress, add=add_adapter)
    finish(result, as_json)


def finish(result: Result, as_json: bool) -> None:
    """Writes the report of a run that stopped or finished, and says how it went.

    A run that Ctrl-C stopped ends with exit status 130, so that nothing after it goes on.
    """
    write_report(result.run)
    fields: dict[str, Any] = {
        "run_dir": str(result.run.path),
        "steps": result.steps,
        "kept": result.kept,
        "finished": result.finished,
        "skipped": result.skipped,
        "seconds": round(result.seconds, 2),
        "truncated": result.truncated,
        "journal_bytes": result.run.journal.stat().st_size,
        "peak_rss_mb": megabytes(peak_bytes()),
        **(result.metrics.to_json() if result.metrics else {}),
    }
    if as_json:
        print_json(fields)
    else:
        _say(result, fields["journal_bytes"])
    if not result.finished:
        click.get_current_context().exit(130)


def _say(result: Result, journal_bytes: int) -> None:
    if result.truncated:
        click.echo(f"{result.truncated} texts were cut to fit the model's context")
    if not result.finished:
        click.echo(f"stopped after step {result.steps}; `edgezo resume {result.run.path}` goes on")
        return
    if result.metrics:
        click.echo(f"held-out {result.metrics}")
    if result.kept < result.steps:
        click.echo(f"the weights are those after step {result.kept}, the best evaluation")
    click.echo(
        f"{result.steps} steps in {result.seconds:.0f} s; the run is in {result.run.path}, "
        f"its journal has {journal_bytes} bytes"
    )
