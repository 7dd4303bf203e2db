"""The Tuner: tuning steps inside somebody's own loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from edgezo.recipe import recipe_for
from edgezo.run_folder import RunFolder
from edgezo.settings import METHOD_SETTINGS
from edgezo.step import Step
from edgezo.tuner_checks import (
    check_batches,
    check_notes,
    check_options,
    check_rate,
    check_run,
    check_step,
    plain,
)
from edgezo_runtime import adapter_init, journal, snapshot
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import atomic_writer
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.first_order.required import check_graph
from edgezo_runtime.journal import JournalWriter
from edgezo_runtime.methods import make
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.probe import find_rate
from edgezo_runtime.model import Model
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.schedule import learning_rate
from edgezo_runtime.tuning import (
    MemoryJournal,
    Tuning,
    begin_adapter,
    begin_as,
    check_header,
    describe,
)


class Tuner:
    r"""Tunes a model in place, one batch at a time.

    With MeZO each step costs two forward passes and no memory beyond inference:
    :math:`\theta \leftarrow \theta - \eta\, g z` with the slope :math:`g` of the loss along a
    random direction :math:`z`.

    Args:
        model: from `edgezo.load`; its weights change. One tuner at a time has it: one that was made
            for it before takes no more steps.
        method: a name from `edgezo methods`; None: the recipe's for what the model tunes, with its
            `lr`, `eps` and `samples` (see `edgezo.recipe`); where its rate is to be found, give
            `probe`, or the method's default is taken.
        options: the method's other settings by name.
        lr: learning rate of the first step; None: the recipe's or the method's default.
        probe: batches to find the learning rate on, if there is no `lr`; nothing is learnt from
            them.
        eps: perturbation scale, in units of the weights; None: likewise.
        seed: names every random choice.
        weight_decay: decoupled, for matrices.
        samples: directions per step, for methods that have several; None: likewise.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``; the last two need `steps`.
        steps: the run's length.
        run: keep the journal in this folder from the first step on, so that a crash loses nothing;
            without it the journal stays in memory until `save`.
        notes: more for the journal's header: task, data, batch order; plain values with names that
            the header has not.
        settings: what the run's settings.yaml holds; the bundle alone if None.

    Raises:
        InputError: a setting is out of range.

    Example::

        model = edgezo.load("smollm2.edgezo", tune="upper")
        tuner = edgezo.Tuner(model)
        for batch in edgezo.batches("train.jsonl", model, batch_size=16):
            print(tuner.step(batch).loss)

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023.
    """

    _closed = False

    def __init__(
        self,
        model: Model,
        *,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        lr: float | None = None,
        probe: Sequence[BaseBatch] | None = None,
        eps: float | None = None,
        seed: int = 0,
        weight_decay: float = 0.0,
        samples: int | None = None,
        schedule: str = "constant",
        steps: int | None = None,
        run: Path | str | None = None,
        notes: dict[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        check_run(lr, schedule, steps, seed)
        if lr is not None and probe is not None:
            raise InputError("lr is given and probe too: give one of them")
        if probe is not None:
            probe = list(probe)
            if not probe:
                raise InputError("probe has no batches: give at least one, or lr")
            check_batches(probe)
        check_options(options)
        if not model.weights.at_base:
            raise InputError(
                "this model's weights are not its bundle's any more: load the bundle again, or "
                "make a bundle of the tuned weights with `edgezo replay`"
            )
        self.model = model
        if method is None:
            recipe = recipe_for(model.bundle.manifest, model.weights.tune)
            method = recipe.method
            eps = recipe.eps if eps is None else eps
            samples = recipe.samples if samples is None else samples
            if lr is None and probe is None and not isinstance(recipe.lr, str):
                lr = recipe.lr  # one that is to be found needs `probe`
        given = {"weight_decay": weight_decay, "eps": eps, "samples": samples}
        given = {name: value for name, value in given.items() if value is not None}
        made = make(method, model.arena, seed, {**given, **(options or {})})
        if made.graph:
            check_graph(model.bundle, model.device, made.graph)
        engine = describe(model.weights, made)
        kept = check_notes(notes or {}, engine)
        adapter = model.bundle.manifest.adapter
        begin_adapter(model.weights, seed)
        found = None
        if probe is not None:
            if isinstance(made, FirstOrder):
                raise InputError(f"--lr auto is not for {method}, which has gradients: give a rate")
            try:
                found = find_rate(made, [functools.partial(model.loss, batch) for batch in probe])
            finally:
                model.weights.load()
        rate = found.lr if found else made.lr if lr is None else lr
        self._lr, self._schedule, self._steps = rate, schedule, steps
        header = engine | {
            "lr": {"lr": rate, "schedule": schedule, "steps": steps},
            "onnxruntime": onnxruntime().__version__,
            "threads": model.device.threads,
        }
        if found:
            header["probe"] = dataclasses.asdict(found)
        if adapter:
            first = adapter_init.digest(model.weights.first)
            header |= {"adapter": dict(adapter), "adapter_init": first}
        if model.weights.start:
            header["start"] = model.weights.start.describe()
        header = plain(header | kept)
        if run is None:
            self._tuning = Tuning(model.weights, MemoryJournal(header))
        else:
            folder = RunFolder(run)
            resolved = dict(settings or _own_settings(model))
            if "options" in resolved:
                chosen = made.settings()
                named = {n: chosen.pop(n) for n in METHOD_SETTINGS if n in chosen}
                resolved |= named | {"lr": rate, "options": chosen}
            with folder.beginning():
                # Before the journal: a folder with one can be resumed, whenever the crash comes.
                folder.write_settings(resolved)
                _write_beginning(folder, model)
                writer = JournalWriter(folder.journal, header)
            folder.tidy()
            self._tuning = Tuning(model.weights, writer, folder.path)

    @classmethod
    def resume(cls, model: Model, run: Path | str, progress: Any = None) -> Tuner:
        """Continues the run in folder `run` where its journal ends.

        Args:
            model: the run's base bundle, loaded with the run's `tune` and threads.
            run: a RUN folder.
            progress: called with the number of steps replayed so far.

        Raises:
            InputError: the journal is damaged, or was not made from this bundle.
        """
        folder = RunFolder.open(run)
        writer = JournalWriter(folder.journal)
        try:
            check_header(writer.header, model.weights)
            begin_as(writer.header, model.weights, folder.path)
            if model.weights.start:
                model.bind()
            folder.tidy()
            self = cls.__new__(cls)
            self.model = model
            rate = writer.header["lr"]
            self._lr, self._schedule, self._steps = rate["lr"], rate["schedule"], rate["steps"]
            self._tuning = Tuning(model.weights, writer, folder.path)
            self._tuning.catch_up(progress=progress)
        except BaseException:
            writer.close()
            raise
        return self

    @property
    def step_index(self) -> int:
        """Number of steps taken."""
        return self._tuning.steps

    @property
    def skipped(self) -> int:
        """Number of steps whose slope was not finite, so that they updated nothing."""
        self._tuning.keep()
        return sum(record.skipped for record in self._tuning.journal.records)

    @property
    def replays(self) -> bool:
        """Whether the journal alone rebuilds the weights; with true gradients snapshots do."""
        return self.header.get("replay", True)

    @property
    def _turn(self) -> AbstractContextManager[Any]:
        """What a thread holds while others shall find the weights and the journal as they are."""
        return self.model.weights.turn

    @property
    def header(self) -> dict[str, Any]:
        """The journal's header."""
        return self._tuning.journal.header

    def step(
        self, batch: BaseBatch, lr: float | None = None, exact: BaseBatch | None = None
    ) -> Step:
        """Takes one step on `batch` and returns what it found.

        A step that raises leaves no trace; with true gradients, where one is broken off when
        weights are changed already, the run goes back to its newest snapshot or its start, and says
        so in an error. Between steps the run may be stopped, the model
        evaluated, saved, or used for generation: it always holds the unperturbed weights. Other
        threads may do so at any time: they take turns with the step. On a card
        the record of a step is kept when the next one is taken, or as soon as it is asked for; a
        process that is killed then repeats one step more.

        Args:
            batch: from `edgezo.batches`, or made by hand.
            lr: overrides the schedule for this step; it is recorded like any other.
            exact: of Addax: the batch whose true gradients are mixed with the estimate on `batch`.

        Raises:
            InputError: `lr` is out of range, the batch does not suit the model, the tuner is
                closed, or another one was made for the model since.
            EdgezoError: the forward pass failed, the disk is full, or the run diverged.
        """
        check_batches((batch,) if exact is None else (batch, exact))
        loss = BatchLoss(self.model, batch, exact)
        with self._turn:
            self._check_open()
            number = self.step_index + 1
            if lr is None:
                rate = learning_rate(self._lr, self._schedule, number, self._steps)
            else:
                check_rate(lr)
                rate = np.float32(lr)
            taken = self._tuning.start(loss, rate)
            return Step(self._tuning, taken, rate, loss.forwards)

    def snapshot(self) -> None:
        """Writes a snapshot, from which a resume can start; needs `run`."""
        writer = self._tuning.journal
        if not isinstance(writer, JournalWriter):
            raise InputError("a snapshot needs a run folder: give the Tuner run=...")
        self._check_open()
        with self._turn:
            self._tuning.keep()
            self._tuning.mend()
            writer.sync()
            self._write_snapshot(writer.path.parent)

    def _write_snapshot(self, run: Path) -> None:
        records, method = self._tuning.journal.records, self._tuning.method
        snapshot.write(run, records, self.model.weights, method.state)

    def save(self, run: Path | str | None = None, at_step: int | None = None) -> Path:
        """Writes the journal and the tuned weights into a RUN folder and returns its path.

        Saving again into the same folder later brings it up to date.

        Args:
            run: the folder; by default the one that the tuner was given.
            at_step: write the weights, and leave the model, as they were after this step; the
                journal keeps all steps. Not with true gradients, with which a snapshot is written
                besides.

        Raises:
            InputError: another run is there, there is no such step, the tuner's journal is closed,
                or another tuner was made for the model since.
            EdgezoError: the folder cannot be written.
        """
        with self._turn:
            return self._save(run, at_step)

    def _save(self, run: Path | str | None, at_step: int | None) -> Path:
        recorder = self._tuning.journal
        if isinstance(recorder, JournalWriter):
            self._check_open()
        self._tuning.keep()
        self._tuning.mend()
        if at_step is not None:
            check_step(at_step, self.step_index)
            self._tuning.check_rewind()
        if isinstance(recorder, JournalWriter):
            if run is not None and Path(run).resolve() != recorder.path.parent.resolve():
                raise InputError(f"this run is kept in {recorder.path.parent}: save it there")
            recorder.sync()
            folder = RunFolder(recorder.path.parent)
        else:
            if run is None:
                raise InputError("save needs a folder: give it one, or give the Tuner run=...")
            folder = RunFolder(run)
            begun = _begins(folder, recorder)
            with folder.replacing() if begun else folder.beginning():
                folder.write_settings(_own_settings(self.model))
                _write_beginning(folder, self.model)
                _write_journal(folder.journal, recorder)
        if at_step is not None:
            self._tuning.rewind(at_step)
        folder.save_model(self.model.weights)
        if not self.replays:
            self._write_snapshot(folder.path)
        return folder.path

    def close(self) -> None:
        """Closes the journal; the tuner takes no more steps.

        What it keeps in memory can still be saved; a run folder is gone on with by `resume`.
        """
        self._closed = True
        if isinstance(self._tuning.journal, JournalWriter):
            try:
                self._tuning.keep()
            finally:
                self._tuning.journal.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(
                "this tuner is closed: go on with its run by Tuner.resume, or make another Tuner"
            )


def _own_settings(model: Model) -> dict[str, Any]:
    """Returns the settings of a run that was not made of settings."""
    return {
        "bundle": str(model.bundle.folder.resolve()),
        "tune": model.weights.tune,
        "threads": model.device.threads,
    }


def _write_beginning(folder: RunFolder, model: Model) -> None:
    """Writes what the run begins with, where that is not its base alone."""
    if model.bundle.manifest.adapter:
        adapter_init.write(folder.path, model.weights.first)
    if model.weights.start:
        model.weights.start.write(folder.path)


def _begins(folder: RunFolder, recorder: MemoryJournal | Any) -> bool:
    """Whether `folder` holds the beginning of the run that `recorder` has."""
    if not folder.journal.exists():
        return False
    found = journal.read(folder.journal)
    front = journal.encode_header(recorder.header) == journal.encode_header(found.header)
    return front and recorder.records[: len(found.records)] == found.records


def _write_journal(path: Path, recorder: MemoryJournal | Any) -> None:
    front = journal.encode_header(recorder.header)
    crc = int.from_bytes(front[-4:], "little")
    with atomic_writer(path) as file:
        file.write(front)
        for number, record in enumerate(recorder.records, start=1):
            file.write(journal.encode_record(record, number, crc))
