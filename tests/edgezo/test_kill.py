"""A run that is killed, or stopped with Ctrl-C, ends with the bytes of one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from edgezo_runs import (
    ENVIRONMENT,
    STEPS,
    called,
    command_line,
    contents,
    edgezo,
    quick_line,
    refused,
    result_of,
    run,
    succeed,
    train_words,
)

from edgezo_runtime.journal import read

KILLS = 20
CHAINS = 4  # runs that share the kills


def killed(words: Sequence[str], seconds: float) -> bool:
    """Runs a program and kills it after `seconds`; returns whether it was still running."""
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # it may have come to its end just before
    assert process.wait() in (0, -signal.SIGKILL)
    return process.returncode != 0


def go_on(begin: Sequence[object], out: Path) -> tuple[object, ...]:
    """Returns the command that a user would type next."""
    return ("resume", out) if (out / "journal.ezj").exists() else tuple(begin)


@pytest.mark.parametrize("chain", range(CHAINS))
def test_kill_at_random_moments(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path, chain: int
) -> None:
    generator = random.Random(chain)
    out = tmp_path / "run"
    snapshots = ("--snapshot-every", 7) if chain % 2 == 0 else ("--eval-every", 11)
    begin = train_words(tiny_bundle, data, out, *snapshots)
    line = command_line if chain == 0 else quick_line
    started = time.monotonic()
    assert run(line(*train_words(tiny_bundle, data, tmp_path / "timed", *snapshots))).status == 0
    whole = time.monotonic() - started
    kills = 0
    for _ in range(4 * KILLS // CHAINS):
        # Less than a whole run, so that several kills hit one run, some of them at its start.
        if killed(line(*go_on(begin, out)), generator.uniform(0.1, 0.6) * whole):
            kills += 1
        else:  # the run finished: begin another
            assert result_of(out) == result_of(reference)
            shutil.rmtree(out)
        if kills == KILLS // CHAINS:
            break
    assert kills == KILLS // CHAINS
    succeed(*go_on(begin, out))
    assert result_of(out) == result_of(reference)
    leftovers = [name for name in contents(out) if name.endswith(".tmp")]
    assert not leftovers
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if "eval" in line]
    every = range(11, STEPS, 11) if "--eval-every" in snapshots else ()
    assert evaluated == [*every, STEPS]


CRASHING = """
import os, signal, sys
name, number, moment = os.environ.pop("CRASH").split()
calls, whole = 0, getattr(os, name)
def crashing(*arguments):
    global calls
    calls += 1
    if calls == int(number) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    whole(*arguments)
    if calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
setattr(os, name, crashing)
sys.modules["matplotlib"] = None
from edgezo.cli import main
main()
"""


def crashed(crash: str, words: Sequence[object]) -> bool:
    """Runs a command that kills itself at `crash`, such as ``"replace 3 before"``."""
    process = subprocess.run(
        [sys.executable, "-c", CRASHING, *map(str, words)],
        capture_output=True,
        env={**ENVIRONMENT, "CRASH": crash},
        check=False,
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    return process.returncode != 0


SHORT = ("--steps", 20, "--snapshot-every", 7)


@pytest.fixture(scope="module")
def short(tiny_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("short") / "run"
    succeed(*train_words(tiny_bundle, data, out, *SHORT))
    return out


# What the short run puts in place, in order: settings, journal, metrics, twice the weights and the
# checksum of a snapshot, the tuned weights.
@pytest.mark.parametrize(
    ("number", "moment"),
    [*((number, "before") for number in range(1, 9)), (2, "after"), (8, "after")],
)
def test_kill_while_a_file_is_put_in_place(
    short: Path, tiny_bundle: Path, data: Path, tmp_path: Path, number: int, moment: str
) -> None:
    out = tmp_path / "out"
    begin = train_words(tiny_bundle, data, out, *SHORT)
    assert crashed(f"replace {number} {moment}", begin)
    crashed("replace 2 before", go_on(begin, out))
    succeed(*go_on(begin, out))
    assert result_of(out) == result_of(short)
    assert not [name for name in contents(out) if name.endswith(".tmp")]
    for weights in (out / "snapshots").glob("*.safetensors"):
        assert weights.with_suffix(".json").exists()


# A snapshot puts in place here: weights, state, checksums. No journal replays such a run, which
# goes on from the newest one that is whole; a HiFT's state lies on disk meanwhile.
@pytest.mark.parametrize("method", ["adamw", "hift-adamw"])
def test_kill_with_true_gradients(
    derived_bundle: Path, data: Path, tmp_path: Path, method: str
) -> None:
    generator = random.Random(method)
    flags = (*SHORT, "--method", method)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert called(*train_words(derived_bundle, data, whole, *flags)).status == 0
    begin = train_words(derived_bundle, data, out, *flags)
    assert crashed(f"replace {generator.randint(7, 9)} before", begin)  # at the second of step 14
    assert (out / "snapshots" / "step-00000007.json").exists()
    assert crashed(f"replace {generator.randint(1, 3)} after", ("resume", out))
    assert not (out / "model.safetensors").exists()
    assert called("resume", out).status == 0
    assert result_of(out) == result_of(whole)


# Ctrl-C


def wait_for_steps(out: Path, steps: int) -> None:
    """Waits until a run's journal holds some steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (out / "journal.ezj").exists() and len(read(out / "journal.ezj").records) >= steps:
            return
        time.sleep(0.002)
    raise AssertionError("the run took no steps")


def test_ctrl_c_stops_after_the_step(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = train_words(tiny_bundle, data, out, "--json")
    stops = ((words, signal.SIGINT), (("resume", out, "--json"), signal.SIGTERM))
    for begin, stop in stops:
        done = len(read(out / "journal.ezj").records) if out.exists() else 0
        process = subprocess.Popen(
            quick_line(*begin),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=ENVIRONMENT,
        )
        wait_for_steps(out, done + 20)
        process.send_signal(stop)
        told, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert "stopping after this step" in errors and "Traceback" not in errors
        fields = json.loads(told.splitlines()[-1])
        journal = read(out / "journal.ezj")
        assert not fields["finished"] and not journal.torn
        assert done + 20 <= fields["steps"] == len(journal.records) < STEPS
        assert not (out / "model.safetensors").exists()
        refused(edgezo("eval", out, "--data", data / "dev.jsonl"), 2, "edgezo resume")
    succeed("resume", out)
    assert result_of(out) == result_of(reference)
