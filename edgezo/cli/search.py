"""`edgezo search`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from edgezo.callbacks import Callback
from edgezo.cli.adapters import adapter_options, add_adapter
from edgezo.cli.common import (
    as_json,
    device_option,
    label_words_option,
    print_json,
    prompt_option,
    subcommand,
    task_option,
    template_option,
    threads_option,
)
from edgezo.cli.progress import RunProgress
from edgezo.search import Trial, search
from edgezo.settings import Settings
from edgezo_runtime.errors import InputError


@subcommand(
    "edgezo search smollm2.edgezo --data train.jsonl --eval-data dev.jsonl --prompt sst2 \\\n"
    "      --lr 1e-6,3e-6,1e-5 --eps 1e-3,1e-4 --steps 400 --out search"
)
@click.argument("bundle", required=False)
@click.option("--data", help="Training rows, JSONL; of arrays also .npz.")
@click.option("--eval-data", help="Held-out rows, likewise.")
@click.option("--eval-examples", type=int, help="Draw so many held-out rows.")
@click.option("--examples", type=int, help="Draw so many training rows by the seed.")
@click.option("--out", help="Folder for the runs.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with settings; flags win.")
@prompt_option
@task_option
@template_option
@label_words_option
@click.option("--tune", help="What is tuned, as for `edgezo train`.")
@adapter_options
@click.option("--method", help="A name from `edgezo methods`.  [default: mezo]")
@click.option("--lr", "lrs", required=True, help="Learning rates, with commas between them.")
@click.option("--eps", "scales", help="Perturbation scales, likewise.  [default: the method's]")
@click.option("--samples", type=int, help="Directions per step, for methods that have several.")
@click.option("--steps", type=int, help="Steps of the last trial standing.  [default: 1000]")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 16]")
@click.option("--seed", type=int, help="Names every random choice.  [default: 0]")
@device_option
@threads_option
@as_json
def command(config: Path | None, lrs: str, scales: str | None, as_json: bool, **flags: Any) -> None:
    """Find a learning rate, and a perturbation scale, by short runs and successive halving.

    All choices run for a few steps; the half with the lower held-out loss runs for twice as many,
    and so on. The same command goes on with a search that was stopped.
    """
    grid: dict[str, list[float]] = {"lr": _numbers("--lr", lrs)}
    if scales:
        grid["eps"] = _numbers("--eps", scales)
    settings = Settings.resolve(flags, config)
    if not (settings.eval_data or settings.eval_examples):
        raise InputError("a search needs held-out rows: give --eval-data or --eval-examples")

    @contextlib.contextmanager
    def watch(chosen: Mapping[str, Any], run: Settings) -> Iterator[Callback]:
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
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
