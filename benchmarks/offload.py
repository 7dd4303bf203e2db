"""Steps with the weights in the host's memory, beside the same steps with them on the card.

python benchmarks/offload.py FOLDER [FOLDER ...] [--rounds N] [--json] [--record]

FOLDER is one of `weightless.py`; its weights are random float16 numbers, and the loss is that of
every token. The peer is the same run on the card alone, where it fits. No step is faster than one
copy of all weights over the bus, which is measured, too.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from card import described, filled, opened, row, tell, token_batch, used
from recording import record_rows

from edgezo_runtime.devices import Device
from edgezo_runtime.methods import make
from edgezo_runtime.model import Model
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe

SHAPES = ((1, 128), (4, 512))
ROOM = 1 << 32  # bytes of the card that a forward pass may need besides the weights


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", type=click.IntRange(1), default=8, show_default=True, help="Steps.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as one line of JSON last.")
@click.option("--record", "keep", is_flag=True, help="Write into benchmarks/results/offload.json.")
def main(folders: tuple[Path, ...], rounds: int, as_json: bool, keep: bool) -> None:
    """Measure steps on models that pass through the card."""
    card: Any = opened("cuda")
    found = described(card)
    rows: list[dict[str, Any]] = []
    for folder in folders:
        bare = used(card)
        resident = {}
        if weight_bytes(folder) + ROOM < card.xp.cuda.Device().mem_info[0]:
            resident = measured(filled(folder, card), bare, rounds)
            free(card)
        model = filled(folder, opened("cuda-offload"))
        streamed = measured(model, bare, rounds)
        name = folder.name.split(".graphs")[0]
        more = [row("offload_fetch_s", f"{name}, all weights", fetch_seconds(model), "s", None)]
        del model
        free(card)
        for shape, (seconds, peak, loss) in streamed.items():
            text = f"{name}, {shape}, float16"
            peers = resident.get(shape, (None, None, None))
            more += [
                row("offload_step_s", text, seconds, "s", peers[0]),
                row("offload_peak_gib", text, peak, "GiB", peers[1]),
                row("offload_last_loss", text, loss, "nats", peers[2]),
            ]
        for one in more:
            rows.append(one | found)
            tell(one)
    if keep:
        record_rows("offload", rows)
    if as_json:
        click.echo(json.dumps(rows))


def measured(model: Model, bare: int, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Returns, for each shape, seconds of a MeZO step, the card's peak in GiB and a loss."""
    card = getattr(model.device, "card", model.device)
    found = {}
    for shape in SHAPES:
        batch = token_batch(model, *shape)
        method = make("mezo", model.arena, 0, {})
        tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))

        def steps(count: int, batch: Any = batch, tuning: Tuning = tuning) -> float:
            taken = [
                tuning.step(lambda: model.loss(batch), np.float32(0)).loss for _ in range(count)
            ]
            card.xp.cuda.Device().synchronize()
            return taken[-1]

        steps(3)
        began = time.perf_counter()
        loss = steps(rounds)
        # A mean: the host's memory is not written in every step.
        seconds = (time.perf_counter() - began) / rounds
        found[f"{shape[0]} x {shape[1]}"] = (seconds, (used(card) - bare) / 2**30, loss)
    return found


def fetch_seconds(model: Model) -> float:
    """Returns how long it takes to copy all weights to the card, one stage after the other."""
    session: Any = model._session
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for number, stage in enumerate(session._stages):
            session._lane.fetch(number % len(session._lane.buffers), stage.weights.copied)
        session._lane.rest()
        times.append(time.perf_counter() - began)
    return min(times)


def weight_bytes(folder: Path) -> int:
    """Returns the bytes of the float16 weights of a folder."""
    manifest = json.loads((folder / "edgezo.json").read_text(encoding="utf-8"))
    return sum(2 * int(np.prod(p["shape"])) for p in manifest["parameters"])


def free(card: Device) -> None:
    """Gives back what the last model had on the card."""
    gc.collect()
    card.xp.get_default_memory_pool().free_all_blocks()


if __name__ == "__main__":
    main()
