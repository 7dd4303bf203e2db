"""`edgezo export`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgezo.cli.common import as_json, print_json, subcommand
from edgezo_runtime.errors import EdgezoError, InputError


@subcommand("edgezo export ./my-checkpoint --out my-model.edgezo")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle.")
@as_json
def command(source: Path, out: Path, as_json: bool) -> None:
    """Make a bundle of SOURCE, a folder with a Hugging Face causal language model.

    Needs `pip install 'edgezo[export]'`. The bundle is checked against transformers before it
    appears.
    """
    started = time.perf_counter()
    export_checkpoint(source, out)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print_json({"out": str(out), "seconds": seconds})
    else:
        click.echo(f"wrote {out} in {seconds} s")


def export_checkpoint(source: Path, out: Path) -> None:
    """Exports `source`; raises EdgezoError if the exporter is not installed."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    try:
        from edgezo_export.huggingface import checkpoint_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"exporting a checkpoint needs {error.name}: run `pip install 'edgezo[export]'`"
        ) from error
    checkpoint_to_bundle(source, out)
