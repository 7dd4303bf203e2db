"""Sweeps, steps and memory on an NVIDIA card, beside PyTorch on the same weights.

python benchmarks/cuda.py [--model smollm2] [--json] [--record]

PyTorch runs the published MeZO loop, and once more with edgezo's own sweep over its parameters, so
that what the runtime gains is seen apart from what the noise does. All take turns in one process;
every figure is a median. PyTorch's model is the bundle itself, which is a Hugging Face checkpoint.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from recording import record

from edgezo.bench.machine import commit, versions
from edgezo.bench.step import random_batch
from edgezo.cli.bench import bundle_for
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import Device, open_device
from edgezo_runtime.methods import make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe

SWEPT_BYTES = 1 << 31
EPS = 1e-3
SHAPES = ((16, 64), (1, 32))


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option("--rounds", type=click.IntRange(3), default=15, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as one line of JSON last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/cuda.json.")
def main(model: str, rounds: int, as_json: bool, keep: bool) -> None:
    """Measure edgezo on the card."""
    card = open_device("cuda")
    torch: Any = importlib.import_module("torch")
    found = {
        "card": torch.cuda.get_device_name(0),
        "driver": _driver(card),
        "versions": versions("torch", "transformers", "cupy-cuda13x"),
        "commit": commit("benchmarks/results"),
    }
    rows = [row | found for row in (*sweeps(card, rounds), *steps(bundle_for(model), rounds))]
    for row in rows:
        peer = "" if row["peer_value"] is None else f" (peer {row['peer_value']:g})"
        click.echo(f"{row['figure']} {row['shape']}: {row['value']:g} {row['unit']}{peer}")
    if keep:
        record("cuda", rows)
    if as_json:
        click.echo(json.dumps(rows))


def sweeps(card: Device, rounds: int) -> list[dict[str, Any]]:
    """Returns how close a sweep comes to the bandwidth of a copy within the card's memory."""
    cupy = card.xp
    rows = []
    for dtype, size in (("float16", 2), ("bfloat16", 2), ("float32", 4)):
        shape = (SWEPT_BYTES // size // 4096, 4096)
        arena = Arena([Parameter("w", shape, dtype, "linear")], card)
        (buffer,) = arena.buffers.values()
        whole = buffer.view(np.uint8)
        half = whole.size // 2
        # Half of the memory is read and the other half written; a sweep reads and writes all.
        copy = _card_time(card, lambda w=whole, h=half: cupy.copyto(w[h:], w[:h]), rounds)
        for terms in (1, 2):
            steps = [Term(Direction(0, 1, i), np.float32(EPS)) for i in range(terms)]
            sweep = _card_time(card, lambda a=arena, t=steps: a.add(*t), rounds)
            shape_text = f"{dtype}, 2 GiB, {terms} term" + "s" * (terms > 1)
            rows.append(_row("sweep_bandwidth_ratio", shape_text, 2 * copy / sweep, "", None))
        del arena, buffer, whole
    return rows


def steps(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Returns the times of MeZO steps, of edgezo and of PyTorch, interleaved."""
    model = load(folder, device="cuda")
    peer = Peer(model)
    rows = []
    for batch_rows, tokens in SHAPES:
        batch = random_batch(model.bundle, batch_rows, tokens)
        peer.use(batch)
        method = make("mezo", model.arena, 0, {})
        tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))

        def loss(batch: Any = batch) -> float:
            return model.loss(batch)

        def step(tuning: Tuning = tuning, loss: Callable[[], float] = loss) -> object:
            return tuning.step(loss, np.float32(0))

        model.weights.settle()
        runs = (loss, step, peer.loss, peer.step, peer.step_with_our_sweep)
        for run in runs:
            run()
            run()
        times: dict[int, list[float]] = {index: [] for index in range(len(runs))}
        for _ in range(rounds):
            for index, run in enumerate(runs):
                model.device.xp.cuda.Device().synchronize()
                began = time.perf_counter()
                run()
                model.device.xp.cuda.Device().synchronize()
                times[index].append(1e3 * (time.perf_counter() - began))
        forward, ours, theirs, published, mixed = (median(times[i]) for i in range(len(runs)))
        shape = f"{batch_rows} x {tokens}, float32"
        name = folder.name.removesuffix(".edgezo")
        rows += [
            _row(f"{name}_forward_ms", shape, forward, "ms", theirs),
            _row(f"{name}_step_ms", shape, ours, "ms", published),
            _row(f"{name}_step_ms_with_our_sweep", shape, ours, "ms", mixed),
            _row(f"{name}_step_ratio", shape, ours / (2 * forward), "", published / (2 * theirs)),
            _row(f"{name}_speedup", shape, published / ours, "x", None),
            _row(f"{name}_speedup_with_our_sweep", shape, mixed / ours, "x", None),
        ]
    return rows


class Peer:
    """The same model in PyTorch, with the published loop."""

    def __init__(self, model: Model) -> None:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        folder = model.bundle.folder
        self._torch = torch
        causal = transformers.AutoModelForCausalLM
        self._model = causal.from_pretrained(folder, dtype=torch.float32).cuda().eval()
        self._parameters = dict(self._model.named_parameters())
        shapes = [Parameter(n, tuple(p.shape), "float32", "") for n, p in self._parameters.items()]
        self._arena = Arena(shapes, model.device)
        for name, parameter in self._parameters.items():
            view = torch.from_dlpack(self._arena.views[name])
            view.copy_(parameter.data)
            parameter.data = view
        self._number = 0

    def use(self, batch: Any) -> None:
        """Takes the batch that edgezo has."""
        torch = self._torch
        names = ("input_ids", "attention_mask", "candidates")
        self._ids, self._mask, self._candidates = (
            torch.from_numpy(getattr(batch, name)).cuda() for name in names
        )
        self._labels = torch.from_numpy(np.asarray(batch.objective.labels)).cuda()

    def loss(self) -> float:
        """Returns the batch's mean loss, from each row's last position."""
        torch = self._torch
        with torch.inference_mode():
            hidden = self._model.model(input_ids=self._ids, attention_mask=self._mask)[0]
            logits = self._model.lm_head(hidden[:, -1])[:, self._candidates]
            return torch.nn.functional.cross_entropy(logits.float(), self._labels).item()

    def step(self) -> None:
        """Takes the published step, but in place: `torch.normal` for each parameter, four times."""
        torch = self._torch
        self._number += 1

        def move(scale: float) -> None:
            torch.manual_seed(self._number)
            for parameter in self._parameters.values():
                data = parameter.data
                z = torch.normal(0, 1, data.size(), device=data.device, dtype=data.dtype)
                data.add_(z, alpha=scale)

        move(EPS)
        higher = self.loss()
        move(-2 * EPS)
        slope = (higher - self.loss()) / (2 * EPS)
        move(EPS)
        move(-0.0 * slope)

    def step_with_our_sweep(self) -> None:
        """Takes the step with edgezo's sweeps over PyTorch's parameters."""
        self._number += 1
        direction = Direction(0, self._number)

        def move(scale: float) -> None:
            self._arena.add(Term(direction, np.float32(scale)))

        move(EPS)
        higher = self.loss()
        move(-2 * EPS)
        slope = (higher - self.loss()) / (2 * EPS)
        move(EPS - 0.0 * slope)


def _card_time(card: Device, run: Callable[[], object], rounds: int) -> float:
    """Returns the median milliseconds that `run` keeps the card busy."""
    cupy = card.xp
    stream = card.stream  # type: ignore[attr-defined]
    times = []
    for _ in range(rounds + 2):
        began, ended = cupy.cuda.Event(), cupy.cuda.Event()
        with stream:
            began.record(stream)
            run()
            ended.record(stream)
        ended.synchronize()
        times.append(cupy.cuda.get_elapsed_time(began, ended))
    return median(times[2:])


def _row(figure: str, shape: str, value: float, unit: str, peer: float | None) -> dict[str, Any]:
    rounded = None if peer is None else round(peer, 4)
    return {
        "figure": figure,
        "shape": shape,
        "value": round(value, 4),
        "unit": unit,
        "peer_value": rounded,
    }


def _driver(card: Device) -> str:
    version = card.xp.cuda.runtime.driverGetVersion()
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


if __name__ == "__main__":
    main()
