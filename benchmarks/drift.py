"""What perturbing weights and taking them back leaves behind, step after step.

python benchmarks/drift.py [--model smollm2] [--device cuda] [--steps 20000] [--json] [--record]

Steps of MeZO whose slope is zero: every weight should be where it was. What it is off by comes from
rounding alone, and is recorded over the root mean square of all weights.
"""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np
from card import opened
from recording import record

from edgezo.cli.bench import bundle_for
from edgezo_runtime import dtypes
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter, open_bundle
from edgezo_runtime.devices import Device
from edgezo_runtime.journal import Record
from edgezo_runtime.methods import make
from edgezo_runtime.weights import Weights

DTYPES = (dtypes.FLOAT32, dtypes.FLOAT16)


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a float32 bundle's path.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/drift.json.")
def main(model: str, device: str, steps: int, as_json: bool, keep: bool) -> None:
    """Measure how far weights drift in float32 and in float16."""
    place = opened(device)
    folder = bundle_for(model)
    weights = Weights(open_bundle(folder))
    weights.load()
    results: dict[str, Any] = {
        "model": folder.name.removesuffix(".edgezo"),
        "device": device,
        "steps": steps,
    }
    for dtype in DTYPES:
        results[dtype.name] = drift(weights.arena, dtype, steps, place)
        click.echo(f"{dtype.name}: {results[dtype.name]:.3g} of the weights' root mean square")
    if keep:
        record("drift", results)
    if as_json:
        click.echo(json.dumps(results))


def drift(model: Arena, dtype: dtypes.Dtype, steps: int, device: Device) -> float:
    """Returns how far `steps` steps of slope zero leave the weights from where they were."""
    parameters = [Parameter(p.name, p.shape, dtype.name, p.kind) for p in model.parameters]
    arena = Arena(parameters, device)
    for name, view in arena.views.items():
        view[...] = device.put(model.views[name].astype(dtype.storage))
    method = make("mezo", arena, 0, {})
    for number in range(1, steps + 1):
        method.replay(number, Record((np.float32(0),), np.float32(0)))
    squares = np.zeros(2)
    for name, view in arena.views.items():
        first = model.views[name].astype(dtype.storage).astype(np.float64)
        squares += np.square(device.host(view) - first).sum(), np.square(first).sum()
    return float(np.sqrt(squares[0] / squares[1]))


if __name__ == "__main__":
    main()
