"""Keeping a run within a limit of memory, by micro-batches where it needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from edgezo.objectives import MEANS
from edgezo.plan.amounts import told_bytes
from edgezo.plan.measured import Rehearsed, Stage
from edgezo.settings import RunSettings
from edgezo_runtime.errors import InputError

#: The share of a limit that a rehearsal may reach: runs of the same settings differ by less.
SAFE = 0.95
_APART = 1.02  # of two rehearsals of the same run: what is advised shall do
_OTHERS = "`edgezo plan` lists what fits"


def fit(settings: RunSettings, limit: int, tell: Callable[[str], None]) -> RunSettings:
    """Returns `settings` with the micro-batches that keep the run's peak memory below `limit`.

    The run is rehearsed with its own method and batches: whole, then in parts if need be.

    Args:
        settings: of the run.
        limit: bytes that the whole process may take, weights and Python included.
        tell: told what is being done.

    Raises:
        InputError: no size of micro-batch keeps it; the message says what would fit.
    """
    most = SAFE * limit
    found = _rehearse(settings, limit, tell)
    peak = found.peak.run
    if peak > most and settings.rows > 1 and settings.objective in MEANS:
        tell(f"measuring one row of {settings.method}")
        with Stage(settings) as stage:
            stage.open([settings.method])
            least = stage.least(settings.method)
        rows = max(found.rows_within(found.needs, least, most)[0], 1)
        while rows:
            settings = dataclasses.replace(settings, micro_batch=rows)
            peak = _rehearse(settings, limit, tell).peak.run
            if peak <= most:
                break
            rows //= 2
    if peak > most:
        needed = min(peak, found.peak.run)  # parts have gradients to add up
        raise InputError(
            f"{settings.method} needs {told_bytes(needed)}, however few rows go through the model "
            f"at once: give --memory {told_bytes(_APART * needed / SAFE)} or more; {_OTHERS}"
        )
    tell(f"predicted peak memory: {told_bytes(peak)} of {told_bytes(limit)}")
    return settings


def _rehearse(settings: RunSettings, limit: int, tell: Callable[[str], None]) -> Rehearsed:
    """Rehearses a run that is not sure to exceed the limit."""
    rows = "1 row" if settings.rows == 1 else f"{settings.rows} rows"
    tell(f"rehearsing {settings.method}, {rows} at a time")
    with Stage(settings) as stage:
        opened = stage.open([settings.method])
        check_weights(opened.weights, limit)
        if settings.method in opened.refused:
            raise InputError(opened.refused[settings.method])
        state = opened.needs[settings.method].state
        if opened.weights + state > limit:
            raise InputError(
                f"{settings.method} holds {told_bytes(state)} of state besides "
                f"{told_bytes(opened.weights)} of weights, which is more than --memory "
                f"{told_bytes(limit)}: give more; {_OTHERS}"
            )
        return stage.run(settings.method)


def check_weights(weights: int, limit: int) -> None:
    """Raises InputError if a limit is below the weights themselves."""
    if limit < weights:
        raise InputError(
            f"--memory {told_bytes(limit)} is below the weights themselves, which take "
            f"{told_bytes(weights)}: give more, or a smaller or quantised model"
        )
