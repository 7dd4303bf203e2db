"""Generation with a cache: the same text as without, over the same weights."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, forge, mutation_batch
from hypothesis import given
from hypothesis import strategies as st

import edgezo
from edgezo.generate import _Sampling, generate_batch, stream
from edgezo_export.adapters.base import adapt, write_adapted
from edgezo_export.quantize import quantize_bundle
from edgezo_export.quantized_linear import FORMATS
from edgezo_runtime.bundle import Bundle, open_bundle, write_manifest
from edgezo_runtime.errors import InputError
from edgezo_runtime.generation import GenerationSession
from edgezo_runtime.select import ADAPTERS

PROMPTS = ["a good film", "search", "book a table for two, the old band", "terrible"]


@pytest.fixture
def model(tiny_bundle: Path) -> edgezo.Model:
    return edgezo.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def without_cache(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> edgezo.Model:
    """The tiny model of a bundle that has no generation graph."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("plain") / "b.edgezo")
    (folder / "generate.onnx").unlink()
    manifest = open_bundle(tiny_bundle).manifest
    files = {name: digest for name, digest in manifest.files.items() if name != "generate.onnx"}
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    return edgezo.load(folder, threads=1)


def session_of(model: edgezo.Model) -> GenerationSession:
    assert model.generation is not None
    return model.generation


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "seed": 3, "top_p": 0.9}])
def test_the_cache_changes_no_text(
    model: edgezo.Model, without_cache: edgezo.Model, options: dict[str, Any]
) -> None:
    assert without_cache.generation is None
    for prompt in PROMPTS:
        expected = edgezo.generate(without_cache, prompt, 40, **options)
        assert edgezo.generate(model, prompt, 40, **options) == expected
        assert expected


@pytest.mark.parametrize("cached", [True, False])
def test_a_batch_says_what_each_prompt_says(
    model: edgezo.Model, without_cache: edgezo.Model, cached: bool
) -> None:
    model = model if cached else without_cache
    prompts = [*PROMPTS, "a film " * 14]  # the last one meets the end of the context
    for options in ({}, {"temperature": 1.3, "seed": 3}):
        texts = generate_batch(model, prompts, 50, **options)
        assert texts == [edgezo.generate(model, prompt, 50, **options) for prompt in prompts]
    assert generate_batch(model, []) == []


