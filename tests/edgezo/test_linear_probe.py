"""Linear probing: the fit is the optimum, and the features are the model's last hidden states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import labelled

import edgezo
from edgezo.choice_probe import OptionRows
from edgezo.data import eval_batches, rows_from
from edgezo.features import features
from edgezo.linear_probe import linear_probe, probes
from edgezo.logistic import fit, fit_options
from edgezo.tasks import make_task
from edgezo.tasks.choice import Choice
from edgezo_runtime.errors import InputError


@pytest.mark.parametrize("decay", [1e-4, 0.1])
def test_the_fit_is_the_least(decay: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    inputs = rng.normal(size=(90, 5)) * [1, 10, 0.1, 1, 0] + np.eye(5)[labels] + 4
    found = fit(inputs.astype(np.float32), labels, 3, decay)
    columns = np.c_[
        (inputs - inputs.mean(0)) / np.where(inputs.std(0), inputs.std(0), 1), np.ones(90)
    ]

    def loss(weights: np.ndarray) -> float:
        scores = columns @ weights
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return -np.log(chances[range(90), labels]).mean() + decay / 2 * (weights**2).sum()

    least = loss(found.weights)
    for _ in range(50):
        step = 1e-3 * rng.normal(size=found.weights.shape)
        assert loss(found.weights + step) > least
    told = found.log_chances(inputs)
    np.testing.assert_allclose(np.exp(told).sum(1), 1)
    assert (told.argmax(1) == labels).mean() > 0.5


def test_features_are_the_last_hidden_states(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    model = edgezo.load(tiny_bundle, threads=1)
    reference = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    rows = rows_from(labelled(7))
    # Words that differ at once, and after what they share, which is read with the prompt.
    for words in ("negative=bad,positive=good", "negative=bad story,positive=bad music"):
        task = make_task("classify", rows, model.tokenizer, model.context_length, None, words)
        examples = task.encode_rows(rows)
        found = features(model, task, examples, eval_batches(task, examples, 6))
        for values, example, row in zip(found, examples, rows, strict=True):
            part = example.parts[0]
            asked = len(part.tokens) - len(part.targets)
            assert model.tokenizer.decode(part.tokens[: asked + 1].tolist()).startswith(
                f"Text: {row['text']}\nLabel:"
            )
            with torch.no_grad():
                read = torch.from_numpy(part.tokens)[None]
                states = reference(read, output_hidden_states=True).hidden_states[-1]
            np.testing.assert_allclose(values, states[0, asked].numpy(), rtol=1e-3, atol=1e-4)


def test_a_probe_tells_labels_apart(tiny_bundle: Path) -> None:
    model = edgezo.load(tiny_bundle, threads=1)
    texts = [f"{'good' if i % 3 else 'bad'} film {i}" for i in range(60)]
    rows = rows_from([{"text": t, "label": t.split()[0]} for t in texts])
    task = make_task("classify", rows, model.tokenizer, model.context_length)
    examples = task.encode_rows(rows)
    found = linear_probe(model, task, examples[:40], examples[40:], 8)
    assert (found.metrics.accuracy or 0) > 0.8 and found.metrics.examples == 20
    assert found.forwards == 5 and found.metrics.loss < 0.5
    assert probes(task)
    text = make_task("text", rows, model.tokenizer, 60)
    with pytest.raises(InputError, match="task text has neither labels nor options"):
        linear_probe(model, text, text.encode_rows(rows), [], 8)


def test_a_probe_tells_options_apart(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """By what the model read at the end of the whole option, one word long or several."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    model = edgezo.load(tiny_bundle, threads=1)
    options = [["good", "bad"], ["a bad book", "film", "the music is good"]]
    rows = rows_from(
        [
            {"prompt": f"story {i}", "choices": options[i % 2], "label": 2 * (i % 2)}
            for i in range(60)
        ]
    )
    task = make_task(None, rows, model.tokenizer, model.context_length)
    assert isinstance(task, Choice) and probes(task)
    examples = task.encode_rows(rows)
    read, forwards = OptionRows.read(model, task, examples[:6], 5)
    assert forwards == 4  # at most 5 sequences each
    reference = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    for values, example in zip(read.inputs, examples, strict=False):
        for value, part in zip(values, example.parts, strict=True):
            whole = torch.from_numpy(np.append(part.tokens, part.targets[-1:]))[None]
            with torch.no_grad():
                states = reference(whole, output_hidden_states=True).hidden_states[-1]
            np.testing.assert_allclose(value, states[0, -1].numpy(), rtol=1e-3, atol=1e-4)
    found = linear_probe(model, task, examples[:40], examples[40:], 8)
    assert found.metrics.accuracy == 1 and found.metrics.loss < 0.3


def test_the_fit_of_options_is_the_least() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(2 + i % 3, 4)) * [1, 10, 0.1, 0] for i in range(50)]
    right = [int((x[:, 0] + rng.normal(size=len(x))).argmax()) for x in rows]
    deviation = np.concatenate(rows).std(0)

    def loss(w: np.ndarray) -> float:
        scores = [x @ w for x in rows]
        told = [s[y] - np.log(np.exp(s).sum()) for s, y in zip(scores, right, strict=True)]
        return -np.mean(told) + 0.05 * ((w * deviation) ** 2).sum()

    found = fit_options(rows, right, 0.1)
    least = loss(found)
    assert found[0] > 0 and least < loss(np.zeros(4))
    for _ in range(50):
        assert loss(found + 1e-3 * rng.normal(size=4)) > least
