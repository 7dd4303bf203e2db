"""Snapshots of the trained weights, so that a resume need not replay a run from its start."""

from __future__ import annotations

import json
from pathlib import Path

from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write, write_text
from edgezo_runtime.model import Weights

FOLDER = "snapshots"
_KEEP = 2


def write(run: Path, step: int, weights: Weights) -> None:
    """Writes the weights after `step` into the run's folder and drops all but the newest two.

    The checksum is written last, so a snapshot with a checksum is whole.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise EdgezoError(cannot_write(folder, error)) from error
    path = folder / f"step-{step:08d}.safetensors"
    digest = weights.save(path, trained=True)
    write_text(path.with_suffix(".json"), json.dumps({"step": step, "sha256": digest}) + "\n")
    for old in sorted(folder.glob("step-*.json"))[:-_KEEP]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def tidy(run: Path) -> None:
    """Removes weights without a checksum: a crash came before it was written."""
    for path in (run / FOLDER).glob("step-*.safetensors"):
        if not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)


def load_newest(run: Path, weights: Weights, latest: int) -> int:
    """Loads the newest intact snapshot that is not after step `latest`.

    Returns:
        Its step; 0 if there is none, and then the base weights are loaded.
    """
    for note in sorted((run / FOLDER).glob("step-*.json"), reverse=True):
        try:
            fields = json.loads(note.read_text())
            step, digest = int(fields["step"]), str(fields["sha256"])
            if step <= latest:
                weights.load(note.with_suffix(".safetensors"), digest)
                return step
        except (InputError, ValueError, KeyError, TypeError, OSError):
            continue  # damaged: an older one, or the base, gives the same weights
    weights.load()
    return 0
