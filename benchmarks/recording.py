"""Keeps what a benchmark found, with what it was found on, in `benchmarks/results/`."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from edgezo.bench.machine import commit, describe_machine, versions
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
