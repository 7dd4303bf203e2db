"""`edgezo export`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgezo.cli.common import as_json, print_json, subcommand
from edgezo_runtime.errors import EdgezoError, InputError

TASKS = ("classify", "generate", "choice", "text")


@subcommand("edgezo export ./my-checkpoint --out my-model.edgezo")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle.")
@click.option("--task", type=click.Choice(TASKS), help="The bundle's default task.")
@click.option(
    "--via",
    type=click.Choice(["torch", "optimum"]),
    help="Who makes the graph.  [default: torch; optimum where SOURCE has a model.onnx only]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights and the computation; 16 bits can be run, and not yet be tuned.",
)
@as_json
def command(
    source: Path, out: Path, task: str | None, via: str | None, dtype: str, as_json: bool
) -> None:
    """Make a bundle of SOURCE, a folder with a Hugging Face causal language model.

    SOURCE may also be what `optimum-cli export onnx` wrote. Needs `pip install 'edgezo[export]'`.
    The bundle is checked against transformers before it appears.
    """
    started = time.perf_counter()
    export_checkpoint(source, out, {"name": task} if task else None, via=via, dtype=dtype)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print_json({"out": str(out), "seconds": seconds})
    else:
        click.echo(f"wrote {out} in {seconds} s")


def export_checkpoint(
    source: Path,
    out: Path,
    task: Mapping[str, Any] | None = None,
    *,
    via: str | None = None,
    dtype: str = "float32",
) -> None:
    """Exports `source`; raises EdgezoError if the exporter is not installed."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    try:
        from edgezo_export.huggingface import checkpoint_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"exporting a checkpoint needs {error.name}: run `pip install 'edgezo[export]'`"
        ) from error
    checkpoint_to_bundle(source, out, task, via=via, dtype=dtype)
