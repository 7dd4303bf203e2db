"""An ONNX file's graph as a bundle needs it: weights outside, a free number of rows, a loss."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.losses import CROSS_ENTROPY, LOSSES, TARGETS, Losses
from edgezo_export.onnx_reader import read_onnx
from edgezo_export.plain_session import session_of
from edgezo_export.probe import Probe, find_probe, rows_one_by_one
from edgezo_export.random_operators import check_repeatable
from edgezo_export.row_axes import ROWS, array_inputs
from edgezo_export.scales import rounds_whole_batches
from edgezo_export.trainable import FoundWeight, find_weights
from edgezo_export.weight_inputs import graph_bytes, lift_weights
from edgezo_runtime import dtypes
from edgezo_runtime.batch import ANSWERS
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import atomic_writer


class ArrayGraph:
    """The graph of an ONNX file with its trainable weights as inputs and the losses as output.

    Args:
        source: the file.
        output: what the loss judges; None where there is only one output.
        loss: see `Losses.attach`.
        excluded: names of weights that stay constants.

    Attributes:
        model: the changed graph.
        output: the name of what the loss judges.
        weights: every constant of the file.
        loss: as given.
        of_probabilities: whether the loss is the cross-entropy of an output of probabilities.
        probe: random inputs that the file accepts.
        plain: a session of the untouched file.

    Raises:
        InputError: the file cannot be tuned; the message says why.
    """

    def __init__(
        self, source: Path, output: str | None, loss: str, excluded: Set[str] = frozenset()
    ) -> None:
        self._source = source
        self.loss = loss
        self.model = read_onnx(source)
        judged = _output(self.model, output, source)
        assert judged.name is not None
        self.output = judged.name
        ports = {value.name or "" for value in self.model.graph.inputs} | {self.output}
        for name in (TARGETS, LOSSES):
            if name in ports:
                raise InputError(f"{source} has an input or output {name!r}: give it another name")
        self.weights = find_weights(self.model, [judged], ports | {TARGETS, LOSSES})
        self.model.graph.outputs.clear()
        self.model.graph.outputs.append(judged)
        common_passes.RemoveUnusedNodesPass()(self.model)
        for value in [v for v in self.model.graph.inputs if not v.uses()]:
            self.model.graph.inputs.remove(value)
        for value in self.model.graph.inputs:
            if value.name in ANSWERS:
                raise InputError(
                    f"{source} has an input {value.name!r}, as data calls the right answers: "
                    "give it another name"
                )
        check_repeatable(self.model, source)
        self._whole_batches = rounds_whole_batches(self.model)
        self.plain = session_of(source)
        every = array_inputs(read_onnx(source), judged, source)  # it may need what we do not
        self.probe, sample = find_probe(self.model, every, self.output, source, self.plain)
        self._sample_shape = sample.shape
        self._free_rows(judged, sample)
        losses = Losses(self.model, judged, sample, source)
        losses.attach(loss)
        self.of_probabilities = losses.of_probabilities
        self._lift([w for w in self.weights if w.trainable and w.name not in excluded])

    def expected(self, feeds: dict[str, np.ndarray], session: Any, probe: Probe) -> np.ndarray:
        """Returns what the untouched file gives for `feeds`, which `probe` drew.

        Row by row, so that rows which meet in one batch are found out; but all at once where the
        file rounds activations by the range of a whole batch.

        Raises:
            InputError: such a file takes no batch of so many rows.
        """
        if not self._whole_batches:
            return rows_one_by_one(session, probe, feeds, self.output)
        try:
            return session.run([self.output], feeds)[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise InputError(
                f"{self._source} rounds activations by the range of a whole batch, and its batch "
                "size is fixed: quantise a file with a free batch size"
            ) from error

    def task(self, labels: Sequence[str] | None) -> dict[str, Any]:
        """Returns the bundle's task; raises InputError where `labels` do not fit the output."""
        task: dict[str, Any] = {"name": "arrays", "loss": self.loss, "output": self.output}
        if self.loss.endswith(".onnx"):
            task["loss"] = "custom"
        if labels is None:
            return task
        classes = self._sample_shape[1] if len(self._sample_shape) == 2 else 0
        if task["loss"] != CROSS_ENTROPY or len(labels) != classes:
            raise InputError(
                f"{len(labels)} labels were given, but output {self.output!r} has "
                f"{classes} scores a row: give one name for each, for --loss {CROSS_ENTROPY}"
            )
        if len(set(labels)) < len(labels):
            raise InputError("a label occurs twice; give each class a name of its own")
        return task | {"labels": list(labels)}

    def write(self, path: Path) -> None:
        """Writes the graph to `path`; raises InputError if its constants exceed 2 GB."""
        graph = graph_bytes(self.model, self._source)
        with atomic_writer(path) as file:
            file.write(graph)

    def _free_rows(self, judged: ir.Value, sample: np.ndarray) -> None:
        """Says in the graph what counts rows, and forgets what was known of shapes inside."""
        shapes = {value.name: value.shape for value in self.probe.inputs}
        for node in self.model.graph.all_nodes():
            for value in node.outputs:
                value.shape = None
        for value in self.model.graph.inputs:
            value.shape = ir.Shape(shapes[value.name or ""])
        judged.shape = ir.Shape([ROWS, *_inner_shape(judged, sample)])
        self.model.graph.doc_string = None

    def _lift(self, weights: Sequence[FoundWeight]) -> None:
        if not weights:
            if any(weight.dtype == dtypes.BFLOAT16.name for weight in self.weights):
                raise InputError(
                    f"the weights of {self._source} are bfloat16, in which the small steps of "
                    "tuning are lost: export it with float32 or float16 weights"
                )
            raise InputError(
                f"{self._source} has no weight that can be tuned and moves {self.output!r}: "
                f"`edgezo info {self._source}` says why"
            )
        lift_weights(self.model, weights)


def _output(model: ir.Model, name: str | None, source: Path) -> ir.Value:
    named = {value.name: value for value in model.graph.outputs}
    if not named:
        raise InputError(f"{source} has no output")
    if name is None and len(named) == 1:
        return model.graph.outputs[0]
    if name not in named:
        known = ", ".join(repr(known) for known in named)
        raise InputError(f"give --output, one of {known}, the outputs of {source}")
    return named[name]


def _inner_shape(judged: ir.Value, sample: np.ndarray) -> list[int | str]:
    """Returns the output's shape behind the rows; sizes that the file leaves free stay free."""
    known = list(judged.shape or [])
    return [
        size if i < len(known) and isinstance(known[i], int) and known[i] == size else f"out_{i}"
        for i, size in enumerate(sample.shape)
    ][1:]
