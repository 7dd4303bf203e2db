"""Would low-rank directions be faster inside the graph? A step of MeZO against one forward pass.

A graph that adds (x V) U to every linear layer, with the sign of each row, gives both losses of a
step in one pass over twice the rows, and sweeps no weights. A LoRA over all linear layers costs
what such a graph would; what it leaves out (embeddings, norms, the update) is not counted.

edgezo export MODEL --tune lora --rank 2 --target all-linear --out LORA
python benchmarks/low_rank.py MODEL LORA
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click

import edgezo
from edgezo.bench.step import random_batch
from edgezo_runtime.bundle import open_bundle

SHAPES = ((1, 32, 9), (4, 64, 5), (16, 64, 3))  # rows, tokens, rounds


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("lora", type=click.Path(path_type=Path))
def main(model: Path, lora: Path) -> None:
    """Time both in turn."""
    tuner = edgezo.Tuner(edgezo.load(model), method="mezo", lr=1e-6)
    low = edgezo.load(lora, tune="lora")
    bundle = open_bundle(model)
    for rows, length, rounds in SHAPES:
        once, twice = (random_batch(bundle, n * rows, length) for n in (1, 2))
        stepped, passed = [], []
        for _ in range(rounds + 1):  # the first of each warms up
            stepped.append(_seconds(lambda batch=once: tuner.step(batch)))
            passed.append(_seconds(lambda batch=twice: low.forward(batch)))
        step, one = median(stepped[1:]), median(passed[1:])
        click.echo(
            f"{rows} x {length}: a step {1e3 * step:.0f} ms, both signs in one pass "
            f"{1e3 * one:.0f} ms, ratio {one / step:.2f}"
        )


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
