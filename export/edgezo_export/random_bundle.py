"""A bundle of a shipped graph with random weights, for benchmarks and tests that need no model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.shipped_graphs import CONFIG, copy_graphs, read_config, shipped_folder
from edgezo_runtime.bundle import GRAPH, LEAN, Parameter, is_bundle, open_bundle
from edgezo_runtime.files import sha256

STANDARD_DEVIATION = 0.02


def is_current(name: str, folder: Path) -> bool:
    """Whether `folder` is a bundle of today's shipped graphs `name`, not of an earlier one."""
    if not is_bundle(folder):
        return False
    files = open_bundle(folder).manifest.files
    return all(files.get(file) == sha256(shipped_folder(name) / file) for file in (GRAPH, LEAN))


def random_bundle(name: str, out: Path, seed: int = 0) -> Path:
    """Writes a bundle of the shipped graph `name` and returns its folder `out`.

    Matrices are drawn from N(0, 0.02^2), norms are 1 and biases 0. It has no tokenizer.

    Args:
        name: a shipped graph, e.g. ``"opt-125m"``.
        out: the bundle's folder; must not exist yet.
        seed: the same seed gives the same weights with one version of NumPy.

    Raises:
        InputError: no such graph, or `out` exists.
    """
    source = shipped_folder(name)
    generator = np.random.Generator(np.random.Philox(seed))

    def tensor(parameter: Parameter) -> np.ndarray:
        if parameter.kind == "norm":
            return np.ones(parameter.shape, np.float32)
        if parameter.kind == "bias":
            return np.zeros(parameter.shape, np.float32)
        values = generator.standard_normal(parameter.shape, np.float32)
        values *= np.float32(STANDARD_DEVIATION)
        return values

    with new_folder(out) as folder:
        copy_graphs(source, folder)
        shutil.copyfile(source / CONFIG, folder / CONFIG)
        context_length = int(read_config(source)["max_position_embeddings"])
        complete_bundle(folder, tensor, context_length=context_length, made_with=("numpy",))
    return out
