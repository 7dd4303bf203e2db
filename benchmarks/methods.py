"""A step of every forward-only method on the card, beside the same step when the host waits.

python benchmarks/methods.py [--model NAME] [--rounds N] [--json] [--record]

Steps are timed several at once, since each is queued while the card is busy with the one before.
The peer computes losses on the host, once all passes of a step are queued.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
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
    loaded = load(bundle_for(model), device="cuda")
    rows: list[dict[str, Any]] = []
    for name in FORWARD_ONLY:
        if make(name, loaded.arena, 0, {}).graph:
            continue  # needs another bundle
        for shape in SHAPES:
            batch = random_batch(loaded.bundle, *shape)
            ours, theirs = timed(loaded, batch, name, rounds)
            one = row("step_ms", f"{name}, {shape[0]} x {shape[1]}, float32", ours, "ms", theirs)
            rows.append(one | found)
            tell(one)
        loaded.device.xp.get_default_memory_pool().free_all_blocks()
    if keep:
        record_rows("methods", rows)
    if as_json:
        click.echo(json.dumps(rows))


def timed(model: Model, batch: Any, name: str, rounds: int) -> tuple[float, float]:
    """Returns median milliseconds of a step that does not wait, and of one that does."""
    stream: Any = model.device.queue
    runs = []
    for kind in (BatchLoss, Waited):
        method = make(name, model.arena, 0, {})
        tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
        runs.append((tuning, kind))
    times: list[list[float]] = [[], []]
    for number in range(WARM + rounds):
        for (tuning, kind), kept in zip(runs, times, strict=True):
            model.weights.settle()
            stream.synchronize()
            began = time.perf_counter()
            for _ in range(STEPS):
                tuning.start(kind(model, batch), np.float32(0))
            stream.synchronize()
            if number >= WARM:
                kept.append(1e3 * (time.perf_counter() - began) / STEPS)
    ours, theirs = map(median, times)
    return ours, theirs


if __name__ == "__main__":
    main()
