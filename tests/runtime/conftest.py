"""A small bundle, a process that may not write much, and a card."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runtime_helpers import write_bundle

from edgezo_runtime.devices import Device, open_device
from edgezo_runtime.errors import EdgezoError


@pytest.fixture(scope="session")
def card() -> Device:
    """The first NVIDIA card; tests that need one are skipped where there is none."""
    try:
        return open_device("cuda")
    except EdgezoError as error:
        pytest.skip(str(error))


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
