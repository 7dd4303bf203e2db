"""Keeps what a benchmark found, with what it was found on, in `benchmarks/results/`."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

from edgezo.bench.machine import describe_machine, versions
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
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "versions": versions(*packages),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps(fields, indent=1) + "\n")
    return path


def _commit() -> str | None:
    """Returns the commit of this checkout, with ``+`` behind it if files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ":/", ":!/benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(FOLDER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
