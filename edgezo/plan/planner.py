"""Which runs fit in some memory and time, and the one to take.

The first that fits is taken, in the order of `candidates`. With a limit of time a run must get
through half of its usual steps to be taken in this order; if none does, the one that gets furthest
is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgezo.objectives import MEANS
from edgezo.plan.amounts import told_bytes
from edgezo.plan.candidates import Family, candidates, preference, run_of
from edgezo.plan.limit import SAFE, check_weights, fit
from edgezo.plan.measured import Needs, Opened, Peak, Rehearsed, Stage
from edgezo.recipe import complete
from edgezo.settings import RunSettings, Settings
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.memory import free_bytes
from edgezo_runtime.methods import METHODS
from edgezo_runtime.select import FULL, resolve

_ENOUGH = 0.5  # of the usual steps


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        memory: bytes of the whole process, weights and Python included.
        seconds: from its start to its end; None: as many as it needs.
    """

    memory: int
    seconds: float | None = None

    @property
    def most(self) -> float:
        """The largest peak, in bytes, that is sure to keep within the memory."""
        return SAFE * self.memory


@dataclass(frozen=True)
class Alternative:
    """A run that could be, and what it would need.

    Attributes:
        run: its settings.
        recipe: whether it is the recipe's.
        peak: predicted peak memory of the whole process, in bytes.
        seconds: predicted time from its start to its end.
        usual: its steps without a limit of time.
        fits: whether it keeps the limits.
    """

    run: RunSettings
    recipe: bool
    peak: float
    seconds: float
    usual: int
    fits: bool

    @property
    def title(self) -> str:
        """The method's name, marked where it is the recipe's."""
        return f"{self.run.method} (recipe)" if self.recipe else self.run.method

    @property
    def told(self) -> str:
        """That, with what it tunes if it is not everything."""
        return self.title if self.run.tune == FULL else f"{self.title} on {self.run.tune}"

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, in MB and seconds."""
        special = {name: getattr(self.run, name) for name in ("prefix_cache", "micro_batch")}
        return {
            "method": self.run.method,
            "tune": self.run.tune,
            "recipe": self.recipe,
            "steps": self.run.steps,
            **{name: value for name, value in special.items() if value is not None},
            "predicted_peak_rss_mb": round(self.peak / 1e6, 1),
            "predicted_seconds": round(self.seconds, 1),
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Unavailable:
    """A method that cannot tune `tune`, and why not, in a sentence."""

    method: str
    tune: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What fits.

    Attributes:
        alternatives: all runs that could be, in the order in which they are preferred.
        unavailable: those that cannot.
    """

    alternatives: tuple[Alternative, ...]
    unavailable: tuple[Unavailable, ...]

    @property
    def pick(self) -> Alternative | None:
        """The one to take; None if none fits."""
        fitting = [each for each in self.alternatives if each.fits]
        enough = (each for each in fitting if each.run.steps >= _ENOUGH * each.usual)
        furthest = max(fitting, key=lambda each: each.run.steps / each.usual, default=None)
        return next(enough, furthest)

    def nothing_fits(self, limits: Limits) -> str:
        """Returns the sentence that says what would fit."""
        if any(each.peak <= limits.most for each in self.alternatives):
            least = min(self.alternatives, key=lambda each: each.seconds)
            return f"nothing fits in --time: a step of {least.told} needs {least.seconds:.0f} s"
        least = min(self.alternatives, key=lambda each: each.peak)
        return (
            f"nothing fits in --memory {told_bytes(limits.memory)}: {least.told} needs the "
            f"least, {told_bytes(least.peak / SAFE)}"
        )


