"""A step with true gradients of all weights against PyTorch's: time, and peak memory.

python benchmarks/first_order.py [--method adamw] [--model BUNDLE] [--json] [--record]

Both have the same weights and batch, and as many threads, each in a fresh process of its own; they
take turns, and every time is a median. Memory is each process's peak above what it took with its
libraries imported. The bundle is SmolLM2-135M's, as `edgezo demo` makes it, unless one is given; a
gradient graph is added to it in a temporary folder. Needs torch and transformers.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
from recording import FOLDER, record

from edgezo.bench.inference_memory import save_feeds
from edgezo.bench.processes import WorkerProcess
from edgezo.bench.step import PAUSE_SECONDS, random_batch
from edgezo.cli.bench import bundle_for, show_round
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_runtime.batch import Batch, CandidateLoss
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import default_threads
from edgezo_runtime.errors import EdgezoError

METHODS = ("ip-sgd", "sgd", "adamw")
TOLERANCE = 1e-3  # of the loss at the start, in nats
WORKERS = {"ours": FOLDER / "first_order_worker.py", "torch": FOLDER / "torch_first_order.py"}


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option("--method", type=click.Choice(METHODS), multiple=True, help="[default: all]")
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of both.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/first_order.json.")
def main(
    model: str,
    method: tuple[str, ...],
    rows: int,
    tokens: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
    keep: bool,
) -> None:
    """Measure how a step with true gradients compares with PyTorch's."""
    source = open_bundle(bundle_for(model))
    threads = threads or default_threads()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch:
        folder = Path(scratch) / source.folder.name
        add_to_bundle(source, folder)
        bundle = open_bundle(folder)
        batch = random_batch(bundle, rows, tokens)
        for name in method or METHODS:
            found = compare(bundle, batch, name, repeats, threads)
            results[name] = found
            if not as_json:
                click.echo(
                    f"{name}: {found['step_ms']:.0f} ms a step, {found['time_ratio']:.2f} of "
                    f"PyTorch's; {found['peak_mb']:.0f} MB, {found['memory_ratio']:.2f} of its"
                )
    shape = {"rows": rows, "tokens": tokens, "rounds": repeats, "threads": threads}
    results |= {"model": source.folder.name.removesuffix(".edgezo"), **shape}
    if keep:
        record("first_order", results, ("torch", "transformers"))
    if as_json:
        click.echo(json.dumps(results))


def compare(
    bundle: Bundle, batch: Batch, method: str, rounds: int, threads: int
) -> dict[str, float]:
    """Returns medians of a step's milliseconds, peaks of memory, and their ratios to PyTorch's.

    Raises:
        EdgezoError: the two do not compute the same loss at the start, or a process failed.
    """
    assert isinstance(batch.objective, CandidateLoss)
    labels = batch.objective.labels.tolist()
    with (
        tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch,
        WorkerProcess(str(WORKERS["ours"])) as ours,
        WorkerProcess(str(WORKERS["torch"])) as theirs,
    ):
        feeds = save_feeds(batch.feeds(), scratch)
        losses = []
        for worker in (ours, theirs):
            worker.call(
                "open",
                bundle=str(bundle.folder),
                feeds=str(feeds),
                labels=labels,
                threads=threads,
                optimizer=method,
            )
            losses.append(worker.call("step")["loss"])  # warms up, too
        if not abs(losses[0] - losses[1]) <= TOLERANCE:
            raise EdgezoError(f"edgezo and PyTorch start at different losses: {losses}")
        seconds: tuple[list[float], list[float]] = ([], [])
        for done in range(rounds):
            for worker, measured in zip((ours, theirs), seconds, strict=True):
                time.sleep(PAUSE_SECONDS)  # until the other's threads no longer wait busily
                measured.append(worker.call("step")["seconds"])
            show_round(done + 1, rounds)
        peaks = [worker.call("peak") for worker in (ours, theirs)]
    step, torch_step = map(median, seconds)
    return {
        "time_ratio": round(step / torch_step, 3),
        "memory_ratio": round(peaks[0] / peaks[1], 3),
        "step_ms": round(1e3 * step, 1),
        "torch_step_ms": round(1e3 * torch_step, 1),
        "peak_mb": round(peaks[0] / 1e6, 1),
        "torch_peak_mb": round(peaks[1] / 1e6, 1),
    }


if __name__ == "__main__":
    main()
