"""The command line: help, machine-readable output, versions, tracebacks."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from edgezo_runs import called, command_line, labelled, run, succeed, write_rows

from edgezo.cli import COMMANDS
from edgezo_runtime.methods import METHODS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = called(command, "--help")
    assert done.status == 0
    assert f"  edgezo {command}" in done.out.partition("Example:")[2]
    if command != "bench":
        assert "--json" in done.out and "--debug" in done.out


def test_bench_step_has_help() -> None:
    done = called("bench", "step", "--help")
    assert "  edgezo bench step" in done.out.partition("Example:")[2]
    assert "--json" in done.out


def test_the_commands_are_listed() -> None:
    for done in (called("--help"), called("-h")):
        assert done.status == 0
        assert all(command in done.out for command in COMMANDS)
    bare = called()
    assert all(command in bare.out + bare.err for command in COMMANDS)
    assert "error:" not in bare.err


def test_version() -> None:
    assert importlib.metadata.version("edgezo") in succeed("--version").out


def test_an_unknown_command() -> None:
    done = called("tain")
    assert done.status == 2
    assert done.err.startswith("error: ") and "tain" in done.err
    assert len(done.err.splitlines()) == 1


def test_json_is_one_object_and_last(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    dev, out = data / "dev.jsonl", tmp_path / "run"
    few = ("--steps", 3, "--threads", 1, "--eval-every", 1)
    expected = {
        ("eval", tiny_bundle, "--data", dev): {"examples", "loss", "accuracy", "truncated"},
        ("eval", tiny_bundle, "--data", data / "text.jsonl"): {"examples", "perplexity"},
        ("generate", tiny_bundle, "a film", "--max-tokens", 3): {"prompt", "text"},
        ("generate", tiny_bundle, "a film", "--chat", "--max-tokens", 3): {"prompt", "text"},
        ("train", tiny_bundle, "--data", dev, "--eval-data", dev, "--out", out, *few): {
            "run_dir",
            "steps",
            "finished",
            "accuracy",
            "loss",
            "peak_rss_mb",
            "journal_bytes",
        },
        ("resume", out): {"run_dir", "finished"},
        ("replay", out, "--base", tiny_bundle, "--out", tmp_path / "b.edgezo"): {"steps", "sha256"},
        ("info", tiny_bundle): {"parameters", "context_length"},
        ("info", reference): {"steps_done", "finished", "header", "last_eval"},
    }
    for words, names in expected.items():
        done = called(*words, "--json")
        assert done.status == 0, done.err
        assert names <= set(done.json), words
        assert len(done.out.splitlines()) == 1
        plain = [word for word in words if word not in (out, tmp_path / "b.edgezo")]
        if plain == list(words):
            assert called(*words).out.strip()
    methods = called("methods", "--json").json
    assert [method["name"] for method in methods] == list(METHODS)
    assert {"name", "paper", "forwards", "state_bytes", "defaults"} <= set(methods[0])
    state = {method["name"]: method["state_bytes"] for method in methods}
    assert (state["mezo"], state["zo-adam"], state["sparse-mezo"]) == (0, 8, 0.125)


def test_report(reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--data", data / "dev.jsonl", "--out", out, "--steps", 2, "--threads", 1)
    assert called("train", tiny_bundle, *words).status == 0
    done = called("report", out, "--json")
    assert done.status == 0, done.err
    assert "report" in done.json


def test_json_has_no_numbers_that_json_has_not(tiny_bundle: Path, tmp_path: Path) -> None:
    """A run at this rate has a perplexity beyond all numbers."""
    rows = write_rows(tmp_path / "rows.jsonl", ({"text": r["text"]} for r in labelled(8)))
    words = ("--data", rows, "--eval-data", rows, "--out", tmp_path / "run", "--steps", 2)
    done = called("train", tiny_bundle, *words, "--lr", 1e6, "--threads", 1, "--json")
    assert done.status == 0, done.err

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(done.out.splitlines()[-1], parse_constant=refuse)


@pytest.mark.parametrize("words", [("--debug", "info", "none"), ("info", "none", "--debug")])
def test_debug_shows_a_traceback(words: tuple[str, ...]) -> None:
    done = run(command_line(*words))
    assert done.status != 0
    assert "Traceback" in done.err and "InputError" in done.err


def test_a_bug_is_one_sentence_too(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom edgezo.cli import info, main\n"
        "def fail(path): raise KeyError('odd')\n"
        "info.is_run = fail\nmain()\n"
    )
    words = [command_line()[0], "-c", script, "info", str(tmp_path)]
    done = run(words)
    assert (done.status, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith("error: KeyError: 'odd'") and "--debug" in done.err
    assert "Traceback" in run([*words, "--debug"]).err


def test_export(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = called("export", tiny_checkpoint, "--out", tmp_path)
    assert done.status == 2 and "exists already" in done.err
    done = called("export", tmp_path, "--out", tmp_path / "new.edgezo")
    assert done.status == 2 and done.err.startswith("error: ")
    assert not (tmp_path / "new.edgezo").exists()
