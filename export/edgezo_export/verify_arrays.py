"""Checks that a bundle of arrays computes what its ONNX file does, and that no weight is dead."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgezo_export.array_graph import ArrayGraph
from edgezo_export.loss_file import random_targets, wrong_shape
from edgezo_export.losses import CROSS_ENTROPY, LOSSES, MSE, TARGETS
from edgezo_export.plain_session import session_of
from edgezo_export.probe import Probe, probes_like
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.model import Model

#: Allowed difference, relative to the largest value, and in units of what ONNX Runtime's own
#: optimisations change: a Sigmoid near zero keeps few digits.
TOLERANCE, HALF_TOLERANCE = 1e-5, 5e-3
OWN_NOISE = 4.0


def check_agreement(model: Model, graph: ArrayGraph, source: Path) -> float:
    """Compares the bundle with the untouched file, for one row and for three at once.

    The file runs row by row, so that rows which meet in one batch are found out.

    Returns:
        The largest difference, relative to the output's largest value.

    Raises:
        InputError: they differ, or the bundle cannot run three rows at once.
    """
    half = any(p.dtype != "float32" for p in model.bundle.manifest.parameters)
    unoptimised = session_of(source, optimised=False)
    worst = 0.0
    for rows in (1, 3):
        feeds = graph.probe.draw(rows, rows)
        expected = graph.expected(feeds, graph.plain, graph.probe)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        again = _difference(graph.expected(feeds, graph.plain, graph.probe), expected)
        if not again <= tolerance:
            raise InputError(
                f"{source} gives outputs that differ by {again:.1e} of the largest value when it "
                "runs twice, so that nothing can be compared with it: it may draw random numbers"
            )
        other = graph.expected(feeds, unoptimised, graph.probe)
        allowed = tolerance + OWN_NOISE * _difference(other, expected)
        batch = _batch(model, graph.probe, feeds, expected)
        try:
            found = model.forward(batch)
        except EdgezoError as error:
            if rows == 1:
                raise InputError(
                    f"{source} runs, but not with its weights as inputs: {error}"
                ) from error
            raise InputError(
                f"{source} runs one row but not {rows} at once, so it cannot be tuned on batches; "
                f"export it with a free batch size: {error}"
            ) from error
        if found[graph.output].shape != expected.shape:
            raise InputError(
                f"{source} gives output of shape {list(found[graph.output].shape)} for {rows} "
                "rows: its first axis does not count them"
            )
        if found[LOSSES].shape != (rows,):
            raise InputError(wrong_shape(graph.loss, found[LOSSES].shape, rows))
        difference = _difference(found[graph.output], expected)
        losses = _losses(graph, found[graph.output], batch.targets)
        if losses is not None:
            difference = max(difference, _difference(found[LOSSES], losses))
        if not difference <= allowed:
            raise InputError(
                f"the bundle differs from {source} by {difference:.1e} of the largest value for "
                f"{rows} rows at once: its batch size is fixed somewhere inside, or its rows mix"
            )
        worst = max(worst, difference)
    return worst


def dead_weights(model: Model, graph: ArrayGraph) -> set[str]:
    """Changes each weight alone and returns those of which neither loss nor output knows.

    A rounding is enough: a bias may cancel in a softmax, and shows that the graph reads it.
    """
    waiting = list(model.bundle.manifest.parameters)
    for probe in probes_like(graph.probe, graph.model):
        if not waiting:
            break
        try:
            feeds = probe.draw(2, 5)
            expected = graph.expected(feeds, graph.plain, probe)
            batch = _batch(model, probe, feeds, expected)
            before = _bits(model, batch)
        except Exception:  # the file does not take these sizes or values
            continue
        still = []
        for parameter in waiting:
            view = model.arena.views[parameter.name]
            saved = view.copy()
            _perturb(view)
            if _bits(model, batch) == before:
                still.append(parameter)
            view[...] = saved
        waiting = still
    return {parameter.name for parameter in waiting}


def _batch(
    model: Model, probe: Probe, feeds: dict[str, np.ndarray], output: np.ndarray
) -> ArrayBatch:
    """Returns a batch with targets drawn to fit the graph's port for them."""
    ports = {port.name: port for port in model.bundle.manifest.inputs}
    port = ports[TARGETS]
    targets = random_targets(np.dtype(port.dtype), port.shape, output)
    used = {name: array for name, array in feeds.items() if name in ports}
    return ArrayBatch(used, targets, RowLoss())


def _losses(graph: ArrayGraph, output: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
    """Returns what the losses should be; None for a loss that came as a graph."""
    wide = output.astype(np.float64)
    if graph.loss == MSE:
        return ((wide - targets) ** 2).reshape(len(wide), -1).mean(axis=1)
    if graph.loss != CROSS_ENTROPY:
        return None
    rows = np.arange(len(wide))
    if graph.of_probabilities:
        return -np.log(np.maximum(wide[rows, targets], 1e-30))
    highest = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - highest).sum(axis=1)) + highest[:, 0]
    return total - wide[rows, targets]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    scale = max(float(np.abs(expected).max()), 1e-30)
    with np.errstate(invalid="ignore"):
        return float(np.abs(found - expected).max()) / scale


def _bits(model: Model, batch: ArrayBatch) -> list[bytes]:
    return [array.tobytes() for array in model.forward(batch).values()]


def _perturb(view: np.ndarray) -> None:
    """Adds noise of the weights' own size: a shift by a constant might cancel."""
    generator = np.random.Generator(np.random.Philox(1))
    values = view.astype(np.float32)
    scale = max(float(np.abs(values).max()), 1e-3)
    view[...] = values + generator.standard_normal(values.shape, np.float32) * np.float32(scale)
