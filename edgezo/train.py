"""A run from settings to RUN folder, and its continuation after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezo.adapted import AddAdapter, open_adapted
from edgezo.callbacks import Callback
from edgezo.data.batches import BatchPlan
from edgezo.evaluate import Metrics, evaluate
from edgezo.run_folder import SETTINGS, MetricsFile, RunFolder
from edgezo.settings import ADAPTER_SETTINGS, AUTO, Settings
from edgezo.tasks import read_data, task_of
from edgezo.tasks.base import BaseExample, BaseTask
from edgezo.tasks.labels import parse_label_words
from edgezo.tuner import Tuner
from edgezo_runtime import journal
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods.probe import PROBES
from edgezo_runtime.model import Model, load


@dataclass(frozen=True)
class TrainingData:
    """A task, its examples, and what names them in a journal."""

    task: BaseTask
    train: Sequence[BaseExample]
    held_out: Sequence[BaseExample]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        run: its folder.
        steps: steps taken, over all its sessions.
        finished: whether it reached its last step; otherwise it can be resumed.
        skipped: steps whose projected gradient was not finite.
        seconds: of this session.
        metrics: the last evaluation, if there was one.
        truncated: rows whose text was cut to fit the model's context.
    """

    run: RunFolder
    steps: int
    finished: bool
    skipped: int
    seconds: float
    metrics: Metrics | None
    truncated: int


def train(
    settings: Settings,
    callback: Callback | None = None,
    model: Model | None = None,
    add: AddAdapter | None = None,
) -> Result:
    """Tunes a bundle as `settings` say.

    Args:
        settings: of the run.
        callback: watches it.
        model: the settings' bundle if it is loaded already.
        add: puts the settings' adapter into a bundle that has none.

    Raises:
        InputError: bad settings, data or bundle.
        EdgezoError: a full disk, or a run that diverged.
    """
    if model is None:
        bundle = open_adapted(settings.bundle, settings.adapter(), add)
        model = load(bundle, tune=settings.tune, device=settings.device, threads=settings.threads)
    data = prepare(model, settings)
    resolved = settings.to_dict() | {"threads": model.device.threads, "tune": model.weights.tune}
    resolved |= _adapter_settings(model.bundle.manifest.adapter)
    resolved["bundle"] = str(Path(settings.bundle).resolve())
    resolved["data"] = str(Path(settings.data).resolve())
    if settings.eval_data:
        resolved["eval_data"] = str(Path(settings.eval_data).resolve())
    tuner = Tuner(
        model,
        method=settings.method,
        options=settings.options,
        lr=None if isinstance(settings.lr, str) else settings.lr,
        probe=_first_batches(data, settings) if settings.lr == AUTO else None,
        eps=settings.eps,
        seed=settings.seed,
        weight_decay=settings.weight_decay,
        samples=settings.samples,
        schedule=settings.schedule,
        steps=settings.steps,
        run=settings.out,
        notes=data.notes,
        settings=resolved,
    )
    return _loop(tuner, RunFolder(settings.out), settings, data, callback or Callback())


def _first_batches(data: TrainingData, settings: Settings) -> list[BaseBatch]:
    plan = BatchPlan([e.length for e in data.train], settings.batch_size, settings.seed)
    numbers = range(1, PROBES + 1)
    return [data.task.collate([data.train[i] for i in plan.indices(n)]) for n in numbers]


def _adapter_settings(adapter: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in adapter.items() if name in ADAPTER_SETTINGS}


def resume(
    path: Path | str, callback: Callback | None = None, add: AddAdapter | None = None
) -> Result:
    """Continues the run in the folder `path` to its last step; `add` as for `train`.

    Raises:
        InputError: no run there, a damaged journal, or data or a bundle that changed since.
    """
    callback = callback or Callback()
    run = RunFolder.open(path)
    settings = Settings.from_dict(
        run.read_settings() | {"out": str(run.path)}, str(run.path / "settings.yaml")
    )
    header = journal.read(run.journal).header
    _check_settings(settings, header, run)
    bundle = open_adapted(settings.bundle, header.get("adapter"), add)
    model = load(bundle, tune=settings.tune, device=settings.device, threads=settings.threads)
    data = prepare(model, settings)
    for name, value in data.notes.items():
        if header.get(name) != value:
            raise InputError(
                f"{name} is not what it was when {run.path} began, so the run cannot go on as it "
                f"would have: restore {settings.data}, or start a new run"
            )
    tuner = Tuner.resume(model, run.path, lambda n: callback.on_replay(n, settings.steps))
    return _loop(tuner, run, settings, data, callback)


