"""`edgezo export`."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgezo.cli.adapters import adapter_options, add_adapter
from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.cli.extras import to_install
from edgezo.cli.onnx_source import export_onnx
from edgezo.settings import adapter_request
from edgezo.tasks.make import TASKS
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, is_bundle, open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write
from edgezo_runtime.select import ADAPTERS, FULL

#: Makes one bundle of a source.
Stage = Callable[[Path, Path], None]


@subcommand("edgezo export ./my-checkpoint --out my-model.edgezo")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle.")
@click.option("--task", type=click.Choice(TASKS), help="The bundle's default task.")
@click.option(
    "--via",
    type=click.Choice(["torch", "optimum"]),
    help="Of a folder: who makes the graph.  [default: torch; optimum for a model.onnx alone]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of a folder: its weights and computation; bfloat16 needs CUDA and is not tuned.  "
    "[default: float32]",
)
@click.option("--output", help="Of an .onnx file: the output that the loss judges.")
@click.option(
    "--loss",
    help="Of an .onnx file: cross-entropy, mse, or a graph of your own that takes output and "
    "targets.  [default: cross-entropy]",
)
@click.option(
    "--labels", help="Of an .onnx file: names of its classes, as a,b,c or in a .txt file."
)
@click.option("--tune", help=f"The adapter to add, {', '.join(ADAPTERS)}.")
@adapter_options
@click.option("--quantize", metavar="FORMAT", help="Make the linear layers int4 or int8.")
@click.option("--block", type=int, help="Of int4: weights that share a scale, 32 or 128.")
@click.option("--gradients", is_flag=True, help="Add grad.onnx, for the first-order methods.")
@click.option(
    "--column-row",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="FRACTION",
    help="Of --gradients: estimate those of linear layers from this fraction of the tokens.",
)
@click.option("--tangents", is_flag=True, help="Add tangent.onnx, for forward-grad.")
@as_json
def command(
    source: Path,
    out: Path,
    task: str | None,
    via: str | None,
    dtype: str | None,
    output: str | None,
    loss: str | None,
    labels: str | None,
    tune: str | None,
    quantize: str | None,
    block: int | None,
    gradients: bool,
    column_row: float | None,
    tangents: bool,
    as_json: bool,
    **adapter: Any,
) -> None:
    """Make a bundle of SOURCE: a Hugging Face folder or id, an .onnx file, or another bundle.

    A folder needs `pip install 'edgezo[export]'`, the others `pip install 'edgezo[onnx]'`. The
    folder may also be what `optimum-cli export onnx` wrote, and the file what the model builder of
    onnxruntime-genai wrote. What is made of a folder is checked
    against transformers, and what is made of a file against that file, before it appears. With
    --tune, the new bundle has an adapter in its graph, to be tuned where the packages that edit
    graphs are not installed.
    """
    started = time.perf_counter()
    fields: dict[str, Any] = {"out": str(out)}
    if block is not None and quantize is None:
        raise InputError("--block is for --quantize int4: give both, or leave it out")
    if column_row is not None and not gradients:
        raise InputError("--column-row is for --gradients: give both, or leave it out")
    onnx, made = source.suffix == ".onnx", is_bundle(source)
    fetched = len(source.parts) == 2 and not onnx and not source.parent.exists()
    if not source.exists() and not fetched:
        raise InputError(f"there is no {source}: give a folder, an .onnx file or ORG/NAME")
    _only(onnx, ".onnx files", output=output, loss=loss, labels=labels)
    _only(not onnx, "checkpoints and bundles", quantize=quantize)
    _only(not onnx and not made, "checkpoints", via=via, dtype=dtype)
    _only(not made, "checkpoints and files of text", task=task)
    default = {"name": task} if task else None
    request = _adapter(source, tune, quantize is not None or gradients or tangents, adapter)
    stages: list[Stage] = []
    if onnx:
        stages.append(lambda s, o: fields.update(export_onnx(s, o, output, loss, labels, default)))
    elif not made:
        asked = dtype or "float32"
        stages.append(lambda s, o: export_checkpoint(s, o, default, via=via, dtype=asked))
    if quantize is not None:
        stages.append(lambda s, o: export_quantized(s, o, quantize, block))
    if request is not None:
        stages.append(lambda s, o: export_adapted(s, o, request))
    if gradients:
        fraction = 1.0 if column_row is None else column_row
        stages.append(functools.partial(export_derived, name=GRADIENTS, column_row=fraction))
    if tangents:
        stages.append(functools.partial(export_derived, name=TANGENTS))
    run_stages(source, out, stages)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print_json(fields | {"seconds": seconds})
    else:
        click.echo(f"wrote {out} in {seconds} s")


def _only(fits: bool, sources: str, **given: str | None) -> None:
    """Raises InputError where a flag is `given` that the source does not fit."""
    flags = [f"--{name}" for name, value in given.items() if value is not None]
    if flags and not fits:
        are, them = ("is", "it") if len(flags) == 1 else ("are", "them")
        raise InputError(f"{' and '.join(flags)} {are} for {sources}: leave {them} out")


def _adapter(
    source: Path, tune: str | None, changed: bool, given: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the adapter to add; raises InputError if there is nothing to make of `source`."""
    values = {name: value for name, value in given.items() if value is not None}
    if "target" in values:
        values["target"] = tuple(word.strip() for word in values["target"].split(","))
    if tune not in (None, *ADAPTERS):
        raise InputError(
            f"--tune {tune} needs no other graph: give it to `edgezo train`; an export adds one of "
            + ", ".join(ADAPTERS)
        )
    request = adapter_request(tune or FULL, values)
    if request is None and not changed and is_bundle(source):
        raise InputError(
            f"{source} is a bundle already: give the adapter to add, one of {', '.join(ADAPTERS)}, "
            "with --tune, or --gradients or --tangents"
        )
    return request


