"""`edgezo save`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from edgezo.cli.common import as_json, open_model, print_json, subcommand
from edgezo.cli.extras import to_install
from edgezo_runtime import peft
from edgezo_runtime.bundle import QUANTIZED, SIDE_FILES, WEIGHTS, Bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write
from edgezo_runtime.model import Model
from edgezo_runtime.peft_prefix import write_prefix


def _peft(model: Model, out: Path) -> None:
    bundle, tensors = model.bundle, model.weights.trained()
    if bundle.manifest.adapter["kind"] == "prefix":
        write_prefix(out, bundle, tensors)
    else:
        peft.write_adapter(out, bundle, tensors, model.weights.start)


def _merged(model: Model, out: Path) -> None:
    peft.write_merged(out / WEIGHTS, model.bundle, model.weights.arrays())
    _copy(model.bundle, out, *SIDE_FILES)


def _onnx(model: Model, out: Path) -> None:
    from edgezo_export.inference_graph import write_inference_graph

    _merged(model, out)
    write_inference_graph(model.bundle, out)


def _onnx_adapter(model: Model, out: Path) -> None:
    from edgezo_export.inference_graph import write_adapter_graph

    _base(model, out)
    write_adapter_graph(model.bundle, model.weights.trained(), out)


def _genai(model: Model, out: Path) -> None:
    from edgezo_export.genai_folder import write_genai_folder

    if model.bundle.manifest.adapter:
        _base(model, out)
        write_genai_folder(model.bundle, model.weights.arena.views, out)
    else:
        _merged(model, out)
        write_genai_folder(model.bundle, {}, out)


def _base(model: Model, out: Path) -> None:
    """Writes what an adapter goes over, with the rows that its run began with."""
    if model.weights.start is None:
        _copy(model.bundle, out, WEIGHTS)
    else:
        model.weights.save(out / WEIGHTS)
    _copy(model.bundle, out, *SIDE_FILES)


def _copy(bundle: Bundle, out: Path, *names: str) -> None:
    for name in names:
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.folder / name, out / name)


@dataclass(frozen=True)
class Format:
    """How to write one, and the kinds of adapter that it can hold; None: a model's weights.

    Over quantised weights fewer can be held: nothing is merged into integers, and transformers does
    not read them.
    """

    write: Callable[[Model, Path], None]
    kinds: tuple[str | None, ...]
    quantized: tuple[str | None, ...]


FORMATS = {
    "merged": Format(_merged, (None, "lora"), ()),
    "onnx": Format(_onnx, (None, "lora"), (None,)),
    "peft": Format(_peft, ("lora", "prefix", "prompt"), ("lora", "prefix", "prompt")),
    "onnx-adapter": Format(_onnx_adapter, ("lora",), ("lora",)),
    "genai": Format(_genai, (None, "lora"), (None, "lora")),
}
_OF_ARRAYS = ("onnx", "onnx-adapter")  # the others are for transformers, PEFT, or for text


@subcommand("edgezo save runs/first --format merged --out tuned-checkpoint")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format", "style", type=click.Choice(list(FORMATS)), default="merged", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@as_json
def command(run: Path, style: str, out: Path, as_json: bool) -> None:
    """Write the tuned weights of RUN, a finished run, as other programs load them.

    merged: a Hugging Face checkpoint, an adapter merged into its weights. onnx: the same, with
    model.onnx, which takes input_ids and attention_mask and gives logits, or takes and gives what
    the ONNX file did that the model came from. peft: an adapter as
    PEFT loads it. onnx-adapter: model.onnx of the base, with inputs for LoRA, and
    adapter.onnx_adapter for ONNX Runtime to fill them with. genai: a folder that onnxruntime-genai
    generates from, with such an adapter beside it after LoRA.
    """
    model, _ = open_model(run, None, None)
    kind = model.bundle.manifest.adapter.get("kind")
    quantized = any(p.kind == QUANTIZED for p in model.bundle.manifest.parameters)
    able = [n for n, f in FORMATS.items() if kind in (f.quantized if quantized else f.kinds)]
    unlike = peft.why_not(model.bundle, model.weights.start)
    if unlike:
        able = [name for name in able if name != "peft"]
    if model.bundle.manifest.context_length is None:
        able = [name for name in able if name in _OF_ARRAYS]
    if style not in able:
        tuned = f"a {kind}" if kind else "no adapter"
        over = [" over quantised weights"] * quantized + [f" {unlike}"] * bool(unlike)
        raise InputError(
            f"{run} tuned {tuned}{' and'.join(over)}, which --format {style} does not hold: "
            + (f"use {' or '.join(able)}" if able else "only edgezo itself runs it")
        )
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        FORMATS[style].write(model, temporary)
        temporary.rename(out)
    except ImportError as error:
        raise EdgezoError(
            f"--format {style} needs {error.name}: run `{to_install('onnx')}`"
        ) from error
    except OSError as error:
        raise EdgezoError(cannot_write(out, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if as_json:
        print_json({"out": str(out), "format": style})
    else:
        click.echo(f"wrote {out}")
