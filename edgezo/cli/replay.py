"""`edgezo replay`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgezo.cli.adapters import add_adapter
from edgezo.cli.common import as_json, device_option, print_json, subcommand, threads_option
from edgezo.replay import replay


@subcommand("edgezo replay runs/first --base smollm2.edgezo --out tuned.edgezo")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), required=True, help="The base bundle.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The tuned bundle, or adapter."
)
@click.option("--at-step", type=click.IntRange(0), help="Stop after this step.  [default: all]")
@device_option
@threads_option
@as_json
def command(
    run: Path,
    base: Path,
    out: Path,
    at_step: int | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Rebuild the tuned weights of RUN, a run folder or a journal file, as a bundle.

    The weights of an adapter's run are its adapter, as PEFT loads it. Needs neither data nor
    forward passes: base and journal give the same bytes on every machine.
    """
    started = time.perf_counter()
    replayed = replay(run, base, out, at_step, device or "cpu", threads, add_adapter)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(
            {
                "out": str(out),
                "steps": replayed.steps,
                "torn_bytes": replayed.torn,
                "sha256": replayed.sha256,
                "seconds": round(seconds, 2),
            }
        )
        return
    if replayed.torn:
        click.echo(f"the journal ends in an unfinished record ({replayed.torn} bytes, left out)")
    click.echo(f"replayed {replayed.steps} steps in {seconds:.1f} s; the weights are in {out}")