def run_stages(source: Path, out: Path, stages: Sequence[Stage]) -> None:
    """Makes `out` of `source` stage by stage; what lies between is removed."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise EdgezoError(cannot_write(out, error)) from error
    with folder as scratch:
        for number, stage in enumerate(stages, 1):
            made = out if number == len(stages) else Path(scratch) / f"{number}.edgezo"
            stage(source, made)
            source = made


def export_derived(source: Path, out: Path, name: str, column_row: float = 1.0) -> None:
    """Adds the graph of derivatives `name` to the bundle `source`."""
    try:
        from edgezo_export.gradients.bundle import add_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"graphs of derivatives need {error.name}: run `{to_install('onnx')}`"
        ) from error
    add_to_bundle(open_bundle(source), out, name, column_row)


def export_adapted(source: Path, out: Path, request: Mapping[str, Any]) -> None:
    """Adds an adapter to the bundle `source`."""
    adapted = add_adapter(open_bundle(source), request)
    from edgezo_export.adapters.base import write_adapted

    write_adapted(adapted, out)


def export_quantized(source: Path, out: Path, form: str, block: int | None = None) -> None:
    """Quantises the bundle `source`; raises EdgezoError if the packages are not installed."""
    try:
        from edgezo_export.quantize import quantize_bundle
    except ImportError as error:
        raise EdgezoError(f"quantising needs {error.name}: run `{to_install('onnx')}`") from error
    quantize_bundle(source, out, form, block)


def export_checkpoint(
    source: Path,
    out: Path,
    task: Mapping[str, Any] | None = None,
    *,
    via: str | None = None,
    dtype: str = "float32",
) -> None:
    """Exports `source`; raises EdgezoError if the exporter is not installed."""
    try:
        from edgezo_export.hub import checkpoint_folder
        from edgezo_export.huggingface import checkpoint_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"exporting a checkpoint needs {error.name}: run `{to_install('export')}`"
        ) from error
    checkpoint_to_bundle(checkpoint_folder(source), out, task, via=via, dtype=dtype)
