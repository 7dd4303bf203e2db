"""A full disk: one sentence, nothing lost, and with room again the run ends with the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgezo_runs import (
    ENVIRONMENT,
    STEPS,
    called,
    contents,
    edgezo,
    refused,
    result_of,
    succeed,
    train_words,
)

from edgezo_runtime import journal

resource = pytest.importorskip("resource", reason="limits are set in the ways of Unix")


def limited(size: int) -> Callable[[], None]:
    """Returns what keeps a child process from writing a file of more than `size` bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


def test_a_full_disk(reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    """The limit meets the metrics first, and later, on the way, the weights."""
    out = tmp_path / "run"
    begin = train_words(tiny_bundle, data, out)
    weights = (tiny_bundle / "model.safetensors").stat().st_size
    for size, file in ((6000, "metrics.jsonl"), (weights - 1, "model.safetensors")):
        again = begin if not out.exists() else ("resume", out)
        refused(edgezo(*again, preexec_fn=limited(size)), 1, file)
        assert not (out / "model.safetensors").exists()
        assert not [name for name in contents(out) if name.endswith(".tmp")]
    assert len(journal.read(out / "journal.ezj").records) == STEPS
    succeed("resume", out)
    assert result_of(out) == result_of(reference)


FULL_JOURNAL = """
import sys
from edgezo_runtime import journal
size = int(sys.argv.pop(1))
class Small:
    def __init__(self, file):
        self.file = file
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        room = size - self.file.tell()
        if room <= 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data[:room])
begin = journal.JournalWriter.__init__
def begun(self, *arguments):
    begin(self, *arguments)
    self._file = Small(self._file)
journal.JournalWriter.__init__ = begun
from edgezo.cli import main
main()
"""


def test_a_disk_full_at_the_journal(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    """The journal alone is smaller than the metrics, so its writes are cut in the process."""
    out = tmp_path / "run"
    start = journal.read(reference / "journal.ezj").start
    begin = train_words(tiny_bundle, data, out)
    for records, odd in ((0, 3), (40, 9), (90, 0)):
        again = begin if not out.exists() else ("resume", out)
        size = start + 16 * records + odd
        done = subprocess.run(
            [sys.executable, "-c", FULL_JOURNAL, str(size), *map(str, again)],
            capture_output=True,
            encoding="utf-8",
            env=ENVIRONMENT,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "journal.ezj" in said and "No space left" in said
        assert "free space there or use another folder" in said and "--out" not in said
        found = journal.read(out / "journal.ezj")
        assert (len(found.records), found.torn) == (records, 0)
    succeed("resume", out)
    assert result_of(out) == result_of(reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 2 MB, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(["mount", *options], check=False).returncode:
        pytest.skip("this process may not mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(
    reference: Path, tiny_bundle: Path, data: Path, small_disk: Path
) -> None:
    ballast, out = small_disk / "ballast", small_disk / "run"
    ballast.write_bytes(bytes((2 << 20) - 40_000))
    refused(called(*train_words(tiny_bundle, data, out)), 1, "No space left", str(out))
    assert (out / "journal.ezj").exists() and not (out / "model.safetensors").exists()
    again = called("resume", out)
    refused(again, 1, "No space left", str(out))
    ballast.unlink()
    succeed("resume", out)
    assert result_of(out) == result_of(reference)


def test_a_disk_full_at_a_replay(reference: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ("replay", reference, "--base", tiny_bundle, "--out", tmp_path / "out.edgezo")
    refused(edgezo(*words, preexec_fn=limited(100_000)), 1, "cannot write")
    assert not list(tmp_path.iterdir())
    succeed(*words)
