"""The runs that a plan compares.

Methods that pass over the data alike are a family: one of them is rehearsed. Where nothing is said
about what to tune, `adamw` is also tried on LoRA, and on the upper quarter of the blocks with what
is below computed once.

They are preferred in this order: `adamw` (on LoRA, on all weights, on the upper quarter),
`hift-adamw`, `addax`, `ip-sgd`, the recipe, then any other. True gradients come first, since they
learn in a tenth of the steps or fewer; among them an adaptive rate for each weight before plain
SGD, all weights in every step before one group in turn, and Addax before the gradients of the short
rows that it adds to. LoRA ends as high as all weights, in less memory and time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from edgezo.plan.measured import Opened
from edgezo.recipe import complete, tuned_by_default
from edgezo.settings import RunSettings, Settings
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, Manifest
from edgezo_runtime.methods import METHODS
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.hift import Hift
from edgezo_runtime.methods.mixed import Mixed
from edgezo_runtime.select import ADAPTERS, FULL, QUARTER, UPPER

LORA, ADAMW = "lora", "adamw"
#: Preferred to the recipe, in this order.
GRADIENT_METHODS = (ADAMW, "hift-adamw", "addax", "ip-sgd")
#: Usual lengths of runs. HiFT tunes one group a step; an adapter begins at nothing; forward-only
#: methods see one direction.
FIRST_ORDER_STEPS, HIFT_STEPS, ADAPTER_STEPS, FORWARD_ONLY_STEPS = 100, 300, 300, 1000


@dataclass(frozen=True)
class Family:
    """Runs that differ by their state and their own work alone.

    Attributes:
        runs: the first one is rehearsed.
        recipe: whether it is the recipe's.
    """

    runs: tuple[RunSettings, ...]
    recipe: bool = False

    @property
    def title(self) -> str:
        """What is rehearsed."""
        if self.recipe:
            return "the recipe"
        first = self.runs[0]
        return f"{first.method} on {first.tune}" if first.tune != FULL else first.method


def candidates(asked: Settings, manifest: Manifest, opened: Opened, free: float) -> list[Family]:
    """Returns what could be run.

    Args:
        asked: settings of the run, whatever its method.
        manifest: the bundle's.
        opened: which methods the bundle has what they need for.
        free: bytes of memory that this machine has left.
    """
    found = [Family((complete(dataclasses.replace(asked, method=None)),), recipe=True)]
    for names in families():
        usable = [name for name in names if name in opened.needs]
        # The one whose state this machine has no memory for is not rehearsed.
        usable.sort(key=lambda name: opened.trained + opened.needs[name].state > free)
        if usable:
            found.append(Family(tuple(run_of(asked, name) for name in usable)))
    if asked.tune is None:
        found += (Family((run,)) for run in _of_fewer(asked, manifest))
    return found


def _of_fewer(asked: Settings, manifest: Manifest) -> Iterator[RunSettings]:
    """Yields runs of a language model with gradients that tune less than all of it."""
    if GRADIENTS in manifest.files and tuned_by_default(manifest) == UPPER:
        yield run_of(dataclasses.replace(asked, tune=LORA), ADAMW)
        cached = asked.prefix_cache or "float32"
        yield run_of(dataclasses.replace(asked, tune=QUARTER, prefix_cache=cached), ADAMW)


def run_of(asked: Settings, method: str) -> RunSettings:
    """Returns the settings of a run of `method`."""
    steps = asked.steps or usual_steps(method, asked.tune)
    return complete(dataclasses.replace(asked, method=method, steps=steps))


def usual_steps(name: str, tune: str | None = None) -> int:
    """Returns how long a run of the method usually is, by what it tunes."""
    kind = METHODS[name]
    if issubclass(kind, Hift):
        return HIFT_STEPS
    if not issubclass(kind, FirstOrder):
        return FORWARD_ONLY_STEPS
    return ADAPTER_STEPS if tune in ADAPTERS else FIRST_ORDER_STEPS


def preference(run: RunSettings, recipe: bool) -> tuple[int, int, int]:
    """Returns what orders runs, the best first."""
    if recipe:
        return 1, 0, 0
    if run.method in GRADIENT_METHODS:
        fewer = {LORA: 0, QUARTER: 2}
        return 0, GRADIENT_METHODS.index(run.method), fewer.get(run.tune, 1)
    return 2, list(METHODS).index(run.method), 0


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
        return ADAMW if kind.keep_products.default else "ip-sgd"
    return "mezo"
