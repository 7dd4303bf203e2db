"""Which methods fit in some memory and time, and the one to take.

Methods that pass over the data alike are a family: one of them is rehearsed, and of the others the
state that they declare and the time of their own work make the difference.

The pick is the first of these that fits: `adamw`, `hift-adamw`, `addax`, `ip-sgd`, `mezo`, then any
other. True gradients come first, since they learn in a tenth of the steps or fewer; among them an
adaptive rate for each weight before plain SGD, all weights in every step before one group in turn,
and Addax before the gradients of the short rows that it adds to. With a limit of time a method must
get through half of its usual steps to be taken in this order; if none does, the one that gets
furthest is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgezo.objectives import MEANS
from edgezo.plan.amounts import told_bytes
from edgezo.plan.limit import SAFE, check_weights, fit
from edgezo.plan.measured import Needs, Opened, Rehearsed, Stage
from edgezo.settings import Settings
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.memory import free_bytes
from edgezo_runtime.methods import METHODS
from edgezo_runtime.methods.addax import Addax
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.hift import Hift

ORDER = ("adamw", "hift-adamw", "addax", "ip-sgd", "mezo")
#: Usual lengths of runs. HiFT tunes one group a step; forward-only methods see one direction.
FIRST_ORDER_STEPS, HIFT_STEPS, FORWARD_ONLY_STEPS = 100, 300, 1000
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
    """A method, and what a run of it would need.

    Attributes:
        method: its name.
        peak: predicted peak memory of the whole process, in bytes.
        seconds: predicted time of the run: loading, steps and evaluations.
        steps: that the seconds are of.
        usual: steps without a limit of time.
        micro_batch: rows per pass, where the memory asks for fewer than a step has.
        fits: whether it keeps the limits.
    """

    method: str
    peak: float
    seconds: float
    steps: int
    usual: int
    micro_batch: int | None
    fits: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make a run of it."""
        found = {"method": self.method, "steps": self.steps, "micro_batch": self.micro_batch}
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, in MB and seconds."""
        return {
            **self.settings,
            "predicted_peak_rss_mb": round(self.peak / 1e6, 1),
            "predicted_seconds": round(self.seconds, 1),
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Plan:
    """What fits.

    Attributes:
        alternatives: of all methods that can be used, in the order in which they are preferred.
        unavailable: why the others cannot, in a sentence.
    """

    alternatives: tuple[Alternative, ...]
    unavailable: dict[str, str]

    @property
    def pick(self) -> Alternative | None:
        """The one to take; None if none fits."""
        fitting = [each for each in self.alternatives if each.fits]
        enough = [each for each in fitting if each.steps >= _ENOUGH * each.usual]
        return next(
            iter(enough), max(fitting, key=lambda each: each.steps / each.usual, default=None)
        )

    def nothing_fits(self, limits: Limits) -> str:
        """Returns the sentence that says what would fit."""
        if any(each.peak <= limits.most for each in self.alternatives):
            least = min(self.alternatives, key=lambda each: each.seconds)
            return f"nothing fits in --time: a step of {least.method} needs {least.seconds:.0f} s"
        least = min(self.alternatives, key=lambda each: each.peak)
        return (
            f"nothing fits in --memory {told_bytes(limits.memory)}: {least.method} needs the "
            f"least, {told_bytes(least.peak / SAFE)}"
        )


def make_plan(
    settings: Settings, limits: Limits, steps: int | None, tell: Callable[[str], None]
) -> Plan:
    """Rehearses every family of methods and returns what each method would need.

    Args:
        settings: of the run, whatever its method.
        limits: of memory and time.
        steps: of the run; None: as many as is usual for a method.
        tell: told what is being done.

    Raises:
        InputError: the bundle, the data or a setting is wrong, or the limit is below the weights.
    """
    with Stage(settings) as stage:
        opened = stage.open(list(METHODS))
    check_weights(opened.weights, limits.memory)
    usable = [[name for name in names if name in opened.needs] for names in families()]
    usable = [names for names in usable if names]
    found: list[Alternative] = []
    unavailable = dict(opened.refused)
    failure = EdgezoError(next(iter(unavailable.values()), ""))
    free = free_bytes() or math.inf
    for number, names in enumerate(usable, start=1):
        # The one whose state this machine has no memory for is not rehearsed.
        names.sort(key=lambda name: opened.trained + opened.needs[name].state > free)
        first, *others = names
        tell(f"rehearsing {first} ({number} of {len(usable)})")
        try:
            own = dataclasses.replace(settings, method=first, steps=steps or usual_steps(first))
            rehearsed, least = _rehearse(own, others, opened, limits)
        except EdgezoError as error:
            failure = error
            unavailable |= dict.fromkeys(names, str(error))
            continue
        for name in names:
            usual, needs = steps or usual_steps(name), opened.needs[name]
            found.append(_alternative(own, rehearsed, name, limits, needs, least, usual))
    if not found:
        raise failure
    preferred = [*ORDER, *(name for name in METHODS if name not in ORDER)]
    found.sort(key=lambda each: preferred.index(each.method))
    return Plan(tuple(found), unavailable)


def choose(
    given: Mapping[str, Any], source: str, limit: int, tell: Callable[[str], None]
) -> Settings:
    """Returns settings that keep a run within `limit`, with the plan's method if none is `given`.

    Args:
        given: the settings that somebody gave.
        source: where, for errors.
        limit: bytes that the whole process may take, weights and Python included.
        tell: told what is being done.

    Raises:
        InputError: nothing fits; the message says what would.
    """
    settings = Settings.from_dict(given, source)
    if given.get("method") is None:
        steps = settings.steps if given.get("steps") else None
        plan = make_plan(settings, Limits(limit), steps, tell)
        pick = plan.pick
        if pick is None:
            raise InputError(plan.nothing_fits(Limits(limit)))
        tell(f"the plan: {pick.method}, {pick.steps} steps")
        settings = dataclasses.replace(settings, **pick.settings)
    return fit(settings, limit, tell)


def families() -> list[list[str]]:
    """Returns the names of the methods that pass over the data alike, the rehearsed one first."""
    groups: dict[str, list[str]] = {}
    for name in METHODS:
        groups.setdefault(_first(name), []).append(name)
    return [sorted(names, key=lambda name: name != first) for first, names in groups.items()]


def _first(name: str) -> str:
    kind = METHODS[name]
    if issubclass(kind, Addax):
        return name  # which rows it takes is its own
    if issubclass(kind, Hift):
        return "hift-adamw"
    if issubclass(kind, FirstOrder):
        return "adamw" if kind.keeps else "ip-sgd"
    return "mezo"


def usual_steps(name: str) -> int:
    """Returns how long a run of the method usually is."""
    kind = METHODS[name]
    if issubclass(kind, Hift):
        return HIFT_STEPS
    return FIRST_ORDER_STEPS if issubclass(kind, FirstOrder) else FORWARD_ONLY_STEPS


def _rehearse(
    settings: Settings, others: list[str], opened: Opened, limits: Limits
) -> tuple[Rehearsed, int | None]:
    """Rehearses a method, and with one row at a time if it or one of the `others` needs that."""
    first, needs = settings.method, opened.needs
    with Stage(settings) as stage:
        stage.open([first])
        rehearsed = stage.run(first, others)
    small = (name for name in (first, *others) if opened.weights + needs[name].state < limits.most)
    tight = any(rehearsed.peak_of(needs[name]) > limits.most for name in small)
    if not tight or settings.rows < 2 or settings.objective not in MEANS:
        return rehearsed, None
    with Stage(settings) as stage:
        stage.open([first])
        return rehearsed, stage.least(first)


def _alternative(
    settings: Settings,
    rehearsed: Rehearsed,
    name: str,
    limits: Limits,
    needs: Needs,
    least: int | None,
    usual: int,
) -> Alternative:
    """Returns what a method of the rehearsed one's family needs; `least` as for `rows_within`."""
    rows, peak = rehearsed.rows, float(rehearsed.peak_of(needs))
    if peak > limits.most and least is not None:
        part, lower = rehearsed.rows_within(needs, least, limits.most)
        rows, peak = (part, lower) if part else (rows, peak)
    step, every = rehearsed.step(name, rows), settings.eval_every

    def total(steps: int) -> float:
        evaluations = 1 + ((steps - 1) // every if every else 0)
        return rehearsed.load + steps * step + evaluations * rehearsed.evaluation

    steps = usual
    if limits.seconds is not None:
        mean = step + (rehearsed.evaluation / every if every else 0.0)
        left = limits.seconds - rehearsed.load - rehearsed.evaluation
        steps = max(min(usual, math.floor(left / mean)), 1)
    in_time = limits.seconds is None or total(steps) <= limits.seconds
    micro_batch = rows if rows < rehearsed.rows else None
    fits = peak <= limits.most and in_time
    return Alternative(name, peak, total(steps), steps, usual, micro_batch, fits)
