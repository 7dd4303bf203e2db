"""What the demo tunes, and how: its prompts, its label words and its settings."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from edgezo.settings import Settings

INTENTS = (
    "add to playlist",
    "book restaurant",
    "get weather",
    "play music",
    "rate book",
    "search creative work",
    "search screening event",
)
LABEL_WORDS = ("playlist", "dining", "weather", "listening", "rating", "finding", "cinema")
# Tried zero-shot; the first one is then tuned.
PROMPTS = ("{text} =>", "{text}\nIntent:", "Request: {text}\nTopic:")
STEPS = 500


def data_file(name: str) -> Path:
    """Returns the path of ``train.jsonl`` or ``test.jsonl``."""
    with as_file(files("edgezo.demo") / "data" / name) as path:
        return path


def settings(bundle: Path, out: Path, steps: int | None, threads: int | None) -> Settings:
    """Returns the demo's settings for a run in `out`."""
    steps = steps or STEPS
    return Settings(
        bundle=str(bundle),
        data=str(data_file("train.jsonl")),
        eval_data=str(data_file("test.jsonl")),
        out=str(out),
        task="classify",
        template=PROMPTS[0],
        label_words=LABEL_WORDS,
        steps=steps,
        batch_size=16,
        lr=4e-5,
        schedule="linear",
        eps=1e-3,
        eval_every=max(steps // 4, 1),
        threads=threads,
    )
