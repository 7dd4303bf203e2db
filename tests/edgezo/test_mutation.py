"""Each weight, changed alone in memory, reaches the outputs: the session has no copy of any."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import mutation_batch

import edgezo
from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.batch import Batch, Outputs
from edgezo_runtime.model import Model


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return edgezo.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return mutation_batch(vocabulary=512, rows=2, length=8)


def flat(outputs: Outputs) -> np.ndarray:
    return np.concatenate([outputs["logprobs"].ravel(), outputs["candidate_logits"].ravel()])


def test_each_parameter_moves_the_outputs_as_in_a_fresh_session(
    model: Model, batch: Batch, tmp_path: Path
) -> None:
    before = flat(model.forward(batch))
    for index, (name, view) in enumerate(model.arena.views.items()):
        kept = view.copy()
        view *= np.float32(1.5)
        moved = flat(model.forward(batch))
        assert (moved != before).any(), name
        path = tmp_path / f"{index}.safetensors"
        model.weights.save(path)
        fresh = edgezo.load(model.bundle.folder, threads=1, weights=path)
        np.testing.assert_array_equal(flat(fresh.forward(batch)), moved, name)
        view[...] = kept
        np.testing.assert_array_equal(flat(model.forward(batch)), before, name)


def test_each_row_of_the_embedding_in_use_moves_the_outputs(model: Model, batch: Batch) -> None:
    (name,) = [p.name for p in model.arena.parameters if p.kind == "embedding"]
    before = flat(model.forward(batch))
    for token in np.unique(batch.input_ids):
        row = model.arena.views[name][token]
        kept = row.copy()
        row += np.float32(0.5)
        assert (flat(model.forward(batch)) != before).any(), token
        row[...] = kept


def test_frozen_weights_are_the_bundle_s(tiny_bundle: Path, batch: Batch, tmp_path: Path) -> None:
    whole = edgezo.load(tiny_bundle, threads=1)
    part = edgezo.load(tiny_bundle, threads=1, tune="*.mlp.*")
    assert set(part.arena.views) == {n for n in whole.arena.views if ".mlp." in n}
    np.testing.assert_array_equal(flat(part.forward(batch)), flat(whole.forward(batch)))
    for name in part.arena.views:
        for model in (whole, part):
            model.arena.views[name][...] *= np.float32(0.5)
        np.testing.assert_array_equal(flat(part.forward(batch)), flat(whole.forward(batch)))
    part.weights.save(tmp_path / "part.safetensors")
    whole.weights.save(tmp_path / "whole.safetensors")
    written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("part", "whole")]
    assert written[0] == written[1]


def test_the_base_s_file_is_never_written(tiny_bundle: Path, batch: Batch, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "base.edgezo")
    before = (folder / "model.safetensors").read_bytes()
    model = edgezo.load(folder, threads=1, tune="*norm*")
    tuner = edgezo.Tuner(model, lr=1e-2)
    for _ in range(3):
        tuner.step(batch)
    tuner.save(tmp_path / "run")
    assert (folder / "model.safetensors").read_bytes() == before
    entries = safetensors_file.read_header(tmp_path / "run" / "model.safetensors")
    assert all(entry.dtype == dtypes.FLOAT32 for entry in entries.values())


def test_what_is_computed_once_for_a_text_is_computed_anew_for_another(tiny_bundle: Path) -> None:
    whole = edgezo.load(tiny_bundle, threads=1)
    part = edgezo.load(tiny_bundle, threads=1, tune="*layers.1.*")
    first, second = (mutation_batch(vocabulary=512, rows=2, length=n) for n in (8, 5))
    for batch in (first, second, first, first):
        np.testing.assert_allclose(
            flat(part.forward(batch)), flat(whole.forward(batch)), rtol=1e-5, atol=1e-6
        )
    first.input_ids[0, 0] += 1  # in place, behind the batch's back
    np.testing.assert_allclose(
        flat(part.forward(first)), flat(whole.forward(first)), rtol=1e-5, atol=1e-6
    )
    for name in part.arena.views:
        for model in (whole, part):
            model.arena.views[name][...] *= np.float32(0.5)
    np.testing.assert_allclose(
        flat(part.forward(first)), flat(whole.forward(first)), rtol=1e-5, atol=1e-6
    )
