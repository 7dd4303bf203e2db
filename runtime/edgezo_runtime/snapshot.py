"""Snapshots of the weights and a method's state, from which a resume starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write, write_text
from edgezo_runtime.model import Weights

FOLDER = "snapshots"
_KEEP = 2


def write(
    run: Path, step: int, weights: Weights, state: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes the weights after `step` into the run's folder and drops all but the newest two.

    The checksums are written last, so a snapshot with checksums is whole.

    Args:
        run: the folder.
        step: the last one that the weights have taken.
        weights: as they are after it.
        state: the method's float32 arrays, likewise.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise EdgezoError(cannot_write(folder, error)) from error
    weights.arena.settle()
    path = folder / f"step-{step:08d}.safetensors"
    tensors = [
        (p.name, dtypes.named(p.dtype), weights.arena.views[p.name])
        for p in weights.arena.parameters
    ]
    fields: dict[str, object] = {"step": step, "sha256": safetensors_file.write(path, tensors)}
    if state:
        held = [(name, dtypes.FLOAT32, array) for name, array in state.items()]
        fields["state"] = safetensors_file.write(_state_of(path), held)
    write_text(path.with_suffix(".json"), json.dumps(fields) + "\n")
    for old in sorted(folder.glob("step-*.json"))[:-_KEEP]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
        _state_of(old).unlink(missing_ok=True)


def tidy(run: Path) -> None:
    """Removes weights without a checksum: a crash came before it was written."""
    for path in (run / FOLDER).glob("step-*.safetensors"):
        if not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)
            _state_of(path).unlink(missing_ok=True)


def load_newest(
    run: Path, weights: Weights, latest: int, state: Mapping[str, np.ndarray] | None = None
) -> int:
    """Loads the newest intact snapshot that is not after step `latest`.

    Args:
        run: the folder.
        weights: are overwritten.
        latest: the last step that counts.
        state: the method's arrays, which are overwritten too.

    Returns:
        Its step; 0 if there is none. Then the base weights are loaded, and the state may hold
        anything.
    """
    for note in sorted((run / FOLDER).glob("step-*.json"), reverse=True):
        try:
            fields = json.loads(note.read_text())
            step, digest = int(fields["step"]), str(fields["sha256"])
            if step <= latest:
                if state:
                    found = safetensors_file.read_into(_state_of(note), dict(state))
                    if found != fields["state"]:
                        raise InputError(f"{_state_of(note)} does not match its checksum")
                weights.load(note.with_suffix(".safetensors"), digest)
                return step
        except (InputError, ValueError, KeyError, TypeError, OSError):
            continue  # damaged: an older one, or the base, gives the same weights
    weights.load()
    return 0


def _state_of(path: Path) -> Path:
    return path.with_name(path.name.replace("step-", "state-", 1)).with_suffix(".safetensors")
