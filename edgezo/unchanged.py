"""Results that are gone on with are of what the first ones were of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from edgezo.settings import RunSettings
from edgezo.tasks.prompts import is_name
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import make_folder, sha256, write_text

INPUTS = "inputs.json"
_FILES = ("data", "eval_data", "prompt")


def check_unchanged(out: Path, runs: Iterable[tuple[str, RunSettings]]) -> None:
    """Notes in ``out/inputs.json`` what files the runs read, by what they are for.

    Args:
        out: where results are kept.
        runs: each with the name of what it is a run of; those of one name read the same files.

    Raises:
        InputError: one of the files, wherever it lies, is another than the one that was noted.
        EdgezoError: the folder cannot be written.
    """
    path = out / INPUTS
    noted: dict[str, str | None] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    asked: dict[tuple[str, str], str | None] = {}  # many read the same
    for name, run in runs:
        asked["", "bundle"] = run.bundle
        asked |= {(name, field): getattr(run, field) for field in _FILES}
    found: dict[str, str | None] = {}
    for (name, field), file in asked.items():
        role = f"{name} {field}".strip()
        digest = found[role] = _digest(field, file)
        if noted.get(role, digest) != digest:
            raise InputError(
                f"{role}: {file} is not what it was when {out} began, whose results would be of "
                "both: restore it, or choose another --out"
            )
    if found.keys() - noted.keys():
        make_folder(out)
        write_text(path, json.dumps(noted | found, indent=1, sort_keys=True) + "\n")


def _digest(field: str, file: str | None) -> str | None:
    """Returns what tells a file's content from another's; of a catalogued prompt its name."""
    if file is None or (field == "prompt" and is_name(file)):
        return file
    return open_bundle(file).digest if field == "bundle" else sha256(Path(file))
