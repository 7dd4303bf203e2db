"""Search for a learning rate and a perturbation scale by successive halving."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezo.adapted import AddAdapter
from edgezo.callbacks import Callback
from edgezo.compare import advance, check_same
from edgezo.evaluate import Metrics
from edgezo.recipe import complete
from edgezo.run_folder import RunFolder, is_run
from edgezo.settings import RunSettings, Settings
from edgezo.unchanged import check_unchanged
from edgezo_runtime import journal
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.tuning import MAX_CONSECUTIVE_SKIPS


@dataclass(frozen=True)
class Trial:
    """A choice of settings, and how far it got.

    Attributes:
        chosen: the settings that differ between trials, by name.
        steps: steps taken.
        metrics: the held-out metrics after them; None where the run diverged.
    """

    chosen: Mapping[str, Any]
    steps: int
    metrics: Metrics | None

    @property
    def loss(self) -> float:
        """The held-out loss; infinite where the run diverged."""
        if self.metrics is None or math.isnan(self.metrics.loss):
            return math.inf
        return self.metrics.loss


def search(
    settings: Settings,
    grid: Mapping[str, Sequence[Any]],
    watch: Callable[[Mapping[str, Any], RunSettings], contextlib.AbstractContextManager[Callback]],
    report: Callable[[Trial], None],
    add: AddAdapter | None = None,
) -> list[Trial] | None:
    """Runs every choice of `grid` for a few steps, the better half for twice as many, and so on.

    A trial is a run that stops and later goes on, by its journal, with the schedule of its full
    length: no more weights are held than one run has.

    Args:
        settings: of all trials; their folders lie in ``out``, and the last trial standing runs for
            all ``steps``.
        grid: the values to try of each setting.
        watch: makes what watches a trial's run.
        report: told of each trial after each round.
        add: puts the runs' adapter into the bundle, where it has none.

    Returns:
        The trials, the best one first: those that got further, then by their held-out loss. None if
        the search was stopped.

    Raises:
        InputError: bad settings or data; data or a bundle that changed since the first trial.
        EdgezoError: a run failed for another reason than that it diverged.

    References:
        Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
        Optimization", AISTATS 2016.
    """
    settings = complete(settings)
    names, columns = list(grid), list(grid.values())
    choices = [dict(zip(names, values, strict=True)) for values in itertools.product(*columns)]
    rounds = max(len(choices) - 1, 0).bit_length()
    unit = settings.steps >> rounds
    if not unit:
        raise InputError(
            f"{settings.steps} steps are too few to halve {len(choices)} choices; give "
            f"{1 << rounds} or more"
        )
    check_unchanged(Path(settings.out), [("", settings)])
    alive, ended = choices, []
    for number in range(rounds + 1):
        steps = settings.steps if number == rounds else unit << number
        trials = []
        for chosen in alive:
            trial = _advance(settings, chosen, steps, unit, watch, add)
            if trial is None:
                return None
            report(trial)
            trials.append(trial)
        trials.sort(key=lambda trial: trial.loss)
        half = 0 if number == rounds else -(-len(trials) // 2)
        alive = [trial.chosen for trial in trials[:half] if trial.loss < math.inf]
        ended = [*trials[len(alive) :], *ended]
        if not alive:
            break
    return ended


def _advance(
    settings: RunSettings,
    chosen: Mapping[str, Any],
    steps: int,
    unit: int,
    watch: Callable[[Mapping[str, Any], RunSettings], contextlib.AbstractContextManager[Callback]],
    add: AddAdapter | None,
) -> Trial | None:
    """Takes the run of one choice to `steps`; None if it was stopped before."""
    name = ",".join(f"{key}={value}" for key, value in chosen.items())
    folder = str(Path(settings.out) / name)
    values = {**settings.to_dict(), **chosen, "out": folder, "eval_every": unit}
    own = RunSettings.from_dict(values, "the search")
    run = RunFolder(folder)
    if is_run(run.path):
        check_same(own)
        saved = steps < settings.steps or run.weights.is_file()
        if saved and (metrics := _known(run, steps)):
            return Trial(chosen, steps, metrics)
    try:
        if not _diverged(run):
            with watch(chosen, own) as watcher:
                result = advance(own, _Until(steps, watcher), add)
            return Trial(chosen, steps, result.metrics) if result.steps >= steps else None
    except EdgezoError:
        if not _diverged(run):
            raise
    return Trial(chosen, len(journal.read(run.journal).records), None)


def _known(run: RunFolder, steps: int) -> Metrics | None:
    """Returns the metrics after `steps` of a run that got there before."""
    found = [
        line["eval"] for line in run.read_metrics() if "eval" in line and line["step"] == steps
    ]
    return Metrics.from_json(found[-1]) if found else None


def _diverged(run: RunFolder) -> bool:
    if not run.journal.exists():
        return False
    return journal.consecutive_skips(journal.read(run.journal).records) >= MAX_CONSECUTIVE_SKIPS


class _Until(Callback):
    """Stops a run after a step, or when the watcher that it tells everything wants to."""

    def __init__(self, steps: int, watcher: Callback) -> None:
        self._steps = steps
        self._watcher = watcher
        self._done = 0
        self.on_replay = watcher.on_replay
        self.on_eval = watcher.on_eval

    def on_step(self, step: Any, seconds: float) -> None:
        self._done = step.number
        self._watcher.on_step(step, seconds)

    def should_stop(self) -> bool:
        return self._done >= self._steps or self._watcher.should_stop()
