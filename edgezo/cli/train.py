"""`edgezo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgezo import recipe
from edgezo.cli.adapters import add_adapter
from edgezo.cli.common import as_json, megabytes, print_json, subcommand
from edgezo.cli.progress import RunProgress
from edgezo.cli.run_options import run_options
from edgezo.report import write_report
from edgezo.settings import Settings
from edgezo.train import Result, train
from edgezo_runtime.memory import peak_bytes


@subcommand("edgezo train smollm2.edgezo --data train.jsonl --eval-data dev.jsonl --out runs/first")
@click.argument("bundle", required=False)
@run_options()
@as_json
def command(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Tune BUNDLE with forward passes only, in the memory of inference.

    Rows are {"text", "label"}, {"prompt", "completion"}, {"messages"} or {"text"}, or other
    columns that --template names. Where no --method is named, a recipe that suits the model chooses
    it, its settings, what is tuned and the number of steps. The run can be stopped with Ctrl-C and
    continued with `edgezo resume`.
    """
    asked = Settings.resolve(flags, config)
    settings = recipe.complete(asked)
    if asked.method is None:
        click.echo(f"the recipe: {recipe.told(settings)}", err=True)
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
