"""Settings of methods: each says what it is, checks what it is given, and names itself in errors.

A method declares its settings as class attributes; on an instance they are the chosen values::

    class Mezo(...):
        eps = Number(1e-3, above=0)
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar, overload

from edgezo_runtime.errors import InputError

T = TypeVar("T")


class Setting(abc.ABC, Generic[T]):
    """One setting of a method.

    Args:
        default: its value where none is given.
        wanted: what it may be, for errors.
    """

    name: str

    def __init__(self, default: T, wanted: str) -> None:
        self.default = default
        self.wanted = wanted

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: Any, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.chosen[self.name]

    def read(self, value: Any) -> T:
        """Returns `value`, which may be a text, as this setting holds it.

        Raises:
            InputError: it is none that the setting takes.
        """
        try:
            return self._read(value)
        except (TypeError, ValueError, OverflowError):
            label = self.name.replace("_", " ")
            raise InputError(f"{label} is {value!r}; use {self.wanted}") from None

    def usual(self, stride: float) -> T:
        """Returns the default for what has this stride; see `methods.stride`."""
        return self.default

    @abc.abstractmethod
    def _read(self, value: Any) -> T:
        """Converts `value`, or raises ValueError or TypeError."""


class Number(Setting[float]):
    """A number within bounds; `above` and `below` leave the bound itself out."""

    def __init__(
        self,
        default: float,
        *,
        least: float = -math.inf,
        most: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> None:
        bounds = f"above {above:g}" if math.isfinite(above) else f"from {least:g}"
        if math.isfinite(below):
            bounds += f" and below {below:g}"
        elif math.isfinite(most) and not math.isfinite(above):
            bounds += f" to {most:g}"
        super().__init__(default, f"a number {bounds}, such as {default:g}")
        self._least, self._most, self._above, self._below = least, most, above, below

    def _read(self, value: Any) -> float:
        number = float(value)
        fits = self._least <= number <= self._most and self._above < number < self._below
        if isinstance(value, bool) or not (math.isfinite(number) and fits):
            raise ValueError
        return number


class Whole(Setting[int]):
    """A whole number from `least` to `most`."""

    def __init__(self, default: int, least: int, most: int) -> None:
        super().__init__(default, f"a whole number from {least} to {most}")
        self._least, self._most = least, most

    def _read(self, value: Any) -> int:
        number = int(value)
        whole = isinstance(value, str) or number == value
        if isinstance(value, bool) or not whole or not self._least <= number <= self._most:
            raise ValueError
        return number


class Choice(Setting[str]):
    """One of several words."""

    def __init__(self, default: str, words: Sequence[str]) -> None:
        super().__init__(default, "one of " + ", ".join(words))
        self._words = tuple(words)

    def _read(self, value: Any) -> str:
        if value not in self._words:
            raise ValueError
        return value


def settings_of(owner: type) -> dict[str, Setting[Any]]:
    """Returns the settings of a class and of what it is composed of, by name."""
    found: dict[str, Setting[Any]] = {}
    for part in reversed(owner.__mro__):
        found |= {name: one for name, one in vars(part).items() if isinstance(one, Setting)}
    return found


def choose(owner: type, title: str, given: dict[str, Any], stride: float = 1.0) -> dict[str, Any]:
    """Returns the value of each setting of `owner`: the one `given`, or its default.

    The defaults suit what is tuned, of which `stride` says how far it goes.

    Raises:
        InputError: there is no such setting, or a value is none that it takes; `title` is named.
    """
    known = settings_of(owner)
    for name in given:
        if name not in known:
            raise InputError(f"{title} has no setting {name!r}; it has " + ", ".join(known))
    return {
        name: one.read(given[name]) if name in given else one.usual(stride)
        for name, one in known.items()
    }
