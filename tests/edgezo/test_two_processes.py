"""Two processes and one run folder: one writes, the other is refused and changes nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from edgezo_runs import called, contents, refused, result_of, train_words

from edgezo.run_folder import RunFolder
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import JournalWriter, read

pytest.importorskip("fcntl", reason="locks are those of Unix")
RACERS = 6


def begin(folder: Path, number: int, start: Barrier) -> bool:
    """Begins a run as a tuner does; returns whether it could."""
    run = RunFolder(folder)
    start.wait()
    try:
        with run.beginning():
            run.write_settings({"racer": number})
            JournalWriter(run.journal, {"schema": 1, "scalars": 1, "racer": number}).close()
    except InputError as error:
        assert "is writing" in str(error) or "already holds a run" in str(error)
        return False
    return True


def test_one_of_many_begins(tmp_path: Path) -> None:
    """A file's lock is of the one who opened it, so threads stand for processes."""
    with ThreadPoolExecutor(RACERS) as pool:
        for race in range(30):
            folder, start = tmp_path / str(race), Barrier(RACERS)
            began = pool.map(lambda n, f=folder, s=start: begin(f, n, s), range(RACERS))
            winners = [number for number, won in enumerate(began) if won]
            assert len(winners) == 1
            assert read(folder / "journal.ezj").header["racer"] == winners[0]
            assert RunFolder(folder).read_settings() == {"racer": winners[0]}
            RunFolder(folder).tidy()
            assert sorted(contents(folder)) == ["journal.ezj", "settings.yaml"]


HOLD = """
import sys
from edgezo.run_folder import RunFolder
run = RunFolder(sys.argv[1])
with run.beginning():
    run.write_settings({"of": "the first"})
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_train_while_another_begins(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    """The first is killed before its journal is there: its lock goes with it."""
    out = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None and first.stdout.readline() == "begun\n"
    before = contents(out)
    words = train_words(tiny_bundle, data, out, "--steps", 2)
    refused(called(*words), 2, f"another process is writing {out}: wait for it or stop it")
    assert contents(out) == before
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert called(*words).status == 0
    assert not [name for name in contents(out) if name.endswith(".tmp")]


def test_train_and_resume_while_another_trains(
    tiny_bundle: Path, data: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    before = contents(out)
    writer = JournalWriter(out / "journal.ezj")
    refused(called(*train_words(tiny_bundle, data, out)), 2, f"{out} already holds a run")
    refused(called("resume", out), 2, "another process is writing", "wait for it or stop it")
    assert contents(out) == before
    writer.close()
    assert called("resume", out).status == 0
    assert result_of(out) == result_of(reference)
