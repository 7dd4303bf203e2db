"""Results that are gone on with are of what the first ones were of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from edgezo.settings import RunSettings
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write, sha256, write_text

INPUTS = "inputs.json"


def check_unchanged(out: Path, runs: Iterable[RunSettings]) -> None:
    """Notes in ``out/inputs.json`` what the data and the bundles of `runs` hold, if it is not yet.

    Raises:
        InputError: one of them held something else when it was noted.
        EdgezoError: the folder cannot be written.
    """
    path = out / INPUTS
    noted: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found: dict[str, str] = {}
    for run in runs:
        for data in filter(None, (run.data, run.eval_data)):
            name = str(Path(data).resolve())
            found[name] = found.get(name) or sha256(Path(data))
        bundle = open_bundle(run.bundle)
        found[str(bundle.folder.resolve())] = bundle.digest
    for name, digest in found.items():
        if noted.get(name, digest) != digest:
            raise InputError(
                f"{name} is not what it was when {out} began, whose results would be of both: "
                "restore it, or choose another --out"
            )
    if found.keys() - noted.keys():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgezoError(cannot_write(out, error)) from error
        write_text(path, json.dumps(noted | found, indent=1) + "\n")
