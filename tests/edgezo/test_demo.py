"""`edgezo demo` on the tiny model, on the CPU and on the stand-in of a card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cuda_stand_in
import pytest
from edgezo_runs import called, refused

from edgezo.demo import story
from edgezo.run_folder import RunFolder

FIGURES = {"accuracy_before", "accuracy_after", "examples", "seconds", "memory_ratio"}


def test_on_the_cpu(tiny_bundle: Path, tmp_path: Path) -> None:
    printed = _told(tiny_bundle, tmp_path / "run")
    found = json.loads(printed.splitlines()[-1])
    assert found.keys() > {*FIGURES, "peak_rss_mb", "inference_peak_rss_mb"}
    assert found["memory_ratio"] > 0 and found["examples"] == 308
    assert "peak memory" in printed and "(tuning)" in printed


def test_on_a_card(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is what the card holds more than before, then after inference, then after all."""
    cuda_stand_in.install(monkeypatch)
    held = iter([1_000_000, 3_000_000, 3_500_000])
    monkeypatch.setattr(story, "card_bytes", lambda device: next(held))
    printed = _told(tiny_bundle, tmp_path / "run", "--device", "cuda")
    found = json.loads(printed.splitlines()[-1])
    assert found.keys() > {*FIGURES, "peak_card_mb", "inference_peak_card_mb"}
    assert (found["inference_peak_card_mb"], found["peak_card_mb"]) == (2.0, 2.5)
    assert found["memory_ratio"] == 1.25
    assert "memory of the card" in printed
    assert RunFolder.open(tmp_path / "run").read_settings()["device"] == "cuda"


def test_a_missing_card_is_told_before_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch)
    refused(called("demo", "--device", "cuda:1"), 2, "cuda:1 is not there")


def test_a_folder_that_is_taken_is_told_before_a_model_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.safetensors").write_text("mine", "utf-8")
    refused(called("demo", "--out", tmp_path), 2, "holds model.safetensors of a model")
    assert not (tmp_path / "cache").exists()


def test_a_missing_package_is_told_before_a_model_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(called("demo"), 1, "needs gguf", "pip install")
    assert not list(tmp_path.iterdir())


def _told(bundle: Path, out: Path, *more: str) -> str:
    done = called("demo", "--model", bundle, "--out", out, "--steps", 2, "--json", *more)
    assert done.status == 0, done.err
    return done.out
