"""Sweeps, steps and memory on an NVIDIA card, beside PyTorch on the same weights.

python benchmarks/cuda.py [--model smollm2] [--opt FOLDER ...] [--json] [--record]

PyTorch runs the published MeZO loop, and once more with edgezo's own sweep over its parameters, so
that what the runtime gains is seen apart from what the noise does. All take turns in one process,
for about as long; every figure is a median. PyTorch's models have the same weights. Folders of
`weightless.py` are filled with random weights; what two copies of leaves no room for runs without
PyTorch. What does not fit at all is measured by `offload.py`.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from card import described, filled, opened, row, tell, token_batch, used
from published_loop import EPS, published_step
from recording import record_rows

from edgezo.bench.step import random_batch
from edgezo.cli.bench import bundle_for
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import Device
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.methods import make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe

SWEPT_BYTES = 1 << 31
TERMS = [[Term(Direction(0, 1, i), np.float32(EPS)) for i in range(count)] for count in (1, 2)]
SHAPES = ((16, 64), (1, 32))
OPT_SHAPES = ((16, 128), (8, 512))
LARGE_SHAPES = ((1, 128), (4, 512))  # of what has no room for PyTorch beside it
STEPS = 4  # timed at once: each is queued while the card is busy with the one before
PASSES = 2 * STEPS  # likewise: the longer a card works, the slower it is
SWEEPS = 8  # and copies; a single one would be timed with its launch by the host


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option(
    "--opt",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="What weightless.py made.",
)
@click.option("--rounds", type=click.IntRange(3), default=15, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as one line of JSON last.")
@click.option("--record", "keep", is_flag=True, help="Write into benchmarks/results/cuda.json.")
def main(model: str, folders: tuple[Path, ...], rounds: int, as_json: bool, keep: bool) -> None:
    """Measure edgezo on the card."""
    card: Any = opened("cuda")
    torch: Any = importlib.import_module("torch")
    found = described(card) | {"card": torch.cuda.get_device_name(0)}
    runs = [lambda: sweeps(card, rounds), lambda: classifying(bundle_for(model), rounds)]
    runs += [lambda folder=folder: modelling(folder, rounds) for folder in folders]
    rows: list[dict[str, Any]] = []
    for run in runs:
        for one in run():
            rows.append(one | found)
            tell(one)
        card.xp.get_default_memory_pool().free_all_blocks()
    if keep:
        record_rows("cuda", rows)
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
        runs = [partial(cupy.copyto, whole[half:], whole[:half])]
        runs += [partial(arena.add, *terms) for terms in TERMS]
        copy, *swept = _card_times(card, runs, rounds)
        for terms, sweep in zip(TERMS, swept, strict=True):
            shape_text = f"{dtype}, 2 GiB, {len(terms)} term" + "s" * (len(terms) > 1)
            rows.append(row("sweep_bandwidth_ratio", shape_text, 2 * copy / sweep, "", None))
        del arena, buffer, whole, runs
    return rows


def classifying(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Returns the times of MeZO steps on one answer a row, float32."""
    model = load(folder, device="cuda")
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    peer = Peer(
        model, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    )
    name = folder.name.removesuffix(".edgezo")
    rows = []
    for shape in SHAPES:
        batch = random_batch(model.bundle, *shape)
        rows += compared(
            f"{name}_", f"{shape[0]} x {shape[1]}, float32", model, batch, peer, rounds
        )
    return rows


def modelling(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Returns the times of MeZO steps on the loss of every token, float16, random weights."""
    card: Any = opened("cuda")
    bare = used(card)
    model = filled(folder, card)
    weights = model.weights
    name = folder.name.split(".graphs")[0]
    free = card.xp.cuda.Device().mem_info[0]
    large = free < 1.5 * weights.arena.nbytes
    peer = None if large else Peer(model, opt_model(model))
    rows: list[dict[str, Any]] = []
    for shape in LARGE_SHAPES if large else OPT_SHAPES:
        batch = token_batch(model, *shape)
        text = f"{shape[0]} x {shape[1]}, float16"
        if peer is None:
            forward, step, ratio = alone(model, batch, rounds)
            rows += [
                row(f"{name}_step_s", text, step / 1e3, "s", None),
                row(f"{name}_step_ratio", text, step / (2 * forward), "", None),
                row("memory_ratio", f"{name}, {text}", ratio, "", None),
                row(f"{name}_peak_gib", text, (used(card) - bare) / 2**30, "GiB", None),
            ]
        else:
            rows += compared(f"{name}_", text, model, batch, peer, rounds)
    return rows


def opt_model(model: Model) -> Any:
    """Returns PyTorch's OPT of the shapes of `model`; `Peer` gives it the weights."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    shapes = {p.name: p.shape for p in model.bundle.manifest.parameters}
    vocabulary, hidden = shapes["model.decoder.embed_tokens.weight"]
    layers = sum(name.endswith("fc1.weight") for name in shapes)
    config = transformers.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        ffn_dim=4 * hidden,
        max_position_embeddings=model.context_length,
    )
    with torch.device("cuda"):
        return transformers.OPTForCausalLM(config).to(torch.float16)


