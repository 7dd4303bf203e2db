"""Which methods fit in some memory and time, and the one to take.

Methods that pass over the data alike are a family: one of them is rehearsed, and of the others the
state that they declare and the time of their own work make the difference. The recipe, which is
taken where no method is named, is rehearsed with its own settings.

The pick is the first of these that fits: `adamw`, `hift-adamw`, `addax`, `ip-sgd`, the recipe, then
any other. True gradients come first, since they learn in a tenth of the steps or fewer; among them
an adaptive rate for each weight before plain SGD, all weights in every step before one group in
turn, and Addax before the gradients of the short rows that it adds to. With a limit of time a
method must get through half of its usual steps to be taken in this order; if none does, the one
that gets furthest is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgezo.objectives import MEANS
from edgezo.plan.amounts import told_bytes
from edgezo.plan.limit import SAFE, check_weights, fit
from edgezo.plan.measured import Needs, Opened, Rehearsed, Stage
from edgezo.recipe import complete
from edgezo.settings import RunSettings, Settings
from edgezo_runtime.bundle import TANGENTS
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.memory import free_bytes
from edgezo_runtime.methods import METHODS
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.hift import Hift
from edgezo_runtime.methods.mixed import Mixed

#: Preferred to the recipe, in this order.
GRADIENTS = ("adamw", "hift-adamw", "addax", "ip-sgd")
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

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, in MB and seconds."""
        cut = {} if self.run.micro_batch is None else {"micro_batch": self.run.micro_batch}
        return {
            "method": self.run.method,
            "tune": self.run.tune,
            "recipe": self.recipe,
            "steps": self.run.steps,
            **cut,
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
        enough = (each for each in fitting if each.run.steps >= _ENOUGH * each.usual)
        furthest = max(fitting, key=lambda each: each.run.steps / each.usual, default=None)
        return next(enough, furthest)

    def nothing_fits(self, limits: Limits) -> str:
        """Returns the sentence that says what would fit."""
        if any(each.peak <= limits.most for each in self.alternatives):
            least = min(self.alternatives, key=lambda each: each.seconds)
            return f"nothing fits in --time: a step of {least.title} needs {least.seconds:.0f} s"
        least = min(self.alternatives, key=lambda each: each.peak)
        return (
            f"nothing fits in --memory {told_bytes(limits.memory)}: {least.title} needs the "
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
    with Stage(_run_of(asked, "mezo")) as stage:
        opened = stage.open(list(METHODS))
    check_weights(opened.weights, limits.memory)
    free = free_bytes() or math.inf
    groups = [[complete(dataclasses.replace(asked, method=None))]]
    for names in families():
        usable = [name for name in names if name in opened.needs]
        # The one whose state this machine has no memory for is not rehearsed.
        usable.sort(key=lambda name: opened.trained + opened.needs[name].state > free)
        groups.append([_run_of(asked, name) for name in usable])
    found: list[Alternative] = []
    unavailable = dict(opened.refused)
    failure: EdgezoError | None = None
    for number, runs in enumerate(filter(None, groups)):
        told = "the recipe" if number == 0 else runs[0].method
        tell(f"rehearsing {told} ({number + 1} of {sum(map(bool, groups))})")
        try:
            found += _alternatives(runs, number == 0, limits)
        except EdgezoError as error:
            failure = error
            unavailable |= {told if number == 0 else run.method: str(error) for run in runs}
    if failure and not found:
        raise failure
    found.sort(key=_preference)
    return Plan(tuple(found), unavailable)


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
    tell(f"the plan: {pick.title}, {pick.run.steps} steps")
    return fit(pick.run, limit, tell)


def families() -> list[list[str]]:
    """Returns the names of the methods that pass over the data alike, the rehearsed one first."""
    groups: dict[str, list[str]] = {}
    for name in METHODS:
        groups.setdefault(_first(name), []).append(name)
    return [sorted(names, key=lambda name: name != first) for first, names in groups.items()]


def _first(name: str) -> str:
    kind = METHODS[name]
    if issubclass(kind, Mixed) or kind.graph == TANGENTS:
        return name  # which rows it takes, or how it passes over them, is its own
    if issubclass(kind, Hift):
        return "hift-adamw"
    if issubclass(kind, FirstOrder):
        return "adamw" if kind.keep_products.default else "ip-sgd"
    return "mezo"


def usual_steps(name: str) -> int:
    """Returns how long a run of the method usually is."""
    kind = METHODS[name]
    if issubclass(kind, Hift):
        return HIFT_STEPS
    return FIRST_ORDER_STEPS if issubclass(kind, FirstOrder) else FORWARD_ONLY_STEPS


def _run_of(asked: Settings, method: str) -> RunSettings:
    """Returns the settings of a run of `method`."""
    steps = asked.steps or usual_steps(method)
    return complete(dataclasses.replace(asked, method=method, steps=steps))


def _preference(each: Alternative) -> tuple[int, int]:
    """Returns what orders alternatives, the best first."""
    if each.recipe:
        return 1, 0
    if each.run.method in GRADIENTS:
        return 0, GRADIENTS.index(each.run.method)
    return 2, list(METHODS).index(each.run.method)


def _alternatives(runs: list[RunSettings], recipe: bool, limits: Limits) -> list[Alternative]:
    """Rehearses the first of the `runs`, and says what all of them need."""
    first, names = runs[0], [run.method for run in runs]
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
        _alternative(run, recipe, rehearsed, opened.needs[run.method], least, limits)
        for run in runs
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
    least: int | None,
    limits: Limits,
) -> Alternative:
    """Returns what a run of the rehearsed one's family needs; `least` as for `rows_within`."""
    rows, peak = rehearsed.rows, float(rehearsed.peak_of(needs))
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
