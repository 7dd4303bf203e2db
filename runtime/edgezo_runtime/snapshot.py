"""Snapshots of the weights and a method's state, so that a resume need not replay a whole run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write, write_text
from edgezo_runtime.journal import Record, checksum
from edgezo_runtime.weights import Weights

FOLDER = "snapshots"
_KEEP = 2
_DTYPES = {np.dtype(np.float32): dtypes.FLOAT32, np.dtype(np.uint8): dtypes.UINT8}


def write(
    run: Path,
    records: Sequence[Record],
    weights: Weights,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights after `records` into the run's folder and drops all but the newest two.

    The checksums are written last, so a snapshot with checksums is whole.

    Args:
        run: the folder.
        records: the steps that the weights have taken.
        weights: as they are after them.
        state: the method's, likewise; see `Method.state`.
    """
    step = len(records)
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise EdgezoError(cannot_write(folder, error)) from error
    path = folder / f"step-{step:08d}.safetensors"
    fields: dict[str, Any] = {"step": step, "sha256": weights.save(path, trained=True)}
    fields["records"] = checksum(records)
    if state:
        arrays = {name: weights.device.host(array) for name, array in state.items()}
        tensors = [(name, _DTYPES[array.dtype], array) for name, array in arrays.items()]
        fields["state"] = safetensors_file.write(_state_of(path), tensors)
    write_text(path.with_suffix(".json"), json.dumps(fields) + "\n")
    notes = _notes(run)
    later = [note for note in notes if _step_of(note) > step]  # of a journal that was replaced
    for old in [*later, *notes[len(later) + _KEEP :]]:
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
    run: Path,
    weights: Weights,
    records: Sequence[Record],
    state: Mapping[str, Any] | None = None,
) -> int:
    """Loads the newest intact snapshot of a run that took the steps `records`, or its first ones.

    Args:
        run: the folder.
        weights: are overwritten.
        records: the steps that count.
        state: the method's arrays, which are overwritten too.

    Returns:
        Its step; 0 if there is none. Then the base weights are loaded, and the state may hold
        anything.
    """
    for note in _notes(run):
        try:
            fields = json.loads(note.read_text())
            step, digest = int(fields["step"]), str(fields["sha256"])
            if step <= len(records) and fields["records"] == checksum(records[:step]):
                if state:
                    found = weights.device.read(_state_of(note), state)
                    if found != fields["state"]:
                        raise InputError(f"{_state_of(note)} does not match its checksum")
                weights.load(note.with_suffix(".safetensors"), digest)
                return step
        except (InputError, ValueError, KeyError, TypeError, OSError):
            continue  # damaged: an older one, or the base, gives the same weights
    weights.load()
    return 0


def _notes(run: Path) -> list[Path]:
    """Returns what says that a snapshot is whole, of each, the newest first."""
    return sorted((run / FOLDER).glob("step-*.json"), key=_step_of, reverse=True)


def _step_of(note: Path) -> int:
    digits = note.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _state_of(path: Path) -> Path:
    return path.with_name(path.name.replace("step-", "state-", 1)).with_suffix(".safetensors")