def test_a_finished_text_does_not_disturb_the_others(
    model: edgezo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate_batch(model, PROMPTS, 30)
    tokens = model.tokenizer.encode(whole[1])
    monkeypatch.setattr(model.tokenizer, "stop_ids", frozenset(tokens[2:3]))
    ended = generate_batch(model, PROMPTS, 30)
    assert len(ended[1]) < len(whole[1])
    assert ended == [edgezo.generate(model, prompt, 30) for prompt in PROMPTS]


@pytest.mark.parametrize("change", [*ADAPTERS, *FORMATS])
def test_changed_bundles_have_a_cache(tiny_bundle: Path, tmp_path: Path, change: str) -> None:
    if change in FORMATS:
        model = edgezo.load(quantize_bundle(tiny_bundle, tmp_path / "b.edgezo", change), threads=1)
    else:
        write_adapted(adapt(open_bundle(tiny_bundle), {"kind": change}), tmp_path / "b.edgezo")
        model = edgezo.load(tmp_path / "b.edgezo", threads=1)
        generator = np.random.default_rng(3)
        for view in model.arena.views.values():
            view[...] = generator.standard_normal(view.shape) / 4
    assert model.generation is not None
    texts = generate_batch(model, PROMPTS, 20)
    model.generation = None
    assert texts == [edgezo.generate(model, prompt, 20) for prompt in PROMPTS]
    assert texts != generate_batch(edgezo.load(tiny_bundle, threads=1), PROMPTS, 20)


def test_two_streams_at_once(model: edgezo.Model) -> None:
    alone = [edgezo.generate(model, prompt, 12) for prompt in PROMPTS[:2]]
    together = ["", ""]
    for pieces in zip(*(stream(model, prompt, 12) for prompt in PROMPTS[:2]), strict=False):
        together = [text + piece for text, piece in zip(together, pieces, strict=True)]
    for text, expected in zip(together, alone, strict=True):
        assert text and expected.startswith(text)


def test_no_weight_is_copied(model: edgezo.Model) -> None:
    bound: dict[str, int] = {}

    class Binding:
        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            bound[name] = value.data_ptr()

    for name, binder in session_of(model)._binders.items():
        binder(Binding(), name)
    assert bound == {name: a.ctypes.data for name, a in model.weights.arrays().items()}
    assert bound.keys() == {p.name for p in model.bundle.manifest.parameters}


@pytest.mark.parametrize("tune", ["full", "model.layers.1.*"])
def test_generation_sees_each_step(tiny_bundle: Path, tmp_path: Path, tune: str) -> None:
    model = edgezo.load(tiny_bundle, tune=tune, threads=1)
    tokens = np.array([model.tokenizer.encode("a good film")])

    def logits(model: edgezo.Model) -> np.ndarray:
        session = session_of(model)
        return session.read(session.start(1), tokens)

    before = logits(model)
    tuner = edgezo.Tuner(model, lr=1e-2, eps=1e-3, seed=1)
    for _ in range(3):
        tuner.step(mutation_batch(400, 2, 8))
        after = logits(model)
        assert not np.array_equal(after, before)
        before = after
    run = tuner.save(tmp_path / "run")
    fresh = edgezo.load(tiny_bundle, threads=1, weights=run / "model.safetensors")
    np.testing.assert_array_equal(logits(fresh), after)


@given(
    logits=st.lists(st.floats(-9, 9), min_size=2, max_size=20),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_draws_come_from_the_nucleus(logits: list[float], top_p: float, seed: int) -> None:
    weights = np.exp(np.array(logits))
    weights /= weights.sum()
    token = _Sampling(1.0, seed, top_p).choose(np.array(logits, np.float32), 7)
    likelier = weights[weights > weights[token] * (1 + 1e-5)].sum()
    assert likelier < top_p + 1e-5


def test_draws_have_the_nucleus_s_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25]))
    for top_p, expected in ((1.0, [0.1, 0.5, 0.15, 0.25]), (0.7, [0, 2 / 3, 0, 1 / 3])):
        sampling = _Sampling(1.0, 0, top_p)
        counts = np.bincount([sampling.choose(logits, i) for i in range(2000)], minlength=4)
        np.testing.assert_allclose(counts / 2000, expected, atol=0.04)
        assert (counts[np.array(expected) == 0] == 0).all()
    assert _Sampling(1.0, 5, 1e-9).choose(logits, 3) == 1


@pytest.mark.parametrize("top_p", [0, -1, 1.1, float("nan")])
def test_a_bad_nucleus(model: edgezo.Model, top_p: float) -> None:
    with pytest.raises(InputError, match="top-p"):
        edgezo.generate(model, "a", top_p=top_p)


def test_the_command_line(tiny_bundle: Path, model: edgezo.Model) -> None:
    flags = ("--temperature", 1.2, "--top-p", 0.8, "--seed", 4, "--max-tokens", 9, "--threads", 1)
    told = called("generate", tiny_bundle, "a good film", *flags, "--json")
    assert told.status == 0, told.err
    expected = edgezo.generate(model, "a good film", 9, 1.2, 4, 0.8)
    assert told.json["text"] == expected
    assert told.json["text"] != edgezo.generate(model, "a good film", 9, 1.2, 4)


def test_a_graph_that_does_not_fit_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgezo.load(tiny_bundle, threads=1)
    manifest = model.bundle.manifest
    *others, norm = manifest.parameters
    others = (*others, dataclasses.replace(norm, shape=(33,)))
    forged = Bundle(tiny_bundle, dataclasses.replace(manifest, parameters=others))
    monkeypatch.setattr(model.weights, "bundle", forged)
    with pytest.raises(InputError, match=r"generate\.onnx does not take .*norm\.weight"):
        edgezo.generate(model, "a film")
    folder = shutil.copytree(tiny_bundle, tmp_path / "b.edgezo")
    forge(folder, lambda bundle: (folder / "generate.onnx").write_bytes(b"no graph"))
    with pytest.raises(InputError, match=r"cannot load .*generate\.onnx"):
        edgezo.generate(edgezo.load(folder), "a film")
    (folder / "generate.onnx").unlink()
    with pytest.raises(InputError, match=r"lacks generate\.onnx"):
        edgezo.load(folder)