def compared(
    name: str, shape: str, model: Model, batch: Any, peer: Peer, rounds: int
) -> list[dict[str, Any]]:
    """Returns the times of forward passes and steps of edgezo and of PyTorch, interleaved."""
    loss, step = _ours(model, batch)
    peer.use(batch)
    runs = [(loss, PASSES), (step, STEPS), (peer.loss, PASSES), (peer.step, STEPS)]
    runs.append((peer.step_with_our_sweep, STEPS))
    forward, ours, theirs, published, mixed = _interleaved(model, runs, rounds)
    return [
        row(f"{name}forward_ms", shape, forward, "ms", theirs),
        row(f"{name}step_ms", shape, ours, "ms", published),
        row(f"{name}step_ms_with_our_sweep", shape, ours, "ms", mixed),
        row(f"{name}step_ratio", shape, ours / (2 * forward), "", published / (2 * theirs)),
        row(f"{name}speedup", shape, published / ours, "x", None),
        row(f"{name}speedup_with_our_sweep", shape, mixed / ours, "x", None),
    ]


def alone(model: Model, batch: Any, rounds: int) -> tuple[float, float, float]:
    """Returns milliseconds of a forward pass and of a step, and their memory's ratio."""
    loss, step = _ours(model, batch)
    for _ in range(3):
        loss()
    inference = used(model.device)
    for _ in range(3):
        step()
    tuning = used(model.device)
    forward, ours = _interleaved(model, [(loss, PASSES), (step, STEPS)], rounds)
    return forward, ours, tuning / inference


def _ours(model: Model, batch: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    method = make("mezo", model.arena, 0, {})
    tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))

    def step() -> None:
        tuning.start(BatchLoss(model, batch), np.float32(0))

    return lambda: model.loss(batch), step


def _interleaved(
    model: Model, runs: Sequence[tuple[Callable[[], object], int]], rounds: int
) -> list[float]:
    """Returns the median milliseconds of each of `runs`, done so many times at once."""
    card = model.device.xp.cuda.Device()
    for run, _ in [*runs] * 3:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for index, (run, count) in enumerate(runs):
            model.weights.settle()  # the way back from a step is not a forward pass's
            card.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                run()
            card.synchronize()
            times[index].append(1e3 * (time.perf_counter() - began) / count)
    return [median(each) for each in times]


class Peer:
    """The same model in PyTorch, with the published loop.

    Args:
        model: whose weights it gets.
        theirs: PyTorch's model of the same shapes.
    """

    def __init__(self, model: Model, theirs: Any) -> None:
        torch: Any = importlib.import_module("torch")
        self._torch = torch
        self._model = theirs.cuda().eval()
        self._parameters = dict(self._model.named_parameters())
        dtype = model.arena.parameters[0].dtype
        shapes = [Parameter(n, tuple(p.shape), dtype, "") for n, p in self._parameters.items()]
        self._arena = Arena(shapes, model.device)
        for name, parameter in self._parameters.items():
            self._arena.views[name][...] = model.arena.views[name]
            parameter.data = torch.from_dlpack(self._arena.views[name])
        self._number = 0

    def use(self, batch: Any) -> None:
        """Takes the batch that edgezo has."""
        torch = self._torch
        names = ("input_ids", "attention_mask", "positions", "targets", "candidates")
        self._ids, self._mask, self._positions, self._targets, self._candidates = (
            torch.from_numpy(getattr(batch, name)).cuda() for name in names
        )
        labels = getattr(batch.objective, "labels", None)
        self._labels = None if labels is None else torch.from_numpy(np.asarray(labels)).cuda()

    def loss(self) -> float:
        """Returns the batch's mean loss, from the answers' positions alone."""
        torch = self._torch
        entropy = torch.nn.functional.cross_entropy
        with torch.inference_mode():
            body = getattr(self._model.model, "decoder", self._model.model)
            hidden = body(input_ids=self._ids, attention_mask=self._mask)[0]
            logits = self._model.lm_head(hidden.flatten(0, 1)[self._positions])
            if self._labels is None:
                return entropy(logits.float(), self._targets).item()
            return entropy(logits[:, self._candidates].float(), self._labels).item()

    def step(self) -> None:
        """Takes the published step, which leaves the weights as they are but for rounding."""
        self._number += 1
        published_step([*self._parameters.items()], self._number, self.loss, 0.0)

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


def _card_times(card: Device, runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Returns the median milliseconds that each of `runs`, interleaved, keeps the card busy."""
    cupy = card.xp
    stream = card.stream  # type: ignore[attr-defined]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 2):
        for run, kept in zip(runs, times, strict=True):
            began, ended = cupy.cuda.Event(), cupy.cuda.Event()
            with stream:
                run()  # while the card does it, the others are queued
                began.record(stream)
                for _ in range(SWEEPS):
                    run()
                ended.record(stream)
            ended.synchronize()
            kept.append(cupy.cuda.get_elapsed_time(began, ended) / SWEEPS)
    return [median(each[2:]) for each in times]


if __name__ == "__main__":
    main()
