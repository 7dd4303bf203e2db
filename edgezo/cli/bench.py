"""`edgezo bench`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from edgezo.bench.step import LEAST_ROUNDS, bench_step
from edgezo.cli.common import as_json, print_json, subcommand, threads_option
from edgezo.cli.models import default_model
from edgezo_runtime.select import FULL

RANDOM_MODELS = ("opt-125m",)
DEFAULT_MODEL = "smollm2"


@click.group(epilog="\b\nExample:\n  edgezo bench step --model smollm2 --batch 16 --tokens 64")
def command() -> None:
    """Measure edgezo on this machine."""


@subcommand("edgezo bench step --model smollm2 --batch 16 --tokens 64")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="smollm2, opt-125m (random weights), or the path of a bundle.",
)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Rows.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Per row.")
@click.option(
    "--repeats",
    type=click.IntRange(LEAST_ROUNDS),
    default=9,
    show_default=True,
    help="Turns that each process takes.",
)
@click.option("--tune", default=FULL, show_default=True, help="What a step changes, as for train.")
@threads_option
@as_json
def step(
    model: str,
    batch: int,
    tokens: int,
    repeats: int,
    tune: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure a tuning step against plain inference in ONNX Runtime's default session.

    Both have the same graph and weights, each in a process of its own; they take turns. Figures are
    medians; memory is counted above the process after its imports.
    """
    folder = bundle_for(model)
    fields = bench_step(
        folder,
        rows=batch,
        tokens=tokens,
        rounds=repeats,
        threads=threads,
        tune=tune,
        progress=show_round,
    )
    if as_json:
        print_json(fields)
        return
    click.echo(_table(fields))


command.add_command(step, "step")


def show_round(done: int, total: int) -> None:
    """Shows on a terminal how many rounds are done."""
    if sys.stderr.isatty():
        click.echo(f"\rround {done} of {total}", err=True, nl=done == total)


def bundle_for(model: str) -> Path:
    """Returns the bundle that `model` names; the two known ones are made if need be.

    Raises:
        InputError: the default model can be had neither from the cache nor from the network.
    """
    if model == DEFAULT_MODEL:
        return default_model(lambda line: click.echo(line, err=True))
    if model in RANDOM_MODELS:
        from edgezo.demo.default_model import cache_folder
        from edgezo_export.random_bundle import is_current, random_bundle

        folder = cache_folder() / f"{model}.edgezo"
        if not is_current(model, folder):
            shutil.rmtree(folder, ignore_errors=True)
            random_bundle(model, folder)
        return folder
    return Path(model)


def _table(fields: dict[str, Any]) -> str:
    """Returns the figures as a person reads them."""
    at = "{model}, {batch} x {tokens} tokens, {threads} threads, medians of {rounds} rounds"
    lines = (
        "a tuning step             {step_ms:9.1f} ms   {ratio:.2f} x two plain forward passes",
        "a forward pass of edgezo  {forward_ms:9.1f} ms",
        "a plain forward pass      {inference_forward_ms:9.1f} ms",
        "a sweep over all weights  {sweep_ms:9.1f} ms   {sweep_ratio:.2f} x w += c",
        "peak memory of tuning     {peak_rss_mb:9.1f} MB   {memory_ratio:.2f} x plain inference",
        "peak memory of inference  {inference_peak_rss_mb:9.1f} MB",
    )
    return "\n".join(line.format(**fields) for line in (at, *lines))
