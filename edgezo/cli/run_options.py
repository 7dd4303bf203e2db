"""The options that say what a run does, for the commands that start runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgezo.cli.adapters import adapter_options
from edgezo.cli.common import (
    device_option,
    label_words_option,
    prompt_option,
    task_option,
    template_option,
    threads_option,
)
from edgezo.objectives import OBJECTIVES
from edgezo.settings import KEEP
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods import METHODS
from edgezo_runtime.prefix_cache import PRECISIONS
from edgezo_runtime.schedule import NAMES
from edgezo_runtime.select import ADAPTERS, WORDS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_WHAT = ", ".join(("full", *ADAPTERS, *WORDS))


def pairs(
    ctx: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str] | None:
    """Reads ``name=value`` options; None where there is none."""
    found: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"--set {pair} sets nothing; write --set NAME=VALUE")
        found[name.strip()] = value.strip()
    return found or None


def _option(*names: str, **attributes: Any) -> Decorator:
    return click.option(*names, **attributes)


_OPTIONS: dict[str, Decorator] = {
    "data": _option("--data", help="Training rows, JSONL; of arrays also .npz."),
    "eval_data": _option("--eval-data", help="Held-out rows, likewise."),
    "examples": _option("--examples", type=int, help="Draw so many training rows by the seed."),
    "shots": _option("--shots", type=int, help="Draw so many training rows of each label."),
    "eval_examples": _option(
        "--eval-examples",
        type=int,
        help="Draw so many held-out rows: of --eval-data, else of the training rows left.",
    ),
    "out": _option("--out", help="Folder for the run, or for all runs."),
    "config": _option(
        "--config", type=click.Path(path_type=Path), help="YAML with settings; flags win."
    ),
    "prompt": prompt_option,
    "task": task_option,
    "template": template_option,
    "label_words": label_words_option,
    "tune": _option("--tune", help=f"{_WHAT}, or patterns of names.  [default: by the model]"),
    "adapter": adapter_options,
    "start": _option(
        "--start",
        help="base, probe (first fit the labels on the base's features), or auto.  "
        "[default: the recipe's; of a method base]",
    ),
    "objective": _option(
        "--objective", help=f"{', '.join(OBJECTIVES)}.  [default: auto; of a method loss]"
    ),
    "metric": _option(
        "--metric", help="em, f1 or em,f1: also judge held-out answers; of labels f1."
    ),
    "max_tokens": _option("--max-tokens", type=int, help="Longest answer to judge.  [default: 32]"),
    "method": _option("--method", help=f"{', '.join(METHODS)}.  [default: a recipe for the model]"),
    "steps": _option(
        "--steps", type=int, help="Number of steps.  [default: the recipe's; of a method 1000]"
    ),
    "batch_size": _option("--batch-size", type=int, help="Rows per step.  [default: 16]"),
    "options": _option(
        "--set",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=pairs,
        help="Another setting of the method; `edgezo methods` lists them.",
    ),
    "lr": _option(
        "--lr",
        help="Learning rate of the first step, or auto.  [default: the recipe's, or method's]",
    ),
    "schedule": _option("--schedule", help=f"{', '.join(NAMES)}.  [default: linear]"),
    "eps": _option(
        "--eps", type=float, help="Perturbation scale.  [default: the recipe's, or method's]"
    ),
    "weight_decay": _option(
        "--weight-decay", type=float, help="Decoupled, for matrices.  [default: 0]"
    ),
    "samples": _option(
        "--samples",
        type=int,
        help="Directions per step, where several.  [default: the recipe's, or method's]",
    ),
    "zo_batch_size": _option(
        "--zo-batch-size", type=int, help="Of addax: rows of its estimate.  [default: --batch-size]"
    ),
    "length_limit": _option(
        "--length-limit", type=int, help="Of addax: tokens.  [default: the rows' median]"
    ),
    "seed": _option("--seed", type=int, help="Names every random choice.  [default: 0]"),
    "eval_every": _option(
        "--eval-every", type=int, help="Steps between evaluations.  [default: at the end]"
    ),
    "keep": _option("--keep", help=f"{', '.join(KEEP)}: the weights that count.  [default: last]"),
    "prefix_cache": _option(
        "--prefix-cache",
        help=f"{', '.join(PRECISIONS)}: keep the frozen lower layers' outputs.  [default: none]",
    ),
    "snapshot_every": _option(
        "--snapshot-every", type=int, help="Steps between snapshots.  [default: none]"
    ),
    "device": device_option,
    "threads": threads_option,
}


def run_options(*names: str, but: tuple[str, ...] = ()) -> Decorator:
    """Adds the options called `names`, in this order; all `but` some if none is named."""
    chosen = [name for name in names or _OPTIONS if name not in but]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(chosen):
            command = _OPTIONS[name](command)
        return command

    return add
