"""Which weights a graph does not read, found by changing each alone, in its stage of the graph.

A stage is about a layer. Each runs by itself on what the stages before it gave, so that trying a
weight costs a layer: all weights of a deep model cost some forward passes, and not one each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.stages import Stage, cut

Arrays = Mapping[str, np.ndarray]


def dead_weights(graph: bytes, weights: Arrays, feeds: Arrays, outputs: Sequence[str]) -> list[str]:
    """Returns which of `weights` change none of `outputs` when they alone are perturbed.

    A rounding is a change: a key's bias cancels in the softmax, but its rounding shows that the
    graph reads it. What a weight changes is a value that its stage hands on, and of that value it
    is known in the same way that it changes the outputs.

    Args:
        graph: the bytes of an ONNX file that takes weights as inputs.
        weights: every weight's value, by name.
        feeds: its other inputs.
        outputs: those of its outputs that count.
    """
    # Equal sizes, or layers would be put together until they are as large as an embedding.
    stages = cut(Graph(graph), dict.fromkeys(weights, 1))
    sessions = {stage.piece.model: _session(stage.piece.model) for stage in stages}
    values = {**weights, **feeds}
    for stage in stages:
        values.update(_run(sessions[stage.piece.model], stage, values))
    reaching = set(outputs)
    for stage in reversed(stages):
        made = {name for name, _ in stage.piece.outputs}
        for name, _ in stage.piece.inputs:
            if name in feeds or name in reaching:
                continue
            changed = {**values, name: _perturbed(values[name])}
            after = _run(sessions[stage.piece.model], stage, changed)
            if any(not np.array_equal(after[n], values[n]) for n in made & reaching):
                reaching.add(name)
    return [name for name in weights if name not in reaching]


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and told once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, stage: Stage, values: Arrays) -> dict[str, Any]:
    """Returns what `stage` makes of `values`, by the graph's names."""
    feeds = {own: values[name] for name, own in stage.piece.inputs}
    found = session.run([own for _, own in stage.piece.outputs], feeds)
    return {name: array for (name, _), array in zip(stage.piece.outputs, found, strict=True)}


def moved(weights: Arrays, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns those of `weights`, changed by about 0.1: what they matter to shows it."""
    return {name: _perturbed(weights[name], 0.1) for name in names}


def _perturbed(array: np.ndarray, scale: float = 1.0) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(1))
    # Not a shift by one constant, which a softmax or a layer norm may cancel.
    noise = np.float32(scale) * generator.standard_normal(array.shape, np.float32)
    changed = noise.astype(array.dtype, copy=False)
    changed += array
    return changed
