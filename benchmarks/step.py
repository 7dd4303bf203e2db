"""A tuning step against plain inference, for both models: `edgezo bench step`, recorded.

python benchmarks/step.py [--json] [--record]
"""

from __future__ import annotations

import json

import click
from recording import record

from edgezo.bench.step import LEAST_ROUNDS, bench_step
from edgezo.cli.bench import bundle_for, show_round

MODELS = ("smollm2", "opt-125m")


@click.command()
@click.option("--repeats", type=click.IntRange(LEAST_ROUNDS), default=9, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/step.json.")
def main(repeats: int, as_json: bool, keep: bool) -> None:
    """Measure a tuning step of 16 x 64 tokens against plain inference."""
    results = {}
    for model in MODELS:
        results[model] = bench_step(bundle_for(model), rounds=repeats, progress=show_round)
        if not as_json:
            figures = ("ratio", "sweep_ratio", "memory_ratio")
            click.echo(f"{model}: " + ", ".join(f"{f} {results[model][f]:.3f}" for f in figures))
    if keep:
        record("step", results)
    if as_json:
        click.echo(json.dumps(results))


if __name__ == "__main__":
    main()
