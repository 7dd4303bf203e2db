"""Baselines of a comparison: what the untuned model reaches, and a regression on its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgezo.data.rows import Rows
from edgezo.data.subset import demonstrations
from edgezo.linear_probe import linear_probe, probes
from edgezo.settings import RunSettings
from edgezo.tasks.shots import show_shots
from edgezo.training_data import Drawn, draw, evaluate_held_out
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model, load

ZERO_SHOT, ICL, LINEAR_PROBE = NAMES = ("zero-shot", "icl", "linear-probe")
#: How many solved rows in-context learning shows where nothing is said.
IN_CONTEXT = 8
#: The settings that a baseline depends on.
SETTINGS = (
    "bundle", "data", "eval_data", "out", "prompt", "task", "template", "label_words", "examples",
    "shots", "eval_examples", "objective", "metric", "max_tokens", "batch_size", "seed", "device",
    "threads",
)  # fmt: skip


@dataclass(frozen=True)
class Baseline:
    """A baseline, and how many solved rows it shows before each."""

    name: str
    in_context: int = 0

    def measure(self, settings: RunSettings) -> dict[str, Any] | None:
        """Returns a row's examples, forwards, seconds and metrics; None where it cannot be.

        Args:
            settings: of the data.

        Raises:
            InputError: the data or a setting is wrong, or the model takes no demonstrations.
        """
        model, drawn, held_out = self.prepare(settings)
        assert drawn.held_out is not None  # `compare.plan` saw to it
        if self.name != LINEAR_PROBE:
            rows, task = drawn.held_out, drawn.task
            metrics = evaluate_held_out(model, task, held_out, rows, settings).to_json()
            return metrics | {"examples": self.in_context, "forwards": 0, "seconds": 0.0}
        if not probes(drawn.task):
            return None
        train = drawn.task.encode_rows(drawn.train)
        found = linear_probe(model, drawn.task, train, held_out, settings.batch_size)
        fields = {"examples": len(train), "forwards": found.forwards}
        return found.metrics.to_json() | fields | {"seconds": round(found.seconds, 2)}

    def prepare(self, settings: RunSettings) -> tuple[Model, Drawn, Any]:
        """Returns the model, the rows and the task, and the held-out examples."""
        model = load(settings.bundle, device=settings.device, threads=settings.threads)
        drawn = draw(model, settings)
        if self.in_context:
            if not isinstance(drawn.train, Rows):
                raise InputError(f"{settings.bundle} takes arrays, which no prompt can show")
            show_shots(drawn.task, demonstrations(drawn.train, settings.seed, self.in_context))
        return model, drawn, drawn.task.encode_rows(drawn.held_out)


def baseline_of(name: str, in_context: object = None) -> Baseline | None:
    """Returns the baseline called `name`; None if it is none.

    Raises:
        InputError: `in_context` is no number above 0, or not for this one.
    """
    if name not in NAMES:
        return None
    if name != ICL:
        if in_context is not None:
            raise InputError(f"in_context is a setting of {ICL}, not of {name}: leave it out")
        return Baseline(name)
    count = IN_CONTEXT if in_context is None else in_context
    if type(count) is not int or count < 1:
        raise InputError(f"in_context is {count!r}; use a whole number from 1 on")
    return Baseline(name, count)
