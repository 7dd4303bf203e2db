"""What several commands share: options, machine-readable output, opening a bundle or a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgezo.cli.adapters import add_adapter
from edgezo.finite_json import finite_json
from edgezo.run_folder import is_run
from edgezo.tasks.make import TASKS
from edgezo.tuned import open_tuned
from edgezo_runtime.model import Model, load

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads to use.  [default: all cores]"
)
device_option = click.option(
    "--device",
    help="cpu, cuda, cuda:1 for the second card, or cuda-offload, which leaves the weights in the "
    "host's memory.  [default: cpu]",
)


memory_option = click.option(
    "--memory",
    metavar="SIZE",
    help="Most memory that the whole process may take: 700MB, 1.5GB, 2GiB, or auto.",
)


def to_stderr(line: str) -> None:
    """Tells somebody who waits what is being done."""
    click.echo(line, err=True)


def _unescaped(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    return None if value is None else value.replace("\\n", "\n")


template_option = click.option(
    "--template",
    callback=_unescaped,
    help=r"Prompt with columns in braces, as in '{text}\nTopic:'; \n is a line break.",
)


task_option = click.option("--task", help=f"{', '.join(TASKS)}.  [default: by model and data]")
prompt_option = click.option(
    "--prompt",
    help="A prompt of the catalogue, such as sst2, rte or copa, or a YAML file; other flags win.",
)
label_words_option = click.option(
    "--label-words", help="Word for each label, with commas between them."
)


def subcommand(example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a click command whose help ends with `example`."""
    epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines())

    def make(function: Callable[..., Any]) -> click.Command:
        # Also after the command's name; `main` looks for it among the arguments.
        debug = click.option(
            "--debug", is_flag=True, expose_value=False, help="Show a traceback on failure."
        )
        return click.command(epilog=epilog)(debug(function))

    return make


def print_json(fields: dict[str, Any]) -> None:
    """Prints `fields` as one line of JSON."""
    click.echo(finite_json(fields))


def open_model(path: Path, device: str | None, threads: int | None) -> tuple[Model, dict[str, Any]]:
    """Opens a bundle, or a run's base bundle with its tuned weights.

    Returns:
        The model, and the run's settings (empty for a bundle).

    Raises:
        InputError: neither is there, or the run is not finished.
    """
    where: dict[str, Any] = {"device": device or "cpu", "threads": threads}
    if not is_run(path):
        return load(path, **where), {}
    return open_tuned(path, add_adapter, **where)


def megabytes(count: float) -> float:
    """Returns bytes as megabytes with one decimal."""
    return round(count / 1e6, 1)
