"""A run from settings to RUN folder, and its continuation after a stop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezo.adapted import AddAdapter, open_adapted
from edgezo.callbacks import Callback
from edgezo.data.batches import BatchPlan
from edgezo.data.mixed import MIXED, MixedPlan
from edgezo.head_start import HeadStart, NoStart, check_start, fit_head
from edgezo.objectives import MEANS
from edgezo.prefix import cached_prefix, check_prefix
from edgezo.recipe import complete
from edgezo.run_folder import SETTINGS, RunFolder
from edgezo.run_loop import Order, Result, take_steps
from edgezo.settings import (
    ADAPTER_SETTINGS,
    AUTO,
    BASE,
    METHOD_SETTINGS,
    PROBE,
    RunSettings,
    Settings,
)
from edgezo.tasks.prompts import is_name
from edgezo.training_data import OPTIONAL_NOTES, TrainingData, prepare
from edgezo.tuner import Tuner
from edgezo.tuner_checks import check_run
from edgezo_runtime import journal
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.required import check_graph
from edgezo_runtime.methods import METHODS
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.options import choose
from edgezo_runtime.methods.probe import PROBES
from edgezo_runtime.model import Model, load
from edgezo_runtime.tuning import begin_adapter


def train(
    settings: Settings,
    callback: Callback | None = None,
    model: Model | None = None,
    add: AddAdapter | None = None,
) -> Result:
    """Tunes a bundle as `settings` say.

    Args:
        settings: of the run; what they leave open is completed by the recipe.
        callback: watches it.
        model: the settings' bundle if it is loaded already.
        add: puts the settings' adapter into a bundle that has none.

    Raises:
        InputError: bad settings, data or bundle.
        EdgezoError: a full disk, or a run that diverged.
    """
    settings = complete(settings)
    RunFolder(settings.out).check_new()
    if model is None:
        bundle = open_adapted(settings.bundle, settings.adapter(), add)
        model = load(bundle, tune=settings.tune, device=settings.device, threads=settings.threads)
    check_method(settings)
    if graph := METHODS[settings.method].graph:
        check_graph(model.bundle, model.device, graph)
    data = prepare(model, settings)
    callback = callback or Callback()
    check_prefix(model, data, settings)
    head = head_start(model, data, settings, callback)
    if data.notes["task"].get("own_tokens") and not model.weights.start:
        data = prepare(model, dataclasses.replace(settings, start=BASE))
    order = batch_order(data, settings)
    resolved = settings.to_dict() | {"start": PROBE if model.weights.start else BASE}
    resolved |= {"threads": model.device.threads, "tune": model.weights.tune}
    resolved |= _adapter_settings(model.bundle.manifest.adapter)
    resolved["bundle"] = str(Path(settings.bundle).resolve())
    resolved["data"] = str(Path(settings.data).resolve())
    if settings.eval_data:
        resolved["eval_data"] = str(Path(settings.eval_data).resolve())
    if settings.prompt and not is_name(settings.prompt):
        resolved["prompt"] = str(Path(settings.prompt).resolve())
    # A cache is written there first; otherwise bad settings leave no folder behind.
    run = RunFolder.create(settings.out) if settings.prefix_cache else RunFolder(settings.out)
    with cached_prefix(model, run, data, settings, callback):
        tuner = _tuner(model, settings, data, resolved)
        return take_steps(tuner, run, settings, data, order, callback, head)


def _tuner(
    model: Model, settings: RunSettings, data: TrainingData, resolved: Mapping[str, Any]
) -> Tuner:
    return Tuner(
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


def check_method(settings: RunSettings) -> None:
    """Raises InputError if there is no such method, or the settings ask what it cannot do.

    It needs neither model nor data, so that nobody waits for either to hear it.
    """
    known = METHODS.get(settings.method)
    if known is None:
        raise InputError(f"method {settings.method!r} is unknown; use one of " + ", ".join(METHODS))
    own = {name: getattr(settings, name) for name in METHOD_SETTINGS} | (settings.options or {})
    given = {name: value for name, value in own.items() if value is not None}
    choose(known, f"method {settings.method}", given)
    for name, owners in (("zo_batch_size", MIXED), ("length_limit", MIXED[:1])):
        if getattr(settings, name) is not None and settings.method not in owners:
            raise InputError(
                f"{name} is a setting of {' and '.join(owners)}, not of {settings.method}"
            )
    rate = None if isinstance(settings.lr, str) else settings.lr
    check_run(rate, settings.schedule, settings.steps, settings.seed)
    if known.graph and settings.objective not in MEANS:
        raise InputError(
            f"--objective {settings.objective} has no gradient, which {settings.method} needs: "
            f"use {' or '.join(MEANS)}, or a method that needs none, such as mezo"
        )
    if not issubclass(known, FirstOrder):
        return
    if settings.keep == "best":
        raise InputError(
            f"--keep best goes back to a step through the journal, and a run of {settings.method} "
            "cannot be replayed: leave --keep out"
        )
    if settings.lr == AUTO:
        raise InputError(
            f"--lr auto is not for {settings.method}, which has gradients: give a rate"
        )


def head_start(
    model: Model, data: TrainingData, settings: RunSettings, callback: Callback | None = None
) -> HeadStart | None:
    """Gives the labels' rows the values that a regression finds, if the settings say so.

    With ``"auto"`` they stay as they are where there is nothing to fit, or where what was fitted
    does not predict rows better that it was not fitted on.

    Returns:
        What was fitted; None where nothing was.

    Raises:
        InputError: a start from a probe is asked for, and there is nothing to fit.
    """
    if settings.start == BASE:
        return None
    callback = callback or Callback()
    try:
        check_start(model, data.task)
        callback.on_start(len(data.train))
        begin_adapter(model.weights, settings.seed)  # the features are read through it
        head = fit_head(model, data.task, data.train, settings.rows)
    except NoStart as reason:
        if settings.start == PROBE:
            raise InputError(
                f"--start probe is not for this run: {reason}; leave it out"
            ) from reason
        callback.on_no_start(str(reason))
        return None
    if settings.start == PROBE or head.helps:
        model.begin_at(head.start)
    else:
        callback.on_no_start("rows that were left out are predicted better by the base")
    return head


def _first_batches(data: TrainingData, settings: RunSettings) -> list[BaseBatch]:
    plan = BatchPlan([e.length for e in data.train], settings.batch_size, settings.seed)
    return [data.batch(plan.indices(number)) for number in range(1, PROBES + 1)]


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
    kept = run.read_settings()
    if "data" not in kept:
        raise InputError(
            f"{path} is a run of a program, which alone knows its data: continue it there, with "
            f"Tuner.resume(model, {str(path)!r})"
        )
    settings = RunSettings.from_dict(kept | {"out": str(run.path)}, str(run.path / "settings.yaml"))
    header = journal.read(run.journal).header
    _check_settings(settings, header, run)
    bundle = open_adapted(settings.bundle, header.get("adapter"), add)
    model = load(bundle, tune=settings.tune, device=settings.device, threads=settings.threads)
    data = prepare(model, settings)
    files = " and ".join(file for file in (settings.data, settings.prompt) if file)
    for name in (*data.notes, *OPTIONAL_NOTES):
        if header.get(name) != data.notes.get(name):
            raise InputError(
                f"{name} is not what it was when {run.path} began, so the run cannot go on as it "
                f"would have: restore {files}, or start a new run"
            )
    order = batch_order(data, settings)
    tuner = Tuner.resume(model, run.path, lambda n: callback.on_replay(n, settings.steps))
    with contextlib.closing(tuner), cached_prefix(model, run, data, settings, callback):
        return take_steps(tuner, run, settings, data, order, callback)


def _check_settings(settings: RunSettings, header: Mapping[str, Any], run: RunFolder) -> None:
    """Raises InputError where a run's settings were edited: its journal fixes them."""
    fixed = {
        "tune": header["tune"],
        "method": header["method"],
        "seed": header["seed"],
        "start": PROBE if header.get("start") else BASE,
        **header["lr"],
        **{n: header["settings"][n] for n in ("eps", "weight_decay") if n in header["settings"]},
        "options": settings.options
        and {name: header["settings"].get(name) for name in settings.options},
        "prefix_cache": header.get("prefix_cache"),
        **_adapter_settings(header.get("adapter", {})),
    }
    for name, value in fixed.items():
        value = tuple(value) if isinstance(value, list) else value
        if getattr(settings, name) != value:
            raise InputError(
                f"{run.path / SETTINGS} sets {name} to {getattr(settings, name)!r}, but the run "
                f"began with {value!r}: restore it, or start a new run"
            )


def batch_order(data: TrainingData, settings: RunSettings) -> Order:
    """Returns what says which examples form the batch of a step.

    It gives two sets of them where true gradients are of another batch than the estimate.

    Raises:
        InputError: the rows cannot be assigned.
    """
    lengths = [example.length for example in data.train]
    size = settings.batch_size
    if settings.method not in MIXED:
        plan = BatchPlan(lengths, size, settings.seed)
        return lambda step: (plan.indices(step), None)
    assign = settings.method == MIXED[0]
    estimated = settings.zo_batch_size or size
    mixed = MixedPlan(lengths, size, estimated, settings.seed, assign, settings.length_limit)
    return mixed.indices
