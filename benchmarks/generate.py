"""Tokens per second of greedy generation, with the cache and without it.

python benchmarks/generate.py [--json] [--record]

Both run over the same weights in one process and take turns; every figure is a median.
"""

from __future__ import annotations

import json
import time
from statistics import median
from typing import Any

import click
from recording import record

from edgezo.cli.bench import bundle_for, show_round
from edgezo.generate import generate
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.model import Model, load

PROMPT = "The history of the printing press begins"


@click.command()
@click.option("--model", default="smollm2", show_default=True, help="Or a bundle's path.")
@click.option("--tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/generate.json.")
def main(
    model: str, tokens: int, repeats: int, threads: int | None, as_json: bool, keep: bool
) -> None:
    """Measure how many times faster generation is with the cache."""
    folder = bundle_for(model)
    results = compare(load(folder, threads=threads), tokens, repeats)
    results = {"model": folder.name.removesuffix(".edgezo"), **results}
    if keep:
        record("generate", results)
    if as_json:
        click.echo(json.dumps(results))
    else:
        click.echo(
            f"{results['tokens_per_second']:.1f} tokens per second with the cache, "
            f"{results['plain_tokens_per_second']:.2f} without: {results['speedup']:.1f} x"
        )


def compare(model: Model, tokens: int, rounds: int) -> dict[str, Any]:
    """Returns the speed-up over `tokens` new tokens, and both medians.

    Raises:
        InputError: the bundle has no generation graph.
        EdgezoError: the two do not write the same text.
    """
    session = model.generation
    if session is None:
        raise InputError(f"{model.bundle.folder} has no generation graph: export it again")
    model.tokenizer.stop_ids = frozenset()  # each writes all its tokens
    seconds: tuple[list[float], list[float]] = ([], [])
    for done in range(rounds):
        texts = []
        for reader, measured in zip((session, None), seconds, strict=True):
            model.generation = reader
            generate(model, PROMPT, 2)  # warm up
            started = time.perf_counter()
            texts.append(generate(model, PROMPT, tokens))
            measured.append(time.perf_counter() - started)
        if texts[0] != texts[1]:
            raise EdgezoError(f"the cache changes the text: {texts}")
        show_round(done + 1, rounds)
    cached, plain = map(median, seconds)
    return {
        "speedup": round(plain / cached, 2),
        "tokens_per_second": round(tokens / cached, 2),
        "plain_tokens_per_second": round(tokens / plain, 3),
        "tokens": tokens,
        "threads": model.device.threads,
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
