"""A step of every forward-only method on the card, beside the same step when the host waits.

python benchmarks/methods.py [--model NAME] [--rounds N] [--json] [--record]

Steps are timed several at once, since each is queued while the card is busy with the one before.
The peer computes losses on the host, once all passes of a step are queued.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import click
import numpy as np
from card import described, opened, row, tell
from recording import record_rows

from edgezo.bench.step import random_batch
from edgezo.cli.bench import bundle_for
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.methods import FORWARD_ONLY, make
from edgezo_runtime.model import Model, load
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe

SHAPES = ((16, 64), (1, 32))
STEPS = 10
WARM = 2  # times `STEPS`, until kernels are compiled, also those that look back on ten steps


class Waited:
    """A loss that the host computes."""

    def __init__(self, model: Model, batch: Any) -> None:
        self._loss = BatchLoss(model, batch)

    def __call__(self) -> float:
        return self._loss()

    def later(self) -> Callable[[], float]:
        return self._loss.later()


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as one line of JSON last.")
@click.option("--record", "keep", is_flag=True, help="Write into benchmarks/results/methods.json.")
def main(model: str, rounds: int, as_json: bool, keep: bool) -> None:
    """Measure every method on the card."""
    found = described(opened("cuda"))
    bundle = bundle_for(model)
    ours, theirs = (load(bundle, device="cuda") for _ in range(2))  # a run has a model of its own
    rows: list[dict[str, Any]] = []
    for name in FORWARD_ONLY:
        if make(name, ours.arena, 0, {}).graph:
            continue  # needs another bundle
        for shape in SHAPES:
            batch = random_batch(ours.bundle, *shape)
            times = timed([(ours, BatchLoss), (theirs, Waited)], batch, name, rounds)
            shape_text = f"{name}, {shape[0]} x {shape[1]}, float32"
            one = row("step_ms", shape_text, times[0], "ms", times[1])
            rows.append(one | found)
            tell(one)
        ours.device.xp.get_default_memory_pool().free_all_blocks()
    if keep:
        record_rows("methods", rows)
    if as_json:
        click.echo(json.dumps(rows))


def timed(
    models: Sequence[tuple[Model, Callable[[Model, Any], Any]]], batch: Any, name: str, rounds: int
) -> list[float]:
    """Returns the median milliseconds of a step of each model, with the loss it is given."""
    runs = []
    for model, loss in models:
        method = make(name, model.arena, 0, {})
        tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
        runs.append((tuning, model, loss))
    times: list[list[float]] = [[] for _ in runs]
    for number in range(WARM + rounds):
        for (tuning, model, loss), kept in zip(runs, times, strict=True):
            stream: Any = model.device.queue
            model.weights.settle()
            stream.synchronize()
            began = time.perf_counter()
            for _ in range(STEPS):
                tuning.start(loss(model, batch), np.float32(0))
            stream.synchronize()
            if number >= WARM:
                kept.append(1e3 * (time.perf_counter() - began) / STEPS)
    return [median(each) for each in times]


if __name__ == "__main__":
    main()
