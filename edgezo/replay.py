"""Replay: a base bundle and a journal become a tuned bundle, without data or forward passes."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgezo.adapted import AddAdapter, open_adapted
from edgezo_runtime import journal as journals
from edgezo_runtime import peft
from edgezo_runtime.bundle import WEIGHTS, write_manifest
from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write
from edgezo_runtime.tuning import MemoryJournal, Tuning, begin_as, check_header
from edgezo_runtime.weights import Weights


@dataclass(frozen=True)
class Replayed:
    """What a replay did: steps replayed, torn bytes left out, SHA-256 of the weights."""

    steps: int
    torn: int
    sha256: str


def replay(
    run: Path,
    base: Path,
    out: Path,
    at_step: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    add: AddAdapter | None = None,
) -> Replayed:
    """Rebuilds the weights of `run` as of `at_step` and writes them as the bundle `out`.

    What an adapter's run tuned is that adapter: `out` then is a folder that PEFT loads (see
    `peft.write_adapter`), and the rows that the run began with lie there too.

    Args:
        run: a RUN folder, or a journal file alone.
        base: the bundle that the run began from.
        out: a folder that does not exist yet.
        at_step: the step to stop after; the journal's end if None.
        device: whose sweeps; neither it nor the threads change a bit.
        threads: of the sweeps.
        add: puts the run's adapter into a base that has none.

    Raises:
        InputError: the journal is damaged, ends before `at_step`, or has another base.
        EdgezoError: `out` cannot be written.
    """
    path = run / journals.NAME if run.is_dir() else run
    journal = journals.read(path)
    if journal.header.get("replay") is False:
        raise InputError(
            f"{path} is of a run with true gradients ({journal.header.get('method')}), which "
            "cannot be replayed from its journal: its weights are in the run's model.safetensors"
        )
    steps = len(journal.records) if at_step is None else at_step
    if not 0 <= steps <= len(journal.records):
        raise InputError(
            f"{path} ends after step {len(journal.records)}, so step {steps} cannot be rebuilt"
        )
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    bundle = open_adapted(base, journal.header.get("adapter"), add)
    weights = Weights(bundle, journal.header["tune"], open_device(device, threads))
    check_header(journal.header, weights)
    begin_as(journal.header, weights, path.parent)
    Tuning(weights, MemoryJournal(journal.header)).catch_up(journal.records[:steps])
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        digest = _write(weights, temporary)
        temporary.rename(out)
    except OSError as error:
        raise EdgezoError(cannot_write(out, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Replayed(steps, journal.torn, digest)


def _write(weights: Weights, folder: Path) -> str:
    """Writes the rebuilt weights with what belongs to them; returns their file's SHA-256."""
    bundle = weights.bundle
    if bundle.manifest.adapter:
        if weights.start:
            weights.start.write(folder)
        return peft.write_adapter(folder, bundle, weights.trained(), weights.start)
    for name in bundle.manifest.files:
        if name != WEIGHTS:
            shutil.copyfile(bundle.folder / name, folder / name)
    digest = weights.save(folder / WEIGHTS)
    files = dict(bundle.manifest.files) | {WEIGHTS: digest}
    write_manifest(folder, dataclasses.replace(bundle.manifest, files=files))
    return digest
