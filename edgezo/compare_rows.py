"""The rows of a comparison, one a run, and the files that keep them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgezo.finite_json import finite_json, finite_rows
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.files import cannot_write, write_text

RESULTS = "results.jsonl"
ROWS = "accuracy.json"
#: What a row of `ROWS` holds.
FIELDS = (
    "task", "split", "method", "family", "settings_id", "settings", "seed", "examples", "batch",
    "forwards", "seconds", "memory_ratio", "device", "accuracy", "commit",
)  # fmt: skip


def read(out: Path) -> list[dict[str, Any]]:
    """Returns the rows that a comparison's folder holds; a torn last one is left out."""
    path = out / RESULTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def keep(out: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Appends `row` to the results, on a line of its own even after a torn one."""
    path = out / RESULTS
    try:
        out.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + finite_json(row) + "\n")
    except OSError as error:
        raise EdgezoError(cannot_write(path, error)) from error
    return row


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes what `FIELDS` names of each row as one list, a row a line.

    The accuracy of generated answers is the share that is right word for word.

    Raises:
        EdgezoError: the folder cannot be written.
    """
    kept = ({name: row[name] for name in FIELDS} | _right(row) for row in rows)
    write_text(out / ROWS, finite_rows(kept))


def _right(row: Mapping[str, Any]) -> dict[str, Any]:
    found = row["accuracy"]
    return {"accuracy": row.get("em") if found is None else found}
