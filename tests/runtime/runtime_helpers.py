"""Small arenas and bundles, made without the code under test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.noise import AnyDirection

Specs = tuple[tuple[str, tuple[int, ...], str], ...]
LR = np.float32(0.02)
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def make_arena(specs: Specs, threads: int = 1, seed: int = 0, scale: float = 0.5) -> Arena:
    """Returns an arena whose weights are drawn from N(0, scale^2)."""
    parameters = [Parameter(name, shape, dtype, "linear") for name, shape, dtype in specs]
    arena = Arena(parameters, CpuDevice(threads))
    fill(arena, seed, scale)
    return arena


def fill(arena: Arena, seed: int = 0, scale: float = 0.5) -> None:
    """Draws the weights again; the values are exact in bfloat16."""
    generator = np.random.default_rng(seed)
    for parameter in arena.parameters:
        values = (generator.standard_normal(parameter.shape) * scale).astype(np.float32)
        bits = values.view(np.uint32) & np.uint32(0xFFFF0000)
        if parameter.dtype == "bfloat16":
            values = (bits >> 16).astype(np.uint16)
        else:
            values = bits.view(np.float32).astype(STORAGE[parameter.dtype])
        arena.views[parameter.name][...] = arena.device.put(values)


def contents(arena: Arena) -> bytes:
    """Returns all bytes of the arena, padding included."""
    arena.settle()
    return b"".join(buffer.tobytes() for buffer in arena.buffers.values())


def write_bundle(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    change: Mapping[str, Any] | None = None,
    graph: bytes = b"not read by most tests",
) -> Path:
    """Writes a bundle of float weights; `change` overrides manifest fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.onnx").write_bytes(graph)
    save_file(dict(tensors), folder / "model.safetensors")
    names = ("graph.onnx", "model.safetensors")
    manifest = {
        "schema": 1,
        "parameters": [
            {
                "name": name,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "kind": "linear",
                "aliases": [],
            }
            for name, array in tensors.items()
        ],
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["rows", "length"]}],
        "outputs": [{"name": "logprobs", "dtype": "float32", "shape": ["answers"]}],
        "context_length": 32,
        "task": {},
        "files": {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names},
        "versions": {},
    }
    manifest.update(change or {})
    (folder / "edgezo.json").write_text(json.dumps(manifest))
    return folder


class NoNumber:
    """A loss that is not finite, nor is its derivative."""

    def __call__(self) -> float:
        return float("nan")

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        return float("nan"), float("nan")


class Quadratic:
    """L(w) = sum of (w - target)^2 / 2 over all weights; its gradient is w - target."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        generator = np.random.default_rng(5)
        self.targets = {n: generator.standard_normal(v.shape) for n, v in arena.views.items()}

    def __call__(self) -> float:
        views = self._arena.views
        return sum(
            float(((views[n].astype(np.float64) - t) ** 2).sum()) / 2
            for n, t in self.targets.items()
        )

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        draw = direction.draw(np, self._arena.size)
        slope = 0.0
        for name, gradient in self.gradient().items():
            offset = self._arena.noise_offsets[name]
            z = draw(offset, offset + gradient.size).astype(np.float64)
            slope += float(gradient.reshape(-1) @ z)
        return self(), slope

    def gradient(self) -> dict[str, np.ndarray]:
        return {n: self._arena.views[n].astype(np.float64) - t for n, t in self.targets.items()}


def write_array_bundle(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    graph: bytes,
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    output: str = "losses",
) -> Path:
    """Writes a bundle that takes arrays and returns one number for each of their rows.

    Args:
        folder: where to; it is returned.
        tensors: the weights.
        graph: the bytes of an ONNX file.
        inputs: of data: their dtypes and shapes.
        output: the name of what the graph returns, float32.
    """
    ports = [{"name": n, "dtype": d, "shape": list(shape)} for n, (d, shape) in inputs.items()]
    change = {
        "inputs": ports,
        "outputs": [{"name": output, "dtype": "float32", "shape": ["rows"]}],
        "context_length": None,
        "task": {"name": "arrays"},
    }
    return write_bundle(folder, tensors, change, graph)
