"""A run in progress: weights, method and records that belong together at every moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgezo_runtime import adapter_init, noise, snapshot, start
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import Record, consecutive_skips
from edgezo_runtime.methods import AnyMethod, Estimate, Taken, make
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.weights import Weights

MAX_CONSECUTIVE_SKIPS = 10


class Recorder(Protocol):
    """Takes each step's record: a `JournalWriter`, or a `MemoryJournal`."""

    header: dict[str, Any]
    records: list[Record]

    def append(self, record: Record) -> None: ...

    def cut(self, steps: int) -> None: ...


class MemoryJournal:
    """A journal that is not on disk (yet)."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.header = header
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        """Keeps the record."""
        self.records.append(record)

    def cut(self, steps: int) -> None:
        """Forgets the records after the first `steps`."""
        del self.records[steps:]


def describe(weights: Weights, method: AnyMethod) -> dict[str, Any]:
    """Returns the part of a journal's header that a replay needs."""
    return {
        "schema": 1,
        "base": weights.bundle.digest,
        "tune": weights.tune,
        "layout": weights.arena.digest,
        "method": method.name,
        "settings": method.settings(),
        "scalars": method.scalars,
        "replay": not isinstance(method, FirstOrder),
        "seed": method.seed,
        "noise": noise.VERSION,
        "numpy": np.__version__,
        "adapter_init": None,
    }


def check_header(header: dict[str, Any], weights: Weights) -> None:
    """Checks that a journal belongs to these weights and to this engine.

    Raises:
        InputError: it was made from another base, another choice of parameters, or noise that
            this engine cannot make; or it lacks what a replay needs.
    """
    kinds = {"base": str, "layout": str, "method": str, "settings": dict, "seed": int, "numpy": str}
    for key, kind in kinds.items():
        if not isinstance(header.get(key), kind):
            raise InputError(f"the journal's header has no {key} to replay from: it is damaged")
    if header["base"] != weights.bundle.digest:
        raise InputError(
            f"the journal was not made from {weights.bundle.folder}: its base has manifest "
            f"sha256 {header['base'][:12]}..., give that bundle"
        )
    if header["layout"] != weights.arena.digest:
        raise InputError("the journal's arena layout differs: this edgezo lays weights out anew")
    if header.get("noise") != noise.VERSION:
        raise InputError(
            f"the journal has noise version {header.get('noise')}, "
            f"this edgezo draws {noise.VERSION}"
        )
    method = make(header["method"], weights.arena, header["seed"], header["settings"])
    if header["scalars"] != method.scalars:
        raise InputError(
            f"the journal holds {header['scalars']} scalars a step, "
            f"{method.name} needs {method.scalars}: it is damaged"
        )
    gaussian = header["settings"].get("distribution") == "gaussian"
    if gaussian and header["numpy"] != np.__version__:
        raise InputError(
            f"gaussian noise replays only on the NumPy that drew it: install numpy "
            f"{header['numpy']}"
        )


def begin_adapter(weights: Weights, seed: int) -> None:
    """Gives the adapter's tensors, if there is one, the first values that `seed` draws."""
    if weights.bundle.manifest.adapter:
        parameters, base = weights.arena.parameters, weights.frozen()
        weights.begin(adapter_init.draw(parameters, seed, base, weights.bundle))


def begin_as(header: dict[str, Any], weights: Weights, run: Path) -> None:
    """Gives weights the values that a journal's run began with, where those are not its base's."""
    found = start.restore(header, run, weights.bundle)
    if found is not None:
        weights.begin_at(found)
    if weights.bundle.manifest.adapter:
        parameters, base = weights.arena.parameters, weights.frozen()
        weights.begin(adapter_init.restore(parameters, header, run, base, weights.bundle))


