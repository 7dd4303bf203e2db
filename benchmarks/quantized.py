"""SmolLM2's int4 scales tuned on a classification data set, against its own zero-shot accuracy.

python benchmarks/quantized.py --train train.jsonl --test test.jsonl [--json] [--record]

The rows have `text` and `label` (0 terrible, 1 great: SST-2 with MeZO's prompt and words).
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from recording import record

from edgezo.callbacks import Callback
from edgezo.cli.models import default_model
from edgezo.evaluate import evaluate
from edgezo.settings import RunSettings
from edgezo.train import train
from edgezo.training_data import prepare
from edgezo.tuner import Step
from edgezo_export.quantize import quantize_bundle
from edgezo_runtime.model import load

TEMPLATE, WORDS = "{text} It was", ("terrible", "great")
TUNING: dict[str, Any] = {
    "method": "es",
    "samples": 16,
    "steps": 64,
    "batch_size": 16,
    "lr": 2e-4,
    "eps": 3e-4,
    "schedule": "linear",
    "tune": "scales",
}


class Shown(Callback):
    """Shows each step."""

    def on_step(self, step: Step, seconds: float) -> None:
        click.echo(f"step {step.number}: loss {step.loss:.3f}, {seconds:.1f} s", err=True)


@click.command()
@click.option("--train", "train_rows", type=click.Path(path_type=Path), required=True)
@click.option("--test", "test_rows", type=click.Path(path_type=Path), required=True)
@click.option("--format", "form", default="int4", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/quantized.json.")
def main(
    train_rows: Path,
    test_rows: Path,
    form: str,
    threads: int | None,
    as_json: bool,
    keep: bool,
) -> None:
    """Tune the scales of a quantised SmolLM2 and measure what it gains."""
    with tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch:
        bundle = Path(scratch) / f"smollm2-{form}.edgezo"
        quantize_bundle(default_model(click.echo), bundle, form)
        model = load(bundle, tune=TUNING["tune"], threads=threads)
        settings = RunSettings(
            bundle=str(bundle),
            data=str(train_rows),
            eval_data=str(test_rows),
            out=str(Path(scratch) / "run"),
            task="classify",
            template=TEMPLATE,
            label_words=WORDS,
            threads=threads,
            **TUNING,
        )
        data = prepare(model, settings)
        before = evaluate(model, data.task, data.held_out)
        started = time.perf_counter()
        after = train(settings, Shown(), model).metrics
        assert after is not None
        seconds = time.perf_counter() - started
    results = {
        "format": form,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "examples": before.examples,
        "seconds": round(seconds, 1),
        "forwards": TUNING["steps"] * TUNING["samples"],
        "tuning": TUNING,
    }
    if keep:
        record("quantized", results, ())
    click.echo(json.dumps(results) if as_json else results)


if __name__ == "__main__":
    main()
