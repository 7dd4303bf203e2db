"""What the benchmarks of cards share: models of random weights, batches, and rows of results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgezo.bench.machine import commit, versions
from edgezo.cli.bench import bundle_for
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import Bundle, Manifest
from edgezo_runtime.devices import Device, open_device
from edgezo_runtime.model import Model
from edgezo_runtime.select import FULL
from edgezo_runtime.text import TOKENIZER
from edgezo_runtime.weights import Weights


def opened(name: str) -> Device:
    """Returns the device called `name`."""
    here = Path(__file__).resolve().parent
    # CuPy imports a package that is called as cuda.py is.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    return open_device(name)


def described(card: Any) -> dict[str, Any]:
    """Returns what was run, for each row of results."""
    version = card.xp.cuda.runtime.driverGetVersion()
    name = card.xp.cuda.runtime.getDeviceProperties(card.index)["name"].decode()
    found = versions("onnxruntime-gpu", "torch", "transformers", "cupy-cuda13x")
    found.pop("onnxruntime", None)  # beside the build for cards, it is not what runs
    return {
        "card": name,
        "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
        "versions": found,
        "commit": commit("benchmarks/results"),
    }


def filled(folder: Path, device: Device) -> Model:
    """Returns a model of `weightless.py` with random weights."""
    if not (folder / TOKENIZER).exists():  # nothing is read with it, but a model has one
        shutil.copyfile(bundle_for("smollm2") / TOKENIZER, folder / TOKENIZER)
    path = folder / "edgezo.json"
    manifest = Manifest.from_json(path.read_text(encoding="utf-8"), path)
    weights = Weights(Bundle(folder, manifest), FULL, device)
    fill(weights, getattr(device, "card", device))
    return Model(weights)


def fill(weights: Weights, card: Any) -> None:
    """Draws weights at random on the card: norms about one, the others about 0.02."""
    cupy = card.xp
    generator = cupy.random.default_rng(0)
    with card.stream:
        for parameter in weights.arena.parameters:
            view = weights.arena.views[parameter.name]
            flat = view.reshape(-1)
            for start in range(0, flat.size, 1 << 26):
                piece = flat[start : start + (1 << 26)]
                drawn = generator.standard_normal(piece.size, dtype=np.float32)
                drawn = 0.02 * drawn + (parameter.kind == "norm" and view.ndim == 1)
                drawn = drawn.astype(piece.dtype)
                piece[...] = cupy.asnumpy(drawn) if isinstance(piece, np.ndarray) else drawn
    card.stream.synchronize()
    cupy.get_default_memory_pool().free_all_blocks()


def token_batch(model: Model, rows: int, tokens: int) -> Batch:
    """Returns random tokens, each of which is to be predicted from those before it."""
    vocabulary = max(p.shape[0] for p in model.bundle.manifest.parameters if p.kind == "embedding")
    ids = np.random.default_rng(0).integers(5, vocabulary, (rows, tokens))
    places = np.arange(rows * tokens).reshape(rows, tokens)[:, :-1].ravel()
    targets = ids[:, 1:].ravel()
    return Batch(ids, np.ones_like(ids), places, targets, np.zeros(1, np.int64), TokenLoss(rows))


def used(card: Any) -> int:
    """Returns the card's memory in use, in bytes; ONNX Runtime keeps what it once had."""
    free, total = card.xp.cuda.Device().mem_info
    return total - free


def row(figure: str, shape: str, value: float, unit: str, peer: float | None) -> dict[str, Any]:
    rounded = None if peer is None else round(peer, 4)
    return {
        "figure": figure,
        "shape": shape,
        "value": round(value, 4),
        "unit": unit,
        "peer_value": rounded,
    }


def tell(one: dict[str, Any]) -> None:
    """Prints a row."""
    peer = "" if one["peer_value"] is None else f" (peer {one['peer_value']:g})"
    click.echo(f"{one['figure']} {one['shape']}: {one['value']:g} {one['unit']}{peer}")
