"""`edgezo eval`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from edgezo.answers import evaluate_answers, metric_names
from edgezo.cli.common import (
    as_json,
    device_option,
    label_words_option,
    open_model,
    print_json,
    prompt_option,
    subcommand,
    task_option,
    template_option,
    threads_option,
)
from edgezo.cli.progress import eval_progress
from edgezo.data.rows import Rows
from edgezo.data.subset import demonstrations
from edgezo.evaluate import evaluate
from edgezo.linear_probe import linear_probe
from edgezo.objectives import with_label_f1
from edgezo.run_folder import RunFolder, is_run
from edgezo.tasks import Prompt, load_prompt, read_data, task_of, task_of_run
from edgezo.tasks.shots import show_shots
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
@prompt_option
@task_option
@template_option
@label_words_option
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Sequences per forward pass: a row has one, or one for each of its options.",
)
@click.option(
    "--metric",
    help="em, f1 or em,f1: also let the model answer, and compare with completions; where labels "
    "are chosen f1, the mean over the labels.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Longest answer of --metric.",
)
@click.option("--shots", type=click.IntRange(1), help="Show so many solved rows before each.")
@click.option("--shot-data", type=click.Path(path_type=Path), help="Rows to show, JSONL.")
@click.option(
    "--probe-data",
    type=click.Path(path_type=Path),
    help="Rows, JSONL: fit a linear probe on MODEL's features of them, and measure that.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Draws the rows to show.")
@device_option
@threads_option
@as_json
def command(
    model: Path,
    data: Path,
    prompt: str | None,
    task: str | None,
    template: str | None,
    label_words: str | None,
    batch_size: int,
    metric: str | None,
    max_tokens: int,
    shots: int | None,
    shot_data: Path | None,
    probe_data: Path | None,
    seed: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure MODEL, a bundle or a finished run, on rows of data.

    A bundle that was not tuned is measured zero-shot. A run is measured with its own prompt and
    label words unless others are given. With --shots, rows of --shot-data stand before each row
    with their answers, as many of them as fit. With --probe-data the answers are those of
    a logistic regression on MODEL's features, fitted on these rows.
    """
    loaded, _ = open_model(model, device, threads)
    asked = load_prompt(prompt, loaded.form["kind"]).override(task, template, label_words)
    header = read(RunFolder(model).journal).header if is_run(model) else {}
    own = header.get("task", {})
    recorded = bool(own) and asked == Prompt()
    if recorded:
        asked = Prompt(columns=header.get("columns", {}))
    rows = read_data(data, loaded, asked)
    fitted = rows if probe_data is None else read_data(probe_data, loaded, asked)
    maker = task_of_run(loaded, own) if recorded else task_of(loaded, fitted, asked)
    if probe_data is not None and (metric is not None or shots is not None):
        raise InputError("--probe-data goes with neither --metric nor --shots; leave one out")
    if (shots is None) != (shot_data is None):
        raise InputError("--shots and --shot-data go together; give both or none")
    if shots is not None and shot_data is not None:
        shown = read_data(shot_data, loaded, asked)
        if not isinstance(shown, Rows):
            raise InputError("--shots are rows of text, and this model takes arrays")
        show_shots(maker, demonstrations(shown, seed, shots))
    names = [] if metric is None else metric_names(maker, metric)
    examples = maker.encode_rows(rows)
    started = time.perf_counter()
    with eval_progress() as progress:
        if probe_data is not None:
            solved = maker.encode_rows(fitted)
            metrics = linear_probe(loaded, maker, solved, examples, batch_size).metrics
        else:
            metrics = evaluate(loaded, maker, examples, batch_size, progress)
        if names and maker.chooses:
            metrics = with_label_f1(metrics, maker, examples)
        elif names and isinstance(rows, Rows):
            answers = evaluate_answers(loaded, maker, rows, names, max_tokens, batch_size, progress)
            metrics = dataclasses.replace(metrics, answers=answers)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(
            {
                **metrics.to_json(),
                "seconds": round(seconds, 2),
                "truncated": maker.truncated,
            }
        )
        return
    click.echo(f"{metrics} on {metrics.examples} examples in {seconds:.1f} s")
    if maker.truncated:
        click.echo(f"{maker.truncated} texts were cut to fit the model's context")
