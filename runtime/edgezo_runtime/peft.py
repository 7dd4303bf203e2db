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
CAUSAL = {"task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True}
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
    has an adapter over a base with fitted rows, which PEFT would put over the base without them.

    Args:
        folder: exists.
        bundle: one with an adapter.
        tensors: the adapter's, by parameter name, float32.
        start: rows that were fitted before the adapter was tuned; they are written beside it.

    Raises:
        EdgezoError: the folder cannot be written.
    """
    if start is not None:
        start.write(folder)
    elif bundle.manifest.adapter["kind"] in _CONFIGS:
        write_text(folder / CONFIG, json.dumps(_config(bundle), indent=2) + "\n")
    front = prefix(bundle.manifest.adapter)
    named = [(front + name, dtypes.FLOAT32, value) for name, value in tensors.items()]
    return safetensors_file.write(folder / ADAPTER, named)


def _config(bundle: Bundle) -> dict[str, Any]:
    adapter = bundle.manifest.adapter
    return _CONFIGS[adapter["kind"]](bundle) | CAUSAL


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
