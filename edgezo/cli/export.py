"""`edgezo export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.cli.onnx_source import export_onnx
from edgezo_runtime.errors import EdgezoError, InputError


@subcommand("edgezo export ./my-checkpoint --out my-model.edgezo")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle.")
@click.option("--output", help="Of an .onnx file: the output that the loss judges.")
@click.option(
    "--loss",
    help="Of an .onnx file: cross-entropy, mse, or a graph of your own that takes output and "
    "targets.  [default: cross-entropy]",
)
@click.option(
    "--labels", help="Of an .onnx file: names of its classes, as a,b,c or in a .txt file."
)
@as_json
def command(
    source: Path,
    out: Path,
    output: str | None,
    loss: str | None,
    labels: str | None,
    as_json: bool,
) -> None:
    """Make a bundle of SOURCE, a folder with a Hugging Face language model or an .onnx file.

    A folder needs `pip install 'edgezo[export]'`, a file `pip install 'edgezo[onnx]'`. The bundle
    is checked against transformers, or the untouched file, before it appears.
    """
    started = time.perf_counter()
    fields: dict[str, Any] = {"out": str(out)}
    if source.suffix == ".onnx":
        exported = export_onnx(source, out, output, loss, labels)
        fields["trained"] = sum(weight.trainable for weight in exported.weights)
        fields["constant"] = len(exported.weights) - fields["trained"]
        fields["difference"] = exported.difference
    elif output or loss or labels:
        raise InputError("--output, --loss and --labels are for .onnx files: leave them out")
    else:
        export_checkpoint(source, out)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print_json(fields | {"seconds": seconds})
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
