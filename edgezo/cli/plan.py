"""`edgezo plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgezo.cli.adapters import adapter_options
from edgezo.cli.common import (
    as_json,
    label_words_option,
    megabytes,
    memory_option,
    print_json,
    prompt_option,
    subcommand,
    task_option,
    template_option,
    threads_option,
    to_stderr,
)
from edgezo.plan.amounts import AUTO, parse_memory, parse_time
from edgezo.plan.planner import Alternative, Limits, make_plan
from edgezo.settings import Settings, merged, source_of

_PICKED = ("method", "predicted_peak_rss_mb", "predicted_seconds")


@subcommand("edgezo plan smollm2.edgezo --data train.jsonl --memory 700MB --time 10m")
@click.argument("bundle", required=False)
@click.option("--data", help="Training rows, as for `edgezo train`.")
@click.option("--eval-data", help="Held-out rows, likewise.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML with settings; flags win.")
@prompt_option
@task_option
@template_option
@label_words_option
@click.option("--tune", help="What is tuned, as for `edgezo train`.")
@adapter_options
@click.option("--steps", type=int, help="Of the run.  [default: what is usual for a method]")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 16]")
@memory_option
@click.option("--time", metavar="TIME", help="Most time that the run may take: 90s, 10m, 2h.")
@threads_option
@as_json
def command(
    config: Path | None, memory: str | None, time: str | None, as_json: bool, **flags: Any
) -> None:
    """Predict memory and time of every method on this machine, and pick one.

    Memory is the peak of the whole process, weights and Python included; by default what is free
    is the limit. Each family of methods is rehearsed for a step or two, in a process of its own.
    """
    limits = Limits(parse_memory(memory or AUTO), None if time is None else parse_time(time))
    given = merged({"out": "plan", **flags}, config)
    settings = Settings.from_dict(given, source_of(config))
    steps = settings.steps if "steps" in given else None
    plan = make_plan(settings, limits, steps, to_stderr)
    pick = plan.pick
    if as_json:
        picked: dict[str, Any] = pick.to_json() if pick else {}
        fields: dict[str, Any] = dict.fromkeys(_PICKED) | picked
        fields.pop("fits", None)
        fields["limit_mb"] = megabytes(limits.memory)
        fields["alternatives"] = [each.to_json() for each in plan.alternatives]
        fields["unavailable"] = [{"method": n, "why": w} for n, w in plan.unavailable.items()]
        print_json(fields)
        return
    click.echo(f"{'method':16} {'peak MB':>8} {'time':>8} {'steps':>6} {'rows':>5}  fits")
    for each in plan.alternatives:
        click.echo(_line(each, settings.rows))
    for why in dict.fromkeys(plan.unavailable.values()):
        names = ", ".join(name for name, other in plan.unavailable.items() if other == why)
        click.echo(f"not {names}: {why}")
    click.echo(
        f"take --method {pick.method} --steps {pick.steps}, within {megabytes(limits.memory):g} MB"
        if pick
        else plan.nothing_fits(limits)
    )


def _line(each: Alternative, rows: int) -> str:
    minutes, seconds = divmod(round(each.seconds), 60)
    peak = each.peak / 1e6
    return (
        f"{each.method:16} {peak:8.0f} {minutes:5d}:{seconds:02d} {each.steps:6d} "
        f"{each.micro_batch or rows:5d}  {'yes' if each.fits else 'no'}"
    )
