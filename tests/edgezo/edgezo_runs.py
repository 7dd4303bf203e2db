"""Runs of the command line in processes of their own, and small files for them to read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgezo.cli import main
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import Bundle, open_bundle, write_manifest
from edgezo_runtime.files import sha256

WORDS = ("good", "great", "wonderful", "bad", "terrible", "film", "story", "music", "book", "band")
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": ""}
CHILD_SECONDS = 240
WITHOUT_CHARTS = """
import sys
sys.argv[0] = "edgezo"
sys.modules["matplotlib"] = None
from edgezo.cli import main
main()
"""
STEPS = 210
TRAIN_FLAGS = ("--method", "mezo", "--threads", 1, "--batch-size", 4, "--lr", 1e-3, "--seed", 7)


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object that `--json` printed last."""
        return json.loads(self.out.splitlines()[-1])


def command_line(*words: object) -> list[str]:
    """Returns the words of an edgezo command, as a child process takes them."""
    return [sys.executable, "-m", "edgezo", *map(str, words)]


def quick_line(*words: object) -> list[str]:
    """Returns a command line without charts in reports, which take a second to draw."""
    return [sys.executable, "-c", WITHOUT_CHARTS, *map(str, words)]


def edgezo(*words: object, **options: Any) -> Finished:
    """Runs an edgezo command to its end; `options` are those of `subprocess.run`."""
    return run(quick_line(*words), **options)


def run(words: Sequence[str], **options: Any) -> Finished:
    """Runs a program to its end."""
    done = subprocess.run(
        words,
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        timeout=CHILD_SECONDS,
        check=False,
        **options,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def called(*words: object) -> Finished:
    """Runs an edgezo command in this process, which is quicker than one of its own."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["edgezo", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as error:
            status = int(error.code or 0)
    return Finished(status, out.getvalue(), err.getvalue())


def succeed(*words: object, **options: Any) -> Finished:
    """Runs an edgezo command that has to succeed."""
    done = edgezo(*words, **options)
    assert done.status == 0, done.err
    return done


def refused(done: Finished, status: int, *parts: str) -> str:
    """Checks that a command ended as bad input does, and returns its one sentence."""
    assert done.status == status, (done.status, done.out, done.err)
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert lines, "nothing on stderr"
    assert "Traceback" not in done.err
    sentence = lines[-1]
    assert sentence.startswith("error: ")
    assert sum(line.startswith("error:") for line in lines) == 1
    for part in parts:
        assert part in sentence, sentence
    return sentence


def refuse_train(bundle: Path, rows: Path, *flags: object, status: int = 2, parts: Any = ()) -> str:
    """Checks that `edgezo train` refuses, and that no run was begun."""
    out = rows.parent / "run-of-bad-input"
    words = ("--data", rows, "--steps", 2, "--threads", 1, "--out", out)
    sentence = refused(called("train", bundle, *words, *flags), status, *parts)
    assert not out.exists()
    return sentence


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `rows` as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def words(number: int, count: int) -> str:
    """Returns `count` words that depend on `number`."""
    return " ".join(WORDS[(number * 7 + 3 * i + i * i) % len(WORDS)] for i in range(count))


def labelled(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Returns rows of "text" and "label"."""
    labels = ("negative", "positive")
    return [
        {"text": words(i, 2 + i % 6), "label": labels[i % 2]} for i in range(first, first + count)
    ]


def contents(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file under `folder`, by its path in there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def result_of(run_folder: Path) -> tuple[bytes, bytes]:
    """Returns what a run is judged by: the bytes of its weights and of its journal."""
    weights = run_folder / "model.safetensors"
    return weights.read_bytes(), (run_folder / "journal.ezj").read_bytes()


def forge(folder: Path, change: Callable[[Bundle], object] | None = None, **fields: Any) -> None:
    """Changes a bundle and makes its checksums right again.

    Args:
        folder: the bundle.
        change: changes its files.
        fields: of the manifest, to replace.
    """
    bundle = open_bundle(folder)
    if change is not None:
        change(bundle)
    files = {name: sha256(folder / name) for name in bundle.manifest.files}
    write_manifest(folder, dataclasses.replace(bundle.manifest, files=files, **fields))


def train_words(bundle: Path, data: Path, out: Path, *flags: object) -> tuple[object, ...]:
    """Returns the command of the reference run, with `flags` added."""
    files = ("--data", data / "train.jsonl", "--eval-data", data / "dev.jsonl", "--out", out)
    return ("train", bundle, *files, "--steps", STEPS, *TRAIN_FLAGS, *flags)


def mutation_batch(vocabulary: int, rows: int, length: int) -> Batch:
    """Returns a batch of tokens, each the target of the one before it."""
    ids = np.random.default_rng(0).integers(3, vocabulary, (rows, length))
    positions = np.arange(rows * length).reshape(rows, length)[:, :-1].ravel()
    return Batch(
        ids,
        np.ones_like(ids),
        positions,
        ids[:, 1:].ravel(),
        np.arange(vocabulary),
        TokenLoss(rows),
    )
