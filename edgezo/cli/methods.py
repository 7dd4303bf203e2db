"""`edgezo methods`."""

from __future__ import annotations

import json

import click

from edgezo.cli.common import as_json, subcommand
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.methods import METHODS, make

SIDE, LAYERS = 1024, 2  # of the matrices whose state is stated


@subcommand("edgezo methods --json")
@as_json
def command(as_json: bool) -> None:
    """List the tuning methods: paper, forward passes per step, extra memory, defaults.

    State is in bytes for each trained weight, of matrices of 1024 x 1024.
    """
    names = (f"layers.{i}.weight" for i in range(LAYERS))
    arena = Arena([Parameter(name, (SIDE, SIDE), "float32", "linear") for name in names])
    methods = [make(name, arena, 0, {}) for name in METHODS]
    rows = [
        {
            "name": method.name,
            "paper": method.paper,
            "forwards": method.forwards,
            "state_bytes": round(method.state_bytes / (LAYERS * SIDE**2), 4),
            "defaults": {"lr": method.lr, **method.settings()},
        }
        for method in methods
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        defaults = ", ".join(f"{key} {value}" for key, value in row["defaults"].items())
        passes = f"{row['forwards']} forward pass{'es' if row['forwards'] != 1 else ''}"
        click.echo(
            f"{row['name']}  {passes} a step, {row['state_bytes']:g} bytes of "
            f"state a weight; {defaults}; {row['paper']}"
        )
