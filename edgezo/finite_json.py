"""JSON has no number for NaN or infinity: edgezo writes null for them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def finite_json(fields: Mapping[str, Any]) -> str:
    """Returns `fields` as one line of JSON, with null for each number that is not finite."""
    return json.dumps(_finite(fields), allow_nan=False)


def finite_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns `rows` as a JSON list with a row a line, written as `finite_json` does."""
    return "[\n" + ",\n".join(map(finite_json, rows)) + "\n]\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