def make_plan(asked: Settings, limits: Limits, tell: Callable[[str], None]) -> Plan:
    """Rehearses the recipe and every family of methods, and returns what each run would need.

    Args:
        asked: settings of the run, whatever its method; without steps each has its usual ones.
        limits: of memory and time.
        tell: told what is being done.

    Raises:
        InputError: the bundle, the data or a setting is wrong, or the limit is below the weights.
    """
    manifest = open_bundle(asked.bundle).manifest
    if manifest.adapter:
        asked = dataclasses.replace(asked, tune=resolve(manifest, asked.tune or FULL))
    start = run_of(asked, "mezo")
    with Stage(start) as stage:
        opened = stage.open(list(METHODS))
    check_weights(opened.weights, limits.memory)
    found: list[Alternative] = []
    unavailable = [Unavailable(name, start.tune, why) for name, why in opened.refused.items()]
    failure: EdgezoError | None = None
    families = candidates(asked, manifest, opened, free_bytes() or math.inf)
    for number, family in enumerate(families, start=1):
        tell(f"rehearsing {family.title} ({number} of {len(families)})")
        try:
            found += _alternatives(family, limits)
        except EdgezoError as error:
            failure = error
            unavailable += (Unavailable(r.method, r.tune, str(error)) for r in family.runs)
    if failure and not found:
        raise failure
    found.sort(key=lambda each: preference(each.run, each.recipe))
    return Plan(tuple(found), tuple(unavailable))


def choose(asked: Settings, limit: int, tell: Callable[[str], None]) -> RunSettings:
    """Returns settings that keep a run within `limit`, by the plan if they name no method.

    Args:
        asked: what somebody asked for.
        limit: bytes that the whole process may take, weights and Python included.
        tell: told what is being done.

    Raises:
        InputError: nothing fits; the message says what would.
    """
    if asked.method is not None:
        return fit(complete(asked), limit, tell)
    plan = make_plan(asked, Limits(limit), tell)
    pick = plan.pick
    if pick is None:
        raise InputError(plan.nothing_fits(Limits(limit)))
    tell(f"the plan: {pick.told}, {pick.run.steps} steps")
    return fit(pick.run, limit, tell)


def _alternatives(family: Family, limits: Limits) -> list[Alternative]:
    """Rehearses the first run of a family, and says what all of them need."""
    first, names = family.runs[0], [run.method for run in family.runs]
    with Stage(first) as stage:
        opened = stage.open(names)
        if first.method in opened.refused:
            raise InputError(opened.refused[first.method])
        rehearsed = stage.run(first.method, names[1:])
    least = None
    if _needs_parts(first, rehearsed, opened, limits):
        with Stage(first) as stage:
            stage.open(names[:1])
            least = stage.least(first.method)
    return [
        _alternative(run, family.recipe, rehearsed, opened.needs[run.method], least, limits)
        for run in family.runs
    ]


def _needs_parts(first: RunSettings, rehearsed: Rehearsed, opened: Opened, limits: Limits) -> bool:
    """Whether a method exceeds the memory that it might keep with micro-batches."""
    if first.rows < 2 or first.objective not in MEANS:
        return False
    small = [each for each in opened.needs.values() if opened.weights + each.state < limits.most]
    return any(rehearsed.peak_of(each) > limits.most for each in small)


def _alternative(
    run: RunSettings,
    recipe: bool,
    rehearsed: Rehearsed,
    needs: Needs,
    least: Peak | None,
    limits: Limits,
) -> Alternative:
    """Returns what a run of the rehearsed one's family needs; `least` as for `rows_within`."""
    rows, peak = rehearsed.rows, rehearsed.peak_of(needs)
    if peak > limits.most and least is not None:
        part, lower = rehearsed.rows_within(needs, least, limits.most)
        rows, peak = (part, lower) if part else (rows, peak)
    step, every = rehearsed.step(run.method, rows), run.eval_every

    def total(steps: int) -> float:
        evaluations = 1 + ((steps - 1) // every if every else 0)
        return rehearsed.load + steps * step + evaluations * rehearsed.evaluation

    steps = run.steps
    if limits.seconds is not None:
        mean = step + (rehearsed.evaluation / every if every else 0.0)
        left = limits.seconds - rehearsed.load - rehearsed.evaluation
        steps = max(min(steps, math.floor(left / mean)), 1)
    in_time = limits.seconds is None or total(steps) <= limits.seconds
    micro_batch = rows if rows < rehearsed.rows else run.micro_batch
    cut = dataclasses.replace(run, steps=steps, micro_batch=micro_batch)
    fits = peak <= limits.most and in_time
    return Alternative(cut, recipe, peak, total(steps), run.steps, fits)
