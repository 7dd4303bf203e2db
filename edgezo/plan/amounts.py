"""Memory and time as people write them."""

from __future__ import annotations

import math
import re

from edgezo_runtime.errors import InputError
from edgezo_runtime.memory import free_bytes

AUTO = "auto"
_BYTES = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_SECONDS = {"S": 1, "M": 60, "MIN": 60, "H": 3600}
_AMOUNT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)\s*")


def parse_memory(text: str) -> int:
    """Returns the bytes that `text` says: ``700MB``, ``1.5GB``, ``2GiB``, or ``auto``.

    ``auto`` is what is free: the memory that the system has available, or that the process's
    control group leaves if that is less.

    Raises:
        InputError: it says none, or ``auto`` is not known on this system.
    """
    if text.strip().lower() == AUTO:
        free = free_bytes()
        if free is None:
            raise InputError("--memory auto: this system does not say what is free; give a size")
        return free
    return round(_amount("--memory", text, _BYTES, "a size such as 700MB, 1.5GB, 2GiB, or auto"))


def parse_time(text: str) -> float:
    """Returns the seconds that `text` says: ``90s``, ``10m`` or ``2h``.

    Raises:
        InputError: it says none.
    """
    return _amount("--time", text, _SECONDS, "a time such as 90s, 10m or 2h")


def _amount(flag: str, text: str, units: dict[str, int], wanted: str) -> float:
    match = _AMOUNT.fullmatch(text)
    unit = units.get(match[2].upper()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise InputError(f"{flag} is {text!r}; give {wanted}")
    return float(match[1]) * unit


def told_bytes(count: float) -> str:
    """Returns bytes as whole megabytes, rounded up."""
    return f"{math.ceil(count / 1e6):,} MB"
