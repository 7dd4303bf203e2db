"""Steps with true gradients: against PyTorch's, over plain inference, and with frozen lower layers.

python benchmarks/first_order.py [--method adamw] [--model BUNDLE] [--json] [--record]

- a step of all weights against PyTorch's: time, and peak memory;
- HiFT with AdamW: the peak of a whole cycle over that of ONNX Runtime's default inference;
- the upper quarter of the layers tuned with the frozen layers' outputs on disk, against a step of
  all weights.

What is compared has the same weights and batch, and as many threads, each in a fresh process of its
own; they take turns, and every time is a median. Memory is each process's peak above what it took
with its libraries imported. The bundle is SmolLM2-135M's, as `edgezo demo` makes it, unless one is
given; a gradient graph is added to it in a temporary folder. Needs torch and transformers.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click
from recording import FOLDER, record

from edgezo.bench.inference_memory import inference_peak, save_feeds
from edgezo.bench.machine import commit, versions
from edgezo.bench.processes import WorkerProcess
from edgezo.bench.step import PAUSE_SECONDS, random_batch
from edgezo.cli.bench import bundle_for
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_runtime.batch import Batch, CandidateLoss
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import default_threads
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.first_order.groups import layer_groups
from edgezo_runtime.select import QUARTER

IN_PLACE = "ip-sgd"
METHODS = (IN_PLACE, "adamw")
PREFIX_METHODS = ("mezo", *METHODS)
HIFT = "hift-adamw"
TOLERANCE = 1e-3  # of the loss at the start, in nats
OURS, TORCH = FOLDER / "first_order_worker.py", FOLDER / "torch_first_order.py"


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option("--method", type=click.Choice(METHODS), multiple=True, help="[default: all]")
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of both.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as one line of JSON last.")
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
    """Measure steps with true gradients."""
    source = open_bundle(bundle_for(model))
    about = {
        "model": source.folder.name.removesuffix(".edgezo"),
        "shape": f"{rows}x{tokens}",
        "threads": threads or default_threads(),
        "rounds": repeats,
        "versions": versions("torch", "transformers"),
        "commit": commit("benchmarks/results"),
    }
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch:
        folder = Path(scratch) / source.folder.name
        add_to_bundle(source, folder)
        bundle = open_bundle(folder)
        batch = random_batch(bundle, rows, tokens)
        bench = Bench(bundle, batch, about["threads"], repeats, Path(scratch))
        for measured in bench.all(method or METHODS):
            row = measured | about
            found.append(row)
            peer = "" if row["peer_value"] is None else f" (peer {row['peer_value']:g})"
            click.echo(f"{row['figure']}: {row['value']:g} {row['unit']}{peer}")
    if keep:
        record("first_order", found, ("torch", "transformers"))
    if as_json:
        click.echo(json.dumps(found))


class Bench:
    """Measures one bundle on one batch.

    Args:
        bundle: with a gradient graph.
        batch: of the steps.
        threads: of every process.
        rounds: turns that each takes.
        scratch: a folder for files.
    """

    def __init__(
        self, bundle: Bundle, batch: Batch, threads: int, rounds: int, scratch: Path
    ) -> None:
        assert isinstance(batch.objective, CandidateLoss)
        self._bundle, self._batch, self._rounds = bundle, batch, rounds
        self._threads, self._scratch = threads, scratch
        self._given = {
            "bundle": str(bundle.folder),
            "feeds": save_feeds(batch.feeds(), scratch),
            "labels": batch.objective.labels.tolist(),
            "threads": threads,
        }

    def all(self, methods: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yields all figures, of these methods."""
        for method in methods:
            yield from self.against_torch(method)
        if IN_PLACE in methods:
            yield from self.against_torch(IN_PLACE, keep_products=1)
        yield from self.hift()
        for method in PREFIX_METHODS:
            if method in methods or method not in METHODS:
                yield from self.upper_layers(method)

    def against_torch(self, method: str, **settings: float) -> Iterator[dict[str, Any]]:
        """Yields what a step of all weights takes, beside PyTorch's.

        Raises:
            EdgezoError: the two do not compute the same loss at the start.
        """
        name = ", ".join([method, *(f"{key} {value:g}" for key, value in settings.items())])
        mine = self._worker(OURS, method, settings=settings)
        with mine as ours, self._worker(TORCH, method) as theirs:
            losses = [worker.call("step")["loss"] for worker in (ours, theirs)]  # warms up, too
            if not abs(losses[0] - losses[1]) <= TOLERANCE:
                raise EdgezoError(f"edgezo and PyTorch start at different losses: {losses}")
            step, torch_step = self._in_turns({"ours": ours, "theirs": theirs}).values()
            peak, torch_peak = (worker.call("peak") / 1e6 for worker in (ours, theirs))
        yield _row(f"{name}: step", 1e3 * step, "ms", 1e3 * torch_step)
        yield _row(f"{name}: time over PyTorch's", step / torch_step, "ratio")
        yield _row(f"{name}: peak memory", peak, "MB", torch_peak)
        yield _row(f"{name}: peak memory over PyTorch's", peak / torch_peak, "ratio")

    def hift(self) -> Iterator[dict[str, Any]]:
        """Yields the peak memory of a cycle of HiFT, beside that of default inference."""
        inference = inference_peak(self._bundle.folder, self._batch.feeds(), self._threads) / 1e6
        with self._worker(OURS, HIFT) as worker:
            for _ in layer_groups(self._bundle.manifest.parameters):
                worker.call("step")
            peak = worker.call("peak") / 1e6
        yield _row(f"{HIFT}: peak memory", peak, "MB", inference)
        yield _row(f"{HIFT}: peak memory over default inference", peak / inference, "ratio")

    def upper_layers(self, method: str) -> Iterator[dict[str, Any]]:
        """Yields what a step of the upper quarter of the layers takes, beside one of them all."""
        given = {"tune": QUARTER, "cache": str(self._scratch / "prefix.cache")}
        with self._worker(OURS, method) as full, self._worker(OURS, method, **given) as part:
            for worker in (full, part):
                worker.call("step")  # warms up
            step, full_step = self._in_turns({"part": part, "full": full}).values()
        yield _row(f"{method}: step of the upper quarter", 1e3 * step, "ms", 1e3 * full_step)
        yield _row(f"{method}: upper quarter over all", step / full_step, "ratio")

    @contextlib.contextmanager
    def _worker(self, script: Path, method: str, **given: Any) -> Iterator[WorkerProcess]:
        with WorkerProcess(str(script)) as worker:
            worker.call("open", **self._given, optimizer=method, **given)
            yield worker

    def _in_turns(self, workers: Mapping[str, WorkerProcess]) -> dict[str, float]:
        """Returns the median seconds of each worker's steps."""
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(self._rounds):
            for name, worker in workers.items():
                time.sleep(PAUSE_SECONDS)  # until the other's threads no longer wait busily
                seconds[name].append(worker.call("step")["seconds"])
        return {name: median(measured) for name, measured in seconds.items()}


def _row(figure: str, value: float, unit: str, peer: float | None = None) -> dict[str, Any]:
    rounded = None if peer is None else round(peer, 4)
    return {"figure": figure, "value": round(value, 4), "unit": unit, "peer_value": rounded}


if __name__ == "__main__":
    main()
