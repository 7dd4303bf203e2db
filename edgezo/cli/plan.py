"""`edgezo plan`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from edgezo.cli.common import as_json, megabytes, memory_option, print_json, subcommand, to_stderr
from edgezo.cli.run_options import run_options
from edgezo.plan.amounts import AUTO, parse_memory, parse_time
from edgezo.plan.planner import Alternative, Limits, Plan, make_plan
from edgezo.settings import Settings

_PICKED = ("method", "predicted_peak_rss_mb", "predicted_seconds")


@subcommand("edgezo plan smollm2.edgezo --data train.jsonl --memory 700MB --time 10m")
@click.argument("bundle", required=False)
@run_options(but=("out", "method", "options", "lr", "schedule", "eps", "samples", "keep"))
@memory_option
@click.option("--time", metavar="TIME", help="Most time that the run may take: 90s, 10m, 2h.")
@as_json
def command(
    config: Path | None, memory: str | None, time: str | None, as_json: bool, **flags: Any
) -> None:
    """Predict memory and time of every method on this machine, and pick one.

    Memory is the peak of the whole process, weights and Python included; its limit is what is free
    if --memory says nothing else. One method of each family is rehearsed for a few steps, in a
    process of its own. Without --tune methods tune all weights, and adamw also LoRA or the upper
    quarter of the layers.
    """
    limits = Limits(parse_memory(memory or AUTO), None if time is None else parse_time(time))
    plan = make_plan(Settings.resolve({"out": "plan", **flags}, config), limits, to_stderr)
    if as_json:
        print_json(_fields(plan, limits))
        return
    click.echo(f"{'method':16} {'peak MB':>8} {'time':>8} {'steps':>6} {'rows':>5}  fits  tune")
    for each in plan.alternatives:
        click.echo(_line(each))
    for tune, why in dict.fromkeys((each.tune, each.why) for each in plan.unavailable):
        same = [each.method for each in plan.unavailable if (each.tune, each.why) == (tune, why)]
        click.echo(f"not {', '.join(same)} on {tune}: {why}")
    pick = plan.pick
    if pick is None:
        click.echo(plan.nothing_fits(limits))
        return
    within = f"within {megabytes(limits.memory):g} MB"
    click.echo(f"take {_flags(pick)} and --steps {pick.run.steps}, {within}")


def _fields(plan: Plan, limits: Limits) -> dict[str, Any]:
    picked: dict[str, Any] = dict.fromkeys(_PICKED)
    if plan.pick:
        picked |= plan.pick.to_json()
        del picked["fits"]
    return {
        **picked,
        "limit_mb": megabytes(limits.memory),
        "alternatives": [each.to_json() for each in plan.alternatives],
        "unavailable": [dataclasses.asdict(each) for each in plan.unavailable],
    }


def _line(each: Alternative) -> str:
    minutes, seconds = divmod(round(each.seconds), 60)
    return (
        f"{each.title:16} {each.peak / 1e6:8.0f} {minutes:5d}:{seconds:02d} {each.run.steps:6d} "
        f"{each.run.rows:5d}  {'yes' if each.fits else 'no':4}  {each.run.tune}"
    )


def _flags(pick: Alternative) -> str:
    """Returns what has to be given for the run that was picked."""
    if pick.recipe:
        return "no --method"
    flags = {"--method": pick.run.method, "--tune": pick.run.tune}
    if pick.run.prefix_cache:
        flags["--prefix-cache"] = pick.run.prefix_cache
    return " ".join(f"{flag} {value}" for flag, value in flags.items())
