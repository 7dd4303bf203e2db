"""Any ONNX file that infers becomes a bundle: its weights as inputs, a loss at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgezo_export.array_graph import ArrayGraph
from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.losses import CROSS_ENTROPY
from edgezo_export.trainable import FoundWeight
from edgezo_export.verify_arrays import check_agreement, dead_weights
from edgezo_runtime.bundle import GRAPH, Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import load

DEAD = "no change of it moves the loss"


@dataclass(frozen=True)
class Exported:
    """What became of an ONNX file.

    Attributes:
        weights: each constant of the file, with the reason why it stays one.
        difference: largest difference from the file's own output, relative to its largest value.
    """

    weights: tuple[FoundWeight, ...]
    difference: float


def onnx_to_bundle(
    source: Path,
    out: Path,
    *,
    output: str | None = None,
    loss: str = CROSS_ENTROPY,
    labels: Sequence[str] | None = None,
) -> Exported:
    """Makes the bundle `out` of the ONNX file `source`.

    The bundle is compared with the untouched file on random inputs, of one row and of three, and
    each weight is changed alone: one that does not move the loss stays a constant.

    Args:
        source: the file; external data lies in its folder.
        out: the bundle's folder; must not exist yet.
        output: what the loss judges; may be left out where there is only one output.
        loss: ``"cross-entropy"`` over scores or probabilities (rows, classes), ``"mse"``, or the
            path of an ONNX file that takes the output and the targets and gives one loss, or one
            for each row.
        labels: the classes' names, in the order of the scores.

    Raises:
        InputError: the file cannot be tuned; the message says why.
        EdgezoError: `out` cannot be written.
    """
    with new_folder(out) as folder:
        dead: set[str] = set()
        while True:
            graph = ArrayGraph(source, output, loss, dead)
            graph.write(folder / GRAPH)
            values = {w.name: w for w in graph.weights if w.trainable}

            def tensor(parameter: Parameter, values: dict[str, FoundWeight] = values) -> np.ndarray:
                return values[parameter.name].array()

            task = graph.task(labels)
            versions = ("onnx", "onnx-ir")
            complete_bundle(folder, tensor, context_length=None, task=task, made_with=versions)
            model = load(folder)
            difference = check_agreement(model, graph, source)
            if dead:
                break
            dead = dead_weights(model, graph)
            if not dead:
                break
            if len(dead) == len(values):
                raise InputError(f"no weight of {source} moves the loss: there is nothing to tune")
    weights = [replace(w, reason=DEAD) if w.name in dead else w for w in graph.weights]
    return Exported(tuple(weights), difference)
