"""The memory that a run's steps need, against plain inference; and the process that takes them."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgezo.adapted import open_adapted
from edgezo.baselines import LINEAR_PROBE, Baseline
from edgezo.bench.card_memory import card_bytes
from edgezo.bench.inference_memory import inference_peak, save_feeds
from edgezo.bench.processes import WorkerProcess, serve
from edgezo.cli.adapters import add_adapter
from edgezo.compare import Run
from edgezo.data.batches import eval_batches
from edgezo.linear_probe import linear_probe, probes
from edgezo.settings import RunSettings
from edgezo.train import batch_order, head_start
from edgezo.training_data import prepare
from edgezo.tuner import Tuner
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.devices import Device, open_device
from edgezo_runtime.memory import peak_bytes, resident_bytes
from edgezo_runtime.model import Model, load
from edgezo_runtime.ort import onnxruntime

_STEPS = 2
_TIMES = 3  # processes of plain inference, whose peaks differ by up to a tenth
_inferred: dict[tuple[Any, ...], int] = {}  # their lowest peak, by bundle, threads and shapes
_LEFT = 1 << 25  # bytes of a card that the driver may keep when a process ends
_BATCHES = 8  # of the run's first batches, the one with the most tokens is taken


def memory_ratio(run: Run) -> float | None:
    """Returns the peak memory of a run's steps over that of plain inference of the same batch.

    On the CPU both are measured in a process of their own, above what it holds after its imports; a
    run's has the tokenizer and the data, too; inference's is the lowest of three. On a card both
    are what the card holds more than before the model was loaded, after forward passes of the
    session that then takes the steps.

    Where rows go through the model in smaller parts, inference is that of a part. A baseline has no
    steps: its forward passes are measured, and the fit of a probe.

    Returns:
        The ratio; None where other processes took memory of the card meanwhile, or gave it back.

    Raises:
        InputError: bad settings, data or bundle.
        EdgezoError: a process failed.
    """
    settings, baseline = run.settings, run.baseline
    asked: dict[str, Any] = {"settings": settings.to_dict()}
    if baseline:
        asked |= {"name": baseline.name, "in_context": baseline.in_context}
    device = open_device(settings.device, settings.threads)
    gc.collect()  # what the run held must not go while the worker is measured
    before = card_bytes(device) or 0
    with tempfile.TemporaryDirectory(prefix="edgezo-memory-") as folder:
        with WorkerProcess("-m", "edgezo.cli.run_memory") as worker:
            path = worker.call("measure" if baseline else "take_steps", folder=folder, **asked)
            peak, plain = worker.call("peak"), worker.call("plain")
        if plain is None:
            plain = _inference_peak(settings, path)
    if abs((card_bytes(device) or 0) - before) > _LEFT:
        return None
    return round(peak / plain, 4)


def _inference_peak(settings: RunSettings, path: str) -> int:
    """Returns the lowest peak of plain inference of the inputs in `path`; of each shape once.

    Methods that are compared take the same batches, and are held against the same figure.
    """
    bundle, threads = settings.bundle, settings.threads
    with np.load(path) as feeds:
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        key = (bundle, threads, shapes)
        if key not in _inferred:
            _inferred[key] = min(
                inference_peak(Path(bundle), feeds, threads) for _ in range(_TIMES)
            )
    return _inferred[key]


class RunWorker:
    """Takes the first steps of a run, or measures a baseline, alone in its process."""

    def __init__(self) -> None:
        onnxruntime()
        self._resident = resident_bytes()
        self._device: Device | None = None
        self._bare: int | None = None
        self._plain: int | None = None

    def take_steps(self, settings: dict[str, Any], folder: str) -> str:
        """Steps on one batch of the run; returns the path of its inputs, written to `folder`."""
        run = self._open(settings)
        bundle = open_adapted(run.bundle, run.adapter(), add_adapter)
        model = load(bundle, tune=run.tune, device=run.device, threads=run.threads)
        data = prepare(model, run)
        order = batch_order(data, run)
        first = [order(number) for number in range(1, _BATCHES + 1)]
        pairs = [(data.batch(a), None if b is None else data.batch(b)) for a, b in first]
        batch, exact = max(pairs, key=lambda pair: _size(_part(pair[0])))
        self._infer(model, _part(batch))
        head_start(model, data, run)
        tuner = Tuner(
            model,
            method=run.method,
            options=run.options,
            lr=0.0,
            eps=run.eps,
            seed=run.seed,
            weight_decay=run.weight_decay,
            samples=run.samples,
        )
        for _ in range(_STEPS):
            tuner.step(batch, exact=exact)
        return save_feeds(_part(batch).feeds(), folder)

    def measure(self, settings: dict[str, Any], name: str, in_context: int, folder: str) -> str:
        """Runs the largest batch of a baseline, or fits it; returns the path of its inputs."""
        run = self._open(settings)
        model, drawn, held_out = Baseline(name, in_context).prepare(run)
        examples = drawn.task.encode_rows(drawn.train) if name == LINEAR_PROBE else held_out
        batches = (batch for _, batch in eval_batches(drawn.task, examples, run.batch_size))
        batch = max(batches, key=_size)
        self._infer(model, batch)
        if name != LINEAR_PROBE:
            for _ in range(_STEPS):
                model.forward(batch)
        elif probes(drawn.task):
            linear_probe(model, drawn.task, examples, held_out[:1], run.batch_size)
        return save_feeds(batch.feeds(), folder)

    def plain(self) -> int | None:
        """Returns what inference of the batch took on the card; None on the CPU."""
        return self._plain

    def peak(self) -> int:
        """Returns the most bytes held, above the process after its imports, or on the card."""
        held = None if self._device is None else card_bytes(self._device)
        if held is None or self._bare is None or self._plain is None:
            return peak_bytes() - self._resident
        # A fit closes the session that was inferred with, and opens it again, yet without buffers.
        return max(held - self._bare, self._plain)

    def _open(self, settings: dict[str, Any]) -> RunSettings:
        run = RunSettings.from_dict(settings, "the comparison")
        self._device = open_device(run.device, run.threads)
        self._bare = card_bytes(self._device)
        return run

    def _infer(self, model: Model, batch: BaseBatch) -> None:
        """Notes what inference takes, where it can be seen apart from what comes later."""
        if self._bare is None or self._device is None:
            return
        for _ in range(_STEPS):
            model.forward(batch)
        self._plain = (card_bytes(self._device) or 0) - self._bare


def _part(batch: BaseBatch) -> BaseBatch:
    """Returns the largest part of a batch that goes through the model in parts, or the batch."""
    return max(batch.passes(), key=_size)


def _size(batch: BaseBatch) -> int:
    return sum(array.size for array in batch.feeds().values())


if __name__ == "__main__":
    serve(RunWorker())
