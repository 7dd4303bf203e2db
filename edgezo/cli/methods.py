"""`edgezo methods`."""

from __future__ import annotations

import inspect
import json

import click

from edgezo.cli.common import as_json, subcommand
from edgezo_runtime.methods import METHODS


@subcommand("edgezo methods --json")
@as_json
def command(as_json: bool) -> None:
    """List the tuning methods: paper, forward passes per step, extra memory, defaults."""
    rows = []
    for method in METHODS.values():
        signature = inspect.signature(method.__init__).parameters
        defaults = {
            name: parameter.default
            for name, parameter in signature.items()
            if parameter.default is not inspect.Parameter.empty
        }
        rows.append(
            {
                "name": method.name,
                "paper": method.paper,
                "forwards": method.forwards,
                "state_bytes": 0,
                "defaults": defaults,
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        defaults = ", ".join(f"{key} {value}" for key, value in row["defaults"].items())
        click.echo(f"{row['name']}  {row['forwards']} forwards a step, {defaults}; {row['paper']}")
