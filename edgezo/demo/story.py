"""The demo's course: zero-shot, tuning, held-out accuracy, and memory against plain inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezo.bench.card_memory import card_bytes
from edgezo.bench.inference_memory import inference_peak
from edgezo.callbacks import Callback
from edgezo.data.rows import Rows, read_rows
from edgezo.demo import recipe
from edgezo.evaluate import Metrics, evaluate
from edgezo.run_folder import RunFolder
from edgezo.tasks import make_task
from edgezo.tasks.base import Example, Task
from edgezo.train import Result, train
from edgezo_runtime.devices import open_device
from edgezo_runtime.memory import peak_bytes, resident_bytes
from edgezo_runtime.model import Model, load


@dataclass(frozen=True)
class Prediction:
    """One held-out utterance and what the model made of it."""

    text: str
    truth: str
    before: str
    after: str


@dataclass(frozen=True)
class Story:
    """What the demo found.

    Attributes:
        run: the RUN folder.
        zero_shot: held-out accuracy of each prompt before tuning.
        before: the best of them.
        after: held-out accuracy after tuning.
        examples: held-out utterances.
        seconds: from the loaded bundle to the last measurement.
        memory: whose memory the next two count: ``"rss"``, the process's, or ``"card"``.
        peak: peak memory of tuning, in bytes above the process after its imports, or above what the
            card held before the model was loaded.
        inference_peak: the same of plain ONNX Runtime inference in a fresh process, or of the
            forward passes on the card before the first step.
        predictions: a few utterances.
        result: how the run ended.
    """

    run: RunFolder
    zero_shot: dict[str, float]
    before: float
    after: float
    examples: int
    seconds: float
    memory: str
    peak: int
    inference_peak: int
    predictions: tuple[Prediction, ...]
    result: Result

    @property
    def memory_ratio(self) -> float:
        """Peak memory of tuning over that of inference."""
        return self.peak / self.inference_peak

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as `edgezo demo --json` prints them."""
        return {
            "accuracy_before": round(self.before, 4),
            "accuracy_after": round(self.after, 4),
            "examples": self.examples,
            "seconds": round(self.seconds, 1),
            f"peak_{self.memory}_mb": round(self.peak / 1e6, 1),
            f"inference_peak_{self.memory}_mb": round(self.inference_peak / 1e6, 1),
            "memory_ratio": round(self.memory_ratio, 3),
            "journal_bytes": self.run.journal.stat().st_size,
            "run_dir": str(self.run.path),
        }


def tell(
    bundle: Path,
    out: Path,
    steps: int | None,
    device: str,
    threads: int | None,
    callback: Callback,
    say: Callable[[str], None],
) -> Story | None:
    """Runs the demo on `bundle` into the folder `out`; None if it was stopped (and can resume)."""
    started = time.perf_counter()
    imported = resident_bytes()
    opened = open_device(device, threads)
    bare = card_bytes(opened)
    settings = recipe.settings(bundle, out, steps, device, threads)
    model = load(bundle, tune=settings.tune, device=device, threads=threads)
    train_rows, test_rows = read_rows(settings.data), read_rows(str(settings.eval_data))
    encoded = {p: _examples(model, p, train_rows, test_rows) for p in recipe.PROMPTS}
    zero_shot: dict[str, Metrics] = {}
    for prompt, (task, examples) in encoded.items():
        zero_shot[prompt] = evaluate(model, task, examples)
        say(f"zero-shot  {zero_shot[prompt].accuracy:6.1%}  {prompt!r}")
    inferred = card_bytes(opened)
    result = train(settings, callback, model)
    peak, tuned = peak_bytes() - imported, card_bytes(opened)
    if not result.finished or result.metrics is None:
        return None
    task, examples = encoded[recipe.PROMPTS[0]]
    longest = sorted(examples, key=lambda example: example.length)[-settings.batch_size :]
    if bare is None or inferred is None or tuned is None:
        say("measuring plain inference in a fresh process")
        memory, plain = "rss", inference_peak(bundle, task.collate(longest).feeds())
    else:
        memory, plain, peak = "card", inferred - bare, tuned - bare
    best = max(zero_shot.values(), key=lambda metrics: metrics.accuracy or 0)
    return Story(
        result.run,
        {prompt: metrics.accuracy or 0 for prompt, metrics in zero_shot.items()},
        best.accuracy or 0,
        result.metrics.accuracy or 0,
        len(examples),
        time.perf_counter() - started,
        memory,
        peak,
        plain,
        tuple(_predictions(test_rows, best, result.metrics)),
        result,
    )


def _examples(
    model: Model, prompt: str, train_rows: Rows, test_rows: Rows
) -> tuple[Task, Sequence[Example]]:
    task = make_task(
        "classify",
        train_rows,
        model.tokenizer,
        model.context_length,
        template=prompt,
        label_words=recipe.LABEL_WORDS,
    )
    return task, task.encode_rows(test_rows)


def _predictions(rows: Rows, before: Metrics, after: Metrics) -> list[Prediction]:
    """Picks utterances of different intents whose prediction changed, and one that stays wrong."""
    assert before.predictions is not None and after.predictions is not None
    chosen: list[Prediction] = []
    shown: set[int] = set()
    wrong: Prediction | None = None
    for row, old, new in zip(rows, before.predictions, after.predictions, strict=True):
        truth = int(row["label"])
        names = [recipe.INTENTS[index] for index in (truth, int(old), int(new))]
        prediction = Prediction(str(row["text"]), *names)
        if new == truth != old and truth not in shown:
            shown.add(truth)
            chosen.append(prediction)
        elif new != truth and wrong is None:
            wrong = prediction
    return chosen[:5] + ([wrong] if wrong else [])
