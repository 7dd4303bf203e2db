"""What somebody gives a Tuner, checked before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import Direction
from edgezo_runtime.schedule import learning_rate

#: What a journal's header has of its own besides what `edgezo_runtime.tuning.describe` says.
_OWN = ("lr", "onnxruntime", "threads", "probe", "adapter", "start")


def check_run(lr: float | None, schedule: str, steps: int | None, seed: int) -> None:
    """Raises InputError if a setting that every method has is out of range; None: not given."""
    if lr is not None:
        check_rate(lr)
    for name, value in (("steps", steps), ("seed", seed)):
        if value is not None and not isinstance(value, Integral):
            raise InputError(f"{name} is {value!r}; use a whole number")
    learning_rate(0.0, schedule, 1, steps)
    Direction(seed, 1)  # refuses a seed out of range


def check_rate(lr: float) -> None:
    """Raises InputError unless `lr` is a finite float32 of 0 or above."""
    if not isinstance(lr, Real) or not 0 <= lr <= float(np.finfo(np.float32).max):
        raise InputError(f"lr is {lr!r}; use a number of 0 or above, such as 1e-5")


def check_options(options: Mapping[str, Any] | None) -> None:
    """Raises InputError unless `options` has values by name."""
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"options is {options!r}; give a mapping of names to values")


def check_batches(batches: Iterable[BaseBatch]) -> None:
    """Raises InputError if one of `batches` is none."""
    for batch in batches:
        if not isinstance(batch, BaseBatch):
            kind = type(batch).__name__
            raise InputError(f"a batch is of type {kind}: take batches from edgezo.batches")


def check_step(step: int, steps: int) -> None:
    """Raises InputError unless `step` is among the `steps` taken, or 0."""
    if not isinstance(step, Integral) or not 0 <= step <= steps:
        raise InputError(
            f"at_step is {step!r}; use a whole number from 0 to {steps}, the steps taken"
        )


def check_notes(notes: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `notes` as a journal will hold them.

    Args:
        notes: for the journal's header.
        engine: what `edgezo_runtime.tuning.describe` says there.

    Raises:
        InputError: they cannot be written as JSON, or have a name that the header has.
    """
    try:
        kept = plain(dict(notes))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"notes cannot be written to a journal ({error}): give text, numbers, lists and "
            "mappings of them"
        ) from error
    own = kept.keys() & {*engine, *_OWN}
    if own:
        raise InputError(
            f"notes has {min(own)!r}, which the journal has of its own: give it another name"
        )
    return kept


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what JSON keeps of `values`, with Python's numbers for NumPy's."""
    return json.loads(json.dumps(values, default=_number))


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is neither text nor a number")
