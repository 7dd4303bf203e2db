"""edgezo's MeZO step against the published loop in PyTorch, on OPT-125M.

python benchmarks/versus_torch.py [--json] [--record]

Both have the same random weights and batch, and as many threads, each in a process of its own; they
take turns, and every figure is a median. Needs torch and transformers (the `export` extra).
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
from edgezo.bench.step import (
    LEAST_ROUNDS,
    PAUSE_SECONDS,
    TUNING_WORKER,
    open_tuning,
    random_batch,
)
from edgezo.cli.bench import bundle_for, show_round
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import default_threads
from edgezo_runtime.errors import EdgezoError

SHAPES = ((16, 64), (1, 32))
TOLERANCE = 1e-3  # of the loss at the start, in nats
TORCH_WORKER = FOLDER / "torch_mezo.py"


@click.command()
@click.option("--model", default="opt-125m", show_default=True, help="Or a bundle's path.")
@click.option("--repeats", type=click.IntRange(LEAST_ROUNDS), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of both.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/versus_torch.json.")
def main(model: str, repeats: int, threads: int | None, as_json: bool, keep: bool) -> None:
    """Measure how many times faster than PyTorch a MeZO step is."""
    folder = bundle_for(model)
    threads = threads or default_threads()
    results: dict[str, Any] = {}
    for rows, tokens in SHAPES:
        found = compare(folder, rows, tokens, repeats, threads)
        shape = f"{rows}x{tokens}"
        results |= {f"{name}_{shape}": value for name, value in found.items()}
        if not as_json:
            click.echo(
                f"{rows} x {tokens}: {found['step_ms']:.1f} ms a step, PyTorch "
                f"{found['torch_step_ms']:.1f} ms: {found['speedup']:.2f} x faster"
            )
    results |= {"model": folder.name.removesuffix(".edgezo"), "threads": threads, "rounds": repeats}
    if keep:
        record("versus_torch", results, ("torch", "transformers"))
    if as_json:
        click.echo(json.dumps(results))


def compare(folder: Path, rows: int, tokens: int, rounds: int, threads: int) -> dict[str, float]:
    """Returns the speed-up of a step on rows x tokens, and both medians in milliseconds.

    Raises:
        EdgezoError: the two do not compute the same loss at the start, or a process failed.
    """
    bundle = open_bundle(folder)
    batch = random_batch(bundle, rows, tokens)
    with (
        tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch,
        WorkerProcess("-m", TUNING_WORKER) as ours,
        WorkerProcess(str(TORCH_WORKER)) as theirs,
    ):
        feeds = save_feeds(batch.feeds(), scratch)
        losses = []
        for worker in (ours, theirs):
            open_tuning(worker, bundle.folder, feeds, batch, threads)
            losses.append(worker.call("loss"))
            worker.call("step", count=1)  # warm up
        if not abs(losses[0] - losses[1]) <= TOLERANCE:
            raise EdgezoError(f"edgezo and PyTorch start at different losses: {losses}")
        seconds: tuple[list[float], list[float]] = ([], [])
        for done in range(rounds):
            for worker, measured in zip((ours, theirs), seconds, strict=True):
                time.sleep(PAUSE_SECONDS)  # until the other's threads no longer wait busily
                measured += worker.call("step", count=1)
            show_round(done + 1, rounds)
    step, torch_step = map(median, seconds)
    return {
        "speedup": round(torch_step / step, 3),
        "step_ms": round(1e3 * step, 2),
        "torch_step_ms": round(1e3 * torch_step, 2),
    }


if __name__ == "__main__":
    main()
