"""`edgezo generate`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgezo.cli.common import (
    as_json,
    device_option,
    open_model,
    print_json,
    subcommand,
    threads_option,
)
from edgezo.generate import stream


@subcommand('edgezo generate smollm2.edgezo "What is the capital of France?" --chat')
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Longest continuation.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens whose probabilities add up to this.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Draws the tokens, where --temperature is above 0.",
)
@device_option
@threads_option
@as_json
def command(
    model: Path,
    prompt: str,
    chat: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Continue PROMPT with MODEL, a bundle or a finished run."""
    loaded, _ = open_model(model, device, threads)
    if chat:
        prompt = loaded.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
    started = time.perf_counter()
    text = ""
    for piece in stream(loaded, prompt, max_tokens, temperature, seed, top_p):
        text += piece
        if not as_json:
            click.echo(piece, nl=False)
    if as_json:
        seconds = round(time.perf_counter() - started, 2)
        print_json({"prompt": prompt, "text": text, "seconds": seconds})
    else:
        click.echo()
