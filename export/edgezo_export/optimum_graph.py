"""Graphs made by optimum, here or earlier by `optimum-cli export onnx`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from transformers import PreTrainedModel

from edgezo_export.checkpoint_files import CheckpointFiles
from edgezo_export.encoder_decoder import DECODER_FILE, ENCODER_FILE, joined
from edgezo_export.lift import ParameterNames, lifted
from edgezo_export.match_parameters import FoundTensor, match_parameters
from edgezo_export.onnx_reader import load_sound
from edgezo_export.quiet import quiet
from edgezo_export.text_head import check_no_full_logits, put_text_head
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.dtypes import Dtype
from edgezo_runtime.errors import InputError

ONNX_FILE = "model.onnx"


def has_onnx(folder: Path) -> bool:
    """Whether optimum's graph lies in `folder`, or its encoder's and decoder's do."""
    return _file(folder).is_file()


def _file(folder: Path) -> Path:
    decoder = folder / DECODER_FILE
    halves = decoder.is_file() and (folder / ENCODER_FILE).is_file()
    return decoder if halves else folder / ONNX_FILE


@contextlib.contextmanager
def optimum_folder(source: Path, dtype: str, task: str) -> Iterator[Path]:
    """Gives a folder with optimum's graph of `source`: itself, or one where optimum writes it.

    Args:
        source: the folder.
        dtype: of the weights.
        task: what optimum calls the kind of model.

    Raises:
        InputError: optimum is not installed, or cannot export it; the message has its reason.
    """
    if has_onnx(source):
        yield source
        return
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise InputError(
            f"--via optimum needs {error.name}: run `pip install 'edgezo[export]'`"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                main_export(
                    str(source),
                    output=folder,
                    task=task,
                    dtype={"float32": "fp32", "float16": "fp16"}.get(dtype),
                    do_constant_folding=False,
                    do_validation=False,
                    local_files_only=True,
                    trust_remote_code=False,
                )
        except Exception as error:  # whatever torch, transformers or optimum raise
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise InputError(f"optimum cannot export {source}: {reason}") from error
        yield Path(folder)


def read_optimum_graph(
    folder: Path,
    model: PreTrainedModel,
    files: CheckpointFiles | None,
    form: Mapping[str, Any],
) -> tuple[ir.Model, dict[str, FoundTensor]]:
    """Returns the weight-free text graph that optimum wrote, and where its weights lie.

    Args:
        folder: holds a `model.onnx` of optimum, with or without external data and a cache, or
            `encoder_model.onnx` and `decoder_model.onnx`.
        model: the shell of the same model, which knows its parameters' names and shapes.
        files: the checkpoint, if there is one.
        form: of the model; see `Manifest.form`.

    Raises:
        InputError: a file is damaged, or cannot be mapped to the model; the message names what.
    """
    path = _file(folder)
    graph = load_sound(path)
    encoder = load_sound(folder / ENCODER_FILE) if path.name == DECODER_FILE else None
    names = ParameterNames.of(model)
    shapes = {key: tuple(model.get_parameter(key).shape) for key in names.kinds}
    try:
        if encoder is not None:
            graph = joined(encoder, graph)
        found = match_parameters(graph, names, shapes, _reader(files, names, shapes))
        labels = form.get("labels")
        words = model.config.vocab_size if labels is None else len(labels)
        put_text_head(graph, words, form.get("position"), form["kind"] == "seq2seq")
        # Through the arithmetic on shapes that older exporters write out.
        ShapeInferencePass(data_prop=True)(graph)
        graph = lifted(graph, names)
        if labels is None:
            check_no_full_logits(graph, words)
        return graph, found
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _reader(
    files: CheckpointFiles | None, names: ParameterNames, shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[str, Dtype], np.ndarray] | None:
    if files is None:
        return None

    def read(key: str, dtype: Dtype) -> np.ndarray:
        kind, aliases = names.kinds[key], names.aliases.get(key, ())
        return files.tensor(Parameter(key, shapes[key], dtype.name, kind, aliases))

    return read