def _check_settings(settings: Settings, header: Mapping[str, Any], run: RunFolder) -> None:
    """Raises InputError where a run's settings were edited: its journal fixes them."""
    fixed = {
        "tune": header["tune"],
        "method": header["method"],
        "seed": header["seed"],
        **header["lr"],
        **{name: header["settings"][name] for name in ("eps", "weight_decay")},
        "options": settings.options
        and {name: header["settings"].get(name) for name in settings.options},
        **_adapter_settings(header.get("adapter", {})),
    }
    for name, value in fixed.items():
        value = tuple(value) if isinstance(value, list) else value
        if getattr(settings, name) != value:
            raise InputError(
                f"{run.path / SETTINGS} sets {name} to {getattr(settings, name)!r}, but the run "
                f"began with {value!r}: restore it, or start a new run"
            )


def prepare(model: Model, settings: Settings) -> TrainingData:
    """Reads a run's data and makes its examples."""
    rows = read_data(settings.data, model)
    words = _words(settings.label_words)
    task = task_of(model, rows, settings.task, settings.template, words)
    train_examples = task.encode_rows(rows)
    held_out: Sequence[BaseExample] = ()
    if settings.eval_data:
        held_out = task.encode_rows(read_data(settings.eval_data, model))
    notes = {
        "task": task.settings(),
        "data": rows.sha256,
        "order": {"version": 1, "batch_size": settings.batch_size},
    }
    return TrainingData(task, train_examples, held_out, notes)


def _words(given: tuple[str, ...] | None) -> list[str] | dict[str, str] | None:
    """Returns label words as a list, or by label where they are written as label=word."""
    if given is None or not any("=" in word for word in given):
        return None if given is None else list(given)
    return parse_label_words(",".join(given))


def _loop(
    tuner: Tuner, run: RunFolder, settings: Settings, data: TrainingData, callback: Callback
) -> Result:
    plan = BatchPlan([e.length for e in data.train], settings.batch_size, settings.seed)
    metrics: Metrics | None = None
    skipped = tuner.skipped
    started = time.perf_counter()

    try:
        metrics_file = MetricsFile(run, tuner.step_index)
    except BaseException:
        tuner.close()
        raise

    def evaluate_now() -> Metrics:
        found = evaluate(tuner.model, data.task, data.held_out, settings.batch_size)
        metrics_file.write(step=tuner.step_index, eval=found.to_json())
        callback.on_eval(tuner.step_index, found)
        return found

    try:
        if tuner.step_index < settings.steps and _due(tuner.step_index, settings.eval_every):
            metrics = evaluate_if(data.held_out, evaluate_now)  # cut short by the stop
        while tuner.step_index < settings.steps:
            before = time.perf_counter()
            indices = plan.indices(tuner.step_index + 1)
            step = tuner.step(data.task.collate([data.train[i] for i in indices]))
            seconds = time.perf_counter() - before
            skipped += step.skipped
            metrics_file.write(
                step=step.number,
                loss=step.loss,
                projected_grad=step.projected_grad,
                lr=step.lr,
                skipped=step.skipped,
                seconds=round(seconds, 4),
            )
            callback.on_step(step, seconds)
            if step.number < settings.steps and _due(step.number, settings.snapshot_every):
                tuner.snapshot()
            if step.number < settings.steps and _due(step.number, settings.eval_every):
                metrics = evaluate_if(data.held_out, evaluate_now)
            if callback.should_stop():
                break
        finished = tuner.step_index >= settings.steps
        if finished:
            metrics = evaluate_if(data.held_out, evaluate_now)
            tuner.save()
    finally:
        metrics_file.close()
        tuner.close()
    return Result(
        run,
        tuner.step_index,
        finished,
        skipped,
        time.perf_counter() - started,
        metrics,
        data.task.truncated,
    )


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


def evaluate_if(examples: Sequence[BaseExample], run: Callable[[], Metrics]) -> Metrics | None:
    """Returns `run()` if there are examples to run on."""
    return run() if examples else None
