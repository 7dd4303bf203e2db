"""Language models whose weights stay on the host, with a stand-in for the card."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import cuda_stand_in
import numpy as np
import pytest
from helpers_text import write_tokenizer
from tiny_checkpoints import VOCABULARY

from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import LEAN, open_bundle
from edgezo_runtime.devices import cuda
from edgezo_runtime.features import reveal
from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.methods import make
from edgezo_runtime.model import load
from edgezo_runtime.stages import cut
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights


def every_token(rows: int, length: int) -> Batch:
    ids = np.random.default_rng(rows).integers(5, VOCABULARY, (rows, length))
    places = np.arange(rows * length).reshape(rows, length)[:, :-1].ravel()
    targets = ids[:, 1:].ravel()
    return Batch(ids, np.ones_like(ids), places, targets, np.arange(3), TokenLoss(rows))


def _with_tokenizer(bundle: Path, folder: Path) -> Path:
    copied = folder / "model.edgezo"
    shutil.copytree(bundle, copied)
    kept = (copied / "config.json").read_bytes()
    write_tokenizer(copied)
    (copied / "config.json").write_bytes(kept)
    return copied


@pytest.mark.parametrize(("name", "tune"), [("opt", "full"), ("llama_untied", "upper")])
def test_steps_are_those_of_weights_on_the_card(
    bundle_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    tune: str,
) -> None:
    cuda_stand_in.install(monkeypatch)
    # The end that a card computes by itself rounds otherwise than the graph's.
    monkeypatch.setattr(cuda, "take_off", lambda model: None)
    folder = _with_tokenizer(bundle_folder(name), tmp_path)
    found = []
    for device in ("cuda", "cuda-offload"):
        model = load(folder, device=device, tune=tune)
        method = make("mezo", model.arena, 3, {})
        tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
        losses = []
        for rows in (2, 3, 2):
            loss = functools.partial(model.loss, every_token(rows, 9))
            losses.append(tuning.step(loss, np.float32(1e-3)).loss)
        losses.append(model.loss(every_token(4, 5)))
        weights = {n: array.tobytes() for n, array in model.weights.trained().items()}
        found.append((losses, tuning.journal.records, weights))
    assert found[0] == found[1]
    replayed = Weights(open_bundle(folder), tune)
    Tuning(replayed, MemoryJournal(tuning.journal.header)).catch_up(tuning.journal.records)
    assert {n: array.tobytes() for n, array in replayed.trained().items()} == found[1][2]


@pytest.mark.parametrize("device", ["cuda", "cuda-offload"])
def test_hidden_states_are_revealed(
    bundle_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device: str,
) -> None:
    """On devices that run the lean graph otherwise."""
    cuda_stand_in.install(monkeypatch)
    model = load(_with_tokenizer(bundle_folder("opt"), tmp_path), device=device)
    revealed, batch = reveal(model.bundle, "candidate_logits"), every_token(2, 5)
    with model.unbound():
        found = model.session(revealed.bundle, model.arena.views.keys()).forward(batch)
    assert found[revealed.read].shape == (len(batch.positions), 32)
    table = model.weights.trained()["model.decoder.embed_tokens.weight"]
    expected = found[revealed.read] @ table[batch.candidates].T
    np.testing.assert_allclose(found["candidate_logits"], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["opt", "llama_untied"])
def test_embedding_layers_and_head_are_stages(
    bundle_folder: Callable[[str], Path], name: str
) -> None:
    bundle = open_bundle(bundle_folder(name))
    sizes = {p.name: 4 * p.size for p in bundle.manifest.parameters}
    for graph in (None, LEAN):
        stages = cut(Graph(bundle.read_graph(*[graph] if graph else [])), sizes)
        assert len(stages) == 4
        tables = {n for n in sizes if "embed" in n}
        assert stages[0].weights == tables
        matrices = {p.name for p in bundle.manifest.parameters if len(p.shape) == 2} - tables
        layers = [{n for n in matrices if f"layers.{number}." in n} for number in range(2)]
        assert [s.weights & matrices for s in stages[1:3]] == layers
        head = (
            {"lm_head.weight"} if name == "llama_untied" else {"model.decoder.embed_tokens.weight"}
        )
        assert stages[3].weights & (matrices | tables) == head
