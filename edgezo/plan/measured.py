"""What a rehearsal measured, and what follows from it for other methods and smaller parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgezo.bench.processes import WorkerProcess
from edgezo.settings import RunSettings
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.memory import free_bytes

WORKER = "edgezo.cli.rehearsal_worker"


@dataclass(frozen=True)
class Needs:
    """What a method holds in memory besides weights and activations.

    Attributes:
        state: bytes of its state.
        gradients: bytes of the gradients of one step, where a batch in parts adds them up.
    """

    state: int
    gradients: int


@dataclass(frozen=True)
class Opened:
    """A run before its weights are read.

    Attributes:
        weights: bytes of all weights.
        trained: bytes of those that change.
        needs: of each method that can be used.
        refused: why the others cannot, in a sentence.
    """

    weights: int
    trained: int
    needs: Mapping[str, Needs]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Peak:
    """Most memory of a whole process, in bytes.

    Attributes:
        run: of the rehearsed run.
        passes: of its passes alone, where the state is on disk meanwhile; 0 where it stays in
            memory, so that the two always add up.
    """

    run: float
    passes: float

    def of(self, more: int) -> float:
        """Returns the peak of a method that has `more` bytes of state."""
        return max(self.run + more, self.passes)

    def towards(self, other: Peak, share: float) -> Peak:
        """Returns what lies between this and an `other` one, which is no smaller."""
        found = (
            mine + share * max(theirs - mine, 0)
            for mine, theirs in ((self.run, other.run), (self.passes, other.passes))
        )
        return Peak(*found)


@dataclass(frozen=True)
class Rehearsed:
    """What the rehearsal of a method found.

    Attributes:
        method: its name.
        needs: of the method.
        peak: most memory.
        rows: of the heaviest batch.
        cells: rows times tokens, padding included, of the heaviest batch and of its heaviest row.
        seconds: of a step on each of the two.
        mean: cells of the run's mean batch.
        load: seconds until the first step.
        evaluation: seconds of one evaluation.
        own: of this method and others that pass over the data as it does, the seconds of a step
            besides those passes, and how many these are.
    """

    method: str
    needs: Needs
    peak: Peak
    rows: int
    cells: tuple[int, int]
    seconds: tuple[float, float]
    mean: float
    load: float
    evaluation: float
    own: Mapping[str, tuple[float, float]]

    def peak_of(self, needs: Needs) -> float:
        """Returns the peak of a method of the same family, in bytes."""
        return self.peak.of(needs.state - self.needs.state)

    def rows_within(self, needs: Needs, least: Peak, most: float) -> tuple[int, float]:
        """Returns how many rows a pass keep the peak within `most` bytes, and the peak they have.

        It is 0 rows if one alone has more.

        From one row to all it is taken to grow evenly. It grows less where loading the model takes
        the most, so that this is rather too much than too little.

        Args:
            needs: of a method of the same family.
            least: of the rehearsed method with one row a pass.
            most: bytes.
        """
        more = needs.state - self.needs.state
        last = Peak(self.peak.run + needs.gradients, self.peak.passes + needs.gradients)
        for rows in range(self.rows - 1, 0, -1):
            peak = least.towards(last, (rows - 1) / (self.rows - 1)).of(more)
            if peak <= most:
                return rows, peak
        return 0, least.of(more)

    def step(self, method: str, rows: int) -> float:
        """Returns the seconds of a mean step of `method` on `rows` rows a pass."""
        (seconds, passes), (mine, times) = self.own[method], self.own[self.method]
        whole, one = (max(each - mine, 0.0) for each in self.seconds)
        slope, start = whole / self.cells[0], 0.0
        if self.cells[0] > self.cells[1]:
            slope = max(whole - one, 0.0) / (self.cells[0] - self.cells[1])
            start = max(one - slope * self.cells[1], 0.0)
        parts = -(-self.rows // rows)
        return (start * parts + slope * self.mean) * passes / times + seconds


class Stage(WorkerProcess):
    """The process of one rehearsal; leaving the context ends it.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        super().__init__("-m", WORKER)
        self._settings = settings
        self.opened = Opened(0, 0, {}, {})

    def open(self, methods: Sequence[str]) -> Opened:
        """Finds out what the run and each of `methods` hold, before anything is loaded.

        Raises:
            InputError: the bundle or a setting is wrong.
        """
        found = self.call("open", settings=self._settings.to_dict(), methods=list(methods))
        needs = {n: Needs(**v) for n, v in found["methods"].items() if not isinstance(v, str)}
        refused = {n: v for n, v in found["methods"].items() if isinstance(v, str)}
        self.opened = Opened(found["weights"], found["trained"], needs, refused)
        return self.opened

    def run(self, method: str, others: Sequence[str] = ()) -> Rehearsed:
        """Takes steps of `method`; `others` are timed for what they do besides passes.

        Raises:
            InputError: the data is wrong.
            EdgezoError: the process failed, or what it surely needs is not free.
        """
        needs = self.opened.needs[method]
        free, least = free_bytes(), self.opened.trained + needs.state
        if free is not None and least > free:
            raise EdgezoError(
                f"{method} needs more than {least / 1e6:,.0f} MB, of which {free / 1e6:,.0f} MB "
                "are free"
            )
        found: dict[str, Any] = self.call("run", rehearsed=method, methods=[method, *others])
        own = {name: tuple(values) for name, values in found.pop("own").items()}
        cells, seconds = tuple(found.pop("cells")), tuple(found.pop("seconds"))
        peak = Peak(*found.pop("peak"))
        return Rehearsed(method, needs, peak, cells=cells, seconds=seconds, own=own, **found)

    def least(self, method: str) -> Peak:
        """Returns the peak of `method` where rows go through the model one by one.

        Raises:
            InputError: the data is wrong, or the objective is not one of rows.
            EdgezoError: the process failed.
        """
        return Peak(*self.call("least", rehearsed=method))
