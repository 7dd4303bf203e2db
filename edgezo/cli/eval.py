"""`edgezo eval`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgezo.answers import evaluate_answers
from edgezo.cli.common import (
    as_json,
    open_model,
    print_json,
    subcommand,
    template_option,
    threads_option,
)
from edgezo.cli.progress import eval_progress
from edgezo.data.rows import read_rows
from edgezo.evaluate import evaluate
from edgezo.run_folder import RunFolder, is_run
from edgezo.tasks import make_task, task_from_settings
from edgezo_runtime.journal import read


@subcommand("edgezo eval runs/first --data test.jsonl")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Rows, JSONL.")
@click.option("--task", help="classify, generate, chat or text.  [default: by the data's columns]")
@template_option
@click.option("--label-words", help="Word for each label, with commas between them.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--metric", help="em, f1 or em,f1: also let the model answer, and compare with completions."
)
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
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
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure MODEL, a bundle or a finished run, on rows of JSONL.

    A bundle that was not tuned is measured zero-shot. A run is measured with its own prompt and
    label words unless others are given.
    """
    loaded, _ = open_model(model, threads)
    rows = read_rows(data)
    given = (task, template, label_words)
    own = read(RunFolder(model).journal).header.get("task") if is_run(model) else None
    if own and given == (None, None, None):
        maker = task_from_settings(own, loaded.tokenizer)
    else:
        maker = make_task(
            task,
            rows,
            loaded.tokenizer,
            loaded.context_length,
            template=template,
            label_words=label_words,
            defaults=loaded.bundle.manifest.task,
        )
    examples = maker.encode_rows(rows)
    started = time.perf_counter()
    with eval_progress() as progress:
        metrics = evaluate(loaded, maker, examples, batch_size, progress)
        answers = {}
        if metric is not None:
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
