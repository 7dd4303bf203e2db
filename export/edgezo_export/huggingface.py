"""Hugging Face checkpoints become bundles."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.checkpoint_files import CheckpointFiles
from edgezo_export.generate_graph import export_generate_graph
from edgezo_export.lift import ParameterNames
from edgezo_export.shipped_graphs import CONFIG, copy_graphs, find_graphs, read_config
from edgezo_export.text_graph import export_text_graph, save_graph
from edgezo_export.torch_export import ATTENTION
from edgezo_export.verify import verify_bundle
from edgezo_export.verify_generation import verify_generation
from edgezo_runtime.bundle import GENERATE, GRAPH, SIDE_FILES
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text

_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def checkpoint_to_bundle(source: Path, out: Path, task: Mapping[str, Any] | None = None) -> Path:
    """Writes the causal language model in `source` as a bundle and returns its folder `out`.

    The bundle appears at `out` only after its graphs agree with transformers to 1e-4 and each of
    its weights is seen to move the outputs. float16 and bfloat16 weights are widened to float32.

    Args:
        source: a local folder with `config.json` and `model.safetensors` or its shards.
        out: the bundle's folder; must not exist yet.
        task: the bundle's default task and its settings.

    Raises:
        InputError: `source` is no such checkpoint, needs code of its own, is quantised, or has a
            weight that changes nothing; or `out` exists.
        EdgezoError: an exported graph does not compute what transformers computes.
    """
    raw = _checked_config(source)
    files = CheckpointFiles(source)
    model = _load(source)
    names = ParameterNames.of(model)
    for key in names.kinds:
        files.require(key, names.aliases.get(key, ()))
    with new_folder(out) as folder:
        shipped = find_graphs(model.config.to_dict())
        if shipped is None:
            save_graph(export_text_graph(model), folder / GRAPH)
            save_graph(export_generate_graph(model), folder / GENERATE)
        else:
            copy_graphs(shipped, folder)
        raw["torch_dtype"] = "float32"
        raw.pop("dtype", None)
        write_text(folder / CONFIG, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        _copy_tokenizer(source, folder)
        complete_bundle(
            folder,
            files.tensor,
            context_length=_context_length(model, source),
            task=task,
            made_with=() if shipped else _EXPORTERS,
        )
        verify_bundle(folder, model)
        verify_generation(folder, model)
    return out


def _checked_config(source: Path) -> dict[str, Any]:
    config = read_config(source)
    if "auto_map" in config:
        raise InputError(
            f"{source / CONFIG} has auto_map: the checkpoint needs Python code of its own, which "
            "edgezo does not run; use a checkpoint of an architecture in transformers"
        )
    if "quantization_config" in config:
        raise InputError(
            f"{source} is quantised; export the float32, float16 or bfloat16 checkpoint of it"
        )
    architectures = config.get("architectures") or ["none"]
    if not str(architectures[0]).endswith(_CAUSAL):
        raise InputError(
            f"{source / CONFIG} names architecture {architectures[0]!r}; edgezo exports causal "
            "language models, whose architecture ends in ForCausalLM"
        )
    return config


def _load(source: Path) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            torch_dtype=torch.float32,
            attn_implementation=ATTENTION,
        ).eval()
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"transformers cannot load {source}: {reason}") from error


def _context_length(model: PreTrainedModel, source: Path) -> int:
    for name in _LENGTHS:
        length = getattr(model.config, name, None)
        if isinstance(length, int):
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
