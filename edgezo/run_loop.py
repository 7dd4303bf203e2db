"""The steps of a run, and what is due between them: reports, snapshots, evaluations, the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgezo.callbacks import Callback
from edgezo.evaluate import Metrics
from edgezo.head_start import HeadStart
from edgezo.run_folder import MetricsFile, RunFolder
from edgezo.settings import BASE, PROBE, RunSettings
from edgezo.step import Step
from edgezo.tasks.base import BaseExample
from edgezo.training_data import TrainingData, evaluate_held_out
from edgezo.tuner import Tuner

#: Gives the examples of a step's batch, and of the one with true gradients if that is another.
Order = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        run: its folder.
        steps: steps taken, over all its sessions.
        kept: the step whose weights were saved.
        finished: whether it reached its last step; otherwise it can be resumed.
        skipped: steps whose projected gradient was not finite.
        seconds: of this session.
        metrics: the last evaluation, or that of the kept step, if there was one.
        truncated: rows whose text was cut to fit the model's context.
        examples: training examples.
    """

    run: RunFolder
    steps: int
    kept: int
    finished: bool
    skipped: int
    seconds: float
    metrics: Metrics | None
    truncated: int
    examples: int


def take_steps(
    tuner: Tuner,
    run: RunFolder,
    settings: RunSettings,
    data: TrainingData,
    order: Order,
    callback: Callback,
    head: HeadStart | None = None,
) -> Result:
    """Takes a run's remaining steps, with what is due between them, and closes `tuner`.

    Args:
        tuner: begun in `run`, or resumed.
        run: takes the metrics and the weights.
        settings: of the run.
        data: of the run.
        order: which examples each step's batch has.
        callback: watches it.
        head: what the run begins with, if that was fitted just now.

    Raises:
        EdgezoError: a full disk, or a run that diverged.
    """
    metrics: Metrics | None = None
    kept = settings.steps
    skipped = tuner.skipped
    started = time.perf_counter()

    try:
        metrics_file = MetricsFile(run, tuner.step_index)
    except BaseException:
        tuner.close()
        raise

    unreported: tuple[Step, float] | None = None

    def report() -> None:
        nonlocal unreported, skipped
        if unreported is None:
            return
        (step, seconds), unreported = unreported, None
        skipped += step.skipped
        metrics_file.write(
            step=step.number,
            loss=step.loss,
            projected_grad=step.projected_grad,
            lr=step.lr,
            skipped=step.skipped,
            forwards=step.forwards,
            seconds=round(seconds, 4),
        )
        callback.on_step(step, seconds)

    def evaluate_now() -> Metrics:
        found = evaluate_held_out(tuner.model, data.task, data.held_out, data.held_rows, settings)
        metrics_file.write(step=tuner.step_index, eval=found.to_json())
        callback.on_eval(tuner.step_index, found)
        return found

    try:
        if head:
            seconds = round(head.seconds, 4)
            begun = PROBE if tuner.model.weights.start else BASE
            metrics_file.write(step=0, start=begun, forwards=head.forwards, seconds=seconds)
        if tuner.step_index < settings.steps and _due(tuner.step_index, settings.eval_every):
            metrics = _evaluate_if(data.held_out, evaluate_now)  # cut short by the stop
        while tuner.step_index < settings.steps:
            before = time.perf_counter()
            chosen, exact = order(tuner.step_index + 1)
            batch = data.batch(chosen)
            try:
                step = tuner.step(batch, exact=None if exact is None else data.batch(exact))
            finally:
                report()  # of the step before, where it was late: the device is busy with this one
            unreported = step, time.perf_counter() - before
            more = step.number < settings.steps
            snap = more and _due(step.number, settings.snapshot_every)
            look = more and _due(step.number, settings.eval_every)
            if snap or look or not more or not step.late:
                report()
            if snap:
                tuner.snapshot()
            if look:
                metrics = _evaluate_if(data.held_out, evaluate_now)
            if callback.should_stop():
                report()
                if not tuner.replays:
                    tuner.snapshot()
                break
        finished = tuner.step_index >= settings.steps
        if finished:
            metrics = _evaluate_if(data.held_out, evaluate_now)
            if settings.keep == "best":
                kept, metrics = _best(run)
                metrics_file.write(step=tuner.step_index, kept=kept)
                tuner.save(at_step=kept)
            else:
                tuner.save()
    finally:
        metrics_file.close()
        tuner.close()
    return Result(
        run,
        tuner.step_index,
        min(kept, tuner.step_index),
        finished,
        skipped,
        time.perf_counter() - started,
        metrics,
        data.task.truncated,
        len(data.train),
    )


def _best(run: RunFolder) -> tuple[int, Metrics]:
    """Returns the step of the best evaluation so far, the earliest of equals, and its metrics."""
    lines = [line for line in run.read_metrics() if "eval" in line]
    found = [(line["step"], Metrics.from_json(line["eval"])) for line in lines]
    return max(found, key=lambda pair: (pair[1].rank, -pair[0]))


def _due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


def _evaluate_if(examples: Sequence[BaseExample], run: Callable[[], Metrics]) -> Metrics | None:
    """Returns `run()` if there are examples to run on."""
    return run() if examples else None
