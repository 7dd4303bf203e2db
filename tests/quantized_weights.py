"""What the tensors of a quantised bundle stand for, worked out with NumPy."""

from __future__ import annotations

import numpy as np

from edgezo_runtime import safetensors_file
from edgezo_runtime.bundle import Bundle


def tensors(bundle: Bundle) -> dict[str, np.ndarray]:
    entries = safetensors_file.read_header(bundle.weights)
    return {
        name: np.array(safetensors_file.map_tensor(bundle.weights, entry))
        for name, entry in entries.items()
    }


def unpacked(name: str, stored: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the weight (out, in) that the stored integers and scales stand for."""
    packed, scale = stored[f"{name}_packed"], stored[f"{name}_scale"]
    if f"{name}_zero_point" not in stored:  # int8
        return (packed.astype(np.float32) - 128).reshape(len(packed), -1) * scale[:, None]
    integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    points = stored[f"{name}_zero_point"]
    zeros = np.stack([points & 15, points >> 4], axis=-1).reshape(len(points), -1)
    zeros = zeros[:, : scale.shape[1], None].astype(np.float32)
    return ((integers - zeros) * scale[..., None]).reshape(len(packed), -1)
