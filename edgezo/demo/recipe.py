"""What the demo tunes, and how: its prompts, its label words and its settings."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from edgezo.settings import AUTO, RunSettings
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.select import FULL, UPPER, blocks

INTENTS = (
    "add to playlist",
    "book restaurant",
    "get weather",
    "play music",
    "rate book",
    "search creative work",
    "search screening event",
)
LABEL_WORDS = ("add", "restaurant", "weather", "play", "review", "find", "movies")
# Tried zero-shot; the first one is then tuned.
PROMPTS = (
    "User: {text}\nThe user wants the",
    "Request: {text} Topic:",
    "{text}\nIn one word:",
)
EXAMPLES = 1000
STEPS = 12


def data_file(name: str) -> Path:
    """Returns the path of ``train.jsonl`` or ``test.jsonl``."""
    with as_file(files("edgezo.demo") / "data" / name) as path:
        return path


def settings(
    bundle: Path, out: Path, steps: int | None, device: str, threads: int | None
) -> RunSettings:
    """Returns the demo's settings for a run in `out`."""
    steps = steps or STEPS
    return RunSettings(
        bundle=str(bundle),
        data=str(data_file("train.jsonl")),
        examples=EXAMPLES,
        eval_data=str(data_file("test.jsonl")),
        out=str(out),
        task="classify",
        template=PROMPTS[0],
        label_words=LABEL_WORDS,
        tune=UPPER if blocks(open_bundle(bundle).manifest.parameters) else FULL,
        steps=steps,
        start=AUTO,
        method="fzoo",
        samples=16,
        batch_size=12,
        lr=5e-3,
        schedule="linear",
        eps=1.6e-3,
        eval_every=max(steps // 2, 1),
        device=device,
        threads=threads,
    )