class Tuning:
    """Weights that follow a journal, step by step.

    Args:
        weights: at the journal's start; `catch_up` brings them to its end. From here on they are
            this run's: one that had them before takes no more steps.
        journal: takes the records.
        run: folder with snapshots to rebuild from, if there is one.
    """

    def __init__(self, weights: Weights, journal: Recorder, run: Path | None = None) -> None:
        self.weights = weights
        self._ours = weights.owner = object()
        self.journal = journal
        self._run = run
        self._pending: Taken | None = None  # the step whose record is still on its way
        self._make_method()
        self._whole = True

    @property
    def steps(self) -> int:
        """Number of steps done, the record of the last of which may still be on its way."""
        return len(self.journal.records) + (self._pending is not None)

    def step(self, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Takes the next step, as `start` does, and waits for what it found out."""
        return self.found(self.start(loss, lr))

    def start(self, loss: Callable[[], float], lr: np.float32) -> Taken:
        """Takes the next step; one that raises leaves no trace.

        Where a device computes the slope, its record comes later: it is kept when the next step is
        started, or when somebody asks for it with `found` or `keep`.

        With true gradients, one that raises when weights are changed already goes back to the
        newest snapshot, or to the start.

        Raises:
            InputError: the weights have been handed to another run since.
            EdgezoError: the projected gradient was not finite for several steps in a row.
        """
        with self.weights.turn:
            self.mend()
            with self._keeping():
                taken = self._take(loss, lr)
                self._append()  # of the step before: the device is busy with this one
                self._pending = taken
            last = consecutive_skips(self.journal.records) >= MAX_CONSECUTIVE_SKIPS - 1
            if last or not taken.late:
                self.keep()
            return taken

    def found(self, taken: Taken) -> Estimate:
        """Waits for what a step found out, and keeps its record."""
        with self.weights.turn:
            if self._pending is taken:
                self.keep()
            return taken.wait()

    def keep(self) -> None:
        """Waits for the record that is still on its way, if there is one, and keeps it.

        Raises:
            EdgezoError: as `start`.
        """
        with self.weights.turn:
            if self._pending is None:
                return
            with self._keeping():
                self._append()
        skips = consecutive_skips(self.journal.records)
        if skips >= MAX_CONSECUTIVE_SKIPS:
            raise EdgezoError(
                f"the loss was not finite for {skips} steps in a row: the run diverged, "
                "start again with a lower --lr or another --eps"
            )

    def _take(self, loss: Callable[[], float], lr: np.float32) -> Taken:
        number = self.steps + 1
        if isinstance(self.method, FirstOrder):
            estimate = self.method.step(number, loss, lr)
            return Taken(lambda: estimate)
        return self.method.start(number, loss, lr)

    def _append(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self.journal.append(pending.wait().record)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Within it the weights are not whole; nor are they where it is left by an error."""
        whole = self._whole
        self._whole = self.weights.at_base = False
        try:
            yield
        except BaseException:
            if isinstance(self.method, FirstOrder) and not self.method.changed:
                self._whole = whole
            else:  # Not at once: a process that is about to end would wait for nothing.
                self.weights.mend = self._rebuild
            raise
        self._whole = whole

    def mend(self) -> None:
        """Rebuilds the weights if a step was broken off half way.

        Raises:
            InputError: they have been handed to another run since.
            EdgezoError: as `_rebuild`.
        """
        if self.weights.owner is not self._ours:
            raise InputError(
                "this model's weights follow another run by now: go on with the Tuner that was "
                "made last, and load the bundle once for each"
            )
        if not self._whole:
            self._rebuild()

    def _rebuild(self) -> None:
        """Catches up after a step that was broken off.

        Raises:
            EdgezoError: steps with true gradients are lost by that; the run is whole all the same.
        """
        had = self.steps
        self.catch_up()
        if lost := had - self.steps:
            raise EdgezoError(
                f"a step of {self.method.name} was broken off when weights were changed already: "
                f"they are again what they were after step {had - lost}, the newest snapshot or "
                f"the start, and {lost} steps are lost"
            )

    def catch_up(
        self,
        records: Sequence[Record] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Rebuilds the weights from the newest snapshot, or the base, and the records.

        A run with true gradients goes back to the snapshot and forgets the records after it.

        Args:
            records: up to where; all of the journal's if None.
            progress: called with the number of steps replayed so far.
        """
        self._append()
        records = self.journal.records if records is None else records
        self._whole = False
        self._make_method()
        done = 0
        if self._run is None:
            self.weights.load()
        else:
            done = snapshot.load_newest(self._run, self.weights, records, self.method.state)
            if not done:
                self._make_method()  # a damaged snapshot may have left its state
        if isinstance(self.method, FirstOrder):
            self.journal.cut(done)
            records = self.journal.records
        else:
            self.method.recall(records[:done])
        for number in range(done + 1, len(records) + 1):
            self.method.replay(number, records[number - 1])
            if progress:
                progress(number)
        self.weights.at_base = not records
        self.weights.mend = None
        self._whole = True

    def check_rewind(self) -> None:
        """Raises InputError: the run is one with true gradients, which keeps no way back."""
        if isinstance(self.method, FirstOrder):
            raise InputError(
                f"a run of {self.method.name} cannot go back to its best step: keep the last"
            )

    def rewind(self, step: int) -> None:
        """Rebuilds the weights as of `step`; before the next step they come back to the end.

        Raises:
            InputError: as `check_rewind`.
        """
        self.check_rewind()
        self.keep()
        self.catch_up(self.journal.records[:step])
        self._whole = False

    def _make_method(self) -> None:
        header = self.journal.header
        self.method = make(header["method"], self.weights.arena, header["seed"], header["settings"])
