"""Results that are gone on with are of what the first ones were of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from edgezo.settings import RunSettings
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import make_folder, sha256, write_text

INPUTS = "inputs.json"


def check_unchanged(out: Path, runs: Iterable[RunSettings]) -> None:
    """Notes in ``out/inputs.json`` what the data and the bundles of `runs` hold, if it is not yet.

    Raises:
        InputError: one of them held something else when it was noted.
        EdgezoError: the folder cannot be written.
    """
    path = out / INPUTS
    noted: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    data: set[str] = set()
    bundles: set[str] = set()
    for run in runs:  # many are of the same
        data |= {each for each in (run.data, run.eval_data) if each}
        bundles.add(run.bundle)
    found = {str(Path(each).resolve()): sha256(Path(each)) for each in data}
    found |= {str(Path(each).resolve()): open_bundle(each).digest for each in bundles}
    for name, digest in found.items():
        if noted.get(name, digest) != digest:
            raise InputError(
                f"{name} is not what it was when {out} began, whose results would be of both: "
                "restore it, or choose another --out"
            )
    if found.keys() - noted.keys():
        make_folder(out)
        write_text(path, json.dumps(noted | found, indent=1, sort_keys=True) + "\n")
