"""`edgezo methods`."""

from __future__ import annotations

import json

import click

from edgezo.cli.common import as_json, subcommand
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.methods import METHODS, make

SIDE = 1024  # of the matrix whose state is stated


@subcommand("edgezo methods --json")
@as_json
def command(as_json: bool) -> None:
    """List the tuning methods: paper, forward passes per step, extra memory, defaults.

    State is in bytes for each trained weight, of a matrix of 1024 x 1024.
    """
    arena = Arena([Parameter("layers.0.weight", (SIDE, SIDE), "float32", "linear")])
    methods = [make(name, arena, 0, {}) for name in METHODS]
    rows = [
        {
            "name": method.name,
            "paper": method.paper,
            "forwards": method.forwards,
            "state_bytes": round(method.state_bytes / SIDE**2, 4),
            "defaults": {"lr": method.lr, **method.settings()},
        }
        for method in methods
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        defaults = ", ".join(f"{key} {value}" for key, value in row["defaults"].items())
        click.echo(
            f"{row['name']}  {row['forwards']} forwards a step, {row['state_bytes']:g} bytes of "
            f"state a weight; {defaults}; {row['paper']}"
        )
