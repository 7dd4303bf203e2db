"""Hugging Face checkpoints become bundles."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from edgezo_export.architectures import ARCHITECTURES, CAUSAL, Architecture, architecture_of
from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.checkpoint_files import CheckpointFiles
from edgezo_export.lift import ParameterNames
from edgezo_export.model_shell import shell_of_folder
from edgezo_export.shipped_graphs import CONFIG, find_graph, read_config
from edgezo_export.text_graph import save_graph
from edgezo_export.verify import verify_bundle
from edgezo_runtime.bundle import GRAPH, SIDE_FILES
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text

_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir")


def checkpoint_to_bundle(source: Path, out: Path, task: Mapping[str, Any] | None = None) -> Path:
    """Writes the model in `source` as a bundle and returns its folder `out`.

    The first name in its config's `architectures` says what kind of model it is.

    The bundle appears at `out` only after its graph agrees with transformers to 1e-4 and each of
    its weights is seen to move the outputs. float16 and bfloat16 weights are widened to float32.

    Args:
        source: a local folder with `config.json` and `model.safetensors` or its shards.
        out: the bundle's folder; must not exist yet.
        task: the bundle's default task and its settings.

    Raises:
        InputError: `source` is no such checkpoint, needs code of its own, is quantised, or has a
            weight that changes nothing; or `out` exists.
        EdgezoError: the exported graph does not compute what transformers computes.
    """
    raw, kind = _checked_config(source)
    files = CheckpointFiles(source)
    model = shell_of_folder(source, kind.auto)
    form = kind.form(model)
    names = ParameterNames.of(model)
    for key in names.kinds:
        files.require(key, names.aliases.get(key, ()))
    with new_folder(out) as folder:
        shipped = find_graph(model.config.to_dict()) if kind is CAUSAL else None
        if shipped is None:
            save_graph(kind.export(model), folder / GRAPH)
        else:
            shutil.copyfile(shipped, folder / GRAPH)
        raw["torch_dtype"] = "float32"
        raw.pop("dtype", None)
        write_text(folder / CONFIG, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        _copy_tokenizer(source, folder)
        complete_bundle(
            folder,
            files.tensor,
            context_length=_context_length(model, source, kind),
            task=task,
            made_with=() if shipped else _EXPORTERS,
            form=form,
        )
        verify_bundle(folder, model)
    return out


def _checked_config(source: Path) -> tuple[dict[str, Any], Architecture]:
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
    kind = architecture_of(str(architectures[0]))
    if kind is None:
        known = ", ".join(f"{k.what} (...{k.endings[0]})" for k in ARCHITECTURES)
        raise InputError(
            f"{source / CONFIG} names architecture {architectures[0]!r}; edgezo exports {known}"
        )
    return config, kind


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
