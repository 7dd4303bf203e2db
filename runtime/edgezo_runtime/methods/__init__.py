"""The tuning methods, by name."""

from __future__ import annotations

from typing import Any

from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods.addax import Addax, AddaxWa
from edgezo_runtime.methods.base import Estimate as Estimate
from edgezo_runtime.methods.base import Method as Method
from edgezo_runtime.methods.es import EvolutionStrategies as EvolutionStrategies
from edgezo_runtime.methods.first_order import FIRST_ORDER
from edgezo_runtime.methods.hift import HIFT
from edgezo_runtime.methods.mezo import Mezo as Mezo
from edgezo_runtime.methods.qzo import Qzo as Qzo

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (Mezo, EvolutionStrategies, Qzo, *FIRST_ORDER, *HIFT, Addax, AddaxWa)
}


def make(name: str, arena: Arena, seed: int, settings: dict[str, Any]) -> Method:
    """Returns the method called `name` over `arena`; raises InputError for an unknown one."""
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown; use one of " + ", ".join(METHODS))
    try:
        return METHODS[name](arena, seed, **settings)
    except TypeError as error:
        raise InputError(f"method {name} does not take these settings: {error}") from error
