"""Gives a bundle its lean graph, if that computes what its graph computes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from edgezo_export.lean.make import save_lean
from edgezo_export.mutations import dead_weights, moved
from edgezo_export.verify import (
    HALF_RELATIVE_TOLERANCE,
    HALF_TOLERANCE,
    RELATIVE_TOLERANCE,
    TOLERANCE,
    GraphRunner,
    sample_batch,
)
from edgezo_runtime.bundle import LEAN, open_bundle, write_manifest
from edgezo_runtime.files import sha256

_SHAPES = ((3, 11), (2, 40))


def add_lean(folder: Path, graph: GraphRunner, vocabulary: int) -> bool:
    """Adds `lean.onnx` to the bundle in `folder`; returns whether it has one now.

    It has none where its graph has no attention to fuse, or the lean graph disagrees with it at two
    shapes: by more than 1e-4 in float32, or what 16 bits round in float16. Weights that change
    nothing in the lean graph, as keys' biases, are changed in the other one for that.

    Args:
        folder: a bundle's.
        graph: runs its graph.
        vocabulary: number of its tokens.
    """
    bundle = open_bundle(folder)
    if made := save_lean(folder):
        lean = GraphRunner(bundle, folder / LEAN, graph.weights)
        texts = sample_batch(vocabulary, 2, 6, form=lean.form)
        dead = dead_weights(lean.graph, lean.weights, texts, lean.outputs)
        with changed(graph, dead):
            made = agree(graph, lean, vocabulary)
    files = {name: digest for name, digest in bundle.manifest.files.items() if name != LEAN}
    if made:
        files[LEAN] = sha256(folder / LEAN)
    write_manifest(folder, dataclasses.replace(bundle.manifest, files=files))
    if not made:
        (folder / LEAN).unlink(missing_ok=True)
    return made


@contextlib.contextmanager
def changed(graph: GraphRunner, names: Iterable[str]) -> Iterator[None]:
    """Changes weights of `graph` at random, by about 0.1."""
    own = moved(graph.weights, names)  # the graph has only their addresses
    for name, array in own.items():
        graph.bind(name, array)
    try:
        yield
    finally:
        for name in own:
            graph.bind(name, graph.weights[name])


def agree(graph: GraphRunner, lean: GraphRunner, vocabulary: int) -> bool:
    """Whether both give the same outputs, within what their dtype rounds, on padded texts."""
    half = _half(graph)
    absolute = HALF_TOLERANCE if half else TOLERANCE
    relative = HALF_RELATIVE_TOLERANCE if half else RELATIVE_TOLERANCE
    for batch, length in _SHAPES:
        inputs = sample_batch(vocabulary, batch, length, form=graph.form)
        for theirs, ours in zip(graph(inputs), lean(inputs), strict=True):
            allowed = absolute + relative * float(np.abs(theirs).max())
            if not np.abs(ours - theirs).max() <= allowed:  # a NaN is not
                return False
    return True


def _half(graph: GraphRunner) -> bool:
    return any(p.dtype == "float16" for p in graph.parameters)
