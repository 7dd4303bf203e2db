"""`edgezo search`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from edgezo.callbacks import Callback
from edgezo.cli.adapters import add_adapter
from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.cli.progress import RunProgress
from edgezo.cli.run_options import run_options
from edgezo.recipe import complete
from edgezo.search import Trial, search
from edgezo.settings import RunSettings, Settings
from edgezo_runtime.errors import InputError


@subcommand(
    "edgezo search smollm2.edgezo --data train.jsonl --eval-data dev.jsonl --prompt sst2 \\\n"
    "      --lr 1e-6,3e-6,1e-5 --eps 1e-3,1e-4 --steps 400 --out search"
)
@click.argument("bundle", required=False)
@run_options(but=("lr", "eps", "eval_every", "keep", "snapshot_every"))
@click.option("--lr", "lrs", required=True, help="Learning rates, with commas between them.")
@click.option("--eps", "scales", help="Perturbation scales, likewise.  [default: the method's]")
@as_json
def command(config: Path | None, lrs: str, scales: str | None, as_json: bool, **flags: Any) -> None:
    """Find a learning rate, and a perturbation scale, by short runs and successive halving.

    All choices run for a few steps; the half with the lower held-out loss runs for twice as many,
    and so on. The same command goes on with a search that was stopped.
    """
    grid: dict[str, list[float]] = {"lr": _numbers("--lr", lrs)}
    if scales:
        grid["eps"] = _numbers("--eps", scales)
    settings = complete(Settings.resolve(flags, config))
    if not (settings.eval_data or settings.eval_examples):
        raise InputError("a search needs held-out rows: give --eval-data or --eval-examples")

    @contextlib.contextmanager
    def watch(chosen: Mapping[str, Any], run: RunSettings) -> Iterator[Callback]:
        with RunProgress(run.steps, quiet=True) as progress:
            yield progress

    def report(trial: Trial) -> None:
        click.echo(_line(trial), err=True)

    trials = search(settings, grid, watch, report, add_adapter)
    if trials is None:
        click.echo("stopped; the same command goes on", err=True)
        click.get_current_context().exit(130)
    best = trials[0]
    if best.metrics is None:
        raise InputError("every choice diverged: try lower values of --lr")
    train = _train_command(flags, config, best.chosen)
    if as_json:
        rows = [
            {
                **trial.chosen,
                "steps": trial.steps,
                "diverged": trial.metrics is None,
                **(trial.metrics.to_json() if trial.metrics else {}),
            }
            for trial in trials
        ]
        print_json({"best": dict(best.chosen), "command": train, "trials": rows})
        return
    click.echo(f"best: {_line(best)}\n{train}")


def _numbers(flag: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{flag} {text} holds what is no number; write 1e-6,3e-6") from error
    return list(dict.fromkeys(numbers))


def _line(trial: Trial) -> str:
    chosen = ", ".join(f"{name} {value:g}" for name, value in trial.chosen.items())
    found = "diverged" if trial.metrics is None else f"held-out {trial.metrics}"
    return f"{chosen}: {found} after {trial.steps} steps"


def _train_command(flags: Mapping[str, Any], config: Path | None, chosen: Mapping[str, Any]) -> str:
    """Returns the `edgezo train` command that the search was for; its length is the user's."""
    given = {name: value for name, value in flags.items() if value is not None}
    words = ["edgezo", "train"] + ([str(given.pop("bundle"))] if "bundle" in given else [])
    given |= {"config": config} if config else {}
    given |= {**chosen, "out": "RUN"}
    for name, value in given.pop("options", {}).items():
        words += ["--set", f"{name}={value}"]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False:
            words += [flag, str(value)]
    return shlex.join(words)
