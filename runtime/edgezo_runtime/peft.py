"""An adapter in PEFT's layout, and LoRA merged into the weights that it was tuned beside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.files import write_text
from edgezo_runtime.start import Start

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
#: PEFT wraps the model twice; its file names each tensor by where it then lies.
PREFIX = "base_model.model."
#: What the settings of every adapter say.
COMMON = {"base_model_name_or_path": None, "inference_mode": True}
#: What PEFT calls models that write text. Its name for classifiers would make it keep a head of
#: its own, which knows nothing of LoRA in the head; without a name it takes the model as it is.
TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
#: Where PEFT says which rows of a matrix an adapter replaces, and where it keeps them.
_TOKENS, _ROWS = "trainable_token_indices", ".token_adapter.trainable_tokens_delta"
_A, _B, _WEIGHT = ".lora_A.weight", ".lora_B.weight", ".weight"


def scale(adapter: Mapping[str, Any]) -> float:
    """Returns what the product of B and A is multiplied with."""
    rank, alpha = adapter["rank"], adapter["alpha"]
    return float(alpha / (math.sqrt(rank) if adapter["rslora"] else rank))


def prefix(adapter: Mapping[str, Any]) -> str:
    """Returns what an adapter's file has in front of the parameters' names."""
    return PREFIX if adapter["kind"] == "lora" else ""


def write_adapter(
    folder: Path,
    bundle: Bundle,
    tensors: Mapping[str, np.ndarray],
    start: Start | None = None,
) -> str:
    """Writes the adapter of `bundle` into `folder` and returns the SHA-256 of its tensors' file.

    A prefix has no settings beside it: PEFT's moves the text's positions, see `peft_prefix`. Nor
    has what PEFT would compute something else of; see `why_not`.

    Args:
        folder: exists.
        bundle: one with an adapter.
        tensors: the adapter's, by parameter name, float32.
        start: rows of the base that were fitted before the adapter was tuned, if there are some.

    Raises:
        EdgezoError: the folder cannot be written.
    """
    front = prefix(bundle.manifest.adapter)
    named = [(front + name, dtypes.FLOAT32, value) for name, value in tensors.items()]
    if bundle.manifest.adapter["kind"] in _CONFIGS and not why_not(bundle, start):
        config = _config(bundle)
        if start is not None:
            ((name, rows),) = start.values.items()
            module = name.removesuffix(_WEIGHT)
            config[_TOKENS] = {module: start.rows.tolist()}
            named.append((f"{front}{module}{_ROWS}", dtypes.FLOAT32, rows))
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return safetensors_file.write(folder / ADAPTER, named)


def why_not(bundle: Bundle, start: Start | None) -> str:
    """Returns what keeps PEFT from the adapter of `bundle`, in a few words; empty if nothing does.

    PEFT's virtual tokens go into what writes text: its classifiers read them in place of the text's
    first token. For the rows that an adapter goes with it has a place in LoRA, for one matrix's.
    """
    kind, form = bundle.manifest.adapter.get("kind"), bundle.manifest.form["kind"]
    if bundle.manifest.context_length is None:
        return "in a graph of arrays"
    if kind is None:
        return ""
    if kind != "lora" and form not in ("causal", "seq2seq"):
        return "in a model that writes no text"
    if start is not None and (kind != "lora" or len(start.values) > 1):
        return "from fitted rows of the base"
    return ""


def _config(bundle: Bundle) -> dict[str, Any]:
    described = _CONFIGS[bundle.manifest.adapter["kind"]](bundle)
    return described | COMMON | {"task_type": TASK_TYPES.get(bundle.manifest.form["kind"])}


def _prompt_config(bundle: Bundle) -> dict[str, Any]:
    (prompt,) = (p for p in bundle.manifest.parameters if p.init)
    return {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }


def _lora_config(bundle: Bundle) -> dict[str, Any]:
    adapter = bundle.manifest.adapter
    modules = [p.name.removesuffix(_A) for p in bundle.manifest.parameters if p.name.endswith(_A)]
    plain = all(name.isidentifier() for name in adapter["target"])
    return {
        "peft_type": "LORA",
        "r": adapter["rank"],
        "lora_alpha": adapter["alpha"],
        "target_modules": list(adapter["target"]) if plain else modules,
        "use_rslora": adapter["rslora"],
        "fan_in_fan_out": adapter["fan_in_fan_out"],
        "lora_dropout": 0.0,
        "bias": "none",
    }


_CONFIGS = {"lora": _lora_config, "prompt": _prompt_config}


def write_merged(path: Path, bundle: Bundle, weights: Mapping[str, np.ndarray]) -> None:
    r"""Writes the base's weights with the adapter, if there is one, in them: :math:`W + s\,BA`.

    One tensor at a time is made.

    Args:
        path: the file to write.
        bundle: describes the weights.
        weights: every parameter by name.

    Raises:
        EdgezoError: the folder cannot be written.
    """
    stored = {p.name: dtypes.named(p.dtype) for p in bundle.manifest.stored}

    def tensor(name: str) -> np.ndarray:
        value, module = weights[name], name.removesuffix(_WEIGHT)
        down = weights.get(module + _A)
        if down is None:
            return value
        adapter = bundle.manifest.adapter
        product = weights[module + _B] @ down * np.float32(scale(adapter))  # (out, in)
        update = product.T if adapter["fan_in_fan_out"] else product
        return dtypes.from_float32(dtypes.to_float32(value, stored[name]) + update, stored[name])

    entries = [(name, dtype, weights[name].shape) for name, dtype in stored.items()]
    safetensors_file.write_each(path, entries, tensor)
