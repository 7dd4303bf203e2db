"""Hugging Face checkpoints become bundles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from edgezo_export.architectures import CAUSAL, Architecture
from edgezo_export.bfloat16 import WidenBfloat16, narrow_bundle
from edgezo_export.bundle_graph import save_graph
from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.checkpoint_files import CheckpointFiles, has_weights
from edgezo_export.checkpoint_tokenizer import copy_tokenizer
from edgezo_export.checks import check_model, checked_config
from edgezo_export.convert_dtype import widened
from edgezo_export.generate_graph import export_generate_graph
from edgezo_export.lean.verify import add_lean
from edgezo_export.lift import ParameterNames
from edgezo_export.model_shell import shell_of_folder
from edgezo_export.optimum_graph import has_onnx, optimum_folder, read_optimum_graph
from edgezo_export.shipped_graphs import CONFIG, copy_graphs, find_graphs
from edgezo_export.text_graph import export_text_graph
from edgezo_export.verify import verify_bundle
from edgezo_export.verify_generation import verify_generation
from edgezo_runtime import dtypes
from edgezo_runtime.bundle import GENERATE, GRAPH, Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text

_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir")
DTYPES = ("float32", "float16", "bfloat16")


def checkpoint_to_bundle(
    source: Path,
    out: Path,
    task: Mapping[str, Any] | None = None,
    *,
    via: str | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes the model in `source` as a bundle and returns its folder `out`.

    The first name in its config's `architectures` says what kind of model it is.

    The bundle appears at `out` only after its graph agrees with transformers (to 1e-4 in float32)
    and each of its weights is seen to move the outputs. The weights are never twice in memory.

    Args:
        source: a local folder with `config.json` and `model.safetensors` or its shards, or with
            the `model.onnx` that optimum wrote.
        out: the bundle's folder; must not exist yet.
        task: the bundle's default task and its settings.
        via: who makes the graph, ``"torch"`` or ``"optimum"``; None: torch, or optimum where
            `source` holds its `model.onnx` and no safetensors.
        dtype: of the weights and the computation, one of `DTYPES`; what the checkpoint holds is
            converted.

    Raises:
        InputError: `source` is no such checkpoint, needs code of its own, is quantised, or has a
            weight that changes nothing; or `out` exists.
        EdgezoError: an exported graph does not compute what transformers computes.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
    raw, kind = checked_config(source)
    if via is None:
        via = "optimum" if has_onnx(source) and not has_weights(source) else "torch"
    if kind is not CAUSAL and dtype != "float32":
        raise InputError(f"{kind.what} are exported as float32 only")
    if (via, dtype) == ("optimum", "bfloat16"):
        raise InputError("optimum does not export bfloat16: use --via torch, with safetensors")
    model = shell_of_folder(source, kind.auto, getattr(torch, dtype))
    check_model(model, raw, source)
    with new_folder(out) as folder:
        raw["torch_dtype"] = dtype
        raw.pop("dtype", None)
        write_text(folder / CONFIG, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        copy_tokenizer(source, folder, model.config.vocab_size)
        complete = partial(
            complete_bundle,
            folder,
            context_length=_context_length(model, source, kind),
            task=task,
            form=kind.form(model),
        )
        if dtype == "bfloat16":
            _through_float32(source, folder, model, complete)
            return out
        if via == "optimum":
            _through_optimum(source, folder, model, kind, dtype, complete)
        else:
            _through_torch(source, folder, model, kind, complete)
        # No runner is left when the next one maps the weights for itself.
        half = dtype == "float16"
        add_lean(folder, verify_bundle(folder, model, half), model.config.vocab_size)
        if (folder / GENERATE).is_file():
            verify_generation(folder, model)
    return out


def _weights_of(source: Path, model: PreTrainedModel) -> CheckpointFiles:
    """Opens a checkpoint's weights; raises InputError for one that `model` cannot have."""
    files, names = CheckpointFiles(source), ParameterNames.of(model)
    for key, kind in names.kinds.items():
        shape = tuple(model.get_parameter(key).shape)
        files.find(Parameter(key, shape, "float32", kind, names.aliases.get(key, ())))
    return files


def _through_torch(
    source: Path,
    folder: Path,
    model: PreTrainedModel,
    kind: Architecture,
    complete: Callable[..., object],
) -> None:
    files = _weights_of(source, model)
    generates = kind is CAUSAL and model.dtype == torch.float32
    shipped = find_graphs(model.config.to_dict()) if generates else None
    if shipped is not None:
        copy_graphs(shipped, folder)
    else:
        save_graph(kind.export(model), folder / GRAPH)
        if generates:
            save_graph(export_generate_graph(model), folder / GENERATE)
    complete(files.tensor, made_with=() if shipped else _EXPORTERS)


def _through_float32(
    source: Path, folder: Path, model: PreTrainedModel, complete: Callable[..., object]
) -> None:
    """Makes and checks the float32 bundle of the rounded weights, and then narrows it."""
    files = _weights_of(source, model)
    graph = export_text_graph(model)
    narrow = ir.from_proto(ir.to_proto(graph))
    save_graph(WidenBfloat16()(graph).model, folder / GRAPH)

    def rounded(parameter: Parameter) -> np.ndarray:
        stored = dataclasses.replace(parameter, dtype="bfloat16")
        return widened(files.tensor(stored), dtypes.BFLOAT16)

    complete(rounded, made_with=_EXPORTERS)
    verify_bundle(folder, shell_of_folder(source), half=True)
    narrow_bundle(folder, narrow)


def _through_optimum(
    source: Path,
    folder: Path,
    model: PreTrainedModel,
    kind: Architecture,
    dtype: str,
    complete: Callable[..., object],
) -> None:
    files = CheckpointFiles(source) if has_weights(source) else None
    with optimum_folder(source, dtype, kind.optimum_task) as wrote:
        graph, found = read_optimum_graph(wrote, model, files, kind.form(model))
        for key, tensor in found.items():
            if tensor.dtype.name != dtype:
                raise InputError(
                    f"{source} holds {key!r} as {tensor.dtype.name}: export it with "
                    f"--dtype {tensor.dtype.name}"
                )
        save_graph(graph, folder / GRAPH)
        complete(
            lambda parameter: found[parameter.name].storage(),
            made_with=(*_EXPORTERS, "optimum-onnx"),
        )


def _context_length(model: PreTrainedModel, source: Path, kind: Architecture) -> int:
    length = kind.context_length(model)
    if length is not None:
        return length
    raise InputError(f"{source / CONFIG} does not say how many tokens the model takes")
