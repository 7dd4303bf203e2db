"""What a run does where no method is named: settings that suit what is tuned, from measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgezo.settings import AUTO, BASE, RunSettings, Settings
from edgezo_runtime import dtypes
from edgezo_runtime.bundle import Manifest, Parameter, open_bundle
from edgezo_runtime.select import ADAPTERS, FULL, SCALES, UPPER, blocks, select

_ARRAYS = "arrays"
_ARRAY_SCALES = "arrays by scales"


@dataclass(frozen=True)
class Recipe:
    """A method, its settings and a number of steps; None: the method's default.

    A method's rate is meant for a language model. Networks of arrays differ in their losses and
    sizes, so that theirs is found on the first batches; eps bounds it, and is larger for them, but
    for scales, which are small numbers in any network.
    """

    method: str = "mezo"
    samples: int | None = None
    eps: float | None = None
    lr: float | str | None = None
    steps: int = 1000
    start: str = BASE
    objective: str = AUTO


#: By what is tuned: a word of `--tune`, weights of a model that takes arrays, with scales among
#: them or not, or weights in float16.
#: Patterns count as blocks.
#: A prefix and a prompt begin at the base: PEFT has no place for fitted rows beside them.
_RECIPES: Mapping[str, Recipe] = {
    UPPER: Recipe("fzoo", samples=16, eps=1.6e-3, lr=5e-3, steps=300, start=AUTO),
    SCALES: Recipe("es", samples=16, eps=3e-4, lr=2e-4, steps=300, start=AUTO),
    FULL: Recipe(eps=1e-3, lr=2e-5, start=AUTO),
    "lora": Recipe("fzoo", samples=16, eps=1e-2, lr=3e-2, steps=300, start=AUTO),
    "prefix": Recipe("fzoo", samples=16, eps=1e-1, lr=3e-2, steps=300),
    "prompt": Recipe("fzoo", samples=16, eps=1e-2, lr=3e-2, steps=300),
    "head": Recipe(start=AUTO),
    "norm": Recipe(start=AUTO),
    "bitfit": Recipe(start=AUTO),
    _ARRAYS: Recipe(eps=1e-2, lr=AUTO),
    _ARRAY_SCALES: Recipe("es", samples=16, eps=3e-4, lr=AUTO, steps=300),
    dtypes.FLOAT16.name: Recipe(
        eps=1e-3, lr=1e-5, start=AUTO
    ),  # few methods keep its small updates
}
_TOLD = ("method", "samples", "eps", "lr", "tune", "steps", "start")


def recipe_for(manifest: Manifest, tune: str) -> Recipe:
    """Returns what suits what is tuned.

    Args:
        manifest: the bundle's.
        tune: what is trained, as `edgezo_runtime.select` has it.

    Raises:
        InputError: `tune` names nothing that the bundle has.
    """
    chosen = select(manifest.parameters, tune)
    scales = any(p.kind == "scale" for p in chosen)
    if manifest.context_length is None:
        return _RECIPES[_ARRAY_SCALES if scales else _ARRAYS]
    if tune not in ADAPTERS:
        if _half(chosen):
            return _RECIPES[dtypes.FLOAT16.name]
        if scales:
            return _RECIPES[SCALES]
    return _RECIPES.get(tune, _RECIPES[UPPER])


def tuned_by_default(manifest: Manifest) -> str:
    """Returns what is tuned where neither a method nor anything to tune is named.

    An adapter that the bundle has; the scales of quantised weights; of a language model the upper
    two thirds of its blocks, which take a higher rate than all weights; in float16, and else,
    everything.
    """
    if manifest.adapter:
        return str(manifest.adapter["kind"])
    if manifest.context_length is None or manifest.form["kind"] == "head":
        return FULL  # a classifier's head may be new
    if any(p.kind == "scale" for p in manifest.parameters):
        return SCALES
    return UPPER if blocks(manifest.parameters) and not _half(manifest.parameters) else FULL


def _half(parameters: Sequence[Parameter]) -> bool:
    return any(p.dtype == dtypes.FLOAT16.name for p in parameters)


def complete(settings: Settings) -> RunSettings:
    """Returns `settings` with nothing left open; where no method is named, the recipe is taken.

    What is given stays as it is. A named method has its own defaults.

    Raises:
        InputError: the bundle is missing or damaged.
    """
    if isinstance(settings, RunSettings):
        return settings
    given = _given(settings)
    if settings.method is None:
        manifest = open_bundle(settings.bundle).manifest
        tune = given.setdefault("tune", tuned_by_default(manifest))
        given = _given(recipe_for(manifest, tune)) | given
    return RunSettings(**given)


def _given(values: Settings | Recipe) -> dict[str, Any]:
    found = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    return {name: value for name, value in found.items() if value is not None}


def told(settings: RunSettings) -> str:
    """Returns what the recipe chose, in a line."""
    chosen = {name: getattr(settings, name) for name in _TOLD} | (settings.options or {})
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in chosen.items()
        if value is not None
    )
