"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgezo.callbacks import Callback
from edgezo.evaluate import Metrics
from edgezo.tuner import Step
from edgezo_runtime.memory import resident_bytes

_PLAIN_SECONDS = 10.0
_STOPS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a scheduler sends first
_SMOOTHING = 0.95


def _terminal_bar() -> Progress | None:
    """Returns a bar if somebody watches the standard error."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
    )


@contextlib.contextmanager
def eval_progress() -> Iterator[Callable[[int, int], None]]:
    """Gives what an evaluation tells its progress to: a bar on a terminal, nothing elsewhere."""
    bar = _terminal_bar()
    if bar is None:
        yield lambda done, total: None
        return
    task = bar.add_task("evaluating", total=None, status="")
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)


class RunProgress(Callback):
    """Shows a run's loss, speed and memory, and turns Ctrl-C into a stop after the step.

    Args:
        steps: the run's length.
        quiet: print nothing.
    """

    def __init__(self, steps: int, quiet: bool = False) -> None:
        self._steps = steps
        self._quiet = quiet
        self._loss: float | None = None
        self._seconds: float | None = None
        self._stopping = False
        self._last_line = time.monotonic()
        self._bar = None if quiet else _terminal_bar()
        if self._bar:
            self._task = self._bar.add_task("tuning", total=steps, status="")

    def __enter__(self) -> RunProgress:
        self._handlers = {number: signal.signal(number, self._interrupt) for number in _STOPS}
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._bar:
            self._bar.stop()

    def on_replay(self, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=done, status="replaying the journal")

    def on_start(self, rows: int) -> None:
        self._print(f"fitting the labels on the features of {rows} rows")

    def on_no_start(self, reason: str) -> None:
        self._print(f"no start from a probe: {reason}")

    def on_prefix_cache(self, path: Path, size: int) -> None:
        self._print(f"writing the frozen layers' outputs to {path}, {size / 1e6:.1f} MB")

    def on_step(self, step: Step, seconds: float) -> None:
        kept = _SMOOTHING if step.number > 20 else 0.8
        self._loss = _smoothed(self._loss, step.loss, kept)
        self._seconds = _smoothed(self._seconds, seconds, kept)
        status = (
            f"loss {self._loss:.3f}  {1 / max(self._seconds, 1e-9):.1f} steps/s  "
            f"{resident_bytes() / 1e6:.0f} MB"
        )
        if self._bar:
            self._bar.update(self._task, completed=step.number, status=status)
        elif time.monotonic() - self._last_line >= _PLAIN_SECONDS or step.number == self._steps:
            self._last_line = time.monotonic()
            self._print(f"step {step.number}/{self._steps}  {status}")

    def on_eval(self, step: int, metrics: Metrics) -> None:
        self._print(f"step {step}/{self._steps}  held-out {metrics}")

    def should_stop(self) -> bool:
        return self._stopping

    def _print(self, line: str) -> None:
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(line)
        else:
            click.echo(line, err=True)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        self._print("stopping after this step; press Ctrl-C again to stop at once")


def _smoothed(old: float | None, new: float, kept: float) -> float:
    return new if old is None else kept * old + (1 - kept) * new
