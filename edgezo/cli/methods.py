"""`edgezo methods`."""

from __future__ import annotations

import json

import click

from edgezo.cli.common import as_json, subcommand
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.methods import METHODS, make
from edgezo_runtime.methods.first_order import FirstOrder


@subcommand("edgezo methods --json")
@as_json
def command(as_json: bool) -> None:
    """List the tuning methods: paper, forward passes per step, extra memory, defaults."""
    one_weight = Arena([Parameter("weight", (1,), "float32", "linear")])
    methods = [make(name, one_weight, 0, {}) for name in METHODS]
    rows = [
        {
            "name": method.name,
            "paper": method.paper,
            "forwards": method.forwards,
            "state_bytes": method.state_bytes if isinstance(method, FirstOrder) else 0,
            "defaults": method.settings(),
        }
        for method in methods
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        defaults = ", ".join(f"{key} {value}" for key, value in row["defaults"].items())
        click.echo(f"{row['name']}  {row['forwards']} forwards a step, {defaults}; {row['paper']}")
