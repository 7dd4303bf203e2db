"""`edgezo eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import click

from edgezo.answers import evaluate_answers
from edgezo.cli.common import (
    as_json,
    device_option,
    open_model,
    print_json,
    subcommand,
    template_option,
    threads_option,
)
from edgezo.cli.progress import eval_progress
from edgezo.data.rows import Rows
from edgezo.evaluate import evaluate
from edgezo.run_folder import RunFolder, is_run
from edgezo.tasks import Arrays, BaseTask, Task, read_data, task_from_settings, task_of
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import read


@subcommand("edgezo eval runs/first --data test.jsonl")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Rows, JSONL; of arrays also .npz.",
)
@click.option(
    "--task",
    help="classify, masked, head, generate, chat or text.  [default: by the model and data]",
)
@template_option
@click.option("--label-words", help="Word for each label, with commas between them.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--metric", help="em, f1 or em,f1: also let the model answer, and compare with completions."
)
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@device_option
@threads_option
@as_json
def command(
    model: Path,
    data: Path,
    task: str | None,
    template: str | None,
    label_words: str | None,
    batch_size: int,
    metric: str | None,
    max_tokens: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure MODEL, a bundle or a finished run, on rows of data.

    A bundle that was not tuned is measured zero-shot. A run is measured with its own prompt and
    label words unless others are given.
    """
    loaded, _ = open_model(model, device, threads)
    rows = read_data(data, loaded)
    given = (task, template, label_words)
    own = read(RunFolder(model).journal).header.get("task") if is_run(model) else None
    if given != (None, None, None) or not own or own.get("name") == Arrays.name:
        maker = task_of(loaded, rows, task, template, label_words)
    else:
        maker = cast(BaseTask, task_from_settings(own, loaded.tokenizer))
    examples = maker.encode_rows(rows)
    started = time.perf_counter()
    with eval_progress() as progress:
        metrics = evaluate(loaded, maker, examples, batch_size, progress)
        answers = {}
        if metric is not None:
            if not isinstance(maker, Task) or not isinstance(rows, Rows):
                raise InputError("--metric judges generated text, and this model takes arrays")
            names = [name.strip() for name in metric.split(",")]
            answers = evaluate_answers(loaded, maker, rows, names, max_tokens, batch_size, progress)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(
            {
                **metrics.to_json(),
                **answers,
                "seconds": round(seconds, 2),
                "truncated": maker.truncated,
            }
        )
        return
    told = ", ".join([str(metrics), *(f"{name} {100 * x:.1f} %" for name, x in answers.items())])
    click.echo(f"{told} on {metrics.examples} examples in {seconds:.1f} s")
    if maker.truncated:
        click.echo(f"{maker.truncated} texts were cut to fit the model's context")
