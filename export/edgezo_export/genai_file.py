"""What onnxruntime-genai's model builder wrote becomes a bundle of text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_export.bundle_graph import save_graph
from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.checkpoint_tokenizer import check_tokenizer
from edgezo_export.genai_graph import GenaiGraph
from edgezo_export.lift import lifted
from edgezo_export.onnx_reader import read_onnx
from edgezo_export.plain_session import session_of
from edgezo_export.text_head import check_no_full_logits, put_text_head
from edgezo_export.verify import TOLERANCE, GraphRunner, check_mutations, sample_batch
from edgezo_runtime.bundle import GRAPH, SIDE_FILES, open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import write_text

GENAI_CONFIG = "genai_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def genai_to_bundle(source: Path, out: Path, task: Mapping[str, Any] | None = None) -> float:
    """Writes the model of the builder's file `source` as the bundle `out`.

    Its weights have the names and layouts of the checkpoint that it was built of. The bundle is
    compared with the untouched file, and each weight must move the outputs.

    Args:
        source: a `model.onnx`, beside its `genai_config.json` and its tokenizer.
        out: the bundle's folder; must not exist yet.
        task: the bundle's default task.

    Returns:
        The largest difference from the file in logits and log-probabilities.

    Raises:
        InputError: the file is damaged, of a model or dtype that edgezo does not read, or none
            that ONNX Runtime runs: its attention takes heads whose size is a multiple of 16.
        EdgezoError: the bundle does not compute what the file computes.
    """
    described = _config(source.parent / GENAI_CONFIG)
    vocabulary = described["vocab_size"]
    model = read_onnx(source)
    try:
        ours = GenaiGraph(model)
        put_text_head(model, vocabulary)
        graph = lifted(model, ours.names)
        check_no_full_logits(graph, vocabulary)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{source} is no graph that the model builder writes: {error!r}"
        ) from error
    batch = sample_batch(vocabulary, 3, 11)
    logits = _logits(source, batch, vocabulary)
    with new_folder(out) as folder:
        for name in SIDE_FILES:
            if (source.parent / name).is_file():
                shutil.copyfile(source.parent / name, folder / name)
        check_tokenizer(folder, vocabulary, source.parent)
        if not (folder / SIDE_FILES[0]).is_file():
            # What ends a text; the rest of a configuration is not known here.
            tokens = {name: described[name] for name in _TOKENS if name in described}
            write_text(folder / SIDE_FILES[0], json.dumps(tokens) + "\n")
        save_graph(graph, folder / GRAPH)
        complete_bundle(
            folder,
            lambda parameter: ours.array(parameter.name),
            context_length=described["context_length"],
            task=task,
            made_with=("onnx", "onnx-ir", "onnxscript"),
        )
        runner = GraphRunner(open_bundle(folder))
        difference = _check(runner, batch, logits, source)
        check_mutations(runner, vocabulary)
    return difference


def _config(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))["model"]
        sizes = [described[name] for name in ("vocab_size", "context_length")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what the model builder writes: {error!r}") from error
    if not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(f"{path} names vocab_size and context_length {sizes}, not numbers > 0")
    return described


def _logits(source: Path, batch: Mapping[str, np.ndarray], vocabulary: int) -> np.ndarray:
    """Returns what the file gives at the positions of `batch`, (positions, vocabulary) float32.

    Raises:
        InputError: ONNX Runtime does not run the file, whose sizes it may not take.
    """
    session = session_of(source)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = len(batch["input_ids"])
    past = {
        node.name: np.zeros((rows, node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    try:
        every = session.run(["logits"], text | past)[0]
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        reason = " ".join(str(error).split())
        raise InputError(
            f"{source} does not run in ONNX Runtime itself: export the checkpoint that it was "
            f"built of instead ({reason})"
        ) from error
    return every.reshape(-1, vocabulary)[batch["positions"]]


def _check(
    runner: GraphRunner, batch: Mapping[str, np.ndarray], given: np.ndarray, source: Path
) -> float:
    """Returns the largest difference from the logits that the file has `given`.

    Raises:
        EdgezoError: it is too large.
    """
    logits = given.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    logprobs = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    rows = np.arange(len(logits))
    expected = [logprobs[rows, batch["targets"]], logits[:, batch["candidates"]]]
    worst = max(
        float(np.abs(ours - theirs).max())
        for ours, theirs in zip(runner(batch), expected, strict=True)
    )
    if not worst <= TOLERANCE * max(1.0, float(np.abs(logits).max())):
        raise EdgezoError(f"the bundle differs from {source} by {worst:.1e} in logits")
    return worst
