"""Keeps what a benchmark found, with what it was found on, in `benchmarks/results/`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgezo.bench.machine import commit, describe_machine, versions
from edgezo.finite_json import finite_rows
from edgezo_runtime.files import write_text

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def record(name: str, results: Any, packages: tuple[str, ...] = ()) -> Path:
    """Writes `results` to ``results/NAME.json`` and returns the file.

    Args:
        name: the benchmark's.
        results: what it found, as JSON.
        packages: packages whose versions matter, beside those that edgezo runs on.
    """
    fields = {
        "commit": commit("benchmarks/results"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "versions": versions(*packages),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps(fields, indent=1) + "\n")
    return path


def record_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `rows` into the list ``results/NAME.json`` and returns the file.

    A row takes the place of those of the same figure and shape; others stay.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    found = {(row["figure"], row["shape"]) for row in rows}
    held = json.loads(path.read_text("utf-8")) if path.exists() else []
    others = [row for row in held if (row["figure"], row["shape"]) not in found]
    write_text(path, finite_rows([*rows, *others]))
    return path
