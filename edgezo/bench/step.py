"""One tuning step against plain inference of the same graph."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgezo.bench.constants import constants_model
from edgezo.bench.inference_memory import INFERENCE_WORKER, save_feeds
from edgezo.bench.machine import versions
from edgezo.bench.processes import WorkerProcess
from edgezo_runtime.batch import Batch, CandidateLoss
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import default_threads
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.select import FULL

TUNING_WORKER = "edgezo.bench.tuning_worker"
CHOICES = 7
LEAST_ROUNDS = 5
# What each process does in one turn.
_TUNING_TURN = {"step": 1, "forward": 2, "sweep": 4, "add": 4, "threaded_add": 4}
_INFERENCE_TURN = {"forward": 2}
# ONNX Runtime's default session keeps a core busy for about 50 ms after a forward pass.
PAUSE_SECONDS = 0.2
_TOLERANCE = 1e-3  # of a logit, relative to the largest


def bench_step(
    folder: Path,
    *,
    rows: int = 16,
    tokens: int = 64,
    rounds: int = 9,
    threads: int | None = None,
    tune: str = FULL,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures a MeZO step of a bundle, and ONNX Runtime's default session over the same graph.

    Both are loaded in a process of their own and take turns; every figure is the median of all
    rounds. ``ratio = step / (2 * inference forward)``; memory is the peak above the process after
    its imports.

    Args:
        folder: the bundle.
        rows: of the batch; each is asked for one answer, at its end.
        tokens: of each row, drawn at random.
        rounds: turns of each process, at least `LEAST_ROUNDS`.
        threads: of both; if None all cores for tuning, and ONNX Runtime's default for inference.
        tune: what a step changes; see `Weights`.
        progress: called with (rounds done, rounds in all).

    Raises:
        InputError: the bundle is damaged, or rows of `tokens` tokens do not fit the model.
        EdgezoError: a process failed, or the two disagree about the logits.
    """
    if rounds < LEAST_ROUNDS:
        raise InputError(f"{rounds} rounds are too few for a median; use {LEAST_ROUNDS} or more")
    bundle = open_bundle(folder)
    batch = random_batch(bundle, rows, tokens)
    cores = threads or default_threads()
    with (
        tempfile.TemporaryDirectory(prefix="edgezo-bench-") as scratch,
        constants_model(bundle) as model,
        WorkerProcess("-m", TUNING_WORKER) as tuning,
        WorkerProcess("-m", INFERENCE_WORKER) as inference,
    ):
        feeds = save_feeds(batch.feeds(), scratch)
        open_tuning(tuning, bundle.folder, feeds, batch, cores, tune=tune)
        inference.call("open", model=str(model), feeds=feeds, threads=threads)
        _check_equal(tuning.call("candidate_logits"), inference.call("candidate_logits"))
        turns = ((tuning, "", _TUNING_TURN), (inference, "inference_", _INFERENCE_TURN))
        for worker, _, turn in turns:  # warm up
            for action in turn:
                worker.call(action, count=1)
        seconds: dict[str, list[float]] = defaultdict(list)
        for done in range(rounds):
            for worker, prefix, turn in turns:
                time.sleep(PAUSE_SECONDS)
                for action, count in turn.items():
                    seconds[prefix + action] += worker.call(action, count=count)
            if progress:
                progress(done + 1, rounds)
        peak, inference_peak = tuning.call("peak"), inference.call("peak")
        inference_threads = inference.call("threads")
    middle = {name: median(values) for name, values in seconds.items()}
    return {
        **{f"{name}_ms": round(1e3 * value, 4) for name, value in middle.items()},
        "ratio": round(middle["step"] / (2 * middle["inference_forward"]), 4),
        "sweep_ratio": round(middle["sweep"] / middle["add"], 4),
        "peak_rss_mb": round(peak / 1e6, 1),
        "inference_peak_rss_mb": round(inference_peak / 1e6, 1),
        "memory_ratio": round(peak / inference_peak, 4),
        "model": folder.name.removesuffix(".edgezo"),
        "parameters": sum(parameter.size for parameter in bundle.manifest.parameters),
        "tune": tune,
        "batch": rows,
        "tokens": tokens,
        "rounds": rounds,
        "threads": cores,
        "inference_threads": inference_threads,
        "versions": versions(),
    }


def random_batch(bundle: Bundle, rows: int, tokens: int, seed: int = 0) -> Batch:
    """Returns `rows` rows of random tokens, each with one answer of `CHOICES` at its end.

    Raises:
        InputError: the rows are longer than the model's context, or there are none, or it takes
            arrays.
    """
    longest = bundle.manifest.context_length
    if longest is None:
        raise InputError(f"{bundle.folder} takes arrays; a bundle that takes text can be measured")
    if rows < 1 or not 1 <= tokens <= longest:
        raise InputError(
            f"a batch of {rows} x {tokens} tokens cannot be made: use 1 row or more, "
            f"and 1 to {longest} tokens, the model's context"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    vocabulary = _vocabulary(bundle)
    candidates = generator.permutation(vocabulary)[:CHOICES]
    labels = generator.integers(0, len(candidates), rows)
    return Batch(
        input_ids=generator.integers(0, vocabulary, (rows, tokens)),
        attention_mask=np.ones((rows, tokens), np.int64),
        positions=np.arange(rows) * tokens + tokens - 1,
        targets=candidates[labels],
        candidates=candidates,
        objective=CandidateLoss(labels),
    )


def open_tuning(
    worker: WorkerProcess,
    bundle: Path,
    feeds: str,
    batch: Batch,
    threads: int,
    **settings: str,
) -> None:
    """Loads `bundle` and `batch`, whose inputs are saved in `feeds`, in a tuning worker.

    What else its `open` takes are the `settings`.
    """
    assert isinstance(batch.objective, CandidateLoss)
    labels = batch.objective.labels.tolist()
    worker.call("open", bundle=str(bundle), feeds=feeds, labels=labels, threads=threads, **settings)


def _vocabulary(bundle: Bundle) -> int:
    """Returns how many tokens the model knows, by its config.json or its first embedding."""
    try:
        config = json.loads((bundle.folder / "config.json").read_text(encoding="utf-8"))
        return int(config["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        for parameter in bundle.manifest.parameters:
            if parameter.kind == "embedding":
                return parameter.shape[0]
    raise InputError(f"{bundle.folder} names no vocab_size in its config.json, and no embedding")


def _check_equal(ours: list[list[float]], theirs: list[list[float]]) -> None:
    error = np.abs(np.subtract(ours, theirs)).max() / np.abs(theirs).max()
    if not error <= _TOLERANCE:
        raise EdgezoError(
            f"tuning and plain inference compute different logits (by {error:.1e}): "
            "the bundle's graph is damaged, export it again"
        )
