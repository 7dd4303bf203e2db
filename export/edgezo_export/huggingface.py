"""Hugging Face checkpoints become bundles."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from edgezo_export.architectures import CAUSAL, Architecture
from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.checkpoint_files import CheckpointFiles, has_weights
from edgezo_export.checks import check_model, check_tokenizer, checked_config
from edgezo_export.generate_graph import export_generate_graph
from edgezo_export.lift import ParameterNames
from edgezo_export.model_shell import shell_of_folder
from edgezo_export.optimum_graph import has_onnx, optimum_file, read_optimum_graph
from edgezo_export.shipped_graphs import CONFIG, copy_graphs, find_graphs
from edgezo_export.text_graph import save_graph
from edgezo_export.verify import verify_bundle
from edgezo_export.verify_generation import verify_generation
from edgezo_runtime.bundle import GENERATE, GRAPH, SIDE_FILES
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text

_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir")
DTYPES = ("float32", "float16")


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
        dtype: of the weights and the computation, ``"float32"`` or ``"float16"``; what the
            checkpoint holds is converted.

    Raises:
        InputError: `source` is no such checkpoint, needs code of its own, is quantised, or has a
            weight that changes nothing; or `out` exists.
        EdgezoError: an exported graph does not compute what transformers computes.
    """
    _check_dtype(dtype)
    raw, kind = checked_config(source)
    if via is None:
        via = "optimum" if has_onnx(source) and not has_weights(source) else "torch"
    if kind is not CAUSAL and (via, dtype) != ("torch", "float32"):
        raise InputError(f"{kind.what} are exported via torch as float32 only")
    model = shell_of_folder(source, kind.auto, getattr(torch, dtype))
    check_model(model, raw, source)
    with new_folder(out) as folder:
        raw["torch_dtype"] = dtype
        raw.pop("dtype", None)
        write_text(folder / CONFIG, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        _copy_tokenizer(source, folder)
        check_tokenizer(folder, model.config.vocab_size, source)
        complete = partial(
            complete_bundle,
            folder,
            context_length=_context_length(model, source, kind),
            task=task,
            form=kind.form(model),
        )
        if via == "optimum":
            _through_optimum(source, folder, model, dtype, complete)
        else:
            _through_torch(source, folder, model, kind, complete)
        verify_bundle(folder, model)
        if (folder / GENERATE).is_file():
            verify_generation(folder, model)
    return out


def _through_torch(
    source: Path,
    folder: Path,
    model: PreTrainedModel,
    kind: Architecture,
    complete: Callable[..., object],
) -> None:
    files = CheckpointFiles(source)
    names = ParameterNames.of(model)
    for key in names.kinds:
        files.require(key, names.aliases.get(key, ()))
    generates = kind is CAUSAL and model.dtype == torch.float32
    shipped = find_graphs(model.config.to_dict()) if generates else None
    if shipped is not None:
        copy_graphs(shipped, folder)
    else:
        save_graph(kind.export(model), folder / GRAPH)
        if generates:
            save_graph(export_generate_graph(model), folder / GENERATE)
    complete(files.tensor, made_with=() if shipped else _EXPORTERS)


def _through_optimum(
    source: Path, folder: Path, model: PreTrainedModel, dtype: str, complete: Callable[..., object]
) -> None:
    files = CheckpointFiles(source) if has_weights(source) else None
    with optimum_file(source, dtype) as path:
        graph, found = read_optimum_graph(path, model, files)
        for key, tensor in found.items():
            if tensor.dtype.name != dtype:
                raise InputError(
                    f"{path} holds {key!r} as {tensor.dtype.name}: export it with "
                    f"--dtype {tensor.dtype.name}"
                )
        save_graph(graph, folder / GRAPH)
        complete(
            lambda parameter: found[parameter.name].storage(),
            made_with=(*_EXPORTERS, "optimum-onnx"),
        )


def _check_dtype(dtype: str) -> None:
    if dtype == "bfloat16":
        raise InputError(
            "ONNX Runtime lacks bfloat16 kernels on the CPU (Add, Where and Expand among them), so "
            "that a bfloat16 bundle could be neither checked nor run: use float32 or float16"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")


def _context_length(model: PreTrainedModel, source: Path, kind: Architecture) -> int:
    length = kind.context_length(model)
    if length is not None:
        return length
    raise InputError(f"{source / CONFIG} does not say how many tokens the model takes")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    names = [name for name in SIDE_FILES if name != CONFIG]
    if not (source / "tokenizer.json").is_file() and (source / "vocab.json").is_file():
        with tempfile.TemporaryDirectory() as converted:
            try:
                AutoTokenizer.from_pretrained(
                    source, local_files_only=True, trust_remote_code=False
                ).save_pretrained(converted)
            except (ValueError, KeyError, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"cannot read the tokenizer of {source}: {reason}") from error
            _copy(Path(converted), folder, names)
        return
    _copy(source, folder, names)


def _copy(source: Path, folder: Path, names: list[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
