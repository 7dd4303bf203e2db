"""The RUN folder: what a run leaves behind, and where each piece lies."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from edgezo.finite_json import finite_json
from edgezo_runtime import journal, peft, snapshot
from edgezo_runtime.bundle import MANIFEST, SIDE_FILES, WEIGHTS
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import cannot_write, lock, make_folder, write_text
from edgezo_runtime.weights import Weights

SETTINGS = "settings.yaml"
METRICS = "metrics.jsonl"
REPORT = "report.html"
_LOCK = ".beginning.tmp"  # `tidy` removes it, too
#: Of a model; a run writes some of them at its end.
_MODEL = (MANIFEST, WEIGHTS, peft.ADAPTER, *SIDE_FILES)


class RunFolder:
    """A run's folder, which holds its journal, settings, metrics, weights and report."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / journal.NAME

    @property
    def weights(self) -> Path:
        """The tuned weights, once the run is finished: all of a model, or an adapter's alone."""
        adapter = self.path / peft.ADAPTER
        return adapter if adapter.exists() else self.path / WEIGHTS

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Makes the folder, unless a run or a model is there; raises EdgezoError if it cannot."""
        run = cls(path)
        run.check_new()
        make_folder(run.path)
        return run

    def check_new(self) -> None:
        """Raises InputError if a run is there, or a model, which a run would overwrite."""
        if self.journal.exists():
            raise InputError(
                f"{self.path} already holds a run: continue it with `edgezo resume {self.path}`, "
                "or choose another folder"
            )
        if held := [name for name in _MODEL if (self.path / name).exists()]:
            raise InputError(
                f"{self.path} holds {held[0]} of a model, which a run there would overwrite: "
                "choose another folder"
            )

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Makes the folder and keeps other processes from beginning a run there meanwhile.

        From then on the journal, which is to be there, keeps them away. What a killed process
        leaves is a file that nobody has locked.

        Raises:
            InputError: a run is there, or begins; or a model is there.
            EdgezoError: the folder cannot be made.
        """
        self.create(self.path)
        path = self.path / _LOCK
        with self._locked(path):
            self.check_new()  # another run may have begun just before the lock was free
            yield
        path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Keeps others from writing the run that is here meanwhile.

        Raises:
            InputError: another writes it.
            EdgezoError: the journal cannot be opened.
        """
        with self._locked(self.journal):
            yield

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        try:
            file = path.open("ab")
        except OSError as error:
            raise EdgezoError(cannot_write(path, error)) from error
        with file:
            lock(file, self.path)
            yield

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Opens an existing run; raises InputError if there is none."""
        run = cls(path)
        if not is_run(run.path):
            raise InputError(f"{path} is not a run folder: it has no {journal.NAME}")
        return run

    def tidy(self) -> None:
        """Removes what writes that a crash cut short left behind; the journal's writer calls it."""
        for folder in (self.path, self.path / snapshot.FOLDER):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)
        snapshot.tidy(self.path)

    def drop_weights(self) -> None:
        """Removes what holds the tuned weights; `edgezo resume` makes them again."""
        self.weights.unlink()
        shutil.rmtree(self.path / snapshot.FOLDER, ignore_errors=True)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes the resolved settings."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_text(self.path / SETTINGS, text)

    def read_settings(self) -> dict[str, Any]:
        """Returns the resolved settings; raises InputError if they are damaged."""
        path = self.path / SETTINGS
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
        if not isinstance(settings, dict):
            raise InputError(f"{path} does not hold settings: restore it from a copy")
        return settings

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of the metrics file that are whole, with NaN for their nulls."""
        path = self.path / METRICS
        lines = path.read_bytes().splitlines() if path.exists() else []
        metrics: list[dict[str, Any]] = []
        for line in lines:
            try:
                found = json.loads(line, object_pairs_hook=_from_json)
            except ValueError:
                break  # torn by a crash
            if not isinstance(found, dict) or not isinstance(found.get("step"), int):
                break  # not written by a run
            metrics.append(found)
        return metrics

    def save_model(self, weights: Weights) -> str:
        """Writes the tuned weights and the checkpoint's small files; returns the sha256.

        A run of a LoRA adapter is what PEFT loads: the adapter alone, with its settings.
        """
        if weights.bundle.manifest.adapter:
            tensors, start = weights.trained(), weights.start
            return peft.write_adapter(self.path, weights.bundle, tensors, start)
        digest = weights.save(self.weights)
        for name in SIDE_FILES:
            source = weights.bundle.folder / name
            if source.exists():
                try:
                    shutil.copyfile(source, self.path / name)
                except OSError as error:
                    raise EdgezoError(cannot_write(self.path / name, error)) from error
        return digest


class MetricsFile:
    """Appends lines to a run's `metrics.jsonl`.

    Args:
        run: the run.
        steps: keep only what was written up to this step; a resume takes later steps again, and
            the evaluation after this one.
    """

    def __init__(self, run: RunFolder, steps: int = 0) -> None:
        lines = run.read_metrics() if steps else []
        kept = [line for line in lines if line["step"] < steps + ("loss" in line)]
        self._path = run.path / METRICS
        write_text(self._path, "".join(finite_json(line) + "\n" for line in kept))
        self._file = self._path.open("ab", buffering=0)  # nothing is left to fail in `close`

    def write(self, **fields: Any) -> None:
        """Appends one line, null for what is not finite.

        Raises:
            EdgezoError: the disk does not take it.
        """
        try:
            data = finite_json(fields).encode() + b"\n"
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise EdgezoError(cannot_write(self._path, error)) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder."""
    return (path / journal.NAME).is_file()


def _from_json(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in pairs}
