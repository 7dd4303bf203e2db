"""Small arenas and bundles, made without the code under test."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter

Specs = tuple[tuple[str, tuple[int, ...], str], ...]
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def make_arena(specs: Specs, threads: int = 1, seed: int = 0, scale: float = 0.5) -> Arena:
    """Returns an arena whose weights are drawn from N(0, scale^2)."""
    parameters = [Parameter(name, shape, dtype, "linear") for name, shape, dtype in specs]
    arena = Arena(parameters, threads)
    fill(arena, seed, scale)
    return arena


def fill(arena: Arena, seed: int = 0, scale: float = 0.5) -> None:
    """Draws the weights again; the values are exact in bfloat16."""
    generator = np.random.default_rng(seed)
    for parameter in arena.parameters:
        values = (generator.standard_normal(parameter.shape) * scale).astype(np.float32)
        bits = values.view(np.uint32) & np.uint32(0xFFFF0000)
        if parameter.dtype == "bfloat16":
            arena.views[parameter.name][...] = bits >> 16
        else:
            arena.views[parameter.name][...] = bits.view(np.float32)


def contents(arena: Arena) -> bytes:
    """Returns all bytes of the arena, padding included."""
    arena.settle()
    return b"".join(buffer.tobytes() for buffer in arena.buffers.values())


def write_bundle(
    folder: Path, tensors: Mapping[str, np.ndarray], change: Mapping[str, Any] | None = None
) -> Path:
    """Writes a float32 bundle whose graph is no graph; `change` overrides manifest fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.onnx").write_bytes(b"not read by these tests")
    save_file(dict(tensors), folder / "model.safetensors")
    names = ("graph.onnx", "model.safetensors")
    manifest = {
        "schema": 1,
        "parameters": [
            {
                "name": name,
                "shape": list(array.shape),
                "dtype": "float32",
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


@pytest.fixture
def small_tensors() -> dict[str, np.ndarray]:
    """Two matrices and a vector, sizes no multiples of 64."""
    generator = np.random.default_rng(7)
    shapes = {"a.weight": (9, 11), "a.bias": (11,), "b.weight": (300, 13)}
    return {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture
def small_bundle(tmp_path: Path, small_tensors: dict[str, np.ndarray]) -> Path:
    """The folder of a bundle that holds `small_tensors`."""
    return write_bundle(tmp_path / "small.edgezo", small_tensors)


@pytest.fixture
def run_limited(tmp_path: Path) -> Callable[..., str]:
    """Runs a script in a process whose files may not grow beyond `limit` bytes; its output."""
    pytest.importorskip("resource")

    def run(script: str, limit: int, *arguments: object) -> str:
        path = tmp_path / "limited.py"
        path.write_text(
            "import resource, signal, sys\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + script
        )
        done = subprocess.run(
            [sys.executable, path, *map(str, arguments)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
