"""A prefix in PEFT's layout, for models that turn queries and keys by their positions.

PEFT counts a text's positions from the end of the prefix, edgezo from 0. Rotary embeddings know
distances only, so that keys which are turned by the prefix's length are as far from a text behind
the prefix as they were from one at 0. Learned positions cannot be moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text
from edgezo_runtime.peft import ADAPTER, COMMON, CONFIG, TASK_TYPES

_EMBEDDINGS = "prompt_embeddings"
_ROTARY = ("llama", "mistral", "qwen2")


def write_prefix(folder: Path, bundle: Bundle, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the prefix of `bundle` into `folder` as PEFT's prefix tuning without a projection.

    Args:
        folder: exists.
        bundle: one with a prefix.
        tensors: keys and values of each layer, (1, key heads, virtual tokens, size) float32.

    Raises:
        InputError: PEFT would compute something else of it; the message says why.
        EdgezoError: the folder cannot be written.
    """
    base = _rotary_base(bundle)
    layers = []
    _, heads, count, size = next(iter(tensors.values())).shape
    for name, value in tensors.items():  # each layer's keys, then its values
        if name.endswith(".keys"):
            value = _turned(value, count, base)
        layers.append(value[0].transpose(1, 0, 2).reshape(count, heads * size))
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": count,
        "num_layers": len(layers) // 2,
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        **COMMON,
        "task_type": TASK_TYPES["causal"],
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    joined = np.concatenate(layers, axis=1)  # (virtual tokens, layers * 2 * heads * size)
    safetensors_file.write(folder / ADAPTER, [(_EMBEDDINGS, dtypes.FLOAT32, joined)])


def _rotary_base(bundle: Bundle) -> float:
    """Returns the base of the model's rotary frequencies."""
    path = bundle.folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}, which says how positions count: {error}") from error
    kind = config.get("model_type")
    window = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    scaled = (config.get("rope_scaling") or {}).get("rope_type", "default") != "default"
    if kind not in _ROTARY or window or scaled:
        reason = (
            "slides its attention's window over the prefix there"
            if window and kind in _ROTARY
            else "has no plain rotary positions that the prefix could be turned by"
        )
        raise InputError(
            f"PEFT counts the text's positions from the end of a prefix, and {kind} {reason}: "
            "only edgezo runs this prefix; tune a prompt or LoRA for PEFT"
        )
    return float(config.get("rope_theta", 10000.0))


def _turned(keys: np.ndarray, positions: int, base: float) -> np.ndarray:
    """Returns `keys` (..., size) as they are `positions` later."""
    half = keys.shape[-1] // 2
    angles = positions * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = keys[..., :half].astype(np.float64), keys[..., half:].astype(np.float64)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return np.concatenate(turned, axis=-1).astype(np.float32)
