"""What a run tells whoever watches it."""

from __future__ import annotations

from pathlib import Path

from edgezo.evaluate import Metrics
from edgezo.step import Step


class Callback:
    """Watches a run; every method may be overridden, none has to be."""

    def on_replay(self, done: int, total: int) -> None:
        """Called while a resumed run rebuilds its weights."""

    def on_start(self, rows: int) -> None:
        """Called before the labels' rows are fitted on the features of so many rows."""

    def on_no_start(self, reason: str) -> None:
        """Called where a run begins at its base because no labels' rows can or need be fitted."""

    def on_prefix_cache(self, path: Path, size: int) -> None:
        """Called before the frozen layers' outputs are computed and written, `size` bytes."""

    def on_step(self, step: Step, seconds: float) -> None:
        """Called after each step, which took `seconds`."""

    def on_eval(self, step: int, metrics: Metrics) -> None:
        """Called after an evaluation at `step`."""

    def should_stop(self) -> bool:
        """Asked after each step; True ends the run, which can be resumed."""
        return False
