"""Memory to tune quantised SmolLM2, against plain inference of the same integers.

python benchmarks/quantized_memory.py [--json] [--record]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from recording import record

from edgezo.bench.inference_memory import inference_peak, save_feeds
from edgezo.bench.processes import WorkerProcess
from edgezo.bench.step import TUNING_WORKER, open_tuning, random_batch
from edgezo.cli.models import default_model
from edgezo_export.quantize import quantize_bundle
from edgezo_export.quantized_linear import FORMATS
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import default_threads

ROWS, TOKENS, STEPS = 16, 64, 2
TUNED = ("scales", "full")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/NAME.json.")
def main(as_json: bool, keep: bool) -> None:
    """Measure the peak memory of steps of 16 x 64 tokens, above the process after its imports."""
    results: dict[str, Any] = {"batch": ROWS, "tokens": TOKENS}
    whole = default_model(click.echo)
    with tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch:
        for name in FORMATS:
            folder = quantize_bundle(whole, Path(scratch) / f"smollm2-{name}.edgezo", name)
            results[name] = _peaks(folder, scratch)
            if not as_json:
                click.echo(f"{name}: {results[name]}")
    if keep:
        record("quantized_memory", results)
    if as_json:
        click.echo(json.dumps(results))


def _peaks(folder: Path, scratch: str) -> dict[str, Any]:
    batch = random_batch(open_bundle(folder), ROWS, TOKENS)
    inference = inference_peak(folder, batch.feeds())
    found: dict[str, Any] = {"inference_peak_rss_mb": round(inference / 1e6, 1)}
    for tune in TUNED:
        with WorkerProcess("-m", TUNING_WORKER) as worker:
            feeds = save_feeds(batch.feeds(), scratch)
            open_tuning(worker, folder, feeds, batch, default_threads(), tune=tune)
            worker.call("step", count=STEPS)
            peak = worker.call("peak")
        ratio = round(peak / inference, 4)
        found[tune] = {"peak_rss_mb": round(peak / 1e6, 1), "memory_ratio": ratio}
    return found


if __name__ == "__main__":
    main()
